/*
 * run.c
 *		Progress of a run: steps and crashes, slots, partitions, batches; and
 *		the clearing of what is old.
 *
 * Called by the coordinator (rows of its mirror's runs), by the streamer's
 * helper for cleanup rows, and by the launcher's probe (pruning).
 * Each function runs within the caller's transaction.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/timestamp.h"

#include "catalog/catalog.h"
#include "catalog/result.h"

/* ----------------------------------------------------------------
 *		the run
 * ----------------------------------------------------------------
 */

void
resync_catalog_note_start(int64 run, const char *step, int crashes)
{
	(void) resync_catalog_exec("UPDATE peerdb._run SET step = $2, crashes = $3 WHERE run = $1",
							   SPI_OK_UPDATE, 3, ARG_INT8(run), ARG_TEXT(step), ARG_INT4(crashes));
	resync_catalog_finish();
}

void
resync_catalog_note_progress(int64 run)
{
	(void) resync_catalog_exec("UPDATE peerdb._run SET crashes = 0 "
							   "WHERE run = $1 AND crashes > 0",
							   SPI_OK_UPDATE, 1, ARG_INT8(run));
	resync_catalog_finish();
}

void
resync_catalog_note_warned(int64 run, int64 bytes)
{
	(void) resync_catalog_exec("UPDATE peerdb._run SET wal_warned = $2 WHERE run = $1",
							   SPI_OK_UPDATE, 2, ARG_INT8(run), ARG_INT8(bytes));
	resync_catalog_finish();
}

void
resync_catalog_set_run_slot(int64 run, const char *slot_name, XLogRecPtr snapshot_lsn)
{
	(void) resync_catalog_exec("UPDATE peerdb._run SET slot_name = $2, snapshot_lsn = $3 "
							   "WHERE run = $1",
							   SPI_OK_UPDATE, 3, ARG_INT8(run), ARG_TEXT(slot_name),
							   ARG_LSN_OR_NULL(snapshot_lsn));
	resync_catalog_finish();
}

void
resync_catalog_set_snapshot(int64 run, int snapshots, XLogRecPtr catch_up_lsn)
{
	(void) resync_catalog_exec("UPDATE peerdb._run SET snapshots = $2, catch_up_lsn = $3 "
							   "WHERE run = $1",
							   SPI_OK_UPDATE, 3, ARG_INT8(run), ARG_INT4(snapshots),
							   ARG_LSN_OR_NULL(catch_up_lsn));
	resync_catalog_finish();
}

void
resync_catalog_set_confirmed(int64 run, XLogRecPtr lsn)
{
	(void) resync_catalog_exec("UPDATE peerdb._run SET confirmed_lsn = $2 "
							   "WHERE run = $1 AND confirmed_lsn IS DISTINCT FROM $2",
							   SPI_OK_UPDATE, 2, ARG_INT8(run), ARG_LSN_OR_NULL(lsn));
	resync_catalog_finish();
}

/* ----------------------------------------------------------------
 *		slots that may exist
 * ----------------------------------------------------------------
 */

void
resync_catalog_add_cleanup(const char *slot_name, int64 run)
{
	(void) resync_catalog_exec("INSERT INTO peerdb._cleanup (slot_name, run) VALUES ($1, $2) "
							   "ON CONFLICT (slot_name) DO UPDATE SET run = excluded.run",
							   SPI_OK_INSERT, 2, ARG_TEXT(slot_name), ARG_INT8(run));
	resync_catalog_finish();
}

void
resync_catalog_remove_cleanup(const char *slot_name)
{
	(void) resync_catalog_exec("DELETE FROM peerdb._cleanup WHERE slot_name = $1", SPI_OK_DELETE, 1,
							   ARG_TEXT(slot_name));
	resync_catalog_finish();
}

/* ----------------------------------------------------------------
 *		partitions
 * ----------------------------------------------------------------
 */

static Datum
oid_array(List *oids)
{
	Datum	 *values = palloc((list_length(oids) + 1) * sizeof(Datum));
	ListCell *lc;

	foreach(lc, oids)
		values[foreach_current_index(lc)] = ObjectIdGetDatum(lfirst_oid(lc));
	return PointerGetDatum(
		construct_array(values, list_length(oids), OIDOID, sizeof(Oid), true, TYPALIGN_INT));
}

/* An array of OIDs as a list in context. */
static List *
result_oids(uint64 row, int col, MemoryContext context)
{
	bool		  isnull;
	Datum		  array = result_datum(row, col, &isnull);
	Datum		 *values;
	int			  n;
	List		 *oids = NIL;
	MemoryContext old;

	deconstruct_array(DatumGetArrayTypeP(array), OIDOID, sizeof(Oid), true, TYPALIGN_INT, &values,
					  NULL, &n);
	old = MemoryContextSwitchTo(context);
	for (int i = 0; i < n; i++)
		oids = lappend_oid(oids, DatumGetObjectId(values[i]));
	MemoryContextSwitchTo(old);
	return oids;
}

void
resync_catalog_put_partitions(int64 run, const RunPartition *partitions, int n)
{
	for (int i = 0; i < n; i++)
	{
		const RunPartition *p = &partitions[i];

		(void) resync_catalog_exec(
			"INSERT INTO peerdb._partition (run, partition, ordinal, relid, "
			"first_block, last_block, est_bytes, more) "
			"VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
			SPI_OK_INSERT, 8, ARG_INT8(run), ARG_INT8(p->partition), ARG_INT4(p->ordinal),
			ARG_OID(p->relid), ARG_INT8((int64) p->first_block),
			ARG_INT8_OR_NULL((int64) p->last_block, p->last_block == InvalidBlockNumber),
			ARG_INT8(p->est_bytes), OIDARRAYOID, oid_array(p->more), false);
		resync_catalog_finish();
	}

	/* totals, in one update per table: partitions come table by table */
	for (int first = 0, last; first < n; first = last)
	{
		int64 rows = 0;
		int64 bytes = 0;

		for (last = first; last < n && partitions[last].ordinal == partitions[first].ordinal;
			 last++)
		{
			rows += partitions[last].est_rows;
			bytes += partitions[last].est_bytes;
		}
		(void) resync_catalog_exec("UPDATE peerdb._run_table SET "
								   "partitions_total = COALESCE(partitions_total, 0) + $3, "
								   "rows_total_estimate = COALESCE(rows_total_estimate, 0) + $4, "
								   "bytes_total = COALESCE(bytes_total, 0) + $5 "
								   "WHERE run = $1 AND ordinal = $2",
								   SPI_OK_UPDATE, 5, ARG_INT8(run),
								   ARG_INT4(partitions[first].ordinal), ARG_INT4(last - first),
								   ARG_INT8(rows), ARG_INT8(bytes));
		resync_catalog_finish();
	}
}

RunPartition *
resync_catalog_partitions(int64 run, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	RunPartition *result;
	uint64		  rows;

	rows = resync_catalog_exec(
		"SELECT partition, ordinal, relid, first_block, last_block, est_bytes, "
		"status, snapshot, rows, attempts, more "
		"FROM peerdb._partition WHERE run = $1 ORDER BY partition",
		SPI_OK_SELECT, 1, ARG_INT8(run));
	result = MemoryContextAllocZero(context, Max(rows, 1) * sizeof(RunPartition));
	for (uint64 i = 0; i < rows; i++)
	{
		RunPartition *p = &result[i];
		char		 *status = result_text(i, 7, CurrentMemoryContext);

		p->partition = result_int8(i, 1, 0);
		p->ordinal = result_int4(i, 2);
		p->relid = result_oid(i, 3);
		p->first_block = (BlockNumber) result_int8(i, 4, 0);
		p->last_block = (BlockNumber) result_int8(i, 5, (int64) InvalidBlockNumber);
		p->est_bytes = result_int8(i, 6, 0);
		p->status = status[0]; /* PARTITION_* are the first letters */
		p->snapshot = result_int4(i, 8);
		p->rows = result_int8(i, 9, -1);
		p->attempts = result_int4(i, 10);
		p->more = result_oids(i, 11, context);
	}
	*n = (int) rows;
	resync_catalog_finish();
	return result;
}

void
resync_catalog_partition_started(int64 run, int64 partition, int snapshot)
{
	(void) resync_catalog_exec("WITH p AS (UPDATE peerdb._partition SET status = 'loading', "
							   "snapshot = $3, attempts = attempts + 1, rows = NULL, bytes = NULL, "
							   "started_at = pg_catalog.clock_timestamp(), finished_at = NULL "
							   "WHERE run = $1 AND partition = $2 RETURNING ordinal) "
							   "UPDATE peerdb._run_table t "
							   "SET load_started_at = pg_catalog.clock_timestamp() FROM p "
							   "WHERE t.run = $1 AND t.ordinal = p.ordinal "
							   "AND t.load_started_at IS NULL",
							   SPI_OK_UPDATE, 3, ARG_INT8(run), ARG_INT8(partition),
							   ARG_INT4(snapshot));
	resync_catalog_finish();
}

void
resync_catalog_partition_done(int64 run, int64 partition, int snapshot, int64 rows, int64 bytes)
{
	(void) resync_catalog_exec(
		"WITH p AS (UPDATE peerdb._partition SET status = 'done', rows = $3, "
		"bytes = $4, snapshot = NULLIF($5, 0), finished_at = pg_catalog.clock_timestamp() "
		"WHERE run = $1 AND partition = $2 AND status <> 'done' "
		"RETURNING rows, bytes) "
		"UPDATE peerdb._run r "
		"SET rows_loaded = COALESCE(r.rows_loaded, 0) + p.rows, "
		"bytes_sent = COALESCE(r.bytes_sent, 0) + p.bytes FROM p "
		"WHERE r.run = $1",
		SPI_OK_UPDATE, 5, ARG_INT8(run), ARG_INT8(partition), ARG_INT8(rows), ARG_INT8(bytes),
		ARG_INT4(snapshot));
	resync_catalog_finish();
}

/*
 * Rows that were counted and are not at the destination any more.  Bytes stay:
 * they were sent.  where: a condition on p, with $1 the run and $2.
 */
static void
uncount_rows(int64 run, const char *where, int64 arg)
{
	char *sql = psprintf("UPDATE peerdb._run r SET rows_loaded = r.rows_loaded - "
						 "(SELECT COALESCE(pg_catalog.sum(p.rows), 0)::bigint "
						 "FROM peerdb._partition p "
						 "WHERE p.run = $1 AND p.status = 'done' AND %s) "
						 "WHERE r.run = $1 AND r.rows_loaded IS NOT NULL",
						 where);

	(void) resync_catalog_exec(sql, SPI_OK_UPDATE, 2, ARG_INT8(run), ARG_INT8(arg));
	resync_catalog_finish();
	pfree(sql);
}

void
resync_catalog_partition_reset(int64 run, int64 partition)
{
	uncount_rows(run, "p.partition = $2", partition);
	(void) resync_catalog_exec("UPDATE peerdb._partition SET status = 'waiting', snapshot = NULL, "
							   "rows = NULL, bytes = NULL, started_at = NULL, finished_at = NULL "
							   "WHERE run = $1 AND partition = $2",
							   SPI_OK_UPDATE, 2, ARG_INT8(run), ARG_INT8(partition));
	resync_catalog_finish();
}

void
resync_catalog_clear_partitions(int64 run, int ordinal)
{
	uncount_rows(run, "(p.ordinal = $2 OR $2 < 0)", ordinal);
	(void) resync_catalog_exec("DELETE FROM peerdb._partition "
							   "WHERE run = $1 AND (ordinal = $2 OR $2 < 0)",
							   SPI_OK_DELETE, 2, ARG_INT8(run), ARG_INT4(ordinal));
	resync_catalog_finish();
	(void) resync_catalog_exec("UPDATE peerdb._run_table SET partitions_total = NULL, "
							   "rows_total_estimate = NULL, bytes_total = NULL, "
							   "load_started_at = NULL "
							   "WHERE run = $1 AND (ordinal = $2 OR $2 < 0)",
							   SPI_OK_UPDATE, 2, ARG_INT8(run), ARG_INT4(ordinal));
	resync_catalog_finish();
}

/* ----------------------------------------------------------------
 *		statistics and history
 * ----------------------------------------------------------------
 */

void
resync_catalog_add_batches(int64 mirror, int64 run, const RunBatch *batches, int n)
{
	int64 rows = 0;

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
	{
		const RunBatch *b = &batches[i];

		(void) resync_catalog_exec(
			"INSERT INTO peerdb._batch (mirror, batch, run, first_lsn, "
			"last_lsn, rows, started_at, finished_at) "
			"SELECT $1, COALESCE(pg_catalog.max(batch), 0) + 1, $2, $3, $4, $5, "
			"$6, $7 FROM peerdb._batch WHERE mirror = $1",
			SPI_OK_INSERT, 7, ARG_INT8(mirror), ARG_INT8(run), ARG_LSN(b->first_lsn),
			ARG_LSN(b->last_lsn), ARG_INT8(b->rows), TIMESTAMPTZOID,
			TimestampTzGetDatum(b->started), false, TIMESTAMPTZOID,
			TimestampTzGetDatum(b->finished), false);
		resync_catalog_finish();
		rows += b->rows;
	}
	(void) resync_catalog_exec(
		"UPDATE peerdb._run SET rows_synced = rows_synced + $2 WHERE run = $1", SPI_OK_UPDATE, 2,
		ARG_INT8(run), ARG_INT8(rows));
	resync_catalog_finish();
}

void
resync_catalog_clear_stats(int64 mirror, int64 keep_run)
{
	(void) resync_catalog_exec("DELETE FROM peerdb._batch WHERE mirror = $1 AND run <> $2",
							   SPI_OK_DELETE, 2, ARG_INT8(mirror), ARG_INT8(keep_run));
	resync_catalog_finish();
	(void) resync_catalog_exec("DELETE FROM peerdb._partition p USING peerdb._run r "
							   "WHERE p.run = r.run AND r.mirror = $1 AND r.run <> $2",
							   SPI_OK_DELETE, 2, ARG_INT8(mirror), ARG_INT8(keep_run));
	resync_catalog_finish();
}

void
resync_catalog_prune(void)
{
	/* the live run is needed, and the newest is what the user sees */
	static const char *const queries[] = {
		"DELETE FROM peerdb._batch WHERE finished_at < $1",
		"DELETE FROM peerdb._log WHERE logged_at < $1",
		"DELETE FROM peerdb._run r WHERE r.phase = 'ended' AND r.finished_at < $1 "
		"AND NOT EXISTS (SELECT FROM peerdb._mirror m WHERE m.id = r.mirror "
		"AND (m.newest_run = r.run OR m.live_run = r.run)) "
		"AND NOT EXISTS (SELECT FROM peerdb._run o WHERE o.replaces = r.run AND o.phase <> 'ended') "
		"AND NOT EXISTS (SELECT FROM peerdb._cleanup c WHERE c.run = r.run)",
	};
	TimestampTz before = GetCurrentTimestamp() -
						 (TimestampTz) resync_log_retention * SECS_PER_MINUTE * USECS_PER_SEC;

	for (int i = 0; i < lengthof(queries); i++)
	{
		(void) resync_catalog_exec(queries[i], SPI_OK_DELETE, 1, TIMESTAMPTZOID,
								   TimestampTzGetDatum(before), false);
		resync_catalog_finish();
	}
}
