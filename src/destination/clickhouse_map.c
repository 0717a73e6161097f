/*
 * clickhouse_map.c
 *		What a table becomes in ClickHouse: names and types of its columns, the
 *		sorting key, the engine.
 *
 * Called by the coordinator in phase validate (and by peerdb_plan_resync in a
 * user's backend), which keeps the result in the plan; by the streamer for a
 * column that was added.  Reads the mapping (peerdb._table.mapping) and the
 * source's catalog; asks nothing of the server but its version, which is known
 * since it was connected.
 *
 * The sorting key is what ReplacingMergeTree goes by: rows with the same one
 * are the same row.  It must contain the key of the source's table, or changes
 * of a row would not find it.  A column beyond that key splits a row whenever
 * it changes, unless the change is made of a delete and an insert; for that the
 * old value must be in WAL, which takes REPLICA IDENTITY FULL.  Such a column
 * becomes a part of the mirror's key.
 */
#include "postgres.h"

#include "destination/clickhouse.h"
#include "destination/mapping.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

/* ---------------------------------------------------------------------
 * The mapping
 * ------------------------------------------------------------------ */

static const ResyncColumn *
find_column(const ResyncTable *table, const char *name)
{
	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(table->cols[i].dest_name, name) == 0)
			return &table->cols[i];
	}
	/* perhaps as it is called at the source */
	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(table->cols[i].name, name) == 0)
			return &table->cols[i];
	}
	return NULL;
}

static void
read_engine(const ResyncTable *table, Jsonb *json, ChMapping *mapping)
{
	static const char *const engines[] = {"ReplacingMergeTree", "MergeTree"};
	char					*engine = resync_mapping_string(&json->root, "engine");

	if (engine == NULL)
		mapping->engine = table->nkeys > 0 ? "ReplacingMergeTree" : "MergeTree";
	for (int i = 0; engine != NULL && i < lengthof(engines); i++)
	{
		if (pg_strcasecmp(engine, engines[i]) == 0)
			mapping->engine = pstrdup(engines[i]);
	}
	if (mapping->engine == NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("table \"%s.%s\" cannot be mirrored to engine \"%s\"", table->schema,
					table->name, engine),
			 errhint(
				 "Engines are ReplacingMergeTree and MergeTree; the server's option \"replicated\" makes replicated ones of them.")));
	if (table->nkeys == 0 && strcmp(mapping->engine, "ReplacingMergeTree") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("table \"%s.%s\" has no key, so its rows cannot replace one another",
						table->schema, table->name),
				 errhint("Use engine MergeTree, which is the default of tables without a key.")));
	mapping->append_engine = strcmp(mapping->engine, "MergeTree") == 0;
}

/*
 * ORDER BY: as given, else the key.  Names are the destination's from here on.
 */
static void
read_order_by(const ResyncTable *table, Jsonb *json, ChMapping *mapping)
{
	JsonbValue			*given = resync_mapping_find(&json->root, "order_by");
	const ResyncColumn **key = resync_destination_key(table);

	if (given == NULL || given->type != jbvBinary || JsonContainerSize(given->val.binary.data) == 0)
	{
		for (int i = 0; i < table->nkeys; i++)
			mapping->order_by = lappend(mapping->order_by, key[i]->dest_name);
		return;
	}
	for (uint32 i = 0; i < JsonContainerSize(given->val.binary.data); i++)
	{
		JsonbValue		   *v = getIthJsonbValueFromContainer(given->val.binary.data, i);
		char			   *name = pnstrdup(v->val.string.val, v->val.string.len);
		const ResyncColumn *col = find_column(table, name);
		ListCell		   *lc;

		if (col == NULL)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
							errmsg("column \"%s\" of \"order_by\" is not a mirrored column of "
								   "table \"%s.%s\"",
								   name, table->schema, table->name),
							errhint("\"order_by\" names columns, not expressions.")));
		foreach(lc, mapping->order_by)
		{
			if (strcmp(lfirst(lc), col->dest_name) == 0)
				ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
								errmsg("column \"%s\" is twice in \"order_by\" of table \"%s.%s\"",
									   name, table->schema, table->name)));
		}
		mapping->order_by = lappend(mapping->order_by, col->dest_name);
	}
}

/* Needs the columns' dest_name. */
ChMapping *
resync_ch_mapping(const ResyncTable *table)
{
	ChMapping *mapping = palloc0(sizeof(ChMapping));
	Jsonb	  *json = resync_mapping_json(table);

	mapping->append = resync_mapping_append(json);
	mapping->partition_by = resync_mapping_string(&json->root, "partition_by");
	mapping->sharding_key = resync_mapping_string(&json->root, "sharding_key");
	if (mapping->partition_by != NULL && mapping->partition_by[0] == '\0')
		mapping->partition_by = NULL;
	if (mapping->sharding_key != NULL && mapping->sharding_key[0] == '\0')
		mapping->sharding_key = NULL;
	read_engine(table, json, mapping);
	read_order_by(table, json, mapping);
	return mapping;
}

bool
resync_ch_appends(const ResyncTable *table)
{
	return resync_ch_mapping(table)->append_engine;
}

/* ---------------------------------------------------------------------
 * The mirror's own columns
 * ------------------------------------------------------------------ */

/* There in any case: the engine needs it. */
const char *
resync_ch_deleted_column(const ChDestination *dest)
{
	const char *name = dest->head.id->options->soft_delete_col_name;

	return name != NULL ? name : CH_DELETED_COLUMN;
}

const char *
resync_ch_synced_at_column(const ChDestination *dest)
{
	return dest->head.id->options->synced_at_col_name;
}

int
resync_ch_extras(const ChDestination *dest, NativeExtra *extras)
{
	const char *synced_at = resync_ch_synced_at_column(dest);

	extras[0] = (NativeExtra){resync_ch_deleted_column(dest), "UInt8", 1};
	extras[1] = (NativeExtra){CH_VERSION_COLUMN, "UInt64", 8};
	if (synced_at == NULL)
		return 2;
	extras[2] = (NativeExtra){synced_at, "DateTime64(9)", 8};
	return 3;
}

char *
resync_ch_insert(const ChDestination *dest, const ResyncTable *table, bool live)
{
	NativeExtra	   extras[3];
	int			   nextras = resync_ch_extras(dest, extras);
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s (",
					 resync_ch_table_name(dest, live ? table->dest_name : table->build_name));
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&sql, "%s, ", resync_ch_ident(table->cols[i].dest_name));
	for (int i = 0; i < nextras; i++)
		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", resync_ch_ident(extras[i].name));
	appendStringInfoString(&sql, ") FORMAT Native");
	return sql.data;
}

/* ---------------------------------------------------------------------
 * Columns
 * ------------------------------------------------------------------ */

/* Name and type of one column; its keypos is final. */
static void
map_column(const ChDestination *dest, const ResyncTable *table, Jsonb *json, ResyncColumn *col)
{
	const ResyncOptions *options = dest->head.id->options;
	JsonbContainer		*given = resync_mapping_of_column(json, col->name);
	ChColumnChoice		 choice = {.nullable = -1};
	char				*name = NULL;

	if (given != NULL)
	{
		JsonbValue *nullable = resync_mapping_find(given, "nullable");

		name = resync_mapping_string(given, "destination");
		choice.type = resync_mapping_string(given, "type");
		if (nullable != NULL && nullable->type == jbvBool)
			choice.nullable = nullable->val.boolean;
	}
	/* a column of the sorting key that is not in the source's may be NULL there */
	if (choice.nullable < 0 && col->keypos > table->nsourcekeys)
		choice.nullable = !col->notnull;
	choice.unbounded_string = options->unbounded_numeric != NULL &&
							  strcmp(options->unbounded_numeric, "string") == 0;
	choice.clamp = options->out_of_range != NULL && strcmp(options->out_of_range, "clamp") == 0;
	choice.wide_datetime64 = dest->version_num >= 2607;
	col->dest_name = name != NULL && name[0] != '\0' ? name : pstrdup(col->name);
	resync_ch_map_column(col, &choice);
}

/* Each name once, and none of the mirror's own. */
static void
check_names(const ChDestination *dest, const ResyncTable *table)
{
	NativeExtra extras[3];
	int			nextras = resync_ch_extras(dest, extras);

	for (int i = 0; i < table->ncols; i++)
	{
		const char *name = table->cols[i].dest_name;

		for (int j = 0; j < nextras; j++)
		{
			if (strcmp(name, extras[j].name) == 0)
				ereport(
					ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg(
						 "table \"%s.%s\" has a column \"%s\", which is the name of the mirror's own column",
						 table->schema, table->name, name),
					 errhint(
						 "Exclude the column, or give it another name with \"columns\" of the table's mapping.")));
		}
		for (int j = 0; j < i; j++)
		{
			if (strcmp(name, table->cols[j].dest_name) == 0)
				ereport(ERROR, (errcode(ERRCODE_DUPLICATE_COLUMN),
								errmsg("two columns of table \"%s.%s\" would be called \"%s\"",
									   table->schema, table->name, name),
								errhint("Look at \"columns\" of the table's mapping.")));
		}
	}
}

/* "columns" must name columns that there are. */
static void
check_mapped_columns(const ResyncTable *table, Jsonb *json)
{
	JsonbValue *columns = resync_mapping_find(&json->root, "columns");

	if (columns == NULL || columns->type != jbvBinary)
		return;
	for (uint32 i = 0; i < JsonContainerSize(columns->val.binary.data); i++)
	{
		JsonbValue *item = getIthJsonbValueFromContainer(columns->val.binary.data, i);
		char	   *name = resync_mapping_string(item->val.binary.data, "source");
		bool		found = name == NULL;

		for (int c = 0; c < table->ncols && !found; c++)
			found = strcmp(table->cols[c].name, name) == 0;
		if (!found)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
							errmsg("column \"%s\" of \"columns\" is not a mirrored column of table "
								   "\"%s.%s\"",
								   name, table->schema, table->name)));
	}
}

/*
 * The sorting key against the source's key; see the head of this file.  Columns
 * beyond it get a keypos after the key's.
 */
static void
check_order_by(ResyncTable *table, const ChMapping *mapping)
{
	const ResyncColumn **key = resync_destination_key(table);
	int					 nkeys = table->nkeys;
	ListCell			*lc;

	if (nkeys == 0 || mapping->append_engine)
		return; /* a log of rows: none is looked for by key */
	for (int i = 0; i < nkeys; i++)
	{
		bool found = false;

		foreach(lc, mapping->order_by)
			found |= strcmp(lfirst(lc), key[i]->dest_name) == 0;
		if (!found)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"order_by\" of table \"%s.%s\" lacks the key column \"%s\"",
						table->schema, table->name, key[i]->name),
				 errdetail(
					 "ReplacingMergeTree keeps one row per sorting key: rows of different keys would replace one another."),
				 errhint("Add the column to \"order_by\"; it may be the last.")));
	}
	foreach(lc, mapping->order_by)
	{
		ResyncColumn *col = unconstify(ResyncColumn *, find_column(table, lfirst(lc)));

		if (col->keypos > 0)
			continue;
		if (!table->identity_full)
			ereport(
				ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg(
					 "\"order_by\" of table \"%s.%s\" has column \"%s\", which is not in the key",
					 table->schema, table->name, col->name),
				 errdetail(
					 "When its value changes or the row is deleted, the old value is needed to find the old row, and the WAL does not have it."),
				 errhint(
					 "ALTER TABLE %s REPLICA IDENTITY FULL, or leave the column out of \"order_by\".",
					 quote_qualified_identifier(table->schema, table->name))));
		col->keypos = ++table->nkeys;
	}
}

void
resync_ch_map_columns(Destination *head, ResyncTable *table)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  context = CurrentMemoryContext;
	bool		   own_transaction = !IsTransactionState();
	Jsonb		  *json = resync_mapping_json(table);
	ChMapping	  *mapping;

	for (int i = 0; i < table->ncols; i++)
	{
		JsonbContainer *given = resync_mapping_of_column(json, table->cols[i].name);
		char		   *name = given != NULL ? resync_mapping_string(given, "destination") : NULL;

		table->cols[i].dest_name = name != NULL && name[0] != '\0' ? name
																   : pstrdup(table->cols[i].name);
	}
	check_mapped_columns(table, json);
	check_names(dest, table);
	mapping = resync_ch_mapping(table);
	if (table->nkeys == 0)
	{
		if (!mapping->append)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s.%s\" has no key", table->schema, table->name),
					 errdetail("ClickHouse cannot take a single row out of a table without one."),
					 errhint("Add a primary key, or set \"append\": true for the table.")));
		/* an update or delete cannot be followed, though WAL carries it */
		table->identity = 'n';
	}
	check_order_by(table, mapping);

	if (own_transaction)
	{
		StartTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	for (int i = 0; i < table->ncols; i++)
		map_column(dest, table, json, &table->cols[i]);
	if (own_transaction)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
}

/*
 * A column that was added: in the streamer, within a decoding callback.  The
 * mapping may know it already.
 */
void
resync_ch_map_added(Destination *head, const ResyncTable *table, ResyncColumn *col)
{
	ChDestination *dest = (ChDestination *) head;
	ResyncTable	   with = *table;

	map_column(dest, table, resync_mapping_json(table), col);
	with.ncols++;
	with.cols = palloc(sizeof(ResyncColumn) * with.ncols);
	memcpy(with.cols, table->cols, sizeof(ResyncColumn) * table->ncols);
	with.cols[table->ncols] = *col;
	check_names(dest, &with);
}
