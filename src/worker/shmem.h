/*
 * shmem.h
 *		What our processes tell each other: one entry per active mirror (which
 *		the launcher keeps a coordinator for) and one per run (which the
 *		coordinator, its streamer and its copiers share).
 *
 * Everything is in one fixed piece of shared memory, protected by one LWLock
 * (ResyncShmem->lock), held for a few instructions only: never across a
 * syscall, a catalog access or an ereport.  Counters that only one process
 * writes are atomics and read without the lock.  Nothing here is durable: after
 * a crash restart all is empty, and the catalog tells what to do.
 */
#ifndef RESYNC_SHMEM_H
#define RESYNC_SHMEM_H

#include "resync.h"

#include "datatype/timestamp.h"
#include "decode/decode.h"
#include "port/atomics.h"
#include "snapshot/snapshot.h"
#include "storage/block.h"
#include "storage/lwlock.h"
#include "storage/proc.h"

#define RESYNC_MAX_COPIERS 32	 /* per run */
#define RESYNC_MAX_DATABASES 128 /* known to the launcher */

/* An error that a worker ended with. */
typedef struct ResyncErrorReport
{
	bool set;
	int	 sqlerrcode;
	char message[RESYNC_MSG_LEN];
	char detail[RESYNC_MSG_LEN];
	char hint[RESYNC_MSG_LEN / 2];
	char schema[NAMEDATALEN]; /* source table, if one is to blame */
	char table[NAMEDATALEN];
} ResyncErrorReport;

/* What the coordinator wants of its streamer. */
typedef enum StreamerCommand
{
	STREAMER_NONE,
	STREAMER_CREATE,	   /* make slot and export its snapshot */
	STREAMER_SNAPSHOT,	   /* slot exists: export a new snapshot */
	STREAMER_STREAM_BUILD, /* apply changes to the tables being built */
	STREAMER_HOLD,		   /* stop at a commit and wait */
	STREAMER_STREAM_LIVE,  /* apply changes to the live tables */
	STREAMER_EXIT		   /* end */
} StreamerCommand;

/* What it is doing. */
typedef enum StreamerState
{
	STREAMER_OFF,
	STREAMER_STARTING,
	STREAMER_CREATING, /* waits for running transactions */
	STREAMER_EXPORTED, /* holds snapshot and table locks */
	STREAMER_STREAMING,
	STREAMER_HELD /* applied_lsn is where */
} StreamerState;

typedef enum CopierState
{
	COPIER_OFF,
	COPIER_STARTING,
	COPIER_IDLE,
	COPIER_WORKING,
	COPIER_DONE,	  /* rows, bytes are final; coordinator takes
								 * note */
	COPIER_REWRITTEN, /* the table changed after the snapshot */
	COPIER_QUIT		  /* nothing more to do: it may go */
} CopierState;

typedef struct CopierShared
{
	CopierState state;
	pid_t		pid;
	int			pgprocno;
	/* the partition it is to load; written by the coordinator while IDLE */
	int64		partition;
	int			ordinal;
	int			nrelations;
	Oid			relations[SNAPSHOT_MAX_RELATIONS]; /* those after the first are read whole */
	BlockNumber first_block;
	BlockNumber last_block;
	/* progress, written by the copier */
	int64			 acknowledged; /* rows, with COPIER_DONE; -1: was done before */
	pg_atomic_uint64 rows;
	pg_atomic_uint64 bytes;
} CopierShared;

typedef struct RunShared
{
	bool   in_use;
	Oid	   database;
	int64  mirror;
	int64  run;
	Oid	   owner;
	uint32 generation; /* of the coordinator: children of an earlier
								 * one go away */
	pid_t  coordinator_pid;
	int	   coordinator_pgprocno;

	/* streamer */
	StreamerCommand command;
	StreamerState	streamer;
	pid_t			streamer_pid;
	int				streamer_pgprocno;
	char			slot_name[NAMEDATALEN];
	char			snapshot_name[MAXPGPATH];
	XLogRecPtr		snapshot_lsn;
	XLogRecPtr		hold_at_least; /* STREAMER_HOLD: not before this LSN */
	int				waits_for_pid; /* CREATING: transaction waited for, 0 = none */
	char			waits_for[64]; /* the same in words */
	bool			yielded;	   /* locks were given up to a waiter; the table: */
	Oid				yielded_relid;

	pg_atomic_uint64 applied_lsn;	  /* durable at the destination */
	pg_atomic_uint64 received_lsn;	  /* decoded */
	pg_atomic_uint64 rows_synced;	  /* since the streamer started */
	pg_atomic_uint64 oldest_pending;  /* commit time of the oldest unapplied
										 * transaction, TimestampTz; 0 none */
	pg_atomic_uint64 flush_request;	  /* LSN somebody waits for: send at once */
	pg_atomic_uint64 advance_request; /* LSN: confirm up to here at once, also
									   * if there is nothing to send */

	/* the mirror's options as they are now: they count from the next batch */
	pg_atomic_uint64 max_batch_size;   /* rows */
	pg_atomic_uint64 sync_interval_ms; /* an int64; below 0: the destination's default */

	/* batches applied and not yet noted in the catalog (ring) */
#define RESYNC_BATCH_RING 64
	uint32 batch_head; /* written by the streamer */
	uint32 batch_tail; /* by the coordinator */
	struct
	{
		XLogRecPtr	first_lsn, last_lsn;
		int64		rows;
		TimestampTz started, finished;
	} batches[RESYNC_BATCH_RING];

	/* columns added on the fly, for the plan in the catalog */
#define RESYNC_MAX_ADDED 32
	int			nadded;
	AddedColumn added[RESYNC_MAX_ADDED];

	/* changes applied per table since the coordinator last took them */
#define RESYNC_MAX_COUNTED 1024
	struct
	{
		int64 inserts, updates, deletes;
	} counts[RESYNC_MAX_COUNTED];

	/* load */
	int			 ncopiers; /* entries in use */
	CopierShared copiers[RESYNC_MAX_COPIERS];

	ResyncErrorReport streamer_error;
	ResyncErrorReport copier_error;
} RunShared;

/* A mirror that the launcher keeps a coordinator for. */
typedef struct MirrorShared
{
	bool		in_use;
	Oid			database;
	int64		mirror;
	bool		wanted;	  /* a coordinator should run */
	bool		kick;	  /* something changed since it last looked */
	bool		starting; /* registered, has not reported its pid yet */
	pid_t		pid;	  /* of the coordinator, 0 = none */
	int			pgprocno;
	int			failures; /* in a row, for the back-off */
	TimestampTz not_before;
	TimestampTz started_at;
} MirrorShared;

typedef struct DatabaseShared
{
	bool		in_use;
	Oid			database;
	bool		probe;			/* look for mirrors there */
	bool		probing;		/* a probe was started and has not reached its end */
	int			probe_failures; /* in a row, for the back-off */
	TimestampTz probe_not_before;
	int			blockers;		   /* DROP DATABASE and the like under way: start nothing */
	bool		dropped_extension; /* its slots are to be removed */
	TimestampTz pruned_at;		   /* history older than resync.log_retention went */
} DatabaseShared;

typedef struct ResyncShared
{
	LWLock		  *lock;
	pid_t		   launcher_pid;
	int			   launcher_pgprocno;
	uint32		   next_generation;
	uint32		   crash_epoch; /* crash restarts since the postmaster started */
	DatabaseShared databases[RESYNC_MAX_DATABASES];
	int			   max_runs; /* 2 * resync.max_mirrors */
	MirrorShared  *mirrors;	 /* resync.max_mirrors */
	RunShared	  *runs;	 /* max_runs */
} ResyncShared;

extern PGDLLIMPORT ResyncShared *ResyncShmem; /* NULL: not preloaded */

/* _PG_init */
extern void resync_shmem_request(void);
extern void resync_shmem_startup(void);

/* Wake a process by its pgprocno; harmless when it is gone. */
extern void resync_shmem_wake(int pgprocno);

/* Entry of a run, or NULL.  Caller holds the lock or owns the entry. */
extern RunShared *resync_shmem_find_run(Oid database, int64 run);
extern RunShared *resync_shmem_claim_run(Oid database, int64 mirror, int64 run, Oid owner);
extern void		  resync_shmem_release_run(RunShared *rs);
extern void		  resync_shmem_child_gone(RunShared *rs);

/*
 * The API changed something of a mirror: at commit, register it with the
 * launcher and wake its coordinator; on abort nothing happens.
 */
extern void resync_shmem_wake_at_commit(int64 mirror);

/* The same for "this database is about to lose the extension". */
extern void resync_shmem_extension_drop_at_commit(void);

/* See shmem.c. */
extern bool			   resync_shmem_want_mirror(Oid database, int64 mirror, bool forget_failures);
extern DatabaseShared *resync_shmem_database(Oid database, bool make);
extern void			   resync_shmem_probe_database(Oid database, bool stop);
extern int			   resync_shmem_signal_workers(Oid database, int signal);

/*
 * Counters of a run as of now, for views and waiting functions.  Returns false
 * when no process works for the run.
 */
typedef struct RunProgress
{
	StreamerState streamer;
	pid_t		  streamer_pid;
	int			  copiers;		/* at work */
	int64		  rows_loading; /* of partitions under way */
	int64		  bytes_loading;
	XLogRecPtr	  applied_lsn;
	XLogRecPtr	  received_lsn;
	int64		  rows_synced;
	TimestampTz	  oldest_pending; /* 0 = none */
	int			  waits_for_pid;
	char		  waits_for[64];
} RunProgress;

extern bool resync_shmem_progress(int64 run, RunProgress *progress);

/* Per copier, for peerdb.partitions: rows and bytes of a partition under way. */
extern bool resync_shmem_partition_progress(int64 run, int64 partition, int64 *rows, int64 *bytes);

/* Ask the streamer to send what it has once it has decoded up to lsn. */
extern void resync_shmem_request_flush(int64 run, XLogRecPtr lsn);

#endif /* RESYNC_SHMEM_H */
