/*
 * postgres_check.c
 *		Phase validate at a PostgreSQL destination: everything that would make a
 *		run fail later is found here, while nothing has been touched.
 *
 * Called by the coordinator (and by peerdb_plan_resync in a user's backend),
 * one table at a time, then once for all of them.  One transaction per table,
 * always rolled back; it makes a temporary table with the new columns, so that
 * types are proven to exist there and can be compared exactly, and takes no lock
 * but ACCESS SHARE.
 */
#include "postgres.h"

#include "destination/postgres.h"

#include "access/htup_details.h"
#include "miscadmin.h"
#include "utils/builtins.h"

/* What is at a table's live name. */
typedef struct LiveTable
{
	char *oid; /* NULL: nothing */
	char  relkind;
	char *owner;
	bool  may_alter; /* we are, or are a member of, the owner */
	bool  ours;		 /* our mark is on it */
} LiveTable;

static bool
is_true(PGresult *res, int row, int col)
{
	return !PQgetisnull(res, row, col) && PQgetvalue(res, row, col)[0] == 't';
}

/* May we create in this schema, or the schema itself? */
static void
check_schema(PgDestination *dest, const char *schema)
{
	const char *name = resync_pg_literal(schema);
	PGresult   *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s),"
			" (SELECT has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE')"
			" FROM pg_namespace WHERE nspname = %s),"
			" has_database_privilege(current_database(), 'CREATE'), current_database(), current_user",
			name, name));
	if (is_true(res, 0, 0) && !is_true(res, 0, 1))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not create tables in schema \"%s\" of the destination",
						PQgetvalue(res, 0, 4), schema),
				 errhint("There: GRANT USAGE, CREATE ON SCHEMA %s TO %s;", resync_pq_ident(schema),
						 resync_pq_ident(PQgetvalue(res, 0, 4)))));
	if (!is_true(res, 0, 0) && !is_true(res, 0, 2))
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg(
				 "role \"%s\" may not create schema \"%s\" in database \"%s\" of the destination",
				 PQgetvalue(res, 0, 4), schema, PQgetvalue(res, 0, 3)),
			 errhint("There: GRANT CREATE ON DATABASE %s TO %s;",
					 resync_pq_ident(PQgetvalue(res, 0, 3)),
					 resync_pq_ident(PQgetvalue(res, 0, 4)))));
	resync_pq_clear(res);
}

/* The relation of this name, if any; ours: by a mark of any run of the mirror. */
static LiveTable
find_relation(PgDestination *dest, const ResyncTable *table, const char *name, bool metadata,
			  bool swapped)
{
	LiveTable live = {0};
	PGresult *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf("SELECT c.oid, c.relkind, pg_get_userbyid(c.relowner),"
				 " pg_has_role(current_user, c.relowner, 'USAGE'), %s"
				 " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
				 " WHERE n.nspname = %s AND c.relname = %s",
				 metadata ? psprintf("EXISTS (SELECT FROM %s.resync_table t WHERE t.token = %s"
									 " AND t.build_oid = c.oid AND t.swapped = %s)",
									 dest->meta_quoted, resync_pg_literal(dest->head.id->token),
									 swapped ? "true" : "false")
						  : "false",
				 resync_pg_literal(table->dest_schema), resync_pg_literal(name)));
	if (PQntuples(res) > 0)
	{
		live.oid = pstrdup(PQgetvalue(res, 0, 0));
		live.relkind = PQgetvalue(res, 0, 1)[0];
		live.owner = pstrdup(PQgetvalue(res, 0, 2));
		live.may_alter = is_true(res, 0, 3);
		live.ours = is_true(res, 0, 4);
	}
	resync_pq_clear(res);
	return live;
}

/* A mirror whose destination is the source itself would swap away what it reads. */
static void
check_not_itself(PgDestination *dest, const ResyncTable *table, const LiveTable *live)
{
	PGresult *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf("SELECT (SELECT system_identifier FROM pg_control_system()) = " UINT64_FORMAT
				 " AND (SELECT oid FROM pg_database WHERE datname = current_database()) = %u"
				 " AND %s = %u",
				 dest->head.id->system_identifier, dest->head.id->database, live->oid,
				 table->relid));
	if (is_true(res, 0, 0))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("table \"%s\".\"%s\" cannot be mirrored onto itself", table->schema,
							   table->name)));
	resync_pq_clear(res);
}

/*
 * The new columns as a temporary table "resync_check", for comparing.  Proves
 * that the types can be used and that temporary tables (through which batches
 * go) may be made.
 */
static void
make_new_columns(PgDestination *dest, const ResyncTable *table)
{
	const char *sql = psprintf("CREATE TEMPORARY TABLE resync_check (%s) ON COMMIT DROP",
							   resync_pg_column_list(dest, table));
	PGresult   *res = resync_pq_exec_any(dest->conn, sql);

	if (resync_pq_sqlstate(res) == ERRCODE_INSUFFICIENT_PRIVILEGE)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg_internal("%s", PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY)),
				 errdetail("Changes reach the destination's tables through temporary tables."),
				 errhint("There: GRANT TEMPORARY ON DATABASE %s TO %s;",
						 resync_pq_ident(PQdb(dest->conn)), resync_pq_ident(PQuser(dest->conn)))));
	if (PQresultStatus(res) == PGRES_FATAL_ERROR)
		resync_pq_raise(dest->conn, res, sql);
	resync_pq_clear(res);
}

/*
 * What depends on the old table and cannot follow a swap.  Views can: they are
 * made anew on the new table, if it has the columns they use.
 */
static void
check_dependents(PgDestination *dest, const ResyncTable *table, const char *oid)
{
	StringInfoData detail;
	PGresult	  *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"WITH rel AS (SELECT %s::oid AS oid, (SELECT reltype FROM pg_class WHERE oid = %s) AS typ),"
			" dep AS (SELECT d.* FROM pg_depend d, rel WHERE d.deptype IN ('n', 'a') AND"
			" (d.refclassid = 'pg_class'::regclass AND d.refobjid = rel.oid"
			" OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (rel.typ,"
			" (SELECT typarray FROM pg_type WHERE oid = rel.typ))))"
			" SELECT DISTINCT pg_describe_object(CASE WHEN w.oid IS NULL THEN d.classid ELSE 'pg_class'::regclass END,"
			" coalesce(w.ev_class, d.objid), CASE WHEN w.oid IS NULL THEN d.objsubid ELSE 0 END)"
			" || CASE WHEN v.relkind = 'v' THEN CASE WHEN d.refclassid = 'pg_type'::regclass THEN ' (uses the row type)'"
			" WHEN NOT pg_has_role(current_user, v.relowner, 'USAGE') THEN ' (owned by another role)'"
			" ELSE ' (uses column ' || quote_ident(old.attname) || ', which is gone or has another type)' END ELSE '' END"
			" FROM rel, dep d"
			" LEFT JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid"
			" LEFT JOIN pg_class v ON v.oid = w.ev_class"
			" LEFT JOIN pg_attribute old ON d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0"
			" AND old.attrelid = d.refobjid AND old.attnum = d.refobjsubid"
			" LEFT JOIN pg_attribute new ON new.attrelid = 'pg_temp.resync_check'::regclass"
			" AND new.attname = old.attname AND new.attnum > 0 AND NOT new.attisdropped"
			" AND new.atttypid = old.atttypid AND new.atttypmod = old.atttypmod AND new.attcollation = old.attcollation"
			" WHERE CASE d.classid"
			" WHEN 'pg_rewrite'::regclass THEN v.relkind <> 'v' AND v.oid <> rel.oid OR v.relkind = 'v' AND"
			" (d.refclassid = 'pg_type'::regclass OR old.attname IS NOT NULL AND new.attname IS NULL"
			" OR NOT pg_has_role(current_user, v.relowner, 'USAGE'))"
			" WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid = d.objid) <> rel.oid"
			" WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = d.objid) <> rel.oid"
			" WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = d.objid) <> rel.oid"
			" WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid = d.objid) <> rel.oid"
			" WHEN 'pg_class'::regclass THEN d.deptype = 'n'"
			" AND NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = d.objid AND indrelid = rel.oid)"
			" WHEN 'pg_statistic_ext'::regclass THEN false"
			" WHEN 'pg_publication_rel'::regclass THEN false"
			" ELSE d.deptype = 'n' END"
			" UNION SELECT 'child table ' || inhrelid::regclass FROM pg_inherits, rel WHERE inhparent = rel.oid"
			" UNION SELECT 'parent table ' || inhparent::regclass FROM pg_inherits, rel WHERE inhrelid = rel.oid"
			" ORDER BY 1",
			oid, oid));
	if (PQntuples(res) == 0)
	{
		resync_pq_clear(res);
		return;
	}
	initStringInfo(&detail);
	for (int i = 0; i < PQntuples(res); i++)
		appendStringInfo(&detail, "%s%s", i > 0 ? "\n" : "", PQgetvalue(res, i, 0));
	ereport(ERROR, (errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
					errmsg("cannot swap table %s at the destination: other objects depend on it",
						   resync_pg_live(table)),
					errdetail_internal("%s", detail.data),
					errhint("Drop them there before the resync, and create them again after it.")));
}

/*
 * Columns of the old table whose default is no loss, as a condition on its
 * attname: the two that we add, in our spelling and PeerDB's, unless the source
 * has one of the name.
 */
static char *
own_column_condition(PgDestination *dest, const ResyncTable *table)
{
	const char *names[] = {PEERDB_SOFT_DELETE, PEERDB_SYNCED_AT, resync_pg_soft_delete_column(dest),
						   resync_pg_synced_at_column(dest)};
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "lower(a.attname) IN (''");
	for (int i = 0; i < lengthof(names); i++)
	{
		if (names[i] != NULL)
			appendStringInfo(&buf, ", lower(%s)", resync_pg_literal(names[i]));
	}
	appendStringInfoString(&buf, ") AND a.attname NOT IN (''");
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, ", %s", resync_pg_literal(table->cols[i].dest_name));
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* What the new table will not have. */
static void
warn_of_losses(PgDestination *dest, const ResyncTable *table, const char *oid, List **warnings,
			   MemoryContext context)
{
	const ResyncColumn **key = resync_destination_key(table);
	PGresult			*res;

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"SELECT 'trigger ' || quote_ident(tgname) FROM pg_trigger WHERE tgrelid = %s AND NOT tgisinternal"
			" UNION ALL SELECT 'row security policy ' || quote_ident(polname) FROM pg_policy WHERE polrelid = %s"
			" UNION ALL SELECT 'membership in publication ' || quote_ident(p.pubname) FROM pg_publication_rel r"
			" JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = %s"
			" UNION ALL SELECT CASE contype WHEN 'f' THEN 'foreign key ' WHEN 'c' THEN 'check constraint '"
			" WHEN 'x' THEN 'exclusion constraint (its index stays) ' ELSE 'uniqueness (its index stays) of ' END || quote_ident(conname)"
			" FROM pg_constraint WHERE conrelid = %s AND contype IN ('f', 'c', 'u', 'x')"
			" UNION ALL SELECT 'uniqueness (the index stays) of ' || c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
			" WHERE i.indrelid = %s AND i.indisunique AND NOT i.indisprimary"
			" AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND conrelid = i.indrelid)"
			" UNION ALL SELECT 'statistics object ' || quote_ident(stxname) FROM pg_statistic_ext WHERE stxrelid = %s"
			" UNION ALL SELECT 'default of column ' || quote_ident(a.attname) FROM pg_attrdef d JOIN pg_attribute a"
			" ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE d.adrelid = %s AND NOT (%s)",
			oid, oid, oid, oid, oid, oid, oid, own_column_condition(dest, table)));
	for (int i = 0; i < PQntuples(res); i++)
		resync_destination_warn(warnings, context,
								psprintf("table %s at the destination will lose: %s",
										 resync_pg_live(table), PQgetvalue(res, i, 0)));
	resync_pq_clear(res);

	/* tombstones need the whole key */
	if (resync_pg_soft_delete_column(dest) == NULL)
		return;
	for (int i = 0; i < table->nkeys; i++)
	{
		res = resync_pq_exec(
			dest->conn,
			psprintf(
				"SELECT (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = %s)"
				" WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = %s AND attname = %s"
				" AND attnum > 0 AND NOT attisdropped)",
				oid, oid, resync_pg_literal(key[i]->dest_name)));
		if (PQntuples(res) > 0)
		{
			resync_destination_warn(
				warnings, context,
				psprintf(
					"soft-deleted rows of table %s at the destination are not carried over (about %s rows in all): it has no key column \"%s\"",
					resync_pg_live(table), PQgetvalue(res, 0, 0), key[i]->dest_name));
			resync_pq_clear(res);
			return;
		}
		resync_pq_clear(res);
	}
}

/* The table that the swap will replace. */
static void
check_live(PgDestination *dest, const ResyncTable *table, bool live_expected, bool metadata,
		   List **warnings, MemoryContext context)
{
	LiveTable live = find_relation(dest, table, table->dest_name, metadata, true);

	if (live.oid == NULL)
		return;
	check_not_itself(dest, table, &live);
	if (!live_expected || (!live.ours && !dest->head.id->options->replace_existing))
		ereport(
			ERROR,
			(errcode(ERRCODE_DUPLICATE_TABLE),
			 errmsg("relation %s exists at the destination", resync_pg_live(table)),
			 errdetail("It was not made by this mirror."),
			 errhint(
				 "Drop or rename it, map the table to another name, or set the option replace_existing.")));
	if (live.relkind != 'r')
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("relation %s at the destination is not an ordinary table",
							   resync_pg_live(table)),
						errhint("Drop or rename it.")));
	if (!live.may_alter)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("table %s at the destination belongs to role \"%s\"",
							   resync_pg_live(table), live.owner),
						errhint("Make the mirror's role there a member of it.")));
	check_dependents(dest, table, live.oid);
	warn_of_losses(dest, table, live.oid, warnings, context);
}

/*
 * A schema that holds our metadata, of this server's options or another's: a
 * swap there would take every mirror's marks away.
 */
static bool
is_metadata(PgDestination *dest, const ResyncTable *table)
{
	PGresult *res;
	bool	  found;

	if (strcmp(table->dest_schema, dest->meta) == 0)
		return true;
	res = resync_pq_exec(
		dest->conn,
		psprintf("SELECT count(*) = 4 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
				 " WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname IN"
				 " ('resync_mirror', 'resync_run', 'resync_partition', 'resync_table')",
				 resync_pg_literal(table->dest_schema)));
	found = is_true(res, 0, 0);
	resync_pq_clear(res);
	return found;
}

void
resync_pg_check_table(Destination *head, const ResyncTable *table, bool live_expected,
					  List **warnings)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	bool		   metadata;
	LiveTable	   build;

	resync_pq_exec(dest->conn, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE");
	check_schema(dest, table->dest_schema);
	if (is_metadata(dest, table))
		ereport(
			ERROR,
			(errcode(ERRCODE_RESERVED_NAME),
			 errmsg("destination table %s would be in the metadata schema", resync_pg_live(table)),
			 errhint("Map table \"%s.%s\" to another schema.", table->schema, table->name)));
	/* the stage of its batches (postgres_apply.c) has the row, the key and four more */
	if (table->ncols + table->nkeys + 4 > MaxHeapAttributeNumber)
		ereport(ERROR, (errcode(ERRCODE_TOO_MANY_COLUMNS),
						errmsg("table \"%s.%s\" has too many columns to be mirrored", table->schema,
							   table->name),
						errdetail("A table of %d columns in the key can have at most %d.",
								  table->nkeys, MaxHeapAttributeNumber - 4 - table->nkeys),
						errhint("Add columns to \"exclude\" of the table.")));
	metadata = resync_pg_has_metadata(dest);
	if (!metadata)
		check_schema(dest, dest->meta);
	make_new_columns(dest, table);
	build = find_relation(dest, table, table->build_name, metadata, false);
	if (build.oid != NULL && !build.ours)
		resync_pg_raise_in_the_way(table);
	check_live(dest, table, live_expected, metadata, warnings, old);
	resync_pg_rollback(dest);
	MemoryContextSwitchTo(old);
}

/* Locks of the swap on what is not a mirrored table's: catalogs, our metadata. */
#define SWAP_BASE_LOCKS 20

/*
 * How many entries of the destination's lock table will the swap take
 * (postgres_swap.c)?  Of a new table: itself and the indexes that get their
 * names.  Of an old one: all that goes with it by DROP TABLE, which locks types,
 * constraints, defaults and TOAST as well, and the indexes that are copied.  Of
 * a view: itself and what it reads.  room: for how many the table is made.
 */
static int64
count_swap_locks(PgDestination *dest, ResyncTable **tables, int ntables, int64 *room)
{
	StringInfoData names;
	PGresult	  *res;
	int64		   locks;

	initStringInfo(&names);
	for (int i = 0; i < ntables; i++)
		appendStringInfo(&names, "%s(%s, %s, %d)", i > 0 ? ", " : "",
						 resync_pg_literal(tables[i]->dest_schema),
						 resync_pg_literal(tables[i]->dest_name), tables[i]->nkeys > 0 ? 2 : 1);
	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"WITH RECURSIVE v (s, r, n) AS (VALUES %s),"
			" live AS (SELECT c.oid FROM v JOIN pg_namespace n ON n.nspname = v.s"
			" JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.r AND c.relkind = 'r'),"
			" gone (class, obj) AS (SELECT 'pg_class'::regclass::oid, oid FROM live UNION"
			" SELECT d.classid, d.objid FROM gone g JOIN pg_depend d ON d.refclassid = g.class"
			" AND d.refobjid = g.obj AND d.deptype IN ('a', 'i')),"
			" view AS (SELECT DISTINCT w.ev_class AS oid FROM live l JOIN pg_depend d ON d.refobjid = l.oid"
			" AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass"
			" JOIN pg_rewrite w ON w.oid = d.objid JOIN pg_class c ON c.oid = w.ev_class AND c.relkind = 'v'),"
			" read AS (SELECT DISTINCT d.refobjid FROM view x JOIN pg_rewrite w ON w.ev_class = x.oid"
			" JOIN pg_depend d ON d.objid = w.oid AND d.classid = 'pg_rewrite'::regclass"
			" AND d.refclassid = 'pg_class'::regclass WHERE d.refobjid NOT IN"
			" (SELECT oid FROM live UNION ALL SELECT oid FROM view))"
			" SELECT (SELECT sum(n) FROM v) + (SELECT count(*) FROM gone) + (SELECT count(*) FROM live l"
			" JOIN pg_index i ON i.indrelid = l.oid AND NOT i.indisprimary) + (SELECT count(*) FROM view)"
			" + (SELECT count(*) FROM read),"
			" current_setting('max_locks_per_transaction')::bigint * (current_setting('max_connections')::bigint"
			" + current_setting('max_prepared_transactions')::bigint)",
			names.data));
	locks = strtoll(PQgetvalue(res, 0, 0), NULL, 10) + SWAP_BASE_LOCKS;
	*room = strtoll(PQgetvalue(res, 0, 1), NULL, 10);
	resync_pq_clear(res);
	return locks;
}

/*
 * The swap is one transaction over all tables.  A lock table that it fills
 * hits everybody there: it is to do with what the settings are made for, and
 * leave to others what the server adds to that.
 */
void
resync_pg_check_tables(Destination *head, ResyncTable **tables, int ntables)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	int64		   room;
	int64		   locks;

	if (ntables > 0)
	{
		locks = count_swap_locks(dest, tables, ntables, &room);
		if (locks > room)
			ereport(
				ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the swap of %d tables would take " INT64_FORMAT
						" locks at the destination, more than its lock table is made for",
						ntables, locks),
				 errdetail(
					 "It is made for " INT64_FORMAT
					 " locks: max_locks_per_transaction * (max_connections + max_prepared_transactions).",
					 room),
				 errhint("Increase \"%s\" there, or make several mirrors of fewer tables.",
						 "max_locks_per_transaction")));
	}
	MemoryContextSwitchTo(old);
}
