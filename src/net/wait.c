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
#include "utils/wait_event.h"

void (*resync_wait_hook)(void) = NULL;
void (*resync_wait_die_hook)(void) = NULL;

void
resync_wait_latch_set(void)
{
	ResetLatch(MyLatch);
	if (ProcDiePending && resync_wait_die_hook != NULL && INTERRUPTS_CAN_BE_PROCESSED())
	{
		void (*hook)(void) = resync_wait_die_hook;

		resync_wait_die_hook = NULL;
		HOLD_INTERRUPTS();
		hook();
		/* not counted down: an error that the hook has caught has made it 0 */
		InterruptHoldoffCount = 0;
	}
	CHECK_FOR_INTERRUPTS();
	if (resync_wait_hook != NULL)
		resync_wait_hook();
}

void
resync_wait_sleep(long ms)
{
	int events;

	CHECK_FOR_INTERRUPTS();
	events = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
					   PG_WAIT_EXTENSION);
	if (events & WL_LATCH_SET)
		resync_wait_latch_set();
}
