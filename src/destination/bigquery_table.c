/*
 * bigquery_table.c
 *		Tables of a run at a BigQuery destination: marks, phase validate,
 *		create, reset, added columns.
 *
 * Called by the coordinator (checks also by peerdb_plan_resync in a user's
 * backend), add_column by the streamer.  Whatever changes or drops a table first
 * looks whether it is ours (rule 9): its labels say which mirror's and run's it
 * is, and what for.  A label also has a hash of the table's name, because copies
 * of a table may have its labels: those are not ours.
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define LABEL_TOKEN "resync_token"
#define LABEL_RUN "resync_run"
#define LABEL_ROLE "resync_role"
#define LABEL_LIFE "resync_life"
#define LABEL_NAME "resync_name"

/* ---------------------------------------------------------------------
 * Marks
 * ------------------------------------------------------------------ */

/* What a label has of the name of its table. */
static char *
name_hash(const char *name)
{
	return psprintf("%016llx", (unsigned long long) hash_bytes_extended(
								   (const unsigned char *) name, strlen(name), 0));
}

/* Into a table's resource, or a patch of it. */
void
resync_bq_set_mark(BqDestination *dest, JsonNode *table, const char *name, int64 run,
				   const char *role, const char *life)
{
	resync_json_set_string(table, "labels." LABEL_TOKEN, dest->head.id->token);
	resync_json_set_string(table, "labels." LABEL_RUN, psprintf(INT64_FORMAT, run));
	resync_json_set_string(table, "labels." LABEL_ROLE, role);
	resync_json_set_string(table, "labels." LABEL_LIFE, life);
	resync_json_set_string(table, "labels." LABEL_NAME, name_hash(name));
}

static BqTable *
read_table(JsonNode *json)
{
	BqTable *table = palloc0(sizeof(BqTable));
	char	*hash = resync_json_get_text(json, "labels." LABEL_NAME);
	char	*run = resync_json_get_text(json, "labels." LABEL_RUN);

	table->json = json;
	table->name = resync_json_get_text(json, "tableReference.tableId");
	if (table->name == NULL || hash == NULL || run == NULL ||
		strcmp(hash, name_hash(table->name)) != 0)
		return table;
	table->token = resync_json_get_text(json, "labels." LABEL_TOKEN);
	table->run = strtoll(run, NULL, 10);
	table->role = resync_json_get_text(json, "labels." LABEL_ROLE);
	table->life = resync_json_get_text(json, "labels." LABEL_LIFE);
	if (table->role == NULL || table->life == NULL)
		table->token = NULL;
	return table;
}

BqTable *
resync_bq_find_table(BqDestination *dest, const char *name)
{
	BqCall	  call = {.method = "GET", .path = resync_bq_table_path(dest, name), .allowed = 404};
	JsonNode *json;

	return resync_bq_call(dest, &call, &json) == 0 ? read_table(json) : NULL;
}

/* BqTables with a token's mark, without their schemas. */
List *
resync_bq_marked_tables(BqDestination *dest, const char *token)
{
	List *tables = NIL;
	char *page = NULL;

	do
	{
		BqCall	  call = {.method = "GET"};
		JsonNode *json;
		int		  n;

		call.path = psprintf("%s?maxResults=1000%s%s", resync_bq_table_path(dest, NULL),
							 page != NULL ? "&pageToken=" : "",
							 page != NULL ? resync_http_escape(page) : "");
		(void) resync_bq_call(dest, &call, &json);
		n = resync_json_length(json, "tables");
		for (int i = 0; i < n; i++)
		{
			BqTable *table = read_table(resync_json_find(json, psprintf("tables.%d", i)));

			if (table->token != NULL && strcmp(table->token, token) == 0)
				tables = lappend(tables, table);
		}
		page = resync_json_get_text(json, "nextPageToken");
	} while (page != NULL);
	return tables;
}

/* Of this mirror, whatever run? */
bool
resync_bq_is_ours(const BqDestination *dest, const BqTable *found)
{
	return found != NULL && found->token != NULL && strcmp(found->token, dest->head.id->token) == 0;
}

bool
resync_bq_is_this_run(const BqDestination *dest, const BqTable *found)
{
	return resync_bq_is_ours(dest, found) && found->run == dest->head.id->run;
}

/* Rule 9: the table is the one that this run made. */
BqTable *
resync_bq_require_owned(BqDestination *dest, const ResyncTable *table, bool live)
{
	const char *name = live ? table->dest_name : table->build_name;
	BqTable	   *found = resync_bq_find_table(dest, name);

	if (!resync_bq_is_this_run(dest, found))
		resync_destination_raise_not_made(resync_bq_table(dest, name));
	return found;
}

/* ---------------------------------------------------------------------
 * Create and drop
 * ------------------------------------------------------------------ */

void
resync_bq_patch_table(BqDestination *dest, const char *name, JsonNode *patch)
{
	BqCall call = {.method = "PATCH", .path = resync_bq_table_path(dest, name), .body = patch};

	(void) resync_bq_call(dest, &call, NULL);
}

void
resync_bq_insert_table(BqDestination *dest, JsonNode *table, const char *name)
{
	BqCall call = {.method = "POST", .path = resync_bq_table_path(dest, NULL), .body = table};

	resync_bq_set_table(dest, table, "tableReference", name);
	(void) resync_bq_call(dest, &call, NULL);
}

/* By name, without a look at what it is. */
void
resync_bq_drop_table(BqDestination *dest, const char *name)
{
	BqCall call = {.method = "DELETE", .path = resync_bq_table_path(dest, name), .allowed = 404};

	(void) resync_bq_call(dest, &call, NULL);
}

/*
 * Drop what a run (0: any) has under construction and its staging tables, or
 * only these; live: its live tables, too.
 */
void
resync_bq_drop_marked(BqDestination *dest, const char *token, int64 run, bool stages_only,
					  bool live)
{
	List	 *tables = resync_bq_marked_tables(dest, token);
	ListCell *lc;

	foreach(lc, tables)
	{
		BqTable *table = lfirst(lc);

		if (run != 0 && table->run != run)
			continue;
		if (stages_only ? strcmp(table->role, BQ_ROLE_STAGE) == 0
						: live || strcmp(table->role, BQ_ROLE_LIVE) != 0)
			resync_bq_drop_table(dest, table->name);
	}
}

static void
make_table(BqDestination *dest, const ResyncTable *table, const char *name, const char *role)
{
	BqMapping *mapping = resync_bq_mapping(table);
	JsonNode  *json = resync_json_make();
	char	  *life = psprintf("%08x%08x", dest->nonce, pg_prng_uint32(&pg_global_prng_state));

	resync_json_set_node(json, "schema", resync_bq_schema(dest, table));
	if (mapping->partition_by != NULL)
	{
		resync_json_set_string(json, "timePartitioning.type", mapping->partition_unit);
		resync_json_set_text(json, "timePartitioning.field", mapping->partition_by);
	}
	if (mapping->cluster_by != NIL)
	{
		JsonNode *fields = resync_json_set_array(json, "clustering.fields");
		ListCell *lc;

		foreach(lc, mapping->cluster_by)
			resync_json_append_string(fields, lfirst(lc));
	}
	resync_bq_set_mark(dest, json, name, dest->head.id->run, role, life);
	resync_bq_insert_table(dest, json, name);
}

/* Whatever of ours is under a name goes; anything else is in the way. */
static void
make_room(BqDestination *dest, const char *name)
{
	BqTable *found = resync_bq_find_table(dest, name);

	if (found == NULL)
		return;
	if (!resync_bq_is_ours(dest, found))
		resync_destination_raise_in_way(resync_bq_table(dest, name));
	resync_bq_drop_table(dest, name);
}

void
resync_bq_create_table(Destination *head, const ResyncTable *table)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	BqFence		   fence;

	resync_bq_fence(dest, &fence);
	make_room(dest, table->build_name);
	make_table(dest, table, table->build_name, BQ_ROLE_BUILD);
	MemoryContextSwitchTo(old);
}

/*
 * Made anew, not truncated: with the table its life goes, and so the ids of its
 * load jobs: those of another snapshot must not count as done.
 */
void
resync_bq_reset_table(Destination *head, const ResyncTable *table, int64 first_partition,
					  int64 last_partition)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	BqFence		   fence;

	resync_bq_fence(dest, &fence);
	make_room(dest, table->build_name);
	(void) resync_bq_exec(dest,
						  psprintf("DELETE FROM %s WHERE token = %s AND run = " INT64_FORMAT
								   " AND part BETWEEN " INT64_FORMAT " AND " INT64_FORMAT,
								   resync_bq_table(dest, BQ_PARTITIONS_TABLE),
								   resync_bq_literal(head->id->token), head->id->run,
								   first_partition, last_partition),
						  NULL, NULL);
	make_table(dest, table, table->build_name, BQ_ROLE_BUILD);
	MemoryContextSwitchTo(old);
}

/*
 * There is no key to be made; but a table that was loaded under several
 * snapshots may have a row in two partitions, of which one is kept.  Which one
 * does not matter: the changes that are replayed bring it up to date.
 */
void
resync_bq_build_key(Destination *head, const ResyncTable *table)
{
	BqDestination		*dest = (BqDestination *) head;
	MemoryContext		 old = resync_bq_enter(dest);
	const char			*name = resync_bq_table(dest, table->build_name);
	const ResyncColumn **key = resync_destination_key(table);
	BqFence				 fence;
	StringInfoData		 keys;

	resync_bq_fence(dest, &fence);
	(void) resync_bq_require_owned(dest, table, false);
	if (table->multi_snapshot && table->nkeys > 0)
	{
		initStringInfo(&keys);
		for (int i = 0; i < table->nkeys; i++)
			appendStringInfo(&keys, "%s%s", i > 0 ? ", " : "",
							 resync_bq_key_value(key[i], resync_bq_ident(key[i]->dest_name)));
		(void) resync_bq_exec(
			dest,
			psprintf(
				"CREATE OR REPLACE TEMP TABLE resync_twice AS SELECT * FROM %s WHERE TRUE QUALIFY"
				" COUNT(*) OVER (PARTITION BY %s) > 1 AND ROW_NUMBER() OVER (PARTITION BY %s) = 1;\n"
				"BEGIN TRANSACTION;\n"
				"DELETE FROM %s _resync_t WHERE EXISTS (SELECT 1 FROM resync_twice _resync_d WHERE %s);\n"
				"INSERT INTO %s SELECT * FROM resync_twice;\n"
				"COMMIT TRANSACTION;",
				name, keys.data, keys.data, name,
				resync_merge_same_key(&resync_bq_dialect, table, "_resync_t", "_resync_d"), name),
			NULL, NULL);
	}
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------------
 * Added columns
 * ------------------------------------------------------------------ */

static bool
has_field(JsonNode *table, const char *name)
{
	int n = resync_json_length(table, "schema.fields");

	for (int i = 0; i < n; i++)
	{
		char *field = resync_json_get_text(table, psprintf("schema.fields.%d.name", i));

		if (field != NULL && pg_strcasecmp(field, name) == 0)
			return true;
	}
	return false;
}

/* The table's last column, at the end.  Repeatable. */
void
resync_bq_add_column(BqDestination *dest, const ResyncTable *table, bool live)
{
	const ResyncColumn *col = &table->cols[table->ncols - 1];
	BqTable			   *found = resync_bq_require_owned(dest, table, live);
	JsonNode		   *patch = resync_json_make();
	BqType				type = resync_bq_type(col);

	if (has_field(found->json, col->dest_name))
		return;
	/* rows that are there have no value */
	type.required = false;
	resync_json_set_node(patch, "schema", resync_json_find(found->json, "schema"));
	resync_bq_append_field(resync_json_find(patch, "schema.fields"), col->dest_name, &type);
	resync_bq_patch_table(dest, found->name, patch);
}

/* ---------------------------------------------------------------------
 * Phase validate
 * ------------------------------------------------------------------ */

/* Partitions and clusters of two tables' resources: may one be copied over the other? */
bool
resync_bq_same_layout(JsonNode *a, JsonNode *b)
{
	static const char *const parts[] = {"timePartitioning.type", "timePartitioning.field",
										"rangePartitioning.field"};
	int						 n = Max(resync_json_length(a, "clustering.fields"), 0);

	for (int i = 0; i < lengthof(parts); i++)
	{
		const char *left = resync_json_string(a, parts[i]);
		const char *right = resync_json_string(b, parts[i]);

		if (strcmp(left != NULL ? left : "", right != NULL ? right : "") != 0)
			return false;
	}
	if (Max(resync_json_length(b, "clustering.fields"), 0) != n)
		return false;
	for (int i = 0; i < n; i++)
	{
		char	   *path = psprintf("clustering.fields.%d", i);
		const char *left = resync_json_string(a, path);
		const char *right = resync_json_string(b, path);

		if (left == NULL || right == NULL || strcmp(left, right) != 0)
			return false;
	}
	return true;
}

/*
 * The new table, made and dropped again under a name of its own: types, layout
 * and our privileges are proven all at once.  Returns what it looked like.
 */
static JsonNode *
try_table(BqDestination *dest, const ResyncTable *table)
{
	char	*name = psprintf("_peerdb_resync_check_%08x_%d", dest->nonce, table->ordinal);
	BqTable *made;

	make_table(dest, table, name, BQ_ROLE_STAGE);
	made = resync_bq_find_table(dest, name);
	resync_bq_drop_table(dest, name);
	if (made == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("a table that was made in dataset \"%s\" is not there", dest->dataset)));
	return made->json;
}

/* Tombstones need the whole key. */
static void
warn_of_tombstones(BqDestination *dest, const ResyncTable *table, const BqTable *live,
				   List **warnings, MemoryContext context)
{
	const ResyncColumn **key = resync_destination_key(table);

	for (int i = 0; dest->head.id->options->soft_delete && i < table->nkeys; i++)
	{
		if (has_field(live->json, key[i]->dest_name))
			continue;
		resync_destination_warn(
			warnings, context,
			psprintf("soft-deleted rows of table %s at the destination are not carried "
					 "over: it has no key column \"%s\"",
					 resync_bq_table(dest, table->dest_name), key[i]->dest_name));
		return;
	}
}

/* The table that the swap will replace. */
static void
check_live(BqDestination *dest, const ResyncTable *table, JsonNode *made, bool live_expected,
		   List **warnings, MemoryContext context)
{
	BqTable	   *live = resync_bq_find_table(dest, table->dest_name);
	const char *kind;

	if (live == NULL)
		return;
	if (!live_expected ||
		(!resync_bq_is_ours(dest, live) && !dest->head.id->options->replace_existing))
		resync_destination_raise_exists(resync_bq_table(dest, table->dest_name), false);
	kind = resync_json_string(live->json, "type");
	if (kind != NULL && strcmp(kind, "TABLE") != 0)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("%s at the destination is not a table",
							   resync_bq_table(dest, table->dest_name)),
						errdetail("It is a %s.", kind), errhint("Drop or rename it.")));
	if (!resync_bq_same_layout(live->json, made))
		resync_destination_warn(
			warnings, context,
			psprintf("table %s at the destination has other partitions or clusters: at the "
					 "swap it is dropped, and missing for a moment",
					 resync_bq_table(dest, table->dest_name)));
	warn_of_tombstones(dest, table, live, warnings, context);
}

void
resync_bq_check_table(Destination *head, const ResyncTable *table, bool live_expected,
					  List **warnings)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	BqTable		  *build;

	resync_destination_check_reserved(table, "_peerdb_resync_");
	build = resync_bq_find_table(dest, table->build_name);
	if (build != NULL && !resync_bq_is_ours(dest, build))
		resync_destination_raise_in_way(resync_bq_table(dest, table->build_name));
	check_live(dest, table, try_table(dest, table), live_expected, warnings, old);
	MemoryContextSwitchTo(old);
}
