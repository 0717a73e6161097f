/*
 * wait.c
 *		peerdb_mirror_status, peerdb_wait_for_status, peerdb_wait_for_lsn.
 *
 * In a user's backend, in the caller's transaction, whose own snapshot may be
 * old: what is waited for is read under a fresh snapshot each time, and from
 * shared memory.  No lock is held while waiting; the wait is on the process
 * latch, with a look every POLL_MS.
 */
#include "postgres.h"

#include "compat.h"

#include "api/api.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "worker/shmem.h"

PG_FUNCTION_INFO_V1(peerdb_mirror_status);
PG_FUNCTION_INFO_V1(peerdb_wait_for_status);
PG_FUNCTION_INFO_V1(peerdb_wait_for_lsn);

#define POLL_MS 50

/* How far a run is, in the order of statuses that peerdb_wait_for_status knows. */
typedef enum Rank
{
	RANK_NONE = -1,
	RANK_SETUP,
	RANK_SNAPSHOT,
	RANK_RUNNING
} Rank;

/* A mirror and its newest run, as committed at this moment. */
typedef struct Now
{
	char	  *status;
	char	  *error;
	char	  *error_sqlstate;
	int64	   live_run; /* 0 = none */
	XLogRecPtr live_confirmed;
	int64	   run; /* newest, 0 = none */
	char	  *phase;
	char	  *outcome;
	char	  *run_error;
	char	  *run_sqlstate;
} Now;

static const char *const statuses[] = {"setup",	 "snapshot", "running",	  "pausing",
									   "paused", "failed",	 "completed", "terminating"};

/*
 * Read it under a fresh snapshot, whatever the transaction's isolation level,
 * as the extension's owner.  False: there is no such mirror (any more).  Results
 * are in the current context.
 */
static bool
look(int64 mirror, Now *now)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			  save_user;
	int			  save_context;
	Datum		  arg = Int64GetDatum(mirror);
	Oid			  type = INT8OID;
	bool		  found;

	memset(now, 0, sizeof(Now));
	GetUserIdAndSecContext(&save_user, &save_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, save_context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_with_args(
			"SELECT m.status, m.error, m.error_sqlstate, m.live_run, l.confirmed_lsn,"
			" m.newest_run, n.phase, n.outcome, n.error, n.error_sqlstate,"
			" peerdb._is_copy(m.system_identifier, m.database_oid, m.instance),"
			" m.newest_run IS NOT NULL AND n.run IS NULL"
			" FROM peerdb._mirror m"
			" LEFT JOIN peerdb._run l ON l.run OPERATOR(pg_catalog.=) m.live_run"
			" AND l.mirror OPERATOR(pg_catalog.=) m.id"
			" LEFT JOIN peerdb._run n ON n.run OPERATOR(pg_catalog.=) m.newest_run"
			" AND n.mirror OPERATOR(pg_catalog.=) m.id"
			" WHERE m.id OPERATOR(pg_catalog.=) $1",
			1, &type, &arg, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the state of mirror " INT64_FORMAT, mirror);
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool	  isnull;
		bool	  is_copy;
		Datum	  d;

		now->status = resync_api_copy_value(context, 0, 1);
		now->error = resync_api_copy_value(context, 0, 2);
		now->error_sqlstate = resync_api_copy_value(context, 0, 3);
		d = SPI_getbinval(tup, desc, 4, &isnull);
		now->live_run = isnull ? 0 : DatumGetInt64(d);
		d = SPI_getbinval(tup, desc, 5, &isnull);
		now->live_confirmed = isnull ? InvalidXLogRecPtr : DatumGetLSN(d);
		d = SPI_getbinval(tup, desc, 6, &isnull);
		now->run = isnull ? 0 : DatumGetInt64(d);
		now->phase = resync_api_copy_value(context, 0, 7);
		now->outcome = resync_api_copy_value(context, 0, 8);
		now->run_error = resync_api_copy_value(context, 0, 9);
		now->run_sqlstate = resync_api_copy_value(context, 0, 10);
		is_copy = DatumGetBool(SPI_getbinval(tup, desc, 11, &isnull));
		if (is_copy || DatumGetBool(SPI_getbinval(tup, desc, 12, &isnull)))
		{
			now->status = MemoryContextStrdup(context, "failed");
			now->error = MemoryContextStrdup(context,
											 is_copy ? RESYNC_COPY_ERROR : RESYNC_RESTORED_ERROR);
			now->error_sqlstate = MemoryContextStrdup(context, "RS002");
		}
	}
	PopActiveSnapshot();
	SPI_finish();
	SetUserIdAndSecContext(save_user, save_context);
	return found;
}

static void
raise_gone(const char *name)
{
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
					errmsg("mirror \"%s\" does not exist any more", name)));
}

/* Raise what a worker ended with, as kept in the catalog. */
static void
raise_kept(const char *name, int64 run, const char *what, const char *sqlstate, const char *error)
{
	int code = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;

	if (sqlstate != NULL && strlen(sqlstate) == 5 && strcmp(sqlstate, "00000") != 0)
		code = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4]);
	else if (strcmp(what, "cancelled") == 0)
		code = ERRCODE_QUERY_CANCELED;
	if (run != 0)
		ereport(ERROR, (errcode(code),
						error != NULL ? errmsg("run " INT64_FORMAT " of mirror \"%s\" was %s: %s",
											   run, name, what, error)
									  : errmsg("run " INT64_FORMAT " of mirror \"%s\" was %s", run,
											   name, what)));
	ereport(ERROR, (errcode(code), error != NULL ? errmsg("mirror \"%s\" failed: %s", name, error)
												 : errmsg("mirror \"%s\" failed", name)));
}

/* Raise if the newest run, or the mirror, has come to a bad end. */
static void
raise_if_over(const char *name, const Now *now)
{
	if (now->outcome != NULL && strcmp(now->outcome, "refused") == 0)
		raise_kept(name, now->run, "refused", now->run_sqlstate, now->run_error);
	if (now->outcome != NULL && strcmp(now->outcome, "cancelled") == 0)
		raise_kept(name, now->run, "cancelled", now->run_sqlstate, now->run_error);
	if (strcmp(now->status, "failed") == 0 ||
		(now->outcome != NULL && strcmp(now->outcome, "failed") == 0))
		raise_kept(name, 0, "failed", now->error != NULL ? now->error_sqlstate : now->run_sqlstate,
				   now->error != NULL ? now->error : now->run_error);
}

static Rank
rank_of_status(const char *status)
{
	if (strcmp(status, "setup") == 0)
		return RANK_SETUP;
	if (strcmp(status, "snapshot") == 0)
		return RANK_SNAPSHOT;
	if (strcmp(status, "running") == 0 || strcmp(status, "completed") == 0)
		return RANK_RUNNING;
	return RANK_NONE;
}

/* How far a run is that is paused: its phase still tells. */
static Rank
rank_of_phase(const char *phase)
{
	if (phase == NULL)
		return RANK_NONE;
	switch (resync_catalog_phase_parse(phase))
	{
		case PHASE_VALIDATE:
		case PHASE_DROP:
		case PHASE_CREATE_SLOT:
		case PHASE_CREATE_TABLES:
			return RANK_SETUP;
		default:
			/* a paused mirror is not running: "snapshot" at most */
			return RANK_SNAPSHOT;
	}
}

/*
 * Has the newest run reached the status?  A later status counts; so does the
 * phase of a run that is paused, but for 'running'.
 */
static bool
reached(const Now *now, const char *status)
{
	Rank wanted = rank_of_status(status);

	if (strcmp(now->status, status) == 0)
		return true;
	if (wanted == RANK_NONE)
		return false;
	if (rank_of_status(now->status) >= wanted)
		return true;
	return strcmp(now->status, "failed") != 0 && strcmp(now->status, "terminating") != 0 &&
		   rank_of_phase(now->phase) >= wanted;
}

/* When a wait that begins now has to end. */
static TimestampTz
deadline_of(FunctionCallInfo fcinfo, int arg)
{
	TimestampTz start = GetCurrentTimestamp();

	resync_api_not_null(fcinfo, arg, "timeout");
	return DatumGetTimestampTz(DirectFunctionCall2(
		timestamptz_pl_interval, TimestampTzGetDatum(start), PG_GETARG_DATUM(arg)));
}

/* Sleep until the next look.  False: the deadline (0 = none) has passed. */
static bool
pause_until_next_look(TimestampTz deadline)
{
	if (deadline != 0 && GetCurrentTimestamp() >= deadline)
		return false;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
					 RESYNC_WAIT_EVENT("WaitForMirror"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return true;
}

static void
raise_timeout(const char *name, const Now *now, const char *what)
{
	ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
					errmsg("timeout while waiting for mirror \"%s\" to %s", name, what),
					now->phase != NULL ? errdetail("Its status is \"%s\", its run " INT64_FORMAT
												   " is in phase \"%s\".",
												   now->status, now->run, now->phase)
									   : errdetail("Its status is \"%s\".", now->status)));
}

/* peerdb_mirror_status(mirror) */
Datum
peerdb_mirror_status(PG_FUNCTION_ARGS)
{
	resync_api_require_preload();
	PG_RETURN_TEXT_P(
		cstring_to_text(resync_api_find_mirror(resync_api_text(fcinfo, 0, "mirror"))->status));
}

/*
 * What the caller has written is not committed while he waits, and an open
 * transaction that has written holds up the creation of a slot.
 */
static void
refuse_writer(const char *function)
{
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR, (errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
						errmsg("%s cannot be called in a transaction that has written", function),
						errdetail("The work starts when the transaction commits."),
						errhint("Commit first.")));
}

/* peerdb_wait_for_status(mirror, status, timeout) */
Datum
peerdb_wait_for_status(PG_FUNCTION_ARGS)
{
	char		 *name;
	char		 *status;
	TimestampTz	  deadline;
	MirrorRow	 *mirror;
	MemoryContext context;
	MemoryContext caller = CurrentMemoryContext;
	bool		  known = false;
	Now			  now;

	resync_api_require_preload();
	name = resync_api_text(fcinfo, 0, "mirror");
	status = resync_api_text(fcinfo, 1, "status");
	deadline = deadline_of(fcinfo, 2);
	for (int i = 0; i < lengthof(statuses); i++)
		known |= strcmp(statuses[i], status) == 0;
	if (!known)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unknown status \"%s\"", status),
			 errhint(
				 "Valid statuses are: setup, snapshot, running, pausing, paused, failed, completed, terminating.")));
	refuse_writer("peerdb_wait_for_status");
	mirror = resync_api_find_mirror(name);

	context = AllocSetContextCreate(caller, "resync wait", ALLOCSET_SMALL_SIZES);
	for (;;)
	{
		char *result;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		if (!look(mirror->id, &now))
			raise_gone(name);
		MemoryContextSwitchTo(caller);

		/* 'paused', 'terminating' ... are the mirror's, whatever became of the run */
		if (!(rank_of_status(status) == RANK_NONE && strcmp(now.status, status) == 0) &&
			(rank_of_status(status) != RANK_NONE || strcmp(now.status, "failed") == 0))
			raise_if_over(name, &now);
		if (reached(&now, status))
		{
			result = pstrdup(now.status);
			MemoryContextDelete(context);
			PG_RETURN_TEXT_P(cstring_to_text(result));
		}
		if (!pause_until_next_look(deadline))
			raise_timeout(name, &now, psprintf("reach status \"%s\"", status));
	}
}

/*
 * The insert pointer is where the next record would begin: behind the header
 * of a page that has nothing else yet, where XLogFlush cannot get to.  Then the
 * page's beginning is the end of what was written.
 */
XLogRecPtr
resync_api_current_lsn(void)
{
	XLogRecPtr lsn;
	uint32	   offset;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("recovery is in progress"), errhint("Mirrors follow the primary server.")));
	lsn = GetXLogInsertRecPtr();
	offset = lsn % XLOG_BLCKSZ;
	if (offset == (XLogSegmentOffset(lsn, wal_segment_size) < XLOG_BLCKSZ ? SizeOfXLogLongPHD
																		  : SizeOfXLogShortPHD))
		lsn -= offset;
	XLogFlush(lsn);
	return lsn;
}

/* Does the destination hold everything up to lsn? */
static bool
holds(const Now *now, XLogRecPtr lsn)
{
	RunProgress progress;

	if (now->live_run == 0)
		return false;
	if (now->live_confirmed >= lsn)
		return true;
	if (!resync_shmem_progress(now->live_run, &progress))
		return false;
	if (progress.applied_lsn >= lsn ||
		(progress.received_lsn >= lsn && progress.oldest_pending == 0))
		return true;
	resync_shmem_request_flush(now->live_run, lsn);
	return false;
}

void
resync_api_wait_for_lsn(const char *name, XLogRecPtr lsn, TimestampTz deadline)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "resync wait", ALLOCSET_SMALL_SIZES);
	MirrorRow	 *mirror = resync_api_find_mirror(name);
	Now			  now;

	for (;;)
	{
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		if (!look(mirror->id, &now))
			raise_gone(name);
		MemoryContextSwitchTo(caller);
		if (holds(&now, lsn))
			break;
		if (strcmp(now.status, "failed") == 0)
			raise_if_over(name, &now);
		if (strcmp(now.status, "pausing") == 0 || strcmp(now.status, "paused") == 0 ||
			strcmp(now.status, "completed") == 0 || strcmp(now.status, "terminating") == 0)
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("mirror \"%s\" is not going to reach %X/%X", name,
								   LSN_FORMAT_ARGS(lsn)),
							errdetail("Its status is \"%s\".", now.status)));
		if (!pause_until_next_look(deadline))
			raise_timeout(name, &now, psprintf("reach %X/%X", LSN_FORMAT_ARGS(lsn)));
	}
	MemoryContextDelete(context);
}

/* peerdb_wait_for_lsn(mirror, lsn, timeout) */
Datum
peerdb_wait_for_lsn(PG_FUNCTION_ARGS)
{
	char	   *name;
	TimestampTz deadline;
	XLogRecPtr	lsn;

	resync_api_require_preload();
	name = resync_api_text(fcinfo, 0, "mirror");
	deadline = deadline_of(fcinfo, 2);
	lsn = PG_ARGISNULL(1) ? resync_api_current_lsn() : PG_GETARG_LSN(1);
	resync_api_wait_for_lsn(name, lsn, deadline);
	PG_RETURN_LSN(lsn);
}
