/*
 * wait.h
 *		What every wait in this layer has in common.
 *
 * libpq, HTTP and the resolver wait with the process latch, so that no call
 * keeps a process from answering signals and requests.
 *
 * Includes nothing of ours.
 */
#ifndef RESYNC_WAIT_H
#define RESYNC_WAIT_H

#include "postgres.h"

/*
 * Called whenever a wait is over because the process latch was set; may raise,
 * which gives up what is under way.  NULL: nothing.
 */
extern void (*resync_wait_hook)(void);

/*
 * Called once, before a wait is ended because this process has to end, with
 * interrupts held off: a last word to whoever works for it.  Must not take long,
 * nor raise.  NULL: nothing.
 */
extern void (*resync_wait_die_hook)(void);

/*
 * The latch was set: reset it, serve interrupts, call the hook.  May raise.
 */
extern void resync_wait_latch_set(void);

/* Wait for so long, or until the latch is set.  May raise, as above. */
extern void resync_wait_sleep(long ms);

#endif /* RESYNC_WAIT_H */
