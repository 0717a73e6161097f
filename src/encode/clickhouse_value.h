/*
 * clickhouse_value.h
 *		What the parts of the encoder for ClickHouse share.
 */
#ifndef RESYNC_CLICKHOUSE_VALUE_H
#define RESYNC_CLICKHOUSE_VALUE_H

#include "resync.h"

#include "encode/chsource.h"
#include "encode/chtype.h"
#include "encode/encode.h"
#include "encode/put.h"

/* ColumnEncoder.priv of a column, or of an array's elements. */
typedef struct ChValue
{
	const ResyncTable  *table; /* for messages, like the column */
	const ResyncColumn *column;
	const ChSource	   *source;
	const ChType	   *type; /* of the block, without Nullable */
	bool				nullable;
	bool				clamp;
	bool				round;
	bool				wide_datetime64;
	bool				convert; /* texts to UTF-8 */
	int64				min;	 /* smallest and largest value that fits, in
								 * the source's unit: integers, dates (days),
								 * timestamps and times (microseconds) */
	int64				max;
	int64				multiply; /* microseconds to ticks, one of both is 1 */
	int64				divide;

	/* arrays, and types that are taken by way of another */
	int			  dimensions;
	ColumnEncoder inner;
	FmgrInfo	  cast;
} ChValue;

/*
 * A value does not fit: what goes on with "a value of column ... of table ...".
 */
extern void resync_ch_raise_unfit(const ChValue *v, int sqlerrcode, const char *what);
extern void resync_ch_raise_out_of_range(const ChValue *v);

/* The nearest value that fits, or an error. */
static inline int64
resync_ch_fit(const ChValue *v, int64 value)
{
	if (likely(value >= v->min && value <= v->max))
		return value;
	if (!v->clamp)
		resync_ch_raise_out_of_range(v);
	return value < v->min ? v->min : v->max;
}

/* A small integer as one of width bytes. */
static inline void
put_integer(StringInfo buf, int64 value, int width)
{
	switch (width)
	{
		case 1:
			put_byte(buf, (char) value);
			break;
		case 2:
			put_le16(buf, (uint16) value);
			break;
		case 4:
			put_le32(buf, (uint32) value);
			break;
		default:
			put_le64(buf, (uint64) value);
			for (; width > 8; width -= 8)
				put_le64(buf, value < 0 ? ~UINT64CONST(0) : 0);
	}
}

/* The encoder of a number or boolean; fills in the range of integers. */
extern EncodeValueFn resync_ch_choose_number(ChValue *v);

#endif /* RESYNC_CLICKHOUSE_VALUE_H */
