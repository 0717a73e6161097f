# A real schema (Chinook) is mirrored, follows every kind of change, and stays
# equal: rules 1, 2, 3, 5, 6, 7.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncTest->new;

$t->src(slurp_file("$ENV{RESYNC_SRC}/test/data/chinook.sql"));
my @tables = split /\n/,
  $t->src("SELECT 'public.' || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY relname");
is(scalar(@tables), 11, 'Chinook has its 11 tables');

sub all_same
{
	my ($when) = @_;
	subtest $when => sub {
		$t->sync('chinook');
		$t->same($_) foreach @tables;
	};
}

# ---- first load
my $run = $t->create_mirror('chinook', \@tables);
like($run, qr/^\d+$/, 'peerdb_create_mirror returns the run');
$t->wait_status('chinook', 'running') or exit 1;
all_same('after the first load');

# ---- what idle workers wait for has a name from 17 on
my $events = $t->source->pg_version >= 17 ? 'ResyncCoordinatorMain,ResyncLauncherMain,ResyncStreamerMain' : 'Extension,Extension,Extension';
$t->until_true(
	"SELECT string_agg(wait_event, ',' ORDER BY wait_event) = '$events' FROM pg_stat_activity WHERE backend_type LIKE 'resync%'",
	'wait events of the workers');

# ---- single changes
$t->src(<<'EOS');
INSERT INTO artist VALUES (10001, 'One'), (10002, 'Two'), (10003, NULL);
UPDATE artist SET name = 'Uno' WHERE artist_id = 10001;
DELETE FROM artist WHERE artist_id = 10002;
UPDATE track SET unit_price = unit_price + 1 WHERE track_id % 7 = 0;
DELETE FROM invoice_line WHERE invoice_line_id % 5 = 0;
EOS
all_same('after insert, update, delete');
is($t->dst('SELECT _peerdb_is_deleted FROM artist WHERE artist_id = 10002'),
	't', 'a deleted row is kept, marked as deleted');
is($t->dst('SELECT count(*) FROM artist WHERE _peerdb_synced_at IS NULL'), '0', 'every row has its time');

$t->src("INSERT INTO artist VALUES (10002, 'Two again')");
all_same('after a deleted key was inserted again');
is($t->dst('SELECT count(*), bool_or(_peerdb_is_deleted) FROM artist WHERE artist_id = 10002'),
	'1|f', 'the row lives again, once');

# ---- changed keys
$t->src(<<'EOS');
UPDATE artist SET artist_id = 20001 WHERE artist_id = 10001;
BEGIN;
UPDATE artist SET artist_id = 20002 WHERE artist_id = 10002;
UPDATE artist SET artist_id = 10002 WHERE artist_id = 20002;
UPDATE artist SET artist_id = artist_id + 50000 WHERE artist_id BETWEEN 1 AND 100
	AND NOT EXISTS (SELECT FROM album WHERE album.artist_id = artist.artist_id);
COMMIT;
EOS
all_same('after changed keys');
is($t->dst('SELECT _peerdb_is_deleted FROM artist WHERE artist_id = 10001'), 't', 'the old key is deleted');

# the keys of two rows change places in one transaction
$t->src(<<'EOS');
BEGIN;
UPDATE artist SET artist_id = -1 WHERE artist_id = 20001;
UPDATE artist SET artist_id = 20001 WHERE artist_id = 10003;
UPDATE artist SET artist_id = 10003 WHERE artist_id = -1;
COMMIT;
EOS
all_same('after two keys changed places');

# ---- several changes of one row in a transaction: the last one wins
$t->src(<<'EOS');
BEGIN;
INSERT INTO genre VALUES (900, 'a');
UPDATE genre SET name = 'b' WHERE genre_id = 900;
DELETE FROM genre WHERE genre_id = 900;
INSERT INTO genre VALUES (900, 'c');
INSERT INTO genre VALUES (901, 'short-lived');
DELETE FROM genre WHERE genre_id = 901;
COMMIT;
EOS
all_same('after many changes of one row');

# ---- rollback and savepoints
$t->src(<<'EOS');
BEGIN; INSERT INTO artist VALUES (30001, 'never'); DELETE FROM playlist_track; ROLLBACK;
BEGIN;
INSERT INTO artist VALUES (30002, 'kept');
SAVEPOINT s;
INSERT INTO artist VALUES (30003, 'undone');
ROLLBACK TO s;
INSERT INTO artist VALUES (30004, 'kept');
COMMIT;
EOS
all_same('after rollbacks');
is($t->dst('SELECT count(*) FROM artist WHERE artist_id IN (30001, 30003)'), '0', 'what was rolled back never came');

# ---- a big transaction arrives as one
$t->src('ALTER SYSTEM SET resync.batch_memory = 1024');
$t->src('SELECT pg_reload_conf()');
$t->src("INSERT INTO artist SELECT i, repeat('x', 20) || i FROM generate_series(100001, 160000) i");
$t->sync('chinook');
is($t->dst('SELECT count(*), count(DISTINCT xmin::text) FROM artist WHERE artist_id > 100000'),
	'60000|1', 'a source transaction larger than the batch memory is one destination transaction');
$t->src('UPDATE artist SET name = name || \'!\' WHERE artist_id > 100000; DELETE FROM artist WHERE artist_id > 150000');
all_same('after big transactions');
$t->src('ALTER SYSTEM RESET resync.batch_memory');
$t->src('SELECT pg_reload_conf()');

# ---- TRUNCATE with soft delete: all live rows are marked
$t->src('CREATE TABLE trunc (id int PRIMARY KEY, v text); INSERT INTO trunc SELECT i, i FROM generate_series(1, 500) i');
$t->src('CREATE TABLE trunc_hard (id int PRIMARY KEY, v text); INSERT INTO trunc_hard SELECT i, i FROM generate_series(1, 500) i');
# ---- unchanged TOAST: values that stay out of line are never lost
$t->src(<<'EOS');
CREATE TABLE toasted (id int PRIMARY KEY, big text, other int, big2 text);
ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT i, (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 300) j), i, repeat('z', 5000) FROM generate_series(1, 30) i;
EOS
$t->create_mirror('more', [ 'public.trunc', 'public.toasted' ]);
$t->create_mirror('hard', ['public.trunc_hard'], { soft_delete => 'false' });
$t->wait_status('more', 'running');
$t->wait_status('hard', 'running');
$t->src('BEGIN; INSERT INTO trunc VALUES (501, 0); TRUNCATE trunc; INSERT INTO trunc VALUES (1, \'new\'); COMMIT');
$t->sync('more');
$t->same('trunc', 'after TRUNCATE with soft_delete');
is($t->dst('SELECT count(*) FROM trunc WHERE _peerdb_is_deleted AND id <= 500'), '499', 'TRUNCATE marked the live rows');

$t->src('DELETE FROM trunc_hard WHERE id < 10');
$t->sync('hard');
$t->same('trunc_hard', 'delete without soft_delete', soft_delete => undef);
$t->src('TRUNCATE trunc_hard; INSERT INTO trunc_hard VALUES (7, \'seven\')');
$t->sync('hard');
$t->same('trunc_hard', 'TRUNCATE without soft_delete', soft_delete => undef);
is($t->dst("SELECT count(*) FROM information_schema.columns WHERE table_name = 'trunc_hard' AND column_name = '_peerdb_is_deleted'"),
	'0', 'no soft-delete column without soft_delete');

$t->src('UPDATE toasted SET other = other + 1');
$t->sync('more');
$t->same('toasted', 'unchanged TOAST survives an update');
$t->src(<<'EOS');
BEGIN;
UPDATE toasted SET big = (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300)) WHERE id < 10;
UPDATE toasted SET other = other + 1 WHERE id < 20;
UPDATE toasted SET big2 = 'short' WHERE id < 5;
INSERT INTO toasted SELECT 100, big, 1, big2 FROM toasted WHERE id = 25;
UPDATE toasted SET other = 2 WHERE id = 100;
UPDATE toasted SET id = 1000 + id WHERE id BETWEEN 26 AND 28;
DELETE FROM toasted WHERE id = 29;
COMMIT;
EOS
$t->sync('more');
$t->same('toasted', 'unchanged TOAST with changed, new and moved rows in a transaction');

# many small transactions while nobody waits
my $writer = $t->writer(<<'EOS', clients => 3, rate => 300);
\set id random(1, 2000)
INSERT INTO trunc VALUES (:id, 'w') ON CONFLICT (id) DO UPDATE SET v = trunc.v || 'x';
DELETE FROM trunc WHERE id = (:id * 7) % 2000;
EOS
$t->until_true('SELECT count(*) > 800 FROM trunc', 'the writers write');
$t->stop($writer);
$t->sync('more');
$t->same('trunc', 'after concurrent writers');

# ---- a table outside public, odd names, chosen destination, columns left out
$t->src(<<'EOS');
CREATE SCHEMA "Odd Schema";
CREATE TABLE "Odd Schema"."Ta ble""x" ("I d" int PRIMARY KEY, "Se lect" text, secret text);
INSERT INTO "Odd Schema"."Ta ble""x" VALUES (1, 'a', 's1'), (2, NULL, 's2');
CREATE TABLE empty_one (id int PRIMARY KEY);
EOS
$t->create_mirror('odd',
	[ { from => '"Odd Schema"."Ta ble""x"', to => 'elsewhere."Da ta"', exclude => ['secret'] }, 'public.empty_one:public.nothing_in_it' ]);
$t->wait_status('odd', 'running');
$t->src(q{UPDATE "Odd Schema"."Ta ble""x" SET "Se lect" = 'b' WHERE "I d" = 2; INSERT INTO "Odd Schema"."Ta ble""x" VALUES (3, 'c', 's3')});
$t->sync('odd');
$t->same('"Odd Schema"."Ta ble""x"', 'odd names', to => 'elsewhere."Da ta"', columns => [ '"I d"', '"Se lect"' ]);
is($t->dst("SELECT count(*) FROM pg_attribute WHERE attrelid = 'elsewhere.\"Da ta\"'::regclass AND attname = 'secret'"),
	'0', 'the excluded column is not there');
is($t->dst('SELECT count(*) FROM nothing_in_it'), '0', 'an empty table is an empty table');

all_same('at the end');
$t->drop_all;
is($t->dst('SELECT count(*) > 0 FROM artist'), 't', 'the tables stay when a mirror is dropped');

done_testing();
