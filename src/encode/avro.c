/*
 * avro.c
 *		Avro object container files, written row by row.
 *
 * Used by copiers (tuples) and the streamer (fields).  A file is
 *		"Obj" 1, a map with the schema and the codec's name, a sync marker;
 *		then blocks: number of rows, number of bytes, the rows as raw deflate
 *		data, the sync marker.
 * The marker lets a reader that starts in the middle find the next block, so it
 * is random: no value of a row can be made to look like it.
 *
 * Rows are encoded straight into the block's buffer and compressed when it is
 * written, so the writer holds a block and its compressed form, and never more.
 *
 * Memory: the context it was made in; zlib's own is freed by a reset callback.
 * No network, no catalog, no locks.
 */
#include "postgres.h"

#include "encode/avro.h"

#include <zlib.h>

#include "utils/json.h"
#include "utils/memutils.h"

#define DEFLATE_LEVEL 1
#define DEFLATE_WINDOW_BITS (-15) /* no header and no checksum around the data */
#define DEFLATE_MEM_LEVEL 8

#define SYNC_LEN 16

/* A buffer that a long row made larger than this is given back. */
#define KEEP_MAX (4 * RESYNC_AVRO_BLOCK)

struct AvroWriter
{
	MemoryContext		  context;
	const ResyncTable	 *table;
	const AvroColumn	 *columns;
	int					  ncolumns;
	Size				  max_row;
	char				 *schema;
	char				  sync[SYNC_LEN];
	bool				  begun; /* the header is written */
	int64				  rows;	 /* of the file */
	int64				  block_rows;
	StringInfoData		  block; /* rows, not compressed */
	StringInfoData		  out;	 /* header; compressed block */
	z_stream			  zlib;
	bool				  has_zlib;
	MemoryContextCallback callback;
};

/* ---- values ---- */

void
resync_avro_settle_long(StringInfo buf, int start, int room, int64 n)
{
	uint64 word = avro_zigzag(n);
	int	   needed = varuint_size(word);
	int	   len = buf->len - start - room;

	if (unlikely(needed != room))
	{
		if (needed > room)
			(void) put_reserve(buf, needed - room);
		memmove(buf->data + start + needed, buf->data + start + room, len);
		buf->len += needed - room;
	}
	(void) varuint_write(buf->data + start, word);
}

/* ---- the file ---- */

static bool
is_avro_name(const char *name)
{
	if (*name >= '0' && *name <= '9')
		return false;
	return *name != '\0' && strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
										 "0123456789_") == strlen(name);
}

static char *
make_schema(const AvroColumn *columns, int ncolumns)
{
	StringInfoData s;

	initStringInfo(&s);
	appendStringInfoString(&s, "{\"type\":\"record\",\"name\":\"row\",\"fields\":[");
	for (int i = 0; i < ncolumns; i++)
	{
		if (!is_avro_name(columns[i].name))
			ereport(ERROR, (errcode(ERRCODE_INVALID_NAME),
							errmsg("\"%s\" cannot be the name of a column there", columns[i].name),
							errdetail("A name has letters of ASCII, digits and underscores only, "
									  "and does not begin with a digit.")));
		appendStringInfo(&s, "%s{\"name\":", i > 0 ? "," : "");
		escape_json(&s, columns[i].name);
		if (columns[i].null == AVRO_OPTIONAL)
			appendStringInfo(&s, ",\"type\":[\"null\",%s],\"default\":null}", columns[i].type);
		else
			appendStringInfo(&s, ",\"type\":%s}", columns[i].type);
	}
	appendStringInfoString(&s, "]}");
	return s.data;
}

static void
free_zlib(void *arg)
{
	AvroWriter *writer = arg;

	if (writer->has_zlib)
		deflateEnd(&writer->zlib);
	writer->has_zlib = false;
}

AvroWriter *
resync_avro_make(const ResyncTable *table, const AvroColumn *columns, int ncolumns, Size max_row)
{
	AvroWriter *writer = palloc0(sizeof(AvroWriter));

	writer->context = CurrentMemoryContext;
	writer->table = table;
	writer->columns = columns;
	writer->ncolumns = ncolumns;
	writer->max_row = max_row;
	writer->schema = make_schema(columns, ncolumns);
	initStringInfo(&writer->block);
	initStringInfo(&writer->out);
	writer->callback.func = free_zlib;
	writer->callback.arg = writer;
	MemoryContextRegisterResetCallback(writer->context, &writer->callback);
	writer->has_zlib = deflateInit2(&writer->zlib, DEFLATE_LEVEL, Z_DEFLATED, DEFLATE_WINDOW_BITS,
									DEFLATE_MEM_LEVEL, Z_DEFAULT_STRATEGY) == Z_OK;
	if (!writer->has_zlib)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	resync_avro_begin(writer);
	return writer;
}

const char *
resync_avro_schema(const AvroWriter *writer)
{
	return writer->schema;
}

/* Empty a buffer; one that has grown out of proportion is made anew. */
static void
reset_buffer(AvroWriter *writer, StringInfo buf)
{
	if (buf->maxlen > KEEP_MAX)
	{
		MemoryContext old = MemoryContextSwitchTo(writer->context);

		pfree(buf->data);
		initStringInfo(buf);
		MemoryContextSwitchTo(old);
	}
	else
		resetStringInfo(buf);
}

void
resync_avro_begin(AvroWriter *writer)
{
	if (!pg_strong_random(writer->sync, SYNC_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random bytes")));
	writer->begun = false;
	writer->rows = 0;
	writer->block_rows = 0;
	reset_buffer(writer, &writer->block);
	reset_buffer(writer, &writer->out);
}

int64
resync_avro_rows(const AvroWriter *writer)
{
	return writer->rows;
}

Size
resync_avro_bytes(const AvroWriter *writer)
{
	return writer->block.len;
}

/* ---- rows ---- */

static void
put_null(AvroWriter *writer, const AvroColumn *column)
{
	if (column->null == AVRO_REQUIRED)
		ereport(ERROR, (errcode(ERRCODE_NOT_NULL_VIOLATION),
						errmsg("column \"%s\" of table \"%s.%s\" is NULL, which it cannot be "
							   "at the destination",
							   column->name, writer->table->schema, writer->table->name)));

	/* the union's first branch; an array's end */
	put_byte(&writer->block, 0);
}

static inline void
put_piece(AvroWriter *writer, const AvroColumn *column, const char *data, int32 len)
{
	if (len < 0)
	{
		put_null(writer, column);
		return;
	}
	if (column->null == AVRO_OPTIONAL)
		put_avro_long(&writer->block, 1);
	put_bytes(&writer->block, data, len);
}

/* Encode a value in place, behind the union's branch. */
static void
put_value(AvroWriter *writer, const AvroColumn *column, ColumnEncoder *enc, Datum value)
{
	int start = writer->block.len;

	if (column->null == AVRO_OPTIONAL)
		put_avro_long(&writer->block, 1);
	enc->encode(enc, value, &writer->block);
	if (unlikely(enc->made_null))
	{
		enc->made_null = false;
		writer->block.len = start;
		put_null(writer, column);
	}
}

static bool
finish_row(AvroWriter *writer, int first_extra, const EncodedField *extras, int row_start)
{
	Size len;

	for (int i = first_extra; i < writer->ncolumns; i++)
		put_piece(writer, &writer->columns[i], extras[i - first_extra].data,
				  extras[i - first_extra].len);
	len = writer->block.len - row_start;
	if (unlikely(writer->max_row > 0 && len > writer->max_row))
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("a row of table \"%s.%s\" is too long for the destination",
							   writer->table->schema, writer->table->name),
						errdetail("It has %zu bytes; the limit is %zu.", len, writer->max_row),
						errhint("Exclude columns with long values from the mirror.")));
	writer->block_rows++;
	writer->rows++;
	return writer->block.len >= RESYNC_AVRO_BLOCK;
}

bool
resync_avro_add_tuple(AvroWriter *writer, RowEncoder *encoder, const Datum *values,
					  const bool *isnull, const EncodedField *extras)
{
	int start = writer->block.len;

	for (int i = 0; i < encoder->ncols; i++)
	{
		ColumnEncoder *enc = &encoder->cols[i];

		if (enc->attno < 0 || isnull[enc->attno])
			put_null(writer, &writer->columns[i]);
		else
			put_value(writer, &writer->columns[i], enc, values[enc->attno]);
	}
	return finish_row(writer, encoder->ncols, extras, start);
}

bool
resync_avro_add_fields(AvroWriter *writer, const char *data, const EncodedField *extras)
{
	int start = writer->block.len;
	int ncols = writer->table->ncols;

	for (int i = 0; i < ncols; i++)
	{
		int32 len;

		memcpy(&len, data, sizeof(len));
		len = (int32) pg_ntoh32((uint32) len);
		data += sizeof(len);
		put_piece(writer, &writer->columns[i], data, len);
		data += Max(len, 0);
	}
	return finish_row(writer, ncols, extras, start);
}

bool
resync_avro_add_pieces(AvroWriter *writer, const EncodedField *fields, const EncodedField *extras)
{
	int start = writer->block.len;
	int ncols = writer->table->ncols;

	for (int i = 0; i < ncols; i++)
		put_piece(writer, &writer->columns[i], fields[i].data, fields[i].len);
	return finish_row(writer, ncols, extras, start);
}

/* ---- writing ---- */

static void
put_header(AvroWriter *writer, StringInfo out)
{
	static const char codec[] = "deflate";

	put_bytes(out, "Obj\001", 4);
	put_avro_long(out, 2); /* entries of the map */
	put_avro_bytes(out, "avro.schema", strlen("avro.schema"));
	put_avro_bytes(out, writer->schema, strlen(writer->schema));
	put_avro_bytes(out, "avro.codec", strlen("avro.codec"));
	put_avro_bytes(out, codec, strlen(codec));
	put_avro_long(out, 0); /* no more of them */
	put_bytes(out, writer->sync, SYNC_LEN);
}

/* The block's rows at the end of out; returns how many bytes they became. */
static int
compress_block(AvroWriter *writer, StringInfo out)
{
	z_stream *zlib = &writer->zlib;
	uLong	  bound;
	int		  rc;

	if (deflateReset(zlib) != Z_OK)
		elog(ERROR, "could not begin to compress a block");
	bound = deflateBound(zlib, writer->block.len);
	if (bound >= MaxAllocSize)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("a row of table \"%s.%s\" is too long to be compressed",
							   writer->table->schema, writer->table->name)));
	zlib->next_in = (Bytef *) writer->block.data;
	zlib->avail_in = writer->block.len;
	zlib->next_out = (Bytef *) put_reserve(out, (int) bound);
	zlib->avail_out = bound;
	rc = deflate(zlib, Z_FINISH);
	if (rc != Z_STREAM_END)
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("could not compress data with deflate: %s", zError(rc))));
	out->len += (int) (bound - zlib->avail_out);
	return (int) (bound - zlib->avail_out);
}

Size
resync_avro_write(AvroWriter *writer, AvroWriteFn write, void *arg)
{
	StringInfo out = &writer->out;
	Size	   written;

	reset_buffer(writer, out);
	if (!writer->begun)
		put_header(writer, out);
	if (writer->block_rows > 0)
	{
		int start;
		int room;
		int len;

		put_avro_long(out, writer->block_rows);
		start = out->len;
		room = avro_guess_long(out, writer->block.len / 4);
		len = compress_block(writer, out);
		resync_avro_settle_long(out, start, room, len);
		put_bytes(out, writer->sync, SYNC_LEN);
	}
	writer->begun = true;
	writer->block_rows = 0;
	reset_buffer(writer, &writer->block);
	written = out->len;
	if (written > 0)
		write(arg, out->data, written);
	return written;
}
