/*
 * numeric.h
 *		Stored numerics, read without numeric.c.
 *
 * Core keeps a numeric's make-up private (utils/adt/numeric.c), but it is the
 * on-disk format: it cannot change under pg_upgrade.  Stored is either a word
 * with everything in it (short form, and special values, whose unused bits are
 * read alike), or one word of sign and dscale and one of weight (long form);
 * then the digits, base 10000.  Words may be unaligned.
 */
#ifndef RESYNC_NUMERIC_H
#define RESYNC_NUMERIC_H

#include "resync.h"

#include "lib/stringinfo.h"

#define NUM_SHORT_OR_SPECIAL 0x8000
#define NUM_KIND_MASK 0xC000
#define NUM_KIND_SPECIAL 0xC000
#define NUM_SPECIAL_MASK 0xF000 /* NaN, Infinity or -Infinity */
#define NUM_LONG_DSCALE_MASK 0x3FFF
#define NUM_SHORT_NEGATIVE 0x2000
#define NUM_SHORT_DSCALE_MASK 0x1F80
#define NUM_SHORT_DSCALE_SHIFT 7
#define NUM_SHORT_WEIGHT_NEG 0x0040
#define NUM_SHORT_WEIGHT_MASK 0x003F

/* NumericParts.sign, as in the long form and as numeric_send() has it */
#define NUMERIC_IS_POSITIVE 0x0000
#define NUMERIC_IS_NEGATIVE 0x4000
#define NUMERIC_IS_NAN 0xC000
#define NUMERIC_IS_PINF 0xD000
#define NUMERIC_IS_NINF 0xF000

typedef struct NumericParts
{
	const char *digits; /* uint16, host order, maybe unaligned: points into
								 * the value */
	int			ndigits;
	int			weight; /* of the first digit: 10000^weight */
	uint16		sign;
	uint16		dscale; /* decimal digits after the point, as displayed */
} NumericParts;

/* data, len: the varlena's content, without its header. */
static inline void
resync_numeric_read(const char *data, int len, NumericParts *parts)
{
	uint16 header;

	memcpy(&header, data, 2);
	if ((header & NUM_SHORT_OR_SPECIAL) != 0)
	{
		parts->weight = header & NUM_SHORT_WEIGHT_MASK;
		if ((header & NUM_SHORT_WEIGHT_NEG) != 0)
			parts->weight |= ~NUM_SHORT_WEIGHT_MASK;
		parts->dscale = (header & NUM_SHORT_DSCALE_MASK) >> NUM_SHORT_DSCALE_SHIFT;
		if ((header & NUM_KIND_MASK) == NUM_KIND_SPECIAL)
			parts->sign = header & NUM_SPECIAL_MASK;
		else
			parts->sign = (header & NUM_SHORT_NEGATIVE) != 0 ? NUMERIC_IS_NEGATIVE
															 : NUMERIC_IS_POSITIVE;
		parts->digits = data + 2;
		parts->ndigits = (len - 2) / 2;
	}
	else
	{
		int16 weight;

		memcpy(&weight, data + 2, 2);
		parts->weight = weight;
		parts->dscale = header & NUM_LONG_DSCALE_MASK;
		parts->sign = header & NUMERIC_IS_NEGATIVE;
		parts->digits = data + 4;
		parts->ndigits = (len - 4) / 2;
	}
}

static inline bool
resync_numeric_is_special(const NumericParts *parts)
{
	return (parts->sign & NUM_KIND_MASK) == NUM_KIND_SPECIAL;
}

static inline int
resync_numeric_digit(const NumericParts *parts, int i)
{
	uint16 digit;

	memcpy(&digit, parts->digits + 2 * i, 2);
	return digit;
}

/* A value times 10^scale, as an integer. */
typedef enum NumericFit
{
	NUMERIC_EXACT,
	NUMERIC_ROUNDED, /* half away from zero */
	NUMERIC_TOO_BIG	 /* more than the given number of digits */
} NumericFit;

/* Most significant digits that resync_numeric_scale64() can give. */
#define NUMERIC_DIGITS64 18

/*
 * The magnitude of a finite value times 10^scale, which must have at most
 * precision digits: in 64 bits (precision <= NUMERIC_DIGITS64) ...
 */
extern NumericFit
resync_numeric_scale64(const NumericParts *parts, int scale, int precision, uint64 *magnitude);

/*
 * ... or in words of 64 bits, the lowest first; two of them hold 38 digits,
 * four hold 77.  With four, precision may be 78: what needs more than 256 bits
 * is NUMERIC_TOO_BIG.
 */
extern NumericFit resync_numeric_scale_wide(const NumericParts *parts, int scale, int precision,
											uint64 *words, int nwords);

/* words := words * factor + summand; returns what does not fit. */
static inline uint64
resync_words_multiply_add(uint64 *words, int nwords, uint64 factor, uint64 summand)
{
	for (int i = 0; i < nwords; i++)
	{
		unsigned __int128 product = (unsigned __int128) words[i] * factor + summand;

		words[i] = (uint64) product;
		summand = (uint64) (product >> 64);
	}
	return summand;
}

/* words >= 10^precision?  False when that does not fit into so many words. */
extern bool resync_words_reach_power(const uint64 *words, int nwords, int precision);

/* words := 10^precision, if it fits; false: it does not. */
extern bool resync_words_power(uint64 *words, int nwords, int precision);

/*
 * Digits in all and after the point that a type modifier allows; false: it
 * allows any.  numeric(5,-2) and numeric(2,5) are told as (7,0) and (5,5), which
 * hold their values.
 */
static inline bool
resync_numeric_typmod(int32 typmod, int *precision, int *scale)
{
	if (typmod < (int32) VARHDRSZ)
		return false;
	*precision = ((typmod - VARHDRSZ) >> 16) & 0xffff;
	/* 11 bits, signed */
	*scale = (((typmod - VARHDRSZ) & 0x7ff) ^ 1024) - 1024;
	if (*scale < 0)
	{
		*precision -= *scale;
		*scale = 0;
	}
	*precision = Max(*precision, *scale);
	return true;
}

/* Append exactly what numeric_out() gives. */
extern void resync_numeric_text(const NumericParts *parts, StringInfo buf);

#endif /* RESYNC_NUMERIC_H */
