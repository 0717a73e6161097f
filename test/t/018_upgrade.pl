# pg_upgrade of the source, to the same major (what is installed): definitions,
# runs and rows come over, and the new cluster has another system identifier.
# Slots do not come over before 17.  From 17 on pg_upgrade keeps them, and
# refuses a cluster where one has WAL that was not decoded; ours are of no use in
# the new cluster, so they may be dropped before, and one that is kept is dropped
# there.  No worker runs while pg_upgrade starts the servers; in the new
# cluster the mirrors are failed, with what to do, and nothing touches the
# destination until somebody does it.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncTest->new(dst_conf => "log_connections = on\n");
my $old = $t->source;
my $dest = $t->dest;

# an extension's server with everything that is checked when it is made, too
$t->src(<<'EOS');
CREATE TABLE a (id int PRIMARY KEY, v text);
CREATE TABLE b (id int PRIMARY KEY, v text);
CREATE TABLE c (id int PRIMARY KEY, v text);
CREATE TABLE d (id int PRIMARY KEY, v text);
INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 500) i;
INSERT INTO b SELECT * FROM a;
INSERT INTO c SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 2000) i;
INSERT INTO d SELECT * FROM a;
CREATE SERVER house FOREIGN DATA WRAPPER peerdb_clickhouse OPTIONS (host 'nowhere', tls 'off', port '8123');
CREATE USER MAPPING FOR CURRENT_USER SERVER house OPTIONS (user 'u', password_file '/nowhere/password');
CREATE ROLE app LOGIN REPLICATION;
ALTER TABLE b OWNER TO app;
GRANT CREATE ON SCHEMA public TO app;
GRANT USAGE ON FOREIGN SERVER dest TO app;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO app;
EOS
$t->src(sprintf q{CREATE USER MAPPING FOR app SERVER dest OPTIONS (user '%s', password_required 'false')},
	$dest->safe_psql('postgres', 'SELECT current_user'));

# one runs, one is paused (by its owner, no superuser), one is in the middle of
# its load, one is dropped in the new cluster
$t->create_mirror('m', ['public.a']);
$t->wait_status('m', 'running');
$t->src(q{SET ROLE app; SELECT peerdb_create_mirror('p', 'dest', '["public.b"]')});
$t->wait_status('p', 'running');
$t->create_mirror('f', ['public.d']);
$t->wait_status('f', 'running');
$t->src('DELETE FROM a WHERE id = 7; DELETE FROM b WHERE id = 7');
$t->sync('m');
$t->sync('p');
$t->src("SELECT peerdb_pause_mirror('p')");
$t->until_status('p', 'paused');
$t->src("ALTER SYSTEM SET resync.load_rate_limit = '1kB'");
$t->src('SELECT pg_reload_conf()');
$t->create_mirror('k', ['public.c'], { snapshot_num_rows_per_partition => 500 });
$t->until_true("SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'resync copier k'", 'a load is under way', node => $dest);
my $runs = $t->src('SELECT count(*) FROM peerdb._run');
my $keeps_slots = $old->pg_version >= 17;
$old->stop;

# What workers did at the destination: connections so far, marks, tables.
sub connections
{
	my @lines = grep { /connection authorized.*application_name=resync/ } split /\n/, slurp_file($dest->logfile);
	return scalar @lines;
}

sub destination
{
	return $t->dst(<<'EOS');
SELECT token, system_identifier, database FROM _peerdb_internal.resync_mirror ORDER BY 1;
SELECT token, run, state FROM _peerdb_internal.resync_run ORDER BY 1, 2;
SELECT oid, relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1;
SELECT count(*) FROM a;
EOS
}
$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'resync%'", 'the old cluster has no connection left', node => $dest);
my $connections = connections();
my $before = destination();

# ---- pg_upgrade
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init(extra => [ '--locale=C.UTF-8', '--encoding=UTF8' ]);
$new->append_conf('postgresql.conf', <<'EOC');
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
max_replication_slots = 20
max_wal_senders = 10
fsync = off
max_connections = 60
timezone = 'UTC'
EOC
my $bindir = $old->config_data('--bindir');
chdir PostgreSQL::Test::Utils::tempdir() or die "chdir: $!";    # it writes a script
my @upgrade = (
	'pg_upgrade', '--no-sync',
	'-d', $old->data_dir, '-D', $new->data_dir,
	'-b', $bindir, '-B', $bindir,
	'-s', $new->host, '-p', $old->port, '-P', $new->port);

# a slot that is kept: m's, with nothing left to decode, which only happens by
# chance.  The others are dropped, as README.md says.
my $kept;
if ($keeps_slots)
{
	$new->command_checks_all([ @upgrade, '--check' ], 1, [qr/logical replication slots that (cannot|can't) be upgraded/], [qr/^$/], 'pg_upgrade refuses slots with WAL to decode');
	# analyze commits, too
	$old->append_conf('postgresql.conf', "resync.enabled = off\nautovacuum = off");
	$old->start;
	$kept = $t->src("SELECT slot_name FROM peerdb.mirrors WHERE mirror = 'm'");
	$t->src("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%' AND slot_name <> '$kept'");
	$t->src("SELECT pg_replication_slot_advance('$kept', pg_current_wal_insert_lsn())");
	$old->stop;
	$old->append_conf('postgresql.conf', 'resync.enabled = on');
}
$new->command_ok(\@upgrade, 'pg_upgrade with the extension installed and the library preloaded');
is(connections(), $connections, 'no worker ran while it had the servers started');
is(destination(), $before, 'and nothing changed at the destination');

# ---- the new cluster
ok(-d $new->data_dir . "/pg_replslot/$kept", 'the slot came over') if $keeps_slots;
$new->start;
$t->{source} = $new;
$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'resync launcher'", 'the launcher runs in the new cluster');
is($t->src('SELECT count(*) FROM peerdb._run'), $runs, 'the history came over');
foreach my $mirror ('m', 'p', 'f', 'k')
{
	like($t->src("SELECT status, error FROM peerdb.mirrors WHERE mirror = '$mirror'"),
		qr/^failed\|this database is a copy .*pg_upgrade.*adopt => true/s, "$mirror is failed, and the reason knows of pg_upgrade");
	$t->refused("SELECT peerdb_resync('$mirror')", '55000', "HINT: .*peerdb_resume_mirror\\('$mirror', adopt => true\\)", "$mirror: a resync is refused, with what to do");
	$t->refused("SELECT peerdb_resume_mirror('$mirror')", '55000', "HINT: .*adopt => true", "$mirror: so is to resume it");
}
# the probe is through when a mirror that it knows of has a coordinator
$t->src(<<'EOS');
CREATE TABLE e (id int PRIMARY KEY);
INSERT INTO e VALUES (1);
EOS
is(connections(), $connections, 'nothing connected to the destination');
is(destination(), $before, 'and nothing changed there');
$t->until_true('SELECT count(*) = 0 FROM pg_replication_slots', 'there is no slot');

# ---- taken over
$t->src("SELECT peerdb_resume_mirror('m', adopt => true)");
$t->wait_status('m', 'running', 'm: adopted, it is rebuilt and runs');
$t->src("INSERT INTO a VALUES (1001, 'new'); DELETE FROM a WHERE id = 8");
$t->sync('m');
$t->same('a', 'm: equal');
is($t->dst("SELECT string_agg(id::text, ',' ORDER BY id) FROM a WHERE _peerdb_is_deleted"), '7,8', 'm: what was soft-deleted before the upgrade is kept');
$t->resync('m');
$t->wait_status('m', 'running', 'm: a resync works from then on');
$t->src("INSERT INTO a VALUES (1002, 'resynced')");
$t->sync('m');
$t->same('a', 'm: equal after the resync');

$t->src(q{SET ROLE app; SELECT peerdb_resume_mirror('p', adopt => true)});
$t->wait_status('p', 'running', 'p: adopted by its owner');
is($t->src("SELECT owner FROM peerdb.mirrors WHERE mirror = 'p'"), 'app', 'p: who owns it still');
$t->src("INSERT INTO b VALUES (1001, 'new')");
$t->sync('p');
$t->same('b', 'p: equal');

# the load that was under way in the old cluster: its setting came over, too
$t->src('ALTER SYSTEM RESET resync.load_rate_limit');
$t->src('SELECT pg_reload_conf()');
$t->src("SELECT peerdb_resume_mirror('k', adopt => true)");
$t->wait_status('k', 'running', 'k: adopted in the middle of its first load');
$t->src("UPDATE c SET v = 'new' WHERE id <= 20");
$t->sync('k');
$t->same('c', 'k: equal');

# ---- a mirror that is made here
$t->create_mirror('n', ['public.e']);
$t->wait_status('n', 'running', 'a new mirror in the new cluster');
$t->sync('n');
$t->same('e', 'n: equal');

# ---- forgotten
my ($status, $out, $err) = $t->try("SELECT peerdb_drop_mirror('f')");
is($status, 0, 'f: can be forgotten');
like($err, qr/nothing else was touched/, 'f: and its table at the destination stays');
is($t->dst('SELECT count(*) FROM d'), '500', 'f: so it does');

# ---- the old cluster is started by mistake: it is fenced
my $slots = $t->src('SELECT count(*) FROM pg_replication_slots');
is($slots, '4', 'one slot per mirror');
$old->start;
$old->safe_psql('postgres', "INSERT INTO a VALUES (9001, 'old')");
# without its slot it is failed as it is
$old->safe_psql('postgres', "SELECT peerdb_resume_mirror('p')") unless $keeps_slots;
$t->until_true("SELECT peerdb_mirror_status('$_') = 'failed'", "old cluster: $_ fails", node => $old, db => 'postgres') foreach ('m', 'p', 'k');
like($old->safe_psql('postgres', "SELECT error FROM peerdb.mirrors WHERE mirror = 'm'"), qr/no longer in charge.*HINT:/s, 'old cluster: m says why');
$old->stop;
$t->src("INSERT INTO a VALUES (1003, 'still')");
$t->sync('m');
$t->same('a', 'm: the new one goes on');
$t->same('b', 'p: untouched by the old one');
$t->same('c', 'k: untouched by the old one');

$t->drop_all;
done_testing();
