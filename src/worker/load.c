/*
 * load.c
 *		Phase load: partitions planned, handed to copiers, counted.
 *
 * Process: the coordinator.  Partitions are rows of peerdb._partition; the
 * queue is this process's copy of them, and whoever has none gets the next.
 * Only the destination's done-mark makes a partition done (rule 2): after a
 * restart the marks are read before anything is handed out.
 */
#include "postgres.h"

#include "worker/coordinator.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "net/retry.h"
#include "snapshot/snapshot.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* Everything this process knows of the load; the catalog keeps its own. */
void
resync_load_forget(Coordinator *co)
{
	if (co->load.context != NULL)
		MemoryContextDelete(co->load.context);
	memset(&co->load, 0, sizeof(LoadState));
}

/*
 * Cut the tables into partitions, once per run.  A lock is not waited for long:
 * somebody who waits for the streamer's lock could be in front of us, and the
 * streamer waits for us.
 */
static void
plan_partitions(Coordinator *co)
{
	int64 number = 1;

	for (int t = 0; t < co->run->ntables; t++)
	{
		ResyncTable	 *table = co->run->tables[t];
		RunPartition *rows;
		List		 *parts;
		ListCell	 *lc;
		int			  n = 0;

		resync_catalog_begin();
		(void) set_config_option("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_LOCAL,
								 true, 0, false);
		parts = resync_snapshot_partitions(table->relid,
										   co->run->options->snapshot_num_rows_per_partition,
										   co->run->options->snapshot_num_partitions_override);
		rows = palloc0(list_length(parts) * sizeof(RunPartition));
		foreach(lc, parts)
		{
			SnapshotPartition *p = lfirst(lc);

			rows[n].partition = number++;
			rows[n].ordinal = table->ordinal;
			rows[n].relid = p->relid;
			rows[n].more = p->more;
			rows[n].first_block = p->first_block;
			rows[n].last_block = p->last_block;
			rows[n].est_rows = p->est_rows;
			rows[n].est_bytes = p->est_bytes;
			rows[n].status = PARTITION_WAITING;
			n++;
		}
		if (t == 0)
			resync_catalog_clear_partitions(co->build.run, -1);
		resync_catalog_put_partitions(co->build.run, rows, n);
		resync_catalog_commit();
	}
}

/* The catalog's rows into memory. */
static void
read_partitions(Coordinator *co)
{
	MemoryContext old;

	resync_catalog_begin();
	old = MemoryContextSwitchTo(co->load.context);
	co->load.partitions = resync_catalog_partitions(co->build.run, &co->load.npartitions);
	MemoryContextSwitchTo(old);
	resync_catalog_commit();
	co->load.ndone = 0;
	for (int i = 0; i < co->load.npartitions; i++)
		co->load.ndone += (co->load.partitions[i].status == PARTITION_DONE);
}

/*
 * The first look at the queue by this process: bring catalog and destination
 * together.
 */
static void
sync_partitions(Coordinator *co)
{
	List	 *done;
	ListCell *lc;

	co->load.context = AllocSetContextCreate(co->context, "resync load", ALLOCSET_DEFAULT_SIZES);
	read_partitions(co);

	/*
	 * Planned completely or not at all: tables are planned one by one, and the
	 * last one tells.
	 */
	if (co->load.npartitions == 0 || co->load.partitions[co->load.npartitions - 1].ordinal !=
										 co->run->tables[co->run->ntables - 1]->ordinal)
	{
		plan_partitions(co);
		read_partitions(co);
	}
	done = co->run->routine->done_partitions(co->dest);
	resync_catalog_begin();
	for (int i = 0; i < co->load.npartitions; i++)
	{
		RunPartition  *p = &co->load.partitions[i];
		DonePartition *mark = NULL;

		foreach(lc, done)
		{
			if (((DonePartition *) lfirst(lc))->partition == p->partition)
				mark = lfirst(lc);
		}
		if (mark != NULL && p->status != PARTITION_DONE)
		{
			resync_catalog_partition_done(co->build.run, p->partition, 0, mark->rows, 0);
			p->rows = mark->rows;
			p->snapshot = 0;
			p->status = PARTITION_DONE;
		}
		else if (mark == NULL && p->status != PARTITION_WAITING)
		{
			resync_catalog_partition_reset(co->build.run, p->partition);
			p->status = PARTITION_WAITING;
		}
	}
	resync_catalog_commit();
	co->load.ndone = 0;
	for (int i = 0; i < co->load.npartitions; i++)
		co->load.ndone += (co->load.partitions[i].status == PARTITION_DONE);
	co->load.synced = true;
}

/*
 * The exported snapshot as pg_snapshot's text, in step_context.  Its exporter
 * may end at any time: then the load goes on under yet another snapshot.
 */
static char *
snapshot_text(Coordinator *co)
{
	MemoryContext context = co->step_context;
	char *volatile text = NULL;

	StartTransactionCommand();
	XactIsoLevel = XACT_REPEATABLE_READ;
	XactReadOnly = true;
	PG_TRY();
	{
		ImportSnapshot(co->build.rs->snapshot_name);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the snapshot of the load of mirror \"%s\" is gone", co->mirror->name)));
	}
	PG_END_TRY();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(context);
	text = DatumGetCString(
		DirectFunctionCall1(pg_snapshot_out, DirectFunctionCall1(pg_current_snapshot, (Datum) 0)));
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return text;
}

/*
 * The rest is read under another snapshot than what is done (rule 2): a table
 * with a key gets it by de-duplication later; one without key is loaded again
 * whole, and since WAL is replayed from the slot's start, without key to
 * replay by, the snapshot is noted: what it shows is not replayed.
 */
static void
mix_snapshots(Coordinator *co)
{
	char *snapshot = NULL;

	for (int t = 0; t < co->run->ntables; t++)
	{
		ResyncTable *table = co->run->tables[t];
		int64		 first = 0;
		int64		 last = 0;
		int			 done = 0;
		int			 open = 0;

		for (int i = 0; i < co->load.npartitions; i++)
		{
			RunPartition *p = &co->load.partitions[i];

			if (p->ordinal != table->ordinal)
				continue;
			if (first == 0)
				first = p->partition;
			last = p->partition;
			if (p->status == PARTITION_DONE)
				done++;
			else
				open++;
		}
		/* where rows merge, a try that came to nothing may have left some there */
		if (open == 0 || (done == 0 && table->nkeys > 0 && !co->run->routine->merges_rows))
			continue;
		if (table->nkeys > 0)
		{
			resync_catalog_begin();
			resync_catalog_set_multi_snapshot(co->build.run, table->ordinal, true);
			resync_catalog_commit();
			table->multi_snapshot = true;
			continue;
		}
		if (snapshot == NULL)
			snapshot = snapshot_text(co);
		/* even if none is done: not every destination loads them as a whole */
		co->run->routine->reset_table(co->dest, table, first, last);
		resync_catalog_begin();
		resync_catalog_set_loaded_snapshot(co->build.run, table->ordinal, snapshot);
		for (int i = 0; i < co->load.npartitions; i++)
		{
			RunPartition *p = &co->load.partitions[i];

			if (p->ordinal != table->ordinal || p->status != PARTITION_DONE)
				continue;
			resync_catalog_partition_reset(co->build.run, p->partition);
			p->status = PARTITION_WAITING;
			co->load.ndone--;
		}
		resync_catalog_commit();
	}
}

/*
 * Is a snapshot held?  Phase create_slot left one; after a restart a fresh one
 * is exported.  False: not yet.
 */
static bool
have_snapshot(Coordinator *co)
{
	StreamerState	state;
	StreamerCommand command;

	command = (co->build.rs->command == STREAMER_CREATE) ? STREAMER_CREATE : STREAMER_SNAPSHOT;
	state = resync_children_streamer(&co->build, &co->args, command, 0);

	if (co->load.snapshot != 0 && state != STREAMER_EXPORTED)
	{
		/* lost with its streamer */
		resync_children_stop_copiers(&co->build);
		resync_load_forget(co);
		if (command == STREAMER_CREATE)
			(void) resync_children_streamer(&co->build, &co->args, STREAMER_SNAPSHOT, 0);
		return false;
	}
	if (state != STREAMER_EXPORTED)
	{
		if (command == STREAMER_CREATE)
			co->build.rs->command = STREAMER_SNAPSHOT;
		return false;
	}
	if (co->load.snapshot != 0)
		return true;
	if (command == STREAMER_SNAPSHOT)
	{
		resync_catalog_begin();
		resync_catalog_set_snapshot(co->build.run, co->newest->snapshots + 1,
									co->build.rs->snapshot_lsn);
		resync_catalog_commit();
		co->newest->snapshots++;
	}
	if (!co->load.synced)
		sync_partitions(co);
	if (co->newest->snapshots > 1)
		mix_snapshots(co);
	co->load.snapshot = co->newest->snapshots;
	co->load.held_since = GetCurrentTimestamp();
	return true;
}

/*
 * resync.max_snapshot_age: a snapshot holds back VACUUM in the whole database.
 * No partition is handed out any more, those under way are finished, then the
 * load goes on under a fresh one.  Not while a table without key is loaded in
 * part: it would have to begin again.
 */
static bool
should_rotate(Coordinator *co)
{
	if (co->load.rotating)
		return true;
	if (resync_max_snapshot_age == 0 ||
		!TimestampDifferenceExceeds(co->load.held_since, GetCurrentTimestamp(),
									resync_max_snapshot_age * 1000))
		return false;
	for (int t = 0; t < co->run->ntables; t++)
	{
		int done = 0;
		int open = 0;

		if (co->run->tables[t]->nkeys > 0)
			continue;
		for (int i = 0; i < co->load.npartitions; i++)
		{
			if (co->load.partitions[i].ordinal != co->run->tables[t]->ordinal)
				continue;
			if (co->load.partitions[i].status == PARTITION_WAITING)
				open++;
			else
				done++;
		}
		if (done > 0 && open > 0)
			return false;
	}
	co->load.rotating = true;
	return true;
}

/* Nothing is under way any more: let the snapshot go.  False: not yet. */
static bool
rotate_snapshot(Coordinator *co)
{
	for (int i = 0; i < co->load.npartitions; i++)
	{
		if (co->load.partitions[i].status == PARTITION_LOADING)
			return false;
	}
	resync_children_dismiss_copiers(&co->build);
	if (resync_children_streamer(&co->build, &co->args, STREAMER_HOLD, 0) != STREAMER_HELD)
		return false;
	resync_load_forget(co);
	return true;
}

/*
 * The next partition to hand out: of the first tables in order that have a
 * copier to spare by the mirror's settings, else any: no copier idles.
 */
static RunPartition *
next_partition(Coordinator *co)
{
	int			  ntables = co->run->ntables;
	int			 *active = palloc0(ntables * sizeof(int));
	int			  tables = 0;
	RunPartition *any = NULL;

	for (int i = 0; i < co->load.npartitions; i++)
	{
		RunPartition *p = &co->load.partitions[i];

		if (p->status == PARTITION_LOADING && active[p->ordinal]++ == 0)
			tables++;
	}
	for (int i = 0; i < co->load.npartitions; i++)
	{
		RunPartition *p = &co->load.partitions[i];

		if (p->status != PARTITION_WAITING)
			continue;
		if (any == NULL)
			any = p;
		if (active[p->ordinal] < co->run->options->snapshot_max_parallel_workers &&
			(active[p->ordinal] > 0 || tables < co->run->options->snapshot_num_tables_in_parallel))
			return p;
	}
	return any;
}

static RunPartition *
find_partition(Coordinator *co, int64 partition)
{
	for (int i = 0; i < co->load.npartitions; i++)
	{
		if (co->load.partitions[i].partition == partition)
			return &co->load.partitions[i];
	}
	elog(ERROR, "partition " INT64_FORMAT " of run " INT64_FORMAT " is missing", partition,
		 co->build.run);
	return NULL; /* not reached */
}

static void
assign(Coordinator *co, CopierShared *cs, RunPartition *p)
{
	int pgprocno;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	cs->partition = p->partition;
	cs->ordinal = p->ordinal;
	cs->nrelations = 1 + list_length(p->more);
	cs->relations[0] = p->relid;
	for (int i = 1; i < cs->nrelations; i++)
		cs->relations[i] = list_nth_oid(p->more, i - 1);
	cs->first_block = p->first_block;
	cs->last_block = p->last_block;
	pg_atomic_write_u64(&cs->rows, 0);
	pg_atomic_write_u64(&cs->bytes, 0);
	cs->state = COPIER_WORKING;
	pgprocno = cs->pgprocno;
	LWLockRelease(ResyncShmem->lock);
	p->status = PARTITION_LOADING;
	resync_shmem_wake(pgprocno);
}

/*
 * A partition turned out to be there already, perhaps read under an earlier
 * snapshot.  The marks are read again.  In a transaction.
 */
static void
late_mark(Coordinator *co, int ordinal)
{
	ResyncTable *table = co->run->tables[ordinal];

	co->load.synced = false;
	if (co->newest->snapshots < 2)
		return;
	if (table->nkeys == 0)
		ereport(ERROR, (errcode(RESYNC_ERRCODE_TABLE_CHANGED),
						errmsg("table \"%s.%s\", which has no key, was read under two snapshots",
							   table->schema, table->name)));
	resync_catalog_set_multi_snapshot(co->build.run, ordinal, true);
	table->multi_snapshot = true;
}

/* What copier i has brought; it gets the next partition before that is noted. */
static void
serve_copier(Coordinator *co, int i)
{
	CopierShared *cs = &co->build.rs->copiers[i];
	CopierState	  state;
	int64		  acknowledged;
	int64		  bytes;
	int64		  finished = 0;
	RunPartition *next;

	LWLockAcquire(ResyncShmem->lock, LW_SHARED);
	state = cs->state;
	acknowledged = cs->acknowledged;
	bytes = pg_atomic_read_u64(&cs->bytes);
	LWLockRelease(ResyncShmem->lock);

	if (state == COPIER_REWRITTEN)
		ereport(ERROR,
				(errcode(RESYNC_ERRCODE_TABLE_CHANGED),
				 errmsg("table \"%s.%s\" was changed while its load was being prepared",
						co->run->tables[cs->ordinal]->schema, co->run->tables[cs->ordinal]->name)));
	if (state != COPIER_DONE && state != COPIER_IDLE)
		return;
	if (state == COPIER_DONE)
	{
		RunPartition *p = find_partition(co, cs->partition);

		finished = p->partition;
		p->status = PARTITION_DONE;
		p->rows = acknowledged;
		p->snapshot = co->load.snapshot;
		co->load.ndone++;
		co->build.copier_failures = 0;
	}
	next = should_rotate(co) ? NULL : next_partition(co);
	if (next != NULL)
		assign(co, cs, next);
	else if (state == COPIER_DONE)
		cs->state = COPIER_IDLE;

	resync_catalog_begin();
	if (finished != 0)
	{
		if (acknowledged < 0)
		{
			/* its mark was there: an earlier copier's commit arrived late */
			late_mark(co, find_partition(co, finished)->ordinal);
		}
		else
			resync_catalog_partition_done(co->build.run, finished, co->load.snapshot, acknowledged,
										  bytes);
		resync_catalog_note_progress(co->build.run);
	}
	if (next != NULL)
		resync_catalog_partition_started(co->build.run, next->partition, co->load.snapshot);
	resync_catalog_commit();
}

/* Start what is missing; one copier is enough, a shortfall is logged once. */
static void
start_copiers(Coordinator *co)
{
	RunCtl *ctl = &co->build;
	int		wanted;
	int		working = 0;

	wanted = co->run->options->snapshot_max_parallel_workers *
			 co->run->options->snapshot_num_tables_in_parallel;
	wanted = Max(1, Min(wanted, RESYNC_MAX_COPIERS));
	wanted = Min(wanted, co->load.npartitions - co->load.ndone);

	for (int i = 0; i < RESYNC_MAX_COPIERS; i++)
	{
		bool		  died;
		CopierShared *cs = &ctl->rs->copiers[i];
		WorkerArgs	  child;

		if (ctl->copiers[i] != NULL)
		{
			if (!resync_children_reap_copier(ctl, i, &died))
			{
				working++;
				continue;
			}
			/* whatever it had is to be done again, unless its mark is there */
			for (int p = 0; p < co->load.npartitions; p++)
			{
				if (co->load.partitions[p].status == PARTITION_LOADING &&
					co->load.partitions[p].partition == cs->partition)
				{
					co->load.partitions[p].status = PARTITION_WAITING;
					resync_catalog_begin();
					resync_catalog_partition_reset(ctl->run, cs->partition);
					resync_catalog_commit();
				}
			}
		}
		if (i >= wanted || GetCurrentTimestamp() < ctl->copier_not_before)
			continue;
		child = co->args;
		child.run = ctl->run;
		child.generation = ctl->rs->generation;
		child.index = i;
		LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
		cs->state = COPIER_STARTING;
		cs->partition = 0;
		if (ctl->rs->ncopiers < i + 1)
			ctl->rs->ncopiers = i + 1;
		LWLockRelease(ResyncShmem->lock);
		ctl->copiers[i] = resync_worker_start("resync_copier_main", "copier", &child);
		if (ctl->copiers[i] != NULL)
		{
			working++;
			continue;
		}
		if (!ctl->shortfall_logged)
		{
			ereport(LOG, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						  errmsg("the load of mirror \"%s\" runs with %d copiers instead of %d",
								 co->mirror->name, i, wanted),
						  errhint("%d more background workers are needed: increase \"%s\".",
								  wanted - i, "max_worker_processes")));
			ctl->shortfall_logged = true;
		}
		/* without any it would wait for ever, and nobody would know what for */
		if (working == 0)
			ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
							errmsg("no background worker is free for the load of mirror \"%s\"",
								   co->mirror->name),
							errhint("You might need to increase \"%s\".", "max_worker_processes")));
		break;
	}
}

/*
 * Rows of a table that were acknowledged: all of them, and (*at_least) those that
 * cannot have become one with another: the most under one snapshot.
 */
static int64
acknowledged_rows(Coordinator *co, const ResyncTable *table, int64 *at_least)
{
	int64 *by_snapshot = palloc0((co->newest->snapshots + 1) * sizeof(int64));
	int64  total = 0;

	*at_least = 0;
	for (int i = 0; i < co->load.npartitions; i++)
	{
		const RunPartition *p = &co->load.partitions[i];

		if (p->ordinal != table->ordinal)
			continue;
		total += p->rows;
		if (p->snapshot <= 0 || p->snapshot > co->newest->snapshots)
			continue;
		by_snapshot[p->snapshot] += p->rows;
		*at_least = Max(*at_least, by_snapshot[p->snapshot]);
	}
	return total;
}

/*
 * Rule 10: what the destination holds is what was acknowledged.  Where rows of a
 * key merge by themselves, a row that was read under two snapshots, in two
 * places, is there once or twice.
 */
static void
verify_counts(Coordinator *co)
{
	for (int t = 0; t < co->run->ntables; t++)
	{
		ResyncTable *table = co->run->tables[t];
		int64		 at_least;
		int64		 expected;
		int64		 found;

		if (table->state != RESYNC_TABLE_CREATED)
			continue;
		expected = acknowledged_rows(co, table, &at_least);
		if (!co->run->routine->merges_rows || !table->multi_snapshot)
			at_least = expected;
		found = co->run->routine->count_rows(co->dest, table, true, false);
		if (found < at_least || found > expected)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("table \"%s.%s\" has " INT64_FORMAT
							" rows at the destination after the load, " INT64_FORMAT " were sent",
							table->schema, table->name, found, expected),
					 errdetail("The live table was left as it is.")));
	}
}

/*
 * One look at everything.  Returns ms until the next, or moves on to phase
 * catch_up and returns 0.
 */
long
resync_load_step(Coordinator *co)
{
	resync_build_open(co);
	if (co->load.rotating && co->load.ndone < co->load.npartitions && rotate_snapshot(co))
		return 0;
	if (co->build.rs->command == STREAMER_HOLD && co->load.rotating)
		return 50;
	if (!have_snapshot(co))
		return 200;

	if (!co->load.rotating)
		start_copiers(co);
	for (int i = 0; i < co->build.rs->ncopiers; i++)
	{
		if (co->build.copiers[i] != NULL)
			serve_copier(co, i);
	}
	if (!co->load.synced)
	{
		/* rare: read the marks again, with nothing under way */
		resync_children_stop_copiers(&co->build);
		resync_load_forget(co);
		return 0;
	}
	if (co->load.ndone < co->load.npartitions)
		return 1000;

	resync_children_dismiss_copiers(&co->build);
	/* it has read the tables before their snapshots were noted: a new one */
	if (co->newest->snapshots > 1)
		resync_children_stop(&co->build);
	(void) resync_children_streamer(&co->build, &co->args, STREAMER_HOLD, 0);
	RESYNC_DEBUG_POINT("loaded");
	verify_counts(co);
	resync_catalog_begin();
	resync_catalog_set_phase(co->build.run, PHASE_LOAD, PHASE_CATCH_UP);
	resync_catalog_log(co->args.mirror, co->build.run, "info", NULL, 0, "phase load is done", NULL);
	resync_catalog_commit();
	resync_load_forget(co);
	return 0;
}
