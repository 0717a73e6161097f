/*
 * jwt.c
 *		JSON Web Tokens with RS256 (RFC 7515, RFC 7519; RSASSA-PKCS1-v1_5 with
 *		SHA-256: RFC 7518, section 3.3), by OpenSSL's EVP interface.
 *
 * Called by destinations, in any process, when a token is to be had; a
 * signature takes about a millisecond.  No locks, no transaction, no network.
 *
 * Nothing is raised and nothing palloc'ed between the making of an OpenSSL
 * object and its freeing, or its binding to a memory context.  OpenSSL's texts
 * for its errors are constants; the data that an error may carry is not shown.
 */
#include "postgres.h"

#include "net/jwt.h"

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "utils/memutils.h"

/* RFC 7518: a key of this size or larger must be used. */
#define MIN_KEY_BITS 2048

#define SHA256_LEN 32

struct JwtKey
{
	EVP_PKEY			 *pkey;
	MemoryContextCallback callback;
};

/* What OpenSSL asks for the passphrase with. */
typedef struct PassphraseQuestion
{
	const char *passphrase;
	bool		asked;
} PassphraseQuestion;

/* ---- texts ---- */

void
resync_jwt_forget(char *text)
{
	if (text == NULL)
		return;
	OPENSSL_cleanse(text, strlen(text));
	pfree(text);
}

void
resync_base64url(StringInfo buf, const void *data, Size len)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	const uint8 *p = data;

	for (; len > 0; p += 3)
	{
		Size   n = Min(len, 3);
		uint32 word = (uint32) p[0] << 16;

		if (n > 1)
			word |= (uint32) p[1] << 8;
		if (n > 2)
			word |= p[2];
		for (int i = 0; i <= n; i++)
			appendStringInfoChar(buf, alphabet[(word >> (18 - 6 * i)) & 0x3f]);
		len -= n;
	}
}

/* ---- errors ---- */

/* The newest error's reason, a constant of OpenSSL's; empties its queue. */
static const char *
take_reason(void)
{
	unsigned long code = ERR_peek_last_error();
	const char	 *reason = code != 0 ? ERR_reason_error_string(code) : NULL;

	ERR_clear_error();
	return reason != NULL ? reason : "no reason given";
}

static void
raise_failure(const char *doing)
{
	const char *reason = take_reason();

	ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
					errmsg("could not %s: %s", doing, reason)));
}

/* ---- keys ---- */

/* Without it OpenSSL would ask at the terminal. */
static int
give_passphrase(char *buf, int size, int rwflag, void *arg)
{
	PassphraseQuestion *question = arg;
	size_t				len;

	question->asked = true;
	if (question->passphrase == NULL)
		return -1;
	len = strlen(question->passphrase);
	if (len > size)
		return -1;
	memcpy(buf, question->passphrase, len);
	return (int) len;
}

static void
free_key(void *arg)
{
	JwtKey *key = arg;

	EVP_PKEY_free(key->pkey);
	key->pkey = NULL;
}

static void
check_key(const JwtKey *key, const char *what)
{
	if (EVP_PKEY_base_id(key->pkey) != EVP_PKEY_RSA)
		ereport(ERROR, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
						errmsg("%s is not an RSA key", what)));
	if (EVP_PKEY_bits(key->pkey) < MIN_KEY_BITS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("%s has %d bits, which is too short", what, EVP_PKEY_bits(key->pkey)),
				 errdetail("At least %d are needed.", MIN_KEY_BITS)));
}

JwtKey *
resync_jwt_read_key(MemoryContext context, const char *pem, Size len, const char *passphrase,
					const char *what)
{
	JwtKey			  *key = MemoryContextAllocZero(context, sizeof(JwtKey));
	PassphraseQuestion question = {passphrase, false};
	BIO				  *bio;

	key->callback.func = free_key;
	key->callback.arg = key;
	MemoryContextRegisterResetCallback(context, &key->callback);

	if (len == 0 || len > INT_MAX)
		ereport(ERROR, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
						errmsg("%s is empty or too long", what)));
	ERR_clear_error();
	bio = BIO_new_mem_buf(pem, (int) len);
	if (bio == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	key->pkey = PEM_read_bio_PrivateKey(bio, NULL, give_passphrase, &question);
	BIO_free(bio);

	if (key->pkey == NULL)
	{
		const char *reason = take_reason();

		if (question.asked && passphrase == NULL)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PASSWORD),
							errmsg("%s is encrypted, and there is no passphrase", what)));
		if (question.asked)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PASSWORD),
							errmsg("%s could not be decrypted with the passphrase", what),
							errdetail("OpenSSL says: %s.", reason)));
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("%s could not be read", what), errdetail("OpenSSL says: %s.", reason),
				 errhint("It must be PEM text that begins with \"-----BEGIN PRIVATE KEY-----\" "
						 "or \"-----BEGIN ENCRYPTED PRIVATE KEY-----\".")));
	}
	check_key(key, what);
	return key;
}

/* ---- signatures ---- */

char *
resync_jwt_sign(JwtKey *key, const char *header, const char *claims)
{
	StringInfoData token;
	unsigned char *signature = palloc(EVP_PKEY_size(key->pkey));
	size_t		   len = EVP_PKEY_size(key->pkey);
	EVP_MD_CTX	  *ctx;
	bool		   ok;

	initStringInfo(&token);
	resync_base64url(&token, header, strlen(header));
	appendStringInfoChar(&token, '.');
	resync_base64url(&token, claims, strlen(claims));

	ERR_clear_error();
	ctx = EVP_MD_CTX_new();
	ok = ctx != NULL && EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, key->pkey) == 1 &&
		 EVP_DigestSign(ctx, signature, &len, (unsigned char *) token.data, token.len) == 1;
	EVP_MD_CTX_free(ctx);
	if (!ok)
		raise_failure("sign with the private key");

	/* room first, so that no copy of the growing token is left behind */
	enlargeStringInfo(&token, (int) (len * 4 / 3) + 4);
	appendStringInfoChar(&token, '.');
	resync_base64url(&token, signature, len);
	OPENSSL_cleanse(signature, len);
	pfree(signature);
	return token.data;
}

char *
resync_jwt_fingerprint(JwtKey *key)
{
	unsigned char *der = NULL;
	unsigned char  digest[SHA256_LEN];
	unsigned int   digest_len = 0;
	unsigned char  text[SHA256_LEN * 2]; /* base64 has 4 for 3, and a NUL */
	int			   len;
	bool		   ok;

	ERR_clear_error();
	len = i2d_PUBKEY(key->pkey, &der);
	ok = len > 0 && EVP_Digest(der, len, digest, &digest_len, EVP_sha256(), NULL) == 1 &&
		 digest_len == SHA256_LEN;
	OPENSSL_free(der);
	if (!ok)
		raise_failure("make the public key's fingerprint");
	(void) EVP_EncodeBlock(text, digest, SHA256_LEN);
	return psprintf("SHA256:%s", (char *) text);
}
