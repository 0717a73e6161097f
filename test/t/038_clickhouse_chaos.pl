# As 020_chaos, at ClickHouse: random changes by several clients, random deaths
# of workers, source and engine, faults of the server, resyncs, cancels, pauses and
# changed settings in between: at the end each table, read with FINAL, equals the
# source, the keys whose newest row is a deleted one are those of the model, and
# tables without key have the source's rows, each as often.
#
# Seeds: see ResyncChaos::seeds (default: one).
use strict;
use warnings;

use ResyncClickHouse;
use ResyncChaos;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $t = ResyncClickHouse->new(src_conf => <<'EOC');
restart_after_crash = on
logical_decoding_work_mem = 64kB
resync.lock_yield = 300ms
resync.swap_lock_timeout = 300ms
log_min_messages = log
EOC

# k_full is sorted by more than its key, and its partitions go by a column that
# changes
my @mappings = (
	{ from => 'public.k_plain', partition_by => 'id % 3' },
	'public.k_two', 'public.k_text',
	{ from => 'public.k_full', order_by => [ 'g', 'id' ], partition_by => 'g % 3' },
	{ from => 'public.k_part', partition_by => 'r % 2', order_by => [ 'r', 'id' ] },
	{ from => 'public.n_log', append => \1 });

my @faults = (
	(map { [ fail => code => $_ ] } 202, 209, 241, 242, 252, 319, 999),
	[ fail => code => 241, after => 500 ], [ 'drop' ], ['drop'], ['drop'],
	[ cut_answer => after => 30 ], [ cut_body => after => 50 ], [ cut_body => after => 3000 ],
	['garbage'], [ delay => ms => 400 ], ['die'], ['die_after'], ['hold'], ['hold_after']);
my @statements = (
	('^INSERT INTO .*`[kn]_') x 4, '^INSERT INTO .*`n_log', '^INSERT INTO .*_resync`', '^INSERT INTO .*_peerdb_resync_runs',
	'^INSERT INTO .*_peerdb_resync_partitions', '^INSERT INTO .* SELECT .* FROM ', '^EXCHANGE', '^(CREATE|DROP|ALTER)',
	'^TRUNCATE', '^SELECT', '^KILL', '');

sub engine_up { $t->start_ch unless $t->alive; return; }

my %trouble = (
	restart_engine => sub {
		$_[0]->did('kill -9 the engine');
		$t->kill_ch;
		usleep(int(rand(800_000)));
		$t->start_ch;
	},
	fault => sub {
		my ($action, %o) = @{ ResyncChaos::pick(@faults) };
		my $match = ResyncChaos::pick(@statements);
		my %times = (count => ResyncChaos::pick(1, 1, 1, 3), skip => ResyncChaos::pick(0, 0, 1, 5));
		engine_up();
		# what is held is let go before the next one
		eval { $t->admin('release'); $t->fault($action, $match, %times, %o); };
		$_[0]->did("$action (@{[ %o, %times ]}) at $match" . ($@ ? ': not there' : ''));
	},
	calm => sub {
		engine_up();
		eval { $t->admin('clear'); };
		$_[0]->did('no faults');
	},
	settings => sub {
		my $memory = ResyncChaos::pick('256kB', '1MB', '64MB');
		my $buffer = ResyncChaos::pick('64kB', '8MB');
		my $batch = ResyncChaos::pick(1, 20, 1000, 1000000);
		my $interval = ResyncChaos::pick('0.05', '0.5');
		$_[0]->did("batch_memory $memory, copier_buffer $buffer");
		$t->try("ALTER SYSTEM SET resync.batch_memory = '$memory'");
		$t->try("ALTER SYSTEM SET resync.copier_buffer = '$buffer'");
		$t->try('SELECT pg_reload_conf()');
		$_[0]->ask("SELECT peerdb_edit_mirror('m', '{\"max_batch_size\": $batch, \"sync_interval\": $interval}')");
	});

my $chaos = ResyncChaos->new($t,
	keyed => { k_text => ['k'] },
	plain => ['n_log'],
	clients => 2,
	tables => <<'EOS',
CREATE TABLE k_text (k text PRIMARY KEY, v int, t text);
ALTER TABLE k_text ALTER t SET STORAGE EXTERNAL;
CREATE TABLE n_log (a int, b text);
EOS
	fill => <<'EOS',
INSERT INTO k_text SELECT 'key ' || i, i, some_text() FROM generate_series(1, 200) i;
INSERT INTO n_log SELECT i % 50, 'v' || i % 3 FROM generate_series(1, 2000) i;
EOS
	ops => [ split /^--\n/m, <<'EOS' ],
INSERT INTO k_text VALUES (CASE WHEN p < 3 THEN '' ELSE 'key ' || p % 100 END, q, some_text()) ON CONFLICT (k) DO UPDATE SET v = q
--
UPDATE k_text SET k = k || 'ä' WHERE k = 'key ' || p % 100
--
DELETE FROM k_text WHERE k LIKE 'key ' || p % 100 || '%'
--
INSERT INTO n_log SELECT p % 50, CASE WHEN random() < 0.2 THEN repeat('x', 3000) ELSE 'v' || q % 3 END
	FROM generate_series(1, 1 + q % 3)
--
INSERT INTO n_log SELECT p % 3, 'same' FROM generate_series(1, 1 + q % 3)
EOS
	large => [ split /^--\n/m, <<'EOS' ],
INSERT INTO n_log SELECT (random() * 50)::int, 'large' FROM generate_series(1, n)
--
INSERT INTO n_log SELECT 1, CASE WHEN i % 3 = 0 THEN repeat('y', 3000) ELSE 'large' END FROM generate_series(1, n) i
--
DELETE FROM k_plain WHERE id BETWEEN 400 AND 400 + n;	-- and there again, in one transaction
UPDATE k_plain SET t = some_text(), a = a + 1 WHERE id < 400;
INSERT INTO k_plain SELECT i, random() * 3, 'again', some_text() FROM generate_series(400, 400 + n, 3) i;
UPDATE k_plain SET a = a + 1 WHERE id BETWEEN 400 AND 600
--
TRUNCATE k_plain, k_text, n_log;	-- rarely, so that there is something to lose
INSERT INTO k_plain SELECT i, i + q, 'after TRUNCATE', some_text() FROM generate_series(1, 300) i;
INSERT INTO k_text SELECT 'key ' || i, q, some_text() FROM generate_series(1, 50) i;
INSERT INTO n_log SELECT p % 3, 'same' FROM generate_series(1, 20)
EOS
	trouble => \%trouble,
	weights => [ restart_engine => 2, fault => 12, calm => 4, settings => 4 ],
	until_up => sub {
		engine_up();
		$t->admin('clear');
		# with these alone it would not keep up with the clients
		$t->src("ALTER SYSTEM RESET $_") foreach 'resync.batch_memory', 'resync.copier_buffer';
		$t->src('SELECT pg_reload_conf()');
		$_[0]->ask(q{SELECT peerdb_edit_mirror('m', '{"max_batch_size": 1000000, "sync_interval": 0.2}')});
		$_[0]->stop_clients;
	},
	live_lsns => sub {
		my $rows = $t->ch(q{SELECT run, applied FROM _peerdb_resync_runs FINAL WHERE kind = 'progress' AND mirror = 'm'});
		return { map { split /\t/ } split /\n/, $rows };
	},
	dead_keys => sub {
		my ($table, @key) = @_;
		my $key = @key > 1 ? 'concat(' . join(q{, ',', }, map { "toString($_)" } @key) . ')' : "toString($key[0])";
		# FINAL leaves deleted rows out
		my $rows = $t->ch("SELECT DISTINCT concat('.', $key) FROM $table WHERE $key NOT IN (SELECT $key FROM $table FINAL)");
		return map { substr($_, 1) } split /\n/, $rows;
	});

sub one_seed
{
	my ($seed) = @_;
	my $name = "seed $seed";
	$chaos->begin($seed);
	$t->create_mirror('m', \@mappings, { sync_interval => 0.1, snapshot_num_rows_per_partition => 100, snapshot_max_parallel_workers => 2 });
	$chaos->make_trouble;
	if ($chaos->bring_home($name) && $t->sync('m', "$name: the destination catches up"))
	{
		$t->same_ch($_, "$name: $_") foreach sort keys %{ $chaos->{keyed} };
		$t->same_ch('n_log', "$name: n_log", final => 0);
		$chaos->check_tombstones($name);
		$t->no_leftovers("$name: nothing but the live run is left", keep => 1);
	}
	$chaos->check_runs($name);
	if (!Test::More->builder->is_passing)
	{
		$chaos->report($name);
		diag($t->ch('SELECT run, kind, state, applied, pending, seq, at FROM _peerdb_resync_runs ORDER BY at'));
	}
	$chaos->finish($name);
	return;
}

$chaos->each_seed(\&one_seed, ResyncChaos::seeds(1));
done_testing();
