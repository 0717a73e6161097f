/*
 * children.c
 *		The coordinator's streamers and copiers: started, watched, restarted
 *		with back-off, stopped; and their counters noted in the catalog.
 *
 * A child that ends leaves its error in RunShared.  A transient one (or none,
 * when it was killed) means another try later; a permanent one is raised here
 * and ends up as the run's error.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/coordinator.h"

#include "miscadmin.h"
#include "net/retry.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define NOTE_INTERVAL_MS 1000
#define QUIT_TIMEOUT_MS 2000

/* Take a shared memory entry for a run. */
void
resync_children_attach(Coordinator *co, RunCtl *ctl, int64 run)
{
	if (ctl->run == run)
		return;
	Assert(ctl->run == 0);
	memset(ctl, 0, sizeof(RunCtl));
	ctl->rs = resync_shmem_claim_run(MyDatabaseId, co->args.mirror, run, co->mirror->owner);
	ctl->run = run;
	resync_children_pass_options(co, ctl);
}

/*
 * The mirror's options as they are now, which may have been edited since the
 * run began, to the streamer.  In step_context.
 */
void
resync_children_pass_options(Coordinator *co, RunCtl *ctl)
{
	ResyncOptions *now;

	if (ctl->run == 0)
		return;
	now = resync_options_parse(co->mirror->options);
	pg_atomic_write_u64(&ctl->rs->max_batch_size, (uint64) now->max_batch_size);
	pg_atomic_write_u64(&ctl->rs->sync_interval_ms,
						(uint64) (int64) (now->sync_interval < 0 ? -1 : now->sync_interval * 1000));
}

/* Raise a child's error as our own. */
void
resync_children_raise(ResyncErrorReport *report)
{
	ResyncErrorReport copy;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	copy = *report;
	report->set = false;
	LWLockRelease(ResyncShmem->lock);
	ereport(ERROR, (errcode(copy.sqlerrcode), errmsg_internal("%s", copy.message),
					copy.detail[0] ? errdetail_internal("%s", copy.detail) : 0,
					copy.hint[0] ? errhint("%s", copy.hint) : 0,
					copy.table[0] ? err_generic_string(PG_DIAG_SCHEMA_NAME, copy.schema) : 0,
					copy.table[0] ? err_generic_string(PG_DIAG_TABLE_NAME, copy.table) : 0));
}

/*
 * A child is gone.  Raises its error if trying again is of no use; else logs it,
 * keeps it for the coordinator to show, and returns.
 */
static void
child_ended(RunCtl *ctl, const char *what, ResyncErrorReport *report, int *failures,
			TimestampTz *not_before)
{
	if (report->set && !resync_retry_is_transient(report->sqlerrcode))
		resync_children_raise(report);
	if (report->set)
	{
		ereport(LOG, (errcode(report->sqlerrcode),
					  errmsg("resync %s ended and is started again: %s", what, report->message),
					  report->detail[0] ? errdetail_internal("%s", report->detail) : 0));
		ctl->trouble = *report;
	}
	(*failures)++;
	*not_before = TimestampTzPlusMilliseconds(
		GetCurrentTimestamp(), resync_retry_delay(report->set ? report->sqlerrcode : 0, *failures));
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	report->set = false;
	LWLockRelease(ResyncShmem->lock);
}

static void
start_streamer(RunCtl *ctl, const WorkerArgs *args)
{
	WorkerArgs child = *args;

	child.run = ctl->run;
	child.generation = ctl->rs->generation;
	ctl->streamer = resync_worker_start("resync_streamer_main", "streamer", &child);
	if (ctl->streamer == NULL)
		ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						errmsg("no background worker is free for the streamer of run " INT64_FORMAT,
							   ctl->run),
						errhint("You might need to increase \"%s\".", "max_worker_processes")));
}

/*
 * Have the run's streamer do something; start it if it is not there.  Returns
 * where it is.
 */
StreamerState
resync_children_streamer(RunCtl *ctl, const WorkerArgs *args, StreamerCommand command,
						 XLogRecPtr hold_at_least)
{
	RunShared	 *rs = ctl->rs;
	StreamerState state;
	pid_t		  pid;
	int			  pgprocno = -1;
	bool		  alive = false;

	if (ctl->streamer != NULL)
	{
		if (GetBackgroundWorkerPid(ctl->streamer, &pid) == BGWH_STOPPED)
		{
			pfree(ctl->streamer);
			ctl->streamer = NULL;
			child_ended(ctl, "streamer", &rs->streamer_error, &ctl->streamer_failures,
						&ctl->streamer_not_before);
		}
		else
			alive = true;
	}
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	if (rs->command != command || rs->hold_at_least != hold_at_least)
	{
		rs->command = command;
		rs->hold_at_least = hold_at_least;
		pgprocno = rs->streamer_pgprocno;
	}
	state = alive ? rs->streamer : STREAMER_OFF;
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(pgprocno);
	if (!alive && GetCurrentTimestamp() >= ctl->streamer_not_before)
		start_streamer(ctl, args);
	return state;
}

/*
 * Has copier i ended?  *died: it had a partition or an error, so it counts as
 * a failure.  Raises a permanent error.  True if it is not running (any more).
 */
bool
resync_children_reap_copier(RunCtl *ctl, int i, bool *died)
{
	pid_t pid;

	*died = false;
	if (ctl->copiers[i] == NULL)
		return true;
	if (GetBackgroundWorkerPid(ctl->copiers[i], &pid) != BGWH_STOPPED)
		return false;
	pfree(ctl->copiers[i]);
	ctl->copiers[i] = NULL;
	*died = true;
	child_ended(ctl, "copier", &ctl->rs->copier_error, &ctl->copier_failures,
				&ctl->copier_not_before);
	return true;
}

/* Wait for a child that was told to end. */
static void
wait_child(BackgroundWorkerHandle **handle)
{
	pid_t pid;

	if (*handle == NULL)
		return;
	TerminateBackgroundWorker(*handle);
	while (GetBackgroundWorkerPid(*handle, &pid) != BGWH_STOPPED)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100,
						 RESYNC_WAIT_EVENT("CopierEnd"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(*handle);
	*handle = NULL;
}

/*
 * The load is over: idle copiers are let go.  Whoever does not go by itself
 * is told by a signal later.
 */
void
resync_children_dismiss_copiers(RunCtl *ctl)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		alive = true;

	for (int i = 0; i < ctl->rs->ncopiers; i++)
	{
		CopierShared *cs = &ctl->rs->copiers[i];
		int			  pgprocno = -1;

		LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
		if (cs->state == COPIER_IDLE || cs->state == COPIER_STARTING)
		{
			cs->state = COPIER_QUIT;
			pgprocno = cs->pgprocno;
		}
		LWLockRelease(ResyncShmem->lock);
		resync_shmem_wake(pgprocno);
	}
	while (alive && !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), QUIT_TIMEOUT_MS))
	{
		pid_t pid;

		alive = false;
		for (int i = 0; i < RESYNC_MAX_COPIERS; i++)
		{
			if (ctl->copiers[i] != NULL &&
				GetBackgroundWorkerPid(ctl->copiers[i], &pid) != BGWH_STOPPED)
				alive = true;
		}
		if (!alive)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 RESYNC_WAIT_EVENT("WorkerEnd"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	resync_children_stop_copiers(ctl);
}

void
resync_children_stop_copiers(RunCtl *ctl)
{
	if (ctl->run == 0)
		return;
	for (int i = 0; i < RESYNC_MAX_COPIERS; i++)
	{
		if (ctl->copiers[i] != NULL)
			TerminateBackgroundWorker(ctl->copiers[i]);
	}
	for (int i = 0; i < RESYNC_MAX_COPIERS; i++)
		wait_child(&ctl->copiers[i]);
	ctl->rs->ncopiers = 0;
	ctl->rs->copier_error.set = false;
}

/* A streamer that listens ends by itself, without a message in the log. */
static void
dismiss_streamer(RunCtl *ctl)
{
	TimestampTz start = GetCurrentTimestamp();
	pid_t		pid;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ctl->rs->command = STREAMER_EXIT;
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(ctl->rs->streamer_pgprocno);
	while (ctl->streamer != NULL && GetBackgroundWorkerPid(ctl->streamer, &pid) != BGWH_STOPPED &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), QUIT_TIMEOUT_MS))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 RESYNC_WAIT_EVENT("StreamerEnd"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* All processes of the run; the entry stays. */
void
resync_children_stop(RunCtl *ctl)
{
	if (ctl->run == 0)
		return;
	resync_children_stop_copiers(ctl);
	dismiss_streamer(ctl);
	wait_child(&ctl->streamer);
	ctl->rs->streamer_error.set = false;
	ctl->rs->command = STREAMER_NONE;
}

/* Processes and entry. */
void
resync_children_detach(RunCtl *ctl)
{
	if (ctl->run == 0)
		return;
	resync_children_stop(ctl);
	resync_shmem_release_run(ctl->rs);
	memset(ctl, 0, sizeof(RunCtl));
}

/* At our own exit: tell them, and do not wait. */
void
resync_children_kill(RunCtl *ctl)
{
	if (ctl->run == 0)
		return;
	if (ctl->streamer != NULL)
		TerminateBackgroundWorker(ctl->streamer);
	for (int i = 0; i < RESYNC_MAX_COPIERS; i++)
	{
		if (ctl->copiers[i] != NULL)
			TerminateBackgroundWorker(ctl->copiers[i]);
	}
	resync_shmem_release_run(ctl->rs);
}

/* Columns that were added on the fly, into the tables' plans. */
static void
note_columns(RunCtl *ctl, const AddedColumn *added, int nadded)
{
	int			  ntables;
	ResyncTable **tables = resync_catalog_run_tables(ctl->run, &ntables);

	for (int i = 0; i < nadded; i++)
	{
		for (int t = 0; t < ntables; t++)
		{
			bool known = false;

			if (tables[t]->ordinal != added[i].ordinal)
				continue;
			for (int c = 0; c < tables[t]->ncols && !known; c++)
				known = strcmp(tables[t]->cols[c].name, NameStr(added[i].name)) == 0;
			if (known)
				continue;
			tables[t] = resync_decode_table_with_column(tables[t], &added[i]);
			resync_catalog_put_plan(ctl->run, tables[t]);
		}
	}
}

/*
 * Applied batches, counters and the confirmed LSN into the catalog, at most
 * once a second unless forced.
 */
void
resync_children_note(Coordinator *co, RunCtl *ctl, bool force)
{
	RunShared *rs = ctl->rs;
	RunBatch   batches[RESYNC_BATCH_RING];
	int		   n = 0;
	struct
	{
		int	  table;
		int64 inserts, updates, deletes;
	} * counts;
	int			ncounts = 0;
	AddedColumn added[RESYNC_MAX_ADDED];
	int			nadded;
	XLogRecPtr	applied;

	if (ctl->run == 0)
		return;
	if (!force &&
		!TimestampDifferenceExceeds(ctl->noted_at, GetCurrentTimestamp(), NOTE_INTERVAL_MS))
		return;
	ctl->noted_at = GetCurrentTimestamp();
	counts = palloc(RESYNC_MAX_COUNTED * sizeof(*counts));
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	while (rs->batch_tail != rs->batch_head)
	{
		int i = rs->batch_tail % RESYNC_BATCH_RING;

		batches[n].first_lsn = rs->batches[i].first_lsn;
		batches[n].last_lsn = rs->batches[i].last_lsn;
		batches[n].rows = rs->batches[i].rows;
		batches[n].started = rs->batches[i].started;
		batches[n].finished = rs->batches[i].finished;
		n++;
		rs->batch_tail++;
	}
	for (int t = 0; n > 0 && t < RESYNC_MAX_COUNTED; t++)
	{
		if (rs->counts[t].inserts + rs->counts[t].updates + rs->counts[t].deletes == 0)
			continue;
		counts[ncounts].table = t;
		counts[ncounts].inserts = rs->counts[t].inserts;
		counts[ncounts].updates = rs->counts[t].updates;
		counts[ncounts].deletes = rs->counts[t].deletes;
		ncounts++;
	}
	if (ncounts > 0)
		memset(rs->counts, 0, sizeof(rs->counts));
	nadded = rs->nadded;
	memcpy(added, rs->added, nadded * sizeof(AddedColumn));
	rs->nadded = 0;
	applied = pg_atomic_read_u64(&rs->applied_lsn);
	LWLockRelease(ResyncShmem->lock);
	if (n == 0 && nadded == 0 && (applied == ctl->noted_lsn || applied == 0))
		return;

	resync_catalog_begin();
	if (n > 0)
	{
		resync_catalog_add_batches(co->args.mirror, ctl->run, batches, n);

		/* it got on: crashes before that are not in a row any more */
		resync_catalog_note_progress(ctl->run);
	}
	for (int i = 0; i < ncounts; i++)
		resync_catalog_set_table_counts(ctl->run, counts[i].table, counts[i].inserts,
										counts[i].updates, counts[i].deletes);
	if (nadded > 0)
		note_columns(ctl, added, nadded);
	if (applied != 0 && applied != ctl->noted_lsn)
		resync_catalog_set_confirmed(ctl->run, applied);
	resync_catalog_commit();
	if (nadded > 0 && ctl == &co->build)
		resync_build_close(co);
	ctl->noted_lsn = applied;
	ctl->streamer_failures = 0;
}
