/*
 * coordinator.h
 *		What the coordinator's files share: children.c (streamers, copiers),
 *		build.c (phases of a run under construction), load.c (phase load),
 *		coordinator.c (requests, the live run, errors).
 */
#ifndef RESYNC_COORDINATOR_H
#define RESYNC_COORDINATOR_H

#include "worker/worker.h"

#include "catalog/catalog.h"

/* loads that start over because a table was changed, until the run fails */
#define RESYNC_MAX_RESTARTS 5

/* A run that this coordinator works for, with its processes. */
typedef struct RunCtl
{
	int64					run; /* 0: unused */
	RunShared			   *rs;
	BackgroundWorkerHandle *streamer;
	int						streamer_failures;
	TimestampTz				streamer_not_before;
	BackgroundWorkerHandle *copiers[RESYNC_MAX_COPIERS];
	int						copier_failures;
	TimestampTz				copier_not_before;
	bool					shortfall_logged;
	bool					in_trouble; /* a child ended by a transient error: */
	ResyncErrorReport		trouble;	/* it; not shown yet if set */
	TimestampTz				noted_at;	/* counters last written to the catalog */
	XLogRecPtr				noted_lsn;
	TimestampTz				over_since; /* the slot holds too much; 0 = it does not */
	XLogRecPtr				over_at;	/* end of WAL then */
	XLogRecPtr				advance_to; /* where the streamer was asked to confirm; 0 = not asked */
} RunCtl;

/* What phase load knows while this coordinator lives. */
typedef struct LoadState
{
	int			  snapshot;	  /* how-manieth is held now, 0 = none */
	bool		  synced;	  /* done-marks were read */
	bool		  rotating;	  /* the snapshot is too old: a fresh one is wanted */
	TimestampTz	  held_since; /* the snapshot */
	RunPartition *partitions;
	int			  npartitions;
	int			  ndone;
	MemoryContext context;
} LoadState;

typedef struct Coordinator
{
	WorkerArgs		   args;
	MirrorShared	  *ms;
	MemoryContext	   context;
	MemoryContext	   step_context; /* reset per step */
	MirrorRow		  *mirror;		 /* in step_context, as are the two runs */
	RunRow			  *newest;
	RunRow			  *live;	/* NULL: none serves */
	RunCtl			   build;	/* the run under construction */
	RunCtl			   serving; /* the live run */
	WorkerRun		  *run;		/* of the build, in run_context; NULL: not read */
	MemoryContext	   run_context;
	Destination		  *dest; /* for the build's DDL; NULL: not connected */
	LoadState		   load;
	XLogRecPtr		   level_target; /* catch_up: where "level" is tried */
	TimestampTz		   level_since;
	int				   swap_tries;
	TimestampTz		   swap_not_before;
	bool			   own_crash;  /* a worker of this mirror crashed the server */
	bool			   in_request; /* what was asked for is being done: not to be interrupted */
	int64			   noted_run;  /* note_start() */
	RunPhase		   noted_phase;
	TimestampTz		   watched_at; /* resync_watch_serving() */
	uint32			   peer_hash;  /* of the options that lead to the destination; 0 = not known */
	TimestampTz		   streaming_since; /* step_serving() */
	const ResyncTable *table;			/* the step works on, NULL: none or all */
	int				   failures;		/* transient errors in a row */
	TimestampTz		   not_before;
} Coordinator;

/* children.c */
extern void			 resync_children_attach(Coordinator *co, RunCtl *ctl, int64 run);
extern void			 resync_children_pass_options(Coordinator *co, RunCtl *ctl);
extern StreamerState resync_children_streamer(RunCtl *ctl, const WorkerArgs *args,
											  StreamerCommand command, XLogRecPtr hold_at_least);
extern void			 resync_children_dismiss_copiers(RunCtl *ctl);
extern void			 resync_children_stop_copiers(RunCtl *ctl);
extern void			 resync_children_stop(RunCtl *ctl);
extern void			 resync_children_detach(RunCtl *ctl);
extern void			 resync_children_kill(RunCtl *ctl);
extern void			 resync_children_note(Coordinator *co, RunCtl *ctl, bool force);
extern void			 resync_children_raise(ResyncErrorReport *report);
extern bool			 resync_children_reap_copier(RunCtl *ctl, int i, bool *died);

/* build.c: one step of the run under construction; ms to wait for the next */
extern long resync_build_step(Coordinator *co);
extern void resync_build_open(Coordinator *co);
extern void resync_build_close(Coordinator *co);
extern void resync_build_drop_slot(Coordinator *co, int64 run);
extern void resync_build_restart(Coordinator *co);

/* load.c */
extern long resync_load_step(Coordinator *co);
extern void resync_load_forget(Coordinator *co);

/* watch.c */
extern void resync_watch_serving(Coordinator *co);
extern bool resync_watch_retained(Coordinator *co, StreamerState state);

#endif /* RESYNC_COORDINATOR_H */
