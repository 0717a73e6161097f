# A mirror moves over from PeerDB: its tables at the destination, in its
# spelling, count as the old tables, and no soft-deleted row or its time is lost.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my $t = ResyncTest->new;

# A table as PeerDB makes it at the destination.  Rows 1 to 6 are at the source;
# 101 and 102 were deleted there, at known times; row 3 was deleted and is back;
# row 201 was deleted while PeerDB was down, so that nothing marks it.
sub peerdb_table
{
	my ($name, %o) = @_;
	my $deleted = $o{deleted} // '"_PEERDB_IS_DELETED"';
	my $synced = $o{synced} // '"_PEERDB_SYNCED_AT"';
	my $key = exists $o{key} ? $o{key} : ', PRIMARY KEY("id")';
	my $time = $o{time} // 'TIMESTAMP';

	$t->src(<<"EOS");
CREATE TABLE $name (id int NOT NULL, v varchar(20), n numeric(10,2)$key);
INSERT INTO $name SELECT i, 'live ' || i, i FROM generate_series(1, 6) i;
EOS
	$t->src("ALTER TABLE $name REPLICA IDENTITY FULL") unless $key;
	$t->dst(<<"EOS");
CREATE TABLE "public"."$name" ("id" integer NOT NULL, "v" text, "n" numeric, $deleted BOOL DEFAULT FALSE,
	$synced $time DEFAULT CURRENT_TIMESTAMP$key);
INSERT INTO $name (id, v, n) SELECT i, 'live ' || i, i FROM generate_series(1, 6) i;
UPDATE $name SET $deleted = true, $synced = '2024-01-01 00:00:03' WHERE id = 3;
INSERT INTO $name VALUES (101, 'gone 101', 1.5, true, '2024-05-06 07:08:09.123456'),
	(102, NULL, NULL, true, NULL), (201, 'unmarked', 2, false, '2024-02-02 02:02:02');
EOS
	return;
}

# What was soft-deleted at the destination, in the mirror's columns.
sub tombstones
{
	my ($name, $what, %o) = @_;
	my $deleted = $o{deleted} // '_peerdb_is_deleted';
	my $synced = $o{synced} // '_peerdb_synced_at';
	my $keyless = $o{keyless};

	is($t->dst("SELECT id, coalesce(v, '-'), coalesce(n::text, '-') FROM $name WHERE $deleted ORDER BY id"),
		join("\n", ($keyless ? '3|live 3|3.00' : ()), '101|gone 101|1.50', '102|-|-', ($keyless ? () : '201|unmarked|2.00')),
		"$what: nothing soft-deleted is lost");
	is($t->dst("SELECT $synced AT TIME ZONE 'UTC' FROM $name WHERE id = 101"),
		'2024-05-06 07:08:09.123456', "$what: the time is kept");
	is($t->dst("SELECT count(*) FROM $name WHERE id IN (102, 201) AND $deleted AND $synced > now() - interval '1 hour'"),
		$keyless ? 1 : 2, "$what: what has no time of deletion gets one");
	$t->same($name, "$what: live rows", soft_delete => $deleted);
	$t->src("DELETE FROM $name WHERE id = 6; INSERT INTO $name VALUES (101, 'back', 0), (7, 'new', 7)");
	$t->sync($o{mirror});
	$t->same($name, "$what: goes on", soft_delete => $deleted);
	is($t->dst("SELECT count(*) FROM $name WHERE id = 6 AND $deleted"), '1', "$what: deletes are soft");
	return;
}

# ---- without replace_existing PeerDB's table is in the way, and stays as it is
peerdb_table('refused');
$t->create_mirror('refused', ['public.refused']);
$t->until_true("SELECT outcome IN ('refused', 'failed') AND error ~ 'exists' AND error ~ 'replace_existing' FROM peerdb.runs WHERE mirror = 'refused'",
	'without replace_existing: refused, with the hint');
is($t->dst('SELECT count(*), count(*) FILTER (WHERE "_PEERDB_IS_DELETED") FROM refused'), '9|3', 'and nothing is touched');
$t->src("SELECT peerdb_drop_mirror('refused')");

# ---- the mirror has PeerDB's spelling, so that queries go on as they are
peerdb_table('spelled');
$t->dst('CREATE ROLE reader; GRANT SELECT ON spelled TO reader; CREATE INDEX spelled_v ON spelled (v);'
	. 'CREATE VIEW spelled_live AS SELECT id, v FROM spelled WHERE NOT "_PEERDB_IS_DELETED"');
# the types are those of the source now: the view would not fit
my %upper = (soft_delete_col_name => '_PEERDB_IS_DELETED', synced_at_col_name => '_PEERDB_SYNCED_AT');
$t->create_mirror('spelled', ['public.spelled'], { replace_existing => 'true', %upper });
$t->until_true("SELECT outcome = 'refused' AND error ~ 'depend' AND error ~ 'spelled_live' FROM peerdb.runs WHERE mirror = 'spelled'",
	'a view on a column whose type changes is named');
$t->dst('CREATE OR REPLACE VIEW spelled_live AS SELECT id, NULL::text AS v FROM spelled WHERE NOT "_PEERDB_IS_DELETED"');
$t->resync('spelled');
$t->wait_status('spelled', 'running', 'PeerDB\'s spelling: moved over');
tombstones('spelled', "PeerDB's spelling", mirror => 'spelled', deleted => '"_PEERDB_IS_DELETED"', synced => '"_PEERDB_SYNCED_AT"');
is($t->dst('SELECT has_table_privilege(\'reader\', \'spelled\', \'SELECT\'), to_regclass(\'spelled_v\') IS NOT NULL'), 't|t',
	'privileges and indexes are kept');
is($t->dst('SELECT count(*) FROM spelled_live'), $t->src('SELECT count(*) FROM spelled'), 'the view shows the new table');
# and once more, now that the old table is ours
$t->resync('spelled');
$t->wait_status('spelled', 'running', 'PeerDB\'s spelling: resynced');
is($t->dst(q{SELECT string_agg(id::text, ',' ORDER BY id) FROM spelled WHERE "_PEERDB_IS_DELETED"}), '6,102,201',
	'a resync keeps them');

# ---- the mirror has its own names, PeerDB's are in upper case
peerdb_table('by_default');
# time zone of the destination's sessions: PeerDB writes UTC
$t->dst("ALTER DATABASE postgres SET timezone = 'Asia/Tokyo'");
$t->dst("ALTER TABLE by_default ALTER n SET DEFAULT 7");
$t->create_mirror('by_default', ['public.by_default'], { replace_existing => 'true' });
$t->wait_status('by_default', 'running', 'default names: moved over');
is($t->src("SELECT string_agg(message, '; ' ORDER BY id) FROM peerdb.logs WHERE mirror = 'by_default' AND level = 'warning'"),
	'table "public"."by_default" at the destination will lose: default of column n', 'default names: no warning of defaults of PeerDB\'s own columns');
tombstones('by_default', 'default names', mirror => 'by_default');
is($t->dst("SELECT count(*) FROM information_schema.columns WHERE table_name = 'by_default' AND column_name LIKE '\\_PEERDB%'"),
	'0', 'default names: the upper-case columns are gone');
$t->dst('ALTER DATABASE postgres RESET timezone');

# ---- lower case (mirrors made by PeerDB's SQL), with a time zone
peerdb_table('lower_case', deleted => '_peerdb_is_deleted', synced => '_peerdb_synced_at', time => 'TIMESTAMPTZ');
$t->create_mirror('lower_case', ['public.lower_case'], { replace_existing => 'true' });
$t->wait_status('lower_case', 'running', 'lower case: moved over');
tombstones('lower_case', 'lower case', mirror => 'lower_case');

# ---- names of one's own on our side only
peerdb_table('own_names');
$t->create_mirror('own_names', ['public.own_names'],
	{ replace_existing => 'true', soft_delete_col_name => 'is_gone', synced_at_col_name => 'Written At' });
$t->wait_status('own_names', 'running', 'own names: moved over');
tombstones('own_names', 'own names', mirror => 'own_names', deleted => 'is_gone', synced => '"Written At"');

# ---- no key: only what is marked can be known
peerdb_table('keyless', key => '');
$t->create_mirror('keyless', ['public.keyless'], { replace_existing => 'true' });
$t->wait_status('keyless', 'running', 'no key: moved over');
tombstones('keyless', 'no key', mirror => 'keyless', keyless => 1);

# ---- a source column that is called like PeerDB's is data
$t->src('CREATE TABLE chained (id int PRIMARY KEY, "_PEERDB_IS_DELETED" bool, "_PEERDB_SYNCED_AT" timestamp); INSERT INTO chained VALUES (1, true, NULL), (2, false, now())');
$t->dst('CREATE TABLE chained (id int PRIMARY KEY, "_PEERDB_IS_DELETED" bool, "_PEERDB_SYNCED_AT" timestamp, _peerdb_is_deleted bool DEFAULT false, _peerdb_synced_at timestamp);'
	. q{INSERT INTO chained VALUES (1, true, NULL, false, now()), (8, false, '2020-01-01', true, '2024-05-06 07:08:09'), (9, true, '2020-01-01', false, '2024-05-06 07:08:09')});
$t->create_mirror('chained', ['public.chained'], { replace_existing => 'true' });
$t->wait_status('chained', 'running', 'columns of the source are called alike: moved over');
$t->same('chained', 'columns of the source are called alike');
is($t->dst(q{SELECT id, "_PEERDB_IS_DELETED", _peerdb_synced_at = '2024-05-06 07:08:09+00' FROM chained WHERE _peerdb_is_deleted ORDER BY id}),
	"8|f|t\n9|t|f", 'columns of the source are called alike: our own decide');

# ---- PeerDB without soft delete; several tables at once, one of them new
$t->src('CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO plain VALUES (1), (2); CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh VALUES (1)');
$t->dst('CREATE TABLE plain (id int PRIMARY KEY, "_PEERDB_SYNCED_AT" timestamp DEFAULT CURRENT_TIMESTAMP); INSERT INTO plain VALUES (1), (2), (3)');
$t->create_mirror('plain', [ 'public.plain', 'public.fresh' ], { replace_existing => 'true' });
$t->wait_status('plain', 'running', 'without soft delete: moved over');
$t->same($_, "without soft delete: $_") foreach qw(plain fresh);
is($t->dst('SELECT id FROM plain WHERE _peerdb_is_deleted'), '3', 'without soft delete: what is missing at the source was deleted there');

# ---- the swap is planned before it has its locks: what changes until then counts
$t->src('CREATE TABLE late (id int PRIMARY KEY, v int); INSERT INTO late SELECT i, i FROM generate_series(1, 10) i');
$t->dst('CREATE TABLE late (id int PRIMARY KEY, v int, "_PEERDB_IS_DELETED" bool DEFAULT false);'
	. 'CREATE INDEX late_v ON late (v); CREATE VIEW late_view AS SELECT id FROM late; CREATE VIEW top_view AS SELECT id FROM late_view');
$t->src("ALTER SYSTEM SET resync.swap_lock_timeout = '30s'");
$t->src('SELECT pg_reload_conf()');
my $reader = $t->session($t->dest);
$reader->query_safe('BEGIN; LOCK TABLE late IN ACCESS SHARE MODE');
$t->create_mirror('late', ['public.late'], { replace_existing => 'true' });
$t->until_true("SELECT count(*) > 0 FROM pg_locks WHERE relation = 'late'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted",
	'the swap waits for a reader', node => $t->dest);
# no lock on the table is needed for this; the view is made on it meanwhile, too
$reader->query_safe('COMMENT ON COLUMN late.v IS NULL; GRANT SELECT ON late TO reader; CREATE VIEW meanwhile AS SELECT v FROM late; COMMIT');
$reader->quit;
$t->wait_status('late', 'running', 'changed while the swap waited: planned again');
$t->same('late', 'changed while the swap waited');
$t->src('INSERT INTO late VALUES (11, 11)');
$t->sync('late');
is($t->dst("SELECT (SELECT count(*) FROM $_)"), '11', "changed while the swap waited: $_ shows the new table") foreach qw(late_view top_view meanwhile);
is($t->dst("SELECT string_agg(indexrelid::regclass::text, ',' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = 'late'::regclass"),
	'late_pkey,late_v', 'indexes have their names');
is($t->dst("SELECT count(*) FROM pg_class WHERE relname LIKE 'resync\\_%' AND relnamespace = 'public'::regnamespace"), '0', 'nothing is left aside');

$t->drop_all;
done_testing();
