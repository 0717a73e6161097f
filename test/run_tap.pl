# run_tap.pl COUNTS JOBS FILE...: what prove does, plus the sums.
#
# Writes "passed failed" (assertions) to the file COUNTS.  A test file that
# dies, plans more than it runs, or runs nothing without saying why it was
# skipped, counts as one more failure.  Of failed files the end of the log is
# printed.
use strict;
use warnings;
use File::Basename;
use TAP::Harness;
use Time::HiRes qw(time);

my ($counts, $jobs, @files) = @ARGV;
my $tmp_check = "$ENV{TESTDIR}/tmp_check";
my $started = time();

# a file that bails out ends, the others go on
{
	package Harness;
	our @ISA = ('TAP::Harness');
	sub _bailout { return; }
}

my $harness = Harness->new(
	{
		jobs      => $jobs,
		verbosity => -3,
		merge     => 1,
		lib       => [ split /:/, $ENV{PERL5LIB} ],
	});

my ($passed, $failed) = (0, 0);
my %reasons;    # of tests that a file skips, by its parser

sub note_counts
{
	open my $fh, '>', $counts or die "$counts: $!";
	print $fh "$passed $failed\n";
	close $fh;
}

$harness->callback(
	made_parser => sub {
		my ($parser) = @_;
		$parser->callback(
			test => sub {
				my ($test) = @_;
				$reasons{$parser}{ $test->explanation }++ if $test->has_skip;
			});
	});

$harness->callback(
	after_test => sub {
		my ($info, $parser) = @_;
		my $file = ref $info ? $info->[0] : $info;
		my $name = basename($file, '.pl');
		my $ok = $parser->actual_passed;
		my $bad = $parser->actual_failed;
		my $skip = $parser->skip_all;
		my $reasons = delete $reasons{$parser} // {};

		$ok -= $parser->skipped;
		$bad++ if !$bad && ($parser->exit || $parser->wait || $parser->parse_errors);
		$bad++ if !$parser->actual_passed && !$bad && !defined $skip;
		$passed += $ok;
		$failed += $bad;
		note_counts();
		my $took = sprintf '%d s', ($parser->end_time // time()) - ($parser->start_time // time());
		if ($bad)
		{
			print "FAILED  $name ($ok passed, $bad failed, $took)\n";
			excerpt($name, $parser);
		}
		elsif (defined $skip)
		{
			print "skipped $name ($skip)\n";
		}
		else
		{
			print "ok      $name ($ok, $took)\n";
		}
		print "skipped $reasons->{$_} tests of $name ($_)\n" foreach sort keys %$reasons;
	});

# The log of PostgreSQL::Test has the failures with their diagnostics.
sub excerpt
{
	my ($name, $parser) = @_;
	my $log = "$tmp_check/log/regress_log_$name";
	print "        $_\n" foreach $parser->parse_errors;
	if (open my $fh, '<', $log)
	{
		my (@keep, $follow);
		my @lines = <$fh>;
		foreach my $line (@lines)
		{
			$follow = 25 if $line =~ /\bnot ok \d/;
			push @keep, $line if $follow && $follow-- > 0;
		}
		push @keep, "...\n", @lines[ (@lines > 15 ? -15 : -@lines) .. -1 ] if @lines;
		splice @keep, 150 if @keep > 150;
		print "        $_" foreach @keep;
	}
	foreach my $server (glob "$tmp_check/log/${name}_*.log")
	{
		open my $fh, '<', $server or next;
		my @bad = grep { /(ERROR|FATAL|PANIC|WARNING|TRAP|terminated by signal)/ } <$fh>;
		next unless @bad;
		splice @bad, 0, @bad - 25 if @bad > 25;
		print '        ' . basename($server) . ":\n";
		print "        $_" foreach @bad;
	}
}

$harness->runtests(@files);

printf "TAP tests took %d s\n", time() - $started;
