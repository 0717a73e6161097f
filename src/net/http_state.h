/*
 * http_state.h
 *		What http.c and http_request.c share; private to them.
 */
#ifndef RESYNC_HTTP_STATE_H
#define RESYNC_HTTP_STATE_H

#include "postgres.h"

#include "compat.h"

#include <curl/curl.h>

#include "net/compress.h"
#include "net/http.h"
#include "utils/timestamp.h"

/* malloc'ed, filled by libcurl's callbacks */
typedef struct RawBuffer
{
	char *data;
	Size  len;
	Size  size;
	Size  max;
} RawBuffer;

struct HttpConn
{
	MemoryContext context;
	char		 *host;
	int			  port;
	bool		  tls;
	char		 *ca_file;
	char		 *service;
	int			  connect_timeout_ms;

	CURL			  *easy;
	CURLM			  *multi;
	int				   epfd;
	int				   nfds;		/* AcquireExternalFD done so often */
	TimestampTz		   timer;		/* when libcurl wants to be called, 0: never */
	int				   epoll_errno; /* a socket could not be watched */
	struct curl_slist *addresses;	/* for CURLOPT_RESOLVE */
	TimestampTz		   resolved_at;
	char			   error[CURL_ERROR_SIZE];

	/* the request under way */
	bool			   active;	  /* easy is part of multi */
	bool			   done;	  /* result is set */
	bool			   sent;	  /* given to a connection */
	bool			   uploading; /* between upload_begin and end/abort */
	bool			   paused;	  /* libcurl wants more of the body */
	bool			   complete;  /* nothing more will be added to the body */
	bool			   refused;	  /* an error was answered before the body's end */
	CURLcode		   result;
	int				   timeout_ms;
	TimestampTz		   progress; /* something was sent or received */
	struct curl_slist *headers;
	const char		  *body; /* what is sent, unless queue is */
	Size			   body_len;
	ByteQueue		   queue;
	Compressor		  *compressors[HTTP_LZ4 + 1]; /* made when first needed */
	Compressor		  *compressor;
	RawBuffer		   answer;
	RawBuffer		   answer_headers;
	bool			   head_ended; /* the empty line after the headers was there */

	int64				  bytes_sent;
	MemoryContextCallback callback;
};

/*
 * Begin to send, which may mean to resolve the name and to connect first.
 * length: of the body, as it is sent; -1: not known yet.
 */
extern void resync_http_start(HttpConn *conn, const HttpRequest *request, curl_off_t length);

extern void
resync_http_raise_connect(const HttpConn *conn, const char *detail) pg_attribute_noreturn();
extern void resync_http_raise_out_of_memory(void) pg_attribute_noreturn();

#endif /* RESYNC_HTTP_STATE_H */
