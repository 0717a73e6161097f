/*
 * clickhouse.h
 *		What the files of the ClickHouse destination share.  Nobody else
 *		includes it.
 *
 *	clickhouse.c		connect, runs and their marks, the fence
 *	clickhouse_http.c	statements over HTTP: settings, results, errors
 *	clickhouse_map.c	the mapping's choices, columns, sorting key
 *	clickhouse_sql.c	DDL as text (pure)
 *	clickhouse_ddl.c	marks of tables, phase validate, create, reset
 *	clickhouse_load.c	partitions into tables
 *	clickhouse_apply.c	batches
 *	clickhouse_fetch.c	rows of batches with values left out
 *	clickhouse_swap.c	tombstones, swap
 */
#ifndef RESYNC_DESTINATION_CLICKHOUSE_H
#define RESYNC_DESTINATION_CLICKHOUSE_H

#include "destination/common.h"
#include "destination/destination.h"

#include "encode/clickhouse.h"
#include "encode/native.h"
#include "net/encoding.h"
#include "net/http.h"

#define CH_RUNS_TABLE "_peerdb_resync_runs"
#define CH_PARTITIONS_TABLE "_peerdb_resync_partitions"

/* Columns of the mirror's own that a table always has. */
#define CH_DELETED_COLUMN "_peerdb_is_deleted"
#define CH_VERSION_COLUMN "_peerdb_version"

/* What statements are called in query ids; KILL QUERY goes by these. */
#define CH_WHAT_APPLY "apply"
#define CH_WHAT_LOAD "load"
#define CH_WHAT_DDL "ddl"
#define CH_WHAT_READ "read"

/* Milliseconds without a sign of life: ordinary statements; those with data or DDL; none. */
#define CH_TIMEOUT_SHORT 120000
#define CH_TIMEOUT_LONG 600000
#define CH_TIMEOUT_NONE 0

/* ClickHouse's error codes that are not only reported. */
#define CH_ERR_NOT_IMPLEMENTED 48
#define CH_ERR_UNKNOWN_TABLE 60
#define CH_ERR_UNKNOWN_DATABASE 81
#define CH_ERR_DEADLOCK_AVOIDED 473
#define CH_ERR_CONVERSION (-1) /* any that says a value does not fit its type */

/*
 * A request of a table without key is one block, full with RESYNC_NATIVE_ROWS
 * rows or these bytes.  Part of what tokens stand for: never a setting.
 */
#define CH_APPEND_REQUEST_BYTES (8 * 1024 * 1024)

/* A partition being loaded. */
typedef struct ChLoad
{
	bool			   active;
	const ResyncTable *table;
	int64			   partition;
	NativeBlock		  *block;
	bool			   append; /* no key: equal requests have equal tokens */
	bool			   uploading;
	int64			   request;		 /* number in the partition */
	int64			   request_rows; /* in this request, block included */
	int64			   request_bytes;
	TimestampTz		   put_at; /* when the upload last moved */
	int64			   rows;   /* acknowledged, of finished requests */
	int64			   sent_before;
	int64			   final_bytes; /* sent, once it is not active any more */
	uint64			   synced_at;
	char			  *insert;
	MemoryContext	   context; /* of the partition */
	MemoryContext	   row_context;
} ChLoad;

typedef struct ChDestination
{
	Destination	  head;
	HttpConn	 *http;
	HttpOptions	  options;
	HttpEncoding  encoding;
	List		 *auth; /* headers; secret */
	char		 *database;
	char		 *cluster; /* NULL: none */
	bool		  replicated;
	char		 *version;
	int			  version_num; /* 2302 is 23.2 */
	uint32		  nonce;	   /* of this connection, in query ids */
	uint64		  requests;
	bool		  kill_warned;
	uint64		  life; /* of the run, as the fence saw it last */
	MemoryContext call; /* reset at the start of each method */
	ChLoad		  load;
} ChDestination;

/* ---- clickhouse_http.c ---- */

/* An answer in TabSeparated. */
typedef struct ChResult
{
	int	   nrows;
	int	   ncols;
	char **values; /* row by row; NULL for NULL */
} ChResult;

#define ch_value(res, row, col) ((res)->values[(row) * (res)->ncols + (col)])

/* How a statement is sent. */
typedef struct ChStatement
{
	const char *sql;
	const char *what;	  /* CH_WHAT_* */
	const char *token;	  /* insert_deduplication_token; NULL: a unique one */
	const char *settings; /* "&name=value...", escaped; NULL: none */
	int			timeout_ms;
	bool		has_data; /* values of rows are in the statement: the server's
						   * text is not shown */
	int			allowed;  /* a ClickHouse error code that is returned; 0: none;
 * or CH_ERR_CONVERSION */
} ChStatement;

/* Returns 0, or the error code if it is the allowed one; response may be NULL. */
extern int
resync_ch_send(ChDestination *dest, const ChStatement *statement, HttpResponse **response);
extern void		 resync_ch_exec(ChDestination *dest, const char *sql, const char *what);
extern ChResult *resync_ch_query(ChDestination *dest, const char *sql);

/* INSERT whose rows come bit by bit. */
extern void
resync_ch_upload_begin(ChDestination *dest, const char *sql, const char *what, const char *token);
extern void	 resync_ch_upload_put(void *dest, const char *data, Size len);
extern int64 resync_ch_upload_end(ChDestination *dest, int64 rows);

extern int64 resync_ch_written_rows(const HttpResponse *response); /* -1: not told */
extern char *resync_ch_ident(const char *name);
extern char *resync_ch_literal(const char *text);
extern char *resync_ch_unhex(const char *data, Size len); /* an expression */
extern char *resync_ch_query_prefix(ChDestination *dest, const char *token, int64 run);

/* ---- clickhouse.c ---- */
typedef struct ChFence
{
	bool	   known;
	bool	   active;
	XLogRecPtr applied;
	XLogRecPtr pending; /* a batch with appended rows was begun; Invalid: none */
	uint64	   seq;		/* of the newest progress row */
	uint64	   life;	/* of the newest state row: another one if the run began
						 * anew */
} ChFence;

extern MemoryContext resync_ch_enter(ChDestination *dest);
extern bool			 resync_ch_read_fence(ChDestination *dest, int64 run, ChFence *fence);
extern void			 resync_ch_fence(ChDestination *dest, ChFence *fence);
extern void			 resync_ch_put_progress(ChDestination *dest, ChFence *fence, int64 run,
											XLogRecPtr applied, XLogRecPtr pending);
extern void			 resync_ch_retire(ChDestination *dest, int64 run);
extern void			 resync_ch_kill(ChDestination *dest, int64 run, const char *what);
extern void			 resync_ch_make_metadata(ChDestination *dest);
extern bool			 resync_ch_has_metadata(ChDestination *dest);
extern char *resync_ch_table_name(const ChDestination *dest, const char *name); /* `db`.`t` */
extern char *resync_ch_run_condition(const ChDestination *dest);

/* ---- clickhouse_map.c ---- */

/* What the mapping of a table says, with the defaults. */
typedef struct ChMapping
{
	bool  append_engine; /* MergeTree: rows are never replaced */
	bool  append;		 /* "append": true */
	char *engine;		 /* "ReplacingMergeTree" or "MergeTree" */
	List *order_by;		 /* of char *, destination's names; NIL: tuple() */
	char *partition_by;	 /* expression, or NULL */
	char *sharding_key;	 /* expression, or NULL */
} ChMapping;

extern void resync_ch_map_columns(Destination *dest, ResyncTable *table);
extern void resync_ch_map_added(Destination *dest, const ResyncTable *table, ResyncColumn *col);
extern ChMapping  *resync_ch_mapping(const ResyncTable *table);
extern const char *resync_ch_deleted_column(const ChDestination *dest);
extern const char *resync_ch_synced_at_column(const ChDestination *dest); /* NULL: none */

/* Are its rows appended, never replaced? */
extern bool resync_ch_appends(const ResyncTable *table);

/* The mirror's own columns for a block: at most 3; returns how many. */
extern int resync_ch_extras(const ChDestination *dest, NativeExtra *extras);

/* "INSERT INTO t (all columns) FORMAT Native" */
extern char *resync_ch_insert(const ChDestination *dest, const ResyncTable *table, bool live);

/* ---- clickhouse_sql.c ---- */
typedef struct ChCreate
{
	const char		  *database;
	const char		  *cluster;
	bool			   replicated;
	const char		  *name;
	const char		  *deleted;	  /* the mirror's own columns */
	const char		  *synced_at; /* or NULL */
	const char		  *comment;
	const ResyncTable *table;
	const ChMapping	  *mapping;
} ChCreate;

extern char *resync_ch_sql_local(const char *cluster, const char *name);
extern char *resync_ch_sql_create(const ChCreate *create);
extern char *resync_ch_sql_distributed(const ChCreate *create, const char *name, bool replace);
extern char *
resync_ch_sql_drop(const char *database, const char *cluster, const char *name, bool any_size);
extern char *
resync_ch_sql_exchange(const char *database, const char *cluster, const char *a, const char *b);
extern char *
resync_ch_sql_rename(const char *database, const char *cluster, const char *from, const char *to);
extern char *resync_ch_sql_rotate(const char *database, const char *cluster, const char *live,
								  const char *build, const char *aside);
extern char *resync_ch_sql_on_cluster(const char *cluster); /* "" or " ON CLUSTER `c`" */

/* ---- clickhouse_ddl.c ---- */

/* A table at the destination, and the mark (comment) on it. */
typedef struct ChTable
{
	char *name;
	char *engine;
	char *definition;
	char *token; /* of the mark; NULL: not made by a mirror */
	int64 run;
	char *live;	 /* the live name that it is for */
	char *build; /* the name that it was made under */
} ChTable;

extern ChTable *resync_ch_find_table(ChDestination *dest, const char *name); /* NULL: none */
extern char *resync_ch_make_mark(const char *token, int64 run, const char *live, const char *build);
extern void	 resync_ch_require_owned(ChDestination *dest, const ResyncTable *table, bool live);
extern bool	 resync_ch_is_live_name(const ChDestination *dest, const ChTable *table);
extern bool	 resync_ch_is_build_name(const ChDestination *dest, const ChTable *table);
extern void	 resync_ch_mark_table(ChDestination *dest, const ChTable *table, int64 run);
extern bool	 resync_ch_is_ours(const ChDestination *dest, const ChTable *found);
extern bool	 resync_ch_is_this_run(const ChDestination *dest, const ChTable *found);
extern void	 resync_ch_check_table(Destination *dest, const ResyncTable *table, bool live_expected,
								   List **warnings);
extern void	 resync_ch_create_table(Destination *dest, const ResyncTable *table);
extern void	 resync_ch_reset_table(Destination *dest, const ResyncTable *table,
								   int64 first_partition, int64 last_partition);
extern void	 resync_ch_build_key(Destination *dest, const ResyncTable *table);
extern void	 resync_ch_add_column(ChDestination *dest, const BatchAddColumn *add, bool live);
extern void	 resync_ch_drop_table(ChDestination *dest, const char *name);
extern void	 resync_ch_drop_marked(ChDestination *dest, const char *token, int64 run, bool live);
extern void	 resync_ch_fill_create(ChDestination *dest, const ResyncTable *table, const char *name,
								   const char *build, ChCreate *create);
extern List *resync_ch_marked_tables(ChDestination *dest, const char *token);

/* ---- clickhouse_load.c ---- */
extern uint64 resync_ch_now(void);							/* ns since 1970 */
extern char	 *resync_ch_key_list(const ResyncTable *table); /* "`a`, `b`" */
extern bool
resync_ch_load_begin(Destination *dest, const ResyncTable *table, TupleDesc desc, int64 partition);
extern void	 resync_ch_load_relation(Destination *dest, TupleDesc desc);
extern void	 resync_ch_load_row(Destination *dest, TupleTableSlot *slot);
extern int64 resync_ch_load_finish(Destination *dest);
extern void	 resync_ch_load_abort(Destination *dest);
extern int64 resync_ch_load_bytes(Destination *dest);
extern List *resync_ch_done_partitions(Destination *dest);
extern int64
resync_ch_count_rows(Destination *dest, const ResyncTable *table, bool build, bool live_only);

/* ---- clickhouse_apply.c ---- */
extern void
resync_ch_apply(Destination *dest, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg);

/* ---- clickhouse_fetch.c ---- */

/* Takes a completed row: ncols fields.  deleted: one that is gone everywhere. */
typedef void (*ChEmitFn)(void *arg, const char *data, XLogRecPtr lsn, bool deleted);

extern void resync_ch_complete_rows(ChDestination *dest, const ResyncTable *table, bool live,
									bool distrusted, List *rows, FetchRowsFn fetch, void *fetch_arg,
									ChEmitFn emit, void *emit_arg);

/* ---- clickhouse_swap.c ---- */
extern int64 resync_ch_transfer(Destination *dest, const ResyncTable *table, List **warnings);
extern bool	 resync_ch_swap(Destination *dest, ResyncTable **tables, int ntables, XLogRecPtr lsn,
							int64 retire_run);
extern bool	 resync_ch_is_exchanged(ChDestination *dest, const ResyncTable *table);
extern bool	 resync_ch_is_swapped(Destination *dest, const ResyncTable *table);
extern void	 resync_ch_after_swap(Destination *dest, ResyncTable **tables, int ntables);

#endif /* RESYNC_DESTINATION_CLICKHOUSE_H */
