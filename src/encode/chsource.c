/*
 * chsource.c
 *		PostgreSQL's types as the encoder for ClickHouse sees them.
 *
 * Types are told apart by the address of their output function, as types that
 * borrow one (citext, domains) have the same values in the same form.  Reads
 * the catalog; also within decoding callbacks (historic snapshot, no XID).
 */
#include "postgres.h"

#include "encode/chsource.h"

#include "access/htup_details.h"
#include "catalog/pg_cast.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

static const struct
{
	PGFunction	 output;
	ChSourceKind kind;
	int			 width;
	bool		 is_unsigned;
} known_types[] = {
	{boolout, CH_FROM_BOOL},
	{int2out, CH_FROM_INT, 2},
	{int4out, CH_FROM_INT, 4},
	{int8out, CH_FROM_INT, 8},
	{oidout, CH_FROM_INT, 4, true},
	{float4out, CH_FROM_FLOAT4},
	{float8out, CH_FROM_FLOAT8},
	{numeric_out, CH_FROM_NUMERIC},
	{textout, CH_FROM_TEXT},
	{varcharout, CH_FROM_TEXT},
	{bpcharout, CH_FROM_TEXT},
	{byteaout, CH_FROM_BYTEA},
	{charout, CH_FROM_CHAR},
	{nameout, CH_FROM_NAME},
	{json_out, CH_FROM_JSON},
	{jsonb_out, CH_FROM_JSONB},
	{uuid_out, CH_FROM_UUID},
	{date_out, CH_FROM_DATE},
	{time_out, CH_FROM_TIME},
	{timestamp_out, CH_FROM_TIMESTAMP},
	{timestamptz_out, CH_FROM_TIMESTAMP},
	{enum_out, CH_FROM_ENUM},
	{inet_out, CH_FROM_INET},
	{array_out, CH_FROM_ARRAY},
};

/* Types of well-known extensions that are taken by way of another one. */
static const struct
{
	const char *name;
	Oid			target;
} known_casts[] = {{"hstore", JSONOID}, {"vector", FLOAT4ARRAYOID}, {"halfvec", FLOAT4ARRAYOID}};

static void
find_cast(ChSource *source, const char *name)
{
	for (int i = 0; i < lengthof(known_casts); i++)
	{
		HeapTuple tup;

		if (strcmp(name, known_casts[i].name) != 0)
			continue;
		tup = SearchSysCache2(CASTSOURCETARGET, ObjectIdGetDatum(source->typid),
							  ObjectIdGetDatum(known_casts[i].target));
		if (!HeapTupleIsValid(tup))
			return;
		if (((Form_pg_cast) GETSTRUCT(tup))->castmethod == COERCION_METHOD_FUNCTION)
		{
			source->cast = ((Form_pg_cast) GETSTRUCT(tup))->castfunc;
			source->cast_result = resync_chsource_make(known_casts[i].target, -1);
		}
		ReleaseSysCache(tup);
		return;
	}
}

ChSource *
resync_chsource_make(Oid typid, int32 typmod)
{
	ChSource	*source = palloc0(sizeof(ChSource));
	HeapTuple	 tup;
	Form_pg_type form;
	FmgrInfo	 finfo;

	check_stack_depth();
	source->typmod = typmod;
	source->typid = getBaseTypeAndTypmod(typid, &source->typmod);
	source->kind = CH_FROM_OTHER;
	tup = SearchSysCache1(TYPEOID, ObjectIdGetDatum(source->typid));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for type %u", source->typid);
	form = (Form_pg_type) GETSTRUCT(tup);
	source->output = form->typoutput;
	fmgr_info(source->output, &finfo);
	for (int i = 0; i < lengthof(known_types); i++)
	{
		if (finfo.fn_addr == known_types[i].output)
		{
			source->kind = known_types[i].kind;
			source->width = known_types[i].width;
			source->is_unsigned = known_types[i].is_unsigned;
		}
	}
	if (source->kind == CH_FROM_ARRAY)
		source->element = resync_chsource_make(form->typelem, source->typmod);
	else if (source->kind == CH_FROM_OTHER)
		find_cast(source, NameStr(form->typname));
	ReleaseSysCache(tup);
	return source;
}
