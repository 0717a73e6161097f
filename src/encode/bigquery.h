/*
 * bigquery.h
 *		PostgreSQL types and values to BigQuery's, as Avro.
 *
 * A *field* (encode.h) of a column holds exactly the value's Avro bytes, without
 * the branch of the union with null; NULL is length -1.
 *
 * ResyncColumn.dest_type is the type as GoogleSQL writes it, without NOT NULL:
 * "NUMERIC(12, 2)", "ARRAY<STRING>".  wire is always "avro"; wire_info is
 * "<flags>:<dest_type>".
 *
 * What becomes of a type (README.md has the table): one of BigQuery's that
 * holds every value of it that BigQuery can hold at all, else STRING of its
 * text.
 */
#ifndef RESYNC_BIGQUERY_ENCODE_H
#define RESYNC_BIGQUERY_ENCODE_H

#include "resync.h"

#include "encode/avro.h"
#include "encode/encode.h"

typedef enum BqKind
{
	BQ_BOOL,
	BQ_INT64,
	BQ_FLOAT64,
	BQ_NUMERIC,
	BQ_BIGNUMERIC,
	BQ_STRING,
	BQ_BYTES,
	BQ_JSON,
	BQ_DATE,
	BQ_DATETIME,
	BQ_TIME,
	BQ_TIMESTAMP
} BqKind;

typedef struct BqType
{
	BqKind kind;
	int	   precision; /* NUMERIC, BIGNUMERIC; 0: not given */
	int	   scale;
	bool   repeated; /* ARRAY of it: never NULL there, but empty */
	bool   required; /* NOT NULL: a key column that has no NULL at the source */
} BqType;

/* What the mirror's options say. */
typedef struct BqColumnChoice
{
	bool unbounded_string;	 /* unbounded_numeric = 'string' */
	bool drop_null_elements; /* null_array_elements = 'drop'; else an error */
	bool null_out_of_range;	 /* out_of_range = 'null'; else an error */
} BqColumnChoice;

/*
 * Choose dest_type, wire and wire_info (not dest_name).  col->keypos must be
 * final: a key column is never made NULL, and has a type whose values can be
 * compared and read back (no ARRAY, no JSON).  Reads the catalog: in a
 * transaction.  Results are in the current context.
 */
extern void resync_bq_map_column(ResyncColumn *col, const BqColumnChoice *choice);

/* The type of a mapped column. */
extern BqType resync_bq_type(const ResyncColumn *col);

/* "NUMERIC": without parameters and ARRAY, as the REST API's schemas have it. */
extern const char *resync_bq_kind_name(BqKind kind);

/* As GoogleSQL writes it; in the current context. */
extern char *resync_bq_type_text(const BqType *type);

/* Reads what the former wrote; false: it is no such text.  Sets not required. */
extern bool resync_bq_type_parse(const char *text, BqType *type);

/*
 * Columns for resync_avro_make(): the table's, then extras.  Only key columns
 * are required, so these fit a staging table with rows to be deleted, too.  In
 * the current context; names are those of table.
 */
extern AvroColumn *
resync_bq_avro_columns(const ResyncTable *table, const AvroColumn *extras, int nextras);

/* The Avro type of an extra column; in the current context. */
extern char *resync_bq_avro_type(const BqType *type);

/*
 * The encoder for rows of a relation: as resync_encode_pg_make().  Errors of
 * values name table and column, never the value: 22003 out of range, 22004 a
 * NULL element, 2202E a wrong number of array dimensions, 22021 not UTF-8.
 */
extern RowEncoder *resync_encode_bq_make(TupleDesc desc, const ResyncTable *table);

/*
 * A key column's field back to a value of the source's type, for by-key fetch.
 * In a transaction; the result is in the current context.
 */
extern Datum resync_bq_decode_field(const ResyncColumn *col, const char *data, int len);

/* ---- letters before the colon in wire_info ---- */
#define BQ_FLAG_NULL 'n' /* what does not fit becomes NULL */
#define BQ_FLAG_DROP 'd' /* NULL elements are left out */
#define BQ_FLAG_CAST 'x' /* by way of ChSource.cast */
#define BQ_FLAG_REQUIRED 'r'

#endif /* RESYNC_BIGQUERY_ENCODE_H */
