/*
 * copier.c
 *		A copier: takes one partition after the other from the coordinator,
 *		scans it under the run's exported snapshot, encodes, sends.
 *
 * It joins the streamer's lock group, so that a waiting ALTER TABLE cannot come
 * between the streamer's lock and its own (decisions.md E9).  One read-only
 * transaction per partition.  It writes nothing on the source; the partition's
 * done-mark is at the destination, with its rows.  It ends with its
 * coordinator.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/worker.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "snapshot/snapshot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* rows between two looks at the clock and the counters */
#define PROGRESS_ROWS 256
#define PROGRESS_BYTES 65536

typedef struct Copier
{
	WorkerArgs		   args;
	RunShared		  *rs;
	CopierShared	  *cs;
	WorkerRun		  *run;
	Destination		  *dest;
	char			   snapshot_name[MAXPGPATH];
	const ResyncTable *current;
	int64			   sent_before; /* bytes of earlier partitions */
	/* rate limit: what it was measured with, from when, and from which byte */
	int			  rate_limit; /* kB/s */
	TimestampTz	  rate_start;
	int64		  rate_sent;
	int64		  rate_checked; /* sent at the last look */
	MemoryContext context;
	MemoryContext partition_context;
} Copier;

static RunShared	*my_run = NULL;
static CopierShared *my_copier = NULL;

static void
copier_exit(int code, Datum arg)
{
	int coordinator;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	coordinator = my_run->coordinator_pgprocno;
	if (my_copier->pid == MyProcPid)
	{
		my_copier->state = COPIER_OFF;
		my_copier->pid = 0;
		my_copier->pgprocno = -1;
		resync_shmem_child_gone(my_run);
	}
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(coordinator);
}

static void
set_state(Copier *c, CopierState state)
{
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	c->cs->state = state;
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(c->rs->coordinator_pgprocno);
}

/* Ready, unless the load was over before that. */
static void
report_for_work(Copier *c)
{
	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	if (c->cs->state == COPIER_STARTING)
		c->cs->state = COPIER_IDLE;
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(c->rs->coordinator_pgprocno);
}

/*
 * Wait for a partition.  False: there is nothing more to do here.
 */
static bool
wait_for_partition(Copier *c)
{
	for (;;)
	{
		CopierState state;
		bool		orphan;

		ResetLatch(MyLatch);
		LWLockAcquire(ResyncShmem->lock, LW_SHARED);
		state = c->cs->state;
		orphan = (c->rs->generation != c->args.generation || c->rs->coordinator_pid == 0 ||
				  c->rs->streamer != STREAMER_EXPORTED ||
				  strcmp(c->rs->snapshot_name, c->snapshot_name) != 0);
		LWLockRelease(ResyncShmem->lock);
		if (orphan || state == COPIER_QUIT)
			return false;
		if (state == COPIER_WORKING)
			return true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1000,
						 RESYNC_WAIT_EVENT("CopierMain"));
		resync_worker_interrupts();
	}
}

/*
 * Bytes handed to the network so far, over all partitions; noted for the view.
 */
static int64
note_sent(Copier *c, int64 rows)
{
	int64 bytes = c->run->routine->load_bytes(c->dest);

	pg_atomic_write_u64(&c->cs->rows, rows);
	pg_atomic_write_u64(&c->cs->bytes, bytes);
	return c->sent_before + bytes;
}

/*
 * resync.load_rate_limit is the mirror's; each copier at work gets an equal
 * share.  Sleeps off what was sent too early.
 */
static void
keep_rate(Copier *c, int64 sent)
{
	for (;;)
	{
		TimestampTz now;
		int			copiers = 0;
		double		allowed;

		resync_worker_interrupts();
		if (resync_load_rate_limit == 0)
			return;
		now = GetCurrentTimestamp();
		if (c->rate_limit != resync_load_rate_limit)
		{
			c->rate_limit = resync_load_rate_limit;
			c->rate_start = now;
			c->rate_sent = c->rate_checked;
		}
		for (int i = 0; i < c->rs->ncopiers; i++)
			copiers += (c->rs->copiers[i].state == COPIER_WORKING);
		allowed = (now - c->rate_start) / 1000000.0 * c->rate_limit * 1024.0 / Max(copiers, 1);
		if (sent - c->rate_sent <= allowed)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 RESYNC_WAIT_EVENT("LoadRateLimit"));
		ResetLatch(MyLatch);
	}
	c->rate_checked = sent;
}

/* Rows of one relation of the partition, after the rows before it; all in all. */
static int64
copy_relation(Copier *c, Relation rel, BlockNumber first, BlockNumber last, int64 rows)
{
	const DestinationRoutine *routine = c->run->routine;
	SnapshotScan			 *scan = resync_snapshot_begin(rel, first, last);
	TupleTableSlot			 *slot;

	while ((slot = resync_snapshot_next(scan)) != NULL)
	{
		routine->load_row(c->dest, slot);
		rows++;
		if (rows % PROGRESS_ROWS == 0 ||
			c->sent_before + routine->load_bytes(c->dest) - c->rate_checked > PROGRESS_BYTES)
		{
			RESYNC_DEBUG_POINT("during_load");
			keep_rate(c, note_sent(c, rows));
		}
	}
	resync_snapshot_end(scan);
	return rows;
}

/*
 * All rows of the partition, from its relations; returns rows acknowledged, -1
 * if the destination has it already.
 */
static int64
copy_rows(Copier *c, const ResyncTable *table, Relation *rels, int nrels)
{
	const DestinationRoutine *routine = c->run->routine;
	int64					  rows;
	int64					  acknowledged;

	if (!routine->load_begin(c->dest, table, RelationGetDescr(rels[0]), c->cs->partition))
		return -1;
	rows = copy_relation(c, rels[0], c->cs->first_block, c->cs->last_block, 0);
	for (int i = 1; i < nrels; i++)
	{
		routine->load_relation(c->dest, RelationGetDescr(rels[i]));
		rows = copy_relation(c, rels[i], 0, InvalidBlockNumber, rows);
	}
	RESYNC_DEBUG_POINT("before_partition_commit");
	acknowledged = routine->load_finish(c->dest);
	RESYNC_DEBUG_POINT("after_partition_commit");

	/* the rest of it went with the commit; the next one waits for that, too */
	keep_rate(c, note_sent(c, rows));
	c->sent_before += routine->load_bytes(c->dest);

	/* an earlier copier's commit came late: its rows count, and may be others */
	if (acknowledged < 0)
		return -1;

	/* rule 10: rows read = rows acknowledged */
	if (acknowledged != rows)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the destination acknowledged " INT64_FORMAT
						" rows of a partition of table \"%s.%s\", " INT64_FORMAT " were read",
						acknowledged, table->schema, table->name, rows)));
	return acknowledged;
}

/*
 * Are the relation's columns those that the run was planned with?  A snapshot
 * taken after a restart may show a table that was changed since: its rows must
 * not be sent by the old plan.
 */
static bool
plan_fits(const ResyncTable *table, TupleDesc desc)
{
	for (int c = 0; c < table->ncols; c++)
	{
		const ResyncColumn *col = &table->cols[c];
		bool				found = false;

		for (int i = 0; i < desc->natts && !found; i++)
		{
			Form_pg_attribute att = TupleDescAttr(desc, i);

			found = !att->attisdropped && att->atttypid == col->typid &&
					att->atttypmod == col->typmod && strcmp(NameStr(att->attname), col->name) == 0;
		}
		if (!found)
			return false;
	}
	return true;
}

/*
 * One partition, in a transaction under the exported snapshot.
 */
static void
load_partition(Copier *c)
{
	const ResyncTable *table = c->run->tables[c->cs->ordinal];
	int				   nrels = c->cs->nrelations;
	Relation		   rels[SNAPSHOT_MAX_RELATIONS];
	int64			   acknowledged = 0;
	bool			   current = true;

	c->current = table;
	pg_atomic_write_u64(&c->cs->rows, 0);
	pg_atomic_write_u64(&c->cs->bytes, 0);
	resync_worker_activity("mirror %s: loading %s.%s, partition " INT64_FORMAT, c->run->id.mirror,
						   table->schema, table->name, c->cs->partition);

	StartTransactionCommand();
	XactIsoLevel = XACT_REPEATABLE_READ;
	XactReadOnly = true;
	ImportSnapshot(c->snapshot_name);
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(c->partition_context);

	for (int i = 0; i < nrels; i++)
	{
		rels[i] = try_relation_open(c->cs->relations[i], AccessShareLock);
		current = (current && rels[i] != NULL && resync_snapshot_is_current(rels[i]) &&
				   plan_fits(table, RelationGetDescr(rels[i])));
	}
	if (current)
		acknowledged = copy_rows(c, table, rels, nrels);
	for (int i = 0; i < nrels; i++)
	{
		if (rels[i] != NULL)
			relation_close(rels[i], NoLock);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(c->context);
	MemoryContextReset(c->partition_context);

	c->cs->acknowledged = acknowledged;
	set_state(c, current ? COPIER_DONE : COPIER_REWRITTEN);
	c->current = NULL;
}

static bool
snapshot_is_gone(Copier *c)
{
	bool gone;

	LWLockAcquire(ResyncShmem->lock, LW_SHARED);
	gone = c->rs->streamer != STREAMER_EXPORTED ||
		   strcmp(c->rs->snapshot_name, c->snapshot_name) != 0;
	LWLockRelease(ResyncShmem->lock);
	return gone;
}

/*
 * Attach to our entry and to the streamer's lock group.
 */
static void
register_copier(Copier *c)
{
	PGPROC *leader = NULL;
	pid_t	leader_pid = 0;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	c->rs = resync_shmem_find_run(MyDatabaseId, c->args.run);
	if (c->rs == NULL || c->rs->generation != c->args.generation ||
		c->rs->copiers[c->args.index].pid != 0 || c->rs->streamer != STREAMER_EXPORTED)
	{
		LWLockRelease(ResyncShmem->lock);
		proc_exit(0);
	}
	c->cs = &c->rs->copiers[c->args.index];
	c->cs->pid = MyProcPid;
	c->cs->pgprocno = RESYNC_MY_PROC_NUMBER;
	leader = &ProcGlobal->allProcs[c->rs->streamer_pgprocno];
	leader_pid = c->rs->streamer_pid;
	strlcpy(c->snapshot_name, c->rs->snapshot_name, sizeof(c->snapshot_name));
	LWLockRelease(ResyncShmem->lock);
	my_run = c->rs;
	my_copier = c->cs;
	before_shmem_exit(copier_exit, 0);

	if (!BecomeLockGroupMember(leader, leader_pid))
		proc_exit(0);
}

/* Error context: the table that is being loaded. */
static void
blame_table(void *arg)
{
	const Copier *c = arg;

	if (c->current != NULL)
		resync_destination_blame(c->current);
}

void
resync_copier_main(Datum arg)
{
	Copier		 *c;
	MemoryContext context;

	context = AllocSetContextCreate(TopMemoryContext, "resync copier", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	c = palloc0(sizeof(Copier));
	c->context = context;
	c->partition_context = AllocSetContextCreate(context, "resync partition",
												 ALLOCSET_DEFAULT_SIZES);
	memcpy(&c->args, MyBgworkerEntry->bgw_extra, sizeof(WorkerArgs));
	resync_worker_init(&c->args, "copier");
	register_copier(c);

	PG_TRY();
	{
		ErrorContextCallback blame = {error_context_stack, blame_table, c};

		error_context_stack = &blame;
		resync_catalog_begin();
		MemoryContextSwitchTo(context);
		c->run = resync_worker_load_run(c->args.mirror, c->args.run);
		resync_catalog_commit();
		MemoryContextSwitchTo(context);
		resync_worker_become(c->run->owner);

		c->dest = c->run->routine->open(c->run->peer, &c->run->id,
										psprintf("resync copier %s", c->run->id.mirror));
		report_for_work(c);
		while (wait_for_partition(c))
			load_partition(c);
		c->run->routine->close(c->dest);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		/* with its streamer gone the snapshot is, and what failed tells nothing */
		if (!snapshot_is_gone(c))
			resync_worker_report_error(&c->rs->copier_error, edata);
		proc_exit(1);
	}
	PG_END_TRY();
	proc_exit(0);
}
