/*
 * clickhouse_ddl.c
 *		Tables of a run at a ClickHouse destination: marks, phase validate,
 *		create, reset, added columns.
 *
 * Called by the coordinator (checks also by peerdb_plan_resync in a user's
 * backend), add_column by the streamer.  Every statement that changes or drops
 * a table first looks whether the table is ours (rule 9): its comment says
 * which mirror's and run's it is, and which live name it was made for.
 *
 * On a cluster a table is two: a Distributed one by its name, and a local one
 * that has the rows.  Both bear the mark.
 */
#include "postgres.h"

#include "destination/clickhouse.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* The query setting is known to the server from here on. */
#define DROP_ANY_SIZE_VERSION 2312

/* ---------------------------------------------------------------------
 * Marks
 * ------------------------------------------------------------------ */

char *
resync_ch_make_mark(const char *token, int64 run, const char *live, const char *build)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "{\"resync\": \"%s\", \"run\": " INT64_FORMAT ", \"live\": ", token,
					 run);
	escape_json(&buf, live);
	appendStringInfoString(&buf, ", \"build\": ");
	escape_json(&buf, build);
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/* Of a comment that is no mark all of this is empty. */
#define MARK_COLUMNS                                                        \
	"JSONExtractString(comment, 'resync'), JSONExtractInt(comment, 'run')," \
	" JSONExtractString(comment, 'live'), JSONExtractString(comment, 'build')"

/* A row of name, engine, definition and MARK_COLUMNS. */
static ChTable *
read_table(const ChResult *res, int row)
{
	ChTable *table = palloc0(sizeof(ChTable));

	table->name = resync_text_from_utf8(ch_value(res, row, 0));
	table->engine = ch_value(res, row, 1);
	table->definition = ch_value(res, row, 2);
	if (ch_value(res, row, 3)[0] != '\0')
		table->token = ch_value(res, row, 3);
	table->run = strtoll(ch_value(res, row, 4), NULL, 10);
	table->live = resync_text_from_utf8(ch_value(res, row, 5));
	table->build = resync_text_from_utf8(ch_value(res, row, 6));
	return table;
}

ChTable *
resync_ch_find_table(ChDestination *dest, const char *name)
{
	ChResult *res;

	res = resync_ch_query(dest,
						  psprintf("SELECT name, engine, create_table_query, " MARK_COLUMNS
								   " FROM system.tables WHERE database = %s AND name = %s",
								   resync_ch_literal(dest->database), resync_ch_literal(name)));
	return res->nrows == 0 ? NULL : read_table(res, 0);
}

/* ChTables with a token's mark. */
List *
resync_ch_marked_tables(ChDestination *dest, const char *token)
{
	List	 *tables = NIL;
	ChResult *res;

	res = resync_ch_query(
		dest, psprintf("SELECT name, engine, '', " MARK_COLUMNS " FROM system.tables"
					   " WHERE database = %s AND JSONExtractString(comment, 'resync') = %s"
					   " ORDER BY name",
					   resync_ch_literal(dest->database), resync_ch_literal(token)));
	for (int i = 0; i < res->nrows; i++)
		tables = lappend(tables, read_table(res, i));
	return tables;
}

/* On a cluster the local table has a name of its own. */
static bool
has_name(const ChDestination *dest, const ChTable *table, const char *name)
{
	return strcmp(table->name, name) == 0 ||
		   (dest->cluster != NULL &&
			strcmp(table->name, resync_ch_sql_local(dest->cluster, name)) == 0);
}

/*
 * Is a marked table under the name that it was made for?  One that is neither
 * there nor under the name that it was built with was put aside by somebody, and
 * is his.
 */
bool
resync_ch_is_live_name(const ChDestination *dest, const ChTable *table)
{
	return has_name(dest, table, table->live);
}

bool
resync_ch_is_build_name(const ChDestination *dest, const ChTable *table)
{
	return has_name(dest, table, table->build);
}

/* Give a table this mirror's mark, with another run. */
void
resync_ch_mark_table(ChDestination *dest, const ChTable *table, int64 run)
{
	char *mark = resync_ch_make_mark(dest->head.id->token, run, table->live, table->build);

	resync_ch_exec(dest,
				   psprintf("ALTER TABLE %s%s MODIFY COMMENT %s",
							resync_ch_table_name(dest, table->name),
							resync_ch_sql_on_cluster(dest->cluster), resync_ch_literal(mark)),
				   CH_WHAT_DDL);
}

/* Of this mirror, whatever run? */
bool
resync_ch_is_ours(const ChDestination *dest, const ChTable *found)
{
	return found != NULL && found->token != NULL && strcmp(found->token, dest->head.id->token) == 0;
}

bool
resync_ch_is_this_run(const ChDestination *dest, const ChTable *found)
{
	return resync_ch_is_ours(dest, found) && found->run == dest->head.id->run;
}

/* Rule 9: the table is the one that this run made. */
void
resync_ch_require_owned(ChDestination *dest, const ResyncTable *table, bool live)
{
	const char *name = live ? table->dest_name : table->build_name;

	if (!resync_ch_is_this_run(dest, resync_ch_find_table(dest, name)))
		resync_destination_raise_not_made(resync_ch_table_name(dest, name));
}

/* ---------------------------------------------------------------------
 * Create and drop
 * ------------------------------------------------------------------ */

void
resync_ch_fill_create(ChDestination *dest, const ResyncTable *table, const char *name,
					  const char *build, ChCreate *create)
{
	create->database = dest->database;
	create->cluster = dest->cluster;
	create->replicated = dest->replicated;
	create->name = resync_ch_sql_local(dest->cluster, name);
	create->deleted = resync_ch_deleted_column(dest);
	create->synced_at = resync_ch_synced_at_column(dest);
	create->comment = resync_ch_make_mark(dest->head.id->token, dest->head.id->run,
										  table->dest_name, build);
	create->table = table;
	create->mapping = resync_ch_mapping(table);
}

static void
make_table(ChDestination *dest, const ResyncTable *table, const char *name)
{
	ChCreate create;

	resync_ch_fill_create(dest, table, name, name, &create);
	resync_ch_exec(dest, resync_ch_sql_create(&create), CH_WHAT_DDL);
	if (dest->cluster != NULL)
		resync_ch_exec(dest, resync_ch_sql_distributed(&create, name, false), CH_WHAT_DDL);
}

/* By name, without a look at what it is. */
void
resync_ch_drop_table(ChDestination *dest, const char *name)
{
	resync_ch_exec(dest,
				   resync_ch_sql_drop(dest->database, dest->cluster, name,
									  dest->version_num >= DROP_ANY_SIZE_VERSION),
				   CH_WHAT_DDL);
}

/*
 * Drop what a run (0: any) has under construction, or under the name of that;
 * live: its live tables, too.
 */
void
resync_ch_drop_marked(ChDestination *dest, const char *token, int64 run, bool live)
{
	List	 *tables = resync_ch_marked_tables(dest, token);
	ListCell *lc;

	foreach(lc, tables)
	{
		ChTable *table = lfirst(lc);

		if ((run == 0 || table->run == run) &&
			(resync_ch_is_build_name(dest, table) || (live && resync_ch_is_live_name(dest, table))))
			resync_ch_drop_table(dest, table->name);
	}
}

/* Whatever of ours is under a name goes; anything else is in the way. */
static void
make_room(ChDestination *dest, const char *name)
{
	const char *names[2] = {name, NULL};

	if (dest->cluster != NULL)
		names[1] = resync_ch_sql_local(dest->cluster, name);
	for (int i = 0; i < 2 && names[i] != NULL; i++)
	{
		ChTable *found = resync_ch_find_table(dest, names[i]);

		if (found == NULL)
			continue;
		if (!resync_ch_is_ours(dest, found))
			resync_destination_raise_in_way(resync_ch_table_name(dest, names[i]));
		resync_ch_drop_table(dest, names[i]);
	}
}

void
resync_ch_create_table(Destination *head, const ResyncTable *table)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	ChFence		   fence;

	resync_ch_fence(dest, &fence);
	make_room(dest, table->build_name);
	make_table(dest, table, table->build_name);
	MemoryContextSwitchTo(old);
}

/*
 * Made anew, not truncated: with the table its deduplication tokens go, and the
 * rows of another snapshot have the same ones.
 */
void
resync_ch_reset_table(Destination *head, const ResyncTable *table, int64 first_partition,
					  int64 last_partition)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	ChFence		   fence;

	resync_ch_fence(dest, &fence);
	resync_ch_kill(dest, head->id->run, CH_WHAT_LOAD);
	resync_ch_exec(dest,
				   psprintf("INSERT INTO %s (token, run, partition, life, ordinal, rows, gone, seq)"
							" SELECT token, run, partition, life, ordinal, rows, 1, seq + 1 FROM %s"
							" FINAL WHERE %s AND partition BETWEEN " INT64_FORMAT
							" AND " INT64_FORMAT,
							resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
							resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
							resync_ch_run_condition(dest), first_partition, last_partition),
				   CH_WHAT_DDL);
	make_room(dest, table->build_name);
	make_table(dest, table, table->build_name);
	MemoryContextSwitchTo(old);
}

/* The engine sorts and replaces; there is nothing to build. */
void
resync_ch_build_key(Destination *head, const ResyncTable *table)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	ChFence		   fence;

	resync_ch_fence(dest, &fence);
	resync_ch_require_owned(dest, table, false);
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------------
 * Added columns
 * ------------------------------------------------------------------ */

/*
 * The source's default of rows that exist already, as a ClickHouse expression:
 * the value goes through the encoder as if it came in a row, and the server
 * tells how it writes it.  Not in a transaction.  Returns NULL for NULL.
 */
static char *
default_expression(ChDestination *dest, const ResyncTable *table, const char *text)
{
	const ResyncColumn *col = &table->cols[table->ncols - 1];
	ResyncTable			one = *table;
	TupleDesc			desc = CreateTemplateTupleDesc(1);
	MemoryContext		context = CurrentMemoryContext;
	StringInfoData		field;
	RowEncoder		   *encoder;
	ChResult		   *res;
	Datum				value;
	bool				isnull = false;
	Oid					input;
	Oid					ioparam;

	one.ncols = 1;
	one.cols = unconstify(ResyncColumn *, col);
	initStringInfo(&field);
	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	TupleDescInitEntry(desc, 1, col->name, col->typid, col->typmod, 0);
	getTypeInputInfo(col->typid, &input, &ioparam);
	value = OidInputFunctionCall(input, unconstify(char *, text), ioparam, col->typmod);
	encoder = resync_encode_ch_make(desc, &one);
	resync_encode_row(encoder, &value, &isnull, &field);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);

	if (field.len < 4 || memcmp(field.data, "\377\377\377\377", 4) == 0)
		return NULL;
	res = resync_ch_query(
		dest, psprintf("SELECT hex(toString(c)) FROM format(RowBinary, %s, concat(%s, %s))",
					   resync_ch_literal(psprintf("c %s", resync_ch_block_type(col))),
					   resync_ch_unhex(resync_ch_is_nullable(col) ? "\0" : "",
									   resync_ch_is_nullable(col) ? 1 : 0),
					   resync_ch_unhex(field.data + 4, field.len - 4)));
	if (res->nrows != 1)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("unexpected answer of the ClickHouse server")));
	if (ch_value(res, 0, 0) == NULL)
		return NULL;
	/* any bytes may be in it */
	return psprintf("CAST(unhex('%s'), %s)", ch_value(res, 0, 0),
					resync_ch_literal(col->dest_type));
}

/* Rows that exist get the source's default; new ones bring their value. */
void
resync_ch_add_column(ChDestination *dest, const BatchAddColumn *add, bool live)
{
	const ResyncTable  *table = add->table;
	const ResyncColumn *col = &table->cols[table->ncols - 1];
	const char		   *name = live ? table->dest_name : table->build_name;
	const char		   *cluster = resync_ch_sql_on_cluster(dest->cluster);
	char			   *expression = NULL;
	StringInfoData		clause;

	resync_ch_require_owned(dest, table, live);
	if (add->default_text != NULL)
		expression = default_expression(dest, table, add->default_text);
	initStringInfo(&clause);
	appendStringInfo(&clause, "ADD COLUMN IF NOT EXISTS %s %s", resync_ch_ident(col->dest_name),
					 col->dest_type);
	if (expression != NULL)
		appendStringInfo(&clause, " DEFAULT %s", expression);
	/* before the mirror's own columns */
	appendStringInfo(&clause, " AFTER %s",
					 resync_ch_ident(table->cols[table->ncols - 2].dest_name));
	resync_ch_exec(dest,
				   psprintf("ALTER TABLE %s%s %s",
							resync_ch_table_name(dest, resync_ch_sql_local(dest->cluster, name)),
							cluster, clause.data),
				   CH_WHAT_APPLY);
	if (dest->cluster != NULL)
		resync_ch_exec(dest,
					   psprintf("ALTER TABLE %s%s ADD COLUMN IF NOT EXISTS %s %s",
								resync_ch_table_name(dest, name), cluster,
								resync_ch_ident(col->dest_name), col->dest_type),
					   CH_WHAT_APPLY);
}

/* ---------------------------------------------------------------------
 * Phase validate
 * ------------------------------------------------------------------ */

static void
drop_both(ChDestination *dest, const char *name)
{
	resync_ch_drop_table(dest, name);
	if (dest->cluster != NULL)
		resync_ch_drop_table(dest, resync_ch_sql_local(dest->cluster, name));
}

/* After an error: that one tells more than another here. */
static void
drop_both_anyway(ChDestination *dest, const char *name)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		drop_both(dest, name);
	}
	PG_CATCH();
	{
		/* what is left behind has a mark, which tells whose it is */
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
}

/*
 * The new table, made and dropped again under a name of its own: types, keys,
 * expressions, the cluster and our privileges are proven all at once.
 */
static void
try_table(ChDestination *dest, const ResyncTable *table)
{
	MemoryContext context = CurrentMemoryContext;
	char		 *name = psprintf("_peerdb_resync_check_%08x_%d", dest->nonce, table->ordinal);

	PG_TRY();
	{
		make_table(dest, table, name);
		resync_ch_exec(dest,
					   psprintf("INSERT INTO %s SELECT * FROM %s", resync_ch_table_name(dest, name),
								resync_ch_table_name(dest, name)),
					   CH_WHAT_DDL);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		drop_both_anyway(dest, name);
		ReThrowError(edata);
	}
	PG_END_TRY();
	drop_both(dest, name);
}

/*
 * All rows of a key belong into one partition.  Of rows of one version (those
 * of one transaction in several parts of a batch, or around a TRUNCATE) the one
 * inserted last counts, but in different partitions FINAL goes by the
 * partition's name; and these are never merged to one.
 */
static void
check_partition_by(ChDestination *dest, const ResyncTable *table, const ChMapping *mapping)
{
	const ResyncColumn **key = resync_destination_key(table);
	ChStatement statement = {.what = CH_WHAT_READ, .timeout_ms = CH_TIMEOUT_SHORT, .allowed = 47};
	StringInfoData structure;

	if (mapping->partition_by == NULL || mapping->append_engine)
		return;
	initStringInfo(&structure);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&structure, "%s%s %s", i > 0 ? ", " : "",
						 resync_ch_ident(key[i]->dest_name), key[i]->dest_type);
	statement.sql = psprintf("SELECT (%s) FROM null(%s)", mapping->partition_by,
							 resync_ch_literal(structure.data));
	if (resync_ch_send(dest, &statement, NULL) != 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("\"partition_by\" of table \"%s.%s\" uses a column that is not in the key",
					table->schema, table->name),
			 errdetail(
				 "When its value changes, the old row stays in another partition, where the new one does not always replace it."),
			 errhint("Add the column to \"order_by\", with REPLICA IDENTITY FULL.")));
}

/* What somebody has added to the old table, and the new one will not have. */
static void
warn_of_losses(ChDestination *dest, const ResyncTable *table, const ChTable *live, List **warnings,
			   MemoryContext context)
{
	static const struct
	{
		const char *word;
		const char *label;
	} parts[] = {{", INDEX ", "skipping indexes"}, {", PROJECTION ", "projections"},
				 {", CONSTRAINT ", "constraints"}, {" TTL ", "a TTL"},
				 {" CODEC(", "column codecs"},	   {" MATERIALIZED ", "materialized columns"},
				 {" ALIAS ", "alias columns"}};

	for (int i = 0; i < lengthof(parts); i++)
	{
		if (strstr(live->definition, parts[i].word) != NULL)
			resync_destination_warn(warnings, context,
									psprintf("table %s at the destination will lose: %s",
											 resync_ch_table_name(dest, table->dest_name),
											 parts[i].label));
	}
}

/* Tombstones need the whole key. */
static void
warn_of_tombstones(ChDestination *dest, const ResyncTable *table, List **warnings,
				   MemoryContext context)
{
	const ResyncColumn **key = resync_destination_key(table);

	if (!dest->head.id->options->soft_delete)
		return;
	for (int i = 0; i < table->nsourcekeys; i++)
	{
		ChResult *res = resync_ch_query(
			dest, psprintf("SELECT count() FROM system.columns WHERE database = %s AND table = %s"
						   " AND name = %s",
						   resync_ch_literal(dest->database), resync_ch_literal(table->dest_name),
						   resync_ch_literal(key[i]->dest_name)));

		if (strcmp(ch_value(res, 0, 0), "0") == 0)
		{
			resync_destination_warn(
				warnings, context,
				psprintf(
					"soft-deleted rows of table %s at the destination are not carried over: it has no key column \"%s\"",
					resync_ch_table_name(dest, table->dest_name), key[i]->dest_name));
			return;
		}
	}
}

/* The table that the swap will replace. */
static void
check_live(ChDestination *dest, const ResyncTable *table, bool live_expected, List **warnings,
		   MemoryContext context)
{
	ChTable *live = resync_ch_find_table(dest, table->dest_name);

	if (live == NULL)
		return;
	if (!live_expected ||
		(!resync_ch_is_ours(dest, live) && !dest->head.id->options->replace_existing))
		resync_destination_raise_exists(resync_ch_table_name(dest, table->dest_name), false);
	if (strstr(live->engine, "MergeTree") == NULL &&
		(dest->cluster == NULL || strcmp(live->engine, "Distributed") != 0))
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("table %s at the destination has engine %s",
							   resync_ch_table_name(dest, table->dest_name), live->engine),
						errdetail("Only tables of the MergeTree family are replaced."),
						errhint("Drop or rename it.")));
	warn_of_losses(dest, table, live, warnings, context);
	warn_of_tombstones(dest, table, warnings, context);
}

/* Cluster: the name of the local tables must be free, or ours. */
static void
check_local(ChDestination *dest, const ResyncTable *table)
{
	char	*local = resync_ch_sql_local(dest->cluster, table->dest_name);
	ChTable *found;

	if (dest->cluster == NULL || dest->head.id->options->replace_existing)
		return;
	found = resync_ch_find_table(dest, local);
	if (found != NULL && !resync_ch_is_ours(dest, found))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("table %s exists at the destination", resync_ch_table_name(dest, local)),
				 errdetail("It was not made by this mirror, which would keep the rows of table "
						   "\"%s.%s\" there.",
						   table->schema, table->name),
				 errhint("Drop or rename it, or map the table to another name.")));
}

static void
check_database(ChDestination *dest, List **warnings, MemoryContext context)
{
	ChResult *res = resync_ch_query(dest,
									psprintf("SELECT engine FROM system.databases WHERE name = %s",
											 resync_ch_literal(dest->database)));

	if (res->nrows == 1 && strcmp(ch_value(res, 0, 0), "Ordinary") == 0)
		resync_destination_warn(
			warnings, context,
			psprintf(
				"database %s has engine Ordinary, which cannot exchange tables: at the swap a reader may find no table for a moment",
				resync_ch_ident(dest->database)));
}

void
resync_ch_check_table(Destination *head, const ResyncTable *table, bool live_expected,
					  List **warnings)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	const char	  *names[2] = {table->build_name, NULL};

	if (strcmp(table->dest_name, CH_RUNS_TABLE) == 0 ||
		strcmp(table->dest_name, CH_PARTITIONS_TABLE) == 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_RESERVED_NAME),
			 errmsg("destination table \"%s\" is a metadata table of the mirror", table->dest_name),
			 errhint("Map table \"%s.%s\" to another name.", table->schema, table->name)));
	if (dest->cluster != NULL)
		names[1] = resync_ch_sql_local(dest->cluster, table->build_name);
	for (int i = 0; i < 2 && names[i] != NULL; i++)
	{
		ChTable *build = resync_ch_find_table(dest, names[i]);

		if (build != NULL && !resync_ch_is_ours(dest, build))
			resync_destination_raise_in_way(resync_ch_table_name(dest, names[i]));
	}
	check_live(dest, table, live_expected, warnings, old);
	check_local(dest, table);
	check_database(dest, warnings, old);
	try_table(dest, table);
	check_partition_by(dest, table, resync_ch_mapping(table));
	MemoryContextSwitchTo(old);
}
