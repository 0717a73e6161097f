/*
 * shmem.c
 *		The shared memory of shmem.h: layout, look-ups, wake-ups.
 *
 * Called in every process of ours and in user backends.  ResyncShmem->lock is
 * taken here unless a function's header says otherwise.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/shmem.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

ResyncShared *ResyncShmem = NULL;

/* What this backend's transaction will tell at its commit. */
static List *pending_mirrors = NIL; /* of int64 *, TopTransactionContext */
static bool	 pending_extension_drop = false;
static bool	 xact_callback_registered = false;

static Size
shmem_size(void)
{
	Size size = MAXALIGN(sizeof(ResyncShared));

	size = add_size(size, mul_size(resync_max_mirrors, MAXALIGN(sizeof(MirrorShared))));
	size = add_size(size, mul_size(2 * resync_max_mirrors, MAXALIGN(sizeof(RunShared))));
	return size;
}

void
resync_shmem_request(void)
{
	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche("resync", 1);
}

void
resync_shmem_startup(void)
{
	static uint32 starts = 0; /* the postmaster's; it outlives the memory */
	bool		  found;
	char		 *p;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	ResyncShmem = ShmemInitStruct("resync", shmem_size(), &found);
	if (!found)
	{
		memset(ResyncShmem, 0, shmem_size());
		ResyncShmem->lock = &(GetNamedLWLockTranche("resync"))->lock;
		ResyncShmem->launcher_pgprocno = -1;
		ResyncShmem->next_generation = 1;
		ResyncShmem->crash_epoch = starts++;
		ResyncShmem->max_runs = 2 * resync_max_mirrors;
		p = (char *) ResyncShmem + MAXALIGN(sizeof(ResyncShared));
		ResyncShmem->mirrors = (MirrorShared *) p;
		p += resync_max_mirrors * MAXALIGN(sizeof(MirrorShared));
		ResyncShmem->runs = (RunShared *) p;
		for (int i = 0; i < resync_max_mirrors; i++)
			ResyncShmem->mirrors[i].pgprocno = -1;
	}
	LWLockRelease(AddinShmemInitLock);
}

void
resync_shmem_wake(int pgprocno)
{
	if (pgprocno >= 0 && pgprocno < ProcGlobal->allProcCount)
		SetLatch(&ProcGlobal->allProcs[pgprocno].procLatch);
}

/* Caller holds the lock, or is a process of this run. */
RunShared *
resync_shmem_find_run(Oid database, int64 run)
{
	for (int i = 0; i < ResyncShmem->max_runs; i++)
	{
		RunShared *rs = &ResyncShmem->runs[i];

		if (rs->in_use && rs->database == database && rs->run == run)
			return rs;
	}
	return NULL;
}

static bool
has_children(const RunShared *rs)
{
	if (rs->streamer_pid != 0)
		return true;
	for (int i = 0; i < RESYNC_MAX_COPIERS; i++)
	{
		if (rs->copiers[i].pid != 0)
			return true;
	}
	return false;
}

/* Caller holds the lock exclusively: frees an entry that nobody has any more. */
void
resync_shmem_child_gone(RunShared *rs)
{
	if (rs->coordinator_pid == 0 && !has_children(rs))
		rs->in_use = false;
}

/*
 * The coordinator takes an entry for a run, empty but for what identifies it.
 * Raises when all are taken.
 */
RunShared *
resync_shmem_claim_run(Oid database, int64 mirror, int64 run, Oid owner)
{
	RunShared *rs;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	rs = resync_shmem_find_run(database, run);
	if (rs != NULL && has_children(rs))
	{
		LWLockRelease(ResyncShmem->lock);
		ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
						errmsg("processes of an earlier coordinator of run " INT64_FORMAT
							   " have not ended yet",
							   run)));
	}
	for (int i = 0; rs == NULL && i < ResyncShmem->max_runs; i++)
	{
		if (!ResyncShmem->runs[i].in_use)
			rs = &ResyncShmem->runs[i];
	}
	if (rs == NULL)
	{
		LWLockRelease(ResyncShmem->lock);
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED), errmsg("too many active mirrors"),
				 errhint("Increase \"%s\" and restart the server.", "resync.max_mirrors")));
	}
	memset(rs, 0, sizeof(RunShared));
	rs->database = database;
	rs->mirror = mirror;
	rs->run = run;
	rs->owner = owner;
	rs->generation = ResyncShmem->next_generation++;
	rs->coordinator_pid = MyProcPid;
	rs->coordinator_pgprocno = RESYNC_MY_PROC_NUMBER;
	rs->streamer_pgprocno = -1;
	pg_atomic_init_u64(&rs->applied_lsn, 0);
	pg_atomic_init_u64(&rs->received_lsn, 0);
	pg_atomic_init_u64(&rs->rows_synced, 0);
	pg_atomic_init_u64(&rs->oldest_pending, 0);
	pg_atomic_init_u64(&rs->flush_request, 0);
	pg_atomic_init_u64(&rs->advance_request, 0);
	pg_atomic_init_u64(&rs->max_batch_size, 0);
	pg_atomic_init_u64(&rs->sync_interval_ms, 0);
	for (int i = 0; i < RESYNC_MAX_COPIERS; i++)
	{
		rs->copiers[i].pgprocno = -1;
		pg_atomic_init_u64(&rs->copiers[i].rows, 0);
		pg_atomic_init_u64(&rs->copiers[i].bytes, 0);
	}
	rs->in_use = true;
	LWLockRelease(ResyncShmem->lock);
	return rs;
}

/*
 * The coordinator lets go of the entry.  It is free when the run's processes are
 * gone, too: they still write into it until then.  Caller holds no lock.
 */
void
resync_shmem_release_run(RunShared *rs)
{
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	rs->generation = 0;
	rs->coordinator_pid = 0;
	rs->coordinator_pgprocno = -1;
	resync_shmem_child_gone(rs);
	LWLockRelease(ResyncShmem->lock);
}

/* Caller holds the lock exclusively.  NULL: no entry is free. */
static MirrorShared *
find_or_make_mirror(Oid database, int64 mirror)
{
	MirrorShared *unused = NULL;

	for (int i = 0; i < resync_max_mirrors; i++)
	{
		MirrorShared *ms = &ResyncShmem->mirrors[i];

		if (ms->in_use && ms->database == database && ms->mirror == mirror)
			return ms;
		if (unused == NULL && (!ms->in_use || (!ms->wanted && ms->pid == 0 && !ms->starting)))
			unused = ms;
	}
	if (unused != NULL)
	{
		memset(unused, 0, sizeof(MirrorShared));
		unused->in_use = true;
		unused->database = database;
		unused->mirror = mirror;
		unused->pgprocno = -1;
	}
	return unused;
}

/*
 * A coordinator is wanted for a mirror of the given database: take note, and
 * wake launcher and coordinator.  forget_failures: start at once, whatever
 * back-off is on.  False: no entry was free.
 */
bool
resync_shmem_want_mirror(Oid database, int64 mirror, bool forget_failures)
{
	MirrorShared *ms;
	int			  launcher;
	int			  coordinator = -1;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ms = find_or_make_mirror(database, mirror);
	if (ms != NULL)
	{
		ms->wanted = true;
		if (forget_failures)
		{
			ms->kick = true;
			ms->failures = 0;
			ms->not_before = 0;
			coordinator = ms->pgprocno;
		}
	}
	launcher = ResyncShmem->launcher_pgprocno;
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(coordinator);
	resync_shmem_wake(launcher);
	return ms != NULL;
}

/*
 * Caller holds the lock exclusively.  The entry of a database, made if there
 * is room; else NULL.
 */
DatabaseShared *
resync_shmem_database(Oid database, bool make)
{
	DatabaseShared *unused = NULL;

	for (int i = 0; i < RESYNC_MAX_DATABASES; i++)
	{
		DatabaseShared *ds = &ResyncShmem->databases[i];

		if (ds->in_use && ds->database == database)
			return ds;
		if (!ds->in_use && unused == NULL)
			unused = ds;
	}
	if (!make || unused == NULL)
		return NULL;
	memset(unused, 0, sizeof(DatabaseShared));
	unused->in_use = true;
	unused->database = database;
	return unused;
}

static void
at_xact_end(XactEvent event, void *arg)
{
	ListCell *lc;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
		return;
	if (event == XACT_EVENT_COMMIT)
	{
		foreach(lc, pending_mirrors)
		{
			if (!resync_shmem_want_mirror(MyDatabaseId, *(int64 *) lfirst(lc), true))
				elog(WARNING, "no room for mirror " INT64_FORMAT " in resync.max_mirrors",
					 *(int64 *) lfirst(lc));
		}
		if (pending_extension_drop)
			resync_shmem_probe_database(MyDatabaseId, true);
	}
	pending_mirrors = NIL;
	pending_extension_drop = false;
}

static void
register_xact_callback(void)
{
	if (!xact_callback_registered)
	{
		RegisterXactCallback(at_xact_end, NULL);
		xact_callback_registered = true;
	}
}

void
resync_shmem_wake_at_commit(int64 mirror)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	int64		 *p = palloc(sizeof(int64));

	*p = mirror;
	pending_mirrors = lappend(pending_mirrors, p);
	MemoryContextSwitchTo(old);
	register_xact_callback();
}

void
resync_shmem_extension_drop_at_commit(void)
{
	pending_extension_drop = true;
	register_xact_callback();
}

/*
 * Have the launcher look into a database.  stop: its workers are to end first,
 * since the extension went away there.
 */
void
resync_shmem_probe_database(Oid database, bool stop)
{
	DatabaseShared *ds;
	int				launcher;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ds = resync_shmem_database(database, true);
	if (ds != NULL)
	{
		ds->probe = true;
		if (stop)
			ds->dropped_extension = true;
	}
	launcher = ResyncShmem->launcher_pgprocno;
	LWLockRelease(ResyncShmem->lock);
	if (stop)
		resync_shmem_signal_workers(database, SIGTERM);
	resync_shmem_wake(launcher);
}

/* Signal every worker of ours in a database; returns how many there were. */
int
resync_shmem_signal_workers(Oid database, int signal)
{
	int n = 0;

	LWLockAcquire(ResyncShmem->lock, LW_SHARED);
	for (int i = 0; i < resync_max_mirrors; i++)
	{
		MirrorShared *ms = &ResyncShmem->mirrors[i];

		if (ms->in_use && ms->database == database && ms->pid != 0)
		{
			n++;
			if (signal)
				kill(ms->pid, signal);
		}
		else if (ms->in_use && ms->database == database && ms->starting)
			n++;
	}
	for (int i = 0; i < ResyncShmem->max_runs; i++)
	{
		RunShared *rs = &ResyncShmem->runs[i];

		if (!rs->in_use || rs->database != database)
			continue;
		if (rs->streamer_pid != 0)
		{
			n++;
			if (signal)
				kill(rs->streamer_pid, signal);
		}
		for (int j = 0; j < RESYNC_MAX_COPIERS; j++)
		{
			if (rs->copiers[j].pid == 0)
				continue;
			n++;
			if (signal)
				kill(rs->copiers[j].pid, signal);
		}
	}
	LWLockRelease(ResyncShmem->lock);
	return n;
}

bool
resync_shmem_progress(int64 run, RunProgress *progress)
{
	RunShared *rs;

	memset(progress, 0, sizeof(RunProgress));
	if (ResyncShmem == NULL)
		return false;
	LWLockAcquire(ResyncShmem->lock, LW_SHARED);
	rs = resync_shmem_find_run(MyDatabaseId, run);
	if (rs != NULL)
	{
		progress->streamer = rs->streamer;
		progress->streamer_pid = rs->streamer_pid;
		for (int i = 0; i < rs->ncopiers; i++)
		{
			CopierShared *cs = &rs->copiers[i];

			if (cs->state != COPIER_WORKING && cs->state != COPIER_DONE)
				continue;
			progress->copiers++;
			progress->rows_loading += pg_atomic_read_u64(&cs->rows);
			progress->bytes_loading += pg_atomic_read_u64(&cs->bytes);
		}
		progress->applied_lsn = pg_atomic_read_u64(&rs->applied_lsn);
		progress->received_lsn = pg_atomic_read_u64(&rs->received_lsn);
		progress->rows_synced = pg_atomic_read_u64(&rs->rows_synced);
		progress->oldest_pending = (TimestampTz) pg_atomic_read_u64(&rs->oldest_pending);
		progress->waits_for_pid = rs->waits_for_pid;
		strlcpy(progress->waits_for, rs->waits_for, sizeof(progress->waits_for));
	}
	LWLockRelease(ResyncShmem->lock);
	return rs != NULL;
}

bool
resync_shmem_partition_progress(int64 run, int64 partition, int64 *rows, int64 *bytes)
{
	RunShared *rs;
	bool	   found = false;

	if (ResyncShmem == NULL)
		return false;
	LWLockAcquire(ResyncShmem->lock, LW_SHARED);
	rs = resync_shmem_find_run(MyDatabaseId, run);
	for (int i = 0; rs != NULL && i < rs->ncopiers; i++)
	{
		CopierShared *cs = &rs->copiers[i];

		if ((cs->state == COPIER_WORKING || cs->state == COPIER_DONE) && cs->partition == partition)
		{
			*rows = pg_atomic_read_u64(&cs->rows);
			*bytes = pg_atomic_read_u64(&cs->bytes);
			found = true;
			break;
		}
	}
	LWLockRelease(ResyncShmem->lock);
	return found;
}

void
resync_shmem_request_flush(int64 run, XLogRecPtr lsn)
{
	RunShared *rs;
	int		   streamer = -1;

	if (ResyncShmem == NULL)
		return;
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	rs = resync_shmem_find_run(MyDatabaseId, run);
	if (rs != NULL)
	{
		if (pg_atomic_read_u64(&rs->flush_request) < lsn)
			pg_atomic_write_u64(&rs->flush_request, lsn);
		streamer = rs->streamer_pgprocno;
	}
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(streamer);
}
