/*
 * clickhouse.h
 *		PostgreSQL types and values to ClickHouse's.
 *
 * A column's *block type* is the ClickHouse type that its values are sent as,
 * in a Native block or as RowBinary; the column's own type (dest_type) is that,
 * or one that the server makes of it (LowCardinality, JSON, Enum, IPv4 ... of
 * String).
 *
 * A *field* (encode.h) of a column holds exactly the bytes of the value in
 * RowBinary of the block type, but without the null byte of a Nullable at the
 * top; NULL is length -1.  So what `SELECT CAST(col AS <block type>) FORMAT
 * RowBinary` gives, its null byte left out, is a field.
 *
 * ResyncColumn.wire is always "native"; wire_info is "<flags>:<block type>".
 */
#ifndef RESYNC_CLICKHOUSE_ENCODE_H
#define RESYNC_CLICKHOUSE_ENCODE_H

#include "resync.h"

#include "encode/encode.h"

/* What the user, the mirror and the server say about a column. */
typedef struct ChColumnChoice
{
	const char *type;			  /* the mapping's "type" as written; NULL: by the
								 * source's type */
	int			nullable;		  /* the mapping's "nullable": 0, 1; -1: as at the
								 * source */
	bool		unbounded_string; /* unbounded_numeric = 'string' */
	bool		clamp;			  /* out_of_range = 'clamp' */
	bool		wide_datetime64;  /* the server's DateTime64 has the years 1 to
								 * 9999 (26.7 on), not 1900 to 2299 */
} ChColumnChoice;

/*
 * Choose dest_type, wire and wire_info (not dest_name).  col->keypos must be
 * final: a key column is never clamped or rounded, so that two keys stay two.
 * Raises ERRCODE_DATATYPE_MISMATCH when the source's type cannot be written as
 * choice->type, ERRCODE_INVALID_PARAMETER_VALUE when that is no type known
 * here.  Reads the catalog: in a transaction.  Results are in the current
 * context.
 */
extern void resync_ch_map_column(ResyncColumn *col, const ChColumnChoice *choice);

/* The block type; a pointer into wire_info. */
extern const char *resync_ch_block_type(const ResyncColumn *col);

/* Is the block type a Nullable, so that RowBinary has a null byte first? */
extern bool resync_ch_is_nullable(const ResyncColumn *col);

/*
 * The encoder for rows of a relation: as resync_encode_pg_make().  Errors of
 * values name table and column, never the value: 22003 out of range, 2202E a
 * wrong number of array dimensions.
 */
extern RowEncoder *resync_encode_ch_make(TupleDesc desc, const ResyncTable *table);

/*
 * Where a value of the column ends that begins at p, as RowBinary of the block
 * type without the null byte of a Nullable at the top; NULL: it is cut off.
 */
extern const char *resync_ch_value_end(const ResyncColumn *col, const char *p, const char *end);

/*
 * A key column's field back to a value of the source's type, for by-key fetch.
 * In a transaction; the result is in the current context.
 */
extern Datum resync_ch_decode_field(const ResyncColumn *col, const char *data, int len);

#endif /* RESYNC_CLICKHOUSE_ENCODE_H */
