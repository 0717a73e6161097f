/*
 * relmap.c
 *		Relations of the WAL stream: root look-up, column mapping, and the check
 *		that a table still is what its mirror was built for (rule 12).
 *
 * Everything here runs inside decoding callbacks, under a historic snapshot:
 * catalog caches show the catalog as it was when the change was made.  No
 * writes, no network.
 */
#include "postgres.h"

#include "decode/relmap.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tupdesc_details.h"
#include "catalog/indexing.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

struct RelMap
{
	DecodeConfig *config;
	HTAB		 *rels;
	MemoryContext context;
};

static RelMap *current_map = NULL; /* for the invalidation callback */

/* Registered once per process; touches only the valid flags. */
static void
relcache_changed(Datum arg, Oid relid)
{
	DecodeRel	   *entry;
	HASH_SEQ_STATUS seq;

	if (current_map == NULL)
		return;
	if (OidIsValid(relid))
	{
		entry = hash_search(current_map->rels, &relid, HASH_FIND, NULL);
		if (entry != NULL)
			entry->valid = false;
		return;
	}
	hash_seq_init(&seq, current_map->rels);
	while ((entry = hash_seq_search(&seq)) != NULL)
		entry->valid = false;
}

RelMap *
resync_relmap_create(DecodeConfig *config)
{
	static bool registered = false;
	RelMap	   *map = palloc0(sizeof(RelMap));
	HASHCTL		ctl = {0};

	map->config = config;
	map->context = CurrentMemoryContext;
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(DecodeRel);
	ctl.hcxt = CurrentMemoryContext;
	map->rels = hash_create("resync relations", 128, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	current_map = map;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(relcache_changed, (Datum) 0);
		registered = true;
	}
	return map;
}

static int
find_table(RelMap *map, Oid relid)
{
	for (int i = 0; i < map->config->ntables; i++)
	{
		if (map->config->tables[i]->relid == relid)
			return i;
	}
	return -1;
}

/*
 * The table itself, else a mirrored table among its partition and inheritance
 * ancestors.
 */
int
resync_relmap_root(RelMap *map, Oid relid)
{
	int			index = find_table(map, relid);
	Relation	inherits;
	List	   *parents = NIL;
	ListCell   *lc;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tup;

	if (index >= 0)
		return index;
	inherits = table_open(InheritsRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_inherits_inhrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(inherits, InheritsRelidSeqnoIndexId, true, NULL, 1, &key);
	while ((tup = systable_getnext(scan)) != NULL)
	{
		/* the parent shows the rows of one that is being detached no more */
		if (!((Form_pg_inherits) GETSTRUCT(tup))->inhdetachpending)
			parents = lappend_oid(parents, ((Form_pg_inherits) GETSTRUCT(tup))->inhparent);
	}
	systable_endscan(scan);
	table_close(inherits, AccessShareLock);

	foreach(lc, parents)
	{
		index = resync_relmap_root(map, lfirst_oid(lc));
		if (index >= 0)
			break;
	}
	list_free(parents);
	return index;
}

static void
raise_changed(const ResyncTable *table, const char *detail)
{
	ereport(ERROR, (errcode(RESYNC_DECODE_ERRCODE_NEEDS_RESYNC),
					errmsg("table \"%s.%s\" was changed in a way that its mirror cannot follow",
						   table->schema, table->name),
					errdetail_internal("%s", detail),
					errhint("Run peerdb_resync() to rebuild the mirror.")));
}

static bool
is_ignored(RelMap *map, int index, const char *name)
{
	ListCell *lc;

	foreach(lc, map->config->ignored[index])
	{
		if (strcmp((char *) lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

ResyncTable *
resync_decode_table_with_column(const ResyncTable *table, const AddedColumn *added)
{
	ResyncTable	 *copy = palloc(sizeof(ResyncTable));
	ResyncColumn *col;

	*copy = *table;
	copy->cols = palloc0((table->ncols + 1) * sizeof(ResyncColumn));
	memcpy(copy->cols, table->cols, table->ncols * sizeof(ResyncColumn));
	col = &copy->cols[copy->ncols++];
	col->name = pstrdup(NameStr(added->name));
	col->attnum = added->attnum;
	col->typid = added->typid;
	col->typmod = added->typmod;
	col->notnull = added->notnull;
	col->generated = added->generated;
	col->dest_name = pstrdup(added->dest_name);
	col->dest_type = pstrdup(added->dest_type);
	col->wire = pstrdup(added->wire);
	col->wire_info = added->wire_info[0] != '\0' ? pstrdup(added->wire_info) : NULL;
	return copy;
}

bool
resync_decode_describe_column(const ResyncTable *table, const ResyncColumn *col, AddedColumn *added)
{
	const char *info = col->wire_info != NULL ? col->wire_info : "";

	memset(added, 0, sizeof(AddedColumn));
	added->ordinal = table->ordinal;
	namestrcpy(&added->name, col->name);
	added->attnum = col->attnum;
	added->typid = col->typid;
	added->typmod = col->typmod;
	added->notnull = col->notnull;
	added->generated = col->generated;
	return strlcpy(added->dest_name, col->dest_name, sizeof(added->dest_name)) <
			   sizeof(added->dest_name) &&
		   strlcpy(added->dest_type, col->dest_type, sizeof(added->dest_type)) <
			   sizeof(added->dest_type) &&
		   strlcpy(added->wire, col->wire, sizeof(added->wire)) < sizeof(added->wire) &&
		   strlcpy(added->wire_info, info, sizeof(added->wire_info)) < sizeof(added->wire_info);
}

/* A built-in type whose binary values mean the same everywhere. */
static bool
travels_as_it_is(Oid typid)
{
	HeapTuple tup;
	bool	  is_binary;

	if (typid >= FirstGenbkiObjectId || resync_encode_is_reg_type(typid))
		return false;
	tup = SearchSysCache1(TYPEOID, ObjectIdGetDatum(typid));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for type %u", typid);
	is_binary = resync_encode_is_binary_type(typid, (Form_pg_type) GETSTRUCT(tup));
	ReleaseSysCache(tup);
	return is_binary;
}

/*
 * ADD COLUMN, seen with the first change after it.  Only types that mean the
 * same everywhere can be added without asking the destination.
 */
static void
add_column(RelMap *map, int index, Relation rel, Form_pg_attribute att)
{
	ResyncTable	 *table = map->config->tables[index];
	ResyncTable	 *newer;
	AddedColumn	  added;
	ResyncColumn  col = {0};
	MemoryContext old;
	Oid			  base;
	Oid			  element;
	bool		  varlena;
	int32		  typmod = att->atttypmod;
	char		 *default_text = NULL;
	TupleDesc	  desc = RelationGetDescr(rel);

	base = getBaseTypeAndTypmod(att->atttypid, &typmod);
	element = get_element_type(base);
	if (!travels_as_it_is(base) || (OidIsValid(element) && !travels_as_it_is(element)))
		raise_changed(
			table, psprintf("Column \"%s\" was added; its type %s needs a look at the destination.",
							NameStr(att->attname), format_type_be(att->atttypid)));

	if (att->atthasmissing && desc->constr != NULL && desc->constr->missing != NULL &&
		desc->constr->missing[att->attnum - 1].am_present)
	{
		Oid outfn;

		getTypeOutputInfo(base, &outfn, &varlena);
		default_text = OidOutputFunctionCall(outfn,
											 desc->constr->missing[att->attnum - 1].am_value);
	}
	col.name = NameStr(att->attname);
	/* of the table itself: a leaf's may differ */
	col.attnum = get_attnum(table->relid, NameStr(att->attname));
	col.typid = att->atttypid;
	col.typmod = att->atttypmod;
	col.notnull = att->attnotnull;
	col.generated = (att->attgenerated != '\0');
	map->config->map_added(map->config->make_encoder_arg, table, &col);
	if (!resync_decode_describe_column(table, &col, &added))
		raise_changed(table,
					  psprintf("Column \"%s\" was added; it needs a look at the destination.",
							   NameStr(att->attname)));

	/* in the map's context: batches may still refer to the old version */
	old = MemoryContextSwitchTo(map->context);
	newer = resync_decode_table_with_column(table, &added);
	MemoryContextSwitchTo(old);
	map->config->tables[index] = newer;
	resync_batch_add_column(map->config->batch, newer, default_text);
}

/* Does the index make rows unique by columns that are all of the mirror's key? */
static bool
index_keeps_key(const ResyncTable *table, Oid index, TupleDesc desc)
{
	HeapTuple	  tup = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;
	bool		  keeps;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for index %u", index);
	form = (Form_pg_index) GETSTRUCT(tup);
	keeps = form->indisunique && form->indimmediate && form->indisvalid &&
			heap_attisnull(tup, Anum_pg_index_indpred, NULL);
	for (int i = 0; i < form->indnkeyatts && keeps; i++)
	{
		AttrNumber attnum = form->indkey.values[i];

		/* an expression has number 0 */
		keeps = attnum > 0 && TupleDescAttr(desc, attnum - 1)->attnotnull;
		if (keeps)
		{
			keeps = false;
			for (int c = 0; c < table->ncols && !keeps; c++)
				keeps = table->cols[c].attnum == attnum && table->cols[c].keypos > 0 &&
						table->cols[c].keypos <= table->nsourcekeys;
		}
	}
	ReleaseSysCache(tup);
	return keeps;
}

/*
 * Are the mirrored table's rows still unique by the key that the destination
 * has?  What the identity says is another matter: it may be FULL, or wider.
 */
static void
check_key_is_unique(const ResyncTable *table)
{
	Relation  root = RelationIdGetRelation(table->relid);
	List	 *indexes;
	ListCell *lc;
	bool	  unique = false;

	if (!RelationIsValid(root))
		elog(ERROR, "could not open relation with OID %u", table->relid);
	indexes = RelationGetIndexList(root);
	foreach(lc, indexes)
		unique |= index_keeps_key(table, lfirst_oid(lc), RelationGetDescr(root));
	list_free(indexes);
	RelationClose(root);
	if (!unique)
		raise_changed(table, "No unique index keeps its rows apart by the mirror's key any more.");
}

/* Identity that the mirror was built with, against the relation's now. */
static void
check_identity(RelMap *map, const ResyncTable *table, Relation rel, DecodeRel *entry)
{
	Bitmapset *identity;

	if (table->nkeys > 0)
		check_key_is_unique(table);
	entry->full = (rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL);
	if (entry->full || table->identity == 'n')
		return;
	if (table->nkeys == 0)
		raise_changed(table, "Its replica identity is not FULL any more, and it has no key.");

	identity = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_IDENTITY_KEY);
	for (int k = 0; k < table->nkeys; k++)
	{
		if (!bms_is_member(entry->key_attno[k] + 1 - FirstLowInvalidHeapAttributeNumber, identity))
			raise_changed(
				table,
				psprintf("Its replica identity does not contain the key column \"%s\" any more.",
						 table->cols[entry->key_column[k]].name));
	}
	bms_free(identity);
}

/*
 * Fill an entry from the relation as the historic snapshot shows it.
 */
static void
build_entry(RelMap *map, DecodeRel *entry, Relation rel)
{
	TupleDesc	  desc = RelationGetDescr(rel);
	ResyncTable	 *table;
	MemoryContext old;

	if (entry->context != NULL)
		MemoryContextReset(entry->context);

	/* rows of a rewrite arrive on a temporary relation */
	entry->index = resync_relmap_root(
		map, OidIsValid(rel->rd_rel->relrewrite) ? rel->rd_rel->relrewrite : RelationGetRelid(rel));
	if (entry->index < 0)
	{
		entry->valid = true;
		return;
	}
	if (OidIsValid(rel->rd_rel->relrewrite))
		raise_changed(map->config->tables[entry->index], "It was rewritten by ALTER TABLE.");

	/* not for every relation that is not mirrored */
	if (entry->context == NULL)
		entry->context = AllocSetContextCreate(map->context, "resync relation",
											   ALLOCSET_SMALL_SIZES);

	/* columns that are new */
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool			  known = false;

		if (att->attisdropped || is_ignored(map, entry->index, NameStr(att->attname)))
			continue;
		table = map->config->tables[entry->index];
		for (int c = 0; c < table->ncols && !known; c++)
			known = (strcmp(table->cols[c].name, NameStr(att->attname)) == 0);
		if (!known)
			add_column(map, entry->index, rel, att);
	}

	old = MemoryContextSwitchTo(entry->context);
	table = map->config->tables[entry->index];
	entry->natts = desc->natts;
	entry->column = palloc(desc->natts * sizeof(int));
	for (int i = 0; i < desc->natts; i++)
		entry->column[i] = -1;
	entry->attno = palloc(table->ncols * sizeof(int));
	entry->key_attno = palloc0(Max(table->nkeys, 1) * sizeof(int));
	entry->key_column = palloc0(Max(table->nkeys, 1) * sizeof(int));
	for (int c = 0; c < table->ncols; c++)
	{
		ResyncColumn	 *col = &table->cols[c];
		Form_pg_attribute att = NULL;

		for (int i = 0; i < desc->natts && att == NULL; i++)
		{
			if (!TupleDescAttr(desc, i)->attisdropped &&
				strcmp(NameStr(TupleDescAttr(desc, i)->attname), col->name) == 0)
				att = TupleDescAttr(desc, i);
		}
		if (att == NULL)
			raise_changed(table, psprintf("Column \"%s\" was dropped or renamed.", col->name));
		if (att->atttypid != col->typid || att->atttypmod != col->typmod)
			raise_changed(table,
						  psprintf("The type of column \"%s\" was changed from %s to %s.",
								   col->name, format_type_with_typemod(col->typid, col->typmod),
								   format_type_with_typemod(att->atttypid, att->atttypmod)));
		/* dropped and added again, or names exchanged: rows there have old values */
		if (get_attnum(table->relid, col->name) != col->attnum)
			raise_changed(table, psprintf("Column \"%s\" is not the column it was.", col->name));
		entry->attno[c] = att->attnum - 1;
		entry->column[att->attnum - 1] = c;
		if (col->keypos > 0)
		{
			entry->key_attno[col->keypos - 1] = att->attnum - 1;
			entry->key_column[col->keypos - 1] = c;
		}
	}
	check_identity(map, table, rel, entry);
	entry->encoder = map->config->make_encoder(map->config->make_encoder_arg, table, desc);
	MemoryContextSwitchTo(old);
	entry->valid = true;
}

DecodeRel *
resync_relmap_get(RelMap *map, Relation rel)
{
	Oid		   relid = RelationGetRelid(rel);
	bool	   found;
	DecodeRel *entry = hash_search(map->rels, &relid, HASH_ENTER, &found);

	if (!found)
	{
		memset(entry, 0, sizeof(DecodeRel));
		entry->relid = relid;
	}

	/*
	 * A table's columns may have grown through another leaf: then this leaf's
	 * mapping is too short, although its own cache entry did not change.
	 */
	if (!entry->valid)
		build_entry(map, entry, rel);
	else if (entry->index >= 0 && entry->encoder->ncols != map->config->tables[entry->index]->ncols)
		build_entry(map, entry, rel);
	return entry;
}
