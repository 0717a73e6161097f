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
	my ($what) = @_;
	my ($status, $out, $err) = $t->try("SELECT peerdb_resume_mirror('m')");
	like($err, qr/peerdb_resync/, "$what: resume is an error, with the hint to resync");
	$t->resync('m');
	$t->wait_status('m', 'running', "$what: resync recovers it");
	$t->src('INSERT INTO s SELECT max(id) + 1, \'after\' FROM s');
	$t->sync('m');
	$t->same('s', "$what: equal again");
	is($t->dst('SELECT _peerdb_is_deleted FROM s WHERE id = 7'), 't', "$what: the soft-deleted row is carried over");
	$t->no_leftovers($what, keep => 1);
}

sub slot { return $t->src("SELECT slot_name FROM peerdb.mirrors WHERE mirror = 'm'"); }

# WAL goes on until the slot has fallen behind what may be kept
sub lose_slot
{
	my $slot = slot();
	$t->src('ALTER SYSTEM SET max_slot_wal_keep_size = 1');
	$t->src('SELECT pg_reload_conf()');
	$t->src('INSERT INTO s SELECT max(id) + i, \'lost\' FROM s, generate_series(1, 500) i GROUP BY i');
	foreach (1 .. 20)
	{
		# each round fills a segment
		$t->src('INSERT INTO filler VALUES (1)');
		$t->src('SELECT pg_switch_wal()');
		$t->src('CHECKPOINT');
		last if $t->src("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '$slot' AND wal_status <> 'lost'") eq '0';
	}
	is($t->src("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '$slot' AND wal_status <> 'lost'"), '0', 'the slot is lost');
	$t->src('ALTER SYSTEM RESET max_slot_wal_keep_size');
	$t->src('SELECT pg_reload_conf()');
}

sub drop_slot
{
	my $slot = slot();
	$t->until_true("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '$slot'", 'a paused mirror does not use its slot');
	$t->src("SELECT pg_drop_replication_slot('$slot')");
}

$t->src('CREATE TABLE filler (x int)');

# ---- lost while the destination is down: the mirror fails by itself
$t->dest->stop;
lose_slot();
$t->dest->start;
$t->until_failed('m', qr/slot.*peerdb_resync/s, 'lost while running');
recovers('lost while running');

# ---- lost while paused
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
lose_slot();
recovers('lost while paused');

# ---- dropped by somebody while paused
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
drop_slot();
recovers('dropped while paused');

# ---- 18: a slot that nobody uses is invalidated; that of a load is in use
SKIP:
{
	skip 'idle_replication_slot_timeout came with PostgreSQL 18', 13 if $t->source->pg_version < 18;
	my $setting = sub { $t->src($_) foreach @_, 'SELECT pg_reload_conf()'; };
	my $invalid = sub { $t->src("SELECT coalesce(invalidation_reason, 'no') FROM pg_replication_slots WHERE slot_name = '" . slot() . "'") };
	$setting->("ALTER SYSTEM SET idle_replication_slot_timeout = '2s'", "ALTER SYSTEM SET resync.load_rate_limit = '1kB'");
	my $run = $t->resync('m', { snapshot_num_rows_per_partition => 200 });
	my $loading = "phase = 'load' AND run = $run AND now() - status_since > interval '5 s'";
	$t->until_true("SELECT $loading FROM peerdb.mirrors WHERE mirror = 'm'", 'idle_replication_slot_timeout: a load takes longer');
	$t->src('CHECKPOINT');
	is($invalid->(), 'no', 'idle_replication_slot_timeout: the slot of a load is in use');
	$setting->('ALTER SYSTEM RESET resync.load_rate_limit');
	$t->wait_status('m', 'running', 'idle_replication_slot_timeout: the load ends');
	$t->sync('m');
	$t->same('s');

	$t->src("SELECT peerdb_pause_mirror('m')");
	$t->until_status('m', 'paused');
	$t->until_true("SELECT NOT active AND now() - inactive_since > interval '3 s' FROM pg_replication_slots WHERE slot_name = '" . slot() . "'",
		'idle_replication_slot_timeout: a paused mirror does not use its slot');
	$t->src('CHECKPOINT');
	is($invalid->(), 'idle_timeout', 'idle_replication_slot_timeout: it is invalidated');
	$setting->('ALTER SYSTEM RESET idle_replication_slot_timeout');
	$t->until_failed('m', qr/slot.*idle_replication_slot_timeout.*peerdb_resync/s, 'idle while paused');
	recovers('idle while paused');
}

# ---- keep_serving has nothing to keep then
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
drop_slot();
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
