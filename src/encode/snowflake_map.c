/*
 * snowflake_map.c
 *		Which type a column gets at Snowflake, and how a text becomes one.
 *
 * Called when a run is planned, when a column was added, and for the statements
 * of a load.  Reads the source's catalog only.
 *
 * What has no type of its own at Snowflake becomes a VARCHAR of its text: a value
 * is never changed on the way, and one that its type there cannot hold is an
 * error, or NULL when the mirror's option out_of_range says so.
 */
#include "postgres.h"

#include "encode/snowflake.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "encode/chsource.h"
#include "encode/numeric.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* Limits of NUMBER. */
#define NUMBER_MAX_PRECISION 38
#define NUMBER_MAX_SCALE 37

/* A numeric that was declared without (PeerDB's choice). */
#define UNBOUNDED_SCALE 20

static const char *const kinds[] = {
	[SF_BOOLEAN] = "BOOLEAN",
	[SF_NUMBER] = "NUMBER",
	[SF_FLOAT] = "FLOAT",
	[SF_VARCHAR] = "VARCHAR",
	[SF_BINARY] = "BINARY",
	[SF_DATE] = "DATE",
	[SF_TIME] = "TIME",
	[SF_TIMESTAMP_NTZ] = "TIMESTAMP_NTZ",
	[SF_TIMESTAMP_TZ] = "TIMESTAMP_TZ",
	[SF_VARIANT] = "VARIANT",
	[SF_GEOGRAPHY] = "GEOGRAPHY",
	[SF_GEOMETRY] = "GEOMETRY",
};

const char *
resync_sf_kind_name(SfKind kind)
{
	return kinds[kind];
}

static char *
type_text(const SfType *type)
{
	if (type->kind == SF_NUMBER)
		return psprintf("NUMBER(%d, %d)", type->precision, type->scale);
	return pstrdup(kinds[type->kind]);
}

/* Reads what the former wrote; false: it is no such text. */
static bool
type_parse(const char *text, SfType *type)
{
	size_t len = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_");
	int	   used = 0;

	memset(type, 0, sizeof(*type));
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strlen(kinds[i]) != len || strncmp(kinds[i], text, len) != 0)
			continue;
		type->kind = (SfKind) i;
		if (type->kind == SF_NUMBER &&
			(sscanf(text + len, "(%d, %d)%n", &type->precision, &type->scale, &used) != 2 ||
			 used == 0))
			return false;
		return text[len + used] == '\0';
	}
	return false;
}

/* ---- by the source's type ---- */

static void
set_numeric(SfType *type, const ChSource *source, const SfColumnChoice *choice)
{
	if (!resync_numeric_typmod(source->typmod, &type->precision, &type->scale))
	{
		if (choice->unbounded_string)
			return;
		type->precision = NUMBER_MAX_PRECISION;
		type->scale = UNBOUNDED_SCALE;
	}
	if (type->precision <= NUMBER_MAX_PRECISION && type->scale <= NUMBER_MAX_SCALE)
		type->kind = SF_NUMBER;
}

/* Types of the base distribution and of PostGIS that say where something is. */
static SfKind
other_kind(const ChSource *source)
{
	SfKind	  kind = SF_VARCHAR;
	HeapTuple tup;

	if (source->output == F_POINT_OUT)
		return SF_GEOMETRY;
	tup = SearchSysCache1(TYPEOID, ObjectIdGetDatum(source->typid));
	if (!HeapTupleIsValid(tup))
		return kind;
	if (strcmp(NameStr(((Form_pg_type) GETSTRUCT(tup))->typname), "geography") == 0)
		kind = SF_GEOGRAPHY;
	else if (strcmp(NameStr(((Form_pg_type) GETSTRUCT(tup))->typname), "geometry") == 0)
		kind = SF_GEOMETRY;
	ReleaseSysCache(tup);
	return kind;
}

static void
set_type(SfType *type, const ChSource *source, const SfColumnChoice *choice, bool is_key)
{
	type->kind = SF_VARCHAR;
	switch (source->kind)
	{
		case CH_FROM_BOOL:
			type->kind = SF_BOOLEAN;
			break;
		case CH_FROM_INT:
			/* an OID is a name rather than a number */
			if (source->is_unsigned)
				break;
			type->kind = SF_NUMBER;
			type->precision = NUMBER_MAX_PRECISION;
			break;
		case CH_FROM_FLOAT4:
		case CH_FROM_FLOAT8:
			type->kind = SF_FLOAT;
			break;
		case CH_FROM_NUMERIC:
			set_numeric(type, source, choice);
			break;
		case CH_FROM_BYTEA:
			type->kind = SF_BINARY;
			break;
		case CH_FROM_DATE:
			type->kind = SF_DATE;
			break;
		case CH_FROM_TIME:
			type->kind = SF_TIME;
			break;
		case CH_FROM_TIMESTAMP:
			type->kind = source->output == F_TIMESTAMPTZ_OUT ? SF_TIMESTAMP_TZ : SF_TIMESTAMP_NTZ;
			break;
		case CH_FROM_JSON:
		case CH_FROM_JSONB:
		case CH_FROM_ARRAY:
			if (!is_key)
				type->kind = SF_VARIANT;
			break;
		case CH_FROM_OTHER:
			if (is_key)
				break;
			type->kind = source->cast_result != NULL ? SF_VARIANT : other_kind(source);
			break;
		default:
			break;
	}
}

void
resync_sf_map_column(ResyncColumn *col, const SfColumnChoice *choice)
{
	ChSource *source = resync_chsource_make(col->typid, col->typmod);
	bool	  is_key = col->keypos > 0;
	SfType	  type = {0};
	char	  flags[3];
	int		  n = 0;

	set_type(&type, source, choice, is_key);
	if (choice->null_out_of_range && !is_key)
		flags[n++] = SF_FLAG_NULL;
	if (source->cast_result != NULL && !is_key)
		flags[n++] = SF_FLAG_CAST;
	flags[n] = '\0';
	col->dest_type = type_text(&type);
	col->wire = pstrdup("csv");
	col->wire_info = psprintf("%s:%s", flags, col->dest_type);
}

SfType
resync_sf_type(const ResyncColumn *col)
{
	const char *colon = col->wire_info != NULL ? strchr(col->wire_info, ':') : NULL;
	SfType		type;

	if (colon == NULL || strcmp(col->wire, "csv") != 0 || !type_parse(colon + 1, &type))
		elog(ERROR, "column \"%s\" was not planned for Snowflake", col->name);
	return type;
}

/* ---- SQL ---- */

char *
resync_sf_convert(const SfType *type, const char *text)
{
	switch (type->kind)
	{
		case SF_BOOLEAN:
			return psprintf("TO_BOOLEAN(%s)", text);
		case SF_NUMBER:
			return psprintf("TO_NUMBER(%s, %d, %d)", text, type->precision, type->scale);
		case SF_FLOAT:
			return psprintf("TO_DOUBLE(%s)", text);
		case SF_BINARY:
			return psprintf("TO_BINARY(%s, 'HEX')", text);
		case SF_DATE:
			return psprintf("TO_DATE(%s, 'YYYY-MM-DD')", text);
		case SF_TIME:
			return psprintf("TO_TIME(%s, 'HH24:MI:SS.FF6')", text);
		case SF_TIMESTAMP_NTZ:
			return psprintf("TO_TIMESTAMP_NTZ(%s, 'YYYY-MM-DD HH24:MI:SS.FF6')", text);
		case SF_TIMESTAMP_TZ:
			return psprintf("TO_TIMESTAMP_TZ(%s, 'YYYY-MM-DD HH24:MI:SS.FF6 TZH:TZM')", text);
		case SF_VARIANT:
			/* json may have a key twice: the last one counts, as for jsonb */
			return psprintf("PARSE_JSON(%s, 'd')", text);
		/* TRUE: a shape that is not valid is kept, too; PeerDB has it so in COPY */
		case SF_GEOGRAPHY:
			return psprintf("TO_GEOGRAPHY(%s, TRUE)", text);
		case SF_GEOMETRY:
			return psprintf("TO_GEOMETRY(%s, TRUE)", text);
		case SF_VARCHAR:
			break;
	}
	return pstrdup(text);
}
