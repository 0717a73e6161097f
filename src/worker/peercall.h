/*
 * peercall.h
 *		Calls of user backends that connect to a destination: the version, the
 *		checks of a plan, row counts.
 *
 * The only way from api/ to destination/.
 */
#ifndef RESYNC_PEERCALL_H
#define RESYNC_PEERCALL_H

#include "resync.h"

#include "catalog/catalog.h"

/* Raises 0A000 for a known wrapper whose destination is not available yet. */
extern void resync_peercall_require(const char *wrapper);

/* Connect as user's mapping says; the destination's version, palloc'ed. */
extern char *resync_peercall_version(Oid server, Oid user);

/*
 * One finding of the destination.  level: "ok", "warning" or "error"; the texts
 * live during the call.
 */
typedef void (*PeerCallReport)(void *arg, const char *check, const char *level, const char *detail);

/*
 * What the destination says of a resync: connects, maps columns and checks each
 * table, changes nothing.  Errors of the destination are findings.
 */
extern void resync_peercall_check(const MirrorRow *mirror, ResyncTable **tables, int ntables,
								  PeerCallReport report, void *arg);

/* Live rows of each live table, into rows[ntables]. */
extern void
resync_peercall_count(const MirrorRow *mirror, ResyncTable **tables, int ntables, int64 *rows);

#endif /* RESYNC_PEERCALL_H */
