/*
 * launcher.c
 *		The launcher: one per server, connected to no database.  Probes each
 *		database once for mirrors, keeps a coordinator for every active mirror,
 *		backs off when one fails, and has slots without an owner removed.
 *
 * It starts when recovery is over, so on a standby it begins at promotion.  It
 * never talks to a destination, and sleeps on its latch: the API wakes it at
 * commit, workers wake it when they end.
 *
 * The probe, a short worker in one database, tells the launcher which mirrors
 * there are, and drops slots of that database that no run claims.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/worker.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/catalog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "net/retry.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define RECHECK_INTERVAL_MS 60000
#define START_TIMEOUT_MS 10000
#define SLOT_CHECK_MS 10000
#define PRUNE_INTERVAL_MS 3600000
#define WARN_RETAINED (INT64CONST(1024) * 1024 * 1024)

/* Coordinators that this launcher started and that have not reported yet. */
typedef struct Starting
{
	MirrorShared		   *ms;
	BackgroundWorkerHandle *handle;
} Starting;

static Starting				  *starting; /* resync_max_mirrors entries */
static Oid					   probing = InvalidOid;
static BackgroundWorkerHandle *probe_handle = NULL;

void
resync_launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "resync", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "resync_launcher_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "resync launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "resync launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

static void
launcher_exit(int code, Datum arg)
{
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ResyncShmem->launcher_pid = 0;
	ResyncShmem->launcher_pgprocno = -1;
	LWLockRelease(ResyncShmem->lock);
}

/*
 * Databases that accept connections are to be probed: this one, or with
 * InvalidOid every one.
 */
static void
probe_databases(Oid database)
{
	Relation	  rel;
	TableScanDesc scan;
	HeapTuple	  tup;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tup = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database db = (Form_pg_database) GETSTRUCT(tup);
		DatabaseShared	*ds;

		if (!db->datallowconn || (OidIsValid(database) && db->oid != database))
			continue;
		LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
		ds = resync_shmem_database(db->oid, true);
		if (ds != NULL)
			ds->probe = true;
		LWLockRelease(ResyncShmem->lock);
		if (ds == NULL)
			elog(LOG, "resync knows %d databases and cannot watch more of them",
				 RESYNC_MAX_DATABASES);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
}

/* The caller holds ResyncShmem->lock. */
static void
probe_database(Oid database)
{
	DatabaseShared *ds = resync_shmem_database(database, true);

	if (ds != NULL)
		ds->probe = true;
}

/*
 * Databases where something of ours lives are looked at again: a wake may be
 * lost (a crash between commit and latch), a slot may be left.
 */
static void
recheck_databases(void)
{
	int			nslots;
	WorkerSlot *slots = resync_worker_slots(InvalidOid, &nslots);

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < nslots; i++)
		probe_database(slots[i].database);
	for (int i = 0; i < resync_max_mirrors; i++)
	{
		MirrorShared *ms = &ResyncShmem->mirrors[i];

		if (ms->in_use && ms->wanted)
			probe_database(ms->database);
	}
	LWLockRelease(ResyncShmem->lock);
	pfree(slots);
}

/* So much of what resync.max_wal_retained allows that a warning may be due? */
static bool
holds_too_much(XLogRecPtr restart_lsn)
{
	XLogRecPtr now = GetXLogWriteRecPtr();

	return resync_max_wal_retained > 0 && now > restart_lsn &&
		   now - restart_lsn > (uint64) resync_max_wal_retained * 1024 * 1024 / 4;
}

/*
 * A slot that was invalidated while nobody uses it: the probe has its mirror
 * told.
 */
static void
watch_slots(void)
{
	static TimestampTz looked_at = 0;
	int				   nslots;
	WorkerSlot		  *slots;

	/* not at every wake: what it starts wakes us */
	if (!TimestampDifferenceExceeds(looked_at, GetCurrentTimestamp(), SLOT_CHECK_MS / 2))
		return;
	looked_at = GetCurrentTimestamp();
	slots = resync_worker_slots(InvalidOid, &nslots);
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < nslots; i++)
	{
		if (!slots[i].active &&
			(XLogRecPtrIsInvalid(slots[i].restart_lsn) || holds_too_much(slots[i].restart_lsn)))
			probe_database(slots[i].database);
	}
	LWLockRelease(ResyncShmem->lock);
	pfree(slots);
}

/*
 * The probe is gone.  If it did not reach its end, nobody knows yet what is to
 * run in its database: it is looked at again, unless it was dropped.
 */
static void
probe_ended(void)
{
	DatabaseShared *ds;
	bool			again = false;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ds = resync_shmem_database(probing, false);
	if (ds != NULL && ds->probing)
	{
		ds->probing = false;
		ds->probe_failures++;
		ds->probe_not_before = TimestampTzPlusMilliseconds(
			GetCurrentTimestamp(), resync_retry_delay(0, ds->probe_failures));
		again = true;
	}
	LWLockRelease(ResyncShmem->lock);
	if (again)
		probe_databases(probing);
	pfree(probe_handle);
	probe_handle = NULL;
	probing = InvalidOid;
}

/* One probe at a time.  Returns ms until it should be called again, or -1. */
static long
run_probes(void)
{
	WorkerArgs	args;
	pid_t		pid;
	TimestampTz now;
	long		nap = -1;

	if (probe_handle != NULL)
	{
		if (GetBackgroundWorkerPid(probe_handle, &pid) != BGWH_STOPPED)
			return -1;
		probe_ended();
	}
	now = GetCurrentTimestamp();
	memset(&args, 0, sizeof(args));
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < RESYNC_MAX_DATABASES; i++)
	{
		DatabaseShared *ds = &ResyncShmem->databases[i];

		if (!ds->in_use || !ds->probe || ds->blockers > 0)
			continue;
		if (ds->probe_not_before > now)
		{
			long wait = TimestampDifferenceMilliseconds(now, ds->probe_not_before) + 1;

			nap = nap < 0 ? wait : Min(nap, wait);
			continue;
		}
		args.database = ds->database;
		ds->probe = false;
		ds->probing = true;
		break;
	}
	LWLockRelease(ResyncShmem->lock);
	if (!OidIsValid(args.database))
		return nap;
	probe_handle = resync_worker_start("resync_probe_main", "probe", &args);
	if (probe_handle != NULL)
	{
		probing = args.database;
		return -1;
	}
	/* no worker slot is free: later */
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	{
		DatabaseShared *ds = resync_shmem_database(args.database, false);

		if (ds != NULL)
		{
			ds->probe = true;
			ds->probing = false;
		}
	}
	LWLockRelease(ResyncShmem->lock);
	return 1000;
}

/* A coordinator that was started: has it reported, or failed to? */
static void
check_starting(MirrorShared *ms, int i)
{
	pid_t pid;
	bool  failed;

	if (!ms->starting)
		return;
	if (ms->pid != 0)
		failed = false;
	else if (starting[i].handle != NULL)
	{
		if (GetBackgroundWorkerPid(starting[i].handle, &pid) != BGWH_STOPPED)
			return;
		failed = true;
	}
	else
	{
		/* started by an earlier launcher */
		if (!TimestampDifferenceExceeds(ms->started_at, GetCurrentTimestamp(), START_TIMEOUT_MS))
			return;
		failed = true;
	}
	if (starting[i].handle != NULL)
		pfree(starting[i].handle);
	starting[i].handle = NULL;
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ms->starting = false;
	if (failed && ms->pid == 0 && ms->wanted && ms->not_before <= GetCurrentTimestamp())
	{
		ms->failures++;
		ms->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													 resync_retry_delay(0, ms->failures));
	}
	LWLockRelease(ResyncShmem->lock);
}

/* Start what is wanted and missing.  Returns ms until the next one is due. */
static long
run_coordinators(void)
{
	long nap = -1;

	for (int i = 0; i < resync_max_mirrors; i++)
	{
		MirrorShared   *ms = &ResyncShmem->mirrors[i];
		WorkerArgs		args;
		DatabaseShared *ds;
		TimestampTz		now = GetCurrentTimestamp();
		long			wait = 0;

		if (!ms->in_use)
			continue;
		check_starting(ms, i);

		memset(&args, 0, sizeof(args));
		LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
		ds = resync_shmem_database(ms->database, false);
		if (resync_enabled && ms->wanted && ms->pid == 0 && !ms->starting &&
			!(ds != NULL && ds->blockers > 0))
		{
			if (ms->not_before <= now)
			{
				args.database = ms->database;
				args.mirror = ms->mirror;
				ms->starting = true;
				ms->started_at = now;
			}
			else
				wait = TimestampDifferenceMilliseconds(now, ms->not_before) + 1;
		}
		LWLockRelease(ResyncShmem->lock);
		if (args.mirror != 0)
		{
			starting[i].ms = ms;
			starting[i].handle = resync_worker_start("resync_coordinator_main", "coordinator",
													 &args);
			if (starting[i].handle == NULL)
			{
				ereport(LOG,
						(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						 errmsg("no background worker is free for mirror " INT64_FORMAT
								" of database %u",
								args.mirror, args.database),
						 errhint("You might need to increase \"%s\".", "max_worker_processes")));
				LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
				ms->starting = false;
				ms->failures++;
				ms->not_before = TimestampTzPlusMilliseconds(now,
															 resync_retry_delay(0, ms->failures));
				LWLockRelease(ResyncShmem->lock);
				wait = resync_retry_delay(0, ms->failures);
			}
			else
				wait = START_TIMEOUT_MS;
		}
		if (wait > 0 && (nap < 0 || wait < nap))
			nap = wait;
	}
	return nap;
}

/*
 * DROP EXTENSION was committed: once the workers are gone, its slots go.  The
 * launcher may drop a slot of any database.
 */
static long
drop_slots_of_dropped(void)
{
	long nap = -1;

	for (int i = 0; i < RESYNC_MAX_DATABASES; i++)
	{
		DatabaseShared *ds = &ResyncShmem->databases[i];

		if (!ds->in_use || !ds->dropped_extension)
			continue;
		if (resync_shmem_signal_workers(ds->database, SIGTERM) > 0)
		{
			nap = 100;
			continue;
		}
		/* the probe looks whether the extension is really gone, and drops */
		LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
		ds->dropped_extension = false;
		ds->probe = true;
		for (int j = 0; j < resync_max_mirrors; j++)
		{
			if (ResyncShmem->mirrors[j].in_use && ResyncShmem->mirrors[j].database == ds->database)
				ResyncShmem->mirrors[j].wanted = false;
		}
		LWLockRelease(ResyncShmem->lock);
	}
	return nap;
}

/*
 * resync.enabled = off: everything goes, and comes back with it.  That it went
 * is no failure, so nothing is waited for then.
 */
static void
stop_all(void)
{
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < resync_max_mirrors; i++)
	{
		MirrorShared *ms = &ResyncShmem->mirrors[i];

		if (!ms->in_use)
			continue;
		if (ms->pid != 0)
			kill(ms->pid, SIGTERM);
		ms->failures = 0;
		ms->not_before = 0;
	}
	LWLockRelease(ResyncShmem->lock);
}

void
resync_launcher_main(Datum arg)
{
	TimestampTz next_check;

	resync_worker_signals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	starting = MemoryContextAllocZero(TopMemoryContext, resync_max_mirrors * sizeof(Starting));
	before_shmem_exit(launcher_exit, 0);
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ResyncShmem->launcher_pid = MyProcPid;
	ResyncShmem->launcher_pgprocno = RESYNC_MY_PROC_NUMBER;
	LWLockRelease(ResyncShmem->lock);

	probe_databases(InvalidOid);
	next_check = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), RECHECK_INTERVAL_MS);
	pgstat_report_activity(STATE_IDLE, NULL);

	for (;;)
	{
		long nap = SLOT_CHECK_MS;
		long n;

		ResetLatch(MyLatch);
		resync_worker_interrupts();
		if (GetCurrentTimestamp() >= next_check)
		{
			recheck_databases();
			next_check = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), RECHECK_INTERVAL_MS);
		}
		watch_slots();
		if (!resync_enabled)
			stop_all();
		if ((n = drop_slots_of_dropped()) >= 0)
			nap = Min(nap, n);
		if ((n = run_probes()) >= 0)
			nap = Min(nap, n);
		if ((n = run_coordinators()) >= 0)
			nap = Min(nap, n);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, nap,
						 RESYNC_WAIT_EVENT("LauncherMain"));
	}
}

/* ---- the probe ---- */

/* The end is reached: the launcher need not look again. */
static void
note_probed(void)
{
	DatabaseShared *ds;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ds = resync_shmem_database(MyDatabaseId, false);
	if (ds != NULL)
	{
		ds->probing = false;
		ds->probe_failures = 0;
		ds->probe_not_before = 0;
	}
	LWLockRelease(ResyncShmem->lock);
}

/*
 * Drop slots of this database that no run claims.  With have_extension false
 * none is claimed.
 */
static void
drop_orphaned_slots(bool have_extension)
{
	int			nslots;
	WorkerSlot *slots = resync_worker_slots(MyDatabaseId, &nslots);

	for (int i = 0; i < nslots; i++)
	{
		bool claimed = false;

		if (slots[i].active)
			continue;
		if (have_extension)
		{
			RunRow *r;

			resync_catalog_begin();
			r = resync_catalog_run(slots[i].run);
			claimed = (r != NULL && r->phase != PHASE_ENDED);
			resync_catalog_commit();
		}
		if (!claimed && resync_worker_drop_slot(slots[i].name, NULL))
			ereport(LOG, (errmsg("dropped replication slot \"%s\", which belongs to no run",
								 slots[i].name)));
	}
}

/*
 * Mirrors at rest (paused, failed).  Where the slot is lost, gone, or holds
 * more WAL than resync.max_wal_retained, a coordinator is to leave the mirror
 * failed with the reason.  Else its WAL is worth a warning each time that it
 * has doubled.
 */
static void
watch_resting(void)
{
	int64		 *ids;
	int64		 *runs;
	char		**names;
	int64		 *warned;
	int			  n;
	MemoryContext context = CurrentMemoryContext;

	resync_catalog_begin();
	n = (int) resync_catalog_exec("SELECT m.id, r.run, m.name, coalesce(r.wal_warned, 0)"
								  " FROM peerdb._mirror m"
								  " JOIN peerdb._run r ON r.run IN (m.live_run, m.newest_run)"
								  " WHERE r.slot_name IS NOT NULL AND r.phase IN ('create_tables',"
								  " 'load', 'catch_up', 'swap', 'stream')"
								  " AND m.status IN ('paused', 'failed')"
								  " AND NOT peerdb._is_copy(m.system_identifier, m.database_oid,"
								  " m.instance)",
								  SPI_OK_SELECT, 0);
	ids = MemoryContextAlloc(context, (n + 1) * sizeof(int64));
	runs = MemoryContextAlloc(context, (n + 1) * sizeof(int64));
	warned = MemoryContextAlloc(context, (n + 1) * sizeof(int64));
	names = MemoryContextAlloc(context, (n + 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool	  isnull;

		ids[i] = DatumGetInt64(SPI_getbinval(tup, desc, 1, &isnull));
		runs[i] = DatumGetInt64(SPI_getbinval(tup, desc, 2, &isnull));
		names[i] = MemoryContextStrdup(context, SPI_getvalue(tup, desc, 3));
		warned[i] = DatumGetInt64(SPI_getbinval(tup, desc, 4, &isnull));
	}
	resync_catalog_finish();
	resync_catalog_commit();
	MemoryContextSwitchTo(context);

	for (int i = 0; i < n; i++)
	{
		char  slot[NAMEDATALEN];
		int64 retained;
		int64 limit = (int64) resync_max_wal_retained * 1024 * 1024;

		resync_worker_slot_name(slot, MyDatabaseId, runs[i]);
		retained = resync_worker_slot_retained(slot);
		if (retained < 0 || (limit > 0 && retained > limit))
		{
			(void) resync_shmem_want_mirror(MyDatabaseId, ids[i], false);
			continue;
		}
		if (retained < Max(2 * warned[i], limit > 0 ? limit / 4 : WARN_RETAINED))
			continue;
		ereport(
			WARNING,
			(errmsg(
				 "mirror \"%s\" does not run, and its replication slot \"%s\" holds back " INT64_FORMAT
				 " MB of WAL",
				 names[i], slot, retained / (1024 * 1024)),
			 errhint("Resume, resync or drop the mirror.")));
		resync_catalog_begin();
		resync_catalog_log(ids[i], runs[i], "warning", NULL, 0,
						   psprintf("the slot holds back " INT64_FORMAT
									" MB of WAL while the mirror does not run",
									retained / (1024 * 1024)),
						   NULL);
		resync_catalog_note_warned(runs[i], retained);
		resync_catalog_commit();
	}
}

/*
 * Batches, ended runs and log lines older than resync.log_retention go, once an
 * hour at most: it reads all of them.
 */
static void
prune_history(void)
{
	DatabaseShared *ds;
	TimestampTz		now = GetCurrentTimestamp();
	bool			due = false;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ds = resync_shmem_database(MyDatabaseId, true);
	if (ds != NULL && TimestampDifferenceExceeds(ds->pruned_at, now, PRUNE_INTERVAL_MS))
	{
		ds->pruned_at = now;
		due = true;
	}
	LWLockRelease(ResyncShmem->lock);
	if (!due)
		return;
	resync_catalog_begin();
	resync_catalog_prune();
	resync_catalog_commit();
}

void
resync_probe_main(Datum arg)
{
	WorkerArgs	  args;
	bool		  exists;
	int64		 *mirrors = NULL;
	int			  nmirrors = 0;
	MemoryContext context;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	resync_worker_init(&args, "probe");
	context = AllocSetContextCreate(TopMemoryContext, "resync probe", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);

	resync_catalog_begin();
	exists = resync_catalog_exists();
	if (exists)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		mirrors = resync_catalog_active_mirrors(&nmirrors);
		MemoryContextSwitchTo(old);
	}
	resync_catalog_commit();
	MemoryContextSwitchTo(context);

	for (int i = 0; i < nmirrors; i++)
		(void) resync_shmem_want_mirror(MyDatabaseId, mirrors[i], false);
	if (exists)
	{
		watch_resting();
		prune_history();
	}
	drop_orphaned_slots(exists);
	note_probed();
	proc_exit(0);
}
