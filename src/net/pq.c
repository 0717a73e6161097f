/*
 * pq.c
 *		libpq driven by the process latch.
 *
 * Called by destination/postgres*.c, in workers and (to check a peer) in a
 * user's backend.  Every wait is WaitLatchOrSocket + CHECK_FOR_INTERRUPTS, so
 * nothing here keeps a process from ending: connections are made with
 * PQconnectPoll, names are resolved in a thread (resolve.c), queries and COPY
 * run in non-blocking mode.  An error or interrupt in the middle leaves the
 * connection unusable; it is closed, without waiting, when the memory context
 * it was made in goes away.  libpq's callbacks never call PostgreSQL code that
 * could raise: a notice is kept in a buffer and logged afterwards.
 *
 * No locks; no transaction is needed.
 */
#include "postgres.h"

#include "compat.h"

#include "net/pq.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#include "lib/ilist.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "net/resolve.h"
#include "net/wait.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

/* Seconds for the whole of connecting, when connect_timeout is not given. */
#define DEFAULT_CONNECT_TIMEOUT 30

/*
 * libpq moves its whole output buffer whenever the socket took a part of it,
 * so a long buffer costs more than it gives.  A caller's limit is cut to this.
 */
#define MAX_PENDING_BYTES (1024 * 1024)

/* A connection, in the memory context it is bound to. */
typedef struct PqState
{
	dlist_node			  node; /* in connections */
	PGconn				 *conn;
	bool				  has_fd;
	Size				  pending; /* COPY bytes put since libpq's output buffer
								 * was last seen empty */
	MemoryContextCallback callback;
} PqState;

/* A result, in the memory context it is bound to. */
typedef struct PqResult
{
	dlist_node			  node; /* in results, while res is set */
	PGresult			 *res;
	MemoryContextCallback callback;
} PqResult;

static dlist_head connections = DLIST_STATIC_INIT(connections);
static dlist_head results = DLIST_STATIC_INIT(results);

static char notice[512]; /* last notice not yet logged, or "" */

/* libpq's notice processor: keep it, never raise. */
static void
keep_notice(void *arg, const char *message)
{
	strlcpy(notice, message, sizeof(notice));
}

static void
log_notice(void)
{
	if (notice[0] != '\0')
	{
		char copy[sizeof(notice)];

		strlcpy(copy, notice, sizeof(copy));
		notice[0] = '\0';
		ereport(DEBUG1, (errmsg_internal("destination: %s", copy)));
	}
}

static void
close_state(void *arg)
{
	PqState *state = arg;

	if (state->conn != NULL)
	{
		PQfinish(state->conn);
		state->conn = NULL;
		dlist_delete(&state->node);
	}
	if (state->has_fd)
	{
		ReleaseExternalFD();
		state->has_fd = false;
	}
}

static PqState *
find_state(PGconn *conn)
{
	dlist_iter iter;

	dlist_foreach(iter, &connections)
	{
		PqState *state = dlist_container(PqState, node, iter.cur);

		if (state->conn == conn)
			return state;
	}
	elog(ERROR, "connection is not known");
}

/* Wait for the socket; returns the events.  deadline 0: none; 0: it passed. */
static int
wait_socket(PGconn *conn, int events, TimestampTz deadline)
{
	int	 rc;
	long ms = -1;

	events |= WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	if (deadline != 0)
	{
		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (ms <= 0)
			return 0;
		events |= WL_TIMEOUT;
	}
	rc = WaitLatchOrSocket(MyLatch, events, PQsocket(conn), ms, RESYNC_WAIT_EVENT("Destination"));
	if (rc & WL_LATCH_SET)
		resync_wait_latch_set();
	return rc;
}

/* ---------------------------------------------------------------------
 * Connecting
 * ------------------------------------------------------------------ */

static const char *
option_value(const char *const *keywords, const char *const *values, const char *name)
{
	const char *result = NULL;

	for (int i = 0; keywords[i] != NULL; i++)
	{
		if (strcmp(keywords[i], name) == 0 && values[i] != NULL && values[i][0] != '\0')
			result = values[i];
	}
	return result;
}

/* "a,b,c" to a list of strings; empty elements count. */
static List *
split_list(const char *text)
{
	List	   *result = NIL;
	const char *start = text;

	for (;;)
	{
		const char *end = strchr(start, ',');

		if (end == NULL)
		{
			result = lappend(result, pstrdup(start));
			return result;
		}
		result = lappend(result, pnstrdup(start, end - start));
		start = end + 1;
	}
}

static bool
is_address(const char *host)
{
	struct in_addr v4;

	/* a name cannot contain a colon; "fe80::1%eth0" is an address too */
	return strchr(host, ':') != NULL || inet_pton(AF_INET, host, &v4) == 1;
}

static bool
needs_resolving(const char *host)
{
	return host[0] != '\0' && host[0] != '/' && host[0] != '@' && !is_address(host);
}

static void
raise_connect(const char *detail, int sqlstate)
{
	ereport(ERROR, (errcode(sqlstate), errmsg("could not connect to the destination"),
					errdetail_internal("%s", detail)));
}

static void
append_element(StringInfo buf, bool first, const char *text)
{
	if (!first)
		appendStringInfoChar(buf, ',');
	appendStringInfoString(buf, text);
}

/*
 * Replace host names by name + hostaddr, one entry per address, with ports
 * kept beside them.  A name without address is left out, as libpq goes on to
 * the next host; if none is left, raises.  The arrays have room for three more
 * entries after their last.
 */
static void
resolve_options(const char **keywords, const char **values, TimestampTz deadline)
{
	const char	  *host = option_value(keywords, values, "host");
	const char	  *port = option_value(keywords, values, "port");
	const char	  *failure = NULL;
	List		  *hosts;
	List		  *ports;
	List		  *asked = NIL;
	List		 **found;
	char		 **names;
	StringInfoData hostbuf, addrbuf, portbuf;
	int			   nasked = 0;
	bool		   first = true;
	int			   end;
	ListCell	  *lc;

	if (host == NULL)
		host = getenv("PGHOST");
	if (host == NULL || option_value(keywords, values, "hostaddr") != NULL)
		return;
	hosts = split_list(host);
	ports = port != NULL ? split_list(port) : NIL;
	foreach(lc, hosts)
	{
		if (needs_resolving(lfirst(lc)))
			asked = lappend(asked, lfirst(lc));
	}
	if (asked == NIL || (list_length(ports) > 1 && list_length(ports) != list_length(hosts)))
		return; /* nothing to do, or libpq will complain */

	names = palloc(sizeof(char *) * list_length(asked));
	foreach(lc, asked)
		names[foreach_current_index(lc)] = lfirst(lc);
	found = resync_resolve_hosts(names, list_length(asked), deadline, &failure);
	if (found == NULL)
		raise_connect(psprintf("timeout expired while resolving host name \"%s\"", host),
					  ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);

	initStringInfo(&hostbuf);
	initStringInfo(&addrbuf);
	initStringInfo(&portbuf);
	foreach(lc, hosts)
	{
		char	 *name = lfirst(lc);
		List	 *addresses;
		ListCell *lc2;

		if (needs_resolving(name))
			addresses = found[nasked++];
		else
			addresses = list_make1(is_address(name) ? name : "");
		foreach(lc2, addresses)
		{
			append_element(&hostbuf, first, name);
			append_element(&addrbuf, first, lfirst(lc2));
			append_element(&portbuf, first,
						   list_length(ports) > 1 ? list_nth(ports, foreach_current_index(lc))
						   : ports != NIL		  ? linitial(ports)
												  : "");
			first = false;
		}
	}
	if (first)
		raise_connect(failure, ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);

	/* libpq takes the last value of a keyword that is given twice */
	for (end = 0; keywords[end] != NULL; end++)
		;
	keywords[end] = "host";
	values[end++] = hostbuf.data;
	keywords[end] = "hostaddr";
	values[end++] = addrbuf.data;
	if (ports != NIL)
	{
		keywords[end] = "port";
		values[end++] = portbuf.data;
	}
	keywords[end] = NULL;
	values[end] = NULL;
}

/*
 * libpq does not tell the SQLSTATE of a refused connection but in the verbose
 * form of its message ("FATAL:  28P01: password ..."): take it out of there.
 * Returns the message without code and source location.
 */
static char *
split_connect_message(const char *message, int *sqlstate)
{
	StringInfoData buf;
	const char	  *p = message;

	initStringInfo(&buf);
	while (*p != '\0')
	{
		const char *eol = strchrnul(p, '\n');
		const char *code = strstr(p, ":  ");

		if (strncmp(p, "LOCATION:  ", 11) == 0)
		{
			p = *eol ? eol + 1 : eol;
			continue;
		}
		if (buf.len > 0)
			appendStringInfoChar(&buf, '\n');
		if (code != NULL && code + 10 < eol &&
			strspn(code + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 5 && code[8] == ':' &&
			code[9] == ' ')
		{
			*sqlstate = MAKE_SQLSTATE(code[3], code[4], code[5], code[6], code[7]);
			appendBinaryStringInfo(&buf, p, code + 3 - p);
			p = code + 10;
		}
		appendBinaryStringInfo(&buf, p, eol - p);
		p = *eol ? eol + 1 : eol;
	}
	return buf.data;
}

/* Drive PQconnectPoll; returns false at the deadline. */
static bool
poll_connection(PqState *state, TimestampTz deadline)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	if (PQstatus(state->conn) == CONNECTION_BAD)
		return true;
	while (status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED)
	{
		int event = status == PGRES_POLLING_READING				  ? WL_SOCKET_READABLE
					: PQstatus(state->conn) == CONNECTION_STARTED ? WL_SOCKET_CONNECTED
																  : WL_SOCKET_WRITEABLE;
		int rc = wait_socket(state->conn, event, deadline);

		if (rc == 0 || ((rc & WL_TIMEOUT) && !(rc & event)))
			return false;
		if (rc & event)
			status = PQconnectPoll(state->conn);
	}
	return true;
}

PGconn *
resync_pq_connect(MemoryContext context, const char *const *keywords, const char *const *values)
{
	PqState		*state;
	const char	*timeout = option_value(keywords, values, "connect_timeout");
	int			 seconds = timeout != NULL ? atoi(timeout) : 0;
	TimestampTz	 deadline;
	const char **k;
	const char **v;
	int			 n = 0;

	if (seconds <= 0)
		seconds = DEFAULT_CONNECT_TIMEOUT;
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), seconds * 1000L);

	while (keywords[n] != NULL)
		n++;
	k = palloc0(sizeof(char *) * (n + 4));
	v = palloc0(sizeof(char *) * (n + 4));
	memcpy(k, keywords, sizeof(char *) * n);
	memcpy(v, values, sizeof(char *) * n);
	resolve_options(k, v, deadline);

	state = MemoryContextAllocZero(context, sizeof(PqState));
	state->callback.func = close_state;
	state->callback.arg = state;
	MemoryContextRegisterResetCallback(context, &state->callback);
	if (!AcquireExternalFD())
		raise_connect("There are too many open files on the local server.",
					  ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);
	state->has_fd = true;
	state->conn = PQconnectStartParams(k, v, 0);
	if (state->conn == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	dlist_push_head(&connections, &state->node);
	PQsetNoticeProcessor(state->conn, keep_notice, NULL);
	PQsetErrorVerbosity(state->conn, PQERRORS_VERBOSE);

	if (!poll_connection(state, deadline))
	{
		close_state(state);
		raise_connect("timeout expired", ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION);
	}
	if (PQstatus(state->conn) != CONNECTION_OK)
	{
		int	  sqlstate = ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
		char *message = split_connect_message(PQerrorMessage(state->conn), &sqlstate);

		close_state(state);
		raise_connect(message, sqlstate);
	}
	PQsetErrorVerbosity(state->conn, PQERRORS_DEFAULT);
	if (PQsetnonblocking(state->conn, 1) != 0)
		resync_pq_raise(state->conn, NULL, NULL);
	log_notice();
	pfree(k);
	pfree(v);
	return state->conn;
}

/* ---------------------------------------------------------------------
 * Results and errors
 * ------------------------------------------------------------------ */

static void
clear_result(void *arg)
{
	PqResult *bound = arg;

	if (bound->res != NULL)
	{
		dlist_delete(&bound->node);
		PQclear(bound->res);
		bound->res = NULL;
	}
}

/* Made before the result exists, so that nothing can fail in between. */
static PqResult *
make_bound(void)
{
	PqResult *bound = palloc0(sizeof(PqResult));

	bound->callback.func = clear_result;
	bound->callback.arg = bound;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &bound->callback);
	return bound;
}

static void
bind_result(PqResult *bound, PGresult *res)
{
	bound->res = res;
	dlist_push_head(&results, &bound->node);
}

void
resync_pq_clear(PGresult *res)
{
	dlist_iter iter;

	if (res == NULL)
		return;
	dlist_foreach(iter, &results)
	{
		PqResult *bound = dlist_container(PqResult, node, iter.cur);

		if (bound->res == res)
		{
			clear_result(bound);
			return;
		}
	}
	PQclear(res);
}

int
resync_pq_sqlstate(const PGresult *res)
{
	const char *code = PQresultErrorField(res, PG_DIAG_SQLSTATE);

	if (code == NULL || strlen(code) != 5)
		return 0;
	return MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4]);
}

const char *resync_pq_error_schema;
const char *resync_pq_error_table;

static char *
copy_field(PGresult *res, int field)
{
	const char *value = res != NULL ? PQresultErrorField(res, field) : NULL;

	return value != NULL ? pstrdup(value) : NULL;
}

void
resync_pq_raise(PGconn *conn, PGresult *res, const char *sql)
{
	int	  sqlstate = res != NULL ? resync_pq_sqlstate(res) : 0;
	char *message = copy_field(res, PG_DIAG_MESSAGE_PRIMARY);
	char *detail = copy_field(res, PG_DIAG_MESSAGE_DETAIL);
	char *hint = copy_field(res, PG_DIAG_MESSAGE_HINT);
	char *context = copy_field(res, PG_DIAG_CONTEXT);

	resync_pq_error_schema = copy_field(res, PG_DIAG_SCHEMA_NAME);
	resync_pq_error_table = copy_field(res, PG_DIAG_TABLE_NAME);

	/* libpq's own errors carry no fields; a lost connection is one of them */
	if (message == NULL && res != NULL && PQresultErrorMessage(res)[0] != '\0')
		message = pchomp(PQresultErrorMessage(res));
	if (message == NULL && conn != NULL && PQerrorMessage(conn)[0] != '\0')
		message = pchomp(PQerrorMessage(conn));
	if (message == NULL)
		message = res != NULL
					  ? psprintf("unexpected result \"%s\"", PQresStatus(PQresultStatus(res)))
					  : pstrdup("connection to the destination was lost");
	if (sqlstate == 0)
		sqlstate = ERRCODE_CONNECTION_FAILURE;
	resync_pq_clear(res);
	ereport(ERROR, (errcode(sqlstate), errmsg_internal("%s", message),
					detail ? errdetail_internal("%s", detail) : 0, hint ? errhint("%s", hint) : 0,
					context ? errcontext("%s", context) : 0,
					sql ? errcontext("remote SQL command: %s", sql) : 0));
	pg_unreachable();
}

/* ---------------------------------------------------------------------
 * Queries
 * ------------------------------------------------------------------ */

/*
 * Send what is left, wait for the last result and return it unbound; the
 * first error wins (an administrator's shutdown is followed by the loss of
 * the connection).  Stops at the beginning of a COPY.
 */
static PGresult *
get_result(PGconn *conn)
{
	PGresult *volatile last = NULL;

	PG_TRY();
	{
		for (;;)
		{
			PGresult *res;
			int		  unsent = PQflush(conn);

			while (unsent >= 0 && (unsent > 0 || PQisBusy(conn)))
			{
				int rc = wait_socket(
					conn, WL_SOCKET_READABLE | (unsent > 0 ? WL_SOCKET_WRITEABLE : 0), 0);

				if ((rc & WL_SOCKET_READABLE) && !PQconsumeInput(conn))
					break; /* PQgetResult makes an error of it */
				if (unsent > 0)
					unsent = PQflush(conn);
			}
			log_notice();
			res = PQgetResult(conn);
			if (res == NULL)
				break;
			if (last != NULL && PQresultStatus(last) == PGRES_FATAL_ERROR)
				PQclear(res);
			else
			{
				PQclear(last);
				last = res;
			}
			if (PQresultStatus(last) == PGRES_COPY_IN || PQstatus(conn) == CONNECTION_BAD)
				break;
		}
	}
	PG_CATCH();
	{
		PQclear(last);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return last;
}

static bool
result_ok(const PGresult *res)
{
	return PQresultStatus(res) == PGRES_TUPLES_OK || PQresultStatus(res) == PGRES_COMMAND_OK;
}

PGresult *
resync_pq_exec_any(PGconn *conn, const char *sql)
{
	PqResult *bound = make_bound();
	PGresult *res;

	if (!PQsendQuery(conn, sql))
		resync_pq_raise(conn, NULL, sql);
	res = get_result(conn);
	if (res == NULL || (!result_ok(res) && resync_pq_sqlstate(res) == 0))
		resync_pq_raise(conn, res, sql);
	bind_result(bound, res);
	return res;
}

PGresult *
resync_pq_exec(PGconn *conn, const char *sql)
{
	PGresult *res = resync_pq_exec_any(conn, sql);

	if (!result_ok(res))
		resync_pq_raise(conn, res, sql);
	return res;
}

PGresult *
resync_pq_exec_params(PGconn *conn, const char *sql, int nparams, const Oid *types,
					  const char *const *values, const int *lengths, const int *formats,
					  int result_format)
{
	PqResult *bound = make_bound();
	PGresult *res;

	if (!PQsendQueryParams(conn, sql, nparams, types, values, lengths, formats, result_format))
		resync_pq_raise(conn, NULL, sql);
	res = get_result(conn);
	if (res == NULL || !result_ok(res))
		resync_pq_raise(conn, res, sql);
	bind_result(bound, res);
	return res;
}

bool
resync_pq_try(PGconn *conn, const char *sql, int allowed, int *sqlstate)
{
	PGresult *res = resync_pq_exec_any(conn, sql);

	if (!result_ok(res))
	{
		*sqlstate = resync_pq_sqlstate(res);
		if (allowed == 0 || *sqlstate != allowed)
			resync_pq_raise(conn, res, sql);
		resync_pq_clear(res);
		return false;
	}
	*sqlstate = 0;
	resync_pq_clear(res);
	return true;
}

/* ---------------------------------------------------------------------
 * COPY
 * ------------------------------------------------------------------ */

void
resync_pq_copy_begin(PGconn *conn, const char *sql)
{
	PGresult *res;

	if (!PQsendQuery(conn, sql))
		resync_pq_raise(conn, NULL, sql);
	res = get_result(conn);
	if (res == NULL || PQresultStatus(res) != PGRES_COPY_IN)
		resync_pq_raise(conn, res, sql);
	PQclear(res);
	find_state(conn)->pending = 0;
}

/* End the COPY and return its result, unbound. */
static PGresult *
finish_copy(PGconn *conn, const char *error)
{
	for (;;)
	{
		int rc = PQputCopyEnd(conn, error);

		if (rc > 0)
			break;
		if (rc < 0)
			resync_pq_raise(conn, NULL, NULL);
		wait_socket(conn, WL_SOCKET_WRITEABLE, 0);
		if (PQflush(conn) < 0)
			resync_pq_raise(conn, NULL, NULL);
	}
	return get_result(conn);
}

/*
 * The socket became readable during COPY.  libpq does not look at an error
 * before the COPY's end, and the server reads on to no purpose: so look at the
 * first byte and end the COPY early.  (With TLS it is found at the end.)
 */
static void
check_copy_input(PGconn *conn)
{
	char type = 0;

	if (!PQsslInUse(conn) && recv(PQsocket(conn), &type, 1, MSG_PEEK | MSG_DONTWAIT) == 1 &&
		type == 'E')
	{
		PGresult *res = finish_copy(conn, "error");

		resync_pq_raise(conn, res, NULL);
	}
	if (!PQconsumeInput(conn))
		resync_pq_raise(conn, NULL, NULL);
	log_notice();
}

void
resync_pq_copy_put(PGconn *conn, const char *data, int len, Size limit)
{
	PqState *state = find_state(conn);
	int		 rc;

	limit = Min(limit, MAX_PENDING_BYTES);
	while ((rc = PQputCopyData(conn, data, len)) == 0)
	{
		if (wait_socket(conn, WL_SOCKET_WRITEABLE | WL_SOCKET_READABLE, 0) & WL_SOCKET_READABLE)
			check_copy_input(conn);
		if (PQflush(conn) < 0)
			resync_pq_raise(conn, NULL, NULL);
	}
	if (rc < 0)
		resync_pq_raise(conn, NULL, NULL);
	state->pending += len;
	for (;;)
	{
		rc = PQflush(conn);
		if (rc < 0)
			resync_pq_raise(conn, NULL, NULL);
		if (rc == 0)
			state->pending = 0;
		if (state->pending <= limit)
			break;
		if (wait_socket(conn, WL_SOCKET_WRITEABLE | WL_SOCKET_READABLE, 0) & WL_SOCKET_READABLE)
			check_copy_input(conn);
	}
	CHECK_FOR_INTERRUPTS();
}

int64
resync_pq_copy_end(PGconn *conn)
{
	PGresult *res = finish_copy(conn, NULL);
	int64	  rows;

	if (res == NULL || PQresultStatus(res) != PGRES_COMMAND_OK)
		resync_pq_raise(conn, res, NULL);
	rows = strtoll(PQcmdTuples(res), NULL, 10);
	PQclear(res);
	return rows;
}

void
resync_pq_copy_abort(PGconn *conn)
{
	if (PQstatus(conn) == CONNECTION_OK)
		PQclear(finish_copy(conn, "given up"));
}

/* ---------------------------------------------------------------------
 * Names
 * ------------------------------------------------------------------ */

/* Always quoted: the other server may have keywords that this one has not. */
const char *
resync_pq_ident(const char *name)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '"');
	for (const char *p = name; *p != '\0'; p++)
	{
		if (*p == '"')
			appendStringInfoChar(&buf, '"');
		appendStringInfoChar(&buf, *p);
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}

const char *
resync_pq_qualified(const char *schema, const char *name)
{
	if (schema == NULL)
		return resync_pq_ident(name);
	return psprintf("%s.%s", resync_pq_ident(schema), resync_pq_ident(name));
}
