/*
 * worker.h
 *		What all background workers share: arguments, start-up, error reports.
 */
#ifndef RESYNC_WORKER_H
#define RESYNC_WORKER_H

#include "resync.h"

#include "destination/destination.h"
#include "postmaster/bgworker.h"
#include "worker/shmem.h"

/* "stop what you do: the mirror's requests changed" (coordinator only) */
#define RESYNC_ERRCODE_INTERRUPTED MAKE_SQLSTATE('R', 'S', '0', '0', '3')
/* "this can only be mended by a resync": the run ends, its slot goes */
#define RESYNC_ERRCODE_NEEDS_RESYNC MAKE_SQLSTATE('R', 'S', '0', '0', '4')
/* "a table changed after the snapshot": the run starts over with a new slot */
#define RESYNC_ERRCODE_TABLE_CHANGED MAKE_SQLSTATE('R', 'S', '0', '0', '5')

/* Travels in bgw_extra. */
typedef struct WorkerArgs
{
	Oid	   database;
	uint32 generation; /* of the coordinator that started it */
	int64  mirror;
	int64  run;
	int	   index; /* copier */
} WorkerArgs;

/*
 * Start a worker.  function: exported main; role: for its name ("streamer").
 * notify: wake the calling process when it starts and ends.  The handle is
 * allocated in TopMemoryContext; NULL when no worker slot is free.
 */
extern BackgroundWorkerHandle *
resync_worker_start(const char *function, const char *role, const WorkerArgs *args);

/* SIGHUP and SIGTERM, as all workers handle them. */
extern void resync_worker_signals(void);

/*
 * First thing in every worker's main: signals, connection to the database as
 * bootstrap superuser, pinned settings, application_name "resync <role>".
 */
extern void resync_worker_init(const WorkerArgs *args, const char *role);

/* At the top of every worker's loop: signals, and a reload of the settings. */
extern void resync_worker_interrupts(void);

/* Everything of a run that its workers need, read in one transaction. */
typedef struct WorkerRun
{
	ResyncRunId				  id;
	ResyncOptions			 *options;
	ResyncPeer				 *peer;
	const DestinationRoutine *routine;
	Oid						  owner;
	char					 *slot_name;
	int						  snapshots; /* exported so far */
	ResyncTable				**tables;
	int						  ntables;
} WorkerRun;

/* In the current context; raises when mirror or run are gone. */
extern WorkerRun *resync_worker_load_run(int64 mirror, int64 run);

/* Put the error being handled (CopyErrorData'd) into a report. */
extern void resync_worker_report_error(ResyncErrorReport *report, const ErrorData *edata);

/* Did a worker of the mirror cause the last crash restart? */
extern bool resync_worker_crashed(Oid database, int64 mirror);

/* What pg_stat_activity shows. */
extern void resync_worker_activity(const char *fmt, ...) pg_attribute_printf(1, 2);

/* Switch to the mirror's owner for everything that follows. */
extern void resync_worker_become(Oid owner);

/*
 * Drop a slot if it is there and nobody uses it; true if it is gone now.  Else
 * user (NULL: not asked for) is the process that uses it, or 0.
 */
extern bool resync_worker_drop_slot(const char *name, pid_t *user);

/*
 * WAL that a slot holds back, in bytes; -1: the slot is gone, or was invalidated.
 */
extern int64 resync_worker_slot_retained(const char *name);

/* A slot of ours, as it was a moment ago. */
typedef struct WorkerSlot
{
	char	   name[NAMEDATALEN];
	Oid		   database;
	int64	   run;
	bool	   active;		/* a process has it */
	XLogRecPtr restart_lsn; /* 0: it was invalidated */
} WorkerSlot;

/* Those of a database, or (InvalidOid) of all.  Palloc'ed; outside our lock. */
extern WorkerSlot *resync_worker_slots(Oid database, int *nslots);

/*
 * From where on the slot needs WAL (0: what it needs is lost), and what its
 * streamer has confirmed.  False, and both 0: the slot is gone.
 */
extern bool
resync_worker_slot_positions(const char *name, XLogRecPtr *restart, XLogRecPtr *confirmed);

/* Does it hold more than resync.max_wal_retained?  check: raises NEEDS_RESYNC then. */
extern bool resync_worker_retains_too_much(const char *name);
extern void resync_worker_check_retained(const char *name);

/* Slot names: resync_<database>_<run>. */
extern void resync_worker_slot_name(char *buf, Oid database, int64 run);
extern bool resync_worker_parse_slot_name(const char *name, Oid *database, int64 *run);

extern void resync_launcher_register(void);

/* mains */
extern PGDLLEXPORT void resync_launcher_main(Datum arg);
extern PGDLLEXPORT void resync_probe_main(Datum arg);
extern PGDLLEXPORT void resync_coordinator_main(Datum arg);
extern PGDLLEXPORT void resync_streamer_main(Datum arg);
extern PGDLLEXPORT void resync_copier_main(Datum arg);

#endif /* RESYNC_WORKER_H */
