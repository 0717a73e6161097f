/*
 * snowflake_sql.c
 *		Statements at Snowflake: texts, results, errors.
 *
 * Called by the other files of the destination.  JSON is UTF-8; names and
 * statements are in the server's encoding until they are put into it.  All that is
 * returned is in the current context.
 *
 * What a value is like matters only as text: whoever wants a date or a boolean
 * casts it to VARCHAR there.
 */
#include "postgres.h"

#include "destination/snowflake.h"

#include "mb/pg_wchar.h"
#include "net/retry.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define MAX_ERROR_TEXT 500

/* A statement of Snowflake's may have so many bytes. */
#define MAX_STATEMENT (1024 * 1024)

/* ---------------------------------------------------------------------
 * Text
 * ------------------------------------------------------------------ */

char *
resync_sf_ident(const char *name)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '"');
	for (const char *p = name; *p != '\0'; p++)
	{
		if (*p == '"')
			appendStringInfoChar(&buf, '"');
		appendStringInfoChar(&buf, *p);
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}

char *
resync_sf_literal(const char *text)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '\'');
	for (const char *p = text; *p != '\0'; p++)
	{
		if (*p == '\'' || *p == '\\')
			appendStringInfoChar(&buf, *p);
		appendStringInfoChar(&buf, *p);
	}
	appendStringInfoChar(&buf, '\'');
	return buf.data;
}

char *
resync_sf_pattern(const char *name)
{
	char *pattern = pstrdup(name);

	/* which would escape what follows it */
	for (char *p = pattern; *p != '\0'; p++)
	{
		if (*p == '\\')
			*p = '_';
	}
	return resync_sf_literal(pattern);
}

char *
resync_sf_name(SfDestination *dest, const char *schema, const char *name)
{
	return psprintf("%s.%s.%s", resync_sf_ident(dest->database), resync_sf_ident(schema),
					resync_sf_ident(name));
}

char *
resync_sf_own(SfDestination *dest, const char *name)
{
	return resync_sf_name(dest, dest->schema, name);
}

char *
resync_sf_table(SfDestination *dest, const ResyncTable *table, bool build)
{
	return resync_sf_name(dest, table->dest_schema, build ? table->build_name : table->dest_name);
}

char *
resync_sf_fold(const char *name)
{
	char *folded = pstrdup(name);

	if (strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_$") != strlen(name) ||
		isdigit((unsigned char) name[0]) || name[0] == '$')
		return folded;
	for (char *p = folded; *p != '\0'; p++)
		*p = pg_ascii_toupper((unsigned char) *p);
	return folded;
}

/* ---------------------------------------------------------------------
 * Errors
 * ------------------------------------------------------------------ */

/* An object does not exist, or may not be known of: in queries, and in DDL. */
#define SF_CODE_NO_OBJECT "002003"
#define SF_CODE_NO_OPERATION "002043"

/* Codes with an SQLSTATE of ours; others keep Snowflake's, or are HV000. */
static const struct
{
	const char *code;
	int			sqlstate;
} codes[] = {
	{SF_CODE_NO_OBJECT, ERRCODE_UNDEFINED_TABLE},
	{SF_CODE_NO_OPERATION, ERRCODE_UNDEFINED_TABLE},
	{"002002", ERRCODE_DUPLICATE_TABLE},
	{"003001", ERRCODE_INSUFFICIENT_PRIVILEGE},
	{"000606", ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE}, /* no warehouse */
	{"000904", ERRCODE_UNDEFINED_COLUMN},
	{"001003", ERRCODE_SYNTAX_ERROR},
	{"090073", RESYNC_ERRCODE_QUOTA_EXCEEDED}, /* a resource monitor stopped it */
	/* what goes away by itself (net/retry.c) */
	{"000604", ERRCODE_QUERY_CANCELED},
	{"000615", ERRCODE_T_R_SERIALIZATION_FAILURE},
	{"000625", ERRCODE_LOCK_NOT_AVAILABLE},
	{"000630", ERRCODE_QUERY_CANCELED}, /* a timeout of the session's */
	{"390100", ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION},
	{"390101", ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION},
	{"390144", ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION},
	{"390189", ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION},
	{"000603", ERRCODE_CONNECTION_FAILURE}, /* an internal error of theirs */
};

/* Code of an error about a value: the text may quote it. */
static bool
is_about_data(const char *code)
{
	return strlen(code) == 6 && strncmp(code, "100", 3) == 0;
}

static int
code_sqlstate(const char *code, const char *state)
{
	for (int i = 0; i < lengthof(codes); i++)
	{
		if (strcmp(codes[i].code, code) == 0)
			return codes[i].sqlstate;
	}
	if (is_about_data(code))
		return ERRCODE_DATA_EXCEPTION;
	/* not the class of transactions and resources: those would be tried again */
	if (state != NULL && strlen(state) == 5 && strncmp(state, "42", 2) == 0)
		return MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
	return ERRCODE_FDW_ERROR;
}

/* "  Row 3, column "T"["N":2]" of a message about a file's value, or NULL. */
static char *
row_of(const char *text)
{
	const char *row = strstr(text, "\n  Row ");

	if (row == NULL)
		return NULL;
	row += strlen("\n  ");
	return pnstrdup(row, strcspn(row, "\n"));
}

/* What the role needs on the object of a kind that an error of access names. */
static const char *
needed(const char *text)
{
	static const char before[] = "operate on ";
	static const struct
	{
		const char *kind;
		const char *privileges;
	} known[] = {
		{"database", "USAGE, CREATE SCHEMA (unless the schema of metadata is there)"},
		{"schema", "USAGE, CREATE TABLE (in the schema of metadata also CREATE STAGE)"},
		{"table", "OWNERSHIP"},
		{"stage", "USAGE"},
		{"warehouse", "USAGE (without AUTO_RESUME also OPERATE)"},
	};
	const char *kind = strstr(text, before);

	for (int i = 0; kind != NULL && i < lengthof(known); i++)
	{
		if (pg_strncasecmp(kind + strlen(before), known[i].kind, strlen(known[i].kind)) == 0)
			return known[i].privileges;
	}
	return "it";
}

void
resync_sf_raise(SfDestination *dest, JsonNode *answer)
{
	char	   *code = resync_json_get_text(answer, "code");
	char	   *text = resync_json_get_text(answer, "message");
	char	   *query = resync_json_get_text(answer, "data.queryId");
	const char *hint = NULL;
	char	   *detail;
	int			sqlstate;

	if (code == NULL)
		code = "none";
	if (text == NULL)
		text = "no text";
	sqlstate = code_sqlstate(code, resync_json_string(answer, "data.sqlState"));
	detail = psprintf("Code: %s. Query: %s.", code, query != NULL ? query : "none");
	if (is_about_data(code))
	{
		char *row = row_of(text);

		ereport(ERROR, (errcode(sqlstate), errmsg("Snowflake refused the data"),
						row != NULL ? errdetail("%s. %s", row, detail) : errdetail("%s", detail),
						errhint("The text may quote rows; it is in Snowflake's query history.")));
	}
	if (strcmp(code, "003001") == 0)
		hint = psprintf("Grant %s to role \"%s\": README.md lists what the role needs.",
						needed(text), dest->role);
	else if (strcmp(code, "000606") == 0)
		hint = psprintf("Look at the server's option \"warehouse\", and grant USAGE on it to role "
						"\"%s\".",
						dest->role);
	else if (sqlstate == RESYNC_ERRCODE_QUOTA_EXCEEDED)
		hint = "It is tried again, less and less often, until the quota is renewed or raised.";
	if (strlen(text) > MAX_ERROR_TEXT)
		text = psprintf("%.*s...", pg_mbcliplen(text, strlen(text), MAX_ERROR_TEXT), text);
	ereport(ERROR, (errcode(sqlstate), errmsg("Snowflake: %s", text), errdetail("%s", detail),
					hint != NULL ? errhint("%s", hint) : 0));
}

/* ---------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------ */

static JsonNode *
run(SfDestination *dest, const char *sql, bool missing_ok)
{
	JsonNode   *answer;
	const char *code;
	bool		success = false;

	if (strlen(sql) > MAX_STATEMENT)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("a statement for Snowflake has %zu bytes; the limit is %d",
							   strlen(sql), MAX_STATEMENT),
						errhint("Divide the tables among several mirrors, or exclude columns.")));
	answer = resync_sf_request(dest, sql);
	(void) resync_json_bool(answer, "success", &success);
	if (success)
		return resync_json_find(answer, "data");
	code = resync_json_string(answer, "code");
	if (missing_ok && code != NULL &&
		(strcmp(code, SF_CODE_NO_OBJECT) == 0 || strcmp(code, SF_CODE_NO_OPERATION) == 0))
		return NULL;
	resync_sf_raise(dest, answer);
}

JsonNode *
resync_sf_data(SfDestination *dest, const char *sql)
{
	return run(dest, sql, false);
}

static SfResult *
read_result(JsonNode *data)
{
	SfResult   *result = palloc0(sizeof(SfResult));
	const char *format = resync_json_string(data, "queryResultFormat");

	if ((format != NULL && strcmp(format, "json") != 0) || resync_json_length(data, "chunks") > 0)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("Snowflake gives a result in a form that was not asked for")));
	result->query_id = resync_json_get_text(data, "queryId");
	result->nrows = Max(resync_json_length(data, "rowset"), 0);
	result->ncols = Max(resync_json_length(data, "rowtype"), 0);
	if ((Size) result->nrows * Max(result->ncols, 1) > MaxAllocSize / sizeof(char *))
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("Snowflake gives a result that is too large")));
	result->names = palloc0(sizeof(char *) * Max(result->ncols, 1));
	result->values = palloc0(sizeof(char *) * Max((Size) result->nrows * result->ncols, 1));
	for (int col = 0; col < result->ncols; col++)
		result->names[col] = resync_json_get_text(data, psprintf("rowtype.%d.name", col));
	for (int row = 0; row < result->nrows; row++)
	{
		JsonNode *values = resync_json_find(data, psprintf("rowset.%d", row));

		for (int col = 0; col < result->ncols; col++)
			sf_value(result, row, col) = resync_json_get_text(values, psprintf("%d", col));
	}
	return result;
}

SfResult *
resync_sf_try(SfDestination *dest, const char *sql)
{
	JsonNode *data = run(dest, sql, true);

	return data != NULL ? read_result(data) : NULL;
}

SfResult *
resync_sf_query(SfDestination *dest, const char *sql)
{
	return read_result(run(dest, sql, false));
}

/* -1: there is none. */
static int
column_index(const SfResult *res, const char *name)
{
	for (int i = 0; i < res->ncols; i++)
	{
		if (res->names[i] != NULL && strcmp(res->names[i], name) == 0)
			return i;
	}
	return -1;
}

char *
resync_sf_optional(const SfResult *res, int row, const char *name)
{
	int i = column_index(res, name);

	return i >= 0 ? sf_value(res, row, i) : NULL;
}

char *
resync_sf_column(const SfResult *res, int row, const char *name)
{
	int i = column_index(res, name);

	if (i >= 0)
		return sf_value(res, row, i);
	ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
					errmsg("Snowflake's answer has no column \"%s\"", name)));
	return NULL; /* keep compiler quiet */
}

char *
resync_sf_need(const SfResult *res, int row, int col)
{
	if (col >= res->ncols || sf_value(res, row, col) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION), errmsg("Snowflake's answer lacks a value")));
	return sf_value(res, row, col);
}

int64
resync_sf_number(SfDestination *dest, const char *sql)
{
	SfResult *res = resync_sf_query(dest, sql);

	if (res->nrows != 1)
		ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
						errmsg("Snowflake's answer is not one number")));
	return strtoll(resync_sf_need(res, 0, 0), NULL, 10);
}

char *
resync_sf_script(SfDestination *dest, const char *block)
{
	SfResult *res = resync_sf_query(dest,
									psprintf("EXECUTE IMMEDIATE %s", resync_sf_literal(block)));

	return res->nrows == 1 && res->ncols >= 1 && sf_value(res, 0, 0) != NULL ? sf_value(res, 0, 0)
																			 : "";
}
