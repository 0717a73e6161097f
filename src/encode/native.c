/*
 * native.c
 *		Blocks of ClickHouse's FORMAT Native, built column by column.
 *
 * Used by copiers (tuples) and the streamer (fields).  The format is that of
 * HTTP, where no client revision is told: number of columns, number of rows,
 * then per column its name, its type and its data.  A Nullable has a byte per
 * row first, an Array the rows' end offsets, and then come the values of all
 * rows, or of all elements.
 *
 * Every column has buffers of its own, into which the encoder writes straight;
 * only arrays are encoded as RowBinary first and taken apart then.
 */
#include "postgres.h"

#include "encode/native.h"

#include "encode/chtype.h"
#include "encode/clickhouse.h"
#include "encode/clickhouse_flags.h"
#include "encode/put.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

/* Bytes that a buffer may keep beyond the block's limit. */
#define KEEP_SLACK (1024 * 1024)

/* One level of a column: Array(Nullable(Int32)) has two. */
typedef struct NativeData
{
	ChKind			   kind;
	int				   width; /* 0: Strings, each with its length */
	bool			   nullable;
	int64			   count;	/* values */
	StringInfoData	   nulls;	/* a byte per value, if nullable */
	StringInfoData	   values;	/* arrays: end offsets */
	struct NativeData *element; /* arrays */
} NativeData;

typedef struct NativeColumn
{
	const ResyncColumn *column; /* NULL: an extra one */
	StringInfoData		header; /* name and type */
	bool				null_as_default;
	NativeData			data;
} NativeColumn;

struct NativeBlock
{
	MemoryContext	   context;
	const ResyncTable *table;
	RowEncoder		  *encoder;
	int				   ncols; /* of the table, without the extras */
	int				   nextras;
	NativeColumn	  *cols; /* ncols, then the extras */
	int				   rows;
	Size			   bytes;
	Size			   limit;
	StringInfoData	   scratch; /* an array's RowBinary; a block's header */
};

/* ---- making ---- */

static void
init_data(NativeData *data, const ChType *type)
{
	data->nullable = type->kind == CH_NULLABLE;
	if (data->nullable)
	{
		type = type->inner;
		initStringInfo(&data->nulls);
	}
	data->kind = type->kind;
	data->width = type->width;
	initStringInfo(&data->values);
	if (type->kind == CH_ARRAY)
	{
		data->element = palloc0(sizeof(NativeData));
		init_data(data->element, type->inner);
	}
}

static void
init_column(NativeColumn *col, const char *name, const char *type_text)
{
	ChType *type = resync_chtype_parse(type_text);
	char   *utf8 = pg_server_to_any(name, strlen(name), PG_UTF8);

	if (type == NULL)
		elog(ERROR, "column \"%s\" has an unknown block type \"%s\"", name, type_text);
	initStringInfo(&col->header);
	put_string(&col->header, utf8, strlen(utf8));
	put_string(&col->header, type_text, strlen(type_text));
	init_data(&col->data, type);
}

NativeBlock *
resync_native_make(const ResyncTable *table, RowEncoder *encoder, const NativeExtra *extras,
				   int nextras, Size limit)
{
	NativeBlock *block = palloc0(sizeof(NativeBlock));

	block->context = CurrentMemoryContext;
	block->table = table;
	block->encoder = encoder;
	block->ncols = table->ncols;
	block->nextras = nextras;
	block->limit = limit;
	block->cols = palloc0(sizeof(NativeColumn) * (table->ncols + nextras));
	initStringInfo(&block->scratch);
	for (int i = 0; i < table->ncols; i++)
	{
		const ResyncColumn *column = &table->cols[i];
		const char		   *type = resync_ch_block_type(column);
		NativeColumn	   *col = &block->cols[i];

		col->column = column;
		init_column(col, column->dest_name, type);
		for (const char *flag = column->wire_info; flag < type; flag++)
			col->null_as_default = col->null_as_default || *flag == CH_FLAG_CLAMP;
		col->null_as_default = col->null_as_default || col->data.kind == CH_ARRAY;
	}
	for (int i = 0; i < nextras; i++)
	{
		NativeColumn *col = &block->cols[table->ncols + i];

		init_column(col, extras[i].name, extras[i].type);
		if (col->data.width != extras[i].width || col->data.nullable)
			elog(ERROR, "column \"%s\" cannot be %s", extras[i].name, extras[i].type);
	}
	return block;
}

void
resync_native_set_encoder(NativeBlock *block, RowEncoder *encoder)
{
	Assert(encoder->ncols == block->ncols);
	block->encoder = encoder;
}

/* ---- values ---- */

/* The type's default: zeros, an empty String, an empty Array. */
static void
add_default(NativeData *data)
{
	if (data->kind == CH_ARRAY)
		put_le64(&data->values, data->element->count);
	else
	{
		int n = Max(data->width, 1);

		memset(put_reserve(&data->values, n), 0, n);
		data->values.len += n;
	}
	data->count++;
}

static void
add_null(NativeBlock *block, NativeColumn *col, bool defaults)
{
	if (col->data.nullable)
		put_byte(&col->data.nulls, 1);
	else if (!defaults && !col->null_as_default)
		ereport(
			ERROR,
			(errcode(ERRCODE_NOT_NULL_VIOLATION),
			 errmsg(
				 "column \"%s\" of table \"%s.%s\" has a NULL, but is not Nullable at ClickHouse",
				 col->column->name, block->table->schema, block->table->name),
			 errhint("Set \"nullable\": true for it in the mapping's \"columns\", or drop its "
					 "\"nullable\", and resync the mirror.")));
	add_default(&col->data);
}

static void
raise_bad_field(const NativeBlock *block, const NativeColumn *col)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
					errmsg_internal("a field of column \"%s\" of table \"%s.%s\" is not a %s",
									col->column->name, block->table->schema, block->table->name,
									resync_ch_block_type(col->column))));
}

/*
 * Add a value that is there as RowBinary, at *p, which moves on; false when it
 * does not end by end.  A null byte, if any, is behind us.
 */
static bool
add_rowbinary(NativeData *data, const char **p, const char *end)
{
	const char *start = *p;
	uint64		n;

	if (data->width > 0)
	{
		if (end - *p < data->width)
			return false;
		put_bytes(&data->values, *p, data->width);
		*p += data->width;
	}
	else if (!varuint_read(p, end, &n) || n > (uint64) (end - *p))
		return false;
	else if (data->kind != CH_ARRAY)
	{
		*p += n;
		put_bytes(&data->values, start, *p - start);
	}
	else
	{
		NativeData *element = data->element;

		for (; n > 0; n--)
		{
			bool isnull = false;

			if (element->nullable)
			{
				if (*p == end)
					return false;
				isnull = *(*p)++ != 0;
				put_byte(&element->nulls, isnull);
			}
			if (isnull)
				add_default(element);
			else if (!add_rowbinary(element, p, end))
				return false;
		}
		put_le64(&data->values, element->count);
	}
	data->count++;
	return true;
}

/* An Array's levels are not counted in what the encoder's buffer holds. */
static Size
data_bytes(const NativeData *data)
{
	return data->values.len + data->nulls.len + (data->element ? data_bytes(data->element) : 0);
}

/* The row's own columns, and whether the block is full. */
static bool
finish_row(NativeBlock *block, const uint64 *extra, Size bytes)
{
	for (int i = 0; i < block->nextras; i++)
	{
		NativeData *data = &block->cols[block->ncols + i].data;

		switch (data->width)
		{
			case 1:
				put_byte(&data->values, (char) extra[i]);
				break;
			case 2:
				put_le16(&data->values, (uint16) extra[i]);
				break;
			case 4:
				put_le32(&data->values, (uint32) extra[i]);
				break;
			default:
				put_le64(&data->values, extra[i]);
		}
		bytes += data->values.len;
	}
	block->bytes = bytes;
	block->rows++;
	return block->rows >= RESYNC_NATIVE_ROWS || bytes >= block->limit;
}

/* ---- rows ---- */

static void
add_array(NativeBlock *block, NativeColumn *col, ColumnEncoder *enc, Datum value)
{
	const char *p;
	const char *end;

	resetStringInfo(&block->scratch);
	enc->encode(enc, value, &block->scratch);
	p = block->scratch.data;
	end = p + block->scratch.len;
	if (!add_rowbinary(&col->data, &p, end) || p != end)
		raise_bad_field(block, col);
}

bool
resync_native_add_tuple(NativeBlock *block, const Datum *values, const bool *isnull,
						const uint64 *extra)
{
	Size bytes = 0;

	for (int i = 0; i < block->ncols; i++)
	{
		NativeColumn  *col = &block->cols[i];
		NativeData	  *data = &col->data;
		ColumnEncoder *enc = &block->encoder->cols[i];

		if (enc->attno < 0 || isnull[enc->attno])
			add_null(block, col, false);
		else if (unlikely(data->kind == CH_ARRAY))
			add_array(block, col, enc, values[enc->attno]);
		else
		{
			enc->encode(enc, values[enc->attno], &data->values);
			if (unlikely(enc->made_null))
			{
				enc->made_null = false;
				add_null(block, col, false);
			}
			else if (data->nullable)
				put_byte(&data->nulls, 0);
		}
		bytes += data->values.len + data->nulls.len;
		if (unlikely(data->element != NULL))
			bytes += data_bytes(data->element);
	}
	return finish_row(block, extra, bytes);
}

/* A field; len -1: NULL.  Returns the bytes that the column holds now. */
static inline Size
add_field(NativeBlock *block, NativeColumn *col, const char *field, int32 len, bool defaults)
{
	const char *end = field + len;

	if (len < 0)
		add_null(block, col, defaults);
	else
	{
		if (col->data.nullable)
			put_byte(&col->data.nulls, 0);
		if (!add_rowbinary(&col->data, &field, end) || field != end)
			raise_bad_field(block, col);
	}
	return data_bytes(&col->data);
}

bool
resync_native_add_fields(NativeBlock *block, const char *fields, const uint64 *extra, bool defaults)
{
	Size bytes = 0;

	for (int i = 0; i < block->ncols; i++)
	{
		int32 len;

		memcpy(&len, fields, sizeof(len));
		len = (int32) pg_ntoh32((uint32) len);
		fields += sizeof(len);
		bytes += add_field(block, &block->cols[i], fields, len, defaults);
		fields += Max(len, 0);
	}
	return finish_row(block, extra, bytes);
}

bool
resync_native_add_pieces(NativeBlock *block, const NativeField *fields, const uint64 *extra,
						 bool defaults)
{
	Size bytes = 0;

	for (int i = 0; i < block->ncols; i++)
		bytes += add_field(block, &block->cols[i], fields[i].data, fields[i].len, defaults);
	return finish_row(block, extra, bytes);
}

int
resync_native_rows(const NativeBlock *block)
{
	return block->rows;
}

Size
resync_native_bytes(const NativeBlock *block)
{
	return block->bytes;
}

/* ---- writing ---- */

static Size
write_piece(const StringInfoData *buf, NativeWriteFn write, void *arg)
{
	if (buf->len > 0)
		write(arg, buf->data, buf->len);
	return buf->len;
}

static Size
write_data(const NativeData *data, NativeWriteFn write, void *arg)
{
	Size written = 0;

	if (data->nullable)
		written += write_piece(&data->nulls, write, arg);
	written += write_piece(&data->values, write, arg);
	if (data->element != NULL)
		written += write_data(data->element, write, arg);
	return written;
}

Size
resync_native_write(NativeBlock *block, NativeWriteFn write, void *arg)
{
	int	 ncols = block->ncols + block->nextras;
	Size written;

	if (block->rows == 0)
		return 0;
	resetStringInfo(&block->scratch);
	put_varuint(&block->scratch, ncols);
	put_varuint(&block->scratch, block->rows);
	written = write_piece(&block->scratch, write, arg);
	for (int i = 0; i < ncols; i++)
	{
		written += write_piece(&block->cols[i].header, write, arg);
		written += write_data(&block->cols[i].data, write, arg);
	}
	resync_native_reset(block);
	return written;
}

/* Empty a buffer; one that a single huge value has blown up is made small again. */
static void
reset_buffer(NativeBlock *block, StringInfo buf)
{
	if ((Size) buf->maxlen > 2 * block->limit + KEEP_SLACK)
	{
		pfree(buf->data);
		initStringInfo(buf);
	}
	else
		resetStringInfo(buf);
}

static void
reset_data(NativeBlock *block, NativeData *data)
{
	data->count = 0;
	if (data->nullable)
		reset_buffer(block, &data->nulls);
	reset_buffer(block, &data->values);
	if (data->element != NULL)
		reset_data(block, data->element);
}

void
resync_native_reset(NativeBlock *block)
{
	MemoryContext old = MemoryContextSwitchTo(block->context);

	for (int i = 0; i < block->ncols + block->nextras; i++)
		reset_data(block, &block->cols[i].data);
	reset_buffer(block, &block->scratch);
	block->rows = 0;
	block->bytes = 0;
	MemoryContextSwitchTo(old);
}
