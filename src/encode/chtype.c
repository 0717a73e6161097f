/*
 * chtype.c
 *		ClickHouse's types: from text, to text, and what is sent for them.
 *
 * Parses what users write in a mapping's "columns" and what the plan of a run
 * holds.  A small part of ClickHouse's grammar: the types that values of
 * PostgreSQL can be written as, by their own names, not by aliases.  What is
 * parsed goes into CREATE TABLE, so nothing that has not been understood is
 * passed on.  Pure: no catalog.
 */
#include "postgres.h"

#include "encode/chtype.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"

/* Types with a name only. */
static const struct
{
	const char *name;
	ChKind		kind;
	int			width;
} plain_types[] = {
	{"Bool", CH_BOOL, 1},		  {"Int8", CH_INT, 1},		{"Int16", CH_INT, 2},
	{"Int32", CH_INT, 4},		  {"Int64", CH_INT, 8},		{"Int128", CH_INT, 16},
	{"Int256", CH_INT, 32},		  {"UInt8", CH_UINT, 1},	{"UInt16", CH_UINT, 2},
	{"UInt32", CH_UINT, 4},		  {"UInt64", CH_UINT, 8},	{"UInt128", CH_UINT, 16},
	{"UInt256", CH_UINT, 32},	  {"Float32", CH_FLOAT, 4}, {"Float64", CH_FLOAT, 8},
	{"String", CH_STRING, 0},	  {"Date", CH_DATE, 2},		{"Date32", CH_DATE32, 4},
	{"DateTime", CH_DATETIME, 4}, {"UUID", CH_UUID, 16},	{"IPv4", CH_IPV4, 4},
	{"IPv6", CH_IPV6, 16},		  {"JSON", CH_JSON, 0},
};

ChType *
resync_chtype_make(ChKind kind, int width)
{
	ChType *type = palloc0(sizeof(ChType));

	type->kind = kind;
	type->width = width;
	return type;
}

ChType *
resync_chtype_decimal(int precision, int scale)
{
	ChType *type = resync_chtype_make(CH_DECIMAL, precision <= 9	? 4
												  : precision <= 18 ? 8
												  : precision <= 38 ? 16
																	: 32);

	type->precision = precision;
	type->scale = scale;
	return type;
}

ChType *
resync_chtype_scaled(ChKind kind, int scale)
{
	ChType *type = resync_chtype_make(kind, 8);

	type->scale = scale;
	return type;
}

ChType *
resync_chtype_wrap(ChKind kind, ChType *inner)
{
	ChType *type = resync_chtype_make(kind, 0);

	type->inner = inner;
	return type;
}

ChType *
resync_chtype_set_nullable(ChType *type, bool nullable)
{
	if (type->kind == CH_LOW_CARDINALITY)
		return resync_chtype_wrap(CH_LOW_CARDINALITY,
								  resync_chtype_set_nullable(type->inner, nullable));
	if (type->kind == CH_ARRAY || (type->kind == CH_NULLABLE) == nullable)
		return type;
	return nullable ? resync_chtype_wrap(CH_NULLABLE, type) : type->inner;
}

/* ---- parsing: each function moves *p on, or returns NULL/false ---- */

static void
skip_space(const char **p)
{
	while (**p == ' ' || **p == '\t' || **p == '\n' || **p == '\r')
		(*p)++;
}

static bool
take(const char **p, char c)
{
	skip_space(p);
	if (**p != c)
		return false;
	(*p)++;
	return true;
}

static bool
take_number(const char **p, int max, int *number)
{
	int n = 0;

	skip_space(p);
	if (**p < '0' || **p > '9')
		return false;
	for (; **p >= '0' && **p <= '9'; (*p)++)
	{
		n = n * 10 + (**p - '0');
		if (n > max)
			return false;
	}
	*number = n;
	return true;
}

/* A quoted text; escapes are kept as they are.  Returns it with its quotes. */
static char *
take_quoted(const char **p)
{
	const char *start;

	skip_space(p);
	start = *p;
	if (*start != '\'')
		return NULL;
	for ((*p)++; **p != '\''; (*p)++)
	{
		if (**p == '\\')
			(*p)++;
		if (**p == '\0')
			return NULL;
	}
	(*p)++;
	return pnstrdup(start, *p - start);
}

/* The labels of an enum, "('a' = 1, 'b' = 2)" or without numbers. */
static char *
take_labels(const char **p)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (!take(p, '('))
		return NULL;
	do
	{
		char *label = take_quoted(p);
		int	  number;

		if (label == NULL)
			return NULL;
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "(", label);
		if (take(p, '='))
		{
			bool negative = take(p, '-');

			if (!take_number(p, 32768, &number))
				return NULL;
			appendStringInfo(&buf, " = %s%d", negative ? "-" : "", number);
		}
	} while (take(p, ','));
	if (!take(p, ')'))
		return NULL;
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/* What JSON may have: words, numbers and parentheses. */
static char *
take_json_args(const char **p)
{
	const char *start = *p;
	int			depth = 0;

	do
	{
		if (**p == '(')
			depth++;
		else if (**p == ')')
			depth--;
		else if (!isalnum((unsigned char) **p) && (**p == '\0' || strchr(" _.,=", **p) == NULL))
			return NULL;
		(*p)++;
	} while (depth > 0);
	return pnstrdup(start, *p - start);
}

static ChType *parse_type(const char **p);

/* Decimal(P, S), Decimal(P), Decimal32(S) and so on; name is behind us. */
static ChType *
parse_decimal(const char **p, const char *name)
{
	static const struct
	{
		const char *name;
		int			precision;
	} sizes[] = {{"Decimal32", 9}, {"Decimal64", 18}, {"Decimal128", 38}, {"Decimal256", 76}};
	int precision = 0;
	int scale = 0;

	if (!take(p, '('))
		return NULL;
	for (int i = 0; i < lengthof(sizes); i++)
	{
		if (strcmp(name, sizes[i].name) == 0)
			precision = sizes[i].precision;
	}
	if (precision > 0)
	{
		if (!take_number(p, precision, &scale))
			return NULL;
	}
	else if (strcmp(name, "Decimal") != 0 || !take_number(p, 76, &precision) || precision == 0 ||
			 (take(p, ',') && !take_number(p, precision, &scale)))
		return NULL;
	return take(p, ')') ? resync_chtype_decimal(precision, scale) : NULL;
}

/* DateTime64(P), DateTime64(P, 'zone'), Time64(P). */
static ChType *
parse_scaled(const char **p, ChKind kind)
{
	ChType *type;
	int		scale;

	if (!take(p, '(') || !take_number(p, 9, &scale))
		return NULL;
	type = resync_chtype_scaled(kind, scale);
	if (kind == CH_DATETIME64 && take(p, ',') && (type->args = take_quoted(p)) == NULL)
		return NULL;
	return take(p, ')') ? type : NULL;
}

/* Nullable(T), LowCardinality(T), Array(T), where ClickHouse allows them. */
static ChType *
parse_wrapped(const char **p, ChKind kind)
{
	ChType *inner;

	if (!take(p, '(') || (inner = parse_type(p)) == NULL || !take(p, ')'))
		return NULL;
	if (kind == CH_NULLABLE && inner->kind >= CH_LOW_CARDINALITY)
		return NULL;
	if (kind == CH_LOW_CARDINALITY)
	{
		ChType *base = inner->kind == CH_NULLABLE ? inner->inner : inner;

		/* of numbers it is refused by default: it costs more than it saves */
		if (base->kind != CH_STRING && base->kind != CH_FIXED_STRING)
			return NULL;
	}
	return resync_chtype_wrap(kind, inner);
}

static ChType *
parse_enum(const char **p, int bits)
{
	ChType *type = resync_chtype_make(CH_ENUM, bits / 8);

	type->bits = bits;
	type->args = take_labels(p);
	return type->args != NULL ? type : NULL;
}

static ChType *
parse_fixed_string(const char **p)
{
	int n;

	if (!take(p, '(') || !take_number(p, 1 << 24, &n) || n == 0 || !take(p, ')'))
		return NULL;
	return resync_chtype_make(CH_FIXED_STRING, n);
}

static ChType *
parse_type(const char **p)
{
	const char *start;
	char	   *name;

	check_stack_depth();
	skip_space(p);
	start = *p;
	while (isalnum((unsigned char) **p))
		(*p)++;
	name = pnstrdup(start, *p - start);
	skip_space(p);
	for (int i = 0; i < lengthof(plain_types); i++)
	{
		ChType *type;

		if (strcmp(name, plain_types[i].name) != 0)
			continue;
		type = resync_chtype_make(plain_types[i].kind, plain_types[i].width);
		if (**p != '(')
			return type;
		if (type->kind == CH_JSON)
			return (type->args = take_json_args(p)) != NULL ? type : NULL;
		if (type->kind == CH_DATETIME)
			return take(p, '(') && (type->args = take_quoted(p)) != NULL && take(p, ')') ? type
																						 : NULL;
		return NULL;
	}
	if (strcmp(name, "Nullable") == 0)
		return parse_wrapped(p, CH_NULLABLE);
	if (strcmp(name, "LowCardinality") == 0)
		return parse_wrapped(p, CH_LOW_CARDINALITY);
	if (strcmp(name, "Array") == 0)
		return parse_wrapped(p, CH_ARRAY);
	if (strcmp(name, "DateTime64") == 0)
		return parse_scaled(p, CH_DATETIME64);
	if (strcmp(name, "Time64") == 0)
		return parse_scaled(p, CH_TIME64);
	if (strcmp(name, "FixedString") == 0)
		return parse_fixed_string(p);
	if (strcmp(name, "Enum8") == 0)
		return parse_enum(p, 8);
	if (strcmp(name, "Enum16") == 0)
		return parse_enum(p, 16);
	return parse_decimal(p, name);
}

ChType *
resync_chtype_parse(const char *text)
{
	ChType *type = parse_type(&text);

	skip_space(&text);
	return *text == '\0' ? type : NULL;
}

/* ---- printing ---- */

static void
append_type(StringInfo buf, const ChType *type)
{
	switch (type->kind)
	{
		case CH_DECIMAL:
			appendStringInfo(buf, "Decimal(%d, %d)", type->precision, type->scale);
			return;
		case CH_FIXED_STRING:
			appendStringInfo(buf, "FixedString(%d)", type->width);
			return;
		case CH_TIME64:
			appendStringInfo(buf, "Time64(%d)", type->scale);
			return;
		case CH_DATETIME64:
			appendStringInfo(buf, "DateTime64(%d%s%s)", type->scale, type->args ? ", " : "",
							 type->args ? type->args : "");
			return;
		case CH_ENUM:
			appendStringInfo(buf, "Enum%d%s", type->bits, type->args);
			return;
		case CH_NULLABLE:
		case CH_LOW_CARDINALITY:
		case CH_ARRAY:
			appendStringInfoString(buf, type->kind == CH_NULLABLE ? "Nullable("
										: type->kind == CH_ARRAY  ? "Array("
																  : "LowCardinality(");
			append_type(buf, type->inner);
			appendStringInfoChar(buf, ')');
			return;
		default:
			break;
	}
	for (int i = 0; i < lengthof(plain_types); i++)
	{
		if (plain_types[i].kind == type->kind && plain_types[i].width == type->width)
		{
			appendStringInfoString(buf, plain_types[i].name);
			if (type->kind == CH_DATETIME && type->args != NULL)
				appendStringInfo(buf, "(%s)", type->args);
			else if (type->args != NULL)
				appendStringInfoString(buf, type->args);
			return;
		}
	}
	elog(ERROR, "unknown kind of ClickHouse type: %d", type->kind);
}

char *
resync_chtype_text(const ChType *type)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_type(&buf, type);
	return buf.data;
}

ChType *
resync_chtype_block(const ChType *type)
{
	ChType *block;

	switch (type->kind)
	{
		case CH_ENUM:
		case CH_IPV4:
		case CH_IPV6:
		case CH_JSON:
			return resync_chtype_make(CH_STRING, 0);
		case CH_LOW_CARDINALITY:
			return resync_chtype_block(type->inner);
		case CH_NULLABLE:
		case CH_ARRAY:
			return resync_chtype_wrap(type->kind, resync_chtype_block(type->inner));
		default:
			block = palloc(sizeof(ChType));
			*block = *type;
			return block;
	}
}
