/*
 * http_request.c
 *		Sets a request up with libcurl, and feeds libcurl while it runs.
 *
 * Called by http.c.  libcurl's callbacks run no code of PostgreSQL that could
 * raise: what they are given is kept in malloc'ed memory and looked at
 * afterwards.
 *
 * libcurl sends a request again when a kept-alive connection turns out to be
 * dead before a byte of the answer came.  The server may have executed it, so
 * that is prevented (before_sending()): the caller has to find out.
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "net/http_state.h"
#include "net/resolve.h"

/* Addresses are asked for again after so long. */
#define RESOLVE_AGAIN_MS 60000

/*
 * A connection idle for longer is not used again: servers close theirs after a
 * few seconds (ClickHouse: 3 by default for a long time), and a request on its
 * way to one that closes is lost.
 */
#define MAX_IDLE_SECONDS 2

/* libcurl's own buffer, and the size of a chunk. */
#define UPLOAD_BUFFER_SIZE (256 * 1024)

/* ---------------------------------------------------------------------
 * Callbacks of libcurl: nothing here may raise
 * ------------------------------------------------------------------ */

static bool
raw_append(RawBuffer *buf, const char *data, Size len)
{
	if (len > buf->max - buf->len)
		return false;
	if (buf->len + len > buf->size)
	{
		Size  size = Max(buf->len + len, buf->size * 2);
		char *grown = realloc(buf->data, size);

		if (grown == NULL)
			return false;
		buf->data = grown;
		buf->size = size;
	}
	memcpy(buf->data + buf->len, data, len);
	buf->len += len;
	return true;
}

static size_t
on_body(char *data, size_t size, size_t n, void *arg)
{
	HttpConn *conn = arg;

	conn->progress = GetCurrentTimestamp();
	return raw_append(&conn->answer, data, size * n) ? size * n : 0;
}

static size_t
on_header(char *data, size_t size, size_t n, void *arg)
{
	HttpConn *conn = arg;
	Size	  len = size * n;
	long	  status = 0;

	conn->progress = GetCurrentTimestamp();
	/* "100 Continue" has a head of its own, before the one that counts */
	if (len >= 5 && memcmp(data, "HTTP/", 5) == 0)
	{
		conn->answer_headers.len = 0;
		conn->head_ended = false;
	}
	if (!raw_append(&conn->answer_headers, data, len))
		return 0;
	if (len <= 2)
		conn->head_ended = true;
	if (len <= 2 && !conn->complete &&
		curl_easy_getinfo(conn->easy, CURLINFO_RESPONSE_CODE, &status) == CURLE_OK && status >= 300)
		conn->refused = true;
	return len;
}

/* libcurl wants to send more of the body. */
static size_t
on_read(char *data, size_t size, size_t n, void *arg)
{
	HttpConn *conn = arg;
	Size	  len = size * n;

	conn->progress = GetCurrentTimestamp();
	if (conn->body != NULL)
	{
		len = Min(len, conn->body_len);
		memcpy(data, conn->body, len);
		conn->body += len;
		conn->body_len -= len;
	}
	else
	{
		len = Min(len, conn->queue.len);
		if (len == 0 && !conn->complete)
		{
			conn->paused = true;
			return CURL_READFUNC_PAUSE;
		}
		memcpy(data, conn->queue.data + conn->queue.start, len);
		conn->queue.start += len;
		conn->queue.len -= len;
	}
	conn->bytes_sent += len;
	return len;
}

#if LIBCURL_VERSION_NUM >= 0x075000
static int
before_sending(void *arg, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
	HttpConn *conn = arg;

	if (conn->sent)
		return CURL_PREREQFUNC_ABORT;
	conn->sent = true;
	conn->progress = GetCurrentTimestamp();
	return CURL_PREREQFUNC_OK;
}
#endif

/* ---------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------ */

/* Anything else would make the URL say something other than host and port. */
static bool
is_host(const char *host)
{
	return host[0] != '\0' && strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
										   "0123456789.-_:") == strlen(host);
}

/*
 * Make conn->addresses ("host:port:address,..."); not needed for a host that
 * is an address itself.
 */
static void
resolve(HttpConn *conn, TimestampTz deadline)
{
	struct in_addr	   v4;
	const char		  *failure = NULL;
	List			 **found;
	StringInfoData	   entry;
	struct curl_slist *list;
	ListCell		  *lc;

	if (!is_host(conn->host))
		resync_http_raise_connect(conn, "This is not the name or address of a host.");
	if (strchr(conn->host, ':') != NULL || inet_pton(AF_INET, conn->host, &v4) == 1)
		return;
	if (conn->resolved_at != 0 &&
		!TimestampDifferenceExceeds(conn->resolved_at, GetCurrentTimestamp(), RESOLVE_AGAIN_MS))
		return;
	found = resync_resolve_hosts(&conn->host, 1, deadline, &failure);
	if (found == NULL || found[0] == NIL)
	{
		if (conn->addresses != NULL)
			return; /* those of last time may still do */
		resync_http_raise_connect(
			conn, found == NULL
					  ? psprintf("timeout expired while resolving host name \"%s\"", conn->host)
					  : failure);
	}
	initStringInfo(&entry);
	appendStringInfo(&entry, "%s:%d:", conn->host, conn->port);
	foreach(lc, found[0])
		appendStringInfo(&entry, strchr(lfirst(lc), ':') != NULL ? "%s[%s]" : "%s%s",
						 foreach_current_index(lc) > 0 ? "," : "", (char *) lfirst(lc));
	list = curl_slist_append(NULL, entry.data);
	if (list == NULL)
		resync_http_raise_out_of_memory();
	curl_slist_free_all(conn->addresses);
	conn->addresses = list;
	conn->resolved_at = GetCurrentTimestamp();
}

static void
add_header(HttpConn *conn, const char *header)
{
	struct curl_slist *list;

	/* it would end the header, and begin another; the value may be secret */
	if (strpbrk(header, "\r\n") != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("a line break in header \"%s\" of a request to %s",
							   pnstrdup(header, strcspn(header, ":\r\n")), conn->service),
						errhint("User and password must not contain line breaks.")));
	list = curl_slist_append(conn->headers, header);
	if (list == NULL)
		resync_http_raise_out_of_memory();
	conn->headers = list;
}

static void
set_option_failed(CURLcode code)
{
	if (code == CURLE_OUT_OF_MEMORY)
		resync_http_raise_out_of_memory();
	ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
					errmsg("libcurl refused an option: %s", curl_easy_strerror(code))));
}

#define SET(option, value)                                               \
	do                                                                   \
	{                                                                    \
		CURLcode set_code = curl_easy_setopt(conn->easy, option, value); \
		if (set_code != CURLE_OK)                                        \
			set_option_failed(set_code);                                 \
	} while (0)

/* What is the same for every request of the connection. */
static void
set_connection_options(HttpConn *conn, long connect_ms)
{
	curl_easy_reset(conn->easy);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_ERRORBUFFER, conn->error);
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_HTTP09_ALLOWED, 0L);
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_USERAGENT, "resync");
	SET(CURLOPT_PATH_AS_IS, 1L);
	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_UPLOAD_BUFFERSIZE, (long) UPLOAD_BUFFER_SIZE);
	SET(CURLOPT_CONNECTTIMEOUT_MS, connect_ms);
	SET(CURLOPT_MAXAGE_CONN, (long) MAX_IDLE_SECONDS);
	if (conn->addresses != NULL)
		SET(CURLOPT_RESOLVE, conn->addresses);
	if (conn->tls)
	{
		SET(CURLOPT_SSL_VERIFYPEER, 1L);
		SET(CURLOPT_SSL_VERIFYHOST, 2L);
		SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
		if (conn->ca_file != NULL)
		{
			SET(CURLOPT_CAINFO, conn->ca_file);
			SET(CURLOPT_CAPATH, NULL);
		}
	}
	SET(CURLOPT_WRITEFUNCTION, on_body);
	SET(CURLOPT_WRITEDATA, conn);
	SET(CURLOPT_HEADERFUNCTION, on_header);
	SET(CURLOPT_HEADERDATA, conn);
	SET(CURLOPT_READFUNCTION, on_read);
	SET(CURLOPT_READDATA, conn);
	SET(CURLOPT_ACCEPT_ENCODING, "gzip");
#if LIBCURL_VERSION_NUM >= 0x075000
	SET(CURLOPT_PREREQFUNCTION, before_sending);
	SET(CURLOPT_PREREQDATA, conn);
#else
	/* a fresh connection is never the reason for sending again */
	SET(CURLOPT_FRESH_CONNECT, 1L);
	conn->sent = true;
#endif
}

static bool
has_header(const List *headers, const char *name)
{
	Size	  len = strlen(name);
	ListCell *lc;

	foreach(lc, headers)
	{
		const char *header = lfirst(lc);

		if (pg_strncasecmp(header, name, len) == 0 && header[len] == ':')
			return true;
	}
	return false;
}

/* Method, headers and length of the body; length -1: chunked. */
static void
set_method(HttpConn *conn, const HttpRequest *request, curl_off_t length)
{
	const char *method = request->method;
	ListCell   *lc;

	foreach(lc, request->headers)
		add_header(conn, lfirst(lc));
	if (strcmp(method, "POST") == 0)
	{
		SET(CURLOPT_POST, 1L);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, length);
		if (!has_header(request->headers, "Content-Type"))
			add_header(conn, "Content-Type: application/octet-stream");
	}
	else if (length != 0)
	{
		SET(CURLOPT_UPLOAD, 1L);
		SET(CURLOPT_INFILESIZE_LARGE, length);
		SET(CURLOPT_CUSTOMREQUEST, method);
	}
	else if (strcmp(method, "HEAD") == 0)
		SET(CURLOPT_NOBODY, 1L);
	else
		SET(CURLOPT_CUSTOMREQUEST, method);
	if (length < 0)
		add_header(conn, "Transfer-Encoding: chunked");
	if (length != 0 && request->encoding != HTTP_IDENTITY)
		add_header(conn, psprintf("Content-Encoding: %s", resync_compress_name(request->encoding)));
	/* do not wait for leave to send the body */
	add_header(conn, "Expect:");
	SET(CURLOPT_HTTPHEADER, conn->headers);
}

void
resync_http_start(HttpConn *conn, const HttpRequest *request, curl_off_t length)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   conn->connect_timeout_ms);
	CURLMcode	code;
	long		ms;

	resolve(conn, deadline);
	ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
	conn->sent = false;
	conn->done = false;
	conn->paused = false;
	conn->refused = false;
	conn->error[0] = '\0';
	conn->answer.len = 0;
	conn->answer_headers.len = 0;
	conn->head_ended = false;
	conn->timeout_ms = request->timeout_ms;
	conn->progress = GetCurrentTimestamp();

	set_connection_options(conn, Max(ms, 1));
	set_method(conn, request, length);
	SET(CURLOPT_TIMEOUT_MS, (long) request->total_ms);
	SET(CURLOPT_URL, psprintf(strchr(conn->host, ':') != NULL ? "%s://[%s]:%d%s" : "%s://%s:%d%s",
							  conn->tls ? "https" : "http", conn->host, conn->port, request->url));
	code = curl_multi_add_handle(conn->multi, conn->easy);
	if (code != CURLM_OK)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("libcurl could not begin a request: %s", curl_multi_strerror(code))));
	conn->active = true;
}
