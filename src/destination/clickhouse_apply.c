/*
 * clickhouse_apply.c
 *		Batches of changes into a ClickHouse destination.
 *
 * Called by the streamer.  Rows are appended with their version and deleted
 * flag; the engine makes the table of them.  After all rows are acknowledged,
 * one small INSERT notes the batch's end LSN (rule 3).  A process that dies in
 * between sends the batch again:
 *
 *	Tables with a key: a row's version is the commit LSN of its last change, so
 *	a row that is sent again is the same row, and one that comes late does not
 *	replace a newer one.  (Not the change's own LSN: an INSERT writes its WAL
 *	before it waits for the transaction that deletes the same key.)  Rows of one
 *	transaction in several parts have the same version; of these the engine takes
 *	the one inserted last.
 *
 *	Tables without key: requests have tokens made of the batch's end LSN and the
 *	request's number, and the server leaves out those it has.  For that the
 *	batch must end at the same commit and be cut into the same requests: the end
 *	LSN is noted before the first such request ("pending"), and the streamer
 *	ends its first batch there; a request is one block, cut by constants alone,
 *	whatever the parts of the batch.
 *
 * A request is built in memory and sent at once, so that no connection waits
 * half-way while rows are completed.
 */
#include "postgres.h"

#include "destination/clickhouse.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

/* Rows with unchanged columns are completed in steps of so many. */
#define COMPLETE_STEP 500

/* What is remembered of a table during a call of apply. */
typedef struct ApplyTarget
{
	bool			   known;	  /* was looked at */
	bool			   live;	  /* its rows go to the live name */
	bool			   truncated; /* in this batch */
	int64			   requests;  /* how many were sent */
	struct ApplyTable *append;	  /* without key: its open request, over all parts
								* of the batch; or NULL */
} ApplyTarget;

/* One call of apply. */
typedef struct ApplyState
{
	ChDestination	  *dest;
	ResyncBatch		  *batch;
	bool			   live;
	XLogRecPtr		   expected;
	XLogRecPtr		   end_lsn;
	FetchRowsFn		   fetch;
	void			  *fetch_arg;
	ChFence			   fence;
	uint64			   synced_at;
	bool			   pending_noted;
	int				   ntargets;
	ApplyTarget		  *targets;		  /* by ordinal */
	const ResyncTable *current;		  /* the table that is worked on, or NULL */
	MemoryContext	   table_context; /* reset per table of a part */
	MemoryContext	   row_context;
} ApplyState;

/* One table of a part; in table_context. */
typedef struct ApplyTable
{
	const ResyncTable *table;
	char			  *insert;
	NativeBlock		  *block;
	ApplyState		  *state;
	List			  *open; /* of BatchRow *, in open_context */
	Size			   open_bytes;
	MemoryContext	   open_context;
	MemoryContext	   context; /* of open_append()'s */
} ApplyTable;

/*
 * Where a table's rows go.  A table that is not live yet for the caller may be
 * so: if a swap was interrupted half-way, those that were swapped already have
 * their new names.
 */
static ApplyTarget *
get_target(ApplyState *state, const ResyncTable *table)
{
	ChDestination *dest = state->dest;
	ApplyTarget	  *target;

	if (table->ordinal >= state->ntargets)
	{
		int			 n = table->ordinal + 16;
		ApplyTarget *targets = MemoryContextAllocZero(dest->call, n * sizeof(ApplyTarget));

		if (state->ntargets > 0)
			memcpy(targets, state->targets, state->ntargets * sizeof(ApplyTarget));
		state->targets = targets;
		state->ntargets = n;
	}
	target = &state->targets[table->ordinal];
	if (target->known)
		return target;
	target->live = state->live || resync_ch_is_exchanged(dest, table);
	resync_ch_require_owned(dest, table, target->live);
	target->known = true;
	return target;
}

/* ---------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------ */

/*
 * Equal for equal requests of a table without key, so that one that is sent
 * again is stored once.  After a TRUNCATE in the batch every try has tokens of
 * its own: the TRUNCATE is done again, too, and empties the table of what the
 * last try has sent.
 */
static char *
request_token(ApplyState *state, const ResyncTable *table)
{
	ChDestination *dest = state->dest;
	char		  *token;

	token = psprintf("%s/" INT64_FORMAT "/%d/%X.%X/" INT64_FORMAT, dest->head.id->token,
					 dest->head.id->run, table->ordinal, LSN_FORMAT_ARGS(state->end_lsn),
					 get_target(state, table)->requests);
	if (get_target(state, table)->truncated)
		token = psprintf("%s/%08x" UINT64_FORMAT, token, dest->nonce, dest->requests);
	return token;
}

/* The batch can only be sent again as it is: note where it ends. */
static void
note_pending(ApplyState *state)
{
	if (state->pending_noted)
		return;
	if (state->fence.pending != state->end_lsn)
	{
		resync_ch_put_progress(state->dest, &state->fence, state->dest->head.id->run,
							   state->expected, state->end_lsn);
		RESYNC_DEBUG_POINT("ch_after_intent");
	}
	state->pending_noted = true;
}

/* The block is a request. */
static void
send_block(ApplyState *state, ApplyTable *at)
{
	int	  rows = resync_native_rows(at->block);
	char *token = NULL;

	if (rows == 0)
		return;
	if (at->table->nkeys == 0)
	{
		note_pending(state);
		token = request_token(state, at->table);
	}
	resync_ch_upload_begin(state->dest, at->insert, CH_WHAT_APPLY, token);
	(void) resync_native_write(at->block, resync_ch_upload_put, state->dest);
	(void) resync_ch_upload_end(state->dest, rows);
	RESYNC_DEBUG_POINT("ch_after_request");
	get_target(state, at->table)->requests++;
}

static void
add_row(ApplyState *state, ApplyTable *at, const char *data, XLogRecPtr lsn, bool deleted)
{
	uint64		  extra[3] = {deleted, lsn, state->synced_at};
	MemoryContext old = MemoryContextSwitchTo(state->row_context);

	if (resync_native_add_fields(at->block, data, extra, deleted))
		send_block(state, at);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->row_context);
}

/* ---------------------------------------------------------------------
 * Rows with unchanged columns
 * ------------------------------------------------------------------ */

static void *
copy_bytes(const void *data, Size len)
{
	void *copy = MemoryContextAllocHuge(CurrentMemoryContext, Max(len, 1));

	memcpy(copy, data, len);
	return copy;
}

/* A ChEmitFn. */
static void
add_completed(void *arg, const char *data, XLogRecPtr lsn, bool deleted)
{
	ApplyTable *at = arg;

	add_row(at->state, at, data, lsn, deleted);
}

static void
complete_open(ApplyState *state, ApplyTable *at)
{
	MemoryContext old;

	if (at->open == NIL)
		return;
	old = MemoryContextSwitchTo(at->open_context);
	resync_ch_complete_rows(state->dest, at->table, get_target(state, at->table)->live,
							resync_batch_is_distrusted(state->batch), at->open, state->fetch,
							state->fetch_arg, add_completed, at);
	MemoryContextSwitchTo(old);
	MemoryContextReset(at->open_context);
	at->open = NIL;
	at->open_bytes = 0;
}

/* Keep it for complete_open(). */
static void
add_open(ApplyState *state, ApplyTable *at, const BatchRow *row)
{
	MemoryContext old = MemoryContextSwitchTo(at->open_context);
	BatchRow	 *open = copy_bytes(row, sizeof(BatchRow));

	open->data = copy_bytes(row->data, row->len);
	open->unchanged = copy_bytes(row->unchanged, (at->table->ncols + 7) / 8);
	if (row->base != NULL)
		open->base = copy_bytes(row->base, row->base_len);
	at->open = lappend(at->open, open);
	at->open_bytes += row->len;
	MemoryContextSwitchTo(old);
	if (list_length(at->open) >= COMPLETE_STEP ||
		at->open_bytes >= (Size) resync_copier_buffer * 1024)
		complete_open(state, at);
}

/* ---------------------------------------------------------------------
 * TRUNCATE
 * ------------------------------------------------------------------ */

/*
 * With soft_delete every row there gets a newer version that is deleted.  What
 * the same batch has sent after the TRUNCATE on an earlier try is newer, or is
 * sent again.  A table without key keeps no deleted rows: nothing would tell
 * them from those that an earlier try has sent.
 */
static void
truncate_table(ApplyState *state, const BatchTable *bt)
{
	ChDestination	  *dest = state->dest;
	const ResyncTable *table = bt->table;
	ApplyTarget		  *target = get_target(state, table);
	const char		  *plain = target->live ? table->dest_name : table->build_name;
	const char		  *name = resync_ch_table_name(dest, plain);
	const char		  *deleted = resync_ch_ident(resync_ch_deleted_column(dest));
	const char		  *version = resync_ch_ident(CH_VERSION_COLUMN);
	const char		  *synced_at = resync_ch_synced_at_column(dest);
	ChStatement		   statement = {.what = CH_WHAT_APPLY, .timeout_ms = CH_TIMEOUT_NONE};
	StringInfoData	   names;
	char			  *rows;

	target->truncated = true;
	if (table->nkeys == 0 || !dest->head.id->options->soft_delete)
	{
		statement.sql = psprintf("TRUNCATE TABLE %s.%s%s", resync_ch_ident(dest->database),
								 resync_ch_ident(resync_ch_sql_local(dest->cluster, plain)),
								 resync_ch_sql_on_cluster(dest->cluster));
		if (dest->version_num >= 2312)
			statement.settings = "&max_table_size_to_drop=0";
		(void) resync_ch_send(dest, &statement, NULL);
		return;
	}
	initStringInfo(&names);
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&names, "%s, ", resync_ch_ident(table->cols[i].dest_name));
	if (resync_ch_appends(table))
		rows = psprintf("(SELECT * FROM %s ORDER BY %s, %s DESC LIMIT 1 BY %s) WHERE NOT %s AND",
						name, resync_ch_key_list(table), version, resync_ch_key_list(table),
						deleted);
	else
		rows = psprintf("%s FINAL WHERE", name);
	statement.sql = psprintf("INSERT INTO %s (%s%s, %s%s%s) SELECT %s1, " UINT64_FORMAT
							 "%s FROM %s %s <= " UINT64_FORMAT,
							 name, names.data, deleted, version, synced_at ? ", " : "",
							 synced_at ? resync_ch_ident(synced_at) : "", names.data,
							 bt->truncate_lsn, synced_at ? ", now64(9)" : "", rows, version,
							 bt->truncate_lsn);
	(void) resync_ch_send(dest, &statement, NULL);
}

/* ---------------------------------------------------------------------
 * Parts
 * ------------------------------------------------------------------ */

static void
apply_row(ApplyState *state, ApplyTable *at, const BatchRow *row)
{
	switch (row->op)
	{
		case BATCH_UPSERT:
			/* one that is to be kept as deleted has nothing to be asked for */
			if (row->unchanged != NULL && !row->deleted)
				add_open(state, at, row);
			else
				add_row(state, at, row->data, row->lsn, row->deleted);
			break;
		case BATCH_DELETE:
			add_row(state, at, row->data, row->lsn, true);
			break;
		case BATCH_INSERT:
			/* inserted, then truncated: see truncate_table() */
			if (!row->deleted)
				add_row(state, at, row->data, row->lsn, false);
			break;
		default:
			elog(ERROR, "unexpected change '%c' of table \"%s\"", row->op, at->table->name);
	}
}

/* In the current context, where all of it lives. */
static ApplyTable *
open_table(ApplyState *state, const ResyncTable *table, bool live)
{
	ApplyTable	 *at = palloc0(sizeof(ApplyTable));
	MemoryContext context = CurrentMemoryContext;
	bool		  own_transaction = GetDatabaseEncoding() != PG_UTF8 && !IsTransactionState();
	NativeExtra	  extras[3];
	int			  nextras = resync_ch_extras(state->dest, extras);

	at->table = table;
	at->state = state;
	at->insert = resync_ch_insert(state->dest, table, live);
	at->open_context = AllocSetContextCreate(CurrentMemoryContext, "resync open rows",
											 ALLOCSET_DEFAULT_SIZES);
	/* names are converted, which takes a transaction */
	if (own_transaction)
	{
		StartTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	at->block = resync_native_make(table, NULL, extras, nextras,
								   table->nkeys == 0 ? CH_APPEND_REQUEST_BYTES
													 : (Size) resync_copier_buffer * 1024);
	if (own_transaction)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	return at;
}

/*
 * The open request of a table without key, which goes on over parts: where these
 * end depends on settings.
 */
static ApplyTable *
open_append(ApplyState *state, ApplyTarget *target, const ResyncTable *table)
{
	MemoryContext old;

	if (target->append == NULL)
	{
		old = MemoryContextSwitchTo(AllocSetContextCreate(state->dest->call, "resync apply append",
														  ALLOCSET_DEFAULT_SIZES));
		target->append = open_table(state, table, target->live);
		target->append->context = CurrentMemoryContext;
		MemoryContextSwitchTo(old);
	}
	return target->append;
}

/* Before the table changes, and at the batch's end. */
static void
close_append(ApplyState *state, ApplyTarget *target)
{
	if (target->append == NULL)
		return;
	send_block(state, target->append);
	MemoryContextDelete(target->append->context);
	target->append = NULL;
}

static void
apply_table(ApplyState *state, const BatchTable *bt)
{
	ApplyTarget *target = get_target(state, bt->table);
	ApplyTable	*at;
	BatchRow	 row;

	if (bt->truncate)
	{
		close_append(state, target);
		truncate_table(state, bt);
	}
	if (bt->nrows == 0)
		return;
	if (bt->table->nkeys == 0)
		at = open_append(state, target, bt->table);
	else
		at = open_table(state, bt->table, target->live);
	while (resync_batch_next_row(state->batch, &row))
		apply_row(state, at, &row);
	complete_open(state, at);
	if (bt->table->nkeys > 0)
		send_block(state, at);
}

/* Error context: the table that is being worked on. */
static void
blame_table(void *arg)
{
	const ApplyState *state = arg;

	if (state->current != NULL)
		resync_destination_blame(state->current);
}

static void
apply_parts(ApplyState *state)
{
	List *ddl;

	while (resync_batch_next_part(state->batch, &ddl))
	{
		const BatchTable *bt;
		ListCell		 *lc;

		foreach(lc, ddl)
		{
			const BatchAddColumn *add = lfirst(lc);

			state->current = add->table;
			close_append(state, get_target(state, add->table));
			resync_ch_add_column(state->dest, add, get_target(state, add->table)->live);
		}
		while ((bt = resync_batch_next_table(state->batch)) != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(state->table_context);

			state->current = bt->table;
			apply_table(state, bt);
			MemoryContextSwitchTo(old);
			MemoryContextReset(state->table_context);
		}
		state->current = NULL;
	}
	for (int i = 0; i < state->ntargets; i++)
	{
		if (state->targets[i].append != NULL)
			state->current = state->targets[i].append->table;
		close_append(state, &state->targets[i]);
	}
	state->current = NULL;
}

void
resync_ch_apply(Destination *head, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg)
{
	ChDestination		*dest = (ChDestination *) head;
	MemoryContext		 old = resync_ch_enter(dest);
	ApplyState			 state = {0};
	ErrorContextCallback blame = {error_context_stack, blame_table, &state};

	state.dest = dest;
	state.batch = batch;
	state.live = to_live;
	state.expected = expected;
	state.end_lsn = end_lsn;
	state.fetch = fetch;
	state.fetch_arg = fetch_arg;
	state.synced_at = resync_ch_now();
	state.table_context = AllocSetContextCreate(dest->call, "resync apply table",
												ALLOCSET_DEFAULT_SIZES);
	state.row_context = AllocSetContextCreate(dest->call, "resync apply row",
											  ALLOCSET_DEFAULT_SIZES);

	resync_ch_fence(dest, &state.fence);
	if (state.fence.applied != expected)
		/* another process's note came late: look again where it stands */
		resync_destination_raise_applied(head->id, ERRCODE_T_R_SERIALIZATION_FAILURE,
										 state.fence.applied, expected);
	error_context_stack = &blame;
	apply_parts(&state);
	error_context_stack = blame.previous;
	RESYNC_DEBUG_POINT("ch_before_lsn");
	resync_ch_put_progress(dest, &state.fence, head->id->run, end_lsn, InvalidXLogRecPtr);
	RESYNC_DEBUG_POINT("ch_after_lsn");
	MemoryContextSwitchTo(old);
}
