# What the service does on a bad day: tokens that end, answers that are lost
# after the work was done, interrupted uploads, quotas, failed jobs.  Each row is
# there once, and the mirror never fails for what passes; what does not pass
# fails it once, with BigQuery's reason and message.
use strict;
use warnings;

use ResyncBigQuery;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncBigQuery->new(src_conf => "resync.copier_buffer = '256kB'\n");
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
		$t->same_bq('k');
		$t->same_bq('log', undef, soft_delete => undef);
		is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome NOT IN ('done')"), '0', 'no run failed');
	};
	return;
}
$t->create_mirror('m', [ 'public.k', { from => 'public.log', append => \1 } ], { snapshot_num_rows_per_partition => 300, snapshot_max_parallel_workers => 1 });
$t->wait_status('m', 'running');
all_well('undisturbed');

# ---- while it streams
my $insert = '^POST /bigquery/v2/projects/[^ ]*/jobs ';
foreach my $case (
	[ 'a lost answer of the script', 'drop', "$insert.*MERGE" ],
	[ 'a lost request', 'drop_before', "$insert.*MERGE" ],
	[ 'the service is busy', 'fail', "$insert.*MERGE", status => 503, reason => 'backendError' ],
	[ 'a rate limit', 'fail', "$insert.*MERGE", status => 403, reason => 'rateLimitExceeded' ],
	[ 'a quota', 'fail', '^POST /upload', status => 403, reason => 'quotaExceeded', shows => 'quotaExceeded.*until the quota is renewed' ],
	[ 'a job that failed in the service', 'job_error', "$insert.*MERGE", reason => 'backendError' ],
	[ 'transactions that met', 'job_error', "$insert.*MERGE", reason => 'invalidQuery', message => 'Transaction is aborted due to concurrent update against table t' ],
	[ 'a load job that failed in the service', 'job_error', '^POST /upload', reason => 'internalError' ],
	[ 'an upload cut off', 'cut', '^PUT upload', bytes => 20 ],
	[ 'an upload taken, its answer lost', 'drop', '^PUT upload' ],
	[ 'an upload that is forgotten', 'gone', '^PUT upload' ],
	[ 'an answer that is not BigQuery\'s', 'garbage', "$insert.*MERGE" ],
	[ 'a slow answer', 'delay', "$insert.*MERGE", ms => 500 ],
	[ 'a job that is not found at once', 'fail', '^GET .*/jobs/', status => 500, reason => 'internalError' ])
{
	my ($name, $action, $match, %o) = @$case;
	my $shows = delete $o{shows};
	my $id = $t->fault($action, $match, %o);
	change();
	$t->until_fault($id, "$name: it has happened");
	$t->until_true("SELECT error ~ '$shows' FROM peerdb.mirrors", "$name: it is shown, with what becomes of it") if defined $shows;
	all_well($name);
}

# ---- while it loads
foreach my $case (
	[ 'load: a chunk taken in part', 'partial', '^PUT upload', bytes => 0 ],
	[ 'load: a chunk cut off', 'cut', '^PUT upload', bytes => 100000, count => 2 ],
	[ 'load: the answer to a chunk is lost', 'drop', '^PUT upload', count => 2 ],
	[ 'load: a session that is forgotten', 'gone', '^PUT upload' ],
	[ 'load: a chunk that is refused', 'fail', '^PUT upload', status => 403, reason => 'rateLimitExceeded' ],
	[ 'load: the session\'s start is lost', 'drop', '^POST /upload' ],
	[ 'load: the service is busy', 'fail', '^PUT upload', status => 503, count => 2 ],
	[ 'load: a failed job', 'job_error', '^POST /upload', reason => 'backendError' ],
	[ 'load: a done-mark\'s answer is lost', 'drop', "$insert.*INSERT INTO .*_peerdb_resync_partitions" ],
	[ 'swap: the copy\'s answer is lost', 'drop', "$insert.*_swap_" ],
	[ 'swap: the copy fails', 'job_error', "$insert.*_swap_", reason => 'backendError' ],
	[ 'swap: the journal\'s answer is lost', 'drop', "$insert.*swapped = TRUE" ],
	[ 'swap: restating is interrupted', 'drop_before', '^PATCH .*tables/k ' ])
{
	my ($name, $action, $match, %o) = @$case;
	my $id = $t->fault($action, $match, %o);
	$t->resync('m', { keep_serving => $step % 2 ? 'true' : 'false' });
	change();
	$t->until_fault($id, "$name: it has happened");
	$t->wait_status('m', 'running', "$name: it goes on") or $t->describe('m');
	all_well($name);
}

# ---- tokens
$t->admin('expire');
change();
all_well('tokens that are withdrawn');
my $id = $t->fault('fail', '^POST /token', status => 503, reason => 'x', count => 2);
$t->admin('expire');
change();
$t->until_fault($id, 'no token at the moment');
all_well('no token at the moment');

# ---- the service is away
$t->admin('down');
change();
$t->until_true("SELECT error IS NOT NULL FROM peerdb.mirrors", 'away: the error is shown meanwhile');
$t->admin('up');
all_well('the service was away');
$t->until_true("SELECT error IS NULL FROM peerdb.mirrors", 'away: nothing is shown any more');

# ---- what does not pass fails it, once, with reason and message
$id = $t->fault('job_error', "$insert.*MERGE", reason => 'accessDenied', message => 'Access Denied: Table k: User does not have bigquery.tables.updateData', count => 100);
change();
$t->until_failed('m', qr/Access Denied: Table k.*accessDenied/s, 'no permission');
is($t->admin('hits', id => $id), '1', 'no permission: it was not tried again');
$t->admin('clear');
$t->src("SELECT peerdb_resume_mirror('m')");
all_well('resumed');

# nothing secret anywhere
my $token = $t->_token;
my $key = slurp_file("$t->{dir}/key.pem");
my ($line) = (split /\n/, $key)[3];
my $log = slurp_file($t->source->logfile);
my $views = $t->src("SELECT string_agg(l::text, ' ') FROM peerdb.logs l") . $t->src("SELECT string_agg(m::text, ' ') FROM peerdb.mirrors m") . $t->src("SELECT string_agg(a::text, ' ') FROM pg_stat_activity a");
unlike("$log $views", qr/ya29\.|\Q$line\E|assertion=/, 'no token and no key in logs and views');
$t->drop_all;
done_testing();
