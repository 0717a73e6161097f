/*
 * jsonb_text.h
 *		jsonb to text.
 */
#ifndef RESYNC_JSONB_TEXT_H
#define RESYNC_JSONB_TEXT_H

#include "resync.h"

#include "lib/stringinfo.h"

/*
 * Append exactly what jsonb_out() gives.  container: the content of a jsonb,
 * without its varlena header; it may be unaligned.
 */
extern void resync_jsonb_text(const char *container, StringInfo buf);

#endif /* RESYNC_JSONB_TEXT_H */
