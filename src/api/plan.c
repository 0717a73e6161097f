/*
 * plan.c
 *		peerdb_plan_resync: what a resync would need, and what is in its way.
 *
 * In a user's backend, in the caller's transaction; changes nothing.  What is
 * measured is measured over a second.  The destination's part is
 * worker/peercall.c.
 */
#include "postgres.h"

#include "compat.h"

#include "api/api.h"

#include <sys/statvfs.h>

#include "access/twophase.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker_internals.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "worker/peercall.h"

PG_FUNCTION_INFO_V1(peerdb_plan_resync);

#define MEASURE_MS 1000

/* Bytes per second and copier, as long as no load of the mirror was measured. */
#define ASSUMED_LOAD_RATE (20.0 * 1024 * 1024)

/* What the checks share. */
typedef struct ResyncPlan
{
	ReturnSetInfo *rsinfo;
	MirrorRow	  *mirror;
	ResyncOptions *options; /* as they would be */
	ResyncTable	 **tables;	/* NULL: could not be resolved */
	int			   ntables;
	bool		   keep_serving;
	int64		   bytes;	  /* to be read */
	int64		   relations; /* tables, partitions and children */
	int			   copiers;
} ResyncPlan;

static void
add_row(void *arg, const char *check, const char *level, const char *detail)
{
	ResyncPlan *plan = arg;
	Datum		values[3];
	bool		nulls[3] = {0};

	values[0] = CStringGetTextDatum(check);
	values[1] = CStringGetTextDatum(level);
	values[2] = CStringGetTextDatum(detail);
	tuplestore_putvalues(plan->rsinfo->setResult, plan->rsinfo->setDesc, values, nulls);
}

/* One number from a query over the source's own catalogs. */
static double
query_number(const char *sql)
{
	bool   isnull;
	Datum  d;
	double result;

	resync_catalog_exec(sql, SPI_OK_SELECT, 0);
	d = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	result = isnull ? 0 : DatumGetFloat8(d);
	resync_catalog_finish();
	return result;
}

static char *
pretty(double bytes)
{
	return text_to_cstring(
		DatumGetTextPP(DirectFunctionCall1(pg_size_pretty, Int64GetDatum((int64) bytes))));
}

/* The checks of peerdb_resync itself; all of them raise. */
static void
source_checks(void *arg)
{
	ResyncPlan *plan = arg;

	resync_api_check_server();
	resync_catalog_check_role(plan->mirror->owner);
	(void) resync_catalog_peer(plan->mirror->server, plan->mirror->owner);
	plan->tables = resync_api_check_tables(plan->mirror, plan->mirror->owner, &plan->ntables);
}

/* An error that peerdb_resync would raise is a row here. */
static void
check_source(ResyncPlan *plan)
{
	ErrorData *error = resync_catalog_try(source_checks, plan);

	if (error == NULL)
		add_row(plan, "source", "ok", "settings, owner and tables are fit for a resync");
	else
	{
		plan->tables = NULL;
		add_row(plan, "source", "error",
				error->hint != NULL ? psprintf("%s (%s)", error->message, error->hint)
									: error->message);
	}
}

static void
check_mirror(ResyncPlan *plan)
{
	MirrorRow *mirror = plan->mirror;

	if (mirror->want_drop != NULL)
		add_row(plan, "mirror", "error", "the mirror is being dropped");
	else if (mirror->newest_run != 0 &&
			 resync_api_run_is_on(resync_catalog_run(mirror->newest_run)))
		add_row(plan, "mirror", "error",
				psprintf("run " INT64_FORMAT " is on", mirror->newest_run));
	else if (plan->keep_serving)
		add_row(plan, "mirror", "ok", "the live tables stay fresh until the swap");
	else
		add_row(plan, "mirror", "ok", "the live tables are not updated until the swap");
}

/* Bytes and relations of all tables, with TOAST, partitions and children. */
static void
check_bytes(ResyncPlan *plan)
{
	for (int i = 0; i < plan->ntables; i++)
	{
		bool isnull;

		resync_catalog_exec(
			"WITH RECURSIVE part(oid) AS (SELECT $1::oid UNION"
			" SELECT i.inhrelid FROM part p"
			" JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid)"
			" SELECT coalesce(sum(pg_catalog.pg_table_size(oid)), 0)::bigint, count(*)"
			" FROM part",
			SPI_OK_SELECT, 1, OIDOID, ObjectIdGetDatum(plan->tables[i]->relid), false);
		plan->bytes += DatumGetInt64(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		plan->relations += DatumGetInt64(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
		resync_catalog_finish();
	}
	add_row(plan, "bytes", "ok",
			psprintf("%s to read, in %d tables (" INT64_FORMAT " bytes)", pretty(plan->bytes),
					 plan->ntables, plan->bytes));
}

static void
check_workers(ResyncPlan *plan)
{
	int streamers = plan->keep_serving ? 2 : 1;
	int needed;
	int minimum;
	int used;
	int unused;

	plan->copiers = plan->options->snapshot_max_parallel_workers *
					plan->options->snapshot_num_tables_in_parallel;
	needed = 1 + streamers + plan->copiers;
	minimum = 1 + streamers + 1;
	/* this mirror's own are counted in "needed" */
	used = (int) query_number("SELECT count(*)::float8 FROM pg_catalog.pg_stat_activity"
							  " WHERE backend_type NOT IN ('client backend', 'walsender',"
							  " 'autovacuum launcher', 'autovacuum worker', 'checkpointer',"
							  " 'background writer', 'walwriter', 'archiver', 'startup',"
							  " 'walreceiver', 'walsummarizer', 'slotsync worker', 'io worker')");
	if (plan->mirror->live_run != 0 && strcmp(plan->mirror->status, "running") == 0)
		used -= Min(used, 2);
	unused = Max(max_worker_processes - used, 0);
	add_row(
		plan, "workers",
		unused < minimum  ? "error"
		: unused < needed ? "warning"
						  : "ok",
		psprintf(
			"%d needed (%d of them copiers, one is enough), %d of max_worker_processes = %d free",
			needed, plan->copiers, unused, max_worker_processes));
}

static void
check_slots(ResyncPlan *plan)
{
	int used = (int) query_number("SELECT count(*)::float8 FROM pg_catalog.pg_replication_slots");
	int unused = Max(max_replication_slots - used, 0);
	RunRow *live = plan->mirror->live_run == 0 ? NULL : resync_catalog_run(plan->mirror->live_run);

	/* the live run's slot goes before the new one is made */
	if (!plan->keep_serving && live != NULL && live->slot_name != NULL)
		unused++;
	add_row(
		plan, "slots", unused < 1 ? "error" : "ok",
		psprintf("1 needed, %d of max_replication_slots = %d free", unused, max_replication_slots));
}

/* Bytes of WAL per second, measured now, or on average if that is more. */
static double
wal_rate(void)
{
	XLogRecPtr	before = GetXLogInsertRecPtr();
	TimestampTz start = GetCurrentTimestamp();
	double		average;
	double		now;
	long		left;

	while ((left = TimestampDifferenceMilliseconds(
				GetCurrentTimestamp(), TimestampTzPlusMilliseconds(start, MEASURE_MS))) > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left,
						 RESYNC_WAIT_EVENT("WalRate"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	now = (double) (GetXLogInsertRecPtr() - before) * 1000.0 / MEASURE_MS;
	average = query_number("SELECT (wal_bytes / greatest(extract(epoch FROM"
						   " pg_catalog.clock_timestamp() - stats_reset), 1))::float8"
						   " FROM pg_catalog.pg_stat_wal");
	return Max(now, average);
}

/* Bytes per second of this mirror's last load; 0: none was measured. */
static double
load_rate(const ResyncPlan *plan)
{
	bool   isnull;
	Datum  d;
	double rate;

	resync_catalog_exec("SELECT (sum(p.est_bytes) / greatest(extract(epoch FROM"
						" max(p.finished_at) - min(p.started_at)), 0.1))::float8"
						" FROM peerdb._partition p JOIN peerdb._run r ON r.run = p.run"
						" WHERE r.mirror = $1 AND p.status = 'done'"
						" GROUP BY p.run ORDER BY p.run DESC LIMIT 1",
						SPI_OK_SELECT, 1, INT8OID, Int64GetDatum(plan->mirror->id), false);
	if (SPI_processed == 0)
		rate = 0;
	else
	{
		d = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		rate = isnull ? 0 : DatumGetFloat8(d);
	}
	resync_catalog_finish();
	return rate;
}

static void
check_wal(ResyncPlan *plan)
{
	double		   rate = wal_rate();
	double		   reading = load_rate(plan);
	const char	  *how = "as measured in the last load";
	double		   seconds;
	double		   held;
	struct statvfs fs;
	bool		   too_much;

	if (reading <= 0)
	{
		reading = ASSUMED_LOAD_RATE * Max(plan->copiers, 1);
		how = "assumed, no load was measured yet";
	}
	if (resync_load_rate_limit > 0)
		reading = Min(reading, resync_load_rate_limit * 1024.0);
	seconds = plan->bytes / reading;
	held = rate * seconds;
	add_row(plan, "duration", "ok",
			psprintf("about %.0f s of load, at %s per second (%s)", seconds, pretty(reading), how));

	too_much = max_slot_wal_keep_size_mb >= 0 &&
			   held >= max_slot_wal_keep_size_mb * 1024.0 * 1024.0;
	add_row(
		plan, "wal", too_much ? "error" : "ok",
		max_slot_wal_keep_size_mb >= 0
			? psprintf("about %s held for the load, at %s per second; max_slot_wal_keep_size is %s",
					   pretty(held), pretty(rate),
					   pretty(max_slot_wal_keep_size_mb * 1024.0 * 1024.0))
			: psprintf(
				  "about %s held for the load, at %s per second; max_slot_wal_keep_size has no limit",
				  pretty(held), pretty(rate)));

	if (statvfs("pg_wal", &fs) != 0)
		add_row(plan, "disk", "warning", psprintf("could not read the free space of pg_wal: %m"));
	else
	{
		double available = (double) fs.f_bavail * fs.f_frsize;

		add_row(plan, "disk",
				held >= available		? "error"
				: held >= available / 2 ? "warning"
										: "ok",
				psprintf("%s free where the WAL is", pretty(available)));
	}
}

/* The load holds ACCESS SHARE on every relation it reads. */
static void
check_locks(ResyncPlan *plan)
{
	int64 table = (int64) max_locks_per_xact * (MaxBackends + max_prepared_xacts);

	add_row(
		plan, "locks", plan->relations > table / 2 ? "error" : "ok",
		psprintf(
			"ACCESS SHARE on " INT64_FORMAT
			" relations during the load; half of the lock table (max_locks_per_transaction) is " INT64_FORMAT,
			plan->relations, table / 2));
}

/* A new slot waits for every transaction that has written. */
static void
check_transactions(ResyncPlan *plan)
{
	double prepared = query_number("SELECT count(*)::float8 FROM pg_catalog.pg_prepared_xacts");
	double writing = query_number(
		"SELECT count(*)::float8 FROM pg_catalog.pg_stat_activity"
		" WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()");
	double pid = query_number(
		"SELECT (SELECT pid FROM pg_catalog.pg_stat_activity"
		" WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()"
		" ORDER BY xact_start LIMIT 1)::float8");

	if (prepared > 0)
		add_row(plan, "transactions", "warning",
				psprintf("the slot will wait for %.0f prepared transactions", prepared));
	else if (writing > 0)
		add_row(
			plan, "transactions", "warning",
			psprintf(
				"the slot will wait for %.0f transactions that have written; the oldest is of process %.0f",
				writing, pid));
	else
		add_row(plan, "transactions", "ok", "no open transaction has written");
}

/* peerdb_plan_resync(mirror, options) */
Datum
peerdb_plan_resync(PG_FUNCTION_ARGS)
{
	char	  *name;
	Jsonb	  *options;
	ResyncPlan plan = {0};

	resync_api_require_preload();
	name = resync_api_text(fcinfo, 0, "mirror");
	options = resync_api_jsonb(fcinfo, 1, "options");
	plan.mirror = resync_api_find_mirror(name);
	if (!resync_api_may_steer(plan.mirror->owner))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("must be owner of mirror %s", name)));
	resync_options_check(options, resync_api_resync_keys);
	plan.mirror->options = DatumGetJsonbP(DirectFunctionCall2(
		jsonb_concat, JsonbPGetDatum(plan.mirror->options), JsonbPGetDatum(options)));
	plan.options = resync_options_parse(plan.mirror->options);
	plan.keep_serving = resync_api_keeps_serving(plan.mirror);
	InitMaterializedSRF(fcinfo, 0);
	plan.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	check_mirror(&plan);
	check_source(&plan);
	if (plan.tables != NULL)
	{
		check_bytes(&plan);
		check_workers(&plan);
		check_slots(&plan);
		check_wal(&plan);
		check_locks(&plan);
		check_transactions(&plan);
		resync_peercall_check(plan.mirror, plan.tables, plan.ntables, add_row, &plan);
	}
	return (Datum) 0;
}
