/*
 * avro.h
 *		Avro object container files, written row by row.
 *
 * Source of the format: the Apache Avro 1.11 specification, "Object Container
 * Files" and "Binary Encoding".  Blocks are compressed by raw deflate, level 1.
 *
 * Knows records of columns, each with the JSON text of its Avro type; which
 * type that is, the destination's type map says (bigquery.h).  A *field*
 * (encode.h) is the value's Avro bytes, without the branch of a union.
 */
#ifndef RESYNC_AVRO_H
#define RESYNC_AVRO_H

#include "resync.h"

#include "encode/encode.h"
#include "encode/put.h"

/* A block is full with so many bytes before compression, or one row. */
#define RESYNC_AVRO_BLOCK (1024 * 1024)

/* What becomes of NULL (length -1). */
typedef enum AvroNull
{
	AVRO_REQUIRED, /* an error */
	AVRO_OPTIONAL, /* the type is a union with null */
	AVRO_EMPTY	   /* an array without elements */
} AvroNull;

typedef struct AvroColumn
{
	const char *name; /* [A-Za-z_][A-Za-z0-9_]* */
	const char *type; /* JSON, without the union: "\"long\"" */
	AvroNull	null;
} AvroColumn;

typedef struct AvroWriter AvroWriter;

/* Takes len bytes of the file; they live until it returns.  May raise. */
typedef void (*AvroWriteFn)(void *arg, const char *data, Size len);

/*
 * A writer of files with these columns: first the table's, in its order, then
 * the mirror's own.  table (for messages) and columns must live as long as the
 * writer, which is in the current context with its buffers and zlib's memory:
 * deleting the context frees all.  max_row: longest row in bytes before
 * compression, 0 for no limit.  The first file is begun.
 *
 * Raises ERRCODE_INVALID_NAME for a column whose name Avro does not allow.
 */
extern AvroWriter *
resync_avro_make(const ResyncTable *table, const AvroColumn *columns, int ncolumns, Size max_row);

/* The schema in the file's header, as JSON; lives as long as the writer. */
extern const char *resync_avro_schema(const AvroWriter *writer);

/*
 * Forget what was not written yet, and begin another file, with a marker of
 * its own.
 */
extern void resync_avro_begin(AvroWriter *writer);

/*
 * Add a row.  values, isnull: as resync_encode_row(); extras: one field for
 * each column after the table's.  What encoding allocates is in the current
 * context.
 *
 * Raises ERRCODE_NOT_NULL_VIOLATION for NULL in a required column,
 * ERRCODE_PROGRAM_LIMIT_EXCEEDED for a row longer than max_row, and what the
 * encoders raise.  After an error the writer can only be begun anew.
 *
 * Returns true when the block is full now and must be written.
 */
extern bool resync_avro_add_tuple(AvroWriter *writer, RowEncoder *encoder, const Datum *values,
								  const bool *isnull, const EncodedField *extras);

/* Same, from the table's fields in its column order, each with length word. */
extern bool
resync_avro_add_fields(AvroWriter *writer, const char *data, const EncodedField *extras);

/* Same, from fields that lie apart. */
extern bool
resync_avro_add_pieces(AvroWriter *writer, const EncodedField *fields, const EncodedField *extras);

extern int64 resync_avro_rows(const AvroWriter *writer);  /* in the file so far */
extern Size	 resync_avro_bytes(const AvroWriter *writer); /* waiting in the block */

/*
 * Write the header, if the file has none yet, and the block, if it has rows.
 * Returns the bytes written.  The last call of a file ends it: Avro has no
 * trailer, and a file without rows is its header.
 */
extern Size resync_avro_write(AvroWriter *writer, AvroWriteFn write, void *arg);

/* ---- values, for encoders and for extras ---- */

static inline uint64
avro_zigzag(int64 n)
{
	return ((uint64) n << 1) ^ (uint64) (n >> 63);
}

/* int and long */
static inline void
put_avro_long(StringInfo buf, int64 n)
{
	put_varuint(buf, avro_zigzag(n));
}

/* bytes and string */
static inline void
put_avro_bytes(StringInfo buf, const char *data, int len)
{
	put_avro_long(buf, len);
	put_bytes(buf, data, len);
}

/* Read one from *p, which moves on; false: it does not end before end. */
static inline bool
avro_read_long(const char **p, const char *end, int64 *n)
{
	uint64 u;

	if (!varuint_read(p, end, &u))
		return false;
	*n = (int64) (u >> 1) ^ -(int64) (u & 1);
	return true;
}

/*
 * A long that is known only after what follows it: leave room for that of the
 * guessed value, append the rest, and put it in front.
 */
static inline int
avro_guess_long(StringInfo buf, int64 guess)
{
	int room = varuint_size(avro_zigzag(guess));

	(void) put_reserve(buf, room);
	buf->len += room;
	return room;
}

extern void resync_avro_settle_long(StringInfo buf, int start, int room, int64 n);

#endif /* RESYNC_AVRO_H */
