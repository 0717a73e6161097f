/*
 * jwt.h
 *		Signed assertions by which a service account or a user proves who it is:
 *		JSON Web Tokens with RS256, by OpenSSL.
 *
 * What the claims are, the destination knows.  Includes nothing of ours.
 */
#ifndef RESYNC_JWT_H
#define RESYNC_JWT_H

#include "postgres.h"

#include "lib/stringinfo.h"

/* An RSA private key in OpenSSL's memory. */
typedef struct JwtKey JwtKey;

/*
 * Read a key from PEM text: PKCS#8, encrypted or not, or the older "RSA PRIVATE
 * KEY".  passphrase: NULL if there is none; one that is not needed is ignored.
 * what: names the key in messages ("the private key of the service account").
 * It is freed, its memory cleansed, when context is reset or deleted; pem and
 * passphrase remain the caller's, to be cleansed by resync_jwt_forget().
 *
 * Raises 28000 when it is no such key, is not RSA or too short; 28P01 when the
 * passphrase is missing or wrong.  No message has anything of the key's text.
 */
extern JwtKey *resync_jwt_read_key(MemoryContext context, const char *pem, Size len,
								   const char *passphrase, const char *what);

/*
 * header and claims, two JSON objects as text, signed: "h.c.s" in base64url,
 * in the current context.  Whoever has it is the signer while its claims last:
 * cleanse it after use.
 */
extern char *resync_jwt_sign(JwtKey *key, const char *header, const char *claims);

/*
 * SHA-256 of the public key (its SubjectPublicKeyInfo, DER) in base64, as
 * Snowflake shows and wants it: "SHA256:...".  In the current context.
 */
extern char *resync_jwt_fingerprint(JwtKey *key);

/* Overwrite a text that was secret, and free it.  NULL is allowed. */
extern void resync_jwt_forget(char *text);

/* Append len bytes in base64url, without padding (RFC 4648, section 5). */
extern void resync_base64url(StringInfo buf, const void *data, Size len);

#endif /* RESYNC_JWT_H */
