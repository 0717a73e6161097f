/*
 * snowflake_table.c
 *		Tables of a run at a Snowflake destination: marks, create, reset, added
 *		columns, drop.
 *
 * Called by the coordinator (checks also by peerdb_plan_resync in a user's
 * backend), add_column by the streamer.  Whatever changes or drops a table first
 * looks whether it is ours (rule 9): the last line of its comment says which
 * mirror's and run's it is, and what for.  It also has hashes of the two names that
 * the table may have, live and under construction, because copies of a table may
 * have its comment: those are not ours.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "common/hashfn.h"
#include "utils/builtins.h"

#define MARK_BEGIN "{\"resync\":"

/* Tables that are being made, which have no mark yet. */
#define NEW_PREFIX SF_OWN_PREFIX "NEW_"

/* Tables on their way into a live one's place, or out of it. */
#define SWAP_PREFIX SF_OWN_PREFIX "SWAP_"

/* Rows of a list at once. */
#define LIST_STEP 500

/* What a column may be at least, to hold what ours holds. */
#define MIN_VARCHAR 16777216
#define MIN_BINARY 8388608
#define MIN_FRACTION 6

/* ---------------------------------------------------------------------
 * Marks
 * ------------------------------------------------------------------ */

/* What a mark has of a table's name. */
static char *
name_hash(const char *schema, const char *name)
{
	char *full = psprintf("%s.%s", resync_sf_ident(schema), resync_sf_ident(name));

	return psprintf("%016llx", (unsigned long long) hash_bytes_extended(
								   (const unsigned char *) full, strlen(full), 0));
}

static char *
mark_text(SfDestination *dest, int64 run, const char *role, const char *live, const char *build)
{
	return psprintf(MARK_BEGIN "{\"token\":\"%s\",\"run\":" INT64_FORMAT
							   ",\"role\":\"%s\",\"live\":\"%s\",\"build\":\"%s\"}}",
					dest->head.id->token, run, role, live, build);
}

static char *
with_mark(const char *text, const char *mark)
{
	return text != NULL && text[0] != '\0' ? psprintf("%s\n%s", text, mark) : pstrdup(mark);
}

/* A comment with what somebody wrote (may be NULL), and this run's mark. */
char *
resync_sf_comment(SfDestination *dest, const char *text, const ResyncTable *table, const char *role)
{
	return with_mark(text, mark_text(dest, dest->head.id->run, role,
									 name_hash(table->dest_schema, table->dest_name),
									 name_hash(table->dest_schema, table->build_name)));
}

void
resync_sf_set_comment(SfDestination *dest, const char *table, const char *comment)
{
	(void) resync_sf_query(
		dest, psprintf("COMMENT ON TABLE %s IS %s", table, resync_sf_literal(comment)));
}

void
resync_sf_mark_live(SfDestination *dest, const SfTable *table, int64 run)
{
	resync_sf_set_comment(
		dest, resync_sf_name(dest, table->schema, table->name),
		with_mark(table->comment, mark_text(dest, run, SF_ROLE_LIVE, table->live, table->build)));
}

/* The mark out of a comment into table, which has its name; else it has none. */
static void
read_mark(SfTable *table, char *comment)
{
	char	 *last = strrchr(comment, '\n');
	char	 *mark = last != NULL ? last + 1 : comment;
	JsonNode *json;
	char	 *hash = name_hash(table->schema, table->name);

	table->comment = comment;
	table->at_swap = strncmp(table->name, SWAP_PREFIX, strlen(SWAP_PREFIX)) == 0;
	if (strncmp(mark, MARK_BEGIN, strlen(MARK_BEGIN)) != 0)
		return;
	json = resync_json_parse(mark, strlen(mark), 8, NULL);
	table->token = resync_json_get_text(json, "resync.token");
	table->role = resync_json_get_text(json, "resync.role");
	table->live = resync_json_get_text(json, "resync.live");
	table->build = resync_json_get_text(json, "resync.build");
	if (last != NULL)
		*last = '\0';
	else
		table->comment = "";
	if (table->role == NULL || table->live == NULL || table->build == NULL ||
		!resync_json_int64(json, "resync.run", &table->run) ||
		(strcmp(hash, table->live) != 0 && strcmp(hash, table->build) != 0 && !table->at_swap))
		table->token = NULL;
	else
		table->at_live = strcmp(hash, table->live) == 0;
}

/* Of this mirror, whatever run? */
bool
resync_sf_is_ours(const SfDestination *dest, const SfTable *found)
{
	return found != NULL && found->token != NULL && strcmp(found->token, dest->head.id->token) == 0;
}

bool
resync_sf_is_role(const SfDestination *dest, const SfTable *found, const char *role)
{
	return resync_sf_is_ours(dest, found) && found->run == dest->head.id->run &&
		   strcmp(found->role, role) == 0;
}

/* ---------------------------------------------------------------------
 * Looking
 * ------------------------------------------------------------------ */

static bool
is_yes(const SfResult *res, int row, const char *column)
{
	char *value = resync_sf_optional(res, row, column);

	return value != NULL && (strcmp(value, "Y") == 0 || strcmp(value, "ON") == 0);
}

/* Tables (SfTable *) whose names are like a pattern of SHOW's, and begin so. */
static List *
show_tables(SfDestination *dest, const char *schema, const char *pattern, const char *begin)
{
	SfResult *res = resync_sf_try(
		dest, psprintf("SHOW TABLES LIKE %s IN SCHEMA %s.%s", resync_sf_pattern(pattern),
					   resync_sf_ident(dest->database), resync_sf_ident(schema)));
	List *tables = NIL;

	for (int i = 0; res != NULL && i < res->nrows; i++)
	{
		SfTable *table;
		char	*found = resync_sf_column(res, i, "name");
		char	*comment = resync_sf_column(res, i, "comment");

		if (found == NULL || strncmp(found, begin, strlen(begin)) != 0)
			continue;
		table = palloc0(sizeof(SfTable));
		table->schema = pstrdup(schema);
		table->name = found;
		table->kind = resync_sf_column(res, i, "kind");
		table->cluster_by = resync_sf_column(res, i, "cluster_by");
		table->owner = resync_sf_column(res, i, "owner");
		table->retention = resync_sf_column(res, i, "retention_time");
		table->change_tracking = is_yes(res, i, "change_tracking");
		table->special = is_yes(res, i, "is_external") || is_yes(res, i, "is_dynamic") ||
						 is_yes(res, i, "is_iceberg") || is_yes(res, i, "is_hybrid");
		read_mark(table, comment != NULL ? comment : pstrdup(""));
		tables = lappend(tables, table);
	}
	return tables;
}

SfTable *
resync_sf_find(SfDestination *dest, const char *schema, const char *name)
{
	List	 *tables = show_tables(dest, schema, name, name);
	ListCell *lc;

	foreach(lc, tables)
	{
		SfTable *table = lfirst(lc);

		if (strcmp(table->name, name) == 0)
			return table;
	}
	return NULL;
}

SfTable *
resync_sf_find_table(SfDestination *dest, const ResyncTable *table, bool build)
{
	return resync_sf_find(dest, table->dest_schema, build ? table->build_name : table->dest_name);
}

List *
resync_sf_columns(SfDestination *dest, const char *table)
{
	SfResult *res = resync_sf_query(dest, psprintf("DESCRIBE TABLE %s", table));
	List	 *columns = NIL;

	for (int i = 0; i < res->nrows; i++)
	{
		SfColumn *column = palloc0(sizeof(SfColumn));

		column->name = resync_sf_column(res, i, "name");
		column->type = resync_sf_column(res, i, "type");
		if (column->name == NULL || column->type == NULL)
			ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
							errmsg("Snowflake's answer lacks a value")));
		column->notnull = !is_yes(res, i, "null?");
		column->primary = is_yes(res, i, "primary key");
		columns = lappend(columns, column);
	}
	return columns;
}

SfColumn *
resync_sf_find_column(List *columns, const char *name)
{
	ListCell *lc;

	foreach(lc, columns)
	{
		SfColumn *column = lfirst(lc);

		if (strcmp(column->name, name) == 0)
			return column;
	}
	return NULL;
}

bool
resync_sf_is_new(const SfDestination *dest, const SfTable *found)
{
	return resync_sf_is_role(dest, found, SF_ROLE_BUILD) ||
		   resync_sf_is_role(dest, found, SF_ROLE_LIVE);
}

/* Without the epoch, which is a try's own. */
static char *
swap_prefix(SfDestination *dest, const ResyncTable *table)
{
	return psprintf(SWAP_PREFIX "%.*s_" INT64_FORMAT "_%d_", SF_TOKEN_LETTERS, dest->head.id->token,
					dest->head.id->run, table->ordinal);
}

char *
resync_sf_swap_name(SfDestination *dest, const ResyncTable *table)
{
	return psprintf("%s" INT64_FORMAT, swap_prefix(dest, table), dest->epoch);
}

List *
resync_sf_find_swaps(SfDestination *dest, const ResyncTable *table)
{
	char *prefix = swap_prefix(dest, table);

	return show_tables(dest, table->dest_schema, psprintf("%s%%", prefix), prefix);
}

SfTable *
resync_sf_find_build(SfDestination *dest, const ResyncTable *table)
{
	SfTable	 *found = resync_sf_find_table(dest, table, true);
	List	 *swaps;
	ListCell *lc;

	if (resync_sf_is_new(dest, found))
		return found;
	/* a swap that did not come to its end */
	swaps = resync_sf_find_swaps(dest, table);
	foreach(lc, swaps)
	{
		if (resync_sf_is_new(dest, lfirst(lc)))
			return lfirst(lc);
	}
	return NULL;
}

char *
resync_sf_where(SfDestination *dest, const ResyncTable *table, bool *live)
{
	SfTable *found = resync_sf_find_table(dest, table, false);
	bool	 is_live = resync_sf_is_new(dest, found);
	SfFence	 fence;

	if (live != NULL)
		*live = is_live;
	if (!is_live)
		found = resync_sf_find_build(dest, table);
	if (found != NULL)
		return resync_sf_name(dest, found->schema, found->name);
	/* another run has replaced it?  That is no fault of the table's */
	resync_sf_fence(dest, &fence);
	resync_destination_raise_not_made(resync_sf_table(dest, table, false));
}

/* Has it a name that is made for a token?  Then *run is its run. */
static bool
is_own(const char *name, const char *begin, const char *token, int64 *run)
{
	char *prefix = psprintf("%s%.*s_", begin, SF_TOKEN_LETTERS, token);

	if (strncmp(name, prefix, strlen(prefix)) != 0)
		return false;
	*run = strtoll(name + strlen(prefix), NULL, 10);
	return true;
}

List *
resync_sf_marked_tables(SfDestination *dest, const char *token)
{
	List	 *tables = NIL;
	SfResult *res = NULL;

	do
	{
		char *after = "";

		if (res != NULL)
			after = psprintf(" AND (TABLE_SCHEMA > %s OR TABLE_SCHEMA = %s AND TABLE_NAME > %s)",
							 resync_sf_literal(resync_sf_need(res, res->nrows - 1, 0)),
							 resync_sf_literal(resync_sf_need(res, res->nrows - 1, 0)),
							 resync_sf_literal(resync_sf_need(res, res->nrows - 1, 1)));
		res = resync_sf_query(
			dest,
			psprintf("SELECT TABLE_SCHEMA, TABLE_NAME, COMMENT FROM %s.INFORMATION_SCHEMA.TABLES"
					 " WHERE TABLE_TYPE = 'BASE TABLE' AND (COMMENT LIKE %s OR TABLE_NAME LIKE"
					 " %s OR TABLE_NAME LIKE %s)%s ORDER BY TABLE_SCHEMA, TABLE_NAME LIMIT %d",
					 resync_sf_ident(dest->database),
					 resync_sf_literal(psprintf("%%\"token\":\"%s\"%%", token)),
					 resync_sf_literal(psprintf(NEW_PREFIX "%.*s_%%", SF_TOKEN_LETTERS, token)),
					 resync_sf_literal(psprintf(SWAP_PREFIX "%.*s_%%", SF_TOKEN_LETTERS, token)),
					 after, LIST_STEP));
		for (int i = 0; i < res->nrows; i++)
		{
			SfTable *table = palloc0(sizeof(SfTable));
			char	*comment;

			table->schema = resync_sf_need(res, i, 0);
			table->name = resync_sf_need(res, i, 1);
			comment = res->ncols > 2 ? sf_value(res, i, 2) : NULL;
			read_mark(table, comment != NULL ? comment : pstrdup(""));
			/* whatever their comments say */
			if (is_own(table->name, NEW_PREFIX, token, &table->run) ||
				is_own(table->name, SWAP_PREFIX, token, &table->run))
			{
				table->token = pstrdup(token);
				table->role = SF_ROLE_NEW;
				table->at_live = false;
			}
			if (table->token != NULL && strcmp(table->token, token) == 0)
				tables = lappend(tables, table);
		}
	} while (res->nrows == LIST_STEP);
	return tables;
}

/* ---------------------------------------------------------------------
 * Drop
 * ------------------------------------------------------------------ */

/* By name, without a look at what it is. */
void
resync_sf_drop(SfDestination *dest, const char *table)
{
	(void) resync_sf_query(dest, psprintf("DROP TABLE IF EXISTS %s", table));
}

void
resync_sf_drop_marked(SfDestination *dest, const char *token, int64 run, bool stages_only,
					  bool live)
{
	List	 *tables = resync_sf_marked_tables(dest, token);
	ListCell *lc;

	foreach(lc, tables)
	{
		SfTable *table = lfirst(lc);
		bool	 is_stage = strcmp(table->role, SF_ROLE_STAGE) == 0;

		if (run != 0 && table->run != run)
			continue;
		/* what is at a live table's name is one, whatever it is marked as */
		if (is_stage || (!stages_only && (live || !table->at_live)))
			resync_sf_drop(dest, resync_sf_name(dest, table->schema, table->name));
	}
}

/* ---------------------------------------------------------------------
 * Create
 * ------------------------------------------------------------------ */

/* The number in parentheses behind a type's name; 0: none. */
static int
first_parameter(const char *type)
{
	const char *paren = strchr(type, '(');

	return paren != NULL ? atoi(paren + 1) : 0;
}

bool
resync_sf_same_type(const char *ours, const char *theirs)
{
	size_t len = strcspn(ours, "(");
	int	   least = 0;

	if (strcspn(theirs, "(") != len || strncmp(ours, theirs, len) != 0)
		return false;
	if (strncmp(ours, "NUMBER", len) == 0)
	{
		const char *our_scale = strchr(ours, ',');
		const char *their_scale = strchr(theirs, ',');

		return our_scale != NULL && their_scale != NULL &&
			   atoi(our_scale + 1) == atoi(their_scale + 1) &&
			   first_parameter(theirs) >= first_parameter(ours);
	}
	if (strncmp(ours, "VARCHAR", len) == 0)
		least = MIN_VARCHAR;
	else if (strncmp(ours, "BINARY", len) == 0)
		least = MIN_BINARY;
	else if (strncmp(ours, "TIME", 4) == 0)
		least = MIN_FRACTION;
	return strchr(theirs, '(') == NULL || first_parameter(theirs) >= least;
}

/* The type that a column of this name gets, or NULL: there will be none. */
static const char *
wanted_type(SfDestination *dest, const ResyncTable *table, const char *name)
{
	char *deleted = resync_sf_deleted(dest);
	char *synced_at = resync_sf_synced_at(dest);

	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(table->cols[i].dest_name, name) == 0)
			return table->cols[i].dest_type;
	}
	if (deleted != NULL && strcmp(deleted, name) == 0)
		return "BOOLEAN";
	if (synced_at != NULL && strcmp(synced_at, name) == 0)
		return "TIMESTAMP_NTZ";
	return NULL;
}

static bool
fits(SfDestination *dest, const ResyncTable *table, const SfColumn *column)
{
	const char *wanted = wanted_type(dest, table, column->name);

	return wanted != NULL && resync_sf_same_type(wanted, column->type);
}

static void
alter(SfDestination *dest, const char *name, const char *what)
{
	(void) resync_sf_query(dest, psprintf("ALTER TABLE %s %s", name, what));
}

static void
add_missing(SfDestination *dest, const char *name, List *columns, const char *column,
			const char *type)
{
	if (column != NULL && resync_sf_find_column(columns, column) == NULL)
		alter(dest, name, psprintf("ADD COLUMN %s %s", resync_sf_ident(column), type));
}

/* Is NULL possible there now and then? */
static bool
may_be_null(const ResyncTable *table, const char *name)
{
	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(table->cols[i].dest_name, name) == 0)
			return table->cols[i].keypos == 0;
	}
	return true;
}

/*
 * A table made like the live one gets the columns of the plan.  What stays keeps
 * its comment, tags and policies.
 */
static void
adapt_columns(SfDestination *dest, const ResyncTable *table, const char *name, List *columns,
			  const SfTable *live)
{
	bool	  has_cluster = live->cluster_by != NULL && live->cluster_by[0] != '\0';
	char	 *cluster = resync_sf_cluster_by(table);
	bool	  has_primary = false;
	List	 *kept = NIL;
	ListCell *lc;

	foreach(lc, columns)
	{
		SfColumn *column = lfirst(lc);

		if (fits(dest, table, column))
		{
			kept = lappend(kept, column);
			continue;
		}
		has_primary = has_primary || column->primary;
		if (has_cluster && strstr(live->cluster_by, column->name) != NULL)
		{
			alter(dest, name, "DROP CLUSTERING KEY");
			has_cluster = false;
		}
	}
	if (has_primary)
		alter(dest, name, "DROP PRIMARY KEY");
	foreach(lc, columns)
	{
		SfColumn *column = lfirst(lc);
		char	 *ident = resync_sf_ident(column->name);

		if (!list_member_ptr(kept, column))
			alter(dest, name, psprintf("DROP COLUMN %s", ident));
		else if (column->notnull && may_be_null(table, column->name))
			alter(dest, name, psprintf("ALTER COLUMN %s DROP NOT NULL", ident));
	}
	for (int i = 0; i < table->ncols; i++)
		add_missing(dest, name, kept, table->cols[i].dest_name, table->cols[i].dest_type);
	add_missing(dest, name, kept, resync_sf_deleted(dest), "BOOLEAN");
	add_missing(dest, name, kept, resync_sf_synced_at(dest), "TIMESTAMP_NTZ");
	if (cluster != NULL)
		alter(dest, name, psprintf("CLUSTER BY (%s)", cluster));
}

/* What LIKE does not copy, and may matter to who uses the table. */
static void
adapt_settings(SfDestination *dest, const SfTable *live, const SfTable *made, const char *name)
{
	if (live->retention != NULL && made->retention != NULL &&
		strcmp(live->retention, made->retention) != 0)
		alter(dest, name, psprintf("SET DATA_RETENTION_TIME_IN_DAYS = %d", atoi(live->retention)));
	if (live->change_tracking && !made->change_tracking)
		alter(dest, name, "SET CHANGE_TRACKING = TRUE");
}

static bool
some_column_fits(SfDestination *dest, const ResyncTable *table, List *columns)
{
	ListCell *lc;

	foreach(lc, columns)
	{
		if (fits(dest, table, lfirst(lc)))
			return true;
	}
	return false;
}

/* As the live table (like, found there), or by the plan alone. */
static void
make_new(SfDestination *dest, const ResyncTable *table, const char *new_name, const SfTable *live)
{
	char *name = resync_sf_name(dest, table->dest_schema, new_name);
	char *cluster = resync_sf_cluster_by(table);
	char *like = resync_sf_table(dest, table, false);
	List *columns = live != NULL ? resync_sf_columns(dest, like) : NIL;
	bool  transient = live != NULL && live->kind != NULL && strcmp(live->kind, "TRANSIENT") == 0;

	if (live == NULL || !some_column_fits(dest, table, columns))
	{
		(void) resync_sf_query(
			dest,
			psprintf("CREATE %sTABLE %s (%s)%s%s%s", transient ? "TRANSIENT " : "", name,
					 resync_sf_definitions(dest, table), cluster != NULL ? " CLUSTER BY (" : "",
					 cluster != NULL ? cluster : "", cluster != NULL ? ")" : ""));
	}
	else
	{
		(void) resync_sf_query(dest, psprintf("CREATE %sTABLE %s LIKE %s COPY GRANTS",
											  transient ? "TRANSIENT " : "", name, like));
		adapt_columns(dest, table, name, columns, live);
	}
	if (live != NULL)
	{
		SfTable *made = resync_sf_find(dest, table->dest_schema, new_name);

		if (made == NULL)
			resync_sf_raise_changed(dest);
		adapt_settings(dest, live, made, name);
	}
}

/* The live table, unless new ones cannot be like it. */
static SfTable *
find_model(SfDestination *dest, const ResyncTable *table)
{
	SfTable *live = resync_sf_find_table(dest, table, false);

	return live != NULL && !live->special ? live : NULL;
}

static char *
next_new_name(SfDestination *dest)
{
	return psprintf(NEW_PREFIX "%.*s_" INT64_FORMAT "_%08X_" UINT64_FORMAT, SF_TOKEN_LETTERS,
					dest->head.id->token, dest->head.id->run, dest->nonce, ++dest->names);
}

/* After an error, which matters more than what comes of this. */
static void
drop_quietly(SfDestination *dest, const char *table)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		resync_sf_drop(dest, table);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
}

void
resync_sf_try_table(SfDestination *dest, const ResyncTable *table)
{
	char *new_name = next_new_name(dest);

	PG_TRY();
	{
		make_new(dest, table, new_name, find_model(dest, table));
	}
	PG_CATCH();
	{
		MemoryContext context = MemoryContextSwitchTo(dest->call);
		ErrorData	 *edata = CopyErrorData();

		FlushErrorState();
		drop_quietly(dest, resync_sf_name(dest, table->dest_schema, new_name));
		MemoryContextSwitchTo(context);
		ReThrowError(edata);
	}
	PG_END_TRY();
	resync_sf_drop(dest, resync_sf_name(dest, table->dest_schema, new_name));
}

/*
 * The table under construction; what the live table has of grants, tags,
 * clustering and so on comes along.  It is made under a name of its own, marked,
 * and then renamed: whatever is found under its name is complete and ours.
 */
static void
make_table(SfDestination *dest, const ResyncTable *table)
{
	SfTable *live = find_model(dest, table);
	char	*new_name = next_new_name(dest);
	char	*made = resync_sf_name(dest, table->dest_schema, new_name);

	make_new(dest, table, new_name, live);
	RESYNC_DEBUG_POINT("sf_table_made");
	resync_sf_set_comment(
		dest, made,
		resync_sf_comment(dest, live != NULL ? live->comment : NULL, table, SF_ROLE_BUILD));
	resync_sf_fenced_ddl(
		dest, psprintf("ALTER TABLE %s RENAME TO %s", made, resync_sf_table(dest, table, true)));
}

/* Whatever of ours is under construction goes; anything else is in the way. */
static void
make_room(SfDestination *dest, const ResyncTable *table)
{
	SfTable *found = resync_sf_find_table(dest, table, true);

	if (found == NULL)
		return;
	if (!resync_sf_is_ours(dest, found) || found->at_live)
		resync_destination_raise_in_way(resync_sf_table(dest, table, true));
	resync_sf_fenced_ddl(dest,
						 psprintf("DROP TABLE IF EXISTS %s", resync_sf_table(dest, table, true)));
}

void
resync_sf_create_table(Destination *head, const ResyncTable *table)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	SfFence		   fence;

	resync_sf_fence(dest, &fence);
	resync_sf_new_epoch(dest, InvalidXLogRecPtr, "");
	make_room(dest, table);
	make_table(dest, table);
	MemoryContextSwitchTo(old);
}

/*
 * Made anew, not truncated: an epoch begins, so that what a copier is about to
 * load from another snapshot comes to nothing.
 */
void
resync_sf_reset_table(Destination *head, const ResyncTable *table, int64 first_partition,
					  int64 last_partition)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	SfFence		   fence;

	resync_sf_fence(dest, &fence);
	resync_sf_new_epoch(
		dest, InvalidXLogRecPtr,
		psprintf("  DELETE FROM %s WHERE %s AND life = %s AND part BETWEEN " INT64_FORMAT
				 " AND " INT64_FORMAT ";\n",
				 resync_sf_own(dest, SF_PARTITIONS_TABLE),
				 resync_sf_run_condition(dest, head->id->run), resync_sf_literal(dest->life),
				 first_partition, last_partition));
	make_room(dest, table);
	make_table(dest, table);
	MemoryContextSwitchTo(old);
}

/*
 * There is no key to be made; but a table that was loaded under several
 * snapshots may have a row in two partitions, of which one is kept.  Which one
 * does not matter: the changes that are replayed bring it up to date.
 */
void
resync_sf_build_key(Destination *head, const ResyncTable *table)
{
	SfDestination		*dest = (SfDestination *) head;
	MemoryContext		 old = resync_sf_enter(dest);
	const ResyncColumn **key = resync_destination_key(table);
	SfFence				 fence;

	resync_sf_fence(dest, &fence);
	(void) resync_sf_where(dest, table, NULL);
	if (table->multi_snapshot && table->nkeys > 0)
	{
		char		  *name = resync_sf_table(dest, table, true);
		char		  *columns = resync_sf_all_columns(dest, table);
		char		  *twice = resync_sf_make_stage(dest, 0, resync_sf_definitions(dest, table));
		StringInfoData keys;

		/* an earlier try, which may still be under way, comes to nothing */
		resync_sf_new_epoch(dest, InvalidXLogRecPtr, "");
		initStringInfo(&keys);
		for (int i = 0; i < table->nkeys; i++)
			appendStringInfo(&keys, "%s%s", i > 0 ? ", " : "", resync_sf_ident(key[i]->dest_name));
		(void) resync_sf_query(
			dest, psprintf("INSERT INTO %s (%s) SELECT %s FROM %s QUALIFY COUNT(*) OVER (PARTITION"
						   " BY %s) > 1 AND ROW_NUMBER() OVER (PARTITION BY %s ORDER BY %s) = 1",
						   twice, columns, columns, name, keys.data, keys.data, keys.data));
		(void) resync_sf_transaction(
			dest,
			psprintf("  DELETE FROM %s WHERE (%s) IN (SELECT %s FROM %s);\n"
					 "  INSERT INTO %s (%s) SELECT %s FROM %s;\n",
					 name, keys.data, keys.data, twice, name, columns, columns, twice),
			psprintf("UPDATE %s SET changed_at = SYSDATE() WHERE %s",
					 resync_sf_own(dest, SF_RUNS_TABLE), resync_sf_fence_condition(dest)),
			NULL, NULL);
		resync_sf_drop(dest, twice);
	}
	MemoryContextSwitchTo(old);
}

/* ---------------------------------------------------------------------
 * Added columns, staging tables
 * ------------------------------------------------------------------ */

/* The table's last column, at the end of the table called name.  Repeatable. */
void
resync_sf_add_column(SfDestination *dest, const ResyncTable *table, const char *name)
{
	const ResyncColumn *col = &table->cols[table->ncols - 1];

	alter(dest, name,
		  psprintf("ADD COLUMN IF NOT EXISTS %s %s", resync_sf_ident(col->dest_name),
				   col->dest_type));
}

/* No other process ever writes to it. */
char *
resync_sf_make_stage(SfDestination *dest, int n, const char *definitions)
{
	char *name = psprintf(SF_OWN_PREFIX "STAGE_%.*s_" INT64_FORMAT "_%08X_%d", SF_TOKEN_LETTERS,
						  dest->head.id->token, dest->head.id->run, dest->nonce, n);
	char *hash = name_hash(dest->schema, name);

	(void) resync_sf_query(
		dest,
		psprintf("CREATE OR REPLACE TRANSIENT TABLE %s (%s) DATA_RETENTION_TIME_IN_DAYS = 0"
				 " COMMENT = %s",
				 resync_sf_own(dest, name), definitions,
				 resync_sf_literal(mark_text(dest, dest->head.id->run, SF_ROLE_STAGE, "-", hash))));
	return resync_sf_own(dest, name);
}
