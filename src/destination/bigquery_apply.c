/*
 * bigquery_apply.c
 *		Batches of changes into a BigQuery destination.
 *
 * Called by the streamer.  The rows of each table of a part are loaded into a
 * staging table of this process's own; then one script applies the whole batch
 * in one transaction, with the applied LSN in it (rules 3, 4, 6): after a crash
 * the batch is there wholly or not at all, and the LSN tells which.  The
 * script's id is made of the LSN that it goes on from: a script that an earlier
 * process has left running is waited for before that LSN is believed.
 * What a staging table has: destination/merge.h.
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include "utils/builtins.h"
#include "utils/memutils.h"

/* A load job whose end is awaited before the script. */
typedef struct ApplyJob
{
	const ResyncTable *table;
	char			  *id;
	JsonNode		  *job;
	int64			   rows;
} ApplyJob;

/* One call of apply. */
typedef struct ApplyState
{
	BqDestination	  *dest;
	ResyncBatch		  *batch;
	bool			   live;
	FetchRowsFn		   fetch;
	void			  *fetch_arg;
	StringInfoData	   script;
	int				   nstages;
	List			  *jobs;	/* of ApplyJob * */
	const ResyncTable *current; /* the table that is worked on, or NULL */
	MemoryContext	   table_context;
} ApplyState;

/* One table of a part; in table_context. */
typedef struct ApplyTable
{
	ApplyState			*state;
	const ResyncTable	*table;
	const ResyncColumn **key;
	char				*stage;
	AvroWriter			*writer;
	BqUpload			*upload;
	MergeRows			 rows;
} ApplyTable;

static const BqType string_type = {.kind = BQ_STRING};

/* ---------------------------------------------------------------------
 * Staging tables
 * ------------------------------------------------------------------ */

/* The schema of a table's staging table. */
static JsonNode *
stage_schema(const ResyncTable *table, const ResyncColumn **key)
{
	JsonNode *schema = resync_json_make();
	JsonNode *fields = resync_json_set_array(schema, "fields");

	for (int i = 0; i < table->ncols; i++)
	{
		BqType type = resync_bq_type(&table->cols[i]);

		type.required = false;
		resync_bq_append_field(fields, table->cols[i].dest_name, &type);
	}
	resync_bq_append_field(fields, MERGE_OP, &string_type);
	resync_bq_append_field(fields, MERGE_MASK, &string_type);
	for (int i = 0; i < table->nkeys; i++)
	{
		BqType type = resync_bq_type(key[i]);

		type.required = false;
		resync_bq_append_field(fields, psprintf(MERGE_BASE, i), &type);
	}
	return schema;
}

static AvroColumn *
stage_columns(const ResyncTable *table, const ResyncColumn **key)
{
	AvroColumn *extras = palloc(sizeof(AvroColumn) * (table->nkeys + 2));

	extras[0] = (AvroColumn){MERGE_OP, resync_bq_avro_type(&string_type), AVRO_OPTIONAL};
	extras[1] = (AvroColumn){MERGE_MASK, extras[0].type, AVRO_OPTIONAL};
	for (int i = 0; i < table->nkeys; i++)
	{
		BqType type = resync_bq_type(key[i]);

		extras[i + 2] = (AvroColumn){psprintf(MERGE_BASE, i), resync_bq_avro_type(&type),
									 AVRO_OPTIONAL};
	}
	return resync_bq_avro_columns(table, extras, table->nkeys + 2);
}

/*
 * A staging table for the next load, made if this process has none of that name
 * yet.  No other process ever writes to it.
 */
static char *
get_stage(ApplyState *state, const ResyncTable *table, JsonNode *schema)
{
	BqDestination *dest = state->dest;
	char		  *name = psprintf("_peerdb_resync_stage_%.8s_" INT64_FORMAT "_%08x_%d_%d_%d",
								   dest->head.id->token, dest->head.id->run, dest->nonce, table->ordinal,
								   table->ncols, state->nstages++);
	JsonNode	  *json;
	MemoryContext  old;
	ListCell	  *lc;

	foreach(lc, dest->stages)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return name;
	}
	json = resync_json_make();
	resync_json_set_node(json, "schema", schema);
	resync_bq_set_mark(dest, json, name, dest->head.id->run, BQ_ROLE_STAGE, dest->life);
	resync_bq_insert_table(dest, json, name);
	old = MemoryContextSwitchTo(dest->head.context);
	dest->stages = lappend(dest->stages, pstrdup(name));
	MemoryContextSwitchTo(old);
	return name;
}

/* A writer into a staging table, in the current context. */
static void
open_stage(ApplyState *state, const ResyncTable *table, JsonNode *schema, AvroColumn *columns,
		   int ncolumns, ApplyTable *at)
{
	BqDestination *dest = state->dest;
	char		  *id = resync_bq_job_id(
				 dest, psprintf("stage_%08x_" UINT64_FORMAT, dest->nonce, ++dest->requests));

	at->stage = get_stage(state, table, schema);
	at->writer = resync_avro_make(table, columns, ncolumns, BQ_MAX_ROW);
	at->upload = resync_bq_upload_make(dest, at->stage, schema, true, id);
}

/* The file is complete; its job goes on beside those of other tables. */
static void
close_stage(ApplyState *state, ApplyTable *at)
{
	ApplyJob	 *job;
	MemoryContext old;
	bool		  known;

	(void) resync_avro_write(at->writer, resync_bq_upload_put, at->upload);
	old = MemoryContextSwitchTo(state->dest->call);
	job = palloc0(sizeof(ApplyJob));
	job->table = at->table;
	job->id = pstrdup(at->upload->id);
	job->rows = resync_avro_rows(at->writer);
	job->job = resync_bq_upload_close(at->upload, &known);
	state->jobs = lappend(state->jobs, job);
	MemoryContextSwitchTo(old);
	RESYNC_DEBUG_POINT("bq_after_stage");
}

static void
wait_stages(ApplyState *state)
{
	ListCell *lc;

	foreach(lc, state->jobs)
	{
		ApplyJob *job = lfirst(lc);
		JsonNode *done;

		state->current = job->table;
		done = resync_bq_wait_job(state->dest, job->id, job->job);
		if (resync_bq_job_failed(done))
			resync_bq_raise_job(done);
		if (resync_bq_output_rows(done) != job->rows)
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
							errmsg("BigQuery has loaded " INT64_FORMAT " rows of " INT64_FORMAT,
								   resync_bq_output_rows(done), job->rows)));
	}
	state->current = NULL;
}

/* A row into the stage (MergeRows.put). */
static void
stage_row(void *arg, char op, const EncodedField *fields, const char *mask,
		  const EncodedField *base)
{
	ApplyTable		  *at = arg;
	const ResyncTable *table = at->table;
	EncodedField	  *extras = palloc(sizeof(EncodedField) * (table->nkeys + 2));
	StringInfoData	   text;
	char			   word[2] = {2, op}; /* a string of one letter */

	extras[0] = (EncodedField){word, 2};
	extras[1] = (EncodedField){NULL, -1};
	if (mask != NULL)
	{
		initStringInfo(&text);
		put_avro_bytes(&text, mask, table->ncols);
		extras[1] = (EncodedField){text.data, text.len};
	}
	for (int i = 0; i < table->nkeys; i++)
		extras[i + 2] = base != NULL ? base[i] : (EncodedField){NULL, -1};
	if (resync_avro_add_pieces(at->writer, fields, extras))
		(void) resync_avro_write(at->writer, resync_bq_upload_put, at->upload);
}

/* ---------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------ */

static MergeTarget
merge_target(ApplyState *state, const ResyncTable *table)
{
	const ResyncOptions *options = state->dest->head.id->options;
	MergeTarget			 target = {.dialect = &resync_bq_dialect, .table = table};

	target.name = resync_bq_table(state->dest, state->live ? table->dest_name : table->build_name);
	target.deleted = options->soft_delete_col_name;
	target.synced_at = options->synced_at_col_name;
	return target;
}

/*
 * The column is made at once: what is there without a value does no harm.  Rows
 * that exist get the source's default with the batch's transaction, by way of a
 * staging table with that one value, which so is of the column's type.
 */
static void
add_column(ApplyState *state, const BatchAddColumn *add)
{
	const ResyncTable *table = add->table;
	ResyncTable		   one = *table;
	ApplyTable		   at = {.state = state, .table = table};
	MergeTarget		   target = merge_target(state, table);
	EncodedField	   field;
	JsonNode		  *schema;
	BqType			   type;

	resync_bq_add_column(state->dest, table, state->live);
	if (add->default_text == NULL)
		return;
	one.cols = &table->cols[table->ncols - 1];
	one.ncols = 1;
	one.nkeys = 0;
	field = resync_merge_encode_default(&state->dest->head, &one, add->default_text);
	if (field.len < 0)
		return;
	type = resync_bq_type(one.cols);
	type.required = false;
	schema = resync_json_make();
	resync_bq_append_field(resync_json_set_array(schema, "fields"), one.cols->dest_name, &type);
	open_stage(state, &one, schema, resync_bq_avro_columns(&one, NULL, 0), 1, &at);
	(void) resync_avro_add_pieces(at.writer, &field, NULL);
	close_stage(state, &at);
	resync_merge_default(&target, resync_bq_table(state->dest, at.stage), &state->script);
}

/* ---------------------------------------------------------------------
 * The batch
 * ------------------------------------------------------------------ */

static void
apply_table(ApplyState *state, const BatchTable *bt)
{
	const ResyncTable *table = bt->table;
	MergeTarget		   target = merge_target(state, table);
	ApplyTable		  *at;
	JsonNode		  *schema;
	const char		  *stage;

	(void) resync_bq_require_owned(state->dest, table, state->live);
	if (bt->truncate)
		resync_merge_truncate(&target, &state->script);
	if (bt->nrows == 0)
		return;
	at = palloc0(sizeof(ApplyTable));
	at->state = state;
	at->table = table;
	at->key = resync_destination_key(table);
	at->rows = (MergeRows){.batch = state->batch,
						   .table = table,
						   .fetch = state->fetch,
						   .fetch_arg = state->fetch_arg,
						   .put = stage_row,
						   .put_arg = at};
	schema = stage_schema(table, at->key);
	open_stage(state, table, schema, stage_columns(table, at->key), table->ncols + 2 + table->nkeys,
			   at);
	resync_merge_rows(&at->rows);
	if (at->rows.rows == 0)
		return;
	close_stage(state, at);
	stage = resync_bq_table(state->dest, at->stage);
	if (table->nkeys == 0)
		resync_merge_append(&target, stage, &state->script);
	else
		resync_merge_upsert(&target, stage, &at->rows, &state->script);
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

/* Id of the script that goes on from an LSN, without the attempt. */
static char *
apply_job_id(BqDestination *dest, XLogRecPtr expected)
{
	return resync_bq_job_id(dest, psprintf("apply_%X_%X", LSN_FORMAT_ARGS(expected)));
}

static void
run_script(ApplyState *state, XLogRecPtr expected, XLogRecPtr end_lsn)
{
	BqDestination *dest = state->dest;
	bool		   before = false;
	char		  *script;

	script = psprintf(
		"BEGIN TRANSACTION;\n%s%sUPDATE %s SET applied = %s, changed_at = CURRENT_TIMESTAMP()"
		" WHERE %s;\nCOMMIT TRANSACTION;",
		resync_bq_fence_sql(dest, expected), state->script.data,
		resync_bq_table(dest, BQ_RUNS_TABLE), resync_bq_literal(resync_bq_lsn(end_lsn)),
		resync_bq_run_condition(dest, dest->head.id->run));
	RESYNC_DEBUG_POINT("bq_before_script");
	(void) resync_bq_exec(dest, script, apply_job_id(dest, expected), &before);
	RESYNC_DEBUG_POINT("bq_after_script");
	/* another process's batch, which may have ended elsewhere */
	if (before)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("changes of mirror \"%s\" were applied by another process",
							   dest->head.id->mirror)));
}

void
resync_bq_apply(Destination *head, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg)
{
	BqDestination		*dest = (BqDestination *) head;
	MemoryContext		 old = resync_bq_enter(dest);
	ApplyState			 state = {.dest = dest, .batch = batch};
	ErrorContextCallback blame;
	BqFence				 fence;

	state.fetch = fetch;
	state.fetch_arg = fetch_arg;
	state.table_context = AllocSetContextCreate(dest->call, "resync apply table",
												ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&state.script);
	blame.callback = blame_table;
	blame.arg = &state;
	blame.previous = error_context_stack;
	error_context_stack = &blame;

	resync_bq_fence(dest, &fence);
	if (fence.applied != expected)
		resync_destination_raise_fenced(dest->head.id, "Another process has applied changes.");
	/* a swap may have ended that the caller does not know of yet */
	state.live = to_live || fence.swapped;
	apply_parts(&state);
	wait_stages(&state);
	run_script(&state, expected, end_lsn);
	error_context_stack = blame.previous;
	MemoryContextSwitchTo(old);
}

/*
 * A script of a streamer that died may still be under way: it ends first, and
 * then counts or not.  Its staging tables go.
 */
XLogRecPtr
resync_bq_applied_lsn(Destination *head)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	BqFence		   fence;
	bool		   found = true;

	resync_bq_fence(dest, &fence);
	for (int attempt = 1; found; attempt++)
	{
		char	 *id = psprintf("%s_%d", apply_job_id(dest, fence.applied), attempt);
		JsonNode *job = resync_bq_find_job(dest, id);

		found = job != NULL;
		if (found)
			(void) resync_bq_wait_job(dest, id, job);
	}
	resync_bq_fence(dest, &fence);
	resync_bq_drop_marked(dest, head->id->token, head->id->run, true, false);
	MemoryContextSwitchTo(old);
	return fence.applied;
}
