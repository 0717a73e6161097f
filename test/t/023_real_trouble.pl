# Trouble of the destination that is no play: a deadlock in which our
# transaction is the victim, and a disk that is full while tables are loaded
# and while changes are applied.  The mirror goes through it and never fails.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncTest->new;
my $dest = $t->dest;

$t->src(<<'EOS');
CREATE TABLE one (id int PRIMARY KEY, v text);
CREATE TABLE two (id int PRIMARY KEY, v text);
INSERT INTO one SELECT i, i FROM generate_series(1, 100) i;
INSERT INTO two SELECT * FROM one;
EOS

# The mirror is as if nothing had been: nothing failed, and a warning tells.
sub went_through
{
	my ($mirror, $sqlstate, $name) = @_;
	is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome IN ('failed', 'refused')"), '0', "$name: no run has failed");
	is($t->src("SELECT count(*) FROM peerdb.logs WHERE level = 'error'"), '0', "$name: no error is in the log");
	cmp_ok($t->src("SELECT count(*) FROM peerdb.logs WHERE mirror = '$mirror' AND level = 'warning' AND sqlstate = '$sqlstate'"), '>', 0, "$name: but a warning");
	$t->until_true("SELECT error IS NULL FROM peerdb.mirrors WHERE mirror = '$mirror'", "$name: nothing is shown any more");
	return;
}

# ---- a deadlock: the other session never looks for one, so that we are the
# victim.  A batch is applied table by table, the last one of the mirror first.
$t->create_mirror('m', [ 'public.one', 'public.two' ]);
$t->wait_status('m', 'running');
$t->sync('m');
my $other = $t->session($dest);
$other->query_safe("SET deadlock_timeout = '1h'; BEGIN; UPDATE one SET v = v WHERE id = 1");
$t->src("BEGIN; UPDATE one SET v = 'x' WHERE id = 1; UPDATE two SET v = 'x' WHERE id = 1; COMMIT");
$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'resync streamer m' AND wait_event_type = 'Lock'",
	'deadlock: the batch waits for the other session', node => $dest);
$other->query_safe('UPDATE two SET v = v WHERE id = 1');
pass('deadlock: the other session went on');
$other->query_safe('ROLLBACK');
$other->quit;
$t->sync('m', 'deadlock: the mirror goes on by itself');
$t->same($_, "deadlock: $_ is equal") foreach 'one', 'two';
went_through('m', '40P01', 'deadlock');

# ---- a full disk: the destination database lies on a file system of its own,
# which is in the way of nobody, in a mount namespace of that server
SKIP:
{
	my $room = PostgreSQL::Test::Utils::tempdir() . '/room';
	my @namespace = ('unshare', '--user', '--mount', '--map-current-user', '--keep-caps', 'sh', '-c');
	my ($out, $err) = ('', '');
	mkdir $room or die "$room: $!";
	skip "no mount namespace to be had: $err", 17
	  if !IPC::Run::run([ @namespace, "mount -t tmpfs -o size=1m none $room" ], '>', \$out, '2>', \$err);

	$dest->stop;
	{
		my $start = sprintf "mount -t tmpfs -o size=64m,mode=0700 none '%s' && exec pg_ctl -w -D '%s' -l '%s' start", $room, $dest->data_dir, $dest->logfile;
		IPC::Run::run([ @namespace, $start ], '>', \$out, '2>', \$err) or die "pg_ctl: $out $err";
	}
	$dest->_update_pid(1);
	$t->dst("CREATE TABLESPACE room LOCATION '$room'");
	$t->dst('CREATE DATABASE small TABLESPACE room');
	my ($host, $port, $user) = ($dest->host, $dest->port, $t->dst('SELECT current_user'));
	$t->src(<<"EOS");
CREATE SERVER small FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '$host', port '$port', dbname 'small');
CREATE USER MAPPING FOR CURRENT_USER SERVER small OPTIONS (user '$user');
CREATE TABLE large (id int PRIMARY KEY, v text);
INSERT INTO large SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 10000) i;
EOS

	# rows are compared by their hash: the databases differ
	my $sum = "count(*) || ' ' || sum(hashtextextended(id || v, 0))";
	my $fill = sub {
		my ($leave) = @_;    # MB
		my $free = "SELECT 64 * 1024 * 1024 - sum(pg_database_size(oid)) - $leave * 1024 * 1024 FROM pg_database WHERE datname = 'small'";
		my $pages = int($t->dst($free) / 8192 / 1.02);
		$t->dst("CREATE TABLE ballast (x char(8000)); ALTER TABLE ballast ALTER x SET STORAGE PLAIN; INSERT INTO ballast SELECT 'x' FROM generate_series(1, $pages)", db => 'small');
	};
	my $through = sub {
		my ($name) = @_;
		$t->until_true("SELECT error ~ 'No space left on device' FROM peerdb.mirrors WHERE mirror = 'l'", "$name: the destination's error is shown");
		$t->dst('DROP TABLE ballast', db => 'small');
		$t->dst('CHECKPOINT');
		$t->wait_status('l', 'running', "$name: the mirror goes on by itself");
		$t->sync('l', "$name: it catches up");
		is($t->dst("SELECT $sum FROM large WHERE NOT _peerdb_is_deleted", db => 'small'), $t->src("SELECT $sum FROM large"), "$name: equal");
		went_through('l', '53100', $name);
	};

	$fill->(4);
	$t->create_mirror('l', ['public.large'], { snapshot_num_rows_per_partition => 1000, snapshot_max_parallel_workers => 2 }, peer => 'small');
	$through->('disk full, load');
	$fill->(2);
	$t->src("UPDATE large SET v = v || 'y' WHERE id <= 8000");
	$through->('disk full, stream');
	$t->src("SELECT peerdb_drop_mirror('l')");
	$t->until_true("SELECT count(*) = 1 FROM peerdb.mirrors", 'dropped');
}

$t->drop_all;
done_testing();
