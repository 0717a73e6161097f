/*
 * run_table.c
 *		peerdb._run_table: the tables of a run, as ResyncTable structs.
 *
 * Written by the coordinator when the run begins (and when a column is added);
 * read by every process of the run, so that all encode alike.  The plan column
 * holds all that a ResyncTable has and no other column has; what is read is
 * exactly what was put.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"

#include "catalog/catalog.h"
#include "catalog/result.h"

/* ----------------------------------------------------------------
 *		ResyncTable to plan
 * ----------------------------------------------------------------
 */

static void
json_text(StringInfo buf, const char *key, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfo(buf, ", \"%s\": ", key);
	escape_json(buf, value);
}

/* The plan as jsonb. */
static Datum
plan_of_table(const ResyncTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "{\"identity\": \"%c\", \"identity_full\": %s, \"source_keys\": %d",
					 table->identity, table->identity_full ? "true" : "false", table->nsourcekeys);
	json_text(&buf, "mapping", table->mapping);
	appendStringInfoString(&buf, ", \"columns\": [");
	for (int i = 0; i < table->ncols; i++)
	{
		const ResyncColumn *col = &table->cols[i];

		appendStringInfo(&buf,
						 "%s{\"attnum\": %d, \"typid\": %u, \"typmod\": %d, "
						 "\"notnull\": %s, \"generated\": %s, \"keypos\": %d",
						 i > 0 ? ", " : "", col->attnum, col->typid, col->typmod,
						 col->notnull ? "true" : "false", col->generated ? "true" : "false",
						 col->keypos);
		json_text(&buf, "name", col->name);
		json_text(&buf, "dest_name", col->dest_name);
		json_text(&buf, "dest_type", col->dest_type);
		json_text(&buf, "wire", col->wire);
		json_text(&buf, "wire_info", col->wire_info);
		appendStringInfoChar(&buf, '}');
	}
	appendStringInfoString(&buf, "]}");
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(buf.data));
}

void
resync_catalog_put_run_tables(int64 run, ResyncTable **tables, int ntables)
{
	for (int i = 0; i < ntables; i++)
	{
		const ResyncTable *t = tables[i];

		(void) resync_catalog_exec(
			"INSERT INTO peerdb._run_table (run, ordinal, relid, schema_name, "
			"table_name, dest_schema, dest_name, build_name, plan, state, "
			"multi_snapshot) "
			"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) "
			"ON CONFLICT (run, ordinal) DO UPDATE SET relid = excluded.relid, "
			"schema_name = excluded.schema_name, "
			"table_name = excluded.table_name, "
			"dest_schema = excluded.dest_schema, "
			"dest_name = excluded.dest_name, "
			"build_name = excluded.build_name, plan = excluded.plan, "
			"state = excluded.state, "
			"multi_snapshot = excluded.multi_snapshot, loaded_snapshot = NULL",
			SPI_OK_INSERT, 11, ARG_INT8(run), ARG_INT4(t->ordinal), ARG_OID(t->relid),
			ARG_TEXT(t->schema), ARG_TEXT(t->name), ARG_TEXT(t->dest_schema),
			ARG_TEXT(t->dest_name), ARG_TEXT(t->build_name), JSONBOID, plan_of_table(t), false,
			ARG_CHAR(t->state), ARG_BOOL(t->multi_snapshot));
		resync_catalog_finish();
	}
}

void
resync_catalog_put_plan(int64 run, const ResyncTable *table)
{
	uint64 n;

	n = resync_catalog_exec(
		"UPDATE peerdb._run_table SET plan = $3 WHERE run = $1 AND ordinal = $2", SPI_OK_UPDATE, 3,
		ARG_INT8(run), ARG_INT4(table->ordinal), JSONBOID, plan_of_table(table), false);
	resync_catalog_finish();
	if (n == 0)
		elog(ERROR, "run " INT64_FORMAT " has no table %d", run, table->ordinal);
}

/* ----------------------------------------------------------------
 *		plan to ResyncTable
 * ----------------------------------------------------------------
 */

static ResyncTable **
read_tables(int64 run, int *ntables, MemoryContext context)
{
	ResyncTable **tables;
	uint64		  n;

	n = resync_catalog_exec(
		"SELECT ordinal, relid, schema_name, table_name, dest_schema, dest_name, "
		"build_name, state, multi_snapshot, plan->>'identity', "
		"(plan->>'identity_full')::boolean, plan->>'mapping', "
		"pg_catalog.jsonb_array_length(plan->'columns'), loaded_snapshot, "
		"COALESCE((plan->>'source_keys')::int, 0) "
		"FROM peerdb._run_table WHERE run = $1 ORDER BY ordinal",
		SPI_OK_SELECT, 1, ARG_INT8(run));
	tables = MemoryContextAlloc(context, Max(n, 1) * sizeof(ResyncTable *));
	for (uint64 i = 0; i < n; i++)
	{
		ResyncTable *t = MemoryContextAllocZero(context, sizeof(ResyncTable));

		t->ordinal = result_int4(i, 1);
		t->relid = result_oid(i, 2);
		t->schema = result_text(i, 3, context);
		t->name = result_text(i, 4, context);
		t->dest_schema = result_text(i, 5, context);
		t->dest_name = result_text(i, 6, context);
		t->build_name = result_text(i, 7, context);
		t->state = result_char(i, 8);
		t->multi_snapshot = result_bool(i, 9);
		t->identity = result_text(i, 10, CurrentMemoryContext)[0];
		t->identity_full = result_bool(i, 11);
		t->mapping = result_text(i, 12, context);
		t->ncols = result_int4(i, 13);
		t->loaded_snapshot = result_text(i, 14, context);
		t->nsourcekeys = result_int4(i, 15);
		t->cols = MemoryContextAllocZero(context, Max(t->ncols, 1) * sizeof(ResyncColumn));
		tables[i] = t;
	}
	resync_catalog_finish();
	*ntables = (int) n;
	return tables;
}

ResyncTable **
resync_catalog_run_tables(int64 run, int *ntables)
{
	MemoryContext context = CurrentMemoryContext;
	ResyncTable **tables = read_tables(run, ntables, context);
	uint64		  n;
	int			  table = 0;
	int			  col = 0;

	n = resync_catalog_exec("SELECT t.ordinal, c.attnum, c.typid, c.typmod, c.\"notnull\", "
							"c.generated, c.keypos, c.name, c.dest_name, c.dest_type, c.wire, "
							"c.wire_info "
							"FROM peerdb._run_table t, "
							"LATERAL ROWS FROM (pg_catalog.jsonb_to_recordset(t.plan->'columns') "
							"AS (attnum int, typid oid, typmod int, \"notnull\" boolean, "
							"generated boolean, keypos int, name text, dest_name text, "
							"dest_type text, wire text, wire_info text)) WITH ORDINALITY "
							"AS c (attnum, typid, typmod, \"notnull\", generated, keypos, name, "
							"dest_name, dest_type, wire, wire_info, position) "
							"WHERE t.run = $1 ORDER BY t.ordinal, c.position",
							SPI_OK_SELECT, 1, ARG_INT8(run));
	for (uint64 i = 0; i < n; i++)
	{
		ResyncColumn *c;

		while (table < *ntables && tables[table]->ordinal != result_int4(i, 1))
		{
			table++;
			col = 0;
		}
		if (table >= *ntables || col >= tables[table]->ncols)
			elog(ERROR, "plan of run " INT64_FORMAT " is inconsistent", run);
		c = &tables[table]->cols[col++];
		c->attnum = (AttrNumber) result_int4(i, 2);
		c->typid = result_oid(i, 3);
		c->typmod = result_int4(i, 4);
		c->notnull = result_bool(i, 5);
		c->generated = result_bool(i, 6);
		c->keypos = result_int4(i, 7);
		c->name = result_text(i, 8, context);
		c->dest_name = result_text(i, 9, context);
		c->dest_type = result_text(i, 10, context);
		c->wire = result_text(i, 11, context);
		c->wire_info = result_text(i, 12, context);
		if (c->keypos > 0)
			tables[table]->nkeys++;
	}
	resync_catalog_finish();
	return tables;
}

/* ----------------------------------------------------------------
 *		single fields
 * ----------------------------------------------------------------
 */

void
resync_catalog_set_table_state(int64 run, int ordinal, char state)
{
	(void) resync_catalog_exec("UPDATE peerdb._run_table SET state = $3 "
							   "WHERE run = $1 AND ordinal = $2",
							   SPI_OK_UPDATE, 3, ARG_INT8(run), ARG_INT4(ordinal), ARG_CHAR(state));
	resync_catalog_finish();
}

void
resync_catalog_set_multi_snapshot(int64 run, int ordinal, bool multi_snapshot)
{
	(void) resync_catalog_exec("UPDATE peerdb._run_table SET multi_snapshot = $3 "
							   "WHERE run = $1 AND ordinal = $2",
							   SPI_OK_UPDATE, 3, ARG_INT8(run), ARG_INT4(ordinal),
							   ARG_BOOL(multi_snapshot));
	resync_catalog_finish();
}

void
resync_catalog_set_loaded_snapshot(int64 run, int ordinal, const char *snapshot)
{
	(void) resync_catalog_exec("UPDATE peerdb._run_table SET loaded_snapshot = $3 "
							   "WHERE run = $1 AND ordinal = $2",
							   SPI_OK_UPDATE, 3, ARG_INT8(run), ARG_INT4(ordinal),
							   ARG_TEXT(snapshot));
	resync_catalog_finish();
}

void
resync_catalog_set_table_counts(int64 run, int ordinal, int64 inserts, int64 updates, int64 deletes)
{
	(void) resync_catalog_exec("UPDATE peerdb._run_table SET inserts = inserts + $3, "
							   "updates = updates + $4, deletes = deletes + $5 "
							   "WHERE run = $1 AND ordinal = $2",
							   SPI_OK_UPDATE, 5, ARG_INT8(run), ARG_INT4(ordinal),
							   ARG_INT8(inserts), ARG_INT8(updates), ARG_INT8(deletes));
	resync_catalog_finish();
}

void
resync_catalog_set_table_error(int64 run, const char *schema, const char *table, const char *error)
{
	(void) resync_catalog_exec("UPDATE peerdb._run_table SET error = $4 "
							   "WHERE run = $1 AND schema_name = $2 AND table_name = $3",
							   SPI_OK_UPDATE, 4, ARG_INT8(run), ARG_TEXT(schema), ARG_TEXT(table),
							   ARG_TEXT(error));
	resync_catalog_finish();
}
