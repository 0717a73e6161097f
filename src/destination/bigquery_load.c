/*
 * bigquery_load.c
 *		The initial load into a BigQuery destination.
 *
 * Called by copiers (load_*) and the coordinator (done_partitions,
 * count_rows).  A partition is one file and one load job, which appends all of
 * its rows or none; then comes its done-mark.  The job's id is made of the
 * table's life, the partition and the attempt: before an attempt, those before
 * it are looked for, and one that has succeeded counts.
 *
 * Memory: a block of the file, and a chunk of the upload, which is at most
 * resync.copier_buffer.
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include "utils/memutils.h"

static void
forget_load(BqDestination *dest)
{
	if (dest->load.context != NULL)
		MemoryContextDelete(dest->load.context);
	memset(&dest->load, 0, sizeof(BqLoad));
}

/* The partition is there.  The id says that it is marked once. */
static void
put_mark(BqDestination *dest, const BqLoad *load, int64 rows)
{
	(void) resync_bq_exec(
		dest,
		psprintf("INSERT INTO %s (token, run, life, part, ordinal, row_count,"
				 " changed_at) VALUES (%s, " INT64_FORMAT ", %s, " INT64_FORMAT
				 ", %d, " INT64_FORMAT ", CURRENT_TIMESTAMP())",
				 resync_bq_table(dest, BQ_PARTITIONS_TABLE),
				 resync_bq_literal(dest->head.id->token), dest->head.id->run,
				 resync_bq_literal(dest->life), load->partition, load->table->ordinal, rows),
		resync_bq_job_id(dest, psprintf("mark_%s_" INT64_FORMAT, load->life, load->partition)),
		NULL);
}

static bool
has_mark(BqDestination *dest, int64 partition)
{
	BqResult *res = resync_bq_query(
		dest,
		psprintf("SELECT row_count FROM %s WHERE %s AND life = %s AND part = " INT64_FORMAT,
				 resync_bq_table(dest, BQ_PARTITIONS_TABLE),
				 resync_bq_run_condition(dest, dest->head.id->run), resync_bq_literal(dest->life),
				 partition),
		false);

	return res->nrows > 0;
}

/*
 * Earlier attempts at the partition: true, with rows, if one has succeeded or
 * does so now; else *attempt is the number of the next one.
 */
static bool
find_done(BqDestination *dest, const char *base, int *attempt, int64 *rows)
{
	for (*attempt = 1;; (*attempt)++)
	{
		char	 *id = psprintf("%s_%d", base, *attempt);
		JsonNode *job = resync_bq_find_job(dest, id);

		if (job == NULL)
			return false;
		job = resync_bq_wait_job(dest, id, job);
		if (resync_bq_job_failed(job))
			continue;
		*rows = resync_bq_output_rows(job);
		return true;
	}
}

/* What a partition needs, in its own context. */
static void
prepare(BqDestination *dest, TupleDesc desc, const char *id)
{
	BqLoad			  *load = &dest->load;
	const ResyncTable *table = load->table;
	AvroColumn		   extras[BQ_MAX_EXTRAS];
	StringInfoData	   buf;
	int				   nextras = resync_bq_extras(dest, extras);

	initStringInfo(&buf);
	resync_bq_extra_fields(dest, false, &buf, load->extras);
	load->writer = resync_avro_make(table, resync_bq_avro_columns(table, extras, nextras),
									table->ncols + nextras, BQ_MAX_ROW);
	load->encoder = resync_encode_bq_make(desc, table);
	load->upload = resync_bq_upload_make(dest, table->build_name, resync_bq_schema(dest, table),
										 false, id);
}

bool
resync_bq_load_begin(Destination *head, const ResyncTable *table, TupleDesc desc, int64 partition)
{
	BqDestination *dest = (BqDestination *) head;
	BqLoad		  *load = &dest->load;
	MemoryContext  old = resync_bq_enter(dest);
	int			   attempt;
	int64		   rows;
	BqFence		   fence;

	forget_load(dest);
	load->sent_before = resync_http_sent(dest->http);
	resync_bq_fence(dest, &fence);
	if (has_mark(dest, partition))
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	load->context = AllocSetContextCreate(head->context, "resync partition",
										  ALLOCSET_DEFAULT_SIZES);
	load->row_context = AllocSetContextCreate(load->context, "resync row", ALLOCSET_DEFAULT_SIZES);
	load->table = table;
	load->partition = partition;
	load->life = MemoryContextStrdup(load->context,
									 resync_bq_require_owned(dest, table, false)->life);
	load->job = resync_bq_job_id(dest, psprintf("load_%s_" INT64_FORMAT, load->life, partition));
	if (find_done(dest, load->job, &attempt, &rows))
	{
		put_mark(dest, load, rows);
		MemoryContextSwitchTo(old);
		return false;
	}
	MemoryContextSwitchTo(load->context);
	prepare(dest, desc, psprintf("%s_%d", load->job, attempt));
	load->active = true;
	MemoryContextSwitchTo(old);
	return true;
}

void
resync_bq_load_relation(Destination *head, TupleDesc desc)
{
	BqLoad		 *load = &((BqDestination *) head)->load;
	MemoryContext old = MemoryContextSwitchTo(load->context);

	load->encoder = resync_encode_bq_make(desc, load->table);
	MemoryContextSwitchTo(old);
}

void
resync_bq_load_row(Destination *head, TupleTableSlot *slot)
{
	BqDestination *dest = (BqDestination *) head;
	BqLoad		  *load = &dest->load;
	MemoryContext  old;

	Assert(load->active);
	slot_getallattrs(slot);
	old = MemoryContextSwitchTo(load->row_context);
	if (resync_avro_add_tuple(load->writer, load->encoder, slot->tts_values, slot->tts_isnull,
							  load->extras))
		(void) resync_avro_write(load->writer, resync_bq_upload_put, load->upload);
	MemoryContextSwitchTo(old);
	MemoryContextReset(load->row_context);
}

int64
resync_bq_load_finish(Destination *head)
{
	BqDestination *dest = (BqDestination *) head;
	BqLoad		  *load = &dest->load;
	MemoryContext  old = resync_bq_enter(dest);
	int64		   rows = 0;
	bool		   known = false;

	Assert(load->active);
	/* no job for nothing: they are counted */
	if (resync_avro_rows(load->writer) > 0)
	{
		JsonNode *job;

		(void) resync_avro_write(load->writer, resync_bq_upload_put, load->upload);
		RESYNC_DEBUG_POINT("bq_before_upload_end");
		job = resync_bq_upload_close(load->upload, &known);
		job = resync_bq_wait_job(dest, load->upload->id, job);
		RESYNC_DEBUG_POINT("bq_after_upload_end");
		if (resync_bq_job_failed(job))
			resync_bq_raise_job(job);
		rows = resync_bq_output_rows(job);
	}
	put_mark(dest, load, rows);
	load->final_bytes = resync_http_sent(dest->http) - load->sent_before;
	load->active = false;
	MemoryContextDelete(load->context);
	load->context = NULL;
	MemoryContextSwitchTo(old);
	return known ? -1 : rows;
}

/* A session that is not ended is forgotten by the service. */
void
resync_bq_load_abort(Destination *head)
{
	forget_load((BqDestination *) head);
}

int64
resync_bq_load_bytes(Destination *head)
{
	BqDestination *dest = (BqDestination *) head;

	if (!dest->load.active)
		return dest->load.final_bytes;
	return resync_http_sent(dest->http) - dest->load.sent_before;
}

List *
resync_bq_done_partitions(Destination *head)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	List		  *result = NIL;
	BqFence		   fence;
	BqResult	  *res;

	resync_bq_fence(dest, &fence);
	res = resync_bq_query(dest,
						  psprintf("SELECT part, MAX(row_count) AS n FROM %s WHERE %s AND life ="
								   " %s GROUP BY part ORDER BY part",
								   resync_bq_table(dest, BQ_PARTITIONS_TABLE),
								   resync_bq_run_condition(dest, head->id->run),
								   resync_bq_literal(dest->life)),
						  false);
	MemoryContextSwitchTo(old);
	for (int i = 0; i < res->nrows; i++)
	{
		DonePartition *done = palloc(sizeof(DonePartition));

		done->partition = strtoll(bq_value(res, i, 0), NULL, 10);
		done->rows = strtoll(bq_value(res, i, 1), NULL, 10);
		result = lappend(result, done);
	}
	return result;
}

int64
resync_bq_count_rows(Destination *head, const ResyncTable *table, bool build, bool live_only)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	const char	  *deleted = head->id->options->soft_delete_col_name;
	const char	  *name = resync_bq_table(dest, build ? table->build_name : table->dest_name);
	BqResult	  *res;
	int64		   rows;

	res = resync_bq_query(dest,
						  live_only && deleted != NULL
							  ? psprintf("SELECT COUNT(*) AS n FROM %s WHERE NOT IFNULL(%s, FALSE)",
										 name, resync_bq_ident(deleted))
							  : psprintf("SELECT COUNT(*) AS n FROM %s", name),
						  false);
	rows = strtoll(bq_value(res, 0, 0), NULL, 10);
	MemoryContextSwitchTo(old);
	return rows;
}
