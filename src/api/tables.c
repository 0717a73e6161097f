/*
 * tables.c
 *		The "tables" argument: an array of "schema.table", "schema.*",
 *		"schema.table:destination", or objects with "from", "to", "exclude", ...
 *
 * Called in a user's backend by peerdb_create_mirror and peerdb_edit_mirror, in
 * the caller's transaction.  Source names (and destination names where the
 * destination has SQL identifiers) are parsed as identifiers: folded unless
 * quoted.  No table is opened or locked here; what a table's columns and key
 * allow is the catalog's business (resync_catalog_resolve_tables).
 */
#include "postgres.h"

#include "compat.h"

#include "api/tables.h"

#include "access/transam.h"
#include "api/api.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "parser/scansup.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/* How destination names are read. */
typedef enum NameStyle
{
	NAMES_SQL,		 /* identifiers, folded down */
	NAMES_SQL_UPPER, /* identifiers, folded up */
	NAMES_LITERAL	 /* as they are */
} NameStyle;

/* What a value of an element's key has to be. */
typedef enum KeyKind
{
	KEY_STRING,
	KEY_BOOL,
	KEY_STRINGS, /* array of strings */
	KEY_COLUMNS	 /* array of column objects */
} KeyKind;

typedef struct ElementKey
{
	const char *name;
	KeyKind		kind;
	const char *peers; /* peer types that it is for; NULL: all */
} ElementKey;

static const ElementKey element_keys[] = {
	{"from", KEY_STRING, NULL},
	{"to", KEY_STRING, NULL},
	{"exclude", KEY_STRINGS, NULL},
	{"append", KEY_BOOL, NULL},
	{"engine", KEY_STRING, "clickhouse"},
	{"order_by", KEY_STRINGS, "clickhouse"},
	{"partition_by", KEY_STRING, "clickhouse, bigquery"},
	{"cluster_by", KEY_STRINGS, "snowflake, bigquery"},
	{"sharding_key", KEY_STRING, "clickhouse"},
	{"columns", KEY_COLUMNS, "clickhouse, snowflake, bigquery"},
};

static const struct
{
	const char *peer_type;
	NameStyle	style;
	int			max_name; /* bytes */
} peer_names[] = {
	{"postgres", NAMES_SQL, NAMEDATALEN - 1},
	{"snowflake", NAMES_SQL_UPPER, 255},
	{"clickhouse", NAMES_LITERAL, 200},
	{"bigquery", NAMES_LITERAL, 1024},
};

/* Everything that the helpers below need of the call. */
typedef struct ParseState
{
	const char *peer_type;
	NameStyle	style;
	int			max_name;
	List	   *specs;
} ParseState;

char *
resync_tables_display(const char *schema, const char *name)
{
	return schema == NULL ? pstrdup(name) : quote_qualified_identifier(schema, name);
}

static bool
key_applies(const ParseState *state, const ElementKey *key)
{
	return key->peers == NULL || strstr(key->peers, state->peer_type) != NULL;
}

static void
pg_attribute_noreturn() bad_element(const char *what, const char *hint)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("invalid element of \"tables\": %s", what), errhint("%s", hint)));
}

static char *
string_of(const JsonbValue *v)
{
	return pnstrdup(v->val.string.val, v->val.string.len);
}

/* Position of the first c outside double quotes, or NULL. */
static char *
find_outside_quotes(char *text, char c)
{
	bool quoted = false;

	for (char *p = text; *p; p++)
	{
		if (*p == '"')
			quoted = !quoted;
		else if (*p == c && !quoted)
			return p;
	}
	return NULL;
}

/*
 * One part of a dotted SQL name, at *p; advances *p behind it.  NULL: there is
 * none.  Palloc'ed.
 */
static char *
next_part(const char **p, NameStyle style)
{
	StringInfoData part;

	initStringInfo(&part);
	while (scanner_isspace(**p))
		(*p)++;
	if (**p == '"')
	{
		for ((*p)++; (*p)[0] != '"' || (*p)[1] == '"'; (*p)++)
		{
			if (**p == '\0')
				return NULL;
			if (**p == '"')
				(*p)++; /* a doubled quote stands for one */
			appendStringInfoChar(&part, **p);
		}
		(*p)++;
	}
	else
	{
		const char *start = *p;
		char	   *folded;

		while (**p && **p != '.' && **p != '"' && !scanner_isspace(**p))
			(*p)++;
		folded = downcase_identifier(start, *p - start, false, false);
		if (style == NAMES_SQL_UPPER)
		{
			for (char *c = folded; *c; c++)
				*c = pg_toupper((unsigned char) *c);
		}
		appendStringInfoString(&part, folded);
	}
	while (scanner_isspace(**p))
		(*p)++;
	return part.len == 0 ? NULL : part.data;
}

/* Parts of a dotted SQL name, one or two: list of char *; raises. */
static List *
split_name(const char *text, NameStyle style)
{
	List	   *parts = NIL;
	const char *p = text;
	bool		more = true;

	while (more)
	{
		char *part = next_part(&p, style);

		more = *p == '.';
		if (part == NULL || (*p != '\0' && !more) || list_length(parts) == 2)
			bad_element(
				psprintf("\"%s\" is not a table name", resync_catalog_clip(text)),
				"Names are SQL identifiers: schema.table, with double quotes where SQL needs them.");
		parts = lappend(parts, part);
		if (more)
			p++;
	}
	return parts;
}

/* Nothing has a longer name at the source; do not look, and do not print it. */
static void
check_source_name(const char *name)
{
	if (strlen(name) >= NAMEDATALEN)
		ereport(ERROR, (errcode(ERRCODE_NAME_TOO_LONG),
						errmsg("name \"%s\" is too long", resync_catalog_clip(name)),
						errdetail("The limit is %d bytes.", NAMEDATALEN - 1)));
}

static void
check_destination_name(const ParseState *state, const char *name, const char *what)
{
	if (name[0] == '\0')
		bad_element(psprintf("the %s is empty", what), "Leave \"to\" out for the default name.");
	if (strlen(name) > state->max_name)
		ereport(ERROR, (errcode(ERRCODE_NAME_TOO_LONG),
						errmsg("%s \"%s\" is too long", what, resync_catalog_clip(name)),
						errdetail("The limit is %d bytes.", state->max_name)));
}

/* A destination name as SQL identifiers: one part or two. */
static void
parse_sql_destination(const ParseState *state, const char *to, TableSpec *spec)
{
	List *parts = split_name(to, state->style);

	if (list_length(parts) == 2)
		spec->dest_schema = linitial(parts);
	else
		spec->dest_schema = linitial(split_name(quote_identifier(spec->schema), state->style));
	spec->dest_name = llast(parts);
	check_destination_name(state, spec->dest_schema, "destination schema");
	check_destination_name(state, spec->dest_name, "destination table");
}

/* Fills dest_schema and dest_name; to is NULL for the default. */
static void
set_destination(const ParseState *state, const char *to, TableSpec *spec)
{
	if (state->style == NAMES_LITERAL)
	{
		spec->dest_schema = NULL;
		if (to != NULL)
			spec->dest_name = pstrdup(to);
		else if (strcmp(spec->schema, "public") == 0)
			spec->dest_name = pstrdup(spec->name);
		else
			spec->dest_name = psprintf("%s_%s", spec->schema, spec->name);
		check_destination_name(state, spec->dest_name, "destination table");
		return;
	}
	if (to != NULL)
	{
		parse_sql_destination(state, to, spec);
		return;
	}
	if (state->style == NAMES_SQL)
	{
		spec->dest_schema = spec->schema;
		spec->dest_name = spec->name;
	}
	else
		parse_sql_destination(state, quote_qualified_identifier(spec->schema, spec->name), spec);
}

/* Raises unless a relation of this kind can be mirrored. */
static void
check_kind(Oid relid, const char *schema, const char *name)
{
	char		relkind = get_rel_relkind(relid);
	const char *is = NULL;
	char	   *display = resync_tables_display(schema, name);

	switch (relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			break;
		case RELKIND_VIEW:
			is = "a view";
			break;
		case RELKIND_MATVIEW:
			is = "a materialized view";
			break;
		case RELKIND_FOREIGN_TABLE:
			is = "a foreign table";
			break;
		case RELKIND_SEQUENCE:
			is = "a sequence";
			break;
		default:
			is = "not a table";
			break;
	}
	if (is != NULL)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("cannot mirror %s", display),
						errdetail("It is %s.", is),
						errhint("Ordinary and partitioned tables can be mirrored.")));
	if (relid < FirstNormalObjectId || strcmp(schema, RESYNC_SCHEMA) == 0)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("cannot mirror %s", display),
						errdetail("It is a system table.")));
	switch (get_rel_persistence(relid))
	{
		case RELPERSISTENCE_TEMP:
			ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("cannot mirror %s", display),
							errdetail("It is a temporary table; its changes are not in the WAL.")));
			break;
		case RELPERSISTENCE_UNLOGGED:
			ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("cannot mirror %s", display),
							errdetail("It is an unlogged table; its changes are not in the WAL."),
							errhint("ALTER TABLE %s SET LOGGED;", display)));
			break;
		default:
			break;
	}
}

/* A column that is left out has to be there when this is said. */
static void
check_exclude(Oid relid, const char *table, Jsonb *object)
{
	JsonbValue	key = {.type = jbvString};
	JsonbValue *exclude;

	key.val.string.val = "exclude";
	key.val.string.len = strlen("exclude");
	exclude = findJsonbValueFromContainer(&object->root, JB_FOBJECT, &key);
	if (exclude == NULL)
		return;
	for (uint32 i = 0; i < JsonContainerSize(exclude->val.binary.data); i++)
	{
		char *column = string_of(getIthJsonbValueFromContainer(exclude->val.binary.data, i));

		if (get_attnum(relid, column) <= 0)
			ereport(
				ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table %s does not exist", resync_catalog_clip(column),
						table),
				 errhint("\"exclude\" names columns as they are, without quotes and folding.")));
	}
}

/* One table by name. */
static void
add_table(ParseState *state, const char *from, const char *to, Jsonb *object)
{
	List	  *parts = split_name(from, NAMES_SQL);
	TableSpec *spec = palloc0(sizeof(TableSpec));
	Oid namespace;
	ListCell *lc;

	foreach(lc, parts)
		check_source_name(lfirst(lc));
	if (list_length(parts) != 2)
		bad_element(psprintf("\"%s\" has no schema", resync_catalog_clip(from)),
					"Write schema.table.");
	spec->schema = linitial(parts);
	spec->name = lsecond(parts);
	namespace = get_namespace_oid(spec->schema, false);
	spec->relid = get_relname_relid(spec->name, namespace);
	if (!OidIsValid(spec->relid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("table %s does not exist",
							   resync_tables_display(spec->schema, spec->name))));
	check_kind(spec->relid, spec->schema, spec->name);
	if (object != NULL)
		check_exclude(spec->relid, resync_tables_display(spec->schema, spec->name), object);
	set_destination(state, to, spec);
	spec->object = object;
	state->specs = lappend(state->specs, spec);
}

/*
 * "schema.*": all ordinary and partitioned tables there now.  Partitions and
 * children come with their parents; unlogged tables cannot come.
 */
static void
add_schema(ParseState *state, const char *schema_text, const char *element)
{
	MemoryContext context = CurrentMemoryContext;
	List		 *parts = split_name(schema_text, NAMES_SQL);
	char		 *schema;
	Oid namespace;
	uint64 found;
	int	   added = 0;
	int	   unlogged = 0;

	if (list_length(parts) != 1)
		bad_element(psprintf("\"%s\"", resync_catalog_clip(element)), "Write schema.*.");
	schema = linitial(parts);
	check_source_name(schema);
	namespace = get_namespace_oid(schema, false);
	if (namespace < FirstNormalObjectId && strcmp(schema, "public") != 0)
		bad_element(psprintf("schema \"%s\" is a system schema", schema),
					"System tables cannot be mirrored.");
	found = resync_catalog_exec("SELECT c.oid, c.relname::text, c.relpersistence = 'u'"
								" FROM pg_catalog.pg_class c"
								" WHERE c.relnamespace = $1 AND c.relkind IN ('r', 'p')"
								" AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i"
								" JOIN pg_catalog.pg_class p ON p.oid = i.inhparent"
								" WHERE i.inhrelid = c.oid AND p.relnamespace = c.relnamespace"
								" AND p.relkind IN ('r', 'p'))"
								" ORDER BY c.relname COLLATE \"C\"",
								SPI_OK_SELECT, 1, OIDOID, ObjectIdGetDatum(namespace), false);
	for (uint64 i = 0; i < found; i++)
	{
		HeapTuple	  tup = SPI_tuptable->vals[i];
		TupleDesc	  desc = SPI_tuptable->tupdesc;
		bool		  isnull;
		MemoryContext old;
		TableSpec	 *spec;

		if (DatumGetBool(SPI_getbinval(tup, desc, 3, &isnull)))
		{
			unlogged++;
			continue;
		}
		old = MemoryContextSwitchTo(context);
		spec = palloc0(sizeof(TableSpec));
		spec->relid = DatumGetObjectId(SPI_getbinval(tup, desc, 1, &isnull));
		spec->schema = schema;
		spec->name = resync_api_copy_value(context, i, 2);
		check_kind(spec->relid, spec->schema, spec->name);
		set_destination(state, NULL, spec);
		state->specs = lappend(state->specs, spec);
		MemoryContextSwitchTo(old);
		added++;
	}
	resync_catalog_finish();
	if (added == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("schema \"%s\" has no table that can be mirrored", schema)));
	ereport(NOTICE, (errmsg_plural("\"%s\" stands for %d table", "\"%s\" stands for %d tables",
								   added, element, added),
					 unlogged == 0 ? 0
								   : errdetail_plural("%d unlogged table is left out.",
													  "%d unlogged tables are left out.", unlogged,
													  unlogged)));
}

static void
add_string(ParseState *state, char *text)
{
	char *colon = find_outside_quotes(text, ':');
	int	  len = strlen(text);

	if (colon == NULL && len > 2 && strcmp(text + len - 2, ".*") == 0)
	{
		add_schema(state, pnstrdup(text, len - 2), text);
		return;
	}
	if (colon == NULL)
	{
		add_table(state, text, NULL, NULL);
		return;
	}
	add_table(state, pnstrdup(text, colon - text), colon + 1, NULL);
}

static const char *
valid_keys(const ParseState *state)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < lengthof(element_keys); i++)
	{
		if (key_applies(state, &element_keys[i]))
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", element_keys[i].name);
	}
	return buf.data;
}

static bool
is_array_of(const JsonbValue *v, enum jbvType member)
{
	JsonbContainer *array;

	if (v->type != jbvBinary)
		return false;
	array = v->val.binary.data;
	if (!JsonContainerIsArray(array) || JsonContainerIsScalar(array))
		return false;
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
	{
		JsonbValue *item = getIthJsonbValueFromContainer(array, i);

		if (member == jbvObject
				? !(item->type == jbvBinary && JsonContainerIsObject(item->val.binary.data))
				: item->type != member)
			return false;
	}
	return true;
}

/* Elements of "columns": source, destination, type, nullable. */
static void
check_columns(const JsonbValue *v)
{
	JsonbContainer *array = v->val.binary.data;

	for (uint32 i = 0; i < JsonContainerSize(array); i++)
	{
		JsonbIterator	  *it;
		JsonbValue		   key;
		JsonbIteratorToken token;
		bool			   source = false;

		it = JsonbIteratorInit(getIthJsonbValueFromContainer(array, i)->val.binary.data);
		(void) JsonbIteratorNext(&it, &key, true);
		while ((token = JsonbIteratorNext(&it, &key, true)) == WJB_KEY)
		{
			char	  *name = string_of(&key);
			bool	   is_nullable = strcmp(name, "nullable") == 0;
			JsonbValue value;

			if (!is_nullable && strcmp(name, "source") != 0 && strcmp(name, "destination") != 0 &&
				strcmp(name, "type") != 0)
				bad_element(psprintf("\"columns\" has no key \"%s\"", resync_catalog_clip(name)),
							"Valid keys are: source, destination, type, nullable.");
			(void) JsonbIteratorNext(&it, &value, true);
			if (value.type != (is_nullable ? jbvBool : jbvString))
				bad_element(psprintf("\"%s\" of \"columns\" has the wrong type", name),
							"\"nullable\" is true or false, the others are strings.");
			source |= strcmp(name, "source") == 0;
		}
		if (!source)
			bad_element("an element of \"columns\" has no \"source\"", "Name the source column.");
	}
}

static void
check_key_value(const ElementKey *key, const JsonbValue *v)
{
	switch (key->kind)
	{
		case KEY_STRING:
			if (v->type != jbvString)
				bad_element(psprintf("\"%s\" must be a string", key->name), "Write it in quotes.");
			break;
		case KEY_BOOL:
			if (v->type != jbvBool)
				bad_element(psprintf("\"%s\" must be true or false", key->name),
							"Write it without quotes.");
			break;
		case KEY_STRINGS:
			if (!is_array_of(v, jbvString))
				bad_element(psprintf("\"%s\" must be an array of strings", key->name),
							"For example: [\"a\", \"b\"].");
			break;
		case KEY_COLUMNS:
			if (!is_array_of(v, jbvObject))
				bad_element(psprintf("\"%s\" must be an array of objects", key->name),
							"For example: [{\"source\": \"a\", \"type\": \"String\"}].");
			check_columns(v);
			break;
	}
}

static void
add_object(ParseState *state, JsonbValue *element)
{
	Jsonb			  *object = JsonbValueToJsonb(element);
	JsonbIterator	  *it = JsonbIteratorInit(&object->root);
	JsonbValue		   key;
	JsonbIteratorToken token;
	char			  *from = NULL;
	char			  *to = NULL;

	(void) JsonbIteratorNext(&it, &key, true);
	while ((token = JsonbIteratorNext(&it, &key, true)) == WJB_KEY)
	{
		char			 *name = string_of(&key);
		const ElementKey *known = NULL;
		JsonbValue		  value;

		for (int i = 0; i < lengthof(element_keys); i++)
		{
			if (strcmp(element_keys[i].name, name) == 0 && key_applies(state, &element_keys[i]))
				known = &element_keys[i];
		}
		if (known == NULL)
			bad_element(psprintf("a table has no key \"%s\"", resync_catalog_clip(name)),
						psprintf("Valid keys are: %s.", valid_keys(state)));
		(void) JsonbIteratorNext(&it, &value, true);
		check_key_value(known, &value);
		if (strcmp(name, "from") == 0)
			from = string_of(&value);
		else if (strcmp(name, "to") == 0)
			to = string_of(&value);
	}
	if (from == NULL)
		bad_element("an object has no \"from\"",
					"Name the source table: {\"from\": \"schema.table\"}.");
	add_table(state, from, to, object);
}

/* Neither source nor destination twice; no child beside its parent. */
static void
check_overlaps(List *specs)
{
	ListCell *lc1;
	ListCell *lc2;

	foreach(lc1, specs)
	{
		TableSpec *a = lfirst(lc1);
		List	  *children = NIL;

		if (has_subclass(a->relid))
			children = find_all_inheritors(a->relid, NoLock, NULL);
		foreach(lc2, specs)
		{
			TableSpec *b = lfirst(lc2);

			if (a == b)
				continue;
			if (a->relid == b->relid)
				ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
								errmsg("table %s is listed twice",
									   resync_tables_display(a->schema, a->name))));
			if (strcmp(a->dest_name, b->dest_name) == 0 &&
				(a->dest_schema == NULL || strcmp(a->dest_schema, b->dest_schema) == 0))
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_OBJECT),
						 errmsg("destination table %s is used twice",
								resync_tables_display(a->dest_schema, a->dest_name)),
						 errdetail("Both %s and %s go there.",
								   resync_tables_display(a->schema, a->name),
								   resync_tables_display(b->schema, b->name)),
						 errhint("Name another destination with \"schema.table:destination\".")));
			if (list_member_oid(children, b->relid))
				ereport(
					ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("table %s is part of %s, which is listed as well",
							resync_tables_display(b->schema, b->name),
							resync_tables_display(a->schema, a->name)),
					 errhint("A partitioned or inherited table is mirrored with all its parts.")));
		}
	}
}

List *
resync_tables_parse(Jsonb *tables, const char *peer_type)
{
	ParseState		state = {.peer_type = peer_type};
	JsonbContainer *root = &tables->root;

	for (int i = 0; i < lengthof(peer_names); i++)
	{
		if (strcmp(peer_names[i].peer_type, peer_type) == 0)
		{
			state.style = peer_names[i].style;
			state.max_name = peer_names[i].max_name;
		}
	}
	if (state.max_name == 0)
		elog(ERROR, "unknown peer type \"%s\"", peer_type);

	if (!JB_ROOT_IS_ARRAY(tables) || JB_ROOT_IS_SCALAR(tables) || JB_ROOT_COUNT(tables) == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("\"tables\" must be an array of one table or more"),
						errhint("For example: '[\"public.customers\", \"sales.*\"]'.")));
	for (uint32 i = 0; i < JB_ROOT_COUNT(tables); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(root, i);

		if (v->type == jbvString)
			add_string(&state, string_of(v));
		else if (v->type == jbvBinary && JsonContainerIsObject(v->val.binary.data))
			add_object(&state, v);
		else
			bad_element("it is neither a string nor an object",
						"Write \"schema.table\" or {\"from\": \"schema.table\"}.");
	}
	check_overlaps(state.specs);
	return state.specs;
}
