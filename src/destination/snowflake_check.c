/*
 * snowflake_check.c
 *		Phase validate at a Snowflake destination.
 *
 * Called by the coordinator, and by peerdb_plan_resync in a user's backend.  What
 * a table needs is proven by making it, under a name of its own, and dropping it
 * again.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "utils/memutils.h"

/* Something that has the table's name, and is none. */
static void
check_no_other(SfDestination *dest, const ResyncTable *table, const char *name)
{
	SfResult *res = resync_sf_query(
		dest, psprintf("SHOW OBJECTS LIKE %s IN SCHEMA %s.%s", resync_sf_pattern(name),
					   resync_sf_ident(dest->database), resync_sf_ident(table->dest_schema)));

	for (int i = 0; i < res->nrows; i++)
	{
		char *found = resync_sf_column(res, i, "name");
		char *kind = resync_sf_column(res, i, "kind");

		if (found == NULL || strcmp(found, name) != 0 || kind == NULL ||
			strcmp(kind, "TABLE") == 0 || strcmp(kind, "TRANSIENT") == 0)
			continue;
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("%s at the destination is not a table",
							   resync_sf_name(dest, table->dest_schema, name)),
						errdetail("It is a %s.", kind), errhint("Drop or rename it.")));
	}
}

/* Tombstones need the whole key. */
static void
warn_of_tombstones(SfDestination *dest, const ResyncTable *table, List **warnings,
				   MemoryContext context)
{
	const ResyncColumn **key = resync_destination_key(table);
	List				*columns = resync_sf_columns(dest, resync_sf_table(dest, table, false));

	for (int i = 0; dest->head.id->options->soft_delete && i < table->nkeys; i++)
	{
		if (resync_sf_find_column(columns, key[i]->dest_name) != NULL)
			continue;
		resync_destination_warn(
			warnings, context,
			psprintf("soft-deleted rows of table %s at the destination are not carried "
					 "over: it has no key column \"%s\"",
					 resync_sf_table(dest, table, false), key[i]->dest_name));
		return;
	}
}

/* The table that the swap will replace. */
static void
check_live(SfDestination *dest, const ResyncTable *table, const SfTable *live, bool live_expected,
		   List **warnings, MemoryContext context)
{
	char *name = resync_sf_table(dest, table, false);

	if (!live_expected ||
		(!resync_sf_is_ours(dest, live) && !dest->head.id->options->replace_existing))
		resync_destination_raise_exists(name, false);
	if (live->special)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("table %s at the destination cannot be swapped", name),
						errdetail("It is external, dynamic, hybrid or of Iceberg."),
						errhint("Drop or rename it.")));
	/* only its owner, or who has that role, may swap it: and set what is set */
	if (live->owner == NULL || strcmp(live->owner, dest->role) != 0)
		(void) resync_sf_query(dest, psprintf("ALTER TABLE %s SET CHANGE_TRACKING = %s", name,
											  live->change_tracking ? "TRUE" : "FALSE"));
	warn_of_tombstones(dest, table, warnings, context);
}

void
resync_sf_check_table(Destination *head, const ResyncTable *table, bool live_expected,
					  List **warnings)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	SfTable		  *build;
	SfTable		  *live;

	resync_destination_check_reserved(table, SF_OWN_PREFIX);
	if (!resync_sf_has_schema(dest, table->dest_schema))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_SCHEMA_NAME),
				 errmsg("there is no schema \"%s\" in database \"%s\" at Snowflake",
						table->dest_schema, dest->database),
				 errdetail("It does not exist, or role \"%s\" may not use it.", dest->role),
				 errhint("Create it, grant USAGE on it to the role, or map table \"%s.%s\" to "
						 "another schema.",
						 table->schema, table->name)));
	check_no_other(dest, table, table->dest_name);
	check_no_other(dest, table, table->build_name);
	build = resync_sf_find_table(dest, table, true);
	if (build != NULL && !resync_sf_is_ours(dest, build))
		resync_destination_raise_in_way(resync_sf_table(dest, table, true));
	live = resync_sf_find_table(dest, table, false);
	if (live != NULL)
		check_live(dest, table, live, live_expected, warnings, old);
	resync_sf_try_table(dest, table);
	MemoryContextSwitchTo(old);
}

/*
 * What all tables need: our metadata, a stage and staging tables, and a warehouse
 * that runs or may be resumed.
 */
void
resync_sf_check_tables(Destination *head, ResyncTable **tables, int ntables)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);

	resync_sf_make_metadata(dest);
	resync_sf_have_stage(dest);
	resync_sf_drop(dest, resync_sf_make_stage(dest, 0, "n NUMBER(38, 0)"));
	(void) resync_sf_number(dest, psprintf("SELECT COUNT(*) FROM %s WHERE %s",
										   resync_sf_own(dest, SF_RUNS_TABLE),
										   resync_sf_run_condition(dest, head->id->run)));
	MemoryContextSwitchTo(old);
}
