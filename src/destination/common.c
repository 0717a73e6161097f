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
