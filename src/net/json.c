/*
 * json.c
 *		JSON of requests and answers, by json-c.
 *
 * Called by destinations, in any process.  No locks, no transaction.
 *
 * json-c allocates by malloc and calls nothing back here: nothing is raised
 * inside of it.  A root is bound to a context by a reset callback, made before
 * the root is; everything else belongs to a root as soon as it exists.
 */
#include "postgres.h"

#include "net/json.h"

#include <json-c/json_object.h>
#include <json-c/json_object_iterator.h>
#include <json-c/json_tokener.h>

#include "mb/pg_wchar.h"
#include "net/encoding.h"
#include "utils/memutils.h"

/* A document of a context. */
typedef struct JsonRoot
{
	JsonNode			 *node;
	MemoryContextCallback callback;
} JsonRoot;

static void
free_root(void *arg)
{
	JsonRoot *root = arg;

	json_object_put(root->node);
	root->node = NULL;
}

/* A place in the current context for a document to be. */
static JsonRoot *
make_root(void)
{
	JsonRoot *root = palloc0(sizeof(JsonRoot));

	root->callback.func = free_root;
	root->callback.arg = root;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &root->callback);
	return root;
}

static void
raise_no_memory(void)
{
	ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

JsonNode *
resync_json_parse(const char *text, Size len, int max_depth, const char **reason)
{
	JsonRoot			   *root = make_root();
	struct json_tokener	   *tokener;
	enum json_tokener_error error;
	size_t					end;
	const char			   *why = NULL;

	if (len > MaxAllocSize)
	{
		if (reason != NULL)
			*reason = "it is too long";
		return NULL;
	}
	tokener = json_tokener_new_ex(max_depth);
	if (tokener == NULL)
		raise_no_memory();
	json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	root->node = json_tokener_parse_ex(tokener, text, (int) len);
	error = json_tokener_get_error(tokener);
	/* a number may go on: json-c knows its end by the NUL behind it */
	if (error == json_tokener_continue)
	{
		root->node = json_tokener_parse_ex(tokener, "", 1);
		error = json_tokener_get_error(tokener);
		end = len;
	}
	else
		end = json_tokener_get_parse_end(tokener);
	json_tokener_free(tokener);

	if (error == json_tokener_continue)
		why = "it is cut off";
	else if (error != json_tokener_success)
		why = json_tokener_error_desc(error);
	else if (root->node == NULL)
		why = "it is null";
	else if (strspn(text + end, " \t\r\n") < len - end)
		why = "there is something behind it";
	if (why == NULL)
		return root->node;
	json_object_put(root->node);
	root->node = NULL;
	if (reason != NULL)
		*reason = why;
	return NULL;
}

/* ---- looking ---- */

/* A step of a path: its name's length; the path moves on behind the dot. */
static int
take_step(const char **path, const char **name)
{
	int len = strcspn(*path, ".");

	*name = *path;
	*path += len;
	if (**path == '.')
		(*path)++;
	return len;
}

/* Position in an array: digits only. */
static bool
read_position(const char *name, int len, size_t *position)
{
	*position = 0;
	if (len == 0 || len > 9 || strspn(name, "0123456789") < len)
		return false;
	for (int i = 0; i < len; i++)
		*position = *position * 10 + (name[i] - '0');
	return true;
}

static JsonNode *
find_step(JsonNode *node, const char *name, int len)
{
	JsonNode *found = NULL;
	size_t	  position;

	if (json_object_is_type(node, json_type_array))
	{
		if (!read_position(name, len, &position))
			return NULL;
		return json_object_array_get_idx(node, position);
	}
	if (json_object_is_type(node, json_type_object))
	{
		char *key = pnstrdup(name, len);

		(void) json_object_object_get_ex(node, key, &found);
		pfree(key);
	}
	return found;
}

JsonNode *
resync_json_find(JsonNode *node, const char *path)
{
	while (node != NULL && *path != '\0')
	{
		const char *name;
		int			len = take_step(&path, &name);

		node = find_step(node, name, len);
	}
	return node;
}

JsonNode *
resync_json_member(JsonNode *object, const char *name)
{
	JsonNode *found = NULL;

	if (json_object_is_type(object, json_type_object))
		(void) json_object_object_get_ex(object, name, &found);
	return found;
}

const char *
resync_json_string(JsonNode *node, const char *path)
{
	const char *text;

	node = resync_json_find(node, path);
	if (!json_object_is_type(node, json_type_string))
		return NULL;
	text = json_object_get_string(node);
	return strlen(text) == json_object_get_string_len(node) ? text : NULL;
}

bool
resync_json_int64(JsonNode *node, const char *path, int64 *value)
{
	const char *text;
	char	   *end;

	node = resync_json_find(node, path);
	if (json_object_is_type(node, json_type_int))
	{
		/* beyond 63 bits json-c would give the largest there is */
		if (json_object_get_uint64(node) > PG_INT64_MAX && json_object_get_int64(node) > 0)
			return false;
		*value = json_object_get_int64(node);
		return true;
	}
	text = node != NULL ? resync_json_string(node, "") : NULL;
	if (text == NULL || (*text != '-' && (*text < '0' || *text > '9')))
		return false;
	errno = 0;
	*value = strtoi64(text, &end, 10);
	return errno == 0 && end != text && *end == '\0';
}

bool
resync_json_bool(JsonNode *node, const char *path, bool *value)
{
	node = resync_json_find(node, path);
	if (!json_object_is_type(node, json_type_boolean))
		return false;
	*value = json_object_get_boolean(node);
	return true;
}

int
resync_json_length(JsonNode *node, const char *path)
{
	node = resync_json_find(node, path);
	if (json_object_is_type(node, json_type_array))
		return (int) json_object_array_length(node);
	if (json_object_is_type(node, json_type_object))
		return json_object_object_length(node);
	return -1;
}

List *
resync_json_names(JsonNode *node, const char *path)
{
	List					   *names = NIL;
	struct json_object_iterator it;
	struct json_object_iterator end;

	node = resync_json_find(node, path);
	if (!json_object_is_type(node, json_type_object))
		return NIL;
	end = json_object_iter_end(node);
	for (it = json_object_iter_begin(node); !json_object_iter_equal(&it, &end);
		 json_object_iter_next(&it))
		names = lappend(names, pstrdup(json_object_iter_peek_name(&it)));
	return names;
}

/* ---- building ---- */

JsonNode *
resync_json_make(void)
{
	JsonRoot *root = make_root();

	root->node = json_object_new_object();
	if (root->node == NULL)
		raise_no_memory();
	return root->node;
}

/* value, which is NULL only for JSON's null, becomes object's, or is freed. */
static void
add_member(JsonNode *object, const char *name, JsonNode *value)
{
	if (!json_object_is_type(object, json_type_object))
	{
		json_object_put(value);
		elog(ERROR, "JSON member \"%s\" of something that is no object", name);
	}
	if (json_object_object_add(object, name, value) != 0)
	{
		json_object_put(value);
		raise_no_memory();
	}
}

/*
 * The object that the path's last step is a member of, made if need be, and
 * that step's name.
 */
static JsonNode *
reach(JsonNode *object, const char *path, char **last)
{
	for (;;)
	{
		const char *step;
		int			len = take_step(&path, &step);
		char	   *name = pnstrdup(step, len);
		JsonNode   *next;

		if (*path == '\0')
		{
			*last = name;
			return object;
		}
		next = find_step(object, step, len);
		if (next == NULL)
		{
			next = json_object_new_object();
			if (next == NULL)
				raise_no_memory();
			add_member(object, name, next);
		}
		object = next;
		pfree(name);
	}
}

/* value: just made and nobody's yet; NULL: there was no memory for it. */
static void
set_value(JsonNode *object, const char *name, JsonNode *value)
{
	if (value == NULL)
		raise_no_memory();
	add_member(object, name, value);
}

void
resync_json_set_member(JsonNode *object, const char *name, const char *text)
{
	if (text == NULL)
		add_member(object, name, NULL);
	else
		set_value(object, name, json_object_new_string(text));
}

void
resync_json_set_string(JsonNode *object, const char *path, const char *text)
{
	char *name;

	object = reach(object, path, &name);
	resync_json_set_member(object, name, text);
}

void
resync_json_set_int64(JsonNode *object, const char *path, int64 value)
{
	char *name;

	object = reach(object, path, &name);
	set_value(object, name, json_object_new_int64(value));
}

void
resync_json_set_bool(JsonNode *object, const char *path, bool value)
{
	char *name;

	object = reach(object, path, &name);
	set_value(object, name, json_object_new_boolean(value));
}

JsonNode *
resync_json_set_object(JsonNode *object, const char *path)
{
	char	 *name;
	JsonNode *value;

	object = reach(object, path, &name);
	value = json_object_new_object();
	set_value(object, name, value);
	return value;
}

JsonNode *
resync_json_set_array(JsonNode *object, const char *path)
{
	char	 *name;
	JsonNode *value;

	object = reach(object, path, &name);
	value = json_object_new_array();
	set_value(object, name, value);
	return value;
}

void
resync_json_set_node(JsonNode *object, const char *path, JsonNode *value)
{
	char *name;

	object = reach(object, path, &name);
	add_member(object, name, json_object_get(value));
}

static void
append(JsonNode *array, JsonNode *value)
{
	if (value == NULL)
		raise_no_memory();
	if (!json_object_is_type(array, json_type_array))
	{
		json_object_put(value);
		elog(ERROR, "JSON element of something that is no array");
	}
	if (json_object_array_add(array, value) != 0)
	{
		json_object_put(value);
		raise_no_memory();
	}
}

void
resync_json_append_string(JsonNode *array, const char *text)
{
	append(array, json_object_new_string(text));
}

JsonNode *
resync_json_append_object(JsonNode *array)
{
	JsonNode *value = json_object_new_object();

	append(array, value);
	return value;
}

char *
resync_json_text(JsonNode *node)
{
	size_t		len;
	const char *text = json_object_to_json_string_length(
		node, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len);

	if (text == NULL)
		raise_no_memory();
	return pnstrdup(text, len);
}

/* ---- texts in the server's encoding ---- */

void
resync_json_set_text(JsonNode *object, const char *path, const char *text)
{
	resync_json_set_string(object, path, resync_text_to_utf8(text));
}

char *
resync_json_get_text(JsonNode *object, const char *path)
{
	const char *text = object != NULL ? resync_json_string(object, path) : NULL;
	char	   *ours;

	if (text == NULL || !pg_verify_mbstr(PG_UTF8, text, strlen(text), true))
		return NULL;
	ours = resync_text_from_utf8_or_null(text);
	return pstrdup(ours != NULL ? ours : "(text that this database's encoding does not have)");
}
