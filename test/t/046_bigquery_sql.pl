# Every SQL text that is sent to BigQuery, through Google's own analyzer
# (ZetaSQL from npm): grammar, names, types and functions, against the tables as
# they were when it was sent.  The emulator takes things that BigQuery does not.
use strict;
use warnings;

use ResyncBigQuery;
use PostgreSQL::Test::Utils;
use Test::More;

plan(skip_all => 'no ZetaSQL: ' . ($ENV{RESYNC_ZETASQL_MISSING} || 'RESYNC_ZETASQL is not set')) unless $ENV{RESYNC_ZETASQL};
my $t = ResyncBigQuery->new;
my $types = 'b boolean DEFAULT true, i bigint, f float8, n numeric(12,2), bn numeric(20,10), un numeric, t text, by bytea, d date, ti time, ts timestamp, tz timestamptz, j jsonb, u uuid, a int[], an numeric(10,2)[], ad date[]';
my $values = q{true, 1, 1.5, 1.25, 1.5, 2.5, repeat('x', 5000), '\x00', '2024-01-01', '12:00', '2024-01-01', '2024-01-01 00:00+00', '{"a": 1}', gen_random_uuid(), '{1,2}', '{1.5}', '{2024-01-01}'};
$t->src(<<"EOS");
CREATE TABLE soft (id int PRIMARY KEY, $types);
ALTER TABLE soft ALTER t SET STORAGE EXTERNAL;
CREATE TABLE two (x int, y text, "Order" int, big text, PRIMARY KEY (y, x));
ALTER TABLE two ALTER big SET STORAGE EXTERNAL;
CREATE TABLE log (at int, what text);
CREATE TABLE keyed (j jsonb, k uuid, d date, PRIMARY KEY (j, k, d));
CREATE TABLE floats (f float8, r real, v int, PRIMARY KEY (f, r));
INSERT INTO floats VALUES (1.5, 2, 1), ('NaN', 'NaN', 2), ('NaN', 1, 3);
INSERT INTO soft SELECT i, $values FROM generate_series(1, 300) i;
INSERT INTO two SELECT i % 10, i::text, i, repeat('b', 4000) FROM generate_series(1, 50) i;
INSERT INTO log SELECT i, 'x' FROM generate_series(1, 10) i;
INSERT INTO keyed SELECT jsonb_build_object('i', i), gen_random_uuid(), '2024-01-01' FROM generate_series(1, 10) i;
EOS
foreach my $options ({}, { soft_delete => 'false' }, { disable_peerdb_columns => 'true' })
{
	my $name = join(' ', %$options) || 'defaults';
	$t->create_mirror('m', [ { from => 'public.soft', partition_by => 'd' }, { from => 'public.two', cluster_by => ['x'] }, { from => 'public.log', append => \1 }, 'public.keyed', 'public.floats' ],
		{ snapshot_num_rows_per_partition => 100, snapshot_max_parallel_workers => 1, %$options });
	$t->wait_status('m', 'running', $name) or $t->describe('m');
	$t->src(<<"EOS");
UPDATE soft SET i = i + 1 WHERE id <= 20;
UPDATE soft SET id = id + 1000 WHERE id BETWEEN 100 AND 110;
DELETE FROM soft WHERE id IN (1, 2);
UPDATE two SET x = x + 100 WHERE x < 3;
DELETE FROM keyed WHERE j = '{"i": 1}';
UPDATE floats SET v = v + 1;
INSERT INTO log VALUES (1, 'again');
EOS
	$t->sync('m');
	$t->src("TRUNCATE two, log; INSERT INTO two VALUES (1, 'new', 2, 'x'); ALTER TABLE soft ADD COLUMN extra_@{[ ++$main::n ]} int DEFAULT 7; INSERT INTO soft (id) VALUES (50000 + $main::n)");
	$t->sync('m');

	# another snapshot in the middle of a load: rows may be there twice
	$t->src("ALTER SYSTEM SET resync.load_rate_limit = '100kB'; SELECT pg_reload_conf()");
	$t->resync('m');
	$t->until_true("SELECT count(*) FILTER (WHERE p.status = 'done') > 0 AND count(*) FILTER (WHERE p.status = 'waiting') > 0 FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run)", "$name: a part is loaded");
	$t->src('UPDATE soft SET i = i + 1');
	$t->src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'resync streamer'");
	$t->src('ALTER SYSTEM RESET resync.load_rate_limit; SELECT pg_reload_conf()');
	$t->wait_status('m', 'running', "$name: a resync") or $t->describe('m');
	$t->sync('m');
	is($t->src("SELECT bool_and(equal) FROM peerdb_compare('m')"), 't', "$name: compare");
	$t->src("SELECT peerdb_drop_mirror('m', drop_destination => true)");
	$t->until_true('SELECT count(*) = 0 FROM peerdb.mirrors', "$name: dropped");
}

my ($status, $out, $err);
IPC::Run::run([ 'node', "$ENV{RESYNC_SRC}/test/bigquery/analyze.js", $ENV{RESYNC_ZETASQL}, "$t->{dir}/log" ], '>', \$out, '2>', \$err) or diag($err);
my ($analyzed) = $out =~ /^analyzed (\d+)$/m;
cmp_ok($analyzed // 0, '>', 100, 'statements were analyzed (' . ($analyzed // 0) . ')');
$out =~ s/^analyzed \d+\n//m;
is($out, '', 'the analyzer accepts every statement');
my %kinds;
foreach my $r ($t->requests) { $kinds{$1}++ while ($r->{sql} // '') =~ /\b(MERGE|QUALIFY|COMMIT TRANSACTION|TEMP TABLE|UPDATE|DELETE FROM|INSERT INTO)\b/g; }
is(join(', ', sort keys %kinds), 'COMMIT TRANSACTION, DELETE FROM, INSERT INTO, MERGE, QUALIFY, TEMP TABLE, UPDATE', 'of every kind');
$t->no_leftovers;
done_testing();
