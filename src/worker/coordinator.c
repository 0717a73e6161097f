/*
 * coordinator.c
 *		The coordinator: one per active mirror.  Does what users ask for (drop,
 *		cancel, pause), keeps the live run streaming, drives the run under
 *		construction, and decides what an error means.
 *
 * It is the only writer of a started run's catalog rows, each change in a
 * short transaction of its own, and never holds a slot or a snapshot.  It ends
 * by itself when there is nothing to do, and is started again by the launcher
 * when somebody asks.
 *
 * Errors: a step runs within PG_TRY.  Transient errors are tried again with
 * back-off, and show in peerdb.mirrors.error meanwhile.  A permanent one ends
 * the run under construction (slot and tables go, live tables stay), or leaves
 * the mirror failed with its slot, so that it can be resumed; where only a
 * resync helps, the slot goes too.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/coordinator.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "executor/spi.h"
#include "net/retry.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define IDLE_NAP_MS 1000
#define VALIDATE_TRIES 3
#define MAX_CRASHES 2
#define CALM_MS 60000
#define LIVED_MS 10000

/* step()'s answer: nothing is left to do */
#define FINISHED (-1)

static Coordinator *self = NULL;

static void
coordinator_exit(int code, Datum arg)
{
	int launcher;

	resync_children_kill(&self->build);
	resync_children_kill(&self->serving);
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	if (self->ms->pid == MyProcPid)
	{
		self->ms->pid = 0;
		self->ms->pgprocno = -1;
		if (code != 0 && self->ms->wanted)
		{
			/* the mirror may run for years: only deaths in a row count */
			if (TimestampDifferenceExceeds(self->ms->started_at, GetCurrentTimestamp(), LIVED_MS))
				self->ms->failures = 0;
			self->ms->failures++;
			self->ms->not_before = TimestampTzPlusMilliseconds(
				GetCurrentTimestamp(), resync_retry_delay(0, self->ms->failures));
		}
	}
	launcher = ResyncShmem->launcher_pgprocno;
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(launcher);
}

/* Attach to the mirror's entry; false: another coordinator has it. */
static bool
register_coordinator(Coordinator *co)
{
	MirrorShared *ms = NULL;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < resync_max_mirrors && ms == NULL; i++)
	{
		if (ResyncShmem->mirrors[i].in_use && ResyncShmem->mirrors[i].database == MyDatabaseId &&
			ResyncShmem->mirrors[i].mirror == co->args.mirror)
			ms = &ResyncShmem->mirrors[i];
	}
	if (ms != NULL && ms->pid == 0)
	{
		ms->pid = MyProcPid;
		ms->pgprocno = RESYNC_MY_PROC_NUMBER;
		ms->starting = false;
		co->ms = ms;
	}
	LWLockRelease(ResyncShmem->lock);
	return co->ms != NULL;
}

/* The mirror and its runs as the catalog has them now, in step_context. */
static void
read_state(Coordinator *co)
{
	MemoryContextReset(co->step_context);
	co->mirror = NULL;
	co->newest = NULL;
	co->live = NULL;
	resync_catalog_begin();
	if (resync_catalog_exists())
	{
		MemoryContextSwitchTo(co->step_context);
		co->mirror = resync_catalog_mirror(co->args.mirror);
		if (co->mirror != NULL && co->mirror->newest_run != 0)
			co->newest = resync_catalog_run(co->mirror->newest_run);
		if (co->mirror != NULL && co->mirror->live_run != 0)
			co->live = resync_catalog_run(co->mirror->live_run);
	}
	resync_catalog_commit();
	MemoryContextSwitchTo(co->step_context);

	/* a mirror that did not run has nothing to keep serving */
	if (co->newest != NULL && co->newest->keep_serving &&
		(co->newest->previous_status == NULL || co->live == NULL ||
		 co->live->phase != PHASE_STREAM ||
		 (strcmp(co->newest->previous_status, "running") != 0 &&
		  strcmp(co->newest->previous_status, "paused") != 0)))
		co->newest->keep_serving = false;
}

static bool
is_building(Coordinator *co)
{
	return co->newest != NULL && co->newest->phase != PHASE_STREAM &&
		   co->newest->phase != PHASE_ENDED;
}

/*
 * While a connection waits: has somebody asked for a drop, cancel or pause?
 * Then what is under way is given up; the next step does what was asked.
 */
static void
interrupt_wait(void)
{
	MirrorRow	 *m;
	bool		  stop;
	MemoryContext old = CurrentMemoryContext;

	if (self == NULL || self->in_request || !self->ms->kick || IsTransactionState())
		return;
	self->ms->kick = false;
	resync_catalog_begin();
	m = resync_catalog_mirror(self->args.mirror);
	stop = (m == NULL || m->want_drop != NULL || m->want_cancel || m->want_pause);
	resync_catalog_commit();
	MemoryContextSwitchTo(old);
	if (stop)
		ereport(ERROR, (errcode(RESYNC_ERRCODE_INTERRUPTED), errmsg("interrupted by a request")));
}

/* ---- requests ---- */

/*
 * What is at the destination and belongs to a run or the mirror goes, as far as
 * it can be reached.  An error is logged, not raised: the caller goes on.
 */
static void
clean_destination(Coordinator *co, int64 end_run, bool drop_mirror, bool drop_tables)
{
	MemoryContext context = CurrentMemoryContext;

	/* not by a connection that may have died while it was idle */
	resync_build_close(co);
	PG_TRY();
	{
		resync_build_open(co);
		if (end_run != 0)
			co->run->routine->end_run(co->dest, end_run);
		if (drop_mirror)
			co->run->routine->drop_mirror(co->dest, co->run->tables, co->run->ntables, drop_tables);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(context);
		if (edata->sqlerrcode == RESYNC_ERRCODE_INTERRUPTED)
			edata->message = "interrupted";
		ereport(LOG, (errcode(edata->sqlerrcode),
					  errmsg("could not clean up the destination of mirror \"%s\": %s",
							 co->mirror->name, edata->message)));
		resync_catalog_begin();
		resync_catalog_log(co->args.mirror, co->newest ? co->newest->run : 0, "warning", NULL,
						   edata->sqlerrcode, "could not clean up the destination", edata->message);
		resync_catalog_commit();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	resync_build_close(co);
}

static void
do_drop(Coordinator *co)
{
	bool tables = strcmp(co->mirror->want_drop, "drop") == 0;

	resync_children_detach(&co->build);
	resync_children_detach(&co->serving);
	resync_load_forget(co);
	if (co->live != NULL)
		resync_build_drop_slot(co, co->live->run);
	if (co->newest != NULL)
	{
		resync_build_drop_slot(co, co->newest->run);
		clean_destination(co, is_building(co) ? co->newest->run : 0, true, tables);
	}
	resync_catalog_begin();
	resync_catalog_log(co->args.mirror, 0, "info", NULL, 0, "mirror was dropped", NULL);
	resync_catalog_delete_mirror(co->args.mirror);
	resync_catalog_commit();
}

/* Message and hint in one text, for peerdb.mirrors.error. */
static char *
error_text(const ErrorData *edata)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, edata->message ? edata->message : "unknown error");
	if (edata->detail)
		appendStringInfo(&buf, "\nDETAIL:  %s", edata->detail);
	if (edata->hint)
		appendStringInfo(&buf, "\nHINT:  %s", edata->hint);
	return buf.data;
}

/*
 * In a catalog transaction: why a run ended, in its log, and for the table that
 * is to blame.
 */
static void
note_failure(Coordinator *co, int64 run, const ErrorData *edata)
{
	char *table = edata->table_name == NULL
					  ? NULL
					  : psprintf("%s.%s", edata->schema_name, edata->table_name);

	resync_catalog_log(co->args.mirror, run, "error", table, edata->sqlerrcode, edata->message,
					   edata->detail);
	if (table != NULL)
		resync_catalog_set_table_error(run, edata->schema_name, edata->table_name,
									   error_text(edata));
}

/* The run under construction goes with an outcome; edata: NULL if cancelled. */
static void
end_build(Coordinator *co, const char *outcome, const ErrorData *edata)
{
	int64 run = co->newest->run;

	resync_children_detach(&co->build);
	resync_load_forget(co);
	if (co->newest->phase > PHASE_VALIDATE)
	{
		resync_build_drop_slot(co, run);
		if (co->newest->phase > PHASE_CREATE_SLOT)
			clean_destination(co, run, false, false);
	}
	resync_build_close(co);
	resync_catalog_begin();
	if (edata != NULL)
		note_failure(co, run, edata);
	else
		resync_catalog_log(co->args.mirror, run, "info", NULL, 0, outcome, NULL);
	resync_catalog_end_run(run, outcome, edata ? edata->sqlerrcode : 0,
						   edata ? error_text(edata) : NULL);
	resync_catalog_commit();
	co->failures = 0;
	co->level_target = 0;
	co->swap_tries = 0;
}

static void
clear_request(Coordinator *co, const char *column)
{
	resync_catalog_begin();
	(void) resync_catalog_exec(
		psprintf("UPDATE peerdb._mirror SET %s = false WHERE id = $1", column), SPI_OK_UPDATE, 1,
		INT8OID, Int64GetDatum(co->args.mirror), false);
	resync_catalog_finish();
	resync_catalog_commit();
}

/*
 * Until the swap.  Afterwards there is nothing to cancel: the new tables are
 * live.
 */
static void
do_cancel(Coordinator *co)
{
	bool swapped = false;

	if (is_building(co) && co->newest->phase == PHASE_SWAP)
	{
		resync_build_open(co);
		for (int i = 0; i < co->run->ntables && !swapped; i++)
			swapped = co->run->routine->is_swapped(co->dest, co->run->tables[i]);
	}
	if (is_building(co) && !swapped)
		end_build(co, "cancelled", NULL);
	clear_request(co, "want_cancel");
}

static void
do_pause(Coordinator *co)
{
	if (co->serving.run != 0)
		resync_children_note(co, &co->serving, true);
	resync_children_detach(&co->build);
	resync_children_detach(&co->serving);
	resync_load_forget(co);
	resync_build_close(co);
	resync_catalog_begin();
	resync_catalog_set_paused(co->args.mirror);
	resync_catalog_commit();
}

/* ---- errors ---- */

/* Only a resync helps: the slot would hold WAL for nothing. */
static bool
needs_resync(int sqlerrcode)
{
	return sqlerrcode == RESYNC_ERRCODE_NEEDS_RESYNC || sqlerrcode == RESYNC_ERRCODE_DIVERGED ||
		   sqlerrcode == RESYNC_ERRCODE_FENCED;
}

static void
retry_later(Coordinator *co, const ErrorData *edata)
{
	co->failures++;
	co->not_before = TimestampTzPlusMilliseconds(
		GetCurrentTimestamp(), resync_retry_delay(edata->sqlerrcode, co->failures));
	ereport(LOG, (errcode(edata->sqlerrcode), errmsg("mirror \"%s\" goes on after an error: %s",
													 co->mirror->name, edata->message)));
	resync_catalog_begin();
	resync_catalog_set_error(co->args.mirror, edata->sqlerrcode, error_text(edata));
	if (co->failures == 1)
		resync_catalog_log(co->args.mirror, co->newest ? co->newest->run : 0, "warning", NULL,
						   edata->sqlerrcode, edata->message, edata->detail);
	resync_catalog_commit();
}

/* The live run cannot go on. */
static void
fail_serving(Coordinator *co, const ErrorData *edata)
{
	int64	   run = co->live->run;
	MirrorRow *mirror;
	RunRow	  *newest = NULL;

	if (co->serving.run != 0)
		resync_children_note(co, &co->serving, true);
	resync_children_detach(&co->serving);
	ereport(LOG, (errcode(edata->sqlerrcode),
				  errmsg("mirror \"%s\" failed: %s", co->mirror->name, edata->message),
				  edata->detail ? errdetail_internal("%s", edata->detail) : 0));
	if (needs_resync(edata->sqlerrcode))
		resync_build_drop_slot(co, run);
	resync_catalog_begin();

	/* somebody may have called peerdb_resync() since this step looked */
	mirror = resync_catalog_mirror_by_name(co->mirror->name, true);
	if (mirror != NULL && mirror->newest_run != 0)
		newest = resync_catalog_run(mirror->newest_run);
	note_failure(co, run, edata);
	if (needs_resync(edata->sqlerrcode))
		resync_catalog_end_run(run, "failed", edata->sqlerrcode, error_text(edata));
	if (newest != NULL && newest->run != run && newest->phase != PHASE_STREAM &&
		newest->phase != PHASE_ENDED)
	{
		/* the run under construction goes on without it; nobody starts it again */
		(void) resync_catalog_exec(
			"UPDATE peerdb._run SET previous_status = 'failed' WHERE run = $1", SPI_OK_UPDATE, 1,
			INT8OID, Int64GetDatum(newest->run), false);
		resync_catalog_finish();
		resync_catalog_set_error(co->args.mirror, 0, NULL);
		resync_catalog_set_status(co->args.mirror, resync_catalog_phase_status(newest->phase));
	}
	else
	{
		resync_catalog_set_error(co->args.mirror, edata->sqlerrcode, error_text(edata));
		resync_catalog_set_status(co->args.mirror, "failed");
	}
	resync_catalog_commit();
}

/* What the error of a step means.  May raise again: then the step is repeated. */
static void
handle_error(Coordinator *co, ErrorData *edata, bool in_build)
{
	bool transient = resync_retry_is_transient(edata->sqlerrcode);

	if (edata->sqlerrcode == RESYNC_ERRCODE_INTERRUPTED)
		return;
	if (co->mirror == NULL)
	{
		/* the catalog could not even be read */
		co->failures++;
		co->not_before = TimestampTzPlusMilliseconds(
			GetCurrentTimestamp(), resync_retry_delay(edata->sqlerrcode, co->failures));
		ereport(LOG, (errcode(edata->sqlerrcode),
					  errmsg("mirror " INT64_FORMAT " goes on after an error: %s", co->args.mirror,
							 edata->message)));
		return;
	}
	if (co->in_request)
	{
		/* a request stays until it is done; it is no fault of a run */
		retry_later(co, edata);
		return;
	}
	if (!in_build)
	{
		if (transient || co->live == NULL)
			retry_later(co, edata);
		else
			fail_serving(co, edata);
		return;
	}
	if (co->newest->phase == PHASE_VALIDATE)
	{
		if (transient && co->failures + 1 < VALIDATE_TRIES)
			retry_later(co, edata);
		else
		{
			ereport(LOG, (errcode(edata->sqlerrcode),
						  errmsg("run " INT64_FORMAT " of mirror \"%s\" was refused: %s",
								 co->newest->run, co->mirror->name, edata->message)));
			end_build(co, "refused", edata);
		}
	}
	else if (edata->sqlerrcode == RESYNC_ERRCODE_TABLE_CHANGED &&
			 co->newest->restarts < RESYNC_MAX_RESTARTS)
	{
		ereport(LOG, (errmsg("the load of mirror \"%s\" starts over: %s", co->mirror->name,
							 edata->message)));
		resync_build_restart(co);
	}
	else if (transient)
	{
		resync_children_stop_copiers(&co->build);
		resync_load_forget(co);
		retry_later(co, edata);
	}
	else
	{
		if (edata->sqlerrcode == RESYNC_ERRCODE_TABLE_CHANGED)
		{
			MemoryContext old = MemoryContextSwitchTo(co->context);

			edata->sqlerrcode = ERRCODE_OBJECT_IN_USE;
			edata->detail = edata->message;
			edata->message = psprintf(
				"tables of mirror \"%s\" were changed during each of %d loads", co->mirror->name,
				RESYNC_MAX_RESTARTS + 1);
			edata->hint = pstrdup("Run peerdb_resync() when no schema changes are under way.");
			MemoryContextSwitchTo(old);
		}
		ereport(LOG, (errcode(edata->sqlerrcode),
					  errmsg("run " INT64_FORMAT " of mirror \"%s\" failed: %s", co->newest->run,
							 co->mirror->name, edata->message),
					  edata->detail ? errdetail_internal("%s", edata->detail) : 0));
		end_build(co, "failed", edata);
	}
}

/* ---- steps ---- */

/*
 * Rule 9: a row that came with a dump, a template or a backup is not ours, and
 * nothing of it is.  But slots are this server's own: the ones that a data
 * directory copied as a whole has brought along would hold its WAL for ever.
 */
static void
refuse_copy(Coordinator *co)
{
	if (co->newest != NULL && co->newest->slot_name != NULL)
		(void) resync_worker_drop_slot(co->newest->slot_name, NULL);
	if (co->live != NULL && co->live->slot_name != NULL)
		(void) resync_worker_drop_slot(co->live->slot_name, NULL);
}

/*
 * A transient error that a child of the run ended with shows in
 * peerdb.mirrors.error until the child works again; the log has the first of a
 * row.
 */
static void
show_trouble(Coordinator *co, RunCtl *ctl)
{
	ErrorData edata;

	if (!ctl->trouble.set)
		return;
	ctl->trouble.set = false;
	memset(&edata, 0, sizeof(edata));
	edata.message = ctl->trouble.message;
	edata.detail = ctl->trouble.detail[0] ? ctl->trouble.detail : NULL;
	edata.hint = ctl->trouble.hint[0] ? ctl->trouble.hint : NULL;
	resync_catalog_begin();
	resync_catalog_set_error(co->args.mirror, ctl->trouble.sqlerrcode, error_text(&edata));
	if (!ctl->in_trouble)
		resync_catalog_log(co->args.mirror, ctl->run, "warning", NULL, ctl->trouble.sqlerrcode,
						   ctl->trouble.message, edata.detail);
	resync_catalog_commit();
	ctl->in_trouble = true;
}

/* The live run: keep its streamer going, note what it did. */
static long
step_serving(Coordinator *co)
{
	StreamerState state;
	bool		  advancing;

	resync_children_attach(co, &co->serving, co->live->run);
	state = resync_children_streamer(&co->serving, &co->args, STREAMER_STREAM_LIVE, 0);
	resync_children_note(co, &co->serving, false);
	show_trouble(co, &co->serving);
	advancing = resync_watch_retained(co, state);
	if (state != STREAMER_STREAMING)
		return 100;
	co->serving.in_trouble = false;
	resync_watch_serving(co);

	/* a minute of streaming: crashes before that are not in a row any more */
	if (co->streaming_since == 0)
		co->streaming_since = GetCurrentTimestamp();
	else if (co->live->crashes > 0 &&
			 TimestampDifferenceExceeds(co->streaming_since, GetCurrentTimestamp(), CALM_MS))
	{
		resync_catalog_begin();
		resync_catalog_note_progress(co->live->run);
		resync_catalog_commit();
	}

	/* whatever it was is over; why a newer run came to nothing stays */
	if (co->mirror->error != NULL && !is_building(co) &&
		(co->newest->outcome == NULL || (strcmp(co->newest->outcome, "refused") != 0 &&
										 strcmp(co->newest->outcome, "failed") != 0)))
	{
		resync_catalog_begin();
		resync_catalog_set_error(co->args.mirror, 0, NULL);
		resync_catalog_commit();
	}
	return advancing ? 100 : IDLE_NAP_MS;
}

static bool
should_serve(Coordinator *co)
{
	if (co->live == NULL || co->live->phase != PHASE_STREAM)
		return false;
	if (!is_building(co))
		return strcmp(co->mirror->status, "running") == 0;
	if (co->newest->previous_status == NULL || strcmp(co->newest->previous_status, "running") != 0)
		return false;
	if (co->newest->phase == PHASE_SWAP)
		return co->newest->keep_serving && GetCurrentTimestamp() < co->swap_not_before;
	return co->newest->phase == PHASE_VALIDATE || co->newest->keep_serving;
}

/*
 * A mirror at rest whose slot is lost, or holds too much WAL, can only be
 * rebuilt.  run: the live one, or the one under construction.
 */
static void
check_resting_slot(Coordinator *co, const RunRow *run)
{
	if (run == NULL || run->slot_name == NULL || run->phase < PHASE_CREATE_TABLES ||
		run->phase == PHASE_ENDED)
		return;
	resync_worker_check_retained(run->slot_name);

	/* what is failed has its reason already; resuming it looks at the slot */
	if (resync_worker_slot_retained(run->slot_name) >= 0 ||
		strcmp(co->mirror->status, "failed") == 0)
		return;
	ereport(
		ERROR,
		(errcode(RESYNC_ERRCODE_NEEDS_RESYNC),
		 errmsg("replication slot \"%s\" was lost while the mirror was %s", run->slot_name,
				co->mirror->status),
		 errdetail(
			 "It held more WAL than max_slot_wal_keep_size allows, was unused for longer than idle_replication_slot_timeout (PostgreSQL 18), or somebody dropped it."),
		 errhint("Run peerdb_resync() to rebuild the mirror.")));
}

/*
 * Did the server crash while we were at this step?  "Started" is noted with
 * the postmaster's start and its crash restarts so far, so that a shutdown or
 * pg_terminate_backend does not count.  After two in a row nothing is started
 * any more: a crash takes everybody's sessions with it.
 */
static void
note_start(Coordinator *co, RunRow *run)
{
	char		 name[128];
	TimestampTz	 started;
	unsigned int epoch;
	int			 crashes = run->crashes;

	if (co->noted_run == run->run && co->noted_phase == run->phase)
		return;
	if (run->step != NULL && sscanf(run->step, INT64_FORMAT "/%u", &started, &epoch) == 2)
	{
		if (started == PgStartTime && epoch < ResyncShmem->crash_epoch && co->own_crash)
			crashes++;
	}
	else
		crashes = 0;
	snprintf(name, sizeof(name), INT64_FORMAT "/%u", PgStartTime, ResyncShmem->crash_epoch);
	resync_catalog_begin();
	resync_catalog_note_start(run->run, name, crashes);
	resync_catalog_commit();
	co->noted_run = run->run;
	co->noted_phase = run->phase;
	if (crashes >= MAX_CRASHES)
		ereport(
			ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("the server crashed %d times in a row while mirror \"%s\" was in phase %s",
					crashes, co->mirror->name, resync_catalog_phase_name(run->phase)),
			 errdetail(
				 "Nothing is started for the mirror any more, so that the server is safe from it."),
			 errhint(
				 "Look into the server log for the cause, then use peerdb_resume_mirror() or peerdb_resync().")));
}

/* What was edited counts from the next batch and the next partition. */
static void
pass_options(Coordinator *co)
{
	ResyncOptions *now;

	resync_children_pass_options(co, &co->serving);
	resync_children_pass_options(co, &co->build);
	if (co->run == NULL)
		return;
	now = resync_options_parse(co->mirror->options);
	co->run->options->snapshot_max_parallel_workers = now->snapshot_max_parallel_workers;
	co->run->options->snapshot_num_tables_in_parallel = now->snapshot_num_tables_in_parallel;
}

/*
 * One look at the mirror.  Returns ms to wait, or FINISHED.  *in_build tells
 * the caller's error handler whose step it was.
 */
static long
step(Coordinator *co, volatile bool *in_build)
{
	long nap = IDLE_NAP_MS;

	*in_build = false;
	co->in_request = false;
	read_state(co);
	if (co->mirror == NULL)
		return FINISHED;
	if (co->mirror->is_copy)
	{
		refuse_copy(co);
		return FINISHED;
	}
	co->in_request = co->mirror->want_drop != NULL || co->mirror->want_cancel ||
					 co->mirror->want_pause;
	if (co->mirror->want_drop != NULL)
	{
		do_drop(co);
		return FINISHED;
	}
	if (co->mirror->want_cancel)
	{
		do_cancel(co);
		return 0;
	}
	if (co->mirror->want_pause && strcmp(co->mirror->status, "failed") != 0)
	{
		if (strcmp(co->mirror->status, "paused") != 0)
			do_pause(co);
		/* the pause is done; what is wrong now is the run's */
		co->in_request = false;
		check_resting_slot(co, co->live);
		*in_build = is_building(co);
		if (*in_build)
			check_resting_slot(co, co->newest);
		return FINISHED;
	}
	if (GetCurrentTimestamp() < co->not_before)
		return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), co->not_before) + 1;
	pass_options(co);

	if (should_serve(co))
	{
		if (!is_building(co))
			note_start(co, co->live);
		nap = step_serving(co);
	}
	else if (!is_building(co))
	{
		check_resting_slot(co, co->live);
		return FINISHED;
	}
	if (is_building(co))
	{
		long n;

		*in_build = true;
		note_start(co, co->newest);
		if (co->newest->slot_name != NULL)
			resync_worker_check_retained(co->newest->slot_name);
		n = resync_build_step(co);
		show_trouble(co, &co->build);
		nap = Min(nap, n);
	}
	co->failures = 0;
	return nap;
}

/* Error context: the table that the step works on. */
static void
blame_table(void *arg)
{
	const Coordinator *co = arg;

	if (co->table != NULL)
		resync_destination_blame(co->table);
}

/*
 * A step, and what its error means.  An error of the error's handling is only
 * logged: the step comes again after the back-off.
 */
static long
guarded_step(Coordinator *co)
{
	volatile bool in_build = false;
	volatile long nap = 0;
	ErrorData *volatile failed = NULL;
	TimestampTz now;

	PG_TRY();
	{
		ErrorContextCallback blame = {error_context_stack, blame_table, co};

		error_context_stack = &blame;
		co->table = NULL;
		nap = step(co, &in_build);
		error_context_stack = blame.previous;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(co->context);
		failed = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		MemoryContextSwitchTo(co->step_context);
	}
	PG_END_TRY();
	if (failed == NULL)
		return nap;

	PG_TRY();
	{
		resync_build_close(co);
		handle_error(co, failed, in_build);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(co->context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		LWLockReleaseAll();
		co->failures++;
		co->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													 resync_retry_delay(0, co->failures));
	}
	PG_END_TRY();
	FreeErrorData(failed);

	/* requests do not look at the back-off; whoever asks for more wakes us */
	now = GetCurrentTimestamp();
	return now < co->not_before ? TimestampDifferenceMilliseconds(now, co->not_before) + 1 : 0;
}

void
resync_coordinator_main(Datum arg)
{
	MemoryContext context;
	Coordinator	 *co;

	context = AllocSetContextCreate(TopMemoryContext, "resync coordinator", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	co = palloc0(sizeof(Coordinator));
	co->context = context;
	co->step_context = AllocSetContextCreate(context, "resync step", ALLOCSET_DEFAULT_SIZES);
	memcpy(&co->args, MyBgworkerEntry->bgw_extra, sizeof(WorkerArgs));
	resync_worker_init(&co->args, "coordinator");
	RESYNC_DEBUG_POINT("coordinator_starts");
	if (!register_coordinator(co))
		proc_exit(0);
	self = co;
	co->own_crash = resync_worker_crashed(MyDatabaseId, co->args.mirror);
	before_shmem_exit(coordinator_exit, 0);
	resync_destination_set_wait_hook(interrupt_wait);

	for (;;)
	{
		long nap;

		ResetLatch(MyLatch);
		resync_worker_interrupts();

		/* the launcher does not see who is only about to register */
		if (!resync_enabled)
			proc_exit(0);
		co->ms->kick = false;
		if (co->mirror != NULL)
			resync_worker_activity("mirror %s", co->mirror->name);
		else
			resync_worker_activity("mirror " INT64_FORMAT, co->args.mirror);
		nap = guarded_step(co);
		if (nap == FINISHED)
		{
			bool finished;

			/* unless somebody asked for more meanwhile */
			LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
			finished = !co->ms->kick;
			if (finished)
				co->ms->wanted = false;
			LWLockRelease(ResyncShmem->lock);
			if (finished)
				proc_exit(0);
			nap = 0;
		}
		if (nap > 0)
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, nap,
							 RESYNC_WAIT_EVENT("CoordinatorMain"));
	}
}
