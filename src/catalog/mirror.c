/*
 * mirror.c
 *		Rows of peerdb._mirror and peerdb._run; the phase machine; logs.
 *
 * Called by the API and by the coordinator, which is the only one that changes
 * a started run.  Each function runs within the caller's transaction; each
 * change of phase should be a transaction of its own.  The state diagram is in
 * README.md.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/syscache.h"

#include "catalog/catalog.h"
#include "catalog/result.h"

/* What is told to the user of a mirror whose resync was cancelled. */
#define CANCELLED_MESSAGE "resync was cancelled"
#define CANCELLED_HINT "changes since then are missing; call peerdb_resync() to rebuild the mirror"

typedef struct PhaseInfo
{
	const char *name;
	const char *status; /* of the mirror */
	uint32		next;	/* bit mask of phases that may follow */
} PhaseInfo;

#define BIT(phase) (1U << (phase))

static const PhaseInfo phases[] = {
	[PHASE_VALIDATE] = {"validate", "setup",
						BIT(PHASE_DROP) | BIT(PHASE_CREATE_SLOT) | BIT(PHASE_ENDED)},
	[PHASE_DROP] = {"drop", "setup", BIT(PHASE_CREATE_SLOT) | BIT(PHASE_ENDED)},
	[PHASE_CREATE_SLOT] = {"create_slot", "setup", BIT(PHASE_CREATE_TABLES) | BIT(PHASE_ENDED)},
	/* without initial copy there is nothing to load */
	[PHASE_CREATE_TABLES] = {"create_tables", "setup",
							 BIT(PHASE_LOAD) | BIT(PHASE_CATCH_UP) | BIT(PHASE_SWAP) |
								 BIT(PHASE_CREATE_SLOT) | BIT(PHASE_ENDED)},
	/* back: a table was rewritten after the snapshot */
	[PHASE_LOAD] = {"load", "snapshot",
					BIT(PHASE_CATCH_UP) | BIT(PHASE_CREATE_SLOT) | BIT(PHASE_ENDED)},
	[PHASE_CATCH_UP] = {"catch_up", "snapshot", BIT(PHASE_SWAP) | BIT(PHASE_ENDED)},
	[PHASE_SWAP] = {"swap", "snapshot", BIT(PHASE_STREAM) | BIT(PHASE_ENDED)},
	[PHASE_STREAM] = {"stream", "running", BIT(PHASE_ENDED)},
	[PHASE_ENDED] = {"ended", NULL, 0},
};

const char *
resync_catalog_phase_name(RunPhase phase)
{
	return phases[phase].name;
}

const char *
resync_catalog_phase_status(RunPhase phase)
{
	return phases[phase].status;
}

RunPhase
resync_catalog_phase_parse(const char *name)
{
	for (int i = 0; i < lengthof(phases); i++)
	{
		if (strcmp(phases[i].name, name) == 0)
			return (RunPhase) i;
	}
	elog(ERROR, "unknown phase \"%s\"", name);
	return PHASE_ENDED; /* keep compiler quiet */
}

static const char *
sqlstate_text(int sqlerrcode)
{
	return sqlerrcode == 0 ? NULL : pstrdup(unpack_sql_state(sqlerrcode));
}

/* ----------------------------------------------------------------
 *		reading
 * ----------------------------------------------------------------
 */

#define MIRROR_COLUMNS                                                                        \
	"id, name, owner, server, server_name, options, token, system_identifier, database_oid, " \
	"status, live_run, newest_run, want_pause, want_cancel, want_drop, error, adopt_from, "   \
	"instance, newest_run IS NOT NULL AND NOT EXISTS (SELECT FROM peerdb._run r "             \
	"WHERE r.run = newest_run AND r.mirror = id)"

/* The row that is in SPI_tuptable. */
static MirrorRow *
mirror_from_result(MemoryContext context)
{
	MirrorRow *mirror = MemoryContextAllocZero(context, sizeof(MirrorRow));

	mirror->id = result_int8(0, 1, 0);
	mirror->name = result_text(0, 2, context);
	mirror->owner = result_oid(0, 3);
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(mirror->owner)))
		mirror->owner = InvalidOid;
	mirror->server = result_oid(0, 4);
	mirror->server_name = result_text(0, 5, context);
	mirror->options = result_jsonb(0, 6, context);
	mirror->token = result_text(0, 7, context);
	mirror->system_identifier = (uint64) result_int8(0, 8, 0);
	mirror->database = result_oid(0, 9);
	mirror->status = result_text(0, 10, context);
	mirror->live_run = result_int8(0, 11, 0);
	mirror->newest_run = result_int8(0, 12, 0);
	mirror->want_pause = result_bool(0, 13);
	mirror->want_cancel = result_bool(0, 14);
	mirror->want_drop = result_text(0, 15, context);
	mirror->error = result_text(0, 16, context);
	mirror->adopt_from = result_text(0, 17, context);
	mirror->instance = result_text(0, 18, context);
	mirror->is_copy = resync_catalog_is_copy(mirror->system_identifier, mirror->database,
											 mirror->instance);
	mirror->restored = !mirror->is_copy && result_bool(0, 19);
	if (mirror->restored)
	{
		/* runs of that number are others' */
		mirror->is_copy = true;
		mirror->live_run = 0;
		mirror->newest_run = 0;
	}
	if (mirror->is_copy)
	{
		mirror->status = MemoryContextStrdup(context, "failed");
		mirror->error = MemoryContextStrdup(context, mirror->restored ? RESYNC_RESTORED_ERROR
																	  : RESYNC_COPY_ERROR);
	}
	return mirror;
}

MirrorRow *
resync_catalog_mirror(int64 id)
{
	MemoryContext context = CurrentMemoryContext;
	MirrorRow	 *mirror = NULL;

	if (resync_catalog_exec("SELECT " MIRROR_COLUMNS " FROM peerdb._mirror WHERE id = $1",
							SPI_OK_SELECT, 1, ARG_INT8(id)) > 0)
		mirror = mirror_from_result(context);
	resync_catalog_finish();
	return mirror;
}

MirrorRow *
resync_catalog_mirror_by_name(const char *name, bool for_update)
{
	MemoryContext context = CurrentMemoryContext;
	MirrorRow	 *mirror = NULL;

	/*
	 * Who had to wait for the lock gets the row as it is now, but the rest of
	 * that query as it was before: so read in another one, with its own snapshot.
	 */
	if (for_update)
	{
		(void) resync_catalog_exec("SELECT FROM peerdb._mirror WHERE name = $1 FOR UPDATE",
								   SPI_OK_SELECT, 1, ARG_TEXT(name));
		resync_catalog_finish();
	}
	if (resync_catalog_exec("SELECT " MIRROR_COLUMNS " FROM peerdb._mirror WHERE name = $1",
							SPI_OK_SELECT, 1, ARG_TEXT(name)) > 0)
		mirror = mirror_from_result(context);
	resync_catalog_finish();
	return mirror;
}

RunRow *
resync_catalog_run(int64 run)
{
	MemoryContext context = CurrentMemoryContext;
	RunRow		 *row = NULL;
	char		 *kind;
	char		 *phase;

	if (resync_catalog_exec("SELECT run, mirror, kind, phase, options, keep_serving, replaces, "
							"previous_status, slot_name, snapshot_lsn, snapshots, catch_up_lsn, "
							"confirmed_lsn, step, crashes, restarts, outcome, error "
							"FROM peerdb._run WHERE run = $1",
							SPI_OK_SELECT, 1, ARG_INT8(run)) > 0)
	{
		row = MemoryContextAllocZero(context, sizeof(RunRow));
		row->run = result_int8(0, 1, 0);
		row->mirror = result_int8(0, 2, 0);
		kind = result_text(0, 3, context);
		row->initial = strcmp(kind, "initial") == 0;
		phase = result_text(0, 4, context);
		row->phase = resync_catalog_phase_parse(phase);
		row->options = result_jsonb(0, 5, context);
		row->keep_serving = result_bool(0, 6);
		row->replaces = result_int8(0, 7, 0);
		row->previous_status = result_text(0, 8, context);
		row->slot_name = result_text(0, 9, context);
		row->snapshot_lsn = result_lsn(0, 10);
		row->snapshots = result_int4(0, 11);
		row->catch_up_lsn = result_lsn(0, 12);
		row->confirmed_lsn = result_lsn(0, 13);
		row->step = result_text(0, 14, context);
		row->crashes = result_int4(0, 15);
		row->restarts = result_int4(0, 16);
		row->outcome = result_text(0, 17, context);
		row->error = result_text(0, 18, context);
	}
	resync_catalog_finish();
	return row;
}

int64 *
resync_catalog_active_mirrors(int *nmirrors)
{
	MemoryContext context = CurrentMemoryContext;
	uint64		  n;
	int64		 *ids;

	n = resync_catalog_exec(
		"SELECT id FROM peerdb._mirror "
		"WHERE status IN ('setup', 'snapshot', 'running', 'pausing', 'terminating') "
		"OR want_cancel OR want_drop IS NOT NULL "
		"OR (want_pause AND status NOT IN ('paused', 'failed', 'completed')) "
		"OR peerdb._is_copy(system_identifier, database_oid, instance) "
		"ORDER BY id",
		SPI_OK_SELECT, 0);
	ids = MemoryContextAlloc(context, Max(n, 1) * sizeof(int64));
	for (uint64 i = 0; i < n; i++)
		ids[i] = result_int8(i, 1, 0);
	*nmirrors = (int) n;
	resync_catalog_finish();
	return ids;
}

/* ----------------------------------------------------------------
 *		the phase machine
 * ----------------------------------------------------------------
 */

static void
check_transition(int64 run, RunPhase from, RunPhase to)
{
	if ((phases[from].next & BIT(to)) == 0)
		elog(ERROR, "run " INT64_FORMAT " cannot go from phase %s to %s", run, phases[from].name,
			 phases[to].name);
}

void
resync_catalog_set_phase(int64 run, RunPhase from, RunPhase to)
{
	uint64 n;

	check_transition(run, from, to);
	if (to == PHASE_ENDED)
		elog(ERROR, "a run ends with an outcome");

	n = resync_catalog_exec("UPDATE peerdb._run SET phase = $3, "
							"phase_since = pg_catalog.clock_timestamp(), step = NULL, crashes = 0, "
							"restarts = restarts + $4 "
							"WHERE run = $1 AND phase = $2",
							SPI_OK_UPDATE, 4, ARG_INT8(run), ARG_TEXT(phases[from].name),
							ARG_TEXT(phases[to].name),
							ARG_INT4(to == PHASE_CREATE_SLOT && from > to ? 1 : 0));
	resync_catalog_finish();
	if (n == 0)
		elog(ERROR, "run " INT64_FORMAT " is not in phase %s", run, phases[from].name);

	/* a mirror that is being paused or dropped goes on being shown as such */
	(void) resync_catalog_exec("UPDATE peerdb._mirror m SET status = $2, "
							   "status_since = pg_catalog.clock_timestamp() "
							   "FROM peerdb._run r "
							   "WHERE r.run = $1 AND m.id = r.mirror AND m.status <> $2 "
							   "AND m.status NOT IN ('pausing', 'terminating')",
							   SPI_OK_UPDATE, 2, ARG_INT8(run), ARG_TEXT(phases[to].status));
	resync_catalog_finish();
}

/*
 * The mirror after a run that was refused, failed or cancelled.  A pause that
 * was asked for would hide that it failed, and could not be resumed from.
 */
static void
set_mirror_after_run(int64 mirror, const char *status, int sqlerrcode, const char *error)
{
	(void) resync_catalog_exec("UPDATE peerdb._mirror SET status = CASE "
							   "WHEN status = 'terminating' THEN status ELSE $2 END, "
							   "status_since = CASE WHEN status IN ('terminating', $2) "
							   "THEN status_since ELSE pg_catalog.clock_timestamp() END, "
							   "want_cancel = false, want_pause = want_pause AND $2 <> 'failed', "
							   "error = $3, error_sqlstate = $4, "
							   "error_at = CASE WHEN $3 IS NULL THEN NULL "
							   "ELSE pg_catalog.clock_timestamp() END WHERE id = $1",
							   SPI_OK_UPDATE, 4, ARG_INT8(mirror), ARG_TEXT(status),
							   ARG_TEXT(error), ARG_TEXT(sqlstate_text(sqlerrcode)));
	resync_catalog_finish();
}

void
resync_catalog_end_run(int64 run, const char *outcome, int sqlerrcode, const char *error)
{
	RunRow	   *row = resync_catalog_run(run);
	const char *previous;
	uint64		n;

	if (row == NULL)
		elog(ERROR, "run " INT64_FORMAT " does not exist", run);
	check_transition(run, row->phase, PHASE_ENDED);
	if (strcmp(outcome, "cancelled") == 0 && error == NULL)
	{
		error = CANCELLED_MESSAGE;
		sqlerrcode = ERRCODE_QUERY_CANCELED;
	}

	n = resync_catalog_exec("UPDATE peerdb._run SET phase = 'ended', outcome = $3, error = $4, "
							"error_sqlstate = $5, step = NULL, "
							"phase_since = pg_catalog.clock_timestamp(), "
							"finished_at = pg_catalog.clock_timestamp() "
							"WHERE run = $1 AND phase = $2",
							SPI_OK_UPDATE, 5, ARG_INT8(run), ARG_TEXT(phases[row->phase].name),
							ARG_TEXT(outcome), ARG_TEXT(error),
							ARG_TEXT(sqlstate_text(sqlerrcode)));
	resync_catalog_finish();
	if (n == 0)
		elog(ERROR, "run " INT64_FORMAT " has changed its phase", run);

	/* a mirror that was never loaded has no state to go back to */
	previous = row->previous_status != NULL ? row->previous_status : "failed";
	if (strcmp(outcome, "done") == 0)
		return; /* the caller knows what becomes of the mirror */
	if (strcmp(outcome, "refused") == 0)
		set_mirror_after_run(row->mirror, previous, sqlerrcode, error);
	else if (strcmp(outcome, "cancelled") == 0 && row->previous_status != NULL &&
			 (row->phase == PHASE_VALIDATE || row->keep_serving))
		set_mirror_after_run(row->mirror, previous, 0, NULL);
	else if (strcmp(outcome, "cancelled") == 0)
		set_mirror_after_run(row->mirror, "failed", sqlerrcode,
							 psprintf("%s (%s)", error, CANCELLED_HINT));
	else
		/*
		 * What it was to replace was served on, and is; unless a swap had begun,
		 * which may have fenced that out.
		 */
		set_mirror_after_run(row->mirror,
							 row->keep_serving && row->phase != PHASE_SWAP ? previous : "failed",
							 sqlerrcode, error);
}

void
resync_catalog_finish_swap(int64 mirror, int64 run)
{
	(void) resync_catalog_exec("UPDATE peerdb._mirror SET live_run = $2, error = NULL, "
							   "error_sqlstate = NULL, error_at = NULL WHERE id = $1",
							   SPI_OK_UPDATE, 2, ARG_INT8(mirror), ARG_INT8(run));
	resync_catalog_finish();
}

/* ----------------------------------------------------------------
 *		the mirror itself
 * ----------------------------------------------------------------
 */

void
resync_catalog_set_status(int64 mirror, const char *status)
{
	(void) resync_catalog_exec("UPDATE peerdb._mirror SET status = $2, "
							   "status_since = pg_catalog.clock_timestamp(), "
							   "want_pause = want_pause AND $2 <> ALL ('{failed,completed}') "
							   "WHERE id = $1 AND status <> $2",
							   SPI_OK_UPDATE, 2, ARG_INT8(mirror), ARG_TEXT(status));
	resync_catalog_finish();
}

/* Unless somebody has resumed it, or asked for a resync, meanwhile. */
void
resync_catalog_set_paused(int64 mirror)
{
	(void) resync_catalog_exec("UPDATE peerdb._mirror SET status = 'paused', "
							   "status_since = pg_catalog.clock_timestamp() "
							   "WHERE id = $1 AND want_pause AND status <> 'paused'",
							   SPI_OK_UPDATE, 1, ARG_INT8(mirror));
	resync_catalog_finish();
}

void
resync_catalog_set_error(int64 mirror, int sqlerrcode, const char *error)
{
	(void) resync_catalog_exec("UPDATE peerdb._mirror SET error = $2, error_sqlstate = $3, "
							   "error_at = CASE WHEN $2 IS NULL THEN NULL "
							   "ELSE pg_catalog.clock_timestamp() END WHERE id = $1",
							   SPI_OK_UPDATE, 3, ARG_INT8(mirror), ARG_TEXT(error),
							   ARG_TEXT(error == NULL ? NULL : sqlstate_text(sqlerrcode)));
	resync_catalog_finish();
}

void
resync_catalog_adopted(int64 mirror)
{
	(void) resync_catalog_exec("UPDATE peerdb._mirror SET adopt_from = NULL WHERE id = $1",
							   SPI_OK_UPDATE, 1, ARG_INT8(mirror));
	resync_catalog_finish();
}

void
resync_catalog_delete_mirror(int64 id)
{
	static const char *const queries[] = {
		"DELETE FROM peerdb._batch WHERE mirror = $1",
		"DELETE FROM peerdb._run WHERE mirror = $1",
		"DELETE FROM peerdb._mirror WHERE id = $1",
	};

	for (int i = 0; i < lengthof(queries); i++)
	{
		(void) resync_catalog_exec(queries[i], SPI_OK_DELETE, 1, ARG_INT8(id));
		resync_catalog_finish();
	}
}

void
resync_catalog_log(int64 mirror, int64 run, const char *level, const char *table, int sqlerrcode,
				   const char *message, const char *detail)
{
	(void) resync_catalog_exec(
		"INSERT INTO peerdb._log (mirror, mirror_name, owner, run, level, "
		"phase, source_table, sqlstate, message, detail) "
		"SELECT $1, COALESCE(m.name, r.mirror_name), m.owner, $2, $3, r.phase, "
		"$4, $5, $6, $7 "
		"FROM (SELECT 1) AS one "
		"LEFT JOIN peerdb._mirror m ON m.id = $1 "
		"LEFT JOIN peerdb._run r ON r.run = $2",
		SPI_OK_INSERT, 7, ARG_INT8_OR_NULL(mirror, mirror == 0), ARG_INT8_OR_NULL(run, run == 0),
		ARG_TEXT(level), ARG_TEXT(table), ARG_TEXT(sqlstate_text(sqlerrcode)), ARG_TEXT(message),
		ARG_TEXT(detail));
	resync_catalog_finish();
}
