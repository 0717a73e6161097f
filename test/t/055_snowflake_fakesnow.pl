# A second opinion on the SQL that is sent to Snowflake: a mirror's statements, done
# again in order by fakesnow (crosscheck.py), have to work and to come to the same
# rows there.  The service of these tests and its SQL were written along with the
# client; fakesnow was not.
use strict;
use warnings;

use ResyncSnowflake;
use PostgreSQL::Test::Utils;
use Test::More;

plan(skip_all => 'no fakesnow: ' . ($ENV{RESYNC_FAKESNOW_MISSING} || 'RESYNC_FAKESNOW is not set'))
  unless $ENV{RESYNC_FAKESNOW};

# Files stay in the service's stages: COPY purges them, and they are read again.
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/keep.js", "require('$ENV{RESYNC_SRC}/test/snowflake/stage').Store.prototype.remove = async () => ({ status: 204 });\n");
my $t = do
{
	local $ENV{NODE_OPTIONS} = "--require $dir/keep.js";
	ResyncSnowflake->new;
};
$t->src(<<'EOS');
CREATE TABLE a (id int PRIMARY KEY, v text, n numeric(12,2), at timestamp, tz timestamptz, d date, ti time, j jsonb, b bytea, f float8, ok bool, big text, js json, arr int[]);
ALTER TABLE a ALTER big SET STORAGE EXTERNAL;
INSERT INTO a SELECT i, 'v' || i, i / 7.0, '2024-01-01'::timestamp + i * interval '1.5 hours', '2024-01-01 00:00+00'::timestamptz + i * interval '1 day 1 microsecond',
	'2024-01-01'::date + i, '00:00'::time + i * interval '1 second', jsonb_build_object('i', i, 'l', jsonb_build_array(i, NULL, 'x')), decode(lpad(to_hex(i), 8, '0'), 'hex'),
	i / 8.0, i % 2 = 0, CASE WHEN i % 10 = 0 THEN repeat('b' || i, 3000) END, '{"k": "v"}', ARRAY[i, NULL, 2] FROM generate_series(1, 300) i;
INSERT INTO a (id) VALUES (1000);
INSERT INTO a (id, v, j, b, f) VALUES (1001, '', 'null', '', 'NaN'), (1002, E'a "quoted", \\N\nline\ttab ''x''', '""', '\x00', 'Infinity'), (1003, ' ', '"x"', NULL, -0.1);
CREATE TABLE two (x int, y text, v int, big text, PRIMARY KEY (y, x));
ALTER TABLE two ALTER big SET STORAGE EXTERNAL;
INSERT INTO two SELECT i % 10, 'y' || i / 10, i, repeat('t', 3000) FROM generate_series(0, 99) i;
CREATE TABLE c (id int PRIMARY KEY, at date NOT NULL, v int);
INSERT INTO c SELECT i, '2024-01-01'::date + i % 400, i FROM generate_series(1, 50) i;
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i % 5, 'load' FROM generate_series(1, 50) i;
CREATE TABLE "Odd ""Name" ("ID" bigint PRIMARY KEY, "select" text, "Mixed ""Case" int);
INSERT INTO "Odd ""Name" VALUES (1, 'one', 1);
CREATE TABLE hard (id int PRIMARY KEY, v text, big text);
ALTER TABLE hard ALTER big SET STORAGE EXTERNAL;
INSERT INTO hard SELECT i, 'v' || i, repeat('h', 3000) FROM generate_series(1, 20) i;
EOS
$t->create_mirror('m', [ 'public.a', 'public.two', { from => 'public.c', cluster_by => ['at'] }, { from => 'public.log', append => \1 }, 'public."Odd ""Name"' ],
	{ snapshot_num_rows_per_partition => 100, snapshot_max_parallel_workers => 1 });
$t->wait_status('m', 'running') or $t->describe('m');
$t->create_mirror('h', ['public.hard'], { soft_delete => 'false' });
$t->wait_status('h', 'running', 'without soft delete') or $t->describe('h');

# each of them is a batch
foreach my $sql (
	"INSERT INTO a (id, v, n, big) VALUES (2001, 'new', 1.5, repeat('n', 5000)), (2002, NULL, NULL, NULL)",
	'UPDATE a SET v = v || \'+\', j = j || \'{"more": [1.5, "y"]}\' WHERE id % 5 = 0',
	'DELETE FROM a WHERE id IN (3, 4)',
	'UPDATE two SET x = x + 100 WHERE y = \'y3\'; DELETE FROM two WHERE y = \'y4\'; UPDATE two SET v = -v WHERE y = \'y5\'',
	'UPDATE c SET v = v + 1 WHERE id <= 10',
	'INSERT INTO log SELECT 9, \'same\' FROM generate_series(1, 10)',
	q{UPDATE "Odd ""Name" SET "select" = 'two'; INSERT INTO "Odd ""Name" VALUES (2, E'tab\there', NULL)},
	"BEGIN; UPDATE a SET id = 3000 + id WHERE id BETWEEN 10 AND 40; UPDATE a SET v = 'again' WHERE id BETWEEN 3010 AND 3020;"
	  . " INSERT INTO a (id, v) VALUES (3, 'back'); DELETE FROM a WHERE id = 2001; INSERT INTO a (id, v) VALUES (2001, 'anew'); COMMIT",
	'UPDATE hard SET v = \'x\' WHERE id <= 5; DELETE FROM hard WHERE id = 6; UPDATE hard SET id = 107 WHERE id = 7',
	'TRUNCATE two, hard; INSERT INTO two VALUES (1, \'y0\', 5), (2, \'after\', 6); INSERT INTO hard VALUES (1, \'after\')',
	'ALTER TABLE a ADD COLUMN extra numeric(10,2) DEFAULT 7.25; ALTER TABLE a ADD COLUMN note text; INSERT INTO a (id, extra, note) VALUES (4001, 8, \'n\'); UPDATE a SET note = \'n\' WHERE id = 5')
{
	$t->src($sql);
	$t->sync($_) foreach 'm', 'h';
}

# what others gave the tables; deleted rows come over, with columns of other types
$t->admin('set', roles => ['READER']);
$t->sf($_) foreach ('GRANT SELECT ON TABLE DB.PUBLIC.C TO ROLE READER', 'ALTER TABLE DB.PUBLIC.C SET DATA_RETENTION_TIME_IN_DAYS = 7',
	'ALTER TABLE DB.PUBLIC.C SET CHANGE_TRACKING = TRUE');
$t->src('ALTER TABLE a ALTER v TYPE varchar(50), ALTER n TYPE numeric(20,3); ALTER TABLE c ALTER at TYPE text, ALTER v TYPE text;'
	  . ' DELETE FROM a WHERE id BETWEEN 50 AND 55; DELETE FROM c WHERE id = 1');
$t->resync('m');
$t->wait_status('m', 'running', 'resync') or $t->describe('m');
$t->src("UPDATE a SET v = 'last' WHERE id = 60; DELETE FROM a WHERE id = 70; INSERT INTO c VALUES (99, '2025-01-01', 'c')");
$t->sync('m');

# another snapshot in the middle of a load: rows may be there twice
my $hold = $t->fault('hold', '^POST /queries.*COPY INTO .*A_resync', skip => 1);
$t->resync('m');
$t->until_fault($hold, 'a part is loaded');
$t->src('UPDATE two SET v = v + 1; UPDATE a SET ok = NOT ok WHERE id % 3 = 0');
$t->src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'resync streamer'");
$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'resync copier'", 'it ends with its snapshot');
$t->admin('release');
$t->wait_status('m', 'running', 'another snapshot') or $t->describe('m');

# a table that is there already, with constraints
$t->src("CREATE TABLE old (a int, b int, v text, PRIMARY KEY (a, b)); INSERT INTO old VALUES (1, 1, 'one')");
$t->sf('CREATE TABLE DB.PUBLIC.OLD (A NUMBER(38,0) NOT NULL, B NUMBER(38,0), V VARCHAR NOT NULL, GONE VARCHAR, PRIMARY KEY (GONE))');
$t->sf("INSERT INTO DB.PUBLIC.OLD SELECT 1, NULL, 'half', 'x' UNION ALL SELECT 2, 2, 'two', 'y'");
$t->create_mirror('o', ['public.old'], { replace_existing => \1 });
$t->wait_status('o', 'running', 'replace_existing') or $t->describe('o');
like($t->src("SELECT peerdb_check_peer('sf')"), qr/database DB/, 'check_peer');
$t->src("CREATE TABLE gone (id int PRIMARY KEY)");
$t->create_mirror('g', ['public.gone']);
$t->wait_status('g', 'running');
$t->src("SELECT peerdb_drop_mirror('g', drop_destination => true)");
$t->until_true('SELECT count(*) = 3 FROM peerdb.mirrors', 'one is dropped');

foreach my $mirror (qw(m h o))
{
	$t->sync($mirror);
	is($t->src("SELECT bool_and(equal) FROM peerdb_compare('$mirror')"), 't', "$mirror: compare");
	$t->src("SELECT peerdb_pause_mirror('$mirror')");
	$t->until_status($mirror, 'paused');
}
ok($t->poll(sub { $t->admin('running') == 0 }), 'the service is at rest');

my ($out, $err);
my ($files) = glob "$t->{dir}/fake-snowflake-*";
{
	local $ENV{TMPDIR} = $dir;
	ok(IPC::Run::run([ "$ENV{RESYNC_FAKESNOW}/bin/python", "$ENV{RESYNC_SRC}/test/snowflake/crosscheck.py", "$t->{dir}/log", $t->{port}, $files ], '>', \$out, '2>', \$err),
		'crosscheck.py ends well') or diag($err);
}
my ($plan) = $out =~ /^1\.\.(\d+)$/m;
while ($out =~ /^(not )?ok \d+ - (.*)\n((?:#   .*\n)*)/mg)
{
	my ($bad, $name, $why) = ($1, $2, $3);
	ok(!$bad, $name) or diag($why =~ s/^#   //mgr);
	$plan--;
}
is($plan, 0, 'all was looked at');
my @kinds = grep { $out !~ /^ok \d+ - $_/m } 'CREATE TABLE x.x.x LIKE', 'CREATE OR REPLACE TRANSIENT', 'COPY INTO', 'MERGE INTO .* USING \(SELECT _resync_s', 'MERGE INTO .* USING \(SELECT _resync_o',
	'MERGE INTO .* USING x', 'INSERT INTO .* QUALIFY', 'DELETE FROM x.x.x WHERE \(x\) IN \(SELECT', 'UPDATE x.x.x SET x = \(SELECT', 'ALTER TABLE x.x.x SWAP WITH', 'ALTER TABLE x.x.x ADD COLUMN IF NOT EXISTS',
	'ALTER TABLE x.x.x ALTER COLUMN x DROP NOT NULL', 'ALTER TABLE x.x.x DROP (CLUSTERING|PRIMARY) KEY', 'DROP TABLE IF EXISTS', 'COMMENT ON TABLE', 'SHOW GRANTS', 'DESCRIBE TABLE', 'EXECUTE IMMEDIATE', 'PUT ';
is("@kinds", '', 'statements of every kind');
note($_) foreach $out =~ /^# (not supported .*)$/mg;
done_testing();
