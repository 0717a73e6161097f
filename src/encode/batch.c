/*
 * batch.c
 *		Encoded changes between the decoder and a destination: compaction by
 *		key, parts, spilling.  The rules are in batch.h.
 *
 * Process: the streamer.  Writing happens within decoding callbacks, reading
 * outside of them, when the transaction of the writing may be over: nothing
 * here depends on a transaction or a resource owner.
 *
 * Only the newest part is in memory, in part_context, which is reset when the
 * part goes to the temporary file.  What is remembered of every part (its
 * tables, where their rows begin in the file) stays in data_context.  Memory
 * is measured as what part_context has really got from malloc, so values that
 * were replaced and the hash tables count too.
 *
 * In a table with a key, each entry stands for one key and tells what has
 * become of it since the part began.  An entry's unchanged columns always come
 * from one row, the one that the entry's row was when the part began: its own
 * key's, or "base" after a change of key.  That is why one base per entry is
 * enough, however long a chain of changed keys is.
 */
#include "postgres.h"

#include "encode/batch.h"

#include "common/hashfn.h"
#include "encode/encode.h"
#include "lib/stringinfo.h"
#include "storage/buffile.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

/* One row of a part. */
typedef struct BatchEntry
{
	struct BatchEntry *next;
	char			   op;
	bool			   deleted;
	XLogRecPtr		   lsn;
	char			  *key; /* tables with a key: nkeys fields */
	uint32			   key_len;
	char			  *data; /* ncols fields; NULL for BATCH_DELETE */
	uint32			   len;
	uint8			  *unchanged;
	char			  *base;
	uint32			   base_len;
} BatchEntry;

typedef struct KeyRef
{
	const char *data;
	uint32		len;
} KeyRef;

typedef struct KeySlot
{
	KeyRef		key; /* points into the entry */
	uint32		hash;
	char		status;
	BatchEntry *entry;
} KeySlot;

#define SH_PREFIX keyhash
#define SH_ELEMENT_TYPE KeySlot
#define SH_KEY_TYPE KeyRef
#define SH_KEY key
#define SH_HASH_KEY(tb, k) hash_bytes((const unsigned char *) (k).data, (int) (k).len)
#define SH_EQUAL(tb, a, b) ((a).len == (b).len && memcmp((a).data, (b).data, (a).len) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* The changes of one table in a part. */
typedef struct PartTable
{
	BatchTable pub;
	/* only while the part is in memory: */
	keyhash_hash *hash; /* NULL: table without key */
	BatchEntry	 *head;
	BatchEntry	 *tail;
	/* only when it is in the file: */
	int	  fileno;
	off_t offset;
} PartTable;

typedef struct Part
{
	List *ddl;	  /* of BatchAddColumn * */
	List *tables; /* of PartTable * */
	bool  spilled;
} Part;

/* The temporary file.  Lives in its own context, whose end closes it. */
typedef struct SpillFile
{
	BufFile				 *file;
	bool				  writing; /* true after an error while writing */
	MemoryContextCallback callback;
} SpillFile;

/* What precedes a row in the file; then key, data, unchanged, base. */
typedef struct SpilledRow
{
	XLogRecPtr lsn;
	uint32	   key_len;
	uint32	   len;
	uint32	   base_len;
	char	   op;
	bool	   deleted;
	bool	   has_unchanged;
	bool	   has_base;
} SpilledRow;

struct ResyncBatch
{
	MemoryContext context;		/* of this struct; parent of the others */
	MemoryContext data_context; /* parts; reset whole */
	MemoryContext part_context; /* entries of the part in memory */
	MemoryContext file_context; /* NULL: no file */
	SpillFile	 *spill;
	Size		  memory_limit;
	bool		  soft_delete;
	bool		  distrusted;

	int64		rows;
	XLogRecPtr	first_lsn;
	XLogRecPtr	end_lsn;
	TimestampTz oldest_commit;

	List *parts;   /* of Part *; the last one is in memory */
	Part *current; /* that one, NULL: none yet */

	/* reading */
	int			next_part; /* index into parts */
	Part	   *read_part;
	int			next_table;
	PartTable  *read_table;
	int64		rows_left;
	BatchEntry *read_entry;
	char	   *buffer; /* one row; in data_context */
	Size		buffer_size;
};

#define BITMAP_BYTES(ncols) (((ncols) + 7) / 8)

static inline bool
is_unchanged(const uint8 *bitmap, int col)
{
	return bitmap != NULL && (bitmap[col / 8] & (1 << (col % 8))) != 0;
}

/* Length of the field at p, its length word included. */
static inline uint32
field_size(const char *p)
{
	uint32 n;

	memcpy(&n, p, 4);
	n = pg_ntoh32(n);
	return n == (uint32) -1 ? 4 : n + 4;
}

/*
 * Copy into the part's memory.  Huge: a merged row may have values from two
 * rows, each close to the limit of a palloc.
 */
static char *
part_copy(ResyncBatch *batch, const char *data, Size len)
{
	char *copy = MemoryContextAllocHuge(batch->part_context, Max(len, 1));

	memcpy(copy, data, len);
	return copy;
}

/* ----------------------------------------------------------------
 *		creating, resetting
 * ----------------------------------------------------------------
 */

ResyncBatch *
resync_batch_create(Size memory_limit, bool soft_delete)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "resync batch",
												  ALLOCSET_SMALL_SIZES);
	ResyncBatch	 *batch = MemoryContextAllocZero(context, sizeof(ResyncBatch));

	batch->context = context;
	batch->data_context = AllocSetContextCreate(context, "resync batch data",
												ALLOCSET_DEFAULT_SIZES);
	batch->part_context = AllocSetContextCreate(context, "resync batch part",
												ALLOCSET_DEFAULT_SIZES);
	batch->memory_limit = memory_limit;
	batch->soft_delete = soft_delete;
	return batch;
}

void
resync_batch_reset(ResyncBatch *batch)
{
	batch->distrusted = false;
	if (batch->file_context != NULL)
		MemoryContextDelete(batch->file_context); /* closes the file */
	batch->file_context = NULL;
	batch->spill = NULL;
	MemoryContextReset(batch->part_context);
	MemoryContextReset(batch->data_context);

	batch->rows = 0;
	batch->first_lsn = InvalidXLogRecPtr;
	batch->end_lsn = InvalidXLogRecPtr;
	batch->oldest_commit = 0;
	batch->parts = NIL;
	batch->current = NULL;
	batch->next_part = 0;
	batch->read_part = NULL;
	batch->next_table = 0;
	batch->read_table = NULL;
	batch->rows_left = 0;
	batch->read_entry = NULL;
	batch->buffer = NULL;
	batch->buffer_size = 0;
}

/* ----------------------------------------------------------------
 *		the temporary file
 * ----------------------------------------------------------------
 */

/*
 * The context of the file goes, on reset or with an outer context after an
 * error.  Closing would write what is still buffered; after an error in
 * writing that would raise it again in the middle of the clean-up.  Then the
 * file is left to the process's end, which the error is about to bring.
 */
static void
close_spill_file(void *arg)
{
	SpillFile *spill = arg;

	if (!spill->writing)
		BufFileClose(spill->file);
}

static void
open_spill_file(ResyncBatch *batch)
{
	MemoryContext context = AllocSetContextCreate(batch->context, "resync batch file",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	ResourceOwner oldowner = CurrentResourceOwner;
	SpillFile	 *spill = palloc0(sizeof(SpillFile));

	/* the file outlives the transaction: do not let it remember its owner */
	CurrentResourceOwner = NULL;
	PG_TRY();
	{
		spill->file = BufFileCreateTemp(true);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = oldowner;
	}
	PG_END_TRY();

	spill->callback.func = close_spill_file;
	spill->callback.arg = spill;
	MemoryContextRegisterResetCallback(context, &spill->callback);
	MemoryContextSwitchTo(oldcontext);

	batch->file_context = context;
	batch->spill = spill;
}

static void
write_entry(BufFile *file, const BatchEntry *entry, int ncols)
{
	SpilledRow row;

	memset(&row, 0, sizeof(row));
	row.lsn = entry->lsn;
	row.op = entry->op;
	row.deleted = entry->deleted;
	row.has_unchanged = entry->unchanged != NULL;
	row.has_base = entry->base != NULL;
	/* the key is in the data, but for a delete */
	row.key_len = entry->op == BATCH_DELETE ? entry->key_len : 0;
	row.len = entry->op == BATCH_DELETE ? 0 : entry->len;
	row.base_len = entry->base_len;

	BufFileWrite(file, &row, sizeof(row));
	if (row.key_len > 0)
		BufFileWrite(file, entry->key, row.key_len);
	if (row.len > 0)
		BufFileWrite(file, entry->data, row.len);
	if (row.has_unchanged)
		BufFileWrite(file, entry->unchanged, BITMAP_BYTES(ncols));
	if (row.base_len > 0)
		BufFileWrite(file, entry->base, row.base_len);
}

/*
 * The part in memory is complete and another will follow: write it out.  A
 * part without tables (columns added only) needs no room in the file.
 */
static void
spill_part(ResyncBatch *batch)
{
	Part	 *part = batch->current;
	ListCell *lc;
	char	  nothing;
	size_t	  none;

	if (part == NULL)
		return;

	if (part->tables != NIL && batch->spill == NULL)
		open_spill_file(batch);

	foreach(lc, part->tables)
	{
		PartTable *pt = lfirst(lc);
		BufFile	  *file = batch->spill->file;

		batch->spill->writing = true;
		BufFileTell(file, &pt->fileno, &pt->offset);
		for (BatchEntry *entry = pt->head; entry != NULL; entry = entry->next)
			write_entry(file, entry, pt->pub.table->ncols);
		pt->hash = NULL;
		pt->head = pt->tail = NULL;
	}

	if (part->tables != NIL)
	{
		/* reading nothing flushes the buffer: errors in writing end here */
		none = BufFileRead(batch->spill->file, &nothing, 0);
		(void) none; /* 16 and up: the result must not be ignored */
		batch->spill->writing = false;
	}

	part->spilled = true;
	batch->current = NULL;
	MemoryContextReset(batch->part_context);
}

static void
check_memory(ResyncBatch *batch)
{
	if (MemoryContextMemAllocated(batch->part_context, true) > batch->memory_limit)
		spill_part(batch);
}

/* ----------------------------------------------------------------
 *		parts, tables, entries
 * ----------------------------------------------------------------
 */

static Part *
get_part(ResyncBatch *batch)
{
	if (batch->current == NULL)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(batch->data_context);

		batch->current = palloc0(sizeof(Part));
		batch->parts = lappend(batch->parts, batch->current);
		MemoryContextSwitchTo(oldcontext);
	}
	return batch->current;
}

/*
 * The table in the current part.  Another ResyncTable for the same table may
 * have other columns, so it begins a new part.
 */
static PartTable *
get_table(ResyncBatch *batch, const ResyncTable *table)
{
	Part		 *part = get_part(batch);
	PartTable	 *pt;
	MemoryContext oldcontext;
	ListCell	 *lc;

	/* changes come in runs of one table, mostly: that one is first */
	foreach(lc, part->tables)
	{
		pt = lfirst(lc);
		if (pt->pub.table == table)
		{
			if (foreach_current_index(lc) > 0)
			{
				lfirst(lc) = linitial(part->tables);
				linitial(part->tables) = pt;
			}
			return pt;
		}
		if (pt->pub.table->ordinal == table->ordinal)
		{
			spill_part(batch);
			part = get_part(batch);
			break;
		}
	}

	oldcontext = MemoryContextSwitchTo(batch->data_context);
	pt = palloc0(sizeof(PartTable));
	pt->pub.table = table;
	part->tables = lcons(pt, part->tables);
	MemoryContextSwitchTo(oldcontext);
	if (table->nkeys > 0)
		pt->hash = keyhash_create(batch->part_context, 64, NULL);
	return pt;
}

static BatchEntry *
add_entry(ResyncBatch *batch, PartTable *pt)
{
	BatchEntry *entry = MemoryContextAllocZero(batch->part_context, sizeof(BatchEntry));

	if (pt->tail == NULL)
		pt->head = entry;
	else
		pt->tail->next = entry;
	pt->tail = entry;
	pt->pub.nrows++;
	return entry;
}

static BatchEntry *
find_entry(PartTable *pt, const char *key, uint32 key_len)
{
	KeyRef	 ref = {key, key_len};
	KeySlot *slot = keyhash_lookup(pt->hash, ref);

	return slot == NULL ? NULL : slot->entry;
}

/*
 * The entry of a key.  A new one has op 0 and is to be filled at once.
 */
static BatchEntry *
get_entry(ResyncBatch *batch, PartTable *pt, const char *key, uint32 key_len)
{
	BatchEntry *entry = find_entry(pt, key, key_len);
	KeyRef		ref;
	bool		found;

	if (entry != NULL)
		return entry;

	entry = add_entry(batch, pt);
	entry->key = part_copy(batch, key, key_len);
	entry->key_len = key_len;
	ref.data = entry->key;
	ref.len = key_len;
	keyhash_insert(pt->hash, ref, &found)->entry = entry;
	Assert(!found);
	return entry;
}

/* Give back what an entry holds, but its key. */
static void
clear_values(BatchEntry *entry)
{
	if (entry->data != NULL)
		pfree(entry->data);
	if (entry->unchanged != NULL)
		pfree(entry->unchanged);
	if (entry->base != NULL)
		pfree(entry->base);
	entry->data = NULL;
	entry->len = 0;
	entry->unchanged = NULL;
	entry->base = NULL;
	entry->base_len = 0;
}

static void
free_entry(BatchEntry *entry)
{
	clear_values(entry);
	if (entry->key != NULL)
		pfree(entry->key);
	pfree(entry);
}

/*
 * Where the fields of a row begin: ncols + 1 offsets, palloc'ed.
 */
static uint32 *
field_offsets(const ResyncTable *table, const char *data, uint32 len)
{
	uint32 *offsets = palloc((table->ncols + 1) * sizeof(uint32));
	uint32	pos = 0;

	for (int i = 0; i < table->ncols; i++)
	{
		offsets[i] = pos;
		if (len - pos < 4 || len - pos < field_size(data + pos))
			elog(ERROR, "encoded row of table \"%s\" is too short", table->name);
		pos += field_size(data + pos);
	}
	offsets[table->ncols] = pos;
	if (pos != len)
		elog(ERROR, "encoded row of table \"%s\" is too long", table->name);
	return offsets;
}

/*
 * The key of a row: its key fields in keypos order, palloc'ed.
 */
static char *
extract_key(const ResyncTable *table, const char *data, const uint32 *offsets, uint32 *key_len)
{
	int	  *columns = palloc(table->nkeys * sizeof(int));
	char  *key;
	uint32 pos = 0;
	Size   total = 0;

	for (int i = 0; i < table->ncols; i++)
	{
		if (table->cols[i].keypos > 0)
		{
			columns[table->cols[i].keypos - 1] = i;
			total += offsets[i + 1] - offsets[i];
		}
	}

	key = palloc(total);
	for (int k = 0; k < table->nkeys; k++)
	{
		int	   col = columns[k];
		uint32 n = offsets[col + 1] - offsets[col];

		memcpy(key + pos, data + offsets[col], n);
		pos += n;
	}
	pfree(columns);
	*key_len = pos;
	return key;
}

/* ----------------------------------------------------------------
 *		merging
 * ----------------------------------------------------------------
 */

/* A row on its way into an entry; allocated in the part. */
typedef struct NewRow
{
	char  *data;
	uint32 len;
	uint8 *unchanged;
	char  *base;
	uint32 base_len;
} NewRow;

/*
 * Fill the unchanged columns of a row from the entry that stands for the same
 * row in the part.  What is unchanged there too stays so, and comes from where
 * the entry's columns come from: its base, or its own key's row before the
 * part, unless that is the key the row has now.
 */
static void
merge_columns(ResyncBatch *batch, PartTable *pt, NewRow *row, const uint32 *offsets,
			  const BatchEntry *entry, const KeyRef *new_key)
{
	const ResyncTable *table = pt->pub.table;
	uint32			  *entry_offsets = field_offsets(table, entry->data, entry->len);
	uint8 *unchanged = MemoryContextAllocZero(batch->part_context, BITMAP_BYTES(table->ncols));
	bool   any = false;
	Size   total = 0;
	uint32 pos = 0;
	char  *data;

	for (int i = 0; i < table->ncols; i++)
	{
		const uint32 *from = is_unchanged(row->unchanged, i) ? entry_offsets : offsets;

		total += from[i + 1] - from[i];
	}
	if (total > PG_INT32_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("row of table \"%s.%s\" is too large", table->schema, table->name)));
	data = MemoryContextAllocHuge(batch->part_context, Max(total, 1));

	for (int i = 0; i < table->ncols; i++)
	{
		bool		  old = is_unchanged(row->unchanged, i);
		const char	 *src = old ? entry->data : row->data;
		const uint32 *from = old ? entry_offsets : offsets;
		uint32		  n = from[i + 1] - from[i];

		memcpy(data + pos, src + from[i], n);
		pos += n;
		if (old && is_unchanged(entry->unchanged, i))
		{
			unchanged[i / 8] |= 1 << (i % 8);
			any = true;
		}
	}
	pfree(entry_offsets);
	pfree(row->data);
	pfree(row->unchanged);
	row->data = data;
	row->len = pos;
	row->unchanged = unchanged;

	if (!any)
	{
		pfree(unchanged);
		row->unchanged = NULL;
	}
	else
	{
		const char *base = entry->base != NULL ? entry->base : entry->key;
		uint32		base_len = entry->base != NULL ? entry->base_len : entry->key_len;

		if (base_len != new_key->len || memcmp(base, new_key->data, base_len) != 0)
		{
			row->base = part_copy(batch, base, base_len);
			row->base_len = base_len;
		}
	}
}

/*
 * The row with a key goes away.  With soft_delete what the part knows of it is
 * kept, to end as a soft-deleted row.
 */
static void
delete_entry(ResyncBatch *batch, BatchEntry *entry, XLogRecPtr lsn)
{
	entry->lsn = lsn;
	if (entry->op == BATCH_UPSERT && batch->soft_delete)
		entry->deleted = true;
	else
	{
		clear_values(entry);
		entry->op = BATCH_DELETE;
		entry->deleted = false;
	}
}

/*
 * Columns of the row are unchanged: take those from the row it was, which is
 * that of source_key (the old key, or its own).
 */
static void
resolve_unchanged(ResyncBatch *batch, PartTable *pt, NewRow *row, const uint32 *offsets,
				  const KeyRef *source_key, const KeyRef *new_key)
{
	const ResyncTable *table = pt->pub.table;
	BatchEntry		  *source = find_entry(pt, source_key->data, source_key->len);

	if (source != NULL)
	{
		if (source->op != BATCH_UPSERT || source->deleted)
			elog(ERROR, "update of a row of table \"%s\" that the same batch has deleted",
				 table->name);
		merge_columns(batch, pt, row, offsets, source, new_key);
		return;
	}

	/* the row is one of before the part, so it must not have been emptied */
	if (pt->pub.truncate)
		elog(ERROR, "update of a row of table \"%s\" that the same batch has truncated",
			 table->name);
	if (source_key->len != new_key->len ||
		memcmp(source_key->data, new_key->data, new_key->len) != 0)
	{
		row->base = part_copy(batch, source_key->data, source_key->len);
		row->base_len = source_key->len;
	}
}

static bool
any_bit(const uint8 *bitmap, int ncols)
{
	for (int i = 0; bitmap != NULL && i < ncols; i++)
	{
		if (is_unchanged(bitmap, i))
			return true;
	}
	return false;
}

void
resync_batch_upsert(ResyncBatch *batch, const ResyncTable *table, const char *data, uint32 len,
					const uint8 *unchanged, const char *old_key, uint32 old_key_len, XLogRecPtr lsn)
{
	PartTable  *pt = get_table(batch, table);
	uint32	   *offsets = field_offsets(table, data, len);
	KeyRef		key;
	KeyRef		old = {old_key, old_key_len};
	NewRow		row = {0};
	BatchEntry *entry;
	char	   *key_data;

	Assert(table->nkeys > 0);

	key_data = extract_key(table, data, offsets, &key.len);
	key.data = key_data;
	if (old_key == NULL || (old_key_len == key.len && memcmp(old_key, key.data, key.len) == 0))
		old = key;

	row.data = part_copy(batch, data, len);
	row.len = len;
	if (any_bit(unchanged, table->ncols))
	{
		row.unchanged = (uint8 *) part_copy(batch, (const char *) unchanged,
											BITMAP_BYTES(table->ncols));
		resolve_unchanged(batch, pt, &row, offsets, &old, &key);
	}

	if (old.data != key.data)
	{
		entry = get_entry(batch, pt, old.data, old.len);
		delete_entry(batch, entry, lsn);
	}

	entry = get_entry(batch, pt, key.data, key.len);
	clear_values(entry);
	entry->op = BATCH_UPSERT;
	entry->deleted = false;
	entry->lsn = lsn;
	entry->data = row.data;
	entry->len = row.len;
	entry->unchanged = row.unchanged;
	entry->base = row.base;
	entry->base_len = row.base_len;

	pfree(key_data);
	pfree(offsets);
	batch->rows++;
	check_memory(batch);
}

void
resync_batch_delete(ResyncBatch *batch, const ResyncTable *table, const char *key, uint32 key_len,
					XLogRecPtr lsn)
{
	PartTable *pt = get_table(batch, table);

	Assert(table->nkeys > 0);
	delete_entry(batch, get_entry(batch, pt, key, key_len), lsn);
	batch->rows++;
	check_memory(batch);
}

/* ----------------------------------------------------------------
 *		tables without key
 * ----------------------------------------------------------------
 */

static void
add_plain(ResyncBatch *batch, const ResyncTable *table, char op, const char *data, uint32 len,
		  XLogRecPtr lsn)
{
	PartTable  *pt = get_table(batch, table);
	BatchEntry *entry;

	Assert(table->nkeys == 0);
	entry = add_entry(batch, pt);
	entry->op = op;
	entry->lsn = lsn;
	entry->data = part_copy(batch, data, len);
	entry->len = len;
	batch->rows++;
	check_memory(batch);
}

void
resync_batch_insert(ResyncBatch *batch, const ResyncTable *table, const char *data, uint32 len,
					XLogRecPtr lsn)
{
	add_plain(batch, table, BATCH_INSERT, data, len, lsn);
}

void
resync_batch_remove(ResyncBatch *batch, const ResyncTable *table, const char *data, uint32 len,
					XLogRecPtr lsn)
{
	add_plain(batch, table, BATCH_REMOVE, data, len, lsn);
}

/* ----------------------------------------------------------------
 *		truncate, columns, commits
 * ----------------------------------------------------------------
 */

/*
 * Forget all entries of a table, or with keep_rows only those that remove a
 * row of a table without key.
 */
static void
drop_entries(ResyncBatch *batch, PartTable *pt, bool keep_rows)
{
	BatchEntry *entry = pt->head;
	BatchEntry *next;

	pt->head = pt->tail = NULL;
	pt->pub.nrows = 0;
	for (; entry != NULL; entry = next)
	{
		next = entry->next;
		if (!keep_rows || entry->op == BATCH_REMOVE)
		{
			free_entry(entry);
			continue;
		}
		entry->next = NULL;
		if (pt->tail == NULL)
			pt->head = entry;
		else
			pt->tail->next = entry;
		pt->tail = entry;
		pt->pub.nrows++;
	}

	if (!keep_rows && pt->hash != NULL)
	{
		keyhash_destroy(pt->hash);
		pt->hash = keyhash_create(batch->part_context, 64, NULL);
	}
}

void
resync_batch_truncate(ResyncBatch *batch, const ResyncTable *table, XLogRecPtr lsn)
{
	PartTable *pt = get_table(batch, table);

	/*
	 * A remove must go even when rows are kept: it meant a row of before the
	 * truncate, all of which the truncate covers, and must not hit one that
	 * comes later.  A delete by key may stay, as a later upsert overrides it.
	 */
	drop_entries(batch, pt, batch->soft_delete);
	for (BatchEntry *entry = pt->head; entry != NULL; entry = entry->next)
	{
		if (entry->op == BATCH_UPSERT || entry->op == BATCH_INSERT)
		{
			entry->deleted = true;
			entry->lsn = lsn;
		}
	}
	pt->pub.truncate = true;
	pt->pub.truncate_lsn = lsn;
	batch->rows++;
	check_memory(batch);
}

void
resync_batch_add_column(ResyncBatch *batch, const ResyncTable *table, const char *default_text)
{
	MemoryContext	oldcontext;
	BatchAddColumn *add;
	Part		   *part;

	if (batch->current != NULL && batch->current->tables != NIL)
		spill_part(batch);
	part = get_part(batch);

	oldcontext = MemoryContextSwitchTo(batch->data_context);
	add = palloc(sizeof(BatchAddColumn));
	add->table = table;
	add->default_text = default_text == NULL ? NULL : pstrdup(default_text);
	part->ddl = lappend(part->ddl, add);
	MemoryContextSwitchTo(oldcontext);
}

void
resync_batch_commit(ResyncBatch *batch, XLogRecPtr end_lsn, TimestampTz commit_time)
{
	if (XLogRecPtrIsInvalid(batch->first_lsn))
	{
		batch->first_lsn = end_lsn;
		batch->oldest_commit = commit_time;
	}
	batch->end_lsn = end_lsn;
	batch->oldest_commit = Min(batch->oldest_commit, commit_time);
}

/* ----------------------------------------------------------------
 *		looking
 * ----------------------------------------------------------------
 */

int64
resync_batch_rows(const ResyncBatch *batch)
{
	return batch->rows;
}

XLogRecPtr
resync_batch_end_lsn(const ResyncBatch *batch)
{
	return batch->end_lsn;
}

XLogRecPtr
resync_batch_first_lsn(const ResyncBatch *batch)
{
	return batch->first_lsn;
}

TimestampTz
resync_batch_oldest_commit(const ResyncBatch *batch)
{
	return batch->oldest_commit;
}

/* ----------------------------------------------------------------
 *		reading
 * ----------------------------------------------------------------
 */

bool
resync_batch_next_part(ResyncBatch *batch, List **ddl)
{
	batch->read_table = NULL;
	batch->read_part = NULL;
	if (batch->next_part >= list_length(batch->parts))
		return false;
	batch->read_part = list_nth(batch->parts, batch->next_part++);
	batch->next_table = 0;
	*ddl = batch->read_part->ddl;
	return true;
}

const BatchTable *
resync_batch_next_table(ResyncBatch *batch)
{
	Part	  *part = batch->read_part;
	PartTable *pt;

	Assert(part != NULL);
	batch->read_table = NULL;
	if (batch->next_table >= list_length(part->tables))
		return NULL;

	pt = list_nth(part->tables, batch->next_table++);
	batch->read_table = pt;
	batch->rows_left = pt->pub.nrows;
	batch->read_entry = pt->head;
	if (part->spilled && BufFileSeek(batch->spill->file, pt->fileno, pt->offset, SEEK_SET) != 0)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not seek in temporary file of a batch: %m")));
	return &pt->pub;
}

/* Make the row buffer at least this large; its contents are lost. */
static void
reserve_buffer(ResyncBatch *batch, Size size)
{
	if (batch->buffer_size >= size)
		return;
	size = Max(size, 8192);
	if (batch->buffer != NULL)
		pfree(batch->buffer);
	batch->buffer = NULL;
	batch->buffer_size = 0;
	batch->buffer = MemoryContextAllocHuge(batch->data_context, size);
	batch->buffer_size = size;
}

static void
read_exactly(ResyncBatch *batch, void *ptr, Size size)
{
	if (size > 0 && BufFileRead(batch->spill->file, ptr, size) != size)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not read from temporary file of a batch")));
}

/* Size of the row that delete_row() makes of a key. */
static inline Size
delete_row_size(const ResyncTable *table, uint32 key_len)
{
	return (Size) key_len + (Size) table->ncols * 4;
}

/*
 * A whole row of a key: NULL everywhere else.  out has delete_row_size() bytes.
 * Returns the length.
 */
static uint32
delete_row(const ResyncTable *table, const char *key, char *out)
{
	const char **fields = palloc(table->nkeys * sizeof(char *));
	const uint32 null_word = (uint32) -1; /* the same in any byte order */
	uint32		 pos = 0;

	for (int k = 0; k < table->nkeys; k++)
	{
		fields[k] = key;
		key += field_size(key);
	}
	for (int i = 0; i < table->ncols; i++)
	{
		int			keypos = table->cols[i].keypos;
		const char *src = keypos > 0 ? fields[keypos - 1] : (const char *) &null_word;
		uint32		n = field_size(src);

		memcpy(out + pos, src, n);
		pos += n;
	}
	pfree(fields);
	return pos;
}

static void
read_from_memory(ResyncBatch *batch, BatchRow *row)
{
	const ResyncTable *table = batch->read_table->pub.table;
	const BatchEntry  *entry = batch->read_entry;

	batch->read_entry = entry->next;
	row->op = entry->op;
	row->deleted = entry->deleted;
	row->lsn = entry->lsn;
	row->data = entry->data;
	row->len = entry->len;
	row->unchanged = entry->unchanged;
	row->base = entry->base;
	row->base_len = entry->base_len;
	if (entry->op == BATCH_DELETE)
	{
		reserve_buffer(batch, delete_row_size(table, entry->key_len));
		row->len = delete_row(table, entry->key, batch->buffer);
		row->data = batch->buffer;
	}
}

static void
read_from_file(ResyncBatch *batch, BatchRow *row)
{
	const ResyncTable *table = batch->read_table->pub.table;
	SpilledRow		   head;
	Size			   bitmap;
	Size			   stored;
	char			  *p;

	read_exactly(batch, &head, sizeof(head));
	bitmap = head.has_unchanged ? BITMAP_BYTES(table->ncols) : 0;
	stored = (Size) head.key_len + head.len + bitmap + head.base_len;
	reserve_buffer(batch, stored + delete_row_size(table, head.key_len));
	read_exactly(batch, batch->buffer, stored);

	row->op = head.op;
	row->deleted = head.deleted;
	row->lsn = head.lsn;
	p = batch->buffer + head.key_len;
	row->data = p;
	row->len = head.len;
	p += head.len;
	row->unchanged = head.has_unchanged ? (const uint8 *) p : NULL;
	p += bitmap;
	row->base = head.has_base ? p : NULL;
	row->base_len = head.base_len;
	if (head.op == BATCH_DELETE)
	{
		p = batch->buffer + stored;
		row->len = delete_row(table, batch->buffer, p);
		row->data = p;
	}
}

bool
resync_batch_next_row(ResyncBatch *batch, BatchRow *row)
{
	Assert(batch->read_table != NULL);
	if (batch->rows_left == 0)
		return false;
	batch->rows_left--;
	if (batch->read_part->spilled)
		read_from_file(batch, row);
	else
		read_from_memory(batch, row);
	return true;
}

void
resync_batch_distrust(ResyncBatch *batch)
{
	batch->distrusted = true;
}

bool
resync_batch_is_distrusted(const ResyncBatch *batch)
{
	return batch->distrusted;
}
