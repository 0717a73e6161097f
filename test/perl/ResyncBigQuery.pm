=pod

=head1 NAME

ResyncBigQuery - a source cluster and a BigQuery service

=head1 SYNOPSIS

  use ResyncBigQuery;
  my $t = ResyncBigQuery->new;            # cluster, service, server "bq"
  $t->src('CREATE TABLE t (id int PRIMARY KEY)');
  $t->create_mirror('m', ['public.t']);
  $t->wait_status('m', 'running');
  $t->sync('m');
  $t->same_bq('t');

Everything of ResyncTest that needs no destination cluster works.  The service
is test/bigquery/front.py; without bqemulator the test file is skipped.

=cut

package ResyncBigQuery;

use strict;
use warnings;

use parent 'ResyncTest';

use HTTP::Tiny;
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our $Project = 'test-project';
our $Email = 'mirror@test-project.iam.gserviceaccount.com';

# Options: src_conf; front (more arguments of the service), dataset ('d').
sub new
{
	my ($class, %opt) = @_;

	plan(skip_all => 'no BigQuery engine: ' . ($ENV{RESYNC_BQEMULATOR_MISSING} || 'RESYNC_BQEMULATOR is not set'))
	  unless $ENV{RESYNC_BQEMULATOR};
	my $self = bless { db => 'postgres', held => {}, procs => [], dataset => $opt{dataset} // 'd' }, $class;
	$self->{source} = $self->_cluster('source', <<"EOC" . ($opt{src_conf} // ''));
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
max_replication_slots = 20
EOC
	$self->{dir} = PostgreSQL::Test::Utils::tempdir();
	$self->{front} = $opt{front} // [];
	$self->{http} = HTTP::Tiny->new(timeout => 300);
	$self->_make_keys;
	$self->start_bq;
	$self->src("CREATE EXTENSION resync;\n" . $self->server_sql('bq'));
	return $self;
}

sub _make_keys
{
	my ($self) = @_;
	my $dir = $self->{dir};
	system("openssl genrsa -out $dir/key.pem 2048 2>/dev/null && openssl rsa -in $dir/key.pem -pubout -out $dir/public.pem 2>/dev/null") == 0
	  or die 'openssl makes no key';
	return;
}

# A service account's key file; options override its members.
sub key_file
{
	my ($self, $name, %o) = @_;
	my $file = "$self->{dir}/$name.json";
	my %account = (
		type => 'service_account',
		project_id => $Project,
		private_key_id => 'abc123',
		private_key => PostgreSQL::Test::Utils::slurp_file("$self->{dir}/key.pem"),
		client_email => $Email,
		token_uri => "http://127.0.0.1:$self->{port}/token",
		%o);
	unlink $file;
	PostgreSQL::Test::Utils::append_to_file($file, JSON::PP->new->canonical->encode(\%account));
	chmod 0600, $file;
	return $file;
}

# CREATE SERVER and USER MAPPING; options override.  key: file of the mapping.
sub server_sql
{
	my ($self, $name, %o) = @_;
	my $key = delete $o{key} // $self->key_file('account');
	my %options = (project => $Project, dataset => $self->{dataset}, url => "http://127.0.0.1:$self->{port}", %o);
	my $list = join(', ', map { "$_ '$options{$_}'" } grep { defined $options{$_} } sort keys %options);
	return <<"EOS";
CREATE SERVER $name FOREIGN DATA WRAPPER peerdb_bigquery OPTIONS ($list);
CREATE USER MAPPING FOR CURRENT_USER SERVER $name OPTIONS (service_account_file '$key');
EOS
}

# ---------------------------------------------------------------- the service

sub start_bq
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
		local $ENV{HOME} = $dir;
		exec "$ENV{RESYNC_BQEMULATOR}/bin/python", "$ENV{RESYNC_SRC}/test/bigquery/front.py",
		  '--key', "$dir/public.pem", '--email', $Email, '--project', $Project,
		  '--dataset', $self->{dataset}, '--log', "$dir/log", @{ $self->{front} }
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
	die 'the BigQuery service does not start: ' . PostgreSQL::Test::Utils::slurp_file("$dir/err");
}

# Steer the service (see front.py).
sub admin
{
	my ($self, $what, %o) = @_;
	my $url = "http://127.0.0.1:$self->{port}/admin/$what";
	my $answer = $what eq 'fault' ? $self->{http}->post($url, { content => JSON::PP::encode_json(\%o) })
	  : $self->{http}->get($url . '?' . join('&', map { "$_=$o{$_}" } sort keys %o));
	die "front.py: $answer->{status} $answer->{content}" if $answer->{status} != 200;
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

# An access token of the test's own.
sub _token
{
	my ($self) = @_;
	return $self->{token} if $self->{token} && $self->{token_until} > time();
	my $enc = sub { my $x = MIME::Base64::encode_base64($_[0], ''); $x =~ tr{+/}{-_}; $x =~ s/=+$//; return $x; };
	require MIME::Base64;
	my $now = int(time());
	my $text = $enc->('{"alg":"RS256","typ":"JWT"}') . '.' . $enc->(JSON::PP::encode_json({
				iss => $Email, aud => "http://127.0.0.1:$self->{port}/token", iat => $now, exp => $now + 3600,
				scope => 'https://www.googleapis.com/auth/bigquery' }));
	my $dir = $self->{dir};
	unlink "$dir/claim";
	PostgreSQL::Test::Utils::append_to_file("$dir/claim", $text);
	my $signature = `openssl dgst -sha256 -sign $dir/key.pem $dir/claim`;
	my $answer = $self->{http}->post_form("http://127.0.0.1:$self->{port}/token",
		{ grant_type => 'urn:ietf:params:oauth:grant-type:jwt-bearer', assertion => $text . '.' . $enc->($signature) });
	die "no token: $answer->{content}" if $answer->{status} != 200;
	$self->{token_until} = $now + 1000;
	return $self->{token} = JSON::PP::decode_json($answer->{content})->{access_token};
}

# A request of the test's own: (status, decoded answer).
sub rest
{
	my ($self, $method, $path, $body) = @_;
	my $url = "http://127.0.0.1:$self->{port}/bigquery/v2/projects/$Project$path";
	for my $try (1, 2)
	{
		my %request = (headers => { Authorization => 'Bearer ' . $self->_token });
		if (defined $body)
		{
			$request{content} = JSON::PP::encode_json($body);
			$request{headers}{'Content-Type'} = 'application/json';
		}
		my $answer = $self->{http}->request($method, $url, \%request);
		delete $self->{token}, next if $answer->{status} == 401 && $try == 1;
		return ($answer->{status}, length $answer->{content} ? eval { JSON::PP::decode_json($answer->{content}) } : undef);
	}
}

# A query: (status, rows as lines of values with tabs, or the error).
sub bq_try
{
	my ($self, $sql) = @_;
	my ($status, $answer) = $self->rest('POST', '/queries',
		{ query => $sql, useLegacySql => JSON::PP::false(), timeoutMs => 60000, maxResults => 100000 });
	return ($status, $answer->{error}{message} // '') if $status != 200;
	my $value;
	$value = sub {
		my ($v) = @_;
		return 'NULL' if !defined $v;
		return '[' . join(',', map { $value->($_->{v}) } @$v) . ']' if ref $v eq 'ARRAY';
		return "$v";
	};
	return (200, join("\n", map { join("\t", map { $value->($_->{v}) } @{ $_->{f} }) } @{ $answer->{rows} // [] }));
}

# The same; dies on error.
sub bq
{
	my ($self, $sql) = @_;
	my ($status, $text) = $self->bq_try($sql);
	die "BigQuery: $status $text\n$sql" if $status != 200;
	return $text;
}

sub until_bq
{
	my ($self, $sql, $wanted, $name) = @_;
	my $last = '';
	my $ok = ok($self->poll(sub { (my $s, $last) = $self->bq_try($sql); $s == 200 && $last eq $wanted }), $name);
	diag("never $wanted: $sql\nlast: $last") unless $ok;
	return $ok;
}

# What the service was asked: list of hashes, see front.py.
sub requests
{
	my ($self, $pattern) = @_;
	return grep { !defined $pattern || ($_->{what} // '') . ' ' . ($_->{sql} // $_->{job} // '') =~ $pattern }
	  map { JSON::PP::decode_json($_) } split /\n/, PostgreSQL::Test::Utils::slurp_file("$self->{dir}/log");
}

# Names of tables in the dataset that match.
sub tables
{
	my ($self, $pattern) = @_;
	my ($status, $answer) = $self->rest('GET', "/datasets/$self->{dataset}/tables?maxResults=1000");
	die "tables: $status" if $status != 200;
	return sort grep { $_ =~ $pattern } map { $_->{tableReference}{tableId} } @{ $answer->{tables} // [] };
}

sub table { my ($self, $name) = @_; return ($self->rest('GET', "/datasets/$self->{dataset}/tables/$name"))[1]; }

# ---------------------------------------------------------------- mirrors

# Changes are sent at once, unless the options say otherwise.
sub create_mirror
{
	my ($self, $mirror, $tables, $options, %o) = @_;
	return $self->SUPER::create_mirror($mirror, $tables, { sync_interval => 0.1, %{ $options // {} } }, peer => 'bq', %o);
}

sub ident { my ($name) = @_; $name =~ s/([`\\])/\\$1/g; return "`$name`"; }

# The table at the source against the live rows of the one at BigQuery, as text.
# Options: columns (source, expressions), bq_columns (expressions), to, where
# (source), soft_delete.
sub same_bq
{
	my ($self, $table, $name, %o) = @_;
	my @columns = $o{columns} ? @{ $o{columns} } : map { "$_\::text" } $self->columns($table);
	my @there = $o{bq_columns} ? @{ $o{bq_columns} }
	  : map { my $c = $_; $c =~ s/^"(.*)"$/$1/s and $c =~ s/""/"/g; 'CAST(' . ident($c) . ' AS STRING)' } $self->columns($table);
	my $to = $o{to};
	if (!defined $to)
	{
		$to = $table;
		$to =~ s/^"(.*)"$/$1/s and $to =~ s/""/"/g;
	}
	my $deleted = exists $o{soft_delete} ? $o{soft_delete} : '_peerdb_is_deleted';
	my $where = defined $o{where} ? "WHERE $o{where}" : '';
	$name //= "$table is equal on both sides";

	my $list = join(', ', map { "coalesce($_, 'NULL')" } @columns);
	my @a = sort split /\n/, $self->src("SELECT concat_ws(chr(9), $list) FROM $table $where");
	my ($status, $text) = $self->bq_try('SELECT ' . join(', ', @there) . ' FROM ' . ident($self->{dataset}) . '.' . ident($to)
		  . (defined $deleted ? " WHERE NOT $deleted" : ''));
	if ($status != 200)
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
		diag(sprintf('%d rows at the source, %d at BigQuery, %d differ', scalar @a, scalar @b, scalar @diff));
		diag(substr($_, 0, 400)) foreach splice @diff, 0, 10;
	}
	return $ok;
}

# Nothing is left: no slot, no table under construction, no staging table, no
# worker, no job.
sub no_leftovers
{
	my ($self, $name, %o) = @_;
	my $keep = $o{keep} // 0;
	$name //= 'nothing is left';

	subtest $name => sub {
		$self->until_true("SELECT count(*) = $keep FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'",
			"no slot beyond $keep");
		my @left;
		ok($self->poll(sub { @left = $self->tables(qr/_resync(_[0-9a-f]{8})?$|_resync_(check|stage)/); !@left }), 'no table under construction')
		  or diag("@left");
		if (!$keep)
		{
			$self->until_true(
				"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher%'",
				'no worker');
			ok($self->poll(sub { $self->admin('running') == 0 }), 'no job runs');
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
		kill 'KILL', $self->{engine};
		waitpid($self->{engine}, 0);
	}
	return;
}

1;
