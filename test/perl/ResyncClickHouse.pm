=pod

=head1 NAME

ResyncClickHouse - a source cluster and a ClickHouse server

=head1 SYNOPSIS

  use ResyncClickHouse;
  my $t = ResyncClickHouse->new;          # cluster, engine, server "ch"
  $t->src('CREATE TABLE t (id int PRIMARY KEY)');
  $t->create_mirror('m', ['public.t']);
  $t->wait_status('m', 'running');
  $t->sync('m');
  $t->same_ch('t');

Everything of ResyncTest that needs no destination cluster works.  The engine
is libchdb behind test/chdb/chdbd.c; without it the test file is skipped.

=cut

package ResyncClickHouse;

use strict;
use warnings;

use parent 'ResyncTest';

use HTTP::Tiny;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our $User = 'mirror';
our $Password = 'hunter2 &?%';

# Options: src_conf; chdbd (more arguments of the server), server (options of
# the foreign server beside host, port, database), no_engine.
sub new
{
	my ($class, %opt) = @_;

	plan(skip_all => 'no ClickHouse engine: ' . ($ENV{RESYNC_CHDB_MISSING} || 'RESYNC_CHDBD is not set'))
	  unless $ENV{RESYNC_CHDBD};
	my $self = bless { db => 'postgres', held => {}, procs => [] }, $class;
	$self->{source} = $self->_cluster('source', <<"EOC" . ($opt{src_conf} // ''));
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
max_replication_slots = 20
EOC
	$self->{dir} = PostgreSQL::Test::Utils::tempdir();
	$self->{chdbd} = $opt{chdbd} // [];
	$self->start_ch;
	$self->ch('CREATE DATABASE d', database => '');
	$self->src("CREATE EXTENSION resync;\n" . $self->server_sql('ch', %{ $opt{server} // {} }));
	return $self;
}

# CREATE SERVER and USER MAPPING; options override.  user, password: of the
# mapping.
sub server_sql
{
	my ($self, $name, %o) = @_;
	my ($user, $password) = (delete $o{user} // $User, delete $o{password} // $Password);
	my %options = (host => '127.0.0.1', port => $self->{port}, database => 'd', tls => 'off', %o);
	my $list = join(', ', map { "$_ '$options{$_}'" } sort keys %options);
	return <<"EOS";
CREATE SERVER $name FOREIGN DATA WRAPPER peerdb_clickhouse OPTIONS ($list);
CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (user '$user', password '$password');
EOS
}

# ---------------------------------------------------------------- the engine

# Start it; again after stop_ch, kill_ch or a fault that ends it: on the same
# port and data.
sub start_ch
{
	my ($self, @more) = @_;
	my $dir = $self->{dir};
	my $end = time() + 60;

	unlink "$dir/out";
	$self->{http} = HTTP::Tiny->new(timeout => 120);
	my @cmd = (
		$ENV{RESYNC_CHDBD}, '--die-with-parent', '--path', "$dir/data", '--log', "$dir/log", '--user', $User,
		'--password', $Password, '--port', $self->{port} // 0, @{ $self->{chdbd} }, @more);
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>', "$dir/out";
		open STDERR, '>>', "$dir/err";
		exec @cmd or POSIX::_exit(127);
	}
	$self->{engine} = $pid;
	while (time() < $end)
	{
		if (-s "$dir/out" && PostgreSQL::Test::Utils::slurp_file("$dir/out") =~ /^port (\d+)$/m)
		{
			$self->{port} = $1;
			return;
		}
		last unless $self->_alive;
		usleep(20_000);
	}
	die 'the ClickHouse server does not start: ' . PostgreSQL::Test::Utils::slurp_file("$dir/err");
}

sub _alive
{
	my ($self) = @_;
	return 0 unless $self->{engine};
	return 1 if waitpid($self->{engine}, POSIX::WNOHANG()) == 0;
	delete $self->{engine};
	return 0;
}

sub kill_ch
{
	my ($self) = @_;
	return unless $self->_alive;
	kill 'KILL', $self->{engine};
	waitpid(delete $self->{engine}, 0);
	return;
}

# After a fault that ends the server.
sub wait_dead
{
	my ($self, $name) = @_;
	return ok($self->poll(sub { !$self->_alive }), $name // 'the server is dead');
}

sub _escape { my ($text) = @_; $text =~ s/([^A-Za-z0-9_.~-])/sprintf('%%%02X', ord $1)/ge; return $text; }

# A statement at the server: (status, body).
sub ch_try
{
	my ($self, $sql, %o) = @_;
	my %params = (database => 'd', output_format_decimal_trailing_zeros => 1, %{ $o{settings} // {} });
	$params{database} = $o{database} if exists $o{database};
	utf8::encode($sql) if utf8::is_utf8($sql);
	my $url = "http://127.0.0.1:$self->{port}/?"
	  . join('&', map { _escape($_) . '=' . _escape($params{$_}) } sort keys %params);
	my $answer = $self->{http}->request('POST', $url,
		{ content => $sql, headers => { 'X-ClickHouse-User' => $User, 'X-ClickHouse-Key' => $Password } });
	my $body = $answer->{content};
	chomp $body;
	return ($answer->{status}, $body);
}

# The same; dies on error, returns the body.
sub ch
{
	my ($self, $sql, %o) = @_;
	my ($status, $body) = $self->ch_try($sql, %o);
	die "ClickHouse: $status $body\n$sql" if $status != 200;
	return $body;
}

# Steer the server (see chdbd.c): admin('held'), admin('fault', action => ...).
sub admin
{
	my ($self, $what, %o) = @_;
	my $url = "http://127.0.0.1:$self->{port}/admin/$what?"
	  . join('&', map { "$_=" . _escape($o{$_}) } sort keys %o);
	my $answer = $self->{http}->get($url);
	die "chdbd: $answer->{status} $answer->{content}" if $answer->{status} != 200;
	my $body = $answer->{content};
	chomp $body;
	return $body;
}

# A fault for statements that match; returns its number for until_fault.
sub fault
{
	my ($self, $action, $match, %o) = @_;
	my $id = $self->admin('fault', action => $action, match => $match, %o);
	die "chdbd: $id" unless $id =~ /^\d+$/;
	return $id;
}

sub until_fault
{
	my ($self, $id, $name, %o) = @_;
	my $wanted = $o{times} // 1;
	my $ok = ok($self->poll(sub { $self->admin('hits', id => $id) >= $wanted }), $name // "fault $id has happened");
	return $ok;
}

sub until_held
{
	my ($self, $name) = @_;
	return ok($self->poll(sub { $self->admin('held') > 0 }), $name // 'a statement is held');
}

# Until the function is true.
sub poll
{
	my ($self, $what) = @_;
	my $end = time() + $ResyncTest::Limit;
	while (time() < $end)
	{
		return 1 if $what->();
		usleep(30_000);
	}
	return 0;
}

# Any query at ClickHouse gives this result.
sub until_ch
{
	my ($self, $sql, $wanted, $name) = @_;
	my $last = '';
	my $ok = ok($self->poll(sub { (my $s, $last) = $self->ch_try($sql); $s == 200 && $last eq $wanted }), $name);
	diag("never $wanted: $sql\nlast: $last") unless $ok;
	return $ok;
}

# Statements so far: list of { id, token, code, rows, settings, sql }.
sub statements
{
	my ($self, $pattern) = @_;
	my @result;
	return () unless -e "$self->{dir}/log";
	foreach my $line (split /\n/, PostgreSQL::Test::Utils::slurp_file("$self->{dir}/log"))
	{
		my ($id, $token, $code, $rows, $settings, $sql) = split /\t/, $line, 6;
		next if defined $pattern && $sql !~ $pattern;
		push @result, { id => $id, token => $token, code => $code, rows => $rows, settings => $settings, sql => $sql };
	}
	return @result;
}

# ---------------------------------------------------------------- mirrors

sub create_mirror
{
	my ($self, $mirror, $tables, $options, %o) = @_;
	return $self->SUPER::create_mirror($mirror, $tables, $options, peer => 'ch', %o);
}

sub ident { my ($name) = @_; $name =~ s/([`\\])/\\$1/g; return "`$name`"; }

# Live rows of a table at ClickHouse, as lines.  Options: columns (expressions),
# where, soft_delete, final (1).
sub ch_rows
{
	my ($self, $table, %o) = @_;
	my $deleted = exists $o{soft_delete} ? $o{soft_delete} : '_peerdb_is_deleted';
	my $list = join(', ', @{ $o{columns} });
	my $sql = "SELECT $list FROM " . ident($table) . ($o{final} // 1 ? ' FINAL' : '');
	my @where = (defined $deleted ? "$deleted = 0" : (), $o{where} // ());
	$sql .= ' WHERE ' . join(' AND ', @where) if @where;
	my $text = $self->ch($sql . ' FORMAT TabSeparated');
	# COPY does not escape the apostrophe
	$text =~ s/\\'/'/g;
	return sort split /\n/, $text;
}

# The table at the source against the live rows of the one at ClickHouse, as
# text.  Options: columns, ch_columns (expressions; default: the same, quoted as
# each side does), to, where (for both sides), soft_delete, final.
sub same_ch
{
	my ($self, $table, $name, %o) = @_;
	my @columns = $o{columns} ? @{ $o{columns} } : $self->columns($table);
	my @there = $o{ch_columns} ? @{ $o{ch_columns} }
	  : map { my $c = $_; $c =~ s/^"(.*)"$/$1/s and $c =~ s/""/"/g; ident($c) } @columns;
	my $to = $o{to};
	if (!defined $to)
	{
		$to = $table;
		$to =~ s/^"(.*)"$/$1/s and $to =~ s/""/"/g;
	}
	my $where = defined $o{where} ? "WHERE $o{where}" : '';
	$name //= "$table is equal on both sides";

	my $list = join(', ', map { "$_\::text" } @columns);
	my @a = sort split /\n/, $self->src("COPY (SELECT $list FROM $table $where) TO STDOUT");
	my @b = eval { $self->ch_rows($to, %o, columns => \@there) };
	if ($@)
	{
		fail($name);
		diag($@);
		return 0;
	}
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
		diag(sprintf('%d rows at the source, %d at ClickHouse, %d differ', scalar @a, scalar @b, scalar @diff));
		diag(substr($_, 0, 400)) foreach splice @diff, 0, 10;
	}
	return $ok;
}

# A client that asks again and again, each query a new statement that must give
# one number > 0.
sub ch_reader
{
	my ($self, @queries) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $i = 0;
	my @calls;
	foreach my $query (@queries)
	{
		PostgreSQL::Test::Utils::append_to_file("$dir/q" . ++$i, $query);
		push @calls, "curl -sSf -K $dir/auth --data-binary \@$dir/q$i >>$dir/out 2>>$dir/err";
	}
	PostgreSQL::Test::Utils::append_to_file("$dir/auth", <<"EOC");
url = "http://127.0.0.1:$self->{port}/?database=d"
header = "X-ClickHouse-User: $User"
header = "X-ClickHouse-Key: $Password"
EOC
	my $proc = $self->start($self->{source}, 'bash', '-c',
		"while [ ! -e $dir/stop ]; do " . join('; ', @calls) . '; done');
	$proc->{dir} = $dir;
	return $proc;
}

# Nothing is left: no slot, no table under construction, no worker.
sub no_leftovers
{
	my ($self, $name, %o) = @_;
	my $keep = $o{keep} // 0;
	$name //= 'nothing is left';

	subtest $name => sub {
		$self->until_true("SELECT count(*) = $keep FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'",
			"no slot beyond $keep");
		$self->until_ch(q{SELECT count() FROM system.tables WHERE database = 'd' AND match(name, '_resync(_[0-9a-f]{8})?(_shard)?$')},
			'0', 'no table under construction');
		if (!$keep)
		{
			$self->until_true(
				"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher%'",
				'no worker');
			ok($self->poll(sub { $self->admin('running') eq '' }), 'no statement runs');
		}
	};
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local $?;
	$self->SUPER::DESTROY;
	$self->kill_ch;
	return;
}

1;
