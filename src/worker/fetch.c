/*
 * fetch.c
 *		By-key fetch from the source (rule 7): the last resort for a row that
 *		WAL brought with values left out, and that the destination turns out not
 *		to have.
 *
 * Process: the streamer, between batches: outside decoding callbacks and
 * outside a transaction.  Reads in a short read-only transaction of its own.
 * Decoding leaves catalog caches of the past behind, in which a table may have
 * its old file: they are thrown away before and after.
 *
 * The row that comes back is the one of now, perhaps newer than the change that
 * asked: then a later change follows, which the destination applies on top.
 */
#include "postgres.h"

#include "worker/fetch.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_operator.h"
#include "decode/decode.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* The column at a position of the key. */
static const ResyncColumn *
key_column(const ResyncTable *table, int keypos)
{
	for (int c = 0; c < table->ncols; c++)
	{
		if (table->cols[c].keypos == keypos)
			return &table->cols[c];
	}
	elog(ERROR, "key column %d of table \"%s.%s\" is missing", keypos, table->schema, table->name);
	return NULL; /* not reached */
}

static char *
operator_schema(Oid opr)
{
	HeapTuple tup = SearchSysCache1(OPEROID, ObjectIdGetDatum(opr));
	char	 *schema;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for operator %u", opr);
	schema = get_namespace_name(((Form_pg_operator) GETSTRUCT(tup))->oprnamespace);
	ReleaseSysCache(tup);
	return schema;
}

/*
 * Fields back to values: the inverse of the encoder, for key columns.
 */
static Datum
decode_field(const ResyncColumn *col, char *data, int len)
{
	Oid fn;
	Oid ioparam;

	if (strcmp(col->wire, "binary") == 0)
	{
		StringInfoData buf;
		char		   saved = data[len];
		Datum		   value;

		if (col->wire_info != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot look up a row of table by its key column \"%s\" of type %s",
							col->name, format_type_be(col->typid))));
		buf.data = data;
		buf.len = len;
		buf.maxlen = len + 1;
		buf.cursor = 0;
		data[len] = '\0';
		getTypeBinaryInputInfo(col->typid, &fn, &ioparam);
		value = OidReceiveFunctionCall(fn, &buf, ioparam, col->typmod);
		data[len] = saved;
		return value;
	}
	getTypeInputInfo(col->typid, &fn, &ioparam);
	return OidInputFunctionCall(fn, pnstrdup(data, len), ioparam, col->typmod);
}

/*
 * SELECT of all mirrored columns by key; values and types of the parameters
 * are put into the arrays.
 */
static char *
build_query(const ResyncTable *table, const char *key, uint32 key_len, Datum *values, Oid *types)
{
	StringInfoData sql;
	char		  *pos = palloc(key_len + 1);
	const char	  *sep = "";

	memcpy(pos, key, key_len);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int c = 0; c < table->ncols; c++, sep = ", ")
		appendStringInfo(&sql, "%s%s", sep, quote_identifier(table->cols[c].name));
	appendStringInfo(&sql, " FROM %s WHERE ",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(table->relid)),
												get_rel_name(table->relid)));
	for (int k = 1; k <= table->nkeys; k++)
	{
		const ResyncColumn *col = key_column(table, k);
		TypeCacheEntry	   *tce = lookup_type_cache(col->typid, TYPECACHE_EQ_OPR);
		uint32				len;

		if (!OidIsValid(tce->eq_opr))
			elog(ERROR, "type %s has no equality operator", format_type_be(col->typid));
		memcpy(&len, pos, 4);
		len = pg_ntoh32(len);
		types[k - 1] = col->typid;
		values[k - 1] = decode_field(col, pos + 4, (int) len);
		pos += 4 + len;
		appendStringInfo(
			&sql, "%s%s OPERATOR(%s.%s) $%d", k > 1 ? " AND " : "", quote_identifier(col->name),
			quote_identifier(operator_schema(tce->eq_opr)), get_opname(tce->eq_opr), k);
	}
	return sql.data;
}

bool
resync_fetch_row(void *arg, const ResyncTable *table, const char *key, uint32 key_len,
				 StringInfo out)
{
	FetchState	 *state = arg;
	Destination	 *dest = state->dest;
	MemoryContext context = CurrentMemoryContext;
	Datum		  values[INDEX_MAX_KEYS];
	Oid			  types[INDEX_MAX_KEYS];
	bool		  found = false;
	char		 *sql;

	InvalidateSystemCaches();
	StartTransactionCommand();
	XactReadOnly = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	/* a table that was dropped meanwhile has no rows */
	if (get_rel_name(table->relid) != NULL)
	{
		sql = build_query(table, key, key_len, values, types);
		if (SPI_execute_with_args(sql, table->nkeys, types, values, NULL, true, 1) != SPI_OK_SELECT)
			elog(ERROR, "could not look up a row of table \"%s.%s\"", table->schema, table->name);
		if (SPI_processed > 0)
		{
			TupleDesc	desc = SPI_tuptable->tupdesc;
			RowEncoder *encoder = dest->routine->make_encoder(dest, table, desc);
			Datum	   *row = palloc(desc->natts * sizeof(Datum));
			bool	   *nulls = palloc(desc->natts * sizeof(bool));

			heap_deform_tuple(SPI_tuptable->vals[0], desc, row, nulls);
			resync_encode_row(encoder, row, nulls, out);
			found = true;
		}
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	InvalidateSystemCaches();
	MemoryContextSwitchTo(context);

	/*
	 * An asynchronous commit that the row shows must not be undone by a crash.
	 * That it is gone shows the same.
	 */
	state->fetched_until = Max(state->fetched_until, resync_wal_flush());
	return found;
}
