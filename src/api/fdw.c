/*
 * fdw.c
 *		Validators of the foreign-data wrappers: options of peers are checked
 *		when they are given.
 *
 * Called by CREATE and ALTER SERVER, USER MAPPING and FOREIGN DATA WRAPPER, in
 * a user's backend, with the complete list of options as it would be.  Reads
 * no file and connects nowhere.
 *
 * Two rules protect the server's own identity.  An option that names a file
 * (or a service, which is found in one) may be given by superusers and members
 * of pg_read_server_files only: our processes would read it with the rights of
 * the server's operating system user.  password_required 'false' may be given
 * by superusers only: it lets a mirror use whatever that user can use without
 * a password.
 */
#include "postgres.h"

#include "resync.h"

#include "access/reloptions.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "libpq-fe.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(peerdb_postgres_validator);
PG_FUNCTION_INFO_V1(peerdb_clickhouse_validator);
PG_FUNCTION_INFO_V1(peerdb_snowflake_validator);
PG_FUNCTION_INFO_V1(peerdb_bigquery_validator);

/* Where an option may stand. */
#define ON_SERVER 1
#define ON_MAPPING 2

/* What its value has to be. */
typedef enum OptionKind
{
	OPT_TEXT, /* anything but nothing */
	OPT_BOOL,
	OPT_INT,	   /* not negative */
	OPT_PORTS,	   /* libpq: several, separated by commas */
	OPT_HTTP_PORT, /* ClickHouse: not a native one */
	OPT_WORDS,	   /* one of words */
	OPT_HOST,	   /* a bare host name */
	OPT_URL		   /* http or https, without credentials */
} OptionKind;

typedef struct PeerOption
{
	const char *name;
	int			where; /* ON_SERVER, ON_MAPPING or both */
	OptionKind	kind;
	bool		names_file;
	const char *words; /* "a|b|c" */
} PeerOption;

static const PeerOption clickhouse_options[] = {
	{"host", ON_SERVER, OPT_HOST},
	{"port", ON_SERVER, OPT_HTTP_PORT},
	{"database", ON_SERVER, OPT_TEXT},
	{"tls", ON_SERVER, OPT_BOOL},
	{"ca_file", ON_SERVER, OPT_TEXT, true},
	{"cluster", ON_SERVER, OPT_TEXT},
	{"replicated", ON_SERVER, OPT_BOOL},
	{"compression", ON_SERVER, OPT_WORDS, false, "zstd|lz4|none"},
	{"user", ON_MAPPING, OPT_TEXT},
	{"password", ON_MAPPING, OPT_TEXT},
	{"password_file", ON_MAPPING, OPT_TEXT, true},
	{NULL}};

static const PeerOption snowflake_options[] = {
	{"account", ON_SERVER, OPT_TEXT},
	{"url", ON_SERVER, OPT_URL},
	{"database", ON_SERVER, OPT_TEXT},
	{"warehouse", ON_SERVER, OPT_TEXT},
	{"role", ON_SERVER, OPT_TEXT},
	{"metadata_schema", ON_SERVER, OPT_TEXT},
	{"stage", ON_SERVER, OPT_TEXT},
	{"stage_endpoint", ON_SERVER, OPT_URL},
	{"stage_region", ON_SERVER, OPT_TEXT},
	{"user", ON_MAPPING, OPT_TEXT},
	{"private_key_file", ON_MAPPING, OPT_TEXT, true},
	{"private_key_passphrase_file", ON_MAPPING, OPT_TEXT, true},
	{"stage_key_id", ON_MAPPING, OPT_TEXT},
	{"stage_secret_file", ON_MAPPING, OPT_TEXT, true},
	{NULL}};

static const PeerOption bigquery_options[] = {{"project", ON_SERVER, OPT_TEXT},
											  {"dataset", ON_SERVER, OPT_TEXT},
											  {"location", ON_SERVER, OPT_TEXT},
											  {"url", ON_SERVER, OPT_URL},
											  {"service_account_file", ON_MAPPING, OPT_TEXT, true},
											  {NULL}};

/*
 * What is special about PostgreSQL's options.  Other options of libpq are taken
 * from the library in use: on the server, or in the mapping if secret.
 */
static const PeerOption postgres_special[] = {
	{"metadata_schema", ON_SERVER, OPT_TEXT},
	{"port", ON_SERVER, OPT_PORTS},
	{"connect_timeout", ON_SERVER, OPT_INT},
	{"keepalives", ON_SERVER, OPT_INT},
	{"keepalives_idle", ON_SERVER, OPT_INT},
	{"keepalives_interval", ON_SERVER, OPT_INT},
	{"keepalives_count", ON_SERVER, OPT_INT},
	{"tcp_user_timeout", ON_SERVER, OPT_INT},
	{"sslmode", ON_SERVER, OPT_WORDS, false, "disable|allow|prefer|require|verify-ca|verify-full"},
	{"target_session_attrs", ON_SERVER, OPT_WORDS, false,
	 "any|read-write|read-only|primary|standby|prefer-standby"},
	{"service", ON_SERVER, OPT_TEXT, true},
	{"servicefile", ON_SERVER, OPT_TEXT, true},
	{"passfile", ON_SERVER, OPT_TEXT, true},
	{"sslrootcert", ON_SERVER, OPT_TEXT, true},
	{"sslcrl", ON_SERVER, OPT_TEXT, true},
	{"sslcrldir", ON_SERVER, OPT_TEXT, true},
	{"sslkeylogfile", ON_SERVER, OPT_TEXT, true},
	{"sslcert", ON_SERVER | ON_MAPPING, OPT_TEXT, true},
	{"sslkey", ON_SERVER | ON_MAPPING, OPT_TEXT, true},
	{"sslpassword", ON_MAPPING, OPT_TEXT},
	{"user", ON_MAPPING, OPT_TEXT},
	{"password", ON_MAPPING, OPT_TEXT},
	{"password_file", ON_MAPPING, OPT_TEXT, true},
	{"password_required", ON_MAPPING, OPT_BOOL},
	{NULL}};

/*
 * Options that libpq hides from user interfaces ("D") and that are of use all
 * the same.
 */
static const char debug_options[] =
	"options|keepalives|keepalives_idle|keepalives_interval|keepalives_count|tcp_user_timeout|"
	"hostaddr|application_name|gssencmode|krbsrvname|gsslib|target_session_attrs|channel_binding";

static const PeerOption *
find_option(const PeerOption *options, const char *name)
{
	for (; options->name != NULL; options++)
	{
		if (strcmp(options->name, name) == 0)
			return options;
	}
	return NULL;
}

static bool
is_word_of(const char *value, const char *words)
{
	int len = strlen(value);

	for (const char *p = words; p != NULL; p = strchr(p, '|'))
	{
		if (*p == '|')
			p++;
		if (strncmp(p, value, len) == 0 && (p[len] == '|' || p[len] == '\0'))
			return len > 0;
	}
	return false;
}

/*
 * The table for PostgreSQL: our own options, and libpq's of the library that
 * is loaded.  In the current context.
 */
static const PeerOption *
postgres_options(void)
{
	PQconninfoOption *libpq = PQconndefaults();
	PeerOption		 *options;
	int				  n = 0;

	if (libpq == NULL)
		ereport(ERROR, (errcode(ERRCODE_FDW_OUT_OF_MEMORY), errmsg("out of memory"),
						errdetail("Could not get libpq's default connection options.")));
	for (PQconninfoOption *o = libpq; o->keyword != NULL; o++)
		n++;
	options = palloc0(sizeof(PeerOption) * (n + lengthof(postgres_special)));
	memcpy(options, postgres_special, sizeof(postgres_special));
	n = lengthof(postgres_special) - 1;
	for (PQconninfoOption *o = libpq; o->keyword != NULL; o++)
	{
		/* what we set ourselves; some of libpq's debug options are useful */
		if (strcmp(o->keyword, "client_encoding") == 0 || strcmp(o->keyword, "replication") == 0 ||
			strcmp(o->keyword, "fallback_application_name") == 0 ||
			(strchr(o->dispchar, 'D') != NULL && !is_word_of(o->keyword, debug_options)))
			continue;
		if (find_option(postgres_special, o->keyword) != NULL)
			continue;
		options[n].name = pstrdup(o->keyword);
		options[n].kind = OPT_TEXT;
		options[n].where = strchr(o->dispchar, '*') != NULL ? ON_MAPPING : ON_SERVER;
		n++;
	}
	PQconninfoFree(libpq);
	return options;
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/* The valid options of a place, sorted, for a hint. */
static char *
list_options(const PeerOption *options, int where)
{
	StringInfoData buf;
	const char	 **names;
	int			   n = 0;
	int			   max = 0;

	while (options[max].name != NULL)
		max++;
	names = palloc(sizeof(char *) * (max + 1));
	for (int i = 0; i < max; i++)
	{
		if (options[i].where & where)
			names[n++] = options[i].name;
	}
	qsort(names, n, sizeof(char *), compare_names);
	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", names[i]);
	return buf.data;
}

static void
refuse_unknown(const PeerOption *options, const char *name, int where)
{
	const PeerOption *known = find_option(options, name);
	char			 *list = list_options(options, where);

	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME), errmsg("invalid option \"%s\"", name),
			 known == NULL ? 0
						   : errdetail("It is an option of %s.",
									   known->where == ON_MAPPING ? "user mappings" : "servers"),
			 list[0] != '\0' ? errhint("Valid options in this context are: %s", list)
							 : errhint("There are no valid options in this context.")));
}

/* value is shown: never used for options that hold a secret. */
static void
refuse_value(const char *name, const char *value, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"", name, value), errhint("%s", hint)));
}

/* A whole decimal number between min and max, or -1. */
static int64
parse_number(const char *text, int len, int64 min, int64 max)
{
	int64 n = 0;

	if (len == 0 || len > 10)
		return -1;
	for (int i = 0; i < len; i++)
	{
		if (text[i] < '0' || text[i] > '9')
			return -1;
		n = n * 10 + (text[i] - '0');
	}
	return n < min || n > max ? -1 : n;
}

static void
check_http_port(const char *name, const char *value)
{
	if (parse_number(value, strlen(value), 1, 65535) < 0)
		refuse_value(name, value, "A port is a number from 1 to 65535.");
	if (strcmp(value, "9000") == 0 || strcmp(value, "9440") == 0)
		refuse_value(
			name, value,
			"This port speaks ClickHouse's native protocol; resync speaks HTTP: 8443, or 8123 with tls off.");
}

static void
check_ports(const char *name, const char *value)
{
	const char *p = value;

	for (;;)
	{
		int len = strcspn(p, ",");

		/* libpq: an empty one means the default */
		if (len > 0 && parse_number(p, len, 1, 65535) < 0)
			refuse_value(name, value, "A port is a number from 1 to 65535.");
		if (p[len] == '\0')
			break;
		p += len + 1;
	}
}

static void
check_url(const char *name, const char *value)
{
	const char *rest = NULL;

	if (strncmp(value, "https://", 8) == 0)
		rest = value + 8;
	else if (strncmp(value, "http://", 7) == 0)
		rest = value + 7;
	/* a value with '@' may hold a password: not shown */
	if (strchr(value, '@') != NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("option \"%s\" must not hold credentials", name),
						errhint("Credentials belong to the user mapping.")));
	if (rest == NULL || rest[0] == '\0' || rest[0] == '/')
		refuse_value(name, value, "A URL begins with https:// or http:// and a host.");
}

static void
check_value(const PeerOption *option, DefElem *def)
{
	char *value = defGetString(def);

	switch (option->kind)
	{
		case OPT_TEXT:
			/* libpq takes an empty value for its default; a schema needs a name */
			if (strcmp(option->name, "metadata_schema") == 0 &&
				(value[0] == '\0' || strlen(value) >= NAMEDATALEN))
				refuse_value(option->name, value, "A schema's name is expected, of 1 to 63 bytes.");
			break;
		case OPT_BOOL:
			(void) defGetBoolean(def);
			break;
		case OPT_INT:
			if (parse_number(value, strlen(value), 0, PG_INT32_MAX) < 0)
				refuse_value(option->name, value, "A whole number is expected.");
			break;
		case OPT_PORTS:
			check_ports(option->name, value);
			break;
		case OPT_HTTP_PORT:
			check_http_port(option->name, value);
			break;
		case OPT_WORDS:
			if (!is_word_of(value, option->words))
				refuse_value(option->name, value, psprintf("Valid values are: %s.", option->words));
			break;
		case OPT_HOST:
			if (value[0] == '\0' || strpbrk(value, "/@?# ") != NULL)
				ereport(
					ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid value for option \"%s\"", option->name),
					 errhint("A host name or address is expected, without scheme, path or user.")));
			break;
		case OPT_URL:
			check_url(option->name, value);
			break;
	}
}

/* Rights that some options need; see the head of this file. */
static void
check_rights(const PeerOption *option, DefElem *def)
{
	if (option->names_file &&
		!(strcmp(option->name, "sslrootcert") == 0 && strcmp(defGetString(def), "system") == 0) &&
		!superuser() && !is_member_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied to set option \"%s\"", option->name),
						errdetail("It names a file on the server."),
						errhint("Superusers and members of pg_read_server_files may set it.")));
	if (strcmp(option->name, "password_required") == 0 && !superuser() && !defGetBoolean(def))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("permission denied to set option \"%s\" to false", option->name),
						errhint("Superusers may set it.")));
}

static void
validate(FunctionCallInfo fcinfo, const PeerOption *options)
{
	List	 *given = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid		  catalog = PG_GETARG_OID(1);
	int		  where = 0;
	bool	  password = false;
	bool	  password_file = false;
	ListCell *lc;

	if (catalog == ForeignServerRelationId)
		where = ON_SERVER;
	else if (catalog == UserMappingRelationId)
		where = ON_MAPPING;

	foreach(lc, given)
	{
		DefElem			 *def = lfirst(lc);
		const PeerOption *option = find_option(options, def->defname);

		if (option == NULL || !(option->where & where))
			refuse_unknown(options, def->defname, where);
		check_rights(option, def);
		check_value(option, def);
		password |= strcmp(def->defname, "password") == 0;
		password_file |= strcmp(def->defname, "password_file") == 0;
	}
	if (password && password_file)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options \"password\" and \"password_file\" cannot be given together")));
}

Datum
peerdb_postgres_validator(PG_FUNCTION_ARGS)
{
	validate(fcinfo, postgres_options());
	PG_RETURN_VOID();
}

Datum
peerdb_clickhouse_validator(PG_FUNCTION_ARGS)
{
	validate(fcinfo, clickhouse_options);
	PG_RETURN_VOID();
}

Datum
peerdb_snowflake_validator(PG_FUNCTION_ARGS)
{
	validate(fcinfo, snowflake_options);
	PG_RETURN_VOID();
}

Datum
peerdb_bigquery_validator(PG_FUNCTION_ARGS)
{
	validate(fcinfo, bigquery_options);
	PG_RETURN_VOID();
}
