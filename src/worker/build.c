/*
 * build.c
 *		The phases of a run under construction, from validate to the swap.
 *
 * Process: the coordinator.  resync_build_step() does what can be done now for
 * the phase that the catalog shows, and returns; each change of phase is a
 * short transaction of its own, after what it tells is durable.  Every phase
 * may be repeated from its beginning: the table in architecture.md tells why.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/coordinator.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "net/retry.h"
#include "pgstat.h"
#include "access/twophase.h"
#include "replication/slot.h"
#include "snapshot/snapshot.h"
#include "storage/lock.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* WAL left to apply at which a run counts as level, if it took under a second */
#define LEVEL_TIME_MS 1000

/* how long a slot that is to go may be used by a process that is not ours any more */
#define SLOT_IN_USE_MS 5000

/* ---- the run's own data and connection ---- */

/* Read the run from the catalog and connect, if not done yet. */
void
resync_build_open(Coordinator *co)
{
	MemoryContext old;

	if (co->run == NULL)
	{
		co->run_context = AllocSetContextCreate(co->context, "resync run", ALLOCSET_DEFAULT_SIZES);
		resync_catalog_begin();
		old = MemoryContextSwitchTo(co->run_context);
		co->run = resync_worker_load_run(co->args.mirror, co->newest->run);
		MemoryContextSwitchTo(old);
		resync_catalog_commit();
	}
	if (co->dest == NULL)
	{
		old = MemoryContextSwitchTo(co->run_context);
		co->dest = co->run->routine->open(co->run->peer, &co->run->id,
										  psprintf("resync coordinator %s", co->mirror->name));
		MemoryContextSwitchTo(old);
	}
}

/* The connection and what was read go; safe after an error. */
void
resync_build_close(Coordinator *co)
{
	if (co->dest != NULL)
		co->run->routine->close(co->dest);
	co->dest = NULL;
	if (co->run_context != NULL)
		MemoryContextDelete(co->run_context);
	co->run_context = NULL;
	co->run = NULL;
}

static void
next_phase(Coordinator *co, RunPhase from, RunPhase to)
{
	resync_catalog_begin();
	resync_catalog_set_phase(co->newest->run, from, to);
	resync_catalog_log(co->args.mirror, co->newest->run, "info", NULL, 0,
					   psprintf("phase %s is done", resync_catalog_phase_name(from)), NULL);
	resync_catalog_commit();
	RESYNC_DEBUG_POINT("phase_changed");
}

static void
log_message(Coordinator *co, const char *level, const char *table, const char *message)
{
	resync_catalog_begin();
	resync_catalog_log(co->args.mirror, co->newest->run, level, table, 0, message, NULL);
	resync_catalog_commit();
}

/* ---- validate ---- */

/* What this server must be able to do. */
static void
check_server(Coordinator *co)
{
	int free_slots = 0;

	if (wal_level < WAL_LEVEL_LOGICAL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("mirrors require wal_level \"logical\""),
						errhint("Set wal_level = logical and restart the server.")));
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
		free_slots += !ReplicationSlotCtl->replication_slots[i].in_use;
	LWLockRelease(ReplicationSlotControlLock);
	if (free_slots == 0 && (co->newest->replaces == 0 || co->newest->keep_serving))
		ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						errmsg("all replication slots are in use"),
						errhint("Free one or increase \"%s\".", "max_replication_slots")));
#if PG_VERSION_NUM < 170000
	if (old_snapshot_threshold != -1)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the load needs its snapshot for longer than old_snapshot_threshold allows"),
			 errhint("Set old_snapshot_threshold = -1 and restart the server.")));
#endif
}

/*
 * The streamer locks every table and leaf for the load.  A shared lock table
 * that is full hits other users: take half of it at most.  In a transaction.
 */
static void
check_lock_table(ResyncTable **tables, int ntables)
{
	int64 locks = 0;
	int64 limit = (int64) max_locks_per_xact * (MaxBackends + max_prepared_xacts) / 2;

	for (int i = 0; i < ntables; i++)
		locks += list_length(resync_snapshot_leaves(tables[i]->relid));
	if (locks > limit)
		ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						errmsg("the load would lock " INT64_FORMAT
							   " tables and partitions, more than half of the server's lock table",
							   locks),
						errhint("Increase \"%s\", or make several mirrors of fewer tables.",
								"max_locks_per_transaction")));
}

/*
 * Look at source and destination, and write down what the run will do: tables,
 * columns, types.  Changes nothing else.  live_expected: the live tables are
 * this mirror's already.
 */
static void
make_plan(Coordinator *co)
{
	ResyncTable **tables;
	int			  ntables;
	MemoryContext old;
	bool		  live_expected;
	ListCell	 *lc;

	resync_build_close(co);
	resync_build_open(co); /* its tables are the ones of an earlier plan */

	resync_catalog_begin();
	old = MemoryContextSwitchTo(co->run_context);
	tables = resync_catalog_resolve_tables(co->args.mirror, co->newest->run, co->run->options,
										   &ntables);
	MemoryContextSwitchTo(old);
	resync_catalog_check_role(co->run->owner);
	for (int i = 0; i < ntables; i++)
		resync_catalog_check_access(co->run->owner, tables[i]);
	check_lock_table(tables, ntables);
	resync_catalog_commit();
	MemoryContextSwitchTo(co->run_context);
	co->run->tables = tables;
	co->run->ntables = ntables;

	live_expected = !co->newest->initial || co->run->options->replace_existing;
	for (int i = 0; i < ntables; i++)
	{
		List *warnings = NIL;

		co->table = tables[i];
		if (tables[i]->nkeys == 0 && co->run->routine->needs_key && tables[i]->identity != 'n')
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s.%s\" has no key", tables[i]->schema, tables[i]->name),
					 errhint("Add a primary key, or set \"append\": true for the table.")));
		co->run->routine->map_columns(co->dest, tables[i]);
		co->run->routine->check_table(co->dest, tables[i], live_expected, &warnings);
		foreach(lc, warnings)
			log_message(co, "warning", psprintf("%s.%s", tables[i]->schema, tables[i]->name),
						lfirst(lc));
	}
	co->table = NULL;
	if (co->run->routine->check_tables != NULL)
		co->run->routine->check_tables(co->dest, tables, ntables);
	resync_catalog_begin();
	resync_catalog_put_run_tables(co->newest->run, tables, ntables);
	resync_catalog_commit();
	MemoryContextSwitchTo(co->step_context);
}

static long
step_validate(Coordinator *co)
{
	check_server(co);
	RESYNC_DEBUG_POINT("validate");
	if (co->mirror->adopt_from != NULL)
	{
		resync_build_open(co);
		co->run->routine->adopt(co->dest, co->mirror->adopt_from);
		resync_catalog_begin();
		resync_catalog_adopted(co->args.mirror);
		resync_catalog_commit();
	}
	make_plan(co);
	next_phase(co, PHASE_VALIDATE,
			   co->newest->replaces != 0 && !co->newest->keep_serving ? PHASE_DROP
																	  : PHASE_CREATE_SLOT);
	return 0;
}

/* ---- drop ---- */

/*
 * A slot of ours, by run.  It may be in use for a moment longer by a process
 * that was just told to end.  In use for longer, by somebody else: an error that
 * is tried again, after a look at what was asked for meanwhile.
 */
void
resync_build_drop_slot(Coordinator *co, int64 run)
{
	char		name[NAMEDATALEN];
	TimestampTz start = GetCurrentTimestamp();
	pid_t		user;

	resync_worker_slot_name(name, MyDatabaseId, run);
	while (!resync_worker_drop_slot(name, &user))
	{
		if (user != 0 && TimestampDifferenceExceeds(start, GetCurrentTimestamp(), SLOT_IN_USE_MS))
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					 errmsg("replication slot \"%s\" is in use by process %d", name, (int) user),
					 errhint("It is the mirror's own: end that process.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50,
						 RESYNC_WAIT_EVENT("SlotDrop"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	resync_catalog_begin();
	resync_catalog_remove_cleanup(name);
	resync_catalog_commit();
}

/* The old run goes: process, slot, its place at the destination. */
static void
retire(Coordinator *co, int64 run)
{
	RunRow *row;

	resync_children_detach(&co->serving);
	resync_build_drop_slot(co, run);
	co->run->routine->end_run(co->dest, run);
	resync_catalog_begin();
	row = resync_catalog_run(run);
	if (row != NULL && row->phase != PHASE_ENDED)
		resync_catalog_end_run(run, "done", 0, NULL);
	resync_catalog_clear_stats(co->args.mirror, co->newest->run);
	resync_catalog_commit();
}

static long
step_drop(Coordinator *co)
{
	resync_build_open(co);
	retire(co, co->newest->replaces);
	RESYNC_DEBUG_POINT("dropped");
	next_phase(co, PHASE_DROP, PHASE_CREATE_SLOT);
	return 0;
}

/* ---- create_slot ---- */

/* Whom does slot creation wait for?  For the status. */
static void
show_blocker(Coordinator *co)
{
	RunShared *rs = co->build.rs;
	int		   pid = 0;
	bool	   waiting = false;

	resync_catalog_begin();
	if (resync_catalog_exec(
			"SELECT b FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) b LIMIT 1",
			SPI_OK_SELECT, 1, INT4OID, Int32GetDatum((int) rs->streamer_pid), false) > 0)
	{
		bool isnull;

		waiting = true;
		pid = DatumGetInt32(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	resync_catalog_finish();
	resync_catalog_commit();
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	rs->waits_for_pid = pid;
	if (!waiting)
		rs->waits_for[0] = '\0';
	else if (pid != 0)
		snprintf(rs->waits_for, sizeof(rs->waits_for), "the transaction of process %d", pid);
	else
		strlcpy(rs->waits_for, "a prepared transaction", sizeof(rs->waits_for));
	LWLockRelease(ResyncShmem->lock);
}

/*
 * The streamer holds its locks on the tables: are they still what was planned?
 * WAL from the slot on does not tell what was changed before it.  (The copiers
 * look whether what is now is what the snapshot shows.)
 */
static void
check_plan_holds(Coordinator *co)
{
	ResyncTable		 **now;
	const ResyncTable *changed;
	int				   ntables;

	resync_build_open(co);
	resync_catalog_begin();
	MemoryContextSwitchTo(co->step_context);
	now = resync_catalog_resolve_tables(co->args.mirror, 0, co->run->options, &ntables);
	resync_catalog_commit();
	Assert(ntables == co->run->ntables);
	changed = resync_catalog_find_changed(co->run->tables, now, ntables);
	if (changed != NULL)
		ereport(ERROR, (errcode(RESYNC_ERRCODE_TABLE_CHANGED),
						errmsg("table \"%s.%s\" was changed before its snapshot was taken",
							   changed->schema, changed->name)));
}

static long
step_create_slot(Coordinator *co)
{
	RunShared	 *rs;
	StreamerState state;
	char		  name[NAMEDATALEN];

	if (co->newest->restarts > 0 && co->build.run == 0)
		make_plan(co); /* a table changed: look again */
	if (co->build.run == 0)
	{
		/* whatever an earlier try has left */
		resync_build_drop_slot(co, co->newest->run);
		resync_worker_slot_name(name, MyDatabaseId, co->newest->run);
		resync_catalog_begin();
		resync_catalog_add_cleanup(name, co->newest->run);
		resync_catalog_commit();
		resync_children_attach(co, &co->build, co->newest->run);
		co->level_since = GetCurrentTimestamp();
	}
	rs = co->build.rs;
	state = resync_children_streamer(&co->build, &co->args, STREAMER_CREATE, 0);
	if (state == STREAMER_CREATING)
	{
		show_blocker(co);
		if (resync_slot_timeout > 0 &&
			TimestampDifferenceExceeds(co->level_since, GetCurrentTimestamp(),
									   resync_slot_timeout * 1000))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the replication slot could not be created within resync.slot_timeout"),
					 rs->waits_for[0] ? errdetail("It waited for %s.", rs->waits_for) : 0));
	}
	if (state == STREAMER_OFF)
	{
		/* a slot that was persistent when its maker died is of no use */
		if (co->build.streamer == NULL || rs->streamer_pid == 0)
		{
			resync_worker_slot_name(name, MyDatabaseId, co->newest->run);
			if (co->build.streamer == NULL)
				(void) resync_worker_drop_slot(name, NULL);
		}
	}
	if (state != STREAMER_EXPORTED)
		return 200;

	rs->waits_for_pid = 0;
	rs->waits_for[0] = '\0';
	check_plan_holds(co);
	resync_catalog_begin();
	resync_catalog_set_run_slot(co->newest->run, rs->slot_name, rs->snapshot_lsn);
	resync_catalog_set_snapshot(co->newest->run, 1, rs->snapshot_lsn);
	resync_catalog_commit();
	RESYNC_DEBUG_POINT("slot_created");
	next_phase(co, PHASE_CREATE_SLOT, PHASE_CREATE_TABLES);
	return 0;
}

/* ---- create_tables ---- */

/*
 * Runs that failed or were cancelled while the destination could not be
 * reached may have left tables there.
 */
static void
end_leftovers(Coordinator *co)
{
	int64		 *runs;
	int			  n;
	MemoryContext old;

	resync_catalog_begin();
	n = (int) resync_catalog_exec("SELECT run FROM peerdb._run WHERE mirror = $1 AND run < $2"
								  " AND outcome IN ('failed', 'cancelled')"
								  " ORDER BY run DESC LIMIT 10",
								  SPI_OK_SELECT, 2, INT8OID, Int64GetDatum(co->args.mirror), false,
								  INT8OID, Int64GetDatum(co->newest->run), false);
	old = MemoryContextSwitchTo(co->step_context);
	runs = palloc((n + 1) * sizeof(int64));
	MemoryContextSwitchTo(old);
	for (int i = 0; i < n; i++)
	{
		bool isnull;

		runs[i] = DatumGetInt64(
			SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	resync_catalog_finish();
	resync_catalog_commit();
	for (int i = 0; i < n; i++)
		co->run->routine->end_run(co->dest, runs[i]);
}

static long
step_create_tables(Coordinator *co)
{
	resync_build_open(co);
	end_leftovers(co);
	/* what an earlier slot's try has left: its applied LSN must not stay */
	if (co->newest->restarts > 0)
		co->run->routine->end_run(co->dest, co->newest->run);
	co->run->routine->begin_run(co->dest, co->newest->snapshot_lsn);
	for (int i = 0; i < co->run->ntables; i++)
	{
		co->table = co->run->tables[i];
		co->run->routine->create_table(co->dest, co->run->tables[i]);
		resync_catalog_begin();
		resync_catalog_set_table_state(co->newest->run, co->run->tables[i]->ordinal,
									   RESYNC_TABLE_CREATED);
		resync_catalog_commit();
		co->run->tables[i]->state = RESYNC_TABLE_CREATED;
	}
	co->table = NULL;
	RESYNC_DEBUG_POINT("tables_created");
	next_phase(co, PHASE_CREATE_TABLES,
			   co->run->options->do_initial_copy || !co->newest->initial ? PHASE_LOAD
																		 : PHASE_CATCH_UP);
	return 0;
}

/* ---- catch_up ---- */

/* The streamer in this phase: reattached after a restart of ours. */
static StreamerState
command_streamer(Coordinator *co, StreamerCommand command, XLogRecPtr hold_at_least)
{
	resync_children_attach(co, &co->build, co->newest->run);
	return resync_children_streamer(&co->build, &co->args, command, hold_at_least);
}

/* Keys, before changes are applied by them. */
static bool
build_keys(Coordinator *co)
{
	for (int i = 0; i < co->run->ntables; i++)
	{
		ResyncTable *table = co->run->tables[i];

		if (table->state != RESYNC_TABLE_CREATED)
			continue;
		(void) command_streamer(co, STREAMER_HOLD, 0);
		co->table = table;
		co->run->routine->build_key(co->dest, table);
		co->table = NULL;
		resync_catalog_begin();
		resync_catalog_set_table_state(co->newest->run, table->ordinal, RESYNC_TABLE_KEYED);
		resync_catalog_commit();
		table->state = RESYNC_TABLE_KEYED;
		return true;
	}
	return false;
}

/*
 * Level: everything up to a target that was the end of WAL when it was set is
 * applied, and that took less than a second.
 */
static bool
is_level(Coordinator *co)
{
	RunShared *rs = co->build.rs;
	XLogRecPtr applied = pg_atomic_read_u64(&rs->applied_lsn);
	XLogRecPtr received = pg_atomic_read_u64(&rs->received_lsn);
	bool	   reached;

	if (co->level_target == 0)
	{
		co->level_target = Max(GetFlushRecPtr(NULL), co->newest->catch_up_lsn);
		co->level_since = GetCurrentTimestamp();
		pg_atomic_write_u64(&rs->flush_request, co->level_target);
		return false;
	}
	reached = applied >= co->level_target ||
			  (received >= co->level_target && pg_atomic_read_u64(&rs->oldest_pending) == 0);
	if (!reached)
		return false;
	co->level_target = 0;
	return !TimestampDifferenceExceeds(co->level_since, GetCurrentTimestamp(), LEVEL_TIME_MS);
}

/*
 * With keep_serving: has the old stream applied everything up to this run's
 * slot?  The swap carries deleted rows over from the live tables; what was
 * deleted before the slot's LSN is known to the old stream only, and must be
 * there before transfer() looks.  An old stream that ended for good is not
 * waited for.
 */
static bool
serving_has_reached_slot(Coordinator *co)
{
	RunShared *rs = co->serving.rs;

	if (!co->newest->keep_serving || co->serving.run == 0 ||
		pg_atomic_read_u64(&rs->applied_lsn) >= co->newest->snapshot_lsn)
		return true;
	return pg_atomic_read_u64(&rs->received_lsn) >= co->newest->snapshot_lsn &&
		   pg_atomic_read_u64(&rs->oldest_pending) == 0;
}

static long
step_catch_up(Coordinator *co)
{
	resync_build_open(co);
	if (build_keys(co))
		return 0;
	if (command_streamer(co, STREAMER_STREAM_BUILD, 0) != STREAMER_STREAMING)
	{
		co->level_target = 0;
		return 100;
	}
	resync_children_note(co, &co->build, false);
	if (co->run == NULL)
		return 0; /* columns were added: read the plan again */
	if (!serving_has_reached_slot(co))
	{
		co->level_target = 0;
		return 100;
	}
	if (!is_level(co))
		return 50;
	next_phase(co, PHASE_CATCH_UP, PHASE_SWAP);
	return 0;
}

/* ---- swap ---- */

/*
 * The destination has the new tables in place: tell the catalog, let the old
 * run go, stream on.  Repeatable.
 */
static long
finish_swap(Coordinator *co)
{
	/* with its slot it would hold WAL for ever */
	int64 old = (co->live != NULL && co->live->run == co->newest->replaces &&
				 co->live->phase != PHASE_ENDED)
					? co->newest->replaces
					: 0;

	RESYNC_DEBUG_POINT("swapped");
	if (co->run->routine->after_swap != NULL)
		co->run->routine->after_swap(co->dest, co->run->tables, co->run->ntables);
	if (old != 0)
		retire(co, old);
	resync_catalog_begin();
	for (int i = 0; i < co->run->ntables; i++)
		resync_catalog_set_table_state(co->newest->run, co->run->tables[i]->ordinal,
									   RESYNC_TABLE_SWAPPED);
	resync_catalog_finish_swap(co->args.mirror, co->newest->run);
	if (!co->run->options->initial_copy_only || !co->newest->initial)
		resync_catalog_set_phase(co->newest->run, PHASE_SWAP, PHASE_STREAM);
	resync_catalog_log(co->args.mirror, co->newest->run, "info", NULL, 0, "the new tables are live",
					   NULL);
	resync_catalog_commit();

	if (co->run->options->initial_copy_only && co->newest->initial)
	{
		/* done: no slot, no process */
		resync_children_detach(&co->build);
		resync_build_drop_slot(co, co->newest->run);
		resync_catalog_begin();
		resync_catalog_end_run(co->newest->run, "done", 0, NULL);
		resync_catalog_set_status(co->args.mirror, "completed");
		resync_catalog_commit();
	}
	else if (co->build.run != 0)
	{
		(void) command_streamer(co, STREAMER_STREAM_LIVE, 0);
		co->serving = co->build;
		memset(&co->build, 0, sizeof(RunCtl));
	}
	resync_build_close(co);
	return 0;
}

static bool
all_swapped(Coordinator *co)
{
	for (int i = 0; i < co->run->ntables; i++)
	{
		if (!co->run->routine->is_swapped(co->dest, co->run->tables[i]))
			return false;
	}
	return true;
}

/* Soft-deleted rows, before any lock; once per table. */
static bool
transfer(Coordinator *co)
{
	for (int i = 0; i < co->run->ntables; i++)
	{
		ResyncTable *table = co->run->tables[i];
		int64		 rows;
		List		*warnings = NIL;
		ListCell	*lc;

		if (table->state != RESYNC_TABLE_KEYED)
			continue;
		co->table = table;
		rows = co->run->routine->transfer(co->dest, table, &warnings);
		co->table = NULL;
		foreach(lc, warnings)
			log_message(co, "warning", psprintf("%s.%s", table->schema, table->name), lfirst(lc));
		if (rows > 0)
			log_message(co, "info", psprintf("%s.%s", table->schema, table->name),
						psprintf(INT64_FORMAT " soft-deleted rows were carried over", rows));
		resync_catalog_begin();
		resync_catalog_set_table_state(co->newest->run, table->ordinal, RESYNC_TABLE_TRANSFERRED);
		resync_catalog_commit();
		table->state = RESYNC_TABLE_TRANSFERRED;
		return true;
	}
	return false;
}

/*
 * With keep_serving the old stream stops first, so that readers never see time
 * go back: the new one must hold at or after its position.
 */
static XLogRecPtr
stop_serving(Coordinator *co)
{
	XLogRecPtr lsn = 0;
	XLogRecPtr ignore;

	if (co->serving.run != 0)
	{
		resync_children_note(co, &co->serving, true);
		resync_children_stop(&co->serving);
		lsn = pg_atomic_read_u64(&co->serving.rs->applied_lsn);
	}
	else if (co->newest->keep_serving && co->live != NULL && co->live->slot_name != NULL)
	{
		/* stopped by an earlier coordinator; it confirms what is applied */
		(void) resync_worker_slot_positions(co->live->slot_name, &ignore, &lsn);
		lsn = Max(co->live->confirmed_lsn, lsn);
	}
	return lsn;
}

static long
step_swap(Coordinator *co)
{
	XLogRecPtr at_least;
	XLogRecPtr lsn;
	int64	   replaces = co->newest->keep_serving ? co->newest->replaces : 0;

	resync_build_open(co);
	if (all_swapped(co))
		return finish_swap(co);
	if (GetCurrentTimestamp() < co->swap_not_before)
	{
		(void) command_streamer(co, STREAMER_STREAM_BUILD, 0);
		return 100;
	}
	if (transfer(co))
		return 0;
	RESYNC_DEBUG_POINT("before_swap");

	at_least = Max(stop_serving(co), co->newest->catch_up_lsn);
	if (command_streamer(co, STREAMER_HOLD, at_least) != STREAMER_HELD)
		return 50;

	/* held since before the old stream went on */
	lsn = pg_atomic_read_u64(&co->build.rs->applied_lsn);
	if (lsn < at_least)
	{
		(void) command_streamer(co, STREAMER_STREAM_BUILD, 0);
		return 50;
	}
	if (!co->run->routine->swap(co->dest, co->run->tables, co->run->ntables, lsn, replaces))
	{
		long delay = resync_retry_delay(0, ++co->swap_tries);

		ereport(LOG, (errmsg("the swap of mirror \"%s\" did not get its locks and is tried again",
							 co->mirror->name)));
		co->swap_not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay);
		(void) command_streamer(co, STREAMER_STREAM_BUILD, 0);
		return 50;
	}
	return finish_swap(co);
}

/* ---- the way in ---- */

long
resync_build_step(Coordinator *co)
{
	switch (co->newest->phase)
	{
		case PHASE_VALIDATE:
			return step_validate(co);
		case PHASE_DROP:
			return step_drop(co);
		case PHASE_CREATE_SLOT:
			return step_create_slot(co);
		case PHASE_CREATE_TABLES:
			return step_create_tables(co);
		case PHASE_LOAD:
			resync_children_attach(co, &co->build, co->newest->run);
			return resync_load_step(co);
		case PHASE_CATCH_UP:
			return step_catch_up(co);
		case PHASE_SWAP:
			return step_swap(co);
		case PHASE_STREAM:
		case PHASE_ENDED:
			break;
	}
	return 0;
}

/*
 * A table changed under the load: everything from the slot on is done again.
 * The caller has looked how often that was (RESYNC_MAX_RESTARTS).  The slot
 * goes in phase create_slot, which drops what an earlier try has left.
 */
void
resync_build_restart(Coordinator *co)
{
	resync_children_detach(&co->build);
	resync_load_forget(co);
	resync_build_close(co);

	/*
	 * The catalog first: with the slot gone and the phase still load, another
	 * process could only give up.  Slot and tables are cleaned up on the way.
	 */
	resync_catalog_begin();
	resync_catalog_clear_partitions(co->newest->run, -1);
	if (co->newest->phase != PHASE_CREATE_SLOT)
		/* which counts it */
		resync_catalog_set_phase(co->newest->run, co->newest->phase, PHASE_CREATE_SLOT);
	else
	{
		(void) resync_catalog_exec("UPDATE peerdb._run SET restarts = restarts + 1 WHERE run = $1",
								   SPI_OK_UPDATE, 1, INT8OID, Int64GetDatum(co->newest->run),
								   false);
		resync_catalog_finish();
	}
	resync_catalog_commit();
}
