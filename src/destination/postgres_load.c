/*
 * postgres_load.c
 *		The initial load into a PostgreSQL destination.
 *
 * Called by copiers (load_*) and the coordinator (done_partitions,
 * count_rows).  A partition is one transaction: fence, COPY, done-mark,
 * COMMIT.  The done-mark is unique, so a partition that two backends loaded
 * (one of them left over from a worker that died) is there once.  Memory: one
 * chunk here, the setting's amount in libpq, and one row.
 */
#include "postgres.h"

#include "destination/postgres.h"

#include "access/tupdesc.h"
#include "utils/memutils.h"

static const char copy_signature[] = "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0";

#define COPY_SIGNATURE_LEN 19 /* 11, flags, length of extension */

static char *
mark_query(PgDestination *dest, int64 partition)
{
	return psprintf("SELECT rows FROM %s.resync_partition p WHERE %s AND partition = " INT64_FORMAT,
					dest->meta_quoted, resync_pg_run_condition(dest, "p"), partition);
}

/* Hand the chunk to libpq. */
static void
send_chunk(PgDestination *dest)
{
	PgLoad *load = &dest->load;

	if (load->chunk->len == 0)
		return;
	resync_pq_copy_put(dest->conn, load->chunk->data, load->chunk->len,
					   (Size) resync_copier_buffer * 1024);
	load->bytes += load->chunk->len;
	resetStringInfo(load->chunk);
}

static void
forget_load(PgDestination *dest)
{
	if (dest->load.context != NULL)
		MemoryContextDelete(dest->load.context);
	dest->load.context = NULL;
	dest->load.active = false;
}

bool
resync_pg_load_begin(Destination *head, const ResyncTable *table, TupleDesc desc, int64 partition)
{
	PgDestination *dest = (PgDestination *) head;
	PgLoad		  *load = &dest->load;
	MemoryContext  old = resync_pg_enter(dest);
	PgFenceInfo	   info;
	PGresult	  *res;
	StringInfoData cols;

	load->bytes = 0;
	resync_pg_begin(dest, PG_FENCE_SHARE, "", table->ordinal, &info);
	res = resync_pq_exec(dest->conn, mark_query(dest, partition));
	if (PQntuples(res) > 0)
	{
		resync_pg_rollback(dest);
		MemoryContextSwitchTo(old);
		return false;
	}
	resync_pg_require_owned(&info, table, false);

	forget_load(dest);
	load->context = AllocSetContextCreate(head->context, "resync partition",
										  ALLOCSET_DEFAULT_SIZES);
	load->row_context = AllocSetContextCreate(load->context, "resync row", ALLOCSET_DEFAULT_SIZES);
	load->table = table;
	load->partition = partition;
	load->text = resync_pg_is_text(table);

	initStringInfo(&cols);
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&cols, "%s%s", i > 0 ? ", " : "",
						 resync_pq_ident(table->cols[i].dest_name));
	resync_pq_copy_begin(dest->conn,
						 psprintf("COPY %s (%s) FROM STDIN (FORMAT %s)", resync_pg_build(table),
								  cols.data, load->text ? "text" : "binary"));
	load->active = true;

	MemoryContextSwitchTo(load->context);
	load->encoder = resync_encode_pg_make(desc, table->cols, table->ncols);
	load->chunk = makeStringInfo();
	load->row = makeStringInfo();
	enlargeStringInfo(load->chunk, PG_COPY_CHUNK + 8192);
	if (!load->text)
		appendBinaryStringInfo(load->chunk, copy_signature, COPY_SIGNATURE_LEN);
	MemoryContextSwitchTo(old);
	return true;
}

void
resync_pg_load_relation(Destination *head, TupleDesc desc)
{
	PgLoad		 *load = &((PgDestination *) head)->load;
	MemoryContext old = MemoryContextSwitchTo(load->context);

	load->encoder = resync_encode_pg_make(desc, load->table->cols, load->table->ncols);
	MemoryContextSwitchTo(old);
}

void
resync_pg_load_row(Destination *head, TupleTableSlot *slot)
{
	PgDestination *dest = (PgDestination *) head;
	PgLoad		  *load = &dest->load;
	MemoryContext  old;

	Assert(load->active);
	slot_getallattrs(slot);
	old = MemoryContextSwitchTo(load->row_context);
	if (load->text)
	{
		resetStringInfo(load->row);
		resync_encode_row(load->encoder, slot->tts_values, slot->tts_isnull, load->row);
		resync_encode_copy_text_line(load->row->data, load->table->ncols, load->chunk);
	}
	else
	{
		uint16 n = pg_hton16((uint16) load->table->ncols);

		appendBinaryStringInfo(load->chunk, (char *) &n, sizeof(n));
		resync_encode_row(load->encoder, slot->tts_values, slot->tts_isnull, load->chunk);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(load->row_context);
	if (load->chunk->len >= PG_COPY_CHUNK)
		send_chunk(dest);
}

int64
resync_pg_load_finish(Destination *head)
{
	PgDestination *dest = (PgDestination *) head;
	PgLoad		  *load = &dest->load;
	MemoryContext  old = resync_pg_enter(dest);
	int64		   rows;
	int			   sqlstate;

	Assert(load->active);
	if (!load->text)
	{
		static const char trailer[2] = {'\377', '\377'};

		appendBinaryStringInfo(load->chunk, trailer, sizeof(trailer));
	}
	send_chunk(dest);
	rows = resync_pq_copy_end(dest->conn);
	load->active = false;
	if (!resync_pq_try(
			dest->conn,
			psprintf(
				"INSERT INTO %s.resync_partition (token, run, partition, ordinal, rows) VALUES (%s, " INT64_FORMAT
				", " INT64_FORMAT ", %d, " INT64_FORMAT "); COMMIT",
				dest->meta_quoted, resync_pg_literal(head->id->token), head->id->run,
				load->partition, load->table->ordinal, rows),
			ERRCODE_UNIQUE_VIOLATION, &sqlstate))
	{
		/* somebody else was first: his rows count */
		resync_pg_rollback(dest);
		rows = -1;
	}
	forget_load(dest);
	MemoryContextSwitchTo(old);
	return rows;
}

void
resync_pg_load_abort(Destination *head)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);

	if (dest->load.active)
	{
		dest->load.active = false;
		resync_pq_copy_abort(dest->conn);
		if (PQstatus(dest->conn) == CONNECTION_OK &&
			PQtransactionStatus(dest->conn) != PQTRANS_IDLE)
			resync_pg_rollback(dest);
	}
	forget_load(dest);
	MemoryContextSwitchTo(old);
}

int64
resync_pg_load_bytes(Destination *head)
{
	return ((PgDestination *) head)->load.bytes;
}

List *
resync_pg_done_partitions(Destination *head)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	List		  *result = NIL;
	PGresult	  *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf("SELECT partition, rows FROM %s.resync_partition p WHERE %s ORDER BY 1",
				 dest->meta_quoted, resync_pg_run_condition(dest, "p")));
	MemoryContextSwitchTo(old);
	for (int i = 0; i < PQntuples(res); i++)
	{
		DonePartition *done = palloc(sizeof(DonePartition));

		done->partition = strtoll(PQgetvalue(res, i, 0), NULL, 10);
		done->rows = strtoll(PQgetvalue(res, i, 1), NULL, 10);
		result = lappend(result, done);
	}
	resync_pq_clear(res);
	return result;
}

int64
resync_pg_count_rows(Destination *head, const ResyncTable *table, bool build, bool live_only)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	const char	  *soft_delete = resync_pg_soft_delete_column(dest);
	PGresult	  *res;
	int64		   rows;

	res = resync_pq_exec(dest->conn,
						 psprintf("SELECT count(*) FROM ONLY %s%s%s",
								  build ? resync_pg_build(table) : resync_pg_live(table),
								  live_only && soft_delete ? " WHERE NOT " : "",
								  live_only && soft_delete ? resync_pq_ident(soft_delete) : ""));
	rows = strtoll(PQgetvalue(res, 0, 0), NULL, 10);
	MemoryContextSwitchTo(old);
	return rows;
}
