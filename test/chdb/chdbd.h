/*
 * chdbd.h
 *		What the files of chdbd share: chdbd.c (start, administration, faults),
 *		chdbd_http.c (requests and answers), chdbd_query.c (statements).
 */
#ifndef CHDBD_H
#define CHDBD_H

#define _GNU_SOURCE
#include <lz4frame.h>
#include <pthread.h>
#include <regex.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/types.h>
#include <zlib.h>
#include <zstd.h>

/* ---- libchdb's C interface */
typedef struct chdb_result chdb_result;
typedef struct chdb_conn   chdb_conn;
typedef struct chdb_insert chdb_insert;

extern chdb_conn **chdb_connect(int argc, char **argv);
extern void		   chdb_close_conn(chdb_conn **conn);
extern chdb_result *
chdb_query_n(chdb_conn *conn, const char *sql, size_t len, const char *format, size_t format_len);
extern const char  *chdb_result_error(chdb_result *res);
extern char		   *chdb_result_buffer(chdb_result *res);
extern size_t		chdb_result_length(chdb_result *res);
extern uint64_t		chdb_result_rows_written(chdb_result *res);
extern void			chdb_destroy_query_result(chdb_result *res);
extern chdb_insert *chdb_stream_insert_n(chdb_conn *conn, const char *sql, size_t len,
										 const char *format, size_t format_len);
extern const char  *chdb_stream_insert_error(chdb_insert *stream);
extern int			chdb_stream_append(chdb_insert *stream, const void *data, size_t len);
extern chdb_result *chdb_stream_done(chdb_insert *stream);
extern void			chdb_stream_cancel_insert(chdb_insert *stream);
extern void			chdb_destroy_insert_stream(chdb_insert *stream);
extern void			chdb_set_signal_handlers_enabled(int on);

#define IO_SIZE (256 * 1024)

/* ---- configuration, set once */
extern int		   engine_argc;
extern char		  *engine_argv[3]; /* --path=, --config-file= */
extern const char *user;
extern const char *password;
extern const char *fake_version; /* what version() gives, or NULL */
extern const char *cluster;
extern FILE		  *log_file;

typedef struct Buf
{
	char  *data;
	size_t len, size;
} Buf;

typedef struct Param
{
	struct Param *next;
	char		 *name, *value;
} Param;

typedef struct Http
{
	int		fd;
	char   *in; /* bytes received and not yet used: in[at..end) */
	size_t	at, end;
	char	method[16];
	char   *path;
	Param  *params;	 /* of the URL */
	Param  *headers; /* names in lower case */
	int64_t left;	 /* of the body, or of the chunk; -1: chunked, at a chunk's start */
	bool	chunked, body_done, close_after;
	int64_t body_read; /* bytes of the body so far, as on the wire */
	bool	answered;
	long	cut_answer; /* bytes of the answer to send, -1: all */
} Http;

/* Content-Encoding */
typedef struct Decoder
{
	int			kind; /* 0 none, 1 zstd, 2 lz4, 3 gzip */
	ZSTD_DCtx  *zstd;
	LZ4F_dctx  *lz4;
	z_stream	gzip;
	bool		complete; /* at the end of a frame */
	bool		full;	  /* the last piece filled out: more may come */
	char	   *out;
	const char *in;
	size_t		len;
} Decoder;

/* ---- faults */
typedef enum Action
{
	DELAY,		/* wait ms before the statement */
	FAIL,		/* answer with exception `code`; after `after` bytes of the body */
	CUT_BODY,	/* close after `after` bytes of the body: the statement is lost */
	CUT_ANSWER, /* run it, close after `after` bytes of the answer */
	DROP,		/* run it, close without an answer */
	HOLD,		/* wait for /admin/release, KILL QUERY or the client's end before it */
	HOLD_AFTER, /* the same, between the statement and its answer */
	DIE,		/* exit before the statement */
	DIE_AFTER,	/* run it, exit without an answer */
	GARBAGE		/* answer with something that is not HTTP */
} Action;

typedef struct Fault
{
	struct Fault *next;
	int			  id;
	Action		  action;
	regex_t		  match; /* extended, any case, on the statement */
	long		  skip;	 /* matches to let pass first */
	long		  count; /* then: how often; -1: always */
	long		  after, code, status, ms;
	long		  hits;
	bool		  removed;
} Fault;

/* A statement that runs: what system.processes shows. */
typedef struct Running
{
	struct Running *next;
	const char	   *query_id;
	const char	   *sql;
	double			since;
	bool			killed;
} Running;

extern pthread_mutex_t lock; /* of all below */
extern pthread_cond_t  changed;
extern Running		  *running;
extern int			   held;
extern long			   released; /* generation */

/* ---- chdbd.c */
extern Fault *take_fault(const char *sql);

/* ---- chdbd_http.c */
extern void		   put(Buf *b, const void *data, size_t len);
extern void		   putf(Buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern void		   put_literal(Buf *b, const char *text);
extern double	   now(void);
extern const char *get(const Param *list, const char *name);
extern void		   free_params(Param **list);
extern bool		   read_head(Http *h);
extern ssize_t	   read_body(Http *h, char **data);
extern bool		   send_all(Http *h, const char *data, size_t len);
extern bool		   decoder_open(Decoder *d, const char *encoding);
extern ssize_t	   decode(Decoder *d, const char **data);
extern void		   decoder_close(Decoder *d);
extern void		   answer(Http *h, int status, const char *extra, const char *body, size_t len);
extern void		   answer_error(Http *h, int code, const char *text);

/* ---- chdbd_query.c */
extern void statement(Http *h);

#endif /* CHDBD_H */
