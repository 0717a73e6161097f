/*
 * clickhouse_map.c
 *		Which type a column gets at ClickHouse, and what is sent for it.
 *
 * Called when a run is planned and when a column was added.  Reads the source's
 * catalog only.
 *
 * What has no type of its own at ClickHouse becomes a String of its text.  A
 * value is never changed unless the user said so: by a type of less precision,
 * or by out_of_range = 'clamp'.
 */
#include "postgres.h"

#include "encode/clickhouse.h"

#include "catalog/pg_type.h"
#include "encode/chsource.h"
#include "encode/numeric.h"
#include "encode/chtype.h"
#include "encode/clickhouse_flags.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#define DECIMAL_MAX 76 /* digits of ClickHouse's widest */
#define UNBOUNDED_SCALE 38

/* ---- by the source's type ---- */

static ChType *
default_numeric(const ChSource *source, bool unbounded_string)
{
	int precision;
	int scale;

	if (!resync_numeric_typmod(source->typmod, &precision, &scale))
	{
		if (unbounded_string)
			return resync_chtype_make(CH_STRING, 0);
		return resync_chtype_decimal(DECIMAL_MAX, UNBOUNDED_SCALE);
	}
	if (precision > DECIMAL_MAX)
		return resync_chtype_make(CH_STRING, 0);
	return resync_chtype_decimal(precision, scale);
}

/* Without the Nullable that it may get. */
static ChType *
default_type(const ChSource *source, const ChColumnChoice *choice, bool is_key)
{
	ChType *type;

	check_stack_depth();
	switch (source->kind)
	{
		case CH_FROM_BOOL:
			return resync_chtype_make(CH_BOOL, 1);
		case CH_FROM_INT:
			if (source->is_unsigned)
				break;
			return resync_chtype_make(CH_INT, source->width);
		case CH_FROM_FLOAT4:
			return resync_chtype_make(CH_FLOAT, 4);
		case CH_FROM_FLOAT8:
			return resync_chtype_make(CH_FLOAT, 8);
		case CH_FROM_NUMERIC:
			return default_numeric(source, choice->unbounded_string);
		case CH_FROM_CHAR:
			return resync_chtype_make(CH_FIXED_STRING, 1);
		case CH_FROM_UUID:
			return resync_chtype_make(CH_UUID, 16);
		case CH_FROM_DATE:
			return resync_chtype_make(CH_DATE32, 4);
		case CH_FROM_TIME:
		case CH_FROM_TIMESTAMP:
			return resync_chtype_scaled(CH_DATETIME64, 6);
		case CH_FROM_ENUM:
			return resync_chtype_wrap(CH_LOW_CARDINALITY, resync_chtype_make(CH_STRING, 0));
		case CH_FROM_ARRAY:
			/* by-key fetch has to make the value again: from its text */
			if (is_key)
				break;
			type = default_type(source->element, choice, false);
			return resync_chtype_wrap(CH_ARRAY, resync_chtype_set_nullable(type, true));
		default:
			if (source->cast_result != NULL && source->cast_result->kind == CH_FROM_ARRAY &&
				!is_key)
				return resync_chtype_wrap(CH_ARRAY, resync_chtype_make(CH_FLOAT, 4));
			break;
	}
	return resync_chtype_make(CH_STRING, 0);
}

/* ---- by the user's ---- */

/*
 * Can values of the source's type be written as this?  Not through Nullable
 * and LowCardinality.  *exact is cleared when different values can become the
 * same.
 */
static bool
can_write(const ChSource *source, const ChType *type, bool *exact)
{
	check_stack_depth();
	while (type->kind == CH_NULLABLE || type->kind == CH_LOW_CARDINALITY)
		type = type->inner;
	if (source->cast_result != NULL && source->cast_result->kind == CH_FROM_ARRAY &&
		type->kind == CH_ARRAY)
		return can_write(source->cast_result, type, exact);
	if (source->kind == CH_FROM_ARRAY && type->kind == CH_ARRAY)
	{
		while (type->kind == CH_ARRAY)
			type = type->inner;
		return can_write(source->element, type, exact);
	}
	if (type->kind == CH_STRING)
		return true;
	switch (source->kind)
	{
		case CH_FROM_BOOL:
			return type->kind == CH_BOOL ||
				   ((type->kind == CH_UINT || type->kind == CH_INT) && type->width == 1);
		case CH_FROM_INT:
			if (type->kind == CH_FLOAT)
				*exact = *exact && source->width < type->width;
			return type->kind == CH_INT || type->kind == CH_UINT || type->kind == CH_DECIMAL ||
				   type->kind == CH_FLOAT;
		case CH_FROM_FLOAT4:
			return type->kind == CH_FLOAT;
		case CH_FROM_FLOAT8:
			*exact = *exact && type->width == 8;
			return type->kind == CH_FLOAT;
		case CH_FROM_NUMERIC:
			*exact = *exact && type->kind != CH_FLOAT;
			return type->kind == CH_DECIMAL || type->kind == CH_INT || type->kind == CH_UINT ||
				   type->kind == CH_FLOAT;
		case CH_FROM_TEXT:
		case CH_FROM_NAME:
		case CH_FROM_ENUM:
			return type->kind == CH_FIXED_STRING || type->kind == CH_ENUM;
		case CH_FROM_BYTEA:
			*exact = false;
			return type->kind == CH_FIXED_STRING;
		case CH_FROM_CHAR:
			return type->kind == CH_FIXED_STRING && type->width == 1;
		case CH_FROM_JSON:
		case CH_FROM_JSONB:
			*exact = false;
			return type->kind == CH_JSON;
		case CH_FROM_UUID:
			return type->kind == CH_UUID;
		case CH_FROM_DATE:
			return type->kind == CH_DATE || type->kind == CH_DATE32;
		case CH_FROM_TIME:
			*exact = *exact && type->scale >= 6;
			return type->kind == CH_DATETIME64 || type->kind == CH_TIME64;
		case CH_FROM_TIMESTAMP:
			*exact = *exact && type->scale >= 6;
			return type->kind == CH_DATETIME64 || type->kind == CH_DATETIME;
		case CH_FROM_INET:
			*exact = false;
			return type->kind == CH_IPV4 || type->kind == CH_IPV6;
		default:
			*exact = false;
			return source->cast_result != NULL && source->cast_result->kind == CH_FROM_JSON &&
				   type->kind == CH_JSON;
	}
}

static ChType *
chosen_type(const ResyncColumn *col, const ChSource *source, const char *text)
{
	ChType *type = resync_chtype_parse(text);
	bool	exact = true;

	if (type == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\", the type chosen for column \"%s\", is not a ClickHouse type that "
						"resync can write",
						text, col->name),
				 errhint("Types, by their exact names, are Bool, (U)Int8 to (U)Int256, Float32, "
						 "Float64, Decimal(P, S), String, FixedString(N), Date, Date32, DateTime, "
						 "DateTime64(P), Time64(P), UUID, Enum8, Enum16, IPv4, IPv6, JSON, and "
						 "Nullable(), LowCardinality() and Array() of them.")));
	if (!can_write(source, type, &exact))
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
						errmsg("column \"%s\" of type %s cannot be written as ClickHouse type %s",
							   col->name, format_type_with_typemod(col->typid, col->typmod),
							   resync_chtype_text(type)),
						errhint("Every type can be written as String.")));
	if (col->keypos > 0 && (!exact || type->kind == CH_ARRAY))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("key column \"%s\" of type %s cannot be written as ClickHouse type %s",
						col->name, format_type_with_typemod(col->typid, col->typmod),
						resync_chtype_text(type)),
				 errdetail(type->kind == CH_ARRAY ? "A key's values must be convertible back."
												  : "Different keys could become the same.")));
	return type;
}

/* ---- both ---- */

static ChType *
apply_nullable(const ResyncColumn *col, ChType *type, int nullable)
{
	const ChType *base = type->kind == CH_LOW_CARDINALITY ? type->inner : type;

	/* "Nullable" written by the user stands; an Array can be none */
	if (type->kind == CH_ARRAY || base->kind == CH_NULLABLE)
	{
		if (nullable >= 0 && (nullable == 1) != (base->kind == CH_NULLABLE))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("\"nullable\": %s contradicts the type %s chosen for column \"%s\"",
							nullable == 1 ? "true" : "false", resync_chtype_text(type), col->name),
					 type->kind == CH_ARRAY
						 ? errdetail("ClickHouse has no Nullable(Array); NULL becomes [].")
						 : 0));
		return type;
	}
	return resync_chtype_set_nullable(type, nullable >= 0 ? nullable == 1 : !col->notnull);
}

void
resync_ch_map_column(ResyncColumn *col, const ChColumnChoice *choice)
{
	ChSource	  *source = resync_chsource_make(col->typid, col->typmod);
	bool		   is_key = col->keypos > 0;
	ChType		  *type;
	StringInfoData flags;

	if (choice->type != NULL)
		type = chosen_type(col, source, choice->type);
	else
		type = default_type(source, choice, is_key);
	type = apply_nullable(col, type, choice->nullable);

	initStringInfo(&flags);
	if (choice->clamp && !is_key)
		appendStringInfoChar(&flags, CH_FLAG_CLAMP);
	if (choice->type != NULL && !is_key)
		appendStringInfoChar(&flags, CH_FLAG_ROUND);
	if (choice->wide_datetime64)
		appendStringInfoChar(&flags, CH_FLAG_WIDE_DATETIME64);
	if (source->cast_result != NULL && !is_key &&
		(source->cast_result->kind != CH_FROM_ARRAY || type->kind == CH_ARRAY))
		appendStringInfoChar(&flags, CH_FLAG_CAST);

	col->dest_type = resync_chtype_text(type);
	col->wire = pstrdup("native");
	col->wire_info = psprintf("%s:%s", flags.data, resync_chtype_text(resync_chtype_block(type)));
}

const char *
resync_ch_block_type(const ResyncColumn *col)
{
	const char *colon = col->wire_info != NULL ? strchr(col->wire_info, ':') : NULL;

	if (colon == NULL || strcmp(col->wire, "native") != 0)
		elog(ERROR, "column \"%s\" was not planned for ClickHouse", col->name);
	return colon + 1;
}

bool
resync_ch_is_nullable(const ResyncColumn *col)
{
	return strncmp(resync_ch_block_type(col), "Nullable(", strlen("Nullable(")) == 0;
}
