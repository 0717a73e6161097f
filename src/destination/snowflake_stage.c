/*
 * snowflake_stage.c
 *		Files into a stage at Snowflake, and the COPY statements that read them.
 *
 * Called by copiers (partitions) and the streamer (staging tables).  The stage is
 * a temporary one of the session's, without encryption by the client, in whose
 * place in an object store the files are put: one PUT statement gives the
 * credentials for all of them, and is repeated when they have ended.  Or it is a
 * stage of the user's own (option stage), for which Snowflake gives no credentials,
 * so that the user does.  Files are named after what they belong to and their
 * number; a folder is used once.
 *
 * Memory: one file, at most resync.copier_buffer.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "net/jwt.h"
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

/* The URL of the user's stage. */
static char *
find_external(SfDestination *dest)
{
	const char *database = dest->external[0] ? dest->external[0] : dest->database;
	const char *schema = dest->external[1] ? dest->external[1] : dest->schema;
	SfResult   *res = resync_sf_try(
		  dest, psprintf("SHOW STAGES LIKE %s IN SCHEMA %s.%s", resync_sf_pattern(dest->external[2]),
						 resync_sf_ident(database), resync_sf_ident(schema)));

	for (int i = 0; res != NULL && i < res->nrows; i++)
	{
		char *name = resync_sf_column(res, i, "name");
		char *url = resync_sf_column(res, i, "url");

		if (name == NULL || strcmp(name, dest->external[2]) != 0 || url == NULL)
			continue;
		if (strncmp(url, "s3://", 5) == 0 || strncmp(url, "gcs://", 6) == 0 ||
			strncmp(url, "azure://", 8) == 0)
			return url;
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("there is no external stage %s at Snowflake", dest->stage),
			 errdetail("It does not exist, is not external, or role \"%s\" may not use it.",
					   dest->role),
			 errhint("Look at the server's option \"stage\", and grant USAGE on the stage to the "
					 "role.")));
	return NULL; /* keep compiler quiet */
}

/*
 * One of the user's own is looked for; else a temporary one is made, in our schema,
 * for this session.
 */
void
resync_sf_have_stage(SfDestination *dest)
{
	char *name;

	if (dest->has_stage)
		return;
	if (dest->external[2] != NULL)
		name = psprintf("%s.%s.%s",
						resync_sf_ident(dest->external[0] ? dest->external[0] : dest->database),
						resync_sf_ident(dest->external[1] ? dest->external[1] : dest->schema),
						resync_sf_ident(dest->external[2]));
	else
		name = resync_sf_own(dest, psprintf(SF_OWN_PREFIX "FILES_%08X", dest->nonce));
	if (dest->stage == NULL)
		dest->stage = MemoryContextStrdup(dest->head.context, name);
	if (dest->external[2] != NULL)
		(void) find_external(dest);
	else
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

/* "bucket/prefix" into place. */
static void
set_location(StorePlace *place, const char *location)
{
	place->bucket = pnstrdup(location, strcspn(location, "/"));
	place->prefix = strchr(location, '/') != NULL ? strchr(location, '/') + 1 : "";
	if (place->prefix[0] != '\0' && place->prefix[strlen(place->prefix) - 1] != '/')
		place->prefix = psprintf("%s/", place->prefix);
}

/* Ask for a right to put files into the stage; folder: "", or it begins with "/". */
static JsonNode *
ask_for_place(SfDestination *dest, const char *folder, const char *name)
{
	return resync_sf_data(dest, psprintf("PUT 'file:///resync/%s' @%s%s AUTO_COMPRESS = FALSE"
										 " SOURCE_COMPRESSION = GZIP OVERWRITE = TRUE PARALLEL = 1",
										 name, dest->stage, folder));
}

/*
 * A URL is good for one file, which is called by the last part of its name, in the
 * folder that the statement names: a folder of the local file is none there.
 */
static const char *
presigned_url(SfDestination *dest, const char *name)
{
	const char *slash = strrchr(name, '/');

	Assert(slash != NULL); /* file_name() */
	return get_info(ask_for_place(dest, psprintf("/%s", pnstrdup(name, slash - name)), slash + 1),
					"presignedUrl");
}

static bool
has_credentials(const StorePlace *place)
{
	if (place->kind == STORE_S3)
		return place->key_id[0] != '\0' && place->secret[0] != '\0';
	return place->token[0] != '\0' || (place->presigned != NULL && place->presigned[0] != '\0');
}

/* Snowflake gives credentials for the place of its own stage: good for all files. */
static void
ask_place(SfDestination *dest, const char *name, StorePlace *place)
{
	JsonNode   *data;
	const char *location;
	bool		encrypted = false;

	data = ask_for_place(dest, "", name);
	(void) resync_json_bool(data, "stageInfo.isClientSideEncrypted", &encrypted);
	location = get_info(data, "location");
	if (encrypted || location[0] == '\0')
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("Snowflake gives no place for files of stage %s", dest->stage)));
	place->kind = store_kind(data);
	set_location(place, location);
	place->endpoint = get_info(data, "endPoint");
	place->endpoint = place->endpoint[0] != '\0' ? place->endpoint : NULL;
	place->region = get_info(data, "region");
	place->account = get_info(data, "storageAccount");
	place->key_id = get_info(data, "creds.AWS_KEY_ID");
	place->secret = get_info(data, "creds.AWS_SECRET_KEY");
	if (place->kind == STORE_S3)
		place->token = get_info(data, "creds.AWS_TOKEN");
	else if (place->kind == STORE_AZURE)
		place->token = get_info(data, "creds.AZURE_SAS_TOKEN");
	else
	{
		place->token = get_info(data, "creds.GCS_ACCESS_TOKEN");
		if (place->token[0] == '\0')
			place->presigned = presigned_url(dest, name);
	}
	if (!has_credentials(place))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("Snowflake gives no credentials for files of stage %s", dest->stage)));
}

/*
 * "account.blob.core.windows.net/container/path".  Whoever may change the stage names
 * the host, and the token is the user's: without an endpoint in the options it goes
 * to Microsoft's hosts alone.
 */
static void
set_azure(SfDestination *dest, const char *host, StorePlace *place)
{
	static const char *const hosts[] = {"blob.core.windows.net", "blob.core.usgovcloudapi.net",
										"blob.core.chinacloudapi.cn"};
	size_t					 len = strcspn(host, "/");
	const char				*dot = memchr(host, '.', len);
	bool					 known = place->endpoint != NULL;

	for (int i = 0; dot != NULL && i < lengthof(hosts); i++)
		known = known || (strlen(hosts[i]) == len - (dot + 1 - host) &&
						  strncmp(dot + 1, hosts[i], strlen(hosts[i])) == 0);
	if (dot == NULL || !known)
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("stage %s is at an unknown host", dest->stage),
						errhint("If it is the right one, set the server's option "
								"\"stage_endpoint\".")));
	place->kind = STORE_AZURE;
	place->account = pnstrdup(host, dot - host);
	if (place->endpoint == NULL)
		place->endpoint = pnstrdup(dot + 1, len - (dot + 1 - host));
	set_location(place, host + len + (host[len] == '/'));
}

/* The place of the user's stage, by the user's own credentials; returns the secret. */
static char *
own_place(SfDestination *dest, StorePlace *place)
{
	char *url = find_external(dest);
	char *secret = resync_destination_password_file(dest->stage_secret_file);

	place->endpoint = dest->stage_endpoint;
	place->region = dest->stage_region;
	if (strncmp(url, "azure://", 8) == 0)
	{
		set_azure(dest, url + 8, place);
		place->token = secret;
		return secret;
	}
	/* Google's storage takes S3's signatures, by an HMAC key */
	place->kind = STORE_S3;
	if (strncmp(url, "gcs://", 6) == 0)
	{
		if (place->endpoint == NULL)
			place->endpoint = "storage.googleapis.com";
		if (place->region == NULL)
			place->region = "auto";
	}
	place->key_id = dest->stage_key_id;
	place->secret = secret;
	set_location(place, strstr(url, "://") + 3);
	return secret;
}

/* Where files of the stage are put, as of now. */
static void
open_store(SfDestination *dest, const char *name)
{
	StorePlace place = {.service = "the stage's object store"};
	char	  *secret = NULL;

	resync_sf_have_stage(dest);
	if (dest->external[2] != NULL)
		secret = own_place(dest, &place);
	else
		ask_place(dest, name, &place);
	if (dest->store != NULL)
		dest->sent += resync_store_sent(dest->store);
	dest->store = NULL;
	MemoryContextReset(dest->store_context);
	dest->store = resync_store_open(dest->store_context, &place);
	resync_jwt_forget(secret);
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
		if (response != NULL && wants_credentials(response) && !renewed &&
			dest->external[2] == NULL)
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
	files->folder = psprintf("resync/%08x/" UINT64_FORMAT "/", dest->nonce, ++dest->names);
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
