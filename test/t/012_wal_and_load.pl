# What a mirror may cost the source: WAL, snapshots, locks, bandwidth, crashes;
# and settings of roles and databases that must not matter.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $t = ResyncTest->new(src_conf => <<'EOC');
wal_keep_size = 0
min_wal_size = 32MB
checkpoint_timeout = 1h
restart_after_crash = on
EOC
my $source = $t->source;
my $dest = $t->dest;

sub setting
{
	my ($name, $value) = @_;
	$t->src(defined $value ? "ALTER SYSTEM SET $name = '$value'" : "ALTER SYSTEM RESET $name");
	$t->src('SELECT pg_reload_conf()');
	return;
}

sub workers
{
	my ($kind) = @_;
	return "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'resync $kind'";
}

sub switch_wal
{
	foreach (1 .. $_[0]) { $t->src('INSERT INTO filler VALUES (1)'); $t->src('SELECT pg_switch_wal()'); }
	return;
}

# The server is through crash recovery, for the n-th time.
sub crashes { my @l = grep { /all server processes terminated; reinitializing/ } split /\n/, slurp_file($source->logfile); return scalar @l; }
sub until_crashed
{
	my ($n, $name) = @_;
	my $end = time() + 60;
	sleep 0.05 while crashes() < $n && time() < $end;
	cmp_ok(crashes(), '>=', $n, $name);
	my $up = 0;
	while (!$up && time() < $end)
	{
		eval { $up = ($source->psql('postgres', 'SELECT 1') // 1) == 0; };
		sleep 0.1;
	}
	ok($up, "$name: and is back");
	return;
}

$t->src(<<'EOS');
CREATE TABLE filler (x int);
CREATE TABLE w (id int PRIMARY KEY, grp int, v text);
CREATE TABLE other (id int PRIMARY KEY, v text);
INSERT INTO w SELECT i, i % 10, repeat(md5(i::text), 10) FROM generate_series(1, 6000) i;
INSERT INTO other SELECT i, i FROM generate_series(1, 10) i;
EOS
$t->create_mirror('m', ['public.w'], { snapshot_num_rows_per_partition => 500, snapshot_max_parallel_workers => 2 });
$t->wait_status('m', 'running');
$t->sync('m');

my $n = 100000;
sub equal
{
	my ($what) = @_;
	$n++;
	$t->src("INSERT INTO w (id, grp, v) VALUES ($n, 1, 'new'); UPDATE w SET v = 'u$n' WHERE id = 1");
	$t->sync('m', "$what: catches up");
	$t->same('w', "$what: equal");
	return;
}

# The launcher looks at slots at rest every few seconds, if something wakes it.
sub nudge
{
	my ($done) = @_;
	foreach (1 .. 20)
	{
		last if $t->src($done) eq 't';
		$t->src('SELECT pg_reload_conf()');
		sleep 0.4;
	}
	return;
}

sub over_limit
{
	my ($what) = @_;
	nudge("SELECT peerdb_mirror_status('m') = 'failed'");
	$t->until_failed('m', qr/more WAL than resync.max_wal_retained.*peerdb_resync/s, $what);
	$t->until_true("SELECT count(*) = 0 FROM pg_replication_slots", "$what: its slot is gone");
	return;
}

# ---- resync.max_wal_retained: the warning while it is paused, then the end
setting('resync.max_wal_retained', '64MB');
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
switch_wal(2);
nudge("SELECT count(*) >= 1 FROM peerdb.logs WHERE mirror = 'm' AND level = 'warning' AND message ~ 'holds back'");
$t->until_true("SELECT count(*) >= 1 FROM peerdb.logs WHERE mirror = 'm' AND level = 'warning' AND message ~ 'holds back \\d+ MB of WAL'", 'paused: a warning as the slot grows');
is($t->status('m'), 'paused', 'paused: and no more than that');
switch_wal(4);
over_limit('paused');
$t->resync('m');
$t->wait_status('m', 'running', 'paused: a resync recovers it');

# ---- a small limit: what a healthy stream could let go at once does not count
{
	my $retained = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) < 1024 * 1024 FROM pg_replication_slots";
	$t->sync('m');
	setting('resync.max_wal_retained', '1MB');
	foreach my $i (1 .. 5)
	{
		$t->src('INSERT INTO filler SELECT generate_series(1, 60000)');
		$t->until_true($retained, "a small limit, $i: WAL of others is let go at once", limit => 8);
		is($t->status('m'), 'running', "a small limit, $i: an idle mirror runs on");
	}

	# what is written while the streamer reads and answers does not count either
	my $writer = $t->writer('INSERT INTO filler SELECT generate_series(1, 5000);', clients => 1);
	my $end = $t->src("SELECT pg_current_wal_lsn() + 40 * 1024 * 1024");
	$t->until_true("SELECT pg_current_wal_lsn() > '$end'", 'a small limit: others write without a break');
	$t->sync('m', 'a small limit: it follows meanwhile');
	$t->stop($writer);
	equal('a small limit');
}

# ---- a destination that does not follow
{
	my $lock = $t->session($dest);
	$lock->query_safe("BEGIN; SELECT 1 FROM _peerdb_internal.resync_run WHERE state = 'active' FOR UPDATE");
	$t->src('INSERT INTO filler SELECT generate_series(1, 60000)');
	over_limit('a destination that does not follow');
	$lock->query('ROLLBACK');
	$lock->quit;
	setting('resync.max_wal_retained');
	$t->resync('m');
	$t->wait_status('m', 'running', 'a destination that does not follow: a resync recovers it');
}

# ---- while it runs: a transaction that stays open
my $long = $t->session($source);
$long->query_safe('BEGIN; INSERT INTO filler VALUES (0)');
$t->src("INSERT INTO w VALUES (7000, 1, 'x')");
switch_wal(1);
setting('resync.max_wal_retained', '16MB');
switch_wal(3);
over_limit('running');
$long->query('ROLLBACK');
$long->quit;
setting('resync.max_wal_retained');

# ---- during a load
$t->resync('m');
$t->wait_status('m', 'running');
setting('resync.load_rate_limit', '20kB');
setting('resync.max_wal_retained', '48MB');
$t->resync('m');
$t->until_true("SELECT sum(rows) > 0 FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run) WHERE mirror = 'm'", 'a load is under way');
switch_wal(4);
over_limit('loading');
$t->until_true("SELECT to_regclass('w_resync') IS NULL", 'loading: nothing is left at the destination', node => $dest);
setting('resync.max_wal_retained');
setting('resync.load_rate_limit');

# ---- paused in the middle of a load
$t->resync('m');
$t->wait_status('m', 'running');
setting('resync.load_rate_limit', '20kB');
$t->resync('m');
$t->until_true("SELECT sum(rows) > 0 FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run) WHERE mirror = 'm'", 'a load is under way');
$t->src("SELECT peerdb_pause_mirror('m')");
$t->until_status('m', 'paused');
switch_wal(4);
setting('resync.max_wal_retained', '48MB');
over_limit('paused in a load');
$t->until_true("SELECT to_regclass('w_resync') IS NULL", 'paused in a load: nothing is left at the destination', node => $dest);
setting('resync.max_wal_retained');
setting('resync.load_rate_limit');
$t->resync('m');
$t->wait_status('m', 'running');
equal('after it had too much WAL');
$t->create_mirror('o', ['public.other']);
$t->wait_status('o', 'running');

# ---- resync.load_rate_limit is honoured at once when changed
setting('resync.load_rate_limit', '1kB');
$t->resync('m');
$t->until_phase('m', 'load');
$t->until_true(workers('copier') =~ s/count\(\*\)/count(*) > 0/r, 'copiers are there');
sleep 1;
{
	my $rows = $t->src("SELECT coalesce(sum(rows), 0) FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run) WHERE mirror = 'm'");
	cmp_ok($rows, '<', 3000, 'a low rate limit is honoured');
	my $begin = time();
	setting('resync.load_rate_limit');
	$t->wait_status('m', 'running', 'without limit the load is over soon');
	cmp_ok(time() - $begin, '<', 5, 'at once');
}
equal('rate limit');

# ---- resync.max_snapshot_age: several snapshots, rows that move meanwhile
{
	setting('resync.max_snapshot_age', '1s');
	setting('resync.load_rate_limit', '800kB');
	# rows move between blocks, keys change, rows go and come
	my $writer = $t->writer(<<'EOS', clients => 2, rate => 100);
\set a random(1, 6000)
\set b random(1, 6000)
BEGIN;
UPDATE w SET v = v || 'x' WHERE id = :a;
DELETE FROM w WHERE id = :b;
INSERT INTO w VALUES (:b, 1, repeat('back', 100)) ON CONFLICT DO NOTHING;
COMMIT;
EOS
	$t->resync('m');
	$t->wait_status('m', 'running', 'max_snapshot_age: the load comes to its end');
	$t->stop($writer);
	cmp_ok($t->src("SELECT snapshots FROM peerdb._run WHERE run = (SELECT run FROM peerdb.mirrors WHERE mirror = 'm')"), '>', 1, 'max_snapshot_age: more than one snapshot was used');
	is($t->src("SELECT max(attempts) FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run) WHERE mirror = 'm'"), '1', 'max_snapshot_age: no partition was loaded twice');
	cmp_ok($t->src("SELECT count(DISTINCT snapshot) FROM peerdb._partition WHERE run = (SELECT run FROM peerdb.mirrors WHERE mirror = 'm')"), '>', 1, 'max_snapshot_age: partitions come of different snapshots');
	setting('resync.max_snapshot_age');
	setting('resync.load_rate_limit');
	equal('max_snapshot_age');
}

# ---- resync.lock_yield: ALTER TABLE gets its lock, the load starts over
{
	setting('resync.load_rate_limit', '50kB');
	setting('resync.lock_yield', '300ms');
	$t->resync('m');
	$t->until_true("SELECT sum(rows) > 0 FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run) WHERE mirror = 'm'", 'a load is under way');
	my $begin = time();
	$t->src('ALTER TABLE w ALTER COLUMN grp TYPE bigint, ADD COLUMN more int DEFAULT 5');
	cmp_ok(time() - $begin, '<', 4, 'lock_yield: ALTER TABLE gets its lock soon');
	setting('resync.load_rate_limit');
	setting('resync.lock_yield');
	$t->wait_status('m', 'running', 'lock_yield: the load starts over and comes to its end');
	cmp_ok($t->src("SELECT restarts FROM peerdb._run WHERE run = (SELECT run FROM peerdb.mirrors WHERE mirror = 'm')"), '>', 0, 'lock_yield: it was counted');
	equal('lock_yield, with the changed table');
}

# ---- resync.enabled = off: everything stops within a second
foreach my $phase ('running', 'loading')
{
	if ($phase eq 'loading')
	{
		setting('resync.load_rate_limit', '50kB');
		$t->resync('m');
		$t->until_true("SELECT sum(rows) > 0 FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run) WHERE mirror = 'm'", 'a load is under way');
	}
	setting('resync.enabled', 'off');
	my $begin = time();
	$t->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher'", "$phase: enabled = off stops every worker");
	cmp_ok(time() - $begin, '<', 1.2, "$phase: within a second");
	sleep 1;
	is($t->src("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher'"), '0', "$phase: and they stay away");
	setting('resync.load_rate_limit');
	setting('resync.enabled');
	$t->wait_status('m', 'running', "$phase: enabled = on brings them back");
	$t->until_true(workers('streamer') =~ s/count\(\*\)/count(*) = 2/r, "$phase: streamers are there");
	equal("enabled off and on, $phase");
}

# ---- settings of roles and databases change nothing
{
	my @hostile = (
		"statement_timeout = '1ms'", "lock_timeout = '1ms'", "idle_in_transaction_session_timeout = '1ms'",
		"idle_session_timeout = '200ms'", 'default_transaction_read_only = on', "default_transaction_isolation = 'serializable'",
		"search_path = 'hostile'", "\"DateStyle\" = 'German, DMY'", "\"IntervalStyle\" = 'sql_standard'", "\"TimeZone\" = 'Asia/Kathmandu'",
		"bytea_output = 'escape'", 'extra_float_digits = -10', "client_encoding = 'LATIN1'", "lc_monetary = 'C'",
		'synchronous_commit = off', "xmlbinary = 'hex'", 'row_security = off', 'enable_seqscan = off');
	my $since_17 = $source->pg_version >= 17 ? ' -c transaction_timeout=0' : '';
	push @hostile, "transaction_timeout = '1ms'" if $since_17;
	my $me = $t->src('SELECT current_user');
	$t->src(<<'EOS');
CREATE TABLE h (id int PRIMARY KEY, ts timestamptz, d date, i interval, b bytea, f float8, t text, m money, x xml, r float4[], n numeric);
INSERT INTO h SELECT i, '2024-03-01 12:34:56.789+02'::timestamptz + i * interval '1 hour', '2024-02-03', '-1 year 2 days -03:04:05.6', '\x00ff5c61',
	i / 3.0, 'Größe €', 12.34, '<a b="c"/>', ARRAY[0.1, 1e-30, 'NaN'], 'NaN' FROM generate_series(1, 50) i;
CREATE SCHEMA hostile;
EOS
	foreach my $s (@hostile)
	{
		# ALL roles and databases, on both sides
		foreach my $node ($source, $dest)
		{
			$node->safe_psql('postgres', "BEGIN; SET LOCAL transaction_read_only = off; ALTER DATABASE postgres SET $s; ALTER ROLE $me SET $s; COMMIT",
				on_error_stop => 1);
		}
		$ENV{PGOPTIONS} = '-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 -c default_transaction_read_only=off -c search_path=public -c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c bytea_output=hex -c extra_float_digits=1 -c client_encoding=UTF8 -c default_transaction_isolation=read\ committed' . $since_17;
	}
	$t->src('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = \'resync coordinator\'');
	$t->create_mirror('h', ['public.h']);
	$t->wait_status('h', 'running', 'hostile settings: a load');
	$t->src("INSERT INTO h SELECT id + 100, ts, d, i, b, f, t, m, x, r, n FROM h; UPDATE h SET ts = ts + interval '1 s', f = f + 0.1 WHERE id % 2 = 0");
	$t->sync('h', 'hostile settings: the stream');
	$t->same('h', 'hostile settings: values');
	equal('hostile settings');
	$t->resync('m');
	$t->wait_status('m', 'running', 'hostile settings: a resync');
	equal('hostile settings, resync');
	foreach my $node ($source, $dest) { $node->safe_psql('postgres', "ALTER DATABASE postgres RESET ALL; ALTER ROLE $me RESET ALL"); }
	delete $ENV{PGOPTIONS};
	$t->src("SELECT peerdb_drop_mirror('h')");
}

# ---- TRUNCATE between two snapshots of a load: what was loaded before is kept
# as deleted, live rows are equal
{
	$t->src("CREATE TABLE cut (id int PRIMARY KEY, v text); INSERT INTO cut SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 3000) i");
	setting('resync.lock_yield', '1h');
	setting('resync.load_rate_limit', '20kB');
	$t->create_mirror('cut', ['public.cut'], { snapshot_num_rows_per_partition => 300, snapshot_max_parallel_workers => 1 });
	$t->until_true("SELECT sum(rows) > 0 FROM peerdb.partitions p JOIN peerdb.mirrors m USING (run) WHERE mirror = 'cut'", 'TRUNCATE between snapshots: a part is loaded');
	my $s = $t->session($source);
	$s->query_until(qr/go/, "\\echo go\nBEGIN; TRUNCATE cut; INSERT INTO cut SELECT i, 'new' FROM generate_series(2500, 3500) i; COMMIT;\n");
	$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^BEGIN; TRUNCATE|^TRUNCATE'", 'TRUNCATE between snapshots: it waits for the load');
	$t->src("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'resync streamer' AND query LIKE 'mirror cut:%'");
	$t->until_true('SELECT count(*) = 1001 FROM cut', 'TRUNCATE between snapshots: it goes on when the streamer is gone');
	$s->quit;
	setting('resync.load_rate_limit');
	setting('resync.lock_yield');
	$t->wait_status('cut', 'running', 'TRUNCATE between snapshots: the load goes on');
	$t->sync('cut');
	$t->same('cut', 'TRUNCATE between snapshots: live rows');
	is($t->src("SELECT restarts || ' ' || (snapshots > 1) FROM peerdb._run r JOIN peerdb.mirrors m USING (run) WHERE m.mirror = 'cut'"), '0 true', 'TRUNCATE between snapshots: with the same slot');
	cmp_ok($t->dst('SELECT count(*) FROM cut WHERE _peerdb_is_deleted AND id < 2500'), '>', 0, 'TRUNCATE between snapshots: rows that were loaded are kept');
	$t->src("SELECT peerdb_drop_mirror('cut')");
}

# ---- crashes that others cause count for nobody
foreach my $i (1 .. 3)
{
	my $before = crashes();
	my $s = $t->session($source);
	my $pid = $s->query_safe('SELECT pg_backend_pid()');
	kill 'KILL', $pid;
	eval { $s->quit; };
	until_crashed($before + 1, "crash of somebody else, $i");
	$t->until_true("SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'resync streamer'", "crash of somebody else, $i: the mirrors run");
}
equal('crashes of somebody else');

# ---- a worker that crashes every time
foreach my $point ('before_apply', 'during_load')
{
	my $before = crashes();
	$t->debug_point($point, 'crash');
	if ($point eq 'before_apply') { $t->src("UPDATE w SET v = 'crash' WHERE id = 2"); }
	else { $t->resync('m'); }
	until_crashed($before + 2, "$point: the server crashes");
	my $end = time() + 40;
	my $status = '';
	while ($status ne 'failed' && time() < $end)
	{
		eval { $status = $t->src("SELECT peerdb_mirror_status('m')"); };
		sleep 0.2;
	}
	is($status, 'failed', "$point: the mirror is failed then");
	like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'm'"), qr/crashed \d+ times/, "$point: and says why");
	cmp_ok(crashes() - $before, '<=', 3, "$point: after 3 crashes at most (" . (crashes() - $before) . ')');
	$t->debug_point($point);
	if ($point eq 'before_apply')
	{
		$t->src("UPDATE other SET v = 'x' WHERE id = 1");
		$t->sync('o', "$point: another mirror runs on");
		$t->src("SELECT peerdb_resume_mirror('m')");
	}
	else
	{
		$t->sync('o', "$point: another mirror runs on");
		my ($rc, $out, $err) = $t->try("SELECT peerdb_resume_mirror('m')");
		$t->resync('m') if $rc != 0;
	}
	$t->until_status('m', 'running', "$point: it can be taken up again");
	equal("$point, taken up again");
}

$t->drop_all;
done_testing();
