/*
 * snowflake_apply.c
 *		Batches of changes into a Snowflake destination.
 *
 * Called by the streamer.  The rows of each table of a part are staged as files and
 * copied into a staging table of this process's own (destination/merge.h has what
 * is in it); then one block applies the whole batch in one transaction, with the
 * applied LSN in it (rules 3, 4, 6): after a crash the batch is there wholly or not
 * at all, and the LSN tells which.  Statements that are too long for one block
 * together are kept in a staging table, from where it executes them.  A block that an earlier process has left running
 * and this one, which begins at the same LSN, do not both change the run's row.
 *
 * During a swap some tables are live already, and others are not: each is looked
 * for under both names.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "utils/memutils.h"

/* Bytes of statements in a block, before quotes are doubled: half of what is allowed. */
#define MAX_BLOCK (512 * 1024)

/* One call of apply. */
typedef struct ApplyState
{
	SfDestination	  *dest;
	ResyncBatch		  *batch;
	FetchRowsFn		   fetch;
	void			  *fetch_arg;
	StringInfoData	   script;	   /* the table's statements */
	List			  *statements; /* of char *: those of all tables, without ";" */
	Size			   script_len; /* of them all */
	int				   nstages;
	const ResyncTable *current; /* the table that is worked on, or NULL */
	MemoryContext	   table_context;
} ApplyState;

/* One table of a part; in table_context. */
typedef struct ApplyTable
{
	ApplyState		  *state;
	const ResyncTable *table;
	SfFiles			   files;
	MergeRows		   rows;
} ApplyTable;

/* ---------------------------------------------------------------------
 * Staging tables
 * ------------------------------------------------------------------ */

/* Columns of a table's staging table after those of the table itself. */
static void
append_stage_columns(const ResyncTable *table, StringInfo definitions, StringInfo names,
					 StringInfo values)
{
	const ResyncColumn **key = resync_destination_key(table);
	int					 n = table->ncols;

	appendStringInfo(definitions, ", " MERGE_OP " VARCHAR, " MERGE_MASK " VARCHAR");
	appendStringInfo(names, ", " MERGE_OP ", " MERGE_MASK);
	appendStringInfo(values, ", $%d, $%d", n + 1, n + 2);
	n += 2;
	for (int i = 0; i < table->nkeys; i++)
	{
		SfType type = resync_sf_type(key[i]);

		appendStringInfo(definitions, ", " MERGE_BASE " %s", i, key[i]->dest_type);
		appendStringInfo(names, ", " MERGE_BASE, i);
		appendStringInfo(values, ", %s", resync_sf_convert(&type, psprintf("$%d", ++n)));
	}
}

static char *
column_definitions(const ResyncTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, "%s%s %s", i > 0 ? ", " : "",
						 resync_sf_ident(table->cols[i].dest_name), table->cols[i].dest_type);
	return buf.data;
}

/*
 * The stored files into a staging table.  A COPY that is sent twice is done once;
 * a staging table that a lost answer has left half full is made anew.
 */
static void
copy_files(ApplyState *state, SfFiles *files, const char *stage, const char *names,
		   const char *values)
{
	List	 *copies = resync_sf_files_copy(files, stage, names, values);
	int64	  loaded = 0;
	ListCell *lc;

	foreach(lc, copies)
	{
		SfResult *res = resync_sf_query(state->dest, lfirst(lc));

		for (int i = 0; i < res->nrows; i++)
		{
			char *rows = resync_sf_column(res, i, "rows_loaded");

			loaded += rows != NULL ? strtoll(rows, NULL, 10) : 0;
		}
	}
	if (loaded != files->rows)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("Snowflake has loaded " INT64_FORMAT " rows of " INT64_FORMAT,
							   loaded, files->rows)));
	state->dest->staged = false;
	RESYNC_DEBUG_POINT("sf_after_stage");
}

/* A row into the files (MergeRows.put). */
static void
stage_row(void *arg, char op, const EncodedField *fields, const char *mask,
		  const EncodedField *base)
{
	ApplyTable		  *at = arg;
	const ResyncTable *table = at->table;
	EncodedField	  *extras = palloc(sizeof(EncodedField) * (table->nkeys + 2));

	extras[0] = (EncodedField){&op, 1};
	extras[1] = (EncodedField){mask, mask != NULL ? table->ncols : -1};
	for (int i = 0; i < table->nkeys; i++)
		extras[i + 2] = base != NULL ? base[i] : (EncodedField){NULL, -1};
	if (resync_csv_add_pieces(at->files.csv, fields, extras, table->nkeys + 2))
		resync_sf_files_store(&at->files);
}

/* ---------------------------------------------------------------------
 * Tables
 * ------------------------------------------------------------------ */

/* The statement in script is another one of the batch. */
static void
take_script(ApplyState *state)
{
	MemoryContext old = MemoryContextSwitchTo(state->dest->call);
	int			  len = state->script.len - strlen(";\n");

	state->statements = lappend(state->statements, pnstrdup(state->script.data, len));
	state->script_len += len;
	resetStringInfo(&state->script);
	MemoryContextSwitchTo(old);
}

static MergeTarget
merge_target(ApplyState *state, const ResyncTable *table)
{
	MergeTarget target = {.dialect = &resync_sf_dialect, .table = table};

	target.name = resync_sf_where(state->dest, table, NULL);
	target.deleted = resync_sf_deleted(state->dest);
	target.synced_at = resync_sf_synced_at(state->dest);
	return target;
}

static void
apply_table(ApplyState *state, const BatchTable *bt)
{
	const ResyncTable *table = bt->table;
	MergeTarget		   target = merge_target(state, table);
	ApplyTable		   at = {.state = state, .table = table};
	StringInfoData	   definitions;
	StringInfoData	   names;
	StringInfoData	   values;
	char			  *stage;

	if (bt->truncate)
	{
		resync_merge_truncate(&target, &state->script);
		take_script(state);
	}
	if (bt->nrows == 0)
		return;
	at.rows = (MergeRows){.batch = state->batch,
						  .table = table,
						  .fetch = state->fetch,
						  .fetch_arg = state->fetch_arg,
						  .put = stage_row,
						  .put_arg = &at};
	resync_sf_files_make(state->dest, table, &at.files);
	resync_merge_rows(&at.rows);
	if (at.rows.rows == 0)
		return;
	resync_sf_files_store(&at.files);
	initStringInfo(&definitions);
	initStringInfo(&names);
	initStringInfo(&values);
	appendStringInfoString(&definitions, column_definitions(table));
	appendStringInfoString(&names, resync_merge_columns(&resync_sf_dialect, table, ""));
	appendStringInfoString(&values, resync_sf_column_values(table));
	append_stage_columns(table, &definitions, &names, &values);
	stage = resync_sf_make_stage(state->dest, state->nstages++, definitions.data);
	copy_files(state, &at.files, stage, names.data, values.data);
	if (table->nkeys == 0)
		resync_merge_append(&target, stage, &state->script);
	else
		resync_merge_upsert(&target, stage, &at.rows, &state->script);
	take_script(state);
}

/*
 * The column is made at once: what is there without a value does no harm.  Rows
 * that exist get the source's default with the batch's transaction, by way of a
 * staging table with that one value, which so is of the column's type.
 */
static void
add_column(ApplyState *state, const BatchAddColumn *add)
{
	SfDestination	  *dest = state->dest;
	const ResyncTable *table = add->table;
	ResyncTable		   one = *table;
	MergeTarget		   target = merge_target(state, table);
	SfFiles			   files;
	EncodedField	   field;
	char			  *stage;

	resync_sf_add_column(dest, table, target.name);
	if (add->default_text == NULL)
		return;
	one.cols = &table->cols[table->ncols - 1];
	one.ncols = 1;
	one.nkeys = 0;
	field = resync_merge_encode_default(&dest->head, &one, add->default_text);
	if (field.len < 0)
		return;
	resync_sf_files_make(dest, &one, &files);
	(void) resync_csv_add_pieces(files.csv, &field, NULL, 0);
	resync_sf_files_store(&files);
	stage = resync_sf_make_stage(dest, state->nstages++, column_definitions(&one));
	copy_files(state, &files, stage, resync_merge_columns(&resync_sf_dialect, &one, ""),
			   resync_sf_column_values(&one));
	resync_merge_default(&target, stage, &state->script);
	take_script(state);
}

/* ---------------------------------------------------------------------
 * The batch
 * ------------------------------------------------------------------ */

/* The statements as those of a block. */
static char *
block_of(ApplyState *state)
{
	StringInfoData block;
	StringInfoData rows;
	ListCell	  *lc;
	char		  *stage;

	initStringInfo(&block);
	if (state->script_len <= MAX_BLOCK)
	{
		foreach(lc, state->statements)
			appendStringInfo(&block, "%s;\n", (char *) lfirst(lc));
		return block.data;
	}
	stage = resync_sf_make_stage(state->dest, state->nstages++,
								 "n NUMBER(38, 0), sql_text VARCHAR");
	initStringInfo(&rows);
	foreach(lc, state->statements)
	{
		int n = foreach_current_index(lc);

		if (rows.len > 0 && rows.len + strlen(lfirst(lc)) > MAX_BLOCK)
		{
			(void) resync_sf_query(
				state->dest, psprintf("INSERT INTO %s (n, sql_text) VALUES %s", stage, rows.data));
			resetStringInfo(&rows);
		}
		appendStringInfo(&rows, "%s(%d, %s)", rows.len > 0 ? ", " : "", n,
						 resync_sf_literal(lfirst(lc)));
		appendStringInfo(&block,
						 "  SELECT sql_text INTO :stmt FROM %s WHERE n = %d;\n"
						 "  EXECUTE IMMEDIATE :stmt;\n",
						 stage, n);
	}
	(void) resync_sf_query(state->dest,
						   psprintf("INSERT INTO %s (n, sql_text) VALUES %s", stage, rows.data));
	return block.data;
}

static void
apply_parts(ApplyState *state)
{
	List *ddl;

	while (resync_batch_next_part(state->batch, &ddl))
	{
		const BatchTable *bt;
		ListCell		 *lc;

		foreach(lc, ddl)
		{
			const BatchAddColumn *add = lfirst(lc);

			state->current = add->table;
			add_column(state, add);
		}
		while ((bt = resync_batch_next_table(state->batch)) != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(state->table_context);

			state->current = bt->table;
			apply_table(state, bt);
			MemoryContextSwitchTo(old);
			MemoryContextReset(state->table_context);
		}
		state->current = NULL;
	}
}

/* Error context: the table that is being worked on. */
static void
blame_table(void *arg)
{
	const ApplyState *state = arg;

	if (state->current != NULL)
		resync_destination_blame(state->current);
}

void
resync_sf_apply(Destination *head, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg)
{
	SfDestination		*dest = (SfDestination *) head;
	MemoryContext		 old = resync_sf_enter(dest);
	ApplyState			 state = {.dest = dest, .batch = batch};
	ErrorContextCallback blame;
	SfFence				 fence;

	state.fetch = fetch;
	state.fetch_arg = fetch_arg;
	state.table_context = AllocSetContextCreate(dest->call, "resync apply table",
												ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&state.script);
	blame.callback = blame_table;
	blame.arg = &state;
	blame.previous = error_context_stack;
	error_context_stack = &blame;

	resync_sf_fence(dest, &fence);
	if (fence.applied != expected)
		resync_sf_raise_changed(dest);
	apply_parts(&state);
	RESYNC_DEBUG_POINT("sf_before_script");
	(void) resync_sf_transaction(
		dest, block_of(&state),
		psprintf("UPDATE %s SET applied = %s, changed_at = SYSDATE() WHERE %s AND applied = %s",
				 resync_sf_own(dest, SF_RUNS_TABLE), resync_sf_literal(resync_sf_lsn(end_lsn)),
				 resync_sf_fence_condition(dest), resync_sf_literal(resync_sf_lsn(expected))),
		NULL, NULL);
	RESYNC_DEBUG_POINT("sf_after_script");
	error_context_stack = blame.previous;
	MemoryContextSwitchTo(old);
}

/*
 * A block of a streamer that died may still be under way: it counts before the new
 * epoch begins, or not at all.  Its staging tables go.
 */
XLogRecPtr
resync_sf_applied_lsn(Destination *head)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	SfFence		   fence;

	resync_sf_fence(dest, &fence);
	resync_sf_new_epoch(dest, InvalidXLogRecPtr, "");
	resync_sf_fence(dest, &fence);
	resync_sf_drop_marked(dest, head->id->token, head->id->run, true, false);
	MemoryContextSwitchTo(old);
	return fence.applied;
}
