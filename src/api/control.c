/*
 * control.c
 *		peerdb_cancel_resync, peerdb_pause_mirror, peerdb_resume_mirror,
 *		peerdb_drop_mirror, peerdb_edit_mirror, and add and remove tables.
 *
 * In a user's backend, in the caller's transaction: each writes a request
 * (want_*) or a setting into the mirror's row, which it locks, and wakes the
 * mirror's coordinator at commit.  The coordinator does the work.
 */
#include "postgres.h"

#include "api/api.h"
#include "api/tables.h"

#include "access/xlog.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"
#include "worker/shmem.h"

PG_FUNCTION_INFO_V1(peerdb_cancel_resync);
PG_FUNCTION_INFO_V1(peerdb_pause_mirror);
PG_FUNCTION_INFO_V1(peerdb_resume_mirror);
PG_FUNCTION_INFO_V1(peerdb_drop_mirror);
PG_FUNCTION_INFO_V1(peerdb_edit_mirror);
PG_FUNCTION_INFO_V1(peerdb_add_tables);
PG_FUNCTION_INFO_V1(peerdb_remove_tables);

/* Options that are fixed when a run makes its destination tables. */
static const char *const fixed_keys[] = {
	"soft_delete",		 "soft_delete_col_name", "synced_at_col_name",	"disable_peerdb_columns",
	"unbounded_numeric", "out_of_range",		 "null_array_elements", NULL};

static void
refuse_when_dropped(const MirrorRow *mirror)
{
	if (mirror->want_drop != NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("mirror \"%s\" is being dropped", mirror->name)));
}

/* Number of tables of the run that were swapped already. */
static int64
count_swapped(int64 run)
{
	int64 n;
	bool  isnull;

	resync_catalog_exec("SELECT pg_catalog.count(*) FROM peerdb._run_table"
						" WHERE run = $1 AND state = 's'",
						SPI_OK_SELECT, 1, INT8OID, Int64GetDatum(run), false);
	n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	resync_catalog_finish();
	return n;
}

/* peerdb_cancel_resync(mirror) */
Datum
peerdb_cancel_resync(PG_FUNCTION_ARGS)
{
	char	  *name;
	MirrorRow *mirror;
	RunRow	  *run = NULL;

	resync_api_begin_change();
	name = resync_api_text(fcinfo, 0, "mirror");
	mirror = resync_api_lock_mirror(name);
	refuse_when_dropped(mirror);
	if (mirror->newest_run != 0)
		run = resync_catalog_run(mirror->newest_run);
	if (!resync_api_run_is_on(run))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("no resync of mirror \"%s\" is on", name)));
	if (run->phase == PHASE_SWAP && count_swapped(run->run) > 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the resync of mirror \"%s\" can no longer be cancelled", name),
						errdetail("Tables of run " INT64_FORMAT " serve already.", run->run)));
	resync_api_exec("UPDATE peerdb._mirror SET want_cancel = true WHERE id = $1", SPI_OK_UPDATE, 1,
					INT8OID, Int64GetDatum(mirror->id), false);
	resync_shmem_wake_at_commit(mirror->id);
	PG_RETURN_VOID();
}

/* peerdb_pause_mirror(mirror) */
Datum
peerdb_pause_mirror(PG_FUNCTION_ARGS)
{
	char	  *name;
	MirrorRow *mirror;

	resync_api_begin_change();
	name = resync_api_text(fcinfo, 0, "mirror");
	mirror = resync_api_lock_mirror(name);
	refuse_when_dropped(mirror);
	if (strcmp(mirror->status, "failed") == 0 || strcmp(mirror->status, "completed") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("mirror \"%s\" cannot be paused", name),
				 errdetail("Its status is \"%s\": nothing is done for it.", mirror->status)));
	if (!mirror->want_pause)
	{
		resync_api_exec("UPDATE peerdb._mirror SET want_pause = true, status = 'pausing',"
						" status_since = pg_catalog.clock_timestamp() WHERE id = $1",
						SPI_OK_UPDATE, 1, INT8OID, Int64GetDatum(mirror->id), false);
		resync_shmem_wake_at_commit(mirror->id);
	}
	PG_RETURN_VOID();
}

/*
 * The run that a resumed mirror goes on with: the newest, unless that one ended
 * without touching what was there before.  NULL: none.
 */
static RunRow *
run_to_resume(const MirrorRow *mirror)
{
	RunRow *run = mirror->newest_run == 0 ? NULL : resync_catalog_run(mirror->newest_run);

	if (run != NULL && run->phase != PHASE_ENDED &&
		(run->outcome == NULL || strcmp(run->outcome, "failed") == 0 ||
		 strcmp(run->outcome, "done") == 0))
		return run;
	run = mirror->live_run == 0 ? NULL : resync_catalog_run(mirror->live_run);
	return run != NULL && run->phase != PHASE_ENDED ? run : NULL;
}

/* A slot that is lost, or gone, cannot be taken up. */
static void
check_slot(const MirrorRow *mirror, const RunRow *run)
{
	bool usable;

	if (run->slot_name == NULL || run->phase < PHASE_CREATE_TABLES)
		return;
	usable = resync_catalog_exec(
				 "SELECT FROM pg_catalog.pg_replication_slots"
				 " WHERE slot_name = $1::name AND wal_status IS DISTINCT FROM 'lost'",
				 SPI_OK_SELECT, 1, TEXTOID, CStringGetTextDatum(run->slot_name), false) > 0;
	resync_catalog_finish();
	if (!usable)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("mirror \"%s\" cannot go on: its replication slot \"%s\" is lost",
							   mirror->name, run->slot_name),
						errhint("Rebuild the mirror: SELECT peerdb_resync('%s');", mirror->name)));
}

static const char *
status_of_phase(RunPhase phase)
{
	if (phase < PHASE_LOAD)
		return "setup";
	return phase < PHASE_STREAM ? "snapshot" : "running";
}

/*
 * Take a mirror over from the database that this one is a copy of.  There is no
 * slot here, and the positions of the other one's WAL mean nothing: the mirror
 * is rebuilt by a resync, under a new token; its first step at the destination
 * fences the original out and makes the live tables ours.  Owner and server
 * are found by name, since OIDs differ in a restored dump.
 */
static void
adopt(MirrorRow *mirror)
{
	resync_api_check_server();
	if (mirror->newest_run != 0)
		resync_api_exec("UPDATE peerdb._run SET phase = 'ended',"
						" outcome = coalesce(outcome, 'cancelled'),"
						" finished_at = coalesce(finished_at, pg_catalog.clock_timestamp())"
						" WHERE mirror = $1 AND phase <> 'ended'",
						SPI_OK_UPDATE, 1, INT8OID, Int64GetDatum(mirror->id), false);
	if (resync_catalog_exec(
			"UPDATE peerdb._mirror m SET adopt_from = coalesce(m.adopt_from, m.token),"
			" token = pg_catalog.gen_random_uuid(), system_identifier = $2,"
			" database_oid = $3, instance = $4, owner = r.oid, server = s.oid, live_run = NULL,"
			" newest_run = NULL, want_pause = false, want_cancel = false,"
			" want_drop = NULL"
			" FROM pg_catalog.pg_roles r, pg_catalog.pg_foreign_server s"
			" WHERE m.id = $1 AND r.rolname = m.owner_name"
			" AND s.srvname = m.server_name",
			SPI_OK_UPDATE, 4, INT8OID, Int64GetDatum(mirror->id), false, INT8OID,
			Int64GetDatum((int64) GetSystemIdentifier()), false, OIDOID,
			ObjectIdGetDatum(MyDatabaseId), false, TEXTOID,
			CStringGetTextDatum(resync_catalog_instance()), false) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("owner or server of mirror \"%s\" does not exist in this database",
							   mirror->name),
						errhint("Create role and server by the names they have in the original.")));
	resync_catalog_finish();
	mirror = resync_catalog_mirror(mirror->id);
	resync_catalog_check_role(mirror->owner);
	(void) resync_api_start_run(mirror, false, false, NULL);
}

/* peerdb_resume_mirror(mirror, adopt) */
Datum
peerdb_resume_mirror(PG_FUNCTION_ARGS)
{
	char	  *name;
	MirrorRow *mirror;
	RunRow	  *run;

	resync_api_begin_change();
	name = resync_api_text(fcinfo, 0, "mirror");
	if (resync_api_bool(fcinfo, 1, "adopt"))
	{
		mirror = resync_api_lock_mirror_or_copy(name);
		if (resync_api_is_copy(mirror))
		{
			adopt(mirror);
			PG_RETURN_VOID();
		}
	}
	else
		mirror = resync_api_lock_mirror(name);
	refuse_when_dropped(mirror);
	if (!mirror->want_pause && strcmp(mirror->status, "failed") != 0 &&
		strcmp(mirror->status, "pausing") != 0 && strcmp(mirror->status, "paused") != 0)
		PG_RETURN_VOID();

	run = run_to_resume(mirror);
	if (run == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("mirror \"%s\" has no run to go on with", name),
						errhint("Rebuild the mirror: SELECT peerdb_resync('%s');", name)));
	check_slot(mirror, run);
	resync_api_exec("UPDATE peerdb._run SET crashes = 0, step = NULL,"
					" outcome = CASE WHEN outcome = 'failed' THEN NULL ELSE outcome END,"
					" finished_at = CASE WHEN outcome = 'failed' THEN NULL ELSE finished_at END,"
					" error = NULL, error_sqlstate = NULL WHERE run = $1",
					SPI_OK_UPDATE, 1, INT8OID, Int64GetDatum(run->run), false);
	resync_api_exec(
		"UPDATE peerdb._run_table SET error = NULL WHERE run = $1 AND error IS NOT NULL",
		SPI_OK_UPDATE, 1, INT8OID, Int64GetDatum(run->run), false);
	resync_api_exec("UPDATE peerdb._mirror SET want_pause = false, status = $2,"
					" status_since = pg_catalog.clock_timestamp(),"
					" error = NULL, error_sqlstate = NULL, error_at = NULL WHERE id = $1",
					SPI_OK_UPDATE, 2, INT8OID, Int64GetDatum(mirror->id), false, TEXTOID,
					CStringGetTextDatum(status_of_phase(run->phase)), false);
	resync_shmem_wake_at_commit(mirror->id);
	PG_RETURN_VOID();
}

/*
 * The mirror's row came here with a copy of its database, or a dump: only the
 * row goes.
 * Slot and destination belong to the original (rule 9).
 */
static void
forget_copy(const MirrorRow *mirror, bool drop_destination)
{
	if (drop_destination && mirror->restored)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg(
				 "mirror \"%s\" was restored from a dump: what is its own at the destination is not known",
				 mirror->name),
			 errhint("Forget the mirror, without drop_destination.")));
	if (drop_destination)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg(
				 "the destination of mirror \"%s\" belongs to another database, of which this one is a copy",
				 mirror->name),
			 errhint("Forget the mirror here, without drop_destination.")));
	resync_catalog_delete_mirror(mirror->id);
	ereport(
		NOTICE,
		(errmsg("mirror \"%s\" is forgotten in this database", mirror->name),
		 mirror->restored
			 ? errdetail("It was restored from a dump; nothing else was touched.")
			 : errdetail(
				   "It belongs to another database, of which this one is a copy; nothing else was touched.")));
}

/* peerdb_drop_mirror(mirror, if_exists, drop_destination) */
Datum
peerdb_drop_mirror(PG_FUNCTION_ARGS)
{
	char	  *name;
	bool	   if_exists;
	bool	   drop_destination;
	MirrorRow *mirror;

	resync_api_begin_change();
	name = resync_api_text(fcinfo, 0, "mirror");
	if_exists = resync_api_bool(fcinfo, 1, "if_exists");
	drop_destination = resync_api_bool(fcinfo, 2, "drop_destination");

	if (if_exists && resync_catalog_mirror_by_name(name, false) == NULL)
	{
		ereport(NOTICE, (errmsg("mirror \"%s\" does not exist, skipping", name)));
		PG_RETURN_VOID();
	}
	mirror = resync_api_lock_mirror_or_copy(name);
	if (resync_api_is_copy(mirror))
	{
		forget_copy(mirror, drop_destination);
		PG_RETURN_VOID();
	}
	if (mirror->want_drop == NULL)
	{
		resync_api_exec("UPDATE peerdb._mirror SET want_drop = $2, status = 'terminating',"
						" status_since = pg_catalog.clock_timestamp() WHERE id = $1",
						SPI_OK_UPDATE, 2, INT8OID, Int64GetDatum(mirror->id), false, TEXTOID,
						CStringGetTextDatum(drop_destination ? "drop" : "keep"), false);
	}
	/* again: the coordinator may be waiting for a destination's back-off */
	resync_shmem_wake_at_commit(mirror->id);
	PG_RETURN_VOID();
}

static const char *
mirror_peer_type(const MirrorRow *mirror)
{
	ForeignServer *server = GetForeignServer(mirror->server);

	return resync_catalog_peer_type(GetForeignDataWrapper(server->fdwid)->fdwname);
}

/* Put new mappings in place of those of the same tables. */
static void
replace_mappings(const MirrorRow *mirror, Jsonb *tables)
{
	List		 *specs = resync_tables_parse(tables, mirror_peer_type(mirror));
	MemoryContext context = CurrentMemoryContext;
	ListCell	 *lc;
	int			  ntables;

	foreach(lc, specs)
	{
		TableSpec *spec = lfirst(lc);
		char	  *source = resync_tables_display(spec->schema, spec->name);
		uint64	   n;

		n = resync_catalog_exec(
			"UPDATE peerdb._table SET relid = $2, dest_schema = $3, dest_name = $4,"
			" mapping = coalesce($5, '{}')"
			" || pg_catalog.jsonb_build_object('from', $6, 'to', $7)"
			" WHERE mirror = $1 AND (relid = $2"
			" OR pg_catalog.format('%I.%I', schema_name, table_name) = $6)",
			SPI_OK_UPDATE, 7, INT8OID, Int64GetDatum(mirror->id), false, OIDOID,
			ObjectIdGetDatum(spec->relid), false, TEXTOID,
			spec->dest_schema ? CStringGetTextDatum(spec->dest_schema) : (Datum) 0,
			spec->dest_schema == NULL, TEXTOID, CStringGetTextDatum(spec->dest_name), false,
			JSONBOID, spec->object ? JsonbPGetDatum(spec->object) : (Datum) 0, spec->object == NULL,
			TEXTOID, CStringGetTextDatum(source), false, TEXTOID,
			CStringGetTextDatum(resync_tables_display(spec->dest_schema, spec->dest_name)), false);
		resync_catalog_finish();
		if (n == 0)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
							errmsg("table %s is not in mirror \"%s\"", source, mirror->name)));
	}
	if (resync_catalog_exec("SELECT pg_catalog.concat_ws('.', dest_schema, dest_name)"
							" FROM peerdb._table WHERE mirror = $1"
							" GROUP BY dest_schema, dest_name HAVING pg_catalog.count(*) > 1"
							" ORDER BY 1 LIMIT 1",
							SPI_OK_SELECT, 1, INT8OID, Int64GetDatum(mirror->id), false) > 0)
	{
		char *table = resync_api_copy_value(context, 0, 1);

		ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
						errmsg("destination table %s is used twice", table)));
	}
	resync_catalog_finish();
	(void) resync_api_check_tables(mirror, mirror->owner, &ntables);
	ereport(NOTICE, (errmsg("the new table mappings of mirror \"%s\" count from its next resync on",
							mirror->name),
					 errhint("SELECT peerdb_resync('%s');", mirror->name)));
}

/* Does the object have one of these keys? */
static bool
has_key(Jsonb *object, const char *const *keys)
{
	for (; *keys != NULL; keys++)
	{
		JsonbValue key = {.type = jbvString};

		key.val.string.val = unconstify(char *, *keys);
		key.val.string.len = strlen(*keys);
		if (findJsonbValueFromContainer(&object->root, JB_FOBJECT, &key) != NULL)
			return true;
	}
	return false;
}

/* peerdb_edit_mirror(mirror, options, tables) */
Datum
peerdb_edit_mirror(PG_FUNCTION_ARGS)
{
	char	  *name;
	Jsonb	  *options;
	MirrorRow *mirror;

	resync_api_begin_change();
	name = resync_api_text(fcinfo, 0, "mirror");
	options = resync_api_jsonb(fcinfo, 1, "options");

	mirror = resync_api_lock_mirror(name);
	refuse_when_dropped(mirror);
	resync_options_check(options, NULL);
	resync_api_exec("UPDATE peerdb._mirror SET options = options || $2 WHERE id = $1",
					SPI_OK_UPDATE, 2, INT8OID, Int64GetDatum(mirror->id), false, JSONBOID,
					JsonbPGetDatum(options), false);
	mirror = resync_catalog_mirror(mirror->id);
	resync_options_check_peer(resync_options_parse(mirror->options), /* old and new together */
							  mirror_peer_type(mirror));
	if (has_key(options, fixed_keys))
		ereport(NOTICE,
				(errmsg("the new columns of mirror \"%s\" count from its next resync on", name),
				 errhint("SELECT peerdb_resync('%s');", name)));
	if (!PG_ARGISNULL(2))
		replace_mappings(mirror, PG_GETARG_JSONB_P(2));
	resync_shmem_wake_at_commit(mirror->id);
	PG_RETURN_VOID();
}

/* peerdb_add_tables(mirror, tables) */
Datum
peerdb_add_tables(PG_FUNCTION_ARGS)
{
	resync_api_begin_change();
	(void) resync_api_text(fcinfo, 0, "mirror");
	(void) resync_api_jsonb(fcinfo, 1, "tables");
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					errmsg("adding tables to a mirror is not available yet"),
					errhint("Create another mirror for them.")));
	PG_RETURN_NULL();
}

/* peerdb_remove_tables(mirror, tables) */
Datum
peerdb_remove_tables(PG_FUNCTION_ARGS)
{
	resync_api_begin_change();
	(void) resync_api_text(fcinfo, 0, "mirror");
	resync_api_not_null(fcinfo, 1, "tables");
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					errmsg("removing tables from a mirror is not available yet"),
					errhint("Drop the mirror and create it anew with \"replace_existing\".")));
	PG_RETURN_NULL();
}
