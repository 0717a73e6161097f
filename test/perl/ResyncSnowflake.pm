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

use parent 'ResyncService';

use Encode ();
use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

our $Account = 'myorg-acct';
our $User = 'MIRROR_USER';
our $Database = 'DB';

# Options: src_conf; service (more arguments of the service).
sub new
{
	my ($class, %opt) = @_;

	plan(skip_all => 'no Snowflake service: ' . ($ENV{RESYNC_SNOWFLAKE_MISSING} || 'RESYNC_SNOWFLAKE is not set'))
	  unless $ENV{RESYNC_SNOWFLAKE};
	my $self = $class->begin($opt{src_conf});
	$self->{service} = $opt{service} // [];
	$self->{signal} = 'TERM';		# it ends what it has started
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
	return $self->launch(
		[ 'node', "$ENV{RESYNC_SRC}/test/snowflake/service.js", '--key', "$dir/public.pem", '--account', $Account,
			'--user', $User, '--database', $Database, '--warehouse', 'WH', '--role', 'MIRROR_ROLE', '--log', "$dir/log",
			@{ $self->{service} } ],
		NODE_PATH => "$ENV{RESYNC_SNOWFLAKE}/node_modules", TMPDIR => $dir);
}

# Steer the service (see service.js).
sub admin
{
	my ($self, $what, %o) = @_;
	return $self->admin_call($what, $what =~ /^(fault|set|sql)$/ ? JSON::PP::encode_json(\%o) : undef, %o);
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
	return $self->compare_lines($name, 'Snowflake', [ ResyncService::trim_scale(@a) ], [ ResyncService::trim_scale(@b) ]);
}

# Nothing is left: no slot, no table under construction, no staging table, no
# worker, no statement.
sub no_leftovers
{
	my ($self, $name, %o) = @_;
	my $keep = $o{keep} // 0;
	$name //= 'nothing is left';

	subtest $name => sub {
		$self->nothing_here($keep);
		my @left;
		ok($self->poll(sub { @left = $self->tables(qr/_resync(_[0-9a-f]{8})?$|_RESYNC_(NEW|SWAP)/); !@left }), 'no table under construction')
		  or diag("@left");
		if (!$keep)
		{
			@left = ();
			ok($self->poll(sub { @left = $self->tables(qr/_RESYNC_STAGE/); !@left }), 'no staging table') or diag("@left");
			ok($self->poll(sub { $self->admin('running') == 0 }), 'no statement runs');
			ok($self->poll(sub { $self->admin('sessions') == 0 }), 'no session') if $o{sessions};
		}
	};
	return;
}

1;
