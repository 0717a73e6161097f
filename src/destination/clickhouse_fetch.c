/*
 * clickhouse_fetch.c
 *		Rows whose change left out values that it did not change (rule 7).
 *
 * Called by the streamer, outside of decoding callbacks.  ClickHouse replaces
 * whole rows, so all values are needed: first from the source by key, which has
 * the row as it is now (a newer value is followed by its own change); if it is
 * gone there, from the destination, as of before the batch; if it is gone there
 * too, a later change deletes it, and it goes out as a deleted row now: that
 * change may be a TRUNCATE, which marks only rows that are there.
 *
 * The destination answers with formatRow('RowBinary', value): a string whose
 * bytes are the field's, after the null byte of a Nullable.
 */
#include "postgres.h"

#include "destination/clickhouse.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

/* The answer is in memory as a whole: a few rows at a time, they may be large. */
#define LOOK_UP_STEP 16

/* ---------------------------------------------------------------------
 * Fields
 * ------------------------------------------------------------------ */

static bool
is_unchanged(const uint8 *bitmap, int i)
{
	return (bitmap[i / 8] & (1 << (i % 8))) != 0;
}

/* Start of each field of a row, and its length with the length word. */
static void
find_fields(const char *data, int ncols, const char **fields, int *lengths)
{
	for (int i = 0; i < ncols; i++)
	{
		uint32 n;

		memcpy(&n, data, 4);
		n = pg_ntoh32(n);
		fields[i] = data;
		lengths[i] = 4 + ((int32) n < 0 ? 0 : (int) n);
		data += lengths[i];
	}
}

static int
column_index(const ResyncTable *table, const ResyncColumn *col)
{
	return (int) (col - table->cols);
}

/* The key's fields, in key order. */
static void
append_key(const ResyncTable *table, const char *data, StringInfo out)
{
	const ResyncColumn **key = resync_destination_key(table);
	const char		   **fields = palloc(sizeof(char *) * table->ncols);
	int					*lengths = palloc(sizeof(int) * table->ncols);

	find_fields(data, table->ncols, fields, lengths);
	for (int i = 0; i < table->nkeys; i++)
	{
		int c = column_index(table, key[i]);

		appendBinaryStringInfo(out, fields[c], lengths[c]);
	}
}

/* The row with its unchanged columns from other, a whole row. */
static char *
merge(const ResyncTable *table, const BatchRow *row, const char *other)
{
	int			 n = table->ncols;
	const char **fields = palloc(sizeof(char *) * n * 2);
	int			*lengths = palloc(sizeof(int) * n * 2);
	Size		 size = 0;
	char		*result;
	char		*p;

	find_fields(row->data, n, fields, lengths);
	find_fields(other, n, fields + n, lengths + n);
	for (int i = 0; i < n; i++)
		size += lengths[i + (is_unchanged(row->unchanged, i) ? n : 0)];
	p = result = MemoryContextAllocHuge(CurrentMemoryContext, size);
	for (int i = 0; i < n; i++)
	{
		int from = i + (is_unchanged(row->unchanged, i) ? n : 0);

		memcpy(p, fields[from], lengths[from]);
		p += lengths[from];
	}
	return result;
}

static void
emit_merged(const ResyncTable *table, const BatchRow *row, const char *other, ChEmitFn emit,
			void *emit_arg)
{
	char *whole = merge(table, row, other);

	emit(emit_arg, whole, row->lsn, false);
	pfree(whole);
}

/* ---------------------------------------------------------------------
 * From the destination
 * ------------------------------------------------------------------ */

/* A key that is looked up at the destination, with whom it is for. */
typedef struct Wanted
{
	const BatchRow *row;
	const char	   *key; /* nkeys fields */
	int				key_len;
	bool			found;
} Wanted;

/* RowBinary of a key. */
static void
append_row_binary(const ResyncTable *table, const ResyncColumn **key, const Wanted *wanted,
				  StringInfo out)
{
	const char *p = wanted->key;

	for (int i = 0; i < table->nkeys; i++)
	{
		uint32 n;

		memcpy(&n, p, 4);
		n = pg_ntoh32(n);
		p += 4;
		if (resync_ch_is_nullable(key[i]))
			appendStringInfoChar(out, (int32) n < 0 ? '\1' : '\0');
		if ((int32) n < 0)
			continue;
		appendBinaryStringInfo(out, p, n);
		p += n;
	}
}

/* Columns that some row wants, in the table's order. */
static bool *
wanted_columns(const ResyncTable *table, const List *wanted)
{
	bool	 *result = palloc0(sizeof(bool) * table->ncols);
	ListCell *lc;

	foreach(lc, wanted)
	{
		for (int i = 0; i < table->ncols; i++)
			result[i] |= is_unchanged(((Wanted *) lfirst(lc))->row->unchanged, i);
	}
	return result;
}

static char *
lookup_query(ChDestination *dest, const ResyncTable *table, bool live, const List *wanted,
			 const bool *columns)
{
	const ResyncColumn **key = resync_destination_key(table);
	const char	  *name = resync_ch_table_name(dest, live ? table->dest_name : table->build_name);
	StringInfoData sql, structure, keys;
	ListCell	  *lc;

	initStringInfo(&sql);
	initStringInfo(&structure);
	initStringInfo(&keys);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; i < table->nkeys; i++)
	{
		appendStringInfo(&sql, "%sformatRow('RowBinary', CAST(%s AS %s))", i > 0 ? ", " : "",
						 resync_ch_ident(key[i]->dest_name), resync_ch_block_type(key[i]));
		appendStringInfo(&structure, "%sk%d %s", i > 0 ? ", " : "", i,
						 resync_ch_block_type(key[i]));
	}
	for (int i = 0; i < table->ncols; i++)
	{
		if (columns[i])
			appendStringInfo(&sql, ", formatRow('RowBinary', CAST(%s AS %s))",
							 resync_ch_ident(table->cols[i].dest_name),
							 resync_ch_block_type(&table->cols[i]));
	}
	foreach(lc, wanted)
		append_row_binary(table, key, lfirst(lc), &keys);
	appendStringInfo(&sql, " FROM %s%s WHERE (%s) IN (SELECT * FROM format(RowBinary, %s, %s))",
					 name, resync_ch_appends(table) ? "" : " FINAL", resync_ch_key_list(table),
					 resync_ch_literal(structure.data), resync_ch_unhex(keys.data, keys.len));
	if (resync_ch_appends(table))
		appendStringInfo(&sql, " ORDER BY %s DESC LIMIT 1 BY %s",
						 resync_ch_ident(CH_VERSION_COLUMN), resync_ch_key_list(table));
	appendStringInfoString(&sql, " FORMAT RowBinary");
	return sql.data;
}

/* A String of RowBinary at *p. */
static const char *
next_string(const char **p, const char *end, uint64 *len)
{
	const char *result;
	int			shift = 0;

	*len = 0;
	for (;;)
	{
		uint8 byte;

		if (*p >= end || shift > 56)
			break;
		byte = (uint8) * (*p)++;
		*len |= (uint64) (byte & 0x7F) << shift;
		shift += 7;
		if (byte & 0x80)
			continue;
		if (*len > (uint64) (end - *p))
			break;
		result = *p;
		*p += *len;
		return result;
	}
	ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
					errmsg("unexpected answer of the ClickHouse server")));
	return NULL; /* not reached */
}

/* What formatRow() gives as a field. */
static void
append_field(StringInfo out, const ResyncColumn *col, const char *data, uint64 len)
{
	uint32 n;

	if (resync_ch_is_nullable(col))
	{
		if (len == 0)
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
							errmsg("unexpected answer of the ClickHouse server")));
		if (data[0] != '\0')
		{
			appendBinaryStringInfo(out, "\377\377\377\377", 4);
			return;
		}
		data++;
		len--;
	}
	n = pg_hton32((uint32) len);
	appendBinaryStringInfo(out, (char *) &n, 4);
	appendBinaryStringInfo(out, data, (int) len);
}

/* One row of the answer at *p, given to all that want its key. */
static void
take_row(const ResyncTable *table, const bool *columns, const List *wanted, const char **p,
		 const char *end, ChEmitFn emit, void *emit_arg)
{
	const ResyncColumn **key = resync_destination_key(table);
	StringInfoData		 found_key, row;
	ListCell			*lc;
	uint64				 len;
	const char			*data;

	initStringInfo(&found_key);
	initStringInfo(&row);
	for (int i = 0; i < table->nkeys; i++)
	{
		data = next_string(p, end, &len);
		append_field(&found_key, key[i], data, len);
	}
	for (int i = 0; i < table->ncols; i++)
	{
		if (!columns[i])
		{
			/* nobody looks at it */
			appendBinaryStringInfo(&row, "\377\377\377\377", 4);
			continue;
		}
		data = next_string(p, end, &len);
		append_field(&row, &table->cols[i], data, len);
	}
	foreach(lc, wanted)
	{
		Wanted *w = lfirst(lc);

		if (w->key_len != found_key.len || memcmp(w->key, found_key.data, found_key.len) != 0)
			continue;
		emit_merged(table, w->row, row.data, emit, emit_arg);
		w->found = true;
	}
	pfree(found_key.data);
	pfree(row.data);
}

static void
look_up(ChDestination *dest, const ResyncTable *table, bool live, const List *wanted, ChEmitFn emit,
		void *emit_arg)
{
	bool		 *columns = wanted_columns(table, wanted);
	ChStatement	  statement = {.what = CH_WHAT_READ, .timeout_ms = CH_TIMEOUT_LONG};
	HttpResponse *response;
	const char	 *p;
	const char	 *end;

	statement.sql = lookup_query(dest, table, live, wanted, columns);
	statement.settings = "&max_query_size=1073741824&transform_null_in=1";
	statement.has_data = true;
	(void) resync_ch_send(dest, &statement, &response);
	p = response->body.data;
	end = p + response->body.len;
	while (p < end)
		take_row(table, columns, wanted, &p, end, emit, emit_arg);
	pfree(response->body.data);
}

/* ---------------------------------------------------------------------
 * All together
 * ------------------------------------------------------------------ */

void
resync_ch_complete_rows(ChDestination *dest, const ResyncTable *table, bool live, bool distrusted,
						List *rows, FetchRowsFn fetch, void *fetch_arg, ChEmitFn emit,
						void *emit_arg)
{
	int		  n = list_length(rows);
	FetchRow *fetched = palloc0(sizeof(FetchRow) * n);
	List	 *wanted = NIL;

	for (int i = 0; i < n; i++)
	{
		const BatchRow *row = list_nth(rows, i);
		StringInfoData	key;

		initStringInfo(&key);
		append_key(table, row->data, &key);
		fetched[i].key = key.data;
		fetched[i].key_len = key.len;
		initStringInfo(&fetched[i].row);
	}
	for (int done = 0; done < n;)
	{
		int more = fetch != NULL ? fetch(fetch_arg, table, fetched + done, n - done) : n - done;

		for (int i = done; i < done + more; i++)
		{
			const BatchRow *row = list_nth(rows, i);
			Wanted		   *w;

			if (fetched[i].found)
			{
				emit_merged(table, row, fetched[i].row.data, emit, emit_arg);
				pfree(fetched[i].row.data);
				continue;
			}
			w = palloc0(sizeof(Wanted));
			w->row = row;
			w->key = fetched[i].key;
			w->key_len = fetched[i].key_len;
			/* by now the row with that key may be another one */
			if (row->base != NULL && !distrusted)
			{
				w->key = row->base;
				w->key_len = row->base_len;
			}
			wanted = lappend(wanted, w);
		}
		done += more;
	}
	for (int i = 0; i < list_length(wanted); i += LOOK_UP_STEP)
	{
		List	 *step = NIL;
		ListCell *lc;

		for (int k = i; k < Min(i + LOOK_UP_STEP, list_length(wanted)); k++)
			step = lappend(step, list_nth(wanted, k));
		look_up(dest, table, live, step, emit, emit_arg);
		foreach(lc, step)
		{
			const Wanted *w = lfirst(lc);

			if (!w->found)
				emit(emit_arg, w->row->data, w->row->lsn, true);
		}
	}
}
