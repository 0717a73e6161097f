/*
 * merge.c
 *		Batches of changes as MERGE statements: what destinations that apply
 *		them from staging tables share.
 *
 * Called by the streamer, through the apply of such a destination.
 */
#include "postgres.h"

#include "destination/merge.h"

#include "access/xact.h"
#include "destination/common.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Rows are looked up at the source in steps of so many. */
#define COMPLETE_STEP 500

/* A call of resync_merge_rows(). */
typedef struct RowState
{
	MergeRows			*rows;
	const ResyncColumn **key;
	List				*open; /* of BatchRow *, in open_context */
	Size				 open_bytes;
	MemoryContext		 open_context;
	MemoryContext		 row_context;
} RowState;

/* ---------------------------------------------------------------------
 * Rows
 * ------------------------------------------------------------------ */

static bool
is_unchanged(const uint8 *bitmap, int i)
{
	return bitmap != NULL && (bitmap[i / 8] & (1 << (i % 8))) != 0;
}

/* A row; its fields may lie apart.  row: what it was made of, with its mask; or NULL. */
static void
put_row(RowState *state, char op, const EncodedField *fields, const BatchRow *row, bool use_base)
{
	MergeRows		  *rows = state->rows;
	const ResyncTable *table = rows->table;
	EncodedField	  *base = NULL;
	char			  *mask = NULL;

	if (row != NULL && row->unchanged != NULL)
	{
		mask = palloc(table->ncols + 1);
		for (int i = 0; i < table->ncols; i++)
			mask[i] = is_unchanged(row->unchanged, i) ? '1' : '0';
		mask[table->ncols] = '\0';
		rows->masks = true;
		if (row->base != NULL && use_base)
		{
			base = palloc(sizeof(EncodedField) * Max(table->nkeys, 1));
			resync_find_fields(row->base, table->nkeys, base);
			rows->bases = true;
		}
	}
	rows->put(rows->put_arg, op, fields, mask, base);
	rows->rows++;
}

static void
put_batch_row(RowState *state, const BatchRow *row, bool use_base)
{
	int			  ncols = state->rows->table->ncols;
	EncodedField *fields = palloc(sizeof(EncodedField) * Max(ncols, 1));
	char		  op;

	resync_find_fields(row->data, ncols, fields);
	if (row->op == BATCH_DELETE)
		op = 'D';
	else
		op = row->deleted ? 'X' : 'U';
	put_row(state, op, fields, row, use_base);
}

static void *
copy_bytes(const void *data, Size len)
{
	void *copy = MemoryContextAllocHuge(CurrentMemoryContext, Max(len, 1));

	memcpy(copy, data, len);
	return copy;
}

/* The key's fields of a row, in key order. */
static void
append_key(const RowState *state, const EncodedField *fields, StringInfo out)
{
	for (int i = 0; i < state->rows->table->nkeys; i++)
	{
		const EncodedField *field = &fields[state->key[i] - state->rows->table->cols];
		uint32				len = pg_hton32((uint32) field->len);

		appendBinaryStringInfo(out, (char *) &len, 4);
		appendBinaryStringInfo(out, field->data, Max(field->len, 0));
	}
}

/* A row as it is at the source, in place of what was unchanged. */
static void
put_fetched(RowState *state, const BatchRow *row, const char *fetched)
{
	int			  n = state->rows->table->ncols;
	EncodedField *fields = palloc(sizeof(EncodedField) * n);
	EncodedField *now = palloc(sizeof(EncodedField) * n);

	resync_find_fields(row->data, n, fields);
	resync_find_fields(fetched, n, now);
	for (int i = 0; i < n; i++)
	{
		if (is_unchanged(row->unchanged, i))
			fields[i] = now[i];
	}
	put_row(state, 'U', fields, NULL, false);
}

/*
 * Rows with unchanged columns of a batch that is distrusted: the destination
 * may not have the row, or another one under its former key; so the source is
 * asked.  A row that is gone there keeps its mask: what the destination has is
 * left alone, and what it has not will be deleted by a later change.
 */
static void
complete_open(RowState *state)
{
	MergeRows	 *rows = state->rows;
	int			  n = list_length(state->open);
	MemoryContext old;
	FetchRow	 *fetched;

	if (n == 0)
		return;
	old = MemoryContextSwitchTo(state->open_context);
	fetched = palloc0(sizeof(FetchRow) * n);
	for (int i = 0; i < n; i++)
	{
		const BatchRow *row = list_nth(state->open, i);
		EncodedField   *fields = palloc(sizeof(EncodedField) * rows->table->ncols);
		StringInfoData	key;

		resync_find_fields(row->data, rows->table->ncols, fields);
		initStringInfo(&key);
		append_key(state, fields, &key);
		fetched[i].key = key.data;
		fetched[i].key_len = key.len;
		initStringInfo(&fetched[i].row);
	}
	for (int done = 0; done < n;)
	{
		int more = rows->fetch(rows->fetch_arg, rows->table, fetched + done, n - done);

		for (int i = done; i < done + more; i++)
		{
			const BatchRow *row = list_nth(state->open, i);

			if (fetched[i].found)
				put_fetched(state, row, fetched[i].row.data);
			else
				put_batch_row(state, row, false);
			pfree(fetched[i].row.data);
		}
		done += more;
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->open_context);
	state->open = NIL;
	state->open_bytes = 0;
}

/* Keep it for complete_open(). */
static void
add_open(RowState *state, const BatchRow *row)
{
	MemoryContext old = MemoryContextSwitchTo(state->open_context);
	BatchRow	 *open = copy_bytes(row, sizeof(BatchRow));

	open->data = copy_bytes(row->data, row->len);
	open->unchanged = copy_bytes(row->unchanged, (state->rows->table->ncols + 7) / 8);
	if (row->base != NULL)
		open->base = copy_bytes(row->base, row->base_len);
	state->open = lappend(state->open, open);
	state->open_bytes += row->len;
	MemoryContextSwitchTo(old);
	if (list_length(state->open) >= COMPLETE_STEP ||
		state->open_bytes >= (Size) resync_copier_buffer * 1024)
		complete_open(state);
}

static void
add_row(RowState *state, const BatchRow *row)
{
	MergeRows	 *rows = state->rows;
	MemoryContext old;

	if (row->op == BATCH_REMOVE)
		elog(ERROR, "unexpected change '%c' of table \"%s\"", row->op, rows->table->name);
	if (row->unchanged != NULL && !row->deleted && resync_batch_is_distrusted(rows->batch) &&
		rows->fetch != NULL)
	{
		add_open(state, row);
		return;
	}
	old = MemoryContextSwitchTo(state->row_context);
	put_batch_row(state, row, true);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->row_context);
}

void
resync_merge_rows(MergeRows *rows)
{
	RowState state = {.rows = rows};
	BatchRow row;

	state.key = resync_destination_key(rows->table);
	state.open_context = AllocSetContextCreate(CurrentMemoryContext, "resync open rows",
											   ALLOCSET_DEFAULT_SIZES);
	state.row_context = AllocSetContextCreate(CurrentMemoryContext, "resync row",
											  ALLOCSET_DEFAULT_SIZES);
	while (resync_batch_next_row(rows->batch, &row))
		add_row(&state, &row);
	complete_open(&state);
	MemoryContextDelete(state.open_context);
	MemoryContextDelete(state.row_context);
}

/* ---------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------ */

static char *
key_at(const MergeDialect *dialect, const ResyncColumn *col, const char *alias)
{
	return dialect->key_value(col, psprintf("%s.%s", alias, dialect->ident(col->dest_name)));
}

char *
resync_merge_same_key(const MergeDialect *dialect, const ResyncTable *table, const char *left,
					  const char *right)
{
	const ResyncColumn **key = resync_destination_key(table);
	StringInfoData		 buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s = %s", i > 0 ? " AND " : "", key_at(dialect, key[i], left),
						 key_at(dialect, key[i], right));
	return buf.data;
}

char *
resync_merge_columns(const MergeDialect *dialect, const ResyncTable *table, const char *prefix)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, "%s%s%s", i > 0 ? ", " : "", prefix,
						 dialect->ident(table->cols[i].dest_name));
	return buf.data;
}

/* "WHERE TRUE" is for those who want a condition. */
void
resync_merge_truncate(const MergeTarget *target, StringInfo script)
{
	char *deleted;

	if (target->deleted == NULL)
	{
		appendStringInfo(script, "DELETE FROM %s WHERE TRUE;\n", target->name);
		return;
	}
	deleted = target->dialect->ident(target->deleted);
	appendStringInfo(script, "UPDATE %s SET %s = TRUE", target->name, deleted);
	if (target->synced_at != NULL)
		appendStringInfo(script, ", %s = %s", target->dialect->ident(target->synced_at),
						 target->dialect->now);
	appendStringInfo(script, " WHERE NOT IFNULL(%s, FALSE);\n", deleted);
}

/* ", deleted, synced_at" and their values, for INSERT. */
static void
append_own(const MergeTarget *target, StringInfo names, StringInfo values,
		   const char *deleted_value)
{
	if (target->deleted != NULL)
	{
		appendStringInfo(names, ", %s", target->dialect->ident(target->deleted));
		appendStringInfo(values, ", %s", deleted_value);
	}
	if (target->synced_at != NULL)
	{
		appendStringInfo(names, ", %s", target->dialect->ident(target->synced_at));
		appendStringInfo(values, ", %s", target->dialect->now);
	}
}

void
resync_merge_append(const MergeTarget *target, const char *stage, StringInfo script)
{
	StringInfoData names;
	StringInfoData values;

	initStringInfo(&names);
	initStringInfo(&values);
	appendStringInfoString(&names, resync_merge_columns(target->dialect, target->table, ""));
	appendStringInfoString(&values,
						   resync_merge_columns(target->dialect, target->table, "_resync_s."));
	append_own(target, &names, &values, "(_resync_s." MERGE_OP " = 'X')");
	appendStringInfo(script, "INSERT INTO %s (%s) SELECT %s FROM %s AS _resync_s;\n", target->name,
					 names.data, values.data, stage);
}

/*
 * What MERGE reads.  A row with a base takes its unchanged columns from the row
 * with that key, as it was before this part, and has no mask then.
 */
static char *
merge_source(const MergeTarget *target, const char *stage, const MergeRows *rows)
{
	const MergeDialect	*dialect = target->dialect;
	const ResyncTable	*table = target->table;
	const ResyncColumn **key = resync_destination_key(table);
	char				*first;
	StringInfoData		 sql;

	if (!rows->bases)
		return pstrdup(stage);
	first = dialect->ident(key[0]->dest_name);
	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "(SELECT _resync_s." MERGE_OP ", CASE WHEN _resync_b.%s IS NULL THEN"
					 " _resync_s." MERGE_MASK " END AS " MERGE_MASK,
					 first);
	for (int i = 0; i < table->ncols; i++)
	{
		const ResyncColumn *col = &table->cols[i];
		const char		   *name = dialect->ident(col->dest_name);

		if (col->keypos > 0)
			appendStringInfo(&sql, ", _resync_s.%s", name);
		else
			appendStringInfo(&sql,
							 ", CASE WHEN _resync_b.%s IS NOT NULL AND SUBSTR(_resync_s." MERGE_MASK
							 ", %d, 1) = '1' THEN _resync_b.%s ELSE _resync_s.%s END AS %s",
							 first, i + 1, name, name, name);
	}
	appendStringInfo(&sql, " FROM %s AS _resync_s LEFT JOIN %s AS _resync_b ON ", stage,
					 target->name);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&sql, "%s%s = %s", i > 0 ? " AND " : "",
						 key_at(dialect, key[i], "_resync_b"),
						 dialect->key_value(key[i], psprintf("_resync_s." MERGE_BASE, i)));
	appendStringInfoChar(&sql, ')');
	return sql.data;
}

/* "WHEN MATCHED AND op <> 'D' THEN UPDATE ...", unless there is nothing to set. */
static void
add_update(const MergeTarget *target, const MergeRows *rows, StringInfo script)
{
	const MergeDialect *dialect = target->dialect;
	StringInfoData		sets;
	const char		   *sep = "";

	initStringInfo(&sets);
	for (int i = 0; i < target->table->ncols; i++)
	{
		const ResyncColumn *col = &target->table->cols[i];
		const char		   *name = dialect->ident(col->dest_name);

		if (col->keypos > 0)
			continue;
		if (rows->masks)
			appendStringInfo(&sets,
							 "%s%s = CASE WHEN SUBSTR(_resync_s." MERGE_MASK
							 ", %d, 1) = '1' THEN _resync_t.%s ELSE _resync_s.%s END",
							 sep, name, i + 1, name, name);
		else
			appendStringInfo(&sets, "%s%s = _resync_s.%s", sep, name, name);
		sep = ", ";
	}
	if (target->deleted != NULL)
	{
		appendStringInfo(&sets, "%s%s = (_resync_s." MERGE_OP " = 'X')", sep,
						 dialect->ident(target->deleted));
		sep = ", ";
	}
	if (target->synced_at != NULL)
		appendStringInfo(&sets, "%s%s = %s", sep, dialect->ident(target->synced_at), dialect->now);
	if (sets.len > 0)
		appendStringInfo(script,
						 "WHEN MATCHED AND _resync_s." MERGE_OP " <> 'D' THEN UPDATE SET %s\n",
						 sets.data);
}

/* Deletes: what is deleted already keeps the time of that. */
static void
add_delete(const MergeTarget *target, StringInfo script)
{
	char *deleted;

	if (target->deleted == NULL)
	{
		appendStringInfoString(script,
							   "WHEN MATCHED AND _resync_s." MERGE_OP " = 'D' THEN DELETE\n");
		return;
	}
	deleted = target->dialect->ident(target->deleted);
	appendStringInfo(script,
					 "WHEN MATCHED AND _resync_s." MERGE_OP
					 " = 'D' AND NOT IFNULL(_resync_t.%s, FALSE) THEN UPDATE SET %s = TRUE",
					 deleted, deleted);
	if (target->synced_at != NULL)
		appendStringInfo(script, ", %s = %s", target->dialect->ident(target->synced_at),
						 target->dialect->now);
	appendStringInfoChar(script, '\n');
}

void
resync_merge_upsert(const MergeTarget *target, const char *stage, const MergeRows *rows,
					StringInfo script)
{
	StringInfoData names;
	StringInfoData values;

	appendStringInfo(
		script, "MERGE INTO %s AS _resync_t USING %s AS _resync_s ON %s\n", target->name,
		merge_source(target, stage, rows),
		resync_merge_same_key(target->dialect, target->table, "_resync_t", "_resync_s"));
	add_delete(target, script);
	add_update(target, rows, script);

	initStringInfo(&names);
	initStringInfo(&values);
	appendStringInfoString(&names, resync_merge_columns(target->dialect, target->table, ""));
	appendStringInfoString(&values,
						   resync_merge_columns(target->dialect, target->table, "_resync_s."));
	append_own(target, &names, &values, "(_resync_s." MERGE_OP " <> 'U')");
	/* a deleted row that was never there is one with its key alone */
	appendStringInfo(script,
					 "WHEN NOT MATCHED AND %s(_resync_s." MERGE_MASK
					 " IS NULL OR _resync_s." MERGE_OP " = 'X') THEN INSERT (%s) VALUES (%s);\n",
					 target->deleted == NULL ? "_resync_s." MERGE_OP " <> 'D' AND " : "",
					 names.data, values.data);
}

void
resync_merge_default(const MergeTarget *target, const char *stage, StringInfo script)
{
	char *column = target->dialect->ident(target->table->cols[target->table->ncols - 1].dest_name);

	appendStringInfo(script,
					 "UPDATE %s SET %s = (SELECT _resync_s.%s FROM %s AS _resync_s) WHERE TRUE;\n",
					 target->name, column, column, stage);
}

EncodedField
resync_merge_encode_default(Destination *dest, const ResyncTable *one, const char *text)
{
	const ResyncColumn *col = &one->cols[0];
	TupleDesc			desc = CreateTemplateTupleDesc(1);
	MemoryContext		context = CurrentMemoryContext;
	StringInfoData		data;
	EncodedField		field;
	Datum				value;
	bool				isnull = false;
	Oid					input;
	Oid					ioparam;

	initStringInfo(&data);
	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	TupleDescInitEntry(desc, 1, col->name, col->typid, col->typmod, 0);
	getTypeInputInfo(col->typid, &input, &ioparam);
	value = OidInputFunctionCall(input, unconstify(char *, text), ioparam, col->typmod);
	resync_encode_row(dest->routine->make_encoder(dest, one, desc), &value, &isnull, &data);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	resync_find_fields(data.data, 1, &field);
	return field;
}
