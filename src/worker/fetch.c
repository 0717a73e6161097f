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
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "decode/decode.h"
#include "executor/spi.h"
#include "miscadmin.h"
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
 * SELECT of all mirrored columns by key; values and types of the parameters
 * are put into the arrays, their number into nparams.
 */
static char *
build_query(Destination *dest, const ResyncTable *table, const char *key, uint32 key_len,
			Datum *values, Oid *types, int *nparams)
{
	StringInfoData sql;
	char		  *pos = palloc(key_len + 1);
	const char	  *sep = "";

	memcpy(pos, key, key_len);
	*nparams = 0;
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
		if ((int32) len < 0)
		{
			/* only beyond the source's own key */
			appendStringInfo(&sql, "%s%s IS NULL", k > 1 ? " AND " : "",
							 quote_identifier(col->name));
			pos += 4;
			continue;
		}
		types[*nparams] = col->typid;
		values[*nparams] = dest->routine->decode_field(dest, col, pos + 4, (int) len);
		(*nparams)++;
		pos += 4 + len;
		appendStringInfo(
			&sql, "%s%s OPERATOR(%s.%s) $%d", k > 1 ? " AND " : "", quote_identifier(col->name),
			quote_identifier(operator_schema(tce->eq_opr)), get_opname(tce->eq_opr), *nparams);
	}
	return sql.data;
}

/* One call of resync_fetch_rows; in a transaction, connected to SPI. */
typedef struct FetchCall
{
	Destination		  *dest;
	const ResyncTable *table;
	char			  *sql; /* what plan is of, NULL: none yet */
	SPIPlanPtr		   plan;
	RowEncoder		  *encoder;
	MemoryContext	   context; /* of the call */
	MemoryContext	   row_context;
} FetchCall;

static void
fetch_one(FetchCall *call, FetchRow *row)
{
	const ResyncTable *table = call->table;
	MemoryContext	   old = MemoryContextSwitchTo(call->row_context);
	Datum			  *values = palloc(table->nkeys * sizeof(Datum));
	Oid				  *types = palloc(table->nkeys * sizeof(Oid));
	int				   nparams;
	char *sql = build_query(call->dest, table, row->key, row->key_len, values, types, &nparams);

	/* it differs only where a key is NULL */
	if (call->sql == NULL || strcmp(call->sql, sql) != 0)
	{
		call->sql = MemoryContextStrdup(call->context, sql);
		call->plan = SPI_prepare(sql, nparams, types);
		if (call->plan == NULL)
			elog(ERROR, "could not look up a row of table \"%s.%s\"", table->schema, table->name);
	}
	if (SPI_execute_plan(call->plan, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look up a row of table \"%s.%s\"", table->schema, table->name);
	if (SPI_processed > 0)
	{
		TupleDesc desc = SPI_tuptable->tupdesc;
		Datum	 *columns = palloc(desc->natts * sizeof(Datum));
		bool	 *nulls = palloc(desc->natts * sizeof(bool));

		if (call->encoder == NULL)
		{
			MemoryContextSwitchTo(call->context);
			call->encoder = call->dest->routine->make_encoder(call->dest, table, desc);
			MemoryContextSwitchTo(call->row_context);
		}
		heap_deform_tuple(SPI_tuptable->vals[0], desc, columns, nulls);
		resync_encode_row(call->encoder, columns, nulls, &row->row);
		row->found = true;
	}
	SPI_freetuptable(SPI_tuptable);
	MemoryContextSwitchTo(old);
	MemoryContextReset(call->row_context);
}

/* The owner of a relation; of one that is gone: fallback. */
static Oid
owner_of(Oid relid, Oid fallback)
{
	HeapTuple tup = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid		  owner = fallback;

	if (HeapTupleIsValid(tup))
	{
		owner = ((Form_pg_class) GETSTRUCT(tup))->relowner;
		ReleaseSysCache(tup);
	}
	return owner;
}

int
resync_fetch_rows(void *arg, const ResyncTable *table, FetchRow *rows, int nrows)
{
	FetchState	 *state = arg;
	MemoryContext context = CurrentMemoryContext;
	FetchCall	  call = {.dest = state->dest, .table = table};
	Size		  bytes = 0;
	int			  done = 0;
	Oid			  user;
	int			  security;

	InvalidateSystemCaches();
	StartTransactionCommand();

	/*
	 * Code of users runs here (a domain's CHECK, an index's expression).  It must
	 * not get back to the superuser that the process was started as, by RESET ROLE
	 * for one; and where the mirror's owner is a superuser it runs as the table's
	 * owner, without the row security that a superuser would not see either.  An
	 * abort restores it, too.
	 */
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(superuser_arg(user) ? owner_of(table->relid, user) : user,
						   security | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION |
							   (superuser_arg(user) ? SECURITY_NOFORCE_RLS : 0));
	XactReadOnly = true;
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	call.context = CurrentMemoryContext;
	call.row_context = AllocSetContextCreate(call.context, "resync fetch", ALLOCSET_DEFAULT_SIZES);

	/* a table that was dropped meanwhile has no rows */
	if (get_rel_name(table->relid) == NULL)
		done = nrows;
	while (done < nrows && bytes < (Size) resync_copier_buffer * 1024)
	{
		fetch_one(&call, &rows[done]);
		bytes += rows[done].row.len;
		done++;
	}
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(user, security);
	CommitTransactionCommand();
	InvalidateSystemCaches();
	MemoryContextSwitchTo(context);

	/*
	 * An asynchronous commit that a row shows must not be undone by a crash.
	 * That one is gone shows the same.
	 */
	state->fetched_until = Max(state->fetched_until, resync_wal_flush());
	return done;
}
