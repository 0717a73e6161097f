/*
 * decode.h
 *		The slot's life, and WAL from it into a batch.
 *
 * Process: the streamer only; it never writes anything on the source.  The
 * slot is made with the stock pgoutput plugin; a decoder replaces the plugin's
 * callbacks in memory, so that changes arrive as tuples (rule 1).
 */
#ifndef RESYNC_DECODE_H
#define RESYNC_DECODE_H

#include "resync.h"

#include "encode/batch.h"
#include "encode/encode.h"

/* What "this can only be mended by a resync" is raised with. */
#define RESYNC_DECODE_ERRCODE_NEEDS_RESYNC MAKE_SQLSTATE('R', 'S', '0', '0', '4')

/*
 * Make a slot and export its snapshot.  Outside a transaction; leaves the
 * exporting REPEATABLE READ READ ONLY transaction open (its end ends the
 * snapshot), and the slot persistent and acquired again, so that it stays
 * active.  Waits for every running transaction that writes; on error or exit
 * before it is done the slot is gone.  snapshot_name: MAXPGPATH bytes.
 */
extern XLogRecPtr resync_slot_create(const char *slot_name, char *snapshot_name);

/*
 * A fresh snapshot for a slot that exists: acquires it, starts such a
 * transaction and exports its snapshot.  Returns the LSN up to which WAL must
 * be applied so that the destination is consistent with it.
 */
extern XLogRecPtr resync_slot_export(const char *slot_name, char *snapshot_name);

/*
 * Flush all WAL that was inserted so far, and return its end: what a snapshot
 * may show of asynchronous commits is durable then.
 */
extern XLogRecPtr resync_wal_flush(void);

/* End the exporting transaction; the slot stays acquired. */
extern void resync_slot_release_snapshot(void);

/*
 * Acquire the slot if this process does not have it.  Raises NEEDS_RESYNC
 * when it is gone or was invalidated; returns its confirmed LSN.
 */
extern XLogRecPtr resync_slot_acquire(const char *slot_name);

/* How a decoder asks for encoders: the destination's make_encoder. */
typedef RowEncoder *(*MakeEncoderFn)(void *arg, const ResyncTable *table, TupleDesc desc);

/* How it asks for an added column's dest_name, dest_type, wire and wire_info. */
typedef void (*MapAddedFn)(void *arg, const ResyncTable *table, ResyncColumn *col);

typedef struct DecodeConfig
{
	ResyncTable **tables; /* replaced by newer versions as columns are
								 * added */
	int			  ntables;
	List		**ignored; /* per table: names (char *) of columns that
								 * are left out on purpose */
	const char	 *token;   /* of the mirror: messages that carry it are ours */
	ResyncBatch	 *batch;   /* changes go here */
	MakeEncoderFn make_encoder;
	MapAddedFn	  map_added;
	void		 *make_encoder_arg; /* of both */
} DecodeConfig;

/* A column that was added at the source while the mirror streamed. */
typedef struct AddedColumn
{
	int		   ordinal; /* of the table */
	NameData   name;
	AttrNumber attnum;
	Oid		   typid;
	int32	   typmod;
	bool	   notnull;
	bool	   generated;
	/* what the destination makes of it */
	char dest_name[256];
	char dest_type[256];
	char wire[16];
	char wire_info[256]; /* empty: none */
} AddedColumn;

/* False: the column's names or types are too long. */
extern bool resync_decode_describe_column(const ResyncTable *table, const ResyncColumn *col,
										  AddedColumn *added);

/* A copy of the table, in the current context, with one more column. */
extern ResyncTable *
resync_decode_table_with_column(const ResyncTable *table, const AddedColumn *added);

typedef struct Decoder Decoder;

/* Counters per table, since the decoder was opened. */
typedef struct DecodeCounts
{
	int64 inserts;
	int64 updates;
	int64 deletes;
} DecodeCounts;

/*
 * Start decoding: transactions that end at or before start are skipped.  The
 * slot is acquired.  Outside a transaction.  Once per process: it lives, in a
 * context of its own, and config with it, until the process ends.
 */
extern Decoder *resync_decode_open(DecodeConfig *config, XLogRecPtr start);

/*
 * Process one WAL record.  False: there is none flushed yet.  Outside a
 * transaction.  Raises NEEDS_RESYNC for what cannot be carried (rule 12).
 */
extern bool resync_decode_next(Decoder *decoder);

/* End of the last record read; everything committed before it is in the batch. */
extern XLogRecPtr resync_decode_position(const Decoder *decoder);

/* Everything up to lsn is durable at the destination: WAL before may go. */
extern void resync_decode_confirm(Decoder *decoder, XLogRecPtr lsn);

extern DecodeCounts *resync_decode_counts(Decoder *decoder); /* per table */

/* Of the table to blame while an error is handled; NULL: none. */
extern const ResyncTable *resync_decode_current_table(const Decoder *decoder);

#endif /* RESYNC_DECODE_H */
