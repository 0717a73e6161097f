# Every debug point of the BigQuery destination, and each way to die there
# (ResyncServiceCrash says what for).
use strict;
use warnings;

use ResyncBigQuery;
use ResyncServiceCrash;
use Test::More;

my $t = ResyncBigQuery->new(src_conf => "restart_after_crash = on\n");
run_matrix(
	$t,
	same => sub {
		$t->same_bq('k');
		$t->same_bq('s');
		$t->same_bq('log', undef, soft_delete => undef);
	},
	deleted => sub { $t->bq('SELECT id FROM d.k WHERE _peerdb_is_deleted ORDER BY id') },
	points => [
		[ tables_created => 'start' ],
		[ bq_after_chunk => 'start' ],
		[ bq_before_upload_end => 'start' ],
		[ bq_after_upload_end => 'start' ],
		[ before_swap => 'start' ],
		[ bq_retired => 'start' ],
		[ bq_before_copy => 'start' ],
		[ bq_after_copy => 'start' ],
		[ bq_before_swapped => 'start' ],
		[ bq_after_swapped => 'start' ],
		[ swapped => 'start' ],
		[ before_apply => 'stream' ],
		[ bq_after_chunk => 'stream' ],
		[ bq_before_script => 'stream' ],
		[ bq_after_script => 'stream' ],
		[ after_apply => 'stream' ] ]);
$t->drop_all;
done_testing();
