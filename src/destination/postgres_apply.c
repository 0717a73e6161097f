/*
 * postgres_apply.c
 *		Batches of changes into a PostgreSQL destination.
 *
 * Called by the streamer.  A batch is one transaction there, with the applied
 * LSN in it (rules 3, 4, 6): after a crash the batch is there wholly or not at
 * all, and the LSN tells which.  The rows of a table reach a temporary table
 * ("stage") by COPY and the table itself by a few statements over sets, in the
 * order that batch.h asks for.  A stage's columns are c0, c1 ... (the row),
 * _op, _mask (which columns are unchanged: 0 none, else index into the part's
 * list of bitmaps), _del, _key (the key as the source sent it, of rows with
 * unchanged columns) and b0, b1 ... (the key of the row that the unchanged
 * columns are in).
 *
 * Statements that need no answer wait in "todo" and travel with the next one
 * that does: a small batch of one table takes four round trips.
 */
#include "postgres.h"

#include "destination/postgres.h"

#include "nodes/bitmapset.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Missing rows are fetched in steps of this many. */
#define FETCH_STEP 500

/*
 * A stage is small beside its table, and has no statistics: only plans that go
 * from the stage through the key's index are wanted.
 */
static const char plan_settings[] =
	"SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off;";
static const char scan_settings[] =
	"SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET LOCAL enable_seqscan = on;";

/* One call of apply. */
typedef struct ApplyState
{
	PgDestination *dest;
	bool		   to_live;
	bool		   fetched; /* rows came from the source in this batch */
	FetchRowsFn	   fetch;
	void		  *fetch_arg;
	PgFenceInfo	   info;
	StringInfoData todo;		  /* statements to be sent with the next query */
	List		  *todo_tables;	  /* that they may fail for; the last is the
								   * present one */
	Bitmapset	  *used;		  /* stages with rows of this transaction */
	MemoryContext  table_context; /* reset per table of a part */
	MemoryContext  row_context;
} ApplyState;

/* One table of a part; in table_context. */
typedef struct ApplyTable
{
	const ResyncTable	*table;
	const char			*target;
	const char			*stage;
	const ResyncColumn **key;
	char			   **key_ops;
	bool				 text;
	const char			*soft_delete;
	const char			*synced_at;
	List				*masks;		/* distinct bitmaps */
	List				*mask_rows; /* IntList: 1 if a row with a base has it */
	int64				 deletes, upserts, deleted_upserts, inserts, removes;
} ApplyTable;

static int
column_index(const ResyncTable *table, const ResyncColumn *col)
{
	return (int) (col - table->cols);
}

static bool
is_masked(const uint8 *mask, int i)
{
	return mask != NULL && (mask[i / 8] & (1 << (i % 8))) != 0;
}

/* What waited was sent. */
static void
forget_todo(ApplyState *state)
{
	resetStringInfo(&state->todo);
	while (list_length(state->todo_tables) > 1)
		state->todo_tables = list_delete_first(state->todo_tables);
}

/* Send what waits, with a last statement. */
static PGresult *
run(ApplyState *state, const char *sql)
{
	PGresult *res;

	appendStringInfoString(&state->todo, sql);
	res = resync_pq_exec(state->dest->conn, state->todo.data);
	forget_todo(state);
	return res;
}

/*
 * Error context: the one table that the statements are about, or the one that
 * the destination names.
 */
static void
blame_table(void *arg)
{
	const ApplyState *state = arg;
	ListCell		 *lc;

	foreach(lc, state->todo_tables)
	{
		const ResyncTable *table = lfirst(lc);

		if (list_length(state->todo_tables) == 1 ||
			(resync_pq_error_table != NULL && resync_pq_error_schema != NULL &&
			 strcmp(resync_pq_error_schema, table->dest_schema) == 0 &&
			 strcmp(resync_pq_error_table, state->to_live ? table->dest_name : table->build_name) ==
				 0))
		{
			resync_destination_blame(table);
			return;
		}
	}
}

/* Statements for this table follow. */
static void
begin_table(ApplyState *state, const ResyncTable *table)
{
	MemoryContext old = MemoryContextSwitchTo(state->dest->call);

	state->todo_tables = lappend(state->todo_tables, unconstify(ResyncTable *, table));
	if (state->todo.len == 0)
		forget_todo(state);
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------------
 * Stages
 * ------------------------------------------------------------------ */

static char *
stage_signature(const ResyncTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, "%s %d\n", table->cols[i].dest_type, table->cols[i].keypos);
	return buf.data;
}

static void
make_stage(ApplyState *state, const ResyncTable *table, const char *name)
{
	const ResyncColumn **key = resync_destination_key(table);

	appendStringInfo(&state->todo, "CREATE TEMPORARY TABLE %s (", name);
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&state->todo, "c%d %s, ", i, table->cols[i].dest_type);
	appendStringInfoString(&state->todo, "_op \"char\", _mask int, _del boolean, _key bytea");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&state->todo, ", b%d %s", i, key[i]->dest_type);
	appendStringInfoString(&state->todo, ") ON COMMIT DELETE ROWS;");
}

/* Outlives the table's memory context. */
static void
mark_used(ApplyState *state, int index)
{
	MemoryContext old = MemoryContextSwitchTo(state->dest->call);

	state->used = bms_add_member(state->used, index);
	MemoryContextSwitchTo(old);
}

/*
 * The table's stage, empty.  Made once per connection and set of columns; in
 * the connection's memory.
 */
static const char *
get_stage(ApplyState *state, const ResyncTable *table)
{
	PgDestination *dest = state->dest;
	char		  *signature = stage_signature(table);
	PgStage		  *stage = NULL;
	MemoryContext  old;
	ListCell	  *lc;
	int			   index = 0;

	foreach(lc, dest->stages)
	{
		if (((PgStage *) lfirst(lc))->ordinal == table->ordinal)
		{
			stage = lfirst(lc);
			index = foreach_current_index(lc);
		}
	}
	if (stage != NULL && strcmp(stage->signature, signature) == 0)
	{
		/* an earlier part's rows would not go before the commit */
		if (bms_is_member(index, state->used))
			appendStringInfo(&state->todo, "TRUNCATE %s;", stage->name);
		mark_used(state, index);
		return stage->name;
	}

	old = MemoryContextSwitchTo(dest->head.context);
	if (stage == NULL)
	{
		stage = palloc0(sizeof(PgStage));
		stage->ordinal = table->ordinal;
		index = list_length(dest->stages);
		dest->stages = lappend(dest->stages, stage);
	}
	else
	{
		appendStringInfo(&state->todo, "DROP TABLE %s;", stage->name);
		pfree(stage->signature);
		pfree(stage->name);
	}
	stage->signature = pstrdup(signature);
	stage->name = psprintf("pg_temp.resync_stage_%d", dest->next_stage++);
	MemoryContextSwitchTo(old);
	make_stage(state, table, stage->name);
	mark_used(state, index);
	return stage->name;
}

/* ---------------------------------------------------------------------
 * Rows into the stage
 * ------------------------------------------------------------------ */

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

/* The key's fields, in key order. */
static void
append_key(const ApplyTable *at, const char *data, StringInfo out)
{
	const char **fields = palloc(sizeof(char *) * at->table->ncols);
	int			*lengths = palloc(sizeof(int) * at->table->ncols);

	find_fields(data, at->table->ncols, fields, lengths);
	for (int i = 0; i < at->table->nkeys; i++)
	{
		int c = column_index(at->table, at->key[i]);

		appendBinaryStringInfo(out, fields[c], lengths[c]);
	}
}

static void
append_int(StringInfo out, int bytes, uint32 value)
{
	uint32 n32 = pg_hton32(value);
	uint16 n16 = pg_hton16((uint16) value);
	uint8  n8 = (uint8) value;

	appendBinaryStringInfo(out,
						   bytes == 4	? (char *) &n32
						   : bytes == 2 ? (char *) &n16
										: (char *) &n8,
						   bytes);
}

/* Extra columns of a stage's row. */
typedef struct StageExtra
{
	char		op;
	int			mask;
	bool		deleted;
	StringInfo	key;  /* NULL: none */
	const char *base; /* NULL: none */
	uint32		base_len;
} StageExtra;

static void
append_binary_row(const ApplyTable *at, const char *data, uint32 len, const StageExtra *extra,
				  StringInfo out)
{
	append_int(out, 2, at->table->ncols + 4 + at->table->nkeys);
	appendBinaryStringInfo(out, data, len);
	append_int(out, 4, 1);
	append_int(out, 1, (uint8) extra->op);
	append_int(out, 4, 4);
	append_int(out, 4, extra->mask);
	append_int(out, 4, 1);
	append_int(out, 1, extra->deleted);
	if (extra->key != NULL)
	{
		append_int(out, 4, extra->key->len);
		appendBinaryStringInfo(out, extra->key->data, extra->key->len);
	}
	else
		append_int(out, 4, (uint32) -1);
	if (extra->base != NULL)
		appendBinaryStringInfo(out, extra->base, extra->base_len);
	else
	{
		for (int i = 0; i < at->table->nkeys; i++)
			append_int(out, 4, (uint32) -1);
	}
}

/* The same as a line of COPY's text format. */
static void
append_text_row(const ApplyTable *at, const char *data, const StageExtra *extra, StringInfo out)
{
	resync_encode_copy_text_line(data, at->table->ncols, out);
	out->len--; /* its newline */
	appendStringInfo(out, "\t%c\t%d\t%c\t", extra->op, extra->mask, extra->deleted ? 't' : 'f');
	if (extra->key != NULL)
	{
		appendStringInfoString(out, "\\\\x");
		for (int i = 0; i < extra->key->len; i++)
			appendStringInfo(out, "%02x", (uint8) extra->key->data[i]);
	}
	else
		appendStringInfoString(out, "\\N");
	if (at->table->nkeys > 0)
	{
		appendStringInfoChar(out, '\t');
		if (extra->base != NULL)
		{
			resync_encode_copy_text_line(extra->base, at->table->nkeys, out);
			return;
		}
		for (int i = 0; i < at->table->nkeys; i++)
			appendStringInfoString(out, i > 0 ? "\t\\N" : "\\N");
	}
	appendStringInfoChar(out, '\n');
}

static void
stage_copy_begin(ApplyState *state, ApplyTable *at, StringInfo chunk)
{
	static const char signature[] = "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0";

	appendStringInfo(&state->todo, "COPY %s FROM STDIN (FORMAT %s)", at->stage,
					 at->text ? "text" : "binary");
	resync_pq_copy_begin(state->dest->conn, state->todo.data);
	forget_todo(state);
	resetStringInfo(chunk);
	if (!at->text)
		appendBinaryStringInfo(chunk, signature, 19);
}

static void
stage_copy_row(ApplyState *state, ApplyTable *at, const char *data, uint32 len,
			   const StageExtra *extra, StringInfo chunk)
{
	if (at->text)
		append_text_row(at, data, extra, chunk);
	else
		append_binary_row(at, data, len, extra, chunk);
	if (chunk->len >= PG_COPY_CHUNK)
	{
		resync_pq_copy_put(state->dest->conn, chunk->data, chunk->len, PG_COPY_CHUNK * 4);
		resetStringInfo(chunk);
	}
}

static int64
stage_copy_end(ApplyState *state, ApplyTable *at, StringInfo chunk)
{
	if (!at->text)
		append_int(chunk, 2, 0xFFFF);
	if (chunk->len > 0)
		resync_pq_copy_put(state->dest->conn, chunk->data, chunk->len, PG_COPY_CHUNK * 4);
	return resync_pq_copy_end(state->dest->conn);
}

/* Index (from 1) of a bitmap in the part's list; 0 for none. */
static int
mask_index(ApplyState *state, ApplyTable *at, const BatchRow *row)
{
	int			  bytes = (at->table->ncols + 7) / 8;
	ListCell	 *lc;
	uint8		 *copy;
	MemoryContext old;

	if (row->unchanged == NULL)
		return 0;
	foreach(lc, at->masks)
	{
		if (memcmp(lfirst(lc), row->unchanged, bytes) == 0)
		{
			if (row->base != NULL)
				lfirst_int(list_nth_cell(at->mask_rows, foreach_current_index(lc))) = 1;
			return foreach_current_index(lc) + 1;
		}
	}
	old = MemoryContextSwitchTo(state->table_context);
	copy = palloc(bytes);
	memcpy(copy, row->unchanged, bytes);
	at->masks = lappend(at->masks, copy);
	at->mask_rows = lappend_int(at->mask_rows, row->base != NULL ? 1 : 0);
	MemoryContextSwitchTo(old);
	return list_length(at->masks);
}

/* All rows of the table in this part. */
static void
fill_stage(ApplyState *state, ApplyTable *at, ResyncBatch *batch)
{
	StringInfo chunk = makeStringInfo();
	BatchRow   row;

	stage_copy_begin(state, at, chunk);
	while (resync_batch_next_row(batch, &row))
	{
		MemoryContext old = MemoryContextSwitchTo(state->row_context);
		StageExtra	  extra = {0};

		extra.op = row.op;
		extra.deleted = row.deleted;
		extra.mask = mask_index(state, at, &row);
		extra.base = row.base;
		extra.base_len = row.base_len;
		if (extra.mask != 0)
		{
			extra.key = makeStringInfo();
			append_key(at, row.data, extra.key);
		}
		stage_copy_row(state, at, row.data, row.len, &extra, chunk);
		at->deletes += row.op == BATCH_DELETE;
		at->upserts += row.op == BATCH_UPSERT;
		at->deleted_upserts += row.op == BATCH_UPSERT && row.deleted;
		at->inserts += row.op == BATCH_INSERT;
		at->removes += row.op == BATCH_REMOVE;
		MemoryContextSwitchTo(old);
		MemoryContextReset(state->row_context);
	}
	stage_copy_end(state, at, chunk);
}

/* ---------------------------------------------------------------------
 * Statements of a table with a key
 * ------------------------------------------------------------------ */

/* "t.k = s.c0 AND ..."; prefix is the stage's column letter, c or b */
static char *
key_condition(const ApplyTable *at, char prefix)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < at->table->nkeys; i++)
		appendStringInfo(&buf, "%st.%s %s s.%c%d", i > 0 ? " AND " : "",
						 resync_pq_ident(at->key[i]->dest_name), at->key_ops[i], prefix,
						 prefix == 'c' ? column_index(at->table, at->key[i]) : i);
	return buf.data;
}

/*
 * "DISTINCT ON (key) " where keys can be equal and differ in their bytes, else
 * nothing: one statement must not meet a key twice.
 */
static char *
distinct_key(const ApplyTable *at)
{
	static const char *const plain[] = {"integer",
										"bigint",
										"smallint",
										"text",
										"pg_catalog.text",
										"uuid",
										"pg_catalog.uuid",
										"boolean",
										"date",
										"pg_catalog.date",
										"timestamp with time zone",
										"timestamp without time zone",
										"bytea",
										"pg_catalog.bytea"};
	StringInfoData			 buf;
	bool					 all_plain = true;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "DISTINCT ON (");
	for (int i = 0; i < at->table->nkeys; i++)
	{
		bool found = strncmp(at->key[i]->dest_type, "character varying", 17) == 0;

		for (int j = 0; j < lengthof(plain) && !found; j++)
			found = strcmp(at->key[i]->dest_type, plain[j]) == 0;
		all_plain = all_plain && found;
		appendStringInfo(&buf, "%ss.c%d", i > 0 ? ", " : "", column_index(at->table, at->key[i]));
	}
	appendStringInfoString(&buf, ") ");
	return all_plain ? "" : buf.data;
}

/* Columns that a row takes from the row which had its key before. */
static void
resolve_bases(ApplyState *state, ApplyTable *at)
{
	ListCell *lc;

	foreach(lc, at->masks)
	{
		int n = foreach_current_index(lc);

		if (list_nth_int(at->mask_rows, n) == 0)
			continue;
		appendStringInfo(&state->todo, "UPDATE %s s SET _mask = 0", at->stage);
		for (int i = 0; i < at->table->ncols; i++)
		{
			if (is_masked(lfirst(lc), i))
				appendStringInfo(&state->todo, ", c%d = t.%s", i,
								 resync_pq_ident(at->table->cols[i].dest_name));
		}
		appendStringInfo(&state->todo, " FROM %s t WHERE s._mask = %d AND s.b0 IS NOT NULL AND %s;",
						 at->target, n + 1, key_condition(at, 'b'));
	}
}

/* Rows from the source into the stage, by keys of res from one on; how many. */
static int
fetch_some(ApplyState *state, ApplyTable *at, PGresult *res, int first, StringInfo chunk)
{
	MemoryContext old = MemoryContextSwitchTo(state->row_context);
	int			  n = PQntuples(res) - first;
	FetchRow	 *rows = palloc0(sizeof(FetchRow) * n);
	StageExtra	  extra = {BATCH_UPSERT};
	int			  done;

	for (int i = 0; i < n; i++)
	{
		rows[i].key = PQgetvalue(res, first + i, 1);
		rows[i].key_len = PQgetlength(res, first + i, 1);
		initStringInfo(&rows[i].row);
	}
	done = state->fetch(state->fetch_arg, at->table, rows, n);
	for (int i = 0; i < done; i++)
	{
		if (rows[i].found)
			stage_copy_row(state, at, rows[i].row.data, rows[i].row.len, &extra, chunk);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->row_context);
	return done;
}

/*
 * Rows with unchanged columns whose row the destination does not have (it was
 * loaded under another snapshot, see rule 2) come from the source by key.  One
 * that is gone there will be deleted by a later change.  A row that is to be
 * kept as deleted has nothing to be asked for.
 */
static void
fetch_missing(ApplyState *state, ApplyTable *at)
{
	char *missing = psprintf("s._op = 'U' AND s._mask <> 0 AND (s.b0 IS NOT NULL OR NOT EXISTS"
							 " (SELECT FROM %s t WHERE %s))",
							 at->target, key_condition(at, 'c'));
	char *query;

	appendStringInfo(&state->todo, "UPDATE %s s SET _mask = 0 WHERE s._del AND %s", at->stage,
					 missing);
	resync_pq_clear(run(state, ""));
	query = psprintf("SELECT s.ctid::text, s._key FROM %s s WHERE %s LIMIT %d", at->stage, missing,
					 FETCH_STEP);
	for (;;)
	{
		PGresult  *res;
		StringInfo chunk;
		int		   n;

		/* binary: the key's bytes as they were sent */
		res = resync_pq_exec_params(state->dest->conn, query, 0, NULL, NULL, NULL, NULL, 1);
		n = PQntuples(res);
		if (n == 0)
		{
			resync_pq_clear(res);
			return;
		}
		if (state->fetch == NULL)
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
							errmsg("row to update was not found in table %s at the destination",
								   at->target)));
		appendStringInfo(&state->todo, "DELETE FROM %s WHERE ctid = ANY ('{", at->stage);
		for (int i = 0; i < n; i++)
			appendStringInfo(&state->todo, "%s\"%s\"", i > 0 ? "," : "", PQgetvalue(res, i, 0));
		appendStringInfoString(&state->todo, "}'::tid[]);");
		state->fetched = true;
		chunk = makeStringInfo();
		stage_copy_begin(state, at, chunk);
		for (int i = 0; i < n;)
			i += fetch_some(state, at, res, i, chunk);
		stage_copy_end(state, at, chunk);
		resync_pq_clear(res);
	}
}

static void
add_deletes(ApplyState *state, ApplyTable *at)
{
	StringInfo	   sql = &state->todo;
	StringInfoData names, stage, keys;

	if (at->soft_delete == NULL)
	{
		appendStringInfo(sql, "DELETE FROM %s t USING %s s WHERE s._op = 'D' AND %s;", at->target,
						 at->stage, key_condition(at, 'c'));
		return;
	}
	initStringInfo(&names);
	initStringInfo(&stage);
	initStringInfo(&keys);
	for (int i = 0; i < at->table->nkeys; i++)
	{
		appendStringInfo(&keys, "%s%s", i > 0 ? ", " : "", resync_pq_ident(at->key[i]->dest_name));
		appendStringInfo(&stage, "s.c%d, ", column_index(at->table, at->key[i]));
	}
	appendStringInfo(&names, "%s, %s", keys.data, resync_pq_ident(at->soft_delete));
	appendStringInfoString(&stage, "true");
	if (at->synced_at != NULL)
	{
		appendStringInfo(&names, ", %s", resync_pq_ident(at->synced_at));
		appendStringInfoString(&stage, ", now()");
	}
	/* a row deleted earlier keeps the time of that */
	appendStringInfo(sql,
					 "INSERT INTO %s AS t (%s) SELECT %s%s FROM %s s WHERE s._op = 'D'"
					 " ON CONFLICT (%s) DO UPDATE SET %s = true",
					 at->target, names.data, distinct_key(at), stage.data, at->stage, keys.data,
					 resync_pq_ident(at->soft_delete));
	if (at->synced_at != NULL)
		appendStringInfo(sql, ", %s = now()", resync_pq_ident(at->synced_at));
	appendStringInfo(sql, " WHERE NOT t.%s;", resync_pq_ident(at->soft_delete));
}

/*
 * Rows with this set of unchanged columns (mask NULL, n 0: with none), those
 * that end deleted or those that live.  Keys that are equal to the destination
 * and differ in their bytes (numeric 1.0 and 1.00) are different keys to a
 * batch; but at most one of them lives at its end, so the deleted ones go
 * first, one of a kind.
 */
static void
add_upserts(ApplyState *state, ApplyTable *at, const uint8 *mask, int n, bool deleted)
{
	const ResyncTable *table = at->table;
	StringInfoData	   names, stage, sets;
	const char		  *sep = "";

	initStringInfo(&names);
	initStringInfo(&stage);
	initStringInfo(&sets);
	for (int i = 0; i < table->ncols; i++)
	{
		const char *name = resync_pq_ident(table->cols[i].dest_name);

		if (is_masked(mask, i))
			continue;
		appendStringInfo(&names, "%s%s", sep, name);
		appendStringInfo(&stage, "%ss.c%d", sep, i);
		appendStringInfo(&sets, "%s%s = excluded.%s", sep, name, name);
		sep = ", ";
	}
	if (at->soft_delete != NULL)
	{
		const char *name = resync_pq_ident(at->soft_delete);

		appendStringInfo(&names, ", %s", name);
		appendStringInfoString(&stage, ", s._del");
		appendStringInfo(&sets, ", %s = excluded.%s", name, name);
	}
	if (at->synced_at != NULL)
	{
		const char *name = resync_pq_ident(at->synced_at);

		appendStringInfo(&names, ", %s", name);
		appendStringInfoString(&stage, ", now()");
		appendStringInfo(&sets, ", %s = excluded.%s", name, name);
	}
	appendStringInfo(
		&state->todo,
		"INSERT INTO %s AS t (%s) SELECT %s%s FROM %s s WHERE s._op = 'U' AND s._mask = %d"
		" AND %ss._del ON CONFLICT (",
		at->target, names.data, deleted ? distinct_key(at) : "", stage.data, at->stage, n,
		deleted ? "" : "NOT ");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&state->todo, "%s%s", i > 0 ? ", " : "",
						 resync_pq_ident(at->key[i]->dest_name));
	appendStringInfo(&state->todo, ") DO UPDATE SET %s;", sets.data);
}

static void
apply_keyed(ApplyState *state, ApplyTable *at, ResyncBatch *batch)
{
	ListCell *lc;

	if (at->masks != NIL)
	{
		/* once a row was fetched as it is now, others may have moved, too */
		if (!resync_batch_is_distrusted(batch) && !state->fetched)
			resolve_bases(state, at);
		fetch_missing(state, at);
	}
	if (at->deletes > 0)
		add_deletes(state, at);
	if (at->deleted_upserts > 0)
	{
		add_upserts(state, at, NULL, 0, true);
		foreach(lc, at->masks)
			add_upserts(state, at, lfirst(lc), foreach_current_index(lc) + 1, true);
	}
	if (at->upserts > at->deleted_upserts)
	{
		add_upserts(state, at, NULL, 0, false);
		foreach(lc, at->masks)
			add_upserts(state, at, lfirst(lc), foreach_current_index(lc) + 1, false);
	}
}

/* ---------------------------------------------------------------------
 * Statements of a table without key
 * ------------------------------------------------------------------ */

/*
 * A column by whose equality candidates may be found quickly; whether a row is
 * the same is decided by the text of all columns.
 */
static bool
is_hash_column(const ResyncColumn *col)
{
	static const char *const types[] = {"integer",
										"bigint",
										"smallint",
										"pg_catalog.text",
										"pg_catalog.uuid",
										"pg_catalog.date",
										"boolean",
										"timestamp with time zone",
										"timestamp without time zone"};

	if (!col->notnull)
		return false;
	for (int i = 0; i < lengthof(types); i++)
	{
		if (strcmp(col->dest_type, types[i]) == 0)
			return true;
	}
	return false;
}

/*
 * Each removed row takes exactly one equal row away.  A value has gone the same
 * way into the table and into the stage, so equal rows have the same text.
 */
static void
remove_rows(ApplyState *state, ApplyTable *at)
{
	const ResyncTable *table = at->table;
	StringInfoData	   stage, target, join, group, sql;
	PGresult		  *res;
	int64			   removed;

	initStringInfo(&stage);
	initStringInfo(&target);
	initStringInfo(&join);
	initStringInfo(&group);
	for (int i = 0; i < table->ncols; i++)
	{
		const char *name = resync_pq_ident(table->cols[i].dest_name);

		appendStringInfo(&stage, "%sc%d", i > 0 ? ", " : "", i);
		appendStringInfo(&target, "%st.%s", i > 0 ? ", " : "", name);
		if (is_hash_column(&table->cols[i]))
		{
			appendStringInfo(&join, "t.%s = r.c%d AND ", name, i);
			appendStringInfo(&group, "c%d, ", i);
		}
	}
	initStringInfo(&sql);
	appendStringInfo(
		&sql,
		"%sWITH r AS (SELECT %sROW(%s)::text AS k, count(*) AS n FROM %s WHERE _op = 'R'"
		" GROUP BY %sk), c AS (SELECT t.ctid AS id, r.n, row_number() OVER (PARTITION BY r.k) AS i"
		" FROM %s t JOIN r ON %sROW(%s)::text = r.k%s%s)",
		scan_settings, group.data, stage.data, at->stage, group.data, at->target, join.data,
		target.data, at->soft_delete ? " AND NOT t." : "",
		at->soft_delete ? resync_pq_ident(at->soft_delete) : "");
	if (at->soft_delete == NULL)
		appendStringInfo(&sql, " DELETE FROM %s t USING c", at->target);
	else
	{
		appendStringInfo(&sql, " UPDATE %s t SET %s = true", at->target,
						 resync_pq_ident(at->soft_delete));
		if (at->synced_at != NULL)
			appendStringInfo(&sql, ", %s = now()", resync_pq_ident(at->synced_at));
		appendStringInfoString(&sql, " FROM c");
	}
	appendStringInfoString(&sql, " WHERE t.ctid = c.id AND c.i <= c.n");
	res = run(state, sql.data);
	removed = strtoll(PQcmdTuples(res), NULL, 10);
	resync_pq_clear(res);
	appendStringInfoString(&state->todo, plan_settings);
	if (removed != at->removes && state->to_live)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("row to delete was not found in table %s at the destination", at->target),
				 errdetail("The table has no key; " INT64_FORMAT " of " INT64_FORMAT
						   " rows were found.",
						   removed, at->removes),
				 errhint("Somebody changed the table at the destination.  Resync the mirror.")));
}

static void
apply_keyless(ApplyState *state, ApplyTable *at)
{
	if (at->inserts > 0)
	{
		appendStringInfo(&state->todo, "INSERT INTO %s (", at->target);
		for (int i = 0; i < at->table->ncols; i++)
			appendStringInfo(&state->todo, "%s%s", i > 0 ? ", " : "",
							 resync_pq_ident(at->table->cols[i].dest_name));
		if (at->soft_delete != NULL)
			appendStringInfo(&state->todo, ", %s", resync_pq_ident(at->soft_delete));
		appendStringInfoString(&state->todo, ") SELECT ");
		for (int i = 0; i < at->table->ncols; i++)
			appendStringInfo(&state->todo, "%sc%d", i > 0 ? ", " : "", i);
		if (at->soft_delete != NULL)
			appendStringInfoString(&state->todo, ", _del");
		appendStringInfo(&state->todo, " FROM %s WHERE _op = 'I';", at->stage);
	}
	if (at->removes > 0)
		remove_rows(state, at);
}

/* ---------------------------------------------------------------------
 * Parts
 * ------------------------------------------------------------------ */

/* Rows that exist get the source's default, which the column does not keep. */
static void
add_column(ApplyState *state, const BatchAddColumn *add)
{
	const ResyncTable  *table = add->table;
	const ResyncColumn *col = &table->cols[table->ncols - 1];
	const char		   *target = state->to_live ? resync_pg_live(table) : resync_pg_build(table);
	const char		   *name = resync_pq_ident(col->dest_name);

	begin_table(state, table);
	resync_pg_require_owned(&state->info, table, state->to_live);
	appendStringInfo(&state->todo, "ALTER TABLE %s ADD COLUMN IF NOT EXISTS %s %s", target, name,
					 col->dest_type);
	if (add->default_text != NULL)
		appendStringInfo(&state->todo, " DEFAULT %s; ALTER TABLE %s ALTER COLUMN %s DROP DEFAULT",
						 resync_pg_literal(add->default_text), target, name);
	appendStringInfoChar(&state->todo, ';');
}

static void
apply_table(ApplyState *state, ResyncBatch *batch, const BatchTable *bt)
{
	PgDestination *dest = state->dest;
	ApplyTable	   at = {0};

	begin_table(state, bt->table);
	resync_pg_require_owned(&state->info, bt->table, state->to_live);
	at.table = bt->table;
	at.target = state->to_live ? resync_pg_live(bt->table) : resync_pg_build(bt->table);
	at.soft_delete = resync_pg_soft_delete_column(dest);
	at.synced_at = resync_pg_synced_at_column(dest);
	at.text = resync_pg_is_text(bt->table);
	at.key = resync_destination_key(bt->table);

	if (bt->truncate && at.soft_delete == NULL)
		appendStringInfo(&state->todo, "TRUNCATE %s;", at.target);
	else if (bt->truncate)
		appendStringInfo(&state->todo, "UPDATE %s SET %s = true%s%s%s WHERE NOT %s;", at.target,
						 resync_pq_ident(at.soft_delete), at.synced_at ? ", " : "",
						 at.synced_at ? resync_pq_ident(at.synced_at) : "",
						 at.synced_at ? " = now()" : "", resync_pq_ident(at.soft_delete));
	if (bt->nrows == 0)
		return;
	at.stage = get_stage(state, bt->table);
	fill_stage(state, &at, batch);
	if (bt->table->nkeys > 0)
	{
		/* operators are needed where rows are joined */
		if (at.masks != NIL || (at.deletes > 0 && at.soft_delete == NULL))
			at.key_ops = resync_pg_key_operators(dest, bt->table, at.target);
		apply_keyed(state, &at, batch);
	}
	else
		apply_keyless(state, &at);
}

static void
apply_parts(ApplyState *state, ResyncBatch *batch)
{
	List *ddl;

	while (resync_batch_next_part(batch, &ddl))
	{
		const BatchTable *bt;
		ListCell		 *lc;

		foreach(lc, ddl)
			add_column(state, lfirst(lc));
		while ((bt = resync_batch_next_table(batch)) != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(state->table_context);

			apply_table(state, batch, bt);
			MemoryContextSwitchTo(old);
			MemoryContextReset(state->table_context);
		}
	}
}

void
resync_pg_apply(Destination *head, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	ApplyState	   state = {0};

	ErrorContextCallback blame = {NULL, blame_table, &state};

	state.dest = dest;
	state.to_live = to_live;
	state.fetch = fetch;
	state.fetch_arg = fetch_arg;
	initStringInfo(&state.todo);
	state.table_context = AllocSetContextCreate(dest->call, "resync apply table",
												ALLOCSET_DEFAULT_SIZES);
	state.row_context = AllocSetContextCreate(dest->call, "resync apply row",
											  ALLOCSET_DEFAULT_SIZES);

	blame.previous = error_context_stack;
	error_context_stack = &blame;
	/* without a commit in it only the position moves */
	resync_pg_begin(dest, PG_FENCE_UPDATE, plan_settings,
					XLogRecPtrIsInvalid(resync_batch_end_lsn(batch)) ? PG_NO_TABLE : PG_ALL_TABLES,
					&state.info);
	if (state.info.applied != expected)
	{
		resync_pg_rollback(dest);
		/* the answer to an earlier COMMIT was lost */
		if (state.info.applied != end_lsn)
			/* an earlier process's COMMIT came late: look again where it stands */
			resync_destination_raise_applied(head->id, ERRCODE_T_R_SERIALIZATION_FAILURE,
											 state.info.applied, expected);
		error_context_stack = blame.previous;
		MemoryContextSwitchTo(old);
		return;
	}
	apply_parts(&state, batch);
	resync_pq_clear(
		run(&state, psprintf("UPDATE %s.resync_run r SET applied_lsn = %s WHERE %s; COMMIT",
							 dest->meta_quoted, resync_pg_lsn(end_lsn),
							 resync_pg_run_condition(dest, "r"))));
	error_context_stack = blame.previous;
	MemoryContextSwitchTo(old);
}
