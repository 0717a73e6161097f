/*
 * snowflake_swap.c
 *		The end of a run's build at a Snowflake destination: deleted rows are
 *		carried over, then the new tables take the old ones' place.
 *
 * Called by the coordinator; swap while the streamer is held at a commit.  Tables
 * are swapped one after the other, each in one step (ALTER TABLE ... SWAP WITH):
 * readers find the old or the new table, never none.  Marks tell how far it came:
 * a table under construction that is found under a live name has been swapped.
 * When all have been, the run's row says "swapped", which is the journal.
 *
 * A SWAP that nobody waits for any more must not come late and swap back.  So each
 * try, which is an epoch of the run, gives the new table a name of its own before it
 * looks: a late one of an earlier try has nothing to swap with.
 *
 * Grants go with a table, so those of the live one are given to the new one
 * before; its comment, too.  What else somebody has given the live table (tags,
 * policies, clustering, retention) the new one got when it was made like it.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "utils/memutils.h"

/* ---------------------------------------------------------------------
 * Deleted rows
 * ------------------------------------------------------------------ */

/* The column of the old table that stands for one of the mirror's own, or NULL. */
static SfColumn *
find_own(const ResyncTable *table, List *columns, const char *ours, const char *peerdb)
{
	SfColumn *found = NULL;
	int		  best = 0;
	ListCell *lc;

	foreach(lc, columns)
	{
		SfColumn *column = lfirst(lc);
		int		  match = resync_destination_match_column(column->name, ours, peerdb);

		for (int i = 0; i < table->ncols; i++)
		{
			if (strcmp(table->cols[i].dest_name, column->name) == 0)
				match = 0;
		}
		if (match > best)
		{
			best = match;
			found = column;
		}
	}
	return found;
}

/* A column of the old table, whose values are simple ones, as a type. */
static char *
cast_column(const SfColumn *old, const char *type)
{
	char *name = psprintf("_resync_o.%s", resync_sf_ident(old->name));

	if (resync_sf_same_type(type, old->type))
		return name;
	return psprintf("TRY_CAST(TO_VARCHAR(%s) AS %s)", name, type);
}

/* Same, as the new one's type, as far as that is possible. */
static char *
column_expression(const ResyncColumn *col, const SfColumn *old)
{
	SfType type = resync_sf_type(col);
	char  *name = psprintf("_resync_o.%s", resync_sf_ident(old->name));

	if (resync_sf_same_type(col->dest_type, old->type))
		return name;
	switch (type.kind)
	{
		case SF_VARIANT:
			return psprintf("TO_VARIANT(%s)", name);
		case SF_GEOGRAPHY:
		case SF_GEOMETRY:
			return psprintf("TRY_TO_%s(TO_VARCHAR(%s))", resync_sf_kind_name(type.kind), name);
		case SF_VARCHAR:
			return psprintf("TO_VARCHAR(%s)", name);
		case SF_BINARY:
			return psprintf("TRY_TO_BINARY(TO_VARCHAR(%s), 'HEX')", name);
		default:
			return cast_column(old, col->dest_type);
	}
}

/* The rows have the same key; a key may have NULLs that PeerDB has put there. */
static char *
same_key(const ResyncTable *table)
{
	const ResyncColumn **key = resync_destination_key(table);
	StringInfoData		 buf;

	initStringInfo(&buf);
	for (int i = 0; i < table->nkeys; i++)
	{
		char *name = resync_sf_ident(key[i]->dest_name);

		appendStringInfo(&buf, "%s_resync_t.%s IS NOT DISTINCT FROM _resync_s.%s",
						 i > 0 ? " AND " : "", name, name);
	}
	return buf.data;
}

/* MERGE: what the new table has by key already, an earlier try has brought. */
static char *
transfer_query(SfDestination *dest, const ResyncTable *table, const char *target, List *columns)
{
	char		  *own_deleted = resync_sf_deleted(dest);
	char		  *own_synced = resync_sf_synced_at(dest);
	SfColumn	  *deleted = find_own(table, columns, own_deleted, PEERDB_SOFT_DELETE);
	SfColumn	  *synced = find_own(table, columns, own_synced, PEERDB_SYNCED_AT);
	StringInfoData names, values, source, sql;

	initStringInfo(&names);
	initStringInfo(&values);
	initStringInfo(&source);
	for (int i = 0; i < table->ncols; i++)
	{
		const ResyncColumn *col = &table->cols[i];
		SfColumn		   *old = resync_sf_find_column(columns, col->dest_name);
		char			   *name = resync_sf_ident(col->dest_name);

		if (old == NULL)
			continue;
		appendStringInfo(&names, "%s, ", name);
		appendStringInfo(&values, "_resync_s.%s, ", name);
		appendStringInfo(&source, "%s AS %s, ", column_expression(col, old), name);
	}
	appendStringInfo(&names, "%s", resync_sf_ident(own_deleted));
	appendStringInfoString(&values, "TRUE");
	if (own_synced != NULL)
	{
		appendStringInfo(&names, ", %s", resync_sf_ident(own_synced));
		appendStringInfoString(&values, ", _resync_s._resync_synced");
	}
	/* what was deleted before keeps its time */
	if (deleted != NULL && synced != NULL)
		appendStringInfo(
			&source,
			"CASE WHEN IFNULL(_resync_o.%s, FALSE) THEN %s ELSE SYSDATE() END AS _resync_synced",
			resync_sf_ident(deleted->name), cast_column(synced, "TIMESTAMP_NTZ"));
	else
		appendStringInfoString(&source, "SYSDATE() AS _resync_synced");
	initStringInfo(&sql);
	appendStringInfo(
		&sql,
		"MERGE INTO %s AS _resync_t USING (SELECT %s FROM %s AS _resync_o) AS _resync_s"
		" ON %s\nWHEN NOT MATCHED THEN INSERT (%s) VALUES (%s)",
		target, source.data, resync_sf_table(dest, table, false), same_key(table), names.data,
		values.data);
	return sql.data;
}

int64
resync_sf_transfer(Destination *head, const ResyncTable *table, List **warnings)
{
	SfDestination		*dest = (SfDestination *) head;
	MemoryContext		 old = resync_sf_enter(dest);
	const ResyncColumn **key = resync_destination_key(table);
	List				*columns = NIL;
	int64				 rows = 0;
	bool				 possible;
	bool				 swapped;
	char				*target;
	SfTable				*live;
	SfFence				 fence;

	resync_sf_fence(dest, &fence);
	target = resync_sf_where(dest, table, &swapped);
	live = resync_sf_find_table(dest, table, false);
	/* swapped already, by a try before this one */
	possible = live != NULL && head->id->options->soft_delete && table->nkeys > 0 && !swapped;
	if (possible)
		columns = resync_sf_columns(dest, resync_sf_table(dest, table, false));
	for (int i = 0; possible && i < table->nkeys; i++)
		possible = resync_sf_find_column(columns, key[i]->dest_name) != NULL; /* validate has
																			   * warned */
	if (possible)
		(void) resync_sf_transaction(dest,
									 psprintf("%s;\n  total := SQLROWCOUNT;\n",
											  transfer_query(dest, table, target, columns)),
									 psprintf("UPDATE %s SET changed_at = SYSDATE() WHERE %s",
											  resync_sf_own(dest, SF_RUNS_TABLE),
											  resync_sf_fence_condition(dest)),
									 NULL, &rows);
	MemoryContextSwitchTo(old);
	return rows;
}

/* ---------------------------------------------------------------------
 * Grants
 * ------------------------------------------------------------------ */

static SfResult *
show_grants(SfDestination *dest, const char *table)
{
	return resync_sf_query(dest, psprintf("SHOW GRANTS ON TABLE %s", table));
}

static bool
same_grant(const SfResult *a, int i, const SfResult *b, int k)
{
	static const char *const parts[] = {"privilege", "granted_to", "grantee_name", "grant_option"};

	for (int part = 0; part < lengthof(parts); part++)
	{
		char *left = resync_sf_column(a, i, parts[part]);
		char *right = resync_sf_column(b, k, parts[part]);

		if (left == NULL || right == NULL || strcmp(left, right) != 0)
			return false;
	}
	return true;
}

/* "ROLE \"R\"": to whom a privilege was granted; NULL: to somebody of another kind. */
static char *
grantee(SfDestination *dest, const SfResult *grants, int i)
{
	char *kind = resync_sf_column(grants, i, "granted_to");
	char *name = resync_sf_column(grants, i, "grantee_name");

	if (name == NULL)
		return NULL;
	name = resync_sf_ident(name);
	if (kind != NULL && strcmp(kind, "DATABASE_ROLE") == 0)
		return psprintf("DATABASE ROLE %s.%s", resync_sf_ident(dest->database), name);
	if (kind != NULL && (strcmp(kind, "ROLE") == 0 || strcmp(kind, "SHARE") == 0))
		return psprintf("%s %s", kind, name);
	return NULL;
}

/* Whoever may do something with the live table may do it with the new one. */
static void
copy_grants(SfDestination *dest, const char *live, const char *build)
{
	SfResult *has = show_grants(dest, build);
	SfResult *wanted = show_grants(dest, live);

	for (int i = 0; i < wanted->nrows; i++)
	{
		char *privilege = resync_sf_column(wanted, i, "privilege");
		char *option = resync_sf_column(wanted, i, "grant_option");
		char *to = grantee(dest, wanted, i);
		bool  known = privilege == NULL || to == NULL || strcmp(privilege, "OWNERSHIP") == 0;

		for (int k = 0; !known && k < has->nrows; k++)
			known = same_grant(wanted, i, has, k);
		if (!known)
			(void) resync_sf_query(
				dest, psprintf("GRANT %s ON TABLE %s TO %s%s", privilege, build, to,
							   option != NULL && strcmp(option, "true") == 0 ? " WITH GRANT OPTION"
																			 : ""));
	}
}

/* ---------------------------------------------------------------------
 * Swap
 * ------------------------------------------------------------------ */

/* Raises unless what is at a live name may be replaced. */
static void
require_replaceable(SfDestination *dest, const SfTable *live, const char *name)
{
	if (!resync_sf_is_ours(dest, live) && !dest->head.id->options->replace_existing)
		resync_destination_raise_exists(name, true);
}

static void
set_comment(SfDestination *dest, const char *name, const char *comment)
{
	resync_sf_fenced_ddl(dest,
						 psprintf("COMMENT ON TABLE %s IS %s", name, resync_sf_literal(comment)));
}

/* The table that is called ours takes the live one's place. */
static void
exchange(SfDestination *dest, const ResyncTable *table, const char *ours, const SfTable *live)
{
	char *live_name = resync_sf_table(dest, table, false);

	if (live != NULL)
	{
		require_replaceable(dest, live, live_name);
		copy_grants(dest, live_name, ours);
		set_comment(dest, ours, resync_sf_comment(dest, live->comment, table, SF_ROLE_BUILD));
	}
	RESYNC_DEBUG_POINT("sf_before_swap_table");
	resync_sf_fenced_ddl(dest, live != NULL
								   ? psprintf("ALTER TABLE %s SWAP WITH %s", live_name, ours)
								   : psprintf("ALTER TABLE %s RENAME TO %s", ours, live_name));
	RESYNC_DEBUG_POINT("sf_after_swap_table");
}

/* One table; what a try before this one has done is not done again. */
static void
swap_one(SfDestination *dest, const ResyncTable *table)
{
	char	*name = resync_sf_swap_name(dest, table);
	SfTable *live = resync_sf_find_table(dest, table, false);
	SfTable *build;

	if (!resync_sf_is_new(dest, live))
	{
		build = resync_sf_find_build(dest, table);
		if (build == NULL)
			resync_destination_raise_not_made(resync_sf_table(dest, table, true));
		resync_sf_fenced_ddl(dest, psprintf("ALTER TABLE %s RENAME TO %s",
											resync_sf_name(dest, build->schema, build->name),
											resync_sf_name(dest, table->dest_schema, name)));
		/* only from here on nobody else swaps it: was it done meanwhile? */
		live = resync_sf_find_table(dest, table, false);
		build = resync_sf_find(dest, table->dest_schema, name);
		if (resync_sf_is_new(dest, build))
			exchange(dest, table, resync_sf_name(dest, table->dest_schema, name), live);
		live = resync_sf_find_table(dest, table, false);
		if (!resync_sf_is_new(dest, live))
			resync_sf_raise_changed(dest);
	}
	if (!resync_sf_is_role(dest, live, SF_ROLE_LIVE))
		set_comment(dest, resync_sf_table(dest, table, false),
					resync_sf_comment(dest, live->comment, table, SF_ROLE_LIVE));
}

/* The journal: all tables are live. */
static void
note_swapped(SfDestination *dest)
{
	RESYNC_DEBUG_POINT("sf_before_swapped");
	(void) resync_sf_transaction(
		dest, "",
		psprintf("UPDATE %s SET swapped = TRUE, changed_at = SYSDATE() WHERE %s",
				 resync_sf_own(dest, SF_RUNS_TABLE), resync_sf_fence_condition(dest)),
		NULL, NULL);
	RESYNC_DEBUG_POINT("sf_after_swapped");
}

bool
resync_sf_swap(Destination *head, ResyncTable **tables, int ntables, XLogRecPtr lsn,
			   int64 retire_run)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	SfFence		   fence;

	resync_sf_fence(dest, &fence);
	if (fence.applied != lsn)
		resync_destination_raise_applied(head->id, RESYNC_ERRCODE_FENCED, fence.applied, lsn);
	if (!fence.swapped)
	{
		resync_sf_new_epoch(dest, lsn, "");
		if (retire_run != 0 && retire_run != head->id->run)
			resync_sf_retire(dest, retire_run);
		for (int i = 0; i < ntables; i++)
			swap_one(dest, tables[i]);
		note_swapped(dest);
	}
	MemoryContextSwitchTo(old);
	return true;
}

/* By table: one that has been cannot be taken back. */
bool
resync_sf_is_swapped(Destination *head, const ResyncTable *table)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	bool		   result = resync_sf_is_new(dest, resync_sf_find_table(dest, table, false));

	MemoryContextSwitchTo(old);
	return result;
}

/* All tables are live: the old ones, which have the names of swaps now, go. */
void
resync_sf_after_swap(Destination *head, ResyncTable **tables, int ntables)
{
	SfDestination *dest = (SfDestination *) head;
	MemoryContext  old = resync_sf_enter(dest);
	SfFence		   fence;

	resync_sf_fence(dest, &fence);
	if (!fence.swapped)
		note_swapped(dest);
	for (int i = 0; i < ntables; i++)
	{
		List	 *swaps;
		ListCell *lc;

		if (!resync_sf_is_new(dest, resync_sf_find_table(dest, tables[i], false)))
			continue;
		swaps = resync_sf_find_swaps(dest, tables[i]);
		foreach(lc, swaps)
		{
			SfTable *found = lfirst(lc);

			if (!resync_sf_is_new(dest, found))
				resync_sf_drop(dest, resync_sf_name(dest, found->schema, found->name));
		}
	}
	MemoryContextSwitchTo(old);
}
