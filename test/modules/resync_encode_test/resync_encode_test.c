/*
 * resync_encode_test.c
 *		The encoder for BigQuery, tokens and JSON as SQL functions, so that tests
 *		can see their bytes without BigQuery.  Never part of the extension.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "encode/avro.h"
#include "encode/bigquery.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "net/json.h"
#include "net/jwt.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(encode_avro);
PG_FUNCTION_INFO_V1(bq_column);
PG_FUNCTION_INFO_V1(bq_key);
PG_FUNCTION_INFO_V1(jwt_sign);
PG_FUNCTION_INFO_V1(jwt_fingerprint);
PG_FUNCTION_INFO_V1(jwt_base64url);
PG_FUNCTION_INFO_V1(json_reason);
PG_FUNCTION_INFO_V1(json_at);
PG_FUNCTION_INFO_V1(json_built);

/* ---- encode_avro ---- */

#define MAX_COLUMNS 100

static const AvroColumn extra_columns[] = {
	{"_op", "\"string\"", AVRO_REQUIRED},
	{"_n", "\"long\"", AVRO_OPTIONAL},
};

static ResyncTable *
describe_table(Relation rel, const BqColumnChoice *choice, const char *key)
{
	ResyncTable *table = palloc0(sizeof(ResyncTable));
	TupleDesc	 desc = RelationGetDescr(rel);

	table->schema = get_namespace_name(RelationGetNamespace(rel));
	table->name = RelationGetRelationName(rel);
	table->cols = palloc0(sizeof(ResyncColumn) * desc->natts);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		ResyncColumn	 *col = &table->cols[table->ncols];

		if (att->attisdropped)
			continue;
		col->name = col->dest_name = NameStr(att->attname);
		col->attnum = att->attnum;
		col->typid = att->atttypid;
		col->typmod = att->atttypmod;
		col->notnull = att->attnotnull;
		if (strcmp(col->name, key) == 0)
			col->keypos = ++table->nkeys;
		resync_bq_map_column(col, choice);
		table->ncols++;
	}
	return table;
}

static void
append_to(void *arg, const char *data, Size len)
{
	appendBinaryStringInfo(arg, data, (int) len);
}

static bool
add_row(AvroWriter *writer, const ResyncTable *table, RowEncoder *encoder, TupleTableSlot *slot,
		const char *way, const EncodedField *extras)
{
	StringInfoData row;
	EncodedField	   pieces[MAX_COLUMNS];
	const char	  *p;

	if (strcmp(way, "tuple") == 0)
		return resync_avro_add_tuple(writer, encoder, slot->tts_values, slot->tts_isnull, extras);
	initStringInfo(&row);
	resync_encode_row(encoder, slot->tts_values, slot->tts_isnull, &row);
	if (strcmp(way, "fields") == 0)
		return resync_avro_add_fields(writer, row.data, extras);
	p = row.data;
	for (int i = 0; i < table->ncols; i++)
	{
		uint32 len;

		memcpy(&len, p, 4);
		pieces[i].len = (int32) pg_ntoh32(len);
		pieces[i].data = p + 4;
		p += 4 + Max(pieces[i].len, 0);
	}
	return resync_avro_add_pieces(writer, pieces, extras);
}

Datum
encode_avro(PG_FUNCTION_ARGS)
{
	Relation	   rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	char		  *way = text_to_cstring(PG_GETARG_TEXT_PP(1));
	BqColumnChoice choice = {.drop_null_elements = PG_GETARG_BOOL(2),
							 .null_out_of_range = PG_GETARG_BOOL(3),
							 .unbounded_string = PG_GETARG_BOOL(4)};
	ResyncTable	  *table = describe_table(rel, &choice, text_to_cstring(PG_GETARG_TEXT_PP(5)));
	AvroColumn	  *columns = resync_bq_avro_columns(table, extra_columns, lengthof(extra_columns));
	AvroWriter	  *writer = resync_avro_make(table, columns, table->ncols + lengthof(extra_columns),
											 PG_GETARG_INT32(6));
	RowEncoder	  *encoder = resync_encode_bq_make(RelationGetDescr(rel), table);
	MemoryContext  row_context = AllocSetContextCreate(CurrentMemoryContext, "row",
													   ALLOCSET_DEFAULT_SIZES);
	MemoryContext  context = CurrentMemoryContext;
	StringInfoData file;
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc	scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	int64			n = 0;

	if (table->ncols > MAX_COLUMNS)
		elog(ERROR, "too many columns");
	initStringInfo(&file);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		StringInfoData op;
		StringInfoData number;
		EncodedField	   extras[lengthof(extra_columns)];
		bool		   full;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(row_context);
		MemoryContextSwitchTo(row_context);
		slot_getallattrs(slot);
		initStringInfo(&op);
		put_avro_bytes(&op, "U", 1);
		initStringInfo(&number);
		put_avro_long(&number, ++n);
		extras[0] = (EncodedField){op.data, op.len};
		extras[1] = (EncodedField){number.data, n % 2 == 0 ? -1 : number.len};
		full = add_row(writer, table, encoder, slot, way, extras);
		MemoryContextSwitchTo(context);
		if (full)
			(void) resync_avro_write(writer, append_to, &file);
	}
	(void) resync_avro_write(writer, append_to, &file);
	if (resync_avro_rows(writer) != n || resync_avro_bytes(writer) != 0)
		elog(ERROR, "rows are missing");
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	PG_RETURN_BYTEA_P(cstring_to_text_with_len(file.data, file.len));
}

/* ---- columns and keys ---- */

Datum
bq_column(PG_FUNCTION_ARGS)
{
	ResyncColumn   col = {.name = "c",
						  .typid = PG_GETARG_OID(0),
						  .typmod = PG_GETARG_INT32(1),
						  .keypos = PG_GETARG_BOOL(2) ? 1 : 0,
						  .notnull = PG_GETARG_BOOL(3)};
	BqColumnChoice choice = {.unbounded_string = PG_GETARG_BOOL(4)};
	TupleDesc	   desc;
	Datum		   values[3];
	bool		   nulls[3] = {0};
	BqType		   type;
	BqType		   again;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "no composite");
	resync_bq_map_column(&col, &choice);
	type = resync_bq_type(&col);
	if (!resync_bq_type_parse(col.dest_type, &again) ||
		strcmp(resync_bq_type_text(&again), col.dest_type) != 0)
		elog(ERROR, "type %s is not read as it was written", col.dest_type);
	if (type.required != (col.keypos > 0 && col.notnull))
		elog(ERROR, "required is wrong");
	values[0] = CStringGetTextDatum(col.dest_type);
	values[1] = CStringGetTextDatum(col.wire_info);
	values[2] = CStringGetTextDatum(resync_bq_avro_type(&type));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

Datum
bq_key(PG_FUNCTION_ARGS)
{
	Oid			   typid = get_fn_expr_argtype(fcinfo->flinfo, 0);
	ResyncColumn   col = {.name = "k", .typid = typid, .typmod = -1, .keypos = 1, .notnull = true};
	ResyncTable	   table = {.schema = "s", .name = "t", .ncols = 1, .nkeys = 1, .cols = &col};
	BqColumnChoice choice = {0};
	TupleDesc	   desc = CreateTemplateTupleDesc(1);
	RowEncoder	  *encoder;
	StringInfoData field;
	Oid			   output;
	bool		   isvarlena;

	TupleDescInitEntry(desc, 1, "k", typid, -1, 0);
	resync_bq_map_column(&col, &choice);
	encoder = resync_encode_bq_make(desc, &table);
	initStringInfo(&field);
	resync_encode_field(encoder, 0, PG_GETARG_DATUM(0), false, &field);
	getTypeOutputInfo(typid, &output, &isvarlena);
	PG_RETURN_TEXT_P(cstring_to_text(OidOutputFunctionCall(
		output, resync_bq_decode_field(&col, field.data + 4, field.len - 4))));
}

/* ---- tokens ---- */

static char *
text_arg(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

static JwtKey *
key_arg(FunctionCallInfo fcinfo)
{
	char *pem = text_arg(fcinfo, 0);

	return resync_jwt_read_key(CurrentMemoryContext, pem, strlen(pem), text_arg(fcinfo, 1),
							   "the test's key");
}

Datum
jwt_sign(PG_FUNCTION_ARGS)
{
	char *token = resync_jwt_sign(key_arg(fcinfo), text_arg(fcinfo, 2), text_arg(fcinfo, 3));
	text *result = cstring_to_text(token);

	resync_jwt_forget(token);
	PG_RETURN_TEXT_P(result);
}

Datum
jwt_fingerprint(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(resync_jwt_fingerprint(key_arg(fcinfo))));
}

Datum
jwt_base64url(PG_FUNCTION_ARGS)
{
	bytea		  *data = PG_GETARG_BYTEA_PP(0);
	StringInfoData buf;

	initStringInfo(&buf);
	resync_base64url(&buf, VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data));
	PG_RETURN_TEXT_P(cstring_to_text_with_len(buf.data, buf.len));
}

/* ---- JSON ---- */

Datum
json_reason(PG_FUNCTION_ARGS)
{
	char	   *doc = text_to_cstring(PG_GETARG_TEXT_PP(0));
	const char *reason;

	if (resync_json_parse(doc, strlen(doc), PG_GETARG_INT32(1), &reason) != NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(reason));
}

Datum
json_at(PG_FUNCTION_ARGS)
{
	char		  *doc = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char		  *path = text_to_cstring(PG_GETARG_TEXT_PP(1));
	JsonNode	  *node = resync_json_parse(doc, strlen(doc), 32, NULL);
	StringInfoData s;
	const char	  *text = resync_json_string(node, path);
	int64		   number;
	bool		   boolean;
	ListCell	  *lc;

	initStringInfo(&s);
	if (text != NULL)
		appendStringInfo(&s, "string %s ", text);
	if (resync_json_int64(node, path, &number))
		appendStringInfo(&s, "int " INT64_FORMAT " ", number);
	if (resync_json_bool(node, path, &boolean))
		appendStringInfo(&s, "bool %d ", boolean);
	if (resync_json_length(node, path) >= 0)
		appendStringInfo(&s, "length %d ", resync_json_length(node, path));
	foreach(lc, resync_json_names(node, path))
		appendStringInfo(&s, "name %s ", (char *) lfirst(lc));
	if (resync_json_member(resync_json_find(node, path), "a.b") != NULL)
		appendStringInfoString(&s, "has a.b");
	PG_RETURN_TEXT_P(cstring_to_text(s.data));
}

Datum
json_built(PG_FUNCTION_ARGS)
{
	char		 *taken = text_to_cstring(PG_GETARG_TEXT_PP(0));
	JsonNode	 *job = resync_json_make();
	JsonNode	 *fields;
	JsonNode	 *other;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "other",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;

	resync_json_set_string(job, "configuration.load.sourceFormat", "CSV");
	resync_json_set_string(job, "configuration.load.sourceFormat", "AVRO");
	resync_json_set_bool(job, "configuration.load.useAvroLogicalTypes", true);
	resync_json_set_int64(job, "configuration.load.big", PG_INT64_MIN);
	resync_json_set_string(job, "description", NULL);
	fields = resync_json_set_array(job, "configuration.load.schema.fields");
	resync_json_append_string(fields, "a \"quoted\"/\x01 text");
	resync_json_set_string(resync_json_append_object(fields), "name", "id");
	resync_json_set_member(resync_json_set_object(job, "labels"), "a.b", "c");

	/* shared with a document that is gone before this one */
	old = MemoryContextSwitchTo(context);
	other = resync_json_parse(taken, strlen(taken), 32, NULL);
	if (other != NULL)
		resync_json_set_node(job, "taken", resync_json_find(other, "x"));
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	PG_RETURN_TEXT_P(cstring_to_text(resync_json_text(job)));
}
