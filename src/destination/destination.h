/*
 * destination.h
 *		The border between mirrors and the places they go to: a struct of
 *		functions, so that a further destination is one file.
 *
 * A Destination is one connection (or session) of one worker.  All functions
 * run in a background worker or, check_peer only, in a user's backend; none
 * holds a lock or an XID on the source while it waits, and every wait listens
 * to the process latch and CHECK_FOR_INTERRUPTS.  They raise the destination's
 * own error with its SQLSTATE where it has one; net/retry.h tells transient
 * ones.  After an error the Destination can only be closed.
 *
 * Rule 4: every transaction that changes something first locks the run's
 * metadata row and goes on only if token, run and state are as expected;
 * otherwise RESYNC_ERRCODE_FENCED is raised.
 */
#ifndef RESYNC_DESTINATION_H
#define RESYNC_DESTINATION_H

#include "resync.h"

#include "encode/batch.h"
#include "encode/encode.h"
#include "executor/tuptable.h"

/* "the run is no longer in charge here": never retried by this process */
#define RESYNC_ERRCODE_FENCED MAKE_SQLSTATE('R', 'S', '0', '0', '1')
/* "the destination went back in time", "this is a copy": permanent */
#define RESYNC_ERRCODE_DIVERGED MAKE_SQLSTATE('R', 'S', '0', '0', '2')

typedef struct DestinationRoutine DestinationRoutine;

/* Common head; each destination's own struct begins with it. */
typedef struct Destination
{
	const DestinationRoutine *routine;
	MemoryContext			  context; /* everything of this connection; deleting it
								 * closes the connection (reset callback) */
	const ResyncRunId		 *id;	   /* NULL for check_peer */
} Destination;

/* A partition that the destination holds completely (its done-mark). */
typedef struct DonePartition
{
	int64 partition;
	int64 rows;
} DonePartition;

/*
 * By-key fetch from the source, for rows whose change left out values that the
 * destination does not have (rule 7).  Called outside decoding callbacks only.
 */
typedef struct FetchRow
{
	const char	  *key; /* nkeys fields in keypos order */
	uint32		   key_len;
	bool		   found; /* false before the call */
	StringInfoData row;	  /* initialized by the caller; the ncols fields of the
						   * row as it is now are appended */
} FetchRow;

/*
 * Returns how many of the rows, from the first on, were looked up: at least
 * one, and fewer than all once they take much memory.
 */
typedef int (*FetchRowsFn)(void *arg, const ResyncTable *table, FetchRow *rows, int nrows);

struct DestinationRoutine
{
	const char *peer_type;			   /* "postgres" ... */
	double		default_sync_interval; /* seconds */
	bool		has_schemas;		   /* dest_schema is used */
	bool		needs_key;			   /* tables without key only with "append" */
	bool		merges_rows;		   /* rows of one key may become one before
										* they are counted */
	int			max_identifier;		   /* bytes of a table name */

	/*
	 * Connect.  appname is what the destination shows for the connection.
	 * The Destination is made in a new child of the current context.
	 */
	Destination *(*open)(const ResyncPeer *peer, const ResyncRunId *id, const char *appname);
	void (*close)(Destination *dest);

	/* The destination's version as text; connects already did. */
	char *(*version)(Destination *dest);

	/*
	 * Choose dest_name, dest_type, wire, wire_info of every column.  Raises
	 * if one cannot be mapped.
	 */
	void (*map_columns)(Destination *dest, ResyncTable *table);

	/*
	 * The same for a column that was added while the mirror streams; table: as
	 * it was before.  Asks the destination nothing: called in the streamer,
	 * within a decoding callback.
	 */
	void (*map_added)(Destination *dest, const ResyncTable *table, ResyncColumn *col);

	/*
	 * Phase validate, one table; changes nothing.  Privileges to create, a
	 * table in the way that is not ours (live_expected: the live table is this
	 * mirror's, or replace_existing), objects that depend on the old table and
	 * that a swap would lose.  Raises, or appends warnings (char *) to
	 * *warnings.
	 */
	void (*check_table)(Destination *dest, const ResyncTable *table, bool live_expected,
						List **warnings);

	/*
	 * Phase validate, after check_table of each: what all tables together need
	 * there, such as room in a lock table.  Raises.  NULL: nothing.
	 */
	void (*check_tables)(Destination *dest, ResyncTable **tables, int ntables);

	/*
	 * Make the run known: metadata objects if missing, the run's row (applied
	 * LSN = start_lsn).  Repeatable: a run that is active there with that LSN
	 * stays as it is; one that was ended begins again.  One that is active with
	 * another LSN, or whose tables are live, is not this one but its namesake
	 * of a time that the source has lost (it was restored in place, and numbers
	 * its runs once more): what it was building goes, its live tables stay, as
	 * an old run's, and the run begins afresh.  Raises RESYNC_ERRCODE_DIVERGED
	 * if the mirror's mark belongs to another source.
	 */
	void (*begin_run)(Destination *dest, XLogRecPtr start_lsn);

	/*
	 * A copy of the source takes the mirror over: the original's runs (marked
	 * with its token) are fenced out, its tables under construction go, its
	 * live tables become this mirror's.  Repeatable.
	 */
	void (*adopt)(Destination *dest, const char *old_token);

	/*
	 * The run is over (cancelled, failed for good, retired, dropped): fence it
	 * out and drop its tables under construction.  Repeatable; what is gone is
	 * no error.  Never touches live tables.
	 */
	void (*end_run)(Destination *dest, int64 run);

	/* Forget the mirror; drop_tables: its live tables too, if ours. */
	void (*drop_mirror)(Destination *dest, ResyncTable **tables, int ntables, bool drop_tables);

	/*
	 * Phase create_tables: make build_name, empty, without key; one that is
	 * there is replaced if it is ours, else an error.
	 */
	void (*create_table)(Destination *dest, const ResyncTable *table);

	/* Phase load, after a restart: what is done.  List of DonePartition *. */
	List *(*done_partitions)(Destination *dest);

	/* Empty build_name and forget its partitions (they are numbered first..last). */
	void (*reset_table)(Destination *dest, const ResyncTable *table, int64 first_partition,
						int64 last_partition);

	/*
	 * One partition: begin (false: its done-mark is there, nothing to do),
	 * rows, finish (-1: another's done-mark came first, his rows count).
	 * load_row encodes the slot's tuple; desc of load_begin is the descriptor of
	 * the relation that rows come from, until load_relation tells of another,
	 * which outlives the partition, too.  load_finish returns
	 * the number of rows the destination acknowledged; rows and the done-mark
	 * are durable then.  load_abort gives a partition up (no error).
	 * bytes counts what was handed to the network since load_begin.
	 */
	bool (*load_begin)(Destination *dest, const ResyncTable *table, TupleDesc desc,
					   int64 partition);
	void (*load_relation)(Destination *dest, TupleDesc desc);
	void (*load_row)(Destination *dest, TupleTableSlot *slot);
	int64 (*load_finish)(Destination *dest);
	void (*load_abort)(Destination *dest);
	int64 (*load_bytes)(Destination *dest);

	/* After the last partition: rows in build_name. */
	int64 (*count_rows)(Destination *dest, const ResyncTable *table, bool build, bool live_only);

	/*
	 * After the load: make the key (with multi_snapshot: de-duplicate first)
	 * and copy the old table's indexes.  Repeatable.
	 */
	void (*build_key)(Destination *dest, const ResyncTable *table);

	/*
	 * The end LSN of the last transaction applied by the run, as stored there.
	 */
	XLogRecPtr (*applied_lsn)(Destination *dest);

	/*
	 * NULL, or: the end LSN of a batch that an earlier process has begun and
	 * not finished, and that must be sent again as it was; Invalid: none.  The
	 * next batch has to end exactly there.
	 */
	XLogRecPtr (*pending_lsn)(Destination *dest);

	/*
	 * Apply a batch, in one transaction with the new LSN; to_live: into the
	 * live names, else build_name.  expected: the applied LSN that must be
	 * there now.  Afterwards the destination has it durably.  Errors of one
	 * table blame it (resync_destination_blame).
	 */
	void (*apply)(Destination *dest, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				  XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg);

	/* Encoder for rows of a relation, for the batch. */
	RowEncoder *(*make_encoder)(Destination *dest, const ResyncTable *table, TupleDesc desc);

	/*
	 * A field of a key column, which is not NULL, back to a value of the
	 * source's type.  In a transaction of the source; the bytes at data[len]
	 * may be written for a moment.
	 */
	Datum (*decode_field)(Destination *dest, const ResyncColumn *col, char *data, int len);

	/*
	 * Swap step 2: keys that the old (live) table has and build_name has not,
	 * as soft-deleted rows.  Repeatable; returns rows carried over.  Nothing
	 * to do without soft_delete or without an old table.  May append warnings
	 * (char *, in the current context) to *warnings.
	 */
	int64 (*transfer)(Destination *dest, const ResyncTable *table, List **warnings);

	/*
	 * Swap step 3: all tables in one step where the destination can.  lsn:
	 * where the streamer stopped.  retire_run: the run that is replaced, 0 for
	 * none; fenced out in the same step.  False: a lock was not had, nothing
	 * changed; to be called again later.  journal is called where the
	 * destination swaps table by table.
	 */
	bool (*swap)(Destination *dest, ResyncTable **tables, int ntables, XLogRecPtr lsn,
				 int64 retire_run);

	/* After a crash between swap and its note: is this table swapped? */
	bool (*is_swapped)(Destination *dest, const ResyncTable *table);

	/*
	 * NULL, or: all tables are swapped, what is left of the old ones goes.
	 * Repeatable.
	 */
	void (*after_swap)(Destination *dest, ResyncTable **tables, int ntables);
};

/*
 * In an error context callback: the error has to do with this source table
 * (ErrorData's schema_name and table_name).  Of callbacks that are nested at
 * most one may do so.
 */
static inline void
resync_destination_blame(const ResyncTable *table)
{
	err_generic_string(PG_DIAG_SCHEMA_NAME, table->schema);
	err_generic_string(PG_DIAG_TABLE_NAME, table->name);
}

/*
 * Called whenever a wait for a destination is over because the process latch
 * was set; may raise, which gives up what is under way.  NULL: nothing.
 */
extern void resync_destination_set_wait_hook(void (*hook)(void));

/* By wrapper name ("peerdb_postgres", "postgres_fdw", ...).  NULL: unknown. */
extern const DestinationRoutine *resync_destination_routine(const char *wrapper);

/* As above, but raises 42809. */
extern const DestinationRoutine *resync_destination_require(const char *wrapper);

extern const DestinationRoutine resync_destination_postgres;
extern const DestinationRoutine resync_destination_clickhouse;
extern const DestinationRoutine resync_destination_bigquery;
extern const DestinationRoutine resync_destination_snowflake;

#endif /* RESYNC_DESTINATION_H */
