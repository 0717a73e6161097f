/* sql/resync--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION resync" to load this file. \quit

CREATE SCHEMA peerdb;
COMMENT ON SCHEMA peerdb IS 'resync: mirrors, their runs, statistics and logs';
GRANT USAGE ON SCHEMA peerdb TO PUBLIC;

/* ---------------------------------------------------------------------
 * Catalog tables: the only durable state on the source.  Nobody reads them
 * but the extension and the views below.
 * ------------------------------------------------------------------ */

CREATE TABLE peerdb._mirror (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL UNIQUE,
	owner oid NOT NULL,
	owner_name name NOT NULL,			-- travels in a dump, the OID does not
	server oid NOT NULL,
	server_name name NOT NULL,
	options jsonb NOT NULL DEFAULT '{}',
	token uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
	system_identifier bigint NOT NULL,
	database_oid oid NOT NULL,
	instance text NOT NULL,				-- of the server's data directory: tells a base backup from it
	status text NOT NULL DEFAULT 'setup'
		CHECK (status IN ('setup', 'snapshot', 'running', 'pausing', 'paused', 'failed', 'completed', 'terminating')),
	status_since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	live_run bigint,					-- serves the live tables; NULL: none
	newest_run bigint,					-- the run that is on, or was the last
	want_pause boolean NOT NULL DEFAULT false,
	want_cancel boolean NOT NULL DEFAULT false,
	adopt_from uuid,					-- taken over from a copy's original: its token
	want_drop text CHECK (want_drop IN ('keep', 'drop')),	-- drop_mirror was called; the destination's tables
	error text,
	error_sqlstate text,
	error_at timestamptz,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

CREATE TABLE peerdb._table (
	mirror bigint NOT NULL REFERENCES peerdb._mirror ON DELETE CASCADE,
	ordinal int NOT NULL,
	relid oid NOT NULL,
	schema_name name NOT NULL,
	table_name name NOT NULL,
	dest_schema text,					-- NULL where the destination has none
	dest_name text NOT NULL,
	mapping jsonb NOT NULL,				-- normalized object: "from", "to", "exclude", ...
	PRIMARY KEY (mirror, ordinal)
);

CREATE TABLE peerdb._run (
	run bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	mirror bigint NOT NULL,
	mirror_name text NOT NULL,
	owner oid,							-- of the mirror: who may see the run
	kind text NOT NULL CHECK (kind IN ('initial', 'resync')),
	phase text NOT NULL DEFAULT 'validate'
		CHECK (phase IN ('validate', 'drop', 'create_slot', 'create_tables', 'load', 'catch_up', 'swap', 'stream', 'ended')),
	options jsonb NOT NULL DEFAULT '{}',	-- of the mirror, when the run began
	keep_serving boolean NOT NULL DEFAULT false,
	replaces bigint,					-- the live run it takes over from
	previous_status text,				-- of the mirror, for a run that is refused
	slot_name text,
	snapshot_lsn pg_lsn,				-- the slot's consistent point
	snapshots int NOT NULL DEFAULT 0,	-- exported so far
	catch_up_lsn pg_lsn,				-- LSN of the last snapshot used
	confirmed_lsn pg_lsn,				-- durable at the destination, as last reported
	wal_warned bigint,					-- bytes held while at rest, as last warned about
	step text,							-- started and not done: counts crashes
	crashes int NOT NULL DEFAULT 0,
	restarts int NOT NULL DEFAULT 0,	-- of phase create_slot, because a table was rewritten
	rows_loaded bigint,
	bytes_sent bigint,
	rows_synced bigint NOT NULL DEFAULT 0,
	started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	phase_since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	finished_at timestamptz,
	outcome text CHECK (outcome IN ('done', 'refused', 'failed', 'cancelled')),
	error text,
	error_sqlstate text
);
CREATE INDEX ON peerdb._run (mirror);

CREATE TABLE peerdb._run_table (
	run bigint NOT NULL REFERENCES peerdb._run ON DELETE CASCADE,
	ordinal int NOT NULL,
	relid oid NOT NULL,
	schema_name name NOT NULL,
	table_name name NOT NULL,
	dest_schema text,
	dest_name text NOT NULL,
	build_name text NOT NULL,
	plan jsonb NOT NULL,				-- columns, key, identity (ResyncTable)
	state "char" NOT NULL DEFAULT 'n',
	multi_snapshot boolean NOT NULL DEFAULT false,
	loaded_snapshot text,				-- without key: what the load saw, if not the slot's own snapshot
	rows_total_estimate bigint,
	bytes_total bigint,
	partitions_total int,
	load_started_at timestamptz,
	inserts bigint NOT NULL DEFAULT 0,
	updates bigint NOT NULL DEFAULT 0,
	deletes bigint NOT NULL DEFAULT 0,
	error text,
	PRIMARY KEY (run, ordinal)
);

CREATE TABLE peerdb._partition (
	run bigint NOT NULL REFERENCES peerdb._run ON DELETE CASCADE,
	partition bigint NOT NULL,			-- numbered within the run
	ordinal int NOT NULL,				-- the table
	relid oid NOT NULL,					-- the relation read: a leaf, or the table itself
	more oid[] NOT NULL DEFAULT '{}',	-- further leaves, read whole after it
	first_block bigint NOT NULL,
	last_block bigint,					-- NULL: open-ended
	est_bytes bigint NOT NULL,
	status text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'loading', 'done')),
	snapshot int,						-- the run's how-manieth
	rows bigint,
	bytes bigint,
	attempts int NOT NULL DEFAULT 0,
	started_at timestamptz,
	finished_at timestamptz,
	PRIMARY KEY (run, partition)
);

CREATE TABLE peerdb._batch (
	mirror bigint NOT NULL,
	batch bigint NOT NULL,
	run bigint NOT NULL,
	first_lsn pg_lsn NOT NULL,
	last_lsn pg_lsn NOT NULL,
	rows bigint NOT NULL,
	started_at timestamptz NOT NULL,
	finished_at timestamptz NOT NULL,
	PRIMARY KEY (mirror, batch)
);

CREATE TABLE peerdb._log (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	logged_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	mirror bigint,
	mirror_name text,
	owner oid,							-- who may see it
	run bigint,
	level text NOT NULL,
	phase text,
	source_table text,
	sqlstate text,
	message text NOT NULL,
	detail text
);
CREATE INDEX ON peerdb._log (mirror, id);

-- Written, and committed, before a slot is made: whatever happens, somebody
-- knows that it may exist.
CREATE TABLE peerdb._cleanup (
	slot_name text PRIMARY KEY,
	run bigint NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

/* Operators and functions below mean those of pg_catalog, whatever the caller's path is. */
SET LOCAL search_path TO pg_catalog, pg_temp;

-- Definitions travel in a dump; runs and what belongs to them do not, since
-- slots do not either.
SELECT pg_catalog.pg_extension_config_dump('peerdb._mirror', '');
SELECT pg_catalog.pg_extension_config_dump('peerdb._mirror_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('peerdb._table', '');

REVOKE ALL ON ALL TABLES IN SCHEMA peerdb FROM PUBLIC;

COMMENT ON TABLE peerdb._mirror IS 'resync internal: mirrors and requests to their coordinators';
COMMENT ON TABLE peerdb._table IS 'resync internal: tables of mirrors';
COMMENT ON TABLE peerdb._run IS 'resync internal: runs of mirrors';
COMMENT ON TABLE peerdb._run_table IS 'resync internal: tables of a run, their plan and journal';
COMMENT ON TABLE peerdb._partition IS 'resync internal: partitions of a load';
COMMENT ON TABLE peerdb._batch IS 'resync internal: batches of changes that were applied';
COMMENT ON TABLE peerdb._log IS 'resync internal: log';
COMMENT ON TABLE peerdb._cleanup IS 'resync internal: replication slots that may exist';

/* ---------------------------------------------------------------------
 * Peers: a destination is a foreign server of one of these wrappers.
 * ------------------------------------------------------------------ */

CREATE FUNCTION peerdb._postgres_validator(text[], oid) RETURNS void
	AS 'MODULE_PATHNAME', 'peerdb_postgres_validator' LANGUAGE C STRICT;
CREATE FUNCTION peerdb._clickhouse_validator(text[], oid) RETURNS void
	AS 'MODULE_PATHNAME', 'peerdb_clickhouse_validator' LANGUAGE C STRICT;
CREATE FUNCTION peerdb._snowflake_validator(text[], oid) RETURNS void
	AS 'MODULE_PATHNAME', 'peerdb_snowflake_validator' LANGUAGE C STRICT;
CREATE FUNCTION peerdb._bigquery_validator(text[], oid) RETURNS void
	AS 'MODULE_PATHNAME', 'peerdb_bigquery_validator' LANGUAGE C STRICT;

COMMENT ON FUNCTION peerdb._postgres_validator(text[], oid) IS 'checks options of PostgreSQL peers';
COMMENT ON FUNCTION peerdb._clickhouse_validator(text[], oid) IS 'checks options of ClickHouse peers';
COMMENT ON FUNCTION peerdb._snowflake_validator(text[], oid) IS 'checks options of Snowflake peers';
COMMENT ON FUNCTION peerdb._bigquery_validator(text[], oid) IS 'checks options of BigQuery peers';

CREATE FOREIGN DATA WRAPPER peerdb_postgres NO HANDLER VALIDATOR peerdb._postgres_validator;
CREATE FOREIGN DATA WRAPPER peerdb_clickhouse NO HANDLER VALIDATOR peerdb._clickhouse_validator;
CREATE FOREIGN DATA WRAPPER peerdb_snowflake NO HANDLER VALIDATOR peerdb._snowflake_validator;
CREATE FOREIGN DATA WRAPPER peerdb_bigquery NO HANDLER VALIDATOR peerdb._bigquery_validator;

COMMENT ON FOREIGN DATA WRAPPER peerdb_postgres IS 'resync: PostgreSQL databases that mirrors go to';
COMMENT ON FOREIGN DATA WRAPPER peerdb_clickhouse IS 'resync: ClickHouse databases that mirrors go to';
COMMENT ON FOREIGN DATA WRAPPER peerdb_snowflake IS 'resync: Snowflake databases that mirrors go to';
COMMENT ON FOREIGN DATA WRAPPER peerdb_bigquery IS 'resync: BigQuery datasets that mirrors go to';

/* ---------------------------------------------------------------------
 * Functions.  None is STRICT: a NULL argument is an error that names it.
 * ------------------------------------------------------------------ */

CREATE FUNCTION @extschema@.peerdb_create_mirror(mirror text, peer text, tables jsonb, options jsonb DEFAULT '{}')
	RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_resync(mirror text, options jsonb DEFAULT '{}')
	RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_cancel_resync(mirror text)
	RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_pause_mirror(mirror text)
	RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_resume_mirror(mirror text, adopt boolean DEFAULT false)
	RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_drop_mirror(mirror text, if_exists boolean DEFAULT false, drop_destination boolean DEFAULT false)
	RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_edit_mirror(mirror text, options jsonb DEFAULT '{}', tables jsonb DEFAULT NULL)
	RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_add_tables(mirror text, tables jsonb)
	RETURNS bigint AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_remove_tables(mirror text, tables text[])
	RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_mirror_status(mirror text)
	RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_wait_for_status(mirror text, status text DEFAULT 'running', timeout interval DEFAULT '1 hour')
	RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_wait_for_lsn(mirror text, lsn pg_lsn DEFAULT NULL, timeout interval DEFAULT '5 minutes')
	RETURNS pg_lsn AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_plan_resync(mirror text, options jsonb DEFAULT '{}', OUT "check" text, OUT level text, OUT detail text)
	RETURNS SETOF record AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_compare(mirror text, OUT source_table text, OUT destination_table text, OUT source_rows bigint, OUT destination_rows bigint, OUT equal boolean)
	RETURNS SETOF record AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_check_peer(peer text)
	RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
CREATE FUNCTION @extschema@.peerdb_version()
	RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C STABLE;

COMMENT ON FUNCTION @extschema@.peerdb_create_mirror(text, text, jsonb, jsonb) IS 'create a mirror: load the tables into the peer, then keep them current; returns the run';
COMMENT ON FUNCTION @extschema@.peerdb_resync(text, jsonb) IS 'rebuild a mirror; returns the run at once, the work starts at commit';
COMMENT ON FUNCTION @extschema@.peerdb_cancel_resync(text) IS 'cancel the resync that is on';
COMMENT ON FUNCTION @extschema@.peerdb_pause_mirror(text) IS 'pause a mirror, in any phase';
COMMENT ON FUNCTION @extschema@.peerdb_resume_mirror(text, boolean) IS 'go on with a mirror that is paused or failed';
COMMENT ON FUNCTION @extschema@.peerdb_drop_mirror(text, boolean, boolean) IS 'drop a mirror, its slot and leftovers; the destination''s tables stay unless asked';
COMMENT ON FUNCTION @extschema@.peerdb_edit_mirror(text, jsonb, jsonb) IS 'change options or table mappings of a mirror';
COMMENT ON FUNCTION @extschema@.peerdb_add_tables(text, jsonb) IS 'add tables to a mirror (not available yet)';
COMMENT ON FUNCTION @extschema@.peerdb_remove_tables(text, text[]) IS 'remove tables from a mirror (not available yet)';
COMMENT ON FUNCTION @extschema@.peerdb_mirror_status(text) IS 'status of a mirror';
COMMENT ON FUNCTION @extschema@.peerdb_wait_for_status(text, text, interval) IS 'wait until the newest run of a mirror has reached a status; raises its error if it fails';
COMMENT ON FUNCTION @extschema@.peerdb_wait_for_lsn(text, pg_lsn, interval) IS 'wait until the destination holds everything up to an LSN, or all that is committed now';
COMMENT ON FUNCTION @extschema@.peerdb_plan_resync(text, jsonb) IS 'what a resync would need, and what is in its way; changes nothing';
COMMENT ON FUNCTION @extschema@.peerdb_compare(text) IS 'count live rows on both sides';
COMMENT ON FUNCTION @extschema@.peerdb_check_peer(text) IS 'connect to a peer and return its version';
COMMENT ON FUNCTION @extschema@.peerdb_version() IS 'version of resync';

REVOKE ALL ON FUNCTION
	@extschema@.peerdb_create_mirror(text, text, jsonb, jsonb),
	@extschema@.peerdb_resync(text, jsonb),
	@extschema@.peerdb_cancel_resync(text),
	@extschema@.peerdb_pause_mirror(text),
	@extschema@.peerdb_resume_mirror(text, boolean),
	@extschema@.peerdb_drop_mirror(text, boolean, boolean),
	@extschema@.peerdb_edit_mirror(text, jsonb, jsonb),
	@extschema@.peerdb_add_tables(text, jsonb),
	@extschema@.peerdb_remove_tables(text, text[]),
	@extschema@.peerdb_mirror_status(text),
	@extschema@.peerdb_wait_for_status(text, text, interval),
	@extschema@.peerdb_wait_for_lsn(text, pg_lsn, interval),
	@extschema@.peerdb_plan_resync(text, jsonb),
	@extschema@.peerdb_compare(text),
	@extschema@.peerdb_check_peer(text),
	@extschema@.peerdb_version(),
	peerdb._postgres_validator(text[], oid),
	peerdb._clickhouse_validator(text[], oid),
	peerdb._snowflake_validator(text[], oid),
	peerdb._bigquery_validator(text[], oid)
FROM PUBLIC;

/* ---------------------------------------------------------------------
 * Behind the views.  A view calls functions with its reader's rights, so PUBLIC
 * may execute these six; each checks for itself what its caller may see.
 * ------------------------------------------------------------------ */

CREATE FUNCTION peerdb._options(options jsonb)
	RETURNS jsonb AS 'MODULE_PATHNAME', 'peerdb_options' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION peerdb._owner(owner oid, owner_name name, system_identifier bigint, database_oid oid)
	RETURNS oid AS 'MODULE_PATHNAME', 'peerdb_owner' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION peerdb._is_copy(system_identifier bigint, database_oid oid, instance text)
	RETURNS boolean AS 'MODULE_PATHNAME', 'peerdb_is_copy' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION peerdb._copy_error(is_copy boolean)
	RETURNS text AS 'MODULE_PATHNAME', 'peerdb_copy_error' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION peerdb._progress(run bigint,
	OUT streamer text, OUT streamer_pid int, OUT copiers int, OUT rows_loading bigint,
	OUT applied_lsn pg_lsn, OUT received_lsn pg_lsn, OUT rows_synced bigint,
	OUT oldest_pending timestamptz, OUT waits_for_pid int, OUT waits_for text)
	RETURNS record AS 'MODULE_PATHNAME', 'peerdb_progress' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
CREATE FUNCTION peerdb._partition_progress(run bigint, partition bigint, OUT rows bigint, OUT bytes bigint)
	RETURNS record AS 'MODULE_PATHNAME', 'peerdb_partition_progress' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION peerdb._options(jsonb) IS 'resync internal: options of a mirror over the defaults';
COMMENT ON FUNCTION peerdb._owner(oid, name, bigint, oid) IS 'resync internal: the role that owns a mirror in this database';
COMMENT ON FUNCTION peerdb._is_copy(bigint, oid, text) IS 'resync internal: did a mirror''s row come here with a copy of its database or server?';
COMMENT ON FUNCTION peerdb._copy_error(boolean) IS 'resync internal: error shown for a mirror in a copy, or restored from a dump';
COMMENT ON FUNCTION peerdb._progress(bigint) IS 'resync internal: live counters of a run';
COMMENT ON FUNCTION peerdb._partition_progress(bigint, bigint) IS 'resync internal: live counters of a partition';

-- Mirrors that the reader may see, the run that is shown for each (the newest
-- while it is on, else the live one) and the run that feeds the live tables.
CREATE VIEW peerdb._visible WITH (security_barrier) AS
SELECT m.id, m.name, o.owner_now,
	coalesce(a.rolname::text, m.owner_name::text) AS owner,
	s.srvname::text AS peer,
	CASE w.fdwname::text
		WHEN 'peerdb_postgres' THEN 'postgres' WHEN 'postgres_fdw' THEN 'postgres'
		WHEN 'peerdb_clickhouse' THEN 'clickhouse'
		WHEN 'peerdb_snowflake' THEN 'snowflake'
		WHEN 'peerdb_bigquery' THEN 'bigquery' END AS peer_type,
	CASE WHEN x.is_copy OR x.restored THEN 'failed' ELSE m.status END AS status, m.status_since, m.options,
	CASE WHEN x.is_copy OR x.restored THEN peerdb._copy_error(x.is_copy) ELSE m.error END AS error, m.error_at, m.created_at,
	m.server_name::text AS server_name,
	CASE WHEN n.outcome IS NULL AND n.phase NOT IN ('stream', 'ended') THEN n.run
		ELSE coalesce(l.run, n.run) END AS shown_run,
	CASE WHEN l.phase = 'stream' THEN l.run
		WHEN n.outcome IS NULL THEN n.run ELSE coalesce(l.run, n.run) END AS stream_run,
	n.run AS newest_run
FROM peerdb._mirror m
CROSS JOIN LATERAL (SELECT peerdb._owner(m.owner, m.owner_name, m.system_identifier, m.database_oid) AS owner_now) o
LEFT JOIN peerdb._run l ON l.run = m.live_run AND l.mirror = m.id
LEFT JOIN peerdb._run n ON n.run = m.newest_run AND n.mirror = m.id
CROSS JOIN LATERAL (SELECT peerdb._is_copy(m.system_identifier, m.database_oid, m.instance) AS is_copy,
	m.newest_run IS NOT NULL AND n.run IS NULL AS restored) x
LEFT JOIN pg_catalog.pg_roles a ON a.oid = o.owner_now
LEFT JOIN pg_catalog.pg_foreign_server s ON s.oid = m.server
LEFT JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
WHERE pg_catalog.pg_has_role(o.owner_now, 'MEMBER')
	OR pg_catalog.pg_has_role('pg_read_all_stats', 'MEMBER');
COMMENT ON VIEW peerdb._visible IS 'resync internal: mirrors that the reader may see';

-- Runs that the reader may see.  A resync is done when its run serves the live
-- tables, although the run itself goes on.
CREATE VIEW peerdb._visible_run WITH (security_barrier) AS
SELECT r.run, r.mirror AS mirror_id, coalesce(m.name, r.mirror_name) AS mirror, r.kind, r.phase,
	r.slot_name, r.snapshot_lsn, r.confirmed_lsn, r.rows_loaded, r.bytes_sent, r.rows_synced,
	r.started_at,
	coalesce(r.finished_at, CASE WHEN r.phase = 'stream' THEN r.phase_since END) AS finished_at,
	coalesce(r.outcome, CASE WHEN r.phase = 'stream' THEN 'done' END) AS outcome, r.error
FROM peerdb._run r
LEFT JOIN peerdb._mirror m ON m.id = r.mirror
WHERE pg_catalog.pg_has_role(coalesce(peerdb._owner(m.owner, m.owner_name, m.system_identifier, m.database_oid), r.owner), 'MEMBER')
	OR pg_catalog.pg_has_role('pg_read_all_stats', 'MEMBER');
COMMENT ON VIEW peerdb._visible_run IS 'resync internal: runs that the reader may see';

-- Partitions as they are now.  bytes_read: an estimate of what was read of it.
CREATE VIEW peerdb._partition_now AS
SELECT p.run, p.partition, p.ordinal, p.relid, p.more, p.first_block, p.last_block, p.status,
	CASE WHEN p.status = 'loading' THEN coalesce(x.rows, p.rows) ELSE p.rows END AS rows,
	CASE WHEN p.status = 'loading' THEN coalesce(x.bytes, p.bytes) ELSE p.bytes END AS bytes,
	p.attempts, p.started_at, p.finished_at, p.est_bytes,
	CASE p.status WHEN 'done' THEN p.est_bytes::float8
		WHEN 'loading' THEN p.est_bytes::float8 * least(0.99::float8,
			coalesce(x.rows, 0::bigint)::float8 / greatest(1::float8,
				t.rows_total_estimate::float8 * p.est_bytes::float8 / greatest(t.bytes_total, 1::bigint)::float8))
		ELSE 0::float8 END AS bytes_read
FROM peerdb._partition p
JOIN peerdb._run_table t ON t.run = p.run AND t.ordinal = p.ordinal
LEFT JOIN LATERAL peerdb._partition_progress(CASE WHEN p.status = 'loading' THEN p.run END, p.partition) x ON true;
COMMENT ON VIEW peerdb._partition_now IS 'resync internal: partitions with live counters';

-- Loads, per table of a run.
CREATE VIEW peerdb._load_now AS
SELECT p.run, p.ordinal,
	sum(p.rows)::bigint AS rows_loaded,
	sum(p.bytes)::bigint AS bytes_sent,
	sum(p.est_bytes)::float8 AS bytes_total,
	sum(p.bytes_read) AS bytes_read,
	count(*) AS partitions_total,
	count(*) FILTER (WHERE p.status = 'done') AS partitions_done,
	count(*) FILTER (WHERE p.status <> 'waiting') AS partitions_begun,
	min(p.started_at) AS started_at
FROM peerdb._partition_now p
GROUP BY p.run, p.ordinal;
COMMENT ON VIEW peerdb._load_now IS 'resync internal: loads with live counters';

/* ---------------------------------------------------------------------
 * The views.
 * ------------------------------------------------------------------ */

CREATE VIEW peerdb.mirrors WITH (security_barrier) AS
SELECT v.name AS mirror, v.owner, coalesce(v.peer, v.server_name) AS peer, v.peer_type, v.status,
	c.phase, c.run,
	(SELECT count(*)::int FROM peerdb._table t WHERE t.mirror = v.id) AS tables,
	f.options || CASE WHEN f.options -> 'sync_interval' = 'null'::jsonb THEN
		jsonb_build_object('sync_interval', CASE v.peer_type WHEN 'postgres' THEN 0.1
			WHEN 'clickhouse' THEN 1 ELSE 60 END) ELSE '{}'::jsonb END AS options,
	coalesce(l.rows_loaded, c.rows_loaded) AS rows_loaded,
	e.rows_total_estimate,
	CASE WHEN c.phase IN ('catch_up', 'swap', 'stream') OR (c.phase = 'ended' AND c.outcome = 'done') THEN 1::float8
		WHEN c.phase IN ('validate', 'drop', 'create_slot', 'create_tables') THEN 0::float8
		WHEN l.bytes_total > 0 THEN l.bytes_read / l.bytes_total
		WHEN l.partitions_total > 0 THEN l.partitions_done::float8 / l.partitions_total::float8
		END AS progress,
	CASE WHEN c.phase = 'load' AND v.status IN ('snapshot', 'pausing') AND l.bytes_read > 0
		THEN (clock_timestamp() - l.started_at) * ((l.bytes_total - l.bytes_read) / l.bytes_read) END AS eta,
	greatest(r.rows_synced, p.rows_synced) AS rows_synced,
	CASE WHEN p.streamer IN ('streaming', 'held') AND NOT pg_is_in_recovery() THEN
		greatest(0::numeric, pg_wal_lsn_diff(pg_current_wal_flush_lsn(),
			CASE WHEN p.oldest_pending IS NULL THEN greatest(p.received_lsn, p.applied_lsn)
				ELSE coalesce(p.applied_lsn, r.confirmed_lsn, r.snapshot_lsn) END))::bigint END AS lag_bytes,
	CASE WHEN p.streamer IN ('streaming', 'held') THEN
		greatest(coalesce(clock_timestamp() - p.oldest_pending, interval '0'), interval '0') END AS lag,
	greatest(r.confirmed_lsn, p.applied_lsn) AS confirmed_lsn,
	r.slot_name, k.wal_status, v.error, v.error_at, v.created_at, v.status_since,
	pc.waits_for_pid, pc.waits_for
FROM peerdb._visible v
LEFT JOIN peerdb._visible_run c ON c.run = v.shown_run
LEFT JOIN peerdb._visible_run r ON r.run = v.stream_run
CROSS JOIN LATERAL (SELECT peerdb._options(v.options) AS options) f
LEFT JOIN LATERAL peerdb._progress(v.stream_run) p ON true
LEFT JOIN LATERAL peerdb._progress(v.shown_run) pc ON true
LEFT JOIN LATERAL (SELECT sum(n.rows_loaded)::bigint AS rows_loaded, sum(n.bytes_total) AS bytes_total,
		sum(n.bytes_read) AS bytes_read, sum(n.partitions_total) AS partitions_total,
		sum(n.partitions_done) AS partitions_done, min(n.started_at) AS started_at
	FROM peerdb._load_now n WHERE n.run = v.shown_run) l ON true
LEFT JOIN LATERAL (SELECT sum(t.rows_total_estimate)::bigint AS rows_total_estimate
	FROM peerdb._run_table t WHERE t.run = v.shown_run) e ON true
LEFT JOIN pg_catalog.pg_replication_slots k ON k.slot_name::text = r.slot_name;
COMMENT ON VIEW peerdb.mirrors IS 'mirrors: status, progress, lag, errors';

CREATE VIEW peerdb.mirror_tables WITH (security_barrier) AS
SELECT v.name AS mirror,
	format('%I.%I', t.schema_name, t.table_name) AS source_table,
	CASE WHEN t.dest_schema IS NULL THEN t.dest_name ELSE format('%I.%I', t.dest_schema, t.dest_name) END AS destination_table,
	CASE WHEN e.error IS NOT NULL AND v.status = 'failed' THEN 'failed'
		WHEN v.status IN ('failed', 'completed', 'terminating', 'paused') THEN v.status
		WHEN rt.run IS NULL OR c.phase IN ('validate', 'drop', 'create_slot', 'create_tables') THEN 'setup'
		WHEN c.phase = 'load' AND l.partitions_done = l.partitions_total THEN 'loaded'
		WHEN c.phase = 'load' AND l.partitions_begun > 0 THEN 'loading'
		WHEN c.phase = 'load' THEN 'waiting'
		WHEN c.phase IN ('catch_up', 'swap') AND rt.state <> 's'::"char" THEN 'loaded'
		ELSE 'running' END AS status,
	t.mapping, l.rows_loaded, rt.rows_total_estimate,
	l.partitions_done,
	coalesce(rt.partitions_total::bigint, l.partitions_total) AS partitions_total,
	coalesce(rt.load_started_at, l.started_at) AS load_started_at,
	rt.inserts, rt.updates, rt.deletes, e.error
FROM peerdb._visible v
JOIN peerdb._table t ON t.mirror = v.id
LEFT JOIN peerdb._visible_run c ON c.run = v.shown_run
LEFT JOIN peerdb._run_table rt ON rt.run = v.shown_run AND rt.ordinal = t.ordinal
LEFT JOIN peerdb._run_table n ON n.run = v.newest_run AND n.ordinal = t.ordinal
CROSS JOIN LATERAL (SELECT coalesce(n.error, rt.error) AS error) e
LEFT JOIN peerdb._load_now l ON l.run = v.shown_run AND l.ordinal = t.ordinal;
COMMENT ON VIEW peerdb.mirror_tables IS 'tables of mirrors: mapping, load, changes applied';

CREATE VIEW peerdb.runs WITH (security_barrier) AS
SELECT r.run, r.mirror, r.kind, r.phase, r.started_at, r.finished_at, r.snapshot_lsn,
	coalesce(l.rows_loaded, r.rows_loaded) AS rows_loaded,
	coalesce(l.bytes_sent, r.bytes_sent) AS bytes_sent,
	r.outcome, r.error
FROM peerdb._visible_run r
LEFT JOIN LATERAL (SELECT sum(n.rows_loaded)::bigint AS rows_loaded, sum(n.bytes_sent)::bigint AS bytes_sent
	FROM peerdb._load_now n WHERE n.run = r.run) l ON true;
COMMENT ON VIEW peerdb.runs IS 'runs of mirrors: first loads and resyncs';

CREATE VIEW peerdb.partitions WITH (security_barrier) AS
SELECT p.run, format('%I.%I', t.schema_name, t.table_name) AS source_table, p.partition,
	p.first_block, p.last_block, p.status, p.rows, p.bytes, p.attempts, p.started_at, p.finished_at,
	CASE WHEN c.oid IS NOT NULL THEN format('%I.%I', s.nspname, c.relname) END AS relation,
	1 + cardinality(p.more) AS relations
FROM peerdb._visible_run r
JOIN peerdb._partition_now p ON p.run = r.run
JOIN peerdb._run_table t ON t.run = p.run AND t.ordinal = p.ordinal
LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace) ON c.oid = p.relid;
COMMENT ON VIEW peerdb.partitions IS 'partitions of the newest load of each mirror';

CREATE VIEW peerdb.batches WITH (security_barrier) AS
SELECT v.name AS mirror, b.batch, b.first_lsn, b.last_lsn, b.rows, b.started_at, b.finished_at
FROM peerdb._visible v
JOIN peerdb._batch b ON b.mirror = v.id;
COMMENT ON VIEW peerdb.batches IS 'batches of changes applied by mirrors';

CREATE VIEW peerdb.logs WITH (security_barrier) AS
SELECT g.id, g.logged_at, coalesce(m.name, g.mirror_name) AS mirror, g.run, g.level, g.phase,
	g.source_table, g.sqlstate, g.message, g.detail
FROM peerdb._log g
LEFT JOIN peerdb._mirror m ON m.id = g.mirror
WHERE pg_catalog.pg_has_role(coalesce(peerdb._owner(m.owner, m.owner_name, m.system_identifier, m.database_oid), g.owner), 'MEMBER')
	OR pg_catalog.pg_has_role('pg_read_all_stats', 'MEMBER');
COMMENT ON VIEW peerdb.logs IS 'log of mirrors';

REVOKE ALL ON peerdb._visible, peerdb._visible_run, peerdb._partition_now, peerdb._load_now FROM PUBLIC;
GRANT SELECT ON peerdb.mirrors, peerdb.mirror_tables, peerdb.runs, peerdb.partitions, peerdb.batches, peerdb.logs TO PUBLIC;
