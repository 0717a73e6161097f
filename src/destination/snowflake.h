/*
 * snowflake.h
 *		What the files of the Snowflake destination share.  Nobody else
 *		includes it.
 *
 *	snowflake.c			connect, runs and their marks, the fence
 *	snowflake_session.c	log in, requests, renewal of tokens
 *	snowflake_sql.c		statements, their results and errors
 *	snowflake_stage.c	files into a stage, COPY
 *	snowflake_map.c		names and types of columns, the mirror's own columns
 *	snowflake_table.c	tables and their marks: look, create, drop
 *	snowflake_check.c	phase validate
 *	snowflake_load.c	partitions into tables
 *	snowflake_apply.c	batches
 *	snowflake_swap.c	tombstones, grants, swap
 */
#ifndef RESYNC_DESTINATION_SNOWFLAKE_H
#define RESYNC_DESTINATION_SNOWFLAKE_H

#include "destination/common.h"
#include "destination/destination.h"
#include "destination/merge.h"

#include "encode/csv.h"
#include "encode/snowflake.h"
#include "net/http.h"
#include "net/json.h"
#include "net/store.h"

#define SF_RUNS_TABLE "_PEERDB_RESYNC_RUNS"
#define SF_PARTITIONS_TABLE "_PEERDB_RESYNC_PARTITIONS"

/* What names of the mirror's own tables begin with. */
#define SF_OWN_PREFIX "_PEERDB_RESYNC_"

/* Letters of the token in names of our own. */
#define SF_TOKEN_LETTERS 8

/* What tables of ours are for; part of their mark. */
#define SF_ROLE_BUILD "build"
#define SF_ROLE_LIVE "live"
#define SF_ROLE_STAGE "stage"
#define SF_ROLE_NEW "new" /* being made; by its name, not yet marked */

/* The mirror's own columns, at most. */
#define SF_MAX_EXTRAS 2

/* Files of a COPY, at most: the service's limit. */
#define SF_MAX_FILES 1000

typedef struct SfDestination SfDestination;

/* Files of one table on their way; see snowflake_stage.c. */
typedef struct SfFiles
{
	SfDestination *dest;
	CsvWriter	  *csv;
	char		  *folder; /* in the stage, ends with "/" */
	int			   nfiles;
	int64		   rows; /* in files that are stored */
} SfFiles;

/* A partition being loaded. */
typedef struct SfLoad
{
	bool			   active;
	const ResyncTable *table;
	int64			   partition;
	RowEncoder		  *encoder;
	SfFiles			   files;
	EncodedField	   extras[SF_MAX_EXTRAS];
	int				   nextras;
	int64			   rows;
	int64			   sent_before;
	int64			   final_bytes; /* sent, once it is not active any more */
	MemoryContext	   context;		/* of the partition */
	MemoryContext	   row_context;
} SfLoad;

struct SfDestination
{
	Destination head;
	HttpConn   *http;
	HttpOptions options;
	char	   *prefix; /* of paths, from the option url; may be "" */
	char	   *account;
	char	   *user;
	char	   *key_file;
	char	   *passphrase_file; /* or NULL */
	char	   *wanted_database; /* as the options have them */
	char	   *wanted_warehouse;
	char	   *wanted_role; /* or NULL */

	/* a stage of the user's own, or NULL; what it takes to write to it */
	char *external[3]; /* database, schema, name; all NULL: there is none */
	char *stage_endpoint;
	char *stage_region;
	char *stage_key_id;
	char *stage_secret_file;

	char *database; /* as the service has them */
	char *role;
	char *schema; /* of our metadata */

	MemoryContextCallback callback; /* overwrites the secrets */
	char				 *token;	/* secrets; NULL: not logged in */
	char				 *master;
	TimestampTz			  last_used;
	int64				  sequence;
	uint32				  nonce; /* of this connection, in names */
	uint64				  names; /* made so far */
	char				 *life;	 /* of the run, as the fence saw it last */
	int64				  epoch;

	/* the temporary stage, which goes with the session */
	bool		  has_stage;
	bool		  staged; /* files wait in it */
	char		 *stage;  /* its name, as SQL has it */
	MemoryContext store_context;
	Store		 *store; /* NULL: credentials have to be asked for */
	int64		  sent;	 /* by earlier stores */

	MemoryContext call; /* reset at the start of each method */
	SfLoad		  load;
};

/* ---- snowflake_session.c ---- */

/* Log in, and look what the service made of the options. */
extern void resync_sf_login(SfDestination *dest);

/* End the session, if there is one; never raises.  Secrets are overwritten. */
extern void resync_sf_logout(SfDestination *dest);

/*
 * Send a statement and wait for its end.  Returns the whole answer, a success or
 * not; it is executed once, however often it had to be sent.
 */
extern JsonNode *resync_sf_request(SfDestination *dest, const char *sql);

/* Now and then while no statement is sent for long. */
extern void resync_sf_keep_alive(SfDestination *dest);

/* ---- snowflake_sql.c ---- */

typedef struct SfResult
{
	int	   nrows;
	int	   ncols;
	char **names;  /* of columns */
	char **values; /* row by row; NULL for NULL */
	char  *query_id;
} SfResult;

#define sf_value(res, row, col) ((res)->values[(Size) (row) * (res)->ncols + (col)])

/* The same of an answer that has to have it. */
extern char *resync_sf_need(const SfResult *res, int row, int col);

/* The value of a column by its name; NULL if there is none ... */
extern char *resync_sf_optional(const SfResult *res, int row, const char *name);

/* ... which has to be there. */
extern char *resync_sf_column(const SfResult *res, int row, const char *name);

/* A statement; try: NULL if there is no such object. */
extern SfResult *resync_sf_try(SfDestination *dest, const char *sql);
extern SfResult *resync_sf_query(SfDestination *dest, const char *sql);

/* The answer's "data" of a statement that succeeded. */
extern JsonNode *resync_sf_data(SfDestination *dest, const char *sql);

/* The one number that a query gives; and what a script returned. */
extern int64 resync_sf_number(SfDestination *dest, const char *sql);
extern char *resync_sf_script(SfDestination *dest, const char *block);

/* An answer that is no success, raised. */
extern void resync_sf_raise(SfDestination *dest, JsonNode *answer) pg_attribute_noreturn();

extern char *resync_sf_ident(const char *name);
extern char *resync_sf_literal(const char *text);
extern char *resync_sf_pattern(const char *name); /* for LIKE of SHOW: the name, and others */
extern char *resync_sf_name(SfDestination *dest, const char *schema, const char *name);
extern char *resync_sf_own(SfDestination *dest, const char *name); /* in our schema */
extern char *resync_sf_table(SfDestination *dest, const ResyncTable *table, bool build);

/* Letters of lower case that need no quotes become upper case; else as it is. */
extern char *resync_sf_fold(const char *name);

/* ---- snowflake_stage.c ---- */

/* The session's stage is there. */
extern void resync_sf_have_stage(SfDestination *dest);

/* Files into the stage for rows of table, in the current context. */
extern void resync_sf_files_make(SfDestination *dest, const ResyncTable *table, SfFiles *files);

/* The writer's file is full, or the last one: store it, begin another. */
extern void resync_sf_files_store(SfFiles *files);

/*
 * COPY statements of all stored files, without ";", of at most SF_MAX_FILES each.
 * target: as SQL has it; columns: their names' list; values: their expressions.
 */
extern List *
resync_sf_files_copy(SfFiles *files, const char *target, const char *columns, const char *values);

/* Bytes sent to stages so far. */
extern int64 resync_sf_sent(const SfDestination *dest);

/* ---- snowflake.c ---- */
typedef struct SfFence
{
	bool	   known;
	bool	   active;
	bool	   swapped; /* the run's tables are live */
	XLogRecPtr applied;
	char	  *life;  /* of this beginning of the run */
	int64	   epoch; /* of this life: what was begun before another one is void */
} SfFence;

extern MemoryContext resync_sf_enter(SfDestination *dest);
extern bool			 resync_sf_read_fence(SfDestination *dest, int64 run, SfFence *fence);
extern void			 resync_sf_fence(SfDestination *dest, SfFence *fence);
extern void			 resync_sf_retire(SfDestination *dest, int64 run);

/* Somebody has changed the run's row since the fence was read: FENCED, or to be tried again. */
extern void resync_sf_raise_changed(SfDestination *dest) pg_attribute_noreturn();

/*
 * Whatever of the run has begun and not ended comes to nothing.  applied: what it
 * must have applied; Invalid: anything.  statements: done in the same transaction.
 */
extern void resync_sf_new_epoch(SfDestination *dest, XLogRecPtr applied, const char *statements);
extern void resync_sf_make_metadata(SfDestination *dest);
extern bool resync_sf_has_schema(SfDestination *dest, const char *schema);

extern char *resync_sf_run_condition(SfDestination *dest, int64 run);

/* Condition of the run's row: it is in charge, in the epoch that the fence saw. */
extern char *resync_sf_fence_condition(SfDestination *dest);
extern char *resync_sf_lsn(XLogRecPtr lsn);

/*
 * A block that does statements in one transaction, then update, which has to
 * change one row; marks (may be NULL) is done after that, and has to change one
 * row, too.  statements (each with ";") may use the numbers got and total, and the text stmt.  Returns
 * false when marks did not; raises FENCED, or a serialization failure, when update
 * did not.  *total: what total is at the end; may be NULL.
 */
extern bool resync_sf_transaction(SfDestination *dest, const char *statements, const char *update,
								  const char *marks, int64 *total);

/*
 * A statement of DDL, after another look at the run's row.  An object that is not
 * there is one that somebody else has just renamed: to be tried again.
 */
extern void resync_sf_fenced_ddl(SfDestination *dest, const char *sql);

/* ---- snowflake_map.c ---- */
extern const MergeDialect resync_sf_dialect;

extern void	 resync_sf_map_columns(Destination *dest, ResyncTable *table);
extern void	 resync_sf_map_added(Destination *dest, const ResyncTable *table, ResyncColumn *col);
extern char *resync_sf_cluster_by(const ResyncTable *table); /* "\"A\", \"B\"" or NULL */

/* The mirror's own columns as Snowflake has them; NULL: without. */
extern char *resync_sf_deleted(const SfDestination *dest);
extern char *resync_sf_synced_at(const SfDestination *dest);

/* Definitions of all columns, for CREATE TABLE. */
extern char *resync_sf_definitions(const SfDestination *dest, const ResyncTable *table);

/* Fields of the mirror's own columns now, for a row that is not deleted; how many. */
extern int resync_sf_extra_fields(const SfDestination *dest, EncodedField *extras);

/* Names, and the expressions of a file's fields, of all columns. */
extern char *resync_sf_all_columns(const SfDestination *dest, const ResyncTable *table);
extern char *resync_sf_column_values(const ResyncTable *table); /* without the mirror's own */
extern char *resync_sf_all_values(const SfDestination *dest, const ResyncTable *table);

/* ---- snowflake_table.c ---- */

/* A table at the destination, and the mark (in its comment) on it. */
typedef struct SfTable
{
	char *schema;
	char *name;
	char *kind;	   /* "TABLE", "TRANSIENT" ... */
	char *comment; /* without the mark */
	char *cluster_by;
	char *owner;
	char *retention;
	bool  change_tracking;
	bool  special; /* external, dynamic, ... */
	char *token;   /* of the mark; NULL: none, or not of this table */
	int64 run;
	char *role;
	bool  at_live; /* it is where the mark says that a live table is */
	bool  at_swap; /* it has a name that swaps use */
	char *live;	   /* hashes of the names that the mark allows */
	char *build;
} SfTable;

/* A column of one. */
typedef struct SfColumn
{
	char *name;
	char *type; /* "NUMBER(38,0)" */
	bool  notnull;
	bool  primary;
} SfColumn;

extern SfTable *
resync_sf_find(SfDestination *dest, const char *schema, const char *name); /* NULL: none */
extern SfTable	*resync_sf_find_table(SfDestination *dest, const ResyncTable *table, bool build);
extern List		*resync_sf_columns(SfDestination *dest, const char *table); /* of SfColumn * */
extern SfColumn *resync_sf_find_column(List *columns, const char *name);
extern bool		 resync_sf_is_ours(const SfDestination *dest, const SfTable *found);
extern bool		 resync_sf_is_role(const SfDestination *dest, const SfTable *found,
								   const char *role); /* this run's */

/*
 * Which of the table's names is this run's table at?  Raises if none is (rule 9).
 * *live (may be NULL): it is the live one.
 */
extern char *resync_sf_where(SfDestination *dest, const ResyncTable *table, bool *live);

/* Is it this run's table, under construction or live? */
extern bool resync_sf_is_new(const SfDestination *dest, const SfTable *found);

/* This run's table that is not live, wherever a swap's try has left it, or NULL. */
extern SfTable *resync_sf_find_build(SfDestination *dest, const ResyncTable *table);

/* The name of a swap's try, and the tables (SfTable *) under names of earlier tries. */
extern char *resync_sf_swap_name(SfDestination *dest, const ResyncTable *table);
extern List *resync_sf_find_swaps(SfDestination *dest, const ResyncTable *table);
extern char *resync_sf_comment(SfDestination *dest, const char *text, const ResyncTable *table,
							   const char *role);
extern bool	 resync_sf_same_type(const char *ours, const char *theirs); /* as DESCRIBE has it */
extern void	 resync_sf_set_comment(SfDestination *dest, const char *table, const char *comment);
extern void	 resync_sf_drop(SfDestination *dest, const char *table);
extern void	 resync_sf_make_table(SfDestination *dest, const ResyncTable *table, const char *name);
extern void	 resync_sf_create_table(Destination *dest, const ResyncTable *table);
extern void	 resync_sf_reset_table(Destination *dest, const ResyncTable *table,
								   int64 first_partition, int64 last_partition);
extern void	 resync_sf_build_key(Destination *dest, const ResyncTable *table);
extern void	 resync_sf_add_column(SfDestination *dest, const ResyncTable *table, const char *name);

/* Staging table n of this process, made anew; definitions: of its columns.  Its name in SQL. */
extern char *resync_sf_make_stage(SfDestination *dest, int n, const char *definitions);

/* The plan's table, made and dropped again: types and privileges are proven. */
extern void resync_sf_try_table(SfDestination *dest, const ResyncTable *table);

/* Marked tables and our own of a token, SfTables with schema, name, and mark. */
extern List *resync_sf_marked_tables(SfDestination *dest, const char *token);

/* Give a live table this mirror's mark, with a run. */
extern void resync_sf_mark_live(SfDestination *dest, const SfTable *table, int64 run);

/*
 * Drop what a run (0: any) has under construction and its staging tables, or
 * only these; live: its live tables, too.
 */
extern void resync_sf_drop_marked(SfDestination *dest, const char *token, int64 run,
								  bool stages_only, bool live);

/* ---- snowflake_check.c ---- */
extern void resync_sf_check_table(Destination *dest, const ResyncTable *table, bool live_expected,
								  List **warnings);
extern void resync_sf_check_tables(Destination *dest, ResyncTable **tables, int ntables);

/* ---- snowflake_load.c ---- */
extern bool
resync_sf_load_begin(Destination *dest, const ResyncTable *table, TupleDesc desc, int64 partition);
extern void	 resync_sf_load_relation(Destination *dest, TupleDesc desc);
extern void	 resync_sf_load_row(Destination *dest, TupleTableSlot *slot);
extern int64 resync_sf_load_finish(Destination *dest);
extern void	 resync_sf_load_abort(Destination *dest);
extern int64 resync_sf_load_bytes(Destination *dest);
extern List *resync_sf_done_partitions(Destination *dest);
extern int64
resync_sf_count_rows(Destination *dest, const ResyncTable *table, bool build, bool live_only);

/* ---- snowflake_apply.c ---- */
extern void
resync_sf_apply(Destination *dest, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg);
extern XLogRecPtr resync_sf_applied_lsn(Destination *dest);

/* ---- snowflake_swap.c ---- */
extern int64 resync_sf_transfer(Destination *dest, const ResyncTable *table, List **warnings);
extern bool	 resync_sf_swap(Destination *dest, ResyncTable **tables, int ntables, XLogRecPtr lsn,
							int64 retire_run);
extern bool	 resync_sf_is_swapped(Destination *dest, const ResyncTable *table);
extern void	 resync_sf_after_swap(Destination *dest, ResyncTable **tables, int ntables);

#endif /* RESYNC_DESTINATION_SNOWFLAKE_H */
