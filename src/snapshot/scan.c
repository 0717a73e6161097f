/*
 * scan.c
 *		The rows of one partition, and whether the relation is still what the
 *		snapshot saw.
 *
 * Called by copiers, in the transaction of a partition, with the imported
 * snapshot active: an ordinary MVCC snapshot, set as the transaction's.  The
 * caller has the relation open with ACCESS SHARE (rule 8).
 *
 * No executor, no SPI.  A heap is scanned by block range with the ring buffer
 * (a TID range scan would go through all of shared_buffers) and without
 * synchronized scans, which would begin elsewhere.
 */
#include "postgres.h"

#include "snapshot/snapshot.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/indexing.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

struct SnapshotScan
{
	TableScanDesc	scan; /* NULL: no blocks in the range */
	TupleTableSlot *slot;
};

/*
 * Begin reading blocks first .. last (inclusive; InvalidBlockNumber: to the
 * end as it is now).  Allocated in the current context.
 */
SnapshotScan *
resync_snapshot_begin(Relation rel, BlockNumber first, BlockNumber last)
{
	SnapshotScan *s = palloc(sizeof(SnapshotScan));

	s->slot = table_slot_create(rel, NULL);
	s->scan = table_beginscan_strat(rel, GetActiveSnapshot(), 0, NULL, true, false);
	if (rel->rd_tableam == GetHeapamTableAmRoutine())
	{
		/*
		 * The range must lie within the size that the scan goes by: it would
		 * start again at block 0 beyond the end.  VACUUM may have cut off
		 * empty blocks since the range was made.
		 */
		BlockNumber nblocks = ((HeapScanDesc) s->scan)->rs_nblocks;

		if (last == InvalidBlockNumber || last >= nblocks)
			last = nblocks - 1; /* not used if there are none */
		if (first >= nblocks || last < first)
		{
			table_endscan(s->scan);
			s->scan = NULL;
		}
		else
			heap_setscanlimits(s->scan, first, last - first + 1);
	}
	else if (first != 0 || last != InvalidBlockNumber)
		elog(ERROR, "relation \"%s\" can only be read as a whole", RelationGetRelationName(rel));
	return s;
}

/* Next row, valid until the next call, or NULL. */
TupleTableSlot *
resync_snapshot_next(SnapshotScan *s)
{
	CHECK_FOR_INTERRUPTS();
	if (s->scan == NULL || !table_scan_getnextslot(s->scan, ForwardScanDirection, s->slot))
		return NULL;
	slot_getallattrs(s->slot);
	return s->slot;
}

void
resync_snapshot_end(SnapshotScan *s)
{
	if (s->scan != NULL)
		table_endscan(s->scan);
	ExecDropSingleTupleTableSlot(s->slot);
	pfree(s);
}

/*
 * pg_class as the snapshot sees it: same storage, same number of columns, same
 * place in a partitioned table?
 */
static bool
class_is_current(Relation rel, Snapshot snapshot)
{
	Relation	pg_class = table_open(RelationRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		same = false;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationGetRelid(rel)));
	scan = systable_beginscan(pg_class, ClassOidIndexId, true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_class seen = (Form_pg_class) GETSTRUCT(tuple);

		same = seen->relfilenode == rel->rd_rel->relfilenode && seen->relam == rel->rd_rel->relam &&
			   seen->relkind == rel->rd_rel->relkind &&
			   seen->relispartition == rel->rd_rel->relispartition &&
			   seen->relnatts == RelationGetNumberOfAttributes(rel);
	}
	systable_endscan(scan);
	table_close(pg_class, AccessShareLock);
	return same;
}

/* pg_attribute as the snapshot sees it: the columns of the descriptor? */
static bool
attributes_are_current(Relation rel, Snapshot snapshot)
{
	Relation	pg_attribute = table_open(AttributeRelationId, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	int			nseen = 0;
	bool		same = true;

	ScanKeyInit(&keys[0], Anum_pg_attribute_attrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationGetRelid(rel)));
	ScanKeyInit(&keys[1], Anum_pg_attribute_attnum, BTGreaterStrategyNumber, F_INT2GT,
				Int16GetDatum(0));
	scan = systable_beginscan(pg_attribute, AttributeRelidNumIndexId, true, snapshot, 2, keys);
	while (same && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_attribute seen = (Form_pg_attribute) GETSTRUCT(tuple);
		Form_pg_attribute now;

		nseen++;
		if (seen->attnum > desc->natts)
		{
			same = false;
			break;
		}
		now = TupleDescAttr(desc, seen->attnum - 1);
		same = strcmp(NameStr(seen->attname), NameStr(now->attname)) == 0 &&
			   seen->attnum == now->attnum && seen->atttypid == now->atttypid &&
			   seen->atttypmod == now->atttypmod && seen->attisdropped == now->attisdropped &&
			   seen->attlen == now->attlen && seen->attalign == now->attalign;
	}
	systable_endscan(scan);
	table_close(pg_attribute, AccessShareLock);
	return same && nseen == desc->natts;
}

bool
resync_snapshot_is_current(Relation rel)
{
	Snapshot snapshot = RegisterSnapshot(GetActiveSnapshot());
	bool	 current;

	current = class_is_current(rel, snapshot) && attributes_are_current(rel, snapshot);
	UnregisterSnapshot(snapshot);
	return current;
}
