/*
 * bigquery_swap.c
 *		The end of a run's build at a BigQuery destination: deleted rows are
 *		carried over, then the new tables take the old ones' place.
 *
 * Called by the coordinator; swap while the streamer is held at a commit.  A
 * table takes its place by a copy job that replaces the live table's rows and
 * schema in one step: readers find the old or the new table, never none, and
 * nothing of the one under construction is used up, so that a copy may be made
 * again.  Until all tables have been copied the run goes on with those under
 * construction; then its row says "swapped", which is the journal, and from
 * that moment it goes on with the live ones.  A copy's id has the LSN: what was
 * copied before more changes came is copied again.
 *
 * What somebody has given the live table (labels, description, policy tags,
 * expiry ...) is noted on the new one before the copy, and restated after it.
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include "utils/builtins.h"
#include "utils/memutils.h"

/* How PeerDB calls its columns unless told otherwise; case does not matter. */
#define PEERDB_DELETED "_peerdb_is_deleted"
#define PEERDB_SYNCED_AT "_peerdb_synced_at"

/* Label: what the live table had was noted already. */
#define LABEL_KEPT "resync_kept"

/* ---------------------------------------------------------------------
 * Deleted rows
 * ------------------------------------------------------------------ */

/* The name of a field of a table's resource, whatever its case; or NULL. */
static char *
find_field(JsonNode *table, const char *name)
{
	int n = resync_json_length(table, "schema.fields");

	for (int i = 0; name != NULL && i < n; i++)
	{
		char *field = resync_json_get_text(table, psprintf("schema.fields.%d.name", i));

		if (field != NULL && pg_strcasecmp(field, name) == 0)
			return field;
	}
	return NULL;
}

static bool
is_mirrored(const ResyncTable *table, const char *name)
{
	for (int i = 0; i < table->ncols; i++)
	{
		if (pg_strcasecmp(table->cols[i].dest_name, name) == 0)
			return true;
	}
	return false;
}

/* Our own column in the old table, or PeerDB's. */
static char *
find_own(const ResyncTable *table, JsonNode *live, const char *ours, const char *peerdb)
{
	char *name = find_field(live, ours);

	if (name == NULL && !is_mirrored(table, peerdb))
		name = find_field(live, peerdb);
	return name;
}

/* A column of the old table as the new one's type; arrays only if they are equal. */
static char *
column_expression(const ResyncColumn *col)
{
	BqType type = resync_bq_type(col);
	char  *name = resync_bq_ident(col->dest_name);

	if (type.repeated)
		return psprintf("_resync_o.%s", name);
	if (type.kind == BQ_JSON)
		return psprintf("_resync_o.%s", name);
	return psprintf("SAFE_CAST(_resync_o.%s AS %s)", name, resync_bq_kind_name(type.kind));
}

/* MERGE: what the new table has by key already, an earlier try has brought. */
static char *
transfer_query(BqDestination *dest, const ResyncTable *table, JsonNode *live)
{
	const ResyncOptions *options = dest->head.id->options;
	char		  *deleted = find_own(table, live, options->soft_delete_col_name, PEERDB_DELETED);
	char		  *synced = find_own(table, live, options->synced_at_col_name, PEERDB_SYNCED_AT);
	StringInfoData names, values, source, sql;

	initStringInfo(&names);
	initStringInfo(&values);
	initStringInfo(&source);
	for (int i = 0; i < table->ncols; i++)
	{
		const ResyncColumn *col = &table->cols[i];
		char			   *name = resync_bq_ident(col->dest_name);

		if (find_field(live, col->dest_name) == NULL)
			continue;
		appendStringInfo(&names, "%s, ", name);
		appendStringInfo(&values, "_resync_s.%s, ", name);
		appendStringInfo(&source, "%s AS %s, ", column_expression(col), name);
	}
	appendStringInfo(&names, "%s", resync_bq_ident(options->soft_delete_col_name));
	appendStringInfoString(&values, "TRUE");
	if (options->synced_at_col_name != NULL)
	{
		appendStringInfo(&names, ", %s", resync_bq_ident(options->synced_at_col_name));
		appendStringInfoString(&values, ", _resync_s._resync_synced");
	}
	/* what was deleted before keeps its time */
	if (deleted != NULL && synced != NULL)
		appendStringInfo(&source,
						 "IF(IFNULL(_resync_o.%s, FALSE), SAFE_CAST(_resync_o.%s AS TIMESTAMP),"
						 " CURRENT_TIMESTAMP()) AS _resync_synced",
						 resync_bq_ident(deleted), resync_bq_ident(synced));
	else
		appendStringInfoString(&source, "CURRENT_TIMESTAMP() AS _resync_synced");
	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "MERGE %s _resync_t USING (SELECT %s FROM %s _resync_o) _resync_s ON %s\n"
					 "WHEN NOT MATCHED THEN INSERT (%s) VALUES (%s)",
					 resync_bq_table(dest, table->build_name), source.data,
					 resync_bq_table(dest, table->dest_name),
					 resync_merge_same_key(&resync_bq_dialect, table, "_resync_t", "_resync_s"),
					 names.data, values.data);
	return sql.data;
}

int64
resync_bq_transfer(Destination *head, const ResyncTable *table, List **warnings)
{
	BqDestination		*dest = (BqDestination *) head;
	MemoryContext		 old = resync_bq_enter(dest);
	const ResyncColumn **key = resync_destination_key(table);
	int64				 rows = 0;
	bool				 possible;
	BqTable				*build;
	BqTable				*live;
	BqFence				 fence;

	resync_bq_fence(dest, &fence);
	build = resync_bq_require_owned(dest, table, false);
	live = resync_bq_find_table(dest, table->dest_name);
	possible = live != NULL && head->id->options->soft_delete && table->nkeys > 0;
	for (int i = 0; possible && i < table->nkeys; i++)
		possible = find_field(live->json, key[i]->dest_name) != NULL; /* validate has warned */
	if (possible)
	{
		JsonNode *job;

		job = resync_bq_exec(
			dest, transfer_query(dest, table, live->json),
			resync_bq_job_id(dest, psprintf("transfer_%s_%d", build->life, table->ordinal)), NULL);
		(void) resync_json_int64(job, "statistics.query.numDmlAffectedRows", &rows);
	}
	MemoryContextSwitchTo(old);
	return rows;
}

/* ---------------------------------------------------------------------
 * Swap
 * ------------------------------------------------------------------ */

/* Settings of a table that are not its rows' or its mark's. */
static const char *const kept_settings[] = {"description", "friendlyName", "expirationTime",
											"requirePartitionFilter"};

/* Of fields of the same name: description and policy tags. */
static void
copy_field_settings(JsonNode *from, JsonNode *schema)
{
	int n = resync_json_length(from, "schema.fields");
	int m = resync_json_length(schema, "fields");

	for (int i = 0; i < n; i++)
	{
		JsonNode   *old = resync_json_find(from, psprintf("schema.fields.%d", i));
		const char *name = resync_json_string(old, "name");

		for (int k = 0; k < m && name != NULL; k++)
		{
			JsonNode   *field = resync_json_find(schema, psprintf("fields.%d", k));
			const char *other = resync_json_string(field, "name");

			if (other == NULL || pg_strcasecmp(name, other) != 0)
				continue;
			if (resync_json_find(old, "description") != NULL)
				resync_json_set_node(field, "description", resync_json_find(old, "description"));
			if (resync_json_find(old, "policyTags") != NULL)
				resync_json_set_node(field, "policyTags", resync_json_find(old, "policyTags"));
		}
	}
}

/* A patch with what a table was given by others. */
static JsonNode *
settings_of(JsonNode *from, JsonNode *schema)
{
	JsonNode *patch = resync_json_make();
	ListCell *lc;
	List	 *labels;

	for (int i = 0; i < lengthof(kept_settings); i++)
	{
		JsonNode *value = resync_json_find(from, kept_settings[i]);

		if (value != NULL)
			resync_json_set_node(patch, kept_settings[i], value);
	}
	(void) resync_json_set_object(patch, "labels");
	labels = resync_json_names(from, "labels");
	foreach(lc, labels)
	{
		const char *name = lfirst(lc);
		const char *value = resync_json_string(
			resync_json_member(resync_json_find(from, "labels"), name), "");

		if (strncmp(name, "resync_", 7) != 0 && value != NULL)
			resync_json_set_member(resync_json_find(patch, "labels"), name, value);
	}
	copy_field_settings(from, schema);
	resync_json_set_node(patch, "schema", schema);
	return patch;
}

/*
 * What the live table (if there is one) was given goes onto the one under
 * construction, which from now on says that the swap has begun.
 */
static void
keep_settings(BqDestination *dest, const ResyncTable *table, const BqTable *build,
			  const BqTable *live)
{
	JsonNode *patch = resync_json_make();

	if (live != NULL)
		patch = settings_of(live->json, resync_json_find(build->json, "schema"));
	resync_json_set_string(patch, "labels." LABEL_KEPT, "1");
	resync_bq_patch_table(dest, table->build_name, patch);
}

/* ... and back, with the mark of a live table. */
static void
restate_settings(BqDestination *dest, const ResyncTable *table, const BqTable *build)
{
	JsonNode *patch = settings_of(build->json, resync_json_find(build->json, "schema"));

	resync_bq_set_mark(dest, patch, table->dest_name, dest->head.id->run, BQ_ROLE_LIVE,
					   build->life);
	resync_json_set_string(patch, "labels." LABEL_KEPT, NULL);
	resync_bq_patch_table(dest, table->dest_name, patch);
}

/* Raises unless what is at a live name may be replaced. */
static void
require_replaceable(BqDestination *dest, const BqTable *live)
{
	if (!resync_bq_is_ours(dest, live) && !dest->head.id->options->replace_existing)
		resync_destination_raise_exists(resync_bq_table(dest, live->name), true);
}

/*
 * One table.  A live table that a try before this one has copied, and not marked
 * yet, has no mark or the mark of before; what it was may be replaced was looked
 * at then, and the note on the new table tells.
 */
static void
swap_one(BqDestination *dest, const ResyncTable *table, XLogRecPtr lsn)
{
	BqTable	 *build = resync_bq_require_owned(dest, table, false);
	BqTable	 *live = resync_bq_find_table(dest, table->dest_name);
	JsonNode *job = resync_json_make();

	if (resync_json_string(build->json, "labels." LABEL_KEPT) == NULL)
	{
		if (live != NULL)
			require_replaceable(dest, live);
		keep_settings(dest, table, build, live);
		build = resync_bq_require_owned(dest, table, false);
	}
	/* copied over another layout it would be refused */
	if (live != NULL && !resync_bq_same_layout(live->json, build->json))
		resync_bq_drop_table(dest, table->dest_name);
	RESYNC_DEBUG_POINT("bq_before_copy");
	resync_bq_set_table(dest, job, "configuration.copy.sourceTable", table->build_name);
	resync_bq_set_table(dest, job, "configuration.copy.destinationTable", table->dest_name);
	resync_json_set_string(job, "configuration.copy.createDisposition", "CREATE_IF_NEEDED");
	resync_json_set_string(job, "configuration.copy.writeDisposition", "WRITE_TRUNCATE");
	(void) resync_bq_run_job(dest, job,
							 resync_bq_job_id(dest, psprintf("swap_%s_%d_%X_%X", build->life,
															 table->ordinal, LSN_FORMAT_ARGS(lsn))),
							 NULL);
	RESYNC_DEBUG_POINT("bq_after_copy");
	restate_settings(dest, table, build);
}

bool
resync_bq_swap(Destination *head, ResyncTable **tables, int ntables, XLogRecPtr lsn,
			   int64 retire_run)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	BqFence		   fence;

	resync_bq_fence(dest, &fence);
	if (fence.applied != lsn)
		resync_destination_raise_applied(head->id, RESYNC_ERRCODE_FENCED, fence.applied, lsn);
	if (!fence.swapped)
	{
		if (retire_run != 0 && retire_run != head->id->run)
			resync_bq_retire(dest, retire_run);
		for (int i = 0; i < ntables; i++)
			swap_one(dest, tables[i], lsn);
		RESYNC_DEBUG_POINT("bq_before_swapped");
		(void) resync_bq_exec(
			dest,
			psprintf("BEGIN TRANSACTION;\n%sUPDATE %s SET swapped = TRUE, changed_at ="
					 " CURRENT_TIMESTAMP() WHERE %s;\nCOMMIT TRANSACTION;",
					 resync_bq_fence_sql(dest, lsn), resync_bq_table(dest, BQ_RUNS_TABLE),
					 resync_bq_run_condition(dest, head->id->run)),
			NULL, NULL);
		RESYNC_DEBUG_POINT("bq_after_swapped");
	}
	MemoryContextSwitchTo(old);
	return true;
}

bool
resync_bq_is_swapped(Destination *head, const ResyncTable *table)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	bool		   result;
	BqFence		   fence;

	result = resync_bq_read_fence(dest, head->id->run, &fence) && fence.swapped;
	MemoryContextSwitchTo(old);
	return result;
}

/* All tables are live: those that they were copied from go. */
void
resync_bq_after_swap(Destination *head, ResyncTable **tables, int ntables)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);

	for (int i = 0; i < ntables; i++)
	{
		BqTable *build = resync_bq_find_table(dest, tables[i]->build_name);

		if (resync_bq_is_ours(dest, build) && strcmp(build->role, BQ_ROLE_BUILD) == 0)
			resync_bq_drop_table(dest, build->name);
	}
	MemoryContextSwitchTo(old);
}
