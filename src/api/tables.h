/*
 * tables.h
 *		The "tables" argument of peerdb_create_mirror and peerdb_edit_mirror.
 */
#ifndef RESYNC_API_TABLES_H
#define RESYNC_API_TABLES_H

#include "resync.h"

#include "utils/jsonb.h"

/* One source table and where it goes. */
typedef struct TableSpec
{
	Oid	   relid;
	char  *schema;
	char  *name;
	char  *dest_schema; /* NULL where the destination has none */
	char  *dest_name;
	Jsonb *object; /* the element as given, or NULL: it was a
								 * string */
} TableSpec;

/*
 * Parse and check; raises.  List of TableSpec *, in the order given ("schema.*"
 * by name), in the current context.  peer_type: "postgres", "clickhouse", ...
 */
extern List *resync_tables_parse(Jsonb *tables, const char *peer_type);

/* "schema.table", quoted where SQL would need it; schema may be NULL. */
extern char *resync_tables_display(const char *schema, const char *name);

#endif /* RESYNC_API_TABLES_H */
