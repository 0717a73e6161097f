/*
 * wal.h
 *		Reading WAL for a decoder; private to decode/.
 */
#ifndef RESYNC_WAL_H
#define RESYNC_WAL_H

#include "access/xlogreader.h"

/* page_read callback that returns -1 at the flush pointer. */
extern int resync_wal_read_page(XLogReaderState *state, XLogRecPtr page, int req_len,
								XLogRecPtr rec, char *buf);

#endif /* RESYNC_WAL_H */
