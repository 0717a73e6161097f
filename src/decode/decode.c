/*
 * decode.c
 *		WAL into a batch: the decoding context with replaced callbacks, and what
 *		the callbacks make of a change.
 *
 * Process: the streamer, outside any transaction between records.  The context
 * is created inside a transaction, so that PROC_IN_LOGICAL_DECODING stays off
 * and our own reads are protected.  A whole commit is replayed within one
 * LogicalDecodingProcessRecord() call; callbacks only encode and put into the
 * batch, they never send (rule 6).
 */
#include "postgres.h"

#include "compat.h"

#include "decode/decode.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogutils.h"
#include "catalog/pg_inherits.h"
#include "decode/relmap.h"
#include "decode/wal.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/origin.h"
#include "replication/reorderbuffer.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

/* The snapshot that a table without key was loaded under. */
typedef struct LoadedSnapshot
{
	TransactionId xmin;
	TransactionId xmax;
	int			  nxip;
	TransactionId xip[FLEXIBLE_ARRAY_MEMBER];
} LoadedSnapshot;

struct Decoder
{
	DecodeConfig		   *config;
	LogicalDecodingContext *ctx;
	RelMap				   *relmap;
	MemoryContext			context;		/* the decoder's own */
	MemoryContext			change_context; /* reset per change */
	StringInfoData			row;
	StringInfoData			old_row;
	StringInfoData			key;
	StringInfoData			old_key;
	LoadedSnapshot		  **loaded; /* per table; NULL: replay everything */
	DecodeCounts		   *counts;
	const ResyncTable	   *current;
	int64					changes; /* in the transaction being replayed */
};

/* ---- rows ---- */

/*
 * Deform a decoded tuple into arrays of the current context.
 */
static void
deform(HeapTuple tuple, TupleDesc desc, Datum **values, bool **nulls)
{
	*values = palloc(desc->natts * sizeof(Datum));
	*nulls = palloc(desc->natts * sizeof(bool));
	heap_deform_tuple(tuple, desc, *values, *nulls);
}

/* A value that stayed where it is on disk: not in WAL. */
static bool
is_unchanged(TupleDesc desc, int attno, const Datum *values, const bool *nulls)
{
	Form_pg_attribute att = TupleDescAttr(desc, attno);

	return !nulls[attno] && att->attlen == -1 && !att->attisdropped &&
		   VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(values[attno]));
}

/*
 * The key's fields in keypos order.  Key columns that are an unchanged pointer
 * are taken from the old tuple, which is there then.
 */
static void
encode_key(Decoder *decoder, DecodeRel *entry, const ResyncTable *table, TupleDesc desc,
		   const Datum *values, const bool *nulls, StringInfo out)
{
	resetStringInfo(out);
	for (int k = 0; k < table->nkeys; k++)
	{
		int attno = entry->key_attno[k];

		if (nulls[attno] && k < table->nsourcekeys)
			ereport(ERROR,
					(errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
					 errmsg("a change of table \"%s.%s\" arrived without its key column \"%s\"",
							table->schema, table->name, table->cols[entry->key_column[k]].name),
					 errhint("Run peerdb_resync() to rebuild the mirror.")));
		resync_encode_field(entry->encoder, entry->key_column[k], values[attno], nulls[attno], out);
	}
}

/*
 * All fields of a new tuple.  Values that are not in WAL are taken from the old
 * tuple where it has all columns; else they are marked in the returned bitmap
 * (NULL: none).
 */
static uint8 *
encode_new(Decoder *decoder, DecodeRel *entry, const ResyncTable *table, TupleDesc desc,
		   Datum *values, bool *nulls, const Datum *old_values, const bool *old_nulls)
{
	uint8 *unchanged = NULL;

	for (int i = 0; i < desc->natts; i++)
	{
		int column = entry->column[i];

		if (column < 0 || !is_unchanged(desc, i, values, nulls))
			continue;
		if (old_values != NULL && !old_nulls[i] && (entry->full || table->cols[column].keypos > 0))
		{
			values[i] = old_values[i];
			continue;
		}
		if (table->cols[column].keypos > 0)
			ereport(ERROR,
					(errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
					 errmsg("a change of table \"%s.%s\" arrived without its key column \"%s\"",
							table->schema, table->name, table->cols[column].name)));
		if (unchanged == NULL)
			unchanged = palloc0((table->ncols + 7) / 8);
		unchanged[column / 8] |= (uint8) (1 << (column % 8));
		nulls[i] = true;
	}
	resetStringInfo(&decoder->row);
	resync_encode_row(entry->encoder, values, nulls, &decoder->row);
	return unchanged;
}

static void
raise_no_identity(const ResyncTable *table, const char *what)
{
	ereport(
		ERROR,
		(errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
		 errmsg("%s of table \"%s.%s\" arrived without the old row's identity", what, table->schema,
				table->name),
		 errdetail("The table's replica identity was changed after the mirror was built."),
		 errhint("Restore the replica identity, then run peerdb_resync() to rebuild the mirror.")));
}

static void
do_insert(Decoder *decoder, DecodeRel *entry, const ResyncTable *table, TupleDesc desc,
		  HeapTuple newtuple, XLogRecPtr lsn)
{
	Datum *values;
	bool  *nulls;
	uint8 *unchanged;

	deform(newtuple, desc, &values, &nulls);
	unchanged = encode_new(decoder, entry, table, desc, values, nulls, NULL, NULL);
	if (table->nkeys > 0)
		resync_batch_upsert(decoder->config->batch, table, decoder->row.data, decoder->row.len,
							unchanged, NULL, 0, lsn);
	else
		resync_batch_insert(decoder->config->batch, table, decoder->row.data, decoder->row.len,
							lsn);
	decoder->counts[entry->index].inserts++;
}

static void
do_update(Decoder *decoder, DecodeRel *entry, const ResyncTable *table, TupleDesc desc,
		  HeapTuple oldtuple, HeapTuple newtuple, XLogRecPtr lsn)
{
	Datum *values;
	bool  *nulls;
	Datum *old_values = NULL;
	bool  *old_nulls = NULL;
	uint8 *unchanged;
	bool   key_changed = false;

	deform(newtuple, desc, &values, &nulls);
	if (oldtuple != NULL)
		deform(oldtuple, desc, &old_values, &old_nulls);
	unchanged = encode_new(decoder, entry, table, desc, values, nulls, old_values, old_nulls);

	if (table->nkeys > 0)
	{
		if (oldtuple != NULL)
		{
			/* an old tuple alone does not mean that the key changed */
			encode_key(decoder, entry, table, desc, old_values, old_nulls, &decoder->old_key);
			encode_key(decoder, entry, table, desc, values, nulls, &decoder->key);
			key_changed = decoder->key.len != decoder->old_key.len ||
						  memcmp(decoder->key.data, decoder->old_key.data, decoder->key.len) != 0;
		}
		resync_batch_upsert(decoder->config->batch, table, decoder->row.data, decoder->row.len,
							unchanged, key_changed ? decoder->old_key.data : NULL,
							key_changed ? decoder->old_key.len : 0, lsn);
	}
	else
	{
		if (oldtuple == NULL || !entry->full)
			raise_no_identity(table, "an update");
		resetStringInfo(&decoder->old_row);
		resync_encode_row(entry->encoder, old_values, old_nulls, &decoder->old_row);
		resync_batch_remove(decoder->config->batch, table, decoder->old_row.data,
							decoder->old_row.len, lsn);
		resync_batch_insert(decoder->config->batch, table, decoder->row.data, decoder->row.len,
							lsn);
	}
	decoder->counts[entry->index].updates++;
}

static void
do_delete(Decoder *decoder, DecodeRel *entry, const ResyncTable *table, TupleDesc desc,
		  HeapTuple oldtuple, XLogRecPtr lsn)
{
	Datum *values;
	bool  *nulls;

	if (oldtuple == NULL)
		raise_no_identity(table, "a delete");
	deform(oldtuple, desc, &values, &nulls);
	if (table->nkeys > 0)
	{
		encode_key(decoder, entry, table, desc, values, nulls, &decoder->key);
		resync_batch_delete(decoder->config->batch, table, decoder->key.data, decoder->key.len,
							lsn);
	}
	else
	{
		if (!entry->full)
			raise_no_identity(table, "a delete");
		resetStringInfo(&decoder->row);
		resync_encode_row(entry->encoder, values, nulls, &decoder->row);
		resync_batch_remove(decoder->config->batch, table, decoder->row.data, decoder->row.len,
							lsn);
	}
	decoder->counts[entry->index].deletes++;
}

/* ---- tables without key that were loaded late ---- */

/* "xmin:xmax:xip,xip,..." of full transaction ids; NULL for NULL. */
static LoadedSnapshot *
parse_snapshot(const char *text)
{
	LoadedSnapshot *result;
	char		   *pos;

	if (text == NULL)
		return NULL;
	/* a number and a comma take two bytes */
	result = palloc(offsetof(LoadedSnapshot, xip) + (strlen(text) / 2 + 1) * sizeof(TransactionId));
	result->xmin = (TransactionId) strtoull(text, &pos, 10);
	if (*pos != ':')
		elog(ERROR, "invalid snapshot \"%s\"", text);
	result->xmax = (TransactionId) strtoull(pos + 1, &pos, 10);
	if (*pos != ':')
		elog(ERROR, "invalid snapshot \"%s\"", text);
	result->nxip = 0;
	while (*pos != '\0' && pos[1] != '\0')
		result->xip[result->nxip++] = (TransactionId) strtoull(pos + 1, &pos, 10);
	return result;
}

/* Is what this transaction did in the table's load already? */
static bool
was_loaded(const Decoder *decoder, int index, TransactionId xid)
{
	const LoadedSnapshot *loaded = decoder->loaded[index];

	if (loaded == NULL || !TransactionIdPrecedes(xid, loaded->xmax))
		return false;
	for (int i = 0; i < loaded->nxip; i++)
	{
		if (loaded->xip[i] == xid)
			return false;
	}
	return true;
}

/* ---- callbacks ---- */

static void
begin_cb(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	Decoder *decoder = ctx->output_writer_private;

	decoder->changes = 0;
}

static void
commit_cb(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	Decoder *decoder = ctx->output_writer_private;

	if (decoder->changes > 0)
		resync_batch_commit(decoder->config->batch, txn->end_lsn, txn->xact_time.commit_time);
}

static void
change_cb(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation rel,
		  ReorderBufferChange *change)
{
	Decoder			  *decoder = ctx->output_writer_private;
	DecodeRel		  *entry;
	const ResyncTable *table;
	MemoryContext	   old;
	HeapTuple		   oldtuple = RESYNC_CHANGE_TUPLE(change->data.tp.oldtuple);
	HeapTuple		   newtuple = RESYNC_CHANGE_TUPLE(change->data.tp.newtuple);

	CHECK_FOR_INTERRUPTS();
	old = MemoryContextSwitchTo(decoder->change_context);
	entry = resync_relmap_get(decoder->relmap, rel);
	if (entry->index >= 0 && !was_loaded(decoder, entry->index, txn->xid))
	{
		table = decoder->config->tables[entry->index];
		decoder->current = table;
		if (table->identity == 'n' && change->action != REORDER_BUFFER_CHANGE_INSERT)
			raise_no_identity(table, "an update or delete");
		switch (change->action)
		{
			case REORDER_BUFFER_CHANGE_INSERT:
				do_insert(decoder, entry, table, RelationGetDescr(rel), newtuple, txn->final_lsn);
				break;
			case REORDER_BUFFER_CHANGE_UPDATE:
				do_update(decoder, entry, table, RelationGetDescr(rel), oldtuple, newtuple,
						  txn->final_lsn);
				break;
			case REORDER_BUFFER_CHANGE_DELETE:
				do_delete(decoder, entry, table, RelationGetDescr(rel), oldtuple, txn->final_lsn);
				break;
			default:
				elog(ERROR, "unexpected change %d", change->action);
		}
		decoder->changes++;
		decoder->current = NULL;
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(decoder->change_context);
}

/*
 * TRUNCATE names every relation that it emptied.  It can be carried when it
 * emptied all of a mirrored table.
 */
static void
truncate_cb(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, int nrelations,
			Relation relations[], ReorderBufferChange *change)
{
	Decoder		 *decoder = ctx->output_writer_private;
	MemoryContext old = MemoryContextSwitchTo(decoder->change_context);
	List		 *emptied = NIL;

	for (int i = 0; i < nrelations; i++)
		emptied = lappend_oid(emptied, RelationGetRelid(relations[i]));
	for (int i = 0; i < nrelations; i++)
	{
		int index = resync_relmap_root(decoder->relmap, RelationGetRelid(relations[i]));
		const ResyncTable *table;
		List			  *all;
		ListCell		  *lc;

		if (index < 0 || was_loaded(decoder, index, txn->xid))
			continue;
		table = decoder->config->tables[index];
		decoder->current = table;
		all = find_all_inheritors(table->relid, NoLock, NULL);
		foreach(lc, all)
		{
			if (!list_member_oid(emptied, lfirst_oid(lc)))
				ereport(
					ERROR,
					(errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
					 errmsg("TRUNCATE emptied a part of table \"%s.%s\" only", table->schema,
							table->name),
					 errdetail(
						 "A partition or child table was truncated; the mirror cannot tell which rows went."),
					 errhint("Run peerdb_resync() to rebuild the mirror.")));
		}
		if (table->relid == RelationGetRelid(relations[i]))
		{
			resync_batch_truncate(decoder->config->batch, table, txn->final_lsn);
			decoder->changes++;
		}
		decoder->current = NULL;
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(decoder->change_context);
}

/*
 * Our utility hook's note about DDL that leaves no other trace in WAL:
 * "<token of the mirror> <oid of the table> <what happened>".
 */
static void
message_cb(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr lsn, bool transactional,
		   const char *prefix, Size size, const char *message)
{
	Decoder		 *decoder = ctx->output_writer_private;
	MemoryContext old;
	char		 *text;
	char		 *end;
	Oid			  relid;
	size_t		  n;
	int			  index;

	if (strcmp(prefix, "resync") != 0 || !transactional)
		return;
	old = MemoryContextSwitchTo(decoder->change_context);
	text = pnstrdup(message, size);
	n = strlen(decoder->config->token);
	if (strncmp(text, decoder->config->token, n) != 0 || text[n] != ' ')
	{
		/* another mirror's, or somebody else's */
		MemoryContextSwitchTo(old);
		MemoryContextReset(decoder->change_context);
		return;
	}
	relid = (Oid) strtoul(text + n + 1, &end, 10);
	index = resync_relmap_root(decoder->relmap, relid);
	if (index >= 0 && strcmp(end, " +") == 0)
	{
		/* a column was added: now, while the catalog has its value for old rows */
		Relation rel = RelationIdGetRelation(relid);

		if (RelationIsValid(rel))
		{
			decoder->current = decoder->config->tables[index];
			if (rel->rd_rel->relkind == RELKIND_RELATION)
			{
				(void) resync_relmap_get(decoder->relmap, rel);
				decoder->changes++;
			}
			RelationClose(rel);
			decoder->current = NULL;
		}
	}
	else if (index >= 0)
	{
		decoder->current = decoder->config->tables[index];
		ereport(ERROR, (errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
						errmsg("table \"%s.%s\" was changed in a way that its mirror cannot follow",
							   decoder->current->schema, decoder->current->name),
						errdetail_internal("%s", *end == ' ' ? end + 1 : end),
						errhint("Run peerdb_resync() to rebuild the mirror.")));
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(decoder->change_context);
}

/* pgoutput never gets to write: its callbacks are replaced. */
static void
write_nothing(LogicalDecodingContext *ctx, XLogRecPtr lsn, TransactionId xid, bool last_write)
{
	elog(ERROR, "unexpected output of the output plugin");
}

/*
 * Put our callbacks in, after making sure that those there are pgoutput's.
 */
static void
replace_callbacks(LogicalDecodingContext *ctx)
{
	OutputPluginCallbacks	expected;
	LogicalOutputPluginInit init;

	init = (LogicalOutputPluginInit) load_external_function("pgoutput", "_PG_output_plugin_init",
															true, NULL);
	memset(&expected, 0, sizeof(expected));
	init(&expected);
	if (ctx->callbacks.begin_cb != expected.begin_cb ||
		ctx->callbacks.change_cb != expected.change_cb ||
		ctx->callbacks.truncate_cb != expected.truncate_cb || ctx->callbacks.commit_cb == NULL ||
		ctx->callbacks.commit_cb != expected.commit_cb)
		elog(ERROR, "the slot's output plugin is not the pgoutput that was expected");

	ctx->callbacks.begin_cb = begin_cb;
	ctx->callbacks.change_cb = change_cb;
	ctx->callbacks.truncate_cb = truncate_cb;
	ctx->callbacks.commit_cb = commit_cb;
	ctx->callbacks.message_cb = message_cb;
	ctx->callbacks.filter_by_origin_cb = NULL;
	ctx->reorder->output_rewrites = true;
}

/* ---- the decoder ---- */

Decoder *
resync_decode_open(DecodeConfig *config, XLogRecPtr start)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "resync decoder",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Decoder		 *decoder = palloc0(sizeof(Decoder));
	List		 *options;

	Assert(MyReplicationSlot != NULL && !IsTransactionState());
	decoder->config = config;
	decoder->context = context;
	decoder->change_context = AllocSetContextCreate(context, "resync change",
													ALLOCSET_DEFAULT_SIZES);
	initStringInfo(&decoder->row);
	initStringInfo(&decoder->old_row);
	initStringInfo(&decoder->key);
	initStringInfo(&decoder->old_key);
	decoder->counts = palloc0(Max(config->ntables, 1) * sizeof(DecodeCounts));
	decoder->loaded = palloc0(Max(config->ntables, 1) * sizeof(LoadedSnapshot *));
	for (int i = 0; i < config->ntables; i++)
		decoder->loaded[i] = parse_snapshot(config->tables[i]->loaded_snapshot);
	decoder->relmap = resync_relmap_create(config);

	/* inside a transaction: PROC_IN_LOGICAL_DECODING stays off */
	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	options = list_make2(makeDefElem("proto_version", (Node *) makeString("1"), -1),
						 makeDefElem("publication_names", (Node *) makeString("resync"), -1));
	decoder->ctx = CreateDecodingContext(start, options, false,
										 XL_ROUTINE(.page_read = resync_wal_read_page,
													.segment_open = wal_segment_open,
													.segment_close = wal_segment_close),
										 write_nothing, write_nothing, NULL);
	decoder->ctx->output_writer_private = decoder;
	replace_callbacks(decoder->ctx);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);

	XLogBeginRead(decoder->ctx->reader, MyReplicationSlot->data.restart_lsn);
	InvalidateSystemCaches();
	MemoryContextSwitchTo(old);
	return decoder;
}

bool
resync_decode_next(Decoder *decoder)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	XLogRecord	 *record;
	char		 *error = NULL;

	record = XLogReadRecord(decoder->ctx->reader, &error);
	if (error != NULL)
		elog(ERROR, "could not find record while reading WAL for slot \"%s\": %s",
			 NameStr(MyReplicationSlot->data.name), error);
	if (record == NULL)
		return false;
	LogicalDecodingProcessRecord(decoder->ctx, decoder->ctx->reader);

	/* replaying a commit ends in another context and without an owner */
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return true;
}

XLogRecPtr
resync_decode_position(const Decoder *decoder)
{
	return decoder->ctx->reader->EndRecPtr;
}

void
resync_decode_confirm(Decoder *decoder, XLogRecPtr lsn)
{
	if (lsn <= MyReplicationSlot->data.confirmed_flush)
		return;
	LogicalConfirmReceivedLocation(lsn);
	ReplicationSlotMarkDirty();
}

DecodeCounts *
resync_decode_counts(Decoder *decoder)
{
	return decoder->counts;
}

const ResyncTable *
resync_decode_current_table(const Decoder *decoder)
{
	return decoder->current;
}
