/*
 * snowflake_load.c
 *		The initial load into a Snowflake destination.
 *
 * Called by copiers (load_*) and the coordinator (done_partitions,
 * count_rows).  A partition's rows go into files in the stage; then one block
 * copies them into the table, counts what was loaded, and makes the done-mark, in
 * one transaction.
 *
 * Memory: one file (snowflake_stage.c).
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "utils/memutils.h"

/* Rows between two looks at the clock, for the session's sake. */
#define KEEP_ALIVE_ROWS 1024

static void
forget_load(SfDestination *dest)
{
	if (dest->load.context != NULL)
		MemoryContextDelete(dest->load.context);
	memset(&dest->load, 0, sizeof(SfLoad));
}

/* Of a partition's mark. */
static char *
mark_condition(SfDestination *dest, int64 partition)
{
	return psprintf("%s AND life = %s AND part = " INT64_FORMAT,
					resync_sf_run_condition(dest, dest->head.id->run),
					resync_sf_literal(dest->life), partition);
}

bool
resync_sf_load_begin(Destination *head, const ResyncTable *table, TupleDesc desc, int64 partition)
{
	SfDestination *dest = (SfDestination *) head;
	SfLoad		  *load = &dest->load;
	MemoryContext  old = resync_sf_enter(dest);
	SfFence		   fence;

	forget_load(dest);
	load->sent_before = resync_sf_sent(dest);
	resync_sf_fence(dest, &fence);
	if (resync_sf_number(dest, psprintf("SELECT COUNT(*) FROM %s WHERE %s",
										resync_sf_own(dest, SF_PARTITIONS_TABLE),
										mark_condition(dest, partition))) > 0)
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	if (!resync_sf_is_role(dest, resync_sf_find_table(dest, table, true), SF_ROLE_BUILD))
		resync_destination_raise_not_made(resync_sf_table(dest, table, true));
	load->context = AllocSetContextCreate(head->context, "resync partition",
										  ALLOCSET_DEFAULT_SIZES);
	load->row_context = AllocSetContextCreate(load->context, "resync row", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(load->context);
	load->table = table;
	load->partition = partition;
	load->encoder = resync_encode_sf_make(desc, table);
	load->nextras = resync_sf_extra_fields(dest, load->extras);
	resync_sf_files_make(dest, table, &load->files);
	load->active = true;
	MemoryContextSwitchTo(old);
	return true;
}

void
resync_sf_load_relation(Destination *head, TupleDesc desc)
{
	SfLoad		 *load = &((SfDestination *) head)->load;
	MemoryContext old = MemoryContextSwitchTo(load->context);

	load->encoder = resync_encode_sf_make(desc, load->table);
	MemoryContextSwitchTo(old);
}

void
resync_sf_load_row(Destination *head, TupleTableSlot *slot)
{
	SfDestination *dest = (SfDestination *) head;
	SfLoad		  *load = &dest->load;
	MemoryContext  old;

	Assert(load->active);
	slot_getallattrs(slot);
	old = MemoryContextSwitchTo(load->row_context);
	if (resync_csv_add_tuple(load->files.csv, load->encoder, slot->tts_values, slot->tts_isnull,
							 load->extras, load->nextras))
		resync_sf_files_store(&load->files);
	if (++load->rows % KEEP_ALIVE_ROWS == 0)
		resync_sf_keep_alive(dest);
	MemoryContextSwitchTo(old);
	MemoryContextReset(load->row_context);
}

/* The COPYs, each counted, and the whole compared with what was sent. */
static char *
copy_block(SfDestination *dest)
{
	SfLoad		  *load = &dest->load;
	StringInfoData block;
	ListCell	  *lc;
	List		  *copies;

	initStringInfo(&block);
	copies = resync_sf_files_copy(&load->files, resync_sf_table(dest, load->table, true),
								  resync_sf_all_columns(dest, load->table),
								  resync_sf_all_values(dest, load->table));
	foreach(lc, copies)
		appendStringInfo(&block,
						 "  %s;\n"
						 "  SELECT SUM(\"rows_loaded\") INTO :got FROM"
						 " TABLE(RESULT_SCAN(LAST_QUERY_ID()));\n"
						 "  total := total + got;\n",
						 (char *) lfirst(lc));
	appendStringInfo(&block,
					 "  IF (total <> " INT64_FORMAT ") THEN\n    ROLLBACK;\n"
					 "    RETURN 'rows loaded: ' || total;\n  END IF;\n",
					 load->files.rows);
	return block.data;
}

int64
resync_sf_load_finish(Destination *head)
{
	SfDestination *dest = (SfDestination *) head;
	SfLoad		  *load = &dest->load;
	MemoryContext  old = resync_sf_enter(dest);
	int64		   rows = 0;
	bool		   marked;

	Assert(load->active);
	resync_sf_files_store(&load->files);
	RESYNC_DEBUG_POINT("sf_before_load_end");
	marked = resync_sf_transaction(
		dest, copy_block(dest),
		psprintf("  UPDATE %s SET changed_at = SYSDATE() WHERE %s",
				 resync_sf_own(dest, SF_RUNS_TABLE), resync_sf_fence_condition(dest)),
		psprintf("  INSERT INTO %s (token, run, life, part, ordinal, row_count, changed_at)"
				 " SELECT %s, " INT64_FORMAT ", %s, " INT64_FORMAT ", %d, " INT64_FORMAT
				 ", SYSDATE() WHERE NOT EXISTS (SELECT 1 FROM %s WHERE %s)",
				 resync_sf_own(dest, SF_PARTITIONS_TABLE), resync_sf_literal(head->id->token),
				 head->id->run, resync_sf_literal(dest->life), load->partition,
				 load->table->ordinal, load->files.rows, resync_sf_own(dest, SF_PARTITIONS_TABLE),
				 mark_condition(dest, load->partition)),
		&rows);
	RESYNC_DEBUG_POINT("sf_after_load_end");
	dest->staged = false;
	load->final_bytes = resync_sf_sent(dest) - load->sent_before;
	load->active = false;
	MemoryContextDelete(load->context);
	load->context = NULL;
	MemoryContextSwitchTo(old);
	return marked ? rows : -1;
}

/* Its files go with the session. */
void
resync_sf_load_abort(Destination *head)
{
	forget_load((SfDestination *) head);
}

int64
resync_sf_load_bytes(Destination *head)
{
	SfDestination *dest = (SfDestination *) head;

	if (!dest->load.active)
		return dest->load.final_bytes;
	return resync_sf_sent(dest) - dest->load.sent_before;
}

/* In steps: an answer holds so many rows. */
#define DONE_STEP 5000

List *
resync_sf_done_partitions(Destination *head)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	List		  *result = NIL;
	int64		   last = PG_INT64_MIN;
	SfFence		   fence;
	SfResult	  *res;

	resync_sf_fence(dest, &fence);
	do
	{
		res = resync_sf_query(
			dest, psprintf("SELECT part, MAX(row_count) FROM %s WHERE %s AND life = %s AND part"
						   " > " INT64_FORMAT " GROUP BY part ORDER BY part LIMIT %d",
						   resync_sf_own(dest, SF_PARTITIONS_TABLE),
						   resync_sf_run_condition(dest, head->id->run),
						   resync_sf_literal(dest->life), last, DONE_STEP));
		for (int i = 0; i < res->nrows; i++)
		{
			DonePartition *done;

			MemoryContextSwitchTo(old);
			done = palloc(sizeof(DonePartition));
			last = done->partition = strtoll(resync_sf_need(res, i, 0), NULL, 10);
			done->rows = strtoll(resync_sf_need(res, i, 1), NULL, 10);
			result = lappend(result, done);
			MemoryContextSwitchTo(dest->call);
		}
	} while (res->nrows == DONE_STEP);
	MemoryContextSwitchTo(old);
	return result;
}

int64
resync_sf_count_rows(Destination *head, const ResyncTable *table, bool build, bool live_only)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	char		  *deleted = resync_sf_deleted(dest);
	char		  *name = resync_sf_table(dest, table, build);
	int64		   rows;

	rows = resync_sf_number(dest,
							live_only && deleted != NULL
								? psprintf("SELECT COUNT(*) FROM %s WHERE NOT IFNULL(%s, FALSE)",
										   name, resync_sf_ident(deleted))
								: psprintf("SELECT COUNT(*) FROM %s", name));
	MemoryContextSwitchTo(old);
	return rows;
}
