# A cluster: every statement ON CLUSTER, Replicated engines, Distributed tables
# over local ones, and a swap that exchanges the local ones.  The engine has a
# cluster of one host and no Keeper: Distributed tables are real there, what
# needs a Keeper is checked as text and taken out (chdbd.c).
use strict;
use warnings;

use ResyncClickHouse;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncClickHouse->new(chdbd => [ '--cluster', 'prod' ], server => { cluster => 'prod', replicated => 'on' });

$t->src(<<'EOS');
CREATE TABLE k (id int PRIMARY KEY, tenant int NOT NULL, v int);
INSERT INTO k SELECT i, i % 5, i FROM generate_series(1, 2000) i;
ALTER TABLE k REPLICA IDENTITY FULL;
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i, 'l' FROM generate_series(1, 500) i;
EOS
$t->create_mirror('m', [ { from => 'public.k', sharding_key => 'id' }, { from => 'public.log', append => \1 } ], { sync_interval => 0.2 });
$t->wait_status('m', 'running', 'load');
$t->src('UPDATE k SET v = -v WHERE id % 10 = 0; DELETE FROM k WHERE id % 100 = 7; INSERT INTO log VALUES (1, \'same\'), (1, \'same\')');
$t->sync('m');
$t->same_ch('k', 'changes');
$t->same_ch('log', 'changes, append', final => 0);

my $reader = $t->ch_reader('SELECT count() FROM k FINAL', 'SELECT count() FROM log');
$t->src("SELECT peerdb_edit_mirror('m', tables => " . ResyncTest::jsonb([ { from => 'public.k', order_by => [ 'tenant', 'id' ] } ]) . ')');
$t->resync('m');
$t->wait_status('m', 'running', 'resync with another ORDER BY');
$t->reader_ok($reader, 'resync');
$t->src('UPDATE k SET v = 1000 WHERE id % 10 = 1; ALTER TABLE k ADD c int DEFAULT 5; INSERT INTO k VALUES (9000, 1, 1, 2)');
$t->sync('m');
$t->same_ch('k', 'after the resync, and ADD COLUMN');
is($t->ch('SELECT count() FROM (SELECT id, argMax(_peerdb_is_deleted, _peerdb_version) AS d FROM k GROUP BY id) WHERE d'), '20',
	'deleted rows are carried over');

# what was sent
my @ddl = grep { $_->{sql} =~ /^\s*(CREATE|DROP|EXCHANGE|RENAME|ALTER|TRUNCATE)/i && $_->{sql} !~ /^CREATE DATABASE/ } $t->statements;
my @without = grep { $_->{sql} !~ /ON CLUSTER [`'"]?prod/ } @ddl;
is(scalar(@without), 0, 'all DDL runs on the cluster') or diag(join("\n", map { $_->{sql} } @without));
my @create = map { $_->{sql} } grep { $_->{sql} =~ /^CREATE TABLE/ } @ddl;
ok((grep { /ReplicatedReplacingMergeTree\('[^']*\{uuid\}[^']*', '\{replica\}', `_peerdb_version`, `_peerdb_is_deleted`\)/ } @create), 'replicated tables, not by name');
ok((grep { /ReplicatedMergeTree\('[^']*', '\{replica\}'\)/ } @create), 'appended ones too');
my @distributed = grep { /ENGINE = Distributed\(/ } map { $_->{sql} } @ddl;
ok((grep { /Distributed\('prod', 'd', '[^']+', id\)/ } @distributed), 'the sharding key of the mapping');
ok((grep { /Distributed\('prod', 'd', '[^']+', (cityHash64\(.*\)|rand\(\))\)/ } @distributed), 'or a default');
my @exchange = map { $_->{sql} } grep { $_->{sql} =~ /^EXCHANGE/ } @ddl;
ok(scalar(@exchange), 'tables were exchanged');
is($t->ch("SELECT count() FROM system.tables WHERE database = 'd' AND engine LIKE 'Distributed' AND name IN ('k', 'log')"), '2', 'the tables are Distributed');
is($t->ch("SELECT count() FROM system.tables WHERE database = 'd' AND name LIKE '%\\_resync%' AND name NOT LIKE '\\_peerdb%'"), '0', 'nothing is left');

# a cluster that is not there
$t->src($t->server_sql('other', cluster => 'nope'));
$t->src('CREATE TABLE o (id int PRIMARY KEY)');
my ($status, $out, $err) = $t->try(q{SELECT peerdb_create_mirror('o', 'other', '["public.o"]')});
if ($status == 0)
{
	$t->until_true("SELECT outcome IN ('refused', 'failed') FROM peerdb.runs WHERE mirror = 'o'", 'an unknown cluster is refused');
	$err = $t->src("SELECT error FROM peerdb.runs WHERE mirror = 'o'");
}
like($err, qr/cluster.*nope|nope|701|CLUSTER/is, 'the reason is told');

$t->src('SELECT peerdb_drop_mirror(mirror) FROM peerdb.mirrors');
$t->no_leftovers('at the end');
done_testing();
