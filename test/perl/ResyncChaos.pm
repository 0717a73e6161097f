=pod

=head1 NAME

ResyncChaos - random changes, random trouble, and a model of what must come of it

=head1 SYNOPSIS

  use ResyncChaos;
  my $c = ResyncChaos->new($t, keyed => { ... }, tables => 'CREATE TABLE ...',
      fill => 'INSERT ...', ops => ['one statement', ...], trouble => { ... },
      weights => [ name => n, ... ], live_lsns => sub { ... });
  foreach my $seed (ResyncChaos::seeds()) { ... }

Of the tests whose mirror must survive everything (020_chaos, 037): what both
have in common, whatever the destination.

The model is an own replication slot: triggers write each key that comes or
goes into WAL as a message, and the slot gives them back by commit, with its
LSN.  Deletes are known to the mirror only while a slot of a run that became
live is there: from the LSN of its snapshot to the last LSN it applied.

=cut

package ResyncChaos;

use strict;
use warnings;

use IO::Handle;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my @kinds = qw(launcher coordinator streamer copier);

# Tables with a key that every destination can have: columns of the key.
our %Keyed = (
	k_plain => ['id'],
	k_two => [ 'y', 'x' ],
	k_full => ['id'],
	k_part => [ 'id', 'r' ]);
my $tables = <<'EOS';
CREATE TABLE k_plain (id int PRIMARY KEY, a int, b text, t text);
ALTER TABLE k_plain ALTER t SET STORAGE EXTERNAL;
CREATE TABLE k_two (x int, y text, v numeric(20, 6), t text, PRIMARY KEY (y, x));
ALTER TABLE k_two ALTER t SET STORAGE EXTERNAL;
CREATE TABLE k_full (id int PRIMARY KEY, v text, g int NOT NULL DEFAULT 0);
ALTER TABLE k_full ALTER v SET STORAGE EXTERNAL;
ALTER TABLE k_full REPLICA IDENTITY FULL;
CREATE TABLE k_part (id int, r int, v text, t text, PRIMARY KEY (id, r)) PARTITION BY RANGE (r);
CREATE TABLE k_part_1 PARTITION OF k_part FOR VALUES FROM (0) TO (30);
CREATE TABLE k_part_2 PARTITION OF k_part FOR VALUES FROM (30) TO (60);
CREATE TABLE k_part_3 PARTITION OF k_part FOR VALUES FROM (60) TO (90);
ALTER TABLE k_part ALTER t SET STORAGE EXTERNAL;
EOS
my $fill = <<'EOS';
INSERT INTO k_plain SELECT i, i, 'first', some_text() FROM generate_series(1, 1500) i;
INSERT INTO k_two SELECT i % 20, (i / 20)::text, i, some_text() FROM generate_series(0, 399) i;
INSERT INTO k_full SELECT i, some_text(), i % 5 FROM generate_series(1, 300) i;
INSERT INTO k_part SELECT i % 100, i % 90, 'first', some_text() FROM generate_series(0, 899) i ON CONFLICT DO NOTHING;
EOS

# Statements on them: p and q are random numbers from 0 to 400, n one up to 1700.
my @ops = split /^--\n/m, <<'EOS';
INSERT INTO k_plain VALUES (p, q, 'new', some_text()) ON CONFLICT (id) DO UPDATE SET t = excluded.t
--
INSERT INTO k_plain VALUES (p, q, 'new', some_text()) ON CONFLICT DO NOTHING
--
UPDATE k_plain SET a = a + 1 WHERE id % 40 = q % 40
--
DELETE FROM k_plain WHERE id = p
--
UPDATE k_plain SET id = -1 - p WHERE id = p;	-- two rows change their keys
UPDATE k_plain SET id = p, b = 'swapped' WHERE id = q;
UPDATE k_plain SET id = q WHERE id = -1 - p
--
UPDATE k_plain SET id = q WHERE id = p
--
INSERT INTO k_two VALUES (p % 20, (q % 20)::text, random() * 1000, some_text())
	ON CONFLICT (y, x) DO UPDATE SET v = excluded.v
--
UPDATE k_two SET x = x + 1 WHERE y = (p % 20)::text AND x = q % 20
--
DELETE FROM k_two WHERE y = (p % 20)::text AND x % 5 = q % 5
--
UPDATE k_two SET t = some_text() WHERE y = (p % 20)::text
--
INSERT INTO k_full VALUES (p, some_text(), q % 5) ON CONFLICT (id) DO UPDATE SET v = excluded.v
--
UPDATE k_full SET id = id + 1000 WHERE id = p
--
UPDATE k_full SET g = q % 7 WHERE id % 50 = p % 50
--
DELETE FROM k_full WHERE id IN (p, q)
--
INSERT INTO k_part VALUES (p % 100, q % 90, 'new', some_text()) ON CONFLICT DO NOTHING
--
UPDATE k_part SET r = (r + 31) % 90 WHERE id = p % 100
--
UPDATE k_part SET v = md5(v) WHERE id = p % 100
--
DELETE FROM k_part WHERE id = p % 100 AND r < 45
EOS

# The same, rarely: much at once.
my @large = split /^--\n/m, <<'EOS';
INSERT INTO k_plain SELECT 1000 + (random() * 4000)::int, i, md5(i::text), some_text()
	FROM generate_series(1, n) i ON CONFLICT (id) DO UPDATE SET a = excluded.a
--
DELETE FROM k_plain WHERE id > 2000
--
UPDATE k_part SET v = v || '.' WHERE random() < 0.5
EOS

my $functions = <<'EOS';
CREATE PUBLICATION chaos_nothing;
CREATE FUNCTION some_text() RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT CASE WHEN random() < 0.4 THEN repeat(md5(random()::text), 80 + (random() * 80)::int)
		WHEN random() < 0.1 THEN NULL ELSE md5(random()::text) END $$;

-- keys that come and go, for the model
CREATE FUNCTION model() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	o jsonb := to_jsonb(OLD);
	n jsonb := to_jsonb(NEW);
	ok text;
	nk text;
BEGIN
	IF TG_OP = 'TRUNCATE' THEN
		PERFORM pg_logical_emit_message(true, 'model', TG_ARGV[0] || '|T|');
		RETURN NULL;
	END IF;
	IF TG_OP <> 'INSERT' THEN
		SELECT string_agg(o ->> c, ',' ORDER BY i) INTO ok FROM unnest(TG_ARGV[1:]) WITH ORDINALITY u (c, i);
	END IF;
	IF TG_OP <> 'DELETE' THEN
		SELECT string_agg(n ->> c, ',' ORDER BY i) INTO nk FROM unnest(TG_ARGV[1:]) WITH ORDINALITY u (c, i);
	END IF;
	IF ok IS DISTINCT FROM nk THEN
		IF ok IS NOT NULL THEN
			PERFORM pg_logical_emit_message(true, 'model', TG_ARGV[0] || '|D|' || ok);
		END IF;
		IF nk IS NOT NULL THEN
			PERFORM pg_logical_emit_message(true, 'model', TG_ARGV[0] || '|I|' || nk);
		END IF;
	END IF;
	RETURN NULL;
END $$;

CREATE PROCEDURE chaos(seed int) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM setseed((seed::bigint * 7919 % 100003) / 100003.0);
	FOR i IN 1 .. 40 LOOP
		FOR j IN 1 .. 1 + (random() * random() * 8)::int LOOP
			BEGIN
				PERFORM chaos_op();
				IF random() < 0.1 THEN
					RAISE EXCEPTION 'back to the savepoint';
				END IF;
			EXCEPTION WHEN OTHERS THEN
				NULL;
			END;
		END LOOP;
		IF random() < 0.1 THEN ROLLBACK; ELSE COMMIT; END IF;
		PERFORM pg_sleep(random() * 0.03);
		COMMIT;
	END LOOP;
END $$;
EOS

# Arguments, or RESYNC_SEEDS="1 7 20-29", or those given.  A seed fixes what is
# done and in which order; how it falls together with the workers is up to the
# machine.
sub seeds
{
	return map { /^(\d+)-(\d+)$/ ? ($1 .. $2) : $_ }
	  @ARGV ? @ARGV : split /[\s,]+/, $ENV{RESYNC_SEEDS} // "@_";
}

# Options: keyed (more tables with a key), tables, fill (SQL that makes and fills
# tables beyond those of this module), drop (names of those), ops, large (more
# statements), trouble and weights (by name, instead of or beside those below),
# live_lsns, dead_keys (subs, see below), until_up (sub: the destination is
# there; it may stop the clients).
sub new
{
	my ($class, $t, %o) = @_;
	my $self = bless { t => $t, source => $t->source, clients => 3, log => [], %o }, $class;

	$self->{keyed} = { %Keyed, %{ $o{keyed} // {} } };
	$self->{seconds} = $ENV{RESYNC_CHAOS_SECONDS} // 9;    # of trouble per seed
	my %weights = (
		terminate => 6, kill9 => 2, restart_source => 1, resync => 7, cancel => 1, pause => 1, resume => 3,
		truncate => 1, wait => 4, @{ $o{weights} // [] });
	$self->{bag} = [ map { ($_) x $weights{$_} } sort keys %weights ];
	$self->{all} = [ sort(keys %{ $self->{keyed} }), @{ $o{plain} // [] } ];
	$t->src($functions);
	$t->src(_chaos_op([ @ops, @{ $o{ops} // [] } ], [ @large, @{ $o{large} // [] } ]));
	return $self;
}

sub _case
{
	my (@statements) = @_;
	my $text = '';
	my $i = 0;
	$text .= "\t\tWHEN " . $i++ . " THEN\n$_;\n" foreach @statements;
	return $text;
}

# One random statement.  It does not wait as long for a lock as a load does before
# it gives way: that would go on for ever.
sub _chaos_op
{
	my ($often, $rarely) = @_;
	my ($n, $m) = (scalar @$often, scalar @$rarely);
	return <<"EOS" . _case(@$rarely) . "\t\tEND CASE;\n\tEND IF;\n\tCASE d % $n\n" . _case(@$often) . "\tEND CASE;\nEND \$\$;\n";
CREATE FUNCTION chaos_op() RETURNS void LANGUAGE plpgsql SET lock_timeout = '200ms' AS \$\$
DECLARE
	d int := (random() * 100000)::int;
	p int := (random() * 400)::int;
	q int := (random() * 400)::int;
	n int;
BEGIN
	IF random() < 0.01 THEN
		n := 200 + (random() * 1500)::int;
		CASE d % $m
EOS
}

sub make_tables
{
	my ($self) = @_;
	my $t = $self->{t};

	$t->src('DROP TABLE IF EXISTS ' . join(', ', @{ $self->{all} }));
	$t->src($tables . ($self->{tables} // ''));
	foreach my $table (sort keys %{ $self->{keyed} })
	{
		my $args = join(', ', map { "'$_'" } $table, @{ $self->{keyed}{$table} });
		$t->src("CREATE TRIGGER model AFTER INSERT OR UPDATE OR DELETE ON $table FOR EACH ROW EXECUTE FUNCTION model($args)");
		$t->src("CREATE TRIGGER model_t AFTER TRUNCATE ON $table FOR EACH STATEMENT EXECUTE FUNCTION model($args)");
	}
	# the model knows all from here on
	$t->src("SELECT pg_create_logical_replication_slot('model', 'pgoutput')");
	$t->src($fill . ($self->{fill} // ''));
	return;
}

# ---------------------------------------------------------------- the model

# Keys that must be kept as deleted, that may be, and that live, by table.
sub read_model
{
	my ($self, $ranges) = @_;
	my (%alive, %must, %may);
	my @pending;
	my $rows = $self->{t}->src(<<'EOS');
SELECT CASE get_byte(data, 0) WHEN 67 THEN 'C ' || encode(substr(data, 3, 8), 'hex')
	ELSE 'M ' || convert_from(substr(data, 21), 'UTF8') END
FROM pg_logical_slot_get_binary_changes('model', NULL, NULL, 'proto_version', '1',
	'publication_names', 'chaos_nothing', 'messages', 'true')
WHERE get_byte(data, 0) IN (67, 77)
EOS
	# Was a key that lived from one commit to another ever seen by a live run?  A
	# TRUNCATE names no keys: rows that were not loaded yet when it came, before
	# the last snapshot of a load, never were at the destination.
	my $seen = sub {
		my ($op, $from, $to) = @_;
		foreach my $r (@$ranges)
		{
			return 1 if $from < $r->[1] && $to >= $r->[$op eq 'T' ? 2 : 0];
		}
		return 0;
	};
	foreach my $line (split /\n/, $rows)
	{
		if ($line =~ /^M (.*)$/) { push @pending, $1; next; }
		my $lsn = hex(substr($line, 2));
		foreach my $m (splice @pending)
		{
			my ($table, $op, $key) = split /\|/, $m, 3;
			my @keys = $op eq 'T' ? keys %{ $alive{$table} } : ($key);
			foreach my $k (@keys)
			{
				$may{$table}{$k} = 1;
				if ($op eq 'I') { $alive{$table}{$k} //= $lsn; next; }
				my $from = delete $alive{$table}{$k};
				# a key of this very transaction was never committed
				$must{$table}{$k} = sprintf('[%X,%X]', $from, $lsn) if defined $from && $from < $lsn && $seen->($op, $from, $lsn);
			}
		}
	}
	return (\%must, \%may, \%alive);
}

sub lsn_number { my ($h, $l) = split m{/}, $_[0]; return hex($h) * 4294967296 + hex($l); }

# Of each run that was live: the LSN of its slot, the last one it applied (from the
# destination: sub live_lsns gives it by run), and that of its last snapshot.
sub live_ranges
{
	my ($self) = @_;
	my $applied = $self->{live_lsns}->();
	my @ranges;
	foreach my $line (split /\n/, $self->{t}->src(<<'EOS'))
SELECT run, snapshot_lsn, greatest(snapshot_lsn, catch_up_lsn) FROM peerdb._run r WHERE run IN
	(SELECT replaces FROM peerdb._run UNION SELECT live_run FROM peerdb._mirror)
EOS
	{
		my ($run, $lsn, $loaded) = split /\|/, $line;
		push @ranges, [ lsn_number($lsn), $applied->{$run}, lsn_number($loaded) ] if $lsn ne '' && defined $applied->{$run};
	}
	return \@ranges;
}

# Sub dead_keys gives the keys of a table that are deleted at the destination.
sub check_tombstones
{
	my ($self, $name) = @_;
	my ($must, $may, $alive) = $self->read_model($self->live_ranges);
	foreach my $table (sort keys %{ $self->{keyed} })
	{
		my @key = @{ $self->{keyed}{$table} };
		my $key = join(q{ || ',' || }, map { "$_\::text" } @key);
		my %dead = map { $_ => 1 } $self->{dead_keys}->($table, @key);
		# with a mark in front: a key may be empty
		my %lives = map { substr($_, 1) => 1 } split /\n/, $self->{t}->src("SELECT '.' || $key FROM $table");

		is(join(' ', sort keys %{ $alive->{$table} }), join(' ', sort keys %lives),
			"$name: the model of $table knows the live keys");
		my @missing = map { "$_ $must->{$table}{$_}" } grep { !$dead{$_} && !$lives{$_} } sort keys %{ $must->{$table} };
		my @wrong = grep { $lives{$_} || !$may->{$table}{$_} } sort keys %dead;
		is("@missing", '', "$name: every deleted key of $table is kept (" . keys(%dead) . ')');
		is("@wrong", '', "$name: no other key of $table is marked as deleted");
	}
	return;
}

# ---------------------------------------------------------------- trouble

sub did { my ($self, $what) = @_; push @{ $self->{log} }, sprintf('%.1f %s', time() - $self->{started}, $what); return; }

sub until_up
{
	my ($self, $node, $what) = @_;
	$self->{t}->until_true('SELECT true', undef, node => $node, limit => 60) or die "$what does not come back";
	return;
}

# A statement for users; what may be refused just now is no error.
sub ask
{
	my ($self, $sql) = @_;
	my ($status, $out, $err) = $self->{t}->try($sql);
	my ($code) = ($err // '') =~ /(?:ERROR|FATAL|PANIC):  (\w{5}):/;
	$self->did($sql . ($status ? ' - ' . ($code // 'connection') : ''));
	if ($status && defined $code && $code !~ /^(55000|55006|57P0\d|40P01)$/)
	{
		fail("unexpected answer: $sql");
		diag($err);
	}
	return !$status;
}

sub pick { return $_[ int(rand(@_)) ]; }

sub _a_worker
{
	my ($self, $kind) = @_;
	my ($status, $pid) = $self->{t}->try(
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'resync $kind' ORDER BY pid LIMIT 1");
	return $status == 0 && $pid =~ /^\d+$/ ? $pid : undef;
}

# What may happen, whatever the destination; each gets the ResyncChaos.
my %trouble = (
	terminate => sub {
		my ($self) = @_;
		my $kind = pick(@kinds);
		my $pid = $self->_a_worker($kind) // return;
		$self->{t}->try("SELECT pg_terminate_backend($pid)");
		$self->did("terminate $kind");
	},
	kill9 => sub {
		my ($self) = @_;
		my $kind = pick(@kinds);
		my $pid = $self->_a_worker($kind) // return;
		kill 'KILL', $pid;
		$self->did("kill -9 $kind");
		usleep(300_000);
		$self->until_up($self->{source}, 'source');
	},
	restart_source => sub {
		my ($self) = @_;
		my $mode = pick(qw(fast immediate));
		$self->did("restart source $mode");
		$self->{source}->stop($mode);
		$self->{source}->start;
	},
	resync => sub {
		my ($self) = @_;
		my $keep = pick('true', 'false');
		my $rows = pick(50, 200, 1000);
		$self->ask("SELECT peerdb_resync('m', '{\"keep_serving\": $keep, \"snapshot_num_rows_per_partition\": $rows}')");
	},
	cancel => sub { $_[0]->ask("SELECT peerdb_cancel_resync('m')"); },
	pause => sub { $_[0]->ask("SELECT peerdb_pause_mirror('m')"); },
	resume => sub {
		my ($self) = @_;
		my ($status, $now) = $self->{t}->try("SELECT peerdb_mirror_status('m')");
		$self->ask("SELECT peerdb_resume_mirror('m')") if $status == 0 && $now =~ /^paus/;
	},
	truncate => sub {
		my ($self) = @_;
		my $table = pick(@{ $self->{all} });
		$self->ask("SET lock_timeout = '3s'; TRUNCATE $table");
	},
	wait => sub {
		my ($self) = @_;
		$self->{t}->try("SELECT peerdb_wait_for_status('m', 'running', '3 s')");
		$self->did('waited');
	});

# Clients and trouble, for a while; leaves the clients running.
sub begin
{
	my ($self, $seed) = @_;
	$self->{stop} = PostgreSQL::Test::Utils::tempdir() . '/stop';
	$self->{procs} = [];
	srand($seed);
	$self->{started} = time();
	$self->{log} = [];
	$self->make_tables;
	foreach my $i (1 .. $self->{clients})
	{
		my $base = $seed * 10000 + $i * 1000;
		push @{ $self->{procs} }, $self->{t}->start($self->{source}, 'bash', '-c',
			"i=$base; while [ ! -e $self->{stop} ] && kill -0 $$; do psql -XAtqc \"CALL chaos(\$i)\" >/dev/null 2>&1; i=\$((i+1)); sleep 0.05; done");
	}
	return;
}

sub make_trouble
{
	my ($self) = @_;
	while (time() < $self->{started} + $self->{seconds})
	{
		usleep(50_000 + int(rand(700_000)));
		my $what = pick(@{ $self->{bag} });
		($self->{trouble}{$what} // $trouble{$what})->($self);
	}
	$self->until_up($self->{source}, 'source');
	$self->{until_up}->($self);
	$self->did('end of trouble');
	return;
}

# A run may fail for no other reason than these.
sub check_runs
{
	my ($self, $name) = @_;
	my $bad = $self->{t}->src(<<'EOS');
SELECT run, kind, outcome, error FROM peerdb.runs r WHERE mirror = 'm' AND (outcome = 'failed' OR outcome = 'refused')
AND NOT (snapshot_lsn IS NULL AND (SELECT error_sqlstate FROM peerdb._run o WHERE o.run = r.run) ~ '^(08|57P0|53)')
EOS
	return is($bad, '', "$name: no run failed");
}

sub stop_clients
{
	my ($self) = @_;
	PostgreSQL::Test::Utils::append_to_file($self->{stop}, '');
	foreach my $proc (splice @{ $self->{procs} }) { $self->{t}->stop($proc, signal => 0); }
	return;
}

# However it stands: make it go on.  Afterwards it runs.
sub _until_running
{
	my ($self, $name) = @_;
	my $t = $self->{t};
	my $end = time() + $ResyncTest::Limit;
	my $status = '';
	while (time() < $end)
	{
		$status = $t->status('m');
		if ($status eq 'running') { last; }
		if ($status =~ /^paus/) { $self->ask("SELECT peerdb_resume_mirror('m')"); }
		elsif ($status eq 'failed')
		{
			my $outcome = $t->src("SELECT outcome FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1");
			last if $outcome ne 'cancelled' && $outcome ne 'refused' && !$self->check_runs("$name: before the last resync");
			$self->ask("SELECT peerdb_resync('m')");
		}
		usleep(200_000);
	}
	is($status, 'running', "$name: the mirror runs") or $t->describe('m');
	return $status eq 'running';
}

# After the trouble: the mirror runs, the clients end.
sub bring_home
{
	my ($self, $name) = @_;
	my $ok = $self->_until_running($name);
	# tables of a run that ended while the destination was away: the next run's
	if ($ok && $self->{t}->src(q{SELECT count(*) FROM peerdb.logs WHERE message ~ 'could not clean up'}) > 0)
	{
		$ok = $self->ask("SELECT peerdb_resync('m')") && $self->_until_running($name);
	}
	$self->stop_clients;
	return $ok;
}

# Of a failure: what was done, and how it stands.
sub report
{
	my ($self, $name) = @_;
	diag("$name:\n  " . join("\n  ", @{ $self->{log} }));
	$self->{t}->describe('m');
	diag($self->{t}->src("SELECT run, kind, keep_serving, phase, outcome, snapshot_lsn, snapshots, catch_up_lsn, confirmed_lsn, restarts, error FROM peerdb._run ORDER BY run"));
	return;
}

sub finish
{
	my ($self, $name) = @_;
	my $t = $self->{t};
	$t->src("SELECT peerdb_drop_mirror('m', drop_destination => true)");
	$t->until_true('SELECT count(*) = 0 FROM peerdb.mirrors', "$name: dropped");
	$t->no_leftovers("$name: after drop");
	$t->src("SELECT pg_drop_replication_slot('model')");
	unlink $self->{stop};
	return;
}

# One after the other; RESYNC_CHAOS_GO_ON: also after one that failed.
sub each_seed
{
	my ($self, $one, @seeds) = @_;
	foreach my $seed (@seeds)
	{
		note("seed $seed");
		$one->($seed);
		# make test-long shows what comes out here
		if ($ENV{RESYNC_LONG} && open(my $out, '>>&', 9))
		{
			printf $out "%s seed %s: %s\n", $0 =~ m{(\d+)_[^/]*$}, $seed, Test::More->builder->is_passing ? 'ok' : 'FAILED';
			$out->flush;
		}
		if (!Test::More->builder->is_passing)
		{
			diag("failed with seed $seed");
			last unless $ENV{RESYNC_CHAOS_GO_ON};
		}
	}
	return;
}

1;
