/*
 * http.h
 *		HTTP/1.1 and TLS by libcurl, driven by the process latch: no call here
 *		blocks without listening to signals (name resolution included).
 *
 * One HttpConn is one origin (scheme, host, port) with one kept-alive
 * connection and at most one request at a time; a process may have many.
 * Redirects are not followed, proxies of the environment are not used.
 *
 * Includes nothing of ours.
 */
#ifndef RESYNC_HTTP_H
#define RESYNC_HTTP_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

/* How a request's body is sent (Content-Encoding); lz4 is the frame format. */
typedef enum HttpEncoding
{
	HTTP_IDENTITY,
	HTTP_GZIP,
	HTTP_ZSTD,
	HTTP_LZ4
} HttpEncoding;

typedef struct HttpOptions
{
	const char *host; /* name or address, no brackets around IPv6 */
	int			port;
	bool		tls;
	const char *ca_file;			/* NULL: the system's certificates */
	const char *service;			/* in messages, e.g. "ClickHouse" */
	int			connect_timeout_ms; /* name, TCP and TLS; 0: 30 s */
} HttpOptions;

typedef struct HttpRequest
{
	const char	*method;
	const char	*url;	  /* path and query, beginning with "/" */
	List		*headers; /* char *, "Name: value"; may hold secrets */
	const char	*body;	  /* NULL: none; not looked at by uploads */
	Size		 body_len;
	HttpEncoding encoding;
	/*
	 * Nothing sent or received for so long: the connection counts as lost.  0:
	 * never.  A statement that takes long without a word back needs more.
	 */
	int timeout_ms;
	int total_ms; /* for all of it, once there is a connection; 0: no limit */
} HttpRequest;

/* In the memory context that was current at the call. */
typedef struct HttpResponse
{
	int			   status;
	List		  *headers; /* char *, "Name: value", as the server sent them */
	StringInfoData body;	/* decoded if the server had compressed it */
} HttpResponse;

typedef struct HttpConn HttpConn;

/*
 * Makes a connection object in context; nothing is sent before the first
 * request.  It closes, without waiting, when context is reset or deleted.
 * options is copied.
 */
extern HttpConn *resync_http_open(MemoryContext context, const HttpOptions *options);

/*
 * One request and its answer, whatever its status.  Raised are only:
 * 08001 no connection (unknown host included), 08006 connection lost or silent
 * for timeout_ms, 28000 the server's certificate was refused, 08P01 the answer
 * is not HTTP.  libcurl's text is the detail.  After an error (or if an
 * interrupt ended the call) conn may be used for a new request.
 *
 * A request is sent once: whether a lost one took effect is for the caller to
 * find out.
 */
extern HttpResponse *resync_http_call(HttpConn *conn, const HttpRequest *request);

/*
 * A request whose body is produced bit by bit (chunked, compressed on the
 * way).  begin; put as often as wished; end or abort.  Errors as above, from
 * any of them; after one the upload is over.
 */
extern void resync_http_upload_begin(HttpConn *conn, const HttpRequest *request);

/*
 * Hand bytes over; they are copied or compressed before it returns.  Waits
 * until at most `limit` bytes (after compression) are unsent.  false: the
 * server has answered already, which before the end of the body can only be an
 * error: call resync_http_upload_end() for the answer.
 */
extern bool resync_http_upload_put(HttpConn *conn, const char *data, Size len, Size limit);

/*
 * Let the network make what progress it can without waiting.  Called now and
 * then by who takes long to produce the next bytes.
 */
extern void resync_http_upload_pump(HttpConn *conn);

/* The body is complete: send the rest and wait for the answer. */
extern HttpResponse *resync_http_upload_end(HttpConn *conn);

/*
 * Give up: closes the connection, so that the server sees a body cut off in
 * the middle and never a complete one.  Never raises; harmless if no upload is
 * under way.
 */
extern void resync_http_upload_abort(HttpConn *conn);

/* Bytes of bodies sent over conn so far, as on the wire. */
extern int64 resync_http_sent(const HttpConn *conn);

/* A header's value (name in any case), or NULL. */
extern const char *resync_http_header(const HttpResponse *response, const char *name);

/*
 * "https://host:port/path" into host, port, tls and service of options; returns
 * the path, in the current context.  Raises 22023 if it is no such URL.
 */
extern char *resync_http_parse_url(const char *url, const char *service, HttpOptions *options);

/* Percent-encoded for use in a URL's path or query, palloc'ed. */
extern char *resync_http_escape(const char *text);

#endif /* RESYNC_HTTP_H */
