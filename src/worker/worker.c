/*
 * worker.c
 *		What every background worker of ours does the same way: start with
 *		pinned settings, read its run from the catalog, report its error, deal
 *		with slots by name.
 *
 * A role or a database may have set anything (ALTER ROLE ... SET); a worker
 * overrides whatever would change its results or stop it.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/worker.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/catalog.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/* Set for every worker, whatever role and database say. */
static const char *const pinned_settings[][2] = {
	{"search_path", "pg_catalog"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	RESYNC_PINNED_SINCE_17{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"DateStyle", "ISO, MDY"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"bytea_output", "hex"},
	{"extra_float_digits", "1"},
	{"xmlbinary", "base64"},
	{"xmloption", "content"},
	{"lc_monetary", "C"},
	{"lc_numeric", "C"},
	{"lc_time", "C"},
	{"quote_all_identifiers", "off"},
	{"row_security", "off"},
	{"synchronous_commit", "local"},
	{"temp_file_limit", "-1"},
	{"default_tablespace", ""},
	{"temp_tablespaces", ""},
	{"jit", "off"},
};

BackgroundWorkerHandle *
resync_worker_start(const char *function, const char *role, const WorkerArgs *args)
{
	BackgroundWorker		worker;
	BackgroundWorkerHandle *handle = NULL;
	MemoryContext			old;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "resync", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, function, sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_type, sizeof(worker.bgw_type), "resync %s", role);
	if (args->run != 0)
		snprintf(worker.bgw_name, sizeof(worker.bgw_name), "resync %s for run " INT64_FORMAT, role,
				 args->run);
	else
		snprintf(worker.bgw_name, sizeof(worker.bgw_name), "resync %s for database %u", role,
				 args->database);
	memcpy(worker.bgw_extra, args, sizeof(WorkerArgs));

	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		handle = NULL;
	MemoryContextSwitchTo(old);
	return handle;
}

/* ---- marks: who crashed? ---- */

/*
 * A crash restarts the whole server, and takes everybody's shared memory with
 * it.  So that a mirror is blamed only for what its own workers did, each worker
 * keeps an empty file in pg_stat_tmp while it lives; it goes when the process
 * exits, and also when the postmaster has it quit because another one crashed
 * (SIGQUIT).  What is left after a crash belongs to who crashed.
 */
static char mark_path[MAXPGPATH];

#define MARK_DIRECTORY "pg_stat_tmp"

static void
mark_prefix(char *buf, Size size, Oid database, int64 mirror)
{
	snprintf(buf, size, "resync_%u_" INT64_FORMAT ".", database, mirror);
}

static void
remove_mark(int code, Datum arg)
{
	(void) unlink(mark_path);
}

/* Another process crashed, not this one.  Only what a signal handler may do. */
static void
quit_by_crash_of_another(SIGNAL_ARGS)
{
	(void) unlink(mark_path);
	_exit(2);
}

static void
make_mark(Oid database, int64 mirror)
{
	char prefix[NAMEDATALEN];
	int	 fd;

	mark_prefix(prefix, sizeof(prefix), database, mirror);
	snprintf(mark_path, sizeof(mark_path), "%s/%s%d", MARK_DIRECTORY, prefix, MyProcPid);
	fd = BasicOpenFile(mark_path, O_CREAT | O_WRONLY | O_TRUNC | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not create file \"%s\": %m", mark_path)));
	close(fd);
	on_proc_exit(remove_mark, 0);
	pqsignal(SIGQUIT, quit_by_crash_of_another);
}

/*
 * Has a worker of the mirror died without either?  To be asked after a crash
 * restart, before the mirror has workers but the calling one; forgets it.
 */
bool
resync_worker_crashed(Oid database, int64 mirror)
{
	DIR			  *dir = AllocateDir(MARK_DIRECTORY);
	struct dirent *de;
	char		   prefix[NAMEDATALEN];
	char		   path[MAXPGPATH];
	bool		   found = false;

	mark_prefix(prefix, sizeof(prefix), database, mirror);
	while ((de = ReadDirExtended(dir, MARK_DIRECTORY, LOG)) != NULL)
	{
		snprintf(path, sizeof(path), "%s/%s", MARK_DIRECTORY, de->d_name);
		if (strncmp(de->d_name, prefix, strlen(prefix)) != 0 || strcmp(path, mark_path) == 0)
			continue;
		found = true;
		(void) unlink(path);
	}
	FreeDir(dir);
	return found;
}

void
resync_worker_signals(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);

	/*
	 * The postmaster's settings may be older than its last SIGHUP, which a
	 * worker that was being forked did not see.
	 */
	ConfigReloadPending = true;
	BackgroundWorkerUnblockSignals();
}

void
resync_worker_init(const WorkerArgs *args, const char *role)
{
	char name[64];

	if (args->mirror != 0)
		make_mark(args->database, args->mirror);
	resync_worker_signals();

	BackgroundWorkerInitializeConnectionByOid(args->database, InvalidOid, 0);
	for (int i = 0; i < lengthof(pinned_settings); i++)
		SetConfigOption(pinned_settings[i][0], pinned_settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);

	/* send and receive functions must not convert */
	SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_SUSET, PGC_S_OVERRIDE);
	snprintf(name, sizeof(name), "resync %s", role);
	SetConfigOption("application_name", name, PGC_SUSET, PGC_S_OVERRIDE);
}

void
resync_worker_interrupts(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * Raises ERRCODE_UNDEFINED_OBJECT when the mirror or the run is gone.
 */
WorkerRun *
resync_worker_load_run(int64 mirror, int64 run)
{
	WorkerRun *wr = palloc0(sizeof(WorkerRun));
	MirrorRow *m;
	RunRow	  *r;

	m = resync_catalog_mirror(mirror);
	r = m ? resync_catalog_run(run) : NULL;
	if (r == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("run " INT64_FORMAT " does not exist", run)));
	wr->owner = m->owner;
	wr->snapshots = r->snapshots;
	wr->options = resync_options_parse(r->options);
	wr->id.mirror = m->name;
	wr->id.token = m->token;
	wr->id.system_identifier = m->system_identifier;
	wr->id.database = m->database;
	wr->id.run = run;
	wr->id.options = wr->options;
	wr->peer = resync_catalog_peer(m->server, m->owner);
	wr->routine = resync_destination_require(wr->peer->wrapper);
	wr->slot_name = palloc(NAMEDATALEN);
	resync_worker_slot_name(wr->slot_name, m->database, run);
	wr->tables = resync_catalog_run_tables(run, &wr->ntables);
	return wr;
}

void
resync_worker_report_error(ResyncErrorReport *report, const ErrorData *edata)
{
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	report->set = true;
	report->sqlerrcode = edata->sqlerrcode;
	strlcpy(report->message, edata->message ? edata->message : "", sizeof(report->message));
	strlcpy(report->detail, edata->detail ? edata->detail : "", sizeof(report->detail));
	strlcpy(report->hint, edata->hint ? edata->hint : "", sizeof(report->hint));
	strlcpy(report->schema, edata->schema_name ? edata->schema_name : "", NAMEDATALEN);
	strlcpy(report->table, edata->table_name ? edata->table_name : "", NAMEDATALEN);
	LWLockRelease(ResyncShmem->lock);
}

void
resync_worker_activity(const char *fmt, ...)
{
	char	buf[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(buf, sizeof(buf), fmt, args);
	va_end(args);
	pgstat_report_activity(STATE_RUNNING, buf);
}

/*
 * For the rest of the process's life.  Catalog access of ours is over then:
 * the owner has no rights there.
 */
void
resync_worker_become(Oid owner)
{
	Assert(!IsTransactionState());
	/* a security context cannot be set outside a transaction */
	SetUserIdAndSecContext(owner, 0);
}

/* ---- slots ---- */

void
resync_worker_slot_name(char *buf, Oid database, int64 run)
{
	snprintf(buf, NAMEDATALEN, "resync_%u_" INT64_FORMAT, database, run);
}

bool
resync_worker_parse_slot_name(const char *name, Oid *database, int64 *run)
{
	char		 check[NAMEDATALEN];
	unsigned int db;
	long long	 r;

	if (sscanf(name, "resync_%u_%lld", &db, &r) != 2)
		return false;
	*database = (Oid) db;
	*run = (int64) r;
	resync_worker_slot_name(check, *database, *run);
	return strcmp(check, name) == 0;
}

WorkerSlot *
resync_worker_slots(Oid database, int *nslots)
{
	WorkerSlot *slots = palloc(Max(max_replication_slots, 1) * sizeof(WorkerSlot));
	int			n = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];
		WorkerSlot		*found = &slots[n];

		if (!slot->in_use || (OidIsValid(database) && slot->data.database != database) ||
			!resync_worker_parse_slot_name(NameStr(slot->data.name), &found->database,
										   &found->run) ||
			found->database != slot->data.database)
			continue;
		strlcpy(found->name, NameStr(slot->data.name), NAMEDATALEN);
		SpinLockAcquire(&slot->mutex);
		found->active = (slot->active_pid != 0);
		found->restart_lsn = RESYNC_SLOT_IS_LOST(slot) ? InvalidXLogRecPtr : slot->data.restart_lsn;
		SpinLockRelease(&slot->mutex);
		n++;
	}
	LWLockRelease(ReplicationSlotControlLock);
	*nslots = n;
	return slots;
}

bool
resync_worker_slot_positions(const char *name, XLogRecPtr *restart, XLogRecPtr *confirmed)
{
	ReplicationSlot *slot;

	*restart = InvalidXLogRecPtr;
	*confirmed = InvalidXLogRecPtr;
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	slot = SearchNamedReplicationSlot(name, false);
	if (slot != NULL)
	{
		SpinLockAcquire(&slot->mutex);
		*restart = RESYNC_SLOT_IS_LOST(slot) ? InvalidXLogRecPtr : slot->data.restart_lsn;
		*confirmed = slot->data.confirmed_flush;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(ReplicationSlotControlLock);
	return slot != NULL;
}

int64
resync_worker_slot_retained(const char *name)
{
	XLogRecPtr restart;
	XLogRecPtr confirmed;
	XLogRecPtr now;

	if (!resync_worker_slot_positions(name, &restart, &confirmed) || XLogRecPtrIsInvalid(restart))
		return -1;
	now = GetXLogWriteRecPtr();
	return (int64) (now - Min(restart, now));
}

bool
resync_worker_retains_too_much(const char *name)
{
	return resync_max_wal_retained > 0 &&
		   resync_worker_slot_retained(name) > (int64) resync_max_wal_retained * 1024 * 1024;
}

void
resync_worker_check_retained(const char *name)
{
	if (resync_worker_retains_too_much(name))
		ereport(ERROR,
				(errcode(RESYNC_ERRCODE_NEEDS_RESYNC),
				 errmsg("replication slot \"%s\" holds back more WAL than resync.max_wal_retained",
						name),
				 errdetail("It holds " INT64_FORMAT " MB and is dropped before the disk fills.",
						   resync_worker_slot_retained(name) / (1024 * 1024)),
				 errhint("Run peerdb_resync() to rebuild the mirror.")));
}

/*
 * Outside a transaction or in one; a slot in use is left alone.
 */
bool
resync_worker_drop_slot(const char *name, pid_t *user)
{
	MemoryContext	 context = CurrentMemoryContext;
	ReplicationSlot *slot;
	pid_t			 active = 0;
	volatile bool	 gone;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	slot = SearchNamedReplicationSlot(name, false);
	if (slot != NULL)
	{
		SpinLockAcquire(&slot->mutex);
		active = slot->active_pid;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(ReplicationSlotControlLock);
	if (user != NULL)
		*user = active;
	if (slot == NULL)
		return true;
	if (active != 0)
		return false;

	/*
	 * Somebody may take or drop it in between: both are raised as errors by
	 * core, and the caller tries again later.
	 */
	PG_TRY();
	{
		ReplicationSlotDrop(name, true);
		gone = true;
	}
	PG_CATCH();
	{
		int code = geterrcode();

		if (code != ERRCODE_OBJECT_IN_USE && code != ERRCODE_UNDEFINED_OBJECT)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		gone = (code == ERRCODE_UNDEFINED_OBJECT);
	}
	PG_END_TRY();
	return gone;
}
