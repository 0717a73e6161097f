/*
 * store.c
 *		Files into an object store: S3, Azure's blobs, Google's storage.
 *
 * Called by workers, through a destination that stages files.  A file goes with
 * one request, and is in memory.  Waits listen to the latch (http.c).  Secrets are
 * in a memory context of the store's own, and overwritten when it goes.
 */
#include "postgres.h"

#include "net/store.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <time.h>

#include "utils/memutils.h"

/* Milliseconds without a sign of life. */
#define PUT_TIMEOUT 300000

#define DIGEST_LEN 32

/* "20250102T030405Z" and its NUL; the date alone is the first eight. */
#define STAMP_LEN 17
#define DATE_LEN 8

struct Store
{
	StorePlace			  place;
	HttpConn			 *http;
	char				 *host; /* as the header Host has it */
	char				 *root; /* of paths: "/bucket/prefix", escaped */
	MemoryContextCallback callback;
};

/* ---- small things ---- */

static char *
copy_or_null(const char *text)
{
	return text != NULL && text[0] != '\0' ? pstrdup(text) : NULL;
}

static void
cleanse(const char *text)
{
	if (text != NULL)
		explicit_bzero(unconstify(char *, text), strlen(text));
}

static void
forget_secrets(void *arg)
{
	Store *store = arg;

	cleanse(store->place.secret);
	cleanse(store->place.token);
	cleanse(store->place.presigned);
}

/* A key as part of a path: "/" divides it. */
static char *
escape_key(const char *key)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (;;)
	{
		size_t len = strcspn(key, "/");

		appendStringInfoString(&buf, resync_http_escape(pnstrdup(key, len)));
		if (key[len] == '\0')
			return buf.data;
		appendStringInfoChar(&buf, '/');
		key += len + 1;
	}
}

static void
digest(const char *data, Size len, unsigned char *out)
{
	if (EVP_Digest(data, len, out, NULL, EVP_sha256(), NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not compute a file's digest")));
}

static char *
hex(const unsigned char *bytes)
{
	char *text = palloc(DIGEST_LEN * 2 + 1);

	for (int i = 0; i < DIGEST_LEN; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	return text;
}

/* The digest of a file as Snowflake's drivers note it. */
static char *
digest_base64(const char *data, Size len)
{
	unsigned char bytes[DIGEST_LEN];
	char		 *text = palloc(DIGEST_LEN * 2);

	digest(data, len, bytes);
	(void) EVP_EncodeBlock((unsigned char *) text, bytes, DIGEST_LEN);
	return text;
}

/* ---- opening ---- */

/* Host and path by the provider's rules, or by an endpoint with its scheme. */
static void
find_origin(Store *store, HttpOptions *options)
{
	const StorePlace *place = &store->place;
	const char		 *path = psprintf("/%s/%s", place->bucket, place->prefix);

	if (place->presigned != NULL)
	{
		store->root = resync_http_parse_url(place->presigned, place->service, options);
		store->host = pstrdup(options->host);
		return;
	}
	if (place->endpoint != NULL && strstr(place->endpoint, "://") != NULL)
	{
		bool usual;

		(void) resync_http_parse_url(place->endpoint, place->service, options);
		usual = options->port == (options->tls ? 443 : 80);
		store->host = usual ? pstrdup(options->host)
							: psprintf("%s:%d", options->host, options->port);
		store->root = escape_key(path);
		return;
	}
	options->tls = true;
	options->port = 443;
	options->service = place->service;
	switch (place->kind)
	{
		case STORE_S3:
			store->host = place->endpoint != NULL
							  ? pstrdup(place->endpoint)
							  : psprintf("s3.%s.amazonaws.com%s", place->region,
										 strncmp(place->region, "cn-", 3) == 0 ? ".cn" : "");
			/* certificates have no name for a bucket with dots */
			if (strchr(place->bucket, '.') == NULL)
			{
				store->host = psprintf("%s.%s", place->bucket, store->host);
				path = psprintf("/%s", place->prefix);
			}
			break;
		case STORE_AZURE:
			store->host = psprintf("%s.%s", place->account,
								   place->endpoint != NULL ? place->endpoint
														   : "blob.core.windows.net");
			break;
		case STORE_GCS:
			store->host = pstrdup(place->endpoint != NULL ? place->endpoint
														  : "storage.googleapis.com");
			break;
	}
	options->host = store->host;
	store->root = escape_key(path);
}

Store *
resync_store_open(MemoryContext context, const StorePlace *place)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Store		 *store = palloc0(sizeof(Store));
	HttpOptions	  options = {0};

	store->place.kind = place->kind;
	store->place.bucket = pstrdup(place->bucket);
	store->place.prefix = pstrdup(place->prefix);
	store->place.endpoint = copy_or_null(place->endpoint);
	store->place.region = pstrdup(place->region != NULL ? place->region : "us-east-1");
	store->place.account = copy_or_null(place->account);
	store->place.key_id = copy_or_null(place->key_id);
	store->place.service = pstrdup(place->service);
	store->callback.func = forget_secrets;
	store->callback.arg = store;
	MemoryContextRegisterResetCallback(context, &store->callback);
	store->place.secret = copy_or_null(place->secret);
	store->place.token = copy_or_null(place->token);
	store->place.presigned = copy_or_null(place->presigned);
	find_origin(store, &options);
	store->http = resync_http_open(context, &options);
	MemoryContextSwitchTo(old);
	return store;
}

/* ---- S3's signature ---- */

static void
hmac(const unsigned char *key, int key_len, const char *text, unsigned char *out)
{
	if (HMAC(EVP_sha256(), key, key_len, (const unsigned char *) text, strlen(text), out, NULL) ==
		NULL)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not sign a request")));
}

/*
 * The value of header Authorization for a PUT.  headers: lines "name:value\n",
 * names: their names divided by ";", both in the order of the names.
 */
static char *
sign(const Store *store, const char *path, const char *headers, const char *names,
	 const char *stamp)
{
	const char	 *scope = psprintf("%.*s/%s/s3/aws4_request", DATE_LEN, stamp, store->place.region);
	char		 *request = psprintf("PUT\n%s\n\n%s\n%s\nUNSIGNED-PAYLOAD", path, headers, names);
	char		 *secret = psprintf("AWS4%s", store->place.secret);
	unsigned char bytes[DIGEST_LEN];
	char		 *text;

	digest(request, strlen(request), bytes);
	text = psprintf("AWS4-HMAC-SHA256\n%s\n%s\n%s", stamp, scope, hex(bytes));
	hmac((unsigned char *) secret, strlen(secret), pnstrdup(stamp, DATE_LEN), bytes);
	cleanse(secret);
	hmac(bytes, DIGEST_LEN, store->place.region, bytes);
	hmac(bytes, DIGEST_LEN, "s3", bytes);
	hmac(bytes, DIGEST_LEN, "aws4_request", bytes);
	hmac(bytes, DIGEST_LEN, text, bytes);
	return psprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s",
					store->place.key_id, scope, names, hex(bytes));
}

static List *
s3_headers(const Store *store, const char *path, const char *data, Size len)
{
	char		  *sum = digest_base64(data, len);
	time_t		   now = time(NULL);
	char		   stamp[STAMP_LEN];
	struct tm	   tm;
	StringInfoData signed_headers;
	const char	  *names = "host;x-amz-content-sha256;x-amz-date;x-amz-meta-sfc-digest";
	List		  *headers;

	(void) gmtime_r(&now, &tm);
	(void) strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
	initStringInfo(&signed_headers);
	appendStringInfo(&signed_headers,
					 "host:%s\nx-amz-content-sha256:UNSIGNED-PAYLOAD\nx-amz-date:%s\n"
					 "x-amz-meta-sfc-digest:%s\n",
					 store->host, stamp, sum);
	headers = list_make3("x-amz-content-sha256: UNSIGNED-PAYLOAD",
						 psprintf("x-amz-date: %s", stamp),
						 psprintf("x-amz-meta-sfc-digest: %s", sum));
	if (store->place.token != NULL)
	{
		appendStringInfo(&signed_headers, "x-amz-security-token:%s\n", store->place.token);
		names = "host;x-amz-content-sha256;x-amz-date;x-amz-meta-sfc-digest;x-amz-security-token";
		headers = lappend(headers, psprintf("x-amz-security-token: %s", store->place.token));
	}
	return lappend(headers, psprintf("Authorization: %s",
									 sign(store, path, signed_headers.data, names, stamp)));
}

/* ---- files ---- */

HttpResponse *
resync_store_put(Store *store, const char *name, const char *data, Size len)
{
	const StorePlace *place = &store->place;
	const char		 *token = place->token != NULL ? place->token : "";
	char			 *path = psprintf("%s%s", store->root, escape_key(name));
	HttpRequest		  request = {.method = "PUT", .body = data, .body_len = len};

	request.url = path;
	request.timeout_ms = PUT_TIMEOUT;
	switch (place->kind)
	{
		case STORE_S3:
			request.headers = s3_headers(store, path, data, len);
			break;
		case STORE_AZURE:
			request.url = psprintf("%s?%s", path, token[0] == '?' ? token + 1 : token);
			request.headers = list_make2(
				"x-ms-blob-type: BlockBlob",
				psprintf("x-ms-meta-sfcdigest: %s", digest_base64(data, len)));
			break;
		case STORE_GCS:
			request.headers = list_make1(
				psprintf("x-goog-meta-sfc-digest: %s", digest_base64(data, len)));
			if (place->presigned != NULL)
				request.url = store->root;
			else
				request.headers = lappend(request.headers,
										  psprintf("Authorization: Bearer %s", token));
			break;
	}
	return resync_http_call(store->http, &request);
}

bool
resync_store_is_single(const Store *store)
{
	return store->place.presigned != NULL;
}

int64
resync_store_sent(const Store *store)
{
	return resync_http_sent(store->http);
}

char *
resync_store_error(const HttpResponse *response)
{
	const char *begin = response->body.len > 0 ? strstr(response->body.data, "<Code>") : NULL;
	const char *end = begin != NULL ? strstr(begin, "</Code>") : NULL;

	begin = begin != NULL ? begin + strlen("<Code>") : NULL;
	if (end == NULL || end - begin > 64 ||
		strspn(begin, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.") <
			(size_t) (end - begin))
		return NULL;
	return pnstrdup(begin, end - begin);
}
