/*
 * postgres_swap.c
 *		The end of a run's build at a PostgreSQL destination: soft-deleted rows
 *		are carried over, then the new tables take the old ones' place.
 *
 * Called by the coordinator while the streamer is held at a commit.  transfer
 * takes no lock that a reader notices, and may be repeated.  swap is one short
 * transaction over all tables: views first, then tables in OID order, ACCESS
 * EXCLUSIVE, none waited for longer than resync.swap_lock_timeout; a timeout
 * undoes everything.  Readers see the old tables or the new ones, never
 * neither.
 *
 * Views are taken before the tables because that is the order in which readers
 * lock them: the other way round they could deadlock with us.
 */
#include "postgres.h"

#include "destination/postgres.h"

#include "commands/defrem.h"
#include "utils/builtins.h"

/* ---------------------------------------------------------------------
 * Tombstones
 * ------------------------------------------------------------------ */

/* A column of the old table that the new one has, too. */
typedef struct SharedColumn
{
	char *expr; /* its value as the new type, from alias o */
	bool  same_type;
} SharedColumn;

/*
 * The old table's columns by the new table's order; expr NULL where the old
 * one has none.  Returns false if there is no old table.
 */
static bool
read_shared_columns(PgDestination *dest, const ResyncTable *table, SharedColumn *shared,
					bool *old_deleted, bool *old_synced)
{
	const char *soft_delete = resync_pg_soft_delete_column(dest);
	const char *synced_at = resync_pg_synced_at_column(dest);
	PGresult   *res;
	bool		exists;

	res = resync_pq_exec(dest->conn, psprintf("SELECT to_regclass(%s) IS NOT NULL",
											  resync_pg_literal(resync_pg_live(table))));
	exists = PQgetvalue(res, 0, 0)[0] == 't';
	resync_pq_clear(res);
	if (!exists)
		return false;
	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT o.attname, n.atttypid = o.atttypid AND n.atttypmod = o.atttypmod,"
			" n.atttypid = o.atttypid OR EXISTS (SELECT FROM pg_cast WHERE castsource = o.atttypid"
			" AND casttarget = n.atttypid), format_type(n.atttypid, n.atttypmod), format_type(o.atttypid, -1)"
			" FROM pg_attribute o JOIN pg_attribute n ON n.attname = o.attname"
			" WHERE o.attrelid = %s::regclass AND n.attrelid = %s::regclass"
			" AND o.attnum > 0 AND n.attnum > 0 AND NOT o.attisdropped AND NOT n.attisdropped",
			resync_pg_literal(resync_pg_live(table)), resync_pg_literal(resync_pg_build(table))));
	for (int row = 0; row < PQntuples(res); row++)
	{
		const char *name = PQgetvalue(res, row, 0);
		const char *old_type = PQgetvalue(res, row, 4);

		if (soft_delete != NULL && strcmp(name, soft_delete) == 0)
			*old_deleted = strcmp(old_type, "boolean") == 0;
		if (synced_at != NULL && strcmp(name, synced_at) == 0)
			*old_synced = strncmp(old_type, "timestamp", 9) == 0;
		for (int i = 0; i < table->ncols; i++)
		{
			if (strcmp(name, table->cols[i].dest_name) != 0)
				continue;
			shared[i].same_type = PQgetvalue(res, row, 1)[0] == 't';
			shared[i].expr = shared[i].same_type
								 ? psprintf("o.%s", resync_pq_ident(name))
								 : psprintf("o.%s%s::%s", resync_pq_ident(name),
											PQgetvalue(res, row, 2)[0] == 't' ? "" : "::text",
											PQgetvalue(res, row, 3));
		}
	}
	resync_pq_clear(res);
	return true;
}

/*
 * INSERT ... SELECT of the old rows into the new table; all_columns false:
 * only the columns whose type has not changed, and the key.
 */
static char *
transfer_query(PgDestination *dest, const ResyncTable *table, const SharedColumn *shared,
			   bool all_columns, bool old_deleted, bool old_synced)
{
	const char	  *deleted = resync_pq_ident(resync_pg_soft_delete_column(dest));
	const char	  *synced = resync_pg_synced_at_column(dest);
	StringInfoData names, values, sql;

	initStringInfo(&names);
	initStringInfo(&values);
	for (int i = 0; i < table->ncols; i++)
	{
		if (shared[i].expr == NULL || (!all_columns && !shared[i].same_type &&
									   (table->nkeys == 0 || table->cols[i].keypos == 0)))
			continue;
		appendStringInfo(&names, "%s, ", resync_pq_ident(table->cols[i].dest_name));
		appendStringInfo(&values, "%s, ", shared[i].expr);
	}
	appendStringInfo(&names, "%s", deleted);
	appendStringInfoString(&values, "true");
	if (synced != NULL)
	{
		synced = resync_pq_ident(synced);
		appendStringInfo(&names, ", %s", synced);
		if (old_deleted && old_synced)
			appendStringInfo(&values, ", CASE WHEN o.%s THEN coalesce(o.%s, now()) ELSE now() END",
							 deleted, synced);
		else
			appendStringInfoString(&values, ", now()");
	}
	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s (%s) SELECT %s FROM %s o WHERE ", resync_pg_build(table),
					 names.data, values.data, resync_pg_live(table));
	if (table->nkeys == 0)
	{
		/* without a key only what was marked as deleted is known to be */
		appendStringInfo(&sql, "o.%s", deleted);
		return sql.data;
	}
	else
	{
		const ResyncColumn **key = resync_pg_key(table);
		char			   **ops = resync_pg_key_operators(dest, table, resync_pg_build(table));
		StringInfoData		 match;

		initStringInfo(&match);
		for (int i = 0; i < table->nkeys; i++)
		{
			const char *expr = shared[key[i] - table->cols].expr;

			appendStringInfo(&sql, "o.%s IS NOT NULL AND ", resync_pq_ident(key[i]->dest_name));
			appendStringInfo(&match, "%sb.%s %s (%s)", i > 0 ? " AND " : "",
							 resync_pq_ident(key[i]->dest_name), ops[i], expr);
		}
		appendStringInfo(&sql, "NOT EXISTS (SELECT FROM %s b WHERE %s) ON CONFLICT DO NOTHING",
						 resync_pg_build(table), match.data);
	}
	return sql.data;
}

/*
 * Run the INSERT; if a value cannot be converted to its new type, again without
 * the columns whose type has changed: the row matters more than they do.
 */
static int64
insert_tombstones(PgDestination *dest, const ResyncTable *table, const SharedColumn *shared,
				  bool old_deleted, bool old_synced)
{
	for (int all = 1; all >= 0; all--)
	{
		char	 *sql = transfer_query(dest, table, shared, all, old_deleted, old_synced);
		PGresult *res;
		int class;

		resync_pq_exec(dest->conn, "SAVEPOINT transfer");
		res = resync_pq_exec_any(dest->conn, sql);
		if (PQresultStatus(res) != PGRES_FATAL_ERROR)
			return strtoll(PQcmdTuples(res), NULL, 10);
		class = ERRCODE_TO_CATEGORY(resync_pq_sqlstate(res));
		if (class != MAKE_SQLSTATE('2', '2', '0', '0', '0') &&
			class != MAKE_SQLSTATE('4', '2', '0', '0', '0'))
			resync_pq_raise(dest->conn, res, sql);
		ereport(LOG,
				(errmsg("mirror \"%s\": soft-deleted rows of table %s are carried over without %s",
						dest->head.id->mirror, resync_pg_live(table),
						all ? "the columns whose type has changed"
							: "any: their key cannot be converted"),
				 errdetail_internal("%s", PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY))));
		resync_pq_clear(res);
		resync_pq_exec(dest->conn, "ROLLBACK TO SAVEPOINT transfer");
	}
	return 0;
}

int64
resync_pg_transfer(Destination *head, const ResyncTable *table)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	SharedColumn  *shared = palloc0(sizeof(SharedColumn) * table->ncols);
	bool		   old_deleted = false;
	bool		   old_synced = false;
	bool		   possible;
	int64		   rows = 0;
	PgFenceInfo	   info;
	PGresult	  *res;

	if (resync_pg_soft_delete_column(dest) == NULL)
	{
		MemoryContextSwitchTo(old);
		return 0;
	}
	resync_pg_begin(dest, PG_FENCE_SHARE, "", &info);
	resync_pg_require_owned(&info, table, false);
	possible = read_shared_columns(dest, table, shared, &old_deleted, &old_synced);
	for (int i = 0; possible && i < table->ncols && table->nkeys > 0; i++)
	{
		if (table->cols[i].keypos > 0 && shared[i].expr == NULL)
			possible = false; /* validate has warned of it */
	}
	if (possible && table->nkeys == 0)
	{
		/* nothing tells a row that was carried over from one that was not */
		res = resync_pq_exec(
			dest->conn,
			psprintf(
				"UPDATE %s.resync_table t SET carried = true WHERE %s AND t.ordinal = %d AND NOT carried",
				dest->meta_quoted, resync_pg_run_condition(dest, "t"), table->ordinal));
		possible = old_deleted && strcmp(PQcmdTuples(res), "1") == 0;
	}
	if (possible)
		rows = insert_tombstones(dest, table, shared, old_deleted, old_synced);
	resync_pg_commit(dest);
	MemoryContextSwitchTo(old);
	return rows;
}

/* ---------------------------------------------------------------------
 * Swap
 * ------------------------------------------------------------------ */

/* A statement of the swap.  False: a lock was not had in time. */
static bool
try_swap(PgDestination *dest, const char *sql)
{
	PGresult *res = resync_pq_exec_any(dest->conn, sql);

	if (PQresultStatus(res) == PGRES_FATAL_ERROR)
	{
		int sqlstate = resync_pq_sqlstate(res);

		if (sqlstate != ERRCODE_LOCK_NOT_AVAILABLE && sqlstate != ERRCODE_T_R_DEADLOCK_DETECTED)
			resync_pq_raise(dest->conn, res, sql);
		resync_pq_clear(res);
		return false;
	}
	resync_pq_clear(res);
	return true;
}

/* Lock both runs' rows, check the fence and the LSN. */
static bool
swap_begin(PgDestination *dest, XLogRecPtr lsn, int64 retire_run, PgFenceInfo *info)
{
	if (!try_swap(
			dest,
			psprintf("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = %d;"
					 "SELECT 1 FROM %s.resync_run WHERE token = %s AND run IN (" INT64_FORMAT
					 ", " INT64_FORMAT ") ORDER BY run FOR UPDATE",
					 resync_swap_lock_timeout, dest->meta_quoted,
					 resync_pg_literal(dest->head.id->token), dest->head.id->run, retire_run)))
		return false;
	/* a second BEGIN would only warn; the rows are ours now */
	resync_pg_check_fence(dest, info);
	if (info->applied != lsn)
		ereport(
			ERROR,
			(errcode(RESYNC_ERRCODE_FENCED),
			 errmsg("applied LSN of mirror \"%s\" at the destination is %X/%X, expected was %X/%X",
					dest->head.id->mirror, LSN_FORMAT_ARGS(info->applied), LSN_FORMAT_ARGS(lsn))));
	return true;
}

/* The tables' names as a VALUES list: ordinal, schema, live name, build name. */
static char *
table_values(ResyncTable **tables, int ntables)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < ntables; i++)
		appendStringInfo(&buf, "%s(%d, %s, %s, %s)", i > 0 ? ", " : "", tables[i]->ordinal,
						 resync_pg_literal(tables[i]->dest_schema),
						 resync_pg_literal(tables[i]->dest_name),
						 resync_pg_literal(tables[i]->build_name));
	return buf.data;
}

/*
 * The old tables: ordinal, OID, is it ours or may it be replaced.  Only
 * ordinary tables; anything else in the way makes the rename fail.
 */
static PGresult *
read_live(PgDestination *dest, const char *values)
{
	return resync_pq_exec(
		dest->conn,
		psprintf("SELECT v.o, c.oid, %s OR EXISTS (SELECT FROM %s.resync_table t WHERE t.token = %s"
				 " AND t.swapped AND t.build_oid = c.oid), n.nspname, c.relname"
				 " FROM (VALUES %s) AS v (o, s, l, b) JOIN pg_namespace n ON n.nspname = v.s"
				 " JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.l ORDER BY v.o",
				 dest->head.id->options->replace_existing ? "true" : "false", dest->meta_quoted,
				 resync_pg_literal(dest->head.id->token), values));
}

static void
require_replaceable(PGresult *live)
{
	for (int i = 0; i < PQntuples(live); i++)
	{
		if (PQgetvalue(live, i, 2)[0] != 't')
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_TABLE),
					 errmsg("relation %s exists at the destination",
							resync_pq_qualified(PQgetvalue(live, i, 3), PQgetvalue(live, i, 4))),
					 errdetail("It was not made by this mirror."),
					 errhint("Drop or rename it, or set the option replace_existing.")));
	}
}

/* The OIDs of a result's column as "1,2,3"; "0" if there are none. */
static char *
oid_list(PGresult *res, int col)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < PQntuples(res); i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? "," : "", PQgetvalue(res, i, col));
	return buf.len > 0 ? buf.data : "0";
}

/* Views on the old tables, as statements that make them anew by name. */
static PGresult *
read_views(PgDestination *dest, const char *live_oids)
{
	return resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT format('CREATE OR REPLACE VIEW %%I.%%I%%s AS %%s', n.nspname, v.relname,"
			" (SELECT ' WITH (' || string_agg(quote_ident(option_name) || ' = ' || quote_literal(option_value), ', ') || ')'"
			" FROM pg_options_to_table(v.reloptions)), pg_get_viewdef(v.oid))"
			" FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace WHERE v.relkind = 'v' AND v.oid IN"
			" (SELECT w.ev_class FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid"
			" WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass"
			" AND d.refobjid IN (%s)) ORDER BY v.oid",
			live_oids));
}

static bool
run_views(PgDestination *dest, PGresult *views)
{
	for (int i = 0; i < PQntuples(views); i++)
	{
		if (!try_swap(dest, PQgetvalue(views, i, 0)))
			return false;
	}
	return true;
}

/* All tables of both kinds, ACCESS EXCLUSIVE, in OID order. */
static bool
lock_tables(PgDestination *dest, const char *values, const char *live_oids)
{
	PGresult *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT 'LOCK TABLE ' || string_agg(format('ONLY %%I.%%I', n.nspname, c.relname), ', ' ORDER BY c.oid)"
			" || ' IN ACCESS EXCLUSIVE MODE' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
			" WHERE c.relkind = 'r' AND (c.oid IN (%s) OR (n.nspname, c.relname) IN"
			" (SELECT v.s, v.b FROM (VALUES %s) AS v (o, s, l, b)))",
			live_oids, values));
	if (PQgetisnull(res, 0, 0))
		return true;
	return try_swap(dest, PQgetvalue(res, 0, 0));
}

/*
 * Statements that give the new table's indexes the names they are to have: a
 * copied one the old index's, the primary key the old key's or the usual one.
 * Read before the old table is dropped, run after it.  A name that something
 * else has taken is left alone.
 */
static void
append_index_renames(PgDestination *dest, const ResyncTable *table, const char *live_oid,
					 StringInfo sql)
{
	const char *build = resync_pg_literal(resync_pg_build(table));
	const char *schema = resync_pq_ident(table->dest_schema);
	char	   *usual = makeObjectName(table->dest_name, NULL, "pkey");
	PGresult   *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"WITH w AS (SELECT c.relname AS now, CASE WHEN i.indisprimary THEN coalesce((SELECT oc.relname FROM pg_index oi"
			" JOIN pg_class oc ON oc.oid = oi.indexrelid WHERE oi.indrelid = %s AND oi.indisprimary), %s)"
			" ELSE (SELECT oc.relname FROM pg_class oc WHERE oc.relname <> c.relname AND %s || oc.oid = c.relname) END AS wanted,"
			" c.relnamespace FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = %s::regclass)"
			" SELECT now, wanted FROM w WHERE wanted IS NOT NULL AND wanted <> now AND NOT EXISTS (SELECT FROM pg_class x"
			" LEFT JOIN pg_index xi ON xi.indexrelid = x.oid"
			" WHERE x.relnamespace = w.relnamespace AND x.relname = w.wanted AND xi.indrelid IS DISTINCT FROM %s)",
			live_oid, resync_pg_literal(usual),
			resync_pg_literal(resync_pg_index_prefix(dest, table)), build, live_oid));
	for (int i = 0; i < PQntuples(res); i++)
		appendStringInfo(sql, "ALTER INDEX %s.%s RENAME TO %s;", schema,
						 resync_pq_ident(PQgetvalue(res, i, 0)),
						 resync_pq_ident(PQgetvalue(res, i, 1)));
	resync_pq_clear(res);
}

/* Renames, drops and marks of all tables; views are made anew in between. */
static bool
exchange(PgDestination *dest, ResyncTable **tables, int ntables, PGresult *live, PGresult *views,
		 int64 retire_run)
{
	const char	  *token = resync_pg_literal(dest->head.id->token);
	const char	  *m = dest->meta_quoted;
	StringInfoData renames, rest;

	initStringInfo(&renames);
	initStringInfo(&rest);
	for (int i = 0; i < ntables; i++)
	{
		const char *schema = resync_pq_ident(tables[i]->dest_schema);
		const char *name = resync_pq_ident(tables[i]->dest_name);
		char	   *aside = psprintf("resync_old_" INT64_FORMAT "_%d", dest->head.id->run,
									 tables[i]->ordinal);
		const char *live_oid = "0";

		for (int row = 0; row < PQntuples(live); row++)
		{
			if (atoi(PQgetvalue(live, row, 0)) == tables[i]->ordinal)
				live_oid = PQgetvalue(live, row, 1);
		}
		if (strcmp(live_oid, "0") != 0)
		{
			appendStringInfo(&renames, "ALTER TABLE %s.%s RENAME TO %s;", schema, name, aside);
			appendStringInfo(&rest, "DROP TABLE %s.%s;", schema, aside);
		}
		appendStringInfo(&renames, "ALTER TABLE %s RENAME TO %s;", resync_pg_build(tables[i]),
						 name);
		append_index_renames(dest, tables[i], live_oid, &rest);
	}
	appendStringInfo(
		&rest,
		"UPDATE %s.resync_table t SET swapped = true WHERE %s;"
		"DELETE FROM %s.resync_table WHERE token = %s AND swapped AND build_oid IN (%s) AND run <> " INT64_FORMAT
		";",
		m, resync_pg_run_condition(dest, "t"), m, token, oid_list(live, 1), dest->head.id->run);
	appendStringInfo(
		&rest,
		"UPDATE %s.resync_run SET state = 'retired' WHERE token = %s AND run = " INT64_FORMAT
		" AND run <> " INT64_FORMAT ";",
		m, token, retire_run, dest->head.id->run);
	return try_swap(dest, renames.data) && run_views(dest, views) && try_swap(dest, rest.data);
}

bool
resync_pg_swap(Destination *head, ResyncTable **tables, int ntables, XLogRecPtr lsn,
			   int64 retire_run)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	char		  *values = table_values(tables, ntables);
	PgFenceInfo	   info;
	bool		   done = ntables == 0;
	PGresult	  *live;
	PGresult	  *views;

	if (!swap_begin(dest, lsn, retire_run, &info))
		goto timeout;
	for (int i = 0; i < ntables; i++)
	{
		char entry[32];

		snprintf(entry, sizeof(entry), " %ds ", tables[i]->ordinal);
		if (strstr(info.owned, entry) != NULL)
			done = true; /* one transaction: all of them are */
		else
			resync_pg_require_owned(&info, tables[i], false);
	}
	if (!done)
	{
		live = read_live(dest, values);
		views = read_views(dest, oid_list(live, 1));
		/* as they are: only for the lock */
		if (!run_views(dest, views) || !lock_tables(dest, values, oid_list(live, 1)))
			goto timeout;
		/* now that nothing can change any more, look again */
		live = read_live(dest, values);
		require_replaceable(live);
		resync_pg_check_fence(dest, &info);
		for (int i = 0; i < ntables; i++)
			resync_pg_require_owned(&info, tables[i], false);
		views = read_views(dest, oid_list(live, 1));
		if (!exchange(dest, tables, ntables, live, views, retire_run))
			goto timeout;
	}
	resync_pg_commit(dest);
	MemoryContextSwitchTo(old);
	return true;

timeout:
	resync_pg_rollback(dest);
	MemoryContextSwitchTo(old);
	return false;
}

bool
resync_pg_is_swapped(Destination *head, const ResyncTable *table)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	PGresult	  *res;
	bool		   result;

	res = resync_pq_exec(
		dest->conn,
		/* a swap of ours whose answer was not waited for may be about to commit */
		psprintf("SELECT 1 FROM %s.resync_run r WHERE %s FOR SHARE;"
				 "SELECT swapped FROM %s.resync_table t WHERE %s AND t.ordinal = %d",
				 dest->meta_quoted, resync_pg_run_condition(dest, "r"), dest->meta_quoted,
				 resync_pg_run_condition(dest, "t"), table->ordinal));
	result = PQntuples(res) > 0 && PQgetvalue(res, 0, 0)[0] == 't';
	MemoryContextSwitchTo(old);
	return result;
}
