/*
 * csv.c
 *		Gzipped files of CSV, written row by row.
 *
 * Used by copiers (tuples) and the streamer (fields).  Rows are encoded straight
 * into a buffer of lines, which is compressed when it is full; the compressed
 * file is held in memory until it is taken, because whoever stores it wants to
 * know its length and digest first.
 *
 * Memory: the context the writer was made in; zlib's own is freed by a reset
 * callback.  No network, no catalog, no locks.
 */
#include "postgres.h"

#include "encode/csv.h"

#include <zlib.h>

#include "encode/put.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#define GZIP_LEVEL 1
#define GZIP_WINDOW_BITS (15 + 16) /* with gzip's header and checksum */
#define GZIP_MEM_LEVEL 8

/* Lines are compressed when there are so many bytes of them. */
#define LINES_MAX (256 * 1024)

/* Buffers that a long row made larger than this are given back. */
#define KEEP_MAX (4 * LINES_MAX)

/* The compressed file grows in steps of so many bytes. */
#define OUT_STEP (1024 * 1024)

/* What a message shows of a key. */
#define MAX_KEY_TEXT 100

struct CsvWriter
{
	MemoryContext		  context;
	const ResyncTable	 *table;
	Size				  limit;
	int64				  rows;
	StringInfoData		  lines;
	char				 *out;
	Size				  out_len;
	Size				  out_size;
	bool				  ended;
	z_stream			  zlib;
	bool				  has_zlib;
	MemoryContextCallback callback;
};

static void
free_zlib(void *arg)
{
	CsvWriter *csv = arg;

	if (csv->has_zlib)
		deflateEnd(&csv->zlib);
	csv->has_zlib = false;
}

CsvWriter *
resync_csv_make(const ResyncTable *table, Size limit)
{
	CsvWriter *csv = palloc0(sizeof(CsvWriter));

	csv->context = CurrentMemoryContext;
	csv->table = table;
	csv->limit = limit;
	initStringInfo(&csv->lines);
	csv->callback.func = free_zlib;
	csv->callback.arg = csv;
	MemoryContextRegisterResetCallback(csv->context, &csv->callback);
	csv->has_zlib = deflateInit2(&csv->zlib, GZIP_LEVEL, Z_DEFLATED, GZIP_WINDOW_BITS,
								 GZIP_MEM_LEVEL, Z_DEFAULT_STRATEGY) == Z_OK;
	if (!csv->has_zlib)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	return csv;
}

static void
reset_lines(CsvWriter *csv)
{
	if (csv->lines.maxlen > KEEP_MAX)
	{
		MemoryContext old = MemoryContextSwitchTo(csv->context);

		pfree(csv->lines.data);
		initStringInfo(&csv->lines);
		MemoryContextSwitchTo(old);
	}
	else
		resetStringInfo(&csv->lines);
}

void
resync_csv_begin(CsvWriter *csv)
{
	if (deflateReset(&csv->zlib) != Z_OK)
		elog(ERROR, "could not begin to compress a file");
	csv->rows = 0;
	csv->out_len = 0;
	csv->ended = false;
	reset_lines(csv);
}

int64
resync_csv_rows(const CsvWriter *csv)
{
	return csv->rows;
}

/* ---- compression ---- */

static void
grow_out(CsvWriter *csv)
{
	Size size = csv->out_size + Max(OUT_STEP, csv->out_size / 2);

	if (csv->out == NULL)
		csv->out = MemoryContextAllocHuge(csv->context, size);
	else
		csv->out = repalloc_huge(csv->out, size);
	csv->out_size = size;
}

/* What lines has goes into the file; last: nothing follows. */
static void
compress_lines(CsvWriter *csv, bool last)
{
	z_stream *zlib = &csv->zlib;
	int		  rc;

	zlib->next_in = (Bytef *) csv->lines.data;
	zlib->avail_in = csv->lines.len;
	do
	{
		Size room;

		if (csv->out_size == csv->out_len)
			grow_out(csv);
		room = Min(csv->out_size - csv->out_len, OUT_STEP);
		zlib->next_out = (Bytef *) csv->out + csv->out_len;
		zlib->avail_out = (uInt) room;
		rc = deflate(zlib, last ? Z_FINISH : Z_NO_FLUSH);
		csv->out_len += room - zlib->avail_out;
		if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR)
			ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
							errmsg("could not compress data with gzip: %s", zError(rc))));
	} while (last ? rc != Z_STREAM_END : zlib->avail_in > 0);
	reset_lines(csv);
}

void
resync_csv_end(CsvWriter *csv, const char **data, Size *len)
{
	if (!csv->ended)
		compress_lines(csv, true);
	csv->ended = true;
	*data = csv->out;
	*len = csv->out_len;
}

/* ---- rows ---- */

/* The bytes from start on are a value that begins with its quote: end it. */
static void
end_value(StringInfo lines, int start)
{
	char *from = lines->data + start + 1;
	char *end = lines->data + lines->len;
	int	  quotes = 0;

	for (char *p = from; (p = memchr(p, '"', end - p)) != NULL; p++)
		quotes++;
	(void) put_reserve(lines, quotes + 1);
	from = lines->data + start + 1;
	for (char *p = lines->data + lines->len - 1, *to = p + quotes; to > p && p >= from; p--)
	{
		*to-- = *p;
		if (*p == '"')
			*to-- = '"';
	}
	lines->len += quotes;
	lines->data[lines->len++] = '"';
}

static void
put_field(CsvWriter *csv, const char *data, int len)
{
	int start = csv->lines.len;

	if (len < 0)
		return;
	put_byte(&csv->lines, '"');
	put_bytes(&csv->lines, data, len);
	end_value(&csv->lines, start);
}

/* "(id)=(5)": of a row. */
static char *
key_text(const CsvWriter *csv, const EncodedField *fields)
{
	StringInfoData names;
	StringInfoData values;

	initStringInfo(&names);
	initStringInfo(&values);
	for (int pos = 1; pos <= csv->table->nkeys; pos++)
	{
		for (int i = 0; i < csv->table->ncols; i++)
		{
			const char *text = fields[i].data;
			int			len = Min(fields[i].len, MAX_KEY_TEXT);
			char	   *shown;

			if (csv->table->cols[i].keypos != pos)
				continue;
			while (len > 0 && len < fields[i].len && (text[len] & 0xC0) == 0x80)
				len--;
			shown = len < 0 ? pstrdup("null") : pnstrdup(text, len);
			/* to convert it would want a transaction */
			for (char *p = shown; GetDatabaseEncoding() != PG_UTF8 && *p != '\0'; p++)
				*p = IS_HIGHBIT_SET(*p) ? '?' : *p;
			appendStringInfo(&names, "%s%s", pos > 1 ? ", " : "", csv->table->cols[i].name);
			appendStringInfo(&values, "%s%s", pos > 1 ? ", " : "", shown);
		}
	}
	return psprintf("(%s)=(%s)", names.data, values.data);
}

static void
pg_attribute_noreturn() raise_long(const CsvWriter *csv, const EncodedField *fields, int which)
{
	const ResyncTable *table = csv->table;

	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("a value of column \"%s\" of table \"%s.%s\" is too long for the destination",
					table->cols[which].name, table->schema, table->name),
			 table->nkeys > 0
				 ? errdetail("It has %d bytes; the limit is %d. Key of the row: %s.",
							 fields[which].len, RESYNC_CSV_MAX_VALUE, key_text(csv, fields))
				 : errdetail("It has %d bytes; the limit is %d.", fields[which].len,
							 RESYNC_CSV_MAX_VALUE),
			 errhint("Exclude the column from the mirror, or shorten the value.")));
}

static bool
finish_row(CsvWriter *csv, const EncodedField *extras, int nextras)
{
	for (int i = 0; i < nextras; i++)
	{
		put_byte(&csv->lines, ',');
		put_field(csv, extras[i].data, extras[i].len);
	}
	/* a line must not be empty, which one NULL would make it */
	if (csv->table->ncols + nextras == 1)
		put_byte(&csv->lines, ',');
	put_byte(&csv->lines, '\n');
	csv->rows++;
	if (csv->lines.len >= LINES_MAX)
		compress_lines(csv, false);
	return csv->out_len >= csv->limit;
}

/* A value's text, of which the row is in lines already. */
static void
raise_long_tuple(CsvWriter *csv, RowEncoder *encoder, const Datum *values, const bool *isnull,
				 int which)
{
	EncodedField  *fields = palloc(sizeof(EncodedField) * encoder->ncols);
	StringInfoData row;

	/* keys are encoded once more, and the value in question */
	initStringInfo(&row);
	for (int i = 0; i < encoder->ncols; i++)
	{
		int	 attno = encoder->cols[i].attno;
		bool wanted = i == which || csv->table->cols[i].keypos > 0;

		resync_encode_field(encoder, i, attno < 0 ? (Datum) 0 : values[attno],
							attno < 0 || !wanted || isnull[attno], &row);
	}
	resync_find_fields(row.data, encoder->ncols, fields);
	raise_long(csv, fields, which);
}

bool
resync_csv_add_tuple(CsvWriter *csv, RowEncoder *encoder, const Datum *values, const bool *isnull,
					 const EncodedField *extras, int nextras)
{
	StringInfo lines = &csv->lines;

	for (int i = 0; i < encoder->ncols; i++)
	{
		ColumnEncoder *enc = &encoder->cols[i];
		int			   start;

		if (i > 0)
			put_byte(lines, ',');
		if (enc->attno < 0 || isnull[enc->attno])
			continue;
		start = lines->len;
		put_byte(lines, '"');
		enc->encode(enc, values[enc->attno], lines);
		if (unlikely(enc->made_null))
		{
			enc->made_null = false;
			lines->len = start;
			continue;
		}
		if (unlikely(lines->len - start - 1 > RESYNC_CSV_MAX_VALUE))
			raise_long_tuple(csv, encoder, values, isnull, i);
		end_value(lines, start);
	}
	return finish_row(csv, extras, nextras);
}

bool
resync_csv_add_pieces(CsvWriter *csv, const EncodedField *fields, const EncodedField *extras,
					  int nextras)
{
	for (int i = 0; i < csv->table->ncols; i++)
	{
		if (unlikely(fields[i].len > RESYNC_CSV_MAX_VALUE))
			raise_long(csv, fields, i);
		if (i > 0)
			put_byte(&csv->lines, ',');
		put_field(csv, fields[i].data, fields[i].len);
	}
	return finish_row(csv, extras, nextras);
}
