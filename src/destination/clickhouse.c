/*
 * clickhouse.c
 *		ClickHouse as a destination: the connection, the marks that runs leave
 *		there, and the fence that work begins with.
 *
 * Called through DestinationRoutine: by the coordinator (DDL), copiers (load)
 * and the streamer (batches); open and version by a user's backend too.  No
 * lock or transaction is held on the source.
 *
 * ClickHouse has no transactions.  What takes their place:
 *
 *	Rows carry a version, 0 for the snapshot and the commit's LSN for changes,
 *	and of a key's rows the one with the highest counts; so a row that is sent
 *	twice, or late, does no harm.  Rows of tables without key are sent in
 *	requests with deduplication tokens that are the same when they are sent
 *	again (clickhouse_apply.c, clickhouse_load.c).
 *
 *	Metadata in the peer's database:
 *	_peerdb_resync_runs			two rows per run: "state" (active or retired),
 *		written by coordinators only, and "progress" (applied LSN; the end LSN
 *		of a batch that was begun), written by the streamer only, so that
 *		neither undoes the other's.  The row with the highest seq counts.
 *	_peerdb_resync_partitions	done-marks of the load
 *	The mark of a table of ours is its comment: token, run and live name.
 *
 *	The order is always: data, acknowledged; then the applied LSN or done-mark.
 *
 * The fence (rule 4): work begins with a look at the run's rows.  A process
 * could die, or lose touch, between the look and the end of what it has sent;
 * who takes over kills what is left of it there (KILL QUERY by query id) before
 * looking where it stands.
 */
#include "postgres.h"

#include "destination/clickhouse.h"

#include "common/pg_prng.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* First version with ReplacingMergeTree(version, is_deleted). */
#define OLDEST_VERSION 2302

/*
 * Start of a method: forget what earlier calls allocated, and allocate there.
 * Returns the caller's context.
 */
MemoryContext
resync_ch_enter(ChDestination *dest)
{
	MemoryContextReset(dest->call);
	return MemoryContextSwitchTo(dest->call);
}

/* `database`.`table` */
char *
resync_ch_table_name(const ChDestination *dest, const char *name)
{
	return psprintf("%s.%s", resync_ch_ident(dest->database), resync_ch_ident(name));
}

/* Done-marks of the run, as it was last begun. */
char *
resync_ch_run_condition(const ChDestination *dest)
{
	return psprintf("token = %s AND run = " INT64_FORMAT " AND life = " UINT64_FORMAT,
					resync_ch_literal(dest->head.id->token), dest->head.id->run, dest->life);
}

/* ---------------------------------------------------------------------
 * Connecting
 * ------------------------------------------------------------------ */

static bool
bool_option(List *options, const char *name, bool otherwise)
{
	const char *value = resync_destination_option(options, name);
	bool		result;

	if (value == NULL || !parse_bool(value, &result))
		return otherwise;
	return result;
}

/* A header's value must not begin another header. */
static char *
make_header(const char *name, const char *value)
{
	if (strpbrk(value, "\r\n") != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
						errmsg("user or password of the ClickHouse server contains a line break")));
	return psprintf("%s: %s", name, resync_text_to_utf8(value));
}

/*
 * The peer's options into dest, in dest's context.  A ClickHouse server has no
 * authentication by operating system user or ticket, so nothing of this
 * server's own identity can be used there: check_password has nothing to ask
 * for.
 */
static void
read_options(ChDestination *dest, const ResyncPeer *peer)
{
	const char *host = resync_destination_option(peer->server_options, "host");
	const char *port = resync_destination_option(peer->server_options, "port");
	const char *database = resync_destination_option(peer->server_options, "database");
	const char *cluster = resync_destination_option(peer->server_options, "cluster");
	const char *compression = resync_destination_option(peer->server_options, "compression");
	const char *ca_file = resync_destination_option(peer->server_options, "ca_file");
	const char *user = resync_destination_option(peer->user_options, "user");
	const char *password = resync_destination_option(peer->user_options, "password");
	const char *file = resync_destination_option(peer->user_options, "password_file");

	dest->options.host = pstrdup(host != NULL ? host : "localhost");
	dest->options.tls = bool_option(peer->server_options, "tls", true);
	dest->options.port = port != NULL ? atoi(port) : dest->options.tls ? 8443 : 8123;
	dest->options.ca_file = ca_file != NULL ? pstrdup(ca_file) : NULL;
	dest->options.service = "ClickHouse";
	dest->database = pstrdup(database != NULL ? database : "default");
	dest->cluster = cluster != NULL && cluster[0] != '\0' ? pstrdup(cluster) : NULL;
	dest->replicated = bool_option(peer->server_options, "replicated", false);
	if (compression == NULL || strcmp(compression, "zstd") == 0)
		dest->encoding = HTTP_ZSTD;
	else
		dest->encoding = strcmp(compression, "lz4") == 0 ? HTTP_LZ4 : HTTP_IDENTITY;
	if (file != NULL)
		password = resync_destination_password_file(file);
	dest->auth = list_make1(make_header("X-ClickHouse-User", user != NULL ? user : "default"));
	if (password != NULL && password[0] != '\0')
		dest->auth = lappend(dest->auth, make_header("X-ClickHouse-Key", password));
}

static void
check_version(ChDestination *dest)
{
	int major = 0;
	int minor = 0;

	if (sscanf(dest->version, "%d.%d", &major, &minor) != 2)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("the server does not answer as ClickHouse does")));
	dest->version_num = major * 100 + minor;
	if (dest->version_num < OLDEST_VERSION)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("ClickHouse %s is too old for a destination", dest->version),
			 errdetail(
				 "At least %d.%d is needed: older ones have no ReplacingMergeTree with a column that marks deleted rows.",
				 OLDEST_VERSION / 100, OLDEST_VERSION % 100)));
}

static Destination *
ch_open(const ResyncPeer *peer, const ResyncRunId *id, const char *appname)
{
	MemoryContext  context = AllocSetContextCreate(CurrentMemoryContext, "resync destination",
												   ALLOCSET_DEFAULT_SIZES);
	MemoryContext  old = MemoryContextSwitchTo(context);
	ChDestination *dest = palloc0(sizeof(ChDestination));

	dest->head.routine = &resync_destination_clickhouse;
	dest->head.context = context;
	dest->head.id = id;
	dest->nonce = pg_prng_uint32(&pg_global_prng_state);
	dest->call = AllocSetContextCreate(context, "resync destination call", ALLOCSET_DEFAULT_SIZES);

	PG_TRY();
	{
		ChResult *res;

		read_options(dest, peer);
		dest->auth = lappend(dest->auth, psprintf("User-Agent: %s", "resync"));
		dest->http = resync_http_open(context, &dest->options);
		MemoryContextSwitchTo(dest->call);
		res = resync_ch_query(dest, "SELECT version()");
		if (res->nrows != 1 || ch_value(res, 0, 0) == NULL)
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
							errmsg("the server does not answer as ClickHouse does")));
		dest->version = MemoryContextStrdup(context, ch_value(res, 0, 0));
		check_version(dest);
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
ch_close(Destination *dest)
{
	MemoryContextDelete(dest->context);
}

static char *
ch_version(Destination *head)
{
	return pstrdup(((ChDestination *) head)->version);
}

/* ---------------------------------------------------------------------
 * Metadata and the fence
 * ------------------------------------------------------------------ */

/* Both metadata tables, or one of them missing? */
bool
resync_ch_has_metadata(ChDestination *dest)
{
	ChResult *res = resync_ch_query(
		dest, psprintf("SELECT count() FROM system.tables WHERE database = %s AND name IN (%s, %s)",
					   resync_ch_literal(dest->database), resync_ch_literal(CH_RUNS_TABLE),
					   resync_ch_literal(CH_PARTITIONS_TABLE)));

	return res->nrows == 1 && atoi(ch_value(res, 0, 0)) == 2;
}

void
resync_ch_make_metadata(ChDestination *dest)
{
	const char *cluster = resync_ch_sql_on_cluster(dest->cluster);
	const char *engine = dest->replicated
							 ? "ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}',"
							   " '{replica}', seq"
							 : "ReplacingMergeTree(seq";

	resync_ch_exec(
		dest,
		psprintf("CREATE TABLE IF NOT EXISTS %s%s (token String, run Int64, kind String,"
				 " mirror String, source String, state String, applied UInt64, pending UInt64,"
				 " seq UInt64, at DateTime64(3) DEFAULT now64(3))"
				 " ENGINE = %s) ORDER BY (token, run, kind)",
				 resync_ch_table_name(dest, CH_RUNS_TABLE), cluster, engine),
		CH_WHAT_DDL);
	resync_ch_exec(
		dest,
		psprintf("CREATE TABLE IF NOT EXISTS %s%s (token String, run Int64, partition Int64,"
				 " life UInt64, ordinal Int32, rows Int64, gone UInt8, seq UInt64,"
				 " at DateTime64(3) DEFAULT now64(3))"
				 " ENGINE = %s, gone) ORDER BY (token, run, life, partition)",
				 resync_ch_table_name(dest, CH_PARTITIONS_TABLE), cluster, engine),
		CH_WHAT_DDL);
}

/*
 * The rows of a run.  Returns false if there is no metadata at all.  Raises
 * DIVERGED if the mark is another source's.
 */
bool
resync_ch_read_fence(ChDestination *dest, int64 run, ChFence *fence)
{
	ChStatement	  statement = {.what = CH_WHAT_READ, .timeout_ms = CH_TIMEOUT_SHORT};
	HttpResponse *response;
	char		 *save;

	memset(fence, 0, sizeof(ChFence));
	statement.sql = psprintf(
		"SELECT kind, source = %s, state = 'active', applied, pending, seq FROM %s FINAL"
		" WHERE token = %s AND run = " INT64_FORMAT,
		resync_ch_literal(resync_destination_source(dest->head.id)),
		resync_ch_table_name(dest, CH_RUNS_TABLE), resync_ch_literal(dest->head.id->token), run);
	statement.allowed = CH_ERR_UNKNOWN_TABLE;
	if (resync_ch_send(dest, &statement, &response) != 0)
		return false;
	for (char *line = strtok_r(response->body.data, "\n", &save); line != NULL;
		 line = strtok_r(NULL, "\n", &save))
	{
		char   kind[16];
		int	   ours;
		int	   active;
		uint64 applied;
		uint64 pending;
		uint64 seq;

		if (sscanf(line, "%15s %d %d " UINT64_FORMAT " " UINT64_FORMAT " " UINT64_FORMAT, kind,
				   &ours, &active, &applied, &pending, &seq) != 6)
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
							errmsg("unexpected answer of the ClickHouse server")));
		if (!ours)
			resync_destination_raise_copy(dest->head.id);
		if (strcmp(kind, "state") == 0)
		{
			fence->known = true;
			fence->active = active;
			fence->life = seq;
		}
		else
		{
			fence->applied = applied;
			fence->pending = pending;
			fence->seq = seq;
		}
	}
	return true;
}

/* Is this run in charge?  Raises FENCED or DIVERGED. */
void
resync_ch_fence(ChDestination *dest, ChFence *fence)
{
	if (!resync_ch_read_fence(dest, dest->head.id->run, fence) || !fence->known)
		resync_destination_raise_fenced(dest->head.id, "The destination does not know the run.");
	if (!fence->active)
		resync_destination_raise_fenced(dest->head.id, "The run was ended or replaced.");
	dest->life = fence->life;
}

static void
put_run_row(ChDestination *dest, int64 run, const char *kind, const char *state, XLogRecPtr applied,
			XLogRecPtr pending, uint64 seq)
{
	ChStatement statement = {.what = state[0] == '\0' ? CH_WHAT_APPLY : CH_WHAT_DDL,
							 .timeout_ms = CH_TIMEOUT_LONG};

	statement.sql = psprintf(
		"INSERT INTO %s (token, run, kind, mirror, source, state, applied, pending, seq)"
		" SELECT %s, " INT64_FORMAT ", %s, %s, %s, %s, " UINT64_FORMAT ", " UINT64_FORMAT
		", " UINT64_FORMAT,
		resync_ch_table_name(dest, CH_RUNS_TABLE), resync_ch_literal(dest->head.id->token), run,
		resync_ch_literal(kind), resync_ch_literal(dest->head.id->mirror),
		resync_ch_literal(resync_destination_source(dest->head.id)), resync_ch_literal(state),
		applied, pending, seq);
	(void) resync_ch_send(dest, &statement, NULL);
}

/* The streamer's row; fence->seq goes on. */
void
resync_ch_put_progress(ChDestination *dest, ChFence *fence, int64 run, XLogRecPtr applied,
					   XLogRecPtr pending)
{
	put_run_row(dest, run, "progress", "", applied, pending, fence->seq + 1);
	fence->seq++;
	fence->applied = applied;
	fence->pending = pending;
}

/* The coordinator's row.  seq: one more than the newest has. */
static void
put_state(ChDestination *dest, int64 run, const char *state)
{
	ChResult *res = resync_ch_query(
		dest, psprintf("SELECT max(seq) + 1 FROM %s WHERE token = %s AND run = " INT64_FORMAT
					   " AND kind = 'state'",
					   resync_ch_table_name(dest, CH_RUNS_TABLE),
					   resync_ch_literal(dest->head.id->token), run));

	put_run_row(dest, run, "state", state, 0, 0, strtoull(ch_value(res, 0, 0), NULL, 10));
}

/*
 * End what processes of a run that are gone have left running there, and wait
 * until it has ended; what: only those, NULL for all.  Not everybody may see or
 * kill queries: then the one window stays open that README names, and the log
 * says so once.
 */
static void
kill_queries(ChDestination *dest, const char *prefix, const char *what)
{
	ChStatement	  statement = {.what = "kill", .timeout_ms = CH_TIMEOUT_LONG};
	MemoryContext context = CurrentMemoryContext;

	/* our own query id must not begin like those: it is of this very run */
	statement.sql = psprintf("KILL QUERY%s WHERE startsWith(query_id, %s)"
							 " AND position(query_id, %s) > 0"
							 " AND position(query_id, '-kill-') = 0 SYNC",
							 resync_ch_sql_on_cluster(dest->cluster), resync_ch_literal(prefix),
							 resync_ch_literal(what != NULL ? psprintf("-%s-", what) : "-"));
	PG_TRY();
	{
		(void) resync_ch_send(dest, &statement, NULL);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (edata->sqlerrcode != ERRCODE_INSUFFICIENT_PRIVILEGE &&
			edata->sqlerrcode != ERRCODE_FEATURE_NOT_SUPPORTED)
			PG_RE_THROW();
		FlushErrorState();
		if (!dest->kill_warned)
			ereport(LOG,
					(errmsg("mirror \"%s\": statements that a dead process has left at the "
							"destination cannot be ended",
							dest->head.id->mirror),
					 errdetail_internal("%s", edata->message), errhint("Grant KILL QUERY there.")));
		dest->kill_warned = true;
	}
	PG_END_TRY();
}

void
resync_ch_kill(ChDestination *dest, int64 run, const char *what)
{
	kill_queries(dest, resync_ch_query_prefix(dest, dest->head.id->token, run), what);
}

/* Fence a run of ours out. */
void
resync_ch_retire(ChDestination *dest, int64 run)
{
	put_state(dest, run, "retired");
	RESYNC_DEBUG_POINT("ch_retired");
	resync_ch_kill(dest, run, NULL);
}

/* ---------------------------------------------------------------------
 * Runs
 * ------------------------------------------------------------------ */

/* The run's done-marks do not count any more. */
static void
forget_partitions(ChDestination *dest, int64 run)
{
	resync_ch_exec(dest,
				   psprintf("INSERT INTO %s (token, run, partition, life, ordinal, rows, gone, seq)"
							" SELECT token, run, partition, life, ordinal, rows, 1, seq + 1 FROM %s"
							" FINAL WHERE token = %s AND run = " INT64_FORMAT,
							resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
							resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
							resync_ch_literal(dest->head.id->token), run),
				   CH_WHAT_DDL);
}

/* Fence a run of ours out; what it was building goes. */
static void
end_run(ChDestination *dest, int64 run)
{
	resync_ch_retire(dest, run);
	resync_ch_drop_marked(dest, dest->head.id->token, run, false);
	forget_partitions(dest, run);
}

/*
 * Is there a run of this number that is not ours?  A run has applied nothing and
 * swapped nothing before phase load, so that one with another LSN, and marks of
 * live tables, are of a time that the source has lost.  What it was building is
 * dropped; its live tables stay the mirror's, under a number that no run has.
 */
static void
end_namesake(ChDestination *dest, const ChFence *fence, XLogRecPtr start_lsn)
{
	int64	  run = dest->head.id->run;
	List	 *tables;
	ListCell *lc;

	if (fence->active && fence->applied != start_lsn)
	{
		ereport(LOG, (errmsg("run " INT64_FORMAT
							 " of mirror \"%s\" takes the place of another run of that "
							 "number at the destination",
							 run, dest->head.id->mirror),
					  errdetail("The other one is of a time that this server was put back from.")));
		end_run(dest, run);
	}
	tables = resync_ch_marked_tables(dest, dest->head.id->token);
	foreach(lc, tables)
	{
		ChTable *table = lfirst(lc);

		if (table->run == run && resync_ch_is_live_name(dest, table))
			resync_ch_mark_table(dest, table, -run);
	}
}

/*
 * Progress before state: whoever finds the run active finds where it stands.
 * A run that is retired already begins once more: its load starts over with a
 * new slot (a table was changed under it).
 */
static void
ch_begin_run(Destination *head, XLogRecPtr start_lsn)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	ChFence		   fence;
	ChResult	  *res;

	resync_ch_make_metadata(dest);
	/* a DROP of names under construction, whichever run's, must not come later */
	kill_queries(dest, psprintf("resync-%s-", head->id->token), CH_WHAT_DDL);
	res = resync_ch_query(dest,
						  psprintf("SELECT count() FROM %s FINAL WHERE token = %s"
								   " AND source <> %s",
								   resync_ch_table_name(dest, CH_RUNS_TABLE),
								   resync_ch_literal(head->id->token),
								   resync_ch_literal(resync_destination_source(dest->head.id))));
	if (strcmp(ch_value(res, 0, 0), "0") != 0)
		resync_destination_raise_copy(dest->head.id);
	(void) resync_ch_read_fence(dest, head->id->run, &fence);
	end_namesake(dest, &fence, start_lsn);
	(void) resync_ch_read_fence(dest, head->id->run, &fence);
	if (!fence.active)
	{
		/* whatever an earlier try has left must not end after this */
		resync_ch_kill(dest, head->id->run, NULL);
		resync_ch_put_progress(dest, &fence, head->id->run, start_lsn, InvalidXLogRecPtr);
		put_state(dest, head->id->run, "active");
	}
	MemoryContextSwitchTo(old);
}

/*
 * The original's runs are retired under its own token and source, as it would
 * have done itself; its live tables get this mirror's mark, with a run number
 * that never meets one of ours; what it had under construction goes.
 */
static void
ch_adopt(Destination *head, const char *old_token)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	List		  *tables;
	ListCell	  *lc;

	if (resync_ch_has_metadata(dest))
		resync_ch_exec(dest,
					   psprintf("INSERT INTO %s (token, run, kind, mirror, source, state, seq)"
								" SELECT token, run, kind, mirror, source, 'retired', seq + 1"
								" FROM %s FINAL WHERE token = %s AND kind = 'state'"
								" AND state <> 'retired'",
								resync_ch_table_name(dest, CH_RUNS_TABLE),
								resync_ch_table_name(dest, CH_RUNS_TABLE),
								resync_ch_literal(old_token)),
					   CH_WHAT_DDL);
	kill_queries(dest, psprintf("resync-%s-", old_token), NULL);
	tables = resync_ch_marked_tables(dest, old_token);
	foreach(lc, tables)
	{
		ChTable *table = lfirst(lc);

		if (resync_ch_is_build_name(dest, table))
			resync_ch_drop_table(dest, table->name);
		else if (resync_ch_is_live_name(dest, table))
			resync_ch_mark_table(dest, table, table->run > 0 ? -table->run : table->run);
	}
	MemoryContextSwitchTo(old);
}

static void
ch_end_run(Destination *head, int64 run)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	ChFence		   fence;

	/* a run that was never active has made nothing */
	if (resync_ch_read_fence(dest, run, &fence) && fence.known)
		end_run(dest, run);
	MemoryContextSwitchTo(old);
}

static void
ch_drop_mirror(Destination *head, ResyncTable **tables, int ntables, bool drop_tables)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	const char	  *token = resync_ch_literal(head->id->token);
	ChFence		   fence;

	if (resync_ch_has_metadata(dest))
	{
		/* raises if the mark is another source's */
		(void) resync_ch_read_fence(dest, head->id->run, &fence);
		resync_ch_exec(dest,
					   psprintf("INSERT INTO %s (token, run, kind, mirror, source, state, seq)"
								" SELECT token, run, kind, mirror, source, 'retired', seq + 1"
								" FROM %s FINAL WHERE token = %s AND kind = 'state'",
								resync_ch_table_name(dest, CH_RUNS_TABLE),
								resync_ch_table_name(dest, CH_RUNS_TABLE), token),
					   CH_WHAT_DDL);
		kill_queries(dest, psprintf("resync-%s-", head->id->token), NULL);
		resync_ch_drop_marked(dest, head->id->token, 0, drop_tables);
		resync_ch_exec(dest,
					   psprintf("ALTER TABLE %s%s DELETE WHERE token = %s",
								resync_ch_table_name(dest, CH_PARTITIONS_TABLE),
								resync_ch_sql_on_cluster(dest->cluster), token),
					   CH_WHAT_DDL);
		resync_ch_exec(dest,
					   psprintf("ALTER TABLE %s%s DELETE WHERE token = %s",
								resync_ch_table_name(dest, CH_RUNS_TABLE),
								resync_ch_sql_on_cluster(dest->cluster), token),
					   CH_WHAT_DDL);
	}
	MemoryContextSwitchTo(old);
}

/*
 * A batch of a streamer that died may still be under way, with its note behind
 * it: that is ended first, and then counts or not.
 */
static XLogRecPtr
ch_applied_lsn(Destination *head)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	ChFence		   fence;

	resync_ch_kill(dest, head->id->run, CH_WHAT_APPLY);
	resync_ch_fence(dest, &fence);
	MemoryContextSwitchTo(old);
	return fence.applied;
}

/* Only batches with appended rows have to be cut where they were. */
static XLogRecPtr
ch_pending_lsn(Destination *head)
{
	ChDestination *dest = (ChDestination *) head;
	MemoryContext  old = resync_ch_enter(dest);
	ChFence		   fence;

	resync_ch_fence(dest, &fence);
	MemoryContextSwitchTo(old);
	return fence.pending > fence.applied ? fence.pending : InvalidXLogRecPtr;
}

static RowEncoder *
ch_make_encoder(Destination *dest, const ResyncTable *table, TupleDesc desc)
{
	return resync_encode_ch_make(desc, table);
}

static Datum
ch_decode_field(Destination *dest, const ResyncColumn *col, char *data, int len)
{
	return resync_ch_decode_field(col, data, len);
}

const DestinationRoutine resync_destination_clickhouse = {
	.peer_type = "clickhouse",
	.default_sync_interval = 1,
	.has_schemas = false,
	.merges_rows = true,
	.needs_key = false, /* map_columns looks itself: it knows "append" */
	.max_identifier = 200,
	.open = ch_open,
	.close = ch_close,
	.version = ch_version,
	.map_columns = resync_ch_map_columns,
	.map_added = resync_ch_map_added,
	.check_table = resync_ch_check_table,
	.begin_run = ch_begin_run,
	.adopt = ch_adopt,
	.end_run = ch_end_run,
	.drop_mirror = ch_drop_mirror,
	.create_table = resync_ch_create_table,
	.done_partitions = resync_ch_done_partitions,
	.reset_table = resync_ch_reset_table,
	.load_begin = resync_ch_load_begin,
	.load_relation = resync_ch_load_relation,
	.load_row = resync_ch_load_row,
	.load_finish = resync_ch_load_finish,
	.load_abort = resync_ch_load_abort,
	.load_bytes = resync_ch_load_bytes,
	.count_rows = resync_ch_count_rows,
	.build_key = resync_ch_build_key,
	.applied_lsn = ch_applied_lsn,
	.pending_lsn = ch_pending_lsn,
	.apply = resync_ch_apply,
	.make_encoder = ch_make_encoder,
	.decode_field = ch_decode_field,
	.transfer = resync_ch_transfer,
	.swap = resync_ch_swap,
	.is_swapped = resync_ch_is_swapped,
	.after_swap = resync_ch_after_swap,
};
