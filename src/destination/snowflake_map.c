/*
 * snowflake_map.c
 *		What a table becomes at Snowflake: names and types of its columns, the
 *		mirror's own columns, its clustering key.
 *
 * Called by the coordinator in phase validate (and by peerdb_plan_resync in a
 * user's backend), which keeps the result in the plan; by the streamer for a
 * column that was added.  Asks nothing of the service.
 *
 * Names: what PostgreSQL and Snowflake both write without quotes has the case that
 * each of them gives such names; any other name is the same on both sides.
 */
#include "postgres.h"

#include "destination/mapping.h"
#include "destination/snowflake.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* Bytes of a name: Snowflake's limit. */
#define MAX_NAME 255

static const SfType deleted_type = {.kind = SF_BOOLEAN};
static const SfType synced_at_type = {.kind = SF_TIMESTAMP_NTZ};

/* NaN is equal to itself here, and floats can be grouped by. */
static char *
key_value(const ResyncColumn *col, const char *value)
{
	return pstrdup(value);
}

const MergeDialect resync_sf_dialect = {
	.ident = resync_sf_ident,
	.key_value = key_value,
	.now = "SYSDATE()",
};

/* ---------------------------------------------------------------------
 * The mirror's own columns
 * ------------------------------------------------------------------ */

char *
resync_sf_deleted(const SfDestination *dest)
{
	const char *name = dest->head.id->options->soft_delete_col_name;

	return name != NULL ? resync_sf_fold(name) : NULL;
}

char *
resync_sf_synced_at(const SfDestination *dest)
{
	const char *name = dest->head.id->options->synced_at_col_name;

	return name != NULL ? resync_sf_fold(name) : NULL;
}

int
resync_sf_extra_fields(const SfDestination *dest, EncodedField *extras)
{
	const ResyncOptions *options = dest->head.id->options;
	int					 n = 0;

	if (options->soft_delete_col_name != NULL)
		extras[n++] = (EncodedField){"false", strlen("false")};
	if (options->synced_at_col_name != NULL)
	{
		struct pg_tm tm;
		fsec_t		 fsec;
		char		*text;

		if (timestamp2tm(GetCurrentTimestamp(), NULL, &tm, &fsec, NULL, NULL) != 0)
			elog(ERROR, "the time is out of range");
		text = psprintf("%04d-%02d-%02d %02d:%02d:%02d.%06d", tm.tm_year, tm.tm_mon, tm.tm_mday,
						tm.tm_hour, tm.tm_min, tm.tm_sec, (int) fsec);
		extras[n++] = (EncodedField){text, strlen(text)};
	}
	return n;
}

/* ---------------------------------------------------------------------
 * SQL of all columns
 * ------------------------------------------------------------------ */

static void
append_item(StringInfo buf, const char *name, const char *rest)
{
	appendStringInfo(buf, "%s%s%s", buf->len > 0 ? ", " : "", resync_sf_ident(name), rest);
}

char *
resync_sf_definitions(const SfDestination *dest, const ResyncTable *table)
{
	char		  *deleted = resync_sf_deleted(dest);
	char		  *synced_at = resync_sf_synced_at(dest);
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->ncols; i++)
		append_item(&buf, table->cols[i].dest_name, psprintf(" %s", table->cols[i].dest_type));
	if (deleted != NULL)
		append_item(&buf, deleted, " BOOLEAN");
	if (synced_at != NULL)
		append_item(&buf, synced_at, " TIMESTAMP_NTZ");
	return buf.data;
}

char *
resync_sf_all_columns(const SfDestination *dest, const ResyncTable *table)
{
	char		  *deleted = resync_sf_deleted(dest);
	char		  *synced_at = resync_sf_synced_at(dest);
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->ncols; i++)
		append_item(&buf, table->cols[i].dest_name, "");
	if (deleted != NULL)
		append_item(&buf, deleted, "");
	if (synced_at != NULL)
		append_item(&buf, synced_at, "");
	return buf.data;
}

char *
resync_sf_column_values(const ResyncTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->ncols; i++)
	{
		SfType type = resync_sf_type(&table->cols[i]);

		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 resync_sf_convert(&type, psprintf("$%d", i + 1)));
	}
	return buf.data;
}

char *
resync_sf_all_values(const SfDestination *dest, const ResyncTable *table)
{
	const ResyncOptions *options = dest->head.id->options;
	StringInfoData		 buf;
	int					 n = table->ncols;

	initStringInfo(&buf);
	appendStringInfoString(&buf, resync_sf_column_values(table));
	if (options->soft_delete_col_name != NULL)
	{
		n++;
		appendStringInfo(&buf, ", %s", resync_sf_convert(&deleted_type, psprintf("$%d", n)));
	}
	if (options->synced_at_col_name != NULL)
	{
		n++;
		appendStringInfo(&buf, ", %s", resync_sf_convert(&synced_at_type, psprintf("$%d", n)));
	}
	return buf.data;
}

/* ---------------------------------------------------------------------
 * Columns
 * ------------------------------------------------------------------ */

char *
resync_sf_cluster_by(const ResyncTable *table)
{
	List		  *names = resync_mapping_columns(table, resync_mapping_json(table), "cluster_by");
	StringInfoData buf;
	ListCell	  *lc;

	if (names == NIL)
		return NULL;
	initStringInfo(&buf);
	foreach(lc, names)
		append_item(&buf, lfirst(lc), "");
	return buf.data;
}

/* Name and type of one column; its keypos is final.  In a transaction. */
static void
map_column(const SfDestination *dest, Jsonb *json, ResyncColumn *col)
{
	const ResyncOptions *options = dest->head.id->options;
	SfColumnChoice		 choice = {0};
	char				*name = resync_mapping_renamed(json, col->name, "Snowflake");

	choice.unbounded_string = options->unbounded_numeric != NULL &&
							  strcmp(options->unbounded_numeric, "string") == 0;
	choice.null_out_of_range = options->out_of_range != NULL &&
							   strcmp(options->out_of_range, "null") == 0;
	col->dest_name = resync_sf_fold(name != NULL && name[0] != '\0' ? name : col->name);
	resync_sf_map_column(col, &choice);
}

static void
check_names(const SfDestination *dest, const ResyncTable *table)
{
	const char *own[] = {resync_sf_deleted(dest), resync_sf_synced_at(dest)};

	for (int i = 0; i < table->ncols; i++)
	{
		const char *name = table->cols[i].dest_name;

		if (pg_strncasecmp(name, MERGE_RESERVED, strlen(MERGE_RESERVED)) == 0 ||
			strlen(name) > MAX_NAME)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_NAME),
					 errmsg("column \"%s\" of table \"%s.%s\" cannot have that name at Snowflake",
							name, table->schema, table->name),
					 errdetail("A name has at most %d bytes, and does not begin with \"%s\".",
							   MAX_NAME, MERGE_RESERVED),
					 errhint("Exclude the column, or give it another name with \"columns\" of the "
							 "table's mapping.")));
		for (int j = 0; j < lengthof(own); j++)
		{
			if (own[j] != NULL && strcmp(name, own[j]) == 0)
				ereport(
					ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg(
						 "table \"%s.%s\" has a column \"%s\", which is the name of the mirror's own column",
						 table->schema, table->name, name),
					 errhint("Exclude the column, or give one of them another name.")));
		}
		for (int j = 0; j < i; j++)
		{
			if (strcmp(name, table->cols[j].dest_name) == 0)
				ereport(ERROR, (errcode(ERRCODE_DUPLICATE_COLUMN),
								errmsg("two columns of table \"%s.%s\" would be called \"%s\"",
									   table->schema, table->name, name),
								errhint("Give one of them another name with \"columns\" of the "
										"table's mapping.")));
		}
	}
}

void
resync_sf_map_columns(Destination *head, ResyncTable *table)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  context = CurrentMemoryContext;
	bool		   own_transaction = !IsTransactionState();
	Jsonb		  *json = resync_mapping_json(table);

	if (own_transaction)
	{
		StartTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	for (int i = 0; i < table->ncols; i++)
		map_column(dest, json, &table->cols[i]);
	if (own_transaction)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	check_names(dest, table);
	(void) resync_sf_cluster_by(table); /* for its errors */
	if (table->nkeys == 0)
	{
		if (!resync_mapping_append(json))
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("table \"%s.%s\" has no key", table->schema, table->name),
							errdetail("Snowflake cannot take a single row out of a table without "
									  "one."),
							errhint("Add a primary key, or set \"append\": true for the table.")));
		/* an update or delete cannot be followed, though WAL carries it */
		table->identity = 'n';
	}
}

void
resync_sf_map_added(Destination *head, const ResyncTable *table, ResyncColumn *col)
{
	SfDestination *dest = (SfDestination *) head;
	ResyncTable	   with = *table;

	map_column(dest, resync_mapping_json(table), col);
	with.ncols++;
	with.cols = palloc(sizeof(ResyncColumn) * with.ncols);
	memcpy(with.cols, table->cols, sizeof(ResyncColumn) * table->ncols);
	with.cols[table->ncols] = *col;
	check_names(dest, &with);
}
