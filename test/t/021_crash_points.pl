# Every debug point, and each way to die there: the mirror goes on by itself, or
# fails clearly where the error is a permanent one; the end equals a run that
# nothing disturbed; partitions that were loaded are not loaded again.
#
# RESYNC_POINTS="swapped before_apply" has only these points; RESYNC_LONG=1 has
# every way to die at each, and a permanent error.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $t = ResyncTest->new(src_conf => <<'EOC');
restart_after_crash = on
resync.swap_lock_timeout = 1s
EOC
my $points = $t->source->data_dir . '/resync_debug';
mkdir $points or die "$points: $!";

$t->src(<<'EOS');
CREATE TABLE c (id int PRIMARY KEY, v int, t text);
ALTER TABLE c ALTER t SET STORAGE EXTERNAL;
INSERT INTO c SELECT i, i, repeat(md5(i::text), CASE WHEN i % 50 = 0 THEN 100 ELSE 10 END) FROM generate_series(1, 4500) i;
CREATE TABLE n (a int, b text);
ALTER TABLE n REPLICA IDENTITY FULL;
INSERT INTO n SELECT i % 100, 'v' || i % 3 FROM generate_series(1, 500) i;
CREATE TABLE p (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY RANGE (r);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
INSERT INTO p SELECT i, i % 20, 'x' FROM generate_series(1, 300) i;
EOS
my @tables = qw(c n p);
my $step = 0;
my @deleted;    # keys of c

sub until_up { $t->until_true('SELECT true') or die 'the source does not come back'; return; }

# Some of everything.
sub change
{
	$step++;
	my $key = 10000 + $step;
	push @deleted, $step, 2000 - $step;
	until_up();
	$t->src(<<"EOS");
BEGIN;
UPDATE c SET v = v + 1 WHERE id % 11 = $step % 11;
INSERT INTO c VALUES ($key, $step, repeat('n', 3000));
DELETE FROM c WHERE id = $step;
UPDATE c SET id = id + 100000 WHERE id = 2000 - $step;
INSERT INTO n SELECT $step, 'new' FROM generate_series(1, 3);
DELETE FROM n WHERE ctid = (SELECT ctid FROM n WHERE a = $step % 100 LIMIT 1);
UPDATE p SET r = (r + 10) % 20 WHERE id = $step;
COMMIT;
EOS
	return;
}

sub set_point
{
	my ($point, $action) = @_;
	PostgreSQL::Test::Utils::append_to_file("$points/.new", "once $action\n");
	rename "$points/.new", "$points/$point" or die "$point: $!";
	return;
}

# Somebody has come by.
sub until_hit
{
	my ($point, $name) = @_;
	my $end = time() + 20;
	while (-e "$points/$point" && time() < $end) { usleep(20_000); }
	my $ok = ok(!-e "$points/$point", "$name: somebody came by");
	unlink "$points/$point";
	usleep(100_000);
	until_up();
	$t->describe('m') unless $ok;
	return $ok;
}

sub slow_down { my ($rate) = @_; $t->src("ALTER SYSTEM SET resync.load_rate_limit = '$rate'"); $t->src('SELECT pg_reload_conf()'); return; }
sub full_speed { until_up(); $t->src('ALTER SYSTEM RESET resync.load_rate_limit'); $t->src('SELECT pg_reload_conf()'); return; }

# The tables as an undisturbed run would have left them.
sub all_well
{
	my ($name) = @_;
	$t->until_true("SELECT status = 'running' AND phase = 'stream' FROM peerdb.mirrors WHERE mirror = 'm'",
		"$name: the mirror runs") or $t->describe('m');
	$t->sync('m', "$name: catches up");
	foreach my $table (@tables) { $t->same($table, "$name: $table"); }
	is($t->dst('SELECT id FROM c WHERE _peerdb_is_deleted ORDER BY 1'),
		join("\n", sort { $a <=> $b } @deleted), "$name: deleted rows are kept, and no other");
	is($t->src("SELECT outcome FROM peerdb.runs WHERE mirror = 'm' AND outcome NOT IN ('done')"), '',
		"$name: no run failed");
	$t->until_true("SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'", "$name: one slot");
	$t->until_true("SELECT count(*) = 0 FROM pg_class WHERE relname ~ '_resync(_[0-9a-f]{8})?\$'",
		"$name: no table under construction", node => $t->dest);
	return;
}

# What is loaded: partition, attempts, finished_at.
sub loaded
{
	my ($filter) = @_;
	return $t->src(<<"EOS");
SELECT partition, attempts, finished_at FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs)
AND source_table = 'public.c' AND status = 'done' $filter ORDER BY 1
EOS
}

# The crash may come before the statement that led to it has its answer.
sub despite_crash
{
	my ($code) = @_;
	return if eval { $code->(); 1 };
	die $@ if $@ !~ /connection to server was lost/;
	until_up();
	return;
}

# One more run, with a point set; returns what was loaded before it was.
my $keep = 'false';
sub start_run
{
	my ($point, $action, $when) = @_;
	my $before = '';
	$keep = $keep eq 'true' ? 'false' : 'true' if $when ne 'stream';
	if ($when eq 'stream')
	{
		set_point($point, $action);
		despite_crash(sub { change(); });
		return '';
	}
	if ($when eq 'start')
	{
		set_point($point, $action);
		despite_crash(sub { $t->resync('m', { keep_serving => $keep }); });
	}
	elsif ($when eq 'load')
	{
		slow_down('300kB');
		$t->resync('m', { keep_serving => $keep });
		$t->until_true("SELECT count(*) >= 2 FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs)"
			  . " AND source_table = 'public.c' AND status = 'done'", "$point, $action: some partitions are loaded");
		$before = loaded('');
		set_point($point, $action);
	}
	elsif ($when eq 'apply')
	{
		# the old stream is gone before there is something to apply
		$keep = 'false';
		slow_down('300kB');
		$t->resync('m', { keep_serving => $keep });
		$t->until_phase('m', 'load', "$point, $action: loading");
		change();
		set_point($point, $action);
		full_speed();
	}
	return $before;
}

sub one_death
{
	my ($point, $action, $when) = @_;
	my $name = "$point, $action, $when";
	my $before = start_run($point, $action, $when);
	until_hit($point, $name);
	change();
	my $numbers = join(',', map { (split /\|/)[0] } split /\n/, $before);
	full_speed() if $when eq 'load';
	all_well($name);
	is(loaded("AND partition IN ($numbers)"), $before, "$name: what was loaded was not loaded again")
	  if $numbers ne '';
	return;
}

# A permanent error: clear, the tables stay, and what helps is a resync (or, of
# a stream, to go on).
sub one_error
{
	my ($point, $when) = @_;
	my $name = "$point, error, $when";
	my $run = $t->src('SELECT max(run) FROM peerdb.runs');
	start_run($point, 'error of a test', $when);
	until_hit($point, $name);
	full_speed() if $when eq 'load';
	if ($when eq 'stream')
	{
		$t->until_failed('m', qr/debug point "$point" of a test/, $name);
		$t->src("SELECT peerdb_resume_mirror('m')");
	}
	else
	{
		$t->until_true("SELECT outcome IN ('failed', 'refused') AND error ~ 'debug point \"$point\" of a test'"
			  . " FROM peerdb.runs ORDER BY run DESC LIMIT 1", "$name: the run fails and says why")
		  or $t->describe('m');
		my $slots = $keep eq 'true' || $t->status('m') eq 'running' ? 1 : 0;    # of the live run
		$t->until_true("SELECT count(*) = $slots FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'",
			"$name: the run's slot is gone");
		is($t->dst("SELECT count(*) > 1000 FROM c WHERE NOT _peerdb_is_deleted"), 't', "$name: the live table stays");
		change();
		$t->resync('m');
	}
	$t->src("DELETE FROM peerdb._run WHERE outcome IN ('failed', 'refused')");
	all_well($name);
	return;
}

# point => phase of the run in which it is set
my @matrix = (
	[ validate => 'start' ],
	[ phase_changed => 'start' ],
	[ before_create_slot => 'start' ],
	[ before_lock_tables => 'start' ],
	[ slot_created => 'start' ],
	[ tables_created => 'start' ],
	[ during_load => 'start' ],
	[ before_partition_commit => 'load' ],
	[ after_partition_commit => 'load' ],
	[ phase_changed => 'load' ],
	[ before_apply => 'apply' ],
	[ after_apply => 'apply' ],
	[ before_swap => 'start' ],
	[ swapped => 'start' ],
	[ before_apply => 'stream' ],
	[ after_apply => 'stream' ]);
my $round = 0;
my %only = map { $_ => 1 } split ' ', $ENV{RESYNC_POINTS} // '';

$t->create_mirror('m', [ map { "public.$_" } @tables ],
	{ snapshot_num_rows_per_partition => 600, snapshot_max_parallel_workers => 2 });
$t->wait_status('m', 'running');
foreach my $case (@matrix)
{
	my ($point, $when) = @$case;
	next if %only && !$only{$point};
	# all of them in the long test only
	my @mild = qw(lost fatal);
	@mild = $mild[ $round++ % 2 ] unless $ENV{RESYNC_LONG};
	foreach my $action (@mild, 'crash') { one_death($point, $action, $when); }
	one_error($point, $when)
	  if $ENV{RESYNC_LONG} || %only || $point =~ /^(validate|before_create_slot|before_partition_commit|before_apply|swapped)$/;
}
if (!%only || $only{dropped})
{
	# without keep_serving only
	foreach my $action ($ENV{RESYNC_LONG} ? ('lost') : (), 'fatal', 'crash')
	{
		$keep = 'true';
		one_death('dropped', $action, 'start');
	}
	$keep = 'true';
	one_error('dropped', 'start') if $ENV{RESYNC_LONG} || %only;
}
$t->drop_all;
done_testing();
