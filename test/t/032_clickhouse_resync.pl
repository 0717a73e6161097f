# Resync at ClickHouse: a new ORDER BY, engine and partitioning, under writes and
# readers; materialized views; deleted rows carried over; the snapshot's and the
# changes' versions; servers without EXCHANGE; keep_serving and cancel.
use strict;
use warnings;

use ResyncClickHouse;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncClickHouse->new;
my $table = sub { $t->ch("SELECT $_[1] FROM system.tables WHERE database = 'd' AND name = '$_[0]'") };

# ---- a new ORDER BY, under writes and readers
$t->src(<<'EOS');
CREATE TABLE a (id bigint PRIMARY KEY, tenant int NOT NULL, at timestamptz NOT NULL, v int, note text);
INSERT INTO a SELECT i, i % 50, '2024-01-01'::timestamptz + i * interval '1 hour', i, 'n' || i FROM generate_series(1, 30000) i;
ALTER TABLE a REPLICA IDENTITY FULL;
CREATE TABLE s (id int PRIMARY KEY, v int);
INSERT INTO s SELECT i, i FROM generate_series(1, 100) i;
EOS
my @a_columns = ('id', 'tenant', 'floor(extract(epoch FROM at))::bigint', 'v', 'note');
my @a_there = ('id', 'tenant', 'toUnixTimestamp64Second(at)', 'v', 'note');
my $same_a = sub { $t->same_ch('a', $_[0], columns => \@a_columns, ch_columns => \@a_there, where => $_[1]) };

$t->create_mirror('m', [ 'public.a', 'public.s' ], { sync_interval => 0.2, snapshot_num_rows_per_partition => 5000 });
$t->wait_status('m', 'running');
$t->src('DELETE FROM a WHERE id % 3000 = 1; DELETE FROM s WHERE id = 7');
$t->sync('m');
my $deleted_at = $t->ch("SELECT id, toString(_peerdb_synced_at) FROM a WHERE _peerdb_is_deleted AND id = 1");

# what depends on the tables there
$t->ch('CREATE TABLE agg (tenant Int32, n UInt64) ENGINE = SummingMergeTree ORDER BY tenant');
$t->ch('CREATE MATERIALIZED VIEW mv TO agg AS SELECT tenant, toUInt64(1) AS n FROM a');
$t->ch('CREATE VIEW plain AS SELECT count() AS n FROM a FINAL WHERE _peerdb_is_deleted = 0');

my $writer = $t->writer(<<'EOS', clients => 2, rate => 100);
\set k random(1, 29000)
\set n random(30001, 900000000)
UPDATE a SET v = v + 1 WHERE id = :k;
INSERT INTO a VALUES (:n, :n % 50, now(), 0, 'w') ON CONFLICT DO NOTHING;
DELETE FROM a WHERE id = (SELECT id FROM a WHERE id > 30000 ORDER BY id LIMIT 1);
EOS
my $reader = $t->ch_reader('SELECT count() FROM a FINAL WHERE id <= 100', 'SELECT count() FROM s', 'SELECT n FROM plain');

my $edit = sub {
	my ($mapping) = @_;
	$t->src("SELECT peerdb_edit_mirror('m', tables => " . ResyncTest::jsonb([$mapping]) . ')');
	return;
};
foreach my $step (
	[ 'a new ORDER BY', { from => 'public.a', order_by => [ 'tenant', 'id' ] }, sorting_key => 'tenant, id' ],
	[ 'partitions', { from => 'public.a', order_by => [ 'id', 'tenant' ], partition_by => 'tenant % 5' }, partition_key => 'tenant % 5' ],
	[ 'another type', { from => 'public.a', columns => [ { source => 'v', destination => 'v', type => 'Int64' } ] }, sorting_key => 'id' ])
{
	my ($name, $mapping, $what, $wanted) = @$step;
	$edit->($mapping);
	$t->resync('m');
	$t->wait_status('m', 'running', "$name: resync");
	(my $got = $table->('a', $what)) =~ s/^\((.*)\)$/$1/;
	is($got, $wanted, "$name: the table has it");
	# a column of ORDER BY beyond the key
	$t->src('UPDATE a SET tenant = tenant + 100, v = -v WHERE id BETWEEN 29001 AND 29100');
	$t->sync('m');
	$same_a->("$name: changed sorting columns", 'id BETWEEN 29001 AND 29100');
}
is($t->ch("SELECT type FROM system.columns WHERE database = 'd' AND table = 'a' AND name = 'v'"), 'Nullable(Int64)', 'the type of a column is the one asked for');
$t->resync('m', { keep_serving => 'true' });
$t->wait_status('m', 'running', 'keep_serving');
$t->reader_ok($reader, 'resyncs under writes');
$t->stop($writer);
subtest 'equal after resyncs under writes' => sub { $t->sync('m'); $same_a->(); $t->same_ch('s'); };

# deleted rows, with values and time
is($t->ch("SELECT id, toString(_peerdb_synced_at) FROM a WHERE _peerdb_is_deleted AND id = 1"), $deleted_at, 'a deleted row is kept as it was');
is($t->ch('SELECT count() FROM (SELECT id, argMax(_peerdb_is_deleted, _peerdb_version) d FROM a GROUP BY id) WHERE d AND id <= 30000'), '10', 'all of them');
is($t->ch('SELECT v, _peerdb_version FROM s WHERE _peerdb_is_deleted AND id = 7'), "\\N\t0", 'in the other table too');

# the materialized view is fed by the new table
my $before = $t->ch('SELECT sum(n) FROM agg');
$t->src("INSERT INTO a SELECT i, 1, now(), 0, 'mv' FROM generate_series(1000000001, 1000000010) i");
$t->sync('m');
is($t->ch('SELECT sum(n) FROM agg') - $before, 10, 'the materialized view goes on');

# ---- a key that comes back, and one deleted again, over a resync
$t->src('INSERT INTO s VALUES (7, 77); DELETE FROM s WHERE id = 8');
$t->sync('m');
$t->resync('m');
$t->wait_status('m', 'running');
$t->src('DELETE FROM s WHERE id = 7; INSERT INTO s VALUES (8, 88)');
$t->sync('m');
$t->same_ch('s', 'keys that come back');
is($t->ch('SELECT argMax(_peerdb_is_deleted, _peerdb_version) FROM s WHERE id = 7'), '1', 'deleted after a resync');

# ---- a transaction whose changes lie before the snapshot and whose commit after
# A slot waits for the transactions that it finds (one), then for those that
# have begun meanwhile (two); what begins while it waits for these (three) is
# decoded as a whole, and is not in the snapshot.
{
	my $begin = sub {
		my ($sql) = @_;
		my $s = $t->session($t->source);
		$s->query_safe("BEGIN; $sql");
		my $xid = $s->query_safe('SELECT pg_current_xact_id()');
		$xid =~ s/\s//g;
		return ($s, $xid);
	};
	my $waits_for = sub {
		my ($xid) = @_;
		return $t->until_true("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' AND transactionid = '$xid'",
			"the slot waits for transaction $xid");
	};
	my ($one, $x1) = $begin->('SELECT 1');
	$t->resync('m');
	$waits_for->($x1);
	my ($two, $x2) = $begin->('SELECT 1');
	$one->query_safe('COMMIT');
	$one->quit;
	$waits_for->($x2);
	my ($three) = $begin->('UPDATE s SET v = 1001 WHERE id = 1; INSERT INTO s VALUES (1001, 1); DELETE FROM s WHERE id = 2; UPDATE s SET id = 1003 WHERE id = 3');
	my $lsn = $t->src('SELECT pg_current_wal_insert_lsn()');
	$two->query_safe('COMMIT');
	$two->quit;
	$t->wait_status('m', 'running', 'a transaction is open over a whole resync');
	is($t->src("SELECT snapshot_lsn >= '$lsn' FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1"), 't',
		'its changes lie before the snapshot');
	$three->query_safe('COMMIT');
	$three->quit;
	$t->sync('m');
	$t->same_ch('s', 'a transaction around the consistent point');
}

# ---- a server without EXCHANGE
my $id = $t->fault('fail', '^EXCHANGE', code => 48, count => -1);
$t->resync('m');
$t->wait_status('m', 'running', 'without EXCHANGE');
cmp_ok($t->admin('hits', id => $id), '>', 0, 'EXCHANGE was tried');
$t->admin('clear');
is(scalar(grep { $_->{code} == 0 } $t->statements(qr/^RENAME TABLE .* TO .*, .* TO .*, .* TO /)) > 0, 1, 'one RENAME did it');
$same_a->('equal after RENAME');

# ---- cancel
my $rows = $t->ch('SELECT count() FROM a FINAL');
my $release = $t->hold_phase('m', 'load', 'a', sub { $t->resync('m', { keep_serving => 'false' }) });
$t->src("SELECT peerdb_cancel_resync('m')");
$release->();
$t->until_true("SELECT outcome = 'cancelled' FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1", 'cancelled');
is($t->ch('SELECT count() FROM a FINAL'), $rows, 'the live table stays');
$t->resync('m');
$t->wait_status('m', 'running', 'and a new resync repairs it');
$t->sync('m');
$same_a->('equal after a cancelled resync');
$t->no_leftovers('at the end', keep => 1);

# ---- soft_delete off
$t->src("SELECT peerdb_drop_mirror('m')");
$t->no_leftovers('after the mirror is dropped');
$t->ch('DROP TABLE mv');
$t->ch('DROP TABLE s');
$t->create_mirror('m', ['public.s'], { soft_delete => 'false', sync_interval => 0.2 });
$t->wait_status('m', 'running');
$t->src('DELETE FROM s WHERE id = 9');
$t->sync('m');
$t->same_ch('s', 'soft_delete off');
$t->resync('m');
$t->wait_status('m', 'running');
is($t->ch('SELECT count() FROM s WHERE id = 9'), '0', 'soft_delete off: a resync forgets deleted rows');
$t->src('TRUNCATE s; INSERT INTO s VALUES (5, 5)');
$t->sync('m');
$t->same_ch('s', 'soft_delete off: TRUNCATE');
is($t->ch('SELECT count() FROM s'), '1', 'soft_delete off: TRUNCATE leaves nothing');

$t->drop_all;
done_testing();
