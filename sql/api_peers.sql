-- Options of peers are checked when they are given.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS resync CASCADE;
CREATE EXTENSION resync;
CREATE ROLE regress_resync_peer;
RESET client_min_messages;

-- PostgreSQL: libpq's options, but no user and no secret on the server
CREATE SERVER pg FOREIGN DATA WRAPPER peerdb_postgres
	OPTIONS (host 'h', port '5432', dbname 'd', sslmode 'require', connect_timeout '3',
		options '-c work_mem=64kB', keepalives_idle '10', application_name 'x', metadata_schema '_m');
CREATE USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (user 'u', password 'p');
ALTER SERVER pg OPTIONS (SET port '5432,5433');
-- the list of valid ones is libpq's, which differs by version
\set VERBOSITY terse
ALTER SERVER pg OPTIONS (ADD password 'secret');
ALTER SERVER pg OPTIONS (ADD user 'u');
ALTER SERVER pg OPTIONS (ADD sslpassword 'secret');
ALTER SERVER pg OPTIONS (ADD nonsense 'x');
ALTER SERVER pg OPTIONS (ADD client_encoding 'x');
ALTER SERVER pg OPTIONS (ADD replication 'database');
\set VERBOSITY default
ALTER SERVER pg OPTIONS (SET port '0');
ALTER SERVER pg OPTIONS (SET port '65536');
ALTER SERVER pg OPTIONS (SET port '54x');
ALTER SERVER pg OPTIONS (SET sslmode 'requir');
ALTER SERVER pg OPTIONS (SET sslmode '');
ALTER SERVER pg OPTIONS (SET connect_timeout '-1');
ALTER USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (ADD host 'h');
ALTER USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (ADD password_file '/f');
ALTER USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (ADD password_required 'maybe');
ALTER USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (ADD password_required 'false');

-- ClickHouse
CREATE SERVER ch FOREIGN DATA WRAPPER peerdb_clickhouse
	OPTIONS (host 'h', port '8443', database 'd', tls 'on', cluster 'c', replicated 'off', compression 'lz4');
ALTER SERVER ch OPTIONS (SET port '9000');
ALTER SERVER ch OPTIONS (SET port '9440');
ALTER SERVER ch OPTIONS (SET port '-1');
ALTER SERVER ch OPTIONS (SET compression 'gzip');
ALTER SERVER ch OPTIONS (SET tls 'maybe');
ALTER SERVER ch OPTIONS (SET host 'http://u:p@h');
ALTER SERVER ch OPTIONS (ADD password 'p');
ALTER SERVER ch OPTIONS (ADD dbname 'p');
CREATE USER MAPPING FOR CURRENT_USER SERVER ch OPTIONS (user 'u', password 'p', tls 'on');

-- Snowflake and BigQuery
CREATE SERVER sf FOREIGN DATA WRAPPER peerdb_snowflake
	OPTIONS (account 'a', url 'https://a.example', database 'd', warehouse 'w', role 'r', metadata_schema 'm');
CREATE USER MAPPING FOR CURRENT_USER SERVER sf OPTIONS (user 'u', private_key_file '/k', private_key_passphrase_file '/p');
ALTER SERVER sf OPTIONS (SET url 'ftp://a.example');
ALTER SERVER sf OPTIONS (SET url 'https://u:secret@a.example');
ALTER SERVER sf OPTIONS (ADD private_key_file '/k');
CREATE SERVER bq FOREIGN DATA WRAPPER peerdb_bigquery
	OPTIONS (project 'p', dataset 'd', location 'EU', url 'http://127.0.0.1:9050');
CREATE USER MAPPING FOR CURRENT_USER SERVER bq OPTIONS (service_account_file '/f');
ALTER SERVER bq OPTIONS (ADD service_account_file '/f');
ALTER FOREIGN DATA WRAPPER peerdb_bigquery OPTIONS (ADD project 'p');

-- who may: USAGE on wrappers is not given away
SET ROLE regress_resync_peer;
CREATE SERVER mine FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host 'h');
RESET ROLE;
GRANT USAGE ON FOREIGN DATA WRAPPER peerdb_postgres, peerdb_clickhouse, peerdb_snowflake, peerdb_bigquery TO regress_resync_peer;
GRANT USAGE ON FOREIGN SERVER pg, ch, sf, bq TO regress_resync_peer;
SET ROLE regress_resync_peer;
CREATE SERVER mine FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host 'h');
-- files of the server's operating system user
ALTER SERVER mine OPTIONS (ADD passfile '/etc/passwd');
ALTER SERVER mine OPTIONS (ADD service 's');
ALTER SERVER mine OPTIONS (ADD sslrootcert '/f');
ALTER SERVER mine OPTIONS (ADD sslcrl '/f');
ALTER SERVER mine OPTIONS (ADD sslkey '/f');
CREATE USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (password_file '/etc/passwd');
CREATE USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (sslcert '/f');
CREATE USER MAPPING FOR CURRENT_USER SERVER ch OPTIONS (password_file '/etc/passwd');
CREATE USER MAPPING FOR CURRENT_USER SERVER sf OPTIONS (private_key_file '/f');
CREATE USER MAPPING FOR CURRENT_USER SERVER bq OPTIONS (service_account_file '/f');
CREATE SERVER mine2 FOREIGN DATA WRAPPER peerdb_clickhouse OPTIONS (ca_file '/f');
-- the server's own identity
CREATE USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (user 'postgres', password_required 'false');
CREATE USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (user 'postgres', password_required 'true');
RESET ROLE;
GRANT pg_read_server_files TO regress_resync_peer;
SET ROLE regress_resync_peer;
ALTER SERVER mine OPTIONS (ADD sslrootcert '/f');
ALTER USER MAPPING FOR CURRENT_USER SERVER pg OPTIONS (SET password_required 'false');
RESET ROLE;

SET client_min_messages = warning;
DROP EXTENSION resync CASCADE;
DROP ROLE regress_resync_peer;
