# What is wrong is refused: with a clear error, its SQLSTATE and a hint that can
# be acted on, and nothing is changed by it.
use strict;
use warnings;

use ResyncTest;
use Test::More;
use Time::HiRes qw(time);

my $t = ResyncTest->new(src_conf => "max_connections = 40\nmax_worker_processes = 20\n");
my ($host, $port) = ($t->dest->host, $t->dest->port);
my $user = $t->dst('SELECT current_user');

$t->src(<<'EOS');
CREATE TABLE a (id int PRIMARY KEY, v text);
CREATE TABLE b (id int PRIMARY KEY);
INSERT INTO a SELECT i, 'v' FROM generate_series(1, 10) i;
CREATE TABLE nokey (v text);
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
CREATE VIEW aview AS SELECT * FROM a;
CREATE MATERIALIZED VIEW mview AS SELECT * FROM a;
CREATE SEQUENCE seq;
CREATE FOREIGN DATA WRAPPER files; CREATE SERVER files FOREIGN DATA WRAPPER files;
CREATE FOREIGN TABLE ft (id int) SERVER files;
CREATE TABLE odd (id int PRIMARY KEY, _peerdb_is_deleted bool);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE rls (id int PRIMARY KEY); ALTER TABLE rls ENABLE ROW LEVEL SECURITY;
CREATE ROLE owner LOGIN REPLICATION; GRANT SELECT ON rls TO owner; GRANT USAGE ON FOREIGN SERVER dest TO owner;
GRANT EXECUTE ON FUNCTION peerdb_create_mirror TO owner;
EOS
$t->dst('CREATE TABLE in_the_way (mine int); CREATE VIEW view_in_the_way AS SELECT 1 AS one; CREATE TABLE build_resync (mine int)');

# ---- nothing is changed: neither our catalog, nor slots, nor the destination
my $state_query = "SELECT (SELECT count(*) FROM peerdb._mirror), (SELECT count(*) FROM peerdb._table), (SELECT count(*) FROM peerdb._cleanup),"
  . " (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'resync%'), (SELECT count(*) FROM peerdb._run WHERE outcome IS NULL)";
my $dest_query = "SELECT string_agg(relname || ' ' || relkind::text, ',' ORDER BY relname COLLATE \"C\") FROM pg_class WHERE relnamespace = 'public'::regnamespace";
my $before = $t->src($state_query);
my $dest_before = $t->dst($dest_query);
sub unchanged
{
	my ($name) = @_;
	is($t->src($state_query) . $t->dst($dest_query), $before . $dest_before, "$name: nothing is changed");
	return;
}

# A call that is refused; with a hint if hint is given.
sub bad
{
	my ($sql, $sqlstate, $pattern, $name, %o) = @_;
	my ($status, undef, $err) = $t->try($sql, user => $o{user}, node => $o{node});
	isnt($status, 0, "$name: refused") or return;
	like($err, qr/ERROR:  $sqlstate: .*$pattern/s, $name);
	like($err, qr/HINT:.*$o{hint}/s, "$name: the hint") if defined $o{hint};
	cmp_ok(length $err, '<', 5000, "$name: the message is readable");
	return;
}
sub create { my ($tables, $options, $peer) = @_; return sprintf q{SELECT peerdb_create_mirror('m', '%s', '%s', '%s')}, $peer // 'dest', $tables, $options // '{}'; }

# ---- names
foreach my $call (q{peerdb_resync('none')}, q{peerdb_cancel_resync('none')}, q{peerdb_pause_mirror('none')},
	q{peerdb_resume_mirror('none')}, q{peerdb_drop_mirror('none')}, q{peerdb_edit_mirror('none')},
	q{peerdb_mirror_status('none')}, q{peerdb_wait_for_status('none')}, q{peerdb_wait_for_lsn('none')},
	q{peerdb_plan_resync('none')}, q{peerdb_compare('none')})
{
	bad("SELECT $call", '42704', '"none" does not exist', $call);
}
bad(create('["public.a"]', '{}', 'none'), '42704', 'none', 'unknown peer');
bad(create('["public.a"]', '{}', 'files'), '42809', 'not a peer', 'a server that is no peer', hint => 'peerdb_postgres');
bad(create('["public.none"]'), '42P01', 'public."none"', 'unknown table');
bad(create('["none.a"]'), '3F000', 'none', 'unknown schema');
bad(create('["a"]'), '22023', 'schema', 'a table without schema', hint => 'schema.table');
bad(q{SELECT peerdb_create_mirror('Bad Name', 'dest', '["public.a"]')}, '42602', 'Bad Name', 'a mirror\'s name', hint => 'lower-case');

# ---- options
bad(create('["public.a"]', '{"nonsense": 1}'), '22023', 'nonsense', 'unknown option', hint => 'max_batch_size.*soft_delete');
foreach my $o ('"max_batch_size": 0', '"max_batch_size": "many"', '"max_batch_size": 1.5', '"max_batch_size": null', '"max_batch_size": [1]',
	'"max_batch_size": 1e99', '"max_batch_size": "NaN"', '"sync_interval": -1', '"sync_interval": 1e9', '"sync_interval": "inf"', '"soft_delete": 2', '"soft_delete": {}',
	'"snapshot_max_parallel_workers": 100000', '"soft_delete_col_name": ""', '"soft_delete_col_name": 1', '"keep_serving": "perhaps"')
{
	my ($name) = $o =~ /"(\w+)"/;
	bad(create('["public.a"]', "{$o}"), '22023', "$name.*DETAIL:  Expected", "option {$o}");
}
bad(create('["public.a"]', '{"soft_delete_col_name": "x", "synced_at_col_name": "x"}'), '22023', 'the same', 'two columns of one name');
bad(create('["public.a"]', '{"initial_copy_only": true, "do_initial_copy": false}'), '22023', 'initial_copy', 'options that exclude each other');
bad(create('["public.a"]', '[]'), '22023', 'object', 'options that are no object');
bad(create('["public.a"]', '{"a": '), '22P02', 'json', 'malformed JSON: options');
bad(create('["public.a"'), '22P02', 'json', 'malformed JSON: tables');
bad(create('{}'), '22023', 'array', 'tables that are no array', hint => 'example');
bad(create('[]'), '22023', 'array', 'no table', hint => 'example');
bad(create('[{"from": "public.a", "nonsense": 1}]'), '22023', 'nonsense', 'unknown key of a table', hint => 'exclude');
bad(create('[{"from": "public.a", "exclude": ["none"]}]'), '42703', 'none', 'an excluded column that is not there', hint => 'as they are');
bad(create('[{"from": "public.a", "exclude": ["id"]}]'), '22023', '"id"', 'an excluded key column');

# ---- tables that cannot be mirrored
bad(create("[\"public.$_\"]"), '42809', $_, $_) foreach qw(aview mview seq ft unlogged);
bad(create('["public.unlogged"]'), '42809', 'unlogged', 'an unlogged table', hint => 'SET LOGGED');
{
	my ($status, undef, $err) = $t->try("CREATE TEMP TABLE tt (id int PRIMARY KEY); SELECT peerdb_create_mirror('m', 'dest', to_jsonb(ARRAY[(SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()) || '.tt']))");
	like($err, qr/42809.*temporary/s, 'a temporary table');
}
bad(create("[\"public.$_\"]"), '55000', "$_.*identity", "$_: no identity", hint => 'REPLICA IDENTITY') foreach qw(nokey deferred nothing);
bad(create('["public.odd"]'), '42701', '_peerdb_is_deleted', 'a column of our own\'s name', hint => 'soft_delete_col_name');
bad(create('["public.a", "public.a:x"]'), '42710', 'twice', 'a table twice');
bad(create('["public.a:x", "public.b:x"]'), '42710', 'x is used twice', 'two tables to one', hint => 'another destination');
bad(create('["public.parts", "public.part1"]'), '42710', 'part1', 'a partition beside its parent', hint => 'all its parts');
bad(create('["public.rls"]'), '42501', 'row security', 'row security', user => 'owner', hint => 'bypasses');
bad(create('["public.a"]'), '42501', 'SELECT', 'a missing privilege', user => 'owner');

# ---- size
bad(sprintf(q{SELECT peerdb_create_mirror('m', 'dest', '["public.a"]', jsonb_build_object('soft_delete_col_name', repeat('x', 1000000)))}), '22023', 'soft_delete_col_name', 'an option of 1 MB');
bad(q{SELECT peerdb_create_mirror('m', 'dest', jsonb_build_array('public.a:' || repeat('x', 64)))}, '42622', 'too long', 'a long destination name');
bad(q{SELECT peerdb_create_mirror('m', 'dest', '["public.a"]', jsonb_build_object(repeat('x', 1000000), 1))}, '22023', 'unrecognized', 'an option\'s name of 1 MB');
bad(q{SELECT peerdb_create_mirror(repeat('m', 1000000), 'dest', '["public.a"]')}, '42602', 'invalid', 'a mirror\'s name of 1 MB');
bad(q{SELECT peerdb_create_mirror('m', 'dest', jsonb_build_array(repeat('x', 1000000)))}, '\w{5}', '', 'a table\'s name of 1 MB');
bad(q{SELECT peerdb_create_mirror('m', 'dest', jsonb_build_array('public.' || repeat('x', 1000000)))}, '\w{5}', '', 'a table\'s name of 1 MB in a schema');
bad(q{SELECT peerdb_create_mirror('m', 'dest', jsonb_build_array(jsonb_build_object('from', 'public.a', 'exclude', jsonb_build_array(repeat('x', 1000000)))))}, '42703', 'does not exist', 'an excluded column of 1 MB');
bad(q{SELECT peerdb_resync(repeat('m', 1000000))}, '42704', 'does not exist', 'an unknown mirror of 1 MB');
my $began = time;
bad(q{SELECT peerdb_create_mirror('m', 'dest', (SELECT jsonb_agg('public.missing_' || i ORDER BY i) FROM generate_series(1, 10000) i))}, '42P01', 'public.missing_1 does', '10,000 tables that are not there: the first is named');
cmp_ok(time - $began, '<', 10, '10,000 tables: within seconds');
unchanged('bad arguments');
is($t->src('SELECT count(*) FROM peerdb.logs'), '0', 'not even a line in the log');

# ---- what only the destination knows: the run is refused, nothing is started
sub run_refused
{
	my ($tables, $options, $peer, $sqlstate, $pattern, $name) = @_;
	$t->src(create($tables, $options, $peer));
	$t->until_true("SELECT outcome = 'refused' FROM peerdb.runs WHERE mirror = 'm'", "$name: the run is refused") or $t->describe('m');
	my $got = $t->src("SELECT error_sqlstate || ' ' || error FROM peerdb._run r WHERE mirror_name = 'm' ORDER BY run DESC LIMIT 1");
	like($got, qr/^$sqlstate .*$pattern/s, "$name: says why");
	$t->src("SELECT peerdb_drop_mirror('m')");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", "$name: dropped");
	unchanged($name);
	return;
}
sub server
{
	my ($name, $server, $mapping) = @_;
	$t->src("CREATE SERVER $name FOREIGN DATA WRAPPER peerdb_postgres OPTIONS ($server); CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS ($mapping)");
	return;
}
$t->dst("CREATE ROLE asks LOGIN PASSWORD 'right'; CREATE ROLE poor LOGIN");
my $hba = $t->dest->data_dir . '/pg_hba.conf';
my $rules = PostgreSQL::Test::Utils::slurp_file($hba);
unlink $hba;
PostgreSQL::Test::Utils::append_to_file($hba, "local all asks scram-sha-256\n$rules");
$t->dest->reload;
server('wrong_password', "host '$host', port '$port', dbname 'postgres'", "user 'asks', password 'wrong_one'");
server('no_database', "host '$host', port '$port', dbname 'no_such_database'", "user '$user'");
server('no_role', "host '$host', port '$port', dbname 'postgres'", "user 'no_such_role'");
server('poor', "host '$host', port '$port', dbname 'postgres', metadata_schema 'poor'", "user 'poor'");
server('no_port', "host '127.0.0.1', port '1', dbname 'postgres'", "user 'x'");
server('no_host', "host 'no-such-host.invalid', dbname 'postgres', connect_timeout '3'", "user 'x'");
server('itself', "host '" . $t->source->host . "', port '" . $t->source->port . "', dbname 'postgres'", "user '$user'");
run_refused('["public.a:in_the_way"]', '{}', 'dest', '42P07', 'in_the_way.*HINT:.*replace_existing', 'a table in the way');
run_refused('["public.a:view_in_the_way"]', '{"replace_existing": true}', 'dest', '42809', 'view_in_the_way.*HINT', 'a view in the way');
run_refused('["public.a:build"]', '{}', 'dest', '42P07', 'build_resync.*HINT', 'a table in the way of the one under construction');
run_refused('["public.a"]', '{}', 'wrong_password', '28P01', 'password authentication failed', 'a wrong password');
run_refused('["public.a"]', '{}', 'no_database', '3D000', 'no_such_database', 'a missing database');
run_refused('["public.a"]', '{}', 'no_role', '28\w{3}', 'no_such_role', 'a missing role');
run_refused('["public.a:newschema.a"]', '{}', 'poor', '42501', 'may not create.*HINT:.*GRANT', 'a role without rights');
run_refused('["public.a"]', '{}', 'no_port', '08\w{3}', '127.0.0.1', 'an unreachable port');
run_refused('["public.a"]', '{}', 'no_host', '08\w{3}', 'no-such-host', 'an unknown host');
run_refused('["public.a"]', "{\"replace_existing\": $_}", 'itself', '22023', 'itself', "a table onto itself (replace_existing $_)") foreach qw(false true);
bad("SELECT peerdb_check_peer('$_->[0]')", $_->[1], $_->[2], "check_peer: $_->[0]")
  foreach [ 'wrong_password', '28P01', 'authentication' ], [ 'no_database', '3D000', 'no_such_database' ], [ 'no_port', '08\w{3}', '127' ], [ 'no_host', '08\w{3}', 'no-such-host' ];

# ---- more tables than the lock table should hold
$t->src('CREATE SCHEMA many');
$t->src(q{DO $$ BEGIN FOR i IN 1..1200 LOOP EXECUTE format('CREATE TABLE many.t%s (id int PRIMARY KEY)', i); COMMIT; END LOOP; END $$});
$t->source->append_conf('postgresql.conf', 'max_locks_per_transaction = 10');
$t->source->restart;
$t->src("DO \$\$ BEGIN PERFORM peerdb_create_mirror('m', 'dest', '[\"many.*\"]'); EXCEPTION WHEN out_of_memory THEN RAISE NOTICE 'full'; END \$\$");
if ($t->src("SELECT count(*) FROM peerdb._mirror WHERE name = 'm'") eq '1')
{
	$t->until_true("SELECT outcome = 'refused' FROM peerdb.runs WHERE mirror = 'm'", 'more tables than locks: refused') or $t->describe('m');
	like($t->src("SELECT error FROM peerdb.runs WHERE mirror = 'm'"), qr/max_locks_per_transaction/, 'more tables than locks: the setting is named');
	$t->src("SELECT peerdb_drop_mirror('m')");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'more tables than locks: dropped');
}
else
{
	fail('more tables than locks: the call itself fills the lock table');
}
unchanged('more tables than locks');
$t->source->append_conf('postgresql.conf', 'max_locks_per_transaction = 64');

# ---- more tables than the destination's lock table should hold
{
	my $dest = $t->dest;
	sub few_locks { my ($locks) = @_; $dest->append_conf('postgresql.conf', "max_locks_per_transaction = $locks\nmax_connections = 16"); $dest->restart; return; }
	$t->src('CREATE SCHEMA crowd');
	$t->src(q{DO $$ BEGIN FOR i IN 1..80 LOOP EXECUTE format('CREATE TABLE crowd.t%s (id int PRIMARY KEY, v text)', i); COMMIT; END LOOP; END $$});
	few_locks(10);
	run_refused('["crowd.*"]', '{}', 'dest', '53400', 'swap of 80 tables.*lock table.*HINT:.*max_locks_per_transaction', 'locks of the destination');

	# what fits at first does not when there are old tables to be dropped, too
	$t->create_mirror('f', [ map { "crowd.t$_" } 1 .. 20 ]);
	$t->wait_status('f', 'running', 'locks of the destination: fewer tables fit');
	$t->sync('f');
	my $refused = "SELECT count(*) = 0 FROM peerdb_plan_resync('f') WHERE level = 'error' AND detail ~ 'lock table'";
	is($t->src($refused), 'f', 'locks of the destination: plan_resync says so');
	$t->resync('f');
	$t->until_true("SELECT outcome = 'refused' AND error ~ 'max_locks_per_transaction' FROM peerdb.runs WHERE mirror = 'f' ORDER BY run DESC LIMIT 1",
		'locks of the destination: the resync is refused');
	is($t->status('f'), 'running', 'locks of the destination: the mirror runs on');
	few_locks(20);
	is($t->src($refused), 't', 'locks of the destination: plan_resync is content with more');
	$t->resync('f');
	$t->wait_status('f', 'running', 'locks of the destination: with more the resync works');

	# others hold the locks: a few tries, then it fails, and nothing is lost
	my $release = $t->hold_phase('f', 'swap', 'crowd.t1', sub { $t->resync('f'); });
	my $hog = $t->session($dest);
	$hog->query_safe(q{DO $$ BEGIN FOR i IN 1..1000000 LOOP PERFORM pg_advisory_lock(i); END LOOP; EXCEPTION WHEN out_of_memory THEN NULL; END $$;
		SELECT count(pg_advisory_unlock(i)) FROM generate_series(1, 25) i});
	$release->();
	$t->until_true("SELECT outcome = 'failed' AND error ~ 'lock table.*has no room' AND error ~ 'HINT:.*max_locks_per_transaction' FROM peerdb.runs WHERE mirror = 'f' ORDER BY run DESC LIMIT 1",
		'a lock table that others have filled: fails in the end, with the hint') or $t->describe('f');
	like(PostgreSQL::Test::Utils::slurp_file($t->source->logfile), qr/has no room for the swap of 20 tables.*try 1 of/s, 'a lock table that others have filled: tried before');
	$hog->quit;
	is($t->dst('SELECT count(*) FROM crowd.t1'), '0', 'a lock table that others have filled: the old tables are there');
	$t->until_status('f', 'failed');
	$t->resync('f');
	$t->wait_status('f', 'running', 'a lock table that others have filled: a resync works afterwards');
	$t->src("SELECT peerdb_drop_mirror('f', drop_destination => true)");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'locks of the destination: dropped');
	$t->dst('DROP SCHEMA crowd');
	$dest->append_conf('postgresql.conf', "max_locks_per_transaction = 64\nmax_connections = 60");
	$dest->restart;
	unchanged('locks of the destination');
}

# ---- a name server that never answers, played by a getaddrinfo() that waits
SKIP:
{
	my $dir = PostgreSQL::Test::Utils::tempdir();
	PostgreSQL::Test::Utils::append_to_file("$dir/slow.c", <<'EOC');
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>
int getaddrinfo(const char *n, const char *s, const struct addrinfo *h, struct addrinfo **r)
{
	int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
	if (n && strcmp(n, "never.answers") == 0)
		for (;;) sleep(60);
	return next(n, s, h, r);
}
EOC
	skip 'no C compiler', 4 if system("cc -shared -fPIC -o $dir/slow.so $dir/slow.c -ldl 2>$dir/cc.log") != 0;
	{
		local $ENV{LD_PRELOAD} = "$dir/slow.so";
		$t->source->restart;
	}
	server('silent', "host 'never.answers', dbname 'postgres', connect_timeout '2'", "user 'x'");
	$began = time;
	bad(q{SELECT peerdb_check_peer('silent')}, '08\w{3}', 'never.answers', 'a name server that never answers: connect_timeout');
	cmp_ok(time - $began, '<', 8, 'a name server that never answers: in time');
	$t->src("ALTER SERVER silent OPTIONS (DROP connect_timeout)");
	$began = time;
	bad(q{SET statement_timeout = '1s'; SELECT peerdb_check_peer('silent')}, '57014', '', 'a name server that never answers: can be cancelled');
	cmp_ok(time - $began, '<', 5, 'a name server that never answers: cancelled at once');
	$t->src(create('["public.a"]', '{}', 'silent'));
	$t->until_true("SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'resync coordinator'", 'a coordinator asks it');
	$t->src("ALTER SERVER silent OPTIONS (ADD connect_timeout '1')");
	$t->src("SELECT peerdb_drop_mirror('m')");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'a name server that never answers: the mirror can be dropped', limit => 15);
	$t->src("ALTER SERVER silent OPTIONS (DROP connect_timeout)");
	$t->src(create('["public.a"]', '{}', 'silent'));
	$t->until_true("SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'resync coordinator'", 'a coordinator asks it again');
	$began = time;
	$t->source->stop('fast');
	cmp_ok(time - $began, '<', 5, 'a name server that never answers: the server stops at once');
	$t->source->start;
	$t->src("SELECT peerdb_drop_mirror('m')");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'a name server that never answers: dropped');
	unchanged('a name server that never answers');
}

# ---- limits of the server
$t->source->append_conf('postgresql.conf', "max_replication_slots = 1\nmax_wal_senders = 1");
$t->source->restart;
$t->src("SELECT pg_create_physical_replication_slot('taken')");
run_refused('["public.a"]', '{}', 'dest', '53400', 'replication slots.*HINT:.*max_replication_slots', 'no slot left');
$t->src("SELECT pg_drop_replication_slot('taken')");
foreach my $setting ([ 'max_replication_slots', 0 ], [ 'wal_level', 'replica' ], $t->source->pg_version < 17 ? [ 'old_snapshot_threshold', 10 ] : ())
{
	my ($name, $value) = @$setting;
	$t->source->append_conf('postgresql.conf', "$name = $value");
	$t->source->restart;
	bad(create('["public.a"]'), '55000', $name, "$name = $value", hint => $name);
	$t->source->append_conf('postgresql.conf', $name eq 'wal_level' ? 'wal_level = logical' : $name eq 'old_snapshot_threshold' ? "$name = -1" : "$name = 10");
}
unchanged('limits of the server');

# streamers are background workers: none of the walsenders that are configured is
# needed, even where all are taken
$t->source->append_conf('postgresql.conf', 'max_wal_senders = 0');
$t->source->restart;
$t->src(create('["public.a"]'));
$t->wait_status('m', 'running', 'no walsender: a mirror needs none');
$t->sync('m', 'no walsender: it streams');
$t->same('a', 'no walsender: equal');
$t->src("SELECT peerdb_drop_mirror('m', drop_destination => true)");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'no walsender: dropped');
unchanged('no walsender');

# no worker left: it waits, says what for, and goes on when there is one
$t->source->append_conf('postgresql.conf', "max_wal_senders = 10\nmax_worker_processes = 4");
$t->source->restart;
$t->src(create('["public.a"]'));
$t->until_true("SELECT count(*) > 0 FROM peerdb.mirrors WHERE mirror = 'm' AND (status = 'running' OR error ~ 'max_worker_processes')", 'few workers: it runs, or says which setting');
$t->source->append_conf('postgresql.conf', 'max_worker_processes = 1');
$t->source->restart;
is($t->status('m') =~ /^(setup|snapshot|running)$/ ? 1 : 0, 1, 'no worker: the mirror waits');
like(PostgreSQL::Test::Utils::slurp_file($t->source->logfile), qr/max_worker_processes/, 'no worker: the log names the setting');
$t->source->append_conf('postgresql.conf', 'max_worker_processes = 20');
$t->source->restart;
$t->wait_status('m', 'running', 'workers again: it goes on');
$t->sync('m');
$t->same('a');
$t->refused(create('["public.b"]'), '42710', 'exists', 'a mirror of that name exists');
$t->refused(q{SELECT peerdb_create_mirror('m2', 'dest', '["public.b:a"]')}, '42710', 'another mirror', 'a destination that another mirror has');
$t->refused(q{SELECT peerdb_resync('m', '{"nonsense": 1}')}, '22023', 'nonsense', 'resync: unknown option');
$t->refused(q{SELECT peerdb_resync('m', '{"soft_delete": false}')}, '22023', 'soft_delete', 'resync: an option that it does not take');
$t->refused(q{SELECT peerdb_edit_mirror('m', '{"max_batch_size": -1}')}, '22023', 'max_batch_size', 'edit: out of range');
$t->refused(q{SELECT peerdb_edit_mirror('m', tables => '["public.b"]')}, '\w{5}', 'b', 'edit: a table that is not in it');
$t->refused(q{SELECT peerdb_wait_for_status('m', 'nonsense')}, '22023', 'nonsense', 'wait: unknown status');
is($t->status('m'), 'running', 'the mirror goes on');

# ---- a standby
$t->source->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($t->source, 'b', has_streaming => 1);
$standby->start;
$t->source->wait_for_catchup($standby, 'replay', $t->source->lsn('insert'));
bad(create('["public.b"]'), '25006', '', 'create on a standby', node => $standby);
bad(q{SELECT peerdb_resync('m')}, '25006', '', 'resync on a standby', node => $standby);
bad(q{SELECT peerdb_drop_mirror('m')}, '25006', '', 'drop on a standby', node => $standby);
is($standby->safe_psql('postgres', 'SELECT mirror FROM peerdb.mirrors'), 'm', 'the views can be read there');
$standby->stop;
$t->src("INSERT INTO a VALUES (100, 'after all that')");
$t->sync('m');
$t->same('a', 'the original goes on');
$t->dst('DROP TABLE build_resync');
$t->drop_all;
done_testing();
