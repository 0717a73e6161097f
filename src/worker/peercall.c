/*
 * peercall.c
 *		Calls of user backends that connect to a destination.
 *
 * Called by peerdb_check_peer, peerdb_plan_resync and peerdb_compare, in the
 * caller's transaction and backend.  The connection is made with the mapping of
 * the mirror's owner (peerdb_check_peer: the caller's) and lives as long as the
 * call: it is closed here, or by the reset callback of its memory context when
 * an error is raised.  No lock is held but what the caller's transaction has.
 */
#include "postgres.h"

#include "worker/peercall.h"

#include "destination/destination.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define APPNAME "resync call"

void
resync_peercall_require(const char *wrapper)
{
	(void) resync_destination_require(wrapper);
}

char *
resync_peercall_version(Oid server, Oid user)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "resync call", ALLOCSET_DEFAULT_SIZES);
	const DestinationRoutine *routine;
	ResyncPeer				 *peer;
	Destination				 *dest;
	char					 *version;

	MemoryContextSwitchTo(context);
	peer = resync_catalog_peer(server, user);
	routine = resync_destination_require(peer->wrapper);
	dest = routine->open(peer, NULL, APPNAME);
	version = MemoryContextStrdup(caller, routine->version(dest));
	routine->close(dest);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	return version;
}

/* What identifies a mirror's run at its destination.  run may be 0. */
static ResyncRunId *
make_id(const MirrorRow *mirror, int64 run)
{
	ResyncRunId *id = palloc0(sizeof(ResyncRunId));

	id->mirror = mirror->name;
	id->token = mirror->token;
	id->system_identifier = mirror->system_identifier;
	id->database = mirror->database;
	id->run = run;
	id->options = resync_options_parse(mirror->options);
	return id;
}

/* State of one resync_peercall_check. */
typedef struct CheckState
{
	const DestinationRoutine *routine;
	const ResyncPeer		 *peer;
	const ResyncRunId		 *id;
	bool					  live_expected;
	ResyncTable				 *table;  /* to be checked; or NULL */
	ResyncTable				**tables; /* to be checked together; or NULL */
	int						  ntables;
	Destination				 *dest;
	List					 *warnings; /* of char * */
	char					 *version;
} CheckState;

/* Connect; then what is set of one table, and all of them together. */
static void
check_one(void *arg)
{
	CheckState *state = arg;

	if (state->dest == NULL)
	{
		state->dest = state->routine->open(state->peer, state->id, APPNAME);
		state->version = state->routine->version(state->dest);
	}
	if (state->table != NULL)
	{
		state->routine->map_columns(state->dest, state->table);
		state->routine->check_table(state->dest, state->table, state->live_expected,
									&state->warnings);
	}
	if (state->tables != NULL && state->routine->check_tables != NULL)
		state->routine->check_tables(state->dest, state->tables, state->ntables);
}

/*
 * An error becomes the returned text, NULL for none, and the connection, which
 * cannot be used after it, is closed.
 */
static char *
try_check(CheckState *state)
{
	ErrorData *error = resync_catalog_try(check_one, state);

	if (error == NULL)
		return NULL;
	if (state->dest != NULL)
	{
		state->routine->close(state->dest);
		state->dest = NULL;
	}
	return error->detail != NULL ? psprintf("%s: %s", error->message, error->detail)
								 : error->message;
}

static void
check_tables(CheckState *state, ResyncTable **tables, int ntables, PeerCallReport report, void *arg)
{
	char *error;

	for (int i = 0; i < ntables; i++)
	{
		char *check = psprintf(
			"destination table %s",
			quote_qualified_identifier(tables[i]->dest_schema, tables[i]->dest_name));
		ListCell *lc;

		state->warnings = NIL;
		state->table = tables[i];
		error = try_check(state);
		foreach(lc, state->warnings)
			report(arg, check, "warning", lfirst(lc));
		if (error != NULL)
			report(arg, check, "error", error);
		else if (state->warnings == NIL)
			report(arg, check, "ok", "can be rebuilt");
	}
	state->table = NULL;
	state->tables = tables;
	state->ntables = ntables;
	error = try_check(state);
	if (error != NULL)
		report(arg, "destination", "error", error);
}

void
resync_peercall_check(const MirrorRow *mirror, ResyncTable **tables, int ntables,
					  PeerCallReport report, void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "resync call", ALLOCSET_DEFAULT_SIZES);
	CheckState	  state = {0};
	char		 *error;

	MemoryContextSwitchTo(context);
	state.peer = resync_catalog_peer(mirror->server, mirror->owner);
	state.routine = resync_destination_require(state.peer->wrapper);
	state.id = make_id(mirror, mirror->newest_run);
	state.live_expected = mirror->live_run != 0 || state.id->options->replace_existing;

	error = try_check(&state);
	if (error != NULL)
		report(arg, "destination", "error", error);
	else
	{
		report(arg, "destination", "ok", state.version);
		check_tables(&state, tables, ntables, report, arg);
	}
	if (state.dest != NULL)
		state.routine->close(state.dest);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
}

void
resync_peercall_count(const MirrorRow *mirror, ResyncTable **tables, int ntables, int64 *rows)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "resync call", ALLOCSET_DEFAULT_SIZES);
	const DestinationRoutine *routine;
	ResyncPeer				 *peer;
	Destination				 *dest;

	MemoryContextSwitchTo(context);
	peer = resync_catalog_peer(mirror->server, mirror->owner);
	routine = resync_destination_require(peer->wrapper);
	dest = routine->open(peer, make_id(mirror, mirror->live_run), APPNAME);
	for (int i = 0; i < ntables; i++)
		rows[i] = routine->count_rows(dest, tables[i], false, true);
	routine->close(dest);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
}
