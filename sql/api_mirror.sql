-- What changes a mirror: requests, rights, transactions.  Nothing here commits
-- a mirror, so that no worker takes part.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS resync CASCADE;
CREATE EXTENSION resync;
CREATE ROLE regress_resync_owner LOGIN REPLICATION;
CREATE ROLE regress_resync_member IN ROLE regress_resync_owner;
CREATE ROLE regress_resync_other LOGIN REPLICATION;
CREATE ROLE regress_resync_nologin REPLICATION;
CREATE ROLE regress_resync_norepl LOGIN;
CREATE ROLE regress_resync_stats IN ROLE pg_read_all_stats;
CREATE SERVER resync_pg FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR PUBLIC SERVER resync_pg OPTIONS (user 'u', password 'regress_secret');
CREATE SCHEMA resync_m;
CREATE TABLE resync_m.a (id int PRIMARY KEY, hidden text);
CREATE TABLE resync_m.b (id int PRIMARY KEY);
CREATE TABLE resync_m.rls (id int PRIMARY KEY);
ALTER TABLE resync_m.rls ENABLE ROW LEVEL SECURITY;
GRANT USAGE ON SCHEMA resync_m TO regress_resync_owner, regress_resync_other, regress_resync_norepl, regress_resync_nologin;
GRANT SELECT (id) ON resync_m.a TO regress_resync_owner;
GRANT SELECT ON resync_m.b, resync_m.rls TO regress_resync_owner;
DO $$ DECLARE f regprocedure; BEGIN
	FOR f IN SELECT oid FROM pg_proc WHERE proname LIKE 'peerdb\_%' AND pronamespace = current_schema()::regnamespace LOOP
		EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO regress_resync_owner, regress_resync_other, regress_resync_norepl, regress_resync_nologin, regress_resync_stats', f);
	END LOOP;
END $$;
RESET client_min_messages;

-- options and names
\set tables '\'["resync_m.a"]\''
SELECT peerdb_create_mirror('M', 'resync_pg', :tables);
SELECT peerdb_create_mirror('1m', 'resync_pg', :tables);
SELECT peerdb_create_mirror('', 'resync_pg', :tables);
SELECT peerdb_create_mirror(repeat('m', 64), 'resync_pg', :tables);
SELECT peerdb_create_mirror('m', 'nothere', :tables);
SELECT peerdb_create_mirror('m', 'resync_pg', :tables, '{"nonsense": 1}');
\set VERBOSITY terse
SELECT peerdb_create_mirror('m', 'resync_pg', :tables, '[]');
SELECT peerdb_create_mirror('m', 'resync_pg', :tables, '{"soft_delete": 1}');
SELECT peerdb_create_mirror('m', 'resync_pg', :tables, '{"snapshot_max_parallel_workers": 0}');
\set VERBOSITY default
SELECT peerdb_create_mirror('m', 'resync_pg', :tables, '{"out_of_range": "clam"}');
SELECT peerdb_create_mirror('m', 'resync_pg', :tables, '{"out_of_range": "clamp"}');

-- who may create
SET ROLE regress_resync_norepl;
SELECT peerdb_create_mirror('m', 'resync_pg', :tables);
SET ROLE regress_resync_nologin;
SELECT peerdb_create_mirror('m', 'resync_pg', :tables);
SET ROLE regress_resync_owner;
SELECT peerdb_create_mirror('m', 'resync_pg', :tables);
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER resync_pg TO regress_resync_owner, regress_resync_other;
SET ROLE regress_resync_owner;
\set VERBOSITY sqlstate
SELECT peerdb_create_mirror('m', 'resync_pg', :tables);
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_m.rls"]');
\set VERBOSITY default
RESET ROLE;
-- without EXECUTE
CREATE ROLE regress_resync_nobody;
SET ROLE regress_resync_nobody;
SELECT peerdb_mirror_status('m');
SELECT count(*) FROM peerdb._mirror;
SELECT mirror FROM peerdb.mirrors;
RESET ROLE;
DROP ROLE regress_resync_nobody;

-- a mirror's life, as far as requests go
BEGIN;
SET LOCAL ROLE regress_resync_owner;
SET LOCAL client_min_messages = warning;
SELECT peerdb_create_mirror('m', 'resync_pg', '[{"from": "resync_m.a", "exclude": ["hidden"]}]',
	'{"snapshot_max_parallel_workers": 2}') AS run \gset
RESET client_min_messages;
SELECT mirror, owner, peer, peer_type, status, phase, run = :run AS run, tables, rows_loaded, progress, eta,
	lag_bytes, lag, confirmed_lsn, slot_name, wal_status, error
FROM peerdb.mirrors;
SELECT jsonb_pretty(options) FROM peerdb.mirrors;
SELECT mirror, source_table, destination_table, status, mapping, rows_loaded, inserts FROM peerdb.mirror_tables;
SELECT run = :run AS run, mirror, kind, phase, finished_at, outcome, error FROM peerdb.runs;
SELECT peerdb_mirror_status('m');
SAVEPOINT s;
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_m.b"]');
ROLLBACK TO s;
SELECT peerdb_create_mirror('m2', 'resync_pg', '["resync_m.b:a"]');
ROLLBACK TO s;
-- waiting in a transaction that has written
SELECT peerdb_wait_for_status('m');
ROLLBACK TO s;
SELECT peerdb_wait_for_status('m', 'nonsense');
ROLLBACK TO s;
-- a run is on
\set VERBOSITY sqlstate
SELECT peerdb_resync('m');
\set VERBOSITY default
ROLLBACK TO s;
-- pause, twice, and resume
SELECT peerdb_pause_mirror('m'), peerdb_pause_mirror('m');
SELECT peerdb_mirror_status('m');
SELECT peerdb_resume_mirror('m');
SELECT peerdb_mirror_status('m');
-- cancel, twice
SELECT peerdb_cancel_resync('m'), peerdb_cancel_resync('m');
-- edit
SELECT peerdb_edit_mirror('m', '{"max_batch_size": 5}');
SELECT options->'max_batch_size' AS max_batch_size, options->'snapshot_max_parallel_workers' AS workers FROM peerdb.mirrors;
SELECT peerdb_edit_mirror('m', '{"soft_delete": false}');
SELECT peerdb_edit_mirror('m', tables => '[{"from": "resync_m.a", "to": "x", "exclude": ["hidden"]}]');
SELECT source_table, destination_table, mapping FROM peerdb.mirror_tables;
SAVEPOINT s;
SELECT peerdb_edit_mirror('m', tables => '["resync_m.b"]');
ROLLBACK TO s;
SELECT peerdb_edit_mirror('m', '{"nonsense": 1}');
ROLLBACK TO s;
-- others neither steer nor see; members and pg_read_all_stats do
SET LOCAL ROLE regress_resync_other;
SELECT mirror FROM peerdb.mirrors;
SELECT mirror FROM peerdb.mirror_tables;
SELECT mirror FROM peerdb.runs;
SELECT peerdb_resync('m');
ROLLBACK TO s;
SET LOCAL ROLE regress_resync_other;
SELECT peerdb_mirror_status('m');
ROLLBACK TO s;
SET LOCAL ROLE regress_resync_other;
SELECT peerdb_drop_mirror('m', if_exists => true);
ROLLBACK TO s;
SET LOCAL ROLE regress_resync_stats;
SELECT mirror FROM peerdb.mirrors;
SELECT peerdb_mirror_status('m');
SELECT peerdb_pause_mirror('m');
ROLLBACK TO s;
SET LOCAL ROLE regress_resync_member;
SELECT mirror FROM peerdb.mirrors;
-- no secret in sight
RESET ROLE;
SELECT count(*) AS secrets FROM (
	SELECT m::text AS row FROM peerdb.mirrors m UNION ALL SELECT t::text FROM peerdb.mirror_tables t
	UNION ALL SELECT r::text FROM peerdb.runs r UNION ALL SELECT l::text FROM peerdb.logs l) x
WHERE row LIKE '%regress_secret%';
-- drop, twice; then nothing else goes
SET LOCAL ROLE regress_resync_owner;
SELECT peerdb_drop_mirror('m'), peerdb_drop_mirror('m');
SELECT peerdb_mirror_status('m');
\set VERBOSITY sqlstate
SAVEPOINT s;
SELECT peerdb_resync('m');
ROLLBACK TO s;
SELECT peerdb_pause_mirror('m');
ROLLBACK TO s;
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_m.b"]');
ROLLBACK TO s;
\set VERBOSITY default
ROLLBACK;

-- a resync of a mirror that runs
BEGIN;
SET LOCAL client_min_messages = warning;
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_m.a"]') AS run \gset
UPDATE peerdb._run SET phase = 'stream', slot_name = 'resync_regress_none';
UPDATE peerdb._mirror SET status = 'running', live_run = newest_run;
SELECT status, phase, progress FROM peerdb.mirrors;
SELECT outcome, phase FROM peerdb.runs;
SAVEPOINT s;
SELECT peerdb_cancel_resync('m');
ROLLBACK TO s;
SELECT peerdb_resync('m', '{"soft_delete": false}');
ROLLBACK TO s;
SELECT peerdb_resync('m', '{"keep_serving": true, "snapshot_max_parallel_workers": 8}') AS run2 \gset
SELECT kind, keep_serving, replaces = :run AS replaces, previous_status, options FROM peerdb._run WHERE run = :run2;
SELECT status, phase, run = :run2 AS newest, options->'keep_serving' AS keep_serving FROM peerdb.mirrors;
-- the streamer, the tables: no way back once a table is swapped
UPDATE peerdb._run SET phase = 'swap' WHERE run = :run2;
INSERT INTO peerdb._run_table (run, ordinal, relid, schema_name, table_name, dest_schema, dest_name, build_name, plan, state)
	SELECT :run2, 0, 'resync_m.a'::regclass, 'resync_m', 'a', 'resync_m', 'a', 'a_resync', '{}', 's';
SAVEPOINT s;
\set VERBOSITY sqlstate
SELECT peerdb_cancel_resync('m');
\set VERBOSITY default
ROLLBACK TO s;
-- refused: the reason stands; the mirror goes on
UPDATE peerdb._run SET phase = 'ended', outcome = 'refused', error = 'no', error_sqlstate = '42P01' WHERE run = :run2;
UPDATE peerdb._mirror SET status = 'running', error = 'no', error_sqlstate = '42P01';
SELECT status, phase, run = :run AS live, error FROM peerdb.mirrors;
-- a failed mirror with a lost slot
UPDATE peerdb._mirror SET status = 'failed';
SAVEPOINT s;
SELECT peerdb_pause_mirror('m');
ROLLBACK TO s;
SELECT peerdb_resume_mirror('m');
ROLLBACK TO s;
-- without its slot's name it goes on, and is told so
UPDATE peerdb._run SET slot_name = NULL, crashes = 2 WHERE run = :run;
SELECT peerdb_resume_mirror('m');
SELECT status, error FROM peerdb.mirrors;
SELECT crashes FROM peerdb._run WHERE run = :run;
-- a resync of a failed mirror keeps nothing
UPDATE peerdb._mirror SET status = 'failed';
SELECT peerdb_resync('m') AS run3 \gset
SELECT keep_serving FROM peerdb._run WHERE run = :run3;
-- a table that is gone: nothing is started
UPDATE peerdb._run SET phase = 'ended', outcome = 'refused' WHERE run = :run3;
DROP TABLE resync_m.a;
\set VERBOSITY sqlstate
SELECT peerdb_resync('m');
\set VERBOSITY default
ROLLBACK;

-- progress from bytes
BEGIN;
SET LOCAL client_min_messages = warning;
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_m.a", "resync_m.b"]') AS run \gset
UPDATE peerdb._run SET phase = 'load';
UPDATE peerdb._mirror SET status = 'snapshot';
INSERT INTO peerdb._run_table (run, ordinal, relid, schema_name, table_name, dest_schema, dest_name, build_name, plan, rows_total_estimate, bytes_total, partitions_total)
	SELECT :run, t.ordinal, t.relid, t.schema_name, t.table_name, t.dest_schema, t.dest_name, t.dest_name || '_resync', '{}', 100, 1000, 2
	FROM peerdb._table t;
INSERT INTO peerdb._partition (run, partition, ordinal, relid, first_block, last_block, est_bytes, status, rows, bytes, attempts)
	VALUES (:run, 1, 0, 'resync_m.a'::regclass, 0, 9, 500, 'done', 60, 700, 1),
		(:run, 2, 0, 'resync_m.a'::regclass, 10, NULL, 500, 'loading', NULL, NULL, 1),
		(:run, 3, 1, 'resync_m.b'::regclass, 0, NULL, 1000, 'waiting', NULL, NULL, 0);
SELECT status, phase, rows_loaded, rows_total_estimate, progress FROM peerdb.mirrors;
SELECT source_table, status, rows_loaded, partitions_done, partitions_total FROM peerdb.mirror_tables ORDER BY 1;
SELECT source_table, partition, first_block, last_block, status, rows, bytes, relation FROM peerdb.partitions ORDER BY partition;
SELECT rows_loaded, bytes_sent FROM peerdb.runs;
ROLLBACK;

-- PREPARE TRANSACTION is refused, with prepared transactions allowed or not
BEGIN;
SET LOCAL client_min_messages = warning;
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_m.a"]') IS NOT NULL AS created;
PREPARE TRANSACTION 'resync_regress';
SELECT count(*) FROM peerdb.mirrors;

-- a rolled back call leaves nothing, and does not stand in the way of others
BEGIN;
SAVEPOINT s;
SELECT peerdb_resync('nobody');
ROLLBACK;

-- a copy of the database: nothing goes but the row
BEGIN;
SET LOCAL client_min_messages = warning;
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_m.a"]') IS NOT NULL AS created;
UPDATE peerdb._mirror SET system_identifier = 1, owner_name = 'regress_resync_other';
RESET client_min_messages;
SELECT mirror, owner FROM peerdb.mirrors;
SAVEPOINT s;
SELECT peerdb_resync('m');
ROLLBACK TO s;
SELECT peerdb_drop_mirror('m', drop_destination => true);
ROLLBACK TO s;
SET LOCAL ROLE regress_resync_owner;
SELECT peerdb_drop_mirror('m');
ROLLBACK TO s;
SET LOCAL ROLE regress_resync_other;
SELECT peerdb_drop_mirror('m');
SELECT count(*) FROM peerdb.mirrors;
ROLLBACK;

-- a hostile search_path changes nothing
CREATE SCHEMA resync_evil;
CREATE FUNCTION resync_evil.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR resync_evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = resync_evil.eq);
BEGIN;
SET LOCAL client_min_messages = warning;
SELECT current_schema() AS schema \gset
SET LOCAL search_path = resync_evil, pg_catalog;
SELECT :"schema".peerdb_create_mirror('m', 'resync_pg', '["resync_m.a"]') IS NOT NULL AS created;
SELECT :"schema".peerdb_mirror_status('m');
SELECT :"schema".peerdb_mirror_status('n');
ROLLBACK;

SET client_min_messages = warning;
DROP SCHEMA resync_evil CASCADE;
DROP SCHEMA resync_m CASCADE;
DROP OWNED BY regress_resync_owner, regress_resync_other, regress_resync_norepl, regress_resync_nologin, regress_resync_stats;
DROP EXTENSION resync CASCADE;
DROP ROLE regress_resync_owner, regress_resync_member, regress_resync_other, regress_resync_nologin,
	regress_resync_norepl, regress_resync_stats;
