/*
 * chdbd_query.c
 *		Statements: settings, rewriting, the engine, and what faults do to them.
 */
#include "chdbd.h"

#include <ctype.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* ---- statements */
typedef struct Query
{
	Http	   *h;
	char	   *sql;		/* as sent */
	Buf			run;		/* as run */
	Buf			data;		/* plain body that came with it, unless streamed */
	char		format[64]; /* INSERT ... FORMAT x, or "" */
	chdb_conn **conn;
	Running		entry;
	Fault	   *fault;
	int			code;	 /* of the exception, 0: none */
	char	   *message; /* if code is not 0 */
	uint64_t	rows;
	char	   *result;
	size_t		result_len;
	bool		lost; /* nobody is there to be answered */
} Query;

static void
set_error(Query *q, int code, const char *message)
{
	if (q->code != 0)
		return;
	q->code = code;
	q->message = strdup(message);
}

/* The engine's message "Code: N. ..." */
static void
set_engine_error(Query *q, const char *message)
{
	const char *code = strstr(message, "Code: ");

	set_error(q, code != NULL && atoi(code + 6) > 0 ? atoi(code + 6) : 1001, code ? code : message);
}

/* Run sql for its effect; false and q's error set if it fails. */
static bool
run_plain(Query *q, const char *sql, size_t len, bool keep)
{
	const char	*format = get(q->h->headers, "x-clickhouse-format");
	chdb_result *res;
	const char	*error;

	if (get(q->h->params, "default_format") != NULL)
		format = get(q->h->params, "default_format");
	if (format == NULL)
		format = "TabSeparated";
	res = chdb_query_n(*q->conn, sql, len, format, strlen(format));
	error = chdb_result_error(res);
	if (error != NULL)
		set_engine_error(q, error);
	else if (keep)
	{
		q->rows = chdb_result_rows_written(res);
		q->result_len = chdb_result_length(res);
		q->result = malloc(q->result_len + 1);
		memcpy(q->result, chdb_result_buffer(res), q->result_len);
	}
	chdb_destroy_query_result(res);
	return error == NULL;
}

/* Replace every match of pattern (extended, any case) in *b; \1..\9 in with. */
static void
replace(Buf *b, const char *pattern, const char *with)
{
	regex_t	   re;
	regmatch_t m[10];
	Buf		   out = {0};
	char	  *p = b->data;

	if (regcomp(&re, pattern, REG_EXTENDED | REG_ICASE) != 0)
		abort();
	while (regexec(&re, p, 10, m, 0) == 0 && m[0].rm_eo > 0)
	{
		put(&out, p, m[0].rm_so);
		for (const char *w = with; *w; w++)
		{
			if (w[0] == '\\' && isdigit((unsigned char) w[1]))
			{
				int i = *++w - '0';

				if (m[i].rm_so >= 0)
					put(&out, p + m[i].rm_so, m[i].rm_eo - m[i].rm_so);
			}
			else
				put(&out, w, 1);
		}
		p += m[0].rm_eo;
	}
	put(&out, p, strlen(p));
	regfree(&re);
	free(b->data);
	*b = out;
}

/* What stands for system.processes: the statements of this server. */
static void
put_processes(Buf *b)
{
	putf(b, "(SELECT x.1 AS query_id, x.1 AS initial_query_id, x.2 AS query, x.3 AS elapsed, "
			"x.4 AS user, 1 AS is_initial_query FROM (SELECT arrayJoin([('','',0.0,'')");
	pthread_mutex_lock(&lock);
	for (Running *r = running; r != NULL; r = r->next)
	{
		put(b, ",(", 2);
		put_literal(b, r->query_id);
		put(b, ",", 1);
		put_literal(b, r->sql);
		putf(b, ",%.3f,", now() - r->since);
		put_literal(b, user);
		put(b, ")", 1);
	}
	pthread_mutex_unlock(&lock);
	putf(b, "]) AS x) WHERE x.1 != '')");
}

/* The first ON CLUSTER, if the cluster is known. */
static void
take_cluster_out(Query *q)
{
	regex_t	   re;
	regmatch_t m[3];

	if (regcomp(&re, "[ \n]+ON CLUSTER (['`\"]?)([A-Za-z0-9_]+)['`\"]?",
				REG_EXTENDED | REG_ICASE) != 0)
		abort();
	if (regexec(&re, q->run.data, 3, m, 0) == 0)
	{
		if (strncmp(q->run.data + m[2].rm_so, cluster, strlen(cluster)) != 0 ||
			m[2].rm_eo - m[2].rm_so != (regoff_t) strlen(cluster))
			set_error(q, 701, "Requested cluster not found.");
		memmove(q->run.data + m[0].rm_so, q->run.data + m[0].rm_eo, q->run.len - m[0].rm_eo + 1);
		q->run.len -= m[0].rm_eo - m[0].rm_so;
	}
	regfree(&re);
}

/* Rewrite the statement to what the engine can run. */
static void
rewrite(Query *q)
{
	put(&q->run, q->sql, strlen(q->sql));
	if (strcasestr(q->run.data, "system.processes") != NULL)
	{
		char *at;
		Buf	  out = {0};
		char *p = q->run.data;

		while ((at = strcasestr(p, "system.processes")) != NULL)
		{
			put(&out, p, at - p);
			put_processes(&out);
			p = at + strlen("system.processes");
		}
		put(&out, p, strlen(p));
		free(q->run.data);
		q->run = out;
	}
	if (fake_version != NULL)
	{
		char with[128];

		snprintf(with, sizeof(with), "'%s'", fake_version);
		replace(&q->run, "version\\(\\)", with);
	}
	if (cluster != NULL)
	{
		take_cluster_out(q);
		replace(&q->run, "Replicated([A-Za-z]*MergeTree)\\('[^']*', *'[^']*'(, *)?", "\\1(");
		replace(&q->run, "Replicated([A-Za-z]*MergeTree)", "\\1");
	}
}

/* Settings, database and parameters of the URL. */
static bool
apply_settings(Query *q)
{
	static const char *const not_settings[] = {"query",
											   "user",
											   "password",
											   "database",
											   "query_id",
											   "default_format",
											   "session_id",
											   "session_check",
											   "session_timeout",
											   "compress",
											   "decompress",
											   "buffer_size",
											   "wait_end_of_query",
											   "quota_key",
											   "stacktrace",
											   "role",
											   "client_protocol_version",
											   NULL};
	const char				*database = get(q->h->params, "database");
	Buf						 b = {0};
	bool					 ok = true;

	if (database == NULL)
		database = get(q->h->headers, "x-clickhouse-database");
	if (database != NULL && *database != '\0')
	{
		putf(&b, "USE `");
		for (const char *p = database; *p; p++)
		{
			if (*p == '`' || *p == '\\')
				put(&b, "\\", 1);
			put(&b, p, 1);
		}
		put(&b, "`", 1);
		ok = run_plain(q, b.data, b.len, false);
	}
	for (Param *p = q->h->params; p != NULL && ok; p = p->next)
	{
		bool skip = false;

		for (int i = 0; not_settings[i] != NULL; i++)
			skip = skip || strcmp(not_settings[i], p->name) == 0;
		if (skip || strncmp(p->name, "http_", 5) == 0 ||
			strspn(p->name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") !=
				strlen(p->name))
			continue;
		b.len = 0;
		putf(&b, "SET %s = ", p->name);
		put_literal(&b, p->value);
		ok = run_plain(q, b.data, b.len, false);
	}
	free(b.data);
	return ok;
}

/* Wait until released or killed, or the client is gone. */
static void
hold(Query *q)
{
	long generation;

	pthread_mutex_lock(&lock);
	generation = released;
	held++;
	while (generation == released && !q->entry.killed)
	{
		struct timespec t;
		char			c;

		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 20000000;
		if (t.tv_nsec >= 1000000000)
		{
			t.tv_nsec -= 1000000000;
			t.tv_sec++;
		}
		pthread_cond_timedwait(&changed, &lock, &t);
		if (q->h->body_done && recv(q->h->fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
		{
			/* a real server goes on with the statement, and so do we */
			q->lost = true;
			break;
		}
	}
	held--;
	if (q->entry.killed)
	{
		pthread_mutex_unlock(&lock);
		set_error(q, 394, "Query was cancelled.");
		return;
	}
	pthread_mutex_unlock(&lock);
}

/* What the fault does at this number of bytes of the body; true: stop. */
static bool
fault_in_body(Query *q)
{
	Fault *f = q->fault;

	if (f == NULL || q->h->body_read < f->after)
		return false;
	switch (f->action)
	{
		case FAIL:
			set_error(q, f->code, "injected");
			return true;
		case CUT_BODY:
			q->lost = true;
			return true;
		case DIE:
			_exit(9);
		case DELAY:
			usleep(f->ms * 1000);
			q->fault = NULL;
			return false;
		case HOLD:
			hold(q);
			q->fault = NULL;
			return q->code != 0;
		default:
			return false;
	}
}

/* INSERT ... FORMAT x: the body streams into the engine. */
static void
run_insert(Query *q, Decoder *d)
{
	chdb_insert *stream;
	chdb_result *res;
	const char	*error;
	ssize_t		 n = 0;

	stream = chdb_stream_insert_n(*q->conn, q->run.data, q->run.len, q->format, strlen(q->format));
	error = chdb_stream_insert_error(stream);
	if (error != NULL)
	{
		set_engine_error(q, error);
		chdb_destroy_insert_stream(stream);
		return;
	}
	if (q->data.len > 0 && chdb_stream_append(stream, q->data.data, q->data.len) != 0)
		set_engine_error(q, chdb_stream_insert_error(stream));
	while (q->code == 0 && !fault_in_body(q) && !q->entry.killed)
	{
		char *raw = NULL;

		n = read_body(q->h, &raw);
		if (n <= 0)
			break;
		d->in = raw;
		d->len = n;
		while (q->code == 0)
		{
			const char *plain;
			ssize_t		m = decode(d, &plain);

			if (m < 0)
				set_error(q, 117, "Cannot decompress the request's body.");
			else if (m > 0 && chdb_stream_append(stream, plain, m) != 0)
				set_engine_error(q, chdb_stream_insert_error(stream));
			if (m <= 0)
				break;
		}
	}
	if (q->entry.killed)
		set_error(q, 394, "Query was cancelled.");
	if (n < 0)
	{
		q->lost = true;
		set_error(q, 210, "I/O error: the client closed the connection in the middle of the body.");
	}
	else if (q->code == 0 && !q->lost && q->h->body_read > 0 && !d->complete)
		set_error(q, 33, "Cannot read all data: the compressed body is not complete.");
	if (q->code != 0 || q->lost)
	{
		chdb_stream_cancel_insert(stream);
		chdb_destroy_insert_stream(stream);
		return;
	}
	res = chdb_stream_done(stream);
	error = chdb_result_error(res);
	if (error != NULL)
		set_engine_error(q, error);
	else
		q->rows = chdb_result_rows_written(res);
	chdb_destroy_query_result(res);
	chdb_destroy_insert_stream(stream);
}

/* KILL QUERY WHERE ...: mark, and wait until they are gone (SYNC). */
static void
run_kill(Query *q)
{
	Buf	  b = {0};
	char *where = strcasestr(q->run.data, "WHERE");
	char *ids;
	bool  sync = strcasestr(q->run.data, " SYNC") != NULL;
	bool  left = true;

	if (where == NULL)
	{
		set_error(q, 62, "Syntax error: KILL QUERY needs WHERE");
		return;
	}
	replace(&q->run, "[ \n]+(SYNC|ASYNC|TEST)[ ;\n]*$", "");
	where = strcasestr(q->run.data, "WHERE");
	putf(&b, "SELECT query_id FROM ");
	put_processes(&b);
	putf(&b, " %s FORMAT TabSeparated", where);
	if (!run_plain(q, b.data, b.len, true))
		return;
	ids = q->result;
	ids[q->result_len] = '\0';
	b.len = 0;
	for (char *save, *id = strtok_r(ids, "\n", &save); id != NULL; id = strtok_r(NULL, "\n", &save))
	{
		if (strcmp(id, q->entry.query_id) == 0)
			continue;
		left = true;
		while (left)
		{
			left = false;
			pthread_mutex_lock(&lock);
			for (Running *r = running; r != NULL; r = r->next)
			{
				if (strcmp(r->query_id, id) == 0)
				{
					r->killed = true;
					left = sync;
				}
			}
			pthread_cond_broadcast(&changed);
			pthread_mutex_unlock(&lock);
			if (left)
				usleep(5000);
		}
		putf(&b, "%s\t%s\t%s\t\n", sync ? "finished" : "waiting", id, user);
	}
	free(q->result);
	q->result = b.data ? b.data : strdup("");
	q->result_len = b.len;
}

/*
 * Take FORMAT x off the end of an INSERT; what follows it in the same text is
 * the beginning of the data.
 */
static void
split_insert(Query *q)
{
	regex_t	   re;
	regmatch_t m[3];

	if (regcomp(&re, "^[ \n\t]*INSERT[ \n\t].*[ \n\t)]FORMAT[ \n\t]+([A-Za-z0-9]+)[ \t]*(;|\n|$)",
				REG_EXTENDED | REG_ICASE) != 0)
		abort();
	if (regexec(&re, q->run.data, 3, m, 0) == 0 && strcasestr(q->run.data, " VALUES") == NULL &&
		m[1].rm_eo - m[1].rm_so < (int) sizeof(q->format))
	{
		char *format = strndup(q->run.data + m[1].rm_so, m[1].rm_eo - m[1].rm_so);

		snprintf(q->format, sizeof(q->format), "%s", format);
		free(format);
		if ((size_t) m[0].rm_eo < q->run.len)
			put(&q->data, q->run.data + m[0].rm_eo, q->run.len - m[0].rm_eo);
		q->run.len = m[1].rm_so;
		while (q->run.len > 0 && strchr(" \n\t", q->run.data[q->run.len - 1]))
			q->run.len--;
		q->run.len -= strlen("FORMAT");
		q->run.data[q->run.len] = '\0';
	}
	regfree(&re);
}

static bool
authorized(Http *h)
{
	const char *u = get(h->headers, "x-clickhouse-user");
	const char *p = get(h->headers, "x-clickhouse-key");

	if (u == NULL)
		u = get(h->params, "user");
	if (p == NULL)
		p = get(h->params, "password");
	return strcmp(u ? u : "default", user) == 0 && strcmp(p ? p : "", password) == 0;
}

static void
write_log(Query *q)
{
	Buf			b = {0};
	const char *token = get(q->h->params, "insert_deduplication_token");

	putf(&b, "%s\t%s\t%d\t%llu\t", q->entry.query_id, token ? token : "", q->lost ? -1 : q->code,
		 (unsigned long long) q->rows);
	for (Param *p = q->h->params; p != NULL; p = p->next)
		if (strcmp(p->name, "query") != 0 && strcmp(p->name, "password") != 0)
			putf(&b, "%s=%s ", p->name, p->value);
	put(&b, "\t", 1);
	for (const char *p = q->sql; *p; p++)
		put(&b, *p == '\n' || *p == '\t' ? " " : p, 1);
	put(&b, "\n", 1);
	pthread_mutex_lock(&lock);
	if (log_file != NULL)
	{
		fwrite(b.data, 1, b.len, log_file);
		fflush(log_file);
	}
	pthread_mutex_unlock(&lock);
	free(b.data);
}

/* Read what is left of the body into q->data. */
static void
read_rest(Query *q, Decoder *d)
{
	ssize_t n;
	char   *raw;

	while (!fault_in_body(q) && (n = read_body(q->h, &raw)) != 0)
	{
		const char *plain;
		ssize_t		m;

		if (n < 0)
		{
			q->lost = true;
			return;
		}
		d->in = raw;
		d->len = n;
		do
		{
			m = decode(d, &plain);
			if (m < 0)
				set_error(q, 117, "Cannot decompress the request's body.");
			else if (m > 0)
				put(&q->data, plain, m);
		} while (m > 0);
	}
}

static void
enter(Query *q)
{
	pthread_mutex_lock(&lock);
	for (Running *r = running; r != NULL; r = r->next)
		if (strcmp(r->query_id, q->entry.query_id) == 0)
			q->code = 216;
	q->entry.sql = q->sql;
	q->entry.since = now();
	q->entry.next = running;
	running = &q->entry;
	pthread_mutex_unlock(&lock);
	if (q->code == 216)
		q->message = strdup("Query with this id is already running.");
}

static void
leave(Query *q)
{
	pthread_mutex_lock(&lock);
	for (Running **r = &running; *r != NULL; r = &(*r)->next)
	{
		if (*r == &q->entry)
		{
			*r = q->entry.next;
			break;
		}
	}
	pthread_mutex_unlock(&lock);
}

static void
run_statement(Query *q, Decoder *d)
{
	if (q->fault != NULL && q->fault->after == 0 && fault_in_body(q))
		return;
	if (q->code != 0 || q->lost)
		return;
	q->conn = chdb_connect(engine_argc, engine_argv);
	if (q->conn == NULL || *q->conn == NULL)
		set_error(q, 1001, "cannot connect to the engine");
	else if (apply_settings(q))
	{
		if (q->format[0] != '\0')
			run_insert(q, d);
		else
		{
			read_rest(q, d);
			if (q->data.len > 0)
			{
				put(&q->run, "\n", 1);
				put(&q->run, q->data.data, q->data.len);
			}
			if (q->code == 0 && !q->lost)
			{
				if (strncasecmp(q->run.data, "KILL QUERY", 10) == 0)
					run_kill(q);
				else
					run_plain(q, q->run.data, q->run.len, true);
			}
		}
	}
	if (q->conn != NULL)
		chdb_close_conn(q->conn);
}

static void
reply(Query *q)
{
	Fault *f = q->fault;
	char   extra[256];

	if (f != NULL && f->action == HOLD_AFTER)
	{
		int code = q->code;

		hold(q);
		q->code = code;
	}
	if (f != NULL && f->action == DIE_AFTER)
		_exit(9);
	if (q->lost || (f != NULL && f->action == DROP))
	{
		q->h->close_after = true;
		return;
	}
	if (f != NULL && f->action == GARBAGE)
	{
		send_all(q->h, "\001\002 nonsense\r\n\r\n", 15);
		q->h->close_after = true;
		return;
	}
	if (f != NULL && f->action == CUT_ANSWER)
		q->h->cut_answer = f->after;
	if (q->code != 0)
	{
		answer_error(q->h, q->code, q->message);
		return;
	}
	snprintf(extra, sizeof(extra),
			 "X-ClickHouse-Query-Id: %.100s\r\n"
			 "X-ClickHouse-Summary: {\"read_rows\":\"%llu\",\"written_rows\":\"%llu\"}\r\n",
			 q->entry.query_id, (unsigned long long) q->rows, (unsigned long long) q->rows);
	answer(q->h, 200, extra, q->result ? q->result : "", q->result_len);
}

void
statement(Http *h)
{
	Query		q = {.h = h};
	Decoder		d;
	char		id[64];
	static int	serial;
	const char *sql = get(h->params, "query");
	const char *query_id = get(h->params, "query_id");

	if (!authorized(h))
	{
		answer_error(h, 516,
					 "Authentication failed: password is incorrect, or there is no user "
					 "with such name.");
		return;
	}
	if (!decoder_open(&d, get(h->headers, "content-encoding")))
	{
		answer_error(h, 36, "Unknown compression method");
		return;
	}
	snprintf(id, sizeof(id), "chdbd-%d", __atomic_add_fetch(&serial, 1, __ATOMIC_RELAXED));
	q.entry.query_id = query_id != NULL ? query_id : id;
	if (sql != NULL)
		q.sql = strdup(sql);
	else
	{
		/* the statement is in the body */
		read_rest(&q, &d);
		q.sql = q.data.data ? q.data.data : strdup("");
		q.data = (Buf){0};
	}
	enter(&q);
	q.fault = take_fault(q.sql);
	rewrite(&q);
	split_insert(&q);
	if (q.code == 0)
		run_statement(&q, &d);
	leave(&q);
	write_log(&q);
	reply(&q);
	decoder_close(&d);
	free(q.sql);
	free(q.run.data);
	free(q.data.data);
	free(q.message);
	free(q.result);
}
