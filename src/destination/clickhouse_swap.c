/*
 * clickhouse_swap.c
 *		The end of a run's build at a ClickHouse destination: deleted rows are
 *		carried over, then the new tables take the old ones' place.
 *
 * Called by the coordinator; swap while the streamer is held at a commit.
 * Every step looks first at the marks (table comments), which move with the
 * tables, and so may be repeated after a crash or a lost answer anywhere:
 *
 *	live has this run's mark			done
 *	else there is a live table			EXCHANGE TABLES live AND build; the old
 *										one is under the build name then
 *	else								RENAME build TO live
 *
 * Nothing ever changes back.  What is left of the old tables is dropped only
 * after all tables have been swapped (after_swap), and only if it is this
 * mirror's or was to be replaced.  Readers, materialized views, dictionaries
 * and grants go by name and find the new table.
 *
 * On a cluster the local tables are exchanged, on each host at once but not on
 * all of them at the same moment; then the Distributed table, which has no
 * rows, is made anew with the new columns.
 */
#include "postgres.h"

#include "destination/clickhouse.h"

#include "common/string.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* ---------------------------------------------------------------------
 * Deleted rows
 * ------------------------------------------------------------------ */

/* The old table, as far as its deleted rows need it. */
typedef struct OldTable
{
	char **types;	/* by the new table's order: its type there; NULL: none */
	char  *deleted; /* its column that marks deleted rows, NULL: none */
	char  *version; /* NULL: none */
	char  *synced;	/* its column of times, NULL: none */
} OldTable;

/* Returns false if there is no old table. */
static bool
read_old_table(ChDestination *dest, const ResyncTable *table, OldTable *old)
{
	int		  best_deleted = 0;
	int		  best_synced = 0;
	ChResult *res;

	res = resync_ch_query(
		dest, psprintf("SELECT name, type FROM system.columns WHERE database = %s AND table = %s",
					   resync_ch_literal(dest->database), resync_ch_literal(table->dest_name)));
	old->types = palloc0(sizeof(char *) * table->ncols);
	for (int row = 0; row < res->nrows; row++)
	{
		char *name = ch_value(res, row, 0);
		char *type = ch_value(res, row, 1);
		bool  mirrored = false;
		int	  match;

		for (int i = 0; i < table->ncols; i++)
		{
			if (strcmp(resync_text_to_utf8(table->cols[i].dest_name), name) != 0)
				continue;
			old->types[i] = type;
			mirrored = true;
		}
		if (mirrored || !pg_is_ascii(name))
			continue;
		match = resync_destination_match_column(name, resync_ch_deleted_column(dest),
												PEERDB_SOFT_DELETE);
		if (match > best_deleted && (strstr(type, "Int") != NULL || strcmp(type, "Bool") == 0))
		{
			best_deleted = match;
			old->deleted = name;
		}
		match = resync_destination_match_column(name, resync_ch_synced_at_column(dest),
												PEERDB_SYNCED_AT);
		if (match > best_synced && strncmp(type, "DateTime", 8) == 0)
		{
			best_synced = match;
			old->synced = name;
		}
		if (strcmp(name, CH_VERSION_COLUMN) == 0)
			old->version = name;
	}
	return res->nrows > 0;
}

/* A column's value as its new type, from the old table; NULL where it cannot be. */
static char *
column_expression(const ResyncColumn *col, const char *old_type)
{
	char *name = resync_ch_ident(col->dest_name);
	char *type = pstrdup(col->dest_type);
	int	  len = strlen(type);

	if (strcmp(old_type, col->dest_type) == 0)
		return name;
	if (strncmp(type, "Nullable(", 9) == 0 && type[len - 1] == ')')
	{
		type[len - 1] = '\0';
		return psprintf("accurateCastOrNull(%s, %s)", name, resync_ch_literal(type + 9));
	}
	return psprintf("CAST(%s, %s)", name, resync_ch_literal(type));
}

/* The source's key as expressions over the old table, "a, b". */
static char *
old_key(const ResyncTable *table, const OldTable *old)
{
	const ResyncColumn **key = resync_destination_key(table);
	StringInfoData		 buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->nsourcekeys; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "",
						 column_expression(key[i], old->types[key[i] - table->cols]));
	return buf.data;
}

/* "k0, k1" and "a AS k0, b AS k1" */
static char *
aliases(int n, const char *const *expressions)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoString(&buf, ", ");
		if (expressions != NULL)
			appendStringInfo(&buf, "%s AS ", expressions[i]);
		appendStringInfo(&buf, "resync_k%d", i);
	}
	return buf.data;
}

/*
 * The keys that the old table has and the new one has not: both are read once
 * and grouped, in bounded memory whatever their size.  Keys of the source: what
 * the tables are sorted by may have changed.
 */
static char *
missing_keys(ChDestination *dest, const ResyncTable *table, const OldTable *old)
{
	const ResyncColumn **key = resync_destination_key(table);
	int					 n = table->nsourcekeys;
	const char		   **from_old = palloc(sizeof(char *) * n);
	const char		   **from_new = palloc(sizeof(char *) * n);
	char				*names = aliases(n, NULL);

	for (int i = 0; i < n; i++)
	{
		from_old[i] = column_expression(key[i], old->types[key[i] - table->cols]);
		from_new[i] = resync_ch_ident(key[i]->dest_name);
	}
	return psprintf("SELECT %s FROM (SELECT %s, 0 AS resync_new FROM %s UNION ALL SELECT %s, 1"
					" AS resync_new FROM %s) GROUP BY %s HAVING max(resync_new) = 0",
					names, aliases(n, from_old), resync_ch_table_name(dest, table->dest_name),
					aliases(n, from_new), resync_ch_table_name(dest, table->build_name), names);
}

/*
 * INSERT ... SELECT of the old rows into the new table; all_columns false: only
 * the columns whose type has not changed, and the key.
 */
static char *
transfer_query(ChDestination *dest, const ResyncTable *table, const OldTable *old, bool all_columns)
{
	const char	  *synced_at = resync_ch_synced_at_column(dest);
	char		  *key = old_key(table, old);
	StringInfoData names, values, sql;

	initStringInfo(&names);
	initStringInfo(&values);
	for (int i = 0; i < table->ncols; i++)
	{
		const ResyncColumn *col = &table->cols[i];

		if (old->types[i] == NULL ||
			(!all_columns && col->keypos == 0 && strcmp(old->types[i], col->dest_type) != 0))
			continue;
		appendStringInfo(&names, "%s, ", resync_ch_ident(col->dest_name));
		appendStringInfo(&values, "%s, ", column_expression(col, old->types[i]));
	}
	appendStringInfo(&names, "%s, %s", resync_ch_ident(resync_ch_deleted_column(dest)),
					 resync_ch_ident(CH_VERSION_COLUMN));
	appendStringInfoString(&values, "1, 0");
	if (synced_at != NULL)
	{
		appendStringInfo(&names, ", %s", resync_ch_ident(synced_at));
		/* what was deleted before keeps its time */
		if (old->deleted != NULL && old->synced != NULL)
			appendStringInfo(&values, ", if(%s != 0, toDateTime64(%s, 9), now64(9))",
							 resync_ch_ident(old->deleted), resync_ch_ident(old->synced));
		else
			appendStringInfoString(&values, ", now64(9)");
	}
	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s (%s) SELECT %s FROM %s WHERE (%s) IN (%s)",
					 resync_ch_table_name(dest, table->build_name), names.data, values.data,
					 resync_ch_table_name(dest, table->dest_name), key,
					 missing_keys(dest, table, old));
	/*
	 * The newest row of a key, deleted or not: FINAL would hide those that are.
	 * The old table may have been sorted by more, or by less, than this one: a
	 * row that has moved there has a deleted and a live row of one version.
	 */
	appendStringInfo(&sql, " ORDER BY %s", key);
	if (old->version != NULL)
		appendStringInfo(&sql, ", %s DESC", resync_ch_ident(old->version));
	if (old->deleted != NULL)
		appendStringInfo(&sql, ", %s", resync_ch_ident(old->deleted));
	appendStringInfo(&sql, " LIMIT 1 BY %s", key);
	return sql.data;
}

/*
 * Run the INSERT; if a value cannot be converted to its new type, again without
 * the columns whose type has changed: the row matters more than they do.
 * Warnings go to context.
 */
static int64
insert_tombstones(ChDestination *dest, const ResyncTable *table, const OldTable *old,
				  List **warnings, MemoryContext context)
{
	ChStatement statement = {.what = CH_WHAT_DDL, .timeout_ms = CH_TIMEOUT_NONE, .has_data = true};

	statement.settings = "&max_bytes_before_external_group_by=1000000000"
						 "&max_bytes_before_external_sort=1000000000&transform_null_in=1";
	statement.allowed = CH_ERR_CONVERSION;
	for (int all = 1; all >= 0; all--)
	{
		HttpResponse *response;
		MemoryContext here;
		int			  code;

		statement.sql = transfer_query(dest, table, old, all);
		code = resync_ch_send(dest, &statement, &response);
		if (code == 0)
			return Max(resync_ch_written_rows(response), 0);
		here = MemoryContextSwitchTo(context);
		*warnings = lappend(
			*warnings,
			psprintf("soft-deleted rows are carried over without %s (ClickHouse: code %d)",
					 all ? "the columns whose type has changed"
						 : "any: their key cannot be converted",
					 code));
		MemoryContextSwitchTo(here);
	}
	return 0;
}

int64
resync_ch_transfer(Destination *head, const ResyncTable *table, List **warnings)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  caller = resync_ch_enter(dest);
	OldTable	   old = {0};
	bool		   possible;
	int64		   rows = 0;
	ChFence		   fence;

	resync_ch_fence(dest, &fence);
	resync_ch_require_owned(dest, table, false);
	possible = table->nkeys > 0 && head->id->options->soft_delete &&
			   read_old_table(dest, table, &old);
	for (int i = 0; possible && i < table->ncols; i++)
	{
		if (table->cols[i].keypos > 0 && table->cols[i].keypos <= table->nsourcekeys &&
			old.types[i] == NULL)
			possible = false; /* validate has warned of it */
	}
	if (possible)
	{
		/* an earlier try whose answer was lost must not go on beside this one */
		resync_ch_kill(dest, head->id->run, CH_WHAT_DDL);
		rows = insert_tombstones(dest, table, &old, warnings, caller);
	}
	MemoryContextSwitchTo(caller);
	return rows;
}

/* ---------------------------------------------------------------------
 * Swap
 * ------------------------------------------------------------------ */

/* Where the fallback of an exchange puts the old table for a moment: nobody's name. */
static char *
aside_name(const ChDestination *dest, const ResyncTable *table)
{
	return psprintf("_peerdb_resync_old_%.8s_" INT64_FORMAT "_%d", dest->head.id->token,
					dest->head.id->run, table->ordinal);
}

/* Raises unless what is at a live name may be replaced. */
static void
require_replaceable(ChDestination *dest, const char *name, const ChTable *live)
{
	if (!resync_ch_is_ours(dest, live) && !dest->head.id->options->replace_existing)
		resync_destination_raise_exists(resync_ch_table_name(dest, name), true);
}

/* One table that has rows.  False: the server wants us to try again. */
static bool
swap_one(ChDestination *dest, const ResyncTable *table)
{
	char	   *live_name = resync_ch_sql_local(dest->cluster, table->dest_name);
	char	   *build_name = resync_ch_sql_local(dest->cluster, table->build_name);
	ChStatement statement = {.what = CH_WHAT_DDL, .timeout_ms = CH_TIMEOUT_LONG};
	ChTable	   *live = resync_ch_find_table(dest, live_name);
	int			code;

	if (resync_ch_is_this_run(dest, live))
		return true;
	if (!resync_ch_is_this_run(dest, resync_ch_find_table(dest, build_name)))
		resync_destination_raise_not_made(resync_ch_table_name(dest, build_name));
	RESYNC_DEBUG_POINT("ch_before_exchange");
	statement.allowed = CH_ERR_DEADLOCK_AVOIDED;
	if (live == NULL)
	{
		statement.sql = resync_ch_sql_rename(dest->database, dest->cluster, build_name, live_name);
		code = resync_ch_send(dest, &statement, NULL);
	}
	else
	{
		require_replaceable(dest, live_name, live);
		statement.allowed = CH_ERR_NOT_IMPLEMENTED;
		statement.sql = resync_ch_sql_exchange(dest->database, dest->cluster, live_name,
											   build_name);
		code = resync_ch_send(dest, &statement, NULL);
		if (code == CH_ERR_NOT_IMPLEMENTED)
		{
			statement.allowed = CH_ERR_DEADLOCK_AVOIDED;
			statement.sql = resync_ch_sql_rotate(dest->database, dest->cluster, live_name,
												 build_name, aside_name(dest, table));
			code = resync_ch_send(dest, &statement, NULL);
		}
	}
	RESYNC_DEBUG_POINT("ch_after_exchange");
	return code == 0;
}

/* Cluster: the table without rows, over the local tables that were swapped. */
static void
swap_distributed(ChDestination *dest, const ResyncTable *table)
{
	ChTable *live = resync_ch_find_table(dest, table->dest_name);
	ChCreate create;

	if (resync_ch_is_this_run(dest, live))
		return;
	if (live != NULL)
		require_replaceable(dest, table->dest_name, live);
	resync_ch_fill_create(dest, table, table->dest_name, table->build_name, &create);
	resync_ch_exec(dest, resync_ch_sql_distributed(&create, table->dest_name, live != NULL),
				   CH_WHAT_DDL);
}

/*
 * Has a swap that was interrupted put the table in place already?  Called by
 * the streamer, too, which may have to go on before the swap can; on a cluster
 * it is it then that makes the Distributed table fit.
 */
bool
resync_ch_is_exchanged(ChDestination *dest, const ResyncTable *table)
{
	char *build = resync_ch_sql_local(dest->cluster, table->build_name);
	char *live = resync_ch_sql_local(dest->cluster, table->dest_name);

	if (resync_ch_is_this_run(dest, resync_ch_find_table(dest, build)) ||
		!resync_ch_is_this_run(dest, resync_ch_find_table(dest, live)))
		return false;
	if (dest->cluster != NULL)
		swap_distributed(dest, table);
	return true;
}

/*
 * Cluster: does some host still have a statement of an earlier try before it?
 * One host without Keeper, as in tests, has no queue.
 */
static bool
ddl_is_queued(ChDestination *dest, const char *build_name)
{
	ChStatement statement = {.what = CH_WHAT_READ, .timeout_ms = CH_TIMEOUT_SHORT, .allowed = 139};
	HttpResponse *response;

	if (dest->cluster == NULL)
		return false;
	statement.sql = psprintf("SELECT count() FROM system.distributed_ddl_queue WHERE cluster = %s"
							 " AND status IN ('Inactive', 'Active') AND position(query, %s) > 0",
							 resync_ch_literal(dest->cluster), resync_ch_literal(build_name));
	return resync_ch_send(dest, &statement, &response) == 0 && atoi(response->body.data) > 0;
}

bool
resync_ch_swap(Destination *head, ResyncTable **tables, int ntables, XLogRecPtr lsn,
			   int64 retire_run)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	bool		   done = true;
	ChFence		   fence;

	resync_ch_fence(dest, &fence);
	if (fence.applied != lsn)
		resync_destination_raise_applied(head->id, RESYNC_ERRCODE_FENCED, fence.applied, lsn);
	/* an exchange of an earlier try that is still to come would undo ours */
	resync_ch_kill(dest, head->id->run, CH_WHAT_DDL);
	if (retire_run != 0 && retire_run != head->id->run)
		resync_ch_retire(dest, retire_run);
	for (int i = 0; i < ntables && done; i++)
	{
		if (ddl_is_queued(dest, tables[i]->build_name))
			done = false;
		else
			done = swap_one(dest, tables[i]);
		if (done && dest->cluster != NULL)
			swap_distributed(dest, tables[i]);
	}
	MemoryContextSwitchTo(old);
	return done;
}

bool
resync_ch_is_swapped(Destination *head, const ResyncTable *table)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	bool		   result;

	result = resync_ch_is_this_run(dest, resync_ch_find_table(dest, table->dest_name));
	MemoryContextSwitchTo(old);
	return result;
}

/*
 * What is under one of the names that an old table may have now.  ours: on a
 * cluster the build's Distributed table, which has no rows, is this run's.
 */
static void
drop_old(ChDestination *dest, const char *name, bool ours)
{
	ChTable *found = resync_ch_find_table(dest, name);

	if (found == NULL || resync_ch_is_this_run(dest, found) != ours ||
		(!resync_ch_is_ours(dest, found) && !dest->head.id->options->replace_existing))
		return;
	RESYNC_DEBUG_POINT("ch_before_drop_old");
	resync_ch_drop_table(dest, name);
	RESYNC_DEBUG_POINT("ch_after_drop_old");
}

/*
 * All tables are swapped: what is under their other names now was in their
 * place before.  A table with this run's mark is never dropped here.
 */
void
resync_ch_after_swap(Destination *head, ResyncTable **tables, int ntables)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);

	for (int i = 0; i < ntables; i++)
	{
		char *local = resync_ch_sql_local(dest->cluster, tables[i]->build_name);

		drop_old(dest, local, false);
		drop_old(dest, aside_name(dest, tables[i]), false);
		if (dest->cluster != NULL)
			drop_old(dest, tables[i]->build_name, true);
	}
	MemoryContextSwitchTo(old);
}
