/*
 * bigquery_map.c
 *		What a table becomes in BigQuery: names and types of its columns, its
 *		partitions and clusters, its schema as JSON.
 *
 * Called by the coordinator in phase validate (and by peerdb_plan_resync in a
 * user's backend), which keeps the result in the plan; by the streamer for a
 * column that was added.  Reads the mapping (peerdb._table.mapping) and the
 * source's catalog; asks nothing of the service.
 */
#include "postgres.h"

#include "destination/bigquery.h"
#include "destination/mapping.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

/* The service's limit. */
#define MAX_CLUSTER 4

/* ---------------------------------------------------------------------
 * The mapping
 * ------------------------------------------------------------------ */

/* May the service sort by it? */
static bool
is_clusterable(const ResyncColumn *col)
{
	BqType type = resync_bq_type(col);

	if (type.repeated)
		return false;
	switch (type.kind)
	{
		case BQ_FLOAT64:
		case BQ_BYTES:
		case BQ_JSON:
		case BQ_TIME:
			return false;
		default:
			return true;
	}
}

/* "cluster_by", else the key, as far as the service allows it. */
static void
read_cluster_by(const ResyncTable *table, Jsonb *json, BqMapping *mapping)
{
	List				*given = resync_mapping_columns(table, json, "cluster_by");
	const ResyncColumn **key = resync_destination_key(table);

	mapping->cluster_by = given;
	for (int i = 0; given == NIL && i < table->nkeys && i < MAX_CLUSTER && is_clusterable(key[i]);
		 i++)
		mapping->cluster_by = lappend(mapping->cluster_by, key[i]->dest_name);
}

/* "column", or "column HOUR": DAY, MONTH, YEAR. */
static void
read_partition_by(const ResyncTable *table, Jsonb *json, BqMapping *mapping)
{
	char			   *text = resync_mapping_string(&json->root, "partition_by");
	char			   *blank;
	const ResyncColumn *col;
	BqType				type;

	if (text == NULL || text[0] == '\0')
		return;
	mapping->partition_unit = "DAY";
	blank = strrchr(text, ' ');
	if (blank != NULL)
	{
		static const char *const units[] = {"HOUR", "DAY", "MONTH", "YEAR"};

		for (int i = 0; i < lengthof(units); i++)
		{
			if (pg_strcasecmp(blank + 1, units[i]) != 0)
				continue;
			mapping->partition_unit = unconstify(char *, units[i]);
			*blank = '\0';
			break;
		}
	}
	col = resync_mapping_column(table, text, "partition_by");
	type = resync_bq_type(col);
	if (type.repeated ||
		(type.kind != BQ_DATE && type.kind != BQ_DATETIME && type.kind != BQ_TIMESTAMP))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("table \"%s.%s\" cannot be partitioned by column \"%s\"",
							   table->schema, table->name, col->name),
						errdetail("It is %s at BigQuery; partitions go by DATE, DATETIME or "
								  "TIMESTAMP.",
								  col->dest_type)));
	mapping->partition_by = col->dest_name;
}

/* The columns are mapped. */
BqMapping *
resync_bq_mapping(const ResyncTable *table)
{
	BqMapping *mapping = palloc0(sizeof(BqMapping));
	Jsonb	  *json = resync_mapping_json(table);

	mapping->append = resync_mapping_append(json);
	read_cluster_by(table, json, mapping);
	read_partition_by(table, json, mapping);
	return mapping;
}

/* ---------------------------------------------------------------------
 * The mirror's own columns
 * ------------------------------------------------------------------ */

static const BqType deleted_type = {.kind = BQ_BOOL};
static const BqType synced_at_type = {.kind = BQ_TIMESTAMP};

int
resync_bq_extras(const BqDestination *dest, AvroColumn *columns)
{
	const ResyncOptions *options = dest->head.id->options;
	int					 n = 0;

	if (options->soft_delete_col_name != NULL)
		columns[n++] = (AvroColumn){options->soft_delete_col_name,
									resync_bq_avro_type(&deleted_type), AVRO_OPTIONAL};
	if (options->synced_at_col_name != NULL)
		columns[n++] = (AvroColumn){options->synced_at_col_name,
									resync_bq_avro_type(&synced_at_type), AVRO_OPTIONAL};
	return n;
}

void
resync_bq_extra_fields(const BqDestination *dest, bool deleted, StringInfo buf,
					   EncodedField *extras)
{
	const ResyncOptions *options = dest->head.id->options;
	int					 n = 0;
	int					 start;

	enlargeStringInfo(buf, 32);
	if (options->soft_delete_col_name != NULL)
	{
		appendStringInfoChar(buf, deleted ? 1 : 0);
		extras[n++] = (EncodedField){buf->data + buf->len - 1, 1};
	}
	if (options->synced_at_col_name != NULL)
	{
		start = buf->len;
		put_avro_long(buf, GetCurrentTimestamp() +
							   (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY);
		extras[n++] = (EncodedField){buf->data + start, buf->len - start};
	}
}

/* ---------------------------------------------------------------------
 * Schemas
 * ------------------------------------------------------------------ */

void
resync_bq_append_field(JsonNode *fields, const char *name, const BqType *type)
{
	JsonNode *field = resync_json_append_object(fields);

	resync_json_set_text(field, "name", name);
	resync_json_set_string(field, "type", resync_bq_kind_name(type->kind));
	resync_json_set_string(field, "mode",
						   type->repeated	? "REPEATED"
						   : type->required ? "REQUIRED"
											: "NULLABLE");
	if (type->precision > 0)
	{
		resync_json_set_string(field, "precision", psprintf("%d", type->precision));
		resync_json_set_string(field, "scale", psprintf("%d", type->scale));
	}
}

JsonNode *
resync_bq_schema(const BqDestination *dest, const ResyncTable *table)
{
	const ResyncOptions *options = dest->head.id->options;
	JsonNode			*schema = resync_json_make();
	JsonNode			*fields = resync_json_set_array(schema, "fields");

	for (int i = 0; i < table->ncols; i++)
	{
		BqType type = resync_bq_type(&table->cols[i]);

		resync_bq_append_field(fields, table->cols[i].dest_name, &type);
	}
	if (options->soft_delete_col_name != NULL)
		resync_bq_append_field(fields, options->soft_delete_col_name, &deleted_type);
	if (options->synced_at_col_name != NULL)
		resync_bq_append_field(fields, options->synced_at_col_name, &synced_at_type);
	return schema;
}

/* ---------------------------------------------------------------------
 * Columns
 * ------------------------------------------------------------------ */

char *
resync_bq_key_value(const ResyncColumn *col, const char *value)
{
	BqType type = resync_bq_type(col);

	if (type.kind != BQ_FLOAT64)
		return pstrdup(value);
	return psprintf("IF(IS_NAN(%s), 'NaN', CAST(%s AS STRING))", value, value);
}

const MergeDialect resync_bq_dialect = {
	.ident = resync_bq_ident,
	.key_value = resync_bq_key_value,
	.now = "CURRENT_TIMESTAMP()",
};

/* Name and type of one column; its keypos is final.  In a transaction. */
static void
map_column(const BqDestination *dest, Jsonb *json, ResyncColumn *col)
{
	const ResyncOptions *options = dest->head.id->options;
	BqColumnChoice		 choice = {0};
	char				*name = resync_mapping_renamed(json, col->name, "BigQuery");

	choice.unbounded_string = options->unbounded_numeric != NULL &&
							  strcmp(options->unbounded_numeric, "string") == 0;
	choice.null_out_of_range = options->out_of_range != NULL &&
							   strcmp(options->out_of_range, "null") == 0;
	choice.drop_null_elements = options->null_array_elements != NULL &&
								strcmp(options->null_array_elements, "drop") == 0;
	col->dest_name = name != NULL && name[0] != '\0' ? name : pstrdup(col->name);
	resync_bq_map_column(col, &choice);
}

/* Each name once, whatever its case, and one that a file of Avro may have. */
static void
check_names(const BqDestination *dest, const ResyncTable *table)
{
	const ResyncOptions *options = dest->head.id->options;
	const char			*own[] = {options->soft_delete_col_name, options->synced_at_col_name};

	for (int i = 0; i < table->ncols; i++)
	{
		const char *name = table->cols[i].dest_name;

		if (isdigit((unsigned char) name[0]) ||
			strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") !=
				strlen(name) ||
			pg_strncasecmp(name, "_resync_", 8) == 0)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("column \"%s\" of table \"%s.%s\" cannot have that name at BigQuery", name,
						table->schema, table->name),
				 errdetail(
					 "A name consists of letters a-z, digits and underscores, and does not begin with a digit or \"_resync_\"."),
				 errhint("Exclude the column, or give it another name with \"columns\" of the "
						 "table's mapping.")));
		for (int j = 0; j < lengthof(own); j++)
		{
			if (own[j] != NULL && pg_strcasecmp(name, own[j]) == 0)
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
			if (pg_strcasecmp(name, table->cols[j].dest_name) == 0)
				ereport(ERROR, (errcode(ERRCODE_DUPLICATE_COLUMN),
								errmsg("two columns of table \"%s.%s\" would be called \"%s\"",
									   table->schema, table->name, name),
								errdetail("BigQuery does not tell upper case from lower case.")));
		}
	}
}

void
resync_bq_map_columns(Destination *head, ResyncTable *table)
{
	BqDestination *dest = (BqDestination *) head;
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
	if (table->nkeys == 0)
	{
		if (!resync_bq_mapping(table)->append)
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("table \"%s.%s\" has no key", table->schema, table->name),
							errdetail("BigQuery cannot take a single row out of a table without "
									  "one."),
							errhint("Add a primary key, or set \"append\": true for the table.")));
		/* an update or delete cannot be followed, though WAL carries it */
		table->identity = 'n';
	}
	else
		(void) resync_bq_mapping(table); /* for its errors */
}

void
resync_bq_map_added(Destination *head, const ResyncTable *table, ResyncColumn *col)
{
	BqDestination *dest = (BqDestination *) head;
	ResyncTable	   with = *table;

	map_column(dest, resync_mapping_json(table), col);
	with.ncols++;
	with.cols = palloc(sizeof(ResyncColumn) * with.ncols);
	memcpy(with.cols, table->cols, sizeof(ResyncColumn) * table->ncols);
	with.cols[table->ncols] = *col;
	check_names(dest, &with);
}
