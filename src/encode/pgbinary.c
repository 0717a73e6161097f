/*
 * pgbinary.c
 *		The encoder for PostgreSQL destinations: COPY BINARY fields, or text.
 *
 * Used by copiers for rows of the snapshot and by the streamer for rows of
 * WAL, there also inside decoding callbacks (historic snapshot, no XID): all
 * catalog look-ups of our own are done in resync_encode_pg_make(), which may
 * run in such a callback itself.  Send and output functions used as fallback
 * may look things up in the syscache; they take no lock on user tables.
 *
 * The common types have encoders of our own, which write straight into the
 * buffer instead of by way of a bytea.  They are chosen by the address of the
 * type's send function, so that types which borrow one (citext, domains, the
 * reg* types do not) come along, and their bytes are those that function
 * gives.  Everything else calls the function.
 *
 * Text is sent in the server encoding, without conversion: the destination
 * connection has the source's server encoding as its client_encoding.  Core's
 * text-like send functions convert to this process's client_encoding, so that
 * must be the server encoding too; resync_encode_pg_make() insists on it.
 *
 * Memory: an encoder lives in the context it was made in (FmgrInfo's cache as
 * well); what encoding a value allocates is in the current context, and large
 * copies (detoasted values) are freed at once.  No locks, no transactions.
 */
#include "postgres.h"

#include "encode/encode.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "encode/jsonb_text.h"
#include "encode/numeric.h"
#include "encode/oidmap.h"
#include "encode/put.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* ---- pieces ---- */

static inline void
put_uint16(StringInfo buf, uint16 n)
{
	n = pg_hton16(n);
	appendBinaryStringInfo(buf, (char *) &n, sizeof(n));
}

static inline void
put_uint32(StringInfo buf, uint32 n)
{
	n = pg_hton32(n);
	appendBinaryStringInfo(buf, (char *) &n, sizeof(n));
}

static inline void
put_uint64(StringInfo buf, uint64 n)
{
	n = pg_hton64(n);
	appendBinaryStringInfo(buf, (char *) &n, sizeof(n));
}

/* ---- fixed-length types: boolsend, charsend, int2send ... ---- */

static void
encode_bool(ColumnEncoder *col, Datum value, StringInfo buf)
{
	char c = DatumGetBool(value) ? 1 : 0;

	appendBinaryStringInfo(buf, &c, 1);
}

static void
encode_char(ColumnEncoder *col, Datum value, StringInfo buf)
{
	char c = DatumGetChar(value);

	appendBinaryStringInfo(buf, &c, 1);
}

static void
encode_int2(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_uint16(buf, (uint16) DatumGetInt16(value));
}

static void
encode_int4(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_uint32(buf, (uint32) DatumGetInt32(value));
}

static void
encode_int8(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_uint64(buf, (uint64) DatumGetInt64(value));
}

static void
encode_float4(ColumnEncoder *col, Datum value, StringInfo buf)
{
	float4 f = DatumGetFloat4(value);
	uint32 n;

	memcpy(&n, &f, sizeof(n));
	put_uint32(buf, n);
}

static void
encode_float8(ColumnEncoder *col, Datum value, StringInfo buf)
{
	float8 f = DatumGetFloat8(value);
	uint64 n;

	memcpy(&n, &f, sizeof(n));
	put_uint64(buf, n);
}

static void
encode_interval(ColumnEncoder *col, Datum value, StringInfo buf)
{
	Interval *interval = DatumGetIntervalP(value);

	put_uint64(buf, (uint64) interval->time);
	put_uint32(buf, (uint32) interval->day);
	put_uint32(buf, (uint32) interval->month);
}

static void
encode_timetz(ColumnEncoder *col, Datum value, StringInfo buf)
{
	TimeTzADT *time = DatumGetTimeTzADTP(value);

	put_uint64(buf, (uint64) time->time);
	put_uint32(buf, (uint32) time->zone);
}

static void
encode_uuid(ColumnEncoder *col, Datum value, StringInfo buf)
{
	appendBinaryStringInfo(buf, (char *) DatumGetUUIDP(value)->data, UUID_LEN);
}

static void
encode_name(ColumnEncoder *col, Datum value, StringInfo buf)
{
	char *name = NameStr(*DatumGetName(value));

	appendBinaryStringInfo(buf, name, strlen(name));
}

/* ---- varlena types ---- */

/* textsend, varcharsend, bpcharsend, byteasend, json_send: the bytes as stored */
static void
encode_bytes(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *v = readable_varlena(value);

	appendBinaryStringInfo(buf, VARDATA_ANY(v), VARSIZE_ANY_EXHDR(v));
	release_varlena(v, value);
}

/* jsonb_send: a version byte, 1, then the text */
static void
encode_jsonb(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *jsonb = readable_varlena(value);

	appendStringInfoChar(buf, 1);
	resync_jsonb_text(VARDATA_ANY(jsonb), buf);
	release_varlena(jsonb, value);
}

/*
 * numeric_send: int16 ndigits, weight, sign, dscale, then the digits, base
 * 10000.
 */
static void
encode_numeric(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *v = readable_varlena(value);
	NumericParts	parts;
	char		   *out;

	resync_numeric_read(VARDATA_ANY(v), VARSIZE_ANY_EXHDR(v), &parts);
	enlargeStringInfo(buf, 8 + 2 * parts.ndigits);
	put_uint16(buf, (uint16) parts.ndigits);
	put_uint16(buf, (uint16) parts.weight);
	put_uint16(buf, parts.sign);
	put_uint16(buf, parts.dscale);
	out = buf->data + buf->len;
	for (int i = 0; i < parts.ndigits; i++)
	{
		uint16 digit = pg_hton16((uint16) resync_numeric_digit(&parts, i));

		memcpy(out + 2 * i, &digit, 2);
	}
	buf->len += 2 * parts.ndigits;
	buf->data[buf->len] = '\0';
	release_varlena(v, value);
}

/* ---- everything else ---- */

/* The type's send function; priv: OIDs to be replaced in the value, or NULL. */
static void
encode_send(ColumnEncoder *col, Datum value, StringInfo buf)
{
	bytea *sent = SendFunctionCall(&col->finfo, value);

	if (col->priv != NULL)
		resync_oidmap_apply((OidMapNode *) col->priv, VARDATA(sent), VARSIZE(sent) - VARHDRSZ);
	appendBinaryStringInfo(buf, VARDATA(sent), VARSIZE(sent) - VARHDRSZ);
	pfree(sent);
}

/* The type's output function. */
static void
encode_output(ColumnEncoder *col, Datum value, StringInfo buf)
{
	char *text = OutputFunctionCall(&col->finfo, value);

	appendBinaryStringInfo(buf, text, strlen(text));
	pfree(text);
}

/* Which of our own encoders stands for which send function. */
static const struct
{
	PGFunction	  send;
	EncodeValueFn encode;
} own_encoders[] = {
	{boolsend, encode_bool},		 {charsend, encode_char},
	{int2send, encode_int2},		 {int4send, encode_int4},
	{int8send, encode_int8},		 {oidsend, encode_int4},
	{float4send, encode_float4},	 {float8send, encode_float8},
	{textsend, encode_bytes},		 {varcharsend, encode_bytes},
	{bpcharsend, encode_bytes},		 {byteasend, encode_bytes},
	{json_send, encode_bytes},		 {jsonb_send, encode_jsonb},
	{namesend, encode_name},		 {uuid_send, encode_uuid},
	{date_send, encode_int4},		 {time_send, encode_int8},
	{timetz_send, encode_timetz},	 {timestamp_send, encode_int8},
	{timestamptz_send, encode_int8}, {interval_send, encode_interval},
	{numeric_send, encode_numeric},
};

/* ---- making ---- */

/*
 * How to encode a column that is there: fills in encode, finfo, priv.
 */
static void
choose_encoder(ColumnEncoder *enc, const ResyncColumn *col, void *arg)
{
	Oid	 base = getBaseType(enc->typid);
	Oid	 fn;
	bool isvarlena;

	enc->priv = NULL;
	if (strcmp(col->wire, "binary") == 0)
	{
		getTypeBinaryOutputInfo(base, &fn, &isvarlena);
		fmgr_info(fn, &enc->finfo);
		enc->encode = encode_send;
		for (int i = 0; i < lengthof(own_encoders); i++)
		{
			if (enc->finfo.fn_addr == own_encoders[i].send)
			{
				enc->encode = own_encoders[i].encode;
				return;
			}
		}
		if (col->wire_info != NULL && col->wire_info[0] != '\0')
			enc->priv = resync_oidmap_make(base, col->wire_info);
	}
	else if (strcmp(col->wire, "astext") == 0 || strcmp(col->wire, "text") == 0)
	{
		getTypeOutputInfo(enc->typid, &fn, &isvarlena);
		fmgr_info(fn, &enc->finfo);
		enc->encode = encode_output;
	}
	else
		elog(ERROR, "column \"%s\" has an unknown wire format \"%s\"", col->name, col->wire);
}

/*
 * Index of the column with that name in desc, or -1.  The search begins at
 * start: columns mostly come in the same order on both sides.
 */
static int
find_column(TupleDesc desc, const char *name, int start)
{
	for (int i = 0; i < desc->natts; i++)
	{
		int				  attno = (start + i) % desc->natts;
		Form_pg_attribute att = TupleDescAttr(desc, attno);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return attno;
	}
	return -1;
}

static void
find_type(ColumnEncoder *enc, TupleDesc desc, int attno, const ResyncColumn *col)
{
	Form_pg_attribute att = TupleDescAttr(desc, attno);

	if (att->atttypid != col->typid || att->atttypmod != col->typmod)
	{
		bits16 flags = FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_ALLOW_INVALID;

		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" has type %s, but the mirror was made for %s", col->name,
						format_type_extended(att->atttypid, att->atttypmod, flags),
						format_type_extended(col->typid, col->typmod, flags)),
				 errhint("Resync the mirror.")));
	}
	if (RESYNC_ATT_IS_VIRTUAL(att))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" is a virtual generated column, which has no stored value",
						col->name),
				 errhint("Exclude the column from the mirror.")));
	enc->attno = attno;
	enc->typid = att->atttypid;
	enc->typmod = att->atttypmod;
	enc->typlen = att->attlen;
	enc->typbyval = att->attbyval;
	enc->typalign = att->attalign;
}

RowEncoder *
resync_encode_make(TupleDesc desc, const ResyncColumn *cols, int ncols, ChooseEncoderFn choose,
				   void *arg)
{
	RowEncoder *enc = palloc0(sizeof(RowEncoder));
	int			next = 0;

	enc->ncols = ncols;
	enc->cols = palloc0(sizeof(ColumnEncoder) * Max(ncols, 1));
	for (int i = 0; i < ncols; i++)
	{
		int attno = find_column(desc, cols[i].name, next);

		if (attno >= 0)
		{
			find_type(&enc->cols[i], desc, attno, &cols[i]);
			choose(&enc->cols[i], &cols[i], arg);
			next = attno + 1;
		}
		else
		{
			enc->cols[i].attno = -1;
			enc->cols[i].typid = cols[i].typid;
			enc->cols[i].typmod = cols[i].typmod;
		}
	}
	return enc;
}

RowEncoder *
resync_encode_pg_make(TupleDesc desc, const ResyncColumn *cols, int ncols)
{
	int client = pg_get_client_encoding();

	if (client != GetDatabaseEncoding() && client != PG_SQL_ASCII)
		elog(ERROR, "client_encoding is %s, not the database's %s", pg_encoding_to_char(client),
			 GetDatabaseEncodingName());
	return resync_encode_make(desc, cols, ncols, choose_encoder, NULL);
}

/* ---- rows ---- */

void
resync_encode_row(RowEncoder *enc, const Datum *values, const bool *isnull, StringInfo buf)
{
	for (int i = 0; i < enc->ncols; i++)
	{
		int attno = enc->cols[i].attno;

		if (attno < 0)
			resync_encode_field(enc, i, (Datum) 0, true, buf);
		else
			resync_encode_field(enc, i, values[attno], isnull[attno], buf);
	}
}

/*
 * The letter that follows a backslash in COPY's text format for a byte that
 * cannot stand for itself; 0 for all others.  Bytes of multibyte characters
 * are never among them in a server encoding.
 */
static inline char
copy_escape(char c)
{
	switch (c)
	{
		case '\\':
			return '\\';
		case '\b':
			return 'b';
		case '\f':
			return 'f';
		case '\n':
			return 'n';
		case '\r':
			return 'r';
		case '\t':
			return 't';
		case '\v':
			return 'v';
		default:
			return '\0';
	}
}

static void
append_copy_escaped(const char *p, uint32 len, StringInfo out)
{
	const char *end = p + len;
	const char *start = p;

	for (; p < end; p++)
	{
		char letter = copy_escape(*p);

		if (letter == '\0')
			continue;
		appendBinaryStringInfo(out, start, p - start);
		appendStringInfoChar(out, '\\');
		appendStringInfoChar(out, letter);
		start = p + 1;
	}
	appendBinaryStringInfo(out, start, end - start);
}

void
resync_encode_copy_text_line(const char *data, int ncols, StringInfo out)
{
	for (int i = 0; i < ncols; i++)
	{
		uint32 len;

		memcpy(&len, data, 4);
		len = pg_ntoh32(len);
		data += 4;
		if (i > 0)
			appendStringInfoChar(out, '\t');
		if (len == (uint32) -1)
			appendBinaryStringInfo(out, "\\N", 2);
		else
		{
			append_copy_escaped(data, len, out);
			data += len;
		}
	}
	appendStringInfoChar(out, '\n');
}

bool
resync_encode_is_reg_type(Oid typid)
{
	switch (typid)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGNAMESPACEOID:
		case REGROLEOID:
			return true;
		default:
			return false;
	}
}

bool
resync_encode_is_binary_type(Oid typid, Form_pg_type form)
{
	return typid != TSQUERYOID && OidIsValid(form->typsend) && OidIsValid(form->typreceive);
}
