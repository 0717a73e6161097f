/*
 * bigquery_upload.c
 *		Files into load jobs, by resumable uploads.
 *
 * Called by copiers (partitions) and the streamer (staging tables).  The file
 * is produced bit by bit and never as a whole: what fills a chunk is sent, and
 * kept until the service has acknowledged it.  When a connection is lost, or
 * the service has a bad moment, it is asked how far it came, and sent the rest.
 * With the last byte the service starts the job, whose id is ours: if the answer
 * to that is lost, too, the job is looked for.
 *
 * Nothing is there before the job is done, and then all of the file is.
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include "net/retry.h"
#include "net/wait.h"
#include "utils/memutils.h"

/* Milliseconds without a sign of life; the last chunk's answer takes longer. */
#define UPLOAD_TIMEOUT 300000

/* How often a chunk is tried again before it is left to the caller's retry. */
#define CHUNK_TRIES 5

/* The service's words for "go on". */
#define STATUS_RESUME 308

/*
 * A file for a table, in the current context.  truncate: the table's rows go.
 * Nothing is sent yet.
 */
BqUpload *
resync_bq_upload_make(BqDestination *dest, const char *table, JsonNode *schema, bool truncate,
					  const char *id)
{
	BqUpload *upload = palloc0(sizeof(BqUpload));
	JsonNode *job = resync_json_make();
	JsonNode *targets;
	Size	  size = (Size) resync_copier_buffer * 1024 / BQ_CHUNK_UNIT * BQ_CHUNK_UNIT;

	resync_json_set_text(job, "jobReference.projectId", dest->project);
	resync_json_set_text(job, "jobReference.location", dest->location);
	resync_json_set_string(job, "jobReference.jobId", id);
	resync_bq_set_table(dest, job, "configuration.load.destinationTable", table);
	resync_json_set_string(job, "configuration.load.sourceFormat", "AVRO");
	resync_json_set_string(job, "configuration.load.createDisposition", "CREATE_NEVER");
	resync_json_set_string(job, "configuration.load.writeDisposition",
						   truncate ? "WRITE_TRUNCATE" : "WRITE_APPEND");
	resync_json_set_bool(job, "configuration.load.useAvroLogicalTypes", true);
	resync_json_set_node(job, "configuration.load.schema", schema);
	targets = resync_json_set_array(job, "configuration.load.decimalTargetTypes");
	resync_json_append_string(targets, "NUMERIC");
	resync_json_append_string(targets, "BIGNUMERIC");

	upload->dest = dest;
	upload->context = CurrentMemoryContext;
	upload->job = job;
	upload->id = pstrdup(id);
	upload->size = Max(size, BQ_CHUNK_UNIT);
	upload->chunk = MemoryContextAllocHuge(CurrentMemoryContext, upload->size);
	return upload;
}

/*
 * The session that the service gives.  False: a job with that id is there
 * already.  The session may be at another host of the service's.
 */
static bool
begin_session(BqUpload *upload)
{
	BqDestination *dest = upload->dest;
	HttpRequest	   request = {0};
	HttpOptions	   options = {0};
	HttpResponse  *response;
	const char	  *location;
	MemoryContext  old;

	request.method = "POST";
	request.url = psprintf("%s/upload/bigquery/v2/projects/%s/jobs?uploadType=resumable",
						   dest->prefix, resync_http_escape(dest->project));
	request.headers = list_make3(resync_bq_authorization(dest), "Content-Type: application/json",
								 "X-Upload-Content-Type: application/octet-stream");
	request.body = resync_json_text(upload->job);
	request.body_len = strlen(request.body);
	request.timeout_ms = UPLOAD_TIMEOUT;
	response = resync_http_call(dest->http, &request);
	if (response->status == 409)
		return false;
	if (response->status != 200)
		resync_bq_raise_response(response);
	location = resync_http_header(response, "Location");
	if (location == NULL)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("the server does not answer as BigQuery does")));
	old = MemoryContextSwitchTo(upload->context);
	upload->session = resync_http_parse_url(location, dest->options.service, &options);
	if (options.tls == dest->options.tls && options.port == dest->options.port &&
		pg_strcasecmp(options.host, dest->options.host) == 0)
		upload->http = dest->http;
	else if (!options.tls && dest->options.tls)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("BigQuery wants an upload without TLS")));
	else
	{
		upload->http = resync_http_open(upload->context, &options);
	}
	MemoryContextSwitchTo(old);
	return true;
}

/* range: of Content-Range.  NULL: the connection was lost. */
static HttpResponse *
put_range(BqUpload *upload, const char *range, const char *data, Size len)
{
	HttpRequest request = {0};
	HttpResponse *volatile response = NULL;
	MemoryContext context = CurrentMemoryContext;

	request.method = "PUT";
	request.url = upload->session;
	request.headers = list_make2(resync_bq_authorization(upload->dest),
								 psprintf("Content-Range: bytes %s", range));
	request.body = data;
	request.body_len = len;
	request.timeout_ms = UPLOAD_TIMEOUT;
	PG_TRY();
	{
		response = resync_http_call(upload->http, &request);
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

/* May the same be sent again? */
static bool
is_passing(int status)
{
	return status >= 500 || status == 408 || status == 429 || status == 401;
}

/* How many bytes of the file the service has, by a 308's Range. */
static int64
range_end(const HttpResponse *response)
{
	const char *range = resync_http_header(response, "Range");
	const char *dash = range != NULL ? strrchr(range, '-') : NULL;

	return dash != NULL ? strtoll(dash + 1, NULL, 10) + 1 : 0;
}

/* The service has the file up to there: forget that much of the chunk. */
static void
acknowledge(BqUpload *upload, int64 end)
{
	int64 n = end - upload->offset;

	if (n < 0 || n > (int64) upload->used)
		ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
						errmsg("BigQuery has lost a part of an upload")));
	memmove(upload->chunk, upload->chunk + n, upload->used - n);
	upload->used -= n;
	upload->offset = end;
}

/*
 * Send the chunk; last: the file ends with it.  Returns the answer to the whole
 * file, or NULL: it is not at its end, or the answer is lost for good (last).
 */
static HttpResponse *
send_chunk(BqUpload *upload, bool last)
{
	HttpResponse *response;
	bool		  probe = false;

	for (int tries = 1;;)
	{
		char *total = last ? psprintf(INT64_FORMAT, upload->offset + (int64) upload->used)
						   : pstrdup("*");

		if (probe || upload->used == 0)
			response = put_range(upload, psprintf("*/%s", total), NULL, 0);
		else
			response = put_range(upload,
								 psprintf(INT64_FORMAT "-" INT64_FORMAT "/%s", upload->offset,
										  upload->offset + (int64) upload->used - 1, total),
								 upload->chunk, upload->used);
		RESYNC_DEBUG_POINT("bq_after_chunk");
		if (response != NULL && response->status == STATUS_RESUME)
		{
			int64 end = range_end(response);
			bool  moved = end > upload->offset;

			acknowledge(upload, end);
			if (!last && upload->used < upload->size)
				return NULL;
			/* taken in part, or asked: the rest goes on */
			probe = false;
			if (moved)
				continue;
		}
		else if (response != NULL && !is_passing(response->status))
			return response;
		if (++tries > CHUNK_TRIES)
		{
			if (last)
				return NULL;
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
							errmsg("an upload to BigQuery does not come on")));
		}
		if (response != NULL && response->status == 401)
			resync_bq_forget_token(upload->dest);
		resync_wait_sleep(resync_retry_delay(0, tries));
		probe = true;
	}
}

/*
 * The service does not take the file.  One that has forgotten the session is to
 * be sent the whole file again.
 */
static void
pg_attribute_noreturn() raise_refused(const HttpResponse *response)
{
	if (response->status == 404 || response->status == 410)
		ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
						errmsg("BigQuery does not know an upload any more")));
	resync_bq_raise_response(response);
}

/* An AvroWriteFn. */
void
resync_bq_upload_put(void *arg, const char *data, Size len)
{
	BqUpload *upload = arg;

	while (len > 0)
	{
		Size		  n = Min(len, upload->size - upload->used);
		HttpResponse *response;

		memcpy(upload->chunk + upload->used, data, n);
		upload->used += n;
		data += n;
		len -= n;
		/* the last byte of the file may come yet: a full chunk waits for it */
		if (upload->used < upload->size || len == 0)
			continue;
		if (upload->session == NULL && !begin_session(upload))
			ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
							errmsg("BigQuery has a job \"%s\" already", upload->id)));
		response = send_chunk(upload, false);
		if (response != NULL)
			raise_refused(response);
	}
}

JsonNode *
resync_bq_upload_close(BqUpload *upload, bool *known)
{
	HttpResponse *response = NULL;
	JsonNode	 *job = NULL;

	*known = upload->session == NULL && !begin_session(upload);
	if (!*known)
	{
		response = send_chunk(upload, true);
		*known = response != NULL && response->status == 409;
	}
	if (response != NULL && response->status == 200)
		job = resync_json_parse(response->body.data, response->body.len, 64, NULL);
	if (job == NULL)
		job = resync_bq_find_job(upload->dest, upload->id);
	if (job == NULL && response != NULL)
		raise_refused(response);
	if (job == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE), errmsg("an upload to BigQuery was lost")));
	return job;
}
