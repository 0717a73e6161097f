/*
 * bigquery_map.c
 *		Which type a column gets at BigQuery, and its Avro type.
 *
 * Called when a run is planned, when a column was added, and for the schema of
 * a file.  Reads the source's catalog only.
 *
 * What has no type of its own at BigQuery becomes a STRING of its text: a value
 * is never changed on the way, and one that its type there cannot hold is an
 * error, or NULL when the mirror's option out_of_range says so.
 */
#include "postgres.h"

#include "encode/bigquery.h"

#include "encode/chsource.h"
#include "encode/numeric.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"

/* Limits of NUMERIC and BIGNUMERIC: digits before and after the point. */
#define NUMERIC_MAX_SCALE 9
#define NUMERIC_MAX_WHOLE 29
#define BIGNUMERIC_MAX_SCALE 38
#define BIGNUMERIC_MAX_WHOLE 38

/* Digits of what BIGNUMERIC can hold: 2^255 times 10^-38. */
#define BIGNUMERIC_DIGITS 77

/*
 * Names, and Avro types as BigQuery reads them with useAvroLogicalTypes.
 * A decimal gets its precision and scale.
 */
static const struct
{
	const char *name;
	const char *avro;
} kinds[] = {
	[BQ_BOOL] = {"BOOL", "\"boolean\""},
	[BQ_INT64] = {"INT64", "\"long\""},
	[BQ_FLOAT64] = {"FLOAT64", "\"double\""},
	[BQ_NUMERIC] = {"NUMERIC", NULL},
	[BQ_BIGNUMERIC] = {"BIGNUMERIC", NULL},
	[BQ_STRING] = {"STRING", "\"string\""},
	[BQ_BYTES] = {"BYTES", "\"bytes\""},
	[BQ_JSON] = {"JSON", "{\"type\":\"string\",\"sqlType\":\"JSON\"}"},
	[BQ_DATE] = {"DATE", "{\"type\":\"int\",\"logicalType\":\"date\"}"},
	[BQ_DATETIME] = {"DATETIME", "{\"type\":\"long\",\"logicalType\":\"local-timestamp-micros\"}"},
	[BQ_TIME] = {"TIME", "{\"type\":\"long\",\"logicalType\":\"time-micros\"}"},
	[BQ_TIMESTAMP] = {"TIMESTAMP", "{\"type\":\"long\",\"logicalType\":\"timestamp-micros\"}"},
};

/* ---- text of types ---- */

const char *
resync_bq_kind_name(BqKind kind)
{
	return kinds[kind].name;
}

char *
resync_bq_type_text(const BqType *type)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, "%s%s", type->repeated ? "ARRAY<" : "", kinds[type->kind].name);
	if (type->precision > 0)
		appendStringInfo(&text, "(%d, %d)", type->precision, type->scale);
	if (type->repeated)
		appendStringInfoChar(&text, '>');
	return text.data;
}

bool
resync_bq_type_parse(const char *text, BqType *type)
{
	const char *word = text;
	size_t		len;
	int			used = 0;

	memset(type, 0, sizeof(*type));
	if (strncmp(word, "ARRAY<", strlen("ARRAY<")) == 0)
	{
		type->repeated = true;
		word += strlen("ARRAY<");
	}
	len = strspn(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789");
	for (int i = 0; i < lengthof(kinds); i++)
	{
		if (strlen(kinds[i].name) != len || strncmp(kinds[i].name, word, len) != 0)
			continue;
		type->kind = (BqKind) i;
		word += len;
		if (*word == '(')
		{
			if (sscanf(word, "(%d, %d)%n", &type->precision, &type->scale, &used) != 2 || used == 0)
				return false;
			word += used;
		}
		return strcmp(word, type->repeated ? ">" : "") == 0;
	}
	return false;
}

/* ---- by the source's type ---- */

static void
set_numeric(BqType *type, const ChSource *source, const BqColumnChoice *choice)
{
	int precision;
	int scale;

	if (!resync_numeric_typmod(source->typmod, &precision, &scale))
	{
		type->kind = choice->unbounded_string ? BQ_STRING : BQ_BIGNUMERIC;
		return;
	}
	if (scale <= NUMERIC_MAX_SCALE && precision - scale <= NUMERIC_MAX_WHOLE)
		type->kind = BQ_NUMERIC;
	else if (scale <= BIGNUMERIC_MAX_SCALE && precision - scale <= BIGNUMERIC_MAX_WHOLE)
		type->kind = BQ_BIGNUMERIC;
	else
	{
		type->kind = BQ_STRING;
		return;
	}
	type->precision = precision;
	type->scale = scale;
}

static void
set_type(BqType *type, const ChSource *source, const BqColumnChoice *choice, bool is_key)
{
	check_stack_depth();
	type->kind = BQ_STRING;
	switch (source->kind)
	{
		case CH_FROM_BOOL:
			type->kind = BQ_BOOL;
			break;
		case CH_FROM_INT:
			/* an OID is a name rather than a number */
			if (!source->is_unsigned)
				type->kind = BQ_INT64;
			break;
		case CH_FROM_FLOAT4:
		case CH_FROM_FLOAT8:
			type->kind = BQ_FLOAT64;
			break;
		case CH_FROM_NUMERIC:
			set_numeric(type, source, choice);
			break;
		case CH_FROM_BYTEA:
			type->kind = BQ_BYTES;
			break;
		case CH_FROM_JSON:
		case CH_FROM_JSONB:
			if (!is_key)
				type->kind = BQ_JSON;
			break;
		case CH_FROM_DATE:
			type->kind = BQ_DATE;
			break;
		case CH_FROM_TIME:
			type->kind = BQ_TIME;
			break;
		case CH_FROM_TIMESTAMP:
			type->kind = source->output == F_TIMESTAMPTZ_OUT ? BQ_TIMESTAMP : BQ_DATETIME;
			break;
		case CH_FROM_ARRAY:
			if (is_key)
				break;
			/* no array of arrays; and an element is not cast */
			if (source->element->kind != CH_FROM_ARRAY && source->element->cast_result == NULL)
				set_type(type, source->element, choice, false);
			type->repeated = true;
			break;
		default:
			if (source->cast_result != NULL && !is_key)
				set_type(type, source->cast_result, choice, false);
			break;
	}
}

void
resync_bq_map_column(ResyncColumn *col, const BqColumnChoice *choice)
{
	ChSource	  *source = resync_chsource_make(col->typid, col->typmod);
	bool		   is_key = col->keypos > 0;
	BqType		   type = {0};
	StringInfoData flags;

	set_type(&type, source, choice, is_key);
	initStringInfo(&flags);
	if (choice->null_out_of_range && !is_key)
		appendStringInfoChar(&flags, BQ_FLAG_NULL);
	if (choice->drop_null_elements && type.repeated)
		appendStringInfoChar(&flags, BQ_FLAG_DROP);
	if (source->cast_result != NULL && !is_key)
		appendStringInfoChar(&flags, BQ_FLAG_CAST);
	if (is_key && col->notnull)
		appendStringInfoChar(&flags, BQ_FLAG_REQUIRED);

	col->dest_type = resync_bq_type_text(&type);
	col->wire = pstrdup("avro");
	col->wire_info = psprintf("%s:%s", flags.data, col->dest_type);
}

BqType
resync_bq_type(const ResyncColumn *col)
{
	const char *colon = col->wire_info != NULL ? strchr(col->wire_info, ':') : NULL;
	BqType		type;

	if (colon == NULL || strcmp(col->wire, "avro") != 0 || !resync_bq_type_parse(colon + 1, &type))
		elog(ERROR, "column \"%s\" was not planned for BigQuery", col->name);
	type.required = memchr(col->wire_info, BQ_FLAG_REQUIRED, colon - col->wire_info) != NULL;
	return type;
}

/* ---- Avro ---- */

char *
resync_bq_avro_type(const BqType *type)
{
	char *avro;

	if (type->kind == BQ_NUMERIC || type->kind == BQ_BIGNUMERIC)
	{
		bool given = type->precision > 0;
		bool big = type->kind == BQ_BIGNUMERIC;

		avro = psprintf("{\"type\":\"bytes\",\"logicalType\":\"decimal\",\"precision\":%d,"
						"\"scale\":%d}",
						given ? type->precision
						: big ? BIGNUMERIC_DIGITS
							  : NUMERIC_MAX_WHOLE + NUMERIC_MAX_SCALE,
						given ? type->scale
						: big ? BIGNUMERIC_MAX_SCALE
							  : NUMERIC_MAX_SCALE);
	}
	else
		avro = pstrdup(kinds[type->kind].avro);
	if (type->repeated)
		avro = psprintf("{\"type\":\"array\",\"items\":%s}", avro);
	return avro;
}

AvroColumn *
resync_bq_avro_columns(const ResyncTable *table, const AvroColumn *extras, int nextras)
{
	AvroColumn *columns = palloc(sizeof(AvroColumn) * Max(table->ncols + nextras, 1));

	for (int i = 0; i < table->ncols; i++)
	{
		BqType type = resync_bq_type(&table->cols[i]);

		columns[i].name = table->cols[i].dest_name;
		columns[i].type = resync_bq_avro_type(&type);
		if (type.repeated)
			columns[i].null = AVRO_EMPTY;
		else if (type.required)
			columns[i].null = AVRO_REQUIRED;
		else
			columns[i].null = AVRO_OPTIONAL;
	}
	if (nextras > 0)
		memcpy(columns + table->ncols, extras, sizeof(AvroColumn) * nextras);
	return columns;
}
