/*
 * api.c
 *		What the SQL-callable functions share: the check for the preload,
 *		arguments, rights, locking of a mirror, PREPARE TRANSACTION.
 *
 * Called in a user's backend, in the caller's transaction.  Locks: a row lock
 * on peerdb._mirror (resync_api_lock_mirror), which makes callers serialize.
 */
#include "postgres.h"

#include "api/api.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "worker/shmem.h"

PG_FUNCTION_INFO_V1(peerdb_version);

#define RESYNC_VERSION "1.0"

/* Has this transaction called a function that takes effect at commit? */
static bool change_made = false;
static bool change_callback_registered = false;

/*
 * The line to write in postgresql.conf, with the setting's current value kept.
 * Those who may not read the setting see only what to add.
 */
static char *
preload_line(void)
{
	const char	  *current = NULL;
	StringInfoData line;

	initStringInfo(&line);
	if (superuser() || is_member_of_role(GetUserId(), ROLE_PG_READ_ALL_SETTINGS))
		current = GetConfigOption("shared_preload_libraries", true, false);
	appendStringInfoString(&line, "shared_preload_libraries = '");
	if (current != NULL && current[0] != '\0')
	{
		for (const char *p = current; *p; p++)
		{
			if (*p == '\'')
				appendStringInfoChar(&line, '\'');
			appendStringInfoChar(&line, *p);
		}
		appendStringInfoString(&line, ", ");
	}
	else if (current == NULL)
		appendStringInfoString(&line, "..., ");
	appendStringInfoString(&line, "resync'");
	return line.data;
}

void
resync_api_require_preload(void)
{
	if (!resync_is_preloaded() || ResyncShmem == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("resync must be loaded via shared_preload_libraries"),
				 errhint("Write in postgresql.conf, then restart the server: %s", preload_line())));
}

/*
 * A prepared transaction commits in another session, perhaps after a restart:
 * nobody would wake the workers.
 */
static void
change_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_PREPARE:
			if (change_made)
				ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
								errmsg("cannot PREPARE a transaction that has changed a mirror"),
								errhint("Use COMMIT.")));
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			change_made = false;
			break;
		default:
			break;
	}
}

void
resync_api_begin_change(void)
{
	resync_api_require_preload();
	PreventCommandIfReadOnly("changing a mirror");
	if (!change_callback_registered)
	{
		RegisterXactCallback(change_xact_callback, NULL);
		change_callback_registered = true;
	}
	change_made = true;
}

void
resync_api_not_null(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("argument \"%s\" must not be null", name)));
}

char *
resync_api_text(FunctionCallInfo fcinfo, int arg, const char *name)
{
	resync_api_not_null(fcinfo, arg, name);
	return text_to_cstring(PG_GETARG_TEXT_PP(arg));
}

Jsonb *
resync_api_jsonb(FunctionCallInfo fcinfo, int arg, const char *name)
{
	resync_api_not_null(fcinfo, arg, name);
	return PG_GETARG_JSONB_P(arg);
}

bool
resync_api_bool(FunctionCallInfo fcinfo, int arg, const char *name)
{
	resync_api_not_null(fcinfo, arg, name);
	return PG_GETARG_BOOL(arg);
}

/* Owner, members of the owner role, superusers.  owner may be InvalidOid. */
bool
resync_api_may_steer(Oid owner)
{
	return superuser() || (OidIsValid(owner) && is_member_of_role(GetUserId(), owner));
}

/* Those who steer, and members of pg_read_all_stats. */
bool
resync_api_may_see(Oid owner)
{
	return resync_api_may_steer(owner) || is_member_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
}

bool
resync_api_is_copy(const MirrorRow *mirror)
{
	return mirror->is_copy;
}

/* In a copy OIDs of roles mean nothing: the role of the same name owns it. */
static Oid
owner_in_copy(int64 mirror)
{
	Oid	 owner;
	bool isnull;

	resync_catalog_exec("SELECT peerdb._owner(owner, owner_name, system_identifier, database_oid)"
						" FROM peerdb._mirror WHERE id = $1",
						SPI_OK_SELECT, 1, INT8OID, Int64GetDatum(mirror), false);
	owner = DatumGetObjectId(
		SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	resync_catalog_finish();
	return owner;
}

static MirrorRow *
mirror_by_name(const char *name, bool for_update)
{
	MirrorRow *mirror = resync_catalog_mirror_by_name(name, for_update);

	if (mirror == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("mirror \"%s\" does not exist", resync_catalog_clip(name))));
	if (resync_api_is_copy(mirror))
		mirror->owner = owner_in_copy(mirror->id);
	return mirror;
}

static void
refuse_stranger(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("must be owner of mirror %s", name)));
}

/*
 * Rights are looked at before the lock is taken, so that a stranger cannot
 * hold up the owner, and once more under it, in case the mirror was dropped and
 * made anew meanwhile.
 */
MirrorRow *
resync_api_lock_mirror_or_copy(const char *name)
{
	MirrorRow *mirror = mirror_by_name(name, false);

	if (!resync_api_may_steer(mirror->owner))
		refuse_stranger(name);
	mirror = mirror_by_name(name, true);
	if (!resync_api_may_steer(mirror->owner))
		refuse_stranger(name);
	return mirror;
}

MirrorRow *
resync_api_lock_mirror(const char *name)
{
	MirrorRow *mirror = resync_api_lock_mirror_or_copy(name);

	if (mirror->restored)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("mirror \"%s\" was restored from a dump, without runs and replication slot",
					name),
			 errhint(
				 "Rebuild it with peerdb_resume_mirror('%s', adopt => true), or forget it with peerdb_drop_mirror('%s').",
				 name, name)));
	if (resync_api_is_copy(mirror))
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("mirror \"%s\" belongs to another database, of which this one is a copy", name),
			 errhint(
				 "Take it over with peerdb_resume_mirror('%s', adopt => true), or forget it here with peerdb_drop_mirror('%s').",
				 name, name)));
	return mirror;
}

MirrorRow *
resync_api_find_mirror(const char *name)
{
	MirrorRow *mirror = mirror_by_name(name, false);

	if (!resync_api_may_see(mirror->owner))
		refuse_stranger(name);
	return mirror;
}

bool
resync_api_run_is_on(const RunRow *run)
{
	return run != NULL && run->outcome == NULL && run->phase != PHASE_STREAM &&
		   run->phase != PHASE_ENDED;
}

char *
resync_api_copy_value(MemoryContext context, int row, int column)
{
	char *value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return value == NULL ? NULL : MemoryContextStrdup(context, value);
}

/* peerdb_version() */
Datum
peerdb_version(PG_FUNCTION_ARGS)
{
	resync_api_require_preload();
	PG_RETURN_TEXT_P(cstring_to_text(RESYNC_VERSION));
}
