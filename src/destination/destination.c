/*
 * destination.c
 *		The destinations that exist, by the name of their wrapper.
 *
 * Called by everybody who is about to connect, and by the API, which refuses
 * peers that nothing can be mirrored to.  Pure.
 */
#include "postgres.h"

#include "destination/destination.h"

#include "net/wait.h"

static const struct
{
	const char				 *wrapper;
	const DestinationRoutine *routine;
} destinations[] = {
	{"peerdb_postgres", &resync_destination_postgres},
	{"postgres_fdw", &resync_destination_postgres},
	{"peerdb_clickhouse", &resync_destination_clickhouse},
	{"peerdb_snowflake", &resync_destination_snowflake},
	{"peerdb_bigquery", &resync_destination_bigquery},
};

const DestinationRoutine *
resync_destination_routine(const char *wrapper)
{
	for (int i = 0; i < lengthof(destinations); i++)
	{
		if (strcmp(destinations[i].wrapper, wrapper) == 0)
			return destinations[i].routine;
	}
	return NULL;
}

const DestinationRoutine *
resync_destination_require(const char *wrapper)
{
	const DestinationRoutine *routine = resync_destination_routine(wrapper);

	if (routine == NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("a server of foreign-data wrapper \"%s\" cannot be a peer", wrapper),
			 errhint(
				 "Use a server of \"peerdb_postgres\", \"postgres_fdw\", \"peerdb_clickhouse\", \"peerdb_snowflake\" or \"peerdb_bigquery\".")));
	return routine;
}

void
resync_destination_set_wait_hook(void (*hook)(void))
{
	resync_wait_hook = hook;
}
