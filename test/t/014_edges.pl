# Odd things that users and machines do: requests on top of each other, tables
# that are gone or renamed, wide tables, keys that are equal but not the same,
# processes that end at a bad moment, many tables, databases that go away.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my $t = ResyncTest->new(dst_conf => "max_connections = 200\n");
$t->dst('CREATE DATABASE target');
$t->install('postgres', server => 'away', dbname => 'target');
$t->install('postgres', server => 'other');
$t->src("ALTER SERVER other OPTIONS (ADD metadata_schema 'other_meta')");

$t->src(<<'EOS');
CREATE TABLE c (id int PRIMARY KEY, v text);
INSERT INTO c SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 2000) i;
CREATE TABLE small (id int PRIMARY KEY, v text);
INSERT INTO small SELECT i, 'v' || i FROM generate_series(1, 100) i;
EOS
my $n = 5000;
sub follows
{
	my ($m, $what, $to) = @_;
	$n++;
	$t->src("INSERT INTO c VALUES ($n, 'follow'); UPDATE c SET v = 'u$n' WHERE id = 1");
	$t->sync($m, "$what: catches up");
	$t->same('c', "$what: equal", to => $to // 'c');
}
sub outcome_is
{
	my ($mirror, $outcome, $pattern, $what) = @_;
	$t->until_true("SELECT outcome = '$outcome' FROM peerdb.runs WHERE mirror = '$mirror' ORDER BY run DESC LIMIT 1", "$what: the run is $outcome") or $t->describe($mirror);
	return like($t->src("SELECT error FROM peerdb.runs WHERE mirror = '$mirror' ORDER BY run DESC LIMIT 1"), $pattern, "$what: why");
}
sub drop_mirror
{
	my ($mirror) = @_;
	$t->src("SELECT peerdb_drop_mirror('$mirror')");
	return $t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = '$mirror'", "$mirror is dropped");
}

# ---- the metadata schemas are no place for tables: before there are any ...
$t->create_mirror('meta', ['public.small:_peerdb_internal.small']);
outcome_is('meta', 'refused', qr/metadata schema/, 'own metadata schema, not there yet');
drop_mirror('meta');

$t->create_mirror('m', ['public.c']);
$t->create_mirror('other', ['public.small:other_small'], {}, peer => 'other');
$t->wait_status($_, 'running') foreach qw(m other);

# ... and when they are there, by whatever server
foreach my $to ('_peerdb_internal.small', 'other_meta.small', 'other_meta.resync_run')
{
	$t->create_mirror('meta', ["public.small:$to"], { replace_existing => 'true' });
	outcome_is('meta', 'refused', qr/metadata schema/, "to $to");
	drop_mirror('meta');
}
follows('m', 'after mappings into its metadata');
is($t->status('other'), 'running', "the other server's mirror goes on");
drop_mirror('other');

# ---- pause and resume at once
foreach my $i (1 .. 20)
{
	$t->src("SELECT peerdb_pause_mirror('m')");
	$t->src("SELECT peerdb_resume_mirror('m')");
}
$t->until_status('m', 'running', 'paused and resumed 20 times');
follows('m', 'paused and resumed 20 times');
$t->src("BEGIN; SELECT peerdb_pause_mirror('m'); SELECT peerdb_resume_mirror('m'); COMMIT") foreach 1 .. 3;
$t->until_status('m', 'running', 'paused and resumed in a transaction');
follows('m', 'paused and resumed in a transaction');

# ---- a pause and a resync in one transaction, the resync refused
$t->dst('CREATE TABLE c_resync (mine int)');
$t->src("BEGIN; SELECT peerdb_pause_mirror('m'); SELECT peerdb_resync('m'); COMMIT");
outcome_is('m', 'refused', qr/c_resync.* exists/, 'pause and resync at once');
$t->until_true("SELECT peerdb_mirror_status('m') IN ('paused', 'running')", 'its status is a sane one') or $t->describe('m');
is($t->src("SELECT peerdb_wait_for_status('m', 'paused', '10 s')"), 'paused', 'it is paused, and that can be waited for although the run was refused');
$t->src("SELECT peerdb_resume_mirror('m')");
$t->until_status('m', 'running');
follows('m', 'resumed after a refused resync');

# the same of one that runs, and is paused afterwards
$t->resync('m');
outcome_is('m', 'refused', qr/c_resync.* exists/, 'a running mirror');
$t->src("SELECT peerdb_pause_mirror('m')");
is($t->src("SELECT peerdb_wait_for_status('m', 'paused', '30 s')"), 'paused', 'a pause after a refused resync can be waited for');
$t->resync('m');
outcome_is('m', 'refused', qr/c_resync.* exists/, 'a paused mirror');
is($t->src("SELECT peerdb_wait_for_status('m', 'paused', '30 s')"), 'paused', 'a paused mirror is paused after a refused resync');
$t->src("SELECT peerdb_resume_mirror('m')");
$t->until_status('m', 'running');
follows('m', 'resumed once more');
$t->dst('DROP TABLE c_resync');

# ---- peerdb_compare follows the table
my $compare = "SELECT source_rows = destination_rows AND equal AND source_rows = (SELECT count(*) FROM %s) FROM peerdb_compare('m')";
$t->src('ALTER TABLE c RENAME TO c_was');
is($t->src(sprintf $compare, 'c_was'), 't', 'compare: the table was renamed');
$t->src('CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c VALUES (1), (2)');
is($t->src(sprintf $compare, 'c_was'), 't', 'compare: another table has its name');
$t->src('DROP TABLE c; ALTER TABLE c_was RENAME TO c');
is($t->src(sprintf $compare, 'c'), 't', 'compare: its own name again');

# ---- views when a mirrored table is gone
$t->src('CREATE TABLE gone (id int PRIMARY KEY); INSERT INTO gone VALUES (1)');
$t->create_mirror('gone', ['public.gone']);
$t->wait_status('gone', 'running');
$t->src('DROP TABLE gone');
$t->until_failed('gone', qr/dropped/, 'DROP TABLE');
cmp_ok($t->src("SELECT count(*) FROM peerdb.partitions WHERE source_table = 'public.gone'"), '>', 0, 'partitions of a table that is gone');
$t->src("SELECT * FROM peerdb.$_") foreach qw(mirrors mirror_tables runs partitions batches logs);
$t->refused("SELECT peerdb_resync('gone')", '42P01', 'gone', 'resync without the table');
isnt(($t->try("SELECT * FROM peerdb_compare('gone')"))[0], 0, 'compare without the table is an error');
drop_mirror('gone');

# ---- as many columns as there can be
sub wide { my ($columns) = @_; return join(', ', 'id int PRIMARY KEY', map { "c$_ smallint" } 2 .. $columns); }
$t->src('CREATE TABLE too_wide (' . wide(1600) . '); CREATE TABLE wide (' . wide(1595) . ')');
$t->src('INSERT INTO wide (id, c2, c1595) SELECT i, i, i FROM generate_series(1, 10) i');
$t->create_mirror('wide', ['public.too_wide']);
outcome_is('wide', 'refused', qr/too many columns.*1595/s, '1600 columns');
drop_mirror('wide');
$t->create_mirror('wide', ['public.wide']);
$t->wait_status('wide', 'running', '1595 columns');
$t->src('INSERT INTO wide (id, c5) VALUES (100, 1); UPDATE wide SET c1595 = 7, c3 = 1 WHERE id < 4; DELETE FROM wide WHERE id = 5; UPDATE wide SET id = 50 WHERE id = 6');
$t->sync('wide');
$t->same('wide');
drop_mirror('wide');

# ---- many tables; it loads while the next tests go on
$t->src('CREATE SCHEMA many');
$t->src(join(';', map { "CREATE TABLE many.t$_ (id int PRIMARY KEY, v text); INSERT INTO many.t$_ VALUES (1, 'one')" } 1 .. 300));
$t->create_mirror('many', ['many.*']);

# ---- keys that are equal, but not the same
$t->src(<<'EOS');
CREATE TABLE num (k numeric PRIMARY KEY, v text);
CREATE TABLE flt (k float8 PRIMARY KEY, v text);
CREATE TABLE arr (k numeric[] PRIMARY KEY, v text);
INSERT INTO num SELECT i + 0.0, 'loaded' FROM generate_series(1, 10) i;
INSERT INTO flt SELECT i, 'loaded' FROM generate_series(1, 10) i;
INSERT INTO flt VALUES ('-0', 'loaded');
INSERT INTO arr SELECT ARRAY[i, 0.0], 'loaded' FROM generate_series(1, 10) i;
EOS
my @keys = qw(num flt arr);
$t->create_mirror('soft', [ map { "public.$_" } @keys ]);
$t->create_mirror('hard', [ map { "public.$_:hard_$_" } @keys ], { soft_delete => 'false' });
$t->wait_status($_, 'running') foreach qw(soft hard);
my @changes = (
	"DELETE FROM num WHERE k = 1; INSERT INTO num VALUES (1.00, 'again')",
	"UPDATE num SET k = 2.00 WHERE k = 2",
	"UPDATE num SET k = 3.00 WHERE k = 3; UPDATE num SET v = 'twice' WHERE k = 3; UPDATE num SET k = 3.000 WHERE k = 3",
	"INSERT INTO num VALUES (20.0, 'a'); DELETE FROM num WHERE k = 20; INSERT INTO num VALUES (20.00, 'b')",
	"INSERT INTO num VALUES (21.0, 'a'); DELETE FROM num WHERE k = 21; INSERT INTO num VALUES (21.00, 'b'); DELETE FROM num WHERE k = 21",
	"UPDATE num SET k = 104.0 WHERE k = 4; INSERT INTO num VALUES (4.000, 'other')",
	"DELETE FROM flt WHERE k = 0; INSERT INTO flt VALUES (0, 'again')",
	"UPDATE flt SET k = '-0' WHERE k = 0",
	"UPDATE flt SET k = 0, v = 'plus' WHERE k = 0; DELETE FROM flt WHERE k = 0; INSERT INTO flt VALUES ('-0', 'end')",
	"DELETE FROM arr WHERE k = '{1,0}'; INSERT INTO arr VALUES ('{1.0,0}', 'again'); UPDATE arr SET k = '{2.00,0.0}' WHERE k = '{2,0}'");
foreach my $one (@changes)
{
	$t->src("BEGIN; $one; COMMIT");
	(my $what = $one) =~ s/^(.{60}).*/$1 .../s;
	$t->sync($_) foreach qw(soft hard);
	foreach my $table (grep { $one =~ /\b$_\b/ } @keys)
	{
		$t->same($table, "soft: $what");
		$t->same($table, "hard: $what", to => "hard_$table", soft_delete => undef);
	}
}
is($t->dst('SELECT count(*) FROM num WHERE k = 21 AND _peerdb_is_deleted'), '1', 'soft: one deleted row of keys that are equal');
drop_mirror($_) foreach qw(soft hard);

# ---- many tables are loaded by now; they are resynced while the next tests go on
$t->wait_status('many', 'running', '300 tables: loaded');
$t->src('INSERT INTO many.t300 VALUES (2); UPDATE many.t1 SET v = 2; DELETE FROM many.t150');
$t->sync('many');
$t->same("many.t$_", "300 tables: t$_") foreach 1, 150, 300;
$t->resync('many');

# ---- no key: insert and TRUNCATE in one transaction
$t->src('CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT i % 10, i::text FROM generate_series(1, 3000) i');
$t->create_mirror('bag', ['public.bag']);
$t->create_mirror('hard_bag', ['public.bag:hard_bag'], { soft_delete => 'false' });
$t->wait_status($_, 'running') foreach qw(bag hard_bag);
$t->src(q{BEGIN; INSERT INTO bag VALUES (1, 'x'), (1, 'x'); TRUNCATE bag; COMMIT});
$t->sync($_) foreach qw(bag hard_bag);
$t->same('bag', 'insert, TRUNCATE');
$t->same('bag', 'insert, TRUNCATE (hard)', to => 'hard_bag', soft_delete => undef);
$t->src(q{BEGIN; INSERT INTO bag VALUES (1, 'x'), (1, 'x'); DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag); TRUNCATE bag; INSERT INTO bag VALUES (1, 'x'), (2, 'y'); TRUNCATE bag; INSERT INTO bag VALUES (1, 'x'), (1, 'x'), (1, 'x'); DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag); COMMIT});
$t->sync($_) foreach qw(bag hard_bag);
$t->same('bag', 'insert, TRUNCATE, insert, delete');
$t->same('bag', 'insert, TRUNCATE, insert, delete (hard)', to => 'hard_bag', soft_delete => undef);
drop_mirror('hard_bag');

# ---- no key: the streamer ends in the middle of the load
$t->src('INSERT INTO bag SELECT i % 10, repeat(i::text, 20) FROM generate_series(1, 3000) i');
my $release = $t->hold_phase('bag', 'load', 'bag', sub { $t->resync('bag', { snapshot_num_rows_per_partition => 500 }); });
my $streamer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'resync streamer' AND query ~ 'bag'";
foreach my $round (1 .. 2)
{
	my $pid = $t->src($streamer);
	my $open = $t->session($t->source);
	$open->query_safe("BEGIN; INSERT INTO bag SELECT 50 + $round, 'open' FROM generate_series(1, 5)");
	$t->src("INSERT INTO bag SELECT 60 + $round, 'before' FROM generate_series(1, 5); DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = $round LIMIT 3)");
	$t->src("SELECT pg_terminate_backend($pid)");
	$t->src("INSERT INTO bag SELECT 70 + $round, 'after' FROM generate_series(1, 5)");
	$t->until_true("SELECT count(*) = 1 AND bool_and(pid <> $pid) FROM ($streamer) s", "round $round: another streamer");
	$open->query_safe('COMMIT');
	$open->quit;
	$t->src("INSERT INTO bag SELECT 80 + $round, 'late' FROM generate_series(1, 5); UPDATE bag SET b = 'changed' WHERE ctid IN (SELECT ctid FROM bag WHERE a = 4 LIMIT 2)");
	$t->until_phase('bag', 'load', "round $round: it loads");
}
$release->();
$t->wait_status('bag', 'running');
$t->sync('bag');
$t->same('bag', 'no key, streamer terminated: each row exactly once');
drop_mirror('bag');

# ---- many tables are resynced by now
$t->wait_status('many', 'running', '300 tables: resynced');
is($t->src("SELECT count(*) FILTER (WHERE equal) FROM peerdb_compare('many')"), '300', '300 tables: all equal');
is($t->dst('SELECT count(*) FROM many.t150 WHERE _peerdb_is_deleted'), '1', '300 tables: the deleted row was carried over');
$t->src("SELECT peerdb_drop_mirror('many', drop_destination => true)");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'many'", '300 tables: dropped');
$t->no_leftovers('300 tables: dropped', keep => 1);
is($t->dst("SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname = 'many'"), '0', '300 tables: nothing at the destination');
is($t->dst('SELECT count(*) FROM _peerdb_internal.resync_table t WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = t.build_oid)'), '0', '300 tables: nothing in the metadata');

# ---- edits
sub newest { return $t->src("SELECT max(run) FROM peerdb.runs WHERE mirror = 'm'"); }
# rows are inserted until some wait, ten times as long as the default
sub changes_wait
{
	my ($what) = @_;
	$t->until_true("INSERT INTO c SELECT greatest(max(id), 100000) + 1, 'edit' FROM c; SELECT lag > interval '1 s' FROM peerdb.mirrors WHERE mirror = 'm'", "$what: changes wait", limit => 30);
}
sub changes_arrive
{
	my ($what) = @_;
	my $rows = $t->src('SELECT count(*) FROM c');
	$t->until_true("SELECT count(*) = $rows FROM c WHERE NOT _peerdb_is_deleted", "$what: they arrive", node => $t->dest, limit => 30);
}
$t->src(q{SELECT peerdb_edit_mirror('m', '{"sync_interval": 3600}')});
changes_wait('edit: sync_interval');
$t->src(q{SELECT peerdb_edit_mirror('m', '{"max_batch_size": 1}')});
changes_arrive('edit: max_batch_size counts for what was waiting');
$t->src(q{SELECT peerdb_edit_mirror('m', '{"max_batch_size": 1000}')});
changes_wait('edit: max_batch_size');
$t->src(q{SELECT peerdb_edit_mirror('m', '{"sync_interval": 0.05}')});
changes_arrive('edit: sync_interval counts for what was waiting');
$t->src(q{SELECT peerdb_edit_mirror('m', '{"snapshot_num_rows_per_partition": 100}', '[{"from": "public.c", "to": "public.c_moved"}]')});
follows('m', 'edit: until the resync the old mapping holds');
$t->resync('m');
$t->wait_status('m', 'running');
cmp_ok($t->src("SELECT count(*) FROM peerdb.partitions WHERE run = " . newest()), '>=', 10, 'edit: smaller partitions in the next load');
follows('m', 'edit: the new mapping holds from the resync on', 'c_moved');
is($t->src("SELECT destination_table FROM peerdb.mirror_tables WHERE mirror = 'm'"), 'public.c_moved', 'edit: and is shown');
drop_mirror('m');

# ---- requests that fail are tried again, not all the time
$t->create_mirror('away', ['public.small'], {}, peer => 'away');
$t->wait_status('away', 'running');
my $logs = "SELECT count(*) FROM peerdb.logs WHERE mirror = 'away'";
my $logfile = $t->source->logfile;
# a resync is cancelled that was paused in phase swap: whether it can still be
# cancelled only the destination knows
sub request_fails
{
	my ($what, $away, $back) = @_;
	my $reader = $t->session($t->dest, 'target');
	$reader->query_safe('BEGIN; LOCK TABLE small IN ACCESS SHARE MODE');
	$t->resync('away');
	$t->until_phase('away', 'swap', "$what: swap");
	$t->src("SELECT peerdb_pause_mirror('away')");
	$t->until_status('away', 'paused', "$what: paused in phase swap");
	$reader->query_safe('ROLLBACK');
	$reader->quit;
	$away->();
	my $offset = -s $logfile;
	my $before = $t->src($logs);
	my $asked = $t->src("SELECT peerdb_cancel_resync('away'); SELECT clock_timestamp()");
	$asked =~ s/^\n//;
	my $errors = sub {
		return scalar(() = PostgreSQL::Test::Utils::slurp_file($logfile, $offset) =~ /mirror "away" (?:goes on after an error|failed)/g);
	};
	# a second try has been made, and then there was a pause of seconds
	$t->until_true("SELECT clock_timestamp() > '$asked'::timestamptz + interval '2 s'");
	cmp_ok($errors->(), '>', 0, "$what: the request fails");
	cmp_ok($errors->(), '<', 20, "$what: it is not tried all the time");
	cmp_ok($t->src($logs) - $before, '<=', 4, "$what: peerdb.logs does not grow");
	like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'away'"), qr/connect/, "$what: the mirror shows why");
	$back->();
	outcome_is('away', 'cancelled', qr/cancelled/, "$what: the request is done in the end");
	$t->until_status('away', 'failed');
	$t->resync('away');
	$t->wait_status('away', 'running', "$what: resynced");
	return;
}
request_fails('destination down', sub { $t->dest->stop('immediate'); }, sub { $t->dest->start; });
request_fails('database renamed away',
	sub { $t->dst('ALTER DATABASE target RENAME TO target_away'); },
	sub { $t->dst('ALTER DATABASE target_away RENAME TO target'); });
drop_mirror('away');

# ---- databases that go away
foreach my $paused (0, 1)
{
	my $what = $paused ? 'DROP DATABASE, mirror paused' : 'DROP DATABASE, mirror running';
	$t->src('CREATE DATABASE leaving');
	$t->install('leaving');
	$t->src('CREATE TABLE leaving (id int PRIMARY KEY)', db => 'leaving');
	$t->create_mirror('leaving', ['public.leaving'], { replace_existing => 'true' }, db => 'leaving');
	$t->wait_status('leaving', 'running', "$what: running", db => 'leaving');
	if ($paused)
	{
		$t->src("SELECT peerdb_pause_mirror('leaving')", db => 'leaving');
		$t->until_status('leaving', 'paused', "$what: paused", db => 'leaving');
	}
	my $offset = -s $logfile;
	$t->src('DROP DATABASE leaving');
	$t->no_leftovers($what);
	# the launcher has something to do, twice, and looks at everything
	foreach (1 .. 2)
	{
		$t->create_mirror('m', ['public.small:small_m'], { replace_existing => 'true' });
		$t->wait_status('m', 'running');
		drop_mirror('m');
	}
	unlike(PostgreSQL::Test::Utils::slurp_file($logfile, $offset), qr/database (?:"leaving"|\d+) does not exist/, "$what: nothing is started for it");
}

$t->drop_all;
done_testing();
