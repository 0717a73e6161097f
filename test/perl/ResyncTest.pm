=pod

=head1 NAME

ResyncTest - a source and a destination cluster, and what mirrors need of a test

=head1 SYNOPSIS

  use ResyncTest;
  my $t = ResyncTest->new;                # two clusters, extension, server "dest"
  $t->src('CREATE TABLE t (id int PRIMARY KEY)');
  $t->create_mirror('m', ['public.t']);
  $t->wait_status('m', 'running');
  $t->sync('m');
  $t->same('t');
  $t->no_leftovers;

Every wait is for a state, never for a time; the limit of a wait is
$PostgreSQL::Test::Utils::timeout_default.

=cut

package ResyncTest;

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::BackgroundPsql;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# seconds a mirror may take for one step
our $Limit = $ENV{RESYNC_TEST_LIMIT} || 90;

# Options: src_conf, dst_conf (text appended to postgresql.conf),
# dbname (postgres), no_extension.
sub new
{
	my ($class, %opt) = @_;
	my $self = bless { db => 'postgres', held => {}, procs => [] }, $class;

	$self->{source} = $self->_cluster('source', <<"EOC" . ($opt{src_conf} // ''));
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
max_replication_slots = 20
max_wal_senders = 10
EOC
	$self->{dest} = $self->_cluster('dest', "wal_level = replica\n" . ($opt{dst_conf} // ''));
	$self->install unless $opt{no_extension};
	return $self;
}

sub _cluster
{
	my ($self, $name, $conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(extra => [ '--locale=C.UTF-8', '--encoding=UTF8' ]);
	$node->append_conf('postgresql.conf', <<"EOC" . $conf);
fsync = off
log_statement = none
log_replication_commands = off
max_connections = 60
shared_buffers = 32MB
max_wal_size = 1GB
timezone = 'UTC'
max_wal_senders = 10
EOC
	$node->start;
	return $node;
}

# Extension, server and user mapping in database $db of the source.
sub install
{
	my ($self, $db, %opt) = @_;
	$db //= $self->{db};
	my $server = $opt{server} // 'dest';
	my $dest = $self->{dest};
	my ($host, $port) = ($dest->host, $dest->port);
	my $dbname = $opt{dbname} // 'postgres';
	my $user = $self->{dest}->safe_psql('postgres', 'SELECT current_user');

	$self->{source}->safe_psql($db, <<"EOS");
CREATE EXTENSION IF NOT EXISTS resync;
CREATE SERVER $server FOREIGN DATA WRAPPER peerdb_postgres
	OPTIONS (host '$host', port '$port', dbname '$dbname');
CREATE USER MAPPING FOR CURRENT_USER SERVER $server OPTIONS (user '$user');
EOS
	return;
}

sub source { return $_[0]->{source}; }
sub dest { return $_[0]->{dest}; }

# SQL at the source, at the destination: dies on error, returns the output.
sub src { my ($self, $sql, %o) = @_; return $self->{source}->safe_psql($o{db} // $self->{db}, $sql); }
sub dst { my ($self, $sql, %o) = @_; return $self->{dest}->safe_psql($o{db} // 'postgres', $sql); }

# SQL at the source that may fail: (status, stdout, stderr); the error comes
# with SQLSTATE, detail and hint.
sub try
{
	my ($self, $sql, %o) = @_;
	my ($out, $err) = ('', '');
	my $node = $o{node} // $self->{source};
	my $status = $node->psql(
		$o{db} // $self->{db}, $sql,
		stdout => \$out,
		stderr => \$err,
		on_error_stop => 1,
		extra_params => [ '-v', 'VERBOSITY=verbose', ($o{user} ? ('-U', $o{user}) : ()) ]);
	return ($status, $out, $err);
}

# The statement fails with this SQLSTATE; returns the message.
sub refused
{
	my ($self, $sql, $sqlstate, $pattern, $name) = @_;
	my ($status, $out, $err) = $self->try($sql);
	if ($status == 0)
	{
		fail("$name: is refused");
		return '';
	}
	like($err, qr/ERROR:  $sqlstate: .*$pattern/s, $name);
	return $err;
}

sub _json
{
	my ($v) = @_;
	if (ref $v eq 'ARRAY') { return '[' . join(',', map { _json($_) } @$v) . ']'; }
	if (ref $v eq 'HASH')
	{
		return '{' . join(',', map { _json("$_") . ':' . _json($v->{$_}) } sort keys %$v) . '}';
	}
	if (ref $v eq 'SCALAR') { return $$v ? 'true' : 'false'; }
	return 'null' unless defined $v;
	return $v if $v =~ /^-?\d+(\.\d+)?$/;
	return $v if $v eq 'true' || $v eq 'false';
	$v =~ s/(["\\])/\\$1/g;
	return "\"$v\"";
}

sub jsonb { my ($v) = @_; my $j = _json($v); $j =~ s/'/''/g; return "'$j'::jsonb"; }

sub create_mirror
{
	my ($self, $mirror, $tables, $options, %o) = @_;
	return $self->src(
		sprintf("SELECT peerdb_create_mirror('%s', '%s', %s, %s)",
			$mirror, $o{peer} // 'dest', jsonb($tables), jsonb($options // {})),
		%o);
}

sub resync
{
	my ($self, $mirror, $options, %o) = @_;
	return $self->src(sprintf("SELECT peerdb_resync('%s', %s)", $mirror, jsonb($options // {})), %o);
}

sub status { my ($self, $mirror, %o) = @_; return $self->src("SELECT peerdb_mirror_status('$mirror')", %o); }

# What helps to understand a wait that did not come to its end.
sub describe
{
	my ($self, $mirror, %o) = @_;
	my ($status, $out, $err) = $self->try(<<"EOS", %o);
\\x on
SELECT status, phase, run, rows_loaded, rows_total_estimate, error FROM peerdb.mirrors WHERE mirror = '$mirror';
SELECT run, kind, phase, outcome, error FROM peerdb.runs WHERE mirror = '$mirror' ORDER BY run DESC LIMIT 3;
SELECT logged_at, level, phase, message, detail FROM peerdb.logs WHERE mirror = '$mirror' ORDER BY id DESC LIMIT 8;
EOS
	diag("$out\n$err");
	return;
}

# peerdb_wait_for_status(): the newest run reaches the status.
sub wait_status
{
	my ($self, $mirror, $wanted, $name, %o) = @_;
	$name //= "mirror $mirror reaches status $wanted";
	my ($status, $out, $err) =
	  $self->try("SELECT peerdb_wait_for_status('$mirror', '$wanted', '$Limit s')", %o);
	my $ok = ok($status == 0, $name);
	if (!$ok)
	{
		diag($err);
		$self->describe($mirror, %o);
	}
	return $ok;
}

# Any condition on the source, or (node => ...) elsewhere, becomes true.
sub until_true
{
	my ($self, $sql, $name, %o) = @_;
	my $node = $o{node} // $self->{source};
	my $db = $o{db} // ($node == $self->{source} ? $self->{db} : 'postgres');
	my $end = time() + ($o{limit} // $Limit);
	my ($out, $err, $status);
	while (time() < $end)
	{
		($out, $err) = ('', '');
		# psql may be gone, without a server, before it is given the query
		$status = eval { $node->psql($db, $sql, stdout => \$out, stderr => \$err) };
		$err = $@ if !defined $status;
		return (defined $name ? ok(1, $name) : 1) if defined $status && $status == 0 && $out eq 't';
		usleep(50_000);
	}
	my $ok = defined $name ? ok(0, $name) : 0;
	diag("never true: $sql\nlast: $out\n$err");
	return $ok;
}

# The mirror itself (not the newest run) shows the status.
sub until_status
{
	my ($self, $mirror, $wanted, $name, %o) = @_;
	my $ok = $self->until_true("SELECT peerdb_mirror_status('$mirror') = '$wanted'",
		$name // "mirror $mirror becomes $wanted", %o);
	$self->describe($mirror, %o) unless $ok;
	return $ok;
}

# The mirror fails, and its error matches.
sub until_failed
{
	my ($self, $mirror, $pattern, $name) = @_;
	$self->until_status($mirror, 'failed', "$name: mirror fails") or return 0;
	return like($self->src("SELECT error FROM peerdb.mirrors WHERE mirror = '$mirror'"),
		$pattern, "$name: the error says why");
}

sub until_phase
{
	my ($self, $mirror, $phase, $name) = @_;
	my $ok = $self->until_true(
		"SELECT phase = '$phase' FROM peerdb.runs WHERE mirror = '$mirror' ORDER BY run DESC LIMIT 1",
		$name // "run of $mirror is in phase $phase");
	$self->describe($mirror) unless $ok;
	return $ok;
}

# The destination has everything that is committed now.
sub sync
{
	my ($self, $mirror, $name, %o) = @_;
	my ($status, $out, $err) =
	  $self->try("SELECT peerdb_wait_for_lsn('$mirror', NULL, '$Limit s')", %o);
	my $ok = ok($status == 0, $name // "destination of $mirror catches up");
	if (!$ok)
	{
		diag($err);
		$self->describe($mirror, %o);
	}
	return $ok;
}

# Columns of a table at the source, quoted.
sub columns
{
	my ($self, $table, %o) = @_;
	return split /\n/, $self->src(<<"EOS", %o);
SELECT quote_ident(attname) FROM pg_attribute
WHERE attrelid = '$table'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
EOS
}

# Compare row by row, as text: the table at the source with the live rows of
# the one at the destination.  Options: columns, to (the table's name there),
# where (source), soft_delete (column, undef: none), only (FROM ONLY), db.
sub same
{
	my ($self, $table, $name, %o) = @_;
	my @columns = $o{columns} ? @{ $o{columns} } : $self->columns($table, db => $o{db});
	my $to = $o{to} // $table;
	my $deleted = exists $o{soft_delete} ? $o{soft_delete} : '_peerdb_is_deleted';
	my $list = join(', ', map { "$_\::text" } @columns);
	my $where = defined $o{where} ? "WHERE $o{where}" : '';
	my $live = defined $deleted ? "WHERE NOT $deleted" : '';

	$name //= "$table is equal on both sides";
	my @a = sort split /\n/, $self->src("COPY (SELECT $list FROM $table $where) TO STDOUT", db => $o{db});
	my ($status, $out, $err) =
	  $self->try("COPY (SELECT $list FROM $to $live) TO STDOUT", node => $self->{dest}, db => 'postgres');
	if ($status != 0)
	{
		fail($name);
		diag($err);
		return 0;
	}
	my @b = sort split /\n/, $out;

	my ($i, $j, @diff) = (0, 0);
	while ($i < @a || $j < @b)
	{
		my $cmp = $i >= @a ? 1 : $j >= @b ? -1 : $a[$i] cmp $b[$j];
		if ($cmp == 0) { $i++; $j++; next; }
		push @diff, $cmp < 0 ? "source only:      $a[$i]" : "destination only: $b[$j]";
		$cmp < 0 ? $i++ : $j++;
	}
	my $ok = ok(!@diff, sprintf('%s (%d rows)', $name, scalar @a));
	if (!$ok)
	{
		diag(sprintf('%d rows at the source, %d at the destination, %d differ',
			scalar @a, scalar @b, scalar @diff));
		diag(substr($_, 0, 400)) foreach splice @diff, 0, 10;
	}
	return $ok;
}

# ---------------------------------------------------------------- background

# A session that stays open: ->query_safe, ->query, ->quit.
sub session
{
	my ($self, $node, $db) = @_;
	return $node->background_psql($db // 'postgres');
}

# Start a program; stop() ends it and returns (exit status, stdout, stderr).
sub start
{
	my ($self, $node, @cmd) = @_;
	my $proc = { out => '', err => '' };
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PGDATABASE} = 'postgres';
	$proc->{h} = IPC::Run::start(\@cmd, '<', \undef, '>', \$proc->{out}, '2>', \$proc->{err});
	push @{ $self->{procs} }, $proc;
	return $proc;
}

sub stop
{
	my ($self, $proc, %o) = @_;
	return if $proc->{done};
	$proc->{done} = 1;
	if ($o{signal} // 1)
	{
		eval { $proc->{h}->signal('TERM'); };
	}
	eval { $proc->{h}->finish; };
	return ($proc->{h}->full_result(0), $proc->{out}, $proc->{err});
}

# pgbench on the source until stopped.  $script: text of a script; default:
# the built-in one.
sub writer
{
	my ($self, $script, %o) = @_;
	my @cmd = ('pgbench', '-n', '-c', $o{clients} // 2, '-j', 1, '-T', 3600);
	push @cmd, '-R', $o{rate} if $o{rate};
	if (defined $script)
	{
		my $file = PostgreSQL::Test::Utils::tempdir() . '/script.sql';
		PostgreSQL::Test::Utils::append_to_file($file, $script);
		push @cmd, '-f', $file;
	}
	return $self->start($self->{source}, @cmd);
}

# A reader at the destination, READ COMMITTED, that asks again and again, each
# time by a new statement: $queries must return one number > 0 each.
sub reader
{
	my ($self, @queries) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $text = join('', map { "$_;\n" } @queries) x 20;
	PostgreSQL::Test::Utils::append_to_file("$dir/q.sql", $text);
	my $proc = $self->start($self->{dest}, 'bash', '-c',
		"while [ ! -e $dir/stop ]; do cat $dir/q.sql || exit; done | psql -XAtq -v ON_ERROR_STOP=1 >$dir/out 2>$dir/err");
	$proc->{dir} = $dir;
	return $proc;
}

# Stop the reader: it saw no error and no empty table, and saw something.
sub reader_ok
{
	my ($self, $proc, $name) = @_;
	my $dir = $proc->{dir};
	PostgreSQL::Test::Utils::append_to_file("$dir/stop", '');
	$self->stop($proc, signal => 0);
	my @rows = split /\n/, PostgreSQL::Test::Utils::slurp_file("$dir/out");
	my $errors = PostgreSQL::Test::Utils::slurp_file("$dir/err");
	is($errors, '', "$name: the reader saw no error");
	my @empty = grep { !/^[1-9]\d*$/ } @rows;
	is(scalar(@empty), 0, "$name: the reader never saw an empty table (" . scalar(@rows) . ' reads)');
	cmp_ok(scalar(@rows), '>', 0, "$name: the reader did read");
	return;
}

# ---------------------------------------------------------------- phases

# Bring the run of a mirror into a phase and keep it there, by what lies in the
# way of it (validate: by a debug point): no timing is involved.  $table is a
# table of the mirror (name at both sides), $build its table under construction.
# Returns a function that clears the way.  Call it before the run is started,
# with the code that starts it.
sub hold_phase
{
	my ($self, $mirror, $phase, $table, $start) = @_;
	my $build = "${table}_resync";
	my @sessions;
	my @points;
	my $release = sub {
		$self->debug_point($_) foreach splice @points;
		foreach my $s (splice @sessions) { $s->query('ROLLBACK', verbose => 0); $s->quit; }
	};

	if ($phase eq 'validate')
	{
		$self->debug_point('validate', 'wait');
		push @points, 'validate';
		$start->();
	}
	elsif ($phase eq 'drop')
	{
		# what the old run has at the destination cannot be retired
		my $s = $self->session($self->{dest});
		push @sessions, $s;
		$s->query_safe('BEGIN; SELECT FROM _peerdb_internal.resync_run FOR UPDATE');
		$start->();
	}
	elsif ($phase eq 'create_slot')
	{
		# a slot waits for the transactions that write
		my $s = $self->session($self->{source}, $self->{db});
		push @sessions, $s;
		$s->query_safe('BEGIN; SELECT pg_current_xact_id()');
		$start->();
	}
	elsif ($phase eq 'create_tables')
	{
		my $writer = $self->session($self->{source}, $self->{db});
		$writer->query_safe('BEGIN; SELECT pg_current_xact_id()');
		$start->();
		$self->until_phase($mirror, 'create_slot');
		my $s = $self->session($self->{dest});
		push @sessions, $s;
		# nobody creates a table at the destination
		$s->query_safe('BEGIN; LOCK TABLE pg_catalog.pg_class IN SHARE MODE');
		$writer->query('ROLLBACK');
		$writer->quit;
	}
	elsif ($phase eq 'load')
	{
		$self->src("ALTER SYSTEM SET resync.load_rate_limit = '1kB'");
		$self->src('SELECT pg_reload_conf()');
		my $old = $release;
		$release = sub {
			$self->src('ALTER SYSTEM RESET resync.load_rate_limit');
			$self->src('SELECT pg_reload_conf()');
			$old->();
		};
		$start->();
	}
	elsif ($phase eq 'catch_up')
	{
		# as soon as the table is there: rows can be written, no key made
		my $writer = $self->session($self->{source}, $self->{db});
		$writer->query_safe('BEGIN; SELECT pg_current_xact_id()');
		$start->();
		$self->until_phase($mirror, 'create_slot');
		my $ddl = $self->session($self->{dest});
		$self->src("ALTER SYSTEM SET resync.load_rate_limit = '1kB'");
		$self->src('SELECT pg_reload_conf()');
		$writer->query('ROLLBACK');
		$writer->quit;
		$self->until_phase($mirror, 'load');
		push @sessions, $ddl;
		$ddl->query_safe("BEGIN; LOCK TABLE $build IN ROW EXCLUSIVE MODE");
		$self->src('ALTER SYSTEM RESET resync.load_rate_limit');
		$self->src('SELECT pg_reload_conf()');
	}
	elsif ($phase eq 'swap')
	{
		# a reader that keeps the old table
		my $s = $self->session($self->{dest});
		push @sessions, $s;
		$s->query_safe("BEGIN; LOCK TABLE $table IN ACCESS SHARE MODE");
		$start->();
	}
	else
	{
		die "no way to hold phase $phase";
	}
	$self->until_phase($mirror, $phase);
	# it does not go on by itself: three looks, some progress of time between
	foreach (1 .. 3)
	{
		usleep(300_000);
		my $now = $self->src("SELECT phase FROM peerdb.runs WHERE mirror = '$mirror' ORDER BY run DESC LIMIT 1");
		next if $now eq $phase || ($phase eq 'swap' && $now eq 'catch_up');
		fail("run of $mirror stays in phase $phase");
		diag("it is in phase $now");
		last;
	}
	return $release;
}

# Debug points (src/worker/debug.c): debug_point('before_apply', 'wait'),
# 'error text', 'fatal', 'crash', each with 'once ' in front if wished; without an
# action the point is cleared, and who waits there goes on.
sub debug_point
{
	my ($self, $name, $action) = @_;
	my $dir = $self->{source}->data_dir . '/resync_debug';
	mkdir $dir;
	if (defined $action)
	{
		# in one step: a half-written file is never seen
		open my $fh, '>', "$dir/.$name" or die "$dir/.$name: $!";
		print $fh "$action\n";
		close $fh;
		rename "$dir/.$name", "$dir/$name" or die "$dir/$name: $!";
	}
	else
	{
		unlink "$dir/$name";
	}
	return;
}

# ---------------------------------------------------------------- leftovers

# Nothing is left: no slot, no table under construction, no connection at the
# destination, no worker of a mirror.  keep => N: slots of mirrors that go on.
sub no_leftovers
{
	my ($self, $name, %o) = @_;
	my $keep = $o{keep} // 0;
	$name //= 'nothing is left';

	subtest $name => sub {
		$self->until_true(
			"SELECT count(*) = $keep FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'",
			"no slot beyond $keep");
		$self->until_true(
			"SELECT count(*) = 0 FROM pg_class WHERE relname ~ '_resync(_[0-9a-f]{8})?\$'",
			'no table under construction', node => $self->{dest});
		if (!$keep)
		{
			$self->until_true(
				"SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'resync%'",
				'no connection at the destination', node => $self->{dest});
			$self->until_true(
				"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher%'",
				'no worker');
		}
	};
	return;
}

# End of a test: drop the mirrors that are there, nothing is left.
sub drop_all
{
	my ($self) = @_;
	$self->src('SELECT peerdb_drop_mirror(mirror) FROM peerdb.mirrors');
	$self->no_leftovers('after the last mirror is dropped');
	return;
}

sub DESTROY
{
	my ($self) = @_;
	foreach my $proc (@{ $self->{procs} })
	{
		next if $proc->{done};
		PostgreSQL::Test::Utils::append_to_file("$proc->{dir}/stop", '') if $proc->{dir};
		eval { $proc->{h}->kill_kill; };
	}
	return;
}

1;
