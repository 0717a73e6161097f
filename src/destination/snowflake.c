/*
 * snowflake.c
 *		Snowflake as a destination: the connection, the marks that runs leave
 *		there, and the fence that work begins and ends with.
 *
 * Called through DestinationRoutine: by the coordinator (DDL), copiers (load)
 * and the streamer (batches); open and version by a user's backend too.  No
 * lock or transaction is held on the source.
 *
 * Metadata in the schema of option metadata_schema:
 *	_PEERDB_RESYNC_RUNS			a row per run: state, applied LSN, epoch, and
 *		whether its tables are live, which is the journal of the swap
 *	_PEERDB_RESYNC_PARTITIONS	done-marks of the load
 *	The mark of a table of ours is in its comment (snowflake_table.c).
 *
 * The fence (rule 4): what changes rows is one transaction in one block, which
 * the service does as a whole or not at all, even if nobody waits for it any more.
 * Its last act before the commit is to change the run's row, and it goes back
 * unless that row is as expected; the row's lock makes such transactions wait for
 * each other, so it is taken last.  DDL is outside of transactions there: tables
 * are made and swapped after a look at the row, and whatever makes work in progress
 * void (a table made anew, a swap) begins a new epoch first.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "common/pg_prng.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define DEFAULT_METADATA_SCHEMA "_PEERDB_INTERNAL"

/* What blocks return. */
#define BLOCK_OK "ok"
#define BLOCK_FENCED "fenced"
#define BLOCK_KNOWN "known"

/*
 * Start of a method: forget what earlier calls allocated, and allocate there.
 * Returns the caller's context.
 */
MemoryContext
resync_sf_enter(SfDestination *dest)
{
	MemoryContextReset(dest->call);
	return MemoryContextSwitchTo(dest->call);
}

char *
resync_sf_lsn(XLogRecPtr lsn)
{
	return psprintf("%X/%X", LSN_FORMAT_ARGS(lsn));
}

/* ---------------------------------------------------------------------
 * Connect
 * ------------------------------------------------------------------ */

/* The account's own address; names of hosts have no underscores. */
static char *
account_url(const char *account)
{
	char *host = pstrdup(account);
	bool  china = strstr(account, ".cn-") != NULL;

	for (char *p = host; *p != '\0'; p++)
	{
		if (*p == '_')
			*p = '-';
	}
	return psprintf("https://%s.snowflakecomputing.%s", host, china ? "cn" : "com");
}

static char *
copy_option(List *options, const char *name)
{
	const char *value = resync_destination_option(options, name);

	return value != NULL && value[0] != '\0' ? pstrdup(value) : NULL;
}

/*
 * The option stage, "stage", "schema.stage" or "database.schema.stage", each part as
 * SQL writes it: in quotes, or to become upper case.  What is left out is known
 * after the log in.
 */
static void
read_stage(SfDestination *dest, const char *text)
{
	char *parts[3] = {NULL};
	int	  n = 0;

	while (n < lengthof(parts))
	{
		StringInfoData part;
		bool		   quoted = *text == '"';

		initStringInfo(&part);
		for (text += quoted; *text != '\0' && (quoted || *text != '.'); text++)
		{
			if (quoted && *text == '"' && *++text != '"')
				break;
			appendStringInfoChar(&part, quoted ? *text : pg_ascii_toupper((unsigned char) *text));
		}
		parts[n++] = part.data;
		if (part.len == 0 || *text != '.')
			break;
		text++;
	}
	if (*text != '\0' || parts[n - 1][0] == '\0')
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("the server's option \"stage\" is not the name of a stage"),
						errhint("Write it as database.schema.stage.")));
	for (int i = 0; i < n; i++)
		dest->external[lengthof(parts) - n + i] = parts[i];
}

/*
 * The peer's options into dest, in dest's context.  Snowflake is asked with the
 * key file alone, which only members of pg_read_server_files may name: nothing of
 * this server's own identity is used.
 */
static void
read_options(SfDestination *dest, const ResyncPeer *peer)
{
	char *url = copy_option(peer->server_options, "url");
	char *schema = copy_option(peer->server_options, "metadata_schema");
	Size  len;

	dest->account = resync_destination_require_option(peer, false, "account", "Snowflake");
	dest->wanted_database = resync_destination_require_option(peer, false, "database", "Snowflake");
	dest->wanted_warehouse = resync_destination_require_option(peer, false, "warehouse",
															   "Snowflake");
	dest->wanted_role = copy_option(peer->server_options, "role");
	dest->schema = schema != NULL ? resync_sf_fold(schema) : DEFAULT_METADATA_SCHEMA;
	dest->user = resync_destination_require_option(peer, true, "user", "Snowflake");
	dest->key_file = resync_destination_require_option(peer, true, "private_key_file", "Snowflake");
	dest->passphrase_file = copy_option(peer->user_options, "private_key_passphrase_file");
	if (copy_option(peer->server_options, "stage") != NULL)
	{
		read_stage(dest, copy_option(peer->server_options, "stage"));
		dest->stage_endpoint = copy_option(peer->server_options, "stage_endpoint");
		dest->stage_region = copy_option(peer->server_options, "stage_region");
		dest->stage_key_id = copy_option(peer->user_options, "stage_key_id");
		dest->stage_secret_file = resync_destination_require_option(peer, true, "stage_secret_file",
																	"Snowflake");
	}
	dest->prefix = resync_http_parse_url(url != NULL ? url : account_url(dest->account),
										 "Snowflake", &dest->options);
	len = strlen(dest->prefix);
	if (len > 0 && dest->prefix[len - 1] == '/')
		dest->prefix[len - 1] = '\0';
}

/* The connection's memory goes. */
static void
forget_secrets(void *arg)
{
	SfDestination *dest = arg;

	if (dest->token != NULL)
		explicit_bzero(dest->token, strlen(dest->token));
	if (dest->master != NULL)
		explicit_bzero(dest->master, strlen(dest->master));
}

static Destination *
sf_open(const ResyncPeer *peer, const ResyncRunId *id, const char *appname)
{
	MemoryContext  context = AllocSetContextCreate(CurrentMemoryContext, "resync destination",
												   ALLOCSET_DEFAULT_SIZES);
	MemoryContext  old = MemoryContextSwitchTo(context);
	SfDestination *dest = palloc0(sizeof(SfDestination));

	dest->head.routine = &resync_destination_snowflake;
	dest->head.context = context;
	dest->head.id = id;
	dest->nonce = pg_prng_uint32(&pg_global_prng_state);
	dest->call = AllocSetContextCreate(context, "resync destination call", ALLOCSET_DEFAULT_SIZES);
	dest->store_context = AllocSetContextCreate(context, "resync object store",
												ALLOCSET_SMALL_SIZES);
	dest->callback.func = forget_secrets;
	dest->callback.arg = dest;
	MemoryContextRegisterResetCallback(context, &dest->callback);
	PG_TRY();
	{
		read_options(dest, peer);
		dest->http = resync_http_open(context, &dest->options);
		MemoryContextSwitchTo(dest->call);
		resync_sf_login(dest);
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
sf_close(Destination *head)
{
	resync_sf_logout((SfDestination *) head);
	MemoryContextDelete(head->context);
}

static char *
sf_version(Destination *head)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	SfResult	  *res = resync_sf_query(dest, "SELECT CURRENT_VERSION()");
	char		  *version;

	MemoryContextSwitchTo(old);
	version = res->nrows == 1 ? sf_value(res, 0, 0) : NULL;
	return psprintf("%s, database %s, role %s", version != NULL ? version : "?", dest->database,
					dest->role);
}

/* ---------------------------------------------------------------------
 * Metadata and the fence
 * ------------------------------------------------------------------ */

/* Which database of which server the mirror reads, as SQL. */
static char *
source_name(const SfDestination *dest)
{
	return resync_sf_literal(resync_destination_source(dest->head.id));
}

char *
resync_sf_run_condition(SfDestination *dest, int64 run)
{
	return psprintf("token = %s AND run = " INT64_FORMAT, resync_sf_literal(dest->head.id->token),
					run);
}

char *
resync_sf_fence_condition(SfDestination *dest)
{
	return psprintf(
		"%s AND life = %s AND source = %s AND state = 'active' AND epoch = " INT64_FORMAT,
		resync_sf_run_condition(dest, dest->head.id->run), resync_sf_literal(dest->life),
		source_name(dest), dest->epoch);
}

static bool
has_metadata(SfDestination *dest)
{
	return resync_sf_find(dest, dest->schema, SF_RUNS_TABLE) != NULL;
}

bool
resync_sf_has_schema(SfDestination *dest, const char *schema)
{
	SfResult *res = resync_sf_query(dest, psprintf("SHOW SCHEMAS LIKE %s IN DATABASE %s",
												   resync_sf_pattern(schema),
												   resync_sf_ident(dest->database)));

	for (int i = 0; i < res->nrows; i++)
	{
		char *name = resync_sf_column(res, i, "name");

		if (name != NULL && strcmp(name, schema) == 0)
			return true;
	}
	return false;
}

void
resync_sf_make_metadata(SfDestination *dest)
{
	static const char *const columns[] = {
		"token VARCHAR NOT NULL, run NUMBER(38, 0) NOT NULL, life VARCHAR NOT NULL, mirror VARCHAR,"
		" source VARCHAR NOT NULL, state VARCHAR NOT NULL, applied VARCHAR NOT NULL, epoch"
		" NUMBER(38, 0) NOT NULL, swapped BOOLEAN NOT NULL, changed_at TIMESTAMP_NTZ",
		"token VARCHAR NOT NULL, run NUMBER(38, 0) NOT NULL, life VARCHAR NOT NULL, part"
		" NUMBER(38, 0) NOT NULL, ordinal NUMBER(38, 0) NOT NULL, row_count NUMBER(38, 0) NOT NULL,"
		" changed_at TIMESTAMP_NTZ"};
	static const char *const names[] = {SF_RUNS_TABLE, SF_PARTITIONS_TABLE};

	if (!resync_sf_has_schema(dest, dest->schema))
		(void) resync_sf_query(dest, psprintf("CREATE SCHEMA IF NOT EXISTS %s.%s",
											  resync_sf_ident(dest->database),
											  resync_sf_ident(dest->schema)));
	for (int i = 0; i < lengthof(names); i++)
	{
		if (resync_sf_find(dest, dest->schema, names[i]) == NULL)
			(void) resync_sf_query(dest, psprintf("CREATE TABLE IF NOT EXISTS %s (%s)",
												  resync_sf_own(dest, names[i]), columns[i]));
	}
}

/*
 * The row of a run.  Returns false if there is no metadata at all.  Raises
 * DIVERGED if the mark is another source's.
 *
 * Nothing there keeps two sessions that begin a run from making a row each, one
 * of them long after nobody waits for it any more.  Everybody takes the same:
 * what is done in a life begins with an epoch, so one that came late has none.
 */
bool
resync_sf_read_fence(SfDestination *dest, int64 run, SfFence *fence)
{
	SfResult *res;

	memset(fence, 0, sizeof(SfFence));
	res = resync_sf_try(
		dest,
		psprintf(
			"SELECT CASE WHEN source = %s THEN 1 ELSE 0 END, state, applied, swapped::VARCHAR, life, epoch"
			" FROM %s WHERE %s ORDER BY epoch, life",
			source_name(dest), resync_sf_own(dest, SF_RUNS_TABLE),
			resync_sf_run_condition(dest, run)));
	if (res == NULL)
		return false;
	for (int i = 0; i < res->nrows; i++)
	{
		uint32 high;
		uint32 low;

		if (strcmp(resync_sf_need(res, i, 0), "1") != 0)
			resync_destination_raise_copy(dest->head.id);
		if (sscanf(resync_sf_need(res, i, 2), "%X/%X", &high, &low) != 2)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("unexpected row in table %s", resync_sf_own(dest, SF_RUNS_TABLE))));
		fence->known = true;
		fence->active = strcmp(resync_sf_need(res, i, 1), "active") == 0;
		fence->applied = ((uint64) high << 32) | low;
		fence->swapped = strcmp(resync_sf_need(res, i, 3), "true") == 0;
		fence->life = resync_sf_need(res, i, 4);
		fence->epoch = strtoll(resync_sf_need(res, i, 5), NULL, 10);
	}
	return true;
}

/* Is this run in charge?  Raises FENCED or DIVERGED. */
void
resync_sf_fence(SfDestination *dest, SfFence *fence)
{
	if (!resync_sf_read_fence(dest, dest->head.id->run, fence) || !fence->known)
		resync_destination_raise_fenced(dest->head.id, "The destination does not know the run.");
	if (!fence->active)
		resync_destination_raise_fenced(dest->head.id, "The run was ended or replaced.");
	if (dest->life == NULL || strcmp(dest->life, fence->life) != 0)
		dest->life = MemoryContextStrdup(dest->head.context, fence->life);
	dest->epoch = fence->epoch;
}

void
resync_sf_raise_changed(SfDestination *dest)
{
	SfFence fence;

	resync_sf_fence(dest, &fence);
	ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					errmsg("work for mirror \"%s\" at the destination was overtaken",
						   dest->head.id->mirror),
					errdetail("Another process has applied changes, or made a table anew.")));
}

bool
resync_sf_transaction(SfDestination *dest, const char *statements, const char *update,
					  const char *marks, int64 *total)
{
	StringInfoData block;
	char		  *returned;

	initStringInfo(&block);
	appendStringInfo(&block,
					 "DECLARE\n  got NUMBER DEFAULT 0;\n  total NUMBER DEFAULT 0;\n"
					 "  stmt VARCHAR DEFAULT '';\nBEGIN\n"
					 "  BEGIN TRANSACTION;\n%s%s;\n"
					 "  IF (SQLROWCOUNT <> 1) THEN\n    ROLLBACK;\n    RETURN '" BLOCK_FENCED "';\n"
					 "  END IF;\n",
					 statements, update);
	if (marks != NULL)
		appendStringInfo(
			&block,
			"%s;\n  IF (SQLROWCOUNT <> 1) THEN\n    ROLLBACK;\n    RETURN '" BLOCK_KNOWN
			"';\n  END IF;\n",
			marks);
	appendStringInfoString(&block, "  COMMIT;\n  RETURN '" BLOCK_OK "' || total;\nEXCEPTION\n"
								   "  WHEN OTHER THEN\n    ROLLBACK;\n    RAISE;\nEND;");
	returned = resync_sf_script(dest, block.data);
	if (strcmp(returned, BLOCK_FENCED) == 0)
		resync_sf_raise_changed(dest);
	if (strcmp(returned, BLOCK_KNOWN) == 0)
		return false;
	if (strncmp(returned, BLOCK_OK, strlen(BLOCK_OK)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED), errmsg("Snowflake did not do what it was told"),
				 errdetail("A block returned: %s.", returned)));
	if (total != NULL)
		*total = strtoll(returned + strlen(BLOCK_OK), NULL, 10);
	return true;
}

void
resync_sf_fenced_ddl(SfDestination *dest, const char *sql)
{
	char	 *block = psprintf("DECLARE\n  got NUMBER DEFAULT 0;\nBEGIN\n"
								   "  SELECT COUNT(*) INTO :got FROM %s WHERE %s;\n"
								   "  IF (got <> 1) THEN\n    RETURN '" BLOCK_FENCED "';\n  END IF;\n"
								   "  %s;\n  RETURN '" BLOCK_OK "';\nEND;",
							   resync_sf_own(dest, SF_RUNS_TABLE), resync_sf_fence_condition(dest),
							   sql);
	SfResult *res = resync_sf_try(dest, psprintf("EXECUTE IMMEDIATE %s", resync_sf_literal(block)));

	if (res == NULL || res->nrows != 1 || strcmp(resync_sf_need(res, 0, 0), BLOCK_OK) != 0)
		resync_sf_raise_changed(dest);
}

/* Fence a run of ours out: what it does from now on fails. */
void
resync_sf_retire(SfDestination *dest, int64 run)
{
	SfFence fence;

	/* one that begins anew meanwhile is not meant */
	if (resync_sf_read_fence(dest, run, &fence) && fence.active)
		(void) resync_sf_query(
			dest, psprintf("UPDATE %s SET state = 'retired', changed_at = SYSDATE()"
						   " WHERE %s AND life = %s AND state <> 'retired'",
						   resync_sf_own(dest, SF_RUNS_TABLE), resync_sf_run_condition(dest, run),
						   resync_sf_literal(fence.life)));
}

void
resync_sf_new_epoch(SfDestination *dest, XLogRecPtr applied, const char *statements)
{
	char   *condition = resync_sf_fence_condition(dest);
	SfFence fence;

	if (!XLogRecPtrIsInvalid(applied))
		condition = psprintf("%s AND applied = %s", condition,
							 resync_sf_literal(resync_sf_lsn(applied)));
	(void) resync_sf_transaction(
		dest, statements,
		psprintf("UPDATE %s SET epoch = epoch + 1, changed_at = SYSDATE() WHERE %s",
				 resync_sf_own(dest, SF_RUNS_TABLE), condition),
		NULL, NULL);
	resync_sf_fence(dest, &fence);
}

/* ---------------------------------------------------------------------
 * Runs
 * ------------------------------------------------------------------ */

/* Fence a run of ours out, in the life that it has; what it was building goes. */
static void
end_run(SfDestination *dest, int64 run, const SfFence *fence)
{
	resync_sf_retire(dest, run);
	RESYNC_DEBUG_POINT("sf_retired");
	resync_sf_drop_marked(dest, dest->head.id->token, run, false, false);
	(void) resync_sf_query(dest, psprintf("DELETE FROM %s WHERE %s AND life = %s",
										  resync_sf_own(dest, SF_PARTITIONS_TABLE),
										  resync_sf_run_condition(dest, run),
										  resync_sf_literal(fence->life)));
}

/*
 * Is there a run of this number that is not ours?  A run has applied nothing and
 * swapped nothing before phase load, so that one with another LSN, and marks of
 * live tables, are of a time that the source has lost.  What it was building is
 * dropped; its live tables stay the mirror's, under a number that no run has.
 */
static void
end_namesake(SfDestination *dest, const SfFence *fence, XLogRecPtr start_lsn)
{
	int64	  run = dest->head.id->run;
	List	 *tables;
	ListCell *lc;

	if (fence->active && (fence->applied != start_lsn || fence->swapped))
	{
		ereport(LOG, (errmsg("run " INT64_FORMAT
							 " of mirror \"%s\" takes the place of another run of that "
							 "number at the destination",
							 run, dest->head.id->mirror),
					  errdetail("The other one is of a time that this server was put back from.")));
		end_run(dest, run, fence);
	}
	tables = resync_sf_marked_tables(dest, dest->head.id->token);
	foreach(lc, tables)
	{
		SfTable *table = lfirst(lc);

		if (table->run == run && table->at_live)
			resync_sf_mark_live(dest, table, -run);
	}
}

static void
sf_begin_run(Destination *head, XLogRecPtr start_lsn)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	const char	  *runs = resync_sf_own(dest, SF_RUNS_TABLE);
	SfFence		   fence;

	resync_sf_make_metadata(dest);
	if (resync_sf_number(dest,
						 psprintf("SELECT COUNT(*) FROM %s WHERE token = %s AND source <> %s", runs,
								  resync_sf_literal(head->id->token), source_name(dest))) != 0)
		resync_destination_raise_copy(dest->head.id);
	(void) resync_sf_read_fence(dest, head->id->run, &fence);
	end_namesake(dest, &fence, start_lsn);
	(void) resync_sf_read_fence(dest, head->id->run, &fence);
	if (!fence.active)
	{
		/* one transaction: the run has one row at any time; another's that is there counts */
		(void) resync_sf_transaction(
			dest,
			psprintf("  DELETE FROM %s WHERE %s AND state = 'retired';\n", runs,
					 resync_sf_run_condition(dest, head->id->run)),
			psprintf("INSERT INTO %s (token, run, life, mirror, source, state, applied, epoch,"
					 " swapped, changed_at) SELECT %s, " INT64_FORMAT
					 ", '%08x%08x', %s, %s, 'active', %s, 0, FALSE, SYSDATE() WHERE NOT EXISTS"
					 " (SELECT 1 FROM %s WHERE %s)",
					 runs, resync_sf_literal(head->id->token), head->id->run, dest->nonce,
					 pg_prng_uint32(&pg_global_prng_state), resync_sf_literal(head->id->mirror),
					 source_name(dest), resync_sf_literal(resync_sf_lsn(start_lsn)), runs,
					 resync_sf_run_condition(dest, head->id->run)),
			NULL, NULL);
	}
	MemoryContextSwitchTo(old);
}

/* All runs of a token; if its rows are there. */
static void
retire_all(SfDestination *dest, const char *token)
{
	if (has_metadata(dest))
		(void) resync_sf_query(
			dest,
			psprintf("UPDATE %s SET state = 'retired' WHERE token = %s AND state <> 'retired'",
					 resync_sf_own(dest, SF_RUNS_TABLE), resync_sf_literal(token)));
}

/*
 * The original's runs are retired under its own token, as it would have done
 * itself; its live tables get this mirror's mark, with a run number that never
 * meets one of ours; what it had under construction goes.
 */
static void
sf_adopt(Destination *head, const char *old_token)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	List		  *tables;
	ListCell	  *lc;

	retire_all(dest, old_token);
	tables = resync_sf_marked_tables(dest, old_token);
	foreach(lc, tables)
	{
		SfTable *table = lfirst(lc);

		if (!table->at_live)
			resync_sf_drop(dest, resync_sf_name(dest, table->schema, table->name));
		else
			resync_sf_mark_live(dest, table, table->run > 0 ? -table->run : table->run);
	}
	MemoryContextSwitchTo(old);
}

static void
sf_end_run(Destination *head, int64 run)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	SfFence		   fence;

	/* one that was never active may have left what it tried */
	if (resync_sf_read_fence(dest, run, &fence) && fence.known)
		end_run(dest, run, &fence);
	else
		resync_sf_drop_marked(dest, head->id->token, run, false, false);
	MemoryContextSwitchTo(old);
}

static void
sf_drop_mirror(Destination *head, ResyncTable **tables, int ntables, bool drop_tables)
{
	static const char *const names[] = {SF_PARTITIONS_TABLE, SF_RUNS_TABLE};
	SfDestination			*dest = (SfDestination *) head;
	MemoryContext			 old = resync_sf_enter(dest);
	SfFence					 fence;
	bool					 known;

	/* raises if the mark is another source's */
	known = resync_sf_read_fence(dest, head->id->run, &fence);
	if (known)
		retire_all(dest, head->id->token);
	resync_sf_drop_marked(dest, head->id->token, 0, false, drop_tables);
	if (known)
	{
		for (int i = 0; i < lengthof(names); i++)
			(void) resync_sf_query(dest, psprintf("DELETE FROM %s WHERE token = %s",
												  resync_sf_own(dest, names[i]),
												  resync_sf_literal(head->id->token)));
	}
	MemoryContextSwitchTo(old);
}

static RowEncoder *
sf_make_encoder(Destination *dest, const ResyncTable *table, TupleDesc desc)
{
	return resync_encode_sf_make(desc, table);
}

static Datum
sf_decode_field(Destination *dest, const ResyncColumn *col, char *data, int len)
{
	return resync_sf_decode_field(col, data, len);
}

const DestinationRoutine resync_destination_snowflake = {
	.peer_type = "snowflake",
	/* for the warehouse's cost: it may rest in between */
	.default_sync_interval = 60,
	.has_schemas = true,
	.needs_key = false, /* map_columns looks itself: it knows "append" */
	.max_identifier = 255,
	.open = sf_open,
	.close = sf_close,
	.version = sf_version,
	.map_columns = resync_sf_map_columns,
	.map_added = resync_sf_map_added,
	.check_table = resync_sf_check_table,
	.check_tables = resync_sf_check_tables,
	.begin_run = sf_begin_run,
	.adopt = sf_adopt,
	.end_run = sf_end_run,
	.drop_mirror = sf_drop_mirror,
	.create_table = resync_sf_create_table,
	.done_partitions = resync_sf_done_partitions,
	.reset_table = resync_sf_reset_table,
	.load_begin = resync_sf_load_begin,
	.load_relation = resync_sf_load_relation,
	.load_row = resync_sf_load_row,
	.load_finish = resync_sf_load_finish,
	.load_abort = resync_sf_load_abort,
	.load_bytes = resync_sf_load_bytes,
	.count_rows = resync_sf_count_rows,
	.build_key = resync_sf_build_key,
	.applied_lsn = resync_sf_applied_lsn,
	.apply = resync_sf_apply,
	.make_encoder = sf_make_encoder,
	.decode_field = sf_decode_field,
	.transfer = resync_sf_transfer,
	.swap = resync_sf_swap,
	.is_swapped = resync_sf_is_swapped,
	.after_swap = resync_sf_after_swap,
};
