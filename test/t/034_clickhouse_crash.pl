# Every debug point of the ClickHouse destination, and each way to die there: the
# mirror goes on by itself, or fails clearly where the error is a permanent one;
# the end equals a run that nothing disturbed.  A swap never goes back: readers
# always see a whole table, and what is loaded is not loaded again.
#
# RESYNC_POINTS="ch_after_exchange" has only these points; RESYNC_LONG=1 every
# way to die at each.
use strict;
use warnings;

use ResyncClickHouse;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $t = ResyncClickHouse->new(src_conf => "restart_after_crash = on\n");
my $points = $t->source->data_dir . '/resync_debug';
mkdir $points or die "$points: $!";

$t->src(<<'EOS');
CREATE TABLE k (id int PRIMARY KEY, v int, big text);
ALTER TABLE k ALTER big SET STORAGE EXTERNAL;
INSERT INTO k SELECT i, 0, repeat(md5(i::text), CASE WHEN i % 50 = 0 THEN 100 ELSE 1 END) FROM generate_series(1, 5000) i;
CREATE TABLE s (id int PRIMARY KEY, v int);
INSERT INTO s SELECT i, 0 FROM generate_series(1, 100) i;
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i % 10, 'load' FROM generate_series(1, 4000) i;
EOS
my $step = 0;
my @deleted;

sub until_up { $t->until_true('SELECT true') or die 'the source does not come back'; return; }

sub change
{
	$step++;
	until_up();
	$t->src(<<"EOS");
BEGIN;
UPDATE k SET v = $step WHERE id % 25 = $step % 25;
INSERT INTO k VALUES (10000 + $step, $step, repeat('n', 3000));
DELETE FROM k WHERE id = $step;
UPDATE k SET id = 20000 + $step WHERE id = 3000 + $step;
UPDATE s SET v = $step;
INSERT INTO log SELECT $step, 'same' FROM generate_series(1, 20);
COMMIT;
INSERT INTO log SELECT $step, 'same' FROM generate_series(1, 20);
EOS
	push @deleted, $step, 3000 + $step;
	return;
}

sub set_point
{
	my ($point, $action) = @_;
	PostgreSQL::Test::Utils::append_to_file("$points/.new", "once $action\n");
	rename "$points/.new", "$points/$point" or die "$point: $!";
	return;
}

sub until_hit
{
	my ($point, $name) = @_;
	my $end = time() + 30;
	while (-e "$points/$point" && time() < $end) { usleep(20_000); }
	my $ok = ok(!-e "$points/$point", "$name: somebody came by");
	unlink "$points/$point";
	usleep(100_000);
	until_up();
	$t->describe('m') unless $ok;
	return $ok;
}

sub all_well
{
	my ($name) = @_;
	subtest $name => sub {
		$t->until_true("SELECT status = 'running' AND phase = 'stream' FROM peerdb.mirrors WHERE mirror = 'm'", 'the mirror runs')
		  or $t->describe('m');
		$t->sync('m');
		$t->same_ch('k');
		$t->same_ch('s');
		$t->same_ch('log', undef, final => 0);
		is($t->ch('SELECT groupArray(id) FROM (SELECT id, argMax(_peerdb_is_deleted, _peerdb_version) AS d FROM k GROUP BY id ORDER BY id) WHERE d'),
			'[' . join(',', sort { $a <=> $b } @deleted) . ']', 'deleted rows are kept, and no other');
		is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome NOT IN ('done')"), '0', 'no run failed');
		$t->until_true("SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'", 'one slot');
		$t->until_ch(q{SELECT count() FROM system.tables WHERE database = 'd' AND match(name, '_resync')  AND name NOT LIKE '\_peerdb%'}, '0',
			'no table under construction');
	};
	return;
}

# point, when it is set
my @matrix = (
	[ tables_created => 'start' ],
	[ ch_after_request => 'start' ],
	[ ch_before_request_end => 'start' ],
	[ ch_before_done_mark => 'start' ],
	[ before_swap => 'start' ],
	[ ch_retired => 'start' ],
	[ ch_before_exchange => 'start' ],
	[ ch_after_exchange => 'start' ],
	[ swapped => 'start' ],
	[ ch_before_drop_old => 'start' ],
	[ ch_after_drop_old => 'start' ],
	[ before_apply => 'stream' ],
	[ ch_after_intent => 'stream' ],
	[ ch_after_request => 'stream' ],
	[ ch_before_lsn => 'stream' ],
	[ ch_after_lsn => 'stream' ],
	[ after_apply => 'stream' ]);
my %only = map { $_ => 1 } split ' ', $ENV{RESYNC_POINTS} // '';
my $round = 0;

$t->create_mirror('m', [ 'public.k', 'public.s', { from => 'public.log', append => \1 } ],
	{ snapshot_num_rows_per_partition => 800, snapshot_max_parallel_workers => 2, sync_interval => 0.1 });
$t->wait_status('m', 'running');
change();
all_well('undisturbed');
my $reader = $t->ch_reader('SELECT count() FROM k', 'SELECT count() = 100 FROM s FINAL WHERE _peerdb_is_deleted = 0');
foreach my $case (@matrix)
{
	my ($point, $when) = @$case;
	next if %only && !$only{$point};
	my @mild = qw(lost fatal);
	@mild = $mild[ $round % 2 ] unless $ENV{RESYNC_LONG};
	foreach my $action (@mild, 'crash')
	{
		my $name = "$point, $action, $when";
		set_point($point, $action);
		if ($when eq 'stream') { change(); }
		else { $t->resync('m', { keep_serving => $round++ % 2 ? 'true' : 'false' }); }
		until_hit($point, $name);
		change();
		all_well($name);
	}
}

# a try of a partition leaves rows that the next snapshot has not
if (!%only || $only{lost_snapshot})
{
	$t->debug_point('ch_before_done_mark', 'wait');
	$t->resync('m');
	$t->until_true("SELECT count(*) > 1 FROM pg_stat_activity WHERE backend_type = 'resync copier' AND query ~ 'debug point'",
		'partitions are there, without marks');
	push @deleted, split /\n/, $t->src('DELETE FROM k WHERE id BETWEEN 1000 AND 2999 RETURNING id');
	# nobody goes on from there: no partition of the table is ever marked
	my $copier = $t->src("SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'resync copier' AND query ~ 'debug point'");
	kill 'KILL', $copier;
	$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $copier", 'a lost snapshot: the server is back');
	$t->debug_point('ch_before_done_mark');
	change();
	all_well('a lost snapshot');
}

# rows that were read under two snapshots, in two places, are one when they are counted
if (!%only || $only{merged})
{
	my $done = "SELECT %s FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run) WHERE mirror = 'm' AND source_table = 'public.k'";
	$t->src("ALTER SYSTEM SET resync.load_rate_limit = '50kB'; SELECT pg_reload_conf()");
	$t->debug_point('loaded', 'wait');
	$t->resync('m');
	$t->until_true(sprintf($done, "count(*) FILTER (WHERE p.status = 'done') > 0 AND count(*) FILTER (WHERE p.status = 'waiting') > 0"), 'merged rows: a part is loaded');
	$t->src('UPDATE k SET v = v + 1');
	$t->src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'resync streamer'");
	$t->until_true("SELECT snapshots > 1 FROM peerdb._run ORDER BY run DESC LIMIT 1", 'merged rows: another snapshot');
	$t->src('ALTER SYSTEM RESET resync.load_rate_limit; SELECT pg_reload_conf()');
	$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'resync coordinator' AND query ~ 'debug point loaded'", 'merged rows: all is loaded');
	$t->ch('OPTIMIZE TABLE k_resync FINAL');
	cmp_ok($t->ch('SELECT count() FROM k_resync'), '<', $t->src(sprintf $done, 'sum(p.rows)'), 'merged rows: fewer than were sent');
	$t->debug_point('loaded');
	all_well('merged rows');
}
$t->reader_ok($reader, 'deaths at every step');

# permanent errors: nothing is lost, and a resync repairs it
foreach my $point (qw(ch_before_done_mark before_swap ch_after_exchange ch_before_lsn))
{
	next if %only && !$only{$point};
	my $name = "$point, error";
	set_point($point, 'error of a test');
	if ($point eq 'ch_before_lsn')
	{
		change();
		until_hit($point, $name);
		$t->until_failed('m', qr/of a test/, $name);
		$t->src("SELECT peerdb_resume_mirror('m')");
	}
	else
	{
		$t->resync('m');
		until_hit($point, $name);
		$t->until_true("SELECT outcome IN ('failed', 'refused') AND error ~ 'of a test' FROM peerdb.runs ORDER BY run DESC LIMIT 1",
			"$name: the run fails and says why") or $t->describe('m');
		is($t->ch('SELECT count() > 2000 FROM k FINAL'), '1', "$name: there is a whole table");
		change();
		$t->resync('m');
	}
	$t->until_status('m', 'running');
	$t->src("DELETE FROM peerdb._run WHERE outcome IN ('failed', 'refused')");
	all_well($name);
}
$t->drop_all;
done_testing();
