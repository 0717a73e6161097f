/*
 * clickhouse_sql.c
 *		The DDL of the ClickHouse destination, as text.
 *
 * Pure: what is given comes out as statements, in the current context.  On a
 * cluster every statement runs ON CLUSTER; the rows of table t are in t_shard
 * on each host, and t is a Distributed table over those.
 */
#include "postgres.h"

#include "destination/clickhouse.h"

#include "lib/stringinfo.h"

char *
resync_ch_sql_on_cluster(const char *cluster)
{
	return cluster == NULL ? pstrdup("") : psprintf(" ON CLUSTER %s", resync_ch_ident(cluster));
}

/* The table that has the rows. */
char *
resync_ch_sql_local(const char *cluster, const char *name)
{
	return cluster == NULL ? pstrdup(name) : psprintf("%s_shard", name);
}

static char *
qualified(const char *database, const char *name)
{
	return psprintf("%s.%s", resync_ch_ident(database), resync_ch_ident(name));
}

static void
append_columns(StringInfo sql, const ChCreate *create)
{
	const ResyncTable *table = create->table;

	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(sql, "%s %s, ", resync_ch_ident(table->cols[i].dest_name),
						 table->cols[i].dest_type);
	appendStringInfo(sql, "%s UInt8, %s UInt64", resync_ch_ident(create->deleted),
					 resync_ch_ident(CH_VERSION_COLUMN));
	if (create->synced_at != NULL)
		appendStringInfo(sql, ", %s DateTime64(9)", resync_ch_ident(create->synced_at));
}

static char *
engine_clause(const ChCreate *create)
{
	const ChMapping *mapping = create->mapping;
	StringInfoData	 buf;
	const char		*sep = "";

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s%s(", create->replicated ? "Replicated" : "", mapping->engine);
	if (create->replicated)
	{
		/* not by name: that changes at the swap */
		appendStringInfoString(&buf, "'/clickhouse/tables/{uuid}/{shard}', '{replica}'");
		sep = ", ";
	}
	if (!mapping->append_engine)
		appendStringInfo(&buf, "%s%s, %s", sep, resync_ch_ident(CH_VERSION_COLUMN),
						 resync_ch_ident(create->deleted));
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* "a, b" in backquotes */
static char *
order_list(const List *names)
{
	StringInfoData buf;
	ListCell	  *lc;

	initStringInfo(&buf);
	foreach(lc, names)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", resync_ch_ident(lfirst(lc)));
	return buf.data;
}

static bool
key_is_nullable(const ChCreate *create)
{
	ListCell *lc;

	foreach(lc, create->mapping->order_by)
	{
		for (int i = 0; i < create->table->ncols; i++)
		{
			if (strcmp(create->table->cols[i].dest_name, lfirst(lc)) == 0 &&
				strstr(create->table->cols[i].dest_type, "Nullable(") != NULL)
				return true;
		}
	}
	return false;
}

/*
 * The table that has the rows.  A deduplication window where tokens decide
 * whether a row is there once; replicated ones have that by themselves, but a
 * short one in older servers.
 */
char *
resync_ch_sql_create(const ChCreate *create)
{
	const ChMapping *mapping = create->mapping;
	StringInfoData	 sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE TABLE %s%s (", qualified(create->database, create->name),
					 resync_ch_sql_on_cluster(create->cluster));
	append_columns(&sql, create);
	appendStringInfo(&sql, ") ENGINE = %s", engine_clause(create));
	if (mapping->partition_by != NULL)
		appendStringInfo(&sql, " PARTITION BY (%s)", mapping->partition_by);
	appendStringInfo(&sql, " ORDER BY %s",
					 mapping->order_by != NIL ? psprintf("(%s)", order_list(mapping->order_by))
											  : "tuple()");
	appendStringInfo(&sql, " SETTINGS index_granularity = 8192");
	if (key_is_nullable(create))
		appendStringInfoString(&sql, ", allow_nullable_key = 1");
	if (create->table->nkeys == 0)
		appendStringInfoString(&sql, create->replicated
										 ? ", replicated_deduplication_window = 10000"
										   ", replicated_deduplication_window_seconds = 604800"
										 : ", non_replicated_deduplication_window = 10000");
	appendStringInfo(&sql, " COMMENT %s", resync_ch_literal(create->comment));
	return sql.data;
}

/* Rows of a key on one shard; those without key anywhere. */
static char *
sharding_key(const ChCreate *create)
{
	const ResyncColumn **key = resync_destination_key(create->table);
	StringInfoData		 buf;

	if (create->mapping->sharding_key != NULL)
		return create->mapping->sharding_key;
	if (create->table->nkeys == 0)
		return "rand()";
	initStringInfo(&buf);
	appendStringInfoString(&buf, "cityHash64(");
	for (int i = 0; i < create->table->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", resync_ch_ident(key[i]->dest_name));
	appendStringInfoChar(&buf, ')');
	/* of a NULL it would be NULL, which is no shard */
	return key_is_nullable(create) ? psprintf("ifNull(%s, 0)", buf.data) : buf.data;
}

/* The Distributed table of that name, over its own local tables. */
char *
resync_ch_sql_distributed(const ChCreate *create, const char *name, bool replace)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE %sTABLE %s%s (", replace ? "OR REPLACE " : "",
					 qualified(create->database, name), resync_ch_sql_on_cluster(create->cluster));
	append_columns(&sql, create);
	appendStringInfo(&sql, ") ENGINE = Distributed(%s, %s, %s, %s) COMMENT %s",
					 resync_ch_literal(create->cluster), resync_ch_literal(create->database),
					 resync_ch_literal(resync_ch_sql_local(create->cluster, name)),
					 sharding_key(create), resync_ch_literal(create->comment));
	return sql.data;
}

/* any_size: the server knows the setting. */
char *
resync_ch_sql_drop(const char *database, const char *cluster, const char *name, bool any_size)
{
	return psprintf("DROP TABLE IF EXISTS %s%s%s", qualified(database, name),
					resync_ch_sql_on_cluster(cluster),
					any_size ? " SETTINGS max_table_size_to_drop = 0" : "");
}

char *
resync_ch_sql_exchange(const char *database, const char *cluster, const char *a, const char *b)
{
	return psprintf("EXCHANGE TABLES %s AND %s%s", qualified(database, a), qualified(database, b),
					resync_ch_sql_on_cluster(cluster));
}

char *
resync_ch_sql_rename(const char *database, const char *cluster, const char *from, const char *to)
{
	return psprintf("RENAME TABLE %s TO %s%s", qualified(database, from), qualified(database, to),
					resync_ch_sql_on_cluster(cluster));
}

/* The same as an exchange, in one statement, for databases that have none. */
char *
resync_ch_sql_rotate(const char *database, const char *cluster, const char *live, const char *build,
					 const char *aside)
{
	return psprintf("RENAME TABLE %s TO %s, %s TO %s, %s TO %s%s", qualified(database, live),
					qualified(database, aside), qualified(database, build),
					qualified(database, live), qualified(database, aside),
					qualified(database, build), resync_ch_sql_on_cluster(cluster));
}
