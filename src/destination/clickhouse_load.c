/*
 * clickhouse_load.c
 *		The initial load into a ClickHouse destination.
 *
 * Called by copiers (load_*) and the coordinator (done_partitions,
 * count_rows).  A partition is one INSERT or more ("requests"), each at most as
 * much as the server puts into one block, so that it is there wholly or not at
 * all; then its done-mark.  The block that is filled goes out while the table
 * is read on.
 *
 * A partition that is loaded again after a failure may have requests there
 * already.  In a table with a key the same rows with the same version 0 make no
 * difference.  In one without, a request is one block, cut by constants alone,
 * and has the same token, so that the server leaves out those it has (it does so
 * block by block: the same token over other blocks would lose or double rows).
 * Under one snapshot a range of the heap gives the same rows in the same order,
 * and under another one the table is made anew (reset_table).
 *
 * Memory: one block, at most resync.copier_buffer and a row, and as much in the
 * upload's buffers.
 */
#include "postgres.h"

#include "destination/clickhouse.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* A request's size where tokens do not matter: less than the server's block. */
#define REQUEST_ROWS 1000000
#define REQUEST_BYTES (200 * 1024 * 1024)

/* Rows between two looks at network and clock. */
#define PUMP_ROWS 256

/* A server waits 30 s for the next piece of a body. */
#define SILENCE_MS 5000

uint64
resync_ch_now(void)
{
	return (uint64) (GetCurrentTimestamp() +
					 (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY) *
		   1000;
}

static void
forget_load(ChDestination *dest)
{
	if (dest->load.context != NULL)
		MemoryContextDelete(dest->load.context);
	memset(&dest->load, 0, sizeof(ChLoad));
}

/* The rows of the mark of a partition, or -1. */
static int64
read_mark(ChDestination *dest, int64 partition)
{
	ChResult *res = resync_ch_query(
		dest, psprintf("SELECT rows FROM %s FINAL WHERE %s AND partition = " INT64_FORMAT,
					   resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
					   resync_ch_run_condition(dest), partition));

	return res->nrows > 0 ? strtoll(ch_value(res, 0, 0), NULL, 10) : -1;
}

bool
resync_ch_load_begin(Destination *head, const ResyncTable *table, TupleDesc desc, int64 partition)
{
	ChDestination *dest = (ChDestination *) head;
	ChLoad		  *load = &dest->load;
	MemoryContext  old = resync_ch_enter(dest);
	NativeExtra	   extras[3];
	int			   nextras;
	ChFence		   fence;

	forget_load(dest);
	load->sent_before = resync_http_sent(dest->http);
	resync_ch_fence(dest, &fence);
	if (read_mark(dest, partition) >= 0)
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	resync_ch_require_owned(dest, table, false);

	load->context = AllocSetContextCreate(head->context, "resync partition",
										  ALLOCSET_DEFAULT_SIZES);
	load->row_context = AllocSetContextCreate(load->context, "resync row", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(load->context);
	load->table = table;
	load->partition = partition;
	load->append = table->nkeys == 0;
	load->synced_at = resync_ch_now();
	load->insert = resync_ch_insert(dest, table, false);
	nextras = resync_ch_extras(dest, extras);
	load->block = resync_native_make(table, resync_encode_ch_make(desc, table), extras, nextras,
									 load->append ? CH_APPEND_REQUEST_BYTES
												  : (Size) resync_copier_buffer * 1024);
	load->active = true;
	MemoryContextSwitchTo(old);
	return true;
}

/* Hand the block over; the first one begins the request. */
static void
flush_block(ChDestination *dest)
{
	ChLoad *load = &dest->load;

	if (resync_native_rows(load->block) == 0)
		return;
	if (!load->uploading)
	{
		char *token = NULL;

		if (load->append)
			token = psprintf("%s/" INT64_FORMAT "/load/" INT64_FORMAT "/" INT64_FORMAT,
							 dest->head.id->token, dest->head.id->run, load->partition,
							 load->request);
		resync_ch_upload_begin(dest, load->insert, CH_WHAT_LOAD, token);
		load->uploading = true;
	}
	load->request_bytes += resync_native_write(load->block, resync_ch_upload_put, dest);
	load->put_at = GetCurrentTimestamp();
}

static void
end_request(ChDestination *dest)
{
	ChLoad *load = &dest->load;

	flush_block(dest);
	if (load->uploading)
	{
		RESYNC_DEBUG_POINT("ch_before_request_end");
		load->rows += resync_ch_upload_end(dest, load->request_rows);
		RESYNC_DEBUG_POINT("ch_after_request");
	}
	load->uploading = false;
	load->request++;
	load->request_rows = 0;
	load->request_bytes = 0;
}

/* The block is full: may the request not have another one? */
static bool
request_is_full(const ChLoad *load)
{
	/* with a rate limit the process sleeps between blocks: nothing stays open then */
	return load->append || resync_load_rate_limit > 0 ||
		   load->request_rows + RESYNC_NATIVE_ROWS > REQUEST_ROWS ||
		   load->request_bytes + (int64) resync_copier_buffer * 1024 > REQUEST_BYTES;
}

void
resync_ch_load_relation(Destination *head, TupleDesc desc)
{
	ChLoad		 *load = &((ChDestination *) head)->load;
	MemoryContext old = MemoryContextSwitchTo(load->context);

	resync_native_set_encoder(load->block, resync_encode_ch_make(desc, load->table));
	MemoryContextSwitchTo(old);
}

void
resync_ch_load_row(Destination *head, TupleTableSlot *slot)
{
	ChDestination *dest = (ChDestination *) head;
	ChLoad		  *load = &dest->load;
	uint64		   extra[3] = {0, 0, load->synced_at};
	MemoryContext  old;

	Assert(load->active);
	slot_getallattrs(slot);
	old = MemoryContextSwitchTo(load->row_context);
	load->request_rows++;
	if (resync_native_add_tuple(load->block, slot->tts_values, slot->tts_isnull, extra))
	{
		flush_block(dest);
		if (request_is_full(load))
			end_request(dest);
	}
	else if (load->uploading && load->request_rows % PUMP_ROWS == 0)
	{
		resync_http_upload_pump(dest->http);
		if (TimestampDifferenceExceeds(load->put_at, GetCurrentTimestamp(), SILENCE_MS))
			flush_block(dest);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(load->row_context);
}

int64
resync_ch_load_finish(Destination *head)
{
	ChDestination *dest = (ChDestination *) head;
	ChLoad		  *load = &dest->load;
	MemoryContext  old = resync_ch_enter(dest);
	int64		   rows;

	Assert(load->active);
	end_request(dest);
	rows = load->rows;
	RESYNC_DEBUG_POINT("ch_before_done_mark");
	resync_ch_exec(
		dest,
		psprintf("INSERT INTO %s (token, run, partition, life, ordinal, rows, gone, seq)"
				 " SELECT %s, " INT64_FORMAT ", " INT64_FORMAT ", " UINT64_FORMAT
				 ", %d, " INT64_FORMAT
				 ", 0, (SELECT max(seq) + 1 FROM %s WHERE %s AND partition = " INT64_FORMAT ")",
				 resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
				 resync_ch_literal(head->id->token), head->id->run, load->partition, dest->life,
				 load->table->ordinal, rows, resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
				 resync_ch_run_condition(dest), load->partition),
		CH_WHAT_LOAD);
	load->final_bytes = resync_http_sent(dest->http) - load->sent_before;
	load->active = false;
	MemoryContextDelete(load->context);
	load->context = NULL;
	MemoryContextSwitchTo(old);
	return rows;
}

void
resync_ch_load_abort(Destination *head)
{
	ChDestination *dest = (ChDestination *) head;

	resync_http_upload_abort(dest->http);
	forget_load(dest);
}

int64
resync_ch_load_bytes(Destination *head)
{
	ChDestination *dest = (ChDestination *) head;

	if (!dest->load.active)
		return dest->load.final_bytes;
	return resync_http_sent(dest->http) - dest->load.sent_before;
}

List *
resync_ch_done_partitions(Destination *head)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	List		  *result = NIL;
	ChFence		   fence;
	ChResult	  *res;

	/* a mark that a dead copier has sent comes now or never */
	resync_ch_fence(dest, &fence);
	resync_ch_kill(dest, head->id->run, CH_WHAT_LOAD);
	res = resync_ch_query(dest, psprintf("SELECT partition, rows FROM %s FINAL WHERE %s ORDER BY 1",
										 resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
										 resync_ch_run_condition(dest)));
	MemoryContextSwitchTo(old);
	for (int i = 0; i < res->nrows; i++)
	{
		DonePartition *done = palloc(sizeof(DonePartition));

		done->partition = strtoll(ch_value(res, i, 0), NULL, 10);
		done->rows = strtoll(ch_value(res, i, 1), NULL, 10);
		result = lappend(result, done);
	}
	return result;
}

/* ---------------------------------------------------------------------
 * Counting
 * ------------------------------------------------------------------ */

static int64
query_count(ChDestination *dest, const char *sql)
{
	ChStatement	  statement = {.sql = sql, .what = CH_WHAT_READ, .timeout_ms = CH_TIMEOUT_NONE};
	HttpResponse *response;

	(void) resync_ch_send(dest, &statement, &response);
	return strtoll(response->body.data, NULL, 10);
}

/* The key's columns with commas, in backquotes. */
char *
resync_ch_key_list(const ResyncTable *table)
{
	const ResyncColumn **key = resync_destination_key(table);
	StringInfoData		 buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", resync_ch_ident(key[i]->dest_name));
	return buf.data;
}

/* Rows that a reader takes for the table's. */
static int64
count_live(ChDestination *dest, const ResyncTable *table, const char *name)
{
	const char *deleted = resync_ch_ident(resync_ch_deleted_column(dest));

	if (!resync_ch_appends(table))
		return query_count(dest, psprintf("SELECT count() FROM %s FINAL", name));
	if (table->nkeys == 0)
		return query_count(dest, psprintf("SELECT count() FROM %s WHERE NOT %s", name, deleted));
	return query_count(dest, psprintf("SELECT count() FROM (SELECT argMax(%s, %s) AS d FROM %s"
									  " GROUP BY %s) WHERE NOT d",
									  deleted, resync_ch_ident(CH_VERSION_COLUMN), name,
									  resync_ch_key_list(table)));
}

/*
 * After the load.  A partition that was loaded twice has its rows there twice:
 * then keys are counted.  Under several snapshots a row may rightly be in two
 * partitions, and of a try that came to nothing there may be rows that the later
 * snapshot has not (WAL deletes them): then more rows than expected tell nothing,
 * and fewer may be those of equal keys that were merged (merges_rows).
 */
static int64
count_build(ChDestination *dest, const ResyncTable *table, const char *name)
{
	int64	rows = query_count(dest, psprintf("SELECT count() FROM %s", name));
	int64	expected;
	int64	keys;
	ChFence fence;

	if (table->nkeys == 0)
		return rows;
	resync_ch_fence(dest, &fence);
	expected = query_count(dest,
						   psprintf("SELECT sum(rows) FROM %s FINAL WHERE %s AND ordinal = %d",
									resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
									resync_ch_run_condition(dest), table->ordinal));
	if (rows == expected || (table->multi_snapshot && rows > expected))
		return expected;
	if (resync_ch_appends(table))
		keys = query_count(
			dest, psprintf("SELECT uniqExact(%s) FROM %s", resync_ch_key_list(table), name));
	else
		keys = query_count(dest, psprintf("SELECT count() FROM %s FINAL", name));
	return keys;
}

int64
resync_ch_count_rows(Destination *head, const ResyncTable *table, bool build, bool live_only)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	const char	  *name = resync_ch_table_name(dest, build ? table->build_name : table->dest_name);
	int64 rows = live_only ? count_live(dest, table, name) : count_build(dest, table, name);

	MemoryContextSwitchTo(old);
	return rows;
}
