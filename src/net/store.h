/*
 * store.h
 *		Files into an object store: S3, Azure's blobs, Google's storage.
 *
 * Sources: AWS "Signature Version 4" (payload unsigned, which TLS protects), REST
 * API of Azure "Put Blob", XML API of Google Cloud Storage "PUT Object".
 *
 * Includes nothing of ours but net/http.h.
 */
#ifndef RESYNC_STORE_H
#define RESYNC_STORE_H

#include "postgres.h"

#include "net/http.h"

typedef enum StoreKind
{
	STORE_S3,
	STORE_AZURE,
	STORE_GCS
} StoreKind;

/* Where files go, and by which right.  Holds secrets: never log it. */
typedef struct StorePlace
{
	StoreKind	kind;
	const char *bucket;	  /* Azure: the container */
	const char *prefix;	  /* of the files' keys: "", or it ends with "/" */
	const char *endpoint; /* NULL: the provider's; with a scheme: at just that
						   * place, without the bucket in the host's name */
	const char *region;	  /* S3 */
	const char *account;  /* Azure */

	/* S3: key, its secret, and a session's token or NULL; Azure: a SAS as token;
	 * GCS: an access token */
	const char *key_id;
	const char *secret;
	const char *token;
	const char *presigned; /* GCS: URL of this one file, instead of a token */
	const char *service;   /* in messages */
} StorePlace;

typedef struct Store Store;

/*
 * In context, which owns its connection; place is copied, and cleansed when
 * context is reset or deleted.  Nothing is sent yet.
 */
extern Store *resync_store_open(MemoryContext context, const StorePlace *place);

/*
 * PUT a whole file, which replaces one of that name.  Returns the answer,
 * whatever its status (2xx: it is there); raises what resync_http_call() does.
 */
extern HttpResponse *resync_store_put(Store *store, const char *name, const char *data, Size len);

/* Is it good for one file alone? */
extern bool resync_store_is_single(const Store *store);

/* Bytes of files sent so far. */
extern int64 resync_store_sent(const Store *store);

/* The code in an error's answer ("ExpiredToken"), or NULL; in the current context. */
extern char *resync_store_error(const HttpResponse *response);

#endif /* RESYNC_STORE_H */
