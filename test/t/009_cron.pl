# pg_cron calls SELECT peerdb_resync('m') on a schedule.
use strict;
use warnings;

use ResyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $sharedir = `pg_config --sharedir`;
chomp $sharedir;
plan skip_all => 'pg_cron is not installed' unless -e "$sharedir/extension/pg_cron.control";

my $t = ResyncTest->new(no_extension => 1, src_conf => <<'EOC');
shared_preload_libraries = 'resync,pg_cron'
cron.database_name = 'postgres'
cron.use_background_workers = on
EOC
$t->install;
$t->src('CREATE EXTENSION pg_cron');
$t->src('CREATE TABLE nightly (id int PRIMARY KEY, v text); INSERT INTO nightly SELECT i, i FROM generate_series(1, 100) i');
$t->create_mirror('m', ['public.nightly']);
$t->wait_status('m', 'running');

# every minute is the shortest schedule of the oldest supported pg_cron
my $job = $t->src(q{SELECT cron.schedule('resync-m', '* * * * *', $$SELECT peerdb_resync('m')$$)});
like($job, qr/^\d+$/, 'scheduled');
$t->until_true("SELECT count(*) > 0 FROM peerdb.runs WHERE mirror = 'm' AND kind = 'resync' AND outcome = 'done'",
	'pg_cron resynced the mirror', limit => 150);
$t->src("SELECT cron.unschedule('resync-m')");
$t->until_true("SELECT count(*) > 0 FROM cron.job_run_details WHERE jobid = $job AND status = 'succeeded'", 'pg_cron says that it succeeded');
$t->wait_status('m', 'running');
$t->src("INSERT INTO nightly VALUES (101, 'after')");
$t->sync('m');
$t->same('nightly', 'equal afterwards');
$t->drop_all;
done_testing();
