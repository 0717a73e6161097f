/*
 * chdbd_http.c
 *		Requests and answers.
 */
#include "chdbd.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <time.h>

/* ---- small tools */
void
put(Buf *b, const void *data, size_t len)
{
	if (b->len + len + 1 > b->size)
	{
		b->size = (b->len + len + 1) * 2;
		b->data = realloc(b->data, b->size);
		if (b->data == NULL)
			abort();
	}
	memcpy(b->data + b->len, data, len);
	b->len += len;
	b->data[b->len] = '\0';
}

void
putf(Buf *b, const char *format, ...)
{
	char   *text;
	va_list ap;
	int		n;

	va_start(ap, format);
	n = vasprintf(&text, format, ap);
	va_end(ap);
	if (n < 0)
		abort();
	put(b, text, n);
	free(text);
}

double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static char *
unescape(const char *from, size_t len)
{
	char *to = malloc(len + 1);
	char *p = to;

	for (size_t i = 0; i < len; i++)
	{
		unsigned hex;

		if (from[i] == '%' && i + 2 < len && sscanf(from + i + 1, "%2x", &hex) == 1)
		{
			*p++ = (char) hex;
			i += 2;
		}
		else
			*p++ = from[i] == '+' ? ' ' : from[i];
	}
	*p = '\0';
	return to;
}

/* 'text' with quotes and backslashes escaped */
void
put_literal(Buf *b, const char *text)
{
	put(b, "'", 1);
	for (; *text; text++)
	{
		if (*text == '\'' || *text == '\\')
			put(b, "\\", 1);
		put(b, text, 1);
	}
	put(b, "'", 1);
}

/* ---- one HTTP connection */
const char *
get(const Param *list, const char *name)
{
	for (; list != NULL; list = list->next)
		if (strcmp(list->name, name) == 0)
			return list->value;
	return NULL;
}

static void
add(Param **list, char *name, char *value)
{
	Param *p = malloc(sizeof(Param));

	while (*list != NULL)
		list = &(*list)->next;
	*p = (Param){NULL, name, value};
	*list = p;
}

void
free_params(Param **list)
{
	while (*list != NULL)
	{
		Param *p = *list;

		*list = p->next;
		free(p->name);
		free(p->value);
		free(p);
	}
}

static bool
fill(Http *h)
{
	ssize_t n;

	if (h->at == h->end)
		h->at = h->end = 0;
	else if (h->end == IO_SIZE)
	{
		memmove(h->in, h->in + h->at, h->end - h->at);
		h->end -= h->at;
		h->at = 0;
		if (h->end == IO_SIZE)
			return false;
	}
	do
		n = recv(h->fd, h->in + h->end, IO_SIZE - h->end, 0);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return false;
	h->end += n;
	return true;
}

/* A line without its CRLF, in the input buffer; NULL: the client went away. */
static char *
read_line(Http *h)
{
	for (;;)
	{
		char *eol = memchr(h->in + h->at, '\n', h->end - h->at);

		if (eol != NULL)
		{
			char *line = h->in + h->at;

			h->at = eol + 1 - h->in;
			*eol = '\0';
			if (eol > line && eol[-1] == '\r')
				eol[-1] = '\0';
			return line;
		}
		if (!fill(h))
			return NULL;
	}
}

bool
send_all(Http *h, const char *data, size_t len)
{
	bool cut = h->cut_answer >= 0 && len > (size_t) h->cut_answer;

	if (cut)
		len = h->cut_answer;
	if (h->cut_answer >= 0)
		h->cut_answer -= len;
	while (len > 0)
	{
		ssize_t n = send(h->fd, data, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data += n;
		len -= n;
	}
	return !cut;
}

static void
parse_query(Http *h, const char *query)
{
	while (*query != '\0')
	{
		const char *end = strchrnul(query, '&');
		const char *eq = memchr(query, '=', end - query);

		if (eq != NULL)
			add(&h->params, unescape(query, eq - query), unescape(eq + 1, end - eq - 1));
		query = *end ? end + 1 : end;
	}
}

/* Read a request's head.  false: the connection is over. */
bool
read_head(Http *h)
{
	char	   *line;
	char	   *target;
	char	   *end;
	const char *value;

	do
	{
		line = read_line(h);
		if (line == NULL)
			return false;
	} while (*line == '\0');
	target = strchr(line, ' ');
	if (target == NULL)
		return false;
	*target++ = '\0';
	snprintf(h->method, sizeof(h->method), "%s", line);
	end = strchrnul(target, ' ');
	*end = '\0';
	end = strchr(target, '?');
	if (end != NULL)
	{
		*end = '\0';
		parse_query(h, end + 1);
	}
	h->path = strdup(target);
	while ((line = read_line(h)) != NULL && *line != '\0')
	{
		char *colon = strchr(line, ':');

		if (colon == NULL)
			return false;
		*colon++ = '\0';
		for (char *p = line; *p; p++)
			*p = tolower(*p);
		colon += strspn(colon, " \t");
		add(&h->headers, strdup(line), strdup(colon));
	}
	if (line == NULL)
		return false;
	h->body_read = 0;
	h->answered = false;
	h->cut_answer = -1;
	h->close_after = (value = get(h->headers, "connection")) != NULL &&
					 strcasecmp(value, "close") == 0;
	h->chunked = (value = get(h->headers, "transfer-encoding")) != NULL &&
				 strcasestr(value, "chunked");
	value = get(h->headers, "content-length");
	h->left = h->chunked ? -1 : value != NULL ? atoll(value) : 0;
	h->body_done = !h->chunked && h->left == 0;
	if (!h->body_done && (value = get(h->headers, "expect")) != NULL &&
		strcasestr(value, "100-continue"))
		return send_all(h, "HTTP/1.1 100 Continue\r\n\r\n", 25);
	return true;
}

/*
 * Some bytes of the body as they came, in *data.  0: the end; -1: the client
 * went away in the middle of it.
 */
ssize_t
read_body(Http *h, char **data)
{
	size_t n;

	if (h->body_done)
		return 0;
	if (h->chunked && h->left <= 0)
	{
		char *line = h->left == 0 ? read_line(h) : ""; /* the line end after a chunk */

		if (line == NULL || (line = read_line(h)) == NULL)
			return -1;
		h->left = strtoll(line, NULL, 16);
		if (h->left == 0)
		{
			while ((line = read_line(h)) != NULL && *line != '\0')
				;
			h->body_done = true;
			return line == NULL ? -1 : 0;
		}
	}
	if (h->at == h->end && !fill(h))
		return -1;
	n = h->end - h->at;
	if ((int64_t) n > h->left)
		n = h->left;
	*data = h->in + h->at;
	h->at += n;
	h->left -= n;
	h->body_read += n;
	if (!h->chunked && h->left == 0)
		h->body_done = true;
	return n;
}

/* ---- Content-Encoding */
bool
decoder_open(Decoder *d, const char *encoding)
{
	memset(d, 0, sizeof(*d));
	d->out = malloc(IO_SIZE);
	if (encoding == NULL || strcmp(encoding, "identity") == 0)
		d->kind = 0;
	else if (strcmp(encoding, "zstd") == 0)
	{
		d->kind = 1;
		d->zstd = ZSTD_createDCtx();
	}
	else if (strcmp(encoding, "lz4") == 0)
	{
		d->kind = 2;
		LZ4F_createDecompressionContext(&d->lz4, LZ4F_VERSION);
	}
	else if (strcmp(encoding, "gzip") == 0 || strcmp(encoding, "deflate") == 0)
	{
		d->kind = 3;
		inflateInit2(&d->gzip, 15 + 32);
	}
	else
		return false;
	return true;
}

/* Next piece of plain text of d->in/len; 0: needs more; -1: damaged. */
ssize_t
decode(Decoder *d, const char **data)
{
	size_t out = IO_SIZE;
	size_t in = d->len;
	size_t rc;

	if (d->len == 0 && !d->full)
		return 0;
	*data = d->out;
	switch (d->kind)
	{
		case 1:
		{
			ZSTD_inBuffer  i = {d->in, d->len, 0};
			ZSTD_outBuffer o = {d->out, IO_SIZE, 0};

			rc = ZSTD_decompressStream(d->zstd, &o, &i);
			if (ZSTD_isError(rc))
				return -1;
			in = i.pos;
			out = o.pos;
			d->complete = rc == 0;
			break;
		}
		case 2:
			rc = LZ4F_decompress(d->lz4, d->out, &out, d->in, &in, NULL);
			if (LZ4F_isError(rc))
				return -1;
			d->complete = rc == 0;
			break;
		case 3:
		{
			int zrc;

			d->gzip.next_in = (Bytef *) d->in;
			d->gzip.avail_in = d->len;
			d->gzip.next_out = (Bytef *) d->out;
			d->gzip.avail_out = IO_SIZE;
			zrc = inflate(&d->gzip, Z_NO_FLUSH);
			if (zrc != Z_OK && zrc != Z_STREAM_END && zrc != Z_BUF_ERROR)
				return -1;
			d->complete = zrc == Z_STREAM_END;
			in = d->len - d->gzip.avail_in;
			out = IO_SIZE - d->gzip.avail_out;
			break;
		}
		default:
			*data = d->in;
			out = d->len;
			d->complete = true;
	}
	d->in += in;
	d->len -= in;
	d->full = d->kind != 0 && out == IO_SIZE;
	return out;
}

void
decoder_close(Decoder *d)
{
	if (d->zstd)
		ZSTD_freeDCtx(d->zstd);
	if (d->lz4)
		LZ4F_freeDecompressionContext(d->lz4);
	if (d->kind == 3)
		inflateEnd(&d->gzip);
	free(d->out);
}

/* ---- answers */
static const struct
{
	int			code, status;
	const char *name;
} known_errors[] = {
	{33, 500, "CANNOT_READ_ALL_DATA"},
	{46, 404, "UNKNOWN_FUNCTION"},
	{47, 404, "UNKNOWN_IDENTIFIER"},
	{48, 501, "NOT_IMPLEMENTED"},
	{53, 400, "TYPE_MISMATCH"},
	{57, 500, "TABLE_ALREADY_EXISTS"},
	{60, 404, "UNKNOWN_TABLE"},
	{62, 400, "SYNTAX_ERROR"},
	{70, 400, "CANNOT_CONVERT_TYPE"},
	{81, 404, "UNKNOWN_DATABASE"},
	{115, 404, "UNKNOWN_SETTING"},
	{117, 400, "INCORRECT_DATA"},
	{159, 408, "TIMEOUT_EXCEEDED"},
	{192, 403, "UNKNOWN_USER"},
	{193, 403, "WRONG_PASSWORD"},
	{194, 401, "REQUIRED_PASSWORD"},
	{202, 500, "TOO_MANY_SIMULTANEOUS_QUERIES"},
	{209, 503, "SOCKET_TIMEOUT"},
	{210, 500, "NETWORK_ERROR"},
	{225, 500, "NO_ZOOKEEPER"},
	{241, 500, "MEMORY_LIMIT_EXCEEDED"},
	{242, 500, "TABLE_IS_READ_ONLY"},
	{252, 500, "TOO_MANY_PARTS"},
	{319, 500, "UNKNOWN_STATUS_OF_INSERT"},
	{394, 500, "QUERY_WAS_CANCELLED"},
	{497, 403, "ACCESS_DENIED"},
	{516, 403, "AUTHENTICATION_FAILED"},
	{701, 400, "CLUSTER_DOESNT_EXIST"},
	{999, 500, "KEEPER_EXCEPTION"},
};

static const char *
error_name(int code)
{
	for (size_t i = 0; i < sizeof(known_errors) / sizeof(*known_errors); i++)
		if (known_errors[i].code == code)
			return known_errors[i].name;
	return "UNKNOWN";
}

static int
error_status(int code)
{
	for (size_t i = 0; i < sizeof(known_errors) / sizeof(*known_errors); i++)
		if (known_errors[i].code == code)
			return known_errors[i].status;
	return 500;
}

void
answer(Http *h, int status, const char *extra, const char *body, size_t len)
{
	Buf head = {0};

	/* an answer before the body's end: the rest is not read */
	if (!h->body_done)
		h->close_after = true;
	putf(&head,
		 "HTTP/1.1 %d %s\r\nConnection: %s\r\nContent-Type: text/plain; charset=UTF-8\r\n"
		 "X-ClickHouse-Server-Display-Name: chdbd\r\n%sContent-Length: %zu\r\n\r\n",
		 status, status == 200 ? "OK" : "Error", h->close_after ? "Close" : "Keep-Alive", extra,
		 len);
	h->answered = true;
	if (!send_all(h, head.data, head.len) || !send_all(h, body, len))
		h->close_after = true;
	free(head.data);
}

void
answer_error(Http *h, int code, const char *text)
{
	char  extra[64];
	char *body = NULL;

	/* the engine's own texts are complete already */
	if (strncmp(text, "Code: ", 6) == 0)
		body = strdup(text);
	else if (asprintf(&body, "Code: %d. DB::Exception: %s (%s) (version %s)\n", code, text,
					  error_name(code), fake_version ? fake_version : "26.7.3.1") < 0)
		abort();
	snprintf(extra, sizeof(extra), "X-ClickHouse-Exception-Code: %d\r\n", code);
	answer(h, error_status(code), extra, body, strlen(body));
	free(body);
}
