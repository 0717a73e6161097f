/*
 * wait.c
 *		What every wait in this layer has in common.
 *
 * Called by pq.c, http.c and resolve.c, in any process.  No locks, no
 * transaction.
 */
#include "postgres.h"

#include "net/wait.h"

#include "miscadmin.h"
#include "storage/latch.h"

void (*resync_wait_hook)(void) = NULL;

void
resync_wait_latch_set(void)
{
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (resync_wait_hook != NULL)
		resync_wait_hook();
}
