/*
 * native.h
 *		Blocks of ClickHouse's FORMAT Native, built column by column.
 *
 * One block is built at a time: rows are added, as tuples (snapshot) or as
 * fields (batch), until it is full; then it is written out and the next one
 * begins in the same buffers.  Both ways give the same bytes.  No network.
 */
#ifndef RESYNC_NATIVE_H
#define RESYNC_NATIVE_H

#include "resync.h"

#include "encode/encode.h"

/* A block is full with so many rows. */
#define RESYNC_NATIVE_ROWS 65536

typedef struct NativeBlock NativeBlock;

/* A column of the mirror's own, after the table's: an integer, or ticks. */
typedef struct NativeExtra
{
	const char *name;
	const char *type;  /* "UInt8", "UInt64", "DateTime64(9)" */
	int			width; /* bytes of it: 1, 2, 4 or 8 */
} NativeExtra;

/* Takes len bytes of the block; they live until it returns.  May raise. */
typedef void (*NativeWriteFn)(void *arg, const char *data, Size len);

/*
 * Columns are table->cols by their dest_name, then the extras.  encoder: of
 * resync_encode_ch_make(), for resync_native_add_tuple(); NULL when only fields
 * are added.  limit: bytes from which on the block is full.  Table, encoder and
 * extras' strings must live as long as the block, which is in the current
 * context, with all its buffers: deleting the context frees it.
 */
extern NativeBlock *resync_native_make(const ResyncTable *table, RowEncoder *encoder,
									   const NativeExtra *extras, int nextras, Size limit);

/* Another relation of the same table (a leaf, a new partition) comes next. */
extern void resync_native_set_encoder(NativeBlock *block, RowEncoder *encoder);

/*
 * Add a row.  values, isnull: as resync_encode_row(); extra: one value for each
 * extra column.  What encoding allocates is in the current context.
 *
 * NULL in a column that is not Nullable raises ERRCODE_NOT_NULL_VIOLATION, or
 * becomes the type's default if the mirror clamps; an Array is never Nullable:
 * NULL becomes [].  After an error the block can only be reset.
 *
 * Returns true when the block is full now and must be written.
 */
extern bool resync_native_add_tuple(NativeBlock *block, const Datum *values, const bool *isnull,
									const uint64 *extra);

/*
 * Same, from ncols fields in the table's column order.  defaults: NULL in a
 * column that is not Nullable becomes the type's default (tombstones).
 */
extern bool
resync_native_add_fields(NativeBlock *block, const char *data, const uint64 *extra, bool defaults);

/* Same, from fields that lie apart: a row put together from two. */
typedef struct NativeField
{
	const char *data; /* without length word */
	int32		len;  /* -1: NULL */
} NativeField;

extern bool resync_native_add_pieces(NativeBlock *block, const NativeField *fields,
									 const uint64 *extra, bool defaults);

extern int	resync_native_rows(const NativeBlock *block);
extern Size resync_native_bytes(const NativeBlock *block); /* held for these rows */

/*
 * Write the block, if it has rows, and reset it.  Returns the bytes written.
 */
extern Size resync_native_write(NativeBlock *block, NativeWriteFn write, void *arg);

/* Forget the rows; buffers are kept, unless they have grown far beyond limit. */
extern void resync_native_reset(NativeBlock *block);

#endif /* RESYNC_NATIVE_H */
