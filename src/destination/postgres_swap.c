/*
 * postgres_swap.c
 *		The end of a run's build at a PostgreSQL destination: soft-deleted rows
 *		are carried over, then the new tables take the old ones' place.
 *
 * Called by the coordinator while the streamer is held at a commit.  transfer
 * takes no lock that a reader notices, and may be repeated.  swap is one
 * transaction over all tables.  Readers see the old tables or the new ones,
 * never neither.  To hold them up for as short as possible:
 *
 *	1. Everything that has to be known is read, and every statement is made,
 *	   before the first lock (SwapPlan).
 *	2. Indexes get their names: that needs SHARE UPDATE EXCLUSIVE on the index
 *	   only, which readers and writers do not notice.
 *	3. In one round trip: ACCESS EXCLUSIVE on views first, then on tables in OID
 *	   order, none waited for longer than resync.swap_lock_timeout; and a look
 *	   whether what the plan was made from is still so.  If not, all is undone
 *	   and planned again; a timeout undoes everything and is the caller's.
 *	4. In one round trip: the tables change their names, views are made anew,
 *	   old tables are dropped, the marks are set, COMMIT.
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
	char *expr; /* its value as the new type, from alias o; NULL: the old one has none */
	bool  same_type;
} SharedColumn;

/* The old table, as far as its deleted rows need it. */
typedef struct OldTable
{
	SharedColumn *shared;  /* by the new table's order */
	char		 *deleted; /* its column that marks deleted rows, NULL: none */
	char		 *synced;  /* its column of times, NULL: none */
} OldTable;

/* Index of the mirrored column of that name at the destination, or -1. */
static int
find_column(const ResyncTable *table, const char *name)
{
	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(name, table->cols[i].dest_name) == 0)
			return i;
	}
	return -1;
}

/* Columns of the live table, with their types and those of the new table's. */
static PGresult *
read_old_columns(PgDestination *dest, const ResyncTable *table)
{
	return resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT o.attname, n.atttypid = o.atttypid AND n.atttypmod = o.atttypmod,"
			" n.atttypid = o.atttypid OR EXISTS (SELECT FROM pg_cast WHERE castsource = o.atttypid"
			" AND casttarget = n.atttypid), format_type(n.atttypid, n.atttypmod), format_type(o.atttypid, -1)"
			" FROM pg_attribute o LEFT JOIN pg_attribute n ON n.attname = o.attname AND n.attrelid = %s::regclass"
			" AND n.attnum > 0 AND NOT n.attisdropped"
			" WHERE o.attrelid = to_regclass(%s) AND o.attnum > 0 AND NOT o.attisdropped",
			resync_pg_literal(resync_pg_build(table)), resync_pg_literal(resync_pg_live(table))));
}

/*
 * Look at the old table.  Returns false if there is none.
 */
static bool
read_old_table(PgDestination *dest, const ResyncTable *table, OldTable *old)
{
	const char *soft_delete = resync_pg_soft_delete_column(dest);
	const char *synced_at = resync_pg_synced_at_column(dest);
	PGresult   *res = read_old_columns(dest, table);
	bool		exists = PQntuples(res) > 0;
	int			best_deleted = 0;
	int			best_synced = 0;

	old->shared = palloc0(sizeof(SharedColumn) * table->ncols);
	for (int row = 0; row < PQntuples(res); row++)
	{
		const char *name = PQgetvalue(res, row, 0);
		const char *old_type = PQgetvalue(res, row, 4);
		int			i = find_column(table, name);
		int			match;

		if (i >= 0)
		{
			/* a mirrored column, whatever it is called */
			old->shared[i].same_type = PQgetvalue(res, row, 1)[0] == 't';
			old->shared[i].expr = old->shared[i].same_type
									  ? psprintf("o.%s", resync_pq_ident(name))
									  : psprintf("o.%s%s::%s", resync_pq_ident(name),
												 PQgetvalue(res, row, 2)[0] == 't' ? "" : "::text",
												 PQgetvalue(res, row, 3));
			continue;
		}
		match = resync_destination_match_column(name, soft_delete, PEERDB_SOFT_DELETE);
		if (match > best_deleted && strcmp(old_type, "boolean") == 0)
		{
			best_deleted = match;
			old->deleted = pstrdup(name);
		}
		match = resync_destination_match_column(name, synced_at, PEERDB_SYNCED_AT);
		if (match > best_synced && strncmp(old_type, "timestamp", 9) == 0)
		{
			best_synced = match;
			old->synced = pstrdup(name);
		}
	}
	resync_pq_clear(res);
	return exists;
}

/*
 * INSERT ... SELECT of the old rows into the new table; all_columns false:
 * only the columns whose type has not changed, and the key.
 */
static char *
transfer_query(PgDestination *dest, const ResyncTable *table, const OldTable *old, bool all_columns)
{
	const SharedColumn *shared = old->shared;
	const char		   *synced = resync_pg_synced_at_column(dest);
	StringInfoData		names, values, sql;

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
	appendStringInfoString(&names, resync_pq_ident(resync_pg_soft_delete_column(dest)));
	appendStringInfoString(&values, "true");
	if (synced != NULL)
	{
		appendStringInfo(&names, ", %s", resync_pq_ident(synced));

		/*
		 * What was deleted before keeps its time.  One without time zone is
		 * UTC, as PeerDB writes it and this session has it.
		 */
		if (old->deleted != NULL && old->synced != NULL)
			appendStringInfo(&values, ", CASE WHEN o.%s THEN coalesce(o.%s, now()) ELSE now() END",
							 resync_pq_ident(old->deleted), resync_pq_ident(old->synced));
		else
			appendStringInfoString(&values, ", now()");
	}
	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s (%s) SELECT %s FROM %s o WHERE ", resync_pg_build(table),
					 names.data, values.data, resync_pg_live(table));
	if (table->nkeys == 0)
	{
		/* without a key only what was marked as deleted is known to be */
		appendStringInfo(&sql, "o.%s", resync_pq_ident(old->deleted));
		return sql.data;
	}
	else
	{
		const ResyncColumn **key = resync_destination_key(table);
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
insert_tombstones(PgDestination *dest, const ResyncTable *table, const OldTable *old)
{
	for (int all = 1; all >= 0; all--)
	{
		char	 *sql = transfer_query(dest, table, old, all);
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
resync_pg_transfer(Destination *head, const ResyncTable *table, List **warnings)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  caller = resync_pg_enter(dest);
	OldTable	   old = {0};
	bool		   possible;
	int64		   rows = 0;
	PgFenceInfo	   info;
	PGresult	  *res;

	if (resync_pg_soft_delete_column(dest) == NULL)
	{
		MemoryContextSwitchTo(caller);
		return 0;
	}
	resync_pg_begin(dest, PG_FENCE_SHARE, "", table->ordinal, &info);
	resync_pg_require_owned(&info, table, false);
	possible = read_old_table(dest, table, &old);
	for (int i = 0; possible && i < table->ncols && table->nkeys > 0; i++)
	{
		if (table->cols[i].keypos > 0 && old.shared[i].expr == NULL)
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
		possible = old.deleted != NULL && strcmp(PQcmdTuples(res), "1") == 0;
	}
	if (possible)
		rows = insert_tombstones(dest, table, &old);
	resync_pg_commit(dest);
	MemoryContextSwitchTo(caller);
	return rows;
}

/* ---------------------------------------------------------------------
 * Swap
 * ------------------------------------------------------------------ */

/* How often a swap is planned again because the tables have changed meanwhile. */
#define MAX_PLANS 5

/*
 * How often a swap is tried that the destination's lock table has no room for.
 * With the pauses between (net/retry.c) that is some minutes, in test builds
 * seconds.
 */
#ifdef RESYNC_DEBUG
#define MAX_WITHOUT_ROOM 4
#else
#define MAX_WITHOUT_ROOM 11
#endif

/* All that the swap does, made before anybody is held up. */
typedef struct SwapPlan
{
	char *facts;   /* of facts_query(), before anything else was read */
	char *indexes; /* statements that rename indexes; "" for none */
	char *locks;   /* statements that lock everything, last facts_query() */
	char *exchange;
} SwapPlan;

/* A mirrored table and its OIDs at the destination, as text. */
typedef struct SwapTable
{
	const ResyncTable *table;
	char			  *live_oid; /* "0": there is none */
	char			  *build_oid;
} SwapTable;

/*
 * Statements of the swap in one round trip; the result is the last one's.
 * NULL: a lock was not had in time.
 */
static PGresult *
try_query(PgDestination *dest, const char *sql)
{
	PGresult *res = resync_pq_exec_any(dest->conn, sql);

	if (PQresultStatus(res) == PGRES_FATAL_ERROR)
	{
		int sqlstate = resync_pq_sqlstate(res);

		/* canceled: by the statement_timeout of lock_statements() */
		if (sqlstate != ERRCODE_LOCK_NOT_AVAILABLE && sqlstate != ERRCODE_T_R_DEADLOCK_DETECTED &&
			sqlstate != ERRCODE_QUERY_CANCELED)
			resync_pq_raise(dest->conn, res, sql);
		resync_pq_clear(res);
		return NULL;
	}
	return res;
}

static bool
try_swap(PgDestination *dest, const char *sql)
{
	PGresult *res = try_query(dest, sql);

	resync_pq_clear(res);
	return res != NULL;
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
	resync_pg_check_fence(dest, PG_ALL_TABLES, info);
	if (info->applied != lsn)
		resync_destination_raise_applied(dest->head.id, RESYNC_ERRCODE_FENCED, info->applied, lsn);
	return true;
}

/*
 * Names at the destination as a VALUES list: ordinal, schema, name, is it the
 * table under construction.
 */
static char *
table_values(ResyncTable **tables, int ntables)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < ntables; i++)
	{
		const char *schema = resync_pg_literal(tables[i]->dest_schema);

		appendStringInfo(&buf, "%s(%d, %s, %s, false), (%d, %s, %s, true)", i > 0 ? ", " : "",
						 tables[i]->ordinal, schema, resync_pg_literal(tables[i]->dest_name),
						 tables[i]->ordinal, schema, resync_pg_literal(tables[i]->build_name));
	}
	return buf.data;
}

/*
 * A query for one number that changes whenever something does that the plan
 * was made from: what bears the names, and views on it, each by OID and by the
 * transaction that wrote its catalog row.  Indexes are left out: we rename them
 * ourselves.
 */
static char *
facts_query(const char *values)
{
	return psprintf(
		"WITH r AS (SELECT c.oid, concat_ws(' ', c.oid, c.xmin, n.oid, v.o, v.b) AS f"
		" FROM (VALUES %s) AS v (o, s, r, b) JOIN pg_namespace n ON n.nspname = v.s"
		" JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.r)"
		" SELECT hashtextextended(coalesce(string_agg(f, ',' ORDER BY f COLLATE \"C\"), ''), 0)"
		" FROM (SELECT f FROM r UNION ALL SELECT concat_ws(' ', w.oid, w.xmin, c.oid, c.xmin)"
		" FROM r JOIN pg_depend d ON d.refobjid = r.oid AND d.refclassid = 'pg_class'::regclass"
		" AND d.classid = 'pg_rewrite'::regclass JOIN pg_rewrite w ON w.oid = d.objid"
		" JOIN pg_class c ON c.oid = w.ev_class) x",
		values);
}

static char *
read_facts(PgDestination *dest, const char *values)
{
	PGresult *res = resync_pq_exec(dest->conn, facts_query(values));
	char	 *facts = pstrdup(PQgetvalue(res, 0, 0));

	resync_pq_clear(res);
	return facts;
}

/*
 * What bears the names, by OID: OID, ordinal, under construction, kind, schema,
 * name, is it ours or may it be replaced.
 */
static PGresult *
read_relations(PgDestination *dest, const char *values)
{
	return resync_pq_exec(
		dest->conn,
		psprintf("SELECT c.oid, v.o, v.b, c.relkind, n.nspname, c.relname,"
				 " %s OR EXISTS (SELECT FROM %s.resync_table t WHERE t.token = %s"
				 " AND t.swapped AND t.build_oid = c.oid)"
				 " FROM (VALUES %s) AS v (o, s, r, b) JOIN pg_namespace n ON n.nspname = v.s"
				 " JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.r ORDER BY c.oid",
				 dest->head.id->options->replace_existing ? "true" : "false", dest->meta_quoted,
				 resync_pg_literal(dest->head.id->token), values));
}

/* Raises unless what is at a live name may be dropped. */
static void
require_replaceable(PGresult *res, int row)
{
	const char *name = resync_pq_qualified(PQgetvalue(res, row, 4), PQgetvalue(res, row, 5));

	if (PQgetvalue(res, row, 6)[0] != 't')
		ereport(ERROR, (errcode(ERRCODE_DUPLICATE_TABLE),
						errmsg("relation %s exists at the destination", name),
						errdetail("It was not made by this mirror."),
						errhint("Drop or rename it, or set the option replace_existing.")));
	if (PQgetvalue(res, row, 3)[0] != 'r')
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("relation %s at the destination is not an ordinary table", name),
						errhint("Drop or rename it.")));
}

/* The OIDs of the tables, those without one left out. */
static SwapTable *
match_tables(ResyncTable **tables, int ntables, PGresult *relations)
{
	SwapTable *result = palloc0(sizeof(SwapTable) * ntables);
	int		   max = 0;
	int		  *position;

	for (int i = 0; i < ntables; i++)
		max = Max(max, tables[i]->ordinal);
	position = palloc0(sizeof(int) * (max + 1));
	for (int i = 0; i < ntables; i++)
	{
		position[tables[i]->ordinal] = i;
		result[i].table = tables[i];
		result[i].live_oid = "0";
	}
	for (int row = 0; row < PQntuples(relations); row++)
	{
		SwapTable *swap = &result[position[atoi(PQgetvalue(relations, row, 1))]];

		if (PQgetvalue(relations, row, 2)[0] == 't')
			swap->build_oid = pstrdup(PQgetvalue(relations, row, 0));
		else
		{
			require_replaceable(relations, row);
			swap->live_oid = pstrdup(PQgetvalue(relations, row, 0));
		}
	}
	for (int i = 0; i < ntables; i++)
	{
		if (result[i].build_oid == NULL) /* the marks say it is there */
			elog(ERROR, "table %s at the destination is gone", resync_pg_build(tables[i]));
	}
	return result;
}

/* OIDs of the old tables as "1,2,3"; "0" if there are none. */
static char *
live_oids(const SwapTable *tables, int ntables)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < ntables; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? "," : "", tables[i].live_oid);
	return buf.data;
}

/*
 * Views on the old tables, as two statements each: one that does nothing but
 * take ACCESS EXCLUSIVE (LOCK TABLE would go on to the tables below), and one
 * that makes it anew by name.
 */
static PGresult *
read_views(PgDestination *dest, const char *oids)
{
	return resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT format('ALTER VIEW %%I.%%I OWNER TO %%I;', n.nspname, v.relname, pg_get_userbyid(v.relowner)),"
			" format('CREATE OR REPLACE VIEW %%I.%%I%%s AS %%s;', n.nspname, v.relname,"
			" (SELECT ' WITH (' || string_agg(quote_ident(option_name) || ' = ' || quote_literal(option_value), ', ') || ')'"
			" FROM pg_options_to_table(v.reloptions)), rtrim(pg_get_viewdef(v.oid), ';'))"
			" FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace WHERE v.relkind = 'v' AND v.oid IN"
			" (SELECT w.ev_class FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid"
			" WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass"
			" AND d.refobjid IN (%s)) ORDER BY v.oid",
			oids));
}

/*
 * Locks of everything, and after them the facts.  lock_timeout bounds each
 * wait; those who wait for the first table wait for all of them, so the LOCK as
 * a whole is bounded, too: by as much, and a millisecond for each table.
 */
static char *
lock_statements(PGresult *relations, PGresult *views, const char *values)
{
	StringInfoData buf;
	int64		   limit = (int64) resync_swap_lock_timeout + PQntuples(relations);

	initStringInfo(&buf);
	for (int i = 0; i < PQntuples(views); i++)
		appendStringInfoString(&buf, PQgetvalue(views, i, 0));
	appendStringInfo(&buf, "SET LOCAL statement_timeout = %d; LOCK TABLE ",
					 (int) Min(limit, PG_INT32_MAX));
	for (int i = 0; i < PQntuples(relations); i++)
		appendStringInfo(
			&buf, "%sONLY %s", i > 0 ? ", " : "",
			resync_pq_qualified(PQgetvalue(relations, i, 4), PQgetvalue(relations, i, 5)));
	appendStringInfo(&buf, " IN ACCESS EXCLUSIVE MODE; SET LOCAL statement_timeout = 0; %s",
					 facts_query(values));
	return buf.data;
}

/*
 * Statements that give the new tables' indexes the names they are to have: a
 * copied one the old index's, the primary key the old key's or the usual one.
 * An old index that has the name makes room first.  A name that something else
 * has taken, or a mirrored table will take, is left alone; so is the key's if a
 * copied index is to have it.
 */
static char *
index_statements(PgDestination *dest, const SwapTable *tables, int ntables, const char *values)
{
	StringInfoData list, room, sql;
	PGresult	  *res;

	initStringInfo(&list);
	initStringInfo(&room);
	initStringInfo(&sql);
	for (int i = 0; i < ntables; i++)
		appendStringInfo(
			&list, "%s(%s::oid, %s::oid, %s, %s)", i > 0 ? ", " : "", tables[i].live_oid,
			tables[i].build_oid,
			resync_pg_literal(makeObjectName(tables[i].table->dest_name, NULL, "pkey")),
			resync_pg_literal(resync_pg_index_prefix(dest, tables[i].table)));
	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"WITH w AS (SELECT t.live, c.relnamespace, c.relname AS now, i.indisprimary,"
			" CASE WHEN i.indisprimary THEN coalesce(k.relname::text, t.usual) ELSE o.relname::text END AS wanted"
			" FROM (VALUES %s) AS t (live, build, usual, prefix) JOIN pg_index i ON i.indrelid = t.build"
			" JOIN pg_class c ON c.oid = i.indexrelid"
			" LEFT JOIN (pg_index ki JOIN pg_class k ON k.oid = ki.indexrelid)"
			" ON ki.indrelid = t.live AND ki.indisprimary AND i.indisprimary"
			" LEFT JOIN (pg_index oi JOIN pg_class o ON o.oid = oi.indexrelid)"
			" ON oi.indrelid = t.live AND NOT i.indisprimary AND c.relname = t.prefix || oi.indexrelid)"
			" SELECT DISTINCT ON (w.relnamespace, w.wanted) n.nspname, w.now, w.wanted, x.oid"
			" FROM w JOIN pg_namespace n ON n.oid = w.relnamespace"
			" LEFT JOIN pg_class x ON x.relnamespace = w.relnamespace AND x.relname = w.wanted"
			" LEFT JOIN pg_index xi ON xi.indexrelid = x.oid"
			" WHERE w.wanted IS NOT NULL AND w.wanted <> w.now AND (x.oid IS NULL OR xi.indrelid = w.live)"
			" AND (n.nspname, w.wanted) NOT IN (SELECT v.s, v.r FROM (VALUES %s) AS v (o, s, r, b))"
			" ORDER BY w.relnamespace, w.wanted, w.indisprimary",
			list.data, values));
	for (int i = 0; i < PQntuples(res); i++)
	{
		const char *schema = resync_pq_ident(PQgetvalue(res, i, 0));
		const char *wanted = resync_pq_ident(PQgetvalue(res, i, 2));

		if (!PQgetisnull(res, i, 3))
			appendStringInfo(&room, "ALTER INDEX %s.%s RENAME TO resync_old_" INT64_FORMAT "_i%s;",
							 schema, wanted, dest->head.id->run, PQgetvalue(res, i, 3));
		appendStringInfo(&sql, "ALTER INDEX %s.%s RENAME TO %s;", schema,
						 resync_pq_ident(PQgetvalue(res, i, 1)), wanted);
	}
	resync_pq_clear(res);
	appendStringInfoString(&room, sql.data);
	return room.data;
}

/* Renames, views, drops, marks, COMMIT. */
static char *
exchange_statements(PgDestination *dest, const SwapTable *tables, int ntables, PGresult *views,
					int64 retire_run)
{
	const char	  *token = resync_pg_literal(dest->head.id->token);
	const char	  *m = dest->meta_quoted;
	StringInfoData sql, drops;

	initStringInfo(&sql);
	initStringInfo(&drops);
	for (int i = 0; i < ntables; i++)
	{
		const ResyncTable *table = tables[i].table;
		const char		  *schema = resync_pq_ident(table->dest_schema);
		const char		  *name = resync_pq_ident(table->dest_name);
		char			  *aside = psprintf("resync_old_" INT64_FORMAT "_%d", dest->head.id->run,
											table->ordinal);

		if (strcmp(tables[i].live_oid, "0") != 0)
		{
			appendStringInfo(&sql, "ALTER TABLE %s.%s RENAME TO %s;", schema, name, aside);
			appendStringInfo(&drops, "DROP TABLE %s.%s;", schema, aside);
		}
		appendStringInfo(&sql, "ALTER TABLE %s RENAME TO %s;", resync_pg_build(table), name);
	}
	for (int i = 0; i < PQntuples(views); i++)
		appendStringInfoString(&sql, PQgetvalue(views, i, 1));
	appendStringInfo(
		&sql,
		"%sUPDATE %s.resync_table t SET swapped = true WHERE %s;"
		"DELETE FROM %s.resync_table WHERE token = %s AND swapped AND build_oid IN (%s) AND run <> " INT64_FORMAT
		";",
		drops.data, m, resync_pg_run_condition(dest, "t"), m, token, live_oids(tables, ntables),
		dest->head.id->run);
	appendStringInfo(
		&sql,
		"UPDATE %s.resync_run SET state = 'retired' WHERE token = %s AND run = " INT64_FORMAT
		" AND run <> " INT64_FORMAT "; COMMIT",
		m, token, retire_run, dest->head.id->run);
	return sql.data;
}

/*
 * The facts come first: what changes after them makes the swap be planned
 * again.  Takes no lock but ACCESS SHARE on the catalog.
 */
static SwapPlan
make_plan(PgDestination *dest, ResyncTable **tables, int ntables, int64 retire_run)
{
	char	  *values = table_values(tables, ntables);
	SwapPlan   plan;
	PGresult  *relations;
	PGresult  *views;
	SwapTable *matched;

	plan.facts = read_facts(dest, values);
	relations = read_relations(dest, values);
	matched = match_tables(tables, ntables, relations);
	views = read_views(dest, live_oids(matched, ntables));
	plan.indexes = index_statements(dest, matched, ntables, values);
	plan.locks = lock_statements(relations, views, values);
	plan.exchange = exchange_statements(dest, matched, ntables, views, retire_run);
	resync_pq_clear(relations);
	resync_pq_clear(views);
	return plan;
}

typedef enum SwapResult
{
	SWAP_DONE,
	SWAP_TIMEOUT,
	SWAP_CHANGED, /* what the plan was made from is no longer so */
	SWAP_NO_ROOM  /* the lock table is full */
} SwapResult;

/*
 * Indexes can be renamed or dropped by others until we have the tables' locks:
 * then plan again.  last: there is no further try, raise.
 */
static SwapResult
rename_indexes(PgDestination *dest, const char *sql, bool last)
{
	PGresult *res = resync_pq_exec_any(dest->conn, sql);
	int		  sqlstate = PQresultStatus(res) == PGRES_FATAL_ERROR ? resync_pq_sqlstate(res) : 0;

	if (sqlstate != 0 && sqlstate != ERRCODE_LOCK_NOT_AVAILABLE &&
		sqlstate != ERRCODE_T_R_DEADLOCK_DETECTED &&
		(last || (sqlstate != ERRCODE_UNDEFINED_TABLE && sqlstate != ERRCODE_UNDEFINED_OBJECT &&
				  sqlstate != ERRCODE_DUPLICATE_TABLE && sqlstate != ERRCODE_DUPLICATE_OBJECT)))
		resync_pq_raise(dest->conn, res, sql);
	resync_pq_clear(res);
	if (sqlstate == 0)
		return SWAP_DONE;
	return sqlstate == ERRCODE_LOCK_NOT_AVAILABLE || sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED
			   ? SWAP_TIMEOUT
			   : SWAP_CHANGED;
}

/* In the transaction that has the run's row; commits it, or leaves it to be rolled back. */
static SwapResult
run_plan(PgDestination *dest, const SwapPlan *plan, bool last)
{
	SwapResult result;
	PGresult  *res;
	bool	   changed;

	/* before version 12 this would lock readers out */
	if (dest->version >= 120000 && plan->indexes[0] != '\0')
	{
		result = rename_indexes(dest, plan->indexes, last);
		if (result != SWAP_DONE)
			return result;
	}
	res = try_query(dest, plan->locks);
	if (res == NULL)
		return SWAP_TIMEOUT;
	changed = strcmp(PQgetvalue(res, 0, 0), plan->facts) != 0;
	resync_pq_clear(res);
	if (changed)
		return SWAP_CHANGED;
	return try_swap(dest, dest->version >= 120000 ? plan->exchange
												  : psprintf("%s%s", plan->indexes, plan->exchange))
			   ? SWAP_DONE
			   : SWAP_TIMEOUT;
}

/* One try.  The transaction is over when it returns. */
static SwapResult
swap_once(PgDestination *dest, ResyncTable **tables, int ntables, XLogRecPtr lsn, int64 retire_run,
		  bool last)
{
	PgFenceInfo info;
	SwapPlan	plan;
	SwapResult	result;

	if (!swap_begin(dest, lsn, retire_run, &info))
	{
		resync_pg_rollback(dest);
		return SWAP_TIMEOUT;
	}
	for (int i = 0; i < ntables; i++)
	{
		char entry[32];

		snprintf(entry, sizeof(entry), " %ds ", tables[i]->ordinal);
		if (strstr(info.owned, entry) != NULL)
		{
			/* one transaction: all of them are */
			resync_pg_rollback(dest);
			return SWAP_DONE;
		}
		resync_pg_require_owned(&info, tables[i], false);
	}
	plan = make_plan(dest, tables, ntables, retire_run);
	result = run_plan(dest, &plan, last);
	if (result != SWAP_DONE)
		resync_pg_rollback(dest);
	return result;
}

/*
 * swap_once, but for a lock table that is full.  What the swap itself takes was
 * found to fit (postgres_check.c), so others hold much of it now.  A server that
 * lacks memory has the same SQLSTATE; the hint, which is not translated, tells.
 */
static SwapResult
try_swap_once(PgDestination *dest, ResyncTable **tables, int ntables, XLogRecPtr lsn,
			  int64 retire_run, bool last)
{
	volatile SwapResult result = SWAP_NO_ROOM;

	PG_TRY();
	{
		result = swap_once(dest, tables, ntables, lsn, retire_run, last);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		MemoryContextSwitchTo(dest->call);
		edata = CopyErrorData();
		if (edata->sqlerrcode != ERRCODE_OUT_OF_MEMORY || edata->hint == NULL ||
			strstr(edata->hint, "max_locks_per_transaction") == NULL)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	if (result == SWAP_NO_ROOM)
		resync_pg_rollback(dest);
	return result;
}

/* Raises at the last try: what is wrong there does not pass by itself. */
static void
report_no_room(PgDestination *dest, int ntables)
{
	bool last = ++dest->swaps_without_room >= MAX_WITHOUT_ROOM;

	ereport(
		last ? ERROR : LOG,
		(errcode(last ? ERRCODE_PROGRAM_LIMIT_EXCEEDED : ERRCODE_OUT_OF_MEMORY),
		 errmsg("the lock table of the destination of mirror \"%s\" has no room for the swap of "
				"%d tables",
				dest->head.id->mirror, ntables),
		 errdetail("This was try %d of %d.", dest->swaps_without_room, MAX_WITHOUT_ROOM),
		 errhint("Increase \"%s\" there, or make several mirrors of fewer tables.",
				 "max_locks_per_transaction")));
}

bool
resync_pg_swap(Destination *head, ResyncTable **tables, int ntables, XLogRecPtr lsn,
			   int64 retire_run)
{
	PgDestination *dest = (PgDestination *) head;
	SwapResult	   result = ntables == 0 ? SWAP_DONE : SWAP_CHANGED;

	for (int i = 0; i < MAX_PLANS && result == SWAP_CHANGED; i++)
	{
		MemoryContext old = resync_pg_enter(dest);

		result = try_swap_once(dest, tables, ntables, lsn, retire_run, i == MAX_PLANS - 1);
		MemoryContextSwitchTo(old);
	}
	if (result == SWAP_NO_ROOM)
		report_no_room(dest, ntables);
	return result == SWAP_DONE;
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
