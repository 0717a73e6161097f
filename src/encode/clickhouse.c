/*
 * clickhouse.c
 *		The encoder for ClickHouse: values to the bytes of RowBinary.
 *
 * Used by copiers for rows of the snapshot and by the streamer for rows of
 * WAL, there also inside decoding callbacks (historic snapshot, no XID): all
 * catalog look-ups of our own are done in resync_encode_ch_make(), which may
 * run in such a callback itself.  Output functions used as fallback may look
 * things up in the syscache; they take no lock on user tables.
 *
 * Which function encodes a column follows from its source type and its block
 * type alone, so every process of a run encodes alike.  Numbers are little
 * endian; fixed-length values are also those of a Native column.
 *
 * ClickHouse's texts are UTF-8.  From a database of another encoding every text
 * goes through its output function and is converted.
 *
 * Memory: an encoder lives in the context it was made in; what encoding a value
 * allocates is in the current context.  No locks, no transactions.
 */
#include "postgres.h"

#include "encode/clickhouse.h"

#include "catalog/pg_type.h"
#include "encode/clickhouse_flags.h"
#include "encode/clickhouse_value.h"
#include "encode/jsonb_text.h"
#include "encode/numeric.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/arrayaccess.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* between PostgreSQL's 2000-01-01 and Unix's 1970-01-01 */
#define EPOCH_DAYS (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)
#define EPOCH_USECS (EPOCH_DAYS * USECS_PER_DAY)

/* ---- values that do not fit ---- */

void
resync_ch_raise_unfit(const ChValue *v, int sqlerrcode, const char *what)
{
	ereport(ERROR,
			(errcode(sqlerrcode),
			 errmsg("a value of column \"%s\" of table \"%s.%s\" %s", v->column->name,
					v->table->schema, v->table->name, what),
			 errdetail("The column is sent to ClickHouse as %s.", resync_ch_block_type(v->column)),
			 v->column->keypos > 0
				 ? errhint("Choose another type for it in the mapping's \"columns\".")
				 : errhint("Choose another type for it in the mapping's \"columns\", or set the "
						   "mirror option out_of_range to 'clamp'.")));
}

void
resync_ch_raise_out_of_range(const ChValue *v)
{
	resync_ch_raise_unfit(v, ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
						  "is out of the range of its type there");
}

/* ---- dates and times ---- */

static void
encode_date(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue *v = col->priv;

	put_integer(buf, resync_ch_fit(v, DatumGetDateADT(value)) + EPOCH_DAYS, v->type->width);
}

/* Microseconds since an epoch to ticks, rounded down. */
static inline int64
ticks(const ChValue *v, int64 usecs)
{
	int64 n;

	if (likely(v->divide == 1))
		return usecs * v->multiply;
	n = usecs / v->divide;
	return n - (usecs % v->divide < 0);
}

static void
encode_timestamp(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue *v = col->priv;

	put_integer(buf, ticks(v, resync_ch_fit(v, DatumGetTimestamp(value)) + EPOCH_USECS),
				v->type->width);
}

/* 24:00:00 is the first moment of the next day. */
static void
encode_time(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_le64(buf, (uint64) ticks(col->priv, DatumGetTimeADT(value)));
}

/* ---- uuid and texts ---- */

/* Two numbers of 64 bits, the high one first. */
static void
encode_uuid(ColumnEncoder *col, Datum value, StringInfo buf)
{
	pg_uuid_t *uuid = DatumGetUUIDP(value);
	uint64	   half[2];

	memcpy(half, uuid->data, sizeof(half));
	put_le64(buf, pg_ntoh64(half[0]));
	put_le64(buf, pg_ntoh64(half[1]));
}

/* Bytes as String or FixedString. */
static inline void
put_text(const ChValue *v, StringInfo buf, const char *data, int len)
{
	if (likely(v->type->kind == CH_STRING))
		put_string(buf, data, len);
	else
	{
		/* cut off it would be another value, whatever out_of_range says */
		if (len > v->type->width)
			resync_ch_raise_unfit(v, ERRCODE_STRING_DATA_RIGHT_TRUNCATION, "is too long");
		put_bytes(buf, data, len);
		memset(put_reserve(buf, v->type->width - len), 0, v->type->width - len);
		buf->len += v->type->width - len;
	}
}

static void
encode_bytes(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *text = readable_varlena(value);

	put_text(col->priv, buf, VARDATA_ANY(text), VARSIZE_ANY_EXHDR(text));
	release_varlena(text, value);
}

static void
encode_char(ColumnEncoder *col, Datum value, StringInfo buf)
{
	put_byte(buf, DatumGetChar(value));
}

static void
encode_name(ColumnEncoder *col, Datum value, StringInfo buf)
{
	const char *name = NameStr(*DatumGetName(value));

	put_text(col->priv, buf, name, strlen(name));
}

/*
 * What was appended from start on becomes a String: its length goes in front.
 * Room for guessed bytes of that was left there.
 */
static void
finish_string(StringInfo buf, int start, int guessed)
{
	uint64 len = buf->len - start - guessed;
	int	   needed = varuint_size(len);

	if (unlikely(needed != guessed))
	{
		if (needed > guessed)
			(void) put_reserve(buf, needed - guessed);
		memmove(buf->data + start + needed, buf->data + start + guessed, len);
		buf->len += needed - guessed;
	}
	(void) varuint_write(buf->data + start, len);
}

static void
encode_jsonb(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *jsonb = readable_varlena(value);
	int				start = buf->len;
	int				guessed = varuint_size(VARSIZE_ANY_EXHDR(jsonb));

	(void) put_reserve(buf, guessed);
	buf->len += guessed;
	resync_jsonb_text(VARDATA_ANY(jsonb), buf);
	finish_string(buf, start, guessed);
	release_varlena(jsonb, value);
}

static void
encode_numeric_text(ColumnEncoder *col, Datum value, StringInfo buf)
{
	struct varlena *number = readable_varlena(value);
	int				start = buf->len;
	NumericParts	parts;

	resync_numeric_read(VARDATA_ANY(number), VARSIZE_ANY_EXHDR(number), &parts);
	put_byte(buf, 0);
	resync_numeric_text(&parts, buf);
	finish_string(buf, start, 1);
	release_varlena(number, value);
}

/* The type's output function. */
static void
encode_output(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue *v = col->priv;
	char	*text = OutputFunctionCall(&col->finfo, value);
	char	*sent = text;

	if (v->convert)
		sent = pg_server_to_any(text, strlen(text), PG_UTF8);
	put_text(v, buf, sent, strlen(sent));
	if (sent != text)
		pfree(sent);
	pfree(text);
}

/* A cast's function may want the type modifier and whether it is explicit. */
static void
encode_cast(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue *v = col->priv;
	Datum	 result;

	if (v->cast.fn_nargs == 3)
		result = FunctionCall3(&v->cast, value, Int32GetDatum(-1), BoolGetDatum(false));
	else
		result = FunctionCall1(&v->cast, value);
	v->inner.encode(&v->inner, result, buf);
}

/* ---- arrays ---- */

static void
put_element(ChValue *v, Datum value, bool isnull, StringInfo buf)
{
	ChValue *inner = v->inner.priv;
	int		 start = buf->len;

	if (!isnull)
	{
		if (inner->nullable)
			put_byte(buf, 0);
		v->inner.encode(&v->inner, value, buf);
		if (likely(!v->inner.made_null))
			return;
		v->inner.made_null = false;
		buf->len = start;
	}
	if (inner->nullable)
	{
		put_byte(buf, 1);
		return;
	}
	if (!v->clamp)
		resync_ch_raise_unfit(v, ERRCODE_NULL_VALUE_NOT_ALLOWED,
							  "has a NULL element, which its type there has no place for");

	/* the type's default: an empty text, or zeros */
	memset(put_reserve(buf, Max(inner->type->width, 1)), 0, Max(inner->type->width, 1));
	buf->len += Max(inner->type->width, 1);
}

/* Elements of one dimension: a count, then each, which may be arrays again. */
static void
put_dimension(ChValue *v, AnyArrayType *array, int dimension, array_iter *it, int *i,
			  StringInfo buf)
{
	int n = AARR_DIMS(array)[dimension];

	put_varuint(buf, n);
	for (int k = 0; k < n; k++)
	{
		bool  isnull;
		Datum element;

		if (dimension + 1 < AARR_NDIM(array))
		{
			put_dimension(v, array, dimension + 1, it, i, buf);
			continue;
		}
		element = array_iter_next(it, &isnull, (*i)++, v->inner.typlen, v->inner.typbyval,
								  v->inner.typalign);
		put_element(v, element, isnull, buf);
	}
}

static void
encode_array(ColumnEncoder *col, Datum value, StringInfo buf)
{
	ChValue		 *v = col->priv;
	AnyArrayType *array = DatumGetAnyArrayP(value);
	int			  ndim = AARR_NDIM(array);
	array_iter	  it;
	int			  i = 0;
	bool		  plain = ndim == v->dimensions;

	if (ndim == 0)
		put_varuint(buf, 0);
	else
	{
		for (int d = 0; d < ndim; d++)
			plain = plain && AARR_LBOUND(array)[d] == 1;
		if (!plain && (!v->clamp || (ndim != v->dimensions && v->dimensions != 1)))
			resync_ch_raise_unfit(v, ERRCODE_ARRAY_SUBSCRIPT_ERROR,
								  "is an array of other dimensions or bounds");
		array_iter_setup(&it, array);
		if (ndim == v->dimensions)
			put_dimension(v, array, 0, &it, &i, buf);
		else
		{
			/* clamped: all elements in a row */
			int n = ArrayGetNItems(ndim, AARR_DIMS(array));

			put_varuint(buf, n);
			while (i < n)
			{
				bool  isnull;
				Datum element = array_iter_next(&it, &isnull, i++, v->inner.typlen,
												v->inner.typbyval, v->inner.typalign);

				put_element(v, element, isnull, buf);
			}
		}
	}
	if (DatumGetPointer(value) != (Pointer) array)
		pfree(array);
}

/* ---- making ---- */

/* Microseconds since PostgreSQL's epoch at the beginning of a year. */
static int64
year_usecs(int year)
{
	return (int64) (date2j(year, 1, 1) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY;
}

/* What fits into a DateTime or DateTime64, and its unit. */
static void
set_time_range(ChValue *v)
{
	int64 limit;

	v->multiply = v->divide = 1;
	if (v->type->kind == CH_DATETIME)
	{
		v->divide = USECS_PER_SEC;
		v->min = -EPOCH_USECS;
		v->max = (int64) PG_UINT32_MAX * USECS_PER_SEC + USECS_PER_SEC - 1 - EPOCH_USECS;
		return;
	}
	for (int i = v->type->scale; i < 6; i++)
		v->divide *= 10;
	for (int i = 6; i < v->type->scale; i++)
		v->multiply *= 10;
	v->min = year_usecs(v->wide_datetime64 ? 1 : 1900);
	v->max = year_usecs(v->wide_datetime64 ? 10000 : 2300) - 1;

	/* ticks since 1970 have to fit into 64 bits */
	limit = PG_INT64_MAX / v->multiply;
	v->min = Max(v->min, v->multiply == 1 ? PG_INT64_MIN : -limit - EPOCH_USECS);
	v->max = Min(v->max, limit - EPOCH_USECS);
}

/* By output function, or nearer when the value itself is a text. */
static EncodeValueFn
choose_text(ChValue *v)
{
	switch (v->source->kind)
	{
		case CH_FROM_NUMERIC:
			return encode_numeric_text;
		case CH_FROM_BYTEA:
			return encode_bytes;
		case CH_FROM_TEXT:
		case CH_FROM_JSON:
			return v->convert ? encode_output : encode_bytes;
		case CH_FROM_NAME:
			return v->convert ? encode_output : encode_name;
		case CH_FROM_JSONB:
			return v->convert ? encode_output : encode_jsonb;
		default:
			return encode_output;
	}
}

static EncodeValueFn
choose_encode(ChValue *v)
{
	if (v->source->kind == CH_FROM_CHAR && v->type->kind == CH_FIXED_STRING)
		return encode_char;
	switch (v->type->kind)
	{
		case CH_STRING:
		case CH_FIXED_STRING:
			return choose_text(v);
		case CH_DATE:
			v->min = -EPOCH_DAYS;
			v->max = PG_UINT16_MAX - EPOCH_DAYS;
			return encode_date;
		case CH_DATE32:
			v->min = date2j(1900, 1, 1) - POSTGRES_EPOCH_JDATE;
			v->max = date2j(2299, 12, 31) - POSTGRES_EPOCH_JDATE;
			return encode_date;
		case CH_DATETIME:
		case CH_DATETIME64:
		case CH_TIME64:
			set_time_range(v);
			return v->source->kind == CH_FROM_TIME ? encode_time : encode_timestamp;
		case CH_UUID:
			return encode_uuid;
		default:
			return resync_ch_choose_number(v);
	}
}

/*
 * Fill in the encoder of a column or of an array's elements; model has what
 * both share.
 */
static void
make_value(ColumnEncoder *enc, const ChValue *model, const ChSource *source, const ChType *type,
		   bool cast)
{
	ChValue *v = palloc(sizeof(ChValue));
	bool	 isvarlena;
	Oid		 output;

	check_stack_depth();
	*v = *model;
	v->nullable = type->kind == CH_NULLABLE;
	v->type = v->nullable ? type->inner : type;
	v->source = source;
	enc->priv = v;
	if (cast)
	{
		fmgr_info(source->cast, &v->cast);
		make_value(&v->inner, model, source->cast_result, type, false);
		enc->encode = encode_cast;
		return;
	}
	getTypeOutputInfo(source->typid, &output, &isvarlena);
	fmgr_info(output, &enc->finfo);
	if (source->kind == CH_FROM_ARRAY && v->type->kind == CH_ARRAY)
	{
		for (type = v->type; type->kind == CH_ARRAY; type = type->inner)
			v->dimensions++;
		get_typlenbyvalalign(source->element->typid, &v->inner.typlen, &v->inner.typbyval,
							 &v->inner.typalign);
		make_value(&v->inner, model, source->element, type, false);
		enc->encode = encode_array;
		return;
	}
	enc->encode = choose_encode(v);
}

static void
choose_encoder(ColumnEncoder *enc, const ResyncColumn *col, void *arg)
{
	const char *type_text = resync_ch_block_type(col);
	ChType	   *type = resync_chtype_parse(type_text);
	ChValue		model = {0};
	bool		cast = false;

	if (type == NULL)
		elog(ERROR, "column \"%s\" has an unknown block type \"%s\"", col->name, type_text);
	model.table = arg;
	model.column = col;
	model.convert = GetDatabaseEncoding() != PG_UTF8 && GetDatabaseEncoding() != PG_SQL_ASCII;
	for (const char *flag = col->wire_info; *flag != ':'; flag++)
	{
		switch (*flag)
		{
			case CH_FLAG_CLAMP:
				model.clamp = true;
				break;
			case CH_FLAG_ROUND:
				model.round = true;
				break;
			case CH_FLAG_WIDE_DATETIME64:
				model.wide_datetime64 = true;
				break;
			case CH_FLAG_CAST:
				cast = true;
				break;
			default:
				elog(ERROR, "column \"%s\" has an unknown flag '%c'", col->name, *flag);
		}
	}
	make_value(enc, &model, resync_chsource_make(enc->typid, enc->typmod), type, cast);
}

RowEncoder *
resync_encode_ch_make(TupleDesc desc, const ResyncTable *table)
{
	return resync_encode_make(desc, table->cols, table->ncols, choose_encoder,
							  unconstify(ResyncTable *, table));
}
