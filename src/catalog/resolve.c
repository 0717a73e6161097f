/*
 * resolve.c
 *		A mirror's tables as they are at the source now: names, columns, key.
 *
 * Called by the coordinator in phase validate, and by the API for planning.
 * Tables are looked up and locked (ACCESS SHARE, until the transaction ends) as
 * the bootstrap superuser; whether the mirror's owner may read them is asked
 * by resync_catalog_check_access() and resync_catalog_check_role().
 *
 * The identity decides what an update or delete carries in WAL.  In a
 * partitioned or inherited table it is the leaf's that counts, so each one has
 * to carry at least the key of the root.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "catalog/catalog.h"
#include "catalog/result.h"
#include "compat.h"

/* A row of peerdb._table. */
typedef struct TableRow
{
	int	   ordinal;
	Oid	   relid;
	char  *schema;
	char  *name;
	char  *dest_schema;
	char  *dest_name;
	char  *mapping;
	bool   append;
	char **exclude;
	int	   nexclude;
} TableRow;

/* What identifies rows of one relation in WAL. */
typedef struct Identity
{
	char	   kind; /* as ResyncTable.identity */
	bool	   full; /* old tuples carry all columns */
	int		   nkeys;
	AttrNumber keys[INDEX_MAX_KEYS];
} Identity;

/* ----------------------------------------------------------------
 *		the mirror's tables, by name or OID
 * ----------------------------------------------------------------
 */

static TableRow *
read_table_rows(int64 mirror, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	TableRow	 *rows;
	uint64		  count;

	count = resync_catalog_exec(
		"SELECT ordinal, relid, schema_name, table_name, dest_schema, "
		"dest_name, mapping::text, "
		"COALESCE((mapping->>'append')::boolean, false), "
		"ARRAY(SELECT pg_catalog.jsonb_array_elements_text(mapping->'exclude')) "
		"FROM peerdb._table WHERE mirror = $1 ORDER BY ordinal",
		SPI_OK_SELECT, 1, ARG_INT8(mirror));
	rows = MemoryContextAllocZero(context, Max(count, 1) * sizeof(TableRow));
	for (uint64 i = 0; i < count; i++)
	{
		TableRow  *row = &rows[i];
		bool	   isnull;
		Datum	  *names;
		ArrayType *array;

		row->ordinal = result_int4(i, 1);
		row->relid = result_oid(i, 2);
		row->schema = result_text(i, 3, context);
		row->name = result_text(i, 4, context);
		row->dest_schema = result_text(i, 5, context);
		row->dest_name = result_text(i, 6, context);
		row->mapping = result_text(i, 7, context);
		row->append = result_bool(i, 8);
		array = DatumGetArrayTypeP(result_datum(i, 9, &isnull));
		deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &names, NULL, &row->nexclude);
		row->exclude = MemoryContextAlloc(context, Max(row->nexclude, 1) * sizeof(char *));
		for (int k = 0; k < row->nexclude; k++)
			row->exclude[k] = MemoryContextStrdup(context, TextDatumGetCString(names[k]));
	}
	resync_catalog_finish();
	*n = (int) count;
	return rows;
}

/*
 * Find and lock the table: by its name, else by its OID, which follows a
 * rename.  Puts what it finds into row; true if that differs from before.
 */
static bool
look_up(TableRow *row)
{
	Oid relid;

	relid = RangeVarGetRelid(makeRangeVar(row->schema, row->name, -1), AccessShareLock, true);
	if (OidIsValid(relid))
	{
		bool changed = relid != row->relid;

		row->relid = relid;
		return changed;
	}

	/* under the lock it can neither go nor be renamed any more */
	LockRelationOid(row->relid, AccessShareLock);
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(row->relid)))
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("table \"%s.%s\" does not exist", row->schema, row->name),
			 errhint(
				 "Create it again, or drop the mirror and create it without the table, with \"replace_existing\".")));
	row->schema = get_namespace_name(get_rel_namespace(row->relid));
	row->name = get_rel_name(row->relid);
	return true;
}

static void
store_names(int64 mirror, const TableRow *row)
{
	(void) resync_catalog_exec("UPDATE peerdb._table SET relid = $3, schema_name = $4, "
							   "table_name = $5 WHERE mirror = $1 AND ordinal = $2",
							   SPI_OK_UPDATE, 5, ARG_INT8(mirror), ARG_INT4(row->ordinal),
							   ARG_OID(row->relid), ARG_TEXT(row->schema), ARG_TEXT(row->name));
	resync_catalog_finish();
}

/* ----------------------------------------------------------------
 *		identity
 * ----------------------------------------------------------------
 */

/*
 * The relation's replica identity as logical decoding sees it: a deferrable
 * primary key is none.
 */
static void
get_identity(Relation rel, Identity *id)
{
	Oid			  index = InvalidOid;
	HeapTuple	  tuple;
	Form_pg_index form;

	memset(id, 0, sizeof(Identity));
	list_free(RelationGetIndexList(rel)); /* sets rd_pkindex, rd_replidindex */
	id->kind = 'n';

	switch (rel->rd_rel->relreplident)
	{
		case REPLICA_IDENTITY_DEFAULT:
			index = rel->rd_replidindex;
			id->kind = 'p';
			break;
		case REPLICA_IDENTITY_INDEX:
			index = rel->rd_replidindex;
			id->kind = 'i';
			break;
		case REPLICA_IDENTITY_FULL:
			/* the old tuple has the primary key too; it is the better key */
			index = rel->rd_pkindex;
			id->full = true;
			id->kind = 'p';
			break;
		default:
			break;
	}

	if (OidIsValid(index))
	{
		tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", index);
		form = (Form_pg_index) GETSTRUCT(tuple);
		if (form->indimmediate)
		{
			id->nkeys = form->indnkeyatts;
			for (int i = 0; i < id->nkeys; i++)
				id->keys[i] = form->indkey.values[i];
		}
		ReleaseSysCache(tuple);
	}
	if (id->nkeys == 0)
		id->kind = id->full ? 'f' : 'n';
}

/* Does the identity carry every key column of the root (by name)? */
static bool
identity_covers(Relation leaf, const Identity *leaf_id, Relation root, const Identity *root_id)
{
	if (leaf_id->full)
		return true;
	if (leaf_id->nkeys == 0 || root_id->nkeys == 0)
		return false;
	for (int k = 0; k < root_id->nkeys; k++)
	{
		char *name = NameStr(TupleDescAttr(RelationGetDescr(root), root_id->keys[k] - 1)->attname);
		AttrNumber attnum = get_attnum(RelationGetRelid(leaf), name);
		bool	   found = false;

		for (int i = 0; i < leaf_id->nkeys; i++)
			found |= leaf_id->keys[i] == attnum;
		if (!found)
			return false;
	}
	return true;
}

/* Only what logical decoding can carry. */
static void
check_kind(Relation rel)
{
	const char *schema = get_namespace_name(RelationGetNamespace(rel));
	char		relkind = rel->rd_rel->relkind;

	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("\"%s.%s\" is not a table", schema, RelationGetRelationName(rel)),
			 errdetail(
				 "Only ordinary and partitioned tables can be mirrored, and partitions that are tables.")));
	if (RelationGetRelid(rel) < FirstNormalObjectId)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s.%s\" is a system table", schema, RelationGetRelationName(rel))));
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("table \"%s.%s\" is %s", schema, RelationGetRelationName(rel),
							   rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP ? "temporary"
																				  : "unlogged"),
						errdetail("Its changes are not written to the WAL."),
						errhint("ALTER TABLE ... SET LOGGED, or remove it from the mirror.")));
}

static void
no_identity(Relation rel)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		 errmsg("table \"%s.%s\" has no replica identity",
				get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel)),
		 errdetail("Updates and deletes could not be carried to the destination."),
		 errhint(
			 "Add a primary key (not deferrable), or use ALTER TABLE ... REPLICA IDENTITY USING INDEX or FULL; a table that is only inserted into can be mirrored with \"append\": true.")));
}

/*
 * Identity of a mirrored table, checked against all relations that its rows
 * are in.
 */
static void
resolve_identity(Relation rel, bool append, Identity *id)
{
	List	 *members = find_all_inheritors(RelationGetRelid(rel), AccessShareLock, NULL);
	bool	  all_full = true;
	int		  leaves = 0;
	ListCell *lc;
	Relation  offender = NULL;

	get_identity(rel, id);
	foreach(lc, members)
	{
		Relation leaf = table_open(lfirst_oid(lc), NoLock);
		Identity leaf_id;
		bool	 keep = false;

		check_kind(leaf);
		if (leaf->rd_rel->relkind == RELKIND_RELATION)
		{
			leaves++;
			get_identity(leaf, &leaf_id);
			all_full &= leaf_id.full;
			if (offender == NULL && !identity_covers(leaf, &leaf_id, rel, id))
			{
				offender = leaf;
				keep = true;
			}
		}
		if (!keep)
			table_close(leaf, NoLock);
	}

	/* a partitioned table's own setting counts for nothing */
	if (leaves > 0)
		id->full = all_full;
	if (id->nkeys == 0)
		id->kind = id->full ? 'f' : 'n';
	if (!append && (offender != NULL || id->kind == 'n'))
		no_identity(offender != NULL ? offender : rel);
	if (append && offender != NULL)
	{
		id->kind = 'n';
		id->nkeys = 0;
	}
	if (offender != NULL)
		table_close(offender, NoLock);
	list_free(members);
}

/* ----------------------------------------------------------------
 *		columns
 * ----------------------------------------------------------------
 */

static bool
is_excluded(const TableRow *row, const char *name)
{
	for (int i = 0; i < row->nexclude; i++)
	{
		if (strcmp(row->exclude[i], name) == 0)
			return true;
	}
	return false;
}

static void
resolve_columns(Relation rel, const TableRow *row, const Identity *id, ResyncTable *table)
{
	TupleDesc desc = RelationGetDescr(rel);

	table->cols = palloc0(Max(desc->natts, 1) * sizeof(ResyncColumn));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		ResyncColumn	 *col;
		int				  keypos = 0;

		if (att->attisdropped || RESYNC_ATT_IS_VIRTUAL(att))
			continue;
		for (int k = 0; k < id->nkeys; k++)
		{
			if (id->keys[k] == att->attnum)
				keypos = k + 1;
		}
		if (is_excluded(row, NameStr(att->attname)))
		{
			if (keypos > 0)
				ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
								errmsg("column \"%s\" of table \"%s.%s\" cannot be excluded",
									   NameStr(att->attname), row->schema, row->name),
								errdetail("It is part of the key of the mirrored table.")));
			continue;
		}

		col = &table->cols[table->ncols++];
		col->name = pstrdup(NameStr(att->attname));
		col->attnum = att->attnum;
		col->typid = att->atttypid;
		col->typmod = att->atttypmod;
		col->notnull = att->attnotnull;
		col->generated = att->attgenerated != '\0';
		col->keypos = keypos;
	}
	table->nkeys = id->nkeys;
	table->nsourcekeys = id->nkeys;
	if (table->ncols == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("table \"%s.%s\" has no column to mirror", row->schema, row->name)));
}

/* The destination's own columns must not meet a column of the source. */
static void
check_own_columns(const ResyncTable *table, const ResyncOptions *options)
{
	const char *const own[] = {options->soft_delete_col_name, options->synced_at_col_name};
	const char *const option[] = {"soft_delete_col_name", "synced_at_col_name"};

	for (int i = 0; i < table->ncols; i++)
	{
		for (int k = 0; k < lengthof(own); k++)
		{
			if (own[k] != NULL && strcmp(own[k], table->cols[i].name) == 0)
				ereport(
					ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg(
						 "table \"%s.%s\" has a column \"%s\", which the mirror adds at the destination",
						 table->schema, table->name, own[k]),
					 errhint("Set the mirror option \"%s\" to another name, or exclude the column.",
							 option[k])));
		}
	}
}

static ResyncTable *
resolve_table(const TableRow *row, const ResyncOptions *options)
{
	ResyncTable *table = palloc0(sizeof(ResyncTable));
	Relation	 rel = table_open(row->relid, NoLock);
	Identity	 id;

	check_kind(rel);
	resolve_identity(rel, row->append, &id);
	table->ordinal = row->ordinal;
	table->relid = row->relid;
	table->schema = pstrdup(row->schema);
	table->name = pstrdup(row->name);
	table->dest_schema = row->dest_schema == NULL ? NULL : pstrdup(row->dest_schema);
	table->dest_name = pstrdup(row->dest_name);
	table->identity = id.kind;
	table->identity_full = id.full;
	table->mapping = pstrdup(row->mapping);
	table->state = RESYNC_TABLE_NEW;
	resolve_columns(rel, row, &id, table);
	check_own_columns(table, options);
	table_close(rel, NoLock);
	return table;
}

/* ----------------------------------------------------------------
 *		names under construction
 * ----------------------------------------------------------------
 */

static bool
same_schema(const ResyncTable *a, const ResyncTable *b)
{
	if (a->dest_schema == NULL || b->dest_schema == NULL)
		return a->dest_schema == b->dest_schema;
	return strcmp(a->dest_schema, b->dest_schema) == 0;
}

static char *
make_build_name(int64 run, ResyncTable **tables, int ntables, int which)
{
	const ResyncTable *table = tables[which];
	char			  *name = psprintf("%s_resync", table->dest_name);
	bool			   usable = strlen(name) < NAMEDATALEN;
	char			  *seed;
	uint32			   hash;
	int				   cut;

	for (int i = 0; usable && i < ntables; i++)
		usable = !same_schema(table, tables[i]) || strcmp(name, tables[i]->dest_name) != 0;
	if (usable)
		return name;

	seed = psprintf(INT64_FORMAT "/%d/%s.%s", run, table->ordinal,
					table->dest_schema ? table->dest_schema : "", table->dest_name);
	hash = hash_bytes((const unsigned char *) seed, (int) strlen(seed));
	cut = pg_mbcliplen(table->dest_name, (int) strlen(table->dest_name),
					   NAMEDATALEN - 1 - (int) strlen("_resync_") - 8);
	return psprintf("%.*s_resync_%08x", cut, table->dest_name, hash);
}

ResyncTable **
resync_catalog_resolve_tables(int64 mirror, int64 run, const ResyncOptions *options, int *ntables)
{
	TableRow	 *rows = read_table_rows(mirror, ntables);
	ResyncTable **tables = palloc(Max(*ntables, 1) * sizeof(ResyncTable *));
	Oid			  userid;
	int			  sec_context;

	/* the caller need not have USAGE on the schemas; an abort undoes this */
	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, sec_context | SECURITY_LOCAL_USERID_CHANGE);
	for (int i = 0; i < *ntables; i++)
	{
		if (look_up(&rows[i]) && run != 0)
			store_names(mirror, &rows[i]);
		tables[i] = resolve_table(&rows[i], options);
	}
	SetUserIdAndSecContext(userid, sec_context);

	for (int i = 0; i < *ntables; i++)
		tables[i]->build_name = make_build_name(run, tables, *ntables, i);
	return tables;
}

/* ----------------------------------------------------------------
 *		may the owner read it?
 * ----------------------------------------------------------------
 */

static void
check_select(Oid owner, const ResyncTable *table)
{
	if (!DatumGetBool(DirectFunctionCall3(has_schema_privilege_id_id, ObjectIdGetDatum(owner),
										  ObjectIdGetDatum(get_rel_namespace(table->relid)),
										  CStringGetTextDatum("USAGE"))))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("role \"%s\" has no USAGE privilege on schema \"%s\"",
							   GetUserNameFromId(owner, false), table->schema)));
	if (pg_class_aclcheck(table->relid, owner, ACL_SELECT) == ACLCHECK_OK)
		return;
	for (int i = 0; i < table->ncols; i++)
	{
		if (pg_attribute_aclcheck(table->relid, table->cols[i].attnum, owner, ACL_SELECT) !=
			ACLCHECK_OK)
			ereport(
				ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" has no SELECT privilege on column \"%s\" of table \"%s.%s\"",
						GetUserNameFromId(owner, false), table->cols[i].name, table->schema,
						table->name)));
	}
}

void
resync_catalog_check_access(Oid owner, const ResyncTable *table)
{
	Oid userid;
	int sec_context;
	int rls;

	check_select(owner, table);

	/* our own security context would hide FORCE ROW LEVEL SECURITY */
	GetUserIdAndSecContext(&userid, &sec_context);
	SetUserIdAndSecContext(userid, sec_context & ~SECURITY_NOFORCE_RLS);
	rls = check_enable_rls(table->relid, owner, true);
	SetUserIdAndSecContext(userid, sec_context);
	if (rls == RLS_ENABLED)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("row security of table \"%s.%s\" applies to role \"%s\"",
							   table->schema, table->name, GetUserNameFromId(owner, false)),
						errdetail("The mirror would lack the rows that the role cannot see."),
						errhint("Use an owner that bypasses row security.")));
}

void
resync_catalog_check_role(Oid owner)
{
	HeapTuple	   tup;
	Form_pg_authid role;
	bool		   may_login;
	bool		   may_replicate;
	char		  *name;

	tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	if (!HeapTupleIsValid(tup))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("the mirror's owner does not exist any more")));
	role = (Form_pg_authid) GETSTRUCT(tup);
	may_login = role->rolcanlogin;
	may_replicate = role->rolsuper || role->rolreplication;
	name = pstrdup(NameStr(role->rolname));
	ReleaseSysCache(tup);

	if (!may_replicate)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied to own a mirror"),
						errdetail("Role \"%s\" does not have the REPLICATION attribute.", name),
						errhint("ALTER ROLE %s REPLICATION;", quote_identifier(name))));
	if (!may_login)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied to own a mirror"),
						errdetail("Role \"%s\" does not have the LOGIN attribute.", name),
						errhint("ALTER ROLE %s LOGIN;", quote_identifier(name))));
}

/*
 * Has the table a planned column as it was?  What only the destination has given
 * it does not count: its place, and a place in the key beyond the source's.
 */
static bool
has_column(const ResyncTable *now, const ResyncColumn *col, int nsourcekeys)
{
	int keypos = col->keypos <= nsourcekeys ? col->keypos : 0;

	for (int i = 0; i < now->ncols; i++)
	{
		const ResyncColumn *c = &now->cols[i];

		if (c->attnum == col->attnum)
			return strcmp(c->name, col->name) == 0 && c->typid == col->typid &&
				   c->typmod == col->typmod && c->notnull == col->notnull &&
				   c->generated == col->generated && c->keypos == keypos;
	}
	return false;
}

const ResyncTable *
resync_catalog_find_changed(ResyncTable **planned, ResyncTable **now, int ntables)
{
	for (int i = 0; i < ntables; i++)
	{
		const ResyncTable *p = planned[i];
		const ResyncTable *n = now[i];
		bool			   same = p->relid == n->relid && p->ncols == n->ncols &&
					p->nsourcekeys == n->nsourcekeys && p->identity == n->identity &&
					p->identity_full == n->identity_full;

		for (int c = 0; c < p->ncols && same; c++)
			same = has_column(n, &p->cols[c], p->nsourcekeys);
		if (!same)
			return p;
	}
	return NULL;
}
