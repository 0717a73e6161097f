# Copies of the source: dump, template, base backup, copied data directory,
# standby, point-in-time recovery.  Nothing in a copy connects to the
# destination or changes anything there, the original streams on, and only
# peerdb_resume_mirror(adopt => true) takes over.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

my $t = ResyncTest->new(dst_conf => "log_connections = on\n");
my $source = $t->source;
my $dest = $t->dest;

$t->src(<<'EOS');
CREATE TABLE a (id int PRIMARY KEY, v text);
CREATE TABLE b (id int PRIMARY KEY, v text);
CREATE TABLE c (id int PRIMARY KEY, v text);
INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 500) i;
INSERT INTO b SELECT * FROM a;
INSERT INTO c SELECT * FROM a;
EOS
$t->create_mirror('m', ['public.a']);
$t->create_mirror('p', ['public.b']);
$t->wait_status('m', 'running');
$t->wait_status('p', 'running');
$t->src('DELETE FROM a WHERE id = 7; DELETE FROM b WHERE id = 7');
$t->sync('m');
$t->sync('p');
$t->src("SELECT peerdb_pause_mirror('p')");
$t->until_status('p', 'paused');

my $n = 1000;

# The original streams on; name: after what.
sub goes_on
{
	my ($what) = @_;
	$n++;
	$t->src("INSERT INTO a VALUES ($n, '$what')");
	$t->sync('m', "$what: the original streams on");
	$t->same('a', "$what: equal");
	is($t->status('p'), 'paused', "$what: the paused one is still paused");
	return;
}

# Connections that workers made at the destination so far, the marks there, and
# the slots of the original.
sub connections
{
	my @lines = grep { /connection authorized.*application_name=resync/ } split /\n/, slurp_file($dest->logfile);
	return scalar @lines;
}

sub marks
{
	return $t->dst(<<'EOS') . "\n" . $t->src("SELECT slot_name FROM pg_replication_slots ORDER BY 1");
SELECT token, system_identifier, database FROM _peerdb_internal.resync_mirror ORDER BY 1;
SELECT token, run, state FROM _peerdb_internal.resync_run ORDER BY 1, 2;
SELECT token, run, ordinal, build_oid, swapped FROM _peerdb_internal.resync_table ORDER BY 1, 2, 3;
EOS
}

my ($connections, $marks);
sub remember { $connections = connections(); $marks = marks(); return; }

# SQL in a copy.
sub in_copy
{
	my ($node, $db, $sql) = @_;
	return $t->try($sql, node => $node, db => $db);
}

sub refused_in_copy
{
	my ($node, $db, $sql, $name) = @_;
	my ($status, $out, $err) = in_copy($node, $db, $sql);
	isnt($status, 0, "$name: refused");
	like($err, qr/55000: .*copy/s, "$name: says that this is a copy");
	return;
}

# Whatever can be called in a copy leaves the destination alone.
sub copy_is_harmless
{
	my ($node, $db, $what, %o) = @_;
	my ($status, $out, $err);

	foreach my $mirror ('m', 'p')
	{
		($status, $out, $err) = in_copy($node, $db, "SELECT status, error FROM peerdb.mirrors WHERE mirror = '$mirror'");
		like($out, qr/^failed\|this database is a copy.*adopt => true/s, "$what: $mirror is shown as failed, and why");
		($status, $out) = in_copy($node, $db, "SELECT peerdb_mirror_status('$mirror')");
		is($out, 'failed', "$what: status of $mirror");
	}
	if (!$o{standby})
	{
		$t->until_true("SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'resync launcher'",
			"$what: the launcher runs", node => $node, db => $db);
		refused_in_copy($node, $db, "SELECT peerdb_resync('m')", "$what: resync");
		refused_in_copy($node, $db, "SELECT peerdb_resume_mirror('p')", "$what: resume");
		refused_in_copy($node, $db, "SELECT peerdb_cancel_resync('m')", "$what: cancel");
		refused_in_copy($node, $db, "SELECT peerdb_pause_mirror('m')", "$what: pause");
		refused_in_copy($node, $db, "SELECT peerdb_edit_mirror('m', '{\"max_batch_size\": 5}')", "$what: edit");
		refused_in_copy($node, $db, "SELECT peerdb_drop_mirror('m', drop_destination => true)", "$what: drop with the destination's tables");
		($status, $out, $err) = in_copy($node, $db, "SELECT peerdb_wait_for_status('m', 'running', '20 s')");
		like($err, qr/RS002.*copy/s, "$what: waiting for it says so at once");
		# a change in the copy is the copy's
		in_copy($node, $db, "INSERT INTO a VALUES (0, 'of a copy')");
		sleep 1;    # time for whatever should not be done
	}
	goes_on($what);
	is(connections(), $connections, "$what: nothing connected to the destination") unless $o{restarted};
	is(marks(), $marks, "$what: nothing changed there, and the slots are there");
	if (!$o{standby} && $node != $source)
	{
		$t->until_true("SELECT count(*) = 0 FROM pg_replication_slots", "$what: no slot in the copy",
			node => $node, db => $db);
	}
	return;
}

my $tmp = PostgreSQL::Test::Utils::tempdir();
sub copy_node
{
	my ($name, $backup, %o) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init_from_backup($source, $backup, %o);
	return $node;
}

# ---- a dump into another database of the cluster
$source->run_log([ 'pg_dump', '-d', $source->connstr('postgres'), '-f', "$tmp/dump.sql" ]);
remember();
$source->safe_psql('template1', 'CREATE DATABASE dumped TEMPLATE template0');
$source->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $source->connstr('dumped'), '-f', "$tmp/dump.sql" ], 'dump: can be restored');
copy_is_harmless($source, 'dumped', 'dump');
is($source->safe_psql('dumped', 'SELECT count(*) FROM peerdb._mirror'), '2', 'dump: definitions travel');
is($source->safe_psql('dumped', "SELECT string_agg(destination_table, ',' ORDER BY 1) FROM peerdb.mirror_tables"), 'public.a,public.b', 'dump: with their tables');
is($source->safe_psql('dumped', 'SELECT count(*) FROM peerdb._run'), '0', 'dump: runs do not');
{
	my ($status, $out, $err) = in_copy($source, 'dumped', "SELECT peerdb_drop_mirror('m'), peerdb_drop_mirror('p')");
	is($status, 0, 'dump: the copies can be forgotten');
	like($err, qr/nothing else was touched/, 'dump: and a notice says that nothing else was touched');
	goes_on('dump: forgotten');
	is(marks(), $marks, 'dump: forgotten, nothing changed');
}
$source->safe_psql('postgres', 'DROP DATABASE dumped');

# ---- into another cluster
my $elsewhere = PostgreSQL::Test::Cluster->new('elsewhere');
$elsewhere->init(extra => [ '--locale=C.UTF-8', '--encoding=UTF8' ]);
$elsewhere->append_conf('postgresql.conf', "shared_preload_libraries = 'resync'\nwal_level = logical\nmax_worker_processes = 16\nfsync = off\n");
$elsewhere->start;
$elsewhere->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $elsewhere->connstr('postgres'), '-f', "$tmp/dump.sql" ], 'other cluster: can be restored');
copy_is_harmless($elsewhere, 'postgres', 'other cluster');
$elsewhere->restart;
copy_is_harmless($elsewhere, 'postgres', 'other cluster after a restart');

# ---- a template, while the mirror runs
$source->safe_psql('template1', 'CREATE DATABASE cloned TEMPLATE postgres');
goes_on('template');
remember();
copy_is_harmless($source, 'cloned', 'template');
$source->safe_psql('postgres', 'DROP DATABASE cloned');

# ---- a base backup, taken while a run is under construction
$t->src("ALTER SYSTEM SET resync.load_rate_limit = '1kB'; ");
$t->src('SELECT pg_reload_conf()');
$t->create_mirror('k', ['public.c']);
$t->until_true("SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'resync copier k'", 'a load is under way', node => $dest);
$source->backup('base');
$t->src('ALTER SYSTEM RESET resync.load_rate_limit');
$t->src('SELECT pg_reload_conf()');
$t->wait_status('k', 'running');
$t->sync('k');
remember();

my $base = copy_node('base', 'base');
$base->start;
is($base->safe_psql('postgres', 'SELECT timeline_id FROM pg_control_checkpoint()'), '1', 'base backup: it has even the same timeline');
copy_is_harmless($base, 'postgres', 'base backup');
$base->restart;
copy_is_harmless($base, 'postgres', 'base backup after a restart');
$t->same('c', 'base backup: what was under construction in it is complete at the original');

# ---- point-in-time recovery
my $pitr = copy_node('pitr', 'base', has_restoring => 1, standby => 0);
$pitr->append_conf('postgresql.conf', "restore_command = 'false'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n");
$pitr->start;
$t->until_true('SELECT NOT pg_is_in_recovery()', 'PITR: recovery ends', node => $pitr);
copy_is_harmless($pitr, 'postgres', 'PITR');
$pitr->stop;

# ---- a standby, then promoted
my $standby = copy_node('standby', 'base', has_streaming => 1);
$standby->start;
$source->wait_for_catchup($standby, 'replay', $source->lsn('insert'));
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'resync%'"), '0', 'standby: the launcher sleeps');
copy_is_harmless($standby, 'postgres', 'standby', standby => 1);
$standby->promote;
copy_is_harmless($standby, 'postgres', 'promoted standby');

# ---- the data directory of the stopped server, slots and all
$source->stop;
mkdir $source->backup_dir;
$source->run_log([ 'cp', '-a', $source->data_dir, $source->backup_dir . '/cold' ]);
$source->start;
goes_on('restart');
remember();
my $cold = copy_node('cold', 'cold');
$cold->start;
copy_is_harmless($cold, 'postgres', 'copied data directory');
$cold->stop;

# ---- the extension is updated under a running mirror
{
	my $file = $source->config_data('--sharedir') . '/extension/resync--1.0--1.0.fake.sql';
	open my $fh, '>', $file or die "$file: $!";
	print $fh "ALTER TABLE peerdb._mirror ADD COLUMN fake int;\n"
	  . "CREATE FUNCTION peerdb._fake() RETURNS int LANGUAGE sql AS 'SELECT 1';\n"
	  . "SELECT pg_catalog.pg_extension_config_dump('peerdb._mirror', '');\n";
	close $fh;
	$t->src("ALTER EXTENSION resync UPDATE TO '1.0.fake'");
	unlink $file;
	is($t->src("SELECT extversion, peerdb._fake() FROM pg_extension WHERE extname = 'resync'"), '1.0.fake|1', 'the extension was updated');
	goes_on('update');
	$t->resync('m');
	$t->wait_status('m', 'running', 'update: a resync works');
	goes_on('update and resync');
}

# ---- adopted in the promoted standby: the original is fenced
my $slots = $t->src('SELECT count(*) FROM pg_replication_slots');
$standby->safe_psql('postgres', 'ALTER SYSTEM RESET resync.load_rate_limit');    # it came with the backup
$standby->reload;
$standby->safe_psql('postgres', "INSERT INTO a VALUES (2001, 'of the new one'); SELECT peerdb_resume_mirror('m', adopt => true)");
$t->until_true("SELECT count(*) > 1 FROM _peerdb_internal.resync_mirror WHERE mirror = 'm'", 'the new one is known at the destination', node => $dest);
$t->src("INSERT INTO a VALUES (4001, 'lost')");
$t->until_failed('m', qr/taken over|no longer in charge/, 'original after the adoption');
like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'm'"), qr/HINT:/, 'original after the adoption: there is a hint');
$t->until_true("SELECT count(*) = $slots - 1 FROM pg_replication_slots", 'original after the adoption: its slot is gone');
$t->wait_status('m', 'running', 'the adopted mirror runs', node => $standby);
$standby->safe_psql('postgres', "INSERT INTO a VALUES (2002, 'later'); DELETE FROM a WHERE id = 8");
$t->sync('m', 'the adopted mirror catches up', node => $standby);
is($t->dst('SELECT string_agg(id::text, \',\' ORDER BY id) FROM a WHERE id > 2000 AND NOT _peerdb_is_deleted'), '2001,2002', 'the destination has what the new one has');
is($t->dst('SELECT string_agg(id::text, \',\' ORDER BY id) FROM a WHERE id < 10 AND _peerdb_is_deleted'), '7,8', 'and the soft-deleted rows of the old one');
{
	# the original cannot take the table back by mistake
	my ($status, $out, $err) = $t->try("SELECT peerdb_resume_mirror('m')");
	isnt($status, 0, 'original: resume is refused');
	$t->resync('m');
	$t->until_true("SELECT outcome IN ('refused', 'failed') FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1", 'original: a resync is refused');
	like($t->src("SELECT error FROM peerdb.mirrors WHERE mirror = 'm'"), qr/exists at the destination|taken over/, 'original: because the table is not its own any more');
	is($t->status('m'), 'failed', 'original: it stays failed');
	$t->src("SELECT peerdb_drop_mirror('m', drop_destination => true)");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'm'", 'original: can be dropped');
	$standby->safe_psql('postgres', "INSERT INTO a VALUES (2003, 'still')");
	$t->sync('m', 'the adopted mirror is untouched by that', node => $standby);
	is($t->dst('SELECT count(*) FROM a WHERE id = 2003'), '1', 'and its table is there');
}

# ---- adopted in another cluster, while the original is paused
$elsewhere->safe_psql('postgres', "SELECT peerdb_resume_mirror('p', adopt => true)");
$t->wait_status('p', 'running', 'a mirror from a dump, adopted', node => $elsewhere);
$elsewhere->safe_psql('postgres', "INSERT INTO b VALUES (3001, 'elsewhere')");
$t->sync('p', 'it catches up', node => $elsewhere);
is($t->dst('SELECT count(*) FROM b WHERE id = 3001'), '1', 'it streams');
is($t->dst('SELECT _peerdb_is_deleted FROM b WHERE id = 7'), 't', 'soft-deleted rows are kept');
$t->src("SELECT peerdb_resume_mirror('p')");
$t->until_failed('p', qr/taken over|no longer in charge/, 'original that was paused meanwhile');
$elsewhere->safe_psql('postgres', "INSERT INTO b VALUES (3002, 'elsewhere')");
$t->sync('p', 'the adopted one goes on', node => $elsewhere);
$t->until_true("SELECT count(*) = 1 FROM pg_replication_slots", 'only the slot of the third mirror is left');

# ---- a dump restored into the very same database, after DROP EXTENSION
{
	my @db = (db => 'again');
	$source->safe_psql('template1', 'CREATE DATABASE again TEMPLATE template0');
	$t->install('again');
	$t->src(<<'EOS', @db);
CREATE TABLE r (id int PRIMARY KEY, v text);
CREATE TABLE q (id int PRIMARY KEY);
INSERT INTO r SELECT i, md5(i::text) FROM generate_series(1, 100) i;
EOS
	foreach my $m ('r', 'q') { $t->create_mirror($m, ["public.$m"], {}, @db); $t->wait_status($m, 'running', "restored: $m runs at first", @db); }
	$t->src('DELETE FROM r WHERE id = 7', @db);
	$t->sync('r', 'restored: with a soft-deleted row', @db);
	my $run = $t->src("SELECT run FROM peerdb.mirrors WHERE mirror = 'r'", @db);
	$source->run_log([ 'pg_dump', '-d', $source->connstr('again'), '-f', "$tmp/again.sql" ]);
	$t->src('DROP EXTENSION resync CASCADE; DROP TABLE r, q', @db);
	$t->until_true("SELECT count(*) = 0 FROM pg_replication_slots WHERE database = 'again'", 'restored: DROP EXTENSION takes the slots with it');
	$source->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $source->connstr('again'), '-f', "$tmp/again.sql" ], 'restored: the dump');
	is($t->src('SELECT system_identifier = (SELECT system_identifier FROM pg_control_system()) AND database_oid = (SELECT oid FROM pg_database WHERE datname = current_database()) FROM peerdb._mirror', @db),
		"t\nt", 'restored: into the very same database');

	# another mirror's run gets the number that the dumped row names
	$t->src('CREATE TABLE s (id int PRIMARY KEY); INSERT INTO s VALUES (1)', @db);
	is($t->create_mirror('s', ['public.s'], {}, @db), $run, 'restored: numbers of runs begin again');
	$t->wait_status('s', 'running', 'restored: another mirror can be made', @db);
	foreach my $m ('r', 'q')
	{
		is($t->src("SELECT status, phase, split_part(error, E'\n', 1), error ~ 'adopt => true' FROM peerdb.mirrors WHERE mirror = '$m'", @db),
			'failed||this mirror was restored from a dump|t', "restored: $m is shown as failed, and why");
		is($t->src("SELECT status FROM peerdb.mirror_tables WHERE mirror = '$m'", @db), 'failed', "restored: so is the table of $m");
		is($t->status($m, @db), 'failed', "restored: status of $m");
		foreach my $call ("peerdb_resync('$m')", "peerdb_resume_mirror('$m')", "peerdb_drop_mirror('$m', drop_destination => true)")
		{
			my ($status, $out, $err) = $t->try("SELECT $call", @db);
			like($err, qr/55000: .*restored from a dump.*HINT/s, "restored: $call says so");
		}
		my ($status, $out, $err) = $t->try("SELECT peerdb_wait_for_status('$m', 'running', '20 s')", @db);
		like($err, qr/RS002.*restored from a dump/s, "restored: waiting for $m says so");
	}
	$source->restart;
	$t->src("INSERT INTO r VALUES (1000, 'after the restore'); DELETE FROM r WHERE id = 8; INSERT INTO s VALUES (2)", @db);
	$t->sync('s', 'restored: the other mirror goes on, also after a restart', @db);
	$t->src("SELECT peerdb_resume_mirror('r', adopt => true)", @db);
	$t->wait_status('r', 'running', 'restored: rebuilt by adopt', @db);
	$t->same('r', 'restored: equal', @db);
	is($t->dst("SELECT string_agg(id::text, ',' ORDER BY id) FROM r WHERE _peerdb_is_deleted"), '7,8', 'restored: soft-deleted rows are kept');
	$t->resync('r', {}, @db);
	$t->wait_status('r', 'running', 'restored: resync works from then on', @db);
	my (undef, undef, $err) = $t->try("SELECT peerdb_drop_mirror('q')", @db);
	like($err, qr/restored from a dump; nothing else was touched/, 'restored: or it can be forgotten');
	$t->sync('s', 'restored: nothing hurt the other mirror', @db);
	$t->same('s', 'restored: the other mirror is equal', @db);
}

done_testing();
