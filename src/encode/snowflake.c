/*
 * snowflake.c
 *		The encoder for Snowflake: values to their text.
 *
 * Used by copiers for rows of the snapshot and by the streamer for rows of
 * WAL, there also inside decoding callbacks (historic snapshot, no XID): all
 * catalog look-ups of our own are done in resync_encode_sf_make(), which may
 * run in such a callback itself.  Output functions used as fallback may look
 * things up in the syscache; they take no lock on user tables.
 *
 * Arrays are written as JSON by ourselves: core's array_to_json() would run casts
 * that users have defined, and prints timestamps in another form.
 *
 * Snowflake's texts are UTF-8.  From a database of another encoding every text is
 * converted; SQL_ASCII promises nothing, so there it is checked.
 *
 * Memory: an encoder lives in the context it was made in; what encoding a value
 * allocates is in the current context.  No locks, no transactions.
 */
#include "postgres.h"

#include "encode/snowflake.h"

#include "common/shortest_dec.h"
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
#include "utils/fmgroids.h"
#include "utils/geo_decls.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

/* 38 digits fit into two words. */
#define NUMBER_WORDS 2
#define NUMBER_DIGITS 38

/* ColumnEncoder.priv of a column, or of an array's elements. */
typedef struct SfValue
{
	const ResyncTable  *table; /* for messages, like the column */
	const ResyncColumn *column;
	const ChSource	   *source;
	SfType				type;		/* of the column */
	bool				unfit_null; /* out_of_range = 'null' */
	int64				min;		/* smallest and largest value that fits, in the
								 * source's unit: days or microseconds */
	int64				max;
	EncodeValueFn		plain; /* before the text is converted to UTF-8 */

	/* arrays, and types that are taken by way of another */
	ColumnEncoder inner;
	FmgrInfo	  cast;
} SfValue;

/* ---- values that do not fit ---- */

/*
 * The value becomes NULL, of which the caller appended nothing, or it is an
 * error.
 */
static void
unfit(ColumnEncoder *col, int sqlerrcode, const char *what)
{
	SfValue	   *v = col->priv;
	const char *hint = NULL;

	if (v->unfit_null)
	{
		col->made_null = true;
		return;
	}
	if (v->source->kind == CH_FROM_NUMERIC && v->source->typmod < (int32) VARHDRSZ)
		hint = "Set the mirror option unbounded_numeric to 'string'.";
	else if (v->column->keypos == 0)
		hint = "Set the mirror option out_of_range to 'null' to have NULL there instead.";
	ereport(ERROR, (errcode(sqlerrcode),
					errmsg("a value of column \"%s\" of table \"%s.%s\" %s", v->column->name,
						   v->table->schema, v->table->name, what),
					errdetail("The column has the type %s at Snowflake.", v->column->dest_type),
					hint != NULL ? errhint("%s", hint) : 0));
}

static void
unfit_range(ColumnEncoder *col)
{
	unfit(col, ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, "is out of the range of its type there");
}

/* ---- numbers ---- */

static void
put_text(StringInfo buf, const char *text)
{
	put_bytes(buf, text, strlen(text));
}

static void
encode_bool(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_text(buf, DatumGetBool(value) ? "true" : "false");
}

static void
put_int(StringInfo buf, int64 n)
{
	buf->len += pg_lltoa(n, put_reserve(buf, MAXINT8LEN + 1));
}

static void
encode_int2(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_int(buf, DatumGetInt16(value));
}

static void
encode_int4(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_int(buf, DatumGetInt32(value));
}

static void
encode_int8(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_int(buf, DatumGetInt64(value));
}

/* In Snowflake's words, unless it is a number. */
static bool
put_special(StringInfo buf, float8 d)
{
	if (isnan(d))
		put_text(buf, "NaN");
	else if (isinf(d))
		put_text(buf, d > 0 ? "inf" : "-inf");
	else
		return false;
	return true;
}

/* The shortest text that reads as the same number. */
static void
encode_float4(ColumnEncoder *col, Datum value, StringInfo buf)
{
	float4 f = DatumGetFloat4(value);

	if (!put_special(buf, f))
		buf->len += float_to_shortest_decimal_bufn(f, put_reserve(buf, FLOAT_SHORTEST_DECIMAL_LEN));
}

static void
encode_float8(ColumnEncoder *col, Datum value, StringInfo buf)
{
	float8 d = DatumGetFloat8(value);

	if (!put_special(buf, d))
		buf->len += double_to_shortest_decimal_bufn(d,
													put_reserve(buf, DOUBLE_SHORTEST_DECIMAL_LEN));
}

/* Does it have at most so many digits after the point and in all? */
static bool
fits(const NumericParts *parts, int precision, int scale)
{
	uint64 words[NUMBER_WORDS];

	return !resync_numeric_is_special(parts) &&
		   resync_numeric_scale_wide(parts, scale, precision, words, NUMBER_WORDS) == NUMERIC_EXACT;
}

/* NUMBER would round. */
static void
encode_number(ColumnEncoder *col, Datum value, StringInfo buf)
{
	SfValue		   *v = col->priv;
	struct varlena *number = readable_varlena(value);
	NumericParts	parts;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	if (likely(fits(&parts, v->type.precision, v->type.scale)))
		resync_numeric_text(&parts, buf);
	else
		unfit_range(col);
	release_varlena(number, value);
}

static void
encode_numeric(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *number = readable_varlena(value);
	NumericParts	parts;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	resync_numeric_text(&parts, buf);
	release_varlena(number, value);
}

/* ---- dates and times ---- */

/* Two or more digits. */
static inline char *
put_digits(char *out, int n, int width)
{
	for (int i = width - 1; i >= 0; i--)
	{
		out[i] = '0' + n % 10;
		n /= 10;
	}
	return out + width;
}

/* YYYY-MM-DD, of days since 2000; years have four digits. */
static char *
write_date(char *out, int64 days)
{
	int year;
	int month;
	int day;

	j2date((int) (days + POSTGRES_EPOCH_JDATE), &year, &month, &day);
	out = put_digits(out, year, 4);
	*out++ = '-';
	out = put_digits(out, month, 2);
	*out++ = '-';
	return put_digits(out, day, 2);
}

/* HH:MM:SS.ffffff */
static char *
write_time(char *out, int64 usecs)
{
	int seconds = (int) (usecs / USECS_PER_SEC);

	out = put_digits(out, seconds / SECS_PER_HOUR, 2);
	*out++ = ':';
	out = put_digits(out, seconds / SECS_PER_MINUTE % 60, 2);
	*out++ = ':';
	out = put_digits(out, seconds % SECS_PER_MINUTE, 2);
	*out++ = '.';
	return put_digits(out, (int) (usecs % USECS_PER_SEC), 6);
}

static void
encode_date(ColumnEncoder *col, Datum value, StringInfo buf)
{
	SfValue *v = col->priv;
	DateADT	 date = DatumGetDateADT(value);

	if (unlikely(date < v->min || date > v->max))
		unfit_range(col);
	else
		buf->len = write_date(put_reserve(buf, 16), date) - buf->data;
}

/* With time zone, that of UTC; or without. */
static void
encode_timestamp(ColumnEncoder *col, Datum value, StringInfo buf)
{
	SfValue	 *v = col->priv;
	Timestamp ts = DatumGetTimestamp(value);
	int64	  days = ts / USECS_PER_DAY;
	int64	  usecs = ts % USECS_PER_DAY;
	char	 *out;

	if (unlikely(ts < v->min || ts > v->max))
	{
		unfit_range(col);
		return;
	}
	if (usecs < 0)
	{
		usecs += USECS_PER_DAY;
		days--;
	}
	out = write_date(put_reserve(buf, 40), days);
	*out++ = ' ';
	buf->len = write_time(out, usecs) - buf->data;
	if (v->type.kind == SF_TIMESTAMP_TZ)
		put_text(buf, " +00:00");
}

/* Snowflake's day has no 24:00:00. */
static void
encode_time(ColumnEncoder *col, Datum value, StringInfo buf)
{
	TimeADT t = DatumGetTimeADT(value);

	if (unlikely(t >= USECS_PER_DAY))
		unfit_range(col);
	else
		buf->len = write_time(put_reserve(buf, 16), t) - buf->data;
}

/* ---- texts ---- */

static void
encode_stored(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *text = readable_varlena(value);

	put_bytes(buf, VARDATA_ANY(text), VARSIZE_ANY_EXHDR(text));
	release_varlena(text, value);
}

static void
encode_hex(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *bytes = readable_varlena(value);
	int				len = VARSIZE_ANY_EXHDR(bytes);

	buf->len += hex_encode(VARDATA_ANY(bytes), len, put_reserve(buf, 2 * len));
	release_varlena(bytes, value);
}

static void
encode_name(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_text(buf, NameStr(*DatumGetName(value)));
}

static void
encode_jsonb(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *jsonb = readable_varlena(value);

	resync_jsonb_text(VARDATA_ANY(jsonb), buf);
	release_varlena(jsonb, value);
}

static void
encode_uuid(ColumnEncoder *col, Datum value, StringInfo buf)
{
	resync_uuid_text(DatumGetUUIDP(value), put_reserve(buf, UUID_TEXT_LEN));
	buf->len += UUID_TEXT_LEN;
}

/* WKT */
static void
encode_point(ColumnEncoder *col, Datum value, StringInfo buf)
{
	const Point *point = DatumGetPointP(value);

	if (isnan(point->x) || isnan(point->y) || isinf(point->x) || isinf(point->y))
	{
		unfit_range(col);
		return;
	}
	put_text(buf, "POINT(");
	encode_float8(col, Float8GetDatum(point->x), buf);
	put_byte(buf, ' ');
	encode_float8(col, Float8GetDatum(point->y), buf);
	put_byte(buf, ')');
}

/* The type's output function. */
static void
encode_output(ColumnEncoder *col, Datum value, StringInfo buf)
{
	char *text = OutputFunctionCall(&col->finfo, value);

	put_text(buf, text);
	pfree(text);
}

/* Any of them, where the server's encoding is not UTF-8. */
static void
encode_converted(ColumnEncoder *col, Datum value, StringInfo buf)
{
	SfValue *v = col->priv;
	int		 start = buf->len;
	char	*text;
	char	*sent;

	v->plain(col, value, buf);
	if (col->made_null)
		return;
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
	{
		if (pg_verify_mbstr(PG_UTF8, buf->data + start, buf->len - start, true))
			return;
		buf->len = start;
		unfit(col, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, "is not a text in UTF-8");
		return;
	}
	text = pnstrdup(buf->data + start, buf->len - start);
	sent = pg_server_to_any(text, buf->len - start, PG_UTF8);
	buf->len = start;
	put_text(buf, sent);
	if (sent != text)
		pfree(sent);
	pfree(text);
}

/* A cast's function may want the type modifier and whether it is explicit. */
static void
encode_cast(ColumnEncoder *col, Datum value, StringInfo buf)
{
	SfValue *v = col->priv;
	Datum	 result;

	if (v->cast.fn_nargs == 3)
		result = FunctionCall3(&v->cast, value, Int32GetDatum(-1), BoolGetDatum(false));
	else
		result = FunctionCall1(&v->cast, value);
	v->inner.encode(&v->inner, result, buf);
	col->made_null = v->inner.made_null;
	v->inner.made_null = false;
}

/* ---- arrays as JSON ---- */

/* A string of JSON; escape_json() wants a text that ends. */
static void
quote_region(StringInfo buf, int start)
{
	char *text = pnstrdup(buf->data + start, buf->len - start);

	buf->len = start;
	escape_json(buf, text);
	pfree(text);
}

/* Is the element's text JSON as it stands? */
static bool
is_json(const SfValue *element, Datum value)
{
	switch (element->source->kind)
	{
		case CH_FROM_BOOL:
		case CH_FROM_JSON:
		case CH_FROM_JSONB:
			return true;
		case CH_FROM_INT:
			return !element->source->is_unsigned;
		case CH_FROM_FLOAT4:
			return isfinite(DatumGetFloat4(value));
		case CH_FROM_FLOAT8:
			return isfinite(DatumGetFloat8(value));
		default:
			return false;
	}
}

/* Snowflake keeps numbers of JSON exactly as long as a NUMBER holds them. */
static void
put_json_numeric(Datum value, StringInfo buf)
{
	struct varlena *number = readable_varlena(value);
	NumericParts	parts;
	int				start = buf->len;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	resync_numeric_text(&parts, buf);
	if (!fits(&parts, NUMBER_DIGITS, Min((int) parts.dscale, NUMBER_DIGITS - 1)))
		quote_region(buf, start);
	release_varlena(number, value);
}

static void
put_json(SfValue *v, Datum value, StringInfo buf)
{
	SfValue *element = v->inner.priv;
	int		 start = buf->len;

	if (element->source->kind == CH_FROM_NUMERIC)
	{
		put_json_numeric(value, buf);
		return;
	}
	v->inner.encode(&v->inner, value, buf);
	if (!is_json(element, value))
		quote_region(buf, start);
}

/* The elements of a dimension, from the one that the iterator is at. */
static void
put_dimension(SfValue *v, array_iter *it, int *next, int ndim, const int *dims, StringInfo buf)
{
	check_stack_depth();
	put_byte(buf, '[');
	for (int i = 0; i < dims[0]; i++)
	{
		bool  isnull;
		Datum element;

		if (i > 0)
			put_byte(buf, ',');
		if (ndim > 1)
		{
			put_dimension(v, it, next, ndim - 1, dims + 1, buf);
			continue;
		}
		element = array_iter_next(it, &isnull, (*next)++, v->inner.typlen, v->inner.typbyval,
								  v->inner.typalign);
		if (isnull)
			put_text(buf, "null");
		else
			put_json(v, element, buf);
	}
	put_byte(buf, ']');
}

/* JSON's arrays begin at their first element. */
static void
encode_array(ColumnEncoder *col, Datum value, StringInfo buf)
{
	SfValue		 *v = col->priv;
	AnyArrayType *array = DatumGetAnyArrayP(value);
	int			  ndim = AARR_NDIM(array);
	bool		  usual = true;
	array_iter	  it;
	int			  next = 0;

	for (int i = 0; i < ndim; i++)
		usual = usual && AARR_LBOUND(array)[i] == 1;
	if (!usual)
		unfit(col, ERRCODE_ARRAY_SUBSCRIPT_ERROR, "is an array of other bounds");
	else if (ndim == 0)
		put_text(buf, "[]");
	else
	{
		array_iter_setup(&it, array);
		put_dimension(v, &it, &next, ndim, AARR_DIMS(array), buf);
	}
	if (DatumGetPointer(value) != (Pointer) array)
		pfree(array);
}

/* ---- making ---- */

/* The value's text in the server's encoding, whatever its type there. */
static EncodeValueFn
choose_text(const ChSource *source)
{
	switch (source->kind)
	{
		case CH_FROM_BOOL:
			return encode_bool;
		case CH_FROM_INT:
			return source->is_unsigned	? encode_output
				   : source->width == 2 ? encode_int2
				   : source->width == 4 ? encode_int4
										: encode_int8;
		case CH_FROM_FLOAT4:
			return encode_float4;
		case CH_FROM_FLOAT8:
			return encode_float8;
		case CH_FROM_NUMERIC:
			return encode_numeric;
		case CH_FROM_UUID:
			return encode_uuid;
		case CH_FROM_TEXT:
		case CH_FROM_JSON:
			return encode_stored;
		case CH_FROM_NAME:
			return encode_name;
		case CH_FROM_JSONB:
			return encode_jsonb;
		case CH_FROM_BYTEA:
			return encode_hex;
		default:
			return encode_output;
	}
}

static EncodeValueFn
choose_encode(SfValue *v)
{
	switch (v->type.kind)
	{
		case SF_NUMBER:
			return v->source->kind == CH_FROM_NUMERIC ? encode_number : choose_text(v->source);
		case SF_DATE:
			v->min = resync_year_days(1);
			v->max = resync_year_days(10000) - 1;
			return encode_date;
		case SF_TIMESTAMP_NTZ:
		case SF_TIMESTAMP_TZ:
			v->min = resync_year_days(1) * USECS_PER_DAY;
			v->max = resync_year_days(10000) * USECS_PER_DAY - 1;
			return encode_timestamp;
		case SF_TIME:
			return encode_time;
		case SF_GEOMETRY:
			return v->source->output == F_POINT_OUT ? encode_point : encode_output;
		default:
			return choose_text(v->source);
	}
}

/* Texts that have what users wrote; the others are of ASCII alone. */
static bool
may_need_conversion(const SfValue *v)
{
	return GetDatabaseEncoding() != PG_UTF8 &&
		   (v->type.kind == SF_VARCHAR || v->type.kind == SF_VARIANT);
}

static void make_value(ColumnEncoder *enc, const SfValue *model, const ChSource *source, bool cast);

/* An element's text is converted with the whole array's. */
static void
make_element(ColumnEncoder *enc, const SfValue *model, const ChSource *element)
{
	SfValue *v = palloc(sizeof(SfValue));
	bool	 isvarlena;
	Oid		 output;

	*v = *model;
	v->source = element;
	enc->priv = v;
	get_typlenbyvalalign(element->typid, &enc->typlen, &enc->typbyval, &enc->typalign);
	getTypeOutputInfo(element->typid, &output, &isvarlena);
	fmgr_info(output, &enc->finfo);
	enc->encode = choose_text(element);
}

static void
make_value(ColumnEncoder *enc, const SfValue *model, const ChSource *source, bool cast)
{
	SfValue *v = palloc(sizeof(SfValue));
	bool	 isvarlena;
	Oid		 output;

	*v = *model;
	v->source = source;
	enc->priv = v;
	if (cast)
	{
		fmgr_info(source->cast, &v->cast);
		make_value(&v->inner, model, source->cast_result, false);
		enc->encode = encode_cast;
		return;
	}
	getTypeOutputInfo(source->typid, &output, &isvarlena);
	fmgr_info(output, &enc->finfo);
	if (v->type.kind == SF_VARIANT && source->kind == CH_FROM_ARRAY)
	{
		make_element(&v->inner, model, source->element);
		enc->encode = encode_array;
	}
	else
		enc->encode = choose_encode(v);
	if (may_need_conversion(v))
	{
		v->plain = enc->encode;
		enc->encode = encode_converted;
	}
}

static void
choose_encoder(ColumnEncoder *enc, const ResyncColumn *col, void *arg)
{
	SfValue model = {0};
	bool	cast = false;

	model.table = arg;
	model.column = col;
	model.type = resync_sf_type(col);
	for (const char *flag = col->wire_info; *flag != ':'; flag++)
	{
		switch (*flag)
		{
			case SF_FLAG_NULL:
				model.unfit_null = true;
				break;
			case SF_FLAG_CAST:
				cast = true;
				break;
			default:
				elog(ERROR, "column \"%s\" has an unknown flag '%c'", col->name, *flag);
		}
	}
	make_value(enc, &model, resync_chsource_make(enc->typid, enc->typmod), cast);
}

RowEncoder *
resync_encode_sf_make(TupleDesc desc, const ResyncTable *table)
{
	return resync_encode_make(desc, table->cols, table->ncols, choose_encoder,
							  unconstify(ResyncTable *, table));
}

/* ---- back ---- */

Datum
resync_sf_decode_field(const ResyncColumn *col, const char *data, int len)
{
	SfType type = resync_sf_type(col);
	char  *text = pnstrdup(data, len);
	Oid	   fn;
	Oid	   ioparam;

	if (type.kind == SF_BINARY)
		text = psprintf("\\x%s", text);
	else
		text = pg_any_to_server(text, len, PG_UTF8);
	getTypeInputInfo(col->typid, &fn, &ioparam);
	return OidInputFunctionCall(fn, text, ioparam, col->typmod);
}
