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
 * ATTACH, DETACH and DROP of a partition or child leave no trace in the WAL
 * that logical decoding reads: a transactional logical message tells the
 * streamer, in order (rule 12).
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
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/catalog.h"
#include "catalog/pg_inherits.h"
#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
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

static void
block_database(Oid database, bool block)
{
	DatabaseShared *ds;
	int				launcher;

	LWLockAcquire(ResyncShmem->lock, LW_EXCLUSIVE);
	ds = resync_shmem_database(database, block);
	if (ds != NULL)
		ds->blocked = block;
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
	n = resync_catalog_exec("SELECT token::text FROM peerdb._mirror", SPI_OK_SELECT, 0);
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

static void
note_alter_table(AlterTableStmt *stmt)
{
	ListCell *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst(lc);
		Oid			   parent = InvalidOid;
		const char	  *what = NULL;

		if (cmd->subtype == AT_AttachPartition || cmd->subtype == AT_DetachPartition)
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
		parent = ((Form_pg_inherits) GETSTRUCT(tup))->inhparent;
	systable_endscan(scan);
	table_close(inherits, AccessShareLock);
	note_ddl(parent, "A partition or child table was dropped.");
	note_ddl(relid, "It was dropped.");
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
		block_database(database, true);
		PG_TRY();
		{
			stop_database(database);
			call_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
			if (IsA(stmt, DropdbStmt))
				forget_database(database);
		}
		PG_FINALLY();
		{
			block_database(database, false);
		}
		PG_END_TRY();
		return;
	}

	/* before it runs: its own new catalog rows must not matter */
	call_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);

	/* will WAL of this database be read?  Also of a mirror at rest: only the slot tells */
	if (ResyncShmem == NULL || !database_has_slot(MyDatabaseId, false))
		return;
	if (IsA(stmt, AlterTableStmt))
		note_alter_table((AlterTableStmt *) stmt);
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
