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

use parent 'ResyncService';

use HTTP::Tiny;
use PostgreSQL::Test::Utils;
use Test::More;

our $User = 'mirror';
our $Password = 'hunter2 &?%';

# Options: src_conf; chdbd (more arguments of the server), server (options of
# the foreign server beside host, port, database).
sub new
{
	my ($class, %opt) = @_;

	plan(skip_all => 'no ClickHouse engine: ' . ($ENV{RESYNC_CHDB_MISSING} || 'RESYNC_CHDBD is not set'))
	  unless $ENV{RESYNC_CHDBD};
	my $self = $class->begin($opt{src_conf});
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

	$self->{http} = HTTP::Tiny->new(timeout => 120);
	return $self->launch(
		[ $ENV{RESYNC_CHDBD}, '--die-with-parent', '--path', "$dir/data", '--log', "$dir/log", '--user', $User,
			'--password', $Password, '--port', $self->{port} // 0, @{ $self->{chdbd} }, @more ]);
}

sub kill_ch { my ($self) = @_; return $self->kill_service; }

# After a fault that ends the server.
sub wait_dead
{
	my ($self, $name) = @_;
	return ok($self->poll(sub { !$self->alive }), $name // 'the server is dead');
}

# A statement at the server: (status, body).
sub ch_try
{
	my ($self, $sql, %o) = @_;
	my %params = (database => 'd', output_format_decimal_trailing_zeros => 1, %{ $o{settings} // {} });
	$params{database} = $o{database} if exists $o{database};
	utf8::encode($sql) if utf8::is_utf8($sql);
	my $url = "http://127.0.0.1:$self->{port}/?"
	  . join('&', map { ResyncService::_escape($_) . '=' . ResyncService::_escape($params{$_}) } sort keys %params);
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
sub admin { my ($self, $what, %o) = @_; return $self->admin_call($what, undef, %o); }

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
	return $self->compare_lines($name, 'ClickHouse', \@a, \@b);
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
		$self->nothing_here($keep);
		$self->until_ch(q{SELECT count() FROM system.tables WHERE database = 'd' AND match(name, '_resync(_[0-9a-f]{8})?(_shard)?$')},
			'0', 'no table under construction');
		if (!$keep)
		{
			ok($self->poll(sub { $self->admin('running') eq '' }), 'no statement runs');
		}
	};
	return;
}

1;
