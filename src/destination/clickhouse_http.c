/*
 * clickhouse_http.c
 *		Statements to a ClickHouse server over HTTP: settings, results, errors.
 *
 * Called by the other files of the destination, in any process.  A statement is
 * the body of a POST; an INSERT with rows has them as its body and itself in
 * the URL.  Settings travel with each request, so that no session is needed:
 *
 *	wait_end_of_query=1		the status is sent after the end, and is the truth
 *	async_insert=0			since 26.2 the server would buffer rows
 *	insert_deduplication_token	always, and unique unless the caller has one:
 *							without one, newer servers drop a block that equals
 *							an earlier one
 *	input_format_null_as_default=0	NULL is never quietly a zero
 *	max_partitions_per_insert_block=0	a load meets all partitions at once
 *
 * Each request has a query id "resync-<token>-<run>-<what>-...", by which those
 * of a dead process are found and killed.
 *
 * Errors: the server's own text, but none for requests that carry rows: it
 * could quote them.
 */
#include "postgres.h"

#include "compat.h"

#include "destination/clickhouse.h"

#include "access/xact.h"
#include "common/string.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Longest text of the server's that is shown, in bytes. */
#define MAX_ERROR_TEXT 700

/* ---------------------------------------------------------------------
 * Names and values
 * ------------------------------------------------------------------ */

static char *
quote(const char *text, char with)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, with);
	for (const char *p = text; *p != '\0'; p++)
	{
		if (*p == with || *p == '\\')
			appendStringInfoChar(&buf, '\\');
		appendStringInfoChar(&buf, *p);
	}
	appendStringInfoChar(&buf, with);
	return buf.data;
}

char *
resync_ch_ident(const char *name)
{
	return quote(name, '`');
}

char *
resync_ch_literal(const char *text)
{
	return quote(text, '\'');
}

char *
resync_ch_unhex(const char *data, Size len)
{
	static const char digits[] = "0123456789abcdef";
	char			 *result = MemoryContextAllocHuge(CurrentMemoryContext, len * 2 + 16);
	char			 *p = result;

	memcpy(p, "unhex('", 7);
	p += 7;
	for (Size i = 0; i < len; i++)
	{
		*p++ = digits[(uint8) data[i] >> 4];
		*p++ = digits[(uint8) data[i] & 15];
	}
	memcpy(p, "')", 3);
	return result;
}

/* ---------------------------------------------------------------------
 * Errors
 * ------------------------------------------------------------------ */

typedef struct ChError
{
	int	  code; /* 0: none was given */
	char *name; /* "UNKNOWN_TABLE", or "" */
	char *text;
} ChError;

/* Codes with an SQLSTATE of their own; the others are HV000. */
static const struct
{
	int	 code;
	int	 sqlstate;
	bool safe; /* its text never quotes a row */
} error_codes[] = {
	/* who and what */
	{192, ERRCODE_INVALID_PASSWORD, true},					  /* UNKNOWN_USER */
	{193, ERRCODE_INVALID_PASSWORD, true},					  /* WRONG_PASSWORD */
	{194, ERRCODE_INVALID_PASSWORD, true},					  /* REQUIRED_PASSWORD */
	{516, ERRCODE_INVALID_PASSWORD, true},					  /* AUTHENTICATION_FAILED */
	{195, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION, true}, /* IP_ADDRESS_NOT_ALLOWED */
	{CH_ERR_UNKNOWN_DATABASE, ERRCODE_INVALID_CATALOG_NAME, true},
	{CH_ERR_UNKNOWN_TABLE, ERRCODE_UNDEFINED_TABLE, true},
	{57, ERRCODE_DUPLICATE_TABLE, true},		 /* TABLE_ALREADY_EXISTS */
	{497, ERRCODE_INSUFFICIENT_PRIVILEGE, true}, /* ACCESS_DENIED */
	{164, ERRCODE_INSUFFICIENT_PRIVILEGE, true}, /* READONLY */
	{291, ERRCODE_INSUFFICIENT_PRIVILEGE, true}, /* DATABASE_ACCESS_DENIED */
	{16, ERRCODE_UNDEFINED_COLUMN, true},		 /* NO_SUCH_COLUMN_IN_TABLE */
	{47, ERRCODE_UNDEFINED_COLUMN, true},		 /* UNKNOWN_IDENTIFIER */
	{15, ERRCODE_DUPLICATE_COLUMN, true},		 /* DUPLICATE_COLUMN */
	{44, ERRCODE_DUPLICATE_COLUMN, true},		 /* ILLEGAL_COLUMN */
	{50, ERRCODE_UNDEFINED_OBJECT, true},		 /* UNKNOWN_TYPE */
	{56, ERRCODE_UNDEFINED_OBJECT, true},		 /* UNKNOWN_STORAGE */
	{170, ERRCODE_UNDEFINED_OBJECT, true},		 /* CLUSTER_DOESNT_EXIST */
	{701, ERRCODE_UNDEFINED_OBJECT, true},		 /* CLUSTER_DOESNT_EXIST of later */
	{62, ERRCODE_SYNTAX_ERROR, false},
	{48, ERRCODE_FEATURE_NOT_SUPPORTED, true},
	{344, ERRCODE_FEATURE_NOT_SUPPORTED, true},
	{359, ERRCODE_PROGRAM_LIMIT_EXCEEDED, true}, /* TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT */
	/* what goes away by itself (net/retry.c) */
	{32, ERRCODE_CONNECTION_FAILURE, true}, /* ATTEMPT_TO_READ_AFTER_EOF: cut off */
	{33, ERRCODE_CONNECTION_FAILURE, true}, /* CANNOT_READ_ALL_DATA: cut off */
	{74, ERRCODE_CONNECTION_FAILURE, true},
	{75, ERRCODE_CONNECTION_FAILURE, true},
	{95, ERRCODE_CONNECTION_FAILURE, true},
	{159, ERRCODE_CONNECTION_FAILURE, true}, /* TIMEOUT_EXCEEDED */
	{160, ERRCODE_CONNECTION_FAILURE, true}, /* TOO_SLOW */
	{173, ERRCODE_OUT_OF_MEMORY, true},
	{198, ERRCODE_CONNECTION_FAILURE, true}, /* DNS_ERROR */
	{202, ERRCODE_TOO_MANY_CONNECTIONS, true},
	{209, ERRCODE_CONNECTION_FAILURE, true}, /* SOCKET_TIMEOUT */
	{210, ERRCODE_CONNECTION_FAILURE, true}, /* NETWORK_ERROR */
	{216, ERRCODE_CONNECTION_FAILURE, true}, /* QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING */
	{225, ERRCODE_CONNECTION_FAILURE, true}, /* NO_ZOOKEEPER */
	{236, ERRCODE_ADMIN_SHUTDOWN, true},	 /* ABORTED */
	{241, ERRCODE_OUT_OF_MEMORY, true},		 /* MEMORY_LIMIT_EXCEEDED */
	{242, ERRCODE_CONNECTION_FAILURE, true}, /* TABLE_IS_READ_ONLY: its Keeper is away */
	{243, ERRCODE_DISK_FULL, true},
	{252, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, true}, /* TOO_MANY_PARTS */
	{279, ERRCODE_CONNECTION_FAILURE, true},
	{285, ERRCODE_CONNECTION_FAILURE, true}, /* TOO_FEW_LIVE_REPLICAS */
	{286, ERRCODE_CONNECTION_FAILURE, true}, /* UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE */
	{289, ERRCODE_CONNECTION_FAILURE, true}, /* REPLICA_IS_NOT_IN_QUORUM */
	{319, ERRCODE_CONNECTION_FAILURE, true}, /* UNKNOWN_STATUS_OF_INSERT */
	{394, ERRCODE_QUERY_CANCELED, true},	 /* QUERY_WAS_CANCELLED */
	{CH_ERR_DEADLOCK_AVOIDED, ERRCODE_T_R_DEADLOCK_DETECTED, true},
	{517, ERRCODE_T_R_SERIALIZATION_FAILURE, true}, /* CANNOT_ASSIGN_ALTER */
	{999, ERRCODE_CONNECTION_FAILURE, true},		/* KEEPER_EXCEPTION */
	{1000, ERRCODE_CONNECTION_FAILURE, false},		/* POCO_EXCEPTION */
};

/*
 * "Code: 60. DB::Exception: text. (UNKNOWN_TABLE) (version 24.8 (official
 * build))", or with ", e.displayText() =" in old versions.
 */
static ChError
parse_error(const HttpResponse *response)
{
	ChError		error = {0};
	const char *header = resync_http_header(response, "X-ClickHouse-Exception-Code");
	char	   *body = response->body.data;
	char	   *text = strstr(body, "Code: ");
	char	   *p;
	char	   *end;

	if (text != NULL)
		error.code = atoi(text + 6);
	if (header != NULL)
		error.code = atoi(header);
	if (text == NULL)
		text = body;
	p = strstr(text, "DB::Exception: ");
	text = pstrdup(p != NULL ? p + 15 : text);
	while ((p = strstr(text, " (version ")) != NULL && strchr(p, ')') != NULL)
		*p = '\0';
	for (end = text + strlen(text); end > text && isspace((unsigned char) end[-1]);)
		*--end = '\0';
	error.name = "";
	if (end > text && end[-1] == ')' && (p = strrchr(text, '(')) != NULL &&
		strspn(p + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == (Size) (end - p - 2))
	{
		end[-1] = '\0';
		error.name = pstrdup(p + 1);
		for (*p = '\0'; p > text && (isspace((unsigned char) p[-1]) || p[-1] == '.');)
			*--p = '\0';
	}
	error.text = text;
	return error;
}

static bool
is_safe(int code)
{
	for (int i = 0; i < lengthof(error_codes); i++)
	{
		if (error_codes[i].code == code)
			return error_codes[i].safe;
	}
	return false;
}

static int
error_sqlstate(int code, int status)
{
	for (int i = 0; i < lengthof(error_codes); i++)
	{
		if (error_codes[i].code == code)
			return error_codes[i].sqlstate;
	}
	/* none of ClickHouse's: something between us and it */
	if (code == 0 && (status >= 500 || status == 408 || status == 429))
		return ERRCODE_CONNECTION_FAILURE;
	if (code == 0 && (status == 401 || status == 403))
		return ERRCODE_INVALID_PASSWORD;
	return ERRCODE_FDW_ERROR;
}

static void
pg_attribute_noreturn()
	raise_error(const HttpResponse *response, const ChError *error, bool has_data)
{
	int	  sqlstate = error_sqlstate(error->code, response->status);
	char *text = error->text;

	if (error->code == 0)
		ereport(ERROR, (errcode(sqlstate),
						errmsg("unexpected answer of the ClickHouse server: HTTP status %d",
							   response->status)));
	if ((has_data && !is_safe(error->code)) || !pg_verifymbstr(text, strlen(text), true))
		text = "";
	/* whatever the server names may have no equivalent here */
	for (char *p = text; GetDatabaseEncoding() != PG_UTF8 && *p != '\0'; p++)
	{
		if (IS_HIGHBIT_SET(*p))
			*p = '?';
	}
	if (strlen(text) > MAX_ERROR_TEXT)
		text = psprintf("%.*s...", pg_mbcliplen(text, strlen(text), MAX_ERROR_TEXT), text);
	ereport(ERROR, (errcode(sqlstate),
					text[0] != '\0' ? errmsg("ClickHouse: %s", text)
									: errmsg("ClickHouse refused the data: %s",
											 error->name[0] ? error->name : "unknown error"),
					errdetail("Code %d%s%s.", error->code, error->name[0] ? ", " : "", error->name),
					text[0] != '\0'
						? 0
						: errhint("The text may quote rows, and is only in the server's log.")));
}

/* A value, or a type, cannot be made another. */
static bool
is_conversion(int code)
{
	static const int codes[] = {6, 26, 27, 38, 41, 43, 53, 69, 70, 72, 131, 321, 349, 407};

	for (int i = 0; i < lengthof(codes); i++)
	{
		if (codes[i] == code)
			return true;
	}
	return false;
}

/* An error of the response: raised, unless it is the allowed one. */
static int
check_response(const HttpResponse *response, bool is_read, int allowed, bool has_data)
{
	ChError error;

	if (response->status == 200 &&
		resync_http_header(response, "X-ClickHouse-Exception-Code") == NULL &&
		(is_read || strncmp(response->body.data, "Code: ", 6) != 0))
		return 0;
	error = parse_error(response);
	if (error.code != 0 &&
		(error.code == allowed || (allowed == CH_ERR_CONVERSION && is_conversion(error.code))))
		return error.code;
	raise_error(response, &error, has_data);
}

/* ---------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------ */

/* What the query ids of a run begin with. */
char *
resync_ch_query_prefix(ChDestination *dest, const char *token, int64 run)
{
	return psprintf("resync-%s-" INT64_FORMAT "-", token, run);
}

static void
append_setting(StringInfo url, const char *name, const char *value)
{
	appendStringInfo(url, "&%s=%s", name, resync_http_escape(value));
}

/* The URL, without "query" but for INSERTs with rows. */
static char *
make_url(ChDestination *dest, const ChStatement *statement, const char *query)
{
	StringInfoData url;
	char		  *id;

	if (dest->head.id != NULL)
		id = psprintf("%s%s-%d-%08x-" UINT64_FORMAT,
					  resync_ch_query_prefix(dest, dest->head.id->token, dest->head.id->run),
					  statement->what, MyProcPid, dest->nonce, ++dest->requests);
	else
		id = psprintf("resync-call-%d-%08x-" UINT64_FORMAT, MyProcPid, dest->nonce,
					  ++dest->requests);
	initStringInfo(&url);
	appendStringInfo(&url, "/?database=%s",
					 resync_http_escape(resync_text_to_utf8(dest->database)));
	append_setting(&url, "query_id", id);
	appendStringInfoString(&url, "&wait_end_of_query=1&async_insert=0&max_execution_time=0"
								 "&input_format_null_as_default=0&default_format=TabSeparated"
								 "&max_partitions_per_insert_block=0");
	append_setting(&url, "insert_deduplication_token",
				   statement->token != NULL ? statement->token : id);
	if (dest->cluster != NULL)
		appendStringInfoString(&url, "&insert_distributed_sync=1&distributed_product_mode=global");
	if (statement->settings != NULL)
		appendStringInfoString(&url, statement->settings);
	if (query != NULL)
		append_setting(&url, "query", query);
	return url.data;
}

int
resync_ch_send(ChDestination *dest, const ChStatement *statement, HttpResponse **response)
{
	HttpRequest	  request = {0};
	HttpResponse *answer;
	bool		  is_read = pg_strncasecmp(statement->sql, "SELECT", 6) == 0;

	request.method = "POST";
	request.url = make_url(dest, statement, NULL);
	request.headers = dest->auth;
	request.body = resync_text_to_utf8(statement->sql);
	request.body_len = strlen(request.body);
	request.encoding = HTTP_IDENTITY;
	request.timeout_ms = statement->timeout_ms;
	answer = resync_http_call(dest->http, &request);
	if (response != NULL)
		*response = answer;
	return check_response(answer, is_read, statement->allowed, statement->has_data);
}

void
resync_ch_exec(ChDestination *dest, const char *sql, const char *what)
{
	ChStatement statement = {.sql = sql, .what = what, .timeout_ms = CH_TIMEOUT_LONG};

	(void) resync_ch_send(dest, &statement, NULL);
}

/* ---------------------------------------------------------------------
 * Results
 * ------------------------------------------------------------------ */

/* One field of TabSeparated, unescaped in place.  NULL: \N. */
static char *
unescape(char *field)
{
	char *to = field;

	if (strcmp(field, "\\N") == 0)
		return NULL;
	for (char *p = field; *p != '\0'; p++)
	{
		if (*p != '\\')
		{
			*to++ = *p;
			continue;
		}
		p++;
		switch (*p)
		{
			case 'b':
				*to++ = '\b';
				break;
			case 'f':
				*to++ = '\f';
				break;
			case 'n':
				*to++ = '\n';
				break;
			case 'r':
				*to++ = '\r';
				break;
			case 't':
				*to++ = '\t';
				break;
			case '\0':
				p--;
				break;
			default:
				*to++ = *p;
				break;
		}
	}
	*to = '\0';
	return field;
}

ChResult *
resync_ch_query(ChDestination *dest, const char *sql)
{
	ChStatement	  statement = {.sql = sql, .what = CH_WHAT_READ, .timeout_ms = CH_TIMEOUT_LONG};
	ChResult	 *result = palloc0(sizeof(ChResult));
	HttpResponse *response;
	List		 *fields = NIL;
	ListCell	 *lc;
	char		 *p;

	(void) resync_ch_send(dest, &statement, &response);
	for (p = response->body.data; *p != '\0';)
	{
		char *end = p + strcspn(p, "\t\n");
		bool  last = *end != '\t';
		bool  more = *end != '\0';

		*end = '\0';
		fields = lappend(fields, p);
		if (result->nrows == 0)
			result->ncols++;
		if (last)
			result->nrows++;
		p = more ? end + 1 : end;
		/* an empty field before the end of the last line */
		if (!last && *p == '\0')
			break;
	}
	if (list_length(fields) != result->nrows * result->ncols)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("unexpected answer of the ClickHouse server")));
	result->values = palloc(sizeof(char *) * Max(list_length(fields), 1));
	foreach(lc, fields)
		result->values[foreach_current_index(lc)] = unescape(lfirst(lc));
	return result;
}

int64
resync_ch_written_rows(const HttpResponse *response)
{
	const char *summary = resync_http_header(response, "X-ClickHouse-Summary");
	const char *p = summary != NULL ? strstr(summary, "\"written_rows\":\"") : NULL;

	return p != NULL ? strtoll(p + 16, NULL, 10) : -1;
}

/* ---------------------------------------------------------------------
 * INSERT with rows
 * ------------------------------------------------------------------ */

void
resync_ch_upload_begin(ChDestination *dest, const char *sql, const char *what, const char *token)
{
	HttpRequest request = {0};
	ChStatement statement = {.sql = sql, .what = what, .token = token};

	/*
	 * A table being loaded has each key once: not to look for duplicates in
	 * every block saves a third of the server's work.
	 */
	if (strcmp(what, CH_WHAT_LOAD) == 0)
		statement.settings = "&optimize_on_insert=0";
	request.method = "POST";
	request.url = make_url(dest, &statement, resync_text_to_utf8(sql));
	request.headers = dest->auth;
	request.encoding = dest->encoding;
	request.timeout_ms = CH_TIMEOUT_LONG;
	resync_http_upload_begin(dest->http, &request);
}

/* A NativeWriteFn.  Raises what the server has to say before the end. */
void
resync_ch_upload_put(void *arg, const char *data, Size len)
{
	ChDestination *dest = arg;

	if (resync_http_upload_put(dest->http, data, len, (Size) resync_copier_buffer * 1024))
		return;
	(void) check_response(resync_http_upload_end(dest->http), false, 0, true);
	ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
					errmsg("the ClickHouse server answered before it had all rows")));
}

/*
 * Returns the rows acknowledged.  More may have been written than were sent,
 * by materialized views; fewer are an error.
 */
int64
resync_ch_upload_end(ChDestination *dest, int64 rows)
{
	HttpResponse *response = resync_http_upload_end(dest->http);
	int64		  written;

	(void) check_response(response, false, 0, true);
	written = resync_ch_written_rows(response);
	/* not told: the status alone says that all is there */
	if (written < 0 || written >= rows)
		return rows;
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
					errmsg("ClickHouse has written " INT64_FORMAT " rows of " INT64_FORMAT, written,
						   rows)));
}
