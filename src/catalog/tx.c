/*
 * tx.c
 *		How our catalog is reached: transactions of workers, and the SPI wrapper
 *		that every other file of catalog/ uses.
 *
 * Called from user backends (API functions, within the user's transaction) and
 * from workers (between resync_catalog_begin() and resync_catalog_commit()).
 *
 * SQL runs as the bootstrap superuser, because nobody else may touch the
 * tables, with search_path pinned to pg_catalog, so that operators in it mean
 * what they say.  Both are put back by resync_catalog_finish(), or, after an
 * error, by the abort of the (sub)transaction, which resets the user to the
 * one at its start, unwinds the GUC nesting and closes SPI.
 */
#include "postgres.h"

#include <stdarg.h>

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "catalog/catalog.h"

/* What resync_catalog_finish() has to put back. */
typedef struct OpenExec
{
	SubTransactionId subid;
	Oid				 userid;
	int				 sec_context;
	int				 guc_level;
	MemoryContext	 context;
} OpenExec;

#define MAX_NESTED_EXEC 8
#define MAX_EXEC_ARGS 24

static OpenExec open_execs[MAX_NESTED_EXEC];
static int		num_open_execs = 0;
static bool		callback_registered = false;

/* Of the worker's transaction. */
static Oid			 begin_userid;
static int			 begin_sec_context;
static MemoryContext begin_context;

/* A transaction has ended: what was open in it is gone. */
static void
forget_open_execs(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE)
		num_open_execs = 0;
}

void
resync_catalog_begin(void)
{
	begin_context = CurrentMemoryContext;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	GetUserIdAndSecContext(&begin_userid, &begin_sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   begin_sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	PushActiveSnapshot(GetTransactionSnapshot());
	/* the activity text stays the one that the worker has set */
	pgstat_report_activity(STATE_RUNNING, NULL);
}

void
resync_catalog_commit(void)
{
	PopActiveSnapshot();
	SetUserIdAndSecContext(begin_userid, begin_sec_context);
	CommitTransactionCommand();
	/* core leaves TopMemoryContext current: what is allocated next would stay */
	MemoryContextSwitchTo(begin_context);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* SPI, as the bootstrap superuser, until resync_catalog_finish(). */
static void
open_exec(void)
{
	MemoryContext context = CurrentMemoryContext;
	OpenExec	 *state;

	if (!callback_registered)
	{
		RegisterXactCallback(forget_open_execs, NULL);
		callback_registered = true;
	}
	/* those of subtransactions that were rolled back */
	while (num_open_execs > 0 && !SubTransactionIsActive(open_execs[num_open_execs - 1].subid))
		num_open_execs--;
	if (num_open_execs >= MAX_NESTED_EXEC)
		elog(ERROR, "catalog queries are nested too deeply");

	SPI_connect();
	state = &open_execs[num_open_execs++];
	state->subid = GetCurrentSubTransactionId();
	state->context = context;
	GetUserIdAndSecContext(&state->userid, &state->sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, state->sec_context |
													  SECURITY_LOCAL_USERID_CHANGE |
													  SECURITY_NOFORCE_RLS);
	state->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

uint64
resync_catalog_exec(const char *sql, int expect, int nargs, ...)
{
	Oid		types[MAX_EXEC_ARGS];
	Datum	values[MAX_EXEC_ARGS];
	char	nulls[MAX_EXEC_ARGS];
	va_list args;
	int		rc;

	if (nargs > MAX_EXEC_ARGS)
		elog(ERROR, "too many arguments: %d", nargs);
	va_start(args, nargs);
	for (int i = 0; i < nargs; i++)
	{
		types[i] = va_arg(args, Oid);
		values[i] = va_arg(args, Datum);
		nulls[i] = va_arg(args, int) ? 'n' : ' ';
	}
	va_end(args);

	open_exec();
	rc = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (rc != expect)
		elog(ERROR, "catalog query returned %s: %s", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

uint64
resync_catalog_look(const char *sql)
{
	int rc;

	open_exec();
	PushActiveSnapshot(GetLatestSnapshot());
	rc = SPI_execute(sql, true, 0);
	PopActiveSnapshot();
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "catalog query returned %s: %s", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

void
resync_catalog_finish(void)
{
	OpenExec *state;

	if (num_open_execs == 0)
		elog(ERROR, "no catalog query is open");
	state = &open_execs[--num_open_execs];
	AtEOXact_GUC(true, state->guc_level);
	SetUserIdAndSecContext(state->userid, state->sec_context);
	SPI_finish();
	MemoryContextSwitchTo(state->context);
}

bool
resync_catalog_exists(void)
{
	return OidIsValid(get_extension_oid(RESYNC_EXTENSION, true));
}

ErrorData *
resync_catalog_try(void (*fn)(void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData *volatile edata = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		fn(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return edata;
}
