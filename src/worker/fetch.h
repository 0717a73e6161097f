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

/* A FetchRowsFn; arg is a FetchState. */
extern int resync_fetch_rows(void *arg, const ResyncTable *table, FetchRow *rows, int nrows);

#endif /* RESYNC_FETCH_H */
