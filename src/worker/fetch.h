/*
 * fetch.h
 *		A row of the source by its key, in the streamer; see fetch.c.
 */
#ifndef RESYNC_FETCH_H
#define RESYNC_FETCH_H

#include "destination/destination.h"

/* A FetchRowFn; arg is the Destination that makes encoders. */
extern bool resync_fetch_row(void *arg, const ResyncTable *table, const char *key, uint32 key_len,
							 StringInfo out);

#endif /* RESYNC_FETCH_H */
