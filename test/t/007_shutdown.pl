# The server stops at once in every phase; DROP EXTENSION and DROP DATABASE work
# while mirrors run; a restart in the middle of a load goes on where it was.
use strict;
use warnings;

use ResyncTest;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

my $t = ResyncTest->new;
my $limit = 5;    # seconds for a fast stop, of a server under test load

$t->src(<<'EOS');
CREATE TABLE d (id int PRIMARY KEY, v text);
INSERT INTO d SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 3000) i;
EOS

# stop -m fast, start again
sub stops_fast
{
	my ($what) = @_;
	my $begin = time();
	$t->source->stop('fast');
	my $took = time() - $begin;
	cmp_ok($took, '<', $limit, sprintf('%s: pg_ctl stop -m fast (%.1f s)', $what, $took));
	$t->source->start;
	return;
}

$t->create_mirror('m', ['public.d'], { snapshot_num_rows_per_partition => 200 });
$t->wait_status('m', 'running');
stops_fast('running');
$t->src("INSERT INTO d VALUES (5001, 'after a restart')");
$t->sync('m');
$t->same('d', 'goes on after a restart');

foreach my $phase (qw(create_tables catch_up swap))
{
	my $release = $t->hold_phase('m', $phase, 'd', sub { $t->resync('m'); });
	stops_fast($phase);
	$release->();
	$t->wait_status('m', 'running', "$phase: goes on after the restart");
	$t->sync('m');
	$t->same('d', "$phase: equal after the restart");
}

# create_slot: the writing transaction that is waited for ends with the server
my $writer = $t->session($t->source);
$writer->query_safe('BEGIN; SELECT pg_current_xact_id()');
$t->resync('m');
$t->until_phase('m', 'create_slot');
stops_fast('create_slot');
eval { $writer->{run}->kill_kill; };
$t->wait_status('m', 'running', 'create_slot: goes on after the restart');
$t->sync('m');
$t->same('d', 'create_slot: equal after the restart');

# ---- load: partitions that are done are not read again
my $release = $t->hold_phase('m', 'load', 'd', sub { $t->resync('m'); });
$t->src("ALTER SYSTEM SET resync.load_rate_limit = '100kB'");
$t->src('SELECT pg_reload_conf()');
my $run = $t->src("SELECT max(run) FROM peerdb.runs WHERE mirror = 'm'");
$t->until_true("SELECT count(*) >= 2 FROM peerdb.partitions WHERE run = $run AND status = 'done'", 'some partitions are done');
stops_fast('load');
my $done = $t->src("SELECT string_agg(partition || ' ' || finished_at || ' ' || attempts, ',' ORDER BY partition) FROM peerdb.partitions WHERE run = $run AND status = 'done' AND finished_at < pg_postmaster_start_time()");
$t->src('UPDATE d SET v = id WHERE id % 3 = 0; DELETE FROM d WHERE id % 100 = 0; INSERT INTO d VALUES (6001, \'during\')');
$release->();
$t->wait_status('m', 'running', 'load: goes on after the restart');
is($t->src("SELECT max(run) FROM peerdb.runs WHERE mirror = 'm'"), $run, 'load: in the same run');
is($t->src("SELECT string_agg(partition || ' ' || finished_at || ' ' || attempts, ',' ORDER BY partition) FROM peerdb.partitions WHERE run = $run AND finished_at < pg_postmaster_start_time()"),
	$done, 'load: what was done was not loaded again');
$t->sync('m');
$t->same('d', 'load: equal after the restart');

# ---- crash of the source in a load: the same
$release = $t->hold_phase('m', 'load', 'd', sub { $t->resync('m'); });
$t->source->stop('immediate');
$t->source->start;
$t->src('DELETE FROM d WHERE id % 50 = 1');
$release->();
$t->wait_status('m', 'running', 'crash in a load: goes on');
$t->sync('m');
$t->same('d', 'crash in a load: equal');
my $slow = $t->writer("INSERT INTO d VALUES (random() * 1e9, 'w') ON CONFLICT DO NOTHING;\n", rate => 200);
$t->source->stop('immediate');
$t->stop($slow, signal => 0);
$t->source->start;
$t->sync('m', 'crash under writes: catches up');
$t->same('d', 'crash under writes: equal');

# ---- a destination that accepts and never answers
my $deaf = IO::Socket::INET->new(Listen => 50, LocalAddr => '127.0.0.1', Proto => 'tcp') or die "listen: $!";
$t->src(sprintf "CREATE SERVER deaf FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '127.0.0.1', port '%d', dbname 'x')", $deaf->sockport);
$t->src("CREATE USER MAPPING FOR CURRENT_USER SERVER deaf OPTIONS (user 'x')");
$t->create_mirror('deaf', ['public.d'], {}, peer => 'deaf');
$t->until_true("SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND wait_event_type IS NOT NULL", 'it waits');
is($t->status('deaf'), 'setup', 'a deaf destination: setup');
stops_fast('a destination that never answers');
$t->src("SELECT peerdb_drop_mirror('deaf')");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'deaf'", 'a mirror of a deaf destination can be dropped');
close $deaf;

# ---- the destination is down while the source stops
$t->dest->stop;
$t->src("INSERT INTO d VALUES (7001, 'unsent')");
stops_fast('the destination is down');
$t->dest->start;
$t->sync('m', 'sent after both are up again');
$t->same('d', 'equal after both are up again');

# ---- DROP EXTENSION
$t->src('BEGIN; DROP EXTENSION resync CASCADE; ROLLBACK');
$t->src("INSERT INTO d VALUES (7002, 'after a rollback')");
$t->sync('m', 'DROP EXTENSION, rolled back: the mirror goes on');
$t->same('d', 'DROP EXTENSION, rolled back: equal');
$t->src('DROP EXTENSION resync CASCADE');
$t->no_leftovers('DROP EXTENSION');
is($t->dst('SELECT count(*) > 1000 FROM d'), 't', 'DROP EXTENSION: the tables at the destination stay');

# ---- DROP DATABASE
foreach my $force ('', ' WITH (FORCE)')
{
	$t->src('CREATE DATABASE other');
	$t->install('other');
	$t->src('CREATE TABLE od (id int PRIMARY KEY); INSERT INTO od VALUES (1)', db => 'other');
	$t->dst('DROP TABLE IF EXISTS od');
	$t->create_mirror('om', ['public.od'], {}, db => 'other');
	$t->wait_status('om', 'running', "DROP DATABASE$force: a mirror in another database", db => 'other');
	my ($status, $out, $err) = $t->try("DROP DATABASE other$force");
	is($err, '', "DROP DATABASE$force while its mirror runs");
	is($t->src("SELECT count(*) FROM pg_database WHERE datname = 'other'"), '0', "DROP DATABASE$force: it is gone");
	$t->no_leftovers("DROP DATABASE$force");
}

# who may not drop it does not stop its mirrors
$t->src('CREATE DATABASE other');
$t->install('other');
$t->src('CREATE ROLE nobody_special LOGIN');
$t->src('CREATE TABLE od (id int PRIMARY KEY); INSERT INTO od VALUES (1)', db => 'other');
$t->dst('DROP TABLE IF EXISTS od');
$t->create_mirror('om', ['public.od'], {}, db => 'other');
$t->wait_status('om', 'running', 'again', db => 'other');
my $pid = $t->src("SELECT active_pid FROM pg_replication_slots WHERE slot_name LIKE 'resync%'");
my ($status, $out, $err) = $t->try('DROP DATABASE other', user => 'nobody_special');
like($err, qr/must be owner/, 'DROP DATABASE by somebody else');
is($t->src("SELECT active_pid FROM pg_replication_slots WHERE slot_name LIKE 'resync%'"), $pid, 'its mirror never stopped');
$t->src('DROP DATABASE other');
$t->no_leftovers('the last database');

# whose session is terminated while it waits: the mirror comes back
$t->src('CREATE DATABASE other');
$t->install('other');
$t->src('CREATE TABLE od (id int PRIMARY KEY); INSERT INTO od VALUES (1)', db => 'other');
$t->dst('DROP TABLE IF EXISTS od');
$t->create_mirror('om', ['public.od'], {}, db => 'other');
$t->wait_status('om', 'running', 'once more', db => 'other');
{
	my $user = $t->session($t->source, 'other');
	$user->query_safe('SELECT 1');
	my $drop = $t->start($t->source, 'psql', '-Xc', 'DROP DATABASE other');
	$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'DROP DATABASE other' AND state = 'active'"
		  . " AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE active AND slot_name LIKE 'resync%')", 'DROP DATABASE waits for a session, our workers are gone');
	$t->src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'DROP DATABASE other'");
	my (undef, undef, $err) = $t->stop($drop);
	like($err, qr/terminating connection/, 'DROP DATABASE is terminated');
	$t->src('INSERT INTO od VALUES (2)', db => 'other');
	$t->until_true('SELECT count(*) = 2 FROM od', 'the mirror goes on after it', node => $t->dest);
	$user->quit;
}
$t->src('DROP DATABASE other');
$t->no_leftovers('and can be dropped');

# ---- off
$t->install;
$t->create_mirror('m', ['public.d'], { replace_existing => 'true' });
$t->wait_status('m', 'running');
$t->src('ALTER SYSTEM SET resync.enabled = off');
$t->src('SELECT pg_reload_conf()');
$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher%'", 'resync.enabled = off stops all workers');
$t->src('ALTER SYSTEM RESET resync.enabled');
$t->src('SELECT pg_reload_conf()');
$t->src("INSERT INTO d VALUES (7003, 'enabled again')");
$t->sync('m', 'and on starts them');
$t->same('d', 'equal at the end');
$t->drop_all;
done_testing();
