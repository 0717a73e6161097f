=pod

=head1 NAME

ResyncService - a source cluster and a service that tests steer

=head1 DESCRIPTION

What the tests of destinations behind HTTP have in common: ResyncClickHouse,
ResyncBigQuery and ResyncSnowflake are made of it.  The service prints "port N"
when it is ready, and takes faults at /admin.

=cut

package ResyncService;

use strict;
use warnings;

use parent 'ResyncTest';

use HTTP::Tiny;
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# An object with the source cluster and a directory; conf: more settings.
sub begin
{
	my ($class, $conf) = @_;
	my $self = bless { db => 'postgres', held => {}, procs => [] }, $class;
	$self->{source} = $self->_cluster('source', <<"EOC" . ($conf // ''));
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
max_replication_slots = 20
EOC
	$self->{dir} = PostgreSQL::Test::Utils::tempdir();
	$self->{http} = HTTP::Tiny->new(timeout => 300);
	return $self;
}

# Start the service: a command; env: of the service alone.
sub launch
{
	my ($self, $cmd, %env) = @_;
	my $dir = $self->{dir};
	my $end = time() + 120;

	unlink "$dir/out";
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>', "$dir/out";
		open STDERR, '>>', "$dir/err";
		local @ENV{ keys %env } = values %env;
		exec @$cmd or POSIX::_exit(127);
	}
	$self->{engine} = $pid;
	while (time() < $end)
	{
		if (-s "$dir/out" && PostgreSQL::Test::Utils::slurp_file("$dir/out") =~ /^port (\d+)$/m)
		{
			$self->{port} = $1;
			return;
		}
		last unless $self->alive;
		usleep(20_000);
	}
	die "$cmd->[0] does not start: " . PostgreSQL::Test::Utils::slurp_file("$dir/err");
}

sub alive
{
	my ($self) = @_;
	return 0 unless $self->{engine};
	return 1 if waitpid($self->{engine}, POSIX::WNOHANG()) == 0;
	delete $self->{engine};
	return 0;
}

sub kill_service
{
	my ($self, $signal) = @_;
	return unless $self->alive;
	kill $signal // $self->{signal} // 'KILL', $self->{engine};
	waitpid(delete $self->{engine}, 0);
	return;
}

# Steer the service: a GET with parameters; with a JSON body, if body is given.
sub admin_call
{
	my ($self, $what, $body, %o) = @_;
	my $url = "http://127.0.0.1:$self->{port}/admin/$what";
	my $answer = defined $body ? $self->{http}->post($url, { content => $body })
	  : $self->{http}->get("$url?" . join('&', map { "$_=" . _escape($o{$_}) } sort keys %o));
	die "/admin/$what: $answer->{status} $answer->{content}" if $answer->{status} != 200;
	return $answer->{content} =~ s/\n\z//r;
}

sub _escape { my ($text) = @_; return $text =~ s/([^A-Za-z0-9_.~-])/sprintf('%%%02X', ord $1)/ger; }

# A fault for requests that match; returns its number for until_fault.
sub fault
{
	my ($self, $action, $match, %o) = @_;
	my $id = $self->admin('fault', action => $action, match => $match, %o);
	die "fault: $id" unless $id =~ /^\d+$/;
	return $id;
}

sub until_fault
{
	my ($self, $id, $name, %o) = @_;
	my $wanted = $o{times} // 1;
	return ok($self->poll(sub { $self->admin('hits', id => $id) >= $wanted }), $name // "fault $id has happened");
}

sub until_held
{
	my ($self, $name) = @_;
	return ok($self->poll(sub { $self->admin('held') > 0 }), $name // 'something is held');
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

# What the service was asked, if it logs JSON: list of hashes.
sub requests
{
	my ($self, $pattern) = @_;
	return grep { !defined $pattern || ($_->{what} // '') . ' ' . ($_->{sql} // $_->{job} // '') =~ $pattern }
	  map { JSON::PP::decode_json($_) } split /\n/, PostgreSQL::Test::Utils::slurp_file("$self->{dir}/log");
}

# Lines of both sides, in whatever order; where: the other side's name.
sub compare_lines
{
	my ($self, $name, $where, $here, $there) = @_;
	my @a = sort @$here;
	my @b = sort @$there;
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
		diag(sprintf('%d rows at the source, %d at %s, %d differ', scalar @a, scalar @b, $where, scalar @diff));
		diag(substr($_, 0, 400)) foreach splice @diff, 0, 10;
	}
	return $ok;
}

# Numbers are written with the scale of their type, or without: without.
sub trim_scale
{
	my (@lines) = @_;
	s/(?<![^\t\[,])(-?\d+)\.(\d*?)0+(?![^\t\],])/$2 eq '' ? $1 : "$1.$2"/ge foreach @lines;
	return @lines;
}

# Nothing is left at the source: no slot (beyond keep), no worker.
sub nothing_here
{
	my ($self, $keep) = @_;
	$self->until_true("SELECT count(*) = $keep FROM pg_replication_slots WHERE slot_name LIKE 'resync\\_%'", "no slot beyond $keep");
	$self->until_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'resync%' AND backend_type NOT LIKE '%launcher%'", 'no worker')
	  if !$keep;
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local $?;
	$self->SUPER::DESTROY;
	$self->kill_service;
	return;
}

1;
