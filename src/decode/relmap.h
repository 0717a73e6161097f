/*
 * relmap.h
 *		Which relation of the WAL stream belongs to which mirrored table, and
 *		how its tuples become rows; private to decode/.
 */
#ifndef RESYNC_RELMAP_H
#define RESYNC_RELMAP_H

#include "decode/decode.h"

#include "utils/rel.h"

/* What is known of one relation; rebuilt when its cache entry changed. */
typedef struct DecodeRel
{
	Oid			  relid; /* hash key */
	bool		  valid;
	int			  index; /* of the table in the config, -1: not
								 * mirrored */
	RowEncoder	 *encoder;
	int			  natts;
	int			 *column;	  /* attno - 1 → column of the table, or -1 */
	int			 *attno;	  /* column → attno - 1 */
	int			 *key_attno;  /* keypos - 1 → attno - 1 */
	int			 *key_column; /* keypos - 1 → column */
	bool		  full;		  /* old tuples carry every column, as of now */
	MemoryContext context;
} DecodeRel;

typedef struct RelMap RelMap;

extern RelMap *resync_relmap_create(DecodeConfig *config);

/*
 * The entry of a relation, checked against its table's plan.  In a callback
 * (historic snapshot).  Columns that were added are put into the batch and the
 * config's table replaced by a newer version; anything else that differs is
 * raised as NEEDS_RESYNC.
 */
extern DecodeRel *resync_relmap_get(RelMap *map, Relation rel);

/* Index of the table that relid is, or belongs to; -1. */
extern int resync_relmap_root(RelMap *map, Oid relid);

#endif /* RESYNC_RELMAP_H */
