/*
 * partition.c
 *		A mirrored table into partitions: block ranges of the relations that
 *		hold its rows.
 *
 * Called by the coordinator when a run's load is planned, and by
 * peerdb_plan_resync() in a user's backend; always in a transaction.  Only
 * pg_inherits, the relation cache and file sizes are read: no row of the table
 * is.
 *
 * Locks: resync_snapshot_partitions() takes ACCESS SHARE on the table and
 * everything below it and keeps it to the transaction's end;
 * resync_snapshot_leaves() takes none.
 *
 * The sizes are those of now, and rows may be added before a copier's snapshot
 * is taken, or the end of the relation may be cut off: so the last partition
 * of each relation is open-ended, and a scan minds the size it finds.
 */
#include "postgres.h"

#include "snapshot/snapshot.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "optimizer/plancat.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/* What a relation's size says. */
typedef struct LeafSize
{
	Oid			relid;
	bool		by_blocks; /* a heap: can be read by block ranges */
	BlockNumber nblocks;
	double		rows;  /* estimate */
	double		bytes; /* main fork and TOAST */
} LeafSize;

/*
 * Does this member of the inheritance tree hold rows of its own to be read?
 * False for a partitioned table, another session's temporary table and one
 * that is gone by now.  Raises for one whose rows are not here.
 */
static bool
is_leaf(Oid relid, Oid root)
{
	switch (get_rel_relkind(relid))
	{
		case RELKIND_RELATION:
		case RELKIND_MATVIEW:
			/* a child can be temporary; nothing of it is in WAL either */
			return relid == root || get_rel_persistence(relid) != RELPERSISTENCE_TEMP;
		case RELKIND_PARTITIONED_TABLE:
			return false;
		case '\0':
			return false;
		case RELKIND_FOREIGN_TABLE:
			ereport(
				ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot mirror foreign table \"%s.%s\"",
						get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid)),
				 relid == root
					 ? 0
					 : errdetail("It is a partition or child of table \"%s.%s\".",
								 get_namespace_name(get_rel_namespace(root)), get_rel_name(root)),
				 relid == root ? 0
							   : errhint("Detach it, or mirror the other partitions one by one.")));
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("relation \"%s.%s\" is not a table",
							get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid))));
			break;
	}
	return false; /* keep the compiler quiet */
}

/*
 * The leaves below relid, itself included; lockmode NoLock takes no locks.
 *
 * Not find_all_inheritors(): without locks that raises "cache lookup failed"
 * for a child that is dropped meanwhile.  Here existence is looked up right
 * before find_inheritance_children() finds the same cache entry again.
 */
static List *
find_leaves(Oid relid, LOCKMODE lockmode)
{
	List *all = list_make1_oid(relid);
	List *leaves = NIL;

	if (lockmode != NoLock)
		LockRelationOid(relid, lockmode);
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation with OID %u does not exist", relid)));

	/* the list grows at its end as children are found */
	for (int i = 0; i < list_length(all); i++)
	{
		Oid member = list_nth_oid(all, i);

		CHECK_FOR_INTERRUPTS();
		if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(member)))
			continue;
		if (is_leaf(member, relid))
			leaves = lappend_oid(leaves, member);
		/* a child of several parents is found several times */
		all = list_concat_unique_oid(all, find_inheritance_children(member, lockmode));
	}
	list_free(all);
	return leaves;
}

List *
resync_snapshot_leaves(Oid relid)
{
	return find_leaves(relid, NoLock);
}

/*
 * Rows per block: from the statistics as the planner does it, else from the
 * width of the columns.
 */
static double
row_density(Relation rel)
{
	BlockNumber pages;
	double		rows;
	double		allvisfrac;
	int32		width;

	estimate_rel_size(rel, NULL, &pages, &rows, &allvisfrac);
	if (pages > 0 && rows > 0)
		return rows / pages;

	/*
	 * Statistics that say "no rows" were made when the table was empty: not a
	 * reason to read whatever has been put in since as one partition.
	 */
	width = MAXALIGN(get_rel_data_width(rel, NULL)) + MAXALIGN(SizeofHeapTupleHeader) +
			sizeof(ItemIdData);
	return Max(1.0, floor((double) (BLCKSZ - SizeOfPageHeaderData) / width));
}

static void
measure_leaf(Oid relid, LeafSize *leaf)
{
	Relation rel = table_open(relid, AccessShareLock);

	leaf->relid = relid;
	leaf->by_blocks = rel->rd_tableam == GetHeapamTableAmRoutine();
	if (leaf->by_blocks)
	{
		leaf->nblocks = RelationGetNumberOfBlocks(rel);
		leaf->rows = leaf->nblocks > 0 ? row_density(rel) * leaf->nblocks : 0;
		leaf->bytes = (double) leaf->nblocks * BLCKSZ;
	}
	else
	{
		BlockNumber pages;
		double		allvisfrac;

		leaf->nblocks = 0;
		estimate_rel_size(rel, NULL, &pages, &leaf->rows, &allvisfrac);
		leaf->bytes = (double) table_relation_size(rel, MAIN_FORKNUM);
	}
	if (OidIsValid(rel->rd_rel->reltoastrelid))
	{
		Relation toast = table_open(rel->rd_rel->reltoastrelid, AccessShareLock);

		leaf->bytes += (double) table_relation_size(toast, MAIN_FORKNUM);
		table_close(toast, AccessShareLock);
	}
	table_close(rel, NoLock);
}

/* Append nparts partitions of about the same number of blocks to list. */
static List *
split_leaf(List *list, const LeafSize *leaf, int64 nparts)
{
	for (int64 i = 0; i < nparts; i++)
	{
		SnapshotPartition *part = palloc(sizeof(SnapshotPartition));
		uint64			   first = (uint64) leaf->nblocks * i / nparts;
		uint64			   next = (uint64) leaf->nblocks * (i + 1) / nparts;
		double share = leaf->nblocks > 0 ? (double) (next - first) / leaf->nblocks : 1.0;

		part->relid = leaf->relid;
		part->more = NIL;
		part->first_block = (BlockNumber) first;
		part->last_block = i == nparts - 1 ? InvalidBlockNumber : (BlockNumber) (next - 1);
		part->est_rows = (int64) rint(leaf->rows * share);
		part->est_bytes = (int64) rint(leaf->bytes * share);
		list = lappend(list, part);
	}
	return list;
}

/* Small enough for the partition of the leaves before it: goes into that. */
static bool
join_last(List *partitions, const LeafSize *leaf, int64 rows_per_partition)
{
	SnapshotPartition *last = partitions != NIL ? llast(partitions) : NULL;

	if (last == NULL || last->first_block != 0 || last->last_block != InvalidBlockNumber ||
		1 + list_length(last->more) >= SNAPSHOT_MAX_RELATIONS ||
		last->est_rows + leaf->rows > rows_per_partition)
		return false;
	last->more = lappend_oid(last->more, leaf->relid);
	last->est_rows += (int64) rint(leaf->rows);
	last->est_bytes += (int64) rint(leaf->bytes);
	return true;
}

/*
 * With override, every relation gets its share of the partitions by its
 * blocks; each has one at least, so many small leaves can make more of them.
 */
List *
resync_snapshot_partitions(Oid relid, int64 rows_per_partition, int64 override)
{
	List	 *leaves = find_leaves(relid, AccessShareLock);
	LeafSize *sizes = palloc(sizeof(LeafSize) * Max(list_length(leaves), 1));
	double	  total_blocks = 0;
	List	 *partitions = NIL;
	ListCell *lc;

	Assert(rows_per_partition > 0);
	foreach(lc, leaves)
	{
		LeafSize *leaf = &sizes[foreach_current_index(lc)];

		measure_leaf(lfirst_oid(lc), leaf);
		total_blocks += leaf->nblocks;
	}
	foreach(lc, leaves)
	{
		LeafSize *leaf = &sizes[foreach_current_index(lc)];
		double	  wanted;

		CHECK_FOR_INTERRUPTS();
		if (override <= 0 && join_last(partitions, leaf, rows_per_partition))
			continue;
		if (override <= 0)
			wanted = ceil(leaf->rows / (double) rows_per_partition);
		else
			wanted = rint((double) override * leaf->nblocks / Max(total_blocks, 1));
		wanted = Min(wanted, (double) leaf->nblocks);
		partitions = split_leaf(partitions, leaf, Max((int64) wanted, 1));
	}
	pfree(sizes);
	list_free(leaves);
	return partitions;
}
