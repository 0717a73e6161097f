/*
 * postgres.h
 *		What the files of the PostgreSQL destination share: the connection, and
 *		the transactions it works in.  Nobody else includes it.
 *
 *	postgres.c			connect, runs and their marks, the fence
 *	postgres_map.c		source types to destination types
 *	postgres_check.c	phase validate
 *	postgres_ddl.c		create, reset, key, indexes, privileges
 *	postgres_load.c		copying partitions
 *	postgres_apply.c	batches
 *	postgres_swap.c		tombstones, swap
 */
#ifndef RESYNC_DESTINATION_POSTGRES_H
#define RESYNC_DESTINATION_POSTGRES_H

#include "destination/common.h"
#include "destination/destination.h"
#include "net/pq.h"

/* Rows are handed to libpq in pieces of about this many bytes. */
#define PG_COPY_CHUNK (128 * 1024)

/* Stage: a temporary table through which a batch's rows reach their table. */
typedef struct PgStage
{
	int	  ordinal;
	char *signature; /* columns it was made for */
	char *name;
} PgStage;

/* A partition being loaded. */
typedef struct PgLoad
{
	bool			   active;
	const ResyncTable *table;
	int64			   partition;
	RowEncoder		  *encoder;
	bool			   text; /* COPY in text format */
	int64			   bytes;
	MemoryContext	   context; /* of the partition */
	MemoryContext	   row_context;
	StringInfo		   chunk;
	StringInfo		   row; /* text format: fields before conversion */
} PgLoad;

typedef struct PgDestination
{
	Destination	  head;
	PGconn		 *conn;
	int			  version; /* as PQserverVersion */
	char		 *meta;	   /* metadata schema, plain */
	char		 *meta_quoted;
	MemoryContext call;	  /* reset at the start of each method */
	List		 *stages; /* of PgStage * */
	int			  next_stage;
	PgLoad		  load;
	int			  swaps_without_room; /* swaps that the lock table had no room for */
} PgDestination;

/* How a transaction locks the run's row. */
typedef enum PgFence
{
	PG_FENCE_SHARE, /* beside others of the run */
	PG_FENCE_UPDATE /* alone */
} PgFence;

typedef struct PgFenceInfo
{
	XLogRecPtr applied;
	char	  *owned; /* " 0b 1s ...": tables that are where and what
								 * our marks say; b = build, s = swapped */
} PgFenceInfo;

/* Tables that the fence looks at: one by its ordinal, or these. */
#define PG_ALL_TABLES (-1)
#define PG_NO_TABLE (-2)

/* postgres.c */
extern MemoryContext resync_pg_enter(PgDestination *dest);
extern const char	*resync_pg_literal(const char *text);
extern char			*resync_pg_run_condition(PgDestination *dest, const char *alias);
extern void resync_pg_begin(PgDestination *dest, PgFence fence, const char *more, int tables,
							PgFenceInfo *info);
extern void resync_pg_check_fence(PgDestination *dest, int tables, PgFenceInfo *info);
extern void resync_pg_commit(PgDestination *dest);
extern void resync_pg_rollback(PgDestination *dest);
extern void resync_pg_require_owned(const PgFenceInfo *info, const ResyncTable *table, bool live);
extern bool resync_pg_has_metadata(PgDestination *dest);
extern const char *resync_pg_build(const ResyncTable *table);
extern const char *resync_pg_live(const ResyncTable *table);
extern const char *resync_pg_soft_delete_column(const PgDestination *dest);
extern const char *resync_pg_synced_at_column(const PgDestination *dest);
extern char		  *resync_pg_lsn(XLogRecPtr lsn);

extern bool resync_pg_is_text(const ResyncTable *table);

/* postgres_map.c */
extern void resync_pg_map_columns(Destination *dest, ResyncTable *table);
extern void resync_pg_map_added(Destination *dest, const ResyncTable *table, ResyncColumn *col);

/* postgres_check.c */
extern void resync_pg_check_table(Destination *dest, const ResyncTable *table, bool live_expected,
								  List **warnings);
extern void resync_pg_check_tables(Destination *dest, ResyncTable **tables, int ntables);

/* postgres_ddl.c */
extern void	 resync_pg_raise_in_the_way(const ResyncTable *table);
extern void	 resync_pg_create_table(Destination *dest, const ResyncTable *table);
extern void	 resync_pg_reset_table(Destination *dest, const ResyncTable *table,
								   int64 first_partition, int64 last_partition);
extern void	 resync_pg_build_key(Destination *dest, const ResyncTable *table);
extern char *resync_pg_column_list(const PgDestination *dest, const ResyncTable *table);
extern bool	 resync_pg_savepoint(PgDestination *dest, const char *sql, const char *what);
extern char **
resync_pg_key_operators(PgDestination *dest, const ResyncTable *table, const char *target);
extern char *resync_pg_index_prefix(const PgDestination *dest, const ResyncTable *table);

/* postgres_load.c */
extern bool
resync_pg_load_begin(Destination *dest, const ResyncTable *table, TupleDesc desc, int64 partition);
extern void	 resync_pg_load_relation(Destination *dest, TupleDesc desc);
extern void	 resync_pg_load_row(Destination *dest, TupleTableSlot *slot);
extern int64 resync_pg_load_finish(Destination *dest);
extern void	 resync_pg_load_abort(Destination *dest);
extern int64 resync_pg_load_bytes(Destination *dest);
extern List *resync_pg_done_partitions(Destination *dest);
extern int64
resync_pg_count_rows(Destination *dest, const ResyncTable *table, bool build, bool live_only);

/* postgres_apply.c */
extern void
resync_pg_apply(Destination *dest, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg);

/* postgres_swap.c */
extern int64 resync_pg_transfer(Destination *dest, const ResyncTable *table, List **warnings);
extern bool	 resync_pg_swap(Destination *dest, ResyncTable **tables, int ntables, XLogRecPtr lsn,
							int64 retire_run);
extern bool	 resync_pg_is_swapped(Destination *dest, const ResyncTable *table);

#endif /* RESYNC_DESTINATION_POSTGRES_H */
