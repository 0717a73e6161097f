/*
 * clickhouse_number.c
 *		The encoder for ClickHouse: booleans, integers, floating point, numeric.
 *
 * Part of clickhouse.c, which see.  Numbers are little endian, Decimals integers
 * of value * 10^scale; those of more than 64 bits are made as words of 64 bits,
 * the lowest first.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "encode/clickhouse_value.h"

#include "encode/numeric.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

/* Not a number, where there is no such thing; returns false: nothing to append. */
static bool
fit_nan(ColumnEncoder *col, const ChValue *v)
{
	if (!v->clamp)
		resync_ch_raise_out_of_range(v);
	col->made_null = v->nullable;
	return !v->nullable;
}

/* ---- integers ---- */

/* A magnitude in words, of which width bytes are wanted. */
static void
put_words(StringInfo buf, uint64 *words, bool negative, int width)
{
	int nwords = Max(width / 8, 1);

	if (negative)
	{
		bool carry = true;

		for (int i = 0; i < nwords; i++)
		{
			words[i] = ~words[i] + carry;
			carry = carry && words[i] == 0;
		}
	}
	if (width < 8)
		put_integer(buf, (int64) words[0], width);
	else
	{
		for (int i = 0; i < nwords; i++)
			put_le64(buf, words[i]);
	}
}

static void
encode_bool(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_byte(buf, DatumGetBool(value) ? 1 : 0);
}

static void
encode_int2(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_le16(buf, (uint16) DatumGetInt16(value));
}

static void
encode_int4(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_le32(buf, (uint32) DatumGetInt32(value));
}

static void
encode_int8(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_le64(buf, (uint64) DatumGetInt64(value));
}

static int64
get_integer(const ChSource *source, Datum value)
{
	if (source->is_unsigned)
		return DatumGetUInt32(value);
	switch (source->width)
	{
		case 2:
			return DatumGetInt16(value);
		case 4:
			return DatumGetInt32(value);
		default:
			return DatumGetInt64(value);
	}
}

static void
encode_integer(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue *v = col->priv;

	put_integer(buf, resync_ch_fit(v, get_integer(v->source, value)), v->type->width);
}

/* The largest magnitude of a Decimal. */
static void
largest_decimal(const ChType *type, uint64 *words)
{
	(void) resync_words_power(words, 4, type->precision);
	for (int i = 0; i < 4 && words[i]-- == 0; i++)
		;
}

static void
encode_integer_decimal(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue *v = col->priv;
	int64	 n = get_integer(v->source, value);
	uint64	 words[4] = {n < 0 ? -(uint64) n : (uint64) n, 0, 0, 0};
	uint64	 lost = 0;

	for (int i = 0; i < v->type->scale; i++)
		lost |= resync_words_multiply_add(words, 4, 10, 0);
	if (lost != 0 || resync_words_reach_power(words, 4, v->type->precision))
	{
		if (!v->clamp)
			resync_ch_raise_out_of_range(v);
		largest_decimal(v->type, words);
	}
	put_words(buf, words, n < 0, v->type->width);
}

/* ---- floating point ---- */

static void
put_float(const ChValue *v, float8 d, StringInfo buf)
{
	if (v->type->width == 8)
	{
		uint64 bits;

		memcpy(&bits, &d, sizeof(bits));
		put_le64(buf, bits);
	}
	else
	{
		float4 f = (float4) d;
		uint32 bits;

		if (unlikely(isinf(f) && !isinf(d)))
		{
			if (!v->clamp)
				resync_ch_raise_out_of_range(v);
			f = d < 0 ? -FLT_MAX : FLT_MAX;
		}
		memcpy(&bits, &f, sizeof(bits));
		put_le32(buf, bits);
	}
}

static void
encode_float4(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_float(col->priv, DatumGetFloat4(value), buf);
}

static void
encode_float8(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_float(col->priv, DatumGetFloat8(value), buf);
}

static void
encode_integer_float(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue *v = col->priv;

	put_float(v, (float8) get_integer(v->source, value), buf);
}

/* ---- numeric ---- */

static void
encode_numeric_float(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue		   *v = col->priv;
	struct varlena *number = readable_varlena(value);
	float8			d = DatumGetFloat8(
				 DirectFunctionCall1(numeric_float8_no_overflow, PointerGetDatum(number)));
	NumericParts parts;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	release_varlena(number, value);
	if (isinf(d) && !resync_numeric_is_special(&parts))
	{
		if (!v->clamp)
			resync_ch_raise_out_of_range(v);
		d = d < 0 ? -DBL_MAX : DBL_MAX;
	}
	put_float(v, d, buf);
}

/* The largest magnitude of an integer type. */
static void
largest_integer(const ChType *type, bool negative, uint64 *words)
{
	bool is_signed = type->kind == CH_INT;

	memset(words, 0, sizeof(uint64) * 4);
	if (negative && !is_signed)
		return;
	for (int i = 0; i < type->width; i++)
		words[i / 8] |= UINT64CONST(0xff) << (i % 8 * 8);
	if (is_signed)
	{
		/* without the sign's bit; one more when negative */
		words[(type->width - 1) / 8] &= ~(UINT64CONST(0x80) << ((type->width - 1) % 8 * 8));
		if (negative)
			(void) resync_words_multiply_add(words, 4, 1, 1);
	}
}

static bool
words_greater(const uint64 *a, const uint64 *b)
{
	for (int i = 3; i >= 0; i--)
	{
		if (a[i] != b[i])
			return a[i] > b[i];
	}
	return false;
}

/* Infinity or NaN as Decimal or integer; returns false: nothing to append. */
static bool
fit_special(ColumnEncoder *col, const ChValue *v, const NumericParts *parts, uint64 *words)
{
	if (parts->sign == NUMERIC_IS_NAN)
	{
		memset(words, 0, sizeof(uint64) * 4);
		return fit_nan(col, v);
	}
	if (!v->clamp)
		resync_ch_raise_out_of_range(v);
	if (v->type->kind == CH_DECIMAL)
		largest_decimal(v->type, words);
	else
		largest_integer(v->type, parts->sign == NUMERIC_IS_NINF, words);
	return true;
}

/* Decimals of any size, and integers. */
static void
encode_numeric_wide(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue		   *v = col->priv;
	const ChType   *type = v->type;
	bool			is_decimal = type->kind == CH_DECIMAL;
	int				nwords = is_decimal && type->precision <= 38 ? 2 : 4;
	struct varlena *number = readable_varlena(value);
	NumericParts	parts;
	uint64			words[4] = {0};
	uint64			largest[4];
	NumericFit		fits;
	bool			negative;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	negative = parts.sign == NUMERIC_IS_NEGATIVE || parts.sign == NUMERIC_IS_NINF;
	if (unlikely(resync_numeric_is_special(&parts)))
	{
		release_varlena(number, value);
		if (fit_special(col, v, &parts, words))
			put_words(buf, words, negative, type->width);
		return;
	}
	fits = resync_numeric_scale_wide(&parts, type->scale, is_decimal ? type->precision : 78, words,
									 nwords);
	release_varlena(number, value);
	if (fits == NUMERIC_ROUNDED && !v->round && !v->clamp)
		resync_ch_raise_out_of_range(v);
	if (!is_decimal)
	{
		largest_integer(type, negative, largest);
		if (fits != NUMERIC_TOO_BIG && words_greater(words, largest))
			fits = NUMERIC_TOO_BIG;
	}
	else if (fits == NUMERIC_TOO_BIG)
		largest_decimal(type, largest);
	if (fits == NUMERIC_TOO_BIG)
	{
		if (!v->clamp)
			resync_ch_raise_out_of_range(v);
		memcpy(words, largest, sizeof(words));
	}
	put_words(buf, words, negative, type->width);
}

/* Decimals of up to 18 digits: the common case. */
static void
encode_numeric_decimal(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue		   *v = col->priv;
	struct varlena *number = readable_varlena(value);
	NumericParts	parts;
	uint64			n;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	if (unlikely(resync_numeric_is_special(&parts) ||
				 resync_numeric_scale64(&parts, v->type->scale, v->type->precision, &n) !=
					 NUMERIC_EXACT))
	{
		encode_numeric_wide(col, PointerGetDatum(number), buf);
		release_varlena(number, value);
		return;
	}
	if (parts.sign == NUMERIC_IS_NEGATIVE)
		n = -n;
	if (v->type->width == 4)
		put_le32(buf, (uint32) n);
	else
		put_le64(buf, n);
	release_varlena(number, value);
}

/* ---- choosing ---- */

static void
set_integer_range(ChValue *v)
{
	int bits = v->type->width * 8;

	if (v->type->kind == CH_UINT)
	{
		v->min = 0;
		v->max = bits >= 64 ? PG_INT64_MAX : (INT64CONST(1) << bits) - 1;
	}
	else
	{
		v->max = bits >= 64 ? PG_INT64_MAX : (INT64CONST(1) << (bits - 1)) - 1;
		v->min = -v->max - 1;
	}
}

static EncodeValueFn
choose_integer(ChValue *v)
{
	static const EncodeValueFn same[] = {[2] = encode_int2, [4] = encode_int4, [8] = encode_int8};

	if (v->type->kind == CH_DECIMAL)
		return encode_integer_decimal;
	if (v->type->kind == CH_FLOAT)
		return encode_integer_float;
	set_integer_range(v);
	if (v->type->kind == CH_INT && v->type->width == v->source->width && !v->source->is_unsigned)
		return same[v->source->width];
	return encode_integer;
}

static EncodeValueFn
choose_numeric(ChValue *v)
{
	if (v->type->kind == CH_FLOAT)
		return encode_numeric_float;
	if (v->type->kind == CH_DECIMAL && v->type->precision <= NUMERIC_DIGITS64)
		return encode_numeric_decimal;
	return encode_numeric_wide;
}

EncodeValueFn
resync_ch_choose_number(ChValue *v)
{
	switch (v->source->kind)
	{
		case CH_FROM_BOOL:
			return encode_bool;
		case CH_FROM_INT:
			return choose_integer(v);
		case CH_FROM_FLOAT4:
			return encode_float4;
		case CH_FROM_FLOAT8:
			return encode_float8;
		case CH_FROM_NUMERIC:
			return choose_numeric(v);
		default:
			elog(ERROR, "column \"%s\" cannot be encoded as %s", v->column->name,
				 resync_chtype_text(v->type));
	}
	return NULL; /* not reached */
}
