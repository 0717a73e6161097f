/*
 * csv.h
 *		Gzipped files of CSV, written row by row.
 *
 * Source of the format: RFC 4180, and Snowflake's reading of it: every value is
 * quoted, a quote inside it is doubled; nothing between two commas is NULL, so
 * that an empty text and NULL are two things.  Lines end with "\n".
 */
#ifndef RESYNC_CSV_H
#define RESYNC_CSV_H

#include "resync.h"

#include "encode/encode.h"

/* Longest value, in bytes of its text: Snowflake's limit. */
#define RESYNC_CSV_MAX_VALUE (16 * 1024 * 1024)

typedef struct CsvWriter CsvWriter;

/*
 * A writer of files with the columns of table, and some after them.  table (for
 * messages) must live as long as the writer, which is in the current context with
 * its buffers and zlib's memory: deleting the context frees all.  limit: bytes of
 * a compressed file that is full; a file may be a row and zlib's buffer longer.
 * The first file is begun.
 */
extern CsvWriter *resync_csv_make(const ResyncTable *table, Size limit);

/* Forget what the file has, and begin another one. */
extern void resync_csv_begin(CsvWriter *csv);

/*
 * Add a row.  values, isnull: as resync_encode_row(); extras: fields of the
 * columns after the table's.  What encoding allocates is in the current context.
 *
 * Raises ERRCODE_PROGRAM_LIMIT_EXCEEDED for a value that is too long, with the
 * row's key, and what the encoders raise.  After an error the writer can only be
 * begun anew.
 *
 * Returns true when the file is full.
 */
extern bool resync_csv_add_tuple(CsvWriter *csv, RowEncoder *encoder, const Datum *values,
								 const bool *isnull, const EncodedField *extras, int nextras);

/* Same, from fields that lie apart. */
extern bool resync_csv_add_pieces(CsvWriter *csv, const EncodedField *fields,
								  const EncodedField *extras, int nextras);

extern int64 resync_csv_rows(const CsvWriter *csv); /* in the file so far */

/* End the file; its bytes live until the next one is begun. */
extern void resync_csv_end(CsvWriter *csv, const char **data, Size *len);

#endif /* RESYNC_CSV_H */
