/*
 * resolve.h
 *		Host names to addresses without stopping the process that asks.
 *
 * Includes nothing of ours.
 */
#ifndef RESYNC_RESOLVE_H
#define RESYNC_RESOLVE_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/timestamp.h"

/*
 * Look names up.  hosts: nhosts names.  Returns an array of nhosts lists of
 * numeric addresses (char *) in the current memory context; NIL for a name
 * that is not known, in which case *failure (if none was set) is the reason.
 * Waits with the process latch: interrupts are served, and at the deadline
 * (0: none) it returns NULL.
 */
extern List **
resync_resolve_hosts(char **hosts, int nhosts, TimestampTz deadline, const char **failure);

#endif /* RESYNC_RESOLVE_H */
