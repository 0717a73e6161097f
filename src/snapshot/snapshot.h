/*
 * snapshot.h
 *		A table into partitions, and one partition's rows.
 */
#ifndef RESYNC_SNAPSHOT_H
#define RESYNC_SNAPSHOT_H

#include "resync.h"

#include "storage/block.h"
#include "executor/tuptable.h"
#include "utils/rel.h"

/* relations that one partition reads, at most */
#define SNAPSHOT_MAX_RELATIONS 64

/*
 * One partition: a block range of one relation with storage, or several small
 * relations as a whole.
 */
typedef struct SnapshotPartition
{
	Oid			relid; /* leaf, or the table itself */
	List	   *more;  /* Oids of further leaves, read whole after it: then it
						* is read whole, too */
	BlockNumber first_block;
	BlockNumber last_block; /* InvalidBlockNumber: open-ended, to the
								 * relation's end when it is read; also the
								 * whole of a relation that is not a heap */
	int64		est_rows;
	int64		est_bytes; /* of heap and TOAST, to be read */
} SnapshotPartition;

/*
 * Partitions of a mirrored table: of itself, and of the leaves of a
 * partitioned or inherited one.  By block ranges from the relations' size and
 * density; nothing is counted or sorted.  Relations are opened with
 * ACCESS SHARE, kept until the transaction's end.  Caller: coordinator, in a
 * transaction.  rows_per_partition > 0; leaves that have fewer are put together
 * (a partition costs round trips, and at some destinations a quota).
 * override > 0 is the number of partitions wanted for the whole table; then each
 * leaf has its own.  Returns a list of SnapshotPartition *.
 */
extern List *resync_snapshot_partitions(Oid relid, int64 rows_per_partition, int64 override);

/*
 * All relations with storage that a mirrored table reads: list of Oid.  Takes
 * no locks (the streamer must not wait for one while it holds others): the
 * caller locks what it needs, and asks again if one is gone by then.
 */
extern List *resync_snapshot_leaves(Oid relid);

/*
 * Scan of one partition under the active snapshot (the imported one), in a
 * copier.  A heap is read in the ring buffer by block range; another access
 * method whole.
 */
typedef struct SnapshotScan SnapshotScan;

extern SnapshotScan	  *resync_snapshot_begin(Relation rel, BlockNumber first, BlockNumber last);
extern TupleTableSlot *resync_snapshot_next(SnapshotScan *scan); /* NULL at the end; all
																	 * attributes are
																	 * deformed */
extern void			   resync_snapshot_end(SnapshotScan *scan);

/*
 * Rule 8: does the imported (active) snapshot see the same relfilenode and
 * columns as the locked relation has now?  False: it was rewritten or changed
 * in between.
 */
extern bool resync_snapshot_is_current(Relation rel);

#endif /* RESYNC_SNAPSHOT_H */
