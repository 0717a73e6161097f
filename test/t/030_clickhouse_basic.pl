# A mirror at ClickHouse: first load, changes of every kind, names, tables
# without a key, taking over from PeerDB, the end of a mirror.
use strict;
use warnings;
use utf8;

use ResyncClickHouse;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncClickHouse->new(src_conf => "logical_decoding_work_mem = 64kB\n");

is($t->src("SELECT peerdb_check_peer('ch') ~ '^2[0-9]\\.'"), 't', 'the peer tells its version');

# ---- load and changes
$t->src(<<'EOS');
CREATE TABLE b (id bigint PRIMARY KEY, v int, big text, n numeric(12,2), note text);
ALTER TABLE b ALTER big SET STORAGE EXTERNAL;
INSERT INTO b SELECT i, i % 7, CASE WHEN i % 10 = 0 THEN repeat(md5(i::text), 200) END, i / 8.0, 'n' || i
	FROM generate_series(1, 20000) i;
CREATE TABLE two (y text, x int, v text, PRIMARY KEY (x, y));
INSERT INTO two SELECT 'y' || i % 10, i, 'v' || i FROM generate_series(1, 1000) i;
CREATE TABLE empty (id int PRIMARY KEY, v text);
CREATE TABLE p (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY RANGE (r);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
INSERT INTO p SELECT i, i % 20, 'x' FROM generate_series(1, 300) i;
EOS
my @tables = qw(b two empty p);
$t->create_mirror('m', [ map { "public.$_" } @tables ],
	{ snapshot_num_rows_per_partition => 3000, sync_interval => 0.2 });
$t->wait_status('m', 'running', 'the first load ends');
subtest 'after the first load' => sub { $t->sync('m'); $t->same_ch($_) foreach @tables; };
is($t->ch('SELECT uniqExact(_peerdb_version), max(_peerdb_version), countIf(_peerdb_is_deleted) FROM b'),
	"1\t0\t0", 'rows of a snapshot have version 0');
is($t->ch("SELECT count() FROM system.tables WHERE database = 'd' AND name = 'b' AND engine = 'ReplacingMergeTree'")
	  . $t->ch("SELECT sorting_key FROM system.tables WHERE database = 'd' AND name = 'b'"), '1(id)', 'the table is a ReplacingMergeTree sorted by the key');
is($t->src("SELECT rows_loaded FROM peerdb.mirror_tables WHERE mirror = 'm' AND source_table = 'public.b'"),
	'20000', 'rows of the load are counted');
is($t->src("SELECT bytes_sent > 10000 FROM peerdb.runs WHERE mirror = 'm'"), 't', 'so are its bytes');

$t->src(<<'EOS');
INSERT INTO b SELECT i, i, 'new', NULL, NULL FROM generate_series(20001, 20100) i;
UPDATE b SET v = v + 1 WHERE id % 100 = 0;
UPDATE b SET note = NULL, big = repeat('Z', 3000) WHERE id % 1000 = 5;
DELETE FROM b WHERE id % 50 = 7;
INSERT INTO empty VALUES (1, 'x'), (2, NULL);
UPDATE two SET y = 'moved', v = 'moved' WHERE x % 100 = 1;
DELETE FROM two WHERE x % 100 = 2;
UPDATE p SET r = (r + 10) % 20 WHERE id < 50;
BEGIN;
INSERT INTO empty VALUES (3, 'gone soon');
UPDATE empty SET v = 'changed' WHERE id = 3;
DELETE FROM empty WHERE id = 3;
INSERT INTO empty VALUES (3, 'back');
ROLLBACK;
BEGIN;
INSERT INTO empty VALUES (4, 'a');
DELETE FROM empty WHERE id = 4;
INSERT INTO empty VALUES (4, 'b');
UPDATE empty SET id = 5 WHERE id = 4;
INSERT INTO empty VALUES (4, 'c');
COMMIT;
EOS
subtest 'after changes' => sub { $t->sync('m'); $t->same_ch($_) foreach @tables; };
is($t->ch('SELECT count() FROM b FINAL WHERE _peerdb_is_deleted = 0 AND id % 10 = 0 AND id <= 20000 AND length(big) != 6400'), '0',
	'values that an update left alone are whole');
is($t->ch("SELECT max(_peerdb_version) > 0, min(_peerdb_version) FROM b"), "1\t0", 'changes have their position as version');
is($t->ch('SELECT count() FROM (SELECT id, argMax(_peerdb_is_deleted, _peerdb_version) AS gone FROM b GROUP BY id) WHERE gone'), '402',
	'deleted rows are rows');
is($t->ch("SELECT count() FROM two WHERE _peerdb_is_deleted AND x % 100 = 1"), '10', 'a changed key leaves a deleted row');

# a value that is not in the change nor, any more, in the row at the source
{
	my $held = $t->fault('hold', '^INSERT INTO .*\bb\b');
	$t->src("UPDATE b SET v = -1 WHERE id = 10");
	$t->until_held('a batch is on its way');
	$t->src("UPDATE b SET v = -2 WHERE id = 20; UPDATE b SET id = -20, v = -3 WHERE id = 20; DELETE FROM b WHERE id = 30; UPDATE b SET v = -4 WHERE id = 40; DELETE FROM b WHERE id = 40");
	$t->admin('release');
	$t->sync('m');
	$t->same_ch('b', 'values left alone by updates of rows that are gone');
	is($t->ch('SELECT length(big) FROM b FINAL WHERE id = -20'), '6400', 'also under a changed key');
}

# one transaction of many batches' size
$t->src("ALTER SYSTEM SET resync.batch_memory = '1MB'; SELECT pg_reload_conf()");
$t->src("UPDATE b SET note = note || repeat('x', 100), v = v + 1");
subtest 'a big transaction' => sub { $t->sync('m'); $t->same_ch('b'); };
is($t->ch('SELECT count() FROM b FINAL WHERE _peerdb_is_deleted = 0') , $t->src('SELECT count(*) FROM b'), 'no row twice');
$t->src("ALTER SYSTEM RESET resync.batch_memory; SELECT pg_reload_conf()");

$t->src('TRUNCATE two; INSERT INTO two VALUES (\'after\', 1, \'t\')');
subtest 'TRUNCATE' => sub { $t->sync('m'); $t->same_ch('two'); };
is($t->ch('SELECT count() > 900 FROM two WHERE _peerdb_is_deleted'), '1', 'TRUNCATE: the rows are kept as deleted');

$t->src("ALTER TABLE empty ADD COLUMN c int DEFAULT 7, ADD COLUMN d text; INSERT INTO empty VALUES (10, 'x', 8, 'y'); UPDATE empty SET d = 'z' WHERE id = 1");
subtest 'ADD COLUMN' => sub { $t->sync('m'); $t->same_ch('empty'); };

$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
$t->src("INSERT INTO empty SELECT i FROM generate_series(100, 200) i");
$t->src("SELECT peerdb_resume_mirror('m')");
$t->wait_status('m', 'running');
subtest 'after a pause' => sub { $t->sync('m'); $t->same_ch('empty'); };
$t->source->restart;
$t->src("DELETE FROM empty WHERE id > 150");
subtest 'after a restart of the source' => sub { $t->sync('m'); $t->same_ch($_) foreach @tables; };

# ---- the end of a mirror
$t->src("SELECT peerdb_drop_mirror('m')");
$t->no_leftovers('after the mirror is dropped');
is($t->ch('SELECT count() > 19000 FROM b'), '1', 'the tables stay');
$t->create_mirror('m', ['public.empty']);
$t->until_true("SELECT outcome = 'refused' AND error ~ 'empty' FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1",
	'a table in the way is refused') or $t->describe('m');
$t->src("SELECT peerdb_drop_mirror('m')");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors");
is($t->ch('SELECT count() FROM empty FINAL WHERE _peerdb_is_deleted = 0'), $t->src('SELECT count(*) FROM empty'), 'and not touched');

# ---- replace_existing: tables of PeerDB
$t->ch('DROP TABLE empty');
$t->ch('DROP TABLE two');
$t->ch(<<'EOS');
CREATE TABLE two (y String, x Int32, v String, _peerdb_synced_at DateTime64(9) DEFAULT now64(), _peerdb_is_deleted UInt8, _peerdb_version UInt64)
ENGINE = ReplacingMergeTree(_peerdb_version) PRIMARY KEY (x, y) ORDER BY (x, y)
EOS
$t->ch(<<'EOS');
INSERT INTO two (y, x, v, _peerdb_synced_at, _peerdb_is_deleted, _peerdb_version) VALUES
('after', 1, 'old', '2020-01-01 00:00:00', 0, 10), ('gone', 2, 'w', '2020-01-01 00:00:00', 0, 10), ('gone', 2, 'w', '2020-01-02 03:04:05', 1, 20),
('stale', 3, 'live at PeerDB only', '2020-01-01 00:00:00', 0, 30)
EOS
$t->create_mirror('m', ['public.two'], { replace_existing => 'true', sync_interval => 0.2 });
$t->wait_status('m', 'running', 'taking over from PeerDB');
subtest 'taken over from PeerDB' => sub { $t->sync('m'); $t->same_ch('two'); };
is($t->ch("SELECT y, v, toString(_peerdb_synced_at) FROM two WHERE _peerdb_is_deleted AND x = 2"),
	"gone\tw\t2020-01-02 03:04:05.000000000", 'a row deleted there is kept, with its values and time');
is($t->ch('SELECT y, _peerdb_version FROM two WHERE _peerdb_is_deleted AND x = 3'), "stale\t0", 'a row that the source has not is deleted');
$t->src("SELECT peerdb_drop_mirror('m')");
$t->no_leftovers;

# ---- names
{
	my @names = ('select', 'Mixed Case', 'a?b', 'a-b', '100%', 'back`tick', 'quo"te', "apo'strophe", 'back\\slash', 'größe', 'dot.ted', '{x:Int8}', ' blank ');
	my $sql = '';
	foreach my $i (0 .. $#names)
	{
		(my $q = $names[$i]) =~ s/"/""/g;
		$sql .= qq{CREATE TABLE "$q" ("$q" int PRIMARY KEY, "v $q" text); INSERT INTO "$q" VALUES ($i, 'v'), (100, 'w');\n};
	}
	$t->src("CREATE SCHEMA \"Odd Schema\";\nSET search_path = \"Odd Schema\";\n$sql");
	my @map = map { (my $q = $_) =~ s/"/""/g; { from => "\"Odd Schema\".\"$q\"", to => $_ } } @names;
	foreach my $m (@map) { s/\\/\\\\/g, s/"/\\"/g foreach values %$m; }
	my $json = '[' . join(',', map { qq({"from":"$_->{from}","to":"$_->{to}"}) } @map) . ']';
	$json =~ s/'/''/g;
	$t->src("SELECT peerdb_create_mirror('m', 'ch', '$json', '{\"sync_interval\": 0.2}')");
	$t->wait_status('m', 'running', 'odd names');
	foreach my $name (@names)
	{
		(my $q = $name) =~ s/"/""/g;
		$t->src(qq{SET search_path = "Odd Schema"; UPDATE "$q" SET "v $q" = 'changed' WHERE "$q" = 100; INSERT INTO "$q" VALUES (200, 'x'); DELETE FROM "$q" WHERE "$q" < 100;});
	}
	$t->resync('m');
	$t->wait_status('m', 'running', 'odd names: resync');
	$t->sync('m');
	foreach my $name (@names)
	{
		my $v = ResyncClickHouse::ident("v $name");
		my $table = ResyncClickHouse::ident($name);
		is($t->ch("SELECT $v FROM $table FINAL WHERE _peerdb_is_deleted = 0 ORDER BY 1"), "changed\nx", "odd name: $name");
	}
	$t->src("SELECT peerdb_drop_mirror('m')");
	$t->no_leftovers;
}

# ---- tables without a key
$t->src(<<'EOS');
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i % 100, 'l' FROM generate_series(1, 5000) i;
EOS
my ($status, $out, $err) = $t->try(q{SELECT peerdb_create_mirror('m', 'ch', '["public.log"]')});
isnt($status, 0, 'a table without a key is refused') or $t->src("SELECT peerdb_drop_mirror('m')");
like($err, qr/append/, 'the hint tells of "append"');
$t->create_mirror('m', [ { from => 'public.log', append => \1 } ], { snapshot_num_rows_per_partition => 700, sync_interval => 0.2 });
$t->wait_status('m', 'running', 'append: load');
$t->src("INSERT INTO log SELECT 1, 'same' FROM generate_series(1, 50)");
$t->src("INSERT INTO log SELECT 1, 'same' FROM generate_series(1, 50)");
$t->sync('m');
$t->same_ch('log', 'append: equal rows are all there', soft_delete => undef, final => 0);
is($t->ch("SELECT engine FROM system.tables WHERE database = 'd' AND name = 'log'"), 'MergeTree', 'append: no row replaces another');
$t->src("TRUNCATE log; INSERT INTO log SELECT 1, 'same' FROM generate_series(1, 50)");
$t->src("TRUNCATE log; INSERT INTO log SELECT 1, 'same' FROM generate_series(1, 50)");
$t->sync('m');
is($t->ch("SELECT count() FROM log WHERE _peerdb_is_deleted = 0"), '50', 'append: rows after a TRUNCATE are there, those before not');

$t->drop_all;
done_testing();
