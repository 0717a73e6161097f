/*
 * retry.h
 *		Which errors go away by themselves, and how long to wait.
 */
#ifndef RESYNC_RETRY_H
#define RESYNC_RETRY_H

#include "postgres.h"

/*
 * True for errors worth trying again from where the work stood: connection
 * trouble (class 08, 57P0x), resources (53), deadlock and serialization (40),
 * lock not available, ...  Everything else is permanent.
 */
extern bool resync_retry_is_transient(int sqlerrcode);

/*
 * A quota is used up, and what fails is counted, too: worth another try, but
 * only after minutes.
 */
#define RESYNC_ERRCODE_QUOTA_EXCEEDED MAKE_SQLSTATE('5', '3', 'R', 'S', '1')

/*
 * Milliseconds before try number `attempt` (from 1) after an error (0: none):
 * doubling, jittered, at most 30 s; after a quota, 10 minutes.
 */
extern long resync_retry_delay(int sqlerrcode, int attempt);

#endif /* RESYNC_RETRY_H */
