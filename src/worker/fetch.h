/*
 * fetch.h
 *		A row of the source by its key, in the streamer; see fetch.c.
 */
#ifndef RESYNC_FETCH_H
#define RESYNC_FETCH_H

#include "destination/destination.h"

typedef struct FetchState
{
	Destination *dest;			/* makes encoders */
	XLogRecPtr	 fetched_until; /* rows were fetched as of then: until WAL up to
							   * there is applied, a key may be another row's
							   * at the destination */
} FetchState;

/* A FetchRowFn; arg is a FetchState. */
extern bool resync_fetch_row(void *arg, const ResyncTable *table, const char *key, uint32 key_len,
							 StringInfo out);

#endif /* RESYNC_FETCH_H */
