/*
 * bigquery_auth.c
 *		The service account's key file, and access tokens for it.
 *
 * Called before a request, in any process that has a BigQuery connection.  The
 * file is read whenever a token is wanted, so that a key that was exchanged is
 * found; nothing of it is kept.  A token is good for an hour, is renewed before
 * its end, and belongs to the connection.
 */
#include "postgres.h"

#include "destination/bigquery.h"

#include <sys/stat.h>
#include <time.h>

#include "mb/pg_wchar.h"
#include "net/jwt.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define SCOPE "https://www.googleapis.com/auth/bigquery"
#define TOKEN_URI "https://oauth2.googleapis.com/token"

/* Seconds: an assertion's life, and how long before its end a token is renewed. */
#define ASSERTION_LIFE 3600
#define RENEW_BEFORE 300

#define TOKEN_TIMEOUT 60000

static char *
require_string(JsonNode *account, const char *name, const char *path)
{
	const char *value = resync_json_string(account, name);

	if (value == NULL || value[0] == '\0')
		ereport(ERROR, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
						errmsg("service account file \"%s\" has no \"%s\"", path, name),
						errhint("Use the JSON key file of a service account as Google gives it.")));
	return pstrdup(value);
}

/* The signed claim to be the account, in the current context; secret. */
static char *
make_assertion(JsonNode *account, const char *path, const char *token_uri)
{
	char	   *pem = require_string(account, "private_key", path);
	const char *key_id = resync_json_string(account, "private_key_id");
	JsonNode   *header = resync_json_make();
	JsonNode   *claims = resync_json_make();
	JwtKey	   *key;
	char	   *assertion;
	int64		now = (int64) time(NULL);

	resync_json_set_string(header, "alg", "RS256");
	resync_json_set_string(header, "typ", "JWT");
	if (key_id != NULL)
		resync_json_set_string(header, "kid", key_id);
	resync_json_set_string(claims, "iss", require_string(account, "client_email", path));
	resync_json_set_string(claims, "scope", SCOPE);
	resync_json_set_string(claims, "aud", token_uri);
	resync_json_set_int64(claims, "iat", now);
	resync_json_set_int64(claims, "exp", now + ASSERTION_LIFE);
	key = resync_jwt_read_key(CurrentMemoryContext, pem, strlen(pem), NULL,
							  "the private key of the service account");
	assertion = resync_jwt_sign(key, resync_json_text(header), resync_json_text(claims));
	resync_jwt_forget(pem);
	return assertion;
}

/* What the token endpoint says against us. */
static void
pg_attribute_noreturn() raise_refused(const HttpResponse *response, JsonNode *answer)
{
	char *error = resync_json_get_text(answer, "error");
	char *text = resync_json_get_text(answer, "error_description");

	if (response->status >= 500 || response->status == 429)
		ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
						errmsg("Google gives no access token at the moment: HTTP status %d",
							   response->status)));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
			 errmsg("Google refused the service account: %s", error != NULL ? error : "no reason"),
			 text != NULL ? errdetail("%s", text) : errdetail("HTTP status %d.", response->status),
			 errhint("Look at the key file, whether the key is still enabled, and this server's "
					 "clock.")));
}

/* A new token into dest. */
static void
fetch_token(BqDestination *dest)
{
	Size		  len;
	char		 *text = resync_destination_read_file(dest->key_file, "service account file", &len);
	JsonNode	 *account = resync_json_parse(text, len, 8, NULL);
	const char	 *token_uri = resync_json_string(account, "token_uri");
	HttpOptions	  options = {0};
	HttpRequest	  request = {0};
	HttpResponse *response;
	JsonNode	 *answer;
	const char	 *token;
	char		 *assertion;
	int64		  lifetime;

	explicit_bzero(text, len);
	if (account == NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
						errmsg("service account file \"%s\" is not valid JSON", dest->key_file)));
	if (token_uri == NULL)
		token_uri = TOKEN_URI;
	request.url = resync_http_parse_url(token_uri, "Google's token service", &options);
	/* an assertion in clear text is as good as a token */
	if (!options.tls && dest->options.tls)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("token_uri of service account file \"%s\" is not https", dest->key_file)));
	assertion = make_assertion(account, dest->key_file, token_uri);
	request.method = "POST";
	request.headers = list_make1("Content-Type: application/x-www-form-urlencoded");
	request.body = psprintf("grant_type=urn%%3Aietf%%3Aparams%%3Aoauth%%3Agrant-type%%3Ajwt-bearer"
							"&assertion=%s",
							assertion);
	request.body_len = strlen(request.body);
	request.timeout_ms = TOKEN_TIMEOUT;
	response = resync_http_call(resync_http_open(CurrentMemoryContext, &options), &request);
	resync_jwt_forget(assertion);
	explicit_bzero(unconstify(char *, request.body), request.body_len);

	answer = resync_json_parse(response->body.data, response->body.len, 8, NULL);
	if (response->status != 200)
		raise_refused(response, answer);
	token = resync_json_string(answer, "access_token");
	if (token == NULL || strpbrk(token, "\r\n") != NULL)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("Google's token service gave no access token")));
	if (!resync_json_int64(answer, "expires_in", &lifetime))
		lifetime = ASSERTION_LIFE;
	resync_bq_forget_token(dest);
	dest->token = MemoryContextStrdup(dest->head.context, token);
	dest->token_expires = GetCurrentTimestamp() +
						  (lifetime - Min(RENEW_BEFORE, lifetime / 2)) * USECS_PER_SEC;
	explicit_bzero(response->body.data, response->body.len);
}

char *
resync_bq_authorization(BqDestination *dest)
{
	if (dest->token == NULL || GetCurrentTimestamp() >= dest->token_expires)
	{
		MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "resync token",
													  ALLOCSET_SMALL_SIZES);
		MemoryContext old = MemoryContextSwitchTo(context);

		fetch_token(dest);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
	}
	return psprintf("Authorization: Bearer %s", dest->token);
}

/* The service does not take it any more. */
void
resync_bq_forget_token(BqDestination *dest)
{
	resync_jwt_forget(dest->token);
	dest->token = NULL;
}
