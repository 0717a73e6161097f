# Each kind of worker is ended by pg_terminate_backend in each phase where it
# lives, and resync.enabled = off stops all of them there: the mirror goes on by
# itself, and the end equals a run that nothing disturbed.  Partitions that were
# loaded are not loaded again.  (019 has phase stream, 021 each debug point.)
#
# RESYNC_PHASES="load swap" has only these phases.
use strict;
use warnings;

use ResyncTest;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time usleep);

my $t = ResyncTest->new(src_conf => "max_prepared_transactions = 2\n");
my $limit = 5;    # seconds in which off has stopped all, of a server under test load
my @deleted;
my $step = 0;

$t->src(<<'EOS');
CREATE TABLE w (id int PRIMARY KEY, v text);
INSERT INTO w SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 3000) i;
CREATE TABLE nokey (x int);
ALTER TABLE nokey REPLICA IDENTITY FULL;
INSERT INTO nokey SELECT i % 50 FROM generate_series(1, 300) i;
EOS

# Some of everything; nokey shows at once what is applied twice.
sub change
{
	$step++;
	push @deleted, $step;
	$t->src(<<"EOS");
BEGIN;
UPDATE w SET v = 'u$step' WHERE id % 37 = $step % 37;
INSERT INTO w VALUES (10000 + $step, 'new');
DELETE FROM w WHERE id = $step;
INSERT INTO nokey VALUES ($step), ($step);
DELETE FROM nokey WHERE ctid = (SELECT ctid FROM nokey WHERE x = 50 - $step % 50 LIMIT 1);
COMMIT
EOS
	return;
}

# The tables as an undisturbed run would have left them.
sub all_well
{
	my ($name) = @_;
	$t->wait_status('m', 'running', "$name: the mirror runs");
	change();
	$t->sync('m', "$name: catches up");
	$t->same($_, "$name: $_") foreach qw(w nokey);
	is($t->dst('SELECT id FROM w WHERE _peerdb_is_deleted ORDER BY 1'), join("\n", sort { $a <=> $b } @deleted), "$name: deleted rows are kept, and no other");
	is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome IN ('failed', 'refused')"), '0', "$name: no run failed");
	$t->until_true("SELECT count(*) = 1 FROM pg_replication_slots", "$name: one slot");
	$t->until_true("SELECT count(*) = 0 FROM pg_class WHERE relname ~ '_resync(_[0-9a-f]{8})?\$'", "$name: no table under construction", node => $t->dest);
	return;
}

# All workers of the kind end; others take their place, for some only when the
# coordinator has time for them again.
sub end_workers
{
	my ($kind, $name) = @_;
	my $who = "FROM pg_stat_activity WHERE backend_type = 'resync $kind'";
	$t->until_true("SELECT count(*) > 0 $who", "$name: there is a $kind") or $t->describe('m');
	my $pids = $t->src("SELECT string_agg(pid::text, ',') FROM (SELECT pid $who OFFSET 0) p WHERE pg_terminate_backend(pid)");
	my $new = $kind eq 'streamer' ? '' : 'count(*) > 0 AND';
	$t->until_true("SELECT $new coalesce(bool_and(pid NOT IN ($pids)), true) $who", "$name: the $kind is ended") or $t->describe('m');
	return;
}

sub set_enabled
{
	my ($action) = @_;
	$t->src("ALTER SYSTEM $action");
	$t->src('SELECT pg_reload_conf()');
	return;
}

# Off stops them all, on brings back who was there.
sub off_and_on
{
	my ($name) = @_;
	my $begin = time();
	set_enabled('SET resync.enabled = off');
	$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher'", "$name: off stops all workers");
	cmp_ok(time() - $begin, '<', $limit, "$name: they are gone at once");
	set_enabled('RESET resync.enabled');
	$begin = time();
	$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'resync coordinator'", "$name: on starts them");
	cmp_ok(time() - $begin, '<', $limit, "$name: they are there at once");
	return;
}

# What is loaded: partition, attempts, finished_at.
sub loaded
{
	my ($filter) = @_;
	return $t->src("SELECT partition, attempts, finished_at FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs)"
		  . " AND source_table = 'public.w' AND status = 'done' $filter ORDER BY 1");
}

$t->create_mirror('m', [ 'public.w', 'public.nokey' ], { snapshot_num_rows_per_partition => 150, snapshot_max_parallel_workers => 2 });
all_well('at first');

# phase => keep_serving, kinds in the order in which they are ended
my @matrix = (
	[ validate => 'false', qw(streamer launcher coordinator) ],
	[ drop => 'false', qw(launcher coordinator) ],
	[ create_slot => 'true', qw(streamer launcher coordinator) ],
	[ create_tables => 'false', qw(streamer launcher coordinator) ],
	[ load => 'false', qw(copier streamer launcher coordinator) ],
	[ catch_up => 'true', qw(streamer launcher coordinator) ],
	[ swap => 'true', qw(streamer launcher coordinator) ]);
foreach my $case (@matrix)
{
	my ($phase, $keep, @kinds) = @$case;
	next if defined $ENV{RESYNC_PHASES} && $ENV{RESYNC_PHASES} !~ /\b$phase\b/;
	my $release = $t->hold_phase('m', $phase, 'w', sub { $t->resync('m', { keep_serving => $keep }); });
	my ($before, $numbers) = ('', '');
	change();
	if ($phase eq 'load')
	{
		set_enabled("SET resync.load_rate_limit = '100kB'");
		$t->until_true("SELECT count(*) >= 3 FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs) AND source_table = 'public.w' AND status = 'done'", 'load: some partitions are done');
		set_enabled("SET resync.load_rate_limit = '1kB'");
		$before = loaded('');
		$numbers = join ',', map { (split /\|/)[0] } split /\n/, $before;
	}
	foreach my $kind (@kinds) { end_workers($kind, $phase); change(); }
	off_and_on($phase);
	$release->();
	all_well($phase);
	is(loaded("AND partition IN ($numbers)"), $before, 'load: what was loaded was not loaded again') if $numbers ne '';
}

# ---- a destination that is silent: while a batch is sent, and from the start
{
	my $backend = $t->dst("SELECT pid FROM pg_stat_activity WHERE application_name = 'resync streamer m'");
	kill 'STOP', $backend;
	change();
	off_and_on('a silent destination, stream');
	kill 'CONT', $backend;
	all_well('a silent destination, stream');

	my $deaf = IO::Socket::INET->new(Listen => 50, LocalAddr => '127.0.0.1', Proto => 'tcp') or die "listen: $!";
	$t->src(sprintf "CREATE SERVER deaf FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '127.0.0.1', port '%d', dbname 'x')", $deaf->sockport);
	$t->src("CREATE USER MAPPING FOR CURRENT_USER SERVER deaf OPTIONS (user 'x')");
	$t->src("SELECT peerdb_pause_mirror('m')");
	$t->until_status('m', 'paused');
	$t->create_mirror('deaf', ['public.w'], {}, peer => 'deaf');
	$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'resync coordinator'", 'it waits for a deaf destination');
	# it is no failure: nothing is waited for, however often it is switched
	foreach (1 .. 6) { off_and_on("a deaf destination, $_"); }
	$t->src("ALTER SERVER deaf OPTIONS (ADD connect_timeout '1')");
	$t->src("SELECT peerdb_drop_mirror('deaf')");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'deaf'", 'a deaf destination: dropped');
	$t->src("SELECT peerdb_resume_mirror('m')");
	all_well('resumed');
}

# ---- deaths that are not in a row do not add up
{
	my $who = "FROM pg_stat_activity WHERE backend_type = 'resync coordinator'";
	my $took;
	my $die = sub {
		my ($name) = @_;
		my $begin = time();
		end_workers('coordinator', $name);
		$took = time() - $begin;
	};
	$die->("in a row, $_") foreach 1 .. 3;
	my $before = $took;
	$t->until_true("SELECT now() - backend_start > '11 s' $who", 'this one lives longer');
	$die->('later');
	cmp_ok($took, '<', $before, 'it is replaced without the delay of those before');
	all_well('deaths');
}

# ---- off comes while a coordinator is about to start
{
	my $who = "FROM pg_stat_activity WHERE backend_type = 'resync coordinator'";
	$t->debug_point('coordinator_starts', 'wait');
	$t->src("SELECT pg_terminate_backend(pid) $who");
	$t->until_true("SELECT count(*) = 1 $who AND query = 'debug point coordinator_starts'", 'a new coordinator, not yet known');
	set_enabled('SET resync.enabled = off');
	usleep(500_000);    # so that the launcher most likely has looked
	my $begin = time();
	$t->debug_point('coordinator_starts');
	$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher'", 'a new coordinator: off stops it');
	cmp_ok(time() - $begin, '<', $limit, 'a new coordinator: it is gone at once');
	set_enabled('RESET resync.enabled');
	all_well('a new coordinator');
}

# ---- the probe that finds the mirrors after a start is ended.  The run has no
# slot yet that would tell of it.
{
	my $release = $t->hold_phase('m', 'drop', 'w', sub { $t->resync('m', { keep_serving => 'false' }); });
	# the lock stays over the restart
	$t->src("BEGIN; LOCK TABLE peerdb._mirror; PREPARE TRANSACTION 'hold'");
	$t->source->restart;
	my $who = "FROM pg_stat_activity WHERE backend_type = 'resync probe' AND datname = 'postgres'";
	foreach my $i (1, 2)
	{
		$t->until_true("SELECT count(*) = 1 $who AND wait_event_type = 'Lock'", "probe, $i: it waits");
		$t->src("SELECT pg_terminate_backend(pid) $who");
	}
	$release->();
	$t->src("ROLLBACK PREPARED 'hold'");
	all_well('probe');
}

$t->drop_all;
done_testing();
