=pod

=head1 NAME

ResyncServiceCrash - death at every debug point of a destination

=head1 DESCRIPTION

  run_matrix($t, same => sub {...}, deleted => sub {...}, points => [...]);

The mirror goes on by itself, the end equals a run that nothing disturbed, and
what is loaded is not loaded again.  t: a ResyncService whose source has
restart_after_crash = on.  same: compares tables k, s and log, which are made
here.  deleted: ids of k that are kept as deleted, a line each, in order.  points:
[ name, 'start' or 'stream' ], when it is set.

RESYNC_POINTS="sf_after_swap_table" has only these points; RESYNC_LONG=1 every way
to die at each.

=cut

package ResyncServiceCrash;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(run_matrix);

my ($t, $points, %with);
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
UPDATE k SET id = 20000 + $step WHERE id = 1000 + $step;
UPDATE s SET v = $step;
INSERT INTO log SELECT $step, 'same' FROM generate_series(1, 20);
COMMIT;
EOS
	push @deleted, $step, 1000 + $step;
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
	my $ok = ok($t->poll(sub { !-e "$points/$point" }), "$name: somebody came by");
	unlink "$points/$point";
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
		$with{same}->();
		is($with{deleted}->(), join("\n", sort { $a <=> $b } @deleted), 'deleted rows are kept, and no other');
		is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome NOT IN ('done')"), '0', 'no run failed');
		$t->until_true("SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'", 'one slot');
		my @left;
		ok($t->poll(sub { @left = $t->tables(qr/_resync$/); !@left }), 'no table under construction') or diag("@left");
	};
	return;
}

sub run_matrix
{
	($t, %with) = @_;
	$points = $t->source->data_dir . '/resync_debug';
	mkdir $points or die "$points: $!";
	$t->src(<<'EOS');
CREATE TABLE k (id int PRIMARY KEY, v int, big text);
ALTER TABLE k ALTER big SET STORAGE EXTERNAL;
INSERT INTO k SELECT i, 0, repeat(md5(i::text), CASE WHEN i % 50 = 0 THEN 100 ELSE 1 END) FROM generate_series(1, 2000) i;
CREATE TABLE s (id int PRIMARY KEY, v int);
INSERT INTO s SELECT i, 0 FROM generate_series(1, 100) i;
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i % 10, 'load' FROM generate_series(1, 1000) i;
EOS
	my %only = map { $_ => 1 } split ' ', $ENV{RESYNC_POINTS} // '';
	my $round = 0;

	$t->create_mirror('m', [ 'public.k', 'public.s', { from => 'public.log', append => \1 } ],
		{ snapshot_num_rows_per_partition => 500, snapshot_max_parallel_workers => 2 });
	$t->wait_status('m', 'running');
	change();
	all_well('undisturbed');
	foreach my $case (@{ $with{points} })
	{
		my ($point, $when) = @$case;
		next if %only && !$only{$point};
		my @ways = qw(lost fatal crash);
		@ways = $ways[ $round % 3 ] unless $ENV{RESYNC_LONG};
		foreach my $action (@ways)
		{
			my $name = "$point, $action, $when";
			set_point($point, $action);
			$round++;
			if ($when eq 'stream') { change(); }
			else { $t->resync('m', { keep_serving => $round % 2 ? 'true' : 'false' }); }
			until_hit($point, $name);
			change();
			all_well($name);
		}
	}

	# ---- partitions that are loaded are not loaded again
	if (!%only || $only{again})
	{
		$t->src("ALTER SYSTEM SET resync.load_rate_limit = '20kB'; SELECT pg_reload_conf()");
		$t->resync('m');
		$t->until_true("SELECT count(*) FILTER (WHERE p.status = 'done') > 0 AND count(*) FILTER (WHERE p.status = 'waiting') > 0"
			  . " FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run)", 'a part is loaded');
		my $done = "SELECT partition, attempts, finished_at FROM peerdb.partitions p WHERE run = (SELECT max(run) FROM peerdb.runs) AND status = 'done'";
		my $before = $t->src("$done ORDER BY 1");
		my $numbers = join ',', map { (split /\|/)[0] } split /\n/, $before;
		$t->src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'resync coordinator'");
		$t->src('ALTER SYSTEM RESET resync.load_rate_limit; SELECT pg_reload_conf()');
		all_well('a coordinator that ended in a load');
		is($t->src("$done AND partition IN ($numbers) ORDER BY 1"), $before, 'what was loaded was not loaded again');
	}
	return;
}

1;
