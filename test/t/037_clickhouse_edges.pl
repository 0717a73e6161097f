# Cases of the ClickHouse destination that took thought: rows whose commit order
# is not the order of their WAL, requests that are cut again after a change of
# settings, tables that somebody has put aside, values that are no text.
use strict;
use warnings;

use ResyncClickHouse;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncClickHouse->new(src_conf => "restart_after_crash = on\n");
my $points = $t->source->data_dir . '/resync_debug';

sub tables { return $t->ch("SELECT name FROM system.tables WHERE database = 'd' AND name LIKE '$_[0]' ORDER BY name"); }

# ---- An insert writes its WAL before it waits for who deletes the same key:
# held up at another unique index, it is older than the delete that goes before it.
$t->src('CREATE TABLE o (id int, u int); CREATE UNIQUE INDEX o_u ON o (u); ALTER TABLE o ADD PRIMARY KEY (id); INSERT INTO o VALUES (5, 9)');
$t->create_mirror('o', ['public.o']);
$t->wait_status('o', 'running');
my $blocker = $t->source->background_psql('postgres');
$blocker->query_safe('BEGIN; INSERT INTO o VALUES (6, 1)');
my $inserter = $t->source->background_psql('postgres');
$inserter->query_until(qr/go/, "\\echo go\nINSERT INTO o VALUES (5, 1);\n");
$t->until_true("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO o VALUES (5, 1)%')", 'the insert waits');
$t->src('DELETE FROM o WHERE id = 5');
$t->sync('o');
is($t->ch('SELECT count() FROM o FINAL') + 0, 0, 'the delete is there');
$blocker->query_safe('ROLLBACK');
$blocker->quit;
$inserter->quit;
$t->until_true('SELECT count(*) = 1 FROM o', 'the insert has come through');
$t->sync('o');
$t->same_ch('o');

# ---- A batch of a table without key that is begun under one set of sizes and
# sent again under another: each row once.
$t->src('CREATE TABLE log (n int, what text)');
$t->create_mirror('log', [{ from => 'public.log', append => \1 }]);
$t->wait_status('log', 'running');
my %sizes = (small => '1MB', large => '64MB');
foreach my $case (['ch_after_request', 'small', 'large'], ['ch_after_request', 'large', 'small'], ['ch_before_lsn', 'small', 'large'], ['ch_before_lsn', 'large', 'small'])
{
	my ($point, $before, $after) = @$case;
	$t->src("ALTER SYSTEM SET resync.batch_memory = '$sizes{$before}'; ALTER SYSTEM SET resync.copier_buffer = '$sizes{$before}'; SELECT pg_reload_conf()");
	$t->until_true("SELECT current_setting('resync.copier_buffer') = '$sizes{$before}'", 'settings');
	$t->debug_point($point, 'wait');
	$t->src('INSERT INTO log SELECT i, repeat(md5(i::text), 3) FROM generate_series(1, 100000) i; INSERT INTO log VALUES (0, NULL)');
	$t->until_true("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%debug point $point%')", "$point is reached");
	$t->src("ALTER SYSTEM SET resync.batch_memory = '$sizes{$after}'; ALTER SYSTEM SET resync.copier_buffer = '$sizes{$after}'; SELECT pg_reload_conf()");
	$t->debug_point($point, 'once lost');
	$t->poll(sub { return !-e "$points/$point" }) or die "$point: not taken";
	$t->sync('log');
	is($t->ch('SELECT count(), countIf(n = 0), uniqExact(n) FROM log'), join("\t", $t->src('SELECT count(*) FROM log'), $t->src('SELECT count(*) FROM log WHERE n = 0'), 100001), "$point, $before to $after: each row once");
}
$t->src('ALTER SYSTEM RESET ALL; SELECT pg_reload_conf()');

# ---- A row that is gone at the source has its unchanged value from the destination.
$t->src(<<'EOS');
CREATE TABLE toast (id int PRIMARY KEY, v int, big text);
ALTER TABLE toast ALTER big SET STORAGE EXTERNAL;
INSERT INTO toast SELECT i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 60) i;
EOS
$t->create_mirror('toast', ['public.toast'], { max_batch_size => 1, sync_interval => 0 });
$t->wait_status('toast', 'running');
$t->src("SELECT peerdb_pause_mirror('toast')");
$t->until_status('toast', 'paused');
$t->src("UPDATE toast SET v = 1 WHERE id <= 40");
$t->src("UPDATE toast SET id = id + 100 WHERE id <= 10");
$t->src("DELETE FROM toast WHERE id BETWEEN 11 AND 20 OR id BETWEEN 101 AND 105");
$t->src("SELECT peerdb_resume_mirror('toast')");
$t->sync('toast');
$t->same_ch('toast');
is($t->ch("SELECT count() FROM toast WHERE v = 1 AND length(big) < 3200 AND NOT _peerdb_is_deleted") + 0, 0, 'no version of a row lacks a value');
cmp_ok($t->ch("SELECT count() FROM toast WHERE v = 1 AND id BETWEEN 11 AND 20 AND NOT _peerdb_is_deleted") + 0, '>', 0, 'rows gone at the source were completed there');

# ---- Defaults of added columns are any bytes.
$t->src("CREATE TABLE d (id int PRIMARY KEY); INSERT INTO d VALUES (1)");
$t->create_mirror('d', ['public.d']);
$t->wait_status('d', 'running');
$t->src(<<'EOS');
ALTER TABLE d ADD COLUMN b bytea DEFAULT '\x0300ff5c27', ADD COLUMN c "char" DEFAULT 'x', ADD COLUMN a int[] DEFAULT '{1,NULL}',
	ADD COLUMN t text DEFAULT E'a''\\\t\n', ADD COLUMN n numeric(10, 3) DEFAULT -1.5, ADD COLUMN z timestamptz DEFAULT '2020-01-01 00:00:00+00';
INSERT INTO d (id) VALUES (2);
EOS
$t->sync('d');
is($t->ch("SELECT count(), uniqExact(b, c, a, t, n, z), any(hex(b)), any(hex(t)) FROM d FINAL"), "2\t1\t0300FF5C27\t61275C090A", 'the default of old rows is the value of new ones');

# ---- More partitions in a block than the server takes by itself.
$t->src("CREATE TABLE p (id int PRIMARY KEY, v int); INSERT INTO p SELECT i, i FROM generate_series(1, 300) i");
$t->create_mirror('p', [{ from => 'public.p', partition_by => 'id' }]);
$t->wait_status('p', 'running');
$t->same_ch('p');

# ---- What somebody has renamed is his; so is a table that is called like ours.
$t->ch('CREATE TABLE p_resync_old (x Int32) ENGINE = MergeTree ORDER BY x');
$t->fault('fail', 'EXCHANGE', code => 48);
$t->resync('p');
$t->wait_status('p', 'running');
$t->same_ch('p');
$t->ch('RENAME TABLE p TO p_backup');
$t->resync('p');
$t->wait_status('p', 'running');
$t->src("SELECT peerdb_drop_mirror('p', drop_destination => true)");
$t->until_true("SELECT NOT EXISTS (SELECT FROM peerdb.mirrors WHERE mirror = 'p')", 'dropped');
is(tables('p%'), "p_backup\np_resync_old", 'tables of others are left alone');
is($t->ch('SELECT count() FROM p_backup FINAL') + 0, 300, 'with their rows');

# ---- Sorted by more than the key: NULL there, rows that move, and the deleted ones after the next change of it.
$t->src(<<'EOS');
CREATE TABLE k (id int PRIMARY KEY, tenant int, v text);
ALTER TABLE k REPLICA IDENTITY FULL;
INSERT INTO k SELECT i, nullif(i % 3, 0), 'v' || i FROM generate_series(1, 30) i;
EOS
$t->create_mirror('k', [{ from => 'public.k', order_by => ['tenant', 'id'] }]);
$t->wait_status('k', 'running');
$t->src("UPDATE k SET tenant = NULL WHERE id = 1; UPDATE k SET tenant = 7 WHERE id = 3; DELETE FROM k WHERE id IN (2, 6)");
$t->sync('k');
$t->same_ch('k');
my $deleted = $t->ch('SELECT id, _peerdb_synced_at FROM k WHERE _peerdb_is_deleted AND id IN (2, 6) ORDER BY id');
$t->src(q{SELECT peerdb_edit_mirror('k', '{}', '[{"from": "public.k"}]')});
$t->resync('k');
$t->wait_status('k', 'running');
$t->same_ch('k');
is($t->ch('SELECT id, _peerdb_synced_at FROM k WHERE _peerdb_is_deleted ORDER BY id'), $deleted, 'deleted rows, and no others, are carried over under another key');

# ---- A source that is not in UTF-8: names, values, defaults.
{
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	my @db = (db => 'latin');
	my ($ae, $ue) = ("\xc3\xa4", "\xc3\xbc");
	$t->src("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'");
	$t->src('CREATE EXTENSION resync; ' . $t->server_sql('ch'), @db);
	$t->src(qq{CREATE TABLE "t$ae" ("k$ue" text PRIMARY KEY, n int); INSERT INTO "t$ae" VALUES ('$ae', 1), ('b', 2)}, @db);
	$t->src(qq{SELECT peerdb_create_mirror('latin', 'ch', '["public.\\"t$ae\\""]')}, @db);
	$t->src("SELECT peerdb_wait_for_status('latin', 'running', '60 s')", @db);
	$t->src(qq{ALTER TABLE "t$ae" ADD COLUMN "$ue" text DEFAULT '$ue'; INSERT INTO "t$ae" VALUES ('$ue$ae', 3, '$ae'); DELETE FROM "t$ae" WHERE n = 2}, @db);
	$t->src("SELECT peerdb_wait_for_lsn('latin', timeout => '60 s')", @db);
	my $rows = "$ae\t1\t$ue\n$ue$ae\t3\t$ae";
	my $query = "SELECT `k$ue`, n, `$ue` FROM `t$ae` FINAL ORDER BY n";
	is($t->ch($query), $rows, 'a source in LATIN1');
	$t->src("SELECT peerdb_resync('latin')", @db);
	$t->src("SELECT peerdb_wait_for_status('latin', 'running', '60 s')", @db);
	is($t->ch($query), $rows, 'and resynced');
}

done_testing();
