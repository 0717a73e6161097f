/*
 * clickhouse_decode.c
 *		RowBinary read: values that came from ClickHouse, and a key column's field
 *		back to a value of the source's type.
 *
 * The streamer looks up rows by key at the source, between batches.  The way
 * back is the text that the type's input function reads; a key is never
 * clamped or rounded, so it leads to the value that was encoded.
 */
#include "postgres.h"

#include "encode/clickhouse.h"

#include "common/shortest_dec.h"
#include "encode/chsource.h"
#include "encode/chtype.h"
#include "encode/numeric.h"
#include "encode/put.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

static void
raise_bad_field(const ResyncColumn *col)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
					errmsg_internal("a field of column \"%s\" is not a %s", col->name,
									resync_ch_block_type(col))));
}

/* A signed number of up to 64 bits. */
static int64
read_integer(const char *data, int width, bool is_signed)
{
	uint64 n = 0;

	for (int i = 0; i < width; i++)
		n |= (uint64) (unsigned char) data[i] << (8 * i);
	if (is_signed && width < 8 && (data[width - 1] & 0x80) != 0)
		n |= ~UINT64CONST(0) << (8 * width);
	return (int64) n;
}

/* An integer of any width in decimal, with scale digits after the point. */
static char *
wide_text(const char *data, int width, bool is_signed, int scale)
{
	char  text[100]; /* 78 digits, sign, point, a zero before it */
	char *p = text + sizeof(text);
	bool  negative = is_signed && (data[width - 1] & 0x80) != 0;
	uint8 bytes[32];
	bool  rest;
	int	  digits = 0;

	memcpy(bytes, data, width);
	if (negative)
	{
		int carry = 1;

		for (int i = 0; i < width; i++)
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
		for (int i = width - 1; i >= 0; i--)
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
float_text(const char *data, int width)
{
	char *text = palloc(DOUBLE_SHORTEST_DECIMAL_LEN);

	if (width == 8)
	{
		uint64 bits = (uint64) read_integer(data, 8, false);
		double d;

		memcpy(&d, &bits, sizeof(d));
		(void) double_to_shortest_decimal_buf(d, text);
	}
	else
	{
		uint32 bits = (uint32) read_integer(data, 4, false);
		float  f;

		memcpy(&f, &bits, sizeof(f));
		(void) float_to_shortest_decimal_buf(f, text);
	}
	return text;
}

static char *
uuid_text(const char *data)
{
	pg_uuid_t uuid;

	for (int i = 0; i < UUID_LEN; i++)
		uuid.data[i] = (unsigned char) data[(i & 8) + 7 - (i & 7)];
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&uuid)));
}

/* Ticks back to microseconds: a key has at least those. */
static int64
read_usecs(const char *data, const ChType *type)
{
	int64 n = read_integer(data, 8, true);

	for (int i = 6; i < type->scale; i++)
		n /= 10;
	return n;
}

static char *
time_text(const ChSource *source, int64 usecs)
{
	if (source->kind == CH_FROM_TIME)
		return DatumGetCString(DirectFunctionCall1(time_out, TimeADTGetDatum(usecs)));
	usecs -= (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
	return DatumGetCString(OidFunctionCall1(source->output, TimestampGetDatum(usecs)));
}

static char *
date_text(int64 days)
{
	return DatumGetCString(DirectFunctionCall1(
		date_out, DateADTGetDatum((DateADT) (days - POSTGRES_EPOCH_JDATE + UNIX_EPOCH_JDATE))));
}

/* The text inside a String or FixedString; bytea as its input function has it. */
static char *
string_text(const ResyncColumn *col, const ChSource *source, const char *data, int len)
{
	char *text;

	if (source->kind == CH_FROM_BYTEA)
	{
		text = palloc(2 + 2 * len + 1);
		memcpy(text, "\\x", 2);
		text[2 + hex_encode(data, len, text + 2)] = '\0';
		return text;
	}

	/* filled up with NULs, which no text has */
	text = pnstrdup(data, len);
	return pg_any_to_server(text, strlen(text), PG_UTF8);
}

static char *
field_text(const ResyncColumn *col, const ChSource *source, const ChType *type, const char *data,
		   int len)
{
	const char *end = data + len;
	uint64		n;

	if (type->width != 0 && type->width != len)
		raise_bad_field(col);
	switch (type->kind)
	{
		case CH_BOOL:
			return pstrdup(*data != 0 ? "t" : "f");
		case CH_INT:
		case CH_UINT:
			if (source->kind == CH_FROM_BOOL)
				return pstrdup(*data != 0 ? "t" : "f");
			return wide_text(data, len, type->kind == CH_INT, 0);
		case CH_DECIMAL:
			return wide_text(data, len, true, type->scale);
		case CH_FLOAT:
			return float_text(data, len);
		case CH_DATE:
		case CH_DATE32:
			return date_text(read_integer(data, len, type->kind == CH_DATE32));
		case CH_DATETIME64:
		case CH_TIME64:
			return time_text(source, read_usecs(data, type));
		case CH_UUID:
			return uuid_text(data);
		case CH_FIXED_STRING:
			return string_text(col, source, data, len);
		case CH_STRING:
			if (!varuint_read(&data, end, &n) || n != (uint64) (end - data))
				raise_bad_field(col);
			return string_text(col, source, data, (int) n);
		default:
			raise_bad_field(col);
	}
	return NULL; /* not reached */
}

static const char *
value_end(const ChType *type, const char *p, const char *end)
{
	uint64 n;

	if (type->width > 0)
		return end - p < type->width ? NULL : p + type->width;
	if (!varuint_read(&p, end, &n) || n > (uint64) (end - p))
		return NULL;
	if (type->kind != CH_ARRAY)
		return p + n;
	type = type->inner;
	for (; n > 0 && p != NULL; n--)
	{
		if (type->kind != CH_NULLABLE)
			p = value_end(type, p, end);
		else if (p == end)
			return NULL;
		else if (*p++ == 0)
			p = value_end(type->inner, p, end);
	}
	return p;
}

const char *
resync_ch_value_end(const ResyncColumn *col, const char *p, const char *end)
{
	ChType *type = resync_chtype_parse(resync_ch_block_type(col));

	if (type == NULL)
		raise_bad_field(col);
	return value_end(type->kind == CH_NULLABLE ? type->inner : type, p, end);
}

Datum
resync_ch_decode_field(const ResyncColumn *col, const char *data, int len)
{
	ChSource *source = resync_chsource_make(col->typid, col->typmod);
	ChType	 *type = resync_chtype_parse(resync_ch_block_type(col));
	Oid		  fn;
	Oid		  ioparam;

	if (type != NULL && type->kind == CH_NULLABLE)
		type = type->inner;
	if (type == NULL)
		raise_bad_field(col);
	getTypeInputInfo(col->typid, &fn, &ioparam);
	return OidInputFunctionCall(fn, field_text(col, source, type, data, len), ioparam, col->typmod);
}
