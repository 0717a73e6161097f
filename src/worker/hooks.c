/*
 * hooks.c
 *		What others do to our databases and tables: utility commands and drops
 *		that mirrors have to know about.
 *
 * Runs in user backends.
 *
 * DROP DATABASE and the like: a database with an active slot cannot be dropped,
 * not even WITH (FORCE), and our workers count as its users.  After checking
 * that the caller owns the database, its workers are told to end and kept away
 * until the command is over; core drops the slots that are inactive then.
 *
 * ATTACH, DETACH and DROP of a partition or child, and a renamed enum label, leave
 * no trace in the WAL that logical decoding reads: a transactional logical message
 * tells the streamer, in order (rule 12).
 *
 * DROP EXTENSION is transactional, slots are not: at its commit the launcher
 * is told, on rollback nothing happens.
 */
#include "postgres.h"

#include "compat.h"

#include "worker/hooks.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/catalog.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "parser/parse_type.h"
#include "pgstat.h"
#include "replication/message.h"
#include "resync.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "worker/shmem.h"
#include "worker/worker.h"

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type	prev_object_access = NULL;

#define STOP_TIMEOUT_MS 30000

/* ---- databases ---- */

/* The database that a command needs for itself, or InvalidOid. */
static Oid
database_of(Node *stmt)
{
	const char *name = NULL;

	if (IsA(stmt, DropdbStmt))
		name = ((DropdbStmt *) stmt)->dbname;
	else if (IsA(stmt, RenameStmt) && ((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		name = ((RenameStmt *) stmt)->subname;
	else if (IsA(stmt, AlterDatabaseStmt))
	{
		ListCell *lc;

		foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
		{
			if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
				name = ((AlterDatabaseStmt *) stmt)->dbname;
		}
	}
	else if (IsA(stmt, CreatedbStmt))
	{
		ListCell *lc;

		foreach(lc, ((CreatedbStmt *) stmt)->options)
		{
			DefElem *opt = lfirst(lc);

			if (strcmp(opt->defname, "template") == 0 && opt->arg != NULL)
				name = defGetString(opt);
		}
	}
	return name != NULL ? get_database_oid(name, true) : InvalidOid;
}

/* Keep our workers out of the database, until as many calls of unblock_database. */
static void
block_database(Oid database)
{
	DatabaseShared *ds;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ds = resync_shmem_database(database, true);
	if (ds != NULL)
		ds->blockers++;
	LWLockRelease(ResyncShmem->lock);
}

/* Also as a callback of before_shmem_exit: a session may be terminated while it waits. */
static void
unblock_database(int code, Datum database)
{
	DatabaseShared *ds;
	int				launcher;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ds = resync_shmem_database(DatumGetObjectId(database), false);
	if (ds != NULL && ds->blockers > 0)
		ds->blockers--;
	launcher = ResyncShmem->launcher_pgprocno;
	LWLockRelease(ResyncShmem->lock);
	resync_shmem_wake(launcher);
}

/*
 * Has the database a slot of ours?  active: one that some process uses, maybe a
 * worker that is about to end.
 */
static bool
database_has_slot(Oid database, bool active)
{
	int			nslots;
	WorkerSlot *slots = resync_worker_slots(database, &nslots);
	bool		found = false;

	for (int i = 0; i < nslots && !found; i++)
		found = slots[i].active || !active;
	pfree(slots);
	return found;
}

/*
 * Our workers of the database end; they come back when it is unblocked.  The
 * command fails by itself if they do not end in time.
 */
static void
stop_database(Oid database)
{
	TimestampTz start = GetCurrentTimestamp();

	while (
		(resync_shmem_signal_workers(database, SIGTERM) > 0 || database_has_slot(database, true)) &&
		!TimestampDifferenceExceeds(start, GetCurrentTimestamp(), STOP_TIMEOUT_MS))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 RESYNC_WAIT_EVENT("WorkersEnd"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Does a worker of ours live in the database, or could one start? */
static bool
database_is_used(Oid database)
{
	bool used = false;

	if (resync_shmem_signal_workers(database, 0) > 0)
		return true;
	LWLockAcquire(ResyncShmem->lock, LW_SHARED);
	for (int i = 0; i < resync_max_mirrors && !used; i++)
		used = ResyncShmem->mirrors[i].in_use && ResyncShmem->mirrors[i].database == database &&
			   ResyncShmem->mirrors[i].wanted;
	LWLockRelease(ResyncShmem->lock);
	return used;
}

/* The database is gone: nobody is to be started for it any more. */
static void
forget_database(Oid database)
{
	DatabaseShared *ds;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < resync_max_mirrors; i++)
	{
		if (ResyncShmem->mirrors[i].in_use && ResyncShmem->mirrors[i].database == database)
			ResyncShmem->mirrors[i].wanted = false;
	}
	ds = resync_shmem_database(database, false);
	if (ds != NULL)
		memset(ds, 0, sizeof(DatabaseShared));
	LWLockRelease(ResyncShmem->lock);
}

/* ---- partitions and children ---- */

/*
 * Tokens of this database's mirrors (char *), in the current context.  Nobody
 * but us can read them: a message that carries one is ours, although anybody
 * may call pg_logical_emit_message().
 */
static List *
mirror_tokens(void)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			  schema = get_namespace_oid(RESYNC_SCHEMA, true);
	List		 *tokens = NIL;
	uint64		  n;

	/* without the extension a schema of that name is anybody's, and so is its code */
	if (!resync_catalog_exists() || !OidIsValid(schema) ||
		!OidIsValid(get_relname_relid("_mirror", schema)))
		return NIL;
	/* a mirror may be younger than the snapshot of a REPEATABLE READ transaction */
	n = resync_catalog_look("SELECT token::text FROM peerdb._mirror");
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		tokens = lappend(tokens, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1));
		MemoryContextSwitchTo(old);
	}
	resync_catalog_finish();
	return tokens;
}

/* A note for the streamers: "<token> <oid> <what happened>". */
static void
note_ddl(Oid relid, const char *what)
{
	ListCell *lc;

	if (!OidIsValid(relid) || wal_level < WAL_LEVEL_LOGICAL)
		return;
	foreach(lc, mirror_tokens())
	{
		char *text = psprintf("%s %u %s", (char *) lfirst(lc), relid, what);

		RESYNC_LOG_MESSAGE("resync", text, strlen(text));
	}
}

static bool
is_concurrent_detach(const AlterTableCmd *cmd)
{
	return cmd->subtype == AT_DetachPartition && castNode(PartitionCmd, cmd->def)->concurrent;
}

/*
 * DETACH PARTITION ... CONCURRENTLY commits before it waits for others, and the
 * parent shows the rows no more, whether it comes to an end then or is FINALIZEd
 * some day: the note goes with that first transaction.
 */
static void
note_concurrent_detach(AlterTableStmt *stmt)
{
	ListCell *lc;

	foreach(lc, stmt->cmds)
	{
		if (is_concurrent_detach(lfirst(lc)))
			note_ddl(RangeVarGetRelid(stmt->relation, NoLock, true), "A partition was detached.");
	}
}

static void
note_alter_table(AlterTableStmt *stmt)
{
	ListCell *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst(lc);
		Oid			   parent = InvalidOid;
		const char	  *what = NULL;

		if (cmd->subtype == AT_AttachPartition ||
			(cmd->subtype == AT_DetachPartition && !is_concurrent_detach(cmd)))
		{
			parent = RangeVarGetRelid(stmt->relation, NoLock, true);
			what = cmd->subtype == AT_AttachPartition ? "A partition was attached."
													  : "A partition was detached.";
		}
		else if (cmd->subtype == AT_SetUnLogged)
		{
			parent = RangeVarGetRelid(stmt->relation, NoLock, true);
			what = "It, or a part of it, was made UNLOGGED.";
		}
		else if (cmd->subtype == AT_AddInherit || cmd->subtype == AT_DropInherit)
		{
			parent = RangeVarGetRelid((RangeVar *) cmd->def, NoLock, true);
			what = cmd->subtype == AT_AddInherit ? "A child table was added."
												 : "A child table was removed.";
		}
		else if (cmd->subtype == AT_AddColumn)
		{
			Oid		  relid = RangeVarGetRelid(stmt->relation, NoLock, true);
			ListCell *member;

			/* the value that old rows have is the storing relation's */
			if (OidIsValid(relid))
			{
				foreach(member, find_all_inheritors(relid, NoLock, NULL))
					note_ddl(lfirst_oid(member), "+");
			}
		}
		if (what != NULL)
			note_ddl(parent, what);
	}
}

/*
 * A table is dropped: its rows, and those of its parent if it has one, go
 * without a change in WAL.
 */
static void
note_drop_table(Oid relid)
{
	Relation	inherits;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tup;
	Oid			parent = InvalidOid;

	inherits = table_open(InheritsRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_inherits_inhrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(inherits, InheritsRelidSeqnoIndexId, true, NULL, 1, &key);
	while ((tup = systable_getnext(scan)) != NULL)
	{
		/* one that is being detached was noted when that began */
		if (!((Form_pg_inherits) GETSTRUCT(tup))->inhdetachpending)
			parent = ((Form_pg_inherits) GETSTRUCT(tup))->inhparent;
	}
	systable_endscan(scan);
	table_close(inherits, AccessShareLock);
	note_ddl(parent, "A partition or child table was dropped.");
	note_ddl(relid, "It was dropped.");
}

/*
 * A label of an enum was renamed: rows that have it keep their old text at the
 * destination.  Columns of types that are made of it count, too.
 */
static void
note_renamed_label(Oid type)
{
	Relation	depend;
	SysScanDesc scan;
	ScanKeyData key[2];
	HeapTuple	tup;

	check_stack_depth();
	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(TypeRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(type));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2, key);
	while ((tup = systable_getnext(scan)) != NULL)
	{
		Form_pg_depend dep = (Form_pg_depend) GETSTRUCT(tup);
		char		   kind;

		if (dep->classid == TypeRelationId)
			note_renamed_label(dep->objid);
		else if (dep->classid == RelationRelationId && dep->objsubid != 0)
		{
			kind = get_rel_relkind(dep->objid);
			if (kind == RELKIND_COMPOSITE_TYPE)
				note_renamed_label(get_rel_type_id(dep->objid));
			else if (kind == RELKIND_RELATION || kind == RELKIND_PARTITIONED_TABLE)
				note_ddl(dep->objid, "A label of the enum type of a column was renamed.");
		}
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
}

/* Will WAL of this database be read?  Also of a mirror at rest: only the slot tells. */
static bool
wal_is_read(void)
{
	return ResyncShmem != NULL && database_has_slot(MyDatabaseId, false);
}

/* ---- hooks ---- */

static void
call_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
			 ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *env,
			 DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility)
		prev_process_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params, env, dest, qc);
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *env,
				DestReceiver *dest, QueryCompletion *qc)
{
	Node *stmt = pstmt->utilityStmt;
	Oid	  database = ResyncShmem != NULL ? database_of(stmt) : InvalidOid;

	if (OidIsValid(database) && database != MyDatabaseId &&
		RESYNC_OWNS_DATABASE(database, GetUserId()) && database_is_used(database))
	{
		block_database(database);
		PG_ENSURE_ERROR_CLEANUP(unblock_database, ObjectIdGetDatum(database));
		{
			stop_database(database);
			call_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
			if (IsA(stmt, DropdbStmt))
				forget_database(database);
		}
		PG_END_ENSURE_ERROR_CLEANUP(unblock_database, ObjectIdGetDatum(database));
		unblock_database(0, ObjectIdGetDatum(database));
		return;
	}

	if (IsA(stmt, AlterTableStmt) && wal_is_read())
		note_concurrent_detach((AlterTableStmt *) stmt);
	call_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
	if (!wal_is_read())
		return;
	if (IsA(stmt, AlterTableStmt))
		note_alter_table((AlterTableStmt *) stmt);
	else if (IsA(stmt, AlterEnumStmt) && ((AlterEnumStmt *) stmt)->oldVal != NULL)
		note_renamed_label(
			typenameTypeId(NULL, makeTypeNameFromNameList(((AlterEnumStmt *) stmt)->typeName)));
	else if (IsA(stmt, RenameStmt) && ((RenameStmt *) stmt)->renameType == OBJECT_COLUMN &&
			 ((RenameStmt *) stmt)->relation != NULL)
		note_ddl(RangeVarGetRelid(((RenameStmt *) stmt)->relation, NoLock, true),
				 "A column was renamed.");
}

static void
object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, class_id, object_id, sub_id, arg);
	if (access != OAT_DROP || ResyncShmem == NULL || sub_id != 0)
		return;
	if (class_id == ExtensionRelationId && object_id == get_extension_oid(RESYNC_EXTENSION, true))
		resync_shmem_extension_drop_at_commit();
	else if (class_id == RelationRelationId && database_has_slot(MyDatabaseId, false))
	{
		char kind = get_rel_relkind(object_id);

		/* our own tables go with the extension, and tokens with them */
		if ((kind == RELKIND_RELATION || kind == RELKIND_PARTITIONED_TABLE) &&
			get_rel_namespace(object_id) != get_namespace_oid(RESYNC_SCHEMA, true))
			note_drop_table(object_id);
	}
}

void
resync_hooks_install(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
}
