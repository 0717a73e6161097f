/*
 * init.c
 *		Library entry: settings, shared memory, hooks, the launcher.
 *
 * Runs in the postmaster when the library is preloaded (the only way in which
 * mirrors can work) and in a user's backend otherwise, where every SQL function
 * then tells what is missing.  Nothing here touches the network.
 */
#include "postgres.h"

#include "resync.h"

#include <limits.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "worker/hooks.h"
#include "worker/shmem.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

bool resync_enabled = true;
int	 resync_copier_buffer = 8192;
int	 resync_batch_memory = 65536;
int	 resync_log_retention = 30 * 24 * 60;
int	 resync_load_rate_limit = 0;
int	 resync_max_snapshot_age = 0;
int	 resync_max_wal_retained = 0;
int	 resync_lock_yield = 1000;
int	 resync_slot_timeout = 0;
int	 resync_swap_lock_timeout = 500;
int	 resync_max_mirrors = 64;

static bool preloaded = false;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

extern void _PG_init(void);

/* True when the library came in through shared_preload_libraries. */
bool
resync_is_preloaded(void)
{
	return preloaded;
}

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	resync_shmem_request();
}

static void
shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	resync_shmem_startup();
}

static void
define_settings(void)
{
	DefineCustomBoolVariable("resync.enabled", "Runs mirrors; off stops all their workers.", NULL,
							 &resync_enabled, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"resync.copier_buffer", "Bytes a copier may hold that the network has not taken yet.", NULL,
		&resync_copier_buffer, 8192, 64, 1024 * 1024, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"resync.batch_memory",
		"Memory of a streamer for changes, before they spill to a temporary file.", NULL,
		&resync_batch_memory, 65536, 64, MAX_KILOBYTES, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("resync.log_retention",
							"How long batches, ended runs and log lines are kept.", NULL,
							&resync_log_retention, 30 * 24 * 60, 1, INT_MAX, PGC_SIGHUP,
							GUC_UNIT_MIN, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"resync.load_rate_limit",
		"Bytes per second that the load of a mirror may send; 0 means no limit.", NULL,
		&resync_load_rate_limit, 0, 0, MAX_KILOBYTES, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("resync.max_snapshot_age",
							"Age at which a load goes on under a fresh snapshot; 0 means never.",
							NULL, &resync_max_snapshot_age, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable(
		"resync.max_wal_retained",
		"WAL held by a slot at which its mirror fails and the slot is dropped; 0 means never.",
		NULL, &resync_max_wal_retained, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"resync.lock_yield",
		"How long another session may wait for a table that is being loaded before it gets the lock.",
		NULL, &resync_lock_yield, 1000, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"resync.slot_timeout",
		"How long a new slot may wait for running transactions; 0 means without limit.", NULL,
		&resync_slot_timeout, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("resync.swap_lock_timeout",
							"How long the swap may wait for a lock at the destination, per try.",
							NULL, &resync_swap_lock_timeout, 500, 1, INT_MAX, PGC_SIGHUP,
							GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("resync.max_mirrors",
							"Mirrors that can be active at a time on this server.", NULL,
							&resync_max_mirrors, 64, 1, 1024, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("resync");
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;

	define_settings();
	preloaded = true;

	/* pg_upgrade starts the server with our library: nothing may run then */
	if (IsBinaryUpgrade)
		return;

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
	resync_hooks_install();
	resync_launcher_register();
}
