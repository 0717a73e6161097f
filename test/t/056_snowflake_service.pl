# The Snowflake service for tests, by its own test: protocol, statements, stages,
# faults.  No server of PostgreSQL takes part.
use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

plan(skip_all => 'no Snowflake service: ' . ($ENV{RESYNC_SNOWFLAKE_MISSING} || 'RESYNC_SNOWFLAKE is not set'))
  unless $ENV{RESYNC_SNOWFLAKE};
my ($out, $err);
{
	local $ENV{NODE_PATH} = "$ENV{RESYNC_SNOWFLAKE}/node_modules";
	local $ENV{TMPDIR} = PostgreSQL::Test::Utils::tempdir();
	ok(IPC::Run::run([ 'node', "$ENV{RESYNC_SRC}/test/snowflake/selftest.js" ], '>', \$out, '2>', \$err), 'the test ends well')
	  or diag($err);
}
my @results = $out =~ /^((?:not )?ok \d+ - .*)$/mg;
my ($plan) = $out =~ /^1\.\.(\d+)$/m;
ok(/^ok \d+ - (.*)$/, s/^(not )?ok \d+ - //r) foreach @results;
is(scalar(@results), $plan // 'a plan', 'all of them were run');
diag($1) while $out =~ /^(#.*)$/mg;
done_testing();
