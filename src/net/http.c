/*
 * http.c
 *		HTTP/1.1 and TLS by libcurl, driven by the process latch.
 *
 * Called by destinations, in workers and (to check a peer) in a user's backend.
 * libcurl's multi interface tells which sockets to watch and when to come back;
 * the sockets are members of one epoll set, and its descriptor is what
 * WaitLatchOrSocket waits for beside the latch.  So every wait serves
 * interrupts, and an error or interrupt in the middle of a request leaves
 * nothing behind: the request's connection is closed when the next request
 * begins or the memory context goes away.  Names are resolved in a thread of
 * ours (resolve.c) and handed to libcurl as addresses.
 *
 * libcurl's callbacks (here and in http_request.c) run no code of PostgreSQL that
 * could raise.
 *
 * No locks; no transaction is needed.
 */
#include "postgres.h"

#include "compat.h"

#include <sys/epoll.h>
#include <unistd.h>

#include "miscadmin.h"
#include "net/http_state.h"
#include "net/wait.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#define DEFAULT_CONNECT_TIMEOUT_MS 30000

/* An answer may not be longer: it has to fit a StringInfo. */
#define MAX_BODY (MaxAllocSize / 2)
#define MAX_HEADERS (1024 * 1024)

/* What grew longer than this is given back after the request. */
#define KEEP_BUFFER (4 * 1024 * 1024)

/* ---------------------------------------------------------------------
 * Callbacks of libcurl: nothing here may raise
 * ------------------------------------------------------------------ */

static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
	HttpConn		  *conn = arg;
	struct epoll_event event;

	memset(&event, 0, sizeof(event));
	event.data.fd = fd;
	if (what == CURL_POLL_REMOVE)
	{
		/* it may be closed, and gone from the set, already */
		(void) epoll_ctl(conn->epfd, EPOLL_CTL_DEL, fd, &event);
		return 0;
	}
	if (what & CURL_POLL_IN)
		event.events |= EPOLLIN;
	if (what & CURL_POLL_OUT)
		event.events |= EPOLLOUT;
	if (epoll_ctl(conn->epfd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) != 0)
		conn->epoll_errno = errno;
	curl_multi_assign(conn->multi, fd, conn);
	return 0;
}

static int
on_timer(CURLM *multi, long ms, void *arg)
{
	HttpConn *conn = arg;

	conn->timer = ms < 0 ? 0 : TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
	return 0;
}

/* ---------------------------------------------------------------------
 * Opening and closing
 * ------------------------------------------------------------------ */

/* Take the request off its connection, which closes if it was not over. */
static void
forget_request(HttpConn *conn)
{
	if (conn->active)
		curl_multi_remove_handle(conn->multi, conn->easy);
	conn->active = false;
	conn->uploading = false;
	conn->paused = false;
	conn->body = NULL;
	conn->queue.len = 0;
	curl_slist_free_all(conn->headers);
	conn->headers = NULL;
	if (conn->queue.size > KEEP_BUFFER)
	{
		pfree(conn->queue.data);
		conn->queue.data = NULL;
		conn->queue.size = 0;
	}
}

static void
close_conn(void *arg)
{
	HttpConn *conn = arg;

	if (conn->multi != NULL && conn->easy != NULL)
	{
		if (conn->active)
			curl_multi_remove_handle(conn->multi, conn->easy);
		curl_easy_cleanup(conn->easy);
	}
	if (conn->multi != NULL)
		curl_multi_cleanup(conn->multi);
	curl_slist_free_all(conn->headers);
	curl_slist_free_all(conn->addresses);
	if (conn->epfd >= 0)
		close(conn->epfd);
	for (; conn->nfds > 0; conn->nfds--)
		ReleaseExternalFD();
	free(conn->answer.data);
	free(conn->answer_headers.data);
}

void
resync_http_raise_out_of_memory(void)
{
	ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

void
resync_http_raise_connect(const HttpConn *conn, const char *detail)
{
	ereport(ERROR, (errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					errmsg("could not connect to %s at \"%s\", port %d", conn->service, conn->host,
						   conn->port),
					errdetail_internal("%s", detail)));
}

static char *
copy_string(HttpConn *conn, const char *text)
{
	return text != NULL ? MemoryContextStrdup(conn->context, text) : NULL;
}

HttpConn *
resync_http_open(MemoryContext context, const HttpOptions *options)
{
	static bool initialized = false;
	HttpConn   *conn;

	if (!initialized)
	{
		if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
			ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
							errmsg("could not initialize libcurl")));
		initialized = true;
	}
	conn = MemoryContextAllocZero(context, sizeof(HttpConn));
	conn->context = context;
	conn->epfd = -1;
	conn->answer.max = MAX_BODY;
	conn->answer_headers.max = MAX_HEADERS;
	conn->queue.context = context;
	conn->callback.func = close_conn;
	conn->callback.arg = conn;
	MemoryContextRegisterResetCallback(context, &conn->callback);

	conn->host = copy_string(conn, options->host);
	conn->port = options->port;
	conn->tls = options->tls;
	conn->ca_file = copy_string(conn, options->ca_file);
	conn->service = copy_string(conn, options->service ? options->service : "the server");
	conn->connect_timeout_ms = options->connect_timeout_ms > 0 ? options->connect_timeout_ms
															   : DEFAULT_CONNECT_TIMEOUT_MS;

	/* one for the set, one for the connection */
	while (conn->nfds < 2)
	{
		if (!AcquireExternalFD())
			resync_http_raise_connect(conn, "There are too many open files on the local server.");
		conn->nfds++;
	}
	conn->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (conn->epfd < 0)
		ereport(ERROR, (errcode_for_socket_access(), errmsg("could not create an epoll set: %m")));
	conn->multi = curl_multi_init();
	conn->easy = curl_easy_init();
	if (conn->multi == NULL || conn->easy == NULL)
		resync_http_raise_out_of_memory();
	curl_multi_setopt(conn->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(conn->multi, CURLMOPT_SOCKETDATA, conn);
	curl_multi_setopt(conn->multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(conn->multi, CURLMOPT_TIMERDATA, conn);
	curl_multi_setopt(conn->multi, CURLMOPT_MAXCONNECTS, 1L);
	return conn;
}

/* ---------------------------------------------------------------------
 * Driving
 * ------------------------------------------------------------------ */

/* Raise the failure of the request, which is over. */
static void
raise_result(HttpConn *conn)
{
	CURLcode	code = conn->result;
	bool		sent = conn->sent;
	const char *detail = pstrdup(conn->error[0] != '\0' ? conn->error
														: curl_easy_strerror(conn->result));

	forget_request(conn);
	conn->resolved_at = 0;
	switch (code)
	{
		case CURLE_OUT_OF_MEMORY:
			resync_http_raise_out_of_memory();
			break;
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
			ereport(ERROR, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
							errmsg("could not verify the certificate of %s at \"%s\", port %d",
								   conn->service, conn->host, conn->port),
							errdetail_internal("%s", detail),
							errhint("Set the option \"ca_file\" to a file with the certificate of "
									"the authority that signed it.")));
			break;
		case CURLE_WRITE_ERROR:
			ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
							errmsg("the answer of %s at \"%s\", port %d is too long", conn->service,
								   conn->host, conn->port)));
			break;
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_UNSUPPORTED_PROTOCOL:
		case CURLE_BAD_CONTENT_ENCODING:
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
							errmsg("%s at \"%s\", port %d did not answer in HTTP", conn->service,
								   conn->host, conn->port),
							errdetail_internal("%s", detail)));
			break;
		case CURLE_SSL_CONNECT_ERROR:
			ereport(ERROR, (errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
							errmsg("could not connect to %s at \"%s\", port %d", conn->service,
								   conn->host, conn->port),
							errdetail_internal("%s", detail),
							errhint("If the server speaks no TLS at this port, turn the option "
									"\"tls\" off.")));
			break;
		case CURLE_ABORTED_BY_CALLBACK:
			detail = "The connection was closed before an answer came.";
			break;
		default:
			break;
	}
	if (!sent)
		resync_http_raise_connect(conn, detail);
	ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
					errmsg("connection to %s at \"%s\", port %d was lost", conn->service,
						   conn->host, conn->port),
					errdetail_internal("%s", detail)));
}

/* Let libcurl do what can be done without waiting. */
static void
step(HttpConn *conn)
{
	struct epoll_event events[8];
	CURLMsg			  *message;
	int				   n = epoll_wait(conn->epfd, events, lengthof(events), 0);
	int				   left;

	for (int i = 0; i < n; i++)
	{
		int bits = ((events[i].events & EPOLLIN) ? CURL_CSELECT_IN : 0) |
				   ((events[i].events & EPOLLOUT) ? CURL_CSELECT_OUT : 0) |
				   ((events[i].events & (EPOLLERR | EPOLLHUP)) ? CURL_CSELECT_ERR : 0);

		curl_multi_socket_action(conn->multi, events[i].data.fd, bits, &left);
	}
	if (conn->timer != 0 && GetCurrentTimestamp() >= conn->timer)
	{
		conn->timer = 0;
		curl_multi_socket_action(conn->multi, CURL_SOCKET_TIMEOUT, 0, &left);
	}
	while ((message = curl_multi_info_read(conn->multi, &left)) != NULL)
	{
		if (message->msg == CURLMSG_DONE && message->easy_handle == conn->easy)
		{
			conn->done = true;
			conn->result = message->data.result;
		}
	}
	if (conn->epoll_errno != 0)
	{
		errno = conn->epoll_errno;
		conn->epoll_errno = 0;
		forget_request(conn);
		ereport(ERROR, (errcode_for_socket_access(), errmsg("could not watch a socket: %m")));
	}
}

/* Let libcurl send what came since it found nothing more, or the end. */
static void
resume(HttpConn *conn)
{
	if (conn->paused && !conn->done && (conn->queue.len > 0 || conn->complete || conn->refused))
	{
		conn->paused = false;
		curl_easy_pause(conn->easy, CURLPAUSE_CONT);
	}
}

/*
 * Wait until something happened, then step.  The time without any progress is
 * limited by the request's timeout.
 */
static void
wait_step(HttpConn *conn)
{
	long ms = -1;
	int	 events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_SOCKET_READABLE;
	int	 rc;

	if (conn->timeout_ms > 0 && conn->sent)
	{
		ms = TimestampDifferenceMilliseconds(
			GetCurrentTimestamp(), TimestampTzPlusMilliseconds(conn->progress, conn->timeout_ms));
		if (ms <= 0)
		{
			snprintf(conn->error, sizeof(conn->error),
					 "Nothing was sent or received for %d seconds.", conn->timeout_ms / 1000);
			conn->result = CURLE_OPERATION_TIMEDOUT;
			raise_result(conn);
		}
	}
	if (conn->timer != 0)
	{
		long timer = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), conn->timer);

		ms = ms < 0 ? timer : Min(ms, timer);
	}
	if (ms >= 0)
		events |= WL_TIMEOUT;
	rc = WaitLatchOrSocket(MyLatch, events, conn->epfd, ms, RESYNC_WAIT_EVENT("Destination"));
	if (rc & WL_LATCH_SET)
		resync_wait_latch_set();
	step(conn);
}

static Compressor *
compressor_for(HttpConn *conn, HttpEncoding encoding)
{
	if (conn->compressors[encoding] == NULL)
		conn->compressors[encoding] = resync_compress_make(conn->context, encoding);
	resync_compress_begin(conn->compressors[encoding]);
	return conn->compressors[encoding];
}

/*
 * The request has failed?  Not if the server has refused it in so many words,
 * even if the connection broke while the rest of the body was on its way.  An
 * answer that ends within its headers is a good one without body to libcurl.
 */
static void
check_result(HttpConn *conn)
{
	if (conn->done && conn->result == CURLE_OK && !conn->head_ended)
		conn->result = CURLE_PARTIAL_FILE;
	if (conn->done && conn->result != CURLE_OK && !conn->refused)
		raise_result(conn);
}

/* Wait for the end of the request; the answer in the current context. */
static HttpResponse *
finish(HttpConn *conn)
{
	HttpResponse *response;
	long		  status = 0;
	const char	 *p;
	const char	 *end;

	while (!conn->done)
	{
		resume(conn);
		wait_step(conn);
	}
	check_result(conn);

	response = palloc0(sizeof(HttpResponse));
	curl_easy_getinfo(conn->easy, CURLINFO_RESPONSE_CODE, &status);
	response->status = (int) status;
	p = conn->answer_headers.data;
	end = p + conn->answer_headers.len;
	while (p < end)
	{
		const char *eol = memchr(p, '\n', end - p);
		const char *next = eol != NULL ? eol + 1 : end;

		if (eol == NULL)
			eol = end;
		if (eol > p && eol[-1] == '\r')
			eol--;
		/* the first line is the status */
		if (eol > p && p > conn->answer_headers.data)
			response->headers = lappend(response->headers, pnstrdup(p, eol - p));
		p = next;
	}
	initStringInfo(&response->body);
	appendBinaryStringInfo(&response->body, conn->answer.data ? conn->answer.data : "",
						   conn->answer.len);
	if (conn->answer.size > KEEP_BUFFER)
	{
		free(conn->answer.data);
		conn->answer.data = NULL;
		conn->answer.size = 0;
	}
	forget_request(conn);
	return response;
}

HttpResponse *
resync_http_call(HttpConn *conn, const HttpRequest *request)
{
	curl_off_t length = request->body != NULL ? request->body_len : 0;

	forget_request(conn);
	conn->complete = true;
	if (length > 0 && request->encoding != HTTP_IDENTITY)
	{
		Compressor *compressor = compressor_for(conn, request->encoding);

		resync_compress_put(compressor, request->body, request->body_len, &conn->queue);
		resync_compress_end(compressor, &conn->queue);
		length = conn->queue.len;
	}
	else if (length > 0)
	{
		conn->body = request->body;
		conn->body_len = request->body_len;
	}
	resync_http_start(conn, request, length);
	return finish(conn);
}

/* ---------------------------------------------------------------------
 * Uploads
 * ------------------------------------------------------------------ */

void
resync_http_upload_begin(HttpConn *conn, const HttpRequest *request)
{
	forget_request(conn);
	conn->complete = false;
	conn->compressor = compressor_for(conn, request->encoding);
	resync_http_start(conn, request, -1);
	conn->uploading = true;
}

bool
resync_http_upload_put(HttpConn *conn, const char *data, Size len, Size limit)
{
	Assert(conn->uploading);
	/* the time until now was the caller's */
	conn->progress = GetCurrentTimestamp();
	resync_http_upload_pump(conn);
	if (!conn->done && !conn->refused)
	{
		resync_compress_put(conn->compressor, data, len, &conn->queue);
		resync_http_upload_pump(conn);
	}
	while (!conn->done && !conn->refused && conn->queue.len > limit)
	{
		resume(conn);
		wait_step(conn);
	}
	CHECK_FOR_INTERRUPTS();
	check_result(conn);
	return !conn->done && !conn->refused;
}

void
resync_http_upload_pump(HttpConn *conn)
{
	if (!conn->uploading || conn->done)
		return;
	resume(conn);
	step(conn);
}

HttpResponse *
resync_http_upload_end(HttpConn *conn)
{
	Assert(conn->uploading);
	conn->progress = GetCurrentTimestamp();
	if (!conn->done && !conn->refused)
		resync_compress_end(conn->compressor, &conn->queue);
	conn->complete = true;
	return finish(conn);
}

void
resync_http_upload_abort(HttpConn *conn)
{
	if (conn->uploading)
		forget_request(conn);
}

int64
resync_http_sent(const HttpConn *conn)
{
	return conn->bytes_sent;
}

/* ---------------------------------------------------------------------
 * Helpers
 * ------------------------------------------------------------------ */

const char *
resync_http_header(const HttpResponse *response, const char *name)
{
	Size	  len = strlen(name);
	ListCell *lc;

	foreach(lc, response->headers)
	{
		const char *header = lfirst(lc);

		if (pg_strncasecmp(header, name, len) == 0 && header[len] == ':')
		{
			header += len + 1;
			return header + strspn(header, " \t");
		}
	}
	return NULL;
}

char *
resync_http_escape(const char *text)
{
	static const char hex[] = "0123456789ABCDEF";
	StringInfoData	  buf;

	initStringInfo(&buf);
	for (const unsigned char *p = (const unsigned char *) text; *p != '\0'; p++)
	{
		if ((*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			strchr("-._~", *p) != NULL)
			appendStringInfoChar(&buf, *p);
		else
		{
			appendStringInfoChar(&buf, '%');
			appendStringInfoChar(&buf, hex[*p >> 4]);
			appendStringInfoChar(&buf, hex[*p & 15]);
		}
	}
	return buf.data;
}

char *
resync_http_parse_url(const char *url, const char *service, HttpOptions *options)
{
	const char *host;
	const char *end;
	const char *port;

	options->tls = pg_strncasecmp(url, "https://", 8) == 0;
	if (!options->tls && pg_strncasecmp(url, "http://", 7) != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("URL of %s is neither http nor https", service)));
	host = url + (options->tls ? 8 : 7);
	end = host + strcspn(host, "/?#");
	port = end;
	while (port > host && isdigit((unsigned char) port[-1]))
		port--;
	options->service = service;
	options->port = options->tls ? 443 : 80;
	if (port > host && port < end && port[-1] == ':')
	{
		options->port = atoi(port);
		port--;
	}
	else
		port = end;
	if (port - host > 2 && host[0] == '[' && port[-1] == ']')
		options->host = pnstrdup(host + 1, port - host - 2);
	else
		options->host = pnstrdup(host, port - host);
	return pstrdup(*end == '\0' ? "/" : end);
}
