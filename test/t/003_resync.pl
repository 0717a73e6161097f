# Resync: under writes, with a reader that never sees an error or an empty
# table; after DDL that no replication tool can carry; keeping soft-deleted
# rows, grants, indexes and settings.  Rules 6, 8, 10, 12 and the swap.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncTest->new;

# ---- pgbench's schema, written to and read from all the time
{
	local $ENV{PGHOST} = $t->source->host;
	local $ENV{PGPORT} = $t->source->port;
	system_or_bail('pgbench', '-i', '-q', '-s', '2', 'postgres');
}
my @bench = ('pgbench_accounts', 'pgbench_branches', 'pgbench_tellers');
$t->src('ALTER TABLE pgbench_history ADD hid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY');
push @bench, 'pgbench_history';

my $writer = $t->writer(undef, clients => 2, rate => 400);
$t->create_mirror('bench', [ map { "public.$_" } @bench ]);
$t->wait_status('bench', 'running', 'the first load ends while pgbench writes');
$t->sync('bench');

my @queries = map { "SELECT count(*) FROM $_" } ('pgbench_branches', 'pgbench_tellers');
push @queries, 'SELECT sum(1) FROM pgbench_accounts WHERE aid <= 10';
my $reader = $t->reader(@queries);
foreach my $keep_serving ('false', 'true')
{
	my $run = $t->resync('bench', { keep_serving => $keep_serving });
	$t->wait_status('bench', 'running', "resync under writes, keep_serving $keep_serving");
	is($t->src("SELECT run || ' ' || kind || ' ' || outcome FROM peerdb.runs WHERE mirror = 'bench' ORDER BY run DESC LIMIT 1"),
		"$run resync done", 'the run is done');
}
$t->reader_ok($reader, 'resync under writes');
$t->stop($writer);
subtest 'equal after resyncs under writes' => sub {
	$t->sync('bench');
	$t->same($_) foreach @bench;
};
$t->no_leftovers('after resyncs under writes', keep => 1);
$t->src("SELECT peerdb_drop_mirror('bench')");
$t->no_leftovers('after drop');

# ---- DDL
$t->src(<<'EOS');
CREATE TABLE ddl (id int PRIMARY KEY, a int, b text, c text);
INSERT INTO ddl SELECT i, i, 'b' || i, 'c' FROM generate_series(1, 3000) i;
CREATE TABLE other (id int PRIMARY KEY, v text);
INSERT INTO other SELECT i, i FROM generate_series(1, 10) i;
EOS
$t->create_mirror('ddl', [ 'public.ddl', 'public.other' ], { snapshot_num_rows_per_partition => 500, sync_interval => 0.2 });
$t->wait_status('ddl', 'running');
$t->src('DELETE FROM ddl WHERE id BETWEEN 11 AND 20; DELETE FROM other WHERE id = 1');
$t->sync('ddl');
$t->dst('UPDATE ddl SET _peerdb_synced_at = \'2020-01-02 03:04:05\' WHERE id BETWEEN 11 AND 20');

# what the destination's owner did to the tables there
$t->dst(<<'EOS');
CREATE ROLE reporter;
GRANT SELECT ON ddl TO reporter;
GRANT SELECT (id, v) ON other TO reporter;
CREATE INDEX ddl_extra ON ddl (a DESC) WHERE a > 10;
CREATE INDEX other_expr ON other (lower(v));
COMMENT ON TABLE ddl IS 'kept';
EOS
my $grants = "SELECT string_agg(grantee || ' ' || privilege_type || ' ' || table_name, ',' ORDER BY 1) FROM information_schema.role_table_grants WHERE grantee = 'reporter'";
my $grants_before = $t->dst($grants);

my $id = 5000;
my $check_resync = sub {
	my ($what, @columns) = @_;
	$t->resync('ddl');
	$t->wait_status('ddl', 'running', "$what: resync repairs it");
	$id++;
	$t->src("INSERT INTO ddl (id) VALUES ($id); DELETE FROM ddl WHERE id = $id - 4990");
	$t->sync('ddl');
	$t->same('ddl', "$what: equal after the resync");
	$t->same('other', "$what: the other table is equal");
};
my $breaks = sub {
	my ($what, $ddl) = @_;
	# the change is noticed with the next row at the latest
	$id++;
	$t->src($ddl);
	$t->src("INSERT INTO ddl (id) VALUES ($id)");
	$t->until_failed('ddl', qr/ddl/, $what);
	like($t->src("SELECT coalesce(detail, '') || message FROM peerdb.logs WHERE mirror = 'ddl' AND level ILIKE 'error' ORDER BY id DESC LIMIT 1")
		  . $t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'ddl'"),
		qr/peerdb_resync/, "$what: the hint is to resync");
	cmp_ok($t->dst('SELECT count(*) FROM ddl'), '>', 2000, "$what: the live table stays");
};

$breaks->('ALTER TYPE', "ALTER TABLE ddl ALTER a TYPE text USING 'a' || a");
$t->dst('DROP INDEX ddl_extra; CREATE INDEX ddl_extra ON ddl (b DESC) WHERE b > \'b10\'');
$check_resync->('ALTER TYPE');
is($t->dst("SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'ddl'::regclass AND attname = 'a'"),
	'text', 'ALTER TYPE: the type is the new one');

# soft-deleted rows are carried over with the time of their deletion
is($t->dst("SELECT count(*) FROM ddl WHERE _peerdb_is_deleted AND _peerdb_synced_at = '2020-01-02 03:04:05' AND b LIKE 'b1_'"),
	'9', 'soft-deleted rows are there, with their values and their time');
is($t->dst('SELECT v FROM other WHERE _peerdb_is_deleted'), '1', 'those of the other table too');

is($t->dst($grants), $grants_before, 'grants are kept');
is($t->dst("SELECT has_column_privilege('reporter', 'other', 'v', 'SELECT'), has_table_privilege('reporter', 'other', 'SELECT')"), 't|f', 'grants on columns are kept');
is($t->dst("SELECT obj_description('ddl'::regclass)"), 'kept', 'the comment is kept');
like($t->dst("SELECT indexdef FROM pg_indexes WHERE indexname = 'ddl_extra'"), qr/ON public\.ddl .*b DESC.*WHERE/, 'a partial index is kept, by its name');
like($t->dst("SELECT indexdef FROM pg_indexes WHERE indexname = 'other_expr'"), qr/lower\(v\)/, 'an index on an expression is kept');
is($t->dst("SELECT conname FROM pg_constraint WHERE conrelid = 'ddl'::regclass AND contype = 'p'"), 'ddl_pkey', 'the key has its name');

$breaks->('DROP COLUMN', 'ALTER TABLE ddl DROP COLUMN c');
$check_resync->('DROP COLUMN');
is($t->dst("SELECT count(*) FROM pg_attribute WHERE attrelid = 'ddl'::regclass AND attname = 'c' AND NOT attisdropped"), '0', 'the column is gone');

$breaks->('RENAME COLUMN', 'ALTER TABLE ddl RENAME COLUMN b TO bb');
$t->dst('DROP INDEX ddl_extra');
$check_resync->('RENAME COLUMN');

$breaks->('changed key', 'ALTER TABLE ddl DROP CONSTRAINT ddl_pkey; ALTER TABLE ddl ADD COLUMN k uuid NOT NULL DEFAULT gen_random_uuid(); ALTER TABLE ddl ADD PRIMARY KEY (id, k)');
$check_resync->('changed key');
is($t->dst("SELECT count(*) FROM pg_index i JOIN pg_attribute a ON a.attrelid = indrelid AND a.attnum = ANY (indkey) WHERE indrelid = 'ddl'::regclass AND indisprimary"),
	'2', 'the key has two columns now');

# a table that is rewritten whole, and one that is replaced by another of its name
$t->src("ALTER TABLE ddl ALTER a TYPE varchar(40), ADD COLUMN r float DEFAULT random()");
$t->src('INSERT INTO ddl (id) VALUES (7001)');
$t->until_failed('ddl', qr/ddl/, 'rewriting ALTER');
$check_resync->('rewriting ALTER');
$t->src("DROP TABLE ddl; CREATE TABLE ddl (id bigint PRIMARY KEY, other_columns jsonb); INSERT INTO ddl SELECT i, '{}' FROM generate_series(1, 100) i");
$t->resync('ddl');
$t->wait_status('ddl', 'running', 'a table dropped and made anew');
$t->sync('ddl');
$t->same('ddl', 'a table dropped and made anew is equal');

# streaming follows the OID, a resync the name, and where that is gone the OID
$t->src('ALTER TABLE ddl RENAME TO renamed; INSERT INTO renamed VALUES (500, \'[]\')');
$t->sync('ddl', 'a renamed table goes on');
$t->same('renamed', 'a renamed table is equal', to => 'ddl');
$t->resync('ddl');
$t->wait_status('ddl', 'running', 'a renamed table can be resynced');
$t->same('renamed', 'a renamed table is equal after the resync', to => 'ddl');
$t->src('ALTER TABLE renamed RENAME TO ddl');

# neither name nor OID: refused, the mirror goes on
$t->src('DROP TABLE ddl');
$t->refused("SELECT peerdb_resync('ddl')", '42P01', '(ddl|renamed)', 'a resync of a table that is gone is refused');
cmp_ok($t->dst('SELECT count(*) FROM ddl'), '>=', 100, 'and nothing was dropped');
$t->src("SELECT peerdb_drop_mirror('ddl')");
$t->no_leftovers('after the DDL mirror');

# ---- settings kept, statistics cleared
$t->create_mirror('s', ['public.other'], { snapshot_num_rows_per_partition => 777, max_batch_size => 12345,
	soft_delete_col_name => 'gone', synced_at_col_name => 'at', sync_interval => 0.3, replace_existing => 'true' });
$t->wait_status('s', 'running', 'replace_existing takes over a table that is there');
$t->src('INSERT INTO other SELECT i, i FROM generate_series(100, 300) i; UPDATE other SET v = 1 WHERE id < 5; DELETE FROM other WHERE id = 150');
$t->sync('s');
$t->until_true("SELECT count(*) > 0 FROM peerdb.batches WHERE mirror = 's'", 'there are batches');
$t->until_true("SELECT inserts + updates + deletes > 0 FROM peerdb.mirror_tables WHERE mirror = 's'", 'the counters count');
my $before = $t->src("SELECT options FROM peerdb.mirrors WHERE mirror = 's'");
$t->resync('s', { snapshot_num_rows_per_partition => 50 });
$t->wait_status('s', 'running');
is($t->src("SELECT options - 'snapshot_num_rows_per_partition' FROM peerdb.mirrors WHERE mirror = 's'"),
	$t->src("SELECT '$before'::jsonb - 'snapshot_num_rows_per_partition'"), 'all settings are kept');
is($t->src("SELECT options->>'snapshot_num_rows_per_partition' FROM peerdb.mirrors WHERE mirror = 's'"), '50', 'but for the one that was given');
is($t->src("SELECT count(*) FROM peerdb.batches WHERE mirror = 's' AND started_at < (SELECT started_at FROM peerdb.runs WHERE mirror = 's' ORDER BY run DESC LIMIT 1)"),
	'0', 'the batches from before are gone');
is($t->src("SELECT inserts + updates + deletes FROM peerdb.mirror_tables WHERE mirror = 's'"), '0', 'the counters start again');
is($t->src("SELECT count(DISTINCT run) FROM peerdb.partitions"), '1', 'partitions are those of the newest run');
is($t->src("SELECT count(*) FROM peerdb.runs WHERE mirror = 's'"), '2', 'runs are history');
$t->same('other', 'own column names', soft_delete => 'gone');
is($t->dst('SELECT count(*) FROM other WHERE gone AND id = 150'), '1', 'own soft-delete column carried over');

# a key that is deleted during the load is carried over as deleted
$t->src('INSERT INTO other SELECT i, repeat(md5(i::text), 30) FROM generate_series(1000, 3000) i');
$t->sync('s');
my $release = $t->hold_phase('s', 'load', 'other', sub { $t->resync('s'); });
$t->src('DELETE FROM other WHERE id BETWEEN 1000 AND 1100; UPDATE other SET id = id + 10000 WHERE id BETWEEN 2000 AND 2100; INSERT INTO other VALUES (9999, \'during\')');
$release->();
$t->wait_status('s', 'running');
$t->sync('s');
$t->same('other', 'changes during the load', soft_delete => 'gone');
is($t->dst('SELECT count(*) FROM other WHERE gone AND (id BETWEEN 1000 AND 1100 OR id BETWEEN 2000 AND 2100)'),
	'202', 'keys that went during the load are there as deleted');

# ---- a view at the destination: never silently lost
$t->dst('CREATE VIEW v_other AS SELECT id, v FROM other');
$t->resync('s');
my (undef, $answer, $error) = $t->try("SELECT peerdb_wait_for_status('s', 'running', '60 s')");
if ($error eq '')
{
	$t->sync('s');
	$t->src("INSERT INTO other VALUES (77777, 'seen through the view')");
	$t->sync('s');
	is($t->dst('SELECT count(*) FROM v_other WHERE id = 77777'), '1', 'the view shows the new table');
}
else
{
	like($error, qr/v_other/, 'the resync is refused naming the view');
	$t->until_status('s', 'running', 'and the mirror goes on');
	is($t->dst('SELECT count(*) > 0 FROM v_other'), 't', 'the view is there');
	$t->dst('DROP VIEW v_other');
}

# ---- the swap waits for no reader: a reader that stays is not blocked
my $r = $t->hold_phase('s', 'swap', 'other', sub { $t->resync('s'); });
my $id2 = 88888;
$t->src("INSERT INTO other VALUES ($id2, 'while the swap waits')");
is($t->dst('SET statement_timeout = \'20s\'; SELECT count(*) > 0 FROM other'), 't', 'others read the old table while the swap waits');
$r->();
$t->wait_status('s', 'running', 'the swap goes on when the reader is gone');
$t->sync('s');
$t->same('other', 'after the swap that waited', soft_delete => 'gone');

$t->drop_all;
done_testing();
