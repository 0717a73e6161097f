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
 *
 * A staging table has the table's columns and
 *	_resync_op		'U' the row is so, 'X' it is so, and deleted, 'D' it is gone
 *	_resync_mask	NULL, or a letter per column: '1' its value is not known, it is
 *					the one that the destination has
 *	_resync_b0 ...	NULL, or the key of the row that such values are in
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* Rows are looked up at the source in steps of so many. */
#define COMPLETE_STEP 500

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
	MemoryContext	   row_context;
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
	bool				 masks; /* some row has unchanged columns */
	bool				 bases; /* ... from another row */
	List				*open;	/* of BatchRow *, in open_context */
	Size				 open_bytes;
	MemoryContext		 open_context;
} ApplyTable;

static const BqType string_type = {.kind = BQ_STRING};

static bool
is_unchanged(const uint8 *bitmap, int i)
{
	return bitmap != NULL && (bitmap[i / 8] & (1 << (i % 8))) != 0;
}

/* The n fields at data. */
static void
find_fields(const char *data, int n, AvroField *fields)
{
	for (int i = 0; i < n; i++)
	{
		uint32 len;

		memcpy(&len, data, 4);
		fields[i].len = (int32) pg_ntoh32(len);
		fields[i].data = data + 4;
		data += 4 + Max(fields[i].len, 0);
	}
}

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
	resync_bq_append_field(fields, "_resync_op", &string_type);
	resync_bq_append_field(fields, "_resync_mask", &string_type);
	for (int i = 0; i < table->nkeys; i++)
	{
		BqType type = resync_bq_type(key[i]);

		type.required = false;
		resync_bq_append_field(fields, psprintf("_resync_b%d", i), &type);
	}
	return schema;
}

static AvroColumn *
stage_columns(const ResyncTable *table, const ResyncColumn **key)
{
	AvroColumn *extras = palloc(sizeof(AvroColumn) * (table->nkeys + 2));

	extras[0] = (AvroColumn){"_resync_op", resync_bq_avro_type(&string_type), AVRO_OPTIONAL};
	extras[1] = (AvroColumn){"_resync_mask", extras[0].type, AVRO_OPTIONAL};
	for (int i = 0; i < table->nkeys; i++)
	{
		BqType type = resync_bq_type(key[i]);

		extras[i + 2] = (AvroColumn){psprintf("_resync_b%d", i), resync_bq_avro_type(&type),
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

/* ---------------------------------------------------------------------
 * Rows
 * ------------------------------------------------------------------ */

/* A row into the stage; its fields may lie apart.  In row_context. */
static void
stage_row(ApplyTable *at, char op, const AvroField *fields, const BatchRow *row, bool use_base)
{
	const ResyncTable *table = at->table;
	AvroField		  *extras = palloc(sizeof(AvroField) * (table->nkeys + 2));
	StringInfoData	   mask;
	char			   word[2] = {2, op}; /* a string of one letter */

	extras[0] = (AvroField){word, 2};
	extras[1] = (AvroField){NULL, -1};
	for (int i = 0; i < table->nkeys; i++)
		extras[i + 2] = (AvroField){NULL, -1};
	if (row != NULL && row->unchanged != NULL)
	{
		initStringInfo(&mask);
		put_avro_long(&mask, table->ncols);
		for (int i = 0; i < table->ncols; i++)
			appendStringInfoChar(&mask, is_unchanged(row->unchanged, i) ? '1' : '0');
		extras[1] = (AvroField){mask.data, mask.len};
		at->masks = true;
		if (row->base != NULL && use_base)
		{
			find_fields(row->base, table->nkeys, extras + 2);
			at->bases = true;
		}
	}
	if (resync_avro_add_pieces(at->writer, fields, extras))
		(void) resync_avro_write(at->writer, resync_bq_upload_put, at->upload);
}

static void
stage_batch_row(ApplyTable *at, const BatchRow *row, bool use_base)
{
	AvroField *fields = palloc(sizeof(AvroField) * at->table->ncols);
	char	   op;

	find_fields(row->data, at->table->ncols, fields);
	if (row->op == BATCH_DELETE)
		op = 'D';
	else
		op = row->deleted ? 'X' : 'U';
	stage_row(at, op, fields, row, use_base);
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
append_key(const ApplyTable *at, const AvroField *fields, StringInfo out)
{
	for (int i = 0; i < at->table->nkeys; i++)
	{
		const AvroField *field = &fields[at->key[i] - at->table->cols];
		uint32			 len = pg_hton32((uint32) field->len);

		appendBinaryStringInfo(out, (char *) &len, 4);
		appendBinaryStringInfo(out, field->data, Max(field->len, 0));
	}
}

/* A row as it is at the source, in place of what was unchanged. */
static void
stage_fetched(ApplyTable *at, const BatchRow *row, const char *fetched)
{
	int		   n = at->table->ncols;
	AvroField *fields = palloc(sizeof(AvroField) * n);
	AvroField *now = palloc(sizeof(AvroField) * n);

	find_fields(row->data, n, fields);
	find_fields(fetched, n, now);
	for (int i = 0; i < n; i++)
	{
		if (is_unchanged(row->unchanged, i))
			fields[i] = now[i];
	}
	stage_row(at, 'U', fields, NULL, false);
}

/*
 * Rows with unchanged columns of a batch that is distrusted: the destination
 * may not have the row, or another one under its former key; so the source is
 * asked.  A row that is gone there keeps its mask: what the destination has is
 * left alone, and what it has not will be deleted by a later change.
 */
static void
complete_open(ApplyTable *at)
{
	ApplyState	 *state = at->state;
	int			  n = list_length(at->open);
	MemoryContext old;
	FetchRow	 *fetched;

	if (n == 0)
		return;
	old = MemoryContextSwitchTo(at->open_context);
	fetched = palloc0(sizeof(FetchRow) * n);
	for (int i = 0; i < n; i++)
	{
		const BatchRow *row = list_nth(at->open, i);
		AvroField	   *fields = palloc(sizeof(AvroField) * at->table->ncols);
		StringInfoData	key;

		find_fields(row->data, at->table->ncols, fields);
		initStringInfo(&key);
		append_key(at, fields, &key);
		fetched[i].key = key.data;
		fetched[i].key_len = key.len;
		initStringInfo(&fetched[i].row);
	}
	for (int done = 0; done < n;)
	{
		int more = state->fetch(state->fetch_arg, at->table, fetched + done, n - done);

		for (int i = done; i < done + more; i++)
		{
			const BatchRow *row = list_nth(at->open, i);

			if (fetched[i].found)
				stage_fetched(at, row, fetched[i].row.data);
			else
				stage_batch_row(at, row, false);
			pfree(fetched[i].row.data);
		}
		done += more;
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(at->open_context);
	at->open = NIL;
	at->open_bytes = 0;
}

/* Keep it for complete_open(). */
static void
add_open(ApplyTable *at, const BatchRow *row)
{
	MemoryContext old = MemoryContextSwitchTo(at->open_context);
	BatchRow	 *open = copy_bytes(row, sizeof(BatchRow));

	open->data = copy_bytes(row->data, row->len);
	open->unchanged = copy_bytes(row->unchanged, (at->table->ncols + 7) / 8);
	if (row->base != NULL)
		open->base = copy_bytes(row->base, row->base_len);
	at->open = lappend(at->open, open);
	at->open_bytes += row->len;
	MemoryContextSwitchTo(old);
	if (list_length(at->open) >= COMPLETE_STEP ||
		at->open_bytes >= (Size) resync_copier_buffer * 1024)
		complete_open(at);
}

static void
add_row(ApplyTable *at, const BatchRow *row)
{
	ApplyState	 *state = at->state;
	MemoryContext old;

	if (row->op == BATCH_REMOVE)
		elog(ERROR, "unexpected change '%c' of table \"%s\"", row->op, at->table->name);
	if (row->unchanged != NULL && !row->deleted && resync_batch_is_distrusted(state->batch) &&
		state->fetch != NULL)
	{
		add_open(at, row);
		return;
	}
	old = MemoryContextSwitchTo(state->row_context);
	stage_batch_row(at, row, true);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->row_context);
}

/* ---------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------ */

static const char *
target_name(ApplyState *state, const ResyncTable *table)
{
	return resync_bq_table(state->dest, state->live ? table->dest_name : table->build_name);
}

static void
add_truncate(ApplyState *state, const ResyncTable *table)
{
	const ResyncOptions *options = state->dest->head.id->options;
	const char			*deleted = options->soft_delete_col_name;

	if (deleted == NULL)
	{
		appendStringInfo(&state->script, "DELETE FROM %s WHERE TRUE;\n", target_name(state, table));
		return;
	}
	appendStringInfo(&state->script, "UPDATE %s SET %s = TRUE", target_name(state, table),
					 resync_bq_ident(deleted));
	if (options->synced_at_col_name != NULL)
		appendStringInfo(&state->script, ", %s = CURRENT_TIMESTAMP()",
						 resync_bq_ident(options->synced_at_col_name));
	appendStringInfo(&state->script, " WHERE NOT IFNULL(%s, FALSE);\n", resync_bq_ident(deleted));
}

/* ", deleted, synced_at" and their values, for INSERT. */
static void
append_own(ApplyState *state, StringInfo names, StringInfo values, const char *deleted_value)
{
	const ResyncOptions *options = state->dest->head.id->options;

	if (options->soft_delete_col_name != NULL)
	{
		appendStringInfo(names, ", %s", resync_bq_ident(options->soft_delete_col_name));
		appendStringInfo(values, ", %s", deleted_value);
	}
	if (options->synced_at_col_name != NULL)
	{
		appendStringInfo(names, ", %s", resync_bq_ident(options->synced_at_col_name));
		appendStringInfoString(values, ", CURRENT_TIMESTAMP()");
	}
}

static void
add_append(ApplyState *state, ApplyTable *at)
{
	StringInfoData names;
	StringInfoData values;

	initStringInfo(&names);
	initStringInfo(&values);
	for (int i = 0; i < at->table->ncols; i++)
	{
		const char *column = resync_bq_ident(at->table->cols[i].dest_name);

		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", column);
		appendStringInfo(&values, "%s_resync_s.%s", i > 0 ? ", " : "", column);
	}
	append_own(state, &names, &values, "_resync_s._resync_op = 'X'");
	appendStringInfo(&state->script, "INSERT INTO %s (%s) SELECT %s FROM %s _resync_s;\n",
					 target_name(state, at->table), names.data, values.data,
					 resync_bq_table(state->dest, at->stage));
}

/*
 * What MERGE reads.  A row with a base takes its unchanged columns from the row
 * with that key, as it was before this part, and has no mask then.
 */
static char *
merge_source(ApplyState *state, ApplyTable *at)
{
	const char	  *stage = resync_bq_table(state->dest, at->stage);
	StringInfoData sql;

	if (!at->bases)
		return pstrdup(stage);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "(SELECT _resync_s._resync_op, ");
	appendStringInfo(&sql,
					 "IF(_resync_b.%s IS NOT NULL, NULL, _resync_s._resync_mask) AS _resync_mask",
					 resync_bq_ident(at->key[0]->dest_name));
	for (int i = 0; i < at->table->ncols; i++)
	{
		const ResyncColumn *col = &at->table->cols[i];
		const char		   *name = resync_bq_ident(col->dest_name);

		if (col->keypos > 0)
			appendStringInfo(&sql, ", _resync_s.%s", name);
		else
			appendStringInfo(
				&sql,
				", IF(_resync_b.%s IS NOT NULL AND SUBSTR(_resync_s._resync_mask, %d, 1) = '1', _resync_b.%s,"
				" _resync_s.%s) AS %s",
				resync_bq_ident(at->key[0]->dest_name), i + 1, name, name, name);
	}
	appendStringInfo(&sql, " FROM %s _resync_s LEFT JOIN %s _resync_b ON ", stage,
					 target_name(state, at->table));
	for (int i = 0; i < at->table->nkeys; i++)
		appendStringInfo(
			&sql, "%s%s = %s", i > 0 ? " AND " : "",
			resync_bq_key_value(at->key[i],
								psprintf("_resync_b.%s", resync_bq_ident(at->key[i]->dest_name))),
			resync_bq_key_value(at->key[i], psprintf("_resync_s._resync_b%d", i)));
	appendStringInfoChar(&sql, ')');
	return sql.data;
}

/* "WHEN MATCHED AND op <> 'D' THEN UPDATE ...", unless there is nothing to set. */
static void
add_update(ApplyState *state, ApplyTable *at)
{
	const ResyncOptions *options = state->dest->head.id->options;
	StringInfoData		 sets;
	const char			*sep = "";

	initStringInfo(&sets);
	for (int i = 0; i < at->table->ncols; i++)
	{
		const ResyncColumn *col = &at->table->cols[i];
		const char		   *name = resync_bq_ident(col->dest_name);

		if (col->keypos > 0)
			continue;
		if (at->masks)
			appendStringInfo(
				&sets,
				"%s%s = IF(IFNULL(SUBSTR(_resync_s._resync_mask, %d, 1), '0') = '1', _resync_t.%s,"
				" _resync_s.%s)",
				sep, name, i + 1, name, name);
		else
			appendStringInfo(&sets, "%s%s = _resync_s.%s", sep, name, name);
		sep = ", ";
	}
	if (options->soft_delete_col_name != NULL)
	{
		appendStringInfo(&sets, "%s%s = _resync_s._resync_op = 'X'", sep,
						 resync_bq_ident(options->soft_delete_col_name));
		sep = ", ";
	}
	if (options->synced_at_col_name != NULL)
		appendStringInfo(&sets, "%s%s = CURRENT_TIMESTAMP()", sep,
						 resync_bq_ident(options->synced_at_col_name));
	if (sets.len > 0)
		appendStringInfo(&state->script,
						 "WHEN MATCHED AND _resync_s._resync_op <> 'D' THEN UPDATE SET %s\n",
						 sets.data);
}

/* Deletes: what is deleted already keeps the time of that. */
static void
add_delete(ApplyState *state)
{
	const ResyncOptions *options = state->dest->head.id->options;
	const char			*deleted = options->soft_delete_col_name;

	if (deleted == NULL)
	{
		appendStringInfoString(&state->script,
							   "WHEN MATCHED AND _resync_s._resync_op = 'D' THEN DELETE\n");
		return;
	}
	appendStringInfo(
		&state->script,
		"WHEN MATCHED AND _resync_s._resync_op = 'D' AND NOT IFNULL(_resync_t.%s, FALSE) THEN"
		" UPDATE SET %s = TRUE",
		resync_bq_ident(deleted), resync_bq_ident(deleted));
	if (options->synced_at_col_name != NULL)
		appendStringInfo(&state->script, ", %s = CURRENT_TIMESTAMP()",
						 resync_bq_ident(options->synced_at_col_name));
	appendStringInfoChar(&state->script, '\n');
}

static void
add_merge(ApplyState *state, ApplyTable *at)
{
	const ResyncTable *table = at->table;
	const char		  *deleted = state->dest->head.id->options->soft_delete_col_name;
	StringInfoData	   names;
	StringInfoData	   values;

	appendStringInfo(&state->script, "MERGE %s _resync_t USING %s _resync_s ON %s\n",
					 target_name(state, table), merge_source(state, at),
					 resync_bq_same_key(table, "_resync_t", "_resync_s"));
	add_delete(state);
	add_update(state, at);

	initStringInfo(&names);
	initStringInfo(&values);
	for (int i = 0; i < table->ncols; i++)
	{
		const char *name = resync_bq_ident(table->cols[i].dest_name);

		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", name);
		appendStringInfo(&values, "%s_resync_s.%s", i > 0 ? ", " : "", name);
	}
	append_own(state, &names, &values, "_resync_s._resync_op <> 'U'");
	/* a deleted row that was never there is one with its key alone */
	appendStringInfo(&state->script, "WHEN NOT MATCHED AND %s%s THEN INSERT (%s) VALUES (%s);\n",
					 deleted == NULL ? "_resync_s._resync_op <> 'D' AND " : "",
					 "(_resync_s._resync_mask IS NULL OR _resync_s._resync_op = 'X')", names.data,
					 values.data);
}

/* ---------------------------------------------------------------------
 * Added columns
 * ------------------------------------------------------------------ */

/* The default as a field, encoded as if it came in a row.  Not in a transaction. */
static AvroField
encode_default(const ResyncTable *one, const char *text)
{
	const ResyncColumn *col = &one->cols[0];
	TupleDesc			desc = CreateTemplateTupleDesc(1);
	MemoryContext		context = CurrentMemoryContext;
	StringInfoData		data;
	AvroField			field;
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
	resync_encode_row(resync_encode_bq_make(desc, one), &value, &isnull, &data);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	find_fields(data.data, 1, &field);
	return field;
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
	AvroField		   field;
	JsonNode		  *schema;
	BqType			   type;

	resync_bq_add_column(state->dest, table, state->live);
	if (add->default_text == NULL)
		return;
	one.cols = &table->cols[table->ncols - 1];
	one.ncols = 1;
	one.nkeys = 0;
	field = encode_default(&one, add->default_text);
	if (field.len < 0)
		return;
	type = resync_bq_type(one.cols);
	type.required = false;
	schema = resync_json_make();
	resync_bq_append_field(resync_json_set_array(schema, "fields"), one.cols->dest_name, &type);
	open_stage(state, &one, schema, resync_bq_avro_columns(&one, NULL, 0), 1, &at);
	(void) resync_avro_add_pieces(at.writer, &field, NULL);
	close_stage(state, &at);
	appendStringInfo(&state->script,
					 "UPDATE %s SET %s = (SELECT _resync_s.%s FROM %s _resync_s) WHERE TRUE;\n",
					 target_name(state, table), resync_bq_ident(one.cols->dest_name),
					 resync_bq_ident(one.cols->dest_name), resync_bq_table(state->dest, at.stage));
}

/* ---------------------------------------------------------------------
 * The batch
 * ------------------------------------------------------------------ */

static void
apply_table(ApplyState *state, const BatchTable *bt)
{
	const ResyncTable *table = bt->table;
	ApplyTable		  *at;
	JsonNode		  *schema;
	BatchRow		   row;

	(void) resync_bq_require_owned(state->dest, table, state->live);
	if (bt->truncate)
		add_truncate(state, table);
	if (bt->nrows == 0)
		return;
	at = palloc0(sizeof(ApplyTable));
	at->state = state;
	at->table = table;
	at->key = resync_destination_key(table);
	at->open_context = AllocSetContextCreate(CurrentMemoryContext, "resync open rows",
											 ALLOCSET_DEFAULT_SIZES);
	schema = stage_schema(table, at->key);
	open_stage(state, table, schema, stage_columns(table, at->key), table->ncols + 2 + table->nkeys,
			   at);
	while (resync_batch_next_row(state->batch, &row))
		add_row(at, &row);
	complete_open(at);
	if (resync_avro_rows(at->writer) == 0)
		return;
	close_stage(state, at);
	if (table->nkeys == 0)
		add_append(state, at);
	else
		add_merge(state, at);
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
	state.row_context = AllocSetContextCreate(dest->call, "resync apply row",
											  ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&state.script);
	blame.callback = blame_table;
	blame.arg = &state;
	blame.previous = error_context_stack;
	error_context_stack = &blame;

	resync_bq_fence(dest, &fence);
	if (fence.applied != expected)
		resync_bq_raise_fenced(dest, "Another process has applied changes.");
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
