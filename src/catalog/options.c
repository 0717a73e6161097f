/*
 * options.c
 *		A mirror's options: jsonb as the user wrote it, to a struct with the
 *		defaults, and back to jsonb for showing.
 *
 * Called by the API (checks, in the caller's backend) and by workers.  Reads
 * no tables.  Everything wrong raises ERRCODE_INVALID_PARAMETER_VALUE.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "catalog/catalog.h"

typedef enum OptionType
{
	OPTION_BOOL,
	OPTION_INT,
	OPTION_INT64,
	OPTION_DOUBLE,
	OPTION_COLUMN, /* a column's name */
	OPTION_WORD	   /* one of a few; NULL: the destination's default */
} OptionType;

typedef struct OptionDef
{
	const char *name;
	OptionType	type;
	size_t		offset;
	double		min;
	double		max;
	bool		may_be_empty;
	const char *words; /* OPTION_WORD: "a, b" */
	const char *peers; /* peer types that it means something to; NULL: all */
} OptionDef;

#define OPTION(field, type, min, max, may_be_empty)                          \
	{                                                                        \
#field, type, offsetof(ResyncOptions, field), min, max, may_be_empty \
	}
#define WORD_OPTION(field, words, peers)                                               \
	{                                                                                  \
#field, OPTION_WORD, offsetof(ResyncOptions, field), 0, 0, false, words, peers \
	}

/* In the order in which they are listed to the user. */
static const OptionDef option_defs[] = {
	OPTION(do_initial_copy, OPTION_BOOL, 0, 0, false),
	OPTION(initial_copy_only, OPTION_BOOL, 0, 0, false),
	OPTION(max_batch_size, OPTION_INT64, 1, 1e15, false),
	OPTION(sync_interval, OPTION_DOUBLE, 0, 86400, false),
	OPTION(snapshot_num_rows_per_partition, OPTION_INT64, 1, 1e15, false),
	OPTION(snapshot_num_partitions_override, OPTION_INT64, 0, 1e9, false),
	OPTION(snapshot_max_parallel_workers, OPTION_INT, 1, 1000, false),
	OPTION(snapshot_num_tables_in_parallel, OPTION_INT, 1, 1000, false),
	OPTION(soft_delete, OPTION_BOOL, 0, 0, false),
	OPTION(soft_delete_col_name, OPTION_COLUMN, 0, 0, false),
	OPTION(synced_at_col_name, OPTION_COLUMN, 0, 0, true),
	OPTION(disable_peerdb_columns, OPTION_BOOL, 0, 0, false),
	OPTION(keep_serving, OPTION_BOOL, 0, 0, false),
	OPTION(replace_existing, OPTION_BOOL, 0, 0, false),
	WORD_OPTION(unbounded_numeric, "decimal, string", "clickhouse, snowflake, bigquery"),
	WORD_OPTION(out_of_range, "error, clamp, null", "clickhouse, snowflake, bigquery"),
	WORD_OPTION(null_array_elements, "error, drop", "bigquery"),
};

static const ResyncOptions option_defaults = {
	.do_initial_copy = true,
	.max_batch_size = 250000,
	.sync_interval = -1,
	.snapshot_num_rows_per_partition = 250000,
	.snapshot_max_parallel_workers = 4,
	.snapshot_num_tables_in_parallel = 1,
	.soft_delete = true,
	.soft_delete_col_name = "_peerdb_is_deleted",
	.synced_at_col_name = "_peerdb_synced_at",
};

/* For messages: what a user has given, cut if nobody would read it. */
char *
resync_catalog_clip(const char *text)
{
	int len = (int) strlen(text);
	int cut = pg_mbcliplen(text, len, 100);

	return cut == len ? pstrdup(text) : psprintf("%.*s...", cut, text);
}

static bool
is_allowed(const char *name, const char *const *allowed)
{
	for (; allowed != NULL && *allowed != NULL; allowed++)
	{
		if (strcmp(name, *allowed) == 0)
			return true;
	}
	return allowed == NULL;
}

/*
 * The definition of a key that is valid here, or an error that lists those
 * that are.
 */
static const OptionDef *
find_option(const char *name, const char *const *allowed)
{
	StringInfoData valid;
	bool		   known = false;

	initStringInfo(&valid);
	for (int i = 0; i < lengthof(option_defs); i++)
	{
		const OptionDef *def = &option_defs[i];
		bool			 here = is_allowed(def->name, allowed);

		if (strcmp(def->name, name) == 0)
		{
			if (here)
				return def;
			known = true;
		}
		if (here)
			appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "", def->name);
	}

	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					known ? errmsg("option \"%s\" cannot be given here", name)
						  : errmsg("unrecognized mirror option \"%s\"", resync_catalog_clip(name)),
					errhint("Valid options are: %s.", valid.data)));
	return NULL; /* keep compiler quiet */
}

static void
bad_value(const OptionDef *def)
{
	char *expected = NULL;

	switch (def->type)
	{
		case OPTION_BOOL:
			expected = pstrdup("true or false");
			break;
		case OPTION_INT:
		case OPTION_INT64:
			expected = psprintf("an integer between %.0f and %.0f", def->min, def->max);
			break;
		case OPTION_DOUBLE:
			expected = psprintf("a number of seconds between %g and %g", def->min, def->max);
			break;
		case OPTION_COLUMN:
			expected = psprintf("a column name of %s%d bytes",
								def->may_be_empty ? "up to " : "1 to ", NAMEDATALEN - 1);
			break;
		case OPTION_WORD:
			expected = psprintf("one of: %s", def->words);
			break;
	}
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("invalid value for mirror option \"%s\"", def->name),
					errdetail("Expected %s.", expected)));
}

/* The text of a JSON string or number; other types are an error. */
static char *
scalar_text(const OptionDef *def, const JsonbValue *value)
{
	if (value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value->type == jbvNumeric)
		return DatumGetCString(
			DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
	bad_value(def);
	return NULL; /* keep compiler quiet */
}

static double
number_value(const OptionDef *def, const JsonbValue *value)
{
	char  *text = scalar_text(def, value);
	char  *end;
	double number;

	errno = 0;
	number = strtod(text, &end);
	if (end == text || *end != '\0' || errno != 0 || isnan(number) || number < def->min ||
		number > def->max)
		bad_value(def);
	if (def->type != OPTION_DOUBLE && number != rint(number))
		bad_value(def);
	return number;
}

static void
set_option(ResyncOptions *options, const OptionDef *def, const JsonbValue *value)
{
	void *field = (char *) options + def->offset;

	switch (def->type)
	{
		case OPTION_BOOL:
			if (value->type == jbvBool)
				*(bool *) field = value->val.boolean;
			else if (value->type != jbvString ||
					 !parse_bool(scalar_text(def, value), (bool *) field))
				bad_value(def);
			break;
		case OPTION_INT:
			*(int *) field = (int) number_value(def, value);
			break;
		case OPTION_INT64:
			*(int64 *) field = (int64) number_value(def, value);
			break;
		case OPTION_DOUBLE:
			*(double *) field = number_value(def, value);
			break;
		case OPTION_COLUMN:
		{
			char *name;

			if (value->type != jbvString)
				bad_value(def);
			name = scalar_text(def, value);
			if (strlen(name) >= NAMEDATALEN || (name[0] == '\0' && !def->may_be_empty))
				bad_value(def);
			*(char **) field = name;
			break;
		}
		case OPTION_WORD:
		{
			char *word;
			char *words = pstrdup(def->words);
			char *save;

			if (value->type != jbvString)
				bad_value(def);
			word = scalar_text(def, value);
			for (char *w = strtok_r(words, ", ", &save); w != NULL; w = strtok_r(NULL, ", ", &save))
			{
				if (strcmp(w, word) == 0)
					*(char **) field = word;
			}
			if (*(char **) field != word)
				bad_value(def);
			break;
		}
	}
}

/*
 * Options that do not go together, and what follows from the others.
 */
static void
finish_options(ResyncOptions *options)
{
	if (options->initial_copy_only && !options->do_initial_copy)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("mirror option \"initial_copy_only\" requires \"do_initial_copy\"")));

	/* without its column, a deleted row cannot be told from a live one */
	if (options->disable_peerdb_columns)
		options->soft_delete = false;
	if (!options->soft_delete)
		options->soft_delete_col_name = NULL;
	if (options->disable_peerdb_columns || options->synced_at_col_name[0] == '\0')
		options->synced_at_col_name = NULL;

	if (options->soft_delete_col_name != NULL && options->synced_at_col_name != NULL &&
		strcmp(options->soft_delete_col_name, options->synced_at_col_name) == 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg(
				 "mirror options \"soft_delete_col_name\" and \"synced_at_col_name\" are the same")));
}

static ResyncOptions *
read_options(Jsonb *jsonb, const char *const *allowed)
{
	ResyncOptions	  *options = palloc(sizeof(ResyncOptions));
	JsonbIterator	  *it;
	JsonbIteratorToken token;
	JsonbValue		   value;

	*options = option_defaults;
	options->soft_delete_col_name = pstrdup(option_defaults.soft_delete_col_name);
	options->synced_at_col_name = pstrdup(option_defaults.synced_at_col_name);

	if (jsonb != NULL)
	{
		if (!JB_ROOT_IS_OBJECT(jsonb))
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("mirror options must be a JSON object")));

		it = JsonbIteratorInit(&jsonb->root);
		while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
		{
			char			*name;
			const OptionDef *def;

			if (token != WJB_KEY)
				continue;
			name = pnstrdup(value.val.string.val, value.val.string.len);
			def = find_option(name, allowed);
			(void) JsonbIteratorNext(&it, &value, true);
			set_option(options, def, &value);
		}
	}
	finish_options(options);
	return options;
}

ResyncOptions *
resync_options_parse(Jsonb *options)
{
	return read_options(options, NULL);
}

void
resync_options_check(Jsonb *options, const char *const *allowed)
{
	(void) read_options(options, allowed);
}

void
resync_options_check_peer(const ResyncOptions *options, const char *peer_type)
{
	for (int i = 0; i < lengthof(option_defs); i++)
	{
		const OptionDef *def = &option_defs[i];

		if (def->peers != NULL && strstr(def->peers, peer_type) == NULL &&
			*(char *const *) ((const char *) options + def->offset) != NULL)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("mirror option \"%s\" means nothing to a %s destination",
								   def->name, peer_type),
							errhint("It is for: %s.", def->peers)));
	}
	/* each of them has one way to take what does not fit */
	if (options->out_of_range != NULL &&
		strcmp(options->out_of_range, strcmp(peer_type, "clickhouse") == 0 ? "null" : "clamp") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("mirror option \"out_of_range\" cannot be \"%s\" at a %s destination",
						options->out_of_range, peer_type)));
}

Jsonb *
resync_options_effective(Jsonb *options)
{
	ResyncOptions	*parsed = read_options(options, NULL);
	JsonbParseState *state = NULL;
	JsonbValue		*result;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < lengthof(option_defs); i++)
	{
		const OptionDef *def = &option_defs[i];
		const void		*field = (const char *) parsed + def->offset;
		JsonbValue		 key;
		JsonbValue		 value;
		double			 number;

		if (def->type == OPTION_WORD && *(char *const *) field == NULL)
			continue;
		key.type = jbvString;
		key.val.string.val = unconstify(char *, def->name);
		key.val.string.len = strlen(def->name);
		pushJsonbValue(&state, WJB_KEY, &key);

		value.type = jbvNull;
		switch (def->type)
		{
			case OPTION_BOOL:
				value.type = jbvBool;
				value.val.boolean = *(const bool *) field;
				break;
			case OPTION_INT:
				value.type = jbvNumeric;
				value.val.numeric = int64_to_numeric(*(const int *) field);
				break;
			case OPTION_INT64:
				value.type = jbvNumeric;
				value.val.numeric = int64_to_numeric(*(const int64 *) field);
				break;
			case OPTION_DOUBLE:
				number = *(const double *) field;
				if (number >= 0)
				{
					value.type = jbvNumeric;
					value.val.numeric = DatumGetNumeric(
						DirectFunctionCall1(float8_numeric, Float8GetDatum(number)));
				}
				break;
			case OPTION_COLUMN:
			case OPTION_WORD:
				if (*(char *const *) field != NULL)
				{
					value.type = jbvString;
					value.val.string.val = *(char *const *) field;
					value.val.string.len = strlen(value.val.string.val);
				}
				break;
		}
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	result = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(result);
}
