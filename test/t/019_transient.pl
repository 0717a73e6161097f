# Errors of the destination that pass: the mirror waits and goes on from where
# it was, without failing; the workers that end do, too.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my $t = ResyncTest->new;
my $dest = $t->dest;

$t->dst(<<'EOS');
CREATE ROLE loader LOGIN;
GRANT CREATE ON DATABASE postgres TO loader;
GRANT CREATE ON SCHEMA public TO loader;
-- raises the error that there is to raise, as often as it says
CREATE TABLE trouble (code text, message text, times int, relation text, operation text);
CREATE SEQUENCE raised;
GRANT SELECT ON trouble TO loader;
GRANT USAGE ON raised TO loader;
CREATE FUNCTION trouble(tab text, op text) RETURNS void LANGUAGE plpgsql SET search_path = public AS $$
DECLARE x trouble;
BEGIN
	FOR x IN SELECT * FROM trouble WHERE tab = relation AND op = operation LOOP
		-- what a sequence counts is not rolled back
		IF nextval('raised') <= x.times THEN
			RAISE EXCEPTION USING ERRCODE = x.code, MESSAGE = x.message;
		END IF;
	END LOOP;
END $$;
CREATE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	PERFORM trouble(TG_RELNAME::text, TG_OP);
	RETURN coalesce(NEW, OLD);
END $$;
-- every table under construction gets the trigger
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql SET search_path = public AS $$
DECLARE x record;
BEGIN
	FOR x IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE command_tag = 'CREATE TABLE' LOOP
		CONTINUE WHEN x.objid::regclass::text !~ '_resync$';
		PERFORM trouble(x.objid::regclass::text, 'CREATE');
		EXECUTE format('CREATE TRIGGER on_row BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION public.on_row()', x.objid::regclass);
	END LOOP;
END $$;
CREATE EVENT TRIGGER on_ddl ON ddl_command_end EXECUTE FUNCTION on_ddl();
EOS
$t->src(<<'EOS');
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT i, repeat(md5(i::text), 5) FROM generate_series(1, 3000) i;
ALTER USER MAPPING FOR CURRENT_USER SERVER dest OPTIONS (SET user 'loader');
EOS

# The last line of the log before there was trouble.
my $since = 0;
sub remember { $since = $t->src('SELECT coalesce(max(id), 0) FROM peerdb.logs'); return; }

# The next statements of this kind on the table raise the error.
sub trouble
{
	my ($code, $message, $times, $relation, $operation) = @_;
	remember();
	$t->dst("DELETE FROM trouble; ALTER SEQUENCE raised RESTART; INSERT INTO trouble VALUES ('$code', '$message', $times, '$relation', '$operation')");
	return;
}

# The mirror went through it: tried again until it was over, and never failed.
# code: a pattern of SQLSTATEs.
sub went_through
{
	my ($times, $code, $name) = @_;
	$t->wait_status('m', 'running', "$name: the mirror goes on by itself");
	$t->sync('m', "$name: catches up");
	$t->same('t', "$name: equal");
	cmp_ok($t->dst('SELECT last_value FROM raised'), '>', $times, "$name: it was raised $times times, and tried once more");
	is($t->src("SELECT count(*) FROM peerdb.runs WHERE outcome IN ('failed', 'refused')"), '0', "$name: no run has failed");
	is($t->src("SELECT count(*) FROM peerdb.logs WHERE level = 'error'"), '0', "$name: and no error is in the log");
	is($t->src("SELECT count(*) > 0 FROM peerdb.logs WHERE level = 'warning' AND id > $since AND sqlstate ~ '^($code)\$'"), 't', "$name: but a warning");
	$t->until_true("SELECT error IS NULL FROM peerdb.mirrors", "$name: nothing is shown any more");
	return;
}

my $options = { snapshot_num_rows_per_partition => 300, snapshot_max_parallel_workers => 2 };
my $n = 10000;
my @errors = ([ '53100', 'no space left' ], [ '53200', 'out of memory' ], [ '40P01', 'a deadlock' ], [ '40001', 'could not serialize' ]);

# ---- the first load: each step of it
trouble('53100', 'no space left', 2, 't_resync', 'CREATE');
$t->create_mirror('m', ['public.t'], $options);
went_through(2, '53100', 'disk full when tables are created');

foreach my $error (@errors)
{
	my ($code, $message) = @$error;

	# some partitions are loaded before it comes
	$t->dst('DELETE FROM trouble');
	$t->src("ALTER SYSTEM SET resync.load_rate_limit = '100kB'");
	$t->src('SELECT pg_reload_conf()');
	$t->resync('m');
	$t->until_true("SELECT count(*) >= 2 FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs) AND status = 'done'", "$code: some partitions are loaded");
	my $done = "SELECT partition, attempts, finished_at FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs) AND status = 'done'";
	my $before = $t->src("$done ORDER BY 1");
	my $numbers = join ',', map { (split /\|/)[0] } split /\n/, $before;
	trouble($code, $message, 3, 't_resync', 'INSERT');
	$t->src('ALTER SYSTEM RESET resync.load_rate_limit');
	$t->src('SELECT pg_reload_conf()');
	went_through(3, $code, "$message, load");
	is($t->src("$done AND partition IN ($numbers) ORDER BY 1"), $before, "$message, load: what was loaded was not loaded again");

	# the trigger came with the table through the swap
	trouble($code, $message, 2, 't', 'UPDATE');
	$t->src("UPDATE t SET v = '$code' WHERE id BETWEEN 1 AND 20; INSERT INTO t VALUES (" . $n++ . ", 'x')");
	$t->until_true("SELECT error ~ '$message' FROM peerdb.mirrors", "$message, stream: the error is shown meanwhile")
	  if $code eq '53100';
	went_through(2, $code, "$message, stream");
}
$t->dst('DELETE FROM trouble');

# ---- no connection is free
foreach my $phase ('stream', 'load')
{
	remember();
	$t->dst('ALTER ROLE loader CONNECTION LIMIT 0');
	my $end = sub {
		$t->dst("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'loader'");
	};
	if ($phase eq 'stream')
	{
		$end->();
		$t->src("UPDATE t SET v = '53300' WHERE id = 30");
	}
	else
	{
		$t->dst('ALTER ROLE loader CONNECTION LIMIT -1');
		$t->src("ALTER SYSTEM SET resync.load_rate_limit = '50kB'");
		$t->src('SELECT pg_reload_conf()');
		$t->resync('m');
		$t->until_true("SELECT count(*) > 0 FROM peerdb.partitions WHERE run = (SELECT max(run) FROM peerdb.runs) AND status = 'done'", 'loading');
		$t->dst('ALTER ROLE loader CONNECTION LIMIT 0');
		$end->();
		$t->src('ALTER SYSTEM RESET resync.load_rate_limit');
		$t->src('SELECT pg_reload_conf()');
	}
	$t->until_true("SELECT error ~ 'too many connections' FROM peerdb.mirrors", "too many connections, $phase: the error is shown meanwhile");
	$t->dst('ALTER ROLE loader CONNECTION LIMIT -1; ALTER SEQUENCE raised RESTART');
	went_through(0, '53300|08006|57P01', "too many connections, $phase");
}

# ---- each worker ended once more, one at a time
foreach my $kind ('launcher', 'coordinator', 'streamer')
{
	my $who = "FROM pg_stat_activity WHERE backend_type = 'resync $kind'";
	my $pid = $t->src("SELECT pid $who");
	$t->src("SELECT pg_terminate_backend($pid)");
	$t->until_true("SELECT count(*) = 1 AND bool_and(pid <> $pid) $who", "$kind ended: there is a new one");
	$t->src('INSERT INTO t VALUES (' . $n++ . ", '$kind')");
	$t->sync('m', "$kind ended: the mirror goes on");
	$t->same('t', "$kind ended: equal");
	is($t->src("SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('resync coordinator', 'resync streamer')"), '2', "$kind ended: one worker of each kind");
}

# ---- what does not pass fails at once, once
trouble('22023', 'this does not pass', 1000, 't', 'UPDATE');
$t->src("UPDATE t SET v = 'permanent' WHERE id = 40");
$t->until_failed('m', qr/this does not pass/, 'a permanent error');
is($t->dst('SELECT last_value FROM raised'), '1', 'a permanent error: it was not tried again');
$t->dst('DELETE FROM trouble');
$t->src("SELECT peerdb_resume_mirror('m')");
$t->sync('m');
$t->same('t', 'resumed');

$t->drop_all;
done_testing();
