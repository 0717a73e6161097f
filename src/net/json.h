/*
 * json.h
 *		JSON of requests and answers, by json-c.
 *
 * A document is bound to the memory context that was current when it was made:
 * it goes when the context is reset or deleted, with all that was taken from
 * it.  Texts are UTF-8; pg_any_to_server() makes them the server's for a
 * message.
 *
 * A *path* is names and positions divided by dots: "error.errors.0.reason",
 * "" for the value itself.  Names with dots in them cannot be reached by one.
 *
 * Includes nothing of ours.
 */
#ifndef RESYNC_JSON_H
#define RESYNC_JSON_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* json-c's; its header clashes with some of PostgreSQL's */
typedef struct json_object JsonNode;

/*
 * Read a document, which may be any JSON value.  At most max_depth levels.
 * NULL: it is none; *reason (if not NULL) is why, a constant, in which nothing
 * of the text appears.  Raises only when memory is short.  (json-c takes a
 * little more than JSON, such as names in single quotes.)
 */
extern JsonNode *resync_json_parse(const char *text, Size len, int max_depth, const char **reason);

/* ---- looking; NULL or false: not there, or of another type ---- */

extern JsonNode *resync_json_find(JsonNode *node, const char *path);

/*
 * A string's text, which lives as long as the document.  One with a NUL inside
 * counts as not there.
 */
extern const char *resync_json_string(JsonNode *node, const char *path);

/* An integer, or a string of one (so Google writes 64 bits). */
extern bool resync_json_int64(JsonNode *node, const char *path, int64 *value);
extern bool resync_json_bool(JsonNode *node, const char *path, bool *value);

/* Elements of an array or members of an object; -1: it is neither. */
extern int resync_json_length(JsonNode *node, const char *path);

/* Names of an object's members, char *, in the current context. */
extern List *resync_json_names(JsonNode *node, const char *path);

/* A member by its name, whatever the name. */
extern JsonNode *resync_json_member(JsonNode *object, const char *name);

/* ---- building; out of memory is the only error ---- */

/* An empty object, a document of its own. */
extern JsonNode *resync_json_make(void);

/*
 * Set a member, objects on the way to it made if they are not there:
 * resync_json_set_string(job, "configuration.load.sourceFormat", "AVRO").
 * A value of the same name is replaced.  NULL as text sets JSON's null.
 */
extern void resync_json_set_string(JsonNode *object, const char *path, const char *text);
extern void resync_json_set_int64(JsonNode *object, const char *path, int64 value);
extern void resync_json_set_bool(JsonNode *object, const char *path, bool value);

/* Sets and returns an empty object or array, which belongs to object. */
extern JsonNode *resync_json_set_object(JsonNode *object, const char *path);
extern JsonNode *resync_json_set_array(JsonNode *object, const char *path);

/* A value of another document (not a container of object itself); shared. */
extern void resync_json_set_node(JsonNode *object, const char *path, JsonNode *value);

/* A member by its name, whatever the name. */
extern void resync_json_set_member(JsonNode *object, const char *name, const char *text);

extern void		 resync_json_append_string(JsonNode *array, const char *text);
extern JsonNode *resync_json_append_object(JsonNode *array);

/* ---- texts in the server's encoding, which are converted ---- */

extern void resync_json_set_text(JsonNode *object, const char *path, const char *text);

/*
 * In the current context.  NULL: not there, or (of invalid bytes) as good as not
 * there; what the server's encoding does not have is replaced by a remark.
 */
extern char *resync_json_get_text(JsonNode *object, const char *path);

/* As text, without blanks, in the current context. */
extern char *resync_json_text(JsonNode *node);

#endif /* RESYNC_JSON_H */
