# What one sees: views, filtered by permission, waiting functions, compare, plan.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my $t = ResyncTest->new;
$t->src(<<'EOS');
CREATE TABLE v1 (id int PRIMARY KEY, v text);
INSERT INTO v1 SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 5000) i;
CREATE TABLE v2 (id int PRIMARY KEY);
ANALYZE v1;
ANALYZE v2;
EOS

# ---- the columns are the contract
my %columns = (
	mirrors => 'mirror owner peer peer_type status phase run tables options rows_loaded rows_total_estimate progress eta rows_synced lag_bytes lag confirmed_lsn slot_name wal_status error error_at created_at status_since',
	mirror_tables => 'mirror source_table destination_table status mapping rows_loaded rows_total_estimate partitions_done partitions_total load_started_at inserts updates deletes error',
	runs => 'run mirror kind phase started_at finished_at snapshot_lsn rows_loaded bytes_sent outcome error',
	partitions => 'run source_table partition first_block last_block status rows bytes attempts started_at finished_at',
	batches => 'mirror batch first_lsn last_lsn rows started_at finished_at',
	logs => 'id logged_at mirror run level phase source_table sqlstate message detail');
foreach my $view (sort keys %columns)
{
	my %have = map { $_ => 1 } split /\n/,
	  $t->src("SELECT attname FROM pg_attribute WHERE attrelid = 'peerdb.$view'::regclass AND attnum > 0");
	my @missing = grep { !$have{$_} } split / /, $columns{$view};
	is("@missing", '', "peerdb.$view has its columns");
}
like($t->src('SELECT peerdb_version()'), qr/^\d+\.\d+/, 'peerdb_version');
like($t->src("SELECT peerdb_check_peer('dest')"), qr/^\Q@{[ $t->dst('SHOW server_version') ]}\E/, 'peerdb_check_peer returns the version');
$t->src("CREATE SERVER nowhere FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '/nowhere', dbname 'x'); CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere OPTIONS (user 'x', password 'topsecret')");
my $err = $t->refused("SELECT peerdb_check_peer('nowhere')", '08\w{3}', '', 'peerdb_check_peer of an unreachable peer');
unlike($err, qr/topsecret/, 'no password in it');

# ---- while loading
my $release = $t->hold_phase('m', 'load', 'v1', sub {
	$t->create_mirror('m', [ 'public.v1', 'public.v2' ], { snapshot_num_rows_per_partition => 500, snapshot_max_parallel_workers => 2 });
});
$t->src("ALTER SYSTEM SET resync.load_rate_limit = '50kB'");
$t->src('SELECT pg_reload_conf()');
is($t->status('m'), 'snapshot', 'loading is status snapshot');
$t->until_true("SELECT rows_loaded BETWEEN 1 AND 4999 AND progress > 0 AND progress < 1 AND eta > '0' FROM peerdb.mirrors WHERE mirror = 'm'", 'rows, progress and eta of a load under way');
is($t->src("SELECT rows_total_estimate BETWEEN 4000 AND 6000 FROM peerdb.mirrors WHERE mirror = 'm'"), 't', 'the estimate');
$t->until_true("SELECT count(*) > 0 FROM peerdb.partitions WHERE status = 'loading' AND rows > 0", 'a partition under way counts');
is($t->src("SELECT count(*) > 3 FROM peerdb.partitions WHERE source_table = 'public.v1'"), 't', 'the table is in partitions');
is($t->src("SELECT partitions_total > 3 AND partitions_done < partitions_total FROM peerdb.mirror_tables WHERE source_table = 'public.v1'"), 't', 'partitions of the table');
$t->until_true("SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND (query || application_name) ~ 'm.*v1'", 'pg_stat_activity shows mirror and table');
is($t->src("SELECT active FROM pg_replication_slots WHERE slot_name = (SELECT slot_name FROM peerdb.mirrors WHERE mirror = 'm')"), 't', 'the slot is active while loading');
my ($status, $out, $e) = $t->try("SELECT peerdb_wait_for_status('m', 'running', '0.3 s')");
isnt($status, 0, 'peerdb_wait_for_status times out');
is($t->src("SELECT peerdb_wait_for_status('m', 'setup', '10 s')"), 'snapshot', 'a later status satisfies an earlier one');
$release->();
$t->wait_status('m', 'running');

# ---- running
$t->src('INSERT INTO v2 SELECT generate_series(1, 10); UPDATE v1 SET v = 1 WHERE id <= 20; DELETE FROM v1 WHERE id > 4995');
my $lsn = $t->src('SELECT pg_current_wal_insert_lsn()');
like($t->src("SELECT peerdb_wait_for_lsn('m', '$lsn', '30 s')"), qr{^[0-9A-F]+/[0-9A-F]+$}, 'peerdb_wait_for_lsn of a given position');
is($t->src("SELECT peerdb_wait_for_lsn('m') >= '$lsn'::pg_lsn"), 't', 'of all that is committed');
($status, $out, $e) = $t->try("SELECT peerdb_wait_for_lsn('m', 'FFFF/0', '0.3 s')");
isnt($status, 0, 'peerdb_wait_for_lsn times out');
$t->until_true("SELECT inserts = 10 FROM peerdb.mirror_tables WHERE source_table = 'public.v2'", 'inserts');
$t->until_true("SELECT updates = 20 AND deletes = 5 FROM peerdb.mirror_tables WHERE source_table = 'public.v1'", 'updates and deletes');
is($t->src(<<'EOS'), 'm|dest|postgres|running|stream|2|t|t|t|t', 'peerdb.mirrors of a running mirror');
SELECT mirror, peer, peer_type, status, phase, tables, error IS NULL, confirmed_lsn IS NOT NULL, wal_status = 'reserved', rows_loaded = 5000
FROM peerdb.mirrors
EOS
is($t->src("SELECT count(*) FROM peerdb.mirrors WHERE slot_name IN (SELECT slot_name FROM pg_replication_slots WHERE plugin = 'pgoutput' AND slot_type = 'logical')"), '1', 'the slot is one of pgoutput');
is($t->src(q{SELECT slot_name = format('resync_%s_%s', (SELECT oid FROM pg_database WHERE datname = current_database()), run) FROM peerdb.mirrors}), 't', 'with the name that is promised');
is($t->src("SELECT sum(rows) FROM peerdb.partitions"), '5000', 'rows of the partitions');
is($t->src("SELECT bool_and(status = 'done' AND attempts = 1 AND finished_at >= started_at) FROM peerdb.partitions"), 't', 'they are done');
is($t->src("SELECT kind, outcome, rows_loaded, bytes_sent > 100000, snapshot_lsn IS NOT NULL, finished_at IS NOT NULL FROM peerdb.runs"), 'initial|done|5000|t|t|t', 'the run');
$t->until_true("SELECT count(*) > 0 AND bool_and(last_lsn >= first_lsn AND finished_at >= started_at) FROM peerdb.batches", 'batches');
is($t->src("SELECT count(*) FROM (SELECT to_jsonb(m) j FROM peerdb.mirrors m UNION ALL SELECT to_jsonb(x) FROM peerdb.mirror_tables x UNION ALL SELECT to_jsonb(p) FROM peerdb.partitions p) q, jsonb_each_text(j) WHERE value = '-1'"), '0', 'unknown is NULL, never -1');
is($t->src("SELECT options->>'snapshot_max_parallel_workers', options->>'max_batch_size' FROM peerdb.mirrors"), '2|250000', 'effective options, defaults too');

# what is stored has nothing else of the backend's memory in it
$t->src('CREATE EXTENSION pageinspect');
is($t->src(<<'EOS'), 't', 'a name in the catalog is followed by zeros');
SELECT bool_and(position('dest'::bytea || decode(repeat('00', 60), 'hex') IN t_data) > 0)
FROM heap_page_items(get_raw_page('peerdb._mirror', 0)) WHERE t_data IS NOT NULL
EOS

# ---- waiting
$t->refused("BEGIN; INSERT INTO v2 VALUES (99); SELECT peerdb_wait_for_status('m')", '\w{5}', '', 'peerdb_wait_for_status in a transaction that has written');
$t->refused("SELECT peerdb_wait_for_status('m', 'nonsense')", '22023', 'nonsense', 'an unknown status');

# ---- compare
is($t->src("SELECT * FROM peerdb_compare('m') ORDER BY 1"), "public.v1|public.v1|4995|4995|t\npublic.v2|public.v2|10|10|t", 'peerdb_compare');
$t->dst('DELETE FROM v2 WHERE id = 3');
is($t->src("SELECT source_rows, destination_rows, equal FROM peerdb_compare('m') WHERE source_table = 'public.v2'"), '10|9|f', 'peerdb_compare sees a difference');
$t->dst('INSERT INTO v2 VALUES (3, false, now())');

# ---- plan
is($t->src("SELECT count(*) FROM peerdb_plan_resync('m') WHERE level = 'error'"), '0', 'peerdb_plan_resync: nothing in the way');
is($t->src("SELECT count(*) >= 5 AND bool_and(level IN ('ok', 'warning', 'error') AND detail <> '') FROM peerdb_plan_resync('m')"), 't', 'its checks');
is($t->src("SELECT count(*) FROM peerdb.runs"), '1', 'it changes nothing');
$t->dst('CREATE TABLE v2_resync (mine int)');
is($t->src("SELECT count(*) > 0 FROM peerdb_plan_resync('m') WHERE level = 'error' AND detail ~ 'v2_resync'"), 't', 'it names what is in the way');
$t->resync('m');
$t->until_true("SELECT outcome = 'refused' AND error ~ 'v2_resync' FROM peerdb.runs ORDER BY run DESC LIMIT 1", 'and so does the resync');
$t->until_status('m', 'running', 'which is refused: the mirror goes on');
is($t->src("SELECT count(*) > 0 FROM peerdb.logs WHERE mirror = 'm' AND message ~ 'v2_resync' AND sqlstate IS NOT NULL AND run IS NOT NULL"), 't', 'the log has it');
$t->dst('DROP TABLE v2_resync');

# ---- who sees, who may
# another role there has metadata of its own
$t->src(sprintf "CREATE SERVER dest2 FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '%s', port '%s', dbname 'postgres', metadata_schema 'own_metadata')",
	$t->dest->host, $t->dest->port);
$t->src(<<'EOS');
CREATE ROLE stranger LOGIN;
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE own LOGIN REPLICATION;
CREATE ROLE friend LOGIN IN ROLE own;
CREATE ROLE norepl LOGIN;
CREATE TABLE owned (id int PRIMARY KEY, secret text);
GRANT SELECT ON owned TO own, norepl;
CREATE TABLE closed (id int PRIMARY KEY);
GRANT USAGE ON FOREIGN SERVER dest, dest2 TO own, norepl;
CREATE USER MAPPING FOR own SERVER dest2 OPTIONS (user 'destuser', password_required 'false');
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO own, norepl, friend;
EOS
$t->dst("CREATE ROLE destuser LOGIN; GRANT CREATE ON DATABASE postgres TO destuser; GRANT CREATE ON SCHEMA public TO destuser");
sub as
{
	my ($role, $sql) = @_;
	my ($status, $out, $err) = $t->try($sql, user => $role);
	return $status == 0 ? $out : $err;
}
is(as('stranger', 'SELECT count(*) FROM peerdb.mirrors'), '0', 'a stranger sees no mirror');
is(as('stranger', 'SELECT count(*) FROM peerdb.logs'), '0', 'nor logs');
is(as('monitor', 'SELECT count(*) FROM peerdb.mirrors'), '1', 'a member of pg_read_all_stats does');
like(as('stranger', "SELECT peerdb_resync('m')"), qr/42501/, 'a stranger may not call');
like(as('own', "SELECT peerdb_resync('m')"), qr/42501/, 'nor may the owner of another mirror');
like(as('monitor', 'SELECT * FROM peerdb._mirror'), qr/42501/, 'the catalog is closed');
like(as('norepl', q{SELECT peerdb_create_mirror('n', 'dest', '["public.owned"]')}), qr/42501/, 'a mirror needs REPLICATION');
like(as('own', q{SELECT peerdb_create_mirror('n', 'dest2', '["public.closed"]')}), qr/42501/, 'and SELECT on its tables');
like(as('own', q{SELECT peerdb_create_mirror('o', 'dest2', '["public.owned"]')}), qr/^\d+/, 'own creates one');
$t->wait_status('o', 'running', 'a mirror of a role that is no superuser');
is(as('own', 'SELECT string_agg(mirror, \',\') FROM peerdb.mirrors'), 'o', 'its owner sees it, and only it');
is(as('friend', 'SELECT string_agg(mirror, \',\') FROM peerdb.mirrors'), 'o', 'a member of the owner too');
is($t->src("SELECT owner FROM peerdb.mirrors WHERE mirror = 'o'"), 'own', 'the owner');
is(as('friend', "SELECT peerdb_pause_mirror('o')"), '', 'a member of the owner steers');
$t->until_status('o', 'paused');
$t->src('ALTER TABLE owned ENABLE ROW LEVEL SECURITY');
my $rls = as('own', "SELECT peerdb_resync('o')");
if ($rls =~ /^\d+$/)
{
	# found by the run instead of the call
	$t->until_true("SELECT outcome = 'refused' FROM peerdb.runs WHERE run = $rls", 'row security refuses the run');
	$rls = $t->src("SELECT error FROM peerdb.runs WHERE run = $rls");
}
like($rls, qr/row security/i, 'row security is refused');
$t->src('ALTER TABLE owned DISABLE ROW LEVEL SECURITY');

# ---- options of servers
$t->refused("CREATE SERVER bad FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (hosst 'x')", 'HV00D', 'hosst', 'an unknown option of a server');
$t->refused("CREATE SERVER bad FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (password 'x')", 'HV00D', 'password', 'a password does not belong there');
# no secret anywhere
$t->src("ALTER USER MAPPING FOR CURRENT_USER SERVER dest OPTIONS (ADD password 'verysecret')");
$t->resync('m');
$t->wait_status('m', 'running');
foreach my $node ($t->source, $t->dest)
{
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE (query || application_name) ~ 'verysecret' AND pid <> pg_backend_pid()"), '0', 'no secret in pg_stat_activity of ' . $node->name);
}
is($t->src("SELECT count(*) FROM peerdb.logs l WHERE l::text ~ 'verysecret'"), '0', 'nor in the logs');

# ---- history goes after resync.log_retention; the newest run and the live one never
# m: its newest run was refused, the one before it is live
$t->dst('CREATE TABLE v2_resync (mine int)');
my $refused = $t->resync('m');
$t->until_true("SELECT outcome = 'refused' FROM peerdb.runs WHERE run = $refused", 'the newest run is not the live one');
$t->dst('DROP TABLE v2_resync');
$t->src("UPDATE peerdb._log SET logged_at = logged_at - interval '31 days'");
$t->src("UPDATE peerdb._run SET finished_at = finished_at - interval '31 days'");
$t->src("UPDATE peerdb._batch SET finished_at = finished_at - interval '31 days'");
$t->src(<<'EOS');
INSERT INTO peerdb._log (level, message) VALUES ('info', 'young');
INSERT INTO peerdb._log (level, message, logged_at) VALUES ('info', 'almost', now() - interval '29 days 23 hours');
INSERT INTO peerdb._batch SELECT id, 1000000, live_run, '0/1', '0/2', 7, now() - interval '31 days', now() - interval '29 days'
	FROM peerdb._mirror WHERE name = 'm';
CREATE TABLE history (what text, run bigint);
CREATE FUNCTION history(what text, mirror_id bigint, age interval, run_phase text, replaced bigint DEFAULT NULL) RETURNS bigint LANGUAGE sql AS $$
	WITH r AS (
		INSERT INTO peerdb._run (mirror, mirror_name, kind, phase, outcome, replaces, started_at, finished_at)
		VALUES (mirror_id, 'm', 'resync', run_phase, CASE WHEN run_phase = 'ended' THEN 'failed' END, replaced,
			now() - age - interval '1 hour', now() - age)
		RETURNING run
	), t AS (
		INSERT INTO peerdb._run_table (run, ordinal, relid, schema_name, table_name, dest_name, build_name, plan)
		SELECT run, 1, 'v1'::regclass, 'public', 'v1', 'v1', 'v1_resync', '{}' FROM r
	), p AS (
		INSERT INTO peerdb._partition (run, partition, ordinal, relid, first_block, est_bytes)
		SELECT run, 1, 1, 'v1'::regclass, 0, 1 FROM r
	), l AS (
		INSERT INTO peerdb._log (mirror, mirror_name, run, level, message, logged_at)
		SELECT mirror_id, 'm', run, 'info', what, now() - age FROM r
	), h AS (
		INSERT INTO history SELECT what, run FROM r
	)
	SELECT run FROM r
$$;
SELECT history('old', id, '31 days', 'ended') FROM peerdb._mirror WHERE name = 'm';
SELECT history('young', id, '29 days', 'ended') FROM peerdb._mirror WHERE name = 'm';
SELECT history('of a dropped mirror', -1, '31 days', 'ended');
SELECT history('a run that is on', -1, '31 days', 'load', history('what it replaces', -1, '31 days', 'ended'));
SELECT history('of a slot that may exist', -1, '31 days', 'ended');
INSERT INTO peerdb._cleanup (slot_name, run) SELECT 'of nobody', run FROM history WHERE what = 'of a slot that may exist';
EOS
my $kept = $t->src('SELECT run FROM peerdb._mirror m JOIN peerdb._run r ON r.run IN (m.newest_run, m.live_run) ORDER BY 1');
is(scalar(split /\n/, $kept), 3, 'newest and live runs of two mirrors, one of them both');
$t->source->restart;
$t->until_true("SELECT count(*) = 0 FROM peerdb._run WHERE run IN (SELECT run FROM history WHERE what IN ('old', 'of a dropped mirror'))", 'old ended runs are pruned');
is($t->src("SELECT string_agg(what, ', ' ORDER BY what) FROM history WHERE run IN (SELECT run FROM peerdb._run)"),
	'a run that is on, of a slot that may exist, what it replaces, young', 'others stay');
foreach my $table ('_run_table', '_partition')
{
	is($t->src("SELECT string_agg(what, ', ' ORDER BY what) FROM history WHERE run IN (SELECT run FROM peerdb.$table)"),
		'a run that is on, of a slot that may exist, what it replaces, young', "their rows of $table with them");
}
is($t->src("SELECT count(*) FROM peerdb._log WHERE logged_at < now() - interval '30 days'"), '0', 'old log lines are pruned');
is($t->src("SELECT string_agg(message, ', ' ORDER BY message) FROM peerdb._log WHERE message IN ('old', 'young', 'almost')"), 'almost, young, young', 'young lines stay');
is($t->src("SELECT count(*) FROM peerdb._batch WHERE finished_at < now() - interval '30 days'"), '0', 'old batches are pruned');
is($t->src("SELECT count(*) FROM peerdb._batch WHERE batch = 1000000"), '1', 'young ones stay');
is($t->src('SELECT run FROM peerdb._mirror m JOIN peerdb._run r ON r.run IN (m.newest_run, m.live_run) ORDER BY 1'), $kept, 'and the newest and the live run of every mirror');
$t->until_status('m', 'running', 'which goes on');

# once an hour at most: a probe that has gone by since (it drops a slot that no
# run claims, as the last thing it does) leaves what is old
$t->src("SELECT history('old again', -1, '31 days', 'ended')");
my $orphan = $t->src("SELECT slot_name FROM pg_create_logical_replication_slot(format('resync_%s_999999', (SELECT oid FROM pg_database WHERE datname = current_database())), 'pgoutput')");
# a slot at rest that holds much has the launcher look before its minute is over
$t->src("ALTER SYSTEM SET resync.max_wal_retained = '100MB'; ALTER SYSTEM SET resync.log_retention = '1h'");
$t->src("SELECT pg_reload_conf(), pg_logical_emit_message(false, 'test', repeat('x', 30000000))");
$t->until_true("SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = '$orphan'", 'the database is probed once more');
is($t->src("SELECT count(*) FROM peerdb._run WHERE run = (SELECT run FROM history WHERE what = 'old again')"), '1', 'nothing is pruned twice within an hour');

# the setting
$t->source->restart;
$t->until_true("SELECT count(*) = 0 FROM peerdb._log WHERE logged_at < now() - interval '1 hour'", 'a shorter resync.log_retention');
is($t->src("SELECT string_agg(what, ', ' ORDER BY what) FROM history WHERE run IN (SELECT run FROM peerdb._run)"),
	'a run that is on, of a slot that may exist, what it replaces', 'counts for runs, too');
$t->src(<<'EOS');
DELETE FROM peerdb._cleanup WHERE slot_name = 'of nobody';
DELETE FROM peerdb._run WHERE run IN (SELECT run FROM history);
ALTER SYSTEM RESET resync.max_wal_retained;
ALTER SYSTEM RESET resync.log_retention;
EOS
$t->src('SELECT pg_reload_conf()');
$t->until_status('m', 'running');

$t->drop_all;
done_testing();
