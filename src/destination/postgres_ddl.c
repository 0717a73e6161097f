/*
 * postgres_ddl.c
 *		Tables under construction at a PostgreSQL destination: making, emptying,
 *		and after the load their key, indexes, privileges and statistics.
 *
 * Called by the coordinator.  Each function is one transaction behind the fence
 * (FOR SHARE: copiers of other tables go on) and may be repeated.  Locks are
 * on build tables, which nobody but us uses, except ACCESS SHARE on the live
 * table whose indexes and privileges are read.
 *
 * Indexes copied from the live table are named resync_<run>_<ordinal>_<OID of
 * the old index> until the swap, which finds them by that name and gives them
 * the old ones.
 */
#include "postgres.h"

#include "destination/postgres.h"

#include "utils/builtins.h"

/* Definition of the table's columns: the source's, then ours. */
char *
resync_pg_column_list(const PgDestination *dest, const ResyncTable *table)
{
	const char	  *soft_delete = resync_pg_soft_delete_column(dest);
	const char	  *synced_at = resync_pg_synced_at_column(dest);
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, "%s%s %s", i > 0 ? ", " : "",
						 resync_pq_ident(table->cols[i].dest_name), table->cols[i].dest_type);
	if (soft_delete != NULL)
		appendStringInfo(&buf, "%s%s boolean NOT NULL DEFAULT false", buf.len > 0 ? ", " : "",
						 resync_pq_ident(soft_delete));
	if (synced_at != NULL)
		appendStringInfo(&buf, "%s%s timestamp with time zone NOT NULL DEFAULT now()",
						 buf.len > 0 ? ", " : "", resync_pq_ident(synced_at));
	return buf.data;
}

/* Names of copied indexes begin with this until the swap. */
char *
resync_pg_index_prefix(const PgDestination *dest, const ResyncTable *table)
{
	return psprintf("resync_" INT64_FORMAT "_%d_", dest->head.id->run, table->ordinal);
}

/*
 * Run something that may fail without spoiling the transaction.  A failure is
 * logged as "could not <what>"; a lost connection or a fatal error is raised.
 */
bool
resync_pg_savepoint(PgDestination *dest, const char *sql, const char *what)
{
	PGresult *res;
	bool	  ok;

	resync_pq_exec(dest->conn, "SAVEPOINT resync");
	res = resync_pq_exec_any(dest->conn, sql);
	ok = PQresultStatus(res) != PGRES_FATAL_ERROR;
	if (!ok)
	{
		int class = ERRCODE_TO_CATEGORY(resync_pq_sqlstate(res));

		/* only what is wrong with the statement itself is left out */
		if (class != MAKE_SQLSTATE('4', '2', '0', '0', '0') &&
			class != MAKE_SQLSTATE('2', '2', '0', '0', '0') &&
			class != MAKE_SQLSTATE('0', 'A', '0', '0', '0') &&
			class != MAKE_SQLSTATE('5', '4', '0', '0', '0'))
			resync_pq_raise(dest->conn, res, sql);
		ereport(LOG, (errmsg("mirror \"%s\": could not %s at the destination",
							 dest->head.id->mirror, what),
					  errdetail_internal("%s", PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY))));
	}
	resync_pq_clear(res);
	resync_pq_exec(dest->conn, ok ? "RELEASE SAVEPOINT resync"
								  : "ROLLBACK TO SAVEPOINT resync; RELEASE SAVEPOINT resync");
	return ok;
}

/* ---------------------------------------------------------------------
 * Creating and emptying
 * ------------------------------------------------------------------ */

static void
make_schema(PgDestination *dest, const char *schema)
{
	PGresult *res;

	res = resync_pq_exec(dest->conn, psprintf("SELECT 1 FROM pg_namespace WHERE nspname = %s",
											  resync_pg_literal(schema)));
	if (PQntuples(res) == 0)
		resync_pq_exec(dest->conn, psprintf("CREATE SCHEMA %s", resync_pq_ident(schema)));
	resync_pq_clear(res);
}

/* Something that is not ours has the build table's name. */
void
resync_pg_raise_in_the_way(const ResyncTable *table)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_DUPLICATE_TABLE),
		 errmsg("relation %s exists at the destination", resync_pg_build(table)),
		 errdetail(
			 "It is in the way of the table under construction, and was not made by this mirror."),
		 errhint("Drop or rename it there.")));
}

/* Drop what has the build table's name, if it is ours; else raise. */
static void
drop_previous(PgDestination *dest, const ResyncTable *table)
{
	PGresult *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT EXISTS (SELECT FROM %s.resync_table t WHERE t.token = %s AND t.build_oid = c.oid"
			" AND NOT t.swapped AND c.relkind = 'r')"
			" FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
			" WHERE n.nspname = %s AND c.relname = %s",
			dest->meta_quoted, resync_pg_literal(dest->head.id->token),
			resync_pg_literal(table->dest_schema), resync_pg_literal(table->build_name)));
	if (PQntuples(res) > 0)
	{
		if (PQgetvalue(res, 0, 0)[0] != 't')
			resync_pg_raise_in_the_way(table);
		resync_pq_exec(dest->conn, psprintf("DROP TABLE %s", resync_pg_build(table)));
	}
	resync_pq_clear(res);
}

void
resync_pg_create_table(Destination *head, const ResyncTable *table)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	const char	  *token = resync_pg_literal(head->id->token);
	const char	  *m = dest->meta_quoted;

	/* two coordinators might make the same schema at the same time */
	resync_pg_begin(dest, PG_FENCE_SHARE, "SELECT pg_advisory_xact_lock(7310574);", PG_NO_TABLE,
					NULL);
	make_schema(dest, table->dest_schema);
	drop_previous(dest, table);
	resync_pq_exec(dest->conn, psprintf("CREATE TABLE %s (%s)", resync_pg_build(table),
										resync_pg_column_list(dest, table)));
	resync_pq_exec(
		dest->conn,
		psprintf(
			"DELETE FROM %s.resync_partition WHERE token = %s AND run = " INT64_FORMAT
			" AND ordinal = %d;"
			"INSERT INTO %s.resync_table (token, run, ordinal, dest_schema, dest_name, build_name, build_oid)"
			" VALUES (%s, " INT64_FORMAT ", %d, %s, %s, %s, %s::regclass)"
			" ON CONFLICT (token, run, ordinal) DO UPDATE SET dest_schema = excluded.dest_schema,"
			" dest_name = excluded.dest_name, build_name = excluded.build_name,"
			" build_oid = excluded.build_oid, carried = false; COMMIT",
			m, token, head->id->run, table->ordinal, m, token, head->id->run, table->ordinal,
			resync_pg_literal(table->dest_schema), resync_pg_literal(table->dest_name),
			resync_pg_literal(table->build_name), resync_pg_literal(resync_pg_build(table))));
	MemoryContextSwitchTo(old);
}

void
resync_pg_reset_table(Destination *head, const ResyncTable *table, int64 first_partition,
					  int64 last_partition)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	PgFenceInfo	   info;

	resync_pg_begin(dest, PG_FENCE_SHARE, "", table->ordinal, &info);
	resync_pg_require_owned(&info, table, false);
	resync_pq_exec(
		dest->conn,
		psprintf(
			"TRUNCATE %s; DELETE FROM %s.resync_partition p WHERE %s AND partition BETWEEN " INT64_FORMAT
			" AND " INT64_FORMAT "; COMMIT",
			resync_pg_build(table), dest->meta_quoted, resync_pg_run_condition(dest, "p"),
			first_partition, last_partition));
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------------
 * Key
 * ------------------------------------------------------------------ */

/* Make the primary key, unless it is there already. */
static void
make_key(PgDestination *dest, const ResyncTable *table)
{
	const ResyncColumn **key = resync_destination_key(table);
	StringInfoData		 cols;
	PGresult			*res;

	if (table->nkeys == 0)
		return;
	res = resync_pq_exec(
		dest->conn,
		psprintf("SELECT 1 FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'",
				 resync_pg_literal(resync_pg_build(table))));
	if (PQntuples(res) > 0)
		return;
	initStringInfo(&cols);
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&cols, "%s%s", i > 0 ? ", " : "", resync_pq_ident(key[i]->dest_name));

	/*
	 * Loaded under more than one snapshot, a row that moved in between was
	 * copied twice or not at all.  Any copy will do: the replay of the WAL
	 * repairs it (rule 2).
	 */
	if (table->multi_snapshot)
		resync_pq_exec(
			dest->conn,
			psprintf(
				"DELETE FROM %s a USING (SELECT ctid, row_number() OVER (PARTITION BY %s ORDER BY ctid DESC) AS n FROM %s) d"
				" WHERE d.n > 1 AND a.ctid = d.ctid",
				resync_pg_build(table), cols.data, resync_pg_build(table)));
	resync_pq_exec(dest->conn, psprintf("ALTER TABLE %s ADD PRIMARY KEY (%s)",
										resync_pg_build(table), cols.data));
}

/*
 * The key's equality operators, in key order, as they are written in a query:
 * with search_path pinned, "=" alone would not find an extension's.
 */
char **
resync_pg_key_operators(PgDestination *dest, const ResyncTable *table, const char *target)
{
	const ResyncColumn **key = resync_destination_key(table);
	char			   **ops = palloc0(sizeof(char *) * Max(table->nkeys, 1));
	PGresult			*res;

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT a.attname, format('OPERATOR(%%I.%%s)', n.nspname, o.oprname) FROM pg_index i"
			" CROSS JOIN LATERAL generate_series(0, i.indnkeyatts - 1) AS k (n)"
			" JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n]"
			" JOIN pg_opclass c ON c.oid = i.indclass[k.n]"
			" JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype"
			" AND m.amoprighttype = c.opcintype AND m.amopstrategy = 3"
			" JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace"
			" WHERE i.indrelid = %s::regclass AND i.indisprimary",
			resync_pg_literal(target)));
	for (int i = 0; i < table->nkeys; i++)
	{
		for (int row = 0; row < PQntuples(res); row++)
		{
			if (strcmp(PQgetvalue(res, row, 0), key[i]->dest_name) == 0)
				ops[i] = pstrdup(PQgetvalue(res, row, 1));
		}
		if (ops[i] == NULL)
			ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
							errmsg("table %s at the destination has lost its primary key", target),
							errhint("Resync the mirror.")));
	}
	resync_pq_clear(res);
	return ops;
}

/* ---------------------------------------------------------------------
 * Indexes of the old table
 * ------------------------------------------------------------------ */

/*
 * One row per column of each index of the live table that can be made on the
 * new one (no column is gone); what pg_get_indexdef() would print, in pieces,
 * because its text names the old table.  Where the column's type changed,
 * operator class and collation are left to the new type.
 */
static PGresult *
read_indexes(PgDestination *dest, const ResyncTable *table)
{
	const char *live = resync_pg_literal(resync_pg_live(table));
	const char *build = resync_pg_literal(resync_pg_build(table));

	return resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT c.oid, c.relname, am.amname, i.indisunique, k.n > i.indnkeyatts AS included,"
			" pg_get_indexdef(c.oid, k.n, false) AS expr,"
			" CASE WHEN k.n <= i.indnkeyatts AND coalesce(nc.atttypid = oc.atttypid, true) AND co.oid IS NOT NULL"
			" THEN format(' COLLATE %%I.%%I', cn.nspname, co.collname) ELSE '' END"
			" || CASE WHEN k.n <= i.indnkeyatts AND coalesce(nc.atttypid = oc.atttypid, true)"
			" THEN format(' %%I.%%I', opn.nspname, op.opcname)"
			" || coalesce((SELECT ' (' || string_agg(quote_ident(option_name) || ' = ' || quote_literal(option_value), ', ') || ')'"
			" FROM pg_options_to_table(ia.attoptions)), '') ELSE '' END"
			" || CASE WHEN k.n <= i.indnkeyatts AND pg_indexam_has_property(am.oid, 'can_order') THEN"
			" CASE WHEN i.indoption[k.n - 1] & 1 = 1 THEN ' DESC' ELSE ' ASC' END"
			" || CASE WHEN i.indoption[k.n - 1] & 2 = 2 THEN ' NULLS FIRST' ELSE ' NULLS LAST' END ELSE '' END,"
			" (SELECT string_agg(quote_ident(option_name) || ' = ' || quote_literal(option_value), ', ')"
			" FROM pg_options_to_table(c.reloptions)),"
			" pg_get_expr(i.indpred, i.indrelid)"
			" FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am am ON am.oid = c.relam"
			" CROSS JOIN LATERAL generate_series(1, i.indnatts::int) AS k (n)"
			" JOIN pg_attribute ia ON ia.attrelid = c.oid AND ia.attnum = k.n"
			" LEFT JOIN pg_attribute oc ON oc.attrelid = i.indrelid AND oc.attnum = i.indkey[k.n - 1] AND oc.attnum > 0"
			" LEFT JOIN pg_attribute nc ON nc.attrelid = %s::regclass AND nc.attname = oc.attname AND NOT nc.attisdropped"
			" LEFT JOIN pg_opclass op ON k.n <= i.indnkeyatts AND op.oid = i.indclass[k.n - 1]"
			" LEFT JOIN pg_namespace opn ON opn.oid = op.opcnamespace"
			" LEFT JOIN pg_collation co ON k.n <= i.indnkeyatts AND co.oid = i.indcollation[k.n - 1]"
			" LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace"
			" WHERE i.indrelid = to_regclass(%s) AND NOT i.indisprimary AND i.indisvalid AND i.indislive"
			" AND NOT EXISTS (SELECT FROM pg_class d WHERE d.relnamespace = c.relnamespace AND d.relname = %s || c.oid)"
			" AND NOT EXISTS (SELECT FROM pg_attribute u WHERE u.attrelid = i.indrelid AND u.attnum > 0"
			" AND (u.attnum = ANY (i.indkey::int2[]) OR EXISTS (SELECT FROM pg_depend d"
			" WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid"
			" AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = u.attnum))"
			" AND NOT EXISTS (SELECT FROM pg_attribute n WHERE n.attrelid = %s::regclass"
			" AND n.attname = u.attname AND NOT n.attisdropped))"
			" ORDER BY c.oid, k.n",
			build, live, resync_pg_literal(resync_pg_index_prefix(dest, table)), build));
}

/* Rows first..last-1 of read_indexes() describe one index: make it. */
static void
make_index(PgDestination *dest, const ResyncTable *table, PGresult *res, int first, int last)
{
	StringInfoData sql;
	const char	  *name = PQgetvalue(res, first, 1);
	bool		   included = false;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE INDEX %s ON %s USING %s (",
					 resync_pq_ident(psprintf("%s%s", resync_pg_index_prefix(dest, table),
											  PQgetvalue(res, first, 0))),
					 resync_pg_build(table), resync_pq_ident(PQgetvalue(res, first, 2)));
	for (int i = first; i < last; i++)
	{
		bool now_included = PQgetvalue(res, i, 4)[0] == 't';

		if (now_included && !included)
			appendStringInfoString(&sql, ") INCLUDE (");
		else if (i > first)
			appendStringInfoString(&sql, ", ");
		included = now_included;
		appendStringInfo(&sql, "%s%s", PQgetvalue(res, i, 5), PQgetvalue(res, i, 6));
	}
	appendStringInfoChar(&sql, ')');
	if (!PQgetisnull(res, first, 7))
		appendStringInfo(&sql, " WITH (%s)", PQgetvalue(res, first, 7));
	if (!PQgetisnull(res, first, 8))
		appendStringInfo(&sql, " WHERE %s", PQgetvalue(res, first, 8));
	if (resync_pg_savepoint(
			dest, sql.data,
			psprintf("copy index \"%s\" of table %s", name, resync_pg_live(table))) &&
		PQgetvalue(res, first, 3)[0] == 't')

		/*
		 * Deleted rows that are kept, and the order within a batch, would
		 * break uniqueness that holds at the source.
		 */
		ereport(
			LOG,
			(errmsg(
				"mirror \"%s\": unique index \"%s\" of table %s is kept as an index that is not unique",
				dest->head.id->mirror, name, resync_pg_live(table))));
}

static void
copy_indexes(PgDestination *dest, const ResyncTable *table)
{
	PGresult *res = read_indexes(dest, table);
	int		  first = 0;

	for (int i = 1; i <= PQntuples(res); i++)
	{
		if (i < PQntuples(res) && strcmp(PQgetvalue(res, i, 0), PQgetvalue(res, first, 0)) == 0)
			continue;
		make_index(dest, table, res, first, i);
		first = i;
	}
	resync_pq_clear(res);
}

/* ---------------------------------------------------------------------
 * Privileges, comments, storage parameters, owner
 * ------------------------------------------------------------------ */

/*
 * Statements that give the new table what the old one has.  Made by the
 * destination from its catalog; %1$s is the new table.
 */
static void
copy_properties(PgDestination *dest, const ResyncTable *table)
{
	const char *live = resync_pg_literal(resync_pg_live(table));
	const char *build = resync_pg_literal(resync_pg_build(table));
	PGresult   *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"WITH o AS (SELECT c.* FROM pg_class c WHERE c.oid = to_regclass(%s)),"
			" cols AS (SELECT a.* FROM pg_attribute a JOIN o ON a.attrelid = o.oid JOIN pg_attribute n"
			" ON n.attrelid = %s::regclass AND n.attname = a.attname WHERE a.attnum > 0"
			" AND NOT a.attisdropped AND NOT n.attisdropped),"
			" s (ord, sql) AS ("
			" SELECT 1, format('ALTER TABLE %%s SET (%%s)', %s, (SELECT string_agg(quote_ident(option_name) || ' = '"
			" || quote_literal(option_value), ', ') FROM pg_options_to_table(o.reloptions))) FROM o WHERE o.reloptions IS NOT NULL"
			" UNION ALL SELECT 2, format('COMMENT ON TABLE %%s IS %%L', %s, obj_description(o.oid, 'pg_class')) FROM o"
			" WHERE obj_description(o.oid, 'pg_class') IS NOT NULL"
			" UNION ALL SELECT 3, format('COMMENT ON COLUMN %%s.%%I IS %%L', %s, attname, col_description(attrelid, attnum)) FROM cols"
			" WHERE col_description(attrelid, attnum) IS NOT NULL"
			" UNION ALL SELECT 4, format('GRANT %%s ON TABLE %%s TO %%s%%s', a.privilege_type, %s,"
			" CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,"
			" CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)"
			" FROM o, aclexplode(o.relacl) a WHERE a.grantee <> o.relowner"
			" UNION ALL SELECT 5, format('GRANT %%s (%%I) ON TABLE %%s TO %%s%%s', a.privilege_type, cols.attname, %s,"
			" CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,"
			" CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)"
			" FROM cols, aclexplode(cols.attacl) a"
			" UNION ALL SELECT 6, format('ALTER TABLE %%s OWNER TO %%I', %s, pg_get_userbyid(o.relowner)) FROM o"
			" WHERE o.relowner <> (SELECT relowner FROM pg_class WHERE oid = %s::regclass))"
			" SELECT sql FROM s ORDER BY ord, sql",
			live, build, build, build, build, build, build, build, build));
	for (int i = 0; i < PQntuples(res); i++)
		resync_pg_savepoint(dest, PQgetvalue(res, i, 0),
							psprintf("copy a property of table %s", resync_pg_live(table)));
	resync_pq_clear(res);
}

void
resync_pg_build_key(Destination *head, const ResyncTable *table)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	PgFenceInfo	   info;

	resync_pg_begin(dest, PG_FENCE_SHARE, "", table->ordinal, &info);
	resync_pg_require_owned(&info, table, false);
	make_key(dest, table);
	copy_indexes(dest, table);
	copy_properties(dest, table);
	/* readers get good plans from the swap on */
	resync_pq_exec(dest->conn, psprintf("ANALYZE %s; COMMIT", resync_pg_build(table)));
	MemoryContextSwitchTo(old);
}
