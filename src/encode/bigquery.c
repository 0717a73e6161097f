/*
 * bigquery.c
 *		The encoder for BigQuery: values to their Avro bytes.
 *
 * Used by copiers for rows of the snapshot and by the streamer for rows of
 * WAL, there also inside decoding callbacks (historic snapshot, no XID): all
 * catalog look-ups of our own are done in resync_encode_bq_make(), which may
 * run in such a callback itself.  Output functions used as fallback may look
 * things up in the syscache; they take no lock on user tables.
 *
 * Which function encodes a column follows from its source type and its type at
 * BigQuery alone, so every process of a run encodes alike.
 *
 * BigQuery's texts are UTF-8.  From a database of another encoding every text
 * goes through its output function and is converted; SQL_ASCII promises
 * nothing, so there it is checked.
 *
 * Memory: an encoder lives in the context it was made in; what encoding a value
 * allocates is in the current context.  No locks, no transactions.
 */
#include "postgres.h"

#include "encode/bigquery.h"

#include "encode/chsource.h"
#include "encode/jsonb_text.h"
#include "encode/numeric.h"
#include "encode/put.h"
#include "encode/text.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/arrayaccess.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/* between PostgreSQL's 2000-01-01 and Unix's 1970-01-01 */
#define EPOCH_DAYS (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)
#define EPOCH_USECS (EPOCH_DAYS * USECS_PER_DAY)

/* 38 digits fit into two words, BIGNUMERIC into four */
#define WORDS_NUMERIC 2
#define WORDS_BIGNUMERIC 4

/* ColumnEncoder.priv of a column, or of an array's elements. */
typedef struct BqValue
{
	const ResyncTable  *table; /* for messages, like the column */
	const ResyncColumn *column;
	const ChSource	   *source;
	BqType				type;		/* of the column */
	bool				unfit_null; /* out_of_range = 'null' */
	bool				drop_nulls; /* null_array_elements = 'drop' */
	int64				min;		/* smallest and largest value that fits, in the
								 * source's unit: days or microseconds */
	int64				max;

	/* arrays, and types that are taken by way of another */
	ColumnEncoder inner;
	FmgrInfo	  cast;
} BqValue;

/* ---- values that do not fit ---- */

static void
raise_unfit(const BqValue *v, int sqlerrcode, const char *what, const char *hint)
{
	ereport(ERROR, (errcode(sqlerrcode),
					errmsg("a value of column \"%s\" of table \"%s.%s\" %s", v->column->name,
						   v->table->schema, v->table->name, what),
					errdetail("The column has the type %s at BigQuery.", v->column->dest_type),
					hint != NULL ? errhint("%s", hint) : 0));
}

/*
 * The value becomes NULL, of which the caller appended nothing, or it is an
 * error.
 */
static void
unfit(ColumnEncoder *col, int sqlerrcode, const char *what)
{
	BqValue	   *v = col->priv;
	const char *hint = NULL;

	if (v->unfit_null)
	{
		col->made_null = true;
		return;
	}
	if (v->column->keypos == 0)
		hint = "Set the mirror option out_of_range to 'null' to have NULL there instead.";
	else if (v->type.kind == BQ_BIGNUMERIC && v->type.precision == 0)
		hint = "Set the mirror option unbounded_numeric to 'string'.";
	raise_unfit(v, sqlerrcode, what, hint);
}

static void
unfit_range(ColumnEncoder *col)
{
	unfit(col, ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, "is out of the range of its type there");
}

/* ---- numbers ---- */

static void
encode_bool(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_byte(buf, DatumGetBool(value) ? 1 : 0);
}

static void
encode_int2(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_avro_long(buf, DatumGetInt16(value));
}

static void
encode_int4(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_avro_long(buf, DatumGetInt32(value));
}

static void
encode_int8(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_avro_long(buf, DatumGetInt64(value));
}

static void
put_double(StringInfo buf, float8 d)
{
	uint64 bits;

	memcpy(&bits, &d, sizeof(bits));
	put_le64(buf, bits);
}

static void
encode_float4(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_double(buf, DatumGetFloat4(value));
}

static void
encode_float8(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_double(buf, DatumGetFloat8(value));
}

/*
 * Avro's decimal: an integer in two's complement, the highest byte first, as
 * few bytes as it takes.  words: its magnitude, the lowest first, with room
 * for the sign.
 */
static void
put_decimal(StringInfo buf, uint64 *words, int nwords, bool negative)
{
	int	  len = nwords * 8;
	uint8 bytes[WORDS_BIGNUMERIC * 8];
	uint8 fill = negative ? 0xff : 0;
	int	  skip = 0;
	bool  carry = true;

	for (int i = 0; i < nwords; i++)
	{
		uint64 word = words[i];

		if (negative)
		{
			word = ~word + carry;
			carry = carry && word == 0;
		}
		word = pg_hton64(word);
		memcpy(bytes + len - 8 * (i + 1), &word, 8);
	}
	while (skip < len - 1 && bytes[skip] == fill && (bytes[skip + 1] & 0x80) == (fill & 0x80))
		skip++;
	put_avro_bytes(buf, (char *) bytes + skip, len - skip);
}

/*
 * Does a magnitude fit into 256 bits with sign?  That is BIGNUMERIC's range:
 * its largest value is 2^255 - 1 times 10^-38, its smallest -2^255 times that.
 */
static bool
fits_signed(const uint64 *words, bool negative)
{
	const uint64 sign = UINT64CONST(1) << 63;

	if ((words[3] & sign) == 0)
		return true;
	return negative && words[3] == sign && (words[0] | words[1] | words[2]) == 0;
}

static void
encode_numeric(ColumnEncoder *col, Datum value, StringInfo buf)
{
	BqValue		   *v = col->priv;
	bool			given = v->type.precision > 0;
	int				precision = given ? v->type.precision : 78;
	int				scale = given ? v->type.scale : 38;
	int				nwords = v->type.kind == BQ_NUMERIC ? WORDS_NUMERIC : WORDS_BIGNUMERIC;
	struct varlena *number = readable_varlena(value);
	NumericParts	parts;
	uint64			words[WORDS_BIGNUMERIC];
	bool			negative;
	bool			fits;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	negative = parts.sign == NUMERIC_IS_NEGATIVE;
	if (unlikely(resync_numeric_is_special(&parts)))
		fits = false;
	else if (precision <= NUMERIC_DIGITS64)
	{
		nwords = 1;
		fits = resync_numeric_scale64(&parts, scale, precision, words) == NUMERIC_EXACT;
	}
	else
		fits = resync_numeric_scale_wide(&parts, scale, precision, words, nwords) ==
				   NUMERIC_EXACT &&
			   (given || fits_signed(words, negative));
	release_varlena(number, value);
	if (unlikely(!fits))
		unfit_range(col);
	else
		put_decimal(buf, words, nwords, negative);
}

/* ---- dates and times ---- */

static void
encode_date(ColumnEncoder *col, Datum value, StringInfo buf)
{
	BqValue *v = col->priv;
	DateADT	 date = DatumGetDateADT(value);

	if (unlikely(date < v->min || date > v->max))
		unfit_range(col);
	else
		put_avro_long(buf, (int64) date + EPOCH_DAYS);
}

/* With time zone, that of UTC; or without. */
static void
encode_timestamp(ColumnEncoder *col, Datum value, StringInfo buf)
{
	BqValue	 *v = col->priv;
	Timestamp ts = DatumGetTimestamp(value);

	if (unlikely(ts < v->min || ts > v->max))
		unfit_range(col);
	else
		put_avro_long(buf, ts + EPOCH_USECS);
}

/* BigQuery's day has no 24:00:00. */
static void
encode_time(ColumnEncoder *col, Datum value, StringInfo buf)
{
	TimeADT t = DatumGetTimeADT(value);

	if (unlikely(t >= USECS_PER_DAY))
		unfit_range(col);
	else
		put_avro_long(buf, t);
}

/* ---- texts ---- */

static void
encode_bytes(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *text = readable_varlena(value);

	put_avro_bytes(buf, VARDATA_ANY(text), VARSIZE_ANY_EXHDR(text));
	release_varlena(text, value);
}

static void
encode_name(ColumnEncoder *col, Datum value, StringInfo buf)
{
	const char *name = NameStr(*DatumGetName(value));

	put_avro_bytes(buf, name, strlen(name));
}

static void
encode_jsonb(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *jsonb = readable_varlena(value);
	int				start = buf->len;
	int				room = avro_guess_long(buf, VARSIZE_ANY_EXHDR(jsonb));

	resync_jsonb_text(VARDATA_ANY(jsonb), buf);
	resync_avro_settle_long(buf, start, room, buf->len - start - room);
	release_varlena(jsonb, value);
}

static void
encode_numeric_text(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *number = readable_varlena(value);
	int				start = buf->len;
	int				room = avro_guess_long(buf, 0);
	NumericParts	parts;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	resync_numeric_text(&parts, buf);
	resync_avro_settle_long(buf, start, room, buf->len - start - room);
	release_varlena(number, value);
}

static void
encode_uuid(ColumnEncoder *col, Datum value, StringInfo buf)
{
	char text[UUID_TEXT_LEN];

	resync_uuid_text(DatumGetUUIDP(value), text);
	put_avro_bytes(buf, text, sizeof(text));
}

/* The type's output function. */
static void
encode_output(ColumnEncoder *col, Datum value, StringInfo buf)
{
	char *text = OutputFunctionCall(&col->finfo, value);

	put_avro_bytes(buf, text, strlen(text));
	pfree(text);
}

/* Same, where the server's encoding is not UTF-8. */
static void
encode_converted(ColumnEncoder *col, Datum value, StringInfo buf)
{
	char *text = OutputFunctionCall(&col->finfo, value);
	int	  len = strlen(text);
	char *sent = text;

	if (GetDatabaseEncoding() != PG_SQL_ASCII)
	{
		sent = pg_server_to_any(text, len, PG_UTF8);
		put_avro_bytes(buf, sent, strlen(sent));
	}
	else if (pg_verify_mbstr(PG_UTF8, text, len, true))
		put_avro_bytes(buf, text, len);
	else
		unfit(col, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, "is not a text in UTF-8");
	if (sent != text)
		pfree(sent);
	pfree(text);
}

/* A cast's function may want the type modifier and whether it is explicit. */
static void
encode_cast(ColumnEncoder *col, Datum value, StringInfo buf)
{
	BqValue *v = col->priv;
	Datum	 result;

	if (v->cast.fn_nargs == 3)
		result = FunctionCall3(&v->cast, value, Int32GetDatum(-1), BoolGetDatum(false));
	else
		result = FunctionCall1(&v->cast, value);
	v->inner.encode(&v->inner, result, buf);
	col->made_null = v->inner.made_null;
	v->inner.made_null = false;
}

/* ---- arrays ---- */

/* Append the elements; returns how many there are then. */
static int64
put_elements(BqValue *v, AnyArrayType *array, int n, StringInfo buf)
{
	array_iter it;
	int64	   kept = 0;

	array_iter_setup(&it, array);
	for (int i = 0; i < n; i++)
	{
		bool  isnull;
		Datum element = array_iter_next(&it, &isnull, i, v->inner.typlen, v->inner.typbyval,
										v->inner.typalign);

		if (!isnull)
		{
			v->inner.encode(&v->inner, element, buf);
			isnull = v->inner.made_null;
			v->inner.made_null = false;
		}
		if (!isnull)
			kept++;
		else if (!v->drop_nulls)
			raise_unfit(
				v, ERRCODE_NULL_VALUE_NOT_ALLOWED,
				"has a NULL element, which BigQuery has no place for",
				"Set the mirror option null_array_elements to 'drop' to leave such elements "
				"out.");
	}
	return kept;
}

/*
 * A block of elements and the end of blocks.  BigQuery's arrays have one
 * dimension and begin at their first element.
 */
static void
encode_array(ColumnEncoder *col, Datum value, StringInfo buf)
{
	BqValue		 *v = col->priv;
	AnyArrayType *array = DatumGetAnyArrayP(value);
	int			  ndim = AARR_NDIM(array);

	if (ndim > 1 || (ndim == 1 && AARR_LBOUND(array)[0] != 1))
		unfit(col, ERRCODE_ARRAY_SUBSCRIPT_ERROR, "is an array of other dimensions or bounds");
	else
	{
		if (ndim == 1)
		{
			int	  n = AARR_DIMS(array)[0];
			int	  start = buf->len;
			int	  room = avro_guess_long(buf, n);
			int64 kept = put_elements(v, array, n, buf);

			if (kept > 0)
				resync_avro_settle_long(buf, start, room, kept);
			else
				buf->len = start;
		}
		put_byte(buf, 0);
	}
	if (DatumGetPointer(value) != (Pointer) array)
		pfree(array);
}

/* ---- making ---- */

/* By output function, or nearer when the value itself is a text. */
static EncodeValueFn
choose_text(BqValue *v)
{
	switch (v->source->kind)
	{
		case CH_FROM_NUMERIC:
			return encode_numeric_text;
		case CH_FROM_UUID:
			return encode_uuid;
		case CH_FROM_BYTEA:
			/* as BYTES: STRING is never chosen for it */
			return encode_bytes;
		default:
			break;
	}
	if (GetDatabaseEncoding() != PG_UTF8)
		return encode_converted;
	switch (v->source->kind)
	{
		case CH_FROM_TEXT:
		case CH_FROM_JSON:
			return encode_bytes;
		case CH_FROM_NAME:
			return encode_name;
		case CH_FROM_JSONB:
			return encode_jsonb;
		default:
			return encode_output;
	}
}

static EncodeValueFn
choose_encode(BqValue *v)
{
	switch (v->type.kind)
	{
		case BQ_BOOL:
			return encode_bool;
		case BQ_INT64:
			return v->source->width == 2   ? encode_int2
				   : v->source->width == 4 ? encode_int4
										   : encode_int8;
		case BQ_FLOAT64:
			return v->source->kind == CH_FROM_FLOAT4 ? encode_float4 : encode_float8;
		case BQ_NUMERIC:
		case BQ_BIGNUMERIC:
			return encode_numeric;
		case BQ_STRING:
		case BQ_BYTES:
		case BQ_JSON:
			return choose_text(v);
		case BQ_DATE:
			v->min = resync_year_days(1);
			v->max = resync_year_days(10000) - 1;
			return encode_date;
		case BQ_DATETIME:
		case BQ_TIMESTAMP:
			v->min = resync_year_days(1) * USECS_PER_DAY;
			v->max = resync_year_days(10000) * USECS_PER_DAY - 1;
			return encode_timestamp;
		case BQ_TIME:
			return encode_time;
	}
	elog(ERROR, "column \"%s\" cannot be encoded as %s", v->column->name, v->column->dest_type);
	return NULL; /* not reached */
}

/*
 * Fill in the encoder of a column or of an array's elements; model has what
 * both share.  as_array: the column is an array, this is not yet its element.
 */
static void
make_value(ColumnEncoder *enc, const BqValue *model, const ChSource *source, bool as_array,
		   bool cast)
{
	BqValue *v = palloc(sizeof(BqValue));
	bool	 isvarlena;
	Oid		 output;

	check_stack_depth();
	*v = *model;
	v->source = source;
	enc->priv = v;
	if (cast)
	{
		fmgr_info(source->cast, &v->cast);
		make_value(&v->inner, model, source->cast_result, as_array, false);
		enc->encode = encode_cast;
		return;
	}
	getTypeOutputInfo(source->typid, &output, &isvarlena);
	fmgr_info(output, &enc->finfo);
	if (as_array)
	{
		if (source->kind != CH_FROM_ARRAY)
			elog(ERROR, "column \"%s\" is not an array", v->column->name);
		get_typlenbyvalalign(source->element->typid, &v->inner.typlen, &v->inner.typbyval,
							 &v->inner.typalign);
		make_value(&v->inner, model, source->element, false, false);
		enc->encode = encode_array;
	}
	else
		enc->encode = choose_encode(v);
}

static void
choose_encoder(ColumnEncoder *enc, const ResyncColumn *col, void *arg)
{
	BqValue model = {0};
	bool	cast = false;

	model.table = arg;
	model.column = col;
	model.type = resync_bq_type(col);
	for (const char *flag = col->wire_info; *flag != ':'; flag++)
	{
		switch (*flag)
		{
			case BQ_FLAG_NULL:
				model.unfit_null = true;
				break;
			case BQ_FLAG_DROP:
				model.drop_nulls = true;
				break;
			case BQ_FLAG_CAST:
				cast = true;
				break;
			case BQ_FLAG_REQUIRED:
				break;
			default:
				elog(ERROR, "column \"%s\" has an unknown flag '%c'", col->name, *flag);
		}
	}
	make_value(enc, &model, resync_chsource_make(enc->typid, enc->typmod), model.type.repeated,
			   cast);
}

RowEncoder *
resync_encode_bq_make(TupleDesc desc, const ResyncTable *table)
{
	return resync_encode_make(desc, table->cols, table->ncols, choose_encoder,
							  unconstify(ResyncTable *, table));
}
