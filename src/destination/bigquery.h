/*
 * bigquery.h
 *		What the files of the BigQuery destination share.  Nobody else
 *		includes it.
 *
 *	bigquery.c			connect, runs and their marks, the fence
 *	bigquery_auth.c		service account and access tokens
 *	bigquery_http.c		requests, errors, jobs, queries
 *	bigquery_upload.c	files into load jobs, by resumable uploads
 *	bigquery_map.c		the mapping's choices, columns, schemas
 *	bigquery_table.c	marks of tables, phase validate, create, reset
 *	bigquery_load.c		partitions into tables
 *	bigquery_apply.c	batches
 *	bigquery_swap.c		tombstones, swap
 */
#ifndef RESYNC_DESTINATION_BIGQUERY_H
#define RESYNC_DESTINATION_BIGQUERY_H

#include "destination/common.h"
#include "destination/destination.h"
#include "destination/merge.h"

#include "encode/bigquery.h"
#include "net/http.h"
#include "net/json.h"

#define BQ_RUNS_TABLE "_peerdb_resync_runs"
#define BQ_PARTITIONS_TABLE "_peerdb_resync_partitions"

/* What tables of ours are for; the value of their label. */
#define BQ_ROLE_BUILD "build"
#define BQ_ROLE_LIVE "live"
#define BQ_ROLE_STAGE "stage"

/* Chunks of an upload are multiples of this. */
#define BQ_CHUNK_UNIT (256 * 1024)

/* Bytes of a row before compression: a block of a file has at most 16 MB. */
#define BQ_MAX_ROW (15 * 1024 * 1024)

/* What a script says when the run is not in charge. */
#define BQ_FENCED "resync: the run is not in charge"

/* The mirror's own columns, at most. */
#define BQ_MAX_EXTRAS 2

typedef struct BqDestination BqDestination;

/* A file on its way into a load job; see bigquery_upload.c. */
typedef struct BqUpload
{
	BqDestination *dest;
	MemoryContext  context; /* where all of this lives */
	JsonNode	  *job;
	char		  *id; /* of the job */
	HttpConn	  *http;
	char		  *session; /* path of the upload, NULL before it has begun */
	char		  *chunk;	/* what the service has not acknowledged yet */
	Size		   used;
	Size		   size;   /* a multiple of BQ_CHUNK_UNIT */
	int64		   offset; /* of the chunk in the file */
} BqUpload;

/* A partition being loaded. */
typedef struct BqLoad
{
	bool			   active;
	const ResyncTable *table;
	int64			   partition;
	char			  *job; /* id of the load job, without the attempt's number */
	char			  *life;
	AvroWriter		  *writer;
	RowEncoder		  *encoder;
	BqUpload		  *upload;
	EncodedField	   extras[BQ_MAX_EXTRAS];
	int64			   sent_before;
	int64			   final_bytes; /* sent, once it is not active any more */
	MemoryContext	   context;		/* of the partition */
	MemoryContext	   row_context;
} BqLoad;

struct BqDestination
{
	Destination	  head;
	HttpConn	 *http;
	HttpOptions	  options;
	char		 *prefix; /* of paths, from the option url; may be "" */
	char		 *project;
	char		 *dataset;
	char		 *location;
	char		 *key_file;
	char		 *token;		 /* secret; NULL: none yet */
	TimestampTz	  token_expires; /* renewed before that */
	uint32		  nonce;		 /* of this connection, in job ids and names */
	uint64		  requests;
	char		 *life;	  /* of the run, as the fence saw it last */
	List		 *stages; /* of char *: staging tables made by this connection */
	MemoryContext call;	  /* reset at the start of each method */
	BqLoad		  load;
};

/* ---- bigquery_auth.c ---- */

/* "Authorization: Bearer ...", in the current context; secret. */
extern char *resync_bq_authorization(BqDestination *dest);
extern void	 resync_bq_forget_token(BqDestination *dest);

/* ---- bigquery_http.c ---- */

/* A request to the service. */
typedef struct BqCall
{
	const char *method;
	const char *path;	 /* after the prefix */
	JsonNode   *body;	 /* NULL: none */
	int			allowed; /* an HTTP status that is returned, not raised; 0: none */
} BqCall;

/* An answer of jobs.query. */
typedef struct BqResult
{
	int	   nrows;
	int	   ncols;
	char **values; /* row by row; NULL for NULL */
} BqResult;

#define bq_value(res, row, col) ((res)->values[(row) * (res)->ncols + (col)])

/* Returns 0 or the status allowed; json may be NULL. */
extern int resync_bq_call(BqDestination *dest, const BqCall *call, JsonNode **json);

/* An answer that is no success, raised. */
extern void resync_bq_raise_response(const HttpResponse *response) pg_attribute_noreturn();

extern void
resync_bq_set_table(BqDestination *dest, JsonNode *object, const char *path, const char *name);
extern char *resync_bq_table_path(BqDestination *dest, const char *name);
extern char *resync_bq_ident(const char *name);
extern char *resync_bq_literal(const char *text);
extern char *resync_bq_table(BqDestination *dest, const char *name); /* `p`.`d`.`t` */

extern char		*resync_bq_job_id(BqDestination *dest, const char *what); /* "resync_t_r_l_what" */
extern JsonNode *resync_bq_find_job(BqDestination *dest, const char *id); /* NULL: none */
extern JsonNode *resync_bq_wait_job(BqDestination *dest, const char *id, JsonNode *job);
extern bool		 resync_bq_job_failed(JsonNode *job);
extern void		 resync_bq_raise_job(JsonNode *job) pg_attribute_noreturn();

/*
 * Run a job to its end.  base: id without the number of the attempt; if one of
 * that id has been done before, it is not done again, and *before (may be NULL)
 * is set.
 */
extern JsonNode *
resync_bq_run_job(BqDestination *dest, JsonNode *job, const char *base, bool *before);

/* A statement or script, once; base as above, NULL: of its own. */
extern JsonNode *
resync_bq_exec(BqDestination *dest, const char *sql, const char *base, bool *before);

/* SELECT.  NULL: a table is not there, and missing_ok. */
extern BqResult *resync_bq_query(BqDestination *dest, const char *sql, bool missing_ok);

/* Rows that a finished load job has loaded. */
extern int64 resync_bq_output_rows(JsonNode *job);

/* ---- bigquery_upload.c ---- */
extern BqUpload *resync_bq_upload_make(BqDestination *dest, const char *table, JsonNode *schema,
									   bool truncate, const char *id);
extern void resync_bq_upload_put(void *upload, const char *data, Size len); /* an AvroWriteFn */

/*
 * The file is complete.  Returns the job, which may not have ended
 * (resync_bq_wait_job); known: it was another's of the same id.
 */
extern JsonNode *resync_bq_upload_close(BqUpload *upload, bool *known);

/* ---- bigquery.c ---- */
typedef struct BqFence
{
	bool	   known;
	bool	   active;
	bool	   swapped; /* the run's tables are live */
	XLogRecPtr applied;
	char	  *life; /* of this beginning of the run */
} BqFence;

extern MemoryContext resync_bq_enter(BqDestination *dest);
extern bool			 resync_bq_read_fence(BqDestination *dest, int64 run, BqFence *fence);
extern void			 resync_bq_fence(BqDestination *dest, BqFence *fence);
extern void			 resync_bq_retire(BqDestination *dest, int64 run);
extern char *
resync_bq_run_condition(BqDestination *dest, int64 run); /* of rows of the runs table */
extern char *resync_bq_lsn(XLogRecPtr lsn);

/*
 * A statement of a script's transaction that ends it unless the run is in charge
 * and has applied just that much.
 */
extern char *resync_bq_fence_sql(BqDestination *dest, XLogRecPtr applied);

/* ---- bigquery_map.c ---- */

/* What the mapping of a table says, with the defaults. */
typedef struct BqMapping
{
	bool  append;		  /* "append": true */
	char *partition_by;	  /* column, or NULL */
	char *partition_unit; /* "DAY" ... */
	List *cluster_by;	  /* of char *, destination's names */
} BqMapping;

extern void resync_bq_map_columns(Destination *dest, ResyncTable *table);
extern void resync_bq_map_added(Destination *dest, const ResyncTable *table, ResyncColumn *col);
extern BqMapping *resync_bq_mapping(const ResyncTable *table);

/*
 * A key column's value (SQL), to be compared with "=" or grouped by: itself, or
 * an expression of it, since NaN = NaN is false at BigQuery, and floats cannot be
 * grouped by.  In the current context.
 */
extern char *resync_bq_key_value(const ResyncColumn *col, const char *value);

extern const MergeDialect resync_bq_dialect;

/* The mirror's own columns as they are now: at most BQ_MAX_EXTRAS; how many. */
extern int resync_bq_extras(const BqDestination *dest, AvroColumn *columns);

/* Fills extras for a row that is, or is not, deleted. */
extern void resync_bq_extra_fields(const BqDestination *dest, bool deleted, StringInfo buf,
								   EncodedField *extras);

/* {"fields": [...]}, as REST has it. */
extern JsonNode *resync_bq_schema(const BqDestination *dest, const ResyncTable *table);
extern void		 resync_bq_append_field(JsonNode *fields, const char *name, const BqType *type);

/* ---- bigquery_table.c ---- */

/* A table at the destination, and the mark (labels) on it. */
typedef struct BqTable
{
	JsonNode *json; /* the resource */
	char	 *name;
	char	 *token; /* of the mark; NULL: none, or not of this table */
	int64	  run;
	char	 *role;
	char	 *life;
} BqTable;

extern BqTable *resync_bq_find_table(BqDestination *dest, const char *name); /* NULL: none */
extern bool		resync_bq_is_ours(const BqDestination *dest, const BqTable *found);
extern bool		resync_bq_is_this_run(const BqDestination *dest, const BqTable *found);
extern BqTable *resync_bq_require_owned(BqDestination *dest, const ResyncTable *table, bool live);
extern void	 resync_bq_set_mark(BqDestination *dest, JsonNode *table, const char *name, int64 run,
								const char *role, const char *life);
extern void	 resync_bq_patch_table(BqDestination *dest, const char *name, JsonNode *patch);
extern void	 resync_bq_insert_table(BqDestination *dest, JsonNode *table, const char *name);
extern void	 resync_bq_drop_table(BqDestination *dest, const char *name);
extern List *resync_bq_marked_tables(BqDestination *dest, const char *token);
extern void	 resync_bq_drop_marked(BqDestination *dest, const char *token, int64 run,
								   bool stages_only, bool live);
extern bool	 resync_bq_same_layout(JsonNode *a, JsonNode *b);
extern void	 resync_bq_check_table(Destination *dest, const ResyncTable *table, bool live_expected,
								   List **warnings);
extern void	 resync_bq_create_table(Destination *dest, const ResyncTable *table);
extern void	 resync_bq_reset_table(Destination *dest, const ResyncTable *table,
								   int64 first_partition, int64 last_partition);
extern void	 resync_bq_build_key(Destination *dest, const ResyncTable *table);
extern void	 resync_bq_add_column(BqDestination *dest, const ResyncTable *table, bool live);

/* ---- bigquery_load.c ---- */
extern bool
resync_bq_load_begin(Destination *dest, const ResyncTable *table, TupleDesc desc, int64 partition);
extern void	 resync_bq_load_relation(Destination *dest, TupleDesc desc);
extern void	 resync_bq_load_row(Destination *dest, TupleTableSlot *slot);
extern int64 resync_bq_load_finish(Destination *dest);
extern void	 resync_bq_load_abort(Destination *dest);
extern int64 resync_bq_load_bytes(Destination *dest);
extern List *resync_bq_done_partitions(Destination *dest);
extern int64
resync_bq_count_rows(Destination *dest, const ResyncTable *table, bool build, bool live_only);

/* ---- bigquery_apply.c ---- */
extern void
resync_bq_apply(Destination *dest, ResyncBatch *batch, bool to_live, XLogRecPtr expected,
				XLogRecPtr end_lsn, FetchRowsFn fetch, void *fetch_arg);
extern XLogRecPtr resync_bq_applied_lsn(Destination *dest);

/* ---- bigquery_swap.c ---- */
extern int64 resync_bq_transfer(Destination *dest, const ResyncTable *table, List **warnings);
extern bool	 resync_bq_swap(Destination *dest, ResyncTable **tables, int ntables, XLogRecPtr lsn,
							int64 retire_run);
extern bool	 resync_bq_is_swapped(Destination *dest, const ResyncTable *table);
extern void	 resync_bq_after_swap(Destination *dest, ResyncTable **tables, int ntables);

#endif /* RESYNC_DESTINATION_BIGQUERY_H */
