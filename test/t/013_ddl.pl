# DDL under a mirror (rule 12): what can be carried is carried, and everything
# else fails the mirror with the hint to resync; never a silent wrong row.
use strict;
use warnings;

use ResyncTest;
use Test::More;

# a mirror per table, so that each failure is one table's own
my $t = ResyncTest->new(src_conf => <<'EOC', dst_conf => "max_connections = 200\n");
max_worker_processes = 150
max_replication_slots = 60
EOC

# ---- what makes a mirror fail
#
# name => [ table, DDL, what the error says, rows that must not be at the
# destination (a condition; none: nothing is looked at) ].  DDL without DML
# after it fails by itself.
my %fails = (
	drop_add => [
		'CREATE TABLE drop_add (id int PRIMARY KEY, v text)',
		"ALTER TABLE drop_add DROP COLUMN v; ALTER TABLE drop_add ADD COLUMN v text; INSERT INTO drop_add VALUES (100, 'new')",
		qr/"v" is not the column it was/, 'id = 100'
	],
	exchange => [
		'CREATE TABLE exchange (id int PRIMARY KEY, a text, b text)',
		"ALTER TABLE exchange RENAME a TO x; ALTER TABLE exchange RENAME b TO a; ALTER TABLE exchange RENAME x TO b; INSERT INTO exchange VALUES (100, 'in b', 'in a')",
		qr/A column was renamed/, 'id = 100'
	],
	add_enum => [
		'CREATE TABLE add_enum (id int PRIMARY KEY)',
		"CREATE TYPE mood AS ENUM ('low', 'high'); ALTER TABLE add_enum ADD COLUMN m mood DEFAULT 'low'",
		qr/"m" was added; its type (public\.)?mood/
	],
	add_regclass => [
		'CREATE TABLE add_regclass (id int PRIMARY KEY)',
		"ALTER TABLE add_regclass ADD COLUMN r regclass; INSERT INTO add_regclass VALUES (100, 'add_regclass')",
		qr/"r" was added; its type regclass/, 'id = 100'
	],
	add_regclasses => [
		'CREATE TABLE add_regclasses (id int PRIMARY KEY)',
		"ALTER TABLE add_regclasses ADD COLUMN r regclass[]",
		qr/"r" was added; its type regclass\[\]/
	],
	rewrite => [
		'CREATE TABLE rewrite (id int PRIMARY KEY)',
		'ALTER TABLE rewrite ADD COLUMN d float8 DEFAULT random()',
		qr/rewritten/
	],
	retype => [
		'CREATE TABLE retype (id int PRIMARY KEY, v int)',
		'ALTER TABLE retype ALTER v TYPE bigint',
		qr/rewritten|type of column "v"/
	],
	longer => [
		'CREATE TABLE longer (id int PRIMARY KEY, v varchar(10))',
		"ALTER TABLE longer ALTER v TYPE varchar(20); INSERT INTO longer VALUES (100, 'more than ten bytes')",
		qr/type of column "v" was changed from character varying\(10\) to character varying\(20\)/, 'id = 100'
	],
	unlogged => [
		'CREATE TABLE unlogged (id int PRIMARY KEY)',
		'ALTER TABLE unlogged SET UNLOGGED', qr/UNLOGGED/
	],
	unlogged_leaf => [
		'CREATE TABLE unlogged_leaf (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE unlogged_leaf_1 PARTITION OF unlogged_leaf DEFAULT',
		'ALTER TABLE unlogged_leaf_1 SET UNLOGGED', qr/UNLOGGED/
	],
	recreated => [
		'CREATE TABLE recreated (id int PRIMARY KEY)',
		'DROP TABLE recreated; CREATE TABLE recreated (id int PRIMARY KEY); INSERT INTO recreated VALUES (100)',
		qr/dropped/, 'id = 100'
	],
	dropped_by_schema => [
		'CREATE SCHEMA gone; CREATE TABLE gone.dropped_by_schema (id int PRIMARY KEY)',
		'DROP SCHEMA gone CASCADE', qr/dropped/
	],
	truncated_leaf => [
		'CREATE TABLE truncated_leaf (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE truncated_leaf_1 PARTITION OF truncated_leaf FOR VALUES FROM (0) TO (50); CREATE TABLE truncated_leaf_2 PARTITION OF truncated_leaf DEFAULT',
		'TRUNCATE truncated_leaf_1', qr/TRUNCATE emptied a part/
	],
	truncated_only => [
		'CREATE TABLE truncated_only (id int PRIMARY KEY); CREATE TABLE truncated_only_1 (PRIMARY KEY (id)) INHERITS (truncated_only); INSERT INTO truncated_only_1 VALUES (1000)',
		'TRUNCATE ONLY truncated_only', qr/TRUNCATE emptied a part/
	],
	no_identity => [
		'CREATE TABLE no_identity (id int PRIMARY KEY, v int)',
		'ALTER TABLE no_identity REPLICA IDENTITY NOTHING; UPDATE no_identity SET v = 5', qr/identity/i
	],
	no_key => [
		'CREATE TABLE no_key (id int PRIMARY KEY, v int)',
		'ALTER TABLE no_key DROP CONSTRAINT no_key_pkey; DELETE FROM no_key WHERE id = 1', qr/identity|key/i
	],
	other_key => [
		'CREATE TABLE other_key (id int PRIMARY KEY, v int NOT NULL)',
		'ALTER TABLE other_key DROP CONSTRAINT other_key_pkey, ADD PRIMARY KEY (v); DELETE FROM other_key WHERE id = 1', qr/identity|key/i
	],
	# the identity still has the old key, but rows are not unique by it any more
	wider_key => [
		'CREATE TABLE wider_key (id int PRIMARY KEY, v int NOT NULL)',
		'ALTER TABLE wider_key DROP CONSTRAINT wider_key_pkey, ADD PRIMARY KEY (id, v); INSERT INTO wider_key VALUES (1, 100)',
		qr/unique index/, 'v = 100'
	],
	full_without_key => [
		'CREATE TABLE full_without_key (id int PRIMARY KEY, v int); ALTER TABLE full_without_key REPLICA IDENTITY FULL',
		'ALTER TABLE full_without_key DROP CONSTRAINT full_without_key_pkey; INSERT INTO full_without_key VALUES (1, 100)',
		qr/unique index/, 'v = 100'
	],
	wider_leaves => [
		'CREATE TABLE wider_leaves (id int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (id); CREATE TABLE wider_leaves_1 PARTITION OF wider_leaves DEFAULT',
		'ALTER TABLE wider_leaves DROP CONSTRAINT wider_leaves_pkey, ADD PRIMARY KEY (id, v); INSERT INTO wider_leaves VALUES (1, 100)',
		qr/unique index/, 'v = 100'
	],
	renamed_label => [
		q{CREATE TYPE grade AS ENUM ('1', '2', '3', '4', '5', '6', '7', '8', '9', '10', '11', '12', '13', '14', '15', '16', '17', '18', '19', '20'); CREATE TABLE renamed_label (id int PRIMARY KEY, g grade)},
		q{ALTER TYPE grade RENAME VALUE '7' TO 'seven'}, qr/label of the enum/
	],
	renamed_within => [
		q{CREATE TYPE light AS ENUM ('red', 'green'); CREATE DOMAIN lights AS light[]; CREATE TYPE crossing AS (name text, l lights); CREATE TABLE renamed_within (id int PRIMARY KEY, c crossing)},
		q{ALTER TYPE light RENAME VALUE 'red' TO 'stop'}, qr/label of the enum/
	],
	dropped_leaf => [
		'CREATE TABLE dropped_leaf (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE dropped_leaf_1 PARTITION OF dropped_leaf DEFAULT',
		'DROP TABLE dropped_leaf_1', qr/partition or child table was dropped/
	],
	dropped_below => [
		'CREATE TABLE dropped_below (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE dropped_below_1 PARTITION OF dropped_below DEFAULT PARTITION BY RANGE (id); CREATE TABLE dropped_below_1_1 PARTITION OF dropped_below_1 DEFAULT',
		'DROP TABLE dropped_below_1', qr/dropped/
	],
	inherits => [
		'CREATE TABLE inherits (id int PRIMARY KEY); CREATE TABLE inherits_1 (id int NOT NULL); INSERT INTO inherits_1 VALUES (1000)',
		'ALTER TABLE inherits_1 INHERIT inherits', qr/child table was added/
	],
	no_inherit => [
		'CREATE TABLE no_inherit (id int PRIMARY KEY); CREATE TABLE no_inherit_1 (PRIMARY KEY (id)) INHERITS (no_inherit); INSERT INTO no_inherit_1 VALUES (1000)',
		'ALTER TABLE no_inherit_1 NO INHERIT no_inherit', qr/child table was removed/
	],
	detached_slowly => [
		'CREATE TABLE detached_slowly (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE detached_slowly_1 PARTITION OF detached_slowly FOR VALUES FROM (0) TO (5000)',
		'ALTER TABLE detached_slowly DETACH PARTITION detached_slowly_1 CONCURRENTLY', qr/partition was detached/
	],
	# by the table's owner, who may not read our catalog
	by_owner => [
		'CREATE TABLE by_owner (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE by_owner_1 PARTITION OF by_owner DEFAULT; ALTER TABLE by_owner OWNER TO app; ALTER TABLE by_owner_1 OWNER TO app',
		'SET ROLE app; ALTER TABLE by_owner DETACH PARTITION by_owner_1', qr/partition was detached/
	],
);

# while the mirror is paused: noticed when it goes on
my %paused = (
	paused_detach => [
		'CREATE TABLE paused_detach (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE paused_detach_1 PARTITION OF paused_detach DEFAULT',
		'ALTER TABLE paused_detach DETACH PARTITION paused_detach_1', qr/partition was detached/
	],
	paused_drop => [
		'CREATE TABLE paused_drop (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE paused_drop_1 PARTITION OF paused_drop DEFAULT',
		'DROP TABLE paused_drop_1', qr/dropped/
	],
	paused_recreate => [
		'CREATE TABLE paused_recreate (id int PRIMARY KEY)',
		'DROP TABLE paused_recreate; CREATE TABLE paused_recreate (id int PRIMARY KEY); INSERT INTO paused_recreate VALUES (100)', qr/dropped/, 'id = 100'
	],
);

# before anything of ours runs after a restart of the server
my %early = (
	early_detach => [
		'CREATE TABLE early_detach (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE early_detach_1 PARTITION OF early_detach DEFAULT',
		'ALTER TABLE early_detach DETACH PARTITION early_detach_1', qr/partition was detached/
	],
	early_drop => [
		'CREATE TABLE early_drop (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE early_drop_1 PARTITION OF early_drop DEFAULT',
		'DROP TABLE early_drop_1', qr/dropped/
	],
);
my %all = (%fails, %paused, %early);
my %schema = (dropped_by_schema => 'gone');

sub name { my ($n) = @_; return ($schema{$n} // 'public') . ".$n"; }

# each has rows that the columns before the DDL have room for
$t->src('CREATE ROLE app; GRANT ALL ON SCHEMA public TO app');
$t->src(join(";\n", map { $_->[0] } values %all));
my %value = (renamed_label => 'i, i::text::grade', renamed_within => q{i, ROW(i, '{red,green}')::crossing});
$t->src(join(";\n", map { "INSERT INTO " . name($_) . " SELECT " . ($value{$_} // join(', ', ('i') x $t->columns(name($_)))) . " FROM generate_series(1, 20) i" } sort keys %all));

# ---- what the mirror follows
$t->src(<<'EOS');
CREATE TABLE renamed (id int PRIMARY KEY, v text);
CREATE TABLE vacuumed (id int PRIMARY KEY, v text);
CREATE TABLE several (id int PRIMARY KEY, secret text, v text);
CREATE TABLE leaves (id int, kind text, secret text, v text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
CREATE TABLE leaves_a PARTITION OF leaves FOR VALUES IN ('a');
CREATE TABLE leaves_b (gone int, v text, kind text NOT NULL, gone2 text, id int NOT NULL, secret text);
ALTER TABLE leaves_b DROP gone, DROP gone2, ADD PRIMARY KEY (id, kind);
ALTER TABLE leaves ATTACH PARTITION leaves_b FOR VALUES IN ('b');
CREATE TABLE messages (id int PRIMARY KEY, v text);
-- another key than the primary one keeps its rows apart: as good
CREATE TABLE keys (id int NOT NULL PRIMARY KEY, v text NOT NULL);
CREATE UNIQUE INDEX keys_id ON keys (id);
ALTER TABLE keys REPLICA IDENTITY FULL;
CREATE TABLE interrupted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE interrupted_1 PARTITION OF interrupted FOR VALUES FROM (0) TO (10);
CREATE TABLE interrupted_2 PARTITION OF interrupted FOR VALUES FROM (10) TO (1000);
CREATE TABLE old_snapshot (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE old_snapshot_1 PARTITION OF old_snapshot FOR VALUES FROM (0) TO (100);
CREATE TABLE old_snapshot_2 (id int PRIMARY KEY, v text);
INSERT INTO keys SELECT i, 'v' || i FROM generate_series(1, 20) i;
INSERT INTO interrupted SELECT i, 'v' || i FROM generate_series(1, 20) i;
INSERT INTO old_snapshot SELECT i, 'v' || i FROM generate_series(1, 20) i;
INSERT INTO old_snapshot_2 SELECT i, 'v' || i FROM generate_series(101, 120) i;
CREATE TABLE loaded (id int PRIMARY KEY, v text);
INSERT INTO renamed SELECT i, 'v' || i FROM generate_series(1, 20) i;
INSERT INTO vacuumed SELECT i, 'v' || i FROM generate_series(1, 20) i;
INSERT INTO several SELECT i, 's', 'v' || i FROM generate_series(1, 20) i;
INSERT INTO leaves SELECT i, chr(97 + i % 2), 's', 'v' || i FROM generate_series(1, 20) i;
INSERT INTO messages SELECT i, 'v' || i FROM generate_series(1, 20) i;
INSERT INTO loaded SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 2000) i;
EOS
my @follow = qw(renamed vacuumed messages loaded keys interrupted old_snapshot);
# its snapshot is older than any mirror
my $old = $t->session($t->source);
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM messages');

my $sql = join(";\n", map { sprintf("SELECT peerdb_create_mirror('%s', 'dest', '[\"%s\"]')", $_, name($_)) } sort(keys %all), @follow);
$sql .= q{; SELECT peerdb_create_mirror('added', 'dest', '[{"from": "public.several", "exclude": ["secret"]}, {"from": "public.leaves", "exclude": ["secret"]}]')};
$t->src($sql);
$t->until_true("SELECT bool_and(status = 'running') FROM peerdb.mirrors", 'all mirrors run')
  or $t->describe($_) foreach (sort(keys %all), @follow, 'added');

sub expect_failure
{
	my ($n) = @_;
	my (undef, undef, $pattern, $absent) = @{ $all{$n} };
	$t->until_failed($n, $pattern, $n);
	like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = '$n'"), qr/HINT:.*peerdb_resync/s, "$n: with the hint");
	is($t->dst('SELECT count(*) FROM ' . name($n) . " WHERE $absent"), '0', "$n: no row of after it is there") if defined $absent;
	return;
}

# ---- while paused
$t->src("SELECT peerdb_pause_mirror('$_')") foreach sort(keys %paused), 'vacuumed';
$t->until_status($_, 'paused') foreach sort(keys %paused), 'vacuumed';
foreach my $n (sort keys %paused) { $t->src($_) foreach split /;\s*/, $paused{$n}[1]; }
# the value that old rows have is gone from the catalog before the column is seen
$t->src('ALTER TABLE vacuumed ADD COLUMN d int DEFAULT 5');
$t->src('VACUUM FULL vacuumed');
$t->src("INSERT INTO vacuumed VALUES (100, 'new', 6)");
$t->src("SELECT peerdb_resume_mirror('$_')") foreach sort(keys %paused), 'vacuumed';

# ---- while running
foreach my $n (sort keys %fails)
{
	$t->src($_) foreach $n eq 'by_owner' ? ($fails{$n}[1]) : split(/;\s*/, $fails{$n}[1]);
}
expect_failure($_) foreach sort(keys %fails), sort(keys %paused);

$t->sync('vacuumed');
$t->same('vacuumed', 'ADD COLUMN with a default, then VACUUM FULL');
is($t->dst('SELECT count(*) FROM vacuumed WHERE d = 5'), '20', 'rows that were there have the default');

# ---- a failed one is mended by a resync
$t->resync($_) foreach qw(drop_add recreated);
foreach my $n (qw(drop_add recreated))
{
	$t->wait_status($n, 'running', "$n: resynced");
	$t->same($n, "$n: equal after the resync");
}

# ---- a rename is followed
$t->src("ALTER TABLE renamed RENAME TO renamed_now; INSERT INTO renamed_now VALUES (100, 'renamed'); UPDATE renamed_now SET v = 'r' WHERE id = 1");
$t->sync('renamed');
$t->same('renamed_now', 'RENAME of the table', to => 'renamed');
is($t->status('renamed'), 'running', 'RENAME: the mirror goes on');

# ---- a key that is dropped while another is there
$t->src("ALTER TABLE keys DROP CONSTRAINT keys_pkey; INSERT INTO keys VALUES (100, 'other key'); UPDATE keys SET id = id + 1000 WHERE id < 5; DELETE FROM keys WHERE id = 6");
$t->sync('keys', 'the primary key goes, a unique index stays');
$t->same('keys', 'the primary key goes, a unique index stays');
is($t->status('keys'), 'running', 'the mirror goes on');

# ---- DDL of a transaction that cannot see the mirror
$old->query_safe('ALTER TABLE old_snapshot ATTACH PARTITION old_snapshot_2 FOR VALUES FROM (100) TO (200); COMMIT');
$old->quit;
$t->until_failed('old_snapshot', qr/partition was attached/, 'ATTACH under a snapshot that is older than the mirror');

# ---- DETACH CONCURRENTLY that is interrupted: from then on the rows are not the table's
{
	my $reader = $t->session($t->source);
	$reader->query_safe('BEGIN; SELECT count(*) FROM interrupted');
	my (undef, undef, $err) = $t->try("SET statement_timeout = '1s'; ALTER TABLE interrupted DETACH PARTITION interrupted_1 CONCURRENTLY;");
	like($err, qr/statement timeout/, 'DETACH CONCURRENTLY is interrupted');
	$reader->query_safe('COMMIT');
	$reader->quit;
	is($t->src('SELECT count(*) FROM interrupted'), '11', 'the partition is pending');
	$t->until_failed('interrupted', qr/partition was detached/, 'DETACH CONCURRENTLY, interrupted');
	$t->resync('interrupted');
	$t->wait_status('interrupted', 'running', 'a partition is pending: resync');
	$t->src("INSERT INTO interrupted_1 VALUES (0, 'not of it'); INSERT INTO interrupted VALUES (100, 'after'); DELETE FROM interrupted_1 WHERE id = 5");
	$t->sync('interrupted');
	$t->same('interrupted', 'a partition is pending: neither its rows nor its changes');
	$t->src('ALTER TABLE interrupted DETACH PARTITION interrupted_1 FINALIZE');
	$t->src("INSERT INTO interrupted VALUES (101, 'after'); DROP TABLE interrupted_1");
	$t->sync('interrupted');
	$t->same('interrupted', 'DETACH FINALIZE');
	is($t->status('interrupted'), 'running', 'DETACH FINALIZE: nothing to fail for any more');
}

# ---- messages of others
$t->src('CREATE ROLE stranger LOGIN');
foreach my $token ('', "gen_random_uuid() || ' ' || ", "(SELECT repeat('0', 36)) || ' ' || ")
{
	foreach my $text (' x', ' +', ' It was dropped.')
	{
		my ($status, $out, $err) = $t->try("SELECT pg_logical_emit_message(true, 'resync', ${token}'messages'::regclass::oid || '$text')", user => 'stranger');
		is($status, 0, "an ordinary user's message \"${token}oid$text\"");
	}
}
$t->try("SELECT pg_logical_emit_message(true, 'resync', ''), pg_logical_emit_message(true, 'resync', decode('00ff', 'hex'))", user => 'stranger');
$t->src("INSERT INTO messages VALUES (100, 'after')");
$t->sync('messages');
$t->same('messages', 'messages of others change nothing');
is($t->status('messages'), 'running', 'and the mirror goes on');
isnt(($t->try('SELECT token FROM peerdb._mirror', user => 'stranger'))[0], 0, 'nobody can read the token');

# ---- columns added: several at once, leaves with other numbers, excluded ones
my %added = (several => [qw(id v a b c late)], leaves => [qw(id kind v a b c late)]);
sub same_added
{
	my ($what, @without) = @_;
	$t->sync('added', "$what: catches up");
	foreach my $table (qw(several leaves))
	{
		my %there = map { $_ => 1 } $t->columns($table);
		$t->same($table, "$what: $table", columns => [ grep { $there{$_} } @{ $added{$table} } ]);
	}
	is($t->status('added'), 'running', "$what: the mirror goes on");
	is($t->dst("SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public' AND table_name IN ('several', 'leaves') AND column_name IN ('secret', 'secret2')"), '0', "$what: what is excluded is not there");
}
$t->src($_) foreach (
	q{ALTER TABLE several ADD COLUMN a int DEFAULT 7, ADD COLUMN b text DEFAULT 'it''s', ADD COLUMN c numeric(6,2) NOT NULL DEFAULT 1.50},
	q{ALTER TABLE leaves ADD COLUMN a int DEFAULT 7, ADD COLUMN b text DEFAULT 'it''s', ADD COLUMN c timestamptz NOT NULL DEFAULT '2020-02-02 02:02:02+00'});
same_added('columns added');
$t->src(q{INSERT INTO several VALUES (100, 's', 'v', 1, 'b', 2); UPDATE several SET a = 8 WHERE id < 5; INSERT INTO leaves (id, kind, v, a) VALUES (100, 'a', 'v', 1), (101, 'b', 'v', 2); UPDATE leaves SET b = v, secret = 'x' WHERE id < 8; UPDATE leaves SET kind = 'b' WHERE id = 100});
same_added('columns added, then rows');
$t->source->restart;
$t->src(q{INSERT INTO several VALUES (200, 's', 'v', 1, 'b', 2); UPDATE several SET v = 'u', secret = 'y' WHERE id < 5; UPDATE leaves SET v = 'u' WHERE id < 8; DELETE FROM leaves WHERE id = 9; INSERT INTO leaves (id, kind, c) VALUES (200, 'b', now())});
same_added('after a restart');
$t->src(q{ALTER TABLE several ADD COLUMN late text; ALTER TABLE leaves ADD COLUMN late text DEFAULT 'l'; UPDATE several SET late = v; UPDATE leaves SET late = v WHERE id % 3 = 0});
same_added('after a restart, one more');
$t->resync('added');
$t->wait_status('added', 'running');
same_added('resynced');

# ---- right after a restart, before anything of ours has looked: there is no
# worker for the probe
$t->src('ALTER SYSTEM SET max_worker_processes = 2');
$t->source->restart;
is($t->src("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher%'"), '0', 'nothing of ours runs but the launcher');
foreach my $n (sort keys %early) { $t->src($_) foreach split /;\s*/, $early{$n}[1]; }
$t->src('ALTER SYSTEM RESET max_worker_processes');
$t->source->restart;
expect_failure($_) foreach sort keys %early;

# ---- a load that other sessions want to get past
$t->src(q{SELECT peerdb_drop_mirror(mirror) FROM peerdb.mirrors WHERE mirror <> 'loaded'});
$t->until_true('SELECT count(*) = 1 FROM peerdb.mirrors', 'the other mirrors are dropped');
$t->src("ALTER SYSTEM SET resync.lock_yield = '100ms'");
$t->src('SELECT pg_reload_conf()');
my $restarts = "SELECT restarts FROM peerdb._run WHERE run = (SELECT max(run) FROM peerdb._run)";

# CREATE INDEX does not want what the load has: it waits for a writer
my $release = $t->hold_phase('loaded', 'load', 'loaded', sub { $t->resync('loaded'); });
my $writer = $t->session($t->source);
my $indexer = $t->session($t->source);
$writer->query_safe("BEGIN; INSERT INTO loaded VALUES (3000, 'uncommitted')");
$indexer->query_until(qr/started/, "\\echo started\nCREATE INDEX loaded_v ON loaded (v);\n");
$t->until_true("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND mode = 'ShareLock' AND relation = 'loaded'::regclass AND waitstart < clock_timestamp() - interval '1 s'", 'CREATE INDEX waits, for ten times resync.lock_yield');
is($t->src($restarts), '0', 'the load does not start over for it');
$writer->query_safe('COMMIT');
$t->until_true("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('loaded_v')", 'the index is made while the load goes on');
is($t->src($restarts), '0', 'still not');
$release->();
$t->wait_status('loaded', 'running');
is($t->src($restarts), '0', 'the load ran once');
$t->sync('loaded');
$t->same('loaded', 'CREATE INDEX during the load');
$_->quit foreach $writer, $indexer;

# ADD COLUMN wants it all, and gets it
$release = $t->hold_phase('loaded', 'load', 'loaded', sub { $t->resync('loaded'); });
$t->src("ALTER TABLE loaded ADD COLUMN a int DEFAULT 3");
$t->src("INSERT INTO loaded VALUES (3001, 'after', 4)");
$release->();
$t->wait_status('loaded', 'running', 'ADD COLUMN during the load');
cmp_ok($t->src($restarts), '>', 0, 'the load started over for it');
$t->sync('loaded');
$t->same('loaded', 'ADD COLUMN during the load');

# between load and swap
$release = $t->hold_phase('loaded', 'catch_up', 'loaded', sub { $t->resync('loaded'); });
$t->src("ALTER TABLE loaded ADD COLUMN b text DEFAULT 'b', ADD COLUMN c int");
$t->src("INSERT INTO loaded VALUES (3002, 'after', 4, 'x', 1); UPDATE loaded SET c = 2 WHERE id < 5");
$release->();
$t->wait_status('loaded', 'running', 'ADD COLUMN during catch_up');
$t->src('UPDATE loaded SET b = v WHERE id % 100 = 0');
$t->sync('loaded');
$t->same('loaded', 'ADD COLUMN during catch_up');

# between the plan and the slot: WAL will tell nothing of it
$release = $t->hold_phase('loaded', 'create_slot', 'loaded', sub { $t->resync('loaded'); });
$t->src('ALTER TABLE loaded ADD COLUMN n int DEFAULT 5; UPDATE loaded SET n = id * 10');
$release->();
$t->wait_status('loaded', 'running', 'ADD COLUMN and UPDATE during create_slot');
$t->sync('loaded');
$t->same('loaded', 'ADD COLUMN and UPDATE during create_slot');
cmp_ok($t->src($restarts), '>', 0, 'the run was planned again');

$release = $t->hold_phase('loaded', 'create_slot', 'loaded', sub { $t->resync('loaded'); });
$t->src("ALTER TABLE loaded DROP CONSTRAINT loaded_pkey, ADD PRIMARY KEY (id, v); INSERT INTO loaded (id, v) VALUES (1, 'the key is wider')");
$release->();
$t->wait_status('loaded', 'running', 'another key during create_slot');
$t->sync('loaded');
$t->same('loaded', 'another key during create_slot');

$t->drop_all;
done_testing();
