# A mirror at Snowflake: load, changes, deletes, changed keys, unchanged values
# out of line, TRUNCATE, ADD COLUMN, odd names, tables without a key, resync.
use strict;
use warnings;

use ResyncSnowflake;
use Test::More;

my $t = ResyncSnowflake->new;
like($t->src("SELECT peerdb_check_peer('sf')"), qr/database DB, role MIRROR_ROLE/, 'check_peer');
$t->src(<<'EOS');
CREATE TABLE a (id int PRIMARY KEY, v text, n numeric(12,2), big text);
ALTER TABLE a ALTER big SET STORAGE EXTERNAL;
INSERT INTO a SELECT i, 'v' || i, i / 7.0, CASE WHEN i % 10 = 0 THEN repeat('b' || i, 3000) END FROM generate_series(1, 500) i;
CREATE TABLE two (x int, y text, v int, PRIMARY KEY (y, x));
INSERT INTO two SELECT i % 10, 'y' || i / 10, i FROM generate_series(0, 99) i;
CREATE SCHEMA s;
CREATE TABLE s."Odd ""Name" ("ID" bigint PRIMARY KEY, "select" text, "Mixed ""Case\" int);
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i % 5, 'load' FROM generate_series(1, 50) i;
CREATE TABLE empty (id int PRIMARY KEY);
CREATE TABLE floats (f float8 PRIMARY KEY, v int, big text);
ALTER TABLE floats ALTER big SET STORAGE EXTERNAL;
INSERT INTO floats VALUES (1.5, 1, NULL), ('NaN', 2, repeat('n', 5000)), (0.1, 3, NULL);
EOS
$t->create_mirror('m', [ 'public.a', 'public.two', { from => 'public.log', append => \1 }, 'public.empty', 'public.floats' ],
	{ snapshot_num_rows_per_partition => 100 });
$t->wait_status('m', 'running') or $t->describe('m');
sub equal
{
	my ($what) = @_;
	$t->sync('m', "$what: caught up");
	$t->same_sf('a', "$what: a");
	$t->same_sf('two', "$what: two");
	$t->same_sf('log', "$what: log", soft_delete => undef);
	$t->same_sf('empty', "$what: empty");
	$t->same_sf('floats', "$what: floats", columns => [ 'f::text', 'v::text', 'length(big)::text' ],
		sf_columns => [ 'TO_VARCHAR(F)', 'TO_VARCHAR(V)', 'TO_VARCHAR(LENGTH(BIG))' ]);
	return;
}
equal('load');

$t->src(<<'EOS');
INSERT INTO a VALUES (1001, 'new', 1.5, repeat('n', 5000)), (1002, NULL, NULL, NULL);
UPDATE a SET v = 'changed' WHERE id % 5 = 0;
DELETE FROM a WHERE id IN (3, 4);
UPDATE two SET x = x + 100 WHERE y = 'y3';
INSERT INTO log SELECT 9, 'same' FROM generate_series(1, 10);
INSERT INTO empty VALUES (1);
UPDATE floats SET v = v + 10;		-- its row is there, with the large value
EOS
equal('changes');
is($t->sf('SELECT COUNT(*) FROM DB.PUBLIC.A WHERE _peerdb_is_deleted AND id IN (3, 4)'), '2', 'deleted rows are kept');
is($t->sf('SELECT COUNT(*) FROM DB.PUBLIC.TWO WHERE _peerdb_is_deleted'), '10', 'changed keys: the old ones are kept as deleted');

$t->src(<<'EOS');
BEGIN;
UPDATE a SET id = 2000 + id WHERE id BETWEEN 10 AND 40;		-- large values move with their keys
UPDATE a SET v = 'again' WHERE id BETWEEN 2010 AND 2020;
INSERT INTO a VALUES (3, 'back', 3, 'small');
DELETE FROM a WHERE id = 1001;
INSERT INTO a VALUES (1001, 'anew', 2, NULL);
COMMIT;
EOS
equal('a transaction of moves');
$t->src("UPDATE floats SET f = 7 WHERE f = 'NaN'");
equal('a key that was NaN');
$t->src("UPDATE floats SET f = 'NaN' WHERE f = 7; DELETE FROM floats WHERE f = 0.1");
equal('a key that is NaN again');
is($t->sf('SELECT COUNT(*) FROM DB.PUBLIC.FLOATS WHERE f = TO_DOUBLE(\'NaN\')'), '1', 'a key that is NaN: one row');
is($t->sf('SELECT COUNT(*) FROM DB.PUBLIC.A WHERE _peerdb_is_deleted AND id = 3'), '0', 'a row that came back is not deleted');

$t->src("TRUNCATE two; INSERT INTO two VALUES (1, 'y0', 5), (2, 'after', 6)");
equal('TRUNCATE');
is($t->sf("SELECT COUNT(*) FROM DB.PUBLIC.TWO WHERE _peerdb_is_deleted"), '109', 'TRUNCATE: rows are kept as deleted');

$t->src(<<'EOS');
ALTER TABLE a ADD COLUMN extra int DEFAULT 7;
ALTER TABLE a ADD COLUMN note text;
INSERT INTO a VALUES (3001, 'with', 1, NULL, 8, 'note');
UPDATE a SET note = 'n' WHERE id = 5;
EOS
equal('ADD COLUMN');

# rolled back, and nothing at all
$t->src("BEGIN; INSERT INTO a VALUES (9999, 'never'); ROLLBACK");
equal('a rollback');

# ---- odd names work; two columns of one name are refused
$t->src(q{SELECT peerdb_create_mirror('o', 'sf', '[{"from": "s.\"Odd \"\"Name\"", "to": "public.\"Order ''s\""}]', '{"sync_interval": 0.1}')});
$t->wait_status('o', 'running', 'odd names') or $t->describe('o');
$t->src(q{INSERT INTO s."Odd ""Name" VALUES (1, 'one', 1), (2, E'tab\there', NULL); UPDATE s."Odd ""Name" SET "select" = 'two' WHERE "ID" = 1});
$t->sync('o');
is($t->sf(q{SELECT COUNT(*), MAX("SELECT"), MAX("Mixed ""Case\\") FROM DB.PUBLIC."Order 's" WHERE NOT _peerdb_is_deleted}), "2\ttwo\t1", 'odd names: rows');
$t->src('CREATE TABLE bad (id int PRIMARY KEY, "ID" int)');
$t->create_mirror('b', ['public.bad']);
$t->until_true("SELECT outcome = 'refused' AND error ~ 'would be called \"ID\"' FROM peerdb.runs WHERE mirror = 'b'", 'two columns of one name are refused');
$t->src("SELECT peerdb_drop_mirror('b')");
$t->src("SELECT peerdb_drop_mirror('o', drop_destination => true)");
$t->until_true('SELECT count(*) = 1 FROM peerdb.mirrors', 'dropped');
is(join(',', $t->tables(qr/Order/)), '', 'its table is dropped, too');

# ---- more statements than fit into one of Snowflake's
$t->src("CREATE TABLE wide$_ (id int PRIMARY KEY, " . join(', ', map { "a_column_with_quite_a_long_name_of_its_own_$_ text" } 1 .. 300)
	  . "); ALTER TABLE wide$_ ALTER a_column_with_quite_a_long_name_of_its_own_1 SET STORAGE EXTERNAL;"
	  . " INSERT INTO wide$_ (id, a_column_with_quite_a_long_name_of_its_own_1) VALUES (1, repeat('x', 5000))") foreach 1 .. 8;
$t->create_mirror('w', [ map { "public.wide$_" } 1 .. 8 ]);
$t->wait_status('w', 'running', 'wide tables') or $t->describe('w');
$t->src('BEGIN; ' . join('; ', map { "UPDATE wide$_ SET a_column_with_quite_a_long_name_of_its_own_300 = 'y'" } 1 .. 8) . '; COMMIT');
$t->sync('w');
$t->same_sf("wide$_", "wide tables: wide$_", columns => [ 'id::text', 'length(a_column_with_quite_a_long_name_of_its_own_1)::text', 'a_column_with_quite_a_long_name_of_its_own_300' ],
	sf_columns => [ 'TO_VARCHAR(ID)', 'TO_VARCHAR(LENGTH(A_COLUMN_WITH_QUITE_A_LONG_NAME_OF_ITS_OWN_1))', 'A_COLUMN_WITH_QUITE_A_LONG_NAME_OF_ITS_OWN_300' ]) foreach 1, 8;
cmp_ok(scalar(grep { ($_->{sql} // '') =~ /EXECUTE IMMEDIATE :stmt/ } $t->requests), '>', 0, 'wide tables: statements were kept in a table');
$t->src("SELECT peerdb_drop_mirror('w', drop_destination => true)");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'w'", 'wide tables: dropped');

# ---- resync: deleted rows come over, with the time of their deletion
my $deleted = "SELECT id FROM DB.PUBLIC.A WHERE _peerdb_is_deleted ORDER BY id";
my $before = $t->sf($deleted);
my $when = $t->sf('SELECT MIN(_peerdb_synced_at) FROM DB.PUBLIC.A WHERE _peerdb_is_deleted');
$t->src('ALTER TABLE a ALTER v TYPE varchar(50), ALTER n TYPE numeric(20, 3); DELETE FROM a WHERE id BETWEEN 50 AND 55');
$t->resync('m');
$t->wait_status('m', 'running', 'resync') or $t->describe('m');
equal('resync');
is($t->sf($deleted), join("\n", sort { $a <=> $b } split(/\n/, $before), 50 .. 55), 'deleted rows are carried over');
is($t->sf('SELECT MIN(_peerdb_synced_at) FROM DB.PUBLIC.A WHERE _peerdb_is_deleted'), $when, 'with the time of their deletion');
is($t->src('SELECT bool_and(equal) FROM peerdb_compare(\'m\')'), 't', 'compare');
$t->no_leftovers('after resync', keep => 1);
$t->src("SELECT peerdb_drop_mirror('m', drop_destination => true)");
$t->until_true('SELECT count(*) = 0 FROM peerdb.mirrors', 'dropped');
is(join(',', $t->tables(qr/^PUBLIC\.(A|TWO|LOG|EMPTY)$/)), '', 'the tables are dropped, too');

# ---- a source in another encoding
{
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	my @db = (db => 'latin');
	my ($ae, $ue) = ("\xc3\xa4", "\xc3\xbc");
	$t->src("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'");
	$t->src('CREATE EXTENSION resync; ' . $t->server_sql('sf'), @db);
	$t->src(qq{CREATE TABLE "t$ae" ("k$ue" text PRIMARY KEY, n int); INSERT INTO "t$ae" VALUES ('$ae', 1), ('b', 2)}, @db);
	$t->src(qq{SELECT peerdb_create_mirror('latin', 'sf', '["public.\\"t$ae\\""]', '{"sync_interval": 0.1}')}, @db);
	$t->src("SELECT peerdb_wait_for_status('latin', 'running', '60 s')", @db);
	$t->src(qq{ALTER TABLE "t$ae" ADD COLUMN "$ue" text DEFAULT '$ue'; INSERT INTO "t$ae" VALUES ('$ue$ae', 3, '$ae'); DELETE FROM "t$ae" WHERE n = 2}, @db);
	$t->src("SELECT peerdb_wait_for_lsn('latin', timeout => '60 s')", @db);
	my $rows = "$ae\t1\t$ue\n$ue$ae\t3\t$ae";
	my $query = qq{SELECT "k$ue", N, "$ue" FROM "DB"."PUBLIC"."t$ae" WHERE NOT _PEERDB_IS_DELETED ORDER BY N};
	is($t->sf($query), $rows, 'a source in LATIN1');
	$t->src("SELECT peerdb_resync('latin')", @db);
	$t->src("SELECT peerdb_wait_for_status('latin', 'running', '60 s')", @db);
	is($t->sf($query), $rows, 'and resynced');

	# what the service says may have no place in the source's encoding
	my $id = $t->fault('sql_error', '^POST /queries.*MERGE', code => '003001', message => "Insufficient privileges on \x{e4} \x{20ac}", sqlState => '42501');
	$t->src(qq{INSERT INTO "t$ae" VALUES ('c', 4)}, @db);
	$t->until_true("SELECT status = 'failed' AND error ~ '003001' FROM peerdb.mirrors", 'an error with letters of another encoding is shown', @db);
	$t->admin('clear');
	$t->src("SELECT peerdb_drop_mirror('latin', drop_destination => true)", @db);
	$t->until_true('SELECT count(*) = 0 FROM peerdb.mirrors', 'dropped', @db);
}
$t->no_leftovers('at the end');
done_testing();
