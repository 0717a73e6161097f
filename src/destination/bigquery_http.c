/*
 * bigquery_http.c
 *		Requests at BigQuery's REST API: errors, jobs, queries.
 *
 * Called by the other files of the destination.  Whatever changes something is
 * a job with an id of ours: a job of an id that is known is never done again
 * (409), so that a lost answer is settled by asking for that job.  Ids are
 * resync_<token>_<run>_<life>_<what>_<attempt>; an attempt that failed for good
 * is followed by the next number.
 *
 * JSON is UTF-8; names and statements are in the server's encoding until they
 * are put into it (resync_bq_set).
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "net/encoding.h"
#include "net/retry.h"
#include "net/wait.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/* Milliseconds without a sign of life. */
#define CALL_TIMEOUT 120000

/* How long the service may hold a query's answer back. */
#define QUERY_WAIT_MS 20000

/* Between two looks at a job. */
#define POLL_FIRST_MS 50
#define POLL_MAX_MS 3000

#define MAX_DEPTH 64
#define MAX_ERROR_TEXT 500

/* ---------------------------------------------------------------------
 * Text
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
		if (*p == '\n')
			appendStringInfoString(&buf, "\\n");
		else if (*p == '\r')
			appendStringInfoString(&buf, "\\r");
		else
			appendStringInfoChar(&buf, *p);
	}
	appendStringInfoChar(&buf, with);
	return buf.data;
}

char *
resync_bq_ident(const char *name)
{
	return quote(name, '`');
}

char *
resync_bq_literal(const char *text)
{
	return quote(text, '\'');
}

char *
resync_bq_table(BqDestination *dest, const char *name)
{
	return psprintf("%s.%s.%s", resync_bq_ident(dest->project), resync_bq_ident(dest->dataset),
					resync_bq_ident(name));
}

/* A part of a path, in UTF-8. */
static char *
escape(const char *text)
{
	return resync_http_escape(resync_text_to_utf8(text));
}

/* Of one table, or (NULL) of all. */
char *
resync_bq_table_path(BqDestination *dest, const char *name)
{
	return psprintf("/bigquery/v2/projects/%s/datasets/%s/tables%s%s", escape(dest->project),
					escape(dest->dataset), name != NULL ? "/" : "",
					name != NULL ? escape(name) : "");
}

void
resync_bq_set_table(BqDestination *dest, JsonNode *object, const char *path, const char *name)
{
	resync_json_set_text(object, psprintf("%s.projectId", path), dest->project);
	resync_json_set_text(object, psprintf("%s.datasetId", path), dest->dataset);
	resync_json_set_text(object, psprintf("%s.tableId", path), name);
}

/* ---------------------------------------------------------------------
 * Errors
 * ------------------------------------------------------------------ */

/* Reasons with an SQLSTATE of their own; the others are HV000. */
static const struct
{
	const char *reason;
	int			sqlstate;
} reasons[] = {
	{"accessDenied", ERRCODE_INSUFFICIENT_PRIVILEGE},
	{"billingNotEnabled", ERRCODE_INSUFFICIENT_PRIVILEGE},
	{"blocked", ERRCODE_INSUFFICIENT_PRIVILEGE},
	{"authError", ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION},
	{"notFound", ERRCODE_UNDEFINED_TABLE},
	{"duplicate", ERRCODE_DUPLICATE_TABLE},
	{"invalid", ERRCODE_DATA_EXCEPTION},
	{"responseTooLarge", ERRCODE_PROGRAM_LIMIT_EXCEEDED},
	{"notImplemented", ERRCODE_FEATURE_NOT_SUPPORTED},
	{"resourceInUse", ERRCODE_OBJECT_IN_USE},
	/* what goes away by itself (net/retry.c) */
	{"quotaExceeded", RESYNC_ERRCODE_QUOTA_EXCEEDED},
	{"rateLimitExceeded", ERRCODE_CONFIGURATION_LIMIT_EXCEEDED},
	{"jobRateLimitExceeded", ERRCODE_CONFIGURATION_LIMIT_EXCEEDED},
	{"resourcesExceeded", ERRCODE_INSUFFICIENT_RESOURCES},
	{"backendError", ERRCODE_CONNECTION_FAILURE},
	{"jobBackendError", ERRCODE_CONNECTION_FAILURE},
	{"internalError", ERRCODE_CONNECTION_FAILURE},
	{"jobInternalError", ERRCODE_CONNECTION_FAILURE},
	{"tableUnavailable", ERRCODE_CONNECTION_FAILURE},
	{"timeout", ERRCODE_CONNECTION_FAILURE},
	{"stopped", ERRCODE_QUERY_CANCELED},
};

static int
reason_sqlstate(const char *reason, const char *text, int status)
{
	/* transactions that met: the reason only says that the query was wrong */
	if (strstr(text, "concurrent update") != NULL ||
		strstr(text, "Transaction is aborted due to") != NULL)
		return ERRCODE_T_R_SERIALIZATION_FAILURE;
	if (strcmp(reason, "notFound") == 0 && strstr(text, "ataset") != NULL)
		return ERRCODE_INVALID_SCHEMA_NAME;
	for (int i = 0; i < lengthof(reasons); i++)
	{
		if (strcmp(reasons[i].reason, reason) == 0)
			return reasons[i].sqlstate;
	}
	if (status >= 500 || status == 408)
		return ERRCODE_CONNECTION_FAILURE;
	if (status == 429)
		return ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
	if (status == 401)
		return ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
	if (status == 403)
		return ERRCODE_INSUFFICIENT_PRIVILEGE;
	if (status == 404)
		return ERRCODE_UNDEFINED_TABLE;
	return ERRCODE_FDW_ERROR;
}

/* text NULL: not to be shown. */
static void
pg_attribute_noreturn() raise_error(const char *reason, const char *text, int status)
{
	int sqlstate;

	if (reason == NULL)
		reason = "";
	sqlstate = reason_sqlstate(reason, text != NULL ? text : "", status);
	if (text != NULL && strlen(text) > MAX_ERROR_TEXT)
		text = psprintf("%.*s...", pg_mbcliplen(text, strlen(text), MAX_ERROR_TEXT), text);
	ereport(
		ERROR,
		(errcode(sqlstate),
		 text != NULL ? errmsg("BigQuery: %s", text) : errmsg("BigQuery: error without a text"),
		 reason[0] != '\0' ? errdetail("Reason: %s.", reason)
						   : errdetail("HTTP status %d.", status),
		 sqlstate == RESYNC_ERRCODE_QUOTA_EXCEEDED
			 ? errhint(
				   "It is tried again, less and less often, until the quota is renewed or raised.")
			 : 0));
}

void
resync_bq_raise_response(const HttpResponse *response)
{
	JsonNode *json = resync_json_parse(response->body.data, response->body.len, MAX_DEPTH, NULL);

	if (json == NULL || resync_json_find(json, "error") == NULL)
		raise_error(NULL, NULL, response->status);
	raise_error(resync_json_get_text(json, "error.errors.0.reason"),
				resync_json_get_text(json, "error.message"), response->status);
}

/* ---------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------ */

int
resync_bq_call(BqDestination *dest, const BqCall *call, JsonNode **json)
{
	HttpRequest	  request = {0};
	HttpResponse *response;
	bool		  renewed = false;

	request.method = call->method;
	request.url = psprintf("%s%s", dest->prefix, call->path);
	if (call->body != NULL)
	{
		request.body = resync_json_text(call->body);
		request.body_len = strlen(request.body);
	}
	request.timeout_ms = CALL_TIMEOUT;
	for (;;)
	{
		request.headers = list_make2(resync_bq_authorization(dest), "User-Agent: resync");
		if (call->body != NULL)
			request.headers = lappend(request.headers, "Content-Type: application/json");
		response = resync_http_call(dest->http, &request);
		if (response->status != 401 || renewed)
			break;
		/* it was withdrawn, or clocks differ */
		resync_bq_forget_token(dest);
		renewed = true;
	}
	if (response->status >= 300)
	{
		if (response->status == call->allowed)
			return response->status;
		resync_bq_raise_response(response);
	}
	if (json != NULL)
	{
		*json = resync_json_parse(response->body.data, response->body.len, MAX_DEPTH, NULL);
		if (*json == NULL)
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
							errmsg("the server does not answer as BigQuery does")));
	}
	return 0;
}

/* ---------------------------------------------------------------------
 * Jobs
 * ------------------------------------------------------------------ */

char *
resync_bq_job_id(BqDestination *dest, const char *what)
{
	return psprintf("resync_%s_" INT64_FORMAT "_%s_%s", dest->head.id->token, dest->head.id->run,
					dest->life != NULL ? dest->life : "0", what);
}

static char *
job_path(BqDestination *dest, const char *id)
{
	return psprintf("/bigquery/v2/projects/%s/jobs/%s?location=%s", escape(dest->project), id,
					escape(dest->location));
}

JsonNode *
resync_bq_find_job(BqDestination *dest, const char *id)
{
	BqCall	  call = {.method = "GET", .path = job_path(dest, id), .allowed = 404};
	JsonNode *job;

	return resync_bq_call(dest, &call, &job) == 0 ? job : NULL;
}

static bool
is_done(JsonNode *job)
{
	const char *state = resync_json_string(job, "status.state");

	return state != NULL && strcmp(state, "DONE") == 0;
}

JsonNode *
resync_bq_wait_job(BqDestination *dest, const char *id, JsonNode *job)
{
	long delay = POLL_FIRST_MS;

	while (!is_done(job))
	{
		resync_wait_sleep(delay);
		delay = Min(delay * 2, POLL_MAX_MS);
		job = resync_bq_find_job(dest, id);
		if (job == NULL)
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
							errmsg("BigQuery does not know its job \"%s\" any more", id)));
	}
	return job;
}

bool
resync_bq_job_failed(JsonNode *job)
{
	return resync_json_find(job, "status.errorResult") != NULL;
}

/* A text about wrong data may quote them, so it is not shown. */
void
resync_bq_raise_job(JsonNode *job)
{
	char *reason = resync_json_get_text(job, "status.errorResult.reason");
	char *text = resync_json_get_text(job, "status.errorResult.message");

	if (resync_json_find(job, "configuration.load") != NULL && reason != NULL &&
		strcmp(reason, "invalid") == 0)
	{
		char *id = resync_json_get_text(job, "jobReference.jobId");

		ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION), errmsg("BigQuery refused the data"),
						errdetail("Reason: %s.", reason),
						errhint("The text may quote rows; it is at BigQuery with job \"%s\".",
								id != NULL ? id : "?")));
	}
	if (text != NULL && strstr(text, BQ_FENCED) != NULL)
		ereport(ERROR, (errcode(RESYNC_ERRCODE_FENCED),
						errmsg("the run is no longer in charge at the destination"),
						errdetail("It was ended or replaced, or another process has applied "
								  "changes.")));
	raise_error(reason, text, 200);
}

int64
resync_bq_output_rows(JsonNode *job)
{
	int64 rows = 0;

	if (!resync_json_int64(job, "statistics.load.outputRows", &rows))
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("BigQuery does not tell how many rows it has loaded")));
	return rows;
}

JsonNode *
resync_bq_run_job(BqDestination *dest, JsonNode *job, const char *base, bool *before)
{
	BqCall call = {.method = "POST", .body = job, .allowed = 409};

	call.path = psprintf("/bigquery/v2/projects/%s/jobs", escape(dest->project));
	resync_json_set_text(job, "jobReference.projectId", dest->project);
	resync_json_set_text(job, "jobReference.location", dest->location);
	for (int attempt = 1;; attempt++)
	{
		char	 *id = psprintf("%s_%d", base, attempt);
		JsonNode *answer;
		bool	  known;

		resync_json_set_string(job, "jobReference.jobId", id);
		known = resync_bq_call(dest, &call, &answer) != 0;
		if (known)
		{
			answer = resync_bq_find_job(dest, id);
			if (answer == NULL)
				ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
								errmsg("BigQuery has a job \"%s\" that it does not find", id)));
		}
		answer = resync_bq_wait_job(dest, id, answer);
		if (!resync_bq_job_failed(answer))
		{
			if (before != NULL)
				*before = known;
			return answer;
		}
		/* an earlier process's attempt says nothing about ours */
		if (!known)
			resync_bq_raise_job(answer);
	}
}

JsonNode *
resync_bq_exec(BqDestination *dest, const char *sql, const char *base, bool *before)
{
	JsonNode *job = resync_json_make();

	if (base == NULL)
		base = resync_bq_job_id(dest,
								psprintf("sql_%08x_" UINT64_FORMAT, dest->nonce, ++dest->requests));
	resync_json_set_text(job, "configuration.query.query", sql);
	resync_json_set_bool(job, "configuration.query.useLegacySql", false);
	return resync_bq_run_job(dest, job, base, before);
}

/* ---------------------------------------------------------------------
 * Queries
 * ------------------------------------------------------------------ */

static void
append_rows(BqResult *result, JsonNode *answer)
{
	int n = resync_json_length(answer, "rows");

	if (result->ncols == 0)
		result->ncols = Max(resync_json_length(answer, "schema.fields"), 0);
	if (n <= 0 || result->ncols == 0)
		return;
	if (result->values == NULL)
		result->values = palloc(sizeof(char *) * n * result->ncols);
	else
		result->values = repalloc(result->values,
								  sizeof(char *) * (result->nrows + n) * result->ncols);
	for (int row = 0; row < n; row++)
	{
		JsonNode *fields = resync_json_find(answer, psprintf("rows.%d.f", row));

		for (int col = 0; col < result->ncols; col++)
			bq_value(result, result->nrows + row,
					 col) = resync_json_get_text(fields, psprintf("%d.v", col));
	}
	result->nrows += n;
}

BqResult *
resync_bq_query(BqDestination *dest, const char *sql, bool missing_ok)
{
	BqCall	  call = {.method = "POST", .body = resync_json_make()};
	BqResult *result = palloc0(sizeof(BqResult));
	JsonNode *answer;
	char	 *id = NULL;
	char	 *page = NULL;

	call.path = psprintf("/bigquery/v2/projects/%s/queries", escape(dest->project));
	resync_json_set_text(call.body, "query", sql);
	resync_json_set_bool(call.body, "useLegacySql", false);
	resync_json_set_bool(call.body, "useQueryCache", false);
	resync_json_set_int64(call.body, "timeoutMs", QUERY_WAIT_MS);
	if (dest->location != NULL)
		resync_json_set_text(call.body, "location", dest->location);
	if (missing_ok)
		call.allowed = 404;
	for (;;)
	{
		bool complete = false;

		if (resync_bq_call(dest, &call, &answer) != 0)
			return NULL;
		if (id == NULL)
			id = resync_json_get_text(answer, "jobReference.jobId");
		(void) resync_json_bool(answer, "jobComplete", &complete);
		if (complete)
		{
			append_rows(result, answer);
			page = resync_json_get_text(answer, "pageToken");
			if (page == NULL)
				return result;
		}
		if (id == NULL)
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
							errmsg("the server does not answer as BigQuery does")));
		call.method = "GET";
		call.body = NULL;
		call.path = psprintf("/bigquery/v2/projects/%s/queries/%s?timeoutMs=%d&location=%s%s%s",
							 escape(dest->project), escape(id), QUERY_WAIT_MS,
							 dest->location != NULL ? escape(dest->location) : "",
							 page != NULL ? "&pageToken=" : "", page != NULL ? escape(page) : "");
	}
}
