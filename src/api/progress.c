/*
 * progress.c
 *		Live counters from shared memory, and who may see what: the functions
 *		behind the views of schema peerdb.
 *
 * These are the only functions of the extension that PUBLIC may execute, since
 * a view calls functions with the rights of whoever reads it.  Each tells its
 * caller no more than the views do.  In a user's backend; ResyncShmem->lock is
 * held for a look-up.
 */
#include "postgres.h"

#include "api/api.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/syscache.h"
#include "worker/shmem.h"

PG_FUNCTION_INFO_V1(peerdb_options);
PG_FUNCTION_INFO_V1(peerdb_owner);
PG_FUNCTION_INFO_V1(peerdb_is_copy);
PG_FUNCTION_INFO_V1(peerdb_copy_error);
PG_FUNCTION_INFO_V1(peerdb_progress);
PG_FUNCTION_INFO_V1(peerdb_partition_progress);

/* peerdb._options(options): over the defaults, for showing. */
Datum
peerdb_options(PG_FUNCTION_ARGS)
{
	PG_RETURN_JSONB_P(resync_options_effective(PG_GETARG_JSONB_P(0)));
}

/*
 * peerdb._owner(owner, owner_name, system_identifier, database_oid): the role
 * that owns a mirror here.  In a copy of the database, where OIDs may belong to
 * other roles, it is the role of the same name; 0 when there is none.
 */
Datum
peerdb_owner(PG_FUNCTION_ARGS)
{
	Oid owner = PG_GETARG_OID(0);

	if (PG_GETARG_INT64(2) != (int64) GetSystemIdentifier() || PG_GETARG_OID(3) != MyDatabaseId)
		owner = get_role_oid(NameStr(*PG_GETARG_NAME(1)), true);
	else if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)))
		owner = InvalidOid;
	PG_RETURN_OID(owner);
}

/* peerdb._is_copy(system_identifier, database_oid, instance) */
Datum
peerdb_is_copy(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(resync_catalog_is_copy((uint64) PG_GETARG_INT64(0), PG_GETARG_OID(1),
										  text_to_cstring(PG_GETARG_TEXT_PP(2))));
}

/*
 * peerdb._copy_error(is_copy): what is shown as the error of a mirror in a copy,
 * or (false) of one that was restored into its own database
 */
Datum
peerdb_copy_error(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(
		cstring_to_text(PG_GETARG_BOOL(0) ? RESYNC_COPY_ERROR : RESYNC_RESTORED_ERROR));
}

/* May the caller see this run's counters?  False too when nobody works for it. */
static bool
may_see_run(int64 run)
{
	RunShared *rs;
	Oid		   owner = InvalidOid;

	if (ResyncShmem == NULL)
		return false;
	LWLockAcquire(ResyncShmem->lock, LW_SHARED);
	rs = resync_shmem_find_run(MyDatabaseId, run);
	if (rs != NULL)
		owner = rs->owner;
	LWLockRelease(ResyncShmem->lock);
	return rs != NULL && resync_api_may_see(owner);
}

static const char *
streamer_name(StreamerState state)
{
	switch (state)
	{
		case STREAMER_OFF:
			return "off";
		case STREAMER_STARTING:
			return "starting";
		case STREAMER_CREATING:
			return "creating";
		case STREAMER_EXPORTED:
			return "exported";
		case STREAMER_STREAMING:
			return "streaming";
		case STREAMER_HELD:
			return "held";
	}
	return NULL;
}

/*
 * peerdb._progress(run): one row, all NULL when no process works for the run
 * or the caller may not see it.
 */
Datum
peerdb_progress(PG_FUNCTION_ARGS)
{
	int64		run = PG_GETARG_INT64(0);
	RunProgress progress;
	TupleDesc	desc;
	Datum		values[10] = {0};
	bool		nulls[10];

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	memset(nulls, true, sizeof(nulls));
	if (may_see_run(run) && resync_shmem_progress(run, &progress))
	{
		memset(nulls, false, sizeof(nulls));
		values[0] = CStringGetTextDatum(streamer_name(progress.streamer));
		values[1] = Int32GetDatum(progress.streamer_pid);
		nulls[1] = progress.streamer_pid == 0;
		values[2] = Int32GetDatum(progress.copiers);
		values[3] = Int64GetDatum(progress.rows_loading);
		values[4] = LSNGetDatum(progress.applied_lsn);
		nulls[4] = XLogRecPtrIsInvalid(progress.applied_lsn);
		values[5] = LSNGetDatum(progress.received_lsn);
		nulls[5] = XLogRecPtrIsInvalid(progress.received_lsn);
		values[6] = Int64GetDatum(progress.rows_synced);
		values[7] = TimestampTzGetDatum(progress.oldest_pending);
		nulls[7] = progress.oldest_pending == 0;
		values[8] = Int32GetDatum(progress.waits_for_pid);
		nulls[8] = progress.waits_for_pid == 0;
		values[9] = CStringGetTextDatum(progress.waits_for);
		nulls[9] = progress.waits_for[0] == '\0';
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* peerdb._partition_progress(run, partition): rows and bytes under way. */
Datum
peerdb_partition_progress(PG_FUNCTION_ARGS)
{
	int64	  run = PG_GETARG_INT64(0);
	int64	  rows = 0;
	int64	  bytes = 0;
	TupleDesc desc;
	Datum	  values[2];
	bool	  nulls[2];

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	nulls[0] = nulls[1] = !(may_see_run(run) && resync_shmem_partition_progress(
													run, PG_GETARG_INT64(1), &rows, &bytes));
	values[0] = Int64GetDatum(rows);
	values[1] = Int64GetDatum(bytes);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
