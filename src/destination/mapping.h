/*
 * mapping.h
 *		What the mapping of a table (peerdb._table.mapping) says.
 *
 * api/tables.c has checked its form.  Results are in the current context.
 */
#ifndef RESYNC_DESTINATION_MAPPING_H
#define RESYNC_DESTINATION_MAPPING_H

#include "resync.h"

#include "utils/jsonb.h"

/* An object, which may be empty. */
extern Jsonb *resync_mapping_json(const ResyncTable *table);

/* The value of a key of an object, or NULL. */
extern JsonbValue *resync_mapping_find(JsonbContainer *object, const char *name);
extern char		  *resync_mapping_string(JsonbContainer *object, const char *name);

/* The object in "columns" for a source column, or NULL. */
extern JsonbContainer *resync_mapping_of_column(Jsonb *mapping, const char *source);

/*
 * The name at the destination that the mapping gives a source column, or NULL.
 * Raises if it chooses a type, which service has none of to choose.
 */
extern char *resync_mapping_renamed(Jsonb *mapping, const char *source, const char *service);

/*
 * A mirrored column by its name there or at the source; raises 42703.  key: what
 * names it, for the message.
 */
extern const ResyncColumn *
resync_mapping_column(const ResyncTable *table, const char *name, const char *key);

/* Destination's names (char *) of a list of columns; NIL: not given. */
extern List *resync_mapping_columns(const ResyncTable *table, Jsonb *mapping, const char *name);

/* "append": true */
extern bool resync_mapping_append(Jsonb *mapping);

#endif /* RESYNC_DESTINATION_MAPPING_H */
