/*
 * numeric.c
 *		Stored numerics to integers and to text, without numeric.c.
 *
 * Used by the encoders for ClickHouse and by the jsonb writer.  Pure: no
 * allocation but the growth of the output buffer, no catalog.
 */
#include "postgres.h"

#include "encode/numeric.h"

#include "encode/put.h"
#include "utils/builtins.h"

static const uint64 powers_of_ten[] = {
	UINT64CONST(1),
	UINT64CONST(10),
	UINT64CONST(100),
	UINT64CONST(1000),
	UINT64CONST(10000),
	UINT64CONST(100000),
	UINT64CONST(1000000),
	UINT64CONST(10000000),
	UINT64CONST(100000000),
	UINT64CONST(1000000000),
	UINT64CONST(10000000000),
	UINT64CONST(100000000000),
	UINT64CONST(1000000000000),
	UINT64CONST(10000000000000),
	UINT64CONST(100000000000000),
	UINT64CONST(1000000000000000),
	UINT64CONST(10000000000000000),
	UINT64CONST(100000000000000000),
	UINT64CONST(1000000000000000000),
};

/* Decimal digits of a value's integral part after scaling; <= 0: below one. */
static inline int
scaled_digits(const NumericParts *parts, int scale)
{
	int first = resync_numeric_digit(parts, 0);

	return 4 * parts->weight + scale +
		   (first >= 1000  ? 4
			: first >= 100 ? 3
			: first >= 10  ? 2
			: first != 0   ? 1
						   : 0);
}

/*
 * What digit i leaves out when its last (-exponent) decimal digits are behind
 * the point.  Sets *half when the first of them is 5 or more; returns whether
 * anything is left out at all, in this digit or later ones.
 */
static bool
left_out(const NumericParts *parts, int i, int exponent, bool *half)
{
	int	 digit = resync_numeric_digit(parts, i);
	bool any;

	*half = false;
	if (exponent <= -4)
	{
		any = digit != 0;
		if (exponent == -4)
			*half = digit >= 5000;
	}
	else
	{
		int unit = (int) powers_of_ten[-exponent];

		any = digit % unit != 0;
		*half = digit % unit >= unit / 2;
	}
	while (!any && ++i < parts->ndigits)
		any = resync_numeric_digit(parts, i) != 0;
	return any;
}

NumericFit
resync_numeric_scale64(const NumericParts *parts, int scale, int precision, uint64 *magnitude)
{
	uint64 n = 0;
	int	   exponent = 4 * parts->weight + scale; /* of digit i */
	int	   i;
	bool   half;

	Assert(precision <= NUMERIC_DIGITS64);
	*magnitude = 0;
	if (parts->ndigits == 0)
		return NUMERIC_EXACT;
	if (scaled_digits(parts, scale) > precision)
		return NUMERIC_TOO_BIG;
	for (i = 0; i < parts->ndigits && exponent >= 0; i++, exponent -= 4)
		n = n * 10000 + resync_numeric_digit(parts, i);
	if (i == parts->ndigits)
	{
		/* exponent is now that of the digit behind the last one */
		*magnitude = n * powers_of_ten[exponent + 4];
		return NUMERIC_EXACT;
	}
	if (exponent > -4)
		n = n * powers_of_ten[4 + exponent] +
			resync_numeric_digit(parts, i) / powers_of_ten[-exponent];
	*magnitude = n;
	if (!left_out(parts, i, exponent, &half))
		return NUMERIC_EXACT;
	if (half && ++*magnitude >= powers_of_ten[precision])
		return NUMERIC_TOO_BIG;
	return NUMERIC_ROUNDED;
}

bool
resync_words_power(uint64 *words, int nwords, int precision)
{
	memset(words, 0, sizeof(uint64) * nwords);
	words[0] = 1;
	while (precision > 0)
	{
		int step = Min(precision, 18);

		if (resync_words_multiply_add(words, nwords, powers_of_ten[step], 0) != 0)
			return false;
		precision -= step;
	}
	return true;
}

bool
resync_words_reach_power(const uint64 *words, int nwords, int precision)
{
	uint64 power[4];

	Assert(nwords <= lengthof(power));
	if (!resync_words_power(power, nwords, precision))
		return false;
	for (int i = nwords - 1; i >= 0; i--)
	{
		if (words[i] != power[i])
			return words[i] > power[i];
	}
	return true;
}

NumericFit
resync_numeric_scale_wide(const NumericParts *parts, int scale, int precision, uint64 *words,
						  int nwords)
{
	int	   exponent = 4 * parts->weight + scale;
	uint64 lost = 0;
	int	   i;
	bool   half;

	memset(words, 0, sizeof(uint64) * nwords);
	if (parts->ndigits == 0)
		return NUMERIC_EXACT;
	if (scaled_digits(parts, scale) > precision)
		return NUMERIC_TOO_BIG;
	for (i = 0; i < parts->ndigits && exponent >= 0; i++, exponent -= 4)
		lost |= resync_words_multiply_add(words, nwords, 10000, resync_numeric_digit(parts, i));
	if (i == parts->ndigits)
	{
		for (exponent += 4; exponent > 0; exponent -= Min(exponent, 18))
			lost |= resync_words_multiply_add(words, nwords, powers_of_ten[Min(exponent, 18)], 0);
		return lost != 0 ? NUMERIC_TOO_BIG : NUMERIC_EXACT;
	}
	if (exponent > -4)
		lost |= resync_words_multiply_add(words, nwords, powers_of_ten[4 + exponent],
										  resync_numeric_digit(parts, i) /
											  powers_of_ten[-exponent]);
	if (lost != 0)
		return NUMERIC_TOO_BIG;
	if (!left_out(parts, i, exponent, &half))
		return NUMERIC_EXACT;
	if (half && (resync_words_multiply_add(words, nwords, 1, 1) != 0 ||
				 resync_words_reach_power(words, nwords, precision)))
		return NUMERIC_TOO_BIG;
	return NUMERIC_ROUNDED;
}

/* ---- text ---- */

/* Four decimal digits. */
static inline void
write_group(char *out, int digit)
{
	out[0] = '0' + digit / 1000;
	out[1] = '0' + digit / 100 % 10;
	out[2] = '0' + digit / 10 % 10;
	out[3] = '0' + digit % 10;
}

/* Digit i, or 0 where there is none. */
static inline int
digit_or_zero(const NumericParts *parts, int i)
{
	return i >= 0 && i < parts->ndigits ? resync_numeric_digit(parts, i) : 0;
}

void
resync_numeric_text(const NumericParts *parts, StringInfo buf)
{
	int	  size;
	char *start;
	char *out;
	int	  i = 0;

	switch (parts->sign)
	{
		case NUMERIC_IS_NAN:
			put_bytes(buf, "NaN", 3);
			return;
		case NUMERIC_IS_PINF:
			put_bytes(buf, "Infinity", 8);
			return;
		case NUMERIC_IS_NINF:
			put_bytes(buf, "-Infinity", 9);
			return;
	}

	/* small integers, the common case in documents */
	if (parts->dscale == 0 && parts->weight >= 0 && parts->weight <= 1)
	{
		uint32 n = digit_or_zero(parts, 0);

		if (parts->weight == 1)
			n = n * 10000 + digit_or_zero(parts, 1);
		start = put_reserve(buf, 12);
		*start = '-';
		buf->len += parts->sign == NUMERIC_IS_NEGATIVE;
		buf->len += pg_ultoa_n(n, buf->data + buf->len);
		return;
	}

	/* sign, digits before the point, point, digits after it in whole groups */
	size = 1 + (Max(parts->weight, 0) + 1) * 4 + 1 + parts->dscale + 4;
	start = put_reserve(buf, size);
	out = start;
	if (parts->sign == NUMERIC_IS_NEGATIVE)
		*out++ = '-';
	if (parts->weight < 0)
		*out++ = '0';
	else
	{
		char first[4];
		int	 skip = 0;

		write_group(first, digit_or_zero(parts, 0));
		while (skip < 3 && first[skip] == '0')
			skip++;
		memcpy(out, first + skip, 4 - skip);
		out += 4 - skip;
		for (i = 1; i <= parts->weight; i++, out += 4)
			write_group(out, digit_or_zero(parts, i));
	}
	if (parts->dscale > 0)
	{
		char *end;

		*out++ = '.';
		end = out + parts->dscale;
		for (i = parts->weight + 1; out < end; i++, out += 4)
			write_group(out, digit_or_zero(parts, i));
		out = end;
	}
	buf->len += out - start;
}
