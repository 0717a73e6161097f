# The slot is invalidated by max_slot_wal_keep_size, or somebody drops it: the
# mirror fails with a clear error, and a resync recovers it.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my $t = ResyncTest->new;
$t->src('CREATE TABLE s (id int PRIMARY KEY, v text); INSERT INTO s SELECT i, i FROM generate_series(1, 500) i');
$t->create_mirror('m', ['public.s']);
$t->wait_status('m', 'running');
$t->src('DELETE FROM s WHERE id = 7');
$t->sync('m');

sub recovers
{
	my ($what, $pattern) = @_;
	$t->until_failed('m', $pattern, $what);
	like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'm'")
		  . $t->src("SELECT coalesce(string_agg(detail, ' '), '') FROM peerdb.logs WHERE mirror = 'm'"),
		qr/peerdb_resync/, "$what: the hint is to resync");
	my ($status, $out, $err) = $t->try("SELECT peerdb_resume_mirror('m'); SELECT peerdb_wait_for_status('m', 'running', '5 s')");
	isnt($status, 0, "$what: cannot be resumed");
	$t->resync('m');
	$t->wait_status('m', 'running', "$what: resync recovers it");
	$t->src('INSERT INTO s SELECT max(id) + 1, \'after\' FROM s');
	$t->sync('m');
	$t->same('s', "$what: equal again");
	is($t->dst('SELECT _peerdb_is_deleted FROM s WHERE id = 7'), 't', "$what: the soft-deleted row is carried over");
	$t->no_leftovers($what, keep => 1);
}

# ---- WAL removed while the mirror is paused
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
my $slot = $t->src("SELECT slot_name FROM peerdb.mirrors WHERE mirror = 'm'");
$t->src('ALTER SYSTEM SET max_slot_wal_keep_size = 1; ');
$t->src('SELECT pg_reload_conf()');
$t->src('CREATE TABLE filler (x int); INSERT INTO s SELECT i, \'lost\' FROM generate_series(1000, 2000) i');
# until the slot is lost: each round fills a segment
for my $i (1 .. 20)
{
	$t->src('INSERT INTO filler VALUES (1)');
	$t->src('SELECT pg_switch_wal()');
	$t->src('CHECKPOINT');
	last if $t->src("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '$slot'") eq 'lost';
}
is($t->src("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '$slot'"), 'lost', 'the slot is lost');
$t->src('ALTER SYSTEM RESET max_slot_wal_keep_size');
$t->src('SELECT pg_reload_conf()');
$t->try("SELECT peerdb_resume_mirror('m')");
recovers('a lost slot', qr/slot/);

# ---- the slot is dropped under a paused mirror
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
$slot = $t->src("SELECT slot_name FROM peerdb.mirrors WHERE mirror = 'm'");
$t->until_true("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '$slot'", 'a paused mirror does not use its slot');
$t->src("SELECT pg_drop_replication_slot('$slot')");
$t->try("SELECT peerdb_resume_mirror('m')");
recovers('a dropped slot', qr/slot/);

# ---- keep_serving has nothing to keep then
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
$slot = $t->src("SELECT slot_name FROM peerdb.mirrors WHERE mirror = 'm'");
$t->until_true("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '$slot'");
$t->src("SELECT pg_drop_replication_slot('$slot')");
$t->try("SELECT peerdb_resume_mirror('m')");
$t->until_status('m', 'failed');
$t->resync('m', { keep_serving => 'true' });
$t->wait_status('m', 'running', 'keep_serving of a mirror without slot');
$t->sync('m');
$t->same('s');

# ---- another slot of the same name pattern is not ours: left alone
$t->src("SELECT pg_create_logical_replication_slot('resync_user', 'pgoutput')");
$t->src("SELECT peerdb_drop_mirror('m')");
$t->until_true("SELECT count(*) = 1 FROM pg_replication_slots", 'only our slot is dropped');
$t->src("SELECT pg_drop_replication_slot('resync_user')");
$t->no_leftovers('at the end');

done_testing();
