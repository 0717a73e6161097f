/*
 * watch.c
 *		What the coordinator looks at every few seconds while a mirror streams:
 *		how much WAL the slot holds back and who keeps it from being let go,
 *		whether the tables still are what is mirrored, whether the owner still
 *		may have a mirror and read them, and whether the way to the destination
 *		is still the one its processes took.
 *
 * Process: the coordinator, in short read-only catalog transactions.  What is
 * found wrong is raised; the caller's error handling leaves the mirror failed.
 */
#include "postgres.h"

#include "worker/coordinator.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "commands/defrem.h"
#include "nodes/parsenodes.h"
#include "storage/standby.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define WATCH_INTERVAL_MS 5000

/* so long a slot over resync.max_wal_retained may take to let WAL go */
#define ADVANCE_TIMEOUT_MS 10000

/*
 * A transaction that has written and stays open keeps the slot from letting WAL
 * go: name the oldest one that is older than half a minute.
 */
static void
show_wal_holder(Coordinator *co)
{
	RunShared	 *rs = co->serving.rs;
	int			  pid = 0;
	char		 *gid = NULL;
	MemoryContext old;

	resync_catalog_begin();
	if (resync_catalog_exec(
			"SELECT pid, NULL::text FROM (SELECT pid, backend_xid AS x"
			" FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL"
			" AND xact_start < pg_catalog.now() - interval '30 seconds'"
			" ORDER BY pg_catalog.age(backend_xid) DESC LIMIT 1) a"
			" UNION ALL SELECT 0, gid FROM (SELECT gid FROM pg_catalog.pg_prepared_xacts"
			" WHERE prepared < pg_catalog.now() - interval '30 seconds'"
			" ORDER BY pg_catalog.age(transaction) DESC LIMIT 1) p LIMIT 1",
			SPI_OK_SELECT, 0) > 0)
	{
		bool isnull;

		pid = DatumGetInt32(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		old = MemoryContextSwitchTo(co->step_context);
		gid = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
		if (gid != NULL)
			gid = pstrdup(gid);
		MemoryContextSwitchTo(old);
	}
	resync_catalog_finish();
	resync_catalog_commit();
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	rs->waits_for_pid = pid;
	if (pid != 0)
		snprintf(rs->waits_for, sizeof(rs->waits_for),
				 "the transaction of process %d, for WAL to be let go", pid);
	else if (gid != NULL)
		snprintf(rs->waits_for, sizeof(rs->waits_for), "prepared transaction \"%.20s\"", gid);
	else
		rs->waits_for[0] = '\0';
	LWLockRelease(ResyncShmem->lock);
}

/*
 * A table that was dropped, or whose changes are not in the WAL any more: our
 * hooks put a message into the stream (hooks.c); this is the net under them,
 * for what happened while they were not installed (rule 12).
 */
static void
check_tables_logged(Coordinator *co)
{
	char *table = NULL;
	char *what = NULL;

	resync_catalog_begin();
	if (resync_catalog_exec(
			"SELECT t.schema_name || '.' || t.table_name, 'It was dropped.'"
			" FROM peerdb._run_table t LEFT JOIN pg_catalog.pg_class c ON c.oid = t.relid"
			" WHERE t.run = $1 AND c.oid IS NULL UNION ALL"
			" SELECT t.schema_name || '.' || t.table_name, 'It, or a part of it, was made UNLOGGED.'"
			" FROM peerdb._partition p CROSS JOIN pg_catalog.unnest(p.relid || p.more) AS r (oid)"
			" JOIN pg_catalog.pg_class c ON c.oid = r.oid"
			" JOIN peerdb._run_table t ON t.run = p.run AND t.ordinal = p.ordinal"
			" WHERE p.run = $1 AND c.relpersistence = 'u' LIMIT 1",
			SPI_OK_SELECT, 1, INT8OID, Int64GetDatum(co->live->run), false) > 0)
	{
		table = MemoryContextStrdup(co->step_context,
									SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
		what = MemoryContextStrdup(co->step_context,
								   SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2));
	}
	resync_catalog_finish();
	resync_catalog_commit();
	if (table != NULL)
		ereport(ERROR,
				(errcode(RESYNC_ERRCODE_DIVERGED),
				 errmsg("table \"%s\" was changed in a way that its mirror cannot follow", table),
				 errdetail("%s", what), errhint("Run peerdb_resync() to rebuild the mirror.")));
}

/* Of everything that leads to the destination. */
static uint32
hash_options(List *options, uint32 hash)
{
	ListCell *lc;

	foreach(lc, options)
	{
		DefElem	   *opt = lfirst(lc);
		const char *value = defGetString(opt);

		hash = hash_combine(
			hash, hash_bytes((const unsigned char *) opt->defname, (int) strlen(opt->defname)));
		hash = hash_combine(hash, hash_bytes((const unsigned char *) value, (int) strlen(value)));
	}
	return hash;
}

/*
 * A changed server or user mapping counts at once: the stream starts again with
 * it.  A server that is gone, or that the owner may not use any more, is
 * raised by the look-up.
 */
static void
check_peer(Coordinator *co)
{
	ResyncPeer *peer;
	uint32		hash;
	bool		first = (co->peer_hash == 0);

	resync_catalog_begin();
	peer = resync_catalog_peer(co->mirror->server, co->mirror->owner);
	hash = hash_options(peer->user_options, hash_options(peer->server_options, 1));
	resync_catalog_commit();
	hash = (hash == 0 ? 1 : hash);
	if (hash == co->peer_hash)
		return;
	co->peer_hash = hash;
	if (first)
		return;
	ereport(LOG,
			(errmsg("server or user mapping of mirror \"%s\" was changed; its stream starts again",
					co->mirror->name)));
	resync_children_stop(&co->serving);
}

/*
 * Rights are lost at once, not at the next run: decoding checks nothing.  Only
 * tables that look suspicious are looked at column by column.
 */
static void
check_rights(Coordinator *co)
{
	uint64 n;
	int	  *ordinals;

	if (!OidIsValid(co->mirror->owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of mirror \"%s\" does not exist any more", co->mirror->name),
				 errhint("Drop the mirror and create it as another role.")));
	resync_catalog_begin();
	resync_catalog_check_role(co->mirror->owner);
	n = resync_catalog_exec(
		"SELECT t.ordinal FROM peerdb._run_table t JOIN pg_catalog.pg_class c ON c.oid = t.relid"
		" WHERE t.run = $1 AND (c.relrowsecurity OR"
		" NOT pg_catalog.has_table_privilege($2, c.oid, 'SELECT') OR"
		" NOT pg_catalog.has_schema_privilege($2, c.relnamespace, 'USAGE'))",
		SPI_OK_SELECT, 2, INT8OID, Int64GetDatum(co->live->run), false, OIDOID,
		ObjectIdGetDatum(co->mirror->owner), false);
	ordinals = MemoryContextAlloc(co->step_context, (n + 1) * sizeof(int));
	for (uint64 i = 0; i < n; i++)
	{
		bool isnull;

		ordinals[i] = DatumGetInt32(
			SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	resync_catalog_finish();
	if (n > 0)
	{
		int			  ntables;
		ResyncTable **tables = resync_catalog_run_tables(co->live->run, &ntables);

		for (uint64 i = 0; i < n; i++)
		{
			for (int t = 0; t < ntables; t++)
			{
				if (tables[t]->ordinal == ordinals[i])
					resync_catalog_check_access(co->mirror->owner, tables[t]);
			}
		}
	}
	resync_catalog_commit();
}

/*
 * resync.max_wal_retained for the live run.  A slot moves only when decoding
 * meets a record of running transactions, which the server writes a few times a
 * minute, and when the streamer confirms, which it does as seldom while there is
 * nothing to send.  So before a mirror fails such records are written and the
 * streamer is asked to confirm them, one after the other: a slot takes its next
 * position only when it has used the one before, and never one within a
 * transaction.  The mirror fails if what the slot held at first is still held
 * after a while: by an open transaction, or a destination that does not follow.
 * What was written since is another matter.
 *
 * Called with every step.  True: it waits for the streamer, come again soon.
 */
bool
resync_watch_retained(Coordinator *co, StreamerState state)
{
	RunCtl	   *ctl = &co->serving;
	const char *slot = co->live->slot_name;
	XLogRecPtr	restart;
	XLogRecPtr	confirmed;

	if (slot == NULL || !resync_worker_retains_too_much(slot))
	{
		ctl->over_since = 0;
		return false;
	}
	if (ctl->over_since == 0)
	{
		ctl->over_since = GetCurrentTimestamp();
		ctl->over_at = GetXLogInsertRecPtr();
		ctl->advance_to = 0;
	}
	if (TimestampDifferenceExceeds(ctl->over_since, GetCurrentTimestamp(), ADVANCE_TIMEOUT_MS))
		resync_worker_check_retained(slot);
	if (state != STREAMER_STREAMING || !resync_worker_slot_positions(slot, &restart, &confirmed))
		return true;
	if (restart >= ctl->over_at)
		ctl->over_since = 0;
	else if (confirmed >= ctl->advance_to)
	{
		ctl->advance_to = LogStandbySnapshot();
		XLogFlush(ctl->advance_to);
		pg_atomic_write_u64(&ctl->rs->advance_request, ctl->advance_to);
		resync_shmem_wake(ctl->rs->streamer_pgprocno);
	}
	return true;
}

/* Called with every step; does something every few seconds. */
void
resync_watch_serving(Coordinator *co)
{
	if (!TimestampDifferenceExceeds(co->watched_at, GetCurrentTimestamp(), WATCH_INTERVAL_MS))
		return;
	co->watched_at = GetCurrentTimestamp();
	check_tables_logged(co);
	check_rights(co);
	check_peer(co);
	show_wal_holder(co);
}
