/*
 * streamer.c
 *		The streamer: one per run.  Makes the slot and exports its snapshot,
 *		holds the table locks while copiers load, then decodes WAL from the slot
 *		and applies it to the destination.
 *
 * It never writes anything on the source (rule 3): progress and errors go to
 * shared memory, the coordinator makes catalog rows of them.  It does what
 * RunShared->command says and tells with RunShared->streamer where it is; both
 * under ResyncShmem->lock.  It ends with its coordinator.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/worker.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/catalog.h"
#include "catalog/pg_inherits.h"
#include "decode/decode.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "worker/fetch.h"

/* An idle mirror's position is noted at the destination this often. */
#define IDLE_ADVANCE_MS 10000
#define NAP_MIN_MS 10
#define NAP_MAX_MS 200

typedef struct Streamer
{
	WorkerArgs	  args;
	RunShared	 *rs;
	WorkerRun	 *run;
	Destination	 *dest;
	FetchState	  fetch;
	ResyncBatch	 *batch;
	Decoder		 *decoder;
	DecodeConfig  config;
	DecodeCounts *noted;		 /* counts that were reported already */
	List		 *locked;		 /* Oids of tables locked for the load */
	XLogRecPtr	  applied;		 /* durable at the destination */
	XLogRecPtr	  cut_at;		 /* the first batch has to end here: an earlier
								  * process has begun to send it.  Else Invalid */
	TimestampTz	  pending_since; /* when the batch got its first commit, 0 =
								 * empty */
	TimestampTz	  advanced_at;	 /* last idle advance */
	ResourceOwner owner;		 /* current while decoding */
	MemoryContext context;
	MemoryContext batch_context;
} Streamer;

static RunShared *my_run = NULL;

static void
streamer_exit(int code, Datum arg)
{
	int coordinator;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	coordinator = my_run->coordinator_pgprocno;
	if (my_run->streamer_pid == MyProcPid)
	{
		my_run->streamer = STREAMER_OFF;
		my_run->streamer_pid = 0;
		my_run->streamer_pgprocno = -1;
		my_run->snapshot_name[0] = '\0';
		resync_shmem_child_gone(my_run);
	}
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(coordinator);
}

static void
set_state(Streamer *st, StreamerState state)
{
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	st->rs->streamer = state;
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(st->rs->coordinator_pgprocno);
}

/* The coordinator's wish; ends the process when that coordinator is gone. */
static StreamerCommand
read_command(Streamer *st, XLogRecPtr *hold_at_least)
{
	StreamerCommand command;
	bool			orphan;

	LWLockAcquire(ResyncShmem->lock, LW_SHARED);
	command = st->rs->command;
	*hold_at_least = st->rs->hold_at_least;
	orphan = (st->rs->generation != st->args.generation || st->rs->coordinator_pid == 0);
	LWLockRelease(ResyncShmem->lock);
	if (orphan || command == STREAMER_EXIT)
		proc_exit(0);
	return command;
}

static void
nap(long ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
					 RESYNC_WAIT_EVENT("StreamerMain"));
	ResetLatch(MyLatch);
	resync_worker_interrupts();
}

/* ---- snapshot and locks ---- */

/*
 * ACCESS SHARE on every mirrored table and what belongs to it, in the
 * exporting transaction.  Never waits while holding some: an ALTER TABLE of
 * several tables could wait for us crosswise.
 */
static void
lock_tables(Streamer *st)
{
	for (;;)
	{
		Oid		   missed = InvalidOid;
		ListCell  *lc;
		XLogRecPtr ignore;

		st->locked = NIL;
		for (int i = 0; i < st->run->ntables && !OidIsValid(missed); i++)
		{
			List *all;

			if (!ConditionalLockRelationOid(st->run->tables[i]->relid, AccessShareLock))
			{
				missed = st->run->tables[i]->relid;
				break;
			}
			st->locked = lappend_oid(st->locked, st->run->tables[i]->relid);
			all = find_all_inheritors(st->run->tables[i]->relid, NoLock, NULL);
			foreach(lc, all)
			{
				if (lfirst_oid(lc) == st->run->tables[i]->relid)
					continue;
				if (!ConditionalLockRelationOid(lfirst_oid(lc), AccessShareLock))
				{
					missed = lfirst_oid(lc);
					break;
				}
				st->locked = lappend_oid(st->locked, lfirst_oid(lc));
			}
		}
		if (!OidIsValid(missed))
			return;
		foreach(lc, st->locked)
			UnlockRelationOid(lfirst_oid(lc), AccessShareLock);
		nap(50);
		(void) read_command(st, &ignore);
	}
}

/*
 * A relation of ours that some process waits for, or InvalidOid.  Our own locks
 * may be fast-path ones, for which core keeps no wait queue to ask: so look
 * from the waiters' side.  The first look, without locks, may be out of date;
 * what it finds is looked at again under the lock's partition lock.
 */
static Oid
relation_waited_for(Streamer *st)
{
	for (int i = 0; i < ProcGlobal->allProcCount; i++)
	{
		volatile PGPROC *proc = &ProcGlobal->allProcs[i];
		LOCK			*lock = proc->waitLock;
		LOCKTAG			 tag;
		LWLock			*partition;
		bool			 waiting;

		/* no other mode is in the way of, or kept waiting by, ours */
		if (lock == NULL || proc->waitLockMode != AccessExclusiveLock)
			continue;
		tag = lock->tag;
		if (tag.locktag_type != LOCKTAG_RELATION || tag.locktag_field1 != MyDatabaseId ||
			!list_member_oid(st->locked, tag.locktag_field2))
			continue;
		partition = LockHashPartitionLock(LockTagHashCode(&tag));
		LWLockAcquire(partition, LW_SHARED);
		waiting = (proc->waitLock == lock && memcmp(&lock->tag, &tag, sizeof(tag)) == 0);
		LWLockRelease(partition);
		if (waiting)
			return tag.locktag_field2;
	}
	return InvalidOid;
}

/*
 * While copiers load: a session that waits for one of our tables longer than
 * resync.lock_yield gets it (rule 8).  The coordinator stops the copiers and
 * starts the load over.
 */
static void
watch_locks(Streamer *st, TimestampTz *waiting_since)
{
	Oid wanted = relation_waited_for(st);

	if (!OidIsValid(wanted))
	{
		*waiting_since = 0;
		return;
	}
	if (*waiting_since == 0)
		*waiting_since = GetCurrentTimestamp();
	if (!TimestampDifferenceExceeds(*waiting_since, GetCurrentTimestamp(), resync_lock_yield))
		return;
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	st->rs->yielded = true;
	st->rs->yielded_relid = wanted;
	LWLockRelease(ResyncShmem->lock);
	ereport(ERROR, (errcode(RESYNC_ERRCODE_TABLE_CHANGED),
					errmsg("another session waits for relation %u, which is being loaded", wanted),
					errdetail("It gets its lock after resync.lock_yield; the load starts over.")));
}

/*
 * Slot and snapshot, or a fresh snapshot for a slot that is there; then hold
 * it, and the tables, until the coordinator wants something else.
 */
static void
hold_snapshot(Streamer *st, bool create)
{
	char			name[MAXPGPATH];
	XLogRecPtr		lsn;
	XLogRecPtr		ignore;
	TimestampTz		waiting_since = 0;
	StreamerCommand command = create ? STREAMER_CREATE : STREAMER_SNAPSHOT;

	resync_worker_activity("mirror %s: %s", st->run->id.mirror,
						   create ? "creating the replication slot" : "exporting a snapshot");
	set_state(st, STREAMER_CREATING);
	CurrentResourceOwner = st->owner;
	BecomeLockGroupLeader();
	RESYNC_DEBUG_POINT("before_create_slot");
	if (create)
		lsn = resync_slot_create(st->run->slot_name, name);
	else
		lsn = resync_slot_export(st->run->slot_name, name);
	RESYNC_DEBUG_POINT("before_lock_tables");
	lock_tables(st);

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	strlcpy(st->rs->snapshot_name, name, sizeof(st->rs->snapshot_name));
	strlcpy(st->rs->slot_name, st->run->slot_name, sizeof(st->rs->slot_name));
	st->rs->snapshot_lsn = lsn;
	LWLockRelease(ResyncShmem->lock);
	set_state(st, STREAMER_EXPORTED);
	resync_worker_activity("mirror %s: holding the snapshot", st->run->id.mirror);

	while (read_command(st, &ignore) == command)
	{
		nap(Min(100, Max(resync_lock_yield / 2, 10)));
		watch_locks(st, &waiting_since);
	}
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	st->rs->snapshot_name[0] = '\0';
	LWLockRelease(ResyncShmem->lock);
	resync_slot_release_snapshot();
	MemoryContextSwitchTo(st->context);
}

/* ---- streaming ---- */

static RowEncoder *
make_encoder(void *arg, const ResyncTable *table, TupleDesc desc)
{
	Streamer *st = arg;

	return st->dest->routine->make_encoder(st->dest, table, desc);
}

static void
map_added(void *arg, const ResyncTable *table, ResyncColumn *col)
{
	Streamer *st = arg;

	st->dest->routine->map_added(st->dest, table, col);
}

/* Names in the mapping's "exclude". */
static List *
excluded_columns(const ResyncTable *table)
{
	List  *names = NIL;
	Jsonb *mapping = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(table->mapping)));
	JsonbValue		   key;
	JsonbValue		  *found;
	JsonbIterator	  *it;
	JsonbValue		   v;
	JsonbIteratorToken token;

	key.type = jbvString;
	key.val.string.val = "exclude";
	key.val.string.len = strlen("exclude");
	found = findJsonbValueFromContainer(&mapping->root, JB_FOBJECT, &key);
	if (found == NULL || found->type != jbvBinary)
		return NIL;
	it = JsonbIteratorInit(found->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM && v.type == jbvString)
			names = lappend(names, pnstrdup(v.val.string.val, v.val.string.len));
	}
	return names;
}

/*
 * Connect, compare positions, start decoding.  Rule 3: a destination that is
 * behind what was confirmed went back in time; one that is ahead of our WAL
 * tells that we did.
 */
static void
open_stream(Streamer *st)
{
	XLogRecPtr	  confirmed = resync_slot_acquire(st->run->slot_name);
	DecodeConfig *config = &st->config;

	if (st->dest == NULL)
		st->dest = st->run->routine->open(st->run->peer, &st->run->id,
										  psprintf("resync streamer %s", st->run->id.mirror));
	st->applied = st->run->routine->applied_lsn(st->dest);
	if (st->run->routine->pending_lsn != NULL)
		st->cut_at = st->run->routine->pending_lsn(st->dest);
	if (st->applied < confirmed)
		ereport(
			ERROR,
			(errcode(RESYNC_ERRCODE_DIVERGED),
			 errmsg("the destination of mirror \"%s\" went back in time", st->run->id.mirror),
			 errdetail(
				 "It holds changes up to %X/%X; changes up to %X/%X were confirmed as durable there and are no longer kept here.",
				 LSN_FORMAT_ARGS(st->applied), LSN_FORMAT_ARGS(confirmed)),
			 errhint("Run peerdb_resync() to rebuild the mirror.")));
	/* or this server did: what comes now would count as applied */
	if (Max(st->applied, st->cut_at) > GetFlushRecPtr(NULL))
		ereport(ERROR,
				(errcode(RESYNC_ERRCODE_DIVERGED),
				 errmsg("the source of mirror \"%s\" went back in time", st->run->id.mirror),
				 errdetail("The destination holds changes up to %X/%X; the WAL here ends at %X/%X.",
						   LSN_FORMAT_ARGS(Max(st->applied, st->cut_at)),
						   LSN_FORMAT_ARGS(GetFlushRecPtr(NULL))),
				 errhint("Run peerdb_resync() to rebuild the mirror.")));
	pg_atomic_write_u64(&st->rs->applied_lsn, st->applied);

	/*
	 * Tables that were loaded under a later snapshot show changes that WAL is
	 * yet to bring, and so do rows that an earlier process fetched.  Both were
	 * before now.
	 */
	st->fetch.dest = st->dest;
	st->fetch.fetched_until = st->run->snapshots > 1 ? resync_wal_flush() : 0;

	config->tables = palloc(st->run->ntables * sizeof(ResyncTable *));
	memcpy(config->tables, st->run->tables, st->run->ntables * sizeof(ResyncTable *));
	config->ntables = st->run->ntables;
	config->ignored = palloc0(st->run->ntables * sizeof(List *));
	for (int i = 0; i < st->run->ntables; i++)
		config->ignored[i] = excluded_columns(st->run->tables[i]);
	st->batch = resync_batch_create((Size) resync_batch_memory * 1024,
									st->run->options->soft_delete_col_name != NULL);
	config->batch = st->batch;
	config->token = st->run->id.token;
	config->make_encoder = make_encoder;
	config->map_added = map_added;
	config->make_encoder_arg = st;
	st->noted = palloc0(Max(st->run->ntables, 1) * sizeof(DecodeCounts));
	st->decoder = resync_decode_open(config, st->applied);
	st->advanced_at = GetCurrentTimestamp();
}

/*
 * Columns that were added, which the destination has by now: into the plan, so
 * that later processes of the run know them.  Caller holds the lock.  Without
 * room they are left out: a later process adds them once more, which does
 * nothing at the destination.
 */
static void
note_columns(Streamer *st)
{
	for (int t = 0; t < st->config.ntables; t++)
	{
		ResyncTable *table = st->config.tables[t];

		for (int c = st->run->tables[t]->ncols; c < table->ncols; c++)
		{
			if (st->rs->nadded >= RESYNC_MAX_ADDED)
				return;
			/* its lengths were checked when it was added */
			(void) resync_decode_describe_column(table, &table->cols[c],
												 &st->rs->added[st->rs->nadded++]);
		}
		st->run->tables[t] = table;
	}
}

/* Applied batches wait in a ring for the coordinator to note them. */
static void
note_batch(Streamer *st, XLogRecPtr first, XLogRecPtr last, int64 rows, TimestampTz started)
{
	RunShared	 *rs = st->rs;
	DecodeCounts *counts = resync_decode_counts(st->decoder);

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	if (rs->batch_head - rs->batch_tail < RESYNC_BATCH_RING)
	{
		int i = rs->batch_head % RESYNC_BATCH_RING;

		rs->batches[i].first_lsn = first;
		rs->batches[i].last_lsn = last;
		rs->batches[i].rows = rows;
		rs->batches[i].started = started;
		rs->batches[i].finished = GetCurrentTimestamp();
		rs->batch_head++;
	}
	else
	{
		/* the coordinator is slow: merge into the newest one */
		int i = (rs->batch_head - 1) % RESYNC_BATCH_RING;

		rs->batches[i].last_lsn = last;
		rs->batches[i].rows += rows;
		rs->batches[i].finished = GetCurrentTimestamp();
	}
	note_columns(st);
	for (int t = 0; t < Min(st->config.ntables, RESYNC_MAX_COUNTED); t++)
	{
		rs->counts[t].inserts += counts[t].inserts - st->noted[t].inserts;
		rs->counts[t].updates += counts[t].updates - st->noted[t].updates;
		rs->counts[t].deletes += counts[t].deletes - st->noted[t].deletes;
		st->noted[t] = counts[t];
	}
	LWLockRelease(ResyncShmem->lock);
	pg_atomic_fetch_add_u64(&rs->rows_synced, rows);
	resync_shmem_wake(rs->coordinator_pgprocno);
}

/* Send the batch; end_lsn is what the destination holds afterwards. */
static void
apply_batch(Streamer *st, bool live, XLogRecPtr end_lsn)
{
	XLogRecPtr	  first = resync_batch_first_lsn(st->batch);
	int64		  rows = resync_batch_rows(st->batch);
	TimestampTz	  started = GetCurrentTimestamp();
	MemoryContext old = MemoryContextSwitchTo(st->batch_context);

	/* rule 2: see open_stream() */
	if (st->fetch.fetched_until != 0 && first <= st->fetch.fetched_until)
		resync_batch_distrust(st->batch);
	RESYNC_DEBUG_POINT("before_apply");
	st->run->routine->apply(st->dest, st->batch, live, st->applied, end_lsn, resync_fetch_rows,
							&st->fetch);
	RESYNC_DEBUG_POINT("after_apply");
	MemoryContextSwitchTo(old);
	MemoryContextReset(st->batch_context);
	resync_batch_reset(st->batch);
	st->applied = end_lsn;
	st->cut_at = InvalidXLogRecPtr;
	st->pending_since = 0;
	pg_atomic_write_u64(&st->rs->applied_lsn, end_lsn);
	pg_atomic_write_u64(&st->rs->oldest_pending, 0);
	st->advanced_at = GetCurrentTimestamp();
	if (rows > 0)
		note_batch(st, first, end_lsn, rows, started);

	/*
	 * Before the swap the slot stays at its start: the load may have to be
	 * repaired from there (rule 2).
	 */
	if (live)
		resync_decode_confirm(st->decoder, end_lsn);
}

static double
sync_interval_ms(Streamer *st)
{
	int64 ms = (int64) pg_atomic_read_u64(&st->rs->sync_interval_ms);

	return ms >= 0 ? (double) ms : 1000.0 * st->run->routine->default_sync_interval;
}

/* Is the batch one that has to be sent again as it was? */
static bool
batch_is_cut(Streamer *st)
{
	return !XLogRecPtrIsInvalid(st->cut_at) && resync_batch_end_lsn(st->batch) >= st->cut_at;
}

static bool
batch_full(Streamer *st)
{
	if (!XLogRecPtrIsInvalid(st->cut_at))
		return batch_is_cut(st);
	return resync_batch_rows(st->batch) >= (int64) pg_atomic_read_u64(&st->rs->max_batch_size);
}

/* Is it time to send what is in the batch? */
static bool
batch_due(Streamer *st, bool caught_up, bool hold)
{
	XLogRecPtr wanted;

	if (XLogRecPtrIsInvalid(resync_batch_end_lsn(st->batch)))
		return false;
	if (!XLogRecPtrIsInvalid(st->cut_at))
		return batch_is_cut(st);
	if (hold || batch_full(st))
		return true;
	wanted = Max(pg_atomic_read_u64(&st->rs->flush_request),
				 pg_atomic_read_u64(&st->rs->advance_request));
	if (wanted >= resync_batch_first_lsn(st->batch) &&
		(caught_up || resync_decode_position(st->decoder) >= wanted))
		return true;
	return TimestampDifferenceExceeds(st->pending_since, GetCurrentTimestamp(),
									  (int) sync_interval_ms(st));
}

/*
 * Nothing is to be sent, but WAL of others was read: is the position to be
 * noted at the destination and confirmed?  Now and then, or when asked to.
 */
static bool
advance_due(Streamer *st)
{
	XLogRecPtr position = resync_decode_position(st->decoder);
	XLogRecPtr wanted = pg_atomic_read_u64(&st->rs->advance_request);

	if (!XLogRecPtrIsInvalid(resync_batch_end_lsn(st->batch)) || position <= st->applied ||
		!XLogRecPtrIsInvalid(st->cut_at))
		return false;
	return (st->applied < wanted && position >= wanted) ||
		   TimestampDifferenceExceeds(st->advanced_at, GetCurrentTimestamp(), IDLE_ADVANCE_MS);
}

/* Read WAL until there is none, the batch is due, or it is time to look around. */
static bool
read_some(Streamer *st)
{
	bool caught_up = false;

	/* transactions of ours in between leave none */
	CurrentResourceOwner = st->owner;
	for (int i = 0; i < 1000 && !caught_up; i++)
	{
		caught_up = !resync_decode_next(st->decoder);
		if (!XLogRecPtrIsInvalid(resync_batch_end_lsn(st->batch)))
		{
			if (st->pending_since == 0)
			{
				st->pending_since = GetCurrentTimestamp();
				pg_atomic_write_u64(&st->rs->oldest_pending,
									(uint64) resync_batch_oldest_commit(st->batch));
			}
			if (batch_full(st))
				break;
		}
	}
	pg_atomic_write_u64(&st->rs->received_lsn, resync_decode_position(st->decoder));
	return caught_up;
}

/*
 * Stream until the coordinator wants something else than command.  For a hold
 * whatever was read is sent first, and WAL read at least up to where it said.
 */
static void
stream(Streamer *st, StreamerCommand command)
{
	bool live = (command == STREAMER_STREAM_LIVE);
	long naptime = NAP_MIN_MS;

	if (st->decoder == NULL)
		open_stream(st);
	set_state(st, STREAMER_STREAMING);
	resync_worker_activity("mirror %s: streaming", st->run->id.mirror);
	for (;;)
	{
		XLogRecPtr		at_least;
		StreamerCommand wanted = read_command(st, &at_least);
		bool			hold = (wanted != command);
		bool			caught_up;
		bool			sent = false;

		resync_worker_interrupts();
		caught_up = read_some(st);
		if (batch_due(st, caught_up, hold))
		{
			apply_batch(st, live, resync_batch_end_lsn(st->batch));
			sent = true;
		}
		if (hold && resync_decode_position(st->decoder) >= at_least &&
			XLogRecPtrIsInvalid(resync_batch_end_lsn(st->batch)) && XLogRecPtrIsInvalid(st->cut_at))
		{
			if (st->applied < at_least)
				apply_batch(st, live, resync_decode_position(st->decoder));
			return;
		}
		if (advance_due(st))
			apply_batch(st, live, resync_decode_position(st->decoder));
		if (!caught_up || sent)
		{
			naptime = NAP_MIN_MS;
			continue;
		}

		/* a batch is waiting for its time: do not oversleep it */
		if (st->pending_since != 0)
			nap((long) Max(1, Min(naptime, sync_interval_ms(st))));
		else
			nap(naptime);
		naptime = Min(naptime * 2, NAP_MAX_MS);
	}
}

static void
hold(Streamer *st)
{
	XLogRecPtr ignore;

	/* an active slot is nobody else's to drop */
	(void) resync_slot_acquire(st->run->slot_name);
	set_state(st, STREAMER_HELD);
	resync_worker_activity("mirror %s: held", st->run->id.mirror);
	for (;;)
	{
		bool held;

		/* with the last look the state goes: HELD must be true while HOLD is wanted */
		(void) read_command(st, &ignore);
		LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
		held = (st->rs->command == STREAMER_HOLD);
		if (!held)
			st->rs->streamer = STREAMER_STARTING;
		LWLockRelease(ResyncShmem->lock);
		if (!held)
			return;
		nap(1000);
	}
}

static void
streamer_loop(Streamer *st)
{
	for (;;)
	{
		XLogRecPtr		at_least;
		StreamerCommand command = read_command(st, &at_least);

		switch (command)
		{
			case STREAMER_CREATE:
				hold_snapshot(st, true);
				break;
			case STREAMER_SNAPSHOT:
				hold_snapshot(st, false);
				break;
			case STREAMER_STREAM_BUILD:
			case STREAMER_STREAM_LIVE:
				stream(st, command);
				break;
			case STREAMER_HOLD:

				/*
				 * Started into the hold before the swap, in place of one that
				 * died: only the destination knows what that one applied.
				 */
				if (st->decoder == NULL && !XLogRecPtrIsInvalid(at_least))
					stream(st, STREAMER_STREAM_BUILD);
				else
					hold(st);
				break;
			case STREAMER_NONE:
			case STREAMER_EXIT:
				nap(1000);
				break;
		}
	}
}

/* Attach to the run's entry; the process ends if it is not ours any more. */
static void
register_streamer(Streamer *st)
{
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	st->rs = resync_shmem_find_run(MyDatabaseId, st->args.run);
	if (st->rs == NULL || st->rs->generation != st->args.generation || st->rs->streamer_pid != 0)
	{
		LWLockRelease(ResyncShmem->lock);
		proc_exit(0);
	}
	st->rs->streamer_pid = MyProcPid;
	st->rs->streamer_pgprocno = RESYNC_MY_PROC_NUMBER;
	st->rs->streamer = STREAMER_STARTING;
	LWLockRelease(ResyncShmem->lock);
	my_run = st->rs;
	before_shmem_exit(streamer_exit, 0);
}

/* Error context: the table that is being decoded. */
static void
blame_table(void *arg)
{
	const Streamer	  *st = arg;
	const ResyncTable *table = st->decoder ? resync_decode_current_table(st->decoder) : NULL;

	if (table != NULL)
		resync_destination_blame(table);
}

void
resync_streamer_main(Datum arg)
{
	Streamer	 *st;
	MemoryContext context;

	context = AllocSetContextCreate(TopMemoryContext, "resync streamer", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	st = palloc0(sizeof(Streamer));
	st->context = context;
	st->batch_context = AllocSetContextCreate(context, "resync apply", ALLOCSET_DEFAULT_SIZES);
	memcpy(&st->args, MyBgworkerEntry->bgw_extra, sizeof(WorkerArgs));
	resync_worker_init(&st->args, "streamer");
	register_streamer(st);

	PG_TRY();
	{
		ErrorContextCallback blame = {error_context_stack, blame_table, st};

		error_context_stack = &blame;
		resync_catalog_begin();
		MemoryContextSwitchTo(context);
		st->run = resync_worker_load_run(st->args.mirror, st->args.run);
		resync_catalog_commit();
		MemoryContextSwitchTo(context);

		st->owner = ResourceOwnerCreate(NULL, "resync streamer");
		resync_worker_become(st->run->owner);
		streamer_loop(st);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		resync_worker_report_error(&st->rs->streamer_error, edata);
		proc_exit(1);
	}
	PG_END_TRY();
}
