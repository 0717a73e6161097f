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

use parent 'ResyncService';

use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

our $Project = 'test-project';
our $Email = 'mirror@test-project.iam.gserviceaccount.com';

# Options: src_conf; front (more arguments of the service), dataset ('d').
sub new
{
	my ($class, %opt) = @_;

	plan(skip_all => 'no BigQuery engine: ' . ($ENV{RESYNC_BQEMULATOR_MISSING} || 'RESYNC_BQEMULATOR is not set'))
	  unless $ENV{RESYNC_BQEMULATOR};
	my $self = $class->begin($opt{src_conf});
	$self->{dataset} = $opt{dataset} // 'd';
	$self->{front} = $opt{front} // [];
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
	return $self->launch(
		[ "$ENV{RESYNC_BQEMULATOR}/bin/python", "$ENV{RESYNC_SRC}/test/bigquery/front.py", '--key', "$dir/public.pem",
			'--email', $Email, '--project', $Project, '--dataset', $self->{dataset}, '--log', "$dir/log", @{ $self->{front} } ],
		HOME => $dir);
}

# Steer the service (see front.py).
sub admin
{
	my ($self, $what, %o) = @_;
	return $self->admin_call($what, $what eq 'fault' ? JSON::PP::encode_json(\%o) : undef, %o);
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
	return $self->compare_lines($name, 'BigQuery', [ ResyncService::trim_scale(@a) ], [ ResyncService::trim_scale(@b) ]);
}

# Nothing is left: no slot, no table under construction, no staging table, no
# worker, no job.
sub no_leftovers
{
	my ($self, $name, %o) = @_;
	my $keep = $o{keep} // 0;
	$name //= 'nothing is left';

	subtest $name => sub {
		$self->nothing_here($keep);
		my @left;
		ok($self->poll(sub { @left = $self->tables(qr/_resync(_[0-9a-f]{8})?$|_resync_(check|stage)/); !@left }), 'no table under construction')
		  or diag("@left");
		if (!$keep)
		{
			ok($self->poll(sub { $self->admin('running') == 0 }), 'no job runs');
		}
	};
	return;
}

1;
