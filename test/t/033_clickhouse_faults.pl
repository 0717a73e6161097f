# Every fault of a ClickHouse server, while tables are loaded, changes applied
# and tables swapped: the mirror goes on by itself, each row is there once, rows
# that are equal are all there.  Errors that stay are told as they are, without
# values of rows or secrets.
use strict;
use warnings;

use ResyncClickHouse;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $t = ResyncClickHouse->new(src_conf => "log_min_messages = debug1\n");

$t->src(<<'EOS');
CREATE TABLE k (id int PRIMARY KEY, v int, note text);
INSERT INTO k SELECT i, 0, md5(i::text) FROM generate_series(1, 6000) i;
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i % 10, 'load' FROM generate_series(1, 4000) i;
CREATE TABLE gone (id int PRIMARY KEY, v int, big text);
ALTER TABLE gone ALTER big SET STORAGE EXTERNAL;
EOS
my $step = 0;
my @deleted;
my $change = sub {
	$step++;
	$t->src(<<"EOS");
BEGIN;
UPDATE k SET v = $step WHERE id % 5 = $step % 5;
INSERT INTO k VALUES (10000 + $step, $step, 'new');
DELETE FROM k WHERE id = $step;
UPDATE k SET id = 20000 + $step WHERE id = 3000 + $step;
INSERT INTO log SELECT $step, 'same' FROM generate_series(1, 20);
COMMIT;
INSERT INTO log SELECT $step, 'same' FROM generate_series(1, 20);
EOS
	push @deleted, $step, 3000 + $step;
	return;
};
my $well = sub {
	my ($name) = @_;
	subtest $name => sub {
		$t->sync('m');
		$t->same_ch('k');
		$t->same_ch('log', undef, final => 0);
		is($t->ch('SELECT groupArray(id) FROM (SELECT id, argMax(_peerdb_is_deleted, _peerdb_version) AS d FROM k GROUP BY id ORDER BY id) WHERE d'),
			'[' . join(',', sort { $a <=> $b } @deleted) . ']', 'deleted rows are kept, and no other');
		is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome IS NOT NULL AND outcome <> 'done'"), '0', 'no run failed');
	};
	return;
};

$t->create_mirror('m', [ 'public.k', 'public.gone', { from => 'public.log', append => \1 } ],
	{ sync_interval => 0.1, snapshot_num_rows_per_partition => 1000, snapshot_max_parallel_workers => 2 });
$t->wait_status('m', 'running');
$change->();
$well->('undisturbed');

# ---- changes
my $data = '^INSERT INTO .*`(k|log)`';
my $mark = '^INSERT INTO .*_peerdb_resync_runs';
foreach my $case (
	[ 'the connection breaks in the middle of the rows', cut_body => $data, after => 50 ],
	[ 'the answer is lost after the rows are stored', drop => $data ],
	[ 'the answer is cut off', cut_answer => $data, after => 30 ],
	[ 'an overloaded server', fail => $data, code => 202 ],
	[ 'too many parts', fail => $data, code => 252 ],
	[ 'memory limit', fail => $data, code => 241, after => 50 ],
	[ 'read-only table', fail => $data, code => 242 ],
	[ 'no Keeper', fail => $data, code => 999 ],
	[ 'an unknown end of the insert', fail => $data, code => 319 ],
	[ 'an answer that is not HTTP', garbage => $data ],
	[ 'a slow server', delay => $data, ms => 700 ],
	[ 'the position is not stored', fail => $mark, code => 242 ],
	[ 'the answer to the position is lost', drop => $mark ],
	[ 'the answer to the fence ends within its headers', cut_answer => '^SELECT .*_peerdb_resync_runs', after => 30 ],
	[ 'the fence cannot be read', fail => '^SELECT .*_peerdb_resync_runs', code => 209 ])
{
	my ($name, $action, $match, %o) = @$case;
	foreach my $skip (0, 1)
	{
		my $id = $t->fault($action, $match, skip => $skip, %o);
		$change->();
		$t->until_fault($id, "$name: happens");
		$change->() if $skip;
		$well->("$name ($skip)");
	}
}
is($t->src("SELECT count(*) FROM peerdb.logs WHERE message LIKE '%hunter2%' OR detail LIKE '%hunter2%'"), '0', 'no secret in the log');

# TRUNCATE in a batch that is sent again: of both kinds of tables, with rows that
# are the same as those before it
foreach my $case ([ drop => $data ], [ drop => $mark ], [ drop => '^TRUNCATE' ], [ drop => '^INSERT INTO .* SELECT ' ], [ fail => '^TRUNCATE' ])
{
	my ($action, $match) = @$case;
	my $name = "TRUNCATE, $action at $match";
	my $id = $t->fault($action, $match);
	$t->src(<<'EOQ');
BEGIN;
INSERT INTO log SELECT 1, 'same' FROM generate_series(1, 20);
INSERT INTO gone VALUES (1, 1), (2, 2);
TRUNCATE log, gone;
INSERT INTO log SELECT 1, 'same' FROM generate_series(1, 20);
INSERT INTO gone VALUES (2, 3), (3, 3);
COMMIT;
INSERT INTO log SELECT 1, 'same' FROM generate_series(1, 20);
EOQ
	$t->sync('m');
	ok($t->admin('hits', id => $id) > 0, "$name: happens");
	$t->same_ch('gone', "$name: gone");
	$t->same_ch('log', "$name: log", final => 0);
	$t->admin('clear');
	$t->src('DELETE FROM gone');
}
# a row under a new key, with a value that its change does not have: the TRUNCATE
# of the next batch has taken it away at the source, and the deleted row of its old
# key went out before, in a block of its own
$t->src(q{INSERT INTO gone VALUES (5, 1, repeat('b', 9000)); SELECT peerdb_edit_mirror('m', '{"max_batch_size": 1}')});
$t->src("ALTER SYSTEM SET resync.copier_buffer = '64kB'");
$t->src('SELECT pg_reload_conf()');
$t->sync('m');
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
$t->src("BEGIN; UPDATE gone SET id = 6 WHERE id = 5; INSERT INTO gone SELECT i, 0, repeat('c', 1000) FROM generate_series(1001, 1500) i; COMMIT");
$t->src('TRUNCATE gone');
$t->src("SELECT peerdb_resume_mirror('m')");
$t->wait_status('m', 'running');
$t->sync('m');
$t->same_ch('gone');
is($t->ch('SELECT groupArray(id) FROM (SELECT DISTINCT id FROM gone WHERE _peerdb_is_deleted AND id IN (5, 6) ORDER BY id)'), '[5,6]',
	'a row that is gone everywhere is kept as deleted');
$t->src('ALTER SYSTEM RESET resync.copier_buffer');
$t->src(q{SELECT pg_reload_conf(); SELECT peerdb_edit_mirror('m', '{"max_batch_size": 1000000}')});

$t->src("INSERT INTO log SELECT i % 10, 'load' FROM generate_series(1, 4000) i");
$well->('after TRUNCATE');

# the server dies: before and after it has stored the rows
foreach my $action (qw(die die_after))
{
	foreach my $match ($data, $mark)
	{
		$t->fault($action, $match);
		$change->();
		$t->wait_dead("$action at $match");
		$change->();
		$t->start_ch;
		$well->("$action at $match");
	}
}

# ---- loading
foreach my $case (
	[ 'the connection breaks in a partition', cut_body => '^INSERT INTO .*`k_resync', after => 3000, skip => 1 ],
	[ 'the answer to a partition is lost', drop => '^INSERT INTO .*`k_resync', skip => 2 ],
	[ 'the answer to a partition without key is lost', drop => '^INSERT INTO .*`log_resync', skip => 1 ],
	[ 'the mark of a partition is lost', drop => '^INSERT INTO .*_peerdb_resync_partitions', skip => 1 ],
	[ 'the mark of a partition fails', fail => '^INSERT INTO .*_peerdb_resync_partitions', code => 252, skip => 2 ],
	[ 'an error in a partition', fail => '^INSERT INTO .*`k_resync', code => 241, after => 2000 ],
	[ 'CREATE TABLE: the answer is lost', drop => '^CREATE TABLE .*`k_resync' ],
	[ 'CREATE TABLE fails once', fail => '^CREATE TABLE .*`log_resync', code => 999 ],
	[ 'the deleted rows: the answer is lost', drop => '^INSERT INTO .*`k_resync.* SELECT ' ],
	[ 'the deleted rows: an error', fail => '^INSERT INTO .*`k_resync.* SELECT ', code => 241 ],
	[ 'EXCHANGE: the answer is lost', drop => '^EXCHANGE' ],
	[ 'EXCHANGE of the second table: the answer is lost', drop => '^EXCHANGE', skip => 1 ],
	[ 'EXCHANGE of the second table fails once', fail => '^EXCHANGE', skip => 1, code => 210 ],
	[ 'DROP: the answer is lost', drop => '^DROP TABLE' ])
{
	my ($name, $action, $match, %o) = @$case;
	my $id = $t->fault($action, $match, %o);
	$t->resync('m', { keep_serving => $step % 2 ? 'true' : 'false' });
	$t->until_fault($id, "$name: happens");
	$change->();
	$t->wait_status('m', 'running', "$name: the resync ends") or last;
	$well->($name);
}
foreach my $match ('^INSERT INTO .*`k_resync', '^EXCHANGE', '^DROP TABLE')
{
	foreach my $action (qw(die die_after))
	{
		$t->fault($action, $match);
		$t->resync('m');
		$t->wait_dead("resync: $action at $match");
		$t->start_ch;
		$change->();
		$t->wait_status('m', 'running', "resync: $action at $match");
		$well->("resync: $action at $match");
	}
}
$t->no_leftovers('after all these', keep => 1);

# ---- a server that says nothing holds nobody up
foreach my $match ('^INSERT INTO .*`k`', '^INSERT INTO .*`k_resync')
{
	$t->fault('hold', $match, count => 1);
	if ($match =~ /resync/) { $t->resync('m') } else { $change->() }
	$t->until_held;
	my $begin = time();
	$t->source->stop('fast');
	cmp_ok(time() - $begin, '<', 20, 'the source stops at once while ClickHouse is silent');
	$t->source->start;
	$t->admin('release');
	$t->wait_status('m', 'running');
	$well->('after the silence');
}

# ---- an old stream's statement that comes to life again after a swap
{
	$t->fault('hold', '^INSERT INTO .*`k`', after => 1);
	$change->();
	$t->until_held('an old statement hangs');
	$t->resync('m', { keep_serving => 'false' });
	$t->wait_status('m', 'running', 'a resync while an old statement hangs');
	$t->admin('release');
	$change->();
	$well->('the old statement did not write');
}

# ---- errors that stay
my $id = $t->fault('fail', $data, code => 60, count => -1);
$change->();
$t->until_failed('m', qr/injected.*60|60.*injected|UNKNOWN_TABLE/s, 'a permanent error');
unlike($t->src("SELECT string_agg(message || coalesce(detail, ''), '') FROM peerdb.logs"), qr/Password|hunter2/, 'no secret');
$t->admin('clear');
$t->src("SELECT peerdb_resume_mirror('m')");
$t->until_status('m', 'running', 'going on after a permanent error');
$well->('after a permanent error');

# a table somebody has dropped
$t->ch('DROP TABLE k');
$t->src("UPDATE k SET v = 1 WHERE id = 500");
$t->until_failed('m', qr/k/, 'a table that is gone');
$t->resync('m');
$t->wait_status('m', 'running', 'a resync repairs it');
$t->sync('m');
$t->same_ch('k');
unlike(PostgreSQL::Test::Utils::slurp_file($t->source->logfile), qr/hunter2/, 'no password in the server log');
$t->drop_all;
done_testing();
