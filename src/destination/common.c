/*
 * common.c
 *		What the destinations' own files share.
 *
 * Called by all of them, in any process.
 */
#include "postgres.h"

#include "destination/common.h"

#include <sys/stat.h>

#include "commands/defrem.h"
#include "destination/destination.h"
#include "nodes/parsenodes.h"
#include "storage/fd.h"

/* Bytes of a key file, at most. */
#define MAX_KEY_FILE (64 * 1024)

const char *
resync_destination_option(List *options, const char *name)
{
	ListCell *lc;

	foreach(lc, options)
	{
		DefElem *def = lfirst(lc);

		if (strcmp(def->defname, name) == 0)
			return defGetString(def);
	}
	return NULL;
}

char *
resync_destination_require_option(const ResyncPeer *peer, bool mapping, const char *name,
								  const char *service)
{
	const char *value = resync_destination_option(
		mapping ? peer->user_options : peer->server_options, name);

	if (value == NULL || value[0] == '\0')
		ereport(ERROR, (errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
						errmsg("the %s of the %s peer has no option \"%s\"",
							   mapping ? "user mapping" : "server", service, name)));
	return pstrdup(value);
}

char *
resync_destination_read_file(const char *path, const char *what, Size *len)
{
	FILE	   *file = AllocateFile(path, "r");
	struct stat st;
	char	   *text;

	if (file == NULL)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not open %s \"%s\": %m", what, path)));
	if (fstat(fileno(file), &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > MAX_KEY_FILE)
		ereport(ERROR, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
						errmsg("%s \"%s\" cannot be one", what, path)));
	text = palloc(st.st_size + 1);
	*len = fread(text, 1, st.st_size, file);
	FreeFile(file);
	text[*len] = '\0';
	return text;
}

char *
resync_destination_password_file(const char *path)
{
	FILE *file = AllocateFile(path, "r");
	char  line[1024];
	char *got;

	if (file == NULL)
		ereport(ERROR, (errcode_for_file_access(),
						errmsg("could not open password file \"%s\": %m", path)));
	got = fgets(line, sizeof(line), file);
	FreeFile(file);
	if (got == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PASSWORD), errmsg("password file \"%s\" is empty", path)));
	line[strcspn(line, "\r\n")] = '\0';
	got = pstrdup(line);
	explicit_bzero(line, sizeof(line));
	return got;
}

const ResyncColumn **
resync_destination_key(const ResyncTable *table)
{
	const ResyncColumn **key = palloc0(sizeof(ResyncColumn *) * Max(table->nkeys, 1));

	for (int i = 0; i < table->ncols; i++)
	{
		int pos = table->cols[i].keypos;

		if (pos > 0 && pos <= table->nkeys)
			key[pos - 1] = &table->cols[i];
	}
	for (int i = 0; i < table->nkeys; i++)
	{
		if (key[i] == NULL)
			elog(ERROR, "key column %d of table \"%s\" is missing", i + 1, table->name);
	}
	return key;
}

int
resync_destination_match_column(const char *name, const char *ours, const char *peerdb)
{
	if (ours == NULL)
		return 0;
	if (strcmp(name, ours) == 0)
		return 3;
	if (pg_strcasecmp(name, ours) == 0)
		return 2;
	return pg_strcasecmp(name, peerdb) == 0 ? 1 : 0;
}

/* ---------------------------------------------------------------------
 * What all of them say
 * ------------------------------------------------------------------ */

char *
resync_destination_source(const ResyncRunId *id)
{
	return psprintf(UINT64_FORMAT "/%u", id->system_identifier, id->database);
}

void
resync_destination_raise_copy(const ResyncRunId *id)
{
	ereport(
		ERROR,
		(errcode(RESYNC_ERRCODE_DIVERGED), errmsg("this database is a copy"),
		 errdetail("The destination's mark of mirror \"%s\" belongs to another database or server.",
				   id->mirror),
		 errhint(
			 "Drop the mirror here, or take it over with peerdb_resume_mirror(..., adopt => true).")));
}

void
resync_destination_raise_fenced(const ResyncRunId *id, const char *why)
{
	ereport(ERROR, (errcode(RESYNC_ERRCODE_FENCED),
					errmsg("run " INT64_FORMAT
						   " of mirror \"%s\" is no longer in charge at the destination",
						   id->run, id->mirror),
					errdetail_internal("%s", why),
					errhint("If it was taken over in a copy of this database, drop the mirror here;"
							" else run peerdb_resync() to rebuild it.")));
}

void
resync_destination_raise_applied(const ResyncRunId *id, int sqlerrcode, XLogRecPtr applied,
								 XLogRecPtr expected)
{
	ereport(ERROR,
			(errcode(sqlerrcode),
			 errmsg("applied LSN of mirror \"%s\" at the destination is %X/%X, expected was %X/%X",
					id->mirror, LSN_FORMAT_ARGS(applied), LSN_FORMAT_ARGS(expected))));
}

void
resync_destination_raise_not_made(const char *table)
{
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
					errmsg("table %s at the destination is not the one this run made", table),
					errdetail("It was dropped, renamed or replaced there."),
					errhint("Resync the mirror.")));
}

void
resync_destination_raise_in_way(const char *table)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_DUPLICATE_TABLE), errmsg("table %s exists at the destination", table),
		 errdetail(
			 "It is in the way of the table under construction, and was not made by this mirror."),
		 errhint("Drop or rename it there.")));
}

void
resync_destination_raise_exists(const char *table, bool begun)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_DUPLICATE_TABLE), errmsg("table %s exists at the destination", table),
		 errdetail("It was not made by this mirror."),
		 begun
			 ? errhint("Drop or rename it, or set the option replace_existing.")
			 : errhint(
				   "Drop or rename it, map the table to another name, or set the option replace_existing.")));
}

void
resync_destination_check_reserved(const ResyncTable *table, const char *prefix)
{
	if (pg_strncasecmp(table->dest_name, prefix, strlen(prefix)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("destination table \"%s\" has a name of the mirror's own tables",
						table->dest_name),
				 errhint("Map table \"%s.%s\" to another name.", table->schema, table->name)));
}

void
resync_destination_warn(List **warnings, MemoryContext context, const char *text)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	*warnings = lappend(*warnings, pstrdup(text));
	MemoryContextSwitchTo(old);
}
