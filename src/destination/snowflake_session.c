/*
 * snowflake_session.c
 *		Sessions at Snowflake: log in by key pair, requests, renewal of tokens.
 *
 * Called by snowflake_sql.c and the destination's open and close, in any process.
 * The protocol is that of Snowflake's own drivers (login-request, query-request
 * ...), as their sources have it.  Waits listen to the latch.
 *
 * A request has an id, which it keeps however often it is sent again, and a guid,
 * which is new each time: a statement whose answer was lost is not executed once
 * more.  A long statement answers that it is still at work, and is asked for again.
 *
 * Tokens are secrets of the connection, never shown; the private key is read for
 * each log in, and its copies are overwritten.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include <time.h>

#include "mb/pg_wchar.h"
#include "net/jwt.h"
#include "net/encoding.h"
#include "net/retry.h"
#include "net/wait.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define APP_NAME "resync"
#define APP_VERSION "1.0"

/* Seconds for which an assertion is good. */
#define ASSERTION_LIFE 60

/* Milliseconds without a sign of life. */
#define REQUEST_TIMEOUT 120000
#define CLOSE_TIMEOUT 3000

/* A session that sends nothing for four hours ends there. */
#define HEARTBEAT_MS (15 * 60 * 1000)

/* How often a request is sent before it is left to the caller's retry. */
#define MAX_TRIES 7

/* Seconds that a statement waits for a lock there. */
#define LOCK_TIMEOUT "60"

/* Between two questions after a statement that is still at work. */
#define POLL_HELD_MS 1000 /* so long the service has held the answer back itself */
#define POLL_FIRST_MS 20
#define POLL_MAX_MS 2000

#define MAX_DEPTH 64
#define UUID_LEN_TEXT 36

/* Codes of an answer. */
#define CODE_RUNNING "333333"
#define CODE_RUNNING_ASYNC "333334"
#define CODE_TOKEN_EXPIRED "390112"

/* The session is gone: what was sent has not been executed. */
static const char *const gone_codes[] = {"390104", "390111", "390114", "390115", "390195"};

/* The statement that this process waits for. */
static struct
{
	SfDestination *dest; /* NULL: none */
	const char	  *sql;
	const char	  *id;
} under_way;

/* Why a request is sent again; Snowflake likes to know. */
typedef struct Attempt
{
	char	   *id; /* requestId */
	int			tries;
	int			max;	/* of tries */
	int			reason; /* HTTP status of the try before, 0: none came */
	TimestampTz begun;
} Attempt;

/* ---------------------------------------------------------------------
 * Small things
 * ------------------------------------------------------------------ */

/* A random UUID, as text. */
static char *
make_uuid(void)
{
	uint8 bytes[16];
	char *text = palloc(UUID_LEN_TEXT + 1);

	if (!pg_strong_random(bytes, sizeof(bytes)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random bytes")));
	bytes[6] = (bytes[6] & 0x0f) | 0x40;
	bytes[8] = (bytes[8] & 0x3f) | 0x80;
	snprintf(text, UUID_LEN_TEXT + 1,
			 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", bytes[0],
			 bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7], bytes[8],
			 bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15]);
	return text;
}

static char *
upper(const char *text)
{
	char *result = pstrdup(text);

	for (char *p = result; *p != '\0'; p++)
		*p = pg_ascii_toupper((unsigned char) *p);
	return result;
}

/* "myorg-acct.eu-west-1" without what follows the first dot. */
static char *
account_name(const SfDestination *dest)
{
	return upper(pnstrdup(dest->account, strcspn(dest->account, ".")));
}

static char *
escape(const char *text)
{
	return resync_http_escape(resync_text_to_utf8(text));
}

static bool
is_code(JsonNode *answer, const char *code)
{
	const char *found = resync_json_string(answer, "code");

	return found != NULL && strcmp(found, code) == 0;
}

static bool
is_gone(JsonNode *answer)
{
	for (int i = 0; i < lengthof(gone_codes); i++)
	{
		if (is_code(answer, gone_codes[i]))
			return true;
	}
	return false;
}

static void
keep_secret(SfDestination *dest, char **place, const char *text)
{
	char *old = *place;

	*place = text != NULL ? MemoryContextStrdup(dest->head.context, text) : NULL;
	resync_jwt_forget(old);
}

static void
forget_session(SfDestination *dest)
{
	keep_secret(dest, &dest->token, NULL);
	keep_secret(dest, &dest->master, NULL);
	dest->has_stage = false;
	dest->sent = resync_sf_sent(dest);
	dest->store = NULL;
}

/* ---------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------ */

/* "?requestId=...", with the reason if it is not the first try. */
static char *
request_ids(const Attempt *attempt)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "?requestId=%s&request_guid=%s", attempt->id, make_uuid());
	if (attempt->tries > 0)
		appendStringInfo(
			&buf, "&retryCount=%d&retryReason=%d&clientStartTime=" INT64_FORMAT, attempt->tries,
			attempt->reason,
			(int64) (attempt->begun / 1000 +
					 (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * INT64CONST(1000)));
	return buf.data;
}

/* A connection for a last word, which may not take long. */
static HttpConn *
open_briefly(SfDestination *dest)
{
	HttpOptions options = dest->options;

	options.connect_timeout_ms = CLOSE_TIMEOUT;
	return resync_http_open(CurrentMemoryContext, &options);
}

/* Its secrets (body, may be NULL, and the token's header) are overwritten then. */
static HttpResponse *
send_secrets(HttpConn *http, const HttpRequest *request, char *authorization, char *body)
{
	HttpResponse *response;

	PG_TRY();
	{
		response = resync_http_call(http, request);
	}
	PG_CATCH();
	{
		resync_jwt_forget(authorization);
		resync_jwt_forget(body);
		PG_RE_THROW();
	}
	PG_END_TRY();
	resync_jwt_forget(authorization);
	resync_jwt_forget(body);
	return response;
}

/* One request, not sent again.  token: NULL for none. */
static HttpResponse *
call_once(SfDestination *dest, HttpConn *http, const char *method, const char *path, JsonNode *body,
		  const char *token, int timeout)
{
	HttpRequest request = {0};
	char	   *text = body != NULL ? resync_json_text(body) : NULL;
	char	   *authorization = NULL;

	request.method = method;
	request.url = psprintf("%s%s", dest->prefix, path);
	request.headers = list_make3("Accept: application/json",
								 "User-Agent: " APP_NAME "/" APP_VERSION,
								 "Content-Type: application/json");
	if (token != NULL)
	{
		authorization = psprintf("Authorization: Snowflake Token=\"%s\"", token);
		request.headers = lappend(request.headers, authorization);
	}
	request.body = text;
	request.body_len = text != NULL ? strlen(text) : 0;
	request.timeout_ms = timeout;
	if (timeout == CLOSE_TIMEOUT)
		request.total_ms = CLOSE_TIMEOUT;
	return send_secrets(http, &request, authorization, text);
}

/* Same; NULL: the connection was lost, or there was none. */
static HttpResponse *
call_or_lose(SfDestination *dest, const char *method, const char *path, JsonNode *body,
			 const char *token, bool last)
{
	HttpResponse *volatile response = NULL;
	MemoryContext context = CurrentMemoryContext;

	if (last)
		return call_once(dest, dest->http, method, path, body, token, REQUEST_TIMEOUT);
	PG_TRY();
	{
		response = call_once(dest, dest->http, method, path, body, token, REQUEST_TIMEOUT);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) != ERRCODE_CONNECTION_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();
		FreeErrorData(edata);
	}
	PG_END_TRY();
	return response;
}

/* Also what its own drivers try again: gateways answer so for a moment. */
static bool
is_passing(int status)
{
	return status >= 500 || status == 408 || status == 429 || status == 400 || status == 403 ||
		   status == 405;
}

/*
 * The answer to a request, which is sent again until there is one.  path: without
 * the ids; poll: a GET, which has none.
 */
static JsonNode *
call_until_answer(SfDestination *dest, const char *method, const char *path, const char *more,
				  JsonNode *body, const char *token, Attempt *attempt)
{
	for (;;)
	{
		bool  last = attempt->tries >= attempt->max - 1;
		char *url = psprintf("%s%s%s", path, body != NULL ? request_ids(attempt) : "", more);
		HttpResponse *response = call_or_lose(dest, method, url, body, token, last);
		JsonNode	 *answer = NULL;

		dest->last_used = GetCurrentTimestamp();
		if (response != NULL && response->status == 200)
			answer = resync_json_parse(response->body.data, response->body.len, MAX_DEPTH, NULL);
		if (answer != NULL)
			return answer;
		if (response != NULL && response->status != 200 &&
			(last || !is_passing(response->status)) && response->status < 500 &&
			response->status != 408 && response->status != 429)
			ereport(
				ERROR,
				(errcode(response->status == 401 || response->status == 403 ||
								 response->status == 404
							 ? ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION
							 : ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("Snowflake refused a request: HTTP status %d", response->status),
				 errhint("Look at the options account and url, and at network policies there.")));
		if (last)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE), errmsg("Snowflake gives no answer"),
					 errdetail("HTTP status %d.", response != NULL ? response->status : 0)));
		attempt->reason = response != NULL ? response->status : 0;
		attempt->tries++;
		resync_wait_sleep(resync_retry_delay(0, attempt->tries));
	}
}

static Attempt
new_attempt(void)
{
	return (Attempt){.id = make_uuid(), .max = MAX_TRIES, .begun = GetCurrentTimestamp()};
}

/* ---------------------------------------------------------------------
 * Logging in
 * ------------------------------------------------------------------ */

/* The signed claim to be the user, in the current context; secret. */
static char *
make_assertion(SfDestination *dest, char **fingerprint)
{
	JsonNode *header = resync_json_make();
	JsonNode *claims = resync_json_make();
	char	 *subject = psprintf("%s.%s", account_name(dest), upper(dest->user));
	int64	  now = (int64) time(NULL);
	Size	  len;
	char	 *pem = resync_destination_read_file(dest->key_file, "private key file", &len);
	char *volatile passphrase = NULL;
	JwtKey *key = NULL;
	char   *assertion;

	PG_TRY();
	{
		if (dest->passphrase_file != NULL)
			passphrase = resync_destination_password_file(dest->passphrase_file);
		key = resync_jwt_read_key(CurrentMemoryContext, pem, len, passphrase,
								  "the private key of the user mapping");
	}
	PG_FINALLY();
	{
		resync_jwt_forget(pem);
		resync_jwt_forget(passphrase);
	}
	PG_END_TRY();
	*fingerprint = resync_jwt_fingerprint(key);
	resync_json_set_string(header, "alg", "RS256");
	resync_json_set_string(header, "typ", "JWT");
	resync_json_set_text(claims, "iss", psprintf("%s.%s", subject, *fingerprint));
	resync_json_set_text(claims, "sub", subject);
	resync_json_set_int64(claims, "iat", now);
	resync_json_set_int64(claims, "exp", now + ASSERTION_LIFE);
	assertion = resync_jwt_sign(key, resync_json_text(header), resync_json_text(claims));
	return assertion;
}

static JsonNode *
login_body(SfDestination *dest, const char *assertion)
{
	static const char *const settings[][2] = {
		{"TIMEZONE", "UTC"},
		{"QUERY_TAG", APP_NAME},
		{"QUOTED_IDENTIFIERS_IGNORE_CASE", "false"},
		{"LOCK_TIMEOUT", LOCK_TIMEOUT},
		{"ABORT_DETACHED_QUERY", "true"},
		{"ERROR_ON_NONDETERMINISTIC_MERGE", "true"},
		/* what is cast to text on its way into another type loses nothing */
		{"BINARY_OUTPUT_FORMAT", "HEX"},
		{"DATE_OUTPUT_FORMAT", "YYYY-MM-DD"},
		{"TIME_OUTPUT_FORMAT", "HH24:MI:SS.FF9"},
		{"TIMESTAMP_NTZ_OUTPUT_FORMAT", "YYYY-MM-DD HH24:MI:SS.FF9"},
		{"TIMESTAMP_LTZ_OUTPUT_FORMAT", "YYYY-MM-DD HH24:MI:SS.FF9 TZH:TZM"},
		{"TIMESTAMP_TZ_OUTPUT_FORMAT", "YYYY-MM-DD HH24:MI:SS.FF9 TZH:TZM"},
		{"C_API_QUERY_RESULT_FORMAT", "JSON"},
	};
	JsonNode *body = resync_json_make();

	resync_json_set_string(body, "data.CLIENT_APP_ID", APP_NAME);
	resync_json_set_string(body, "data.CLIENT_APP_VERSION", APP_VERSION);
	resync_json_set_string(body, "data.SVN_REVISION", "");
	resync_json_set_text(body, "data.ACCOUNT_NAME", account_name(dest));
	resync_json_set_text(body, "data.LOGIN_NAME", dest->user);
	resync_json_set_string(body, "data.AUTHENTICATOR", "SNOWFLAKE_JWT");
	resync_json_set_string(body, "data.TOKEN", assertion);
	resync_json_set_string(body, "data.CLIENT_ENVIRONMENT.APPLICATION", APP_NAME);
	resync_json_set_string(body, "data.CLIENT_ENVIRONMENT.OS", "Linux");
	resync_json_set_bool(body, "data.SESSION_PARAMETERS.AUTOCOMMIT", true);
	resync_json_set_bool(body, "data.SESSION_PARAMETERS.CLIENT_SESSION_KEEP_ALIVE", true);
	for (int i = 0; i < lengthof(settings); i++)
		resync_json_set_string(body, psprintf("data.SESSION_PARAMETERS.%s", settings[i][0]),
							   settings[i][1]);
	return body;
}

/* The database or role that the service has found, by its real name. */
static char *
found_name(SfDestination *dest, JsonNode *answer, const char *member, const char *option,
		   const char *wanted)
{
	char *name = resync_json_get_text(answer, psprintf("data.sessionInfo.%s", member));

	if (name == NULL || name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("Snowflake has no %s \"%s\" for user \"%s\"", option,
						wanted != NULL ? wanted : "", dest->user),
				 errdetail("It does not exist, or role \"%s\" may not use it.",
						   dest->wanted_role != NULL ? dest->wanted_role : "(the user's default)"),
				 errhint("Look at the server's option \"%s\", and grant USAGE on it to the role.",
						 option)));
	return MemoryContextStrdup(dest->head.context, name);
}

static void
pg_attribute_noreturn() raise_login(SfDestination *dest, JsonNode *answer, const char *fingerprint)
{
	char *text = resync_json_get_text(answer, "message");
	char *code = resync_json_get_text(answer, "code");

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
			 errmsg("Snowflake refused user \"%s\" of account \"%s\": %s", dest->user,
					dest->account, text != NULL ? text : "no reason"),
			 errdetail("Code: %s.", code != NULL ? code : "none"),
			 errhint("The key's fingerprint is %s: compare it with RSA_PUBLIC_KEY_FP of DESCRIBE "
					 "USER there. Look at account, user and role, and at this server's clock.",
					 fingerprint)));
}

void
resync_sf_login(SfDestination *dest)
{
	MemoryContext  context = AllocSetContextCreate(CurrentMemoryContext, "resync login",
												   ALLOCSET_SMALL_SIZES);
	MemoryContext  old = MemoryContextSwitchTo(context);
	Attempt		   attempt = new_attempt();
	StringInfoData more;
	JsonNode	  *body;
	JsonNode	  *answer;
	char		  *assertion;
	char		  *fingerprint;
	bool		   success = false;

	forget_session(dest);
	initStringInfo(&more);
	appendStringInfo(&more, "&databaseName=%s&warehouse=%s", escape(dest->wanted_database),
					 escape(dest->wanted_warehouse));
	if (dest->wanted_role != NULL)
		appendStringInfo(&more, "&roleName=%s", escape(dest->wanted_role));
	/* a later try wants a new assertion: it is left to the caller */
	attempt.max = 1;
	assertion = make_assertion(dest, &fingerprint);
	body = login_body(dest, assertion);
	resync_jwt_forget(assertion);
	answer = call_until_answer(dest, "POST", "/session/v1/login-request", more.data, body, NULL,
							   &attempt);
	(void) resync_json_bool(answer, "success", &success);
	if (!success)
		raise_login(dest, answer, fingerprint);
	keep_secret(dest, &dest->token, resync_json_string(answer, "data.token"));
	keep_secret(dest, &dest->master, resync_json_string(answer, "data.masterToken"));
	if (dest->token == NULL || dest->master == NULL)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("the server does not answer as Snowflake does")));
	if (dest->database == NULL)
	{
		dest->role = found_name(dest, answer, "roleName", "role", dest->wanted_role);
		dest->database = found_name(dest, answer, "databaseName", "database",
									dest->wanted_database);
		(void) found_name(dest, answer, "warehouseName", "warehouse", dest->wanted_warehouse);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* A new session token, by the master token.  False: that is not good any more, either. */
static bool
renew(SfDestination *dest)
{
	JsonNode *body = resync_json_make();
	Attempt	  attempt = new_attempt();
	JsonNode *answer;
	bool	  success = false;

	resync_json_set_string(body, "oldSessionToken", dest->token);
	resync_json_set_string(body, "requestType", "RENEW");
	answer = call_until_answer(dest, "POST", "/session/token-request", "", body, dest->master,
							   &attempt);
	(void) resync_json_bool(answer, "success", &success);
	if (!success || resync_json_string(answer, "data.sessionToken") == NULL)
		return false;
	keep_secret(dest, &dest->token, resync_json_string(answer, "data.sessionToken"));
	if (resync_json_string(answer, "data.masterToken") != NULL)
		keep_secret(dest, &dest->master, resync_json_string(answer, "data.masterToken"));
	return true;
}

/*
 * The session is not known any more.  A new one will do, unless files wait in the
 * stage that went with the old one.
 */
static void
replace_session(SfDestination *dest)
{
	if (dest->staged)
	{
		forget_session(dest);
		ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
						errmsg("the session at Snowflake has ended, and its stage with it")));
	}
	resync_sf_login(dest);
}

/* ---------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------ */

static JsonNode *
statement_body(SfDestination *dest, const char *sql)
{
	JsonNode *body = resync_json_make();

	resync_json_set_text(body, "sqlText", sql);
	resync_json_set_bool(body, "asyncExec", false);
	resync_json_set_bool(body, "describeOnly", false);
	resync_json_set_bool(body, "isInternal", false);
	resync_json_set_int64(body, "sequenceId", ++dest->sequence);
	return body;
}

static JsonNode *
send_statement(SfDestination *dest, JsonNode *body, Attempt *attempt)
{
	const char *path = "/queries/v1/query-request";
	bool		polling = false;
	bool		renewed = false;
	bool		replaced = false;
	long		delay = POLL_FIRST_MS;

	for (;;)
	{
		TimestampTz asked = GetCurrentTimestamp();
		JsonNode   *answer = call_until_answer(dest, polling ? "GET" : "POST", path, "",
											   polling ? NULL : body, dest->token, attempt);

		if (is_code(answer, CODE_RUNNING) || is_code(answer, CODE_RUNNING_ASYNC))
		{
			path = resync_json_get_text(answer, "data.getResultUrl");
			if (path == NULL || path[0] != '/')
				ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
								errmsg("the server does not answer as Snowflake does")));
			polling = true;
			/* how often a request was sent says nothing about this one */
			attempt->tries = 0;
			renewed = false;
			/* the service holds an answer back by itself; if not, it is not asked at once */
			if (!TimestampDifferenceExceeds(asked, GetCurrentTimestamp(), POLL_HELD_MS))
			{
				resync_wait_sleep(delay);
				delay = Min(delay * 2, POLL_MAX_MS);
			}
			continue;
		}
		if (is_code(answer, CODE_TOKEN_EXPIRED) && !renewed && renew(dest))
		{
			renewed = true;
			continue;
		}
		if (!is_code(answer, CODE_TOKEN_EXPIRED) && !is_gone(answer))
			return answer;
		if (polling)
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
							errmsg("the session at Snowflake has ended during a statement")));
		/* an earlier try may have been done, and a new session does not know its id */
		if (attempt->tries > 0)
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
							errmsg("the session at Snowflake has ended, and the answer to a "
								   "statement is lost")));
		if (replaced)
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
							errmsg("Snowflake does not know the session that it has begun")));
		replace_session(dest);
		replaced = true;
	}
}

/*
 * Nobody waits for the statement any more: let it end there, too.  What comes of
 * that does not matter; without it the service ends it after minutes.
 */
static void
abort_statement(SfDestination *dest, const char *sql, const char *id)
{
	MemoryContext context = CurrentMemoryContext;

	if (dest->token == NULL)
		return;
	PG_TRY();
	{
		Attempt	  attempt = new_attempt();
		JsonNode *body = resync_json_make();

		resync_json_set_text(body, "sqlText", sql);
		resync_json_set_string(body, "requestId", id);
		(void) call_once(dest, open_briefly(dest), "POST",
						 psprintf("/queries/v1/abort-request%s", request_ids(&attempt)), body,
						 dest->token, CLOSE_TIMEOUT);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
}

/* A resync_wait_die_hook. */
static void
abort_under_way(void)
{
	if (under_way.dest != NULL)
		abort_statement(under_way.dest, under_way.sql, under_way.id);
}

static void
begin_waiting(SfDestination *dest, const char *sql, const char *id)
{
	under_way.dest = dest;
	under_way.sql = sql;
	under_way.id = id;
	resync_wait_die_hook = abort_under_way;
}

static void
end_waiting(void)
{
	under_way.dest = NULL;
	resync_wait_die_hook = NULL;
}

JsonNode *
resync_sf_request(SfDestination *dest, const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	Attempt		  attempt = new_attempt();
	JsonNode *volatile answer = NULL;

	if (dest->token == NULL)
		resync_sf_login(dest);
	begin_waiting(dest, sql, attempt.id);
	PG_TRY();
	{
		answer = send_statement(dest, statement_body(dest, sql), &attempt);
	}
	PG_CATCH();
	{
		ErrorData *edata;

		end_waiting();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		/* a lost connection has nobody to tell */
		if (ERRCODE_TO_CATEGORY(edata->sqlerrcode) != ERRCODE_CONNECTION_EXCEPTION)
		{
			FlushErrorState();
			abort_statement(dest, sql, attempt.id);
			ReThrowError(edata);
		}
		PG_RE_THROW();
	}
	PG_END_TRY();
	end_waiting();
	return answer;
}

void
resync_sf_keep_alive(SfDestination *dest)
{
	JsonNode *body;
	Attempt	  attempt;

	if (!TimestampDifferenceExceeds(dest->last_used, GetCurrentTimestamp(), HEARTBEAT_MS) &&
		!RESYNC_DEBUG_ASKED("sf_heartbeat_due"))
		return;
	attempt = new_attempt();
	body = resync_json_make();
	if (is_code(
			call_until_answer(dest, "POST", "/session/heartbeat", "", body, dest->token, &attempt),
			CODE_TOKEN_EXPIRED))
		(void) renew(dest);
}

void
resync_sf_logout(SfDestination *dest)
{
	MemoryContext context = CurrentMemoryContext;

	if (dest->token != NULL)
	{
		PG_TRY();
		{
			Attempt attempt = new_attempt();
			char   *path = psprintf("/session%s&delete=true", request_ids(&attempt));

			(void) call_once(dest, open_briefly(dest), "POST", path, resync_json_make(),
							 dest->token, CLOSE_TIMEOUT);
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(context);
			FlushErrorState();
		}
		PG_END_TRY();
	}
	forget_session(dest);
}
