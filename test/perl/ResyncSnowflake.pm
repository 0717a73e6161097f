=pod

=head1 NAME

ResyncSnowflake - a source cluster and a service that speaks Snowflake's protocol

=head1 SYNOPSIS

  use ResyncSnowflake;
  my $t = ResyncSnowflake->new;            # cluster, service, server "sf"
  $t->src('CREATE TABLE t (id int PRIMARY KEY)');
  $t->create_mirror('m', ['public.t']);
  $t->wait_status('m', 'running');
  $t->sync('m');
  $t->same_sf('t');

Everything of ResyncTest that needs no destination cluster works.  The service
is test/snowflake/service.js; without its packages the test file is skipped.

=cut

package ResyncSnowflake;

use strict;
use warnings;

use parent 'ResyncTest';

use Encode ();
use HTTP::Tiny;
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our $Account = 'myorg-acct';
our $User = 'MIRROR_USER';
our $Database = 'DB';

# Options: src_conf; service (more arguments of the service).
sub new
{
	my ($class, %opt) = @_;

	plan(skip_all => 'no Snowflake service: ' . ($ENV{RESYNC_SNOWFLAKE_MISSING} || 'RESYNC_SNOWFLAKE is not set'))
	  unless $ENV{RESYNC_SNOWFLAKE};
	my $self = bless { db => 'postgres', held => {}, procs => [] }, $class;
	$self->{source} = $self->_cluster('source', <<"EOC" . ($opt{src_conf} // ''));
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
max_replication_slots = 20
EOC
	$self->{dir} = PostgreSQL::Test::Utils::tempdir();
	$self->{service} = $opt{service} // [];
	$self->{http} = HTTP::Tiny->new(timeout => 300);
	$self->_make_keys;
	$self->start_sf;
	$self->src("CREATE EXTENSION resync;\n" . $self->server_sql('sf'));
	return $self;
}

sub _make_keys
{
	my ($self) = @_;
	my $dir = $self->{dir};
	system("openssl genrsa -out $dir/key.pem 2048 2>/dev/null && openssl rsa -in $dir/key.pem -pubout -out $dir/public.pem 2>/dev/null"
		  . " && openssl pkcs8 -topk8 -in $dir/key.pem -out $dir/encrypted.pem -v2 aes-256-cbc -passout pass:secretphrase 2>/dev/null"
		  . " && openssl genrsa -out $dir/other.pem 2048 2>/dev/null") == 0
	  or die 'openssl makes no key';
	PostgreSQL::Test::Utils::append_to_file("$dir/passphrase", "secretphrase\n");
	PostgreSQL::Test::Utils::append_to_file("$dir/wrong_passphrase", "wrongphrase\n");
	return;
}

# CREATE SERVER and USER MAPPING; options override, undef leaves one out.
# mapping: options of the mapping.
sub server_sql
{
	my ($self, $name, %o) = @_;
	my %mapping = (user => $User, private_key_file => "$self->{dir}/key.pem", %{ delete $o{mapping} // {} });
	my %options = (account => $Account, database => 'db', warehouse => 'wh', role => 'mirror_role',
		url => "http://127.0.0.1:$self->{port}", %o);
	my $list = sub { my ($h) = @_; join(', ', map { "$_ '$h->{$_}'" } grep { defined $h->{$_} } sort keys %$h) };
	return "CREATE SERVER $name FOREIGN DATA WRAPPER peerdb_snowflake OPTIONS (" . $list->(\%options) . ");\n"
	  . "CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (" . $list->(\%mapping) . ");\n";
}

# ---------------------------------------------------------------- the service

sub start_sf
{
	my ($self) = @_;
	my $dir = $self->{dir};
	my $end = time() + 120;
	my $pid = fork() // die "fork: $!";

	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>', "$dir/out";
		open STDERR, '>>', "$dir/err";
		local $ENV{NODE_PATH} = "$ENV{RESYNC_SNOWFLAKE}/node_modules";
		local $ENV{TMPDIR} = $dir;
		exec 'node', "$ENV{RESYNC_SRC}/test/snowflake/service.js", '--key', "$dir/public.pem",
		  '--account', $Account, '--user', $User, '--database', $Database, '--warehouse', 'WH',
		  '--role', 'MIRROR_ROLE', '--log', "$dir/log", @{ $self->{service} }
		  or POSIX::_exit(127);
	}
	$self->{engine} = $pid;
	while (time() < $end)
	{
		if (-s "$dir/out" && PostgreSQL::Test::Utils::slurp_file("$dir/out") =~ /^port (\d+)$/m)
		{
			$self->{port} = $1;
			return;
		}
		last if waitpid($pid, POSIX::WNOHANG()) != 0;
		usleep(20_000);
	}
	die 'the Snowflake service does not start: ' . PostgreSQL::Test::Utils::slurp_file("$dir/err");
}

# Steer the service (see service.js).
sub admin
{
	my ($self, $what, %o) = @_;
	my $url = "http://127.0.0.1:$self->{port}/admin/$what";
	my $answer = $what =~ /^(fault|set|sql)$/ ? $self->{http}->post($url, { content => JSON::PP::encode_json(\%o) })
	  : $self->{http}->get($url . '?' . join('&', map { "$_=$o{$_}" } sort keys %o));
	die "service.js: $answer->{status} $answer->{content}" if $answer->{status} != 200;
	return $answer->{content};
}

# A fault for requests that match; returns its number for until_fault.
sub fault
{
	my ($self, $action, $match, %o) = @_;
	return $self->admin('fault', action => $action, match => $match, %o);
}

sub until_fault
{
	my ($self, $id, $name, %o) = @_;
	my $wanted = $o{times} // 1;
	return ok($self->poll(sub { $self->admin('hits', id => $id) >= $wanted }), $name // "fault $id has happened");
}

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

# A statement of the account's owner: (true, rows as lines of values with tabs), or
# (false, the error).  Options: role.
sub sf_try
{
	my ($self, $sql, %o) = @_;
	# bytes, as psql gives them
	my $answer = JSON::PP->new->utf8(0)->decode($self->admin('sql', sql => Encode::decode('UTF-8', $sql), %o));
	return (0, "$answer->{code} $answer->{error}") if defined $answer->{error};
	return (1, join("\n", map { join("\t", map { defined $_ ? "$_" : 'NULL' } @$_) } @{ $answer->{rows} // [] }));
}

# The same; dies on error.
sub sf
{
	my ($self, $sql, %o) = @_;
	my ($ok, $text) = $self->sf_try($sql, %o);
	die "Snowflake: $text\n$sql" unless $ok;
	return $text;
}

# A table's name in SQL.
sub name_of
{
	my ($self, $table, $schema) = @_;
	return join('.', map { ident($_) } $Database, $schema // 'PUBLIC', $table);
}

sub until_sf
{
	my ($self, $sql, $wanted, $name) = @_;
	my $last = '';
	my $ok = ok($self->poll(sub { (my $s, $last) = $self->sf_try($sql); $s && $last eq $wanted }), $name);
	diag("never $wanted: $sql\nlast: $last") unless $ok;
	return $ok;
}

# What the service was asked: list of hashes, see service.js.
sub requests
{
	my ($self, $pattern) = @_;
	return grep { !defined $pattern || ($_->{what} // '') . ' ' . ($_->{sql} // '') =~ $pattern }
	  map { JSON::PP::decode_json($_) } split /\n/, PostgreSQL::Test::Utils::slurp_file("$self->{dir}/log");
}

# "SCHEMA.NAME" of tables that match.
sub tables
{
	my ($self, $pattern) = @_;
	return sort grep { $_ =~ $pattern } split /\n/,
	  $self->sf("SELECT TABLE_SCHEMA || '.' || TABLE_NAME FROM \"$Database\".INFORMATION_SCHEMA.TABLES");
}

# ---------------------------------------------------------------- mirrors

# Changes are sent at once, unless the options say otherwise.
sub create_mirror
{
	my ($self, $mirror, $tables, $options, %o) = @_;
	return $self->SUPER::create_mirror($mirror, $tables, { sync_interval => 0.1, %{ $options // {} } }, peer => 'sf', %o);
}

sub ident { my ($name) = @_; $name =~ s/"/""/g; return "\"$name\""; }

# Names without quotes at the source are upper case there.
sub fold { my ($name) = @_; return $name =~ /^"(.*)"$/s ? $1 =~ s/""/"/gr : uc $name; }

# The table at the source against the live rows of the one at Snowflake, as text.
# Options: columns (source, expressions), sf_columns (expressions), to, schema,
# where (source), soft_delete.
sub same_sf
{
	my ($self, $table, $name, %o) = @_;
	my @columns = $o{columns} ? @{ $o{columns} } : map { "$_\::text" } $self->columns($table);
	my @there = $o{sf_columns} ? @{ $o{sf_columns} } : map { 'TO_VARCHAR(' . ident(fold($_)) . ')' } $self->columns($table);
	my $to = $o{to} // fold($table);
	my $deleted = exists $o{soft_delete} ? $o{soft_delete} : '_PEERDB_IS_DELETED';
	my $where = defined $o{where} ? "WHERE $o{where}" : '';
	$name //= "$table is equal on both sides";

	my $list = join(', ', map { "coalesce($_, 'NULL')" } @columns);
	my @a = split /\n/, $self->src("SELECT concat_ws(chr(9), $list) FROM $table $where");
	my ($good, $text) = $self->sf_try('SELECT ' . join(', ', @there) . ' FROM ' . $self->name_of($to, $o{schema})
		  . (defined $deleted ? " WHERE NOT $deleted" : ''));
	if (!$good)
	{
		fail($name);
		diag($text);
		return 0;
	}
	my @b = split /\n/, $text;
	# numbers are written with the scale of their type, or without
	s/(?<![^\t\[,])(-?\d+)\.(\d*?)0+(?![^\t\],])/$2 eq '' ? $1 : "$1.$2"/ge foreach @a, @b;
	@a = sort @a;
	@b = sort @b;
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
		diag(sprintf('%d rows at the source, %d at Snowflake, %d differ', scalar @a, scalar @b, scalar @diff));
		diag(substr($_, 0, 400)) foreach splice @diff, 0, 10;
	}
	return $ok;
}

# Nothing is left: no slot, no table under construction, no staging table, no
# worker, no statement.
sub no_leftovers
{
	my ($self, $name, %o) = @_;
	my $keep = $o{keep} // 0;
	$name //= 'nothing is left';

	subtest $name => sub {
		$self->until_true("SELECT count(*) = $keep FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'",
			"no slot beyond $keep");
		my @left;
		ok($self->poll(sub { @left = $self->tables(qr/_resync(_[0-9a-f]{8})?$|_RESYNC_(NEW|CHECK)/); !@left }), 'no table under construction')
		  or diag("@left");
		if (!$keep)
		{
			@left = ();
			ok($self->poll(sub { @left = $self->tables(qr/_RESYNC_STAGE/); !@left }), 'no staging table') or diag("@left");
			$self->until_true(
				"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher%'",
				'no worker');
			ok($self->poll(sub { $self->admin('running') == 0 }), 'no statement runs');
			ok($self->poll(sub { $self->admin('sessions') == 0 }), 'no session') if $o{sessions};
		}
	};
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local $?;
	$self->SUPER::DESTROY;
	if ($self->{engine})
	{
		kill 'TERM', $self->{engine};
		waitpid($self->{engine}, 0);
	}
	return;
}

1;
