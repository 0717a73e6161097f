/*
 * snowflake.h
 *		PostgreSQL types and values to Snowflake's, as text for CSV.
 *
 * A *field* (encode.h) of a column holds the value's text in UTF-8, which the
 * column's expression in COPY (resync_sf_convert) makes a value of; NULL is
 * length -1.
 *
 * ResyncColumn.dest_type is the type as Snowflake's SQL writes it, without NOT
 * NULL: "NUMBER(12, 2)", "VARIANT".  wire is always "csv"; wire_info is
 * "<flags>:<dest_type>".
 *
 * What becomes of a type (README.md has the table): one of Snowflake's that
 * holds every value of it that Snowflake can hold at all, else VARCHAR of its
 * text.
 */
#ifndef RESYNC_SNOWFLAKE_ENCODE_H
#define RESYNC_SNOWFLAKE_ENCODE_H

#include "resync.h"

#include "encode/encode.h"

typedef enum SfKind
{
	SF_BOOLEAN,
	SF_NUMBER,
	SF_FLOAT,
	SF_VARCHAR,
	SF_BINARY,
	SF_DATE,
	SF_TIME,
	SF_TIMESTAMP_NTZ,
	SF_TIMESTAMP_TZ,
	SF_VARIANT,
	SF_GEOGRAPHY,
	SF_GEOMETRY
} SfKind;

typedef struct SfType
{
	SfKind kind;
	int	   precision; /* NUMBER */
	int	   scale;
} SfType;

/* What the mirror's options say. */
typedef struct SfColumnChoice
{
	bool unbounded_string;	/* unbounded_numeric = 'string' */
	bool null_out_of_range; /* out_of_range = 'null'; else an error */
} SfColumnChoice;

/*
 * Choose dest_type, wire and wire_info (not dest_name).  col->keypos must be
 * final: a key column is never made NULL, and has a type whose values can be
 * compared and read back.  Reads the catalog: in a transaction.  Results are in
 * the current context.
 */
extern void resync_sf_map_column(ResyncColumn *col, const SfColumnChoice *choice);

/* The type of a mapped column. */
extern SfType resync_sf_type(const ResyncColumn *col);

/* "NUMBER": without parameters. */
extern const char *resync_sf_kind_name(SfKind kind);

/*
 * SQL that makes a value of a kind of the text that a field has, which is the
 * expression text.  In the current context.
 */
extern char *resync_sf_convert(const SfType *type, const char *text);

/*
 * The encoder for rows of a relation: as resync_encode_pg_make().  Errors of
 * values name table and column, never the value: 22003 out of range, 2202E bounds
 * of an array, 22021 not UTF-8.
 */
extern RowEncoder *resync_encode_sf_make(TupleDesc desc, const ResyncTable *table);

/*
 * A key column's field back to a value of the source's type, for by-key fetch.
 * In a transaction; the result is in the current context.
 */
extern Datum resync_sf_decode_field(const ResyncColumn *col, const char *data, int len);

/* ---- letters before the colon in wire_info ---- */
#define SF_FLAG_NULL 'n' /* what does not fit becomes NULL */
#define SF_FLAG_CAST 'x' /* by way of ChSource.cast */

#endif /* RESYNC_SNOWFLAKE_ENCODE_H */
