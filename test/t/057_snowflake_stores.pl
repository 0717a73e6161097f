# The object stores that Snowflake's stages are at: Amazon's, Microsoft's (verified
# by their own emulator), Google's with a token and with an URL for each file.  The
# same mirror at each: a load of many files and changes, each row once, while
# rights end, uploads break off and the store is busy.
use strict;
use warnings;

use ResyncSnowflake;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncSnowflake->new(src_conf => "resync.copier_buffer = '64kB'\n");
my $began = $t->src('SELECT pg_postmaster_start_time()');

# The service again, with its stages at another store.
sub use_store
{
	my ($kind) = @_;
	kill 'TERM', $t->{engine};
	waitpid($t->{engine}, 0);
	unlink "$t->{dir}/out", "$t->{dir}/log";
	$t->{service} = [ '--store', $kind ];
	$t->start_sf;
	$t->src("ALTER SERVER sf OPTIONS (SET url 'http://127.0.0.1:$t->{port}')");
	return;
}

# quick: of long texts only their length.
sub all_well
{
	my ($name, %o) = @_;
	my %columns = $o{quick} ? (columns => [qw(id::text v::text length(big)::text)], sf_columns => [ map { "TO_VARCHAR($_)" } qw("ID" "V" LENGTH("BIG")) ]) : ();
	subtest $name => sub {
		$t->until_true("SELECT status = 'running' AND phase = 'stream' FROM peerdb.mirrors WHERE mirror = 'm'", 'the mirror runs') or $t->describe('m');
		$t->sync('m');
		$t->same_sf('k', undef, %columns);
		$t->same_sf('log', undef, soft_delete => undef);
		is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome NOT IN ('done')"), '0', 'no run failed');
	};
	return;
}

my $step = 0;
sub change
{
	$step++;
	$t->src(<<"EOS");
UPDATE k SET v = v + $step WHERE id % 10 = $step % 10;
DELETE FROM k WHERE id = $step;
INSERT INTO k SELECT 10000 + 100 * $step + i, $step, words($step, i) FROM generate_series(1, 50) i;
INSERT INTO log SELECT $step, 'same' FROM generate_series(1, 5);
EOS
	return;
}

sub uploads { return grep { $_->{upload} } $t->requests; }
sub asked { return scalar grep { ($_->{sql} // '') =~ /^PUT / } $t->requests; }

# Rights end after a file was sent, before it is looked at.
sub expire_in
{
	my ($begin, $skip, $name) = @_;
	my $before = asked();
	my $id = $t->fault('hold', '^PUT /', skip => $skip);
	$begin->();
	$t->until_fault($id, "$name: a file is on its way");
	$t->admin('expire_creds');
	$t->admin('release');
	return $before;
}

# status of a file that is taken; and where the right has ended, with the code
my %stores = (
	S3 => [ 200, 400, 'ExpiredToken' ],
	AZURE => [ 201, 403, 'AuthenticationFailed' ],
	GCS => [ 200, 401, 'AuthenticationRequired' ],
	PRESIGNED => [ 200, 400, 'ExpiredToken' ]);

$t->src(<<'EOS');
CREATE FUNCTION words(a int, b int) RETURNS text LANGUAGE sql AS $$ SELECT string_agg(md5((a * b * j)::text || b), '') FROM generate_series(1, 25) j $$;
EOS
foreach my $kind (qw(S3 AZURE GCS PRESIGNED))
{
	my ($taken, $refused, $code) = @{ $stores{$kind} };
	my $each = $kind eq 'PRESIGNED'; # a right is good for one file

	use_store($kind);
	$t->src(<<'EOS');
CREATE TABLE k (id int PRIMARY KEY, v int, big text);
ALTER TABLE k ALTER big SET STORAGE EXTERNAL;
INSERT INTO k SELECT i, 0, words(i, 1) FROM generate_series(1, 3000) i;
CREATE TABLE log (at int, what text);
INSERT INTO log SELECT i, 'load' FROM generate_series(1, 100) i;
EOS

	# ---- a load, in whose middle the rights end
	expire_in(sub {
			$t->create_mirror('m', [ 'public.k', { from => 'public.log', append => \1 } ],
				{ snapshot_num_rows_per_partition => 1000, snapshot_max_parallel_workers => 1 });
		}, 4, "$kind, load");
	$t->wait_status('m', 'running', "$kind: rights that end in a load") or $t->describe('m');
	all_well("$kind: rights that end in a load");
	is($t->src("SELECT max(attempts) FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs)"), '1', "$kind: no partition had to be read again");
	my @taken = grep { $_->{status} == $taken } uploads();
	my %names = map { $_->{what} => 1 } @taken;
	cmp_ok(scalar(@taken), '>', 15, "$kind: many files");
	is(scalar(keys %names), scalar(@taken), "$kind: each of them once, by its own name");
	my @refused = grep { $_->{status} != $taken } uploads();
	is(join(', ', map { "$_->{status} " . ($_->{refused} =~ /^(\w+)/)[0] } @refused), "$refused $code", "$kind: one was refused, for a right that had ended");
	cmp_ok(asked(), $each ? '>=' : '<', scalar(@taken), "$kind: rights are asked for " . ($each ? 'for each file' : 'once for many files'));

	# ---- changes
	change() foreach 1 .. 3;
	all_well("$kind: changes");
	my $before = expire_in(\&change, 0, "$kind, changes");
	all_well("$kind: rights that end in the middle of changes");
	cmp_ok(asked(), '>', $before, "$kind: new rights were asked for");

	# ---- uploads that break
	foreach my $case (
		[ 'cut off', 'cut' ],
		[ 'cut off three times', 'cut', count => 3 ],
		[ 'taken, its answer lost', 'drop' ],
		[ 'the store is busy', 'fail', status => 503 ],
		[ 'the store wants it slower', 'fail', status => 429 ],
		[ 'the store has an error', 'fail', status => 500, body => '<html>a page of a proxy</html>' ])
	{
		my ($name, $action, %o) = @$case;
		my $id = $t->fault($action, '^PUT /', %o);
		change();
		$t->until_fault($id, "$kind, changes, $name: it has happened", times => $o{count});
		all_well("$kind, changes: $name", quick => 1);
	}
	all_well("$kind, changes: what is there after all of it");
	foreach my $case ([ 'files are cut off', 'cut' ], [ 'the store is busy', 'fail', status => 503 ], [ 'answers are lost', 'drop' ])
	{
		my ($name, $action, %o) = @$case;
		my $id = $t->fault($action, '^PUT /', skip => 3, count => 2, %o);
		$t->resync('m');
		change();
		$t->until_fault($id, "$kind, load, $name: it has happened", times => 2);
		$t->wait_status('m', 'running', "$kind, load: $name") or $t->describe('m');
		all_well("$kind, load: $name");
		is($t->src("SELECT max(attempts) FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs)"), '1', "$kind, load, $name: no partition had to be read again");
	}

	# ---- Snowflake names a place, but gives no right
	$t->admin('expire_creds');
	$t->admin('set', give_creds => \0);
	change();
	$t->until_true("SELECT error ~ 'gives no credentials' FROM peerdb.mirrors", "$kind, no right is given: it is shown");
	$t->admin('set', give_creds => \1);
	all_well("$kind: no right is given for a while", quick => 1);

	# ---- rights that are new and no good, either: that does not pass
	my $id = $t->fault('fail', '^PUT /', status => $refused, code => $code, count => 100);
	change();
	$t->until_failed('m', qr/object store does not take a file.*$refused.*$code/s, "$kind, refused again and again");
	is($t->admin('hits', id => $id), '2', "$kind, refused again and again: with two rights");
	$t->admin('clear');
	$t->src("SELECT peerdb_resume_mirror('m')");
	all_well("$kind: resumed");

	is(join("\n", map { $_->{trouble} // $_->{error} } grep { defined $_->{trouble} || defined $_->{error} } $t->requests), '', "$kind: no trouble of the service itself");
	$t->drop_all;
	$t->src('DROP TABLE k, log');
}

is($t->src('SELECT pg_postmaster_start_time()'), $began, 'the source was never started again');
my $log = slurp_file($t->source->logfile);
unlike($log, qr/terminated by signal/, 'no process has crashed');
unlike($log, qr/sig=|ya29|Signature=|GoogleAccessId|AWS4|Bearer/, 'no right in the log');
done_testing();
