/*
 * bigquery.c
 *		BigQuery as a destination: the connection, the marks that runs leave
 *		there, and the fence that work begins with.
 *
 * Called through DestinationRoutine: by the coordinator (DDL), copiers (load)
 * and the streamer (batches); open and version by a user's backend too.  No
 * lock or transaction is held on the source.
 *
 * Metadata in the peer's dataset:
 *	_peerdb_resync_runs			a row per run: state, applied LSN, and whether its
 *		tables are live, which is the journal of the swap
 *	_peerdb_resync_partitions	done-marks of the load
 *	The mark of a table of ours is its labels (bigquery_table.c).
 *
 * The fence (rule 4): a batch is a script of one transaction, which goes on only
 * if the run's row is as expected, and changes that row; transactions that
 * change the same table do not both commit.  Tables are made, loaded and copied
 * outside of transactions, by jobs with ids of the run (bigquery_http.c), after
 * a look at the row.
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include "commands/defrem.h"
#include "common/pg_prng.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define DEFAULT_URL "https://bigquery.googleapis.com"

/*
 * Start of a method: forget what earlier calls allocated, and allocate there.
 * Returns the caller's context.
 */
MemoryContext
resync_bq_enter(BqDestination *dest)
{
	MemoryContextReset(dest->call);
	return MemoryContextSwitchTo(dest->call);
}

char *
resync_bq_lsn(XLogRecPtr lsn)
{
	return psprintf("%X/%X", LSN_FORMAT_ARGS(lsn));
}

/* ---------------------------------------------------------------------
 * Connect
 * ------------------------------------------------------------------ */

/*
 * The peer's options into dest, in dest's context.  What BigQuery is asked with
 * is the key file alone, which only members of pg_read_server_files may name:
 * nothing of this server's own identity is used.
 */
static void
read_options(BqDestination *dest, const ResyncPeer *peer)
{
	const char *url = resync_destination_option(peer->server_options, "url");
	const char *location = resync_destination_option(peer->server_options, "location");
	Size		len;

	dest->project = resync_destination_require_option(peer, false, "project", "BigQuery");
	dest->dataset = resync_destination_require_option(peer, false, "dataset", "BigQuery");
	dest->key_file = resync_destination_require_option(peer, true, "service_account_file",
													   "BigQuery");
	dest->location = location != NULL && location[0] != '\0' ? pstrdup(location) : NULL;
	dest->prefix = resync_http_parse_url(url != NULL ? url : DEFAULT_URL, "BigQuery",
										 &dest->options);
	len = strlen(dest->prefix);
	if (len > 0 && dest->prefix[len - 1] == '/')
		dest->prefix[len - 1] = '\0';
}

/* Asks for the dataset: key, project, dataset and location are proven. */
static void
check_dataset(BqDestination *dest)
{
	BqCall	  call = {.method = "GET"};
	JsonNode *json;
	char	 *location;

	call.path = psprintf("/bigquery/v2/projects/%s/datasets/%s", resync_http_escape(dest->project),
						 resync_http_escape(dest->dataset));
	(void) resync_bq_call(dest, &call, &json);
	location = resync_json_get_text(json, "location");
	if (location == NULL)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("the server does not answer as BigQuery does")));
	if (dest->location != NULL && pg_strcasecmp(dest->location, location) != 0)
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("dataset \"%s\" is in location %s", dest->dataset, location),
						errhint("Set the server's option \"location\" so, or drop it.")));
	dest->location = MemoryContextStrdup(dest->head.context, location);
}

static Destination *
bq_open(const ResyncPeer *peer, const ResyncRunId *id, const char *appname)
{
	MemoryContext  context = AllocSetContextCreate(CurrentMemoryContext, "resync destination",
												   ALLOCSET_DEFAULT_SIZES);
	MemoryContext  old = MemoryContextSwitchTo(context);
	BqDestination *dest = palloc0(sizeof(BqDestination));

	dest->head.routine = &resync_destination_bigquery;
	dest->head.context = context;
	dest->head.id = id;
	dest->nonce = pg_prng_uint32(&pg_global_prng_state);
	dest->call = AllocSetContextCreate(context, "resync destination call", ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		read_options(dest, peer);
		dest->http = resync_http_open(context, &dest->options);
		MemoryContextSwitchTo(dest->call);
		check_dataset(dest);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		resync_bq_forget_token(dest);
		MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return &dest->head;
}

static void
bq_close(Destination *head)
{
	resync_bq_forget_token((BqDestination *) head);
	MemoryContextDelete(head->context);
}

/* The service has none. */
static char *
bq_version(Destination *head)
{
	return psprintf("v2, location %s", ((BqDestination *) head)->location);
}

/* ---------------------------------------------------------------------
 * Metadata and the fence
 * ------------------------------------------------------------------ */

char *
resync_bq_run_condition(BqDestination *dest, int64 run)
{
	return psprintf("token = %s AND run = " INT64_FORMAT, resync_bq_literal(dest->head.id->token),
					run);
}

static void
make_metadata(BqDestination *dest)
{
	static const char *const columns[] = {
		"token STRING NOT NULL, run INT64 NOT NULL, life STRING NOT NULL, mirror STRING, source"
		" STRING NOT NULL, state STRING NOT NULL, applied STRING NOT NULL, swapped BOOL NOT NULL,"
		" changed_at TIMESTAMP",
		"token STRING NOT NULL, run INT64 NOT NULL, life STRING NOT NULL, part INT64 NOT NULL,"
		" ordinal INT64 NOT NULL, row_count INT64 NOT NULL, changed_at TIMESTAMP"};
	static const char *const names[] = {BQ_RUNS_TABLE, BQ_PARTITIONS_TABLE};

	for (int i = 0; i < lengthof(names); i++)
	{
		if (resync_bq_find_table(dest, names[i]) != NULL)
			continue;
		(void) resync_bq_exec(dest,
							  psprintf("CREATE TABLE IF NOT EXISTS %s (%s)",
									   resync_bq_table(dest, names[i]), columns[i]),
							  NULL, NULL);
	}
}

/*
 * The row of a run.  Returns false if there is no metadata at all.  Raises
 * DIVERGED if the mark is another source's.
 */
bool
resync_bq_read_fence(BqDestination *dest, int64 run, BqFence *fence)
{
	BqResult *res;
	uint32	  high;
	uint32	  low;

	memset(fence, 0, sizeof(BqFence));
	res = resync_bq_query(dest,
						  psprintf("SELECT source, state, applied, swapped, life FROM %s WHERE %s",
								   resync_bq_table(dest, BQ_RUNS_TABLE),
								   resync_bq_run_condition(dest, run)),
						  true);
	if (res == NULL)
		return false;
	for (int i = 0; i < res->nrows; i++)
	{
		if (strcmp(bq_value(res, i, 0), resync_destination_source(dest->head.id)) != 0)
			resync_destination_raise_copy(dest->head.id);
		if (sscanf(bq_value(res, i, 2), "%X/%X", &high, &low) != 2)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("unexpected row in table %s", resync_bq_table(dest, BQ_RUNS_TABLE))));
		fence->known = true;
		fence->active = strcmp(bq_value(res, i, 1), "active") == 0;
		fence->applied = ((uint64) high << 32) | low;
		fence->swapped = strcmp(bq_value(res, i, 3), "true") == 0;
		fence->life = bq_value(res, i, 4);
	}
	return true;
}

/* Is this run in charge?  Raises FENCED or DIVERGED. */
void
resync_bq_fence(BqDestination *dest, BqFence *fence)
{
	if (!resync_bq_read_fence(dest, dest->head.id->run, fence) || !fence->known)
		resync_destination_raise_fenced(dest->head.id, "The destination does not know the run.");
	if (!fence->active)
		resync_destination_raise_fenced(dest->head.id, "The run was ended or replaced.");
	if (dest->life == NULL || strcmp(dest->life, fence->life) != 0)
		dest->life = MemoryContextStrdup(dest->head.context, fence->life);
}

char *
resync_bq_fence_sql(BqDestination *dest, XLogRecPtr applied)
{
	return psprintf(
		"SELECT IF((SELECT COUNT(*) FROM %s WHERE %s AND life = %s AND source = %s AND"
		" state = 'active' AND applied = %s) = 1, 0, CAST(ERROR('" BQ_FENCED "') AS INT64));\n",
		resync_bq_table(dest, BQ_RUNS_TABLE), resync_bq_run_condition(dest, dest->head.id->run),
		resync_bq_literal(dest->life), resync_bq_literal(resync_destination_source(dest->head.id)),
		resync_bq_literal(resync_bq_lsn(applied)));
}

/* Fence a run of ours out: what it does from now on fails. */
void
resync_bq_retire(BqDestination *dest, int64 run)
{
	(void) resync_bq_exec(
		dest,
		psprintf("UPDATE %s SET state = 'retired', changed_at = CURRENT_TIMESTAMP()"
				 " WHERE %s AND state <> 'retired'",
				 resync_bq_table(dest, BQ_RUNS_TABLE), resync_bq_run_condition(dest, run)),
		NULL, NULL);
}

/* ---------------------------------------------------------------------
 * Runs
 * ------------------------------------------------------------------ */

/* Fence a run of ours out; what it was building goes. */
static void
end_run(BqDestination *dest, int64 run)
{
	resync_bq_retire(dest, run);
	RESYNC_DEBUG_POINT("bq_retired");
	resync_bq_drop_marked(dest, dest->head.id->token, run, false, false);
	(void) resync_bq_exec(dest,
						  psprintf("DELETE FROM %s WHERE %s",
								   resync_bq_table(dest, BQ_PARTITIONS_TABLE),
								   resync_bq_run_condition(dest, run)),
						  NULL, NULL);
}

/* Give a live table this mirror's mark, with another run. */
static void
mark_live(BqDestination *dest, const BqTable *table, int64 run)
{
	JsonNode *patch = resync_json_make();

	resync_bq_set_mark(dest, patch, table->name, run, BQ_ROLE_LIVE, table->life);
	resync_bq_patch_table(dest, table->name, patch);
}

/*
 * Is there a run of this number that is not ours?  A run has applied nothing and
 * swapped nothing before phase load, so that one with another LSN, and marks of
 * live tables, are of a time that the source has lost.  What it was building is
 * dropped; its live tables stay the mirror's, under a number that no run has.
 */
static void
end_namesake(BqDestination *dest, const BqFence *fence, XLogRecPtr start_lsn)
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
		end_run(dest, run);
	}
	tables = resync_bq_marked_tables(dest, dest->head.id->token);
	foreach(lc, tables)
	{
		BqTable *table = lfirst(lc);

		if (table->run == run && strcmp(table->role, BQ_ROLE_LIVE) == 0)
			mark_live(dest, table, -run);
	}
}

static void
bq_begin_run(Destination *head, XLogRecPtr start_lsn)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	const char	  *runs;
	BqFence		   fence;
	BqResult	  *res;

	make_metadata(dest);
	runs = resync_bq_table(dest, BQ_RUNS_TABLE);
	res = resync_bq_query(dest,
						  psprintf("SELECT COUNT(*) AS n FROM %s WHERE token = %s AND source <> %s",
								   runs, resync_bq_literal(head->id->token),
								   resync_bq_literal(resync_destination_source(dest->head.id))),
						  false);
	if (res->nrows != 1 || strcmp(bq_value(res, 0, 0), "0") != 0)
		resync_destination_raise_copy(dest->head.id);
	(void) resync_bq_read_fence(dest, head->id->run, &fence);
	end_namesake(dest, &fence, start_lsn);
	(void) resync_bq_read_fence(dest, head->id->run, &fence);
	if (!fence.active)
	{
		/* one transaction: the run has one row at any time */
		(void) resync_bq_exec(
			dest,
			psprintf(
				"BEGIN TRANSACTION;\nDELETE FROM %s WHERE %s;\n"
				"INSERT INTO %s (token, run, life, mirror, source, state, applied, swapped, changed_at)"
				" VALUES (%s, " INT64_FORMAT
				", '%08x%08x', %s, %s, 'active', %s, FALSE, CURRENT_TIMESTAMP());\n"
				"COMMIT TRANSACTION;",
				runs, resync_bq_run_condition(dest, head->id->run), runs,
				resync_bq_literal(head->id->token), head->id->run, dest->nonce,
				pg_prng_uint32(&pg_global_prng_state), resync_bq_literal(head->id->mirror),
				resync_bq_literal(resync_destination_source(dest->head.id)),
				resync_bq_literal(resync_bq_lsn(start_lsn))),
			NULL, NULL);
	}
	MemoryContextSwitchTo(old);
}

/* All runs of a token; if its rows are there. */
static void
retire_all(BqDestination *dest, const char *token)
{
	if (resync_bq_find_table(dest, BQ_RUNS_TABLE) != NULL)
		(void) resync_bq_exec(dest,
							  psprintf("UPDATE %s SET state = 'retired' WHERE token = %s AND state"
									   " <> 'retired'",
									   resync_bq_table(dest, BQ_RUNS_TABLE),
									   resync_bq_literal(token)),
							  NULL, NULL);
}

/*
 * The original's runs are retired under its own token, as it would have done
 * itself; its live tables get this mirror's mark, with a run number that never
 * meets one of ours; what it had under construction goes.
 */
static void
bq_adopt(Destination *head, const char *old_token)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	List		  *tables;
	ListCell	  *lc;

	retire_all(dest, old_token);
	tables = resync_bq_marked_tables(dest, old_token);
	foreach(lc, tables)
	{
		BqTable *table = lfirst(lc);

		if (strcmp(table->role, BQ_ROLE_LIVE) != 0)
			resync_bq_drop_table(dest, table->name);
		else
			mark_live(dest, table, table->run > 0 ? -table->run : table->run);
	}
	MemoryContextSwitchTo(old);
}

static void
bq_end_run(Destination *head, int64 run)
{
	BqDestination *dest = (BqDestination *) head;
	MemoryContext  old = resync_bq_enter(dest);
	BqFence		   fence;

	/* a run that was never active has made nothing */
	if (resync_bq_read_fence(dest, run, &fence) && fence.known)
		end_run(dest, run);
	MemoryContextSwitchTo(old);
}

static void
bq_drop_mirror(Destination *head, ResyncTable **tables, int ntables, bool drop_tables)
{
	static const char *const names[] = {BQ_PARTITIONS_TABLE, BQ_RUNS_TABLE};
	BqDestination			*dest = (BqDestination *) head;
	MemoryContext			 old = resync_bq_enter(dest);
	BqFence					 fence;

	/* raises if the mark is another source's */
	if (resync_bq_read_fence(dest, head->id->run, &fence))
	{
		retire_all(dest, head->id->token);
		resync_bq_drop_marked(dest, head->id->token, 0, false, drop_tables);
		for (int i = 0; i < lengthof(names); i++)
			(void) resync_bq_exec(dest,
								  psprintf("DELETE FROM %s WHERE token = %s",
										   resync_bq_table(dest, names[i]),
										   resync_bq_literal(head->id->token)),
								  NULL, NULL);
	}
	MemoryContextSwitchTo(old);
}

static RowEncoder *
bq_make_encoder(Destination *dest, const ResyncTable *table, TupleDesc desc)
{
	return resync_encode_bq_make(desc, table);
}

static Datum
bq_decode_field(Destination *dest, const ResyncColumn *col, char *data, int len)
{
	return resync_bq_decode_field(col, data, len);
}

const DestinationRoutine resync_destination_bigquery = {
	.peer_type = "bigquery",
	/* 1,440 batches a day: a table may be loaded into 1,500 times a day */
	.default_sync_interval = 60,
	.has_schemas = false,
	.needs_key = false, /* map_columns looks itself: it knows "append" */
	.max_identifier = 1024,
	.open = bq_open,
	.close = bq_close,
	.version = bq_version,
	.map_columns = resync_bq_map_columns,
	.map_added = resync_bq_map_added,
	.check_table = resync_bq_check_table,
	.begin_run = bq_begin_run,
	.adopt = bq_adopt,
	.end_run = bq_end_run,
	.drop_mirror = bq_drop_mirror,
	.create_table = resync_bq_create_table,
	.done_partitions = resync_bq_done_partitions,
	.reset_table = resync_bq_reset_table,
	.load_begin = resync_bq_load_begin,
	.load_relation = resync_bq_load_relation,
	.load_row = resync_bq_load_row,
	.load_finish = resync_bq_load_finish,
	.load_abort = resync_bq_load_abort,
	.load_bytes = resync_bq_load_bytes,
	.count_rows = resync_bq_count_rows,
	.build_key = resync_bq_build_key,
	.applied_lsn = resync_bq_applied_lsn,
	.apply = resync_bq_apply,
	.make_encoder = bq_make_encoder,
	.decode_field = bq_decode_field,
	.transfer = resync_bq_transfer,
	.swap = resync_bq_swap,
	.is_swapped = resync_bq_is_swapped,
	.after_swap = resync_bq_after_swap,
};
