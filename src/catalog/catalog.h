/*
 * catalog.h
 *		Rows of the peerdb.* tables as structs, phase transitions, cleanup
 *		records.
 *
 * Every function runs within the caller's transaction and uses SPI as the
 * bootstrap superuser with search_path pinned; results are palloc'ed in the
 * context that was current at the call.  The coordinator is the only writer of
 * a started run's rows (the API writes requests: want_*, new runs).  A worker
 * wraps calls in resync_catalog_begin() / resync_catalog_commit().
 */
#ifndef RESYNC_CATALOG_H
#define RESYNC_CATALOG_H

#include "resync.h"

#include "datatype/timestamp.h"
#include "storage/block.h"
#include "utils/jsonb.h"

typedef enum RunPhase
{
	PHASE_VALIDATE,
	PHASE_DROP,
	PHASE_CREATE_SLOT,
	PHASE_CREATE_TABLES,
	PHASE_LOAD,
	PHASE_CATCH_UP,
	PHASE_SWAP,
	PHASE_STREAM,
	PHASE_ENDED
} RunPhase;

typedef struct MirrorRow
{
	int64  id;
	char  *name;
	Oid	   owner; /* InvalidOid: the role is gone */
	Oid	   server;
	char  *server_name;
	Jsonb *options;
	char  *token;
	uint64 system_identifier;
	Oid	   database;
	char  *instance; /* of the server (catalog/instance.c) */
	bool   is_copy;	 /* the row came here with a copy: status is "failed" */
	bool   restored; /* is_copy, and by a dump of this very database */
	char  *status;
	int64  live_run;   /* 0 = none */
	int64  newest_run; /* 0 = none */
	bool   want_pause;
	bool   want_cancel;
	char  *want_drop;  /* NULL, "keep", "drop" */
	char  *adopt_from; /* token of the original that it is to be taken over from; NULL */
	char  *error;
} MirrorRow;

typedef struct RunRow
{
	int64	   run;
	int64	   mirror;
	bool	   initial; /* kind */
	RunPhase   phase;
	Jsonb	  *options;
	bool	   keep_serving;
	int64	   replaces; /* 0 = none */
	char	  *previous_status;
	char	  *slot_name; /* NULL until created */
	XLogRecPtr snapshot_lsn;
	int		   snapshots;
	XLogRecPtr catch_up_lsn;
	XLogRecPtr confirmed_lsn;
	char	  *step;
	int		   crashes;
	int		   restarts;
	char	  *outcome;
	char	  *error;
} RunRow;

/* A row of peerdb._partition. */
typedef struct RunPartition
{
	int64		partition; /* numbered within the run */
	int			ordinal;   /* the table */
	Oid			relid;	   /* the relation read */
	List	   *more;	   /* Oids of further ones, read whole after it */
	BlockNumber first_block;
	BlockNumber last_block; /* InvalidBlockNumber: open-ended */
	int64		est_rows;	/* only put, into the table's estimate */
	int64		est_bytes;
	char		status;	  /* PARTITION_* */
	int			snapshot; /* the run's how-manieth, 0 = not started */
	int64		rows;	  /* acknowledged; -1 = not known yet */
	int			attempts;
} RunPartition;

#define PARTITION_WAITING 'w'
#define PARTITION_LOADING 'l'
#define PARTITION_DONE 'd'

/* A batch that the destination has, for peerdb._batch. */
typedef struct RunBatch
{
	XLogRecPtr	first_lsn;
	XLogRecPtr	last_lsn;
	int64		rows;
	TimestampTz started;
	TimestampTz finished;
} RunBatch;

/* ---- transactions for workers (catalog/tx.c) ---- */

/* Start a transaction with a snapshot; as bootstrap superuser. */
extern void resync_catalog_begin(void);
extern void resync_catalog_commit(void);

/*
 * SPI wrapper: runs sql with bound parameters as the bootstrap superuser with
 * search_path pinned.  Arguments come in triples (Oid type, Datum value, bool
 * null), nargs of them.  Returns rows processed; the result is in
 * SPI_tuptable until resync_catalog_finish().  expect is SPI_OK_xxx.  Every
 * call needs its finish, also where no rows come back; calls may nest.  The
 * current context is SPI's in between.
 */
extern uint64 resync_catalog_exec(const char *sql, int expect, int nargs, ...);
extern void	  resync_catalog_finish(void);

/*
 * The same for a SELECT that sees what is committed at this moment, whatever
 * the isolation level of the user's transaction.  Needs its finish, too.
 */
extern uint64 resync_catalog_look(const char *sql);

/*
 * In a user's transaction: fn(arg) in a subtransaction.  NULL, or the error that
 * it raised, in the current context; what it did is undone then.  Cancel and
 * shutdown are raised all the same.
 */
extern ErrorData *resync_catalog_try(void (*fn)(void *arg), void *arg);

/* Does this database have the extension?  (No SPI.) */
extern bool resync_catalog_exists(void);

/* ---- options (catalog/options.c) ---- */

/* For messages: a user's text, cut to about 100 bytes. */
extern char *resync_catalog_clip(const char *text);

/* Mirror options (complete or partial) over the defaults.  Raises on unknown
 * keys and bad values. */
extern ResyncOptions *resync_options_parse(Jsonb *options);

/* Checks only: allowed is a NULL-terminated list of keys, NULL for all. */
extern void resync_options_check(Jsonb *options, const char *const *allowed);

/* Raises when an option is set that means nothing to this type of peer. */
extern void resync_options_check_peer(const ResyncOptions *options, const char *peer_type);

/* As parse, back to jsonb with every key: for showing, not for storing.  null:
 * column not wanted; sync_interval: the destination's default. */
extern Jsonb *resync_options_effective(Jsonb *options);

/* ---- peers (catalog/peer.c) ---- */

/*
 * The server and its user mapping (owner's, else PUBLIC's).  Raises
 * ERRCODE_UNDEFINED_OBJECT when the server is gone, and
 * ERRCODE_INSUFFICIENT_PRIVILEGE when owner has lost USAGE on it.
 */
extern ResyncPeer *resync_catalog_peer(Oid server, Oid owner);
extern const char *resync_catalog_peer_type(const char *wrapper); /* "postgres", ...;
																	 * NULL: not one of
																	 * ours */

/* ---- which server is this? (catalog/instance.c) ---- */

/* What a copy of the database or the server, started beside it, is told by. */
#define RESYNC_COPY_ERROR                                                                 \
	"this database is a copy of the one that the mirror was made in\n"                    \
	"DETAIL:  It was restored, cloned, promoted or upgraded by pg_upgrade, or its data"   \
	" directory was moved by copying.\n"                                                  \
	"HINT:  Take the mirror over with peerdb_resume_mirror(mirror, adopt => true), which" \
	" rebuilds it and fences the original, or forget it here with peerdb_drop_mirror()."

/*
 * What a mirror shows whose database is the right one, but whose row came back
 * with a dump, after the extension was dropped: the run that it names is not
 * there, or is another mirror's.
 */
#define RESYNC_RESTORED_ERROR                                                                \
	"this mirror was restored from a dump\n"                                                 \
	"DETAIL:  Its runs and its replication slot do not travel in a dump, and what was"       \
	" changed since is not known.\n"                                                         \
	"HINT:  Rebuild the mirror with peerdb_resume_mirror(mirror, adopt => true), or forget " \
	"it with peerdb_drop_mirror()."

extern char *resync_catalog_instance(void);
extern bool	 resync_catalog_is_copy(uint64 system_identifier, Oid database, const char *instance);

/* ---- mirrors and runs (catalog/mirror.c) ---- */
extern MirrorRow  *resync_catalog_mirror(int64 id); /* NULL: gone */
extern MirrorRow  *resync_catalog_mirror_by_name(const char *name, bool for_update);
extern RunRow	  *resync_catalog_run(int64 run); /* NULL: gone */
extern RunPhase	   resync_catalog_phase_parse(const char *name);
extern const char *resync_catalog_phase_name(RunPhase phase);
extern const char *resync_catalog_phase_status(RunPhase phase); /* of a mirror in it:
																 * "setup", "snapshot",
																 * "running" */

/*
 * The only place where a phase changes; raises on a transition that is not in
 * the table (catalog/README.md), and when the run is not in phase from.  Also
 * sets the mirror's status.  PHASE_ENDED is resync_catalog_end_run()'s.
 */
extern void resync_catalog_set_phase(int64 run, RunPhase from, RunPhase to);

/*
 * The run is over.  outcome: done, refused, failed, cancelled.  Also sets the
 * mirror's status and error, except for done.
 */
extern void
resync_catalog_end_run(int64 run, const char *outcome, int sqlerrcode, const char *error);

/* A pause is done, if it is still wanted. */
extern void resync_catalog_set_paused(int64 mirror);

extern void resync_catalog_set_status(int64 mirror, const char *status);
extern void
resync_catalog_set_error(int64 mirror, int sqlerrcode, const char *error); /* NULL clears */

/* mirror, run: 0 for none; table, detail: or NULL; sqlerrcode: or 0 */
extern void resync_catalog_log(int64 mirror, int64 run, const char *level, const char *table,
							   int sqlerrcode, const char *message, const char *detail);

/* Mirrors that need a coordinator, by id. */
extern int64 *resync_catalog_active_mirrors(int *nmirrors);

/* The run's tables are live now.  Clears the mirror's error. */
extern void resync_catalog_finish_swap(int64 mirror, int64 run);

/* The destination knows that it was taken over. */
extern void resync_catalog_adopted(int64 mirror);

/* Rows of the mirror, its runs and batches go; logs stay. */
extern void resync_catalog_delete_mirror(int64 id);

/* ---- progress of a run (catalog/run.c) ---- */

/*
 * Crash counting (coordinator.c, note_start()): work of a phase was started, by
 * which incarnation of the server and after how many crashes in a row; and it
 * got on, so that those before are not in a row any more.
 */
extern void resync_catalog_note_start(int64 run, const char *step, int crashes);
extern void resync_catalog_note_progress(int64 run);

/* Bytes of WAL that a warning was given for. */
extern void resync_catalog_note_warned(int64 run, int64 bytes);

extern void resync_catalog_set_run_slot(int64 run, const char *slot_name, XLogRecPtr snapshot_lsn);
extern void resync_catalog_set_snapshot(int64 run, int snapshots, XLogRecPtr catch_up_lsn);
extern void resync_catalog_set_confirmed(int64 run, XLogRecPtr lsn);

/* Slots: the row is committed before the slot is made. */
extern void resync_catalog_add_cleanup(const char *slot_name, int64 run);
extern void resync_catalog_remove_cleanup(const char *slot_name);

/* Adds rows; the table's totals grow by them. */
extern void resync_catalog_put_partitions(int64 run, const RunPartition *partitions, int n);
extern RunPartition *resync_catalog_partitions(int64 run, int *n); /* by number */
extern void			 resync_catalog_partition_started(int64 run, int64 partition, int snapshot);

/*
 * Repeatable: counts once.  snapshot: under which of the run's it was read, 0 if
 * that is not known (another process's mark was found).
 */
extern void
resync_catalog_partition_done(int64 run, int64 partition, int snapshot, int64 rows, int64 bytes);

/* Back to waiting. */
extern void resync_catalog_partition_reset(int64 run, int64 partition);

/* Forget the partitions of a table (-1: of all), and what they counted. */
extern void resync_catalog_clear_partitions(int64 run, int ordinal);

extern void resync_catalog_add_batches(int64 mirror, int64 run, const RunBatch *batches, int n);

/* Phase drop: the mirror's batches, and all partitions but keep_run's. */
extern void resync_catalog_clear_stats(int64 mirror, int64 keep_run);

/* Batches, ended runs and logs older than resync.log_retention. */
extern void resync_catalog_prune(void);

/* ---- a run's tables (catalog/run_table.c, catalog/resolve.c) ---- */

/*
 * The mirror's tables as they are at the source now: names looked up again,
 * columns, key.  Raises when a table is gone, has lost its identity, ...
 * Nothing of the destination is filled in but names.  run: for the names under
 * construction; 0: only looking, a rename is not noted in peerdb._table.
 * Tables are locked in ACCESS SHARE until the transaction ends.
 */
extern ResyncTable **
resync_catalog_resolve_tables(int64 mirror, int64 run, const ResyncOptions *options, int *ntables);

/*
 * The first planned table whose columns, key or identity are not those of the
 * same table as resolved now; NULL: all are.  Pure.
 */
extern const ResyncTable *
resync_catalog_find_changed(ResyncTable **planned, ResyncTable **now, int ntables);

/*
 * SELECT on every mirrored column, USAGE on the schema, and no row security
 * that applies: else ERRCODE_INSUFFICIENT_PRIVILEGE.
 */
extern void resync_catalog_check_access(Oid owner, const ResyncTable *table);

/* LOGIN and REPLICATION (or superuser) of the owner: the same. */
extern void resync_catalog_check_role(Oid owner);

extern void resync_catalog_put_run_tables(int64 run, ResyncTable **tables, int ntables);
extern void resync_catalog_put_plan(int64 run, const ResyncTable *table); /* its columns have
																			 * changed */
extern ResyncTable **resync_catalog_run_tables(int64 run, int *ntables);
extern void			 resync_catalog_set_table_state(int64 run, int ordinal, char state);
extern void			 resync_catalog_set_multi_snapshot(int64 run, int ordinal, bool multi_snapshot);
extern void resync_catalog_set_loaded_snapshot(int64 run, int ordinal, const char *snapshot);

/* Changes applied, added to the table's counters. */
extern void resync_catalog_set_table_counts(int64 run, int ordinal, int64 inserts, int64 updates,
											int64 deletes);

/* The source table that a run failed on. */
extern void
resync_catalog_set_table_error(int64 run, const char *schema, const char *table, const char *error);

#endif /* RESYNC_CATALOG_H */
