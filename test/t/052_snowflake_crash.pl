# Every debug point of the Snowflake destination, and each way to die there
# (ResyncServiceCrash says what for).
use strict;
use warnings;

use ResyncSnowflake;
use ResyncServiceCrash;
use Test::More;

my $t = ResyncSnowflake->new(src_conf => "restart_after_crash = on\n");
run_matrix(
	$t,
	same => sub {
		$t->same_sf('k');
		$t->same_sf('s');
		$t->same_sf('log', undef, soft_delete => undef);
	},
	deleted => sub { $t->sf('SELECT ID FROM DB.PUBLIC.K WHERE _PEERDB_IS_DELETED ORDER BY ID') },
	points => [
		[ sf_table_made => 'start' ],
		[ tables_created => 'start' ],
		[ sf_after_file => 'start' ],
		[ sf_before_load_end => 'start' ],
		[ sf_after_load_end => 'start' ],
		[ before_swap => 'start' ],
		[ sf_retired => 'start' ],
		[ sf_before_swap_table => 'start' ],
		[ sf_after_swap_table => 'start' ],
		[ sf_before_swapped => 'start' ],
		[ sf_after_swapped => 'start' ],
		[ swapped => 'start' ],
		[ before_apply => 'stream' ],
		[ sf_after_file => 'stream' ],
		[ sf_after_stage => 'stream' ],
		[ sf_before_script => 'stream' ],
		[ sf_after_script => 'stream' ],
		[ after_apply => 'stream' ] ]);
$t->drop_all;
done_testing();
