/*
 * chsource.h
 *		PostgreSQL's types as the encoder for ClickHouse sees them.
 */
#ifndef RESYNC_CHSOURCE_H
#define RESYNC_CHSOURCE_H

#include "resync.h"

#include "encode/chtype.h"

typedef enum ChSourceKind
{
	CH_FROM_BOOL,
	CH_FROM_INT, /* int2, int4, int8, oid */
	CH_FROM_FLOAT4,
	CH_FROM_FLOAT8,
	CH_FROM_NUMERIC,
	CH_FROM_TEXT, /* the bytes as stored */
	CH_FROM_BYTEA,
	CH_FROM_CHAR, /* "char" */
	CH_FROM_NAME,
	CH_FROM_JSON,
	CH_FROM_JSONB,
	CH_FROM_UUID,
	CH_FROM_DATE,
	CH_FROM_TIME,
	CH_FROM_TIMESTAMP, /* with time zone or without */
	CH_FROM_ENUM,
	CH_FROM_INET,
	CH_FROM_ARRAY,
	CH_FROM_OTHER /* by its output function */
} ChSourceKind;

typedef struct ChSource
{
	ChSourceKind	 kind;
	Oid				 typid;	 /* domains looked through */
	int32			 typmod; /* of the domain, if it has one */
	int				 width;	 /* CH_FROM_INT: bytes */
	bool			 is_unsigned;
	Oid				 output;	  /* output function */
	struct ChSource *element;	  /* CH_FROM_ARRAY */
	Oid				 cast;		  /* some extensions' types: a function that makes
								 * something better known of them ... */
	struct ChSource *cast_result; /* ... of this type; else NULL */
} ChSource;

/* In the current context; reads the catalog. */
extern ChSource *resync_chsource_make(Oid typid, int32 typmod);

#endif /* RESYNC_CHSOURCE_H */
