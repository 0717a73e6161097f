/*
 * api.h
 *		What the SQL-callable functions share: arguments, rights, locking of a
 *		mirror, and the guard against PREPARE TRANSACTION.
 *
 * All in a user's backend, in the caller's transaction.
 */
#ifndef RESYNC_API_H
#define RESYNC_API_H

#include "resync.h"

#include "catalog/catalog.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

/* ---- every function (api.c) ---- */

/* First thing in every function: raises 55000 without the preload. */
extern void resync_api_require_preload(void);

/*
 * Second thing in a function that changes something: from here on PREPARE
 * TRANSACTION is refused in this transaction.
 */
extern void resync_api_begin_change(void);

/* Arguments by position; a NULL raises 22004 with the argument's name. */
extern void	  resync_api_not_null(FunctionCallInfo fcinfo, int arg, const char *name);
extern char	 *resync_api_text(FunctionCallInfo fcinfo, int arg, const char *name);
extern Jsonb *resync_api_jsonb(FunctionCallInfo fcinfo, int arg, const char *name);
extern bool	  resync_api_bool(FunctionCallInfo fcinfo, int arg, const char *name);

/*
 * A mirror by name; 42704 when there is none.  lock: row lock held to the
 * transaction's end, so that callers serialize; only for those who may steer;
 * 55000 when the row came here with a copy of its database.  lock_or_copy: the
 * same, but for copies too.  find: for those who may see.
 */
extern MirrorRow *resync_api_lock_mirror_or_copy(const char *name);
extern MirrorRow *resync_api_lock_mirror(const char *name);
extern MirrorRow *resync_api_find_mirror(const char *name);

/* Does the mirror belong to another database, of which this is a copy? */
extern bool resync_api_is_copy(const MirrorRow *mirror);

extern bool resync_api_may_steer(Oid owner);
extern bool resync_api_may_see(Oid owner);

/* Is a run on: neither over nor streaming into the live tables? */
extern bool resync_api_run_is_on(const RunRow *run);

/* resync_catalog_exec and _finish in one, for statements without a result. */
#define resync_api_exec(sql, expect, ...) \
	(resync_catalog_exec(sql, expect, __VA_ARGS__), resync_catalog_finish())

/* A value of the first row of SPI_tuptable, copied into the caller's context. */
extern char *resync_api_copy_value(MemoryContext context, int row, int column);

/* ---- checks of what the source knows (checks.c) ---- */

/* Settings of the server: wal_level and so on; raises. */
extern void resync_api_check_server(void);

/*
 * The mirror's tables as they are now, and the owner's rights on them:
 * resolves them, then SELECT on each column, row security.  Raises.
 */
extern ResyncTable **resync_api_check_tables(const MirrorRow *mirror, Oid owner, int *ntables);

/* ---- starting (start.c) ---- */

/* Options that peerdb_resync and peerdb_plan_resync take; NULL-terminated. */
extern const char *const resync_api_resync_keys[];

extern bool resync_api_keeps_serving(const MirrorRow *mirror);

/* ---- waiting (wait.c) ---- */

/* Everything that is committed now has an end LSN up to this one; durable. */
extern XLogRecPtr resync_api_current_lsn(void);

/*
 * Wait until the destination holds everything up to lsn; deadline 0 = none.
 * Raises when the mirror fails, is paused or goes, and at the deadline.
 */
extern void resync_api_wait_for_lsn(const char *mirror, XLogRecPtr lsn, TimestampTz deadline);

/* start.c: a new run, which becomes the mirror's newest (see there). */
extern int64 resync_api_start_run(const MirrorRow *mirror, bool initial, bool keep_serving,
								  const char *previous_status);

#endif /* RESYNC_API_H */
