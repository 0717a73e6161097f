-- The "tables" argument.  Nothing here commits: no worker wakes.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS resync CASCADE;
CREATE EXTENSION resync;
CREATE EXTENSION IF NOT EXISTS postgres_fdw;
CREATE SERVER resync_pg FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '127.0.0.1', port '1');
CREATE SERVER resync_ch FOREIGN DATA WRAPPER peerdb_clickhouse OPTIONS (host '127.0.0.1');
CREATE SERVER resync_sf FOREIGN DATA WRAPPER peerdb_snowflake OPTIONS (account 'a');
CREATE SERVER resync_bq FOREIGN DATA WRAPPER peerdb_bigquery OPTIONS (project 'p');
CREATE SERVER resync_fdw FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE SCHEMA resync_s;
CREATE SCHEMA resync_empty;
CREATE SCHEMA "Resync Odd";
CREATE TABLE resync_s.a (id int PRIMARY KEY, b text, c text);
CREATE TABLE resync_s.b (id int PRIMARY KEY);
CREATE UNLOGGED TABLE resync_s.u (id int PRIMARY KEY);
CREATE TABLE resync_s.p (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE resync_s.p1 PARTITION OF resync_s.p FOR VALUES FROM (0) TO (10);
CREATE TABLE resync_s.kid (x int, PRIMARY KEY (id)) INHERITS (resync_s.b);
CREATE VIEW resync_s.v AS SELECT 1 AS one;
CREATE MATERIALIZED VIEW resync_s.mv AS SELECT 1 AS one;
CREATE SEQUENCE resync_s.seq;
CREATE FOREIGN TABLE resync_s.ft (id int) SERVER resync_fdw;
CREATE TEMP TABLE tt (id int PRIMARY KEY);
CREATE TABLE "Resync Odd"."T.x:y""z" (id int PRIMARY KEY);
RESET client_min_messages;

-- all on one line: the mappings that a "tables" argument makes
CREATE FUNCTION mappings(tables jsonb, peer text DEFAULT 'resync_pg')
RETURNS TABLE (source_table text, destination_table text, mapping jsonb) LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL client_min_messages = warning;
	PERFORM peerdb_create_mirror('m', peer, tables);
	RETURN QUERY SELECT t.source_table, t.destination_table, t.mapping FROM peerdb.mirror_tables t
		WHERE t.mirror = 'm' ORDER BY 1;
	PERFORM peerdb_drop_mirror('m');
END $$;

-- good ones
BEGIN; SELECT * FROM mappings('["resync_s.a"]'); ROLLBACK;
BEGIN; SELECT * FROM mappings('["RESYNC_S.A", "resync_s . b"]'); ROLLBACK;
BEGIN; SELECT * FROM mappings('["resync_s.*"]'); ROLLBACK;
BEGIN; SELECT * FROM mappings('["resync_s.a:Other.\"Name\"", "resync_s.b:c"]'); ROLLBACK;
BEGIN; SELECT * FROM mappings('["\"Resync Odd\".\"T.x:y\"\"z\":\"d:e\".f"]'); ROLLBACK;
BEGIN; SELECT * FROM mappings('[{"from": "resync_s.a", "to": "x.y", "exclude": ["c"]}, {"from": "resync_s.b"}]'); ROLLBACK;
BEGIN; SELECT * FROM mappings('["resync_s.p"]', 'resync_fdw'); ROLLBACK;
BEGIN; SELECT * FROM mappings('["resync_s.p1"]'); ROLLBACK;

-- how many "schema.*" stands for
BEGIN;
SELECT 1 AS created FROM (SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.*"]') OFFSET 0) x;
ROLLBACK;

-- bad ones
SELECT peerdb_create_mirror('m', 'resync_pg', '{}');
SELECT peerdb_create_mirror('m', 'resync_pg', '[]');
SELECT peerdb_create_mirror('m', 'resync_pg', '"resync_s.a"');
SELECT peerdb_create_mirror('m', 'resync_pg', '[1]');
SELECT peerdb_create_mirror('m', 'resync_pg', '[["resync_s.a"]]');
SELECT peerdb_create_mirror('m', 'resync_pg', '[""]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["a"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["a.b.c"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s."]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.\"a"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.a b"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.a:"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.a:b.c.d"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.nothere"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["nothere.a"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["nothere.*"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_empty.*"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["pg_catalog.*"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["pg_catalog.pg_class"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["peerdb._mirror"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.v"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.mv"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.seq"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.ft"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.u"]');
DO $$ BEGIN
	PERFORM peerdb_create_mirror('m', 'resync_pg',
		to_jsonb(ARRAY[(SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()) || '.tt']));
EXCEPTION WHEN wrong_object_type THEN RAISE NOTICE 'temporary tables are refused';
END $$;
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.a", "resync_s.a:x"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.a:x", "resync_s.b:x"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.p", "resync_s.p1"]');
SELECT peerdb_create_mirror('m', 'resync_pg', '["resync_s.kid", "resync_s.b"]');
SELECT peerdb_create_mirror('m', 'resync_pg', jsonb_build_array('resync_s.a:' || repeat('x', 64)));
SELECT peerdb_create_mirror('m', 'resync_pg', '[{}]');
SELECT peerdb_create_mirror('m', 'resync_pg', '[{"from": "resync_s.a", "order_by": ["id"]}]');
SELECT peerdb_create_mirror('m', 'resync_pg', '[{"from": 1}]');
SELECT peerdb_create_mirror('m', 'resync_pg', '[{"from": "resync_s.a", "exclude": "b"}]');
SELECT peerdb_create_mirror('m', 'resync_pg', '[{"from": "resync_s.a", "exclude": [1]}]');
\set VERBOSITY terse
SELECT peerdb_create_mirror('m', 'resync_pg', '[{"from": "resync_s.a", "exclude": ["nothere"]}]');
SELECT peerdb_create_mirror('m', 'resync_pg', '[{"from": "resync_s.a", "exclude": ["id"]}]');
\set VERBOSITY default

-- the keys of each kind of peer
SELECT peerdb_create_mirror('m', 'resync_ch', '[{"from": "resync_s.a", "nonsense": 1}]');
SELECT peerdb_create_mirror('m', 'resync_ch', '[{"from": "resync_s.a", "order_by": "id"}]');
SELECT peerdb_create_mirror('m', 'resync_ch', '[{"from": "resync_s.a", "append": "yes"}]');
SELECT peerdb_create_mirror('m', 'resync_ch', '[{"from": "resync_s.a", "columns": ["id"]}]');
SELECT peerdb_create_mirror('m', 'resync_ch', '[{"from": "resync_s.a", "columns": [{"source": "id", "codec": "x"}]}]');
SELECT peerdb_create_mirror('m', 'resync_ch', '[{"from": "resync_s.a", "columns": [{"destination": "id"}]}]');
SELECT peerdb_create_mirror('m', 'resync_bq', '[{"from": "resync_s.a", "engine": "x"}]');
SELECT peerdb_create_mirror('m', 'resync_ch', '["resync_s.a:x", "resync_s.b:x"]');
\set VERBOSITY terse
BEGIN;
SET LOCAL client_min_messages = warning;
SELECT peerdb_create_mirror('m', 'resync_ch',
	'[{"from": "resync_s.a", "to": "Odd Name", "engine": "MergeTree", "order_by": ["id"], "partition_by": "id", "sharding_key": "id", "columns": [{"source": "b", "type": "String", "nullable": true}]}]') > 0 AS created;
SELECT peerdb_create_mirror('n', 'resync_bq', '[{"from": "resync_s.a", "to": "literal name", "partition_by": "b", "cluster_by": ["id"]}]') > 0 AS created;
SELECT peerdb_create_mirror('o', 'resync_sf', '[{"from": "resync_s.a", "to": "x.\"Odd Name\"", "cluster_by": ["id"], "columns": [{"source": "b", "destination": "c"}]}]') > 0 AS created;
SELECT mirror, destination_table FROM peerdb.mirror_tables WHERE mirror IN ('m', 'n', 'o') ORDER BY mirror;
ROLLBACK;
SELECT peerdb_create_mirror('m', 'resync_sf', '[{"from": "resync_s.a", "partition_by": "b"}]');
\set VERBOSITY default

-- nothing is left
SELECT count(*) FROM peerdb.mirrors;

SET client_min_messages = warning;
DROP FUNCTION mappings;
DROP SERVER resync_fdw CASCADE;
DROP EXTENSION resync CASCADE;
DROP EXTENSION postgres_fdw CASCADE;
DROP SCHEMA resync_s, resync_empty, "Resync Odd" CASCADE;
