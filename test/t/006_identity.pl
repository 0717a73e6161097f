# Replica identities, tables without key, partitions, inheritance, columns
# added on the fly, DDL that decoding does not carry.  Rules 5, 7, 12.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my $t = ResyncTest->new;
my $big = q{(SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 300) j)};

$t->src(<<"EOS");
CREATE TABLE full_pk (id int PRIMARY KEY, v int, big text);
ALTER TABLE full_pk ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
INSERT INTO full_pk SELECT i, i, $big FROM generate_series(1, 50) i;

CREATE TABLE full_nopk (a int, b text, c numeric, d text);
ALTER TABLE full_nopk ALTER d SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
INSERT INTO full_nopk SELECT i % 10, 'same', 1.50, NULL FROM generate_series(1, 100) i;

CREATE TABLE by_index (x int NOT NULL, y text NOT NULL, z int, big text, id int PRIMARY KEY);
CREATE UNIQUE INDEX by_index_xy ON by_index (y, x);
ALTER TABLE by_index ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY USING INDEX by_index_xy;
INSERT INTO by_index SELECT i, 'y' || i, i, $big, -i FROM generate_series(1, 50) i;

CREATE TABLE big_key (k text PRIMARY KEY, v int);
ALTER TABLE big_key ALTER k SET STORAGE EXTERNAL;
INSERT INTO big_key SELECT left($big, 2400) || i, i FROM generate_series(1, 20) i;

CREATE TABLE keyless (a int, b text);
INSERT INTO keyless VALUES (1, 'x');
EOS

$t->create_mirror('m', [ map { "public.$_" } qw(full_pk full_nopk by_index big_key) ]);
$t->wait_status('m', 'running');
my @tables = qw(full_pk full_nopk by_index big_key);
sub same_all { my ($what) = @_; $t->sync('m'); $t->same($_, "$what: $_") foreach @tables; }
same_all('loaded');

$t->src(<<'EOS');
UPDATE full_pk SET v = v + 1;
UPDATE full_pk SET id = id + 100 WHERE id <= 10;
DELETE FROM full_pk WHERE id BETWEEN 20 AND 25;
UPDATE by_index SET z = z + 1;
UPDATE by_index SET y = 'changed' WHERE x <= 5;
UPDATE by_index SET id = id - 1000 WHERE x > 40;
DELETE FROM by_index WHERE x BETWEEN 20 AND 25;
UPDATE big_key SET v = v + 1;
UPDATE big_key SET k = 'k' || v WHERE v < 5;
DELETE FROM big_key WHERE v > 18;
EOS
same_all('changed');
is($t->dst(q{SELECT string_agg(a.attname, ',' ORDER BY a.attname) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) WHERE i.indrelid = 'by_index'::regclass AND i.indisunique}),
	'x,y', 'the key at the destination is the identity index');

# ---- no key: equal rows are as many as at the source (rule 5)
sub counts
{
	my ($what) = @_;
	$t->sync('m');
	$t->same('full_nopk', "$what: as many equal rows as at the source");
}
$t->src("DELETE FROM full_nopk WHERE ctid IN (SELECT ctid FROM full_nopk WHERE a = 3 LIMIT 4)");
counts('some of many equal rows deleted');
$t->src(<<'EOS');
BEGIN;
INSERT INTO full_nopk VALUES (NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL), (3, 'same', 1.5, NULL), (3, 'same', 1.500, repeat('t', 4000));
UPDATE full_nopk SET b = 'other' WHERE ctid IN (SELECT ctid FROM full_nopk WHERE a = 5 LIMIT 2);
DELETE FROM full_nopk WHERE ctid = (SELECT min(ctid) FROM full_nopk WHERE a IS NULL);
UPDATE full_nopk SET a = 77 WHERE d IS NOT NULL;
COMMIT;
EOS
counts('NULLs, duplicates and unchanged TOAST');
$t->src('INSERT INTO full_nopk SELECT * FROM full_nopk; DELETE FROM full_nopk WHERE a = 1');
counts('doubled');

# ---- resync of all these, with changes while it loads
my $release = $t->hold_phase('m', 'load', 'full_pk', sub { $t->resync('m'); });
$t->src(<<'EOS');
UPDATE full_pk SET v = v + 1 WHERE id > 30;
DELETE FROM full_nopk WHERE ctid IN (SELECT ctid FROM full_nopk WHERE a = 4 LIMIT 3);
INSERT INTO full_nopk SELECT 4, 'same', 1.50, NULL FROM generate_series(1, 2);
UPDATE by_index SET y = y || '_' WHERE x > 30;
DELETE FROM big_key WHERE v = 10;
EOS
$release->();
$t->wait_status('m', 'running');
same_all('changed during the load');

# ---- no usable identity
{
	my ($status, $out, $err) = $t->try(q{SELECT peerdb_create_mirror('nokey', 'dest', '["public.keyless"]')});
	if ($status == 0)
	{
		# then inserts are followed; an update without identity must not be lost in silence
		$t->wait_status('nokey', 'running');
		$t->src("INSERT INTO keyless VALUES (1, 'x')");
		$t->sync('nokey');
		$t->same('keyless', 'no identity: inserts');
		$t->src("UPDATE keyless SET b = 'y'");
		$t->until_failed('nokey', qr/identity/i, 'no identity: an update');
		$t->src("SELECT peerdb_drop_mirror('nokey')");
	}
	else
	{
		like($err, qr/identity/i, 'no identity: refused');
	}
}

# an identity that changes under a mirror
$t->src('CREATE TABLE loses (id int PRIMARY KEY, v int); INSERT INTO loses VALUES (1, 1), (2, 2)');
$t->create_mirror('loses', ['public.loses']);
$t->wait_status('loses', 'running');
$t->src('ALTER TABLE loses REPLICA IDENTITY NOTHING; DELETE FROM loses WHERE id = 1');
$t->until_failed('loses', qr/identity/i, 'REPLICA IDENTITY NOTHING');
$t->src('ALTER TABLE loses REPLICA IDENTITY DEFAULT');
$t->resync('loses');
$t->wait_status('loses', 'running');
$t->sync('loses');
$t->same('loses', 'resynced with its identity back');
$t->src('ALTER TABLE loses DROP CONSTRAINT loses_pkey; UPDATE loses SET v = 5');
$t->until_failed('loses', qr/identity|key/i, 'DROP CONSTRAINT');
$t->src("SELECT peerdb_drop_mirror('loses')");

# ---- partitioned tables: list, range, hash, leaves with other attribute numbers
$t->src(<<'EOS');
CREATE TABLE pl (id int, kind text, v text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
CREATE TABLE pl_a PARTITION OF pl FOR VALUES IN ('a');
CREATE TABLE pl_b (gone int, v text, kind text NOT NULL, gone2 text, id int NOT NULL);
ALTER TABLE pl_b DROP gone, DROP gone2, ADD PRIMARY KEY (id, kind);
ALTER TABLE pl ATTACH PARTITION pl_b FOR VALUES IN ('b');
CREATE TABLE pl_rest PARTITION OF pl DEFAULT PARTITION BY HASH (id);
CREATE TABLE pl_r0 PARTITION OF pl_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE pl_r1 PARTITION OF pl_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO pl SELECT i, chr(97 + i % 5), repeat('v', i % 50) FROM generate_series(1, 2000) i;
CREATE TABLE pr (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE pr_1 PARTITION OF pr FOR VALUES FROM (0) TO (1000);
CREATE TABLE pr_2 PARTITION OF pr FOR VALUES FROM (1000) TO (2000);
INSERT INTO pr SELECT i, 'r' FROM generate_series(1, 1500) i;
CREATE TABLE ph (id int PRIMARY KEY, v text) PARTITION BY HASH (id);
CREATE TABLE ph_0 PARTITION OF ph FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE ph_1 PARTITION OF ph FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO ph SELECT i, 'h' FROM generate_series(1, 500) i;
EOS
$t->create_mirror('parts', [ 'public.pl', 'public.pr', 'public.ph' ], { snapshot_num_rows_per_partition => 100 });
$t->wait_status('parts', 'running');
sub parts { my ($what) = @_; $t->sync('parts'); $t->same($_, "$what: $_") foreach qw(pl pr ph); }
parts('partitions loaded');
$t->src(<<'EOS');
UPDATE pl SET v = v || '!' WHERE id % 3 = 0;
UPDATE pl SET kind = 'b' WHERE kind = 'a' AND id < 100;
UPDATE pl SET kind = 'z' WHERE kind = 'b' AND id > 1900;
DELETE FROM pl WHERE id BETWEEN 500 AND 600;
UPDATE pr SET id = id + 1000 WHERE id BETWEEN 600 AND 900;
INSERT INTO ph SELECT i, 'new' FROM generate_series(501, 600) i;
DELETE FROM ph WHERE id % 10 = 0;
EOS
parts('rows moved between partitions');
$t->src('TRUNCATE pr; INSERT INTO pr VALUES (1, \'again\')');
parts('TRUNCATE of the root');
is($t->dst("SELECT count(*) FROM pg_class WHERE relname ~ '^p[lrh]_' AND relkind = 'r'"), '0', 'only the roots are at the destination');

# small leaves are loaded together, whatever their layout; not too many of them
$t->src(<<'EOS');
CREATE TABLE pm (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
DO $$ BEGIN FOR i IN 0 .. 199 LOOP EXECUTE format('CREATE TABLE pm_%s PARTITION OF pm FOR VALUES FROM (%s) TO (%s)', i, i * 10, i * 10 + 10); END LOOP; END $$;
INSERT INTO pm SELECT i, 'm' || i FROM generate_series(0, 1999) i;
EOS
$t->resync('parts', { snapshot_num_rows_per_partition => 100_000 });
$t->wait_status('parts', 'running');
parts('small leaves together');
is($t->src("SELECT string_agg(relations::text, ',') FROM peerdb.partitions WHERE source_table = 'public.pl'"), '4', 'four leaves in one partition');
$t->create_mirror('many', ['public.pm']);
$t->wait_status('many', 'running');
$t->sync('many');
$t->same('pm', '200 leaves');
is($t->src("SELECT count(*) || ' ' || sum(relations) FROM peerdb.partitions WHERE source_table = 'public.pm'"), '4 200', '200 leaves in four partitions');
$t->src("SELECT peerdb_drop_mirror('many')");

# a new empty partition is no reason to fail
$t->src('CREATE TABLE pr_3 PARTITION OF pr FOR VALUES FROM (3000) TO (4000); INSERT INTO pr VALUES (3500, \'new leaf\')');
my ($ok) = $t->try("SELECT peerdb_wait_for_lsn('parts', NULL, '60 s')");
if ($ok == 0)
{
	$t->same('pr', 'a row of a new partition arrives');
}
else
{
	$t->until_failed('parts', qr/pr/, 'a new partition');
	$t->resync('parts');
	$t->wait_status('parts', 'running');
}
# ATTACH brings rows that are not in WAL: it must not be silent
$t->src(q{CREATE TABLE pr_4 (id bigint PRIMARY KEY, v text); INSERT INTO pr_4 SELECT i, 'attached' FROM generate_series(4000, 4100) i});
$t->src('ALTER TABLE pr ATTACH PARTITION pr_4 FOR VALUES FROM (4000) TO (5000)');
$t->src('INSERT INTO pr VALUES (1500, \'a later row\')');
$t->until_failed('parts', qr/pr|partition/i, 'ATTACH PARTITION');
$t->resync('parts');
$t->wait_status('parts', 'running', 'ATTACH PARTITION: resynced');
parts('after ATTACH PARTITION');
# so does DETACH
$t->src('ALTER TABLE pr DETACH PARTITION pr_4');
$t->src('INSERT INTO pr VALUES (1501, \'a later row\')');
$t->until_failed('parts', qr/pr|partition/i, 'DETACH PARTITION');
$t->resync('parts');
$t->wait_status('parts', 'running', 'DETACH PARTITION: resynced');
parts('after DETACH PARTITION');

# ---- inheritance: children's rows belong to the parent, as SELECT shows them
$t->src(<<'EOS');
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent);
INSERT INTO parent VALUES (1, 'p'), (2, 'p');
INSERT INTO child VALUES (11, 'c', 1), (12, 'c', 2);
EOS
$t->create_mirror('inh', ['public.parent']);
$t->wait_status('inh', 'running');
$t->same('parent', 'inheritance: loaded');
$t->src("UPDATE parent SET v = v || 'u'; INSERT INTO child VALUES (13, 'c', 3); DELETE FROM parent WHERE id = 11");
$t->sync('inh');
$t->same('parent', 'inheritance: changes of a child');

# ---- ADD COLUMN on the fly
$t->src('ALTER TABLE by_index ADD COLUMN n1 int');
$t->src('UPDATE by_index SET n1 = x WHERE x > 45');
same_all('ADD COLUMN without default');
is($t->status('m'), 'running', 'the mirror goes on');
$t->src(q{ALTER TABLE by_index ADD COLUMN n2 text DEFAULT 'dflt', ADD COLUMN n3 numeric(6,2) NOT NULL DEFAULT 1.5});
$t->src(q{INSERT INTO by_index (x, y, id) VALUES (900, 'new', 900); UPDATE by_index SET n2 = NULL WHERE x = 50});
my ($st) = $t->try("SELECT peerdb_wait_for_lsn('m', NULL, '60 s')");
if ($st != 0)
{
	# allowed: fails with the hint rather than a wrong row
	$t->until_failed('m', qr/by_index/, 'ADD COLUMN with default');
	$t->resync('m');
	$t->wait_status('m', 'running');
}
same_all('ADD COLUMN with default');
is($t->dst("SELECT count(*) FROM by_index WHERE n2 = 'dflt' AND NOT _peerdb_is_deleted"),
	$t->src("SELECT count(*) FROM by_index WHERE n2 = 'dflt'"), 'the default is in the rows that were there before');
# in one transaction with rows before and after
$t->src(q{BEGIN; INSERT INTO full_pk VALUES (900, 1, 'b'); ALTER TABLE full_pk ADD COLUMN late int; INSERT INTO full_pk VALUES (901, 1, 'b', 5); UPDATE full_pk SET late = 1 WHERE id = 900; COMMIT});
same_all('ADD COLUMN in the middle of a transaction');

$t->drop_all;
done_testing();
