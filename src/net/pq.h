/*
 * pq.h
 *		libpq driven by the process latch: no call here blocks without
 *		listening to signals (name resolution included), and errors of the
 *		other server are raised with their SQLSTATE, detail, hint and context.
 *
 * Includes nothing of ours.
 */
#ifndef RESYNC_PQ_H
#define RESYNC_PQ_H

#include "postgres.h"

#include "compat.h"

#include "libpq-fe.h"
#include "lib/stringinfo.h"

/*
 * Connect.  keywords/values: NULL-terminated, as for PQconnectdbParams.  Host
 * names are resolved without blocking and handed on as hostaddr.  Raises
 * ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION (or the server's own
 * SQLSTATE class 28 / 3D when the message tells) with libpq's text as detail.
 * The connection is closed when context is reset or deleted.
 */
extern PGconn *
resync_pq_connect(MemoryContext context, const char *const *keywords, const char *const *values);

/*
 * Run a query and return its last result, PGRES_TUPLES_OK or
 * PGRES_COMMAND_OK; anything else is raised.  PGresults are bound to the
 * current memory context by a reset callback, and may be freed earlier with
 * resync_pq_clear().
 */
extern PGresult *resync_pq_exec(PGconn *conn, const char *sql);
extern PGresult *resync_pq_exec_params(PGconn *conn, const char *sql, int nparams, const Oid *types,
									   const char *const *values, const int *lengths,
									   const int *formats, int result_format);
extern void		 resync_pq_clear(PGresult *res);

/*
 * Like resync_pq_exec, but returns false (with *sqlstate set, the error
 * consumed) when the server raises exactly one of ... `allowed` (0 = none).
 */
extern bool resync_pq_try(PGconn *conn, const char *sql, int allowed, int *sqlstate);

/*
 * Like resync_pq_exec, but an error of the server is returned as a result of
 * status PGRES_FATAL_ERROR instead of raised (a lost connection is raised).
 * For callers that can go on after some errors; the rest they give to
 * resync_pq_raise().
 */
extern PGresult *resync_pq_exec_any(PGconn *conn, const char *sql);

/* SQLSTATE of a result as an errcode, or 0. */
extern int resync_pq_sqlstate(const PGresult *res);

/*
 * COPY FROM STDIN.  begin: sends the COPY statement.  put: hands bytes over;
 * returns once at most `limit` bytes wait in libpq's buffer, so that reading
 * the source overlaps with the network.  end: returns the number of rows the
 * server acknowledged.
 */
extern void	 resync_pq_copy_begin(PGconn *conn, const char *sql);
extern void	 resync_pq_copy_put(PGconn *conn, const char *data, int len, Size limit);
extern int64 resync_pq_copy_end(PGconn *conn);
extern void	 resync_pq_copy_abort(PGconn *conn);

/* Raise the error of a result or connection; sql (may be NULL) as context. */
extern void resync_pq_raise(PGconn *conn, PGresult *res, const char *sql) pg_attribute_noreturn();

/*
 * For error context callbacks, while resync_pq_raise() raises: the table that the
 * server named, or NULL.
 */
extern const char *resync_pq_error_schema;
extern const char *resync_pq_error_table;

/* "a", always quoted, palloc'ed. */
extern const char *resync_pq_ident(const char *name);

/* "a"."b" for two names (schema may be NULL), palloc'ed. */
extern const char *resync_pq_qualified(const char *schema, const char *name);

#endif /* RESYNC_PQ_H */
