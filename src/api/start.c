/*
 * start.c
 *		peerdb_create_mirror and peerdb_resync: what starts a run.
 *
 * In a user's backend, in the caller's transaction: rows are written, nothing
 * is connected to, and the workers are woken at commit.  Locks: the mirror's
 * row.  Rights: the caller's own are checked here; catalog rows are written as
 * the extension's owner (resync_catalog_exec).
 */
#include "postgres.h"

#include "api/api.h"
#include "api/tables.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "worker/peercall.h"
#include "worker/shmem.h"

PG_FUNCTION_INFO_V1(peerdb_create_mirror);
PG_FUNCTION_INFO_V1(peerdb_resync);

/* What peerdb_resync may change. */
const char *const resync_api_resync_keys[] = {"snapshot_num_rows_per_partition",
											  "snapshot_num_partitions_override",
											  "snapshot_max_parallel_workers",
											  "snapshot_num_tables_in_parallel",
											  "keep_serving",
											  NULL};

/* PeerDB's rule for names. */
static void
check_mirror_name(const char *name)
{
	bool good = name[0] == '_' || (name[0] >= 'a' && name[0] <= 'z');

	for (const char *p = name; *p && good; p++)
		good = *p == '_' || (*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9');
	if (!good || strlen(name) > 63)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_NAME),
			 errmsg("invalid mirror name \"%s\"", resync_catalog_clip(name)),
			 errhint(
				 "Names have lower-case letters, digits and underscores, do not begin with a digit, and are up to 63 bytes long.")));
}

/* The server, if the caller has USAGE on it and it is a peer. */
static ForeignServer *
find_peer(const char *name, const char **wrapper, const char **peer_type)
{
	ForeignServer	   *server = GetForeignServerByName(name, false);
	ForeignDataWrapper *fdw = GetForeignDataWrapper(server->fdwid);

	if (!DatumGetBool(DirectFunctionCall2(has_server_privilege_id,
										  ObjectIdGetDatum(server->serverid),
										  CStringGetTextDatum("USAGE"))))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied for foreign server %s", server->servername)));
	*wrapper = fdw->fdwname;
	*peer_type = resync_catalog_peer_type(fdw->fdwname);
	if (*peer_type == NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("server \"%s\" is not a peer", server->servername),
			 errdetail("Its foreign-data wrapper is \"%s\".", fdw->fdwname),
			 errhint(
				 "Peers are servers of peerdb_postgres, peerdb_clickhouse, peerdb_snowflake, peerdb_bigquery or postgres_fdw.")));
	return server;
}

/* The new mirror's row; returns its id. */
static int64
insert_mirror(const char *name, const ForeignServer *server, Jsonb *options)
{
	int64  id;
	bool   isnull;
	uint64 n;

	n = resync_catalog_exec(
		"INSERT INTO peerdb._mirror (name, owner, owner_name, server, server_name,"
		" options, system_identifier, database_oid, instance)"
		" SELECT $1, $2, r.rolname, $3, $4, $5, $6, $7, $8"
		" FROM pg_catalog.pg_roles r WHERE r.oid = $2"
		" ON CONFLICT (name) DO NOTHING RETURNING id",
		SPI_OK_INSERT_RETURNING, 8, TEXTOID, CStringGetTextDatum(name), false, OIDOID,
		ObjectIdGetDatum(GetUserId()), false, OIDOID, ObjectIdGetDatum(server->serverid), false,
		TEXTOID, CStringGetTextDatum(server->servername), false, JSONBOID, JsonbPGetDatum(options),
		false, INT8OID, Int64GetDatum((int64) GetSystemIdentifier()), false, OIDOID,
		ObjectIdGetDatum(MyDatabaseId), false, TEXTOID,
		CStringGetTextDatum(resync_catalog_instance()), false);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT), errmsg("mirror \"%s\" already exists", name)));
	id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	resync_catalog_finish();
	return id;
}

static void
insert_tables(int64 mirror, List *specs)
{
	ListCell *lc;

	foreach(lc, specs)
	{
		TableSpec *spec = lfirst(lc);
		NameData   schema;
		NameData   name;

		namestrcpy(&schema, spec->schema);
		namestrcpy(&name, spec->name);
		resync_api_exec(
			"INSERT INTO peerdb._table (mirror, ordinal, relid, schema_name, table_name,"
			" dest_schema, dest_name, mapping)"
			" VALUES ($1, $2, $3, $4, $5, $6, $7, coalesce($8, '{}')"
			" || pg_catalog.jsonb_build_object('from', $9, 'to', $10))",
			SPI_OK_INSERT, 10, INT8OID, Int64GetDatum(mirror), false, INT4OID,
			Int32GetDatum(foreach_current_index(lc)), false, OIDOID, ObjectIdGetDatum(spec->relid),
			false, NAMEOID, NameGetDatum(&schema), false, NAMEOID, NameGetDatum(&name), false,
			TEXTOID, spec->dest_schema ? CStringGetTextDatum(spec->dest_schema) : (Datum) 0,
			spec->dest_schema == NULL, TEXTOID, CStringGetTextDatum(spec->dest_name), false,
			JSONBOID, spec->object ? JsonbPGetDatum(spec->object) : (Datum) 0, spec->object == NULL,
			TEXTOID, CStringGetTextDatum(resync_tables_display(spec->schema, spec->name)), false,
			TEXTOID, CStringGetTextDatum(resync_tables_display(spec->dest_schema, spec->dest_name)),
			false);
	}
}

/*
 * Two mirrors cannot feed one table.  The destination refuses as well (by the
 * table's mark), but this is known here and now.
 */
static void
check_destinations_free(int64 mirror)
{
	MemoryContext context = CurrentMemoryContext;
	uint64		  n;

	n = resync_catalog_exec(
		"SELECT CASE WHEN a.dest_schema IS NULL THEN pg_catalog.quote_ident(a.dest_name)"
		" ELSE pg_catalog.format('%I.%I', a.dest_schema, a.dest_name) END"
		" FROM peerdb._table a"
		" JOIN peerdb._mirror ma ON ma.id = a.mirror"
		" JOIN peerdb._mirror mb ON mb.server = ma.server AND mb.id <> ma.id"
		" JOIN peerdb._table b ON b.mirror = mb.id AND b.dest_name = a.dest_name"
		" AND b.dest_schema IS NOT DISTINCT FROM a.dest_schema"
		" WHERE a.mirror = $1 ORDER BY a.ordinal LIMIT 1",
		SPI_OK_SELECT, 1, INT8OID, Int64GetDatum(mirror), false);
	if (n > 0)
	{
		char *table = resync_api_copy_value(context, 0, 1);

		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("destination table %s belongs to another mirror on the same peer", table)));
	}
	resync_catalog_finish();
}

/*
 * A new run, which becomes the mirror's newest.  Wakes the workers at commit.
 * previous_status: of the mirror, for a run that is refused; NULL if none.
 */
int64
resync_api_start_run(const MirrorRow *mirror, bool initial, bool keep_serving,
					 const char *previous_status)
{
	int64 run;
	bool  isnull;

	resync_catalog_exec(
		"INSERT INTO peerdb._run (mirror, mirror_name, owner, kind, options, keep_serving,"
		" replaces, previous_status)"
		" SELECT m.id, m.name, m.owner, $2, m.options, $3, m.live_run, $4"
		" FROM peerdb._mirror m WHERE m.id = $1 RETURNING run",
		SPI_OK_INSERT_RETURNING, 4, INT8OID, Int64GetDatum(mirror->id), false, TEXTOID,
		CStringGetTextDatum(initial ? "initial" : "resync"), false, BOOLOID,
		BoolGetDatum(keep_serving), false, TEXTOID,
		previous_status ? CStringGetTextDatum(previous_status) : (Datum) 0,
		previous_status == NULL);
	run = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	resync_catalog_finish();

	resync_api_exec("UPDATE peerdb._mirror SET newest_run = $2, status = 'setup',"
					" status_since = pg_catalog.clock_timestamp(), want_pause = false,"
					" want_cancel = false, error = NULL, error_sqlstate = NULL, error_at = NULL"
					" WHERE id = $1",
					SPI_OK_UPDATE, 2, INT8OID, Int64GetDatum(mirror->id), false, INT8OID,
					Int64GetDatum(run), false);
	resync_shmem_wake_at_commit(mirror->id);
	ereport(NOTICE, (errmsg("resync of mirror \"%s\" (run " INT64_FORMAT ") starts at commit",
							mirror->name, run),
					 errhint("Watch it with: SELECT * FROM peerdb.mirrors \\watch")));
	return run;
}

/* peerdb_create_mirror(mirror, peer, tables, options) */
Datum
peerdb_create_mirror(PG_FUNCTION_ARGS)
{
	char		  *name;
	char		  *peer;
	Jsonb		  *tables;
	Jsonb		  *options;
	ForeignServer *server;
	const char	  *wrapper;
	const char	  *peer_type;
	List		  *specs;
	MirrorRow	  *mirror;
	int			   ntables;
	int64		   id;

	resync_api_begin_change();
	name = resync_api_text(fcinfo, 0, "mirror");
	peer = resync_api_text(fcinfo, 1, "peer");
	tables = resync_api_jsonb(fcinfo, 2, "tables");
	options = resync_api_jsonb(fcinfo, 3, "options");

	check_mirror_name(name);
	resync_api_check_server();
	resync_catalog_check_role(GetUserId());
	server = find_peer(peer, &wrapper, &peer_type);
	resync_options_check_peer(resync_options_parse(options), peer_type);
	specs = resync_tables_parse(tables, peer_type);
	resync_peercall_require(wrapper);

	id = insert_mirror(name, server, options);
	insert_tables(id, specs);
	mirror = resync_catalog_mirror(id);
	(void) resync_api_check_tables(mirror, GetUserId(), &ntables);
	/* last: it tells of others' mirrors, so only to those who could make this one */
	check_destinations_free(id);
	PG_RETURN_INT64(resync_api_start_run(mirror, true, false, NULL));
}

/* Raises when a run is on, or the mirror is going away. */
static void
check_idle(const MirrorRow *mirror)
{
	if (mirror->want_drop != NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("mirror \"%s\" is being dropped", mirror->name)));
	if (mirror->newest_run != 0 && resync_api_run_is_on(resync_catalog_run(mirror->newest_run)))
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("a resync of mirror \"%s\" is on (run " INT64_FORMAT ")", mirror->name,
					mirror->newest_run),
			 errhint(
				 "Wait for it with peerdb_wait_for_status('%s'), or end it with peerdb_cancel_resync('%s').",
				 mirror->name, mirror->name)));
}

/*
 * Would the live stream of this mirror go on during a resync?  One that is
 * failed, or has no stream, has nothing to keep.
 */
bool
resync_api_keeps_serving(const MirrorRow *mirror)
{
	return resync_options_parse(mirror->options)->keep_serving && mirror->live_run != 0 &&
		   (strcmp(mirror->status, "running") == 0 || strcmp(mirror->status, "pausing") == 0 ||
			strcmp(mirror->status, "paused") == 0);
}

/* peerdb_resync(mirror, options) */
Datum
peerdb_resync(PG_FUNCTION_ARGS)
{
	char	  *name;
	Jsonb	  *options;
	MirrorRow *mirror;
	int		   ntables;

	resync_api_begin_change();
	name = resync_api_text(fcinfo, 0, "mirror");
	options = resync_api_jsonb(fcinfo, 1, "options");
	resync_api_check_server();

	mirror = resync_api_lock_mirror(name);
	check_idle(mirror);
	resync_options_check(options, resync_api_resync_keys);
	resync_api_exec("UPDATE peerdb._mirror SET options = options || $2 WHERE id = $1",
					SPI_OK_UPDATE, 2, INT8OID, Int64GetDatum(mirror->id), false, JSONBOID,
					JsonbPGetDatum(options), false);
	mirror = resync_catalog_mirror(mirror->id);
	resync_catalog_check_role(mirror->owner);
	(void) resync_catalog_peer(mirror->server, mirror->owner);
	(void) resync_api_check_tables(mirror, mirror->owner, &ntables);

	PG_RETURN_INT64(
		resync_api_start_run(mirror, false, resync_api_keeps_serving(mirror),
							 strcmp(mirror->status, "pausing") == 0 ? "paused" : mirror->status));
}
