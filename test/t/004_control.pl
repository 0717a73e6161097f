# Pause, resume, cancel, resync and drop in every phase; transactions; edits.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my $t = ResyncTest->new;
$t->src(<<'EOS');
CREATE TABLE c (id int PRIMARY KEY, v text);
INSERT INTO c SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 2000) i;
EOS
my $n = 5000;
sub follows
{
	my ($m, $what) = @_;
	$n++;
	$t->src("INSERT INTO c VALUES ($n, 'follow'); UPDATE c SET v = 'u$n' WHERE id = 1");
	$t->sync($m, "$what: catches up");
	$t->same('c', "$what: equal");
}

# ---- arguments
$t->refused("SELECT peerdb_resync('none')", '42704', 'none', 'unknown mirror');
$t->refused("SELECT peerdb_resync(NULL)", '22004', '', 'NULL mirror');
$t->refused(q{SELECT peerdb_create_mirror('m', 'nopeer', '["public.c"]')}, '42704', 'nopeer', 'unknown peer');
$t->refused(q{SELECT peerdb_create_mirror('m', 'dest', '["public.nothing"]')}, '42P01', 'nothing', 'unknown table');
$t->refused(q{SELECT peerdb_create_mirror('M', 'dest', '["public.c"]')}, '\w{5}', 'M', 'bad mirror name');
my $err = $t->refused(q{SELECT peerdb_create_mirror('m', 'dest', '["public.c"]', '{"nonsense": 1}')}, '\w{5}', 'nonsense', 'unknown option');
like($err, qr/HINT:.*max_batch_size/s, 'the hint lists the valid options');
is($t->src('SELECT count(*) FROM peerdb.mirrors'), '0', 'nothing was made');

# ---- rollback, prepared transactions
$t->src(q{BEGIN; SELECT peerdb_create_mirror('m', 'dest', '["public.c"]'); ROLLBACK});
is($t->src('SELECT count(*) FROM peerdb.mirrors'), '0', 'a create that is rolled back did not happen');
$t->no_leftovers('after a create that was rolled back');
$t->source->append_conf('postgresql.conf', 'max_prepared_transactions = 5');
$t->source->restart;
{
	my ($status, $out, $e) = $t->try(q{BEGIN; SELECT peerdb_create_mirror('m', 'dest', '["public.c"]'); PREPARE TRANSACTION 'p'});
	isnt($status, 0, 'PREPARE TRANSACTION is refused');
}

# ---- create in the way of a table that is there
$t->dst('CREATE TABLE c (mine int)');
$t->create_mirror('m', ['public.c']);
$t->until_true("SELECT outcome IN ('refused', 'failed') AND error ~ 'c' FROM peerdb.runs WHERE mirror = 'm'", 'a table in the way is an error');
is($t->dst("SELECT count(*) FROM information_schema.columns WHERE table_name = 'c' AND column_name = 'mine'"), '1', 'and stays');
$t->src("SELECT peerdb_drop_mirror('m')");
$t->dst('DROP TABLE c');

my ($status, $out, $notice) = $t->try(q{SELECT peerdb_create_mirror('m', 'dest', '["public.c"]')});
like($notice, qr/NOTICE: .*resync of mirror "m" \(run \d+\) starts at commit/, 'the notice');
like($notice, qr/HINT:\s+Watch it with: SELECT \* FROM peerdb\.mirrors \\watch/, 'and its hint');
$t->wait_status('m', 'running');
$t->refused(q{SELECT peerdb_create_mirror('m', 'dest', '["public.c"]')}, '42710', 'm', 'a mirror of that name exists');
follows('m', 'first load');

# ---- rollback of a resync
$t->src(q{BEGIN; SELECT peerdb_resync('m'); ROLLBACK});
is($t->status('m'), 'running', 'a resync that is rolled back did not happen');
is($t->src("SELECT count(*) FROM peerdb.runs WHERE mirror = 'm'"), '1', 'no run of it');
follows('m', 'after a resync that was rolled back');

# ---- pause and resume while running
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
$t->src("INSERT INTO c VALUES (4000, 'while paused')");
is($t->dst('SELECT count(*) FROM c WHERE id = 4000'), '0', 'nothing arrives while paused');
$t->source->restart;
is($t->status('m'), 'paused', 'still paused after a restart');
$t->src("SELECT peerdb_resume_mirror('m')");
$t->until_status('m', 'running');
follows('m', 'after pause and resume');

# ---- resync of a paused mirror
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
$t->resync('m');
$t->wait_status('m', 'running', 'resync of a paused mirror');
follows('m', 'resync of a paused mirror');
$t->no_leftovers('resync of a paused mirror', keep => 1);

my $cancelled = "SELECT outcome = 'cancelled' FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1";

# ---- in each phase: refused resync, pause and resume, cancel, drop
foreach my $phase (qw(create_slot create_tables load catch_up swap))
{
	# a second resync is refused; pause, then resume, then it ends well
	my $release = $t->hold_phase('m', $phase, 'c', sub { $t->resync('m'); });
	my $run = $t->src("SELECT max(run) FROM peerdb.runs WHERE mirror = 'm'");
	$t->refused("SELECT peerdb_resync('m')", '55006', "run $run", "$phase: a resync while a run is on is refused");
	$t->src("SELECT peerdb_pause_mirror('m')");
	$release->();
	$t->until_status('m', 'paused', "$phase: paused");
	is($t->dst('SELECT count(*) > 1000 FROM c'), 't', "$phase: the live table is there while paused");
	$t->src("SELECT peerdb_resume_mirror('m')");
	$t->wait_status('m', 'running', "$phase: resumed and ended");
	follows('m', "$phase: pause and resume");

	# cancel: the live table stays, the mirror needs a resync
	$release = $t->hold_phase('m', $phase, 'c', sub { $t->resync('m'); });
	$t->src("SELECT peerdb_cancel_resync('m')");
	# where the run waits for the swap's lock, it might get it first
	$phase eq 'swap' ? $t->until_true($cancelled) : $release->();
	$release->();
	$t->until_status('m', 'failed', "$phase: cancelled without keep_serving");
	like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'm'"), qr/resync/, "$phase: the hint to resync");
	is($t->src("SELECT outcome FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1"), 'cancelled', "$phase: the run is cancelled");
	$t->no_leftovers("$phase: after cancel");
	is($t->dst('SELECT count(*) > 1000 FROM c WHERE NOT _peerdb_is_deleted'), 't', "$phase: the live table stays");
	$t->refused("SELECT peerdb_cancel_resync('m')", '55000', '', "$phase: nothing to cancel any more");
	$t->resync('m');
	$t->wait_status('m', 'running', "$phase: resync from failed");
	follows('m', "$phase: resync from failed");

	# keep_serving: the old run goes on all the time, cancel changes nothing
	$release = $t->hold_phase('m', $phase, 'c', sub { $t->resync('m', { keep_serving => 'true' }); });
	if ($phase ne 'swap' && $phase ne 'create_tables')
	{
		$n++;
		$t->src("INSERT INTO c VALUES ($n, 'served')");
		$t->until_true("SELECT count(*) = 1 FROM c WHERE id = $n", "$phase: keep_serving goes on feeding the live table", node => $t->dest);
	}
	$t->src("SELECT peerdb_cancel_resync('m')");
	$phase eq 'swap' ? $t->until_true($cancelled) : $release->();
	$release->();
	$t->until_true($cancelled, "$phase: keep_serving, the run is cancelled");
	$t->until_status('m', 'running', "$phase: keep_serving, cancelled: running");
	follows('m', "$phase: keep_serving, cancelled");
	$t->no_leftovers("$phase: keep_serving, cancelled", keep => 1);
	$t->src("SELECT peerdb_edit_mirror('m', '{\"keep_serving\": false}')");

	# drop: of a mirror in its first load, or resync
	$release = $t->hold_phase('m', $phase, 'c', sub { $t->resync('m'); });
	$t->src("SELECT peerdb_drop_mirror('m')");
	$release->();
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'm'", "$phase: dropped");
	$t->no_leftovers("$phase: after drop");
	is($t->dst('SELECT count(*) > 1000 FROM c'), 't', "$phase: the destination's table stays");

	# the next phase starts with a mirror that takes the table over
	$t->create_mirror('m', ['public.c'], { replace_existing => 'true' });
	$t->wait_status('m', 'running', "$phase: replace_existing");
	follows('m', "$phase: replace_existing");
}

# ---- refused in validate: the mirror goes on
$t->src("ALTER SERVER dest OPTIONS (SET dbname 'no_such_database')");
$t->resync('m');
$t->until_true("SELECT outcome = 'refused' FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1", 'an unreachable destination refuses the resync');
like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'm'"), qr/no_such_database/, 'with its reason');
$t->src("ALTER SERVER dest OPTIONS (SET dbname 'postgres')");
$t->until_status('m', 'running', 'the mirror keeps its status');
follows('m', 'after a refused resync');

# ---- a resync that fails for good: what keep_serving serves is served on
{
	my $release = $t->hold_phase('m', 'create_slot', 'c', sub { $t->resync('m', { keep_serving => 'true' }); });
	$t->dst('CREATE VIEW c_resync AS SELECT 1 AS id');
	$release->();
	$t->until_true("SELECT outcome = 'failed' FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1", 'keep_serving: the run fails');
	is($t->status('m'), 'running', 'keep_serving, failed: running');
	follows('m', 'keep_serving, failed');
	like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'm'"), qr/c_resync/, 'keep_serving, failed: why, while it goes on');
	$t->dst('DROP VIEW c_resync');
	$t->no_leftovers('keep_serving, failed', keep => 1);
	$t->src("SELECT peerdb_edit_mirror('m', '{\"keep_serving\": false}')");
}

# ---- somebody else uses the slot
{
	$t->src('CREATE PUBLICATION nothing');
	follows('m', 'a publication');
	$t->src("SELECT peerdb_pause_mirror('m')");
	$t->until_status('m', 'paused');
	my $slot = $t->src("SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'resync%'");
	my $other = $t->start($t->source, 'pg_recvlogical', '-d', 'postgres', '--start', '-S', $slot, '-o', 'proto_version=1', '-o', 'publication_names=nothing', '-f', '/dev/null');
	$t->until_true("SELECT active FROM pg_replication_slots WHERE slot_name = '$slot'", 'somebody else uses the slot');
	my $pid = $t->src("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '$slot'");
	$t->resync('m');
	$t->until_true("SELECT error ~ 'slot .* is in use by process $pid' FROM peerdb.mirrors WHERE mirror = 'm'", 'the mirror tells who');
	$t->src("SELECT peerdb_cancel_resync('m')");
	$t->stop($other);
	$t->until_status('m', 'failed', 'the run was cancelled when the slot was free');
	# the old run's, which was not to be had: the resync takes it away
	$t->no_leftovers('a slot that was in use', keep => 1);
	$t->resync('m');
	$t->wait_status('m', 'running', 'a slot that was in use: resync');
	follows('m', 'a slot that was in use');
}

# ---- a destination that goes away and comes back
$t->dest->stop('immediate');
$t->src("INSERT INTO c VALUES (4100, 'while the destination is down')");
$t->dest->start;
$t->sync('m', 'goes on by itself when the destination is back');
follows('m', 'after a crash of the destination');

# ---- edit_mirror
$t->refused(q{SELECT peerdb_edit_mirror('m', '{"nonsense": 1}')}, '\w{5}', 'nonsense', 'edit: unknown option');
$t->src(q{SELECT peerdb_edit_mirror('m', '{"max_batch_size": 7, "sync_interval": 0.05}')});
is($t->src("SELECT options->>'max_batch_size' FROM peerdb.mirrors WHERE mirror = 'm'"), '7', 'edit: the option is changed');
follows('m', 'edit: a small batch');
($status, $out, $notice) = $t->try(q{SELECT peerdb_edit_mirror('m', '{}', '[{"from": "public.c", "exclude": ["v"]}]')});
like($notice, qr/NOTICE/, 'edit: a changed mapping says from when on');
$t->resync('m');
$t->wait_status('m', 'running');
$t->same('c', 'edit: the mapping holds from the resync on', columns => ['id']);
is($t->dst("SELECT count(*) FROM information_schema.columns WHERE table_name = 'c' AND column_name = 'v'"), '0', 'edit: the column is left out');

# ---- initial_copy_only, and a resync of a completed mirror
$t->src('CREATE TABLE once (id int PRIMARY KEY); INSERT INTO once SELECT generate_series(1, 100)');
$t->create_mirror('once', ['public.once'], { initial_copy_only => 'true' });
$t->wait_status('once', 'completed');
$t->same('once');
$t->src('INSERT INTO once SELECT generate_series(101, 200)');
is($t->src("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'resync%'"), '1', 'a completed mirror has no slot');
$t->resync('once');
$t->wait_status('once', 'completed');
$t->same('once', 'a completed mirror can be resynced');

# ---- do_initial_copy false: changes only
$t->create_mirror('cdc', ['public.once:only_cdc'], { do_initial_copy => 'false' });
$t->wait_status('cdc', 'running');
$t->src('INSERT INTO once VALUES (1001)');
$t->sync('cdc');
is($t->dst('SELECT string_agg(id::text, \',\') FROM only_cdc'), '1001', 'do_initial_copy false: changes only');

# ---- a table that is to blame for its mirror's failure shows the error, the others do not
$t->src('CREATE TABLE blame1 (id int PRIMARY KEY); CREATE TABLE blame2 (id int PRIMARY KEY); INSERT INTO blame1 VALUES (1); INSERT INTO blame2 VALUES (1)');
$t->create_mirror('b', ['public.blame1', 'public.blame2']);
$t->wait_status('b', 'running');
my $blame = "SELECT string_agg(source_table || ' ' || status || ' ' || coalesce(error, '-'), '; ' ORDER BY 1) FROM peerdb.mirror_tables WHERE mirror = 'b'";
$t->dst('ALTER TABLE blame2 ADD CONSTRAINT small CHECK (id < 100)');
$t->src('INSERT INTO blame1 VALUES (200); INSERT INTO blame2 VALUES (200)');
$t->until_failed('b', qr/violates check constraint "small"/, 'a row that the destination refuses');
like($t->src($blame), qr/^public\.blame1 failed -; public\.blame2 failed .*violates check constraint "small"/s, 'streaming: the error is shown for its table');
is($t->src("SELECT source_table FROM peerdb.logs WHERE mirror = 'b' AND level = 'error' ORDER BY id DESC LIMIT 1"), 'public.blame2', 'and logged for it');
$t->dst('ALTER TABLE blame2 DROP CONSTRAINT small');
$t->src("SELECT peerdb_resume_mirror('b')");
$t->until_status('b', 'running');
$t->sync('b');
is($t->src($blame), 'public.blame1 running -; public.blame2 running -', 'resumed: no error');
$t->dst(<<'EOS');
CREATE FUNCTION add_check() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'public.blame1_resync') THEN
		ALTER TABLE public.blame1_resync ADD CONSTRAINT small CHECK (id < 100);
	END IF;
END $$;
CREATE EVENT TRIGGER add_check ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION add_check();
EOS
$t->resync('b');
$t->until_failed('b', qr/violates check constraint "small"/, 'a row that the destination refuses in the load');
like($t->src($blame), qr/^public\.blame1 failed .*violates check constraint "small".*; public\.blame2 failed -$/s, 'load: the error is shown for its table');
$t->dst('DROP EVENT TRIGGER add_check');
$t->resync('b');
$t->wait_status('b', 'running');
is($t->src($blame), 'public.blame1 running -; public.blame2 running -', 'a new run: no error');
$t->src("SELECT peerdb_drop_mirror('b')");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'b'", 'dropped');

# ---- not yet
$t->refused(q{SELECT peerdb_add_tables('m', '["public.once"]')}, '0A000', '', 'add_tables');
$t->refused(q{SELECT peerdb_remove_tables('m', '{public.c}')}, '0A000', '', 'remove_tables');

# ---- drop, with the destination's tables; with an unreachable destination
$t->src("SELECT peerdb_drop_mirror('once', drop_destination => true)");
$t->until_true("SELECT to_regclass('once') IS NULL", 'drop_destination drops the table', node => $t->dest);
$t->refused("SELECT peerdb_drop_mirror('once')", '42704', 'once', 'drop of a mirror that is gone');
$t->src("SELECT peerdb_drop_mirror('once', if_exists => true)");
$t->src("SELECT peerdb_drop_mirror('cdc')");
$t->no_leftovers('before the last drop', keep => 1);
$t->dest->stop;
$t->src("SELECT peerdb_drop_mirror('m')");
$t->until_true('SELECT count(*) = 0 FROM peerdb.mirrors', 'a mirror can be dropped while its destination is down');
$t->until_true("SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name LIKE 'resync%'", 'and its slot is gone');

done_testing();
