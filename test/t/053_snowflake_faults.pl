# What the service does on a bad day: tokens and credentials that end, answers that
# are lost after the work was done, interrupted uploads, busy locks, long statements.  Each row is
# there once, and the mirror never fails for what passes; what does not pass
# fails it once, with Snowflake's code and message.
use strict;
use warnings;

use ResyncSnowflake;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncSnowflake->new(src_conf => "resync.copier_buffer = '256kB'\n", service => [ '--ping-pong', '50' ]);
$t->src(<<'EOS');
CREATE TABLE k (id int PRIMARY KEY, v int, big text);
ALTER TABLE k ALTER big SET STORAGE EXTERNAL;
INSERT INTO k SELECT i, 0, (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 100) j) FROM generate_series(1, 1000) i;
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i, 'load' FROM generate_series(1, 100) i;
EOS
my $step = 0;
sub change { $step++; $t->src("UPDATE k SET v = $step WHERE id % 10 = $step % 10; INSERT INTO k VALUES (10000 + $step, $step, repeat('n', 3000)); INSERT INTO log SELECT $step, 'same' FROM generate_series(1, 5)"); return; }
sub all_well
{
	my ($name) = @_;
	subtest $name => sub {
		$t->until_true("SELECT status = 'running' AND phase = 'stream' FROM peerdb.mirrors WHERE mirror = 'm'", 'the mirror runs') or $t->describe('m');
		$t->sync('m');
		$t->same_sf('k');
		$t->same_sf('log', undef, soft_delete => undef);
		is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome NOT IN ('done')"), '0', 'no run failed');
	};
	return;
}
$t->create_mirror('m', [ 'public.k', { from => 'public.log', append => \1 } ], { snapshot_num_rows_per_partition => 300, snapshot_max_parallel_workers => 1 });
$t->wait_status('m', 'running');
all_well('undisturbed');

# ---- while it streams
my $query = '^POST /queries/v1/query-request ';
foreach my $case (
	[ 'a lost answer of the script', 'drop', "$query.*MERGE" ],
	[ 'a lost request', 'drop_before', "$query.*MERGE" ],
	[ 'the service is busy', 'fail', "$query.*MERGE", status => 503 ],
	[ 'too many requests', 'fail', "$query.*MERGE", status => 429 ],
	[ 'a lock that is not had', 'sql_error', "$query.*MERGE", code => '000625', message => 'Statement has locked table K in transaction 1 and this lock has not yet been released.', sqlState => '57014' ],
	[ 'a statement that somebody cancelled', 'sql_error', "$query.*MERGE", code => '000604', message => 'SQL execution canceled' ],
	[ 'a resource monitor', 'sql_error', "$query.*COPY", code => '090073', message => 'Warehouse WH cannot be resumed because resource monitor RM has exceeded its quota.', shows => 'exceeded its quota' ],
	[ 'a trouble of theirs', 'sql_error', "$query.*MERGE", code => '000603', message => 'SQL execution internal error' ],
	[ 'a lost answer of COPY', 'drop', "$query.*COPY" ],
	[ 'a COPY that is lost', 'drop_before', "$query.*COPY" ],
	[ 'a staging table\'s lost answer', 'drop', "$query.*CREATE OR REPLACE TRANSIENT" ],
	[ 'an upload cut off', 'cut', '^PUT /' ],
	[ 'an upload taken, its answer lost', 'drop', '^PUT /' ],
	[ 'a store that is busy', 'fail', '^PUT /', status => 503 ],
	[ 'an answer that is not Snowflake\'s', 'garbage', "$query.*MERGE" ],
	[ 'a slow answer', 'delay', "$query.*MERGE", ms => 500 ],
	[ 'a poll that is lost', 'drop', '^GET /queries/', before => [ 'delay', "$query.*MERGE", ms => 300 ] ],
	[ 'a statement in a block that fails for a moment', 'fail_at', "$query.*MERGE", fail_at => { match => '^UPDATE .*RUNS', code => '000625', message => 'lock' } ])
{
	my ($name, $action, $match, %o) = @$case;
	my $shows = delete $o{shows};
	my $before = delete $o{before};
	my ($first, $first_match, %first) = @{ $before // [] };
	$t->fault($first, $first_match, %first) if $before;
	my $id = $t->fault($action, $match, %o);
	change();
	$t->until_fault($id, "$name: it has happened");
	$t->until_true("SELECT error ~ '$shows' FROM peerdb.mirrors", "$name: it is shown") if defined $shows;
	all_well($name);
}

# ---- while it loads
foreach my $case (
	[ 'load: a file cut off', 'cut', '^PUT /', count => 2 ],
	[ 'load: the answer to a file is lost', 'drop', '^PUT /', count => 2 ],
	[ 'load: the store is busy', 'fail', '^PUT /', status => 503, count => 2 ],
	[ 'load: the stage\'s answer is lost', 'drop', "$query.*CREATE OR REPLACE TEMPORARY STAGE" ],
	[ 'load: the credentials\' answer is lost', 'drop', "${query}PUT " ],
	[ 'load: the answer to COPY is lost', 'drop', "$query.*COPY INTO" ],
	[ 'load: COPY fails for a moment', 'fail_at', "$query.*COPY INTO", fail_at => { match => '^COPY', code => '000625', message => 'lock' } ],
	[ 'load: a done-mark that fails for a moment', 'fail_at', "$query.*COPY INTO", fail_at => { match => 'INSERT INTO .*PARTITIONS', code => '000625', message => 'lock' } ],
	[ 'create: the new table\'s answer is lost', 'drop', "$query.*CREATE TABLE .*LIKE" ],
	[ 'create: renaming is interrupted', 'drop', "$query.*RENAME TO" ],
	[ 'swap: the answer is lost', 'drop', "$query.*SWAP WITH" ],
	[ 'swap: it is not done', 'drop_before', "$query.*SWAP WITH" ],
	[ 'swap: it fails for a moment', 'fail_at', "$query.*SWAP WITH", fail_at => { match => 'SWAP WITH', code => '000625', message => 'lock' } ],
	[ 'swap: the journal\'s answer is lost', 'drop', "$query.*swapped = TRUE" ],
	[ 'swap: the journal fails for a moment', 'sql_error', "$query.*swapped = TRUE", code => '000625', message => 'lock' ],
	[ 'swap: the mark is lost', 'drop_before', "$query.*COMMENT ON TABLE" ])
{
	my ($name, $action, $match, %o) = @$case;
	my $id = $t->fault($action, $match, %o);
	$t->resync('m', { keep_serving => $step % 2 ? 'true' : 'false' });
	change();
	$t->until_fault($id, "$name: it has happened");
	$t->wait_status('m', 'running', "$name: it goes on") or $t->describe('m');
	all_well($name);
}
is(join(',', $t->sf('SELECT COUNT(*) FROM ' . $t->name_of('K') . ' WHERE _PEERDB_IS_DELETED')), '0', 'no row was taken for deleted');

# ---- what is sent twice has one id, and new guids; and was done once
my %guids;
my %ids;
foreach my $r (grep { ($_->{what} // '') =~ /query-request/ } $t->requests)
{
	$guids{ $r->{guid} }++;
	$ids{ $r->{requestId} }++;
}
is(scalar(grep { $_ > 1 } values %guids), 0, 'no guid was sent twice');
cmp_ok(scalar(grep { $_ > 1 } values %ids), '>', 5, 'requests were sent again with their ids');
cmp_ok(scalar(grep { ($_->{what} // '') =~ m{GET /queries/} } $t->requests), '>', 0, 'long statements were asked for again');

# ---- credentials of the stage and tokens end in the middle
$t->src("ALTER SYSTEM SET resync.load_rate_limit = '200kB'; SELECT pg_reload_conf()");
my $puts = scalar grep { ($_->{sql} // '') =~ /^PUT / } $t->requests;
$t->resync('m');
$t->until_true("SELECT count(*) FILTER (WHERE p.status = 'done') > 0 AND count(*) FILTER (WHERE p.status <> 'done') > 0 FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run)", 'a part is loaded');
$t->admin('expire');
$t->admin('expire_creds');
$t->src('ALTER SYSTEM RESET resync.load_rate_limit; SELECT pg_reload_conf()');
$t->wait_status('m', 'running', 'tokens and credentials that end in a load') or $t->describe('m');
all_well('tokens and credentials that end in a load');
is($t->src("SELECT max(attempts) FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs)"), '1', 'no partition had to be read again');
cmp_ok(scalar(grep { ($_->{what} // '') =~ /token-request/ } $t->requests), '>', 0, 'tokens were renewed');

$t->admin('expire');
change();
all_well('tokens that end while it streams');
$t->admin('expire');
$t->admin('expire_master');
change();
all_well('a session that is over: another one is begun');
my $id = $t->fault('fail', '^POST /session/token-request', status => 503, count => 2);
$t->admin('expire');
change();
$t->until_fault($id, 'no new token at the moment');
all_well('no new token at the moment');

# ---- a long load says that its session is in use
sub renewals { return scalar grep { ($_->{what} // '') =~ /token-request/ } $t->requests }
$t->src("INSERT INTO log SELECT i, 'long' FROM generate_series(1, 3000) i");
$t->src(q{SELECT peerdb_edit_mirror('m', '{"snapshot_num_rows_per_partition": 100000}')});
$t->debug_point('sf_heartbeat_due', 'yes');
$id = $t->fault('drop', '^POST /session/heartbeat');
$t->resync('m');
$t->until_fault($id, 'a heartbeat is lost');
$t->wait_status('m', 'running', 'a lost heartbeat') or $t->describe('m');
all_well('a lost heartbeat');
my $renewals = renewals();
$id = $t->fault('hold', '^POST /session/heartbeat');
$t->resync('m');
$t->until_fault($id, 'a heartbeat is under way');
$t->admin('expire');
$t->admin('release');
$t->wait_status('m', 'running', 'a token that ended before a heartbeat') or $t->describe('m');
all_well('a token that ended before a heartbeat');
cmp_ok(renewals(), '>', $renewals, 'it was renewed');
is($t->src("SELECT max(attempts) FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs)"), '1', 'no partition had to be read again for it');
$t->debug_point('sf_heartbeat_due');

# ---- the service is away
$t->admin('down');
change();
$t->until_true("SELECT error IS NOT NULL FROM peerdb.mirrors", 'away: the error is shown meanwhile');
$t->admin('up');
all_well('the service was away');
$t->until_true("SELECT error IS NULL FROM peerdb.mirrors", 'away: nothing is shown any more');

# ---- what does not pass fails it, once, with code and message
$id = $t->fault('sql_error', "$query.*MERGE", code => '003001', message => "SQL access control error:\nInsufficient privileges to operate on table 'K'", sqlState => '42501', count => 100);
change();
$t->until_failed('m', qr/Insufficient privileges to operate on table 'K'.*003001/s, 'no privilege');
is($t->admin('hits', id => $id), '1', 'no privilege: it was not tried again');
$t->admin('clear');
$t->src("SELECT peerdb_resume_mirror('m')");
all_well('resumed');

# what is wrong with a value is said without the value
$id = $t->fault('sql_error', "$query.*COPY", code => '100038', message => "Numeric value 'verysecret' is not recognized\n  File 'a/0.csv.gz', line 3, character 12\n  Row 3, column \"K\"[\"V\":2]\n  If you would like", sqlState => '22018');
change();
$t->until_failed('m', qr/refused the data.*Row 3, column "K"\["V":2\].*100038/s, 'a value that is refused: row, column and code are named');
$t->src("SELECT peerdb_resume_mirror('m')");
all_well('resumed again');

# ---- a statement that nobody waits for any more ends there, too
$id = $t->fault('hold', "$query.*MERGE");
change();
$t->until_fault($id, 'a statement hangs');
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_true("SELECT status = 'paused' FROM peerdb.mirrors", 'paused all the same');
ok($t->poll(sub { $t->admin('running') == 0 }), 'the statement was cancelled there');
$t->src("SELECT peerdb_resume_mirror('m')");
all_well('after the pause');

# ---- the run was begun twice, by a session that nobody waits for any more
$t->sf("INSERT INTO DB._PEERDB_INTERNAL._PEERDB_RESYNC_RUNS SELECT token, run, 'late', mirror, source, 'active', '0/1', 0, FALSE, SYSDATE() FROM DB._PEERDB_INTERNAL._PEERDB_RESYNC_RUNS WHERE state = 'active'");
change();
all_well('a row of the run that came late');

# nothing secret anywhere
my $key = slurp_file("$t->{dir}/key.pem");
my ($line) = (split /\n/, $key)[3];
my $log = slurp_file($t->source->logfile);
my $views = $t->src("SELECT string_agg(l::text, ' ') FROM peerdb.logs l") . $t->src("SELECT string_agg(m::text, ' ') FROM peerdb.mirrors m") . $t->src("SELECT string_agg(a::text, ' ') FROM pg_stat_activity a");
unlike("$log $views", qr/\Q$line\E|Snowflake Token|AWS4|verysecret/, 'no token, no key and no value in logs and views');
$t->drop_all;
done_testing();
