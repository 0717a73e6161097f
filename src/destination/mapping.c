/*
 * mapping.c
 *		What the mapping of a table (peerdb._table.mapping) says.
 *
 * Called by the destinations' map functions, in any process.
 */
#include "postgres.h"

#include "destination/mapping.h"

#include "utils/builtins.h"

Jsonb *
resync_mapping_json(const ResyncTable *table)
{
	return DatumGetJsonbP(
		DirectFunctionCall1(jsonb_in, CStringGetDatum(table->mapping ? table->mapping : "{}")));
}

JsonbValue *
resync_mapping_find(JsonbContainer *object, const char *name)
{
	JsonbValue key = {.type = jbvString};

	if (!JsonContainerIsObject(object))
		return NULL;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = strlen(name);
	return findJsonbValueFromContainer(object, JB_FOBJECT, &key);
}

char *
resync_mapping_string(JsonbContainer *object, const char *name)
{
	JsonbValue *v = resync_mapping_find(object, name);

	return v != NULL && v->type == jbvString ? pnstrdup(v->val.string.val, v->val.string.len)
											 : NULL;
}

JsonbContainer *
resync_mapping_of_column(Jsonb *mapping, const char *source)
{
	JsonbValue *columns = resync_mapping_find(&mapping->root, "columns");

	if (columns == NULL || columns->type != jbvBinary)
		return NULL;
	for (uint32 i = 0; i < JsonContainerSize(columns->val.binary.data); i++)
	{
		JsonbValue *item = getIthJsonbValueFromContainer(columns->val.binary.data, i);
		char	   *name = resync_mapping_string(item->val.binary.data, "source");

		if (name != NULL && strcmp(name, source) == 0)
			return item->val.binary.data;
	}
	return NULL;
}

char *
resync_mapping_renamed(Jsonb *mapping, const char *source, const char *service)
{
	JsonbContainer *given = resync_mapping_of_column(mapping, source);

	if (given == NULL)
		return NULL;
	if (resync_mapping_find(given, "type") != NULL ||
		resync_mapping_find(given, "nullable") != NULL)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("the type of column \"%s\" cannot be chosen at %s", source, service),
						errhint("Only \"destination\" may be given for a column.")));
	return resync_mapping_string(given, "destination");
}

const ResyncColumn *
resync_mapping_column(const ResyncTable *table, const char *name, const char *key)
{
	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(table->cols[i].dest_name, name) == 0 || strcmp(table->cols[i].name, name) == 0)
			return &table->cols[i];
	}
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
					errmsg("column \"%s\" of \"%s\" is not a mirrored column of table \"%s.%s\"",
						   name, key, table->schema, table->name)));
	return NULL; /* keep compiler quiet */
}

List *
resync_mapping_columns(const ResyncTable *table, Jsonb *mapping, const char *name)
{
	JsonbValue *given = resync_mapping_find(&mapping->root, name);
	List	   *names = NIL;

	if (given == NULL || given->type != jbvBinary)
		return NIL;
	for (uint32 i = 0; i < JsonContainerSize(given->val.binary.data); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(given->val.binary.data, i);

		names = lappend(names, resync_mapping_column(
								   table, pnstrdup(v->val.string.val, v->val.string.len), name)
								   ->dest_name);
	}
	return names;
}

bool
resync_mapping_append(Jsonb *mapping)
{
	JsonbValue *append = resync_mapping_find(&mapping->root, "append");

	return append != NULL && append->type == jbvBool && append->val.boolean;
}
