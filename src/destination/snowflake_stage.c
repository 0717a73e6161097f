/*
 * snowflake_stage.c
 *		Files into a stage at Snowflake, and the COPY statements that read them.
 *
 * Called by copiers (partitions) and the streamer (staging tables).  The stage is
 * a temporary one of the session's, without encryption by the client, in whose
 * place in an object store the files are put: one PUT statement gives the
 * credentials for all of them, and is repeated when they have ended.  Files are
 * named after what they belong to and their number; a folder is used once.
 *
 * Memory: one file, at most resync.copier_buffer.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "net/retry.h"
#include "net/wait.h"
#include "utils/memutils.h"

/* Bytes of a file at most: larger ones are read no faster. */
#define MAX_FILE_BYTES (100 * 1024 * 1024)

/* How often a file is sent before it is left to the caller's retry. */
#define MAX_TRIES 7

/* The format of our files (encode/csv.h). */
#define FILE_FORMAT                                                                     \
	"(TYPE = CSV COMPRESSION = GZIP FIELD_DELIMITER = ',' RECORD_DELIMITER = '\\n'"     \
	" FIELD_OPTIONALLY_ENCLOSED_BY = '\"' ESCAPE = NONE ESCAPE_UNENCLOSED_FIELD = NONE" \
	" NULL_IF = () EMPTY_FIELD_AS_NULL = TRUE)"

/* ---------------------------------------------------------------------
 * The stage
 * ------------------------------------------------------------------ */

/* In our schema, for this session. */
void
resync_sf_have_stage(SfDestination *dest)
{
	if (dest->has_stage)
		return;
	if (dest->stage == NULL)
		dest->stage = MemoryContextStrdup(
			dest->head.context,
			resync_sf_own(dest, psprintf(SF_OWN_PREFIX "FILES_%08X", dest->nonce)));
	(void) resync_sf_query(dest, psprintf("CREATE OR REPLACE TEMPORARY STAGE %s ENCRYPTION ="
										  " (TYPE = 'SNOWFLAKE_SSE')",
										  dest->stage));
	dest->has_stage = true;
}

static const char *
get_info(JsonNode *data, const char *member)
{
	const char *text = resync_json_string(data, psprintf("stageInfo.%s", member));

	return text != NULL ? text : "";
}

static StoreKind
store_kind(JsonNode *data)
{
	const char *type = get_info(data, "locationType");

	if (strcmp(type, "S3") == 0)
		return STORE_S3;
	if (strcmp(type, "AZURE") == 0)
		return STORE_AZURE;
	if (strcmp(type, "GCS") == 0)
		return STORE_GCS;
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					errmsg("the stage at Snowflake is at a place of unknown kind \"%s\"", type)));
	return STORE_S3; /* keep compiler quiet */
}

/* Ask for credentials of the place that files of the stage are put in. */
static void
open_store(SfDestination *dest, const char *name)
{
	JsonNode   *data;
	StorePlace	place = {0};
	const char *location;
	bool		encrypted = false;

	resync_sf_have_stage(dest);
	data = resync_sf_data(dest, psprintf("PUT 'file:///resync/%s' @%s AUTO_COMPRESS = FALSE"
										 " SOURCE_COMPRESSION = GZIP OVERWRITE = TRUE PARALLEL = 1",
										 name, dest->stage));
	(void) resync_json_bool(data, "stageInfo.isClientSideEncrypted", &encrypted);
	location = get_info(data, "location");
	if (encrypted || location[0] == '\0')
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("Snowflake gives no place for files of stage %s", dest->stage)));
	place.kind = store_kind(data);
	place.bucket = pnstrdup(location, strcspn(location, "/"));
	place.prefix = strchr(location, '/') != NULL ? strchr(location, '/') + 1 : "";
	if (place.prefix[0] != '\0' && place.prefix[strlen(place.prefix) - 1] != '/')
		place.prefix = psprintf("%s/", place.prefix);
	place.endpoint = get_info(data, "endPoint");
	place.endpoint = place.endpoint[0] != '\0' ? place.endpoint : NULL;
	place.region = get_info(data, "region");
	place.account = get_info(data, "storageAccount");
	place.key_id = get_info(data, "creds.AWS_KEY_ID");
	place.secret = get_info(data, "creds.AWS_SECRET_KEY");
	place.service = "the stage's object store";
	if (place.kind == STORE_S3)
		place.token = get_info(data, "creds.AWS_TOKEN");
	else if (place.kind == STORE_AZURE)
		place.token = get_info(data, "creds.AZURE_SAS_TOKEN");
	else
	{
		place.token = get_info(data, "creds.GCS_ACCESS_TOKEN");
		if (place.token[0] == '\0')
			place.presigned = get_info(data, "presignedUrl");
	}
	if (dest->store != NULL)
		dest->sent += resync_store_sent(dest->store);
	dest->store = NULL;
	MemoryContextReset(dest->store_context);
	dest->store = resync_store_open(dest->store_context, &place);
}

int64
resync_sf_sent(const SfDestination *dest)
{
	return dest->sent + (dest->store != NULL ? resync_store_sent(dest->store) : 0);
}

/* NULL: the connection was lost. */
static HttpResponse *
put_or_lose(Store *store, const char *name, const char *data, Size len, bool last)
{
	HttpResponse *volatile response = NULL;
	MemoryContext context = CurrentMemoryContext;

	if (last)
		return resync_store_put(store, name, data, len);
	PG_TRY();
	{
		response = resync_store_put(store, name, data, len);
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

/* Credentials that have ended look different everywhere. */
static bool
wants_credentials(const HttpResponse *response)
{
	return response->status == 400 || response->status == 401 || response->status == 403;
}

/* A file into the stage.  One that is there already is replaced. */
static void
put_file(SfDestination *dest, const char *name, const char *data, Size len)
{
	bool renewed = false;

	for (int tries = 1;; tries++)
	{
		bool		  last = tries >= MAX_TRIES;
		HttpResponse *response;

		if (dest->store == NULL)
			open_store(dest, name);
		response = put_or_lose(dest->store, name, data, len, last);
		RESYNC_DEBUG_POINT("sf_after_file");
		if (response != NULL && response->status < 300)
			break;
		if (response != NULL && wants_credentials(response) && !renewed)
		{
			open_store(dest, name);
			renewed = true;
			continue;
		}
		if (last || (response != NULL && response->status < 500 && response->status != 408 &&
					 response->status != 429))
		{
			char *code = response != NULL ? resync_store_error(response) : NULL;

			ereport(
				ERROR,
				(errcode(response != NULL && response->status < 500 ? ERRCODE_FDW_ERROR
																	: ERRCODE_CONNECTION_FAILURE),
				 errmsg("the stage's object store does not take a file"),
				 errdetail("HTTP status %d, code %s.", response != NULL ? response->status : 0,
						   code != NULL ? code : "none")));
		}
		resync_wait_sleep(resync_retry_delay(0, tries));
	}
	dest->staged = true;
	/* a URL that is good for one file alone */
	if (dest->store != NULL && resync_store_is_single(dest->store))
	{
		dest->sent += resync_store_sent(dest->store);
		dest->store = NULL;
	}
}

/* ---------------------------------------------------------------------
 * Files
 * ------------------------------------------------------------------ */

void
resync_sf_files_make(SfDestination *dest, const ResyncTable *table, SfFiles *files)
{
	memset(files, 0, sizeof(*files));
	files->dest = dest;
	files->csv = resync_csv_make(table, Min((Size) resync_copier_buffer * 1024, MAX_FILE_BYTES));
	files->folder = psprintf("%08x/" UINT64_FORMAT "/", dest->nonce, ++dest->names);
	dest->staged = false;
}

static char *
file_name(const SfFiles *files, int i)
{
	return psprintf("%s%d.csv.gz", files->folder, i);
}

void
resync_sf_files_store(SfFiles *files)
{
	const char *data;
	Size		len;

	if (resync_csv_rows(files->csv) == 0)
		return;
	resync_csv_end(files->csv, &data, &len);
	put_file(files->dest, file_name(files, files->nfiles), data, len);
	files->nfiles++;
	files->rows += resync_csv_rows(files->csv);
	resync_csv_begin(files->csv);
}

List *
resync_sf_files_copy(SfFiles *files, const char *target, const char *columns, const char *values)
{
	List *statements = NIL;

	for (int first = 0; first < files->nfiles; first += SF_MAX_FILES)
	{
		StringInfoData sql;

		initStringInfo(&sql);
		appendStringInfo(&sql, "COPY INTO %s (%s) FROM (SELECT %s FROM @%s) FILES = (", target,
						 columns, values, files->dest->stage);
		for (int i = first; i < Min(first + SF_MAX_FILES, files->nfiles); i++)
			appendStringInfo(&sql, "%s%s", i > first ? ", " : "",
							 resync_sf_literal(file_name(files, i)));
		appendStringInfoString(&sql, ") FILE_FORMAT = " FILE_FORMAT
									 " ON_ERROR = ABORT_STATEMENT PURGE = TRUE");
		statements = lappend(statements, sql.data);
	}
	return statements;
}
