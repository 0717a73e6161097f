/*
 * bigquery_decode.c
 *		A key column's field back to a value of the source's type.
 *
 * The streamer looks up rows by key at the source, between batches.  The way
 * back is the text that the type's input function reads; a key is never
 * rounded, so it leads to the value that was encoded.
 */
#include "postgres.h"

#include "encode/bigquery.h"

#include "common/shortest_dec.h"
#include "encode/chsource.h"
#include "encode/numeric.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define DECIMAL_WORDS 4
#define DECIMAL_BYTES (DECIMAL_WORDS * 8)

static void
raise_bad_field(const ResyncColumn *col)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg_internal("a field of column \"%s\" is not a %s", col->name, col->dest_type)));
}

static int64
read_long(const ResyncColumn *col, const char *data, const char *end)
{
	int64 n;

	if (!avro_read_long(&data, end, &n) || data != end)
		raise_bad_field(col);
	return n;
}

/* Length and bytes; *data moves on to the bytes. */
static int
read_bytes(const ResyncColumn *col, const char **data, const char *end)
{
	int64 n;

	if (!avro_read_long(data, end, &n) || n != end - *data)
		raise_bad_field(col);
	return (int) n;
}

/* An integer in two's complement, highest byte first, over 10^scale. */
static char *
decimal_text(const char *data, int len, int scale)
{
	char   text[100]; /* 77 digits, sign, point, a zero before it */
	char  *p = text + sizeof(text);
	uint8  bytes[DECIMAL_BYTES];
	bool   negative = (data[0] & 0x80) != 0;
	bool   rest;
	int	   digits = 0;
	uint32 carry = 1;

	memset(bytes, 0, sizeof(bytes));
	memcpy(bytes + sizeof(bytes) - len, data, len);
	if (negative)
	{
		memset(bytes, 0xff, sizeof(bytes) - len);
		for (int i = sizeof(bytes) - 1; i >= 0; i--)
		{
			carry += (uint8) ~bytes[i];
			bytes[i] = (uint8) carry;
			carry >>= 8;
		}
	}
	*--p = '\0';
	do
	{
		int remainder = 0;

		rest = false;
		for (int i = 0; i < sizeof(bytes); i++)
		{
			remainder = remainder * 256 + bytes[i];
			bytes[i] = (uint8) (remainder / 10);
			remainder %= 10;
			rest = rest || bytes[i] != 0;
		}
		*--p = '0' + remainder;
		if (++digits == scale)
			*--p = '.';
	} while (rest || digits <= scale);
	if (negative)
		*--p = '-';
	return pstrdup(p);
}

static char *
float_text(const ChSource *source, const char *data)
{
	char  *text = palloc(DOUBLE_SHORTEST_DECIMAL_LEN);
	uint64 bits;
	double d;

	memcpy(&bits, data, sizeof(bits));
	bits = resync_le64(bits);
	memcpy(&d, &bits, sizeof(d));
	if (source->kind == CH_FROM_FLOAT4)
		(void) float_to_shortest_decimal_buf((float) d, text);
	else
		(void) double_to_shortest_decimal_buf(d, text);
	return text;
}

static char *
date_text(int64 days)
{
	return DatumGetCString(DirectFunctionCall1(
		date_out, DateADTGetDatum((DateADT) (days - POSTGRES_EPOCH_JDATE + UNIX_EPOCH_JDATE))));
}

static char *
timestamp_text(const ChSource *source, int64 usecs)
{
	usecs -= (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	return DatumGetCString(OidFunctionCall1(source->output, TimestampGetDatum(usecs)));
}

/* As bytea's input function has it. */
static char *
bytea_text(const char *data, int len)
{
	char *text = palloc(2 + 2 * len + 1);

	memcpy(text, "\\x", 2);
	text[2 + hex_encode(data, len, text + 2)] = '\0';
	return text;
}

static char *
field_text(const ResyncColumn *col, const ChSource *source, const BqType *type, const char *data,
		   const char *end)
{
	int	  len;
	char *text;

	if (type->repeated)
		raise_bad_field(col);
	switch (type->kind)
	{
		case BQ_BOOL:
			if (end - data != 1)
				raise_bad_field(col);
			return pstrdup(*data != 0 ? "t" : "f");
		case BQ_INT64:
			return psprintf(INT64_FORMAT, read_long(col, data, end));
		case BQ_FLOAT64:
			if (end - data != sizeof(float8))
				raise_bad_field(col);
			return float_text(source, data);
		case BQ_NUMERIC:
		case BQ_BIGNUMERIC:
			len = read_bytes(col, &data, end);
			if (len < 1 || len > DECIMAL_BYTES)
				raise_bad_field(col);
			return decimal_text(data, len, type->precision > 0 ? type->scale : 38);
		case BQ_DATE:
			return date_text(read_long(col, data, end));
		case BQ_DATETIME:
		case BQ_TIMESTAMP:
			return timestamp_text(source, read_long(col, data, end));
		case BQ_TIME:
			return DatumGetCString(
				DirectFunctionCall1(time_out, TimeADTGetDatum(read_long(col, data, end))));
		case BQ_BYTES:
			len = read_bytes(col, &data, end);
			return bytea_text(data, len);
		case BQ_STRING:
			len = read_bytes(col, &data, end);
			text = pnstrdup(data, len);
			return pg_any_to_server(text, len, PG_UTF8);
		case BQ_JSON:
			raise_bad_field(col);
	}
	return NULL; /* not reached */
}

Datum
resync_bq_decode_field(const ResyncColumn *col, const char *data, int len)
{
	ChSource *source = resync_chsource_make(col->typid, col->typmod);
	BqType	  type = resync_bq_type(col);
	Oid		  fn;
	Oid		  ioparam;

	getTypeInputInfo(col->typid, &fn, &ioparam);
	return OidInputFunctionCall(fn, field_text(col, source, &type, data, data + len), ioparam,
								col->typmod);
}
