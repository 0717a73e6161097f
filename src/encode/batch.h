/*
 * batch.h
 *		Encoded changes between the decoder, which writes them, and a
 *		destination, which reads them once (rules 5, 6, 11).
 *
 * A batch holds the changes of one or more whole source transactions.  It
 * consists of parts, applied in order within one destination transaction.  In
 * a part, the changes of a table with a key are compacted: per key the last
 * change wins, merged column by column.  A part that outgrows the memory limit
 * is written to a temporary file, and a new part begins; a change of a table's
 * columns begins a new part too.
 *
 * Process: the streamer.  No network, no catalog.  Memory: one context per
 * batch, child of the one current at resync_batch_create(), reset whole.
 *
 * Within a part, the order that a reader must apply for one table is
 *		1. truncate, if set
 *		2. columns that a row takes from another key's row ("base")
 *		3. BATCH_DELETE   4. BATCH_UPSERT        (tables with a key)
 *		   BATCH_INSERT, then BATCH_REMOVE       (tables without)
 * Rows come in no particular order otherwise.
 */
#ifndef RESYNC_BATCH_H
#define RESYNC_BATCH_H

#include "resync.h"

#include "datatype/timestamp.h"

typedef struct ResyncBatch ResyncBatch;

/* what happened to a row */
#define BATCH_UPSERT 'U' /* the row with this key has these values */
#define BATCH_DELETE \
	'D'					 /* the row with this key is gone; fields
								 * outside the key are NULL */
#define BATCH_INSERT 'I' /* table without key: one more row */
#define BATCH_REMOVE 'R' /* table without key: one equal row less */

typedef struct BatchRow
{
	char		 op;
	bool		 deleted; /* BATCH_UPSERT: inserted or changed, then
								 * deleted; BATCH_INSERT: inserted, then
								 * truncated: to be kept as a soft-deleted row
								 * with these values.  Only with soft_delete. */
	XLogRecPtr	 lsn;	  /* of the last change merged into the row */
	const char	*data;	  /* ncols fields (encode.h), in the order of
								 * the table's columns */
	uint32		 len;
	const uint8 *unchanged; /* NULL, or a bitmap over the columns: bit i
								 * set (byte i/8, bit i%8): value not known,
								 * it is the one the destination has already;
								 * the field is -1.  Never a key column. */
	const char	*base;		/* NULL: unchanged columns are those of the
								 * row with this row's own key.  Else nkeys
								 * fields in keypos order: the key of the
								 * destination's row they come from, as it was
								 * before this part. */
	uint32		 base_len;
} BatchRow;

/* A column to be added before the part's rows are applied. */
typedef struct BatchAddColumn
{
	const ResyncTable *table;		 /* as it is afterwards: the column is the last */
	char			  *default_text; /* value of rows that exist already, as text;
								 * NULL for NULL */
} BatchAddColumn;

/* The changes of one table in a part. */
typedef struct BatchTable
{
	const ResyncTable *table; /* its columns at that time */
	bool			   truncate;
	XLogRecPtr		   truncate_lsn;
	int64			   nrows;
} BatchTable;

/*
 * ---- writing ----
 *
 * The ResyncTables are only pointed to: they have to live, unchanged, until
 * the batch is reset.  A table with a new column is a new ResyncTable.
 */

/* memory_limit: bytes; soft_delete: keep deleted rows' values. */
extern ResyncBatch *resync_batch_create(Size memory_limit, bool soft_delete);

/*
 * A row of a table with a key was inserted or changed.  data/len: ncols
 * fields; unchanged: bitmap or NULL, as in BatchRow.  old_key: NULL when the
 * key did not change, else the old key's nkeys fields in keypos order: the
 * old key is deleted, and unchanged columns come from its row.  Everything is
 * copied.
 */
extern void resync_batch_upsert(ResyncBatch *batch, const ResyncTable *table, const char *data,
								uint32 len, const uint8 *unchanged, const char *old_key,
								uint32 old_key_len, XLogRecPtr lsn);

/* A row of a table with a key was deleted.  key: nkeys fields, keypos order. */
extern void resync_batch_delete(ResyncBatch *batch, const ResyncTable *table, const char *key,
								uint32 key_len, XLogRecPtr lsn);

/* Tables without key: data/len are ncols fields; nothing is compacted. */
extern void resync_batch_insert(ResyncBatch *batch, const ResyncTable *table, const char *data,
								uint32 len, XLogRecPtr lsn);
extern void resync_batch_remove(ResyncBatch *batch, const ResyncTable *table, const char *data,
								uint32 len, XLogRecPtr lsn);

/*
 * TRUNCATE: empties what came before it in the part; with soft_delete the
 * rows before it become soft-deleted rows instead.  (What a table without key
 * had removed before it is forgotten in both: the reader's truncate comes
 * first and covers those rows.)
 */
extern void resync_batch_truncate(ResyncBatch *batch, const ResyncTable *table, XLogRecPtr lsn);

/* Begins a new part, which starts with this. */
extern void
resync_batch_add_column(ResyncBatch *batch, const ResyncTable *table, const char *default_text);

/* A source transaction is complete; end_lsn is the end of its commit record. */
extern void resync_batch_commit(ResyncBatch *batch, XLogRecPtr end_lsn, TimestampTz commit_time);

/* ---- looking ---- */
extern int64	   resync_batch_rows(const ResyncBatch *batch);		 /* changes put in, before
															 * compaction; a TRUNCATE
															 * is one */
extern XLogRecPtr  resync_batch_end_lsn(const ResyncBatch *batch);	 /* of the last commit;
																	 * Invalid: empty */
extern XLogRecPtr  resync_batch_first_lsn(const ResyncBatch *batch); /* end LSN of the first
																	 * commit */
extern TimestampTz resync_batch_oldest_commit(const ResyncBatch *batch);

/*
 * A batch that is replayed over rows of a later snapshot (rule 2): the
 * destination's row with a "base" key may be another one by now, so a row with a
 * base gets its unchanged columns from the source, by its own key.  Off after
 * reset.
 */
extern void resync_batch_distrust(ResyncBatch *batch);
extern bool resync_batch_is_distrusted(const ResyncBatch *batch);

/* ---- reading, once, in order; after the last commit was added ---- */

/* Next part, or false.  ddl: list of BatchAddColumn * to apply first. */
extern bool resync_batch_next_part(ResyncBatch *batch, List **ddl);

/* Next table of the part, or NULL. */
extern const BatchTable *resync_batch_next_table(ResyncBatch *batch);

/* Next row of the table, or false.  Its pointers live until the next call. */
extern bool resync_batch_next_row(ResyncBatch *batch, BatchRow *row);

/* Empty it: memory given back, temporary files removed. */
extern void resync_batch_reset(ResyncBatch *batch);

#endif /* RESYNC_BATCH_H */
