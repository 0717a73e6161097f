/*
 * postgres_map.c
 *		Which type a source column gets at a PostgreSQL destination, and how its
 *		values travel.
 *
 * Called by the coordinator, outside a transaction, once per table and run
 * (and by the streamer for an added column).  The source's catalog is read
 * first, in a transaction of its own that ends before the destination is asked:
 * nothing is held here while the network is waited for.
 *
 * A type stays what it is wherever the destination has a type of the same
 * schema-qualified name and make-up; else the column becomes text.  Binary
 * values may contain OIDs of other types (arrays, composites), which differ
 * from server to server: wire_info lists the pairs.
 */
#include "postgres.h"

#include "destination/postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tupdesc.h"
#include "access/xact.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_range.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* A type of the source, found while walking through the columns' types. */
typedef struct MapType
{
	Oid	  oid;
	char *schema; /* arrays: of the element, and so is name */
	char *name;
	int	  element; /* index of an array's element type, or -1 */
	bool  binary;  /* has both functions at the source */
	bool  is_reg;  /* regclass and the like: an OID without
								 * meaning elsewhere */
	char *make_up; /* composite: its columns; enum: its labels */
	bool  is_enum;
	List *parts; /* indexes of types inside values (IntList) */

	/* at the destination */
	Oid	 dest_oid; /* InvalidOid: none */
	bool dest_binary;
	bool fits; /* exists with the same make-up */
} MapType;

/* What is known of a column before the destination is asked. */
typedef struct MapColumn
{
	int	  type; /* index into types */
	char *sql_type;
} MapColumn;

typedef struct MapState
{
	int		   ntypes;
	int		   size;
	MapType	  *types;
	MapColumn *columns;
} MapState;

static int add_type(MapState *state, Oid typid);

/* ---------------------------------------------------------------------
 * At the source
 * ------------------------------------------------------------------ */

/*
 * A composite's columns, as text that the destination can make too: see
 * ask_destination().
 */
static char *
composite_make_up(MapState *state, Oid typid, List **parts)
{
	TupleDesc	   desc = lookup_rowtype_tupdesc_copy(typid, -1);
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		HeapTuple		  tup;
		Form_pg_type	  form;

		if (att->attisdropped)
			continue;
		tup = SearchSysCache1(TYPEOID, ObjectIdGetDatum(att->atttypid));
		if (!HeapTupleIsValid(tup))
			elog(ERROR, "cache lookup failed for type %u", att->atttypid);
		form = (Form_pg_type) GETSTRUCT(tup);
		if (buf.len > 0)
			appendStringInfoChar(&buf, ',');
		appendStringInfo(&buf, "%s %s.%s:%d", NameStr(att->attname),
						 get_namespace_name(form->typnamespace), NameStr(form->typname),
						 att->atttypmod);
		ReleaseSysCache(tup);
		*parts = lappend_int(*parts, add_type(state, att->atttypid));
	}
	return buf.data;
}

/* An enum's labels, each between two \1. */
static char *
enum_make_up(Oid typid)
{
	CatCList	  *list = SearchSysCacheList1(ENUMTYPOIDNAME, ObjectIdGetDatum(typid));
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '\001');
	for (int i = 0; i < list->n_members; i++)
	{
		Form_pg_enum form = (Form_pg_enum) GETSTRUCT(&list->members[i]->tuple);

		appendStringInfo(&buf, "%s\001", NameStr(form->enumlabel));
	}
	ReleaseCatCacheList(list);
	return buf.data;
}

/* Index of a type in state->types; adds it and what its values contain. */
static int
add_type(MapState *state, Oid typid)
{
	HeapTuple	 tup;
	Form_pg_type form;
	MapType		 type;
	Oid			 element = get_element_type(typid);
	Oid			 inside = InvalidOid;
	int			 result;

	check_stack_depth();
	for (int i = 0; i < state->ntypes; i++)
	{
		if (state->types[i].oid == typid)
			return i;
	}

	/* take the place first: the index must not move */
	if (state->ntypes == state->size)
	{
		state->size *= 2;
		state->types = repalloc(state->types, sizeof(MapType) * state->size);
	}
	result = state->ntypes++;
	memset(&state->types[result], 0, sizeof(MapType));
	state->types[result].oid = typid;

	tup = SearchSysCache1(TYPEOID, ObjectIdGetDatum(typid));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for type %u", typid);
	form = (Form_pg_type) GETSTRUCT(tup);
	memset(&type, 0, sizeof(type));
	type.oid = typid;
	type.element = -1;
	type.schema = get_namespace_name(form->typnamespace);
	type.name = pstrdup(NameStr(form->typname));
	type.binary = resync_encode_is_binary_type(typid, form);
	type.is_reg = resync_encode_is_reg_type(typid);
	if (OidIsValid(element))
		inside = element;
	else if (form->typtype == TYPTYPE_RANGE)
		inside = get_range_subtype(typid);
	else if (form->typtype == TYPTYPE_MULTIRANGE)
		inside = get_multirange_range(typid);
	else if (form->typtype == TYPTYPE_DOMAIN)
		inside = getBaseType(typid);
	else if (form->typtype == TYPTYPE_COMPOSITE)
		type.make_up = composite_make_up(state, typid, &type.parts);
	else if (form->typtype == TYPTYPE_ENUM)
	{
		type.make_up = enum_make_up(typid);
		type.is_enum = true;
	}
	if (OidIsValid(inside))
	{
		int part = add_type(state, inside);

		type.parts = list_make1_int(part);
		if (OidIsValid(element))
		{
			/* an array type's own name is arbitrary: go by the element's */
			type.element = part;
			type.schema = state->types[part].schema;
			type.name = state->types[part].name;
		}
	}
	ReleaseSysCache(tup);
	state->types[result] = type;
	return result;
}

/* Types that PostgreSQL writes but does not read. */
static bool
is_write_only(Oid typid)
{
	return typid == PG_NODE_TREEOID || typid == PG_NDISTINCTOID || typid == PG_DEPENDENCIESOID ||
		   typid == PG_MCV_LISTOID || typid == PG_BRIN_BLOOM_SUMMARYOID ||
		   typid == PG_BRIN_MINMAX_MULTI_SUMMARYOID;
}

/* Look everything up at the source.  In a transaction. */
static void
read_source(MapState *state, const ResyncTable *table)
{
	state->size = 32;
	state->types = palloc0(sizeof(MapType) * state->size);
	state->columns = palloc0(sizeof(MapColumn) * table->ncols);
	for (int i = 0; i < table->ncols; i++)
	{
		int32 typmod = table->cols[i].typmod;
		Oid	  typid = getBaseTypeAndTypmod(table->cols[i].typid, &typmod);
		Oid	  element = get_element_type(typid);

		if (is_write_only(typid))
			ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
							errmsg("column \"%s\" of table \"%s.%s\" cannot be mirrored",
								   table->cols[i].name, table->schema, table->name),
							errdetail("Values of type %s cannot be read back by PostgreSQL.",
									  format_type_be(typid)),
							errhint("Add it to \"exclude\" of the table.")));

		/*
		 * An array of a domain becomes one of its base type; the element's OID
		 * inside values is translated like any other.
		 */
		if (OidIsValid(element) && get_typtype(element) == TYPTYPE_DOMAIN)
		{
			Oid base = get_array_type(getBaseTypeAndTypmod(element, &typmod));

			if (OidIsValid(base))
				typid = base;
		}
		state->columns[i].type = add_type(state, typid);
		state->columns[i].sql_type = format_type_extended(
			typid, typmod, FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
	}
}

/* ---------------------------------------------------------------------
 * At the destination
 * ------------------------------------------------------------------ */

/*
 * Is the type the same there?  An enum may have more labels, in any order:
 * its values travel by name.
 */
static bool
same_make_up(const MapType *type, const char *there)
{
	const char *p = type->make_up;

	if (p == NULL)
		return true;
	if (there == NULL)
		return false;
	if (!type->is_enum)
		return strcmp(p, there) == 0;
	while (p[1] != '\0')
	{
		const char *end = strchr(p + 1, '\001');

		if (strstr(there, pnstrdup(p, end - p + 1)) == NULL)
			return false;
		p = end;
	}
	return true;
}

/* One query for all types. */
static void
ask_destination(PgDestination *dest, MapState *state)
{
	StringInfoData sql;
	PGresult	  *res;

	if (state->ntypes == 0)
		return;
	initStringInfo(&sql);
	appendStringInfoString(
		&sql,
		"SELECT i.n, CASE WHEN i.a THEN a.oid ELSE t.oid END,"
		" CASE WHEN i.a THEN a.typsend <> 0 AND a.typreceive <> 0"
		" ELSE t.typsend <> 0 AND t.typreceive <> 0 END,"
		" CASE WHEN i.a THEN NULL WHEN t.typtype = 'c' THEN"
		" (SELECT coalesce(string_agg(att.attname || ' ' || an.nspname || '.' || at.typname || ':'"
		" || att.atttypmod, ',' ORDER BY att.attnum), '') FROM pg_attribute att"
		" JOIN pg_type at ON at.oid = att.atttypid JOIN pg_namespace an ON an.oid = at.typnamespace"
		" WHERE att.attrelid = t.typrelid AND att.attnum > 0 AND NOT att.attisdropped)"
		" WHEN t.typtype = 'e' THEN (SELECT E'\\001' || coalesce(string_agg(e.enumlabel || E'\\001', ''), '')"
		" FROM pg_enum e WHERE e.enumtypid = t.oid) END"
		" FROM (VALUES ");
	for (int i = 0; i < state->ntypes; i++)
		appendStringInfo(&sql, "%s(%d, %s, %s, %s)", i > 0 ? ", " : "", i,
						 resync_pg_literal(state->types[i].schema),
						 resync_pg_literal(state->types[i].name),
						 state->types[i].element >= 0 ? "true" : "false");
	appendStringInfoString(
		&sql, ") AS i (n, s, t, a) JOIN pg_namespace ns ON ns.nspname = i.s"
			  " JOIN pg_type t ON t.typnamespace = ns.oid AND t.typname = i.t AND t.typisdefined"
			  " LEFT JOIN pg_type a ON a.oid = t.typarray WHERE NOT i.a OR a.oid IS NOT NULL");
	res = resync_pq_exec(dest->conn, sql.data);
	for (int row = 0; row < PQntuples(res); row++)
	{
		MapType	   *type = &state->types[atoi(PQgetvalue(res, row, 0))];
		const char *make_up = PQgetisnull(res, row, 3) ? NULL : PQgetvalue(res, row, 3);

		type->dest_oid = atooid(PQgetvalue(res, row, 1));
		type->dest_binary = PQgetvalue(res, row, 2)[0] == 't';
		type->fits = same_make_up(type, make_up);
	}
	resync_pq_clear(res);
}

/* Everything inside the type is there, too?  (No type contains itself.) */
static bool
type_fits(MapState *state, int index)
{
	MapType	 *type = &state->types[index];
	ListCell *lc;

	check_stack_depth();
	if (!OidIsValid(type->dest_oid) || !type->fits || type->is_reg)
		return false;
	foreach(lc, type->parts)
	{
		if (!type_fits(state, lfirst_int(lc)))
			return false;
	}
	return true;
}

static bool
type_is_binary(MapState *state, int index)
{
	MapType	 *type = &state->types[index];
	ListCell *lc;

	if (!type->binary || !type->dest_binary)
		return false;
	foreach(lc, type->parts)
	{
		if (!type_is_binary(state, lfirst_int(lc)))
			return false;
	}
	return true;
}

static void
append_pairs(MapState *state, int index, StringInfo buf, Bitmapset **seen)
{
	MapType	 *type = &state->types[index];
	ListCell *lc;

	if (bms_is_member(index, *seen))
		return;
	*seen = bms_add_member(*seen, index);
	if (type->oid != type->dest_oid)
		appendStringInfo(buf, "%s%u:%u", buf->len > 0 ? "," : "", type->oid, type->dest_oid);
	foreach(lc, type->parts)
		append_pairs(state, lfirst_int(lc), buf, seen);
}

/*
 * The OIDs to be translated inside values of a column.  An array of a domain
 * that has become one of the base type carries the domain's OID.
 */
static char *
oid_pairs(MapState *state, const ResyncColumn *col, int index, Oid domain)
{
	StringInfoData buf;
	Bitmapset	  *seen = NULL;
	ListCell	  *lc;

	initStringInfo(&buf);
	foreach(lc, state->types[index].parts)
		append_pairs(state, lfirst_int(lc), &buf, &seen);
	if (OidIsValid(domain))
		appendStringInfo(&buf, "%s%u:%u", buf.len > 0 ? "," : "", domain,
						 state->types[state->types[index].element].dest_oid);
	return buf.len > 0 ? buf.data : NULL;
}

/* A column of the mirror's own must not meet one of the source's. */
static void
check_names(PgDestination *dest, const ResyncTable *table)
{
	const char *own[2] = {resync_pg_soft_delete_column(dest), resync_pg_synced_at_column(dest)};

	for (int i = 0; i < table->ncols; i++)
	{
		for (int j = 0; j < lengthof(own); j++)
		{
			if (own[j] != NULL && strcmp(table->cols[i].name, own[j]) == 0)
				ereport(
					ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg(
						 "table \"%s\".\"%s\" has a column \"%s\", which is the name of the mirror's own column",
						 table->schema, table->name, own[j]),
					 errhint(
						 "Set soft_delete_col_name or synced_at_col_name to another name, or exclude the column.")));
		}
	}
}

void
resync_pg_map_columns(Destination *head, ResyncTable *table)
{
	PgDestination *dest = (PgDestination *) head;
	MemoryContext  old = resync_pg_enter(dest);
	bool		   own_transaction = !IsTransactionState();
	MapState	   state = {0};
	Oid			  *domains = palloc0(sizeof(Oid) * table->ncols);
	bool		   text = false;

	check_names(dest, table);
	if (own_transaction)
	{
		StartTransactionCommand();
		MemoryContextSwitchTo(dest->call);
	}
	read_source(&state, table);
	for (int i = 0; i < table->ncols; i++)
	{
		Oid element = get_element_type(getBaseType(table->cols[i].typid));

		if (OidIsValid(element) && get_typtype(element) == TYPTYPE_DOMAIN)
			domains[i] = element;
	}
	if (own_transaction)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(dest->call);
	}

	ask_destination(dest, &state);
	for (int i = 0; i < table->ncols; i++)
	{
		if (type_fits(&state, state.columns[i].type) &&
			!type_is_binary(&state, state.columns[i].type))
			text = true;
	}

	MemoryContextSwitchTo(old);
	for (int i = 0; i < table->ncols; i++)
	{
		ResyncColumn *col = &table->cols[i];
		bool		  fits = type_fits(&state, state.columns[i].type);
		char *pairs = fits && !text ? oid_pairs(&state, col, state.columns[i].type, domains[i])
									: NULL;

		col->dest_name = pstrdup(col->name);
		col->dest_type = pstrdup(fits ? state.columns[i].sql_type : "text");
		col->wire = pstrdup(text ? "text" : fits ? "binary" : "astext");
		col->wire_info = pairs;
	}
}

/*
 * Only built-in types come here, whose name and bytes mean the same at every
 * PostgreSQL server.
 */
void
resync_pg_map_added(Destination *head, const ResyncTable *table, ResyncColumn *col)
{
	int32 typmod = col->typmod;
	Oid	  base = getBaseTypeAndTypmod(col->typid, &typmod);

	col->dest_name = pstrdup(col->name);
	col->dest_type = format_type_extended(base, typmod,
										  FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
	col->wire = (table->ncols > 0 && strcmp(table->cols[0].wire, "text") == 0) ? "text" : "binary";
}
