/*
 * encoding.c
 *		Texts between the server's encoding and UTF-8, which services speak.
 *
 * Called by json.c and by destinations, in any process.
 */
#include "postgres.h"

#include "net/encoding.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "common/string.h"
#include "mb/pg_wchar.h"


typedef char *(*ConvertFn)(const char *text);

/* Is there nothing to do? */
static bool
is_same(const char *text)
{
	return GetDatabaseEncoding() == PG_UTF8 || GetDatabaseEncoding() == PG_SQL_ASCII ||
		   pg_is_ascii(text);
}

/* In a transaction; of one's own, if there is none. */
static char *
in_transaction(ConvertFn convert, const char *text)
{
	MemoryContext context = CurrentMemoryContext;
	bool		  own = !IsTransactionState();
	char		 *result;

	if (own)
	{
		StartTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	result = convert(text);
	if (own)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
	}
	return result;
}

static char *
to_utf8(const char *text)
{
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

static char *
from_utf8(const char *text)
{
	return pg_any_to_server(text, strlen(text), PG_UTF8);
}

/* NULL: it cannot be. */
static char *
try_from_utf8(const char *text)
{
	int	  len = strlen(text);
	int	  size = len * MAX_CONVERSION_GROWTH + 1;
	char *result = palloc(size);
	Oid	  proc = FindDefaultConversionProc(PG_UTF8, GetDatabaseEncoding());

	if (!OidIsValid(proc) ||
		pg_do_encoding_conversion_buf(proc, PG_UTF8, GetDatabaseEncoding(),
									  (unsigned char *) unconstify(char *, text), len,
									  (unsigned char *) result, size, true) != len)
		return NULL;
	return result;
}

char *
resync_text_to_utf8(const char *text)
{
	return is_same(text) ? unconstify(char *, text) : in_transaction(to_utf8, text);
}

char *
resync_text_from_utf8(const char *text)
{
	return is_same(text) ? unconstify(char *, text) : in_transaction(from_utf8, text);
}

char *
resync_text_from_utf8_or_null(const char *text)
{
	if (!pg_verify_mbstr(PG_UTF8, text, strlen(text), true))
		return NULL;
	return is_same(text) ? unconstify(char *, text) : in_transaction(try_from_utf8, text);
}
