/*
 * encoding.h
 *		Texts between the server's encoding and UTF-8, which services speak.
 *
 * Core's own functions want a transaction, in which they look the conversion up;
 * these begin one if there is none.  Not within a decoding callback that has none.
 * ASCII is returned as it is, and so is any text where the server's encoding is
 * UTF-8 or SQL_ASCII.  Results are the text itself or in the current context.
 *
 * Includes nothing of ours.
 */
#ifndef RESYNC_ENCODING_H
#define RESYNC_ENCODING_H

#include "postgres.h"

/* Raises if a character has no place in UTF-8. */
extern char *resync_text_to_utf8(const char *text);

/* ... or in the server's encoding; the text is valid UTF-8. */
extern char *resync_text_from_utf8(const char *text);

/* NULL instead of raising; the text may be anything. */
extern char *resync_text_from_utf8_or_null(const char *text);

#endif /* RESYNC_ENCODING_H */
