/*
 * resync.h
 *		What every layer shares: the plain structs that describe a peer, a
 *		mirrored table and a run, and the settings (GUCs).
 *
 * Includes nothing of ours, so every layer may include it.  Structs here are
 * plain data: filled by catalog/, read by everybody else.
 */
#ifndef RESYNC_H
#define RESYNC_H

#include "postgres.h"

#include "access/attnum.h"
#include "access/xlogdefs.h"
#include "nodes/pg_list.h"

#define RESYNC_SCHEMA "peerdb"
#define RESYNC_EXTENSION "resync"

/* Longest error text that crosses shared memory, in bytes with the NUL. */
#define RESYNC_MSG_LEN 1024

/*
 * A destination, as a worker needs it.  Made by resync_catalog_peer(); all
 * pointers live in the context that was current then.  Holds secrets: never
 * log it.
 */
typedef struct ResyncPeer
{
	Oid	  serverid;
	char *servername;
	char *wrapper;		  /* "peerdb_postgres", "postgres_fdw",
								 * "peerdb_clickhouse", ... */
	List *server_options; /* of DefElem, string values */
	List *user_options;	  /* of DefElem, string values: the owner's
								 * mapping, else PUBLIC's; NIL if none */
	Oid	  owner;		  /* mirror's owner */
	bool  owner_is_superuser;
	bool  check_password; /* connection must have authenticated with the
								 * mapping's own password */
} ResyncPeer;

/*
 * One mirrored column: where it comes from, and what it becomes.  The
 * destination's map_columns() fills the dest_* fields once per run; they are
 * kept in peerdb._run_table.plan, so that every process of the run encodes
 * alike.
 */
typedef struct ResyncColumn
{
	char	  *name;   /* at the source; leaves are matched by name */
	AttrNumber attnum; /* in the mirrored (root) table */
	Oid		   typid;
	int32	   typmod;
	bool	   notnull;
	bool	   generated; /* stored generated column */
	int		   keypos;	  /* 1-based position in the key, 0 = not in it */
	char	  *dest_name;
	char	  *dest_type; /* as written in the destination's CREATE
								 * TABLE */
	char	  *wire;	  /* a word of the destination's, which tells its
								 * encoder how to send the column */
	char	  *wire_info; /* more of it, or NULL (PostgreSQL: pairs
								 * "srcoid:destoid,..." to translate inside
								 * values) */
} ResyncColumn;

/*
 * One mirrored table of a run.
 */
typedef struct ResyncTable
{
	int			  ordinal; /* position in the mirror, from 0 */
	Oid			  relid;   /* root table at the source */
	char		 *schema;
	char		 *name;
	char		 *dest_schema;	 /* NULL where the destination has none */
	char		 *dest_name;	 /* the live table's name */
	char		 *build_name;	 /* the name under construction
								 * (<dest_name>_resync ...), same schema */
	char		  identity;		 /* 'p' primary key, 'i' chosen index, 'f' full
								 * with all columns as key, 'n' none: no key
								 * usable (append only) */
	bool		  identity_full; /* old tuples carry all columns
								 * (REPLICA IDENTITY FULL), whatever the key */
	int			  nkeys;		 /* number of columns with keypos > 0; 0 for a
								 * table without key ('f' without primary key,
								 * 'n'): rows are not compacted */
	int			  nsourcekeys;	 /* the first of these: the source's own key;
								* map_columns may have added some */
	int			  ncols;
	ResyncColumn *cols;			   /* in destination order */
	char		 *mapping;		   /* the user's mapping, JSON text */
	bool		  multi_snapshot;  /* loaded under more than one snapshot: the key
								 * has to be made by de-duplication */
	char		 *loaded_snapshot; /* table without key, loaded under a later
								 * snapshot than the slot's: that one, as
								 * pg_snapshot's text; changes of transactions
								 * that it shows are not replayed.  Else NULL */
	char		  state;		   /* RESYNC_TABLE_*, the journal */
} ResyncTable;

/* Journal states of a run's table, in order (peerdb._run_table.state). */
#define RESYNC_TABLE_NEW 'n'
#define RESYNC_TABLE_CREATED 'c'
#define RESYNC_TABLE_KEYED 'k'
#define RESYNC_TABLE_TRANSFERRED 't'
#define RESYNC_TABLE_SWAPPED 's'

/* Settings of a mirror, parsed from its options jsonb (catalog/options.c). */
typedef struct ResyncOptions
{
	bool   do_initial_copy;
	bool   initial_copy_only;
	int64  max_batch_size; /* rows */
	double sync_interval;  /* seconds; negative: the destination's default */
	int64  snapshot_num_rows_per_partition;
	int64  snapshot_num_partitions_override;
	int	   snapshot_max_parallel_workers;
	int	   snapshot_num_tables_in_parallel;
	bool   soft_delete;
	char  *soft_delete_col_name; /* NULL when not wanted */
	char  *synced_at_col_name;	 /* NULL when not wanted */
	bool   disable_peerdb_columns;
	bool   keep_serving;
	bool   replace_existing;
	char  *unbounded_numeric;	/* "decimal", "string"; NULL: destination's
								 * default, as below */
	char  *out_of_range;		/* "error", "clamp" (ClickHouse), "null"
								 * (BigQuery) */
	char  *null_array_elements; /* "error", "drop" */
} ResyncOptions;

/*
 * What identifies one run at its destination.  Rules 4 and 9: everything a
 * destination holds for us carries these.
 */
typedef struct ResyncRunId
{
	char				*mirror; /* name, for messages and marks */
	char				*token;	 /* uuid text of the mirror */
	uint64				 system_identifier;
	Oid					 database;
	int64				 run;
	const ResyncOptions *options;
} ResyncRunId;

/* Settings (GUCs), defined in src/init.c. */
extern PGDLLIMPORT bool resync_enabled;
extern PGDLLIMPORT int	resync_copier_buffer;	  /* kB */
extern PGDLLIMPORT int	resync_batch_memory;	  /* kB */
extern PGDLLIMPORT int	resync_log_retention;	  /* minutes */
extern PGDLLIMPORT int	resync_load_rate_limit;	  /* kB/s per mirror, 0 = none */
extern PGDLLIMPORT int	resync_max_snapshot_age;  /* s, 0 = none */
extern PGDLLIMPORT int	resync_max_wal_retained;  /* MB, 0 = none */
extern PGDLLIMPORT int	resync_lock_yield;		  /* ms */
extern PGDLLIMPORT int	resync_slot_timeout;	  /* s, 0 = none */
extern PGDLLIMPORT int	resync_swap_lock_timeout; /* ms */
extern PGDLLIMPORT int	resync_max_mirrors;

#ifdef RESYNC_DEBUG
/* Test builds only: stop, fail or crash here when the file
 * <data directory>/resync_debug/<name> says so (worker/debug.c). */
extern void resync_debug_point(const char *name);
#define RESYNC_DEBUG_POINT(name) resync_debug_point(name)

/* ... or behave as if a long time had passed while the file is there. */
extern bool resync_debug_asked(const char *name);
#define RESYNC_DEBUG_ASKED(name) resync_debug_asked(name)
#else
#define RESYNC_DEBUG_POINT(name) ((void) 0)
#define RESYNC_DEBUG_ASKED(name) false
#endif

/* Raised by every SQL function when the library is not preloaded. */
extern bool resync_is_preloaded(void);

#endif /* RESYNC_H */
