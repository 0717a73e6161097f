/*
 * peer.c
 *		A foreign server and its user mapping, as a ResyncPeer.
 *
 * Called by workers at each connection, and by the API.  Syscache only.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/syscache.h"

#include "catalog/catalog.h"

static const struct
{
	const char *wrapper;
	const char *peer_type;
} peer_types[] = {
	{"peerdb_postgres", "postgres"},	 {"postgres_fdw", "postgres"},
	{"peerdb_clickhouse", "clickhouse"}, {"peerdb_snowflake", "snowflake"},
	{"peerdb_bigquery", "bigquery"},
};

const char *
resync_catalog_peer_type(const char *wrapper)
{
	for (int i = 0; i < lengthof(peer_types); i++)
	{
		if (strcmp(wrapper, peer_types[i].wrapper) == 0)
			return peer_types[i].peer_type;
	}
	return NULL;
}

/*
 * Options of the mapping of a role (InvalidOid: PUBLIC).  False: it has none.
 * GetUserMapping() would raise, but a peer may do without a mapping.
 */
static bool
mapping_options(Oid role, Oid server, List **options)
{
	HeapTuple tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(role),
									  ObjectIdGetDatum(server));
	Datum	  datum;
	bool	  isnull;

	if (!HeapTupleIsValid(tuple))
		return false;
	datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	*options = isnull ? NIL : untransformRelOptions(datum);
	ReleaseSysCache(tuple);
	return true;
}

ResyncPeer *
resync_catalog_peer(Oid server, Oid owner)
{
	ForeignServer *fs = GetForeignServerExtended(server, FSV_MISSING_OK);
	ResyncPeer	  *peer;
	bool		   password_required = true;
	ListCell	  *lc;

	if (fs == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("foreign server of the mirror does not exist any more")));
	if (!OidIsValid(owner) || !SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("owner of the mirror does not exist any more")));
	if (!DatumGetBool(DirectFunctionCall3(has_server_privilege_id_id, ObjectIdGetDatum(owner),
										  ObjectIdGetDatum(server), CStringGetTextDatum("USAGE"))))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("role \"%s\" has no USAGE privilege on foreign server \"%s\"",
							   GetUserNameFromId(owner, false), fs->servername)));

	peer = palloc0(sizeof(ResyncPeer));
	peer->serverid = server;
	peer->servername = fs->servername;
	peer->wrapper = GetForeignDataWrapper(fs->fdwid)->fdwname;
	peer->server_options = fs->options;
	if (!mapping_options(owner, server, &peer->user_options))
		(void) mapping_options(InvalidOid, server, &peer->user_options);
	peer->owner = owner;
	peer->owner_is_superuser = superuser_arg(owner);

	foreach(lc, peer->user_options)
	{
		DefElem *def = lfirst(lc);

		if (strcmp(def->defname, "password_required") == 0)
			password_required = defGetBoolean(def);
	}
	peer->check_password = !peer->owner_is_superuser && password_required;
	return peer;
}
