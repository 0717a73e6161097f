# Zombies, destinations that crash, disappear, go back in time or refuse: the
# mirror goes on by itself where it can, and fails once, with the reason, where
# it cannot.  Nothing is applied twice, nothing is lost.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

# the server comes back after kill -9
my $t = ResyncTest->new(src_conf => "restart_after_crash = on\n");
my $source = $t->source;
my $dest = $t->dest;

$t->src(<<'EOS');
CREATE TABLE z (id int PRIMARY KEY, v text);
CREATE TABLE nokey (x int);
ALTER TABLE nokey REPLICA IDENTITY FULL;
CREATE TABLE far (id int PRIMARY KEY, v text);
INSERT INTO z SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 2000) i;
INSERT INTO nokey SELECT i FROM generate_series(1, 10) i;
INSERT INTO far SELECT i FROM generate_series(1, 10) i;
EOS
# a table without key shows at once what is applied twice
$t->create_mirror('m', [ 'public.z', 'public.nokey' ], { snapshot_num_rows_per_partition => 200 });
$t->wait_status('m', 'running');

my $n = 10000;
sub change
{
	$n++;
	$t->src("BEGIN; INSERT INTO z VALUES ($n, 'new'); UPDATE z SET v = 'u$n' WHERE id = 1; INSERT INTO nokey VALUES ($n); COMMIT");
	return;
}

sub equal
{
	my ($what) = @_;
	change();
	$t->sync('m', "$what: catches up");
	$t->same('z', "$what: equal");
	$t->same('nokey', "$what: nothing twice");
	return;
}
equal('at first');

sub workers
{
	return $t->src("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'resync $_[0]'");
}

# The server is through crash recovery (psql dies of a broken pipe before).
sub until_up
{
	my $end = time() + 60;
	my $up = 0;
	sleep 0.3;    # it notices the dead child first
	while (!$up && time() < $end)
	{
		eval { $up = ($source->psql('postgres', 'SELECT 1') // 1) == 0; };
		sleep 0.1;
	}
	ok($up, 'the source is back after its crash');
	return;
}

# ---- a killed streamer's backend that commits late
foreach my $kill ("pg_terminate_backend", "kill -9")
{
	my $lock = $t->session($dest);
	$lock->query_safe('BEGIN; LOCK TABLE z IN SHARE MODE');
	change();
	$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'resync streamer m' AND wait_event_type = 'Lock'",
		"$kill: the old backend waits in the middle of its transaction", node => $dest);
	my $zombie = $t->dst("SELECT pid FROM pg_stat_activity WHERE application_name = 'resync streamer m' AND wait_event_type = 'Lock'");
	my $pid = $t->src("SELECT pid FROM pg_stat_activity WHERE backend_type = 'resync streamer'");

	# the backend must not notice: its client does not answer, but is there
	if ($kill eq 'kill -9')
	{
		kill 'KILL', $pid;
		until_up();
	}
	else
	{
		kill 'STOP', $pid;
		$t->src("SELECT pg_terminate_backend($pid)");
		$t->src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'resync coordinator'");
	}
	sleep 0.5;
	$lock->query('ROLLBACK');
	$lock->quit;
	kill 'CONT', $pid if $kill ne 'kill -9';
	equal("zombie of $kill");
	$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $zombie", "$kill: the zombie is gone", node => $dest);
}

# ---- the same during the load: done-marks do not meet twice
{
	$t->debug_point('before_partition_commit', 'wait');
	$t->resync('m');
	$t->until_true("SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'debug point before_partition_commit'", 'load: copiers are about to commit');
	$t->src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'resync copier'");
	$t->debug_point('before_partition_commit');
	$t->wait_status('m', 'running', 'load: goes on after its copiers were ended');
	equal('load with killed copiers');
}

# ---- the destination crashes right after acknowledging
foreach my $i (1 .. 3)
{
	change() foreach 1 .. 5;
	$t->sync('m');
	$dest->stop('immediate');
	change();
	$dest->start;
	equal("destination crashed, $i");
}

# ---- the answer to a commit is lost
$t->debug_point('after_apply', 'once lost');
change();
equal('error right after a commit');

# ---- crashed and down, then restarted, in each phase: the mirror goes on by itself
foreach my $phase (qw(validate drop create_slot create_tables load catch_up swap))
{
	my $release = $t->hold_phase('m', $phase, 'z', sub { $t->resync('m'); });
	$dest->stop('immediate');
	eval { $release->(); };
	change();
	if ($phase eq 'validate')
	{
		# nothing was given up yet: the run is refused, the old one goes on
		$t->until_true("SELECT outcome = 'refused' AND error ~ 'could not connect' FROM peerdb.runs ORDER BY run DESC LIMIT 1", 'validate: the run is refused');
		$dest->start;
		$t->until_status('m', 'running', 'validate: the mirror goes on after the destination was down');
		equal('destination down in validate');
		next;
	}
	$t->until_true("SELECT count(*) = 1 FROM peerdb.mirrors WHERE mirror = 'm' AND status <> 'failed' AND error IS NOT NULL", "$phase: the error is shown meanwhile")
	  if $phase ne 'load';
	$dest->start;
	$t->wait_status('m', 'running', "$phase: goes on after the destination was down");
	equal("destination down in $phase");
}
foreach my $phase (qw(validate drop create_slot create_tables load catch_up swap))
{
	my $release = $t->hold_phase('m', $phase, 'z', sub { $t->resync('m'); });
	my $run = $t->src('SELECT max(run) FROM peerdb.runs');
	$dest->restart;
	eval { $release->(); };
	$t->wait_status('m', 'running', "$phase: goes on after a restart of the destination");
	is($t->src("SELECT live_run FROM peerdb._mirror WHERE name = 'm'"), $run, "$phase: with the same run");
	equal("destination restarted in $phase");
}
is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome = 'failed'"), '0', 'no run has failed');
is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome = 'refused'"), '1', 'but one was refused');

# ---- one mirror's trouble is its own
$t->src(<<"EOS");
CREATE SERVER nowhere FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '/nonexistent', dbname 'postgres', port '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere OPTIONS (user 'x');
CREATE SERVER other FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '@{[$dest->host]}', dbname 'postgres', port '@{[$dest->port]}', metadata_schema 'other_meta');
CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (user '@{[$dest->safe_psql('postgres', 'SELECT current_user')]}');
EOS
$t->create_mirror('far', ['public.far'], {}, peer => 'other');
$t->wait_status('far', 'running');
$t->src("ALTER SERVER other OPTIONS (SET host '/nonexistent')");
$t->src("SELECT peerdb_pause_mirror('far')");
$t->until_status('far', 'paused');
$t->src("SELECT peerdb_resume_mirror('far')");
$t->src("INSERT INTO far VALUES (11, 'far')");
$t->until_true("SELECT error IS NOT NULL FROM peerdb.mirrors WHERE mirror = 'far'", 'the unreachable one shows its error');
{
	my $begin = time();
	foreach (1 .. 5) { change(); $t->sync('m', 'the other one streams on'); }
	cmp_ok(time() - $begin, '<', 5, 'as fast as ever');
	$t->src("ALTER SERVER other OPTIONS (SET host '@{[$dest->host]}')");
	$t->sync('far', 'the unreachable one goes on by itself once its server is right');
	$t->same('far');
	$t->src("SELECT peerdb_drop_mirror('far')");
	$t->until_true("SELECT count(*) = 1 FROM peerdb.mirrors", 'dropped');
}

# ---- a permanent error: once, with the destination's own words
$t->dst("ALTER TABLE z ADD CONSTRAINT even_not CHECK (v <> 'odd one out')");
$t->src("INSERT INTO z VALUES (7001, 'before'); INSERT INTO z VALUES (7002, 'odd one out'); INSERT INTO z VALUES (7003, 'after')");
$t->until_failed('m', qr/violates check constraint "even_not"/, 'permanent error');
is($t->src("SELECT sqlstate FROM peerdb.logs WHERE mirror = 'm' AND level = 'error' ORDER BY id DESC LIMIT 1"), '23514', 'with its SQLSTATE');
is($t->src("SELECT error_sqlstate FROM peerdb._mirror WHERE name = 'm'"), '23514', 'the mirror keeps it, too');
is($t->src("SELECT count(*) FROM peerdb.logs WHERE mirror = 'm' AND level = 'error' AND sqlstate = '23514'"), '1', 'once');
$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type IN ('resync streamer', 'resync coordinator')", 'nothing works for it any more');
is($t->src("SELECT count(*) FROM pg_replication_slots"), '1', 'its slot stays');
change();
$t->dst('ALTER TABLE z DROP CONSTRAINT even_not');
$t->src("SELECT peerdb_resume_mirror('m')");
equal('resumed after a permanent error');

# ---- the destination is restored from an older backup
$dest->stop;
$dest->run_log([ 'cp', '-a', $dest->data_dir, $dest->data_dir . '.old' ]);
$dest->start;
foreach (1 .. 3) { change(); $t->sync('m'); }
# the position is confirmed at the source
$t->until_true("SELECT confirmed_flush_lsn >= (SELECT confirmed_lsn FROM peerdb.mirrors WHERE mirror = 'm') FROM pg_replication_slots", 'the slot has moved on');
$dest->stop;
$dest->run_log([ 'mv', $dest->data_dir, $dest->data_dir . '.new' ]);
$dest->run_log([ 'mv', $dest->data_dir . '.old', $dest->data_dir ]);
$dest->start;
change();
$t->until_failed('m', qr/went back in time.*peerdb_resync/s, 'destination restored from a backup');
$t->until_true("SELECT count(*) = 0 FROM pg_replication_slots", 'its slot is gone');
{
	my $before = $t->dst('SELECT count(*), max(id) FROM z');
	my ($status, $out, $err) = $t->try("SELECT peerdb_resume_mirror('m')");
	like($err, qr/peerdb_resync/, 'resume is refused with the hint');
	is($t->dst('SELECT count(*), max(id) FROM z'), $before, 'nothing was moved forward');
}
$t->resync('m');
$t->wait_status('m', 'running', 'a resync recovers it');
equal('after the resync');

# ---- the source is put back to an earlier time, in place: the same server, as
# far as anybody can tell, even with its slots
sub keep_source
{
	$source->stop;
	$source->run_log([ 'rm', '-rf', $source->data_dir . '.old' ]);
	$source->run_log([ 'cp', '-a', $source->data_dir, $source->data_dir . '.old' ]);
	$source->start;
	return;
}
sub put_source_back
{
	my ($data, $old) = ($source->data_dir, $source->data_dir . '.old');
	$source->stop;
	# PG_VERSION stays: a restore that leaves alone what is equal, or a volume's snapshot
	$source->command_ok([ 'bash', '-c', "find '$data' -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec rm -rf {} + && tar -C '$old' --exclude=./PG_VERSION -cf - . | tar -C '$data' -xf -" ], 'the source is put back');
	$source->start;
	return;
}
sub newest_run { return $t->src("SELECT max(run) FROM peerdb.runs"); }

keep_source();
change() foreach 1 .. 3;
$t->src("INSERT INTO z SELECT i, repeat(md5(i::text), 30) FROM generate_series(100000, 105000) i");
$t->sync('m');
put_source_back();
$t->until_failed('m', qr/source.*went back in time.*peerdb_resync/s, 'source put back');
$t->until_true("SELECT count(*) = 0 FROM pg_replication_slots", 'source put back: its slot is gone');
$t->resync('m');
$t->wait_status('m', 'running', 'source put back: a resync recovers it');
equal('source put back');

# runs get numbers that the destination knows: of a live run, then of a retired one
foreach my $case (1, 2)
{
	keep_source();
	$t->resync('m');
	$t->wait_status('m', 'running', "source put back before run, $case: a run that will be lost");
	my $lost = newest_run();
	change() foreach 1 .. 3;
	$t->src("INSERT INTO z SELECT i, repeat(md5(i::text), 30) FROM generate_series(200000, 205000) i");
	$t->sync('m');
	if ($case == 2) { $t->resync('m'); $t->wait_status('m', 'running', "source put back before run, $case: two of them"); }
	put_source_back();
	$t->until_failed('m', qr/no longer in charge.*peerdb_resync/s, "source put back before run, $case");
	$t->resync('m');
	is(newest_run(), $lost, "source put back before run, $case: the number is used again");
	$t->wait_status('m', 'running', "source put back before run, $case: a resync recovers it");
	equal("source put back before run, $case");
	is($t->dst("SELECT count(*) FROM _peerdb_internal.resync_table WHERE swapped"), '2', "source put back before run, $case: marks of the live tables only");
}

$t->drop_all;
done_testing();
