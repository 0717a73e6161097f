/*
 * compare.c
 *		peerdb_check_peer and peerdb_compare: calls that connect to the
 *		destination.
 *
 * In a user's backend, in the caller's transaction.  The connecting part is
 * worker/peercall.c.
 */
#include "postgres.h"

#include "api/api.h"
#include "api/tables.h"

#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "worker/peercall.h"

PG_FUNCTION_INFO_V1(peerdb_check_peer);
PG_FUNCTION_INFO_V1(peerdb_compare);

/* How long peerdb_compare waits for the destination. */
#define COMPARE_WAIT_MS (5 * 60 * 1000)

/* peerdb_check_peer(peer): the destination's version, with the caller's mapping. */
Datum
peerdb_check_peer(PG_FUNCTION_ARGS)
{
	ForeignServer	   *server;
	ForeignDataWrapper *fdw;

	resync_api_require_preload();
	server = GetForeignServerByName(resync_api_text(fcinfo, 0, "peer"), false);
	fdw = GetForeignDataWrapper(server->fdwid);
	if (resync_catalog_peer_type(fdw->fdwname) == NULL)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("server \"%s\" is not a peer", server->servername),
						errdetail("Its foreign-data wrapper is \"%s\".", fdw->fdwname)));
	PG_RETURN_TEXT_P(cstring_to_text(resync_peercall_version(server->serverid, GetUserId())));
}

/*
 * Rows of a source table, with the rights of the mirror's owner and under a
 * fresh snapshot.
 */
static int64
count_source(const ResyncTable *table, Oid owner)
{
	Oid	  save_user;
	int	  save_context;
	int	  guc_level;
	int64 rows;
	bool  isnull;
	char *name = get_rel_name(table->relid);
	char *sql;

	/* the stream follows the OID; the name may be another table's by now */
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist any more", table->schema, table->name)));
	sql = psprintf(
		"SELECT pg_catalog.count(*) FROM %s",
		quote_qualified_identifier(get_namespace_name(get_rel_namespace(table->relid)), name));

	GetUserIdAndSecContext(&save_user, &save_context);
	SetUserIdAndSecContext(owner, save_context | SECURITY_LOCAL_USERID_CHANGE |
									  SECURITY_RESTRICTED_OPERATION);
	guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not count rows: %s", sql);
	rows = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	PopActiveSnapshot();
	SPI_finish();
	AtEOXact_GUC(true, guc_level);
	SetUserIdAndSecContext(save_user, save_context);
	return rows;
}

/* peerdb_compare(mirror) */
Datum
peerdb_compare(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char		  *name;
	MirrorRow	  *mirror;
	ResyncTable	 **tables;
	int			   ntables;
	int64		  *source;
	int64		  *destination;

	resync_api_require_preload();
	name = resync_api_text(fcinfo, 0, "mirror");
	mirror = resync_api_find_mirror(name);
	if (!resync_api_may_steer(mirror->owner))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be owner of mirror %s", name)));
	InitMaterializedSRF(fcinfo, 0);

	/* a completed mirror holds its snapshot, and nothing is coming */
	if (strcmp(mirror->status, "completed") != 0)
		resync_api_wait_for_lsn(
			name, resync_api_current_lsn(),
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), COMPARE_WAIT_MS));
	mirror = resync_api_find_mirror(name);
	if (mirror->live_run == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("mirror \"%s\" has no live tables yet", name)));
	tables = resync_catalog_run_tables(mirror->live_run, &ntables);

	source = palloc(sizeof(int64) * Max(ntables, 1));
	destination = palloc(sizeof(int64) * Max(ntables, 1));
	for (int i = 0; i < ntables; i++)
		source[i] = count_source(tables[i], mirror->owner);
	resync_peercall_count(mirror, tables, ntables, destination);

	for (int i = 0; i < ntables; i++)
	{
		Datum values[5];
		bool  nulls[5] = {0};

		values[0] = CStringGetTextDatum(resync_tables_display(tables[i]->schema, tables[i]->name));
		values[1] = CStringGetTextDatum(
			resync_tables_display(tables[i]->dest_schema, tables[i]->dest_name));
		values[2] = Int64GetDatum(source[i]);
		values[3] = Int64GetDatum(destination[i]);
		values[4] = BoolGetDatum(source[i] == destination[i]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
