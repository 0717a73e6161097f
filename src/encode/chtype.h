/*
 * chtype.h
 *		ClickHouse's types: from text, to text, and what is sent for them.
 */
#ifndef RESYNC_CHTYPE_H
#define RESYNC_CHTYPE_H

#include "resync.h"

typedef enum ChKind
{
	CH_BOOL,
	CH_INT,
	CH_UINT,
	CH_FLOAT,
	CH_DECIMAL,
	CH_STRING,
	CH_FIXED_STRING,
	CH_DATE,
	CH_DATE32,
	CH_DATETIME,
	CH_DATETIME64,
	CH_TIME64,
	CH_UUID,

	/* the server makes these of a String */
	CH_ENUM,
	CH_IPV4,
	CH_IPV6,
	CH_JSON,

	/* around another type */
	CH_LOW_CARDINALITY,
	CH_NULLABLE,
	CH_ARRAY
} ChKind;

typedef struct ChType
{
	ChKind		   kind;
	int			   width;	  /* bytes of a value, 0: they differ */
	int			   precision; /* Decimal: digits */
	int			   scale;	  /* Decimal; DateTime64, Time64: digits of a
								 * second */
	char		  *args;	  /* Enum, JSON: as written, in parentheses;
								 * DateTime, DateTime64: time zone with its
								 * quotes; or NULL */
	int			   bits;	  /* Enum: 8 or 16 */
	struct ChType *inner;	  /* of the last three kinds */
} ChType;

/*
 * Parse a type; NULL when it is none of those above, or makes no sense.  In
 * the current context.
 */
extern ChType *resync_chtype_parse(const char *text);

/* The canonical text, as ClickHouse prints it, in the current context. */
extern char *resync_chtype_text(const ChType *type);

/* What is sent for it: without the kinds that the server makes of others. */
extern ChType *resync_chtype_block(const ChType *type);

/* Make a type of one of the kinds that need nothing more than a width. */
extern ChType *resync_chtype_make(ChKind kind, int width);
extern ChType *resync_chtype_decimal(int precision, int scale);
extern ChType *resync_chtype_scaled(ChKind kind, int scale); /* DateTime64, Time64 */
extern ChType *resync_chtype_wrap(ChKind kind, ChType *inner);

/* With Nullable or without, inside a LowCardinality; an Array stays as it is. */
extern ChType *resync_chtype_set_nullable(ChType *type, bool nullable);

#endif /* RESYNC_CHTYPE_H */
