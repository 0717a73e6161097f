/*
 * encode.h
 *		PostgreSQL values to a destination's bytes, one column at a time.
 *
 * A row from the snapshot and a row from WAL are both a tuple and a TupleDesc
 * and go through the same encoder (rule 1), so their bytes are the same.
 * Pure: no network, no catalog writes.  What an encoder needs of the source's
 * catalog (output functions) it looks up when it is made.
 *
 * A *field* is one encoded value: a length word (int32, network order; -1 for
 * NULL), then that many bytes.  That is also COPY BINARY's field format.
 */
#ifndef RESYNC_ENCODE_H
#define RESYNC_ENCODE_H

#include "resync.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "port/pg_bswap.h"

typedef struct ColumnEncoder ColumnEncoder;

/*
 * Append the bytes of a non-NULL value, without its length word.
 * Memory: whatever it allocates is in the current context, which the caller
 * resets per row.  External and compressed values are allowed (but not a
 * pointer to an on-disk value during decoding: see RowEncoder).
 */
typedef void (*EncodeValueFn)(ColumnEncoder *col, Datum value, StringInfo buf);

struct ColumnEncoder
{
	EncodeValueFn encode;
	int			  attno; /* 0-based index into values/isnull of the
								 * relation that rows come from; -1: the
								 * relation has no such column (NULL) */
	Oid			  typid; /* type there */
	int32		  typmod;
	int16		  typlen; /* its length: -1 = varlena */
	bool		  typbyval;
	char		  typalign;
	FmgrInfo	  finfo;	 /* send or output function, when used */
	void		 *priv;		 /* encoder's own data */
	bool		  made_null; /* set by encode, which appended nothing: the value
								 * can only be NULL there.  The caller clears
								 * it. */
};

/*
 * Encodes rows of ONE relation (a root or a leaf: attnums differ) into the
 * columns of a ResyncTable, in the table's column order.
 */
typedef struct RowEncoder
{
	int			   ncols;
	ColumnEncoder *cols;
} RowEncoder;

/*
 * Make the encoder for PostgreSQL destinations.
 *
 * desc: of the relation that rows come from; columns are matched by name, and
 * a column whose type or typmod is not the one of the plan raises
 * ERRCODE_DATATYPE_MISMATCH.  cols[].wire is one of
 *	"binary"	binary send format of the type itself (the destination column
 *				has the same type); wire_info, if any, lists the OIDs inside
 *				values to be replaced
 *	"astext"	the output function's text, sent as binary text (the
 *				destination column is text)
 *	"text"		the output function's text for a destination type that has no
 *				binary input: the writer has to use COPY in text format
 * The result and all it holds are allocated in the current context.  Needs a
 * valid snapshot/transaction for catalog look-ups.
 */
extern RowEncoder *resync_encode_pg_make(TupleDesc desc, const ResyncColumn *cols, int ncols);

/*
 * What a destination's own maker builds on: finds the columns in desc, with the
 * checks named above, and has choose fill in encode, finfo and priv of each
 * that is there.
 */
typedef void (*ChooseEncoderFn)(ColumnEncoder *enc, const ResyncColumn *col, void *arg);

extern RowEncoder *resync_encode_make(TupleDesc desc, const ResyncColumn *cols, int ncols,
									  ChooseEncoderFn choose, void *arg);

/* A value's bytes that lie anywhere. */
typedef struct EncodedField
{
	const char *data;
	int32		len; /* -1: NULL */
} EncodedField;

/* Where the n fields at data are. */
static inline void
resync_find_fields(const char *data, int n, EncodedField *fields)
{
	for (int i = 0; i < n; i++)
	{
		uint32 len;

		memcpy(&len, data, 4);
		fields[i].len = (int32) pg_ntoh32(len);
		fields[i].data = data + 4;
		data += 4 + Max(fields[i].len, 0);
	}
}

/*
 * Append one field: length word and bytes, or -1.
 */
static inline void
resync_encode_field(RowEncoder *enc, int col, Datum value, bool isnull, StringInfo buf)
{
	int	   start;
	uint32 n;

	enlargeStringInfo(buf, 4);
	start = buf->len;
	buf->len += 4;
	if (isnull)
		n = (uint32) -1;
	else
	{
		enc->cols[col].encode(&enc->cols[col], value, buf);
		n = (uint32) (buf->len - start - 4);
		if (unlikely(enc->cols[col].made_null))
		{
			enc->cols[col].made_null = false;
			n = (uint32) -1;
		}
	}
	n = pg_hton32(n);
	memcpy(buf->data + start, &n, 4);
}

/*
 * Append every field of a row.  values and isnull are indexed by the
 * relation's attnum - 1 (slot->tts_values after slot_getallattrs).
 */
extern void
resync_encode_row(RowEncoder *enc, const Datum *values, const bool *isnull, StringInfo buf);

/*
 * Turn the fields of one row (ncols fields at data) into one line of COPY's
 * text format, newline included, appended to out.  Only meaningful when all
 * wires are "text" or were encoded as text.
 */
extern void resync_encode_copy_text_line(const char *data, int ncols, StringInfo out);

/* regclass and the like: an OID that means nothing in another database. */
extern bool resync_encode_is_reg_type(Oid typid);

/*
 * Can values of a type be sent in their binary form?  form: of the type.  Not
 * those of tsquery: newer minor releases (18.6 is one) send an empty query as
 * ever, and refuse to receive it.
 */
extern bool resync_encode_is_binary_type(Oid typid, Form_pg_type form);

#endif /* RESYNC_ENCODE_H */
