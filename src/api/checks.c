/*
 * checks.c
 *		What the source knows about a mirror before anything is done: settings
 *		of the server, the owner's rights on the tables.
 *
 * Called in a user's backend by peerdb_create_mirror, peerdb_resync,
 * peerdb_edit_mirror and peerdb_plan_resync.  Changes nothing; the tables'
 * locks are those of resync_catalog_resolve_tables.
 */
#include "postgres.h"

#include "api/api.h"

#include "access/xlog.h"
#include "replication/slot.h"
#include "utils/snapmgr.h"

void
resync_api_check_server(void)
{
	if (RecoveryInProgress())
		ereport(ERROR, (errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
						errmsg("mirrors cannot be changed on a standby"),
						errhint("Connect to the primary server.")));
	if (wal_level < WAL_LEVEL_LOGICAL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("mirrors need \"wal_level\" to be \"logical\""),
				 errhint("Set wal_level = logical in postgresql.conf and restart the server.")));
	if (max_replication_slots <= 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("mirrors need \"max_replication_slots\" to be greater than 0"),
			 errhint(
				 "Set max_replication_slots in postgresql.conf, one per mirror or more, and restart the server.")));
#if PG_VERSION_NUM < 170000
	if (old_snapshot_threshold >= 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("mirrors need \"old_snapshot_threshold\" to be -1"),
			 errdetail("A long load would end with \"snapshot too old\"."),
			 errhint(
				 "Set old_snapshot_threshold = -1 in postgresql.conf and restart the server.")));
#endif
}

ResyncTable **
resync_api_check_tables(const MirrorRow *mirror, Oid owner, int *ntables)
{
	ResyncOptions *options = resync_options_parse(mirror->options);
	ResyncTable	 **tables;

	tables = resync_catalog_resolve_tables(mirror->id, 0, options, ntables);
	for (int i = 0; i < *ntables; i++)
		resync_catalog_check_access(owner, tables[i]);
	return tables;
}
