/*
 * postgres.c
 *		PostgreSQL as a destination: the connection, the marks that runs leave
 *		there, and the fence every transaction begins with.
 *
 * Called through DestinationRoutine: by the coordinator (DDL), copiers (load)
 * and the streamer (batches); open and version by a user's backend too.  No
 * lock or transaction is held on the source.
 *
 * Metadata at the destination (server option metadata_schema, default
 * _peerdb_internal):
 *	resync_mirror		one row per mirror: which source it belongs to (rule 9)
 *	resync_run			one row per run: active or retired, applied LSN.  Every
 *						transaction of ours locks it first (rule 4): copiers and
 *						the coordinator's DDL FOR SHARE, batches and the swap
 *						FOR UPDATE; ending a run updates it, so it waits for
 *						whoever is at work, and stops whoever comes later.
 *	resync_partition	done-marks, written with the rows (phase load)
 *	resync_table		which tables are ours, by OID.  A table whose OID is not
 *						here is never dropped or written to.  Rows with swapped
 *						set are the marks of live tables.
 */
#include "postgres.h"

#include "destination/postgres.h"

#include "access/xact.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#define DEFAULT_METADATA_SCHEMA "_peerdb_internal"
#define OLDEST_VERSION 110000

/* An absent password file: libpq must not fall back to the server's own. */
#define NO_PASSFILE "/dev/null/none"

/* Creation of our metadata is serialized by this advisory lock. */
#define METADATA_LOCK INT64CONST(0x7265737963)

/* ---------------------------------------------------------------------
 * Small helpers, shared by the destination's files
 * ------------------------------------------------------------------ */

/*
 * Start of a method: forget what earlier calls allocated, and allocate there.
 * Returns the caller's context.
 */
MemoryContext
resync_pg_enter(PgDestination *dest)
{
	MemoryContextReset(dest->call);
	return MemoryContextSwitchTo(dest->call);
}

const char *
resync_pg_literal(const char *text)
{
	return quote_literal_cstr(text);
}

char *
resync_pg_lsn(XLogRecPtr lsn)
{
	return psprintf("'%X/%X'", LSN_FORMAT_ARGS(lsn));
}

const char *
resync_pg_build(const ResyncTable *table)
{
	return resync_pq_qualified(table->dest_schema, table->build_name);
}

const char *
resync_pg_live(const ResyncTable *table)
{
	return resync_pq_qualified(table->dest_schema, table->dest_name);
}

/* NULL: deletes are deletes. */
const char *
resync_pg_soft_delete_column(const PgDestination *dest)
{
	const ResyncOptions *options = dest->head.id->options;

	if (options->disable_peerdb_columns || !options->soft_delete)
		return NULL;
	return options->soft_delete_col_name;
}

const char *
resync_pg_synced_at_column(const PgDestination *dest)
{
	const ResyncOptions *options = dest->head.id->options;

	return options->disable_peerdb_columns ? NULL : options->synced_at_col_name;
}

/* Does some column need COPY's text format (map_columns marks all then)? */
bool
resync_pg_is_text(const ResyncTable *table)
{
	return table->ncols > 0 && strcmp(table->cols[0].wire, "text") == 0;
}

/* token and run of ours, as a condition on the columns of alias */
char *
resync_pg_run_condition(PgDestination *dest, const char *alias)
{
	return psprintf("%s.token = %s AND %s.run = " INT64_FORMAT, alias,
					resync_pg_literal(dest->head.id->token), alias, dest->head.id->run);
}

/* ---------------------------------------------------------------------
 * Connecting
 * ------------------------------------------------------------------ */

/*
 * May this option go to libpq?  What we set ourselves does not; what is not
 * libpq's is an option of postgres_fdw or our own.
 */
static bool
is_libpq_option(const PQconninfoOption *known, const char *name)
{
	if (strcmp(name, "client_encoding") == 0 || strcmp(name, "application_name") == 0 ||
		strcmp(name, "fallback_application_name") == 0 || strcmp(name, "replication") == 0)
		return false;
	for (; known->keyword != NULL; known++)
	{
		if (strcmp(known->keyword, name) == 0)
			return true;
	}
	return false;
}

static void
add_keyword(const char **keywords, const char **values, int *n, const char *keyword,
			const char *value)
{
	keywords[*n] = keyword;
	values[*n] = value;
	(*n)++;
	keywords[*n] = NULL;
	values[*n] = NULL;
}

/* A default of ours, for what the peer leaves open. */
static void
add_default(const char **keywords, const char **values, int *n, const char *keyword,
			const char *value)
{
	for (int i = 0; i < *n; i++)
	{
		if (strcmp(keywords[i], keyword) == 0)
			return;
	}
	add_keyword(keywords, values, n, keyword, value);
}

/*
 * The peer's options as libpq's.  Returns whether the user mapping has a
 * password.
 */
static bool
make_keywords(const ResyncPeer *peer, const char *appname, const char ***keywords_out,
			  const char ***values_out)
{
	int			 size = list_length(peer->server_options) + list_length(peer->user_options) + 16;
	const char **keywords = palloc0(sizeof(char *) * size);
	const char **values = palloc0(sizeof(char *) * size);
	PQconninfoOption *known = PQconndefaults();
	const char		 *password = resync_destination_option(peer->user_options, "password");
	const char		 *file = resync_destination_option(peer->user_options, "password_file");
	int				  n = 0;
	ListCell		 *lc;

	if (known == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	foreach(lc, list_concat_copy(peer->server_options, peer->user_options))
	{
		DefElem *def = lfirst(lc);

		if (is_libpq_option(known, def->defname))
			add_keyword(keywords, values, &n, def->defname, strVal(def->arg));
	}
	PQconninfoFree(known);
	if (file != NULL && (password == NULL || password[0] == '\0'))
	{
		password = resync_destination_password_file(file);
		add_keyword(keywords, values, &n, "password", password);
	}
	add_keyword(keywords, values, &n, "client_encoding", GetDatabaseEncodingName());
	add_keyword(keywords, values, &n, "application_name", appname);
	add_default(keywords, values, &n, "passfile", NO_PASSFILE);
	add_default(keywords, values, &n, "gssencmode", "disable");
	add_default(keywords, values, &n, "keepalives_idle", "30");
	add_default(keywords, values, &n, "keepalives_interval", "10");
	add_default(keywords, values, &n, "keepalives_count", "3");
	*keywords_out = keywords;
	*values_out = values;
	return password != NULL && password[0] != '\0';
}

static void
refuse_without_password(bool connected)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
		 errmsg("password or GSSAPI delegated credentials required"),
		 connected
			 ? errdetail("Non-superuser cannot connect if the server does not request a password.")
			 : errdetail("Non-superusers must provide a password in the user mapping."),
		 connected
			 ? errhint(
				   "Target server's authentication method must be changed, or password_required=false set in the user mapping attributes.")
			 : 0));
}

/*
 * Settings that a role, a database or the server could have changed are pinned,
 * all in one round trip.
 */
static void
pin_settings(PgDestination *dest)
{
	StringInfoData sql;
	PGresult	  *res;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SET search_path = pg_catalog;"
								 "SET datestyle = 'ISO, YMD';"
								 "SET intervalstyle = postgres;"
								 "SET timezone = 'UTC';"
								 "SET extra_float_digits = 3;"
								 "SET bytea_output = hex;"
								 "SET xmloption = content;"
								 "SET standard_conforming_strings = on;"
								 "SET statement_timeout = 0;"
								 "SET lock_timeout = 0;"
								 "SET idle_in_transaction_session_timeout = 0;"
								 "SET default_transaction_read_only = off;"
								 "SET default_transaction_isolation = 'read committed';"
								 "SET default_transaction_deferrable = off;"
								 "SET default_tablespace = '';"
								 "SET row_security = off;"
								 "SET jit = off;"
								 "SET tcp_keepalives_idle = 30;"
								 "SET tcp_keepalives_interval = 10;"
								 "SET tcp_keepalives_count = 3;");
	if (dest->version >= 140000)
		appendStringInfoString(&sql, "SET idle_session_timeout = 0;");
	if (dest->version >= 170000)
		appendStringInfoString(&sql, "SET transaction_timeout = 0;");
	appendStringInfoString(&sql,
						   "SELECT set_config('synchronous_commit', 'on', false)"
						   " WHERE current_setting('synchronous_commit') IN ('off', 'local')");
	resync_pq_exec(dest->conn, sql.data);

	/*
	 * A backend whose client is gone should not go on holding the run's row.
	 * Not every platform can notice; that is no reason to fail.
	 */
	if (dest->version >= 140000)
	{
		res = resync_pq_exec_any(dest->conn, "SET client_connection_check_interval = 2000");
		resync_pq_clear(res);
	}
}

static Destination *
pg_open(const ResyncPeer *peer, const ResyncRunId *id, const char *appname)
{
	MemoryContext  context = AllocSetContextCreate(CurrentMemoryContext, "resync destination",
												   ALLOCSET_DEFAULT_SIZES);
	MemoryContext  old = MemoryContextSwitchTo(context);
	PgDestination *dest = palloc0(sizeof(PgDestination));
	const char	  *meta = resync_destination_option(peer->server_options, "metadata_schema");
	const char	 **keywords;
	const char	 **values;
	bool		   has_password;

	dest->head.routine = &resync_destination_postgres;
	dest->head.context = context;
	dest->head.id = id;
	dest->meta = pstrdup(meta != NULL ? meta : DEFAULT_METADATA_SCHEMA);
	dest->meta_quoted = pstrdup(resync_pq_ident(dest->meta));
	dest->call = AllocSetContextCreate(context, "resync destination call", ALLOCSET_DEFAULT_SIZES);

	PG_TRY();
	{
		MemoryContextSwitchTo(dest->call);
		has_password = make_keywords(peer, appname, &keywords, &values);
		if (peer->check_password && !has_password)
			refuse_without_password(false);
		dest->conn = resync_pq_connect(context, keywords, values);
		if (peer->check_password && !PQconnectionUsedPassword(dest->conn))
			refuse_without_password(true);
		dest->version = PQserverVersion(dest->conn);
		if (dest->version < OLDEST_VERSION)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("PostgreSQL %s is too old for a destination",
							PQparameterStatus(dest->conn, "server_version")),
					 errdetail("At least PostgreSQL %d is needed.", OLDEST_VERSION / 10000)));
		pin_settings(dest);
		/* the password does not stay in memory */
		MemoryContextReset(dest->call);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return &dest->head;
}

static void
pg_close(Destination *dest)
{
	MemoryContextDelete(dest->context);
}

static char *
pg_version(Destination *head)
{
	PgDestination *dest = (PgDestination *) head;

	return pstrdup(PQparameterStatus(dest->conn, "server_version"));
}

/* ---------------------------------------------------------------------
 * Transactions and the fence
 * ------------------------------------------------------------------ */

/* Raises if the mirror's mark, where there is one, is not of this source. */
static void
check_mirror(PgDestination *dest)
{
	const ResyncRunId *id = dest->head.id;
	PGresult		  *res;

	res = resync_pq_exec(dest->conn,
						 psprintf("SELECT system_identifier = '" UINT64_FORMAT "' AND database = %u"
								  " FROM %s.resync_mirror WHERE token = %s",
								  id->system_identifier, id->database, dest->meta_quoted,
								  resync_pg_literal(id->token)));
	if (PQntuples(res) > 0 && strcmp(PQgetvalue(res, 0, 0), "t") != 0)
		resync_destination_raise_copy(dest->head.id);
	resync_pq_clear(res);
}

bool
resync_pg_has_metadata(PgDestination *dest)
{
	PGresult *res;
	bool	  result;

	res = resync_pq_exec(dest->conn,
						 psprintf("SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c"
								  " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
								  " WHERE n.nspname = %s AND c.relname IN ('resync_mirror',"
								  " 'resync_run', 'resync_partition', 'resync_table')",
								  resync_pg_literal(dest->meta)));
	result = atoi(PQgetvalue(res, 0, 0)) == 4;
	resync_pq_clear(res);
	return result;
}

/*
 * Lock the run's row and look whether the run is in charge (rule 4).  prefix
 * is SQL to run before it in the same round trip, lock is "FOR ..." or "".
 * tables: whose marks info->owned tells of; a mirror may have thousands.
 * Raises FENCED or DIVERGED.
 */
static void
run_fence(PgDestination *dest, const char *prefix, const char *lock, int tables, PgFenceInfo *info)
{
	const ResyncRunId *id = dest->head.id;
	PGresult		  *res;
	uint32			   hi, lo;
	char			  *which = "";

	if (tables == PG_NO_TABLE)
		which = " AND false";
	else if (tables != PG_ALL_TABLES)
		which = psprintf(" AND t.ordinal = %d", tables);

	res = resync_pq_exec(
		dest->conn,
		psprintf(
			"%sSELECT r.state, r.applied_lsn,"
			" (SELECT ' ' || string_agg(t.ordinal || CASE WHEN t.swapped THEN 's' ELSE 'b' END, ' ') || ' '"
			" FROM %s.resync_table t JOIN pg_class c ON c.oid = t.build_oid"
			" JOIN pg_namespace n ON n.oid = c.relnamespace"
			" WHERE t.token = r.token AND t.run = r.run%s AND n.nspname = t.dest_schema"
			" AND c.relname = CASE WHEN t.swapped THEN t.dest_name ELSE t.build_name END),"
			" m.system_identifier = '" UINT64_FORMAT "' AND m.database = %u"
			" FROM %s.resync_run r JOIN %s.resync_mirror m ON m.token = r.token WHERE %s %s",
			prefix, dest->meta_quoted, which, id->system_identifier, id->database,
			dest->meta_quoted, dest->meta_quoted, resync_pg_run_condition(dest, "r"), lock));
	if (PQntuples(res) == 0)
		resync_destination_raise_fenced(dest->head.id, "The destination does not know the run.");
	if (strcmp(PQgetvalue(res, 0, 3), "t") != 0)
		resync_destination_raise_copy(dest->head.id);
	if (strcmp(PQgetvalue(res, 0, 0), "active") != 0)
		resync_destination_raise_fenced(dest->head.id, "The run was ended or replaced.");
	if (info != NULL)
	{
		if (sscanf(PQgetvalue(res, 0, 1), "%X/%X", &hi, &lo) != 2)
			elog(ERROR, "invalid LSN in the destination's metadata");
		info->applied = ((uint64) hi) << 32 | lo;
		info->owned = PQgetisnull(res, 0, 2) ? "" : pstrdup(PQgetvalue(res, 0, 2));
	}
	resync_pq_clear(res);
}

/*
 * Begin a transaction with the fence; more (may be "") is run after BEGIN, info
 * may be NULL.
 */
void
resync_pg_begin(PgDestination *dest, PgFence fence, const char *more, int tables, PgFenceInfo *info)
{
	run_fence(dest, psprintf("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; %s", more),
			  fence == PG_FENCE_UPDATE ? "FOR UPDATE OF r" : "FOR SHARE OF r", tables, info);
}

/* The same within a transaction that has the row locked. */
void
resync_pg_check_fence(PgDestination *dest, int tables, PgFenceInfo *info)
{
	run_fence(dest, "", "", tables, info);
}

void
resync_pg_commit(PgDestination *dest)
{
	resync_pq_exec(dest->conn, "COMMIT");
}

void
resync_pg_rollback(PgDestination *dest)
{
	resync_pq_exec(dest->conn, "ROLLBACK");
}

/* Rule 9: the table is the one that our mark names. */
void
resync_pg_require_owned(const PgFenceInfo *info, const ResyncTable *table, bool live)
{
	char entry[32];

	snprintf(entry, sizeof(entry), " %d%c ", table->ordinal, live ? 's' : 'b');
	if (strstr(info->owned, entry) == NULL)
		resync_destination_raise_not_made(live ? resync_pg_live(table) : resync_pg_build(table));
}

/* ---------------------------------------------------------------------
 * Runs
 * ------------------------------------------------------------------ */

/* Metadata that somebody else could change would defeat the fence. */
static void
check_metadata_owner(PgDestination *dest)
{
	PGresult *res;

	res = resync_pq_exec(
		dest->conn,
		psprintf("SELECT c.relname, pg_get_userbyid(c.relowner) FROM pg_class c"
				 " JOIN pg_namespace n ON n.oid = c.relnamespace"
				 " WHERE n.nspname = %s AND c.relname IN ('resync_mirror',"
				 " 'resync_run', 'resync_partition', 'resync_table')"
				 " AND (c.relkind <> 'r' OR NOT pg_has_role(current_user, c.relowner, 'USAGE'))",
				 resync_pg_literal(dest->meta)));
	if (PQntuples(res) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("metadata table \"%s\".\"%s\" at the destination belongs to role \"%s\"",
						dest->meta, PQgetvalue(res, 0, 0), PQgetvalue(res, 0, 1)),
				 errhint("Set another metadata_schema for the server.")));
	resync_pq_clear(res);
}

static void
make_metadata(PgDestination *dest)
{
	const char *m = dest->meta_quoted;
	PGresult   *res;

	res = resync_pq_exec(dest->conn, psprintf("SELECT 1 FROM pg_namespace WHERE nspname = %s",
											  resync_pg_literal(dest->meta)));
	if (PQntuples(res) == 0)
		resync_pq_exec(dest->conn, psprintf("CREATE SCHEMA %s", m));
	resync_pq_exec(
		dest->conn,
		psprintf(
			"SET LOCAL client_min_messages = warning;"
			"CREATE TABLE IF NOT EXISTS %s.resync_mirror (token uuid PRIMARY KEY, mirror text NOT NULL,"
			" system_identifier text NOT NULL, database oid NOT NULL,"
			" created_at timestamptz NOT NULL DEFAULT now());"
			"CREATE TABLE IF NOT EXISTS %s.resync_run (token uuid, run bigint,"
			" state text NOT NULL CHECK (state IN ('active', 'retired')), applied_lsn pg_lsn NOT NULL,"
			" PRIMARY KEY (token, run)) WITH (fillfactor = 50);"
			"CREATE TABLE IF NOT EXISTS %s.resync_partition (token uuid, run bigint, partition bigint,"
			" ordinal int NOT NULL, rows bigint NOT NULL, PRIMARY KEY (token, run, partition));"
			"CREATE TABLE IF NOT EXISTS %s.resync_table (token uuid, run bigint, ordinal int,"
			" dest_schema text NOT NULL, dest_name text NOT NULL, build_name text NOT NULL,"
			" build_oid oid NOT NULL, carried boolean NOT NULL DEFAULT false,"
			" swapped boolean NOT NULL DEFAULT false, PRIMARY KEY (token, run, ordinal))",
			m, m, m, m));
}

/*
 * Drop tables that the marks of a token (a literal) name, and only if OID and
 * name both still fit (an OID alone may have been given out again).
 */
static void
drop_marked(PgDestination *dest, const char *token, const char *condition)
{
	PGresult *res;

	res = resync_pq_exec(
		dest->conn, psprintf("SELECT n.nspname, c.relname FROM %s.resync_table t"
							 " JOIN pg_class c ON c.oid = t.build_oid AND c.relkind = 'r'"
							 " JOIN pg_namespace n ON n.oid = c.relnamespace"
							 " WHERE t.token = %s AND n.nspname = t.dest_schema AND c.relname ="
							 " CASE WHEN t.swapped THEN t.dest_name ELSE t.build_name END AND %s"
							 " ORDER BY c.oid",
							 dest->meta_quoted, token, condition));
	for (int i = 0; i < PQntuples(res); i++)
		resync_pq_exec(dest->conn,
					   psprintf("DROP TABLE IF EXISTS %s",
								resync_pq_qualified(PQgetvalue(res, i, 0), PQgetvalue(res, i, 1))));
	resync_pq_clear(res);
}

/*
 * In a transaction: runs are fenced out, and what they were building goes.
 * token: a literal; condition: on t.run.
 */
static void
retire_runs(PgDestination *dest, const char *token, const char *condition)
{
	const char *m = dest->meta_quoted;

	resync_pq_exec(
		dest->conn,
		psprintf("UPDATE %s.resync_run t SET state = 'retired' WHERE t.token = %s AND %s", m, token,
				 condition));
	drop_marked(dest, token, psprintf("NOT t.swapped AND %s", condition));
	resync_pq_exec(
		dest->conn,
		psprintf("DELETE FROM %s.resync_table t WHERE t.token = %s AND NOT t.swapped AND %s;"
				 "DELETE FROM %s.resync_partition t WHERE t.token = %s AND %s",
				 m, token, condition, m, token, condition));
}

/*
 * Is there a run of this number that is not ours?  A run has applied nothing and
 * swapped nothing before phase load, so that a row with another LSN, and marks of
 * live tables, are of a time that the source has lost.  By rule 9 it is the same
 * database: nobody works for that run any more, and a backend it has left holds
 * the run's row, which is waited for, or is fenced out by the new LSN.  What it
 * was building is dropped; its live tables stay the mirror's, under a number that
 * no run has.
 */
static void
end_namesake(PgDestination *dest, XLogRecPtr start_lsn)
{
	const char *token = resync_pg_literal(dest->head.id->token);
	const char *m = dest->meta_quoted;
	int64		run = dest->head.id->run;
	PGresult   *res;

	res = resync_pq_exec(dest->conn,
						 psprintf("SELECT state = 'active' AND applied_lsn <> %s FROM %s.resync_run"
								  " WHERE token = %s AND run = " INT64_FORMAT " FOR UPDATE",
								  resync_pg_lsn(start_lsn), m, token, run));
	if (PQntuples(res) > 0 && PQgetvalue(res, 0, 0)[0] == 't')
	{
		ereport(LOG, (errmsg("run " INT64_FORMAT
							 " of mirror \"%s\" takes the place of another run of that "
							 "number at the destination",
							 run, dest->head.id->mirror),
					  errdetail("The other one is of a time that this server was put back from.")));
		retire_runs(dest, token, psprintf("t.run = " INT64_FORMAT, run));
	}
	resync_pq_clear(res);
	resync_pq_exec(dest->conn,
				   psprintf("UPDATE %s.resync_table SET run = (SELECT least(min(run), 0) - 1"
							" FROM %s.resync_table WHERE token = %s)"
							" WHERE token = %s AND run = " INT64_FORMAT " AND swapped",
							m, m, token, token, run));
}

/*
 * A run that is retired already begins once more: its load starts over with a
 * new slot (a table was changed under it).
 */
static void
pg_begin_run(Destination *head, XLogRecPtr start_lsn)
{
	PgDestination	  *dest = (PgDestination *) head;
	const ResyncRunId *id = head->id;
	MemoryContext	   old = resync_pg_enter(dest);
	const char		  *token = resync_pg_literal(id->token);

	resync_pq_exec(dest->conn, psprintf("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
										"SELECT pg_advisory_xact_lock(" INT64_FORMAT ")",
										METADATA_LOCK));
	if (!resync_pg_has_metadata(dest))
		make_metadata(dest);
	check_metadata_owner(dest);
	resync_pq_exec(
		dest->conn,
		psprintf("INSERT INTO %s.resync_mirror (token, mirror, system_identifier, database)"
				 " VALUES (%s, %s, '" UINT64_FORMAT "', %u) ON CONFLICT DO NOTHING",
				 dest->meta_quoted, token, resync_pg_literal(id->mirror), id->system_identifier,
				 id->database));
	check_mirror(dest);
	end_namesake(dest, start_lsn);
	resync_pq_exec(dest->conn,
				   psprintf("INSERT INTO %s.resync_run (token, run, state, applied_lsn)"
							" VALUES (%s, " INT64_FORMAT
							", 'active', %s) ON CONFLICT (token, run) DO UPDATE"
							" SET state = 'active', applied_lsn = excluded.applied_lsn"
							" WHERE resync_run.state = 'retired'; COMMIT",
							dest->meta_quoted, token, id->run, resync_pg_lsn(start_lsn)));
	MemoryContextSwitchTo(old);
}

/*
 * Marks of live tables move to the new token; their run numbers are another
 * source's and are made negative, so that they never meet a run of ours.  What
 * the original had under construction goes: it would be in our way.  Its fenced
 * runs hold no lock on it any more, since each transaction of theirs has the
 * run's row locked.
 */
static void
pg_adopt(Destination *head, const char *old_token)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	const char	  *from = resync_pg_literal(old_token);
	const char	  *to = resync_pg_literal(head->id->token);
	const char	  *m = dest->meta_quoted;

	if (resync_pg_has_metadata(dest))
	{
		resync_pq_exec(dest->conn, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE");
		retire_runs(dest, from, "true");
		resync_pq_exec(
			dest->conn,
			psprintf("UPDATE %s.resync_table SET token = %s, run = CASE WHEN run > 0 THEN"
					 " (SELECT least(min(run), 0) FROM %s.resync_table WHERE token = %s)"
					 " - run ELSE run END WHERE token = %s; COMMIT",
					 m, to, m, from, from));
	}
	MemoryContextSwitchTo(old);
}

static void
pg_end_run(Destination *head, int64 run)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);

	if (resync_pg_has_metadata(dest))
	{
		resync_pq_exec(dest->conn, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE");
		check_mirror(dest);
		retire_runs(dest, resync_pg_literal(head->id->token),
					psprintf("t.run = " INT64_FORMAT, run));
		resync_pg_commit(dest);
	}
	MemoryContextSwitchTo(old);
}

static void
pg_drop_mirror(Destination *head, ResyncTable **tables, int ntables, bool drop_tables)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	const char	  *token = resync_pg_literal(head->id->token);
	const char	  *m = dest->meta_quoted;

	if (resync_pg_has_metadata(dest))
	{
		resync_pq_exec(dest->conn, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE");
		check_mirror(dest);
		resync_pq_exec(
			dest->conn,
			psprintf("UPDATE %s.resync_run SET state = 'retired' WHERE token = %s", m, token));
		drop_marked(dest, token, drop_tables ? "true" : "NOT t.swapped");
		resync_pq_exec(dest->conn, psprintf("DELETE FROM %s.resync_table WHERE token = %s;"
											"DELETE FROM %s.resync_partition WHERE token = %s;"
											"DELETE FROM %s.resync_run WHERE token = %s;"
											"DELETE FROM %s.resync_mirror WHERE token = %s; COMMIT",
											m, token, m, token, m, token, m, token));
	}
	MemoryContextSwitchTo(old);
}

static XLogRecPtr
pg_applied_lsn(Destination *head)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	PgFenceInfo	   info;

	/*
	 * Under the lock: a backend of a worker that died may be about to commit,
	 * and what it commits counts.
	 */
	resync_pg_begin(dest, PG_FENCE_UPDATE, "", PG_NO_TABLE, &info);
	resync_pg_rollback(dest);
	MemoryContextSwitchTo(old);
	return info.applied;
}

static RowEncoder *
pg_make_encoder(Destination *dest, const ResyncTable *table, TupleDesc desc)
{
	return resync_encode_pg_make(desc, table->cols, table->ncols);
}

static Datum
pg_decode_field(Destination *dest, const ResyncColumn *col, char *data, int len)
{
	Oid fn;
	Oid ioparam;

	if (strcmp(col->wire, "binary") == 0)
	{
		StringInfoData buf;
		char		   saved = data[len];
		Datum		   value;

		if (col->wire_info != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot look up a row of table by its key column \"%s\" of type %s",
							col->name, format_type_be(col->typid))));
		buf.data = data;
		buf.len = len;
		buf.maxlen = len + 1;
		buf.cursor = 0;
		data[len] = '\0';
		getTypeBinaryInputInfo(col->typid, &fn, &ioparam);
		value = OidReceiveFunctionCall(fn, &buf, ioparam, col->typmod);
		data[len] = saved;
		return value;
	}
	getTypeInputInfo(col->typid, &fn, &ioparam);
	return OidInputFunctionCall(fn, pnstrdup(data, len), ioparam, col->typmod);
}

const DestinationRoutine resync_destination_postgres = {
	.peer_type = "postgres",
	.default_sync_interval = 0.1,
	.has_schemas = true,
	.needs_key = false,
	.max_identifier = NAMEDATALEN - 1,
	.open = pg_open,
	.close = pg_close,
	.version = pg_version,
	.map_columns = resync_pg_map_columns,
	.map_added = resync_pg_map_added,
	.check_table = resync_pg_check_table,
	.check_tables = resync_pg_check_tables,
	.begin_run = pg_begin_run,
	.adopt = pg_adopt,
	.end_run = pg_end_run,
	.drop_mirror = pg_drop_mirror,
	.create_table = resync_pg_create_table,
	.done_partitions = resync_pg_done_partitions,
	.reset_table = resync_pg_reset_table,
	.load_begin = resync_pg_load_begin,
	.load_relation = resync_pg_load_relation,
	.load_row = resync_pg_load_row,
	.load_finish = resync_pg_load_finish,
	.load_abort = resync_pg_load_abort,
	.load_bytes = resync_pg_load_bytes,
	.count_rows = resync_pg_count_rows,
	.build_key = resync_pg_build_key,
	.applied_lsn = pg_applied_lsn,
	.apply = resync_pg_apply,
	.make_encoder = pg_make_encoder,
	.decode_field = pg_decode_field,
	.transfer = resync_pg_transfer,
	.swap = resync_pg_swap,
	.is_swapped = resync_pg_is_swapped,
};
