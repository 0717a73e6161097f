# A resync at BigQuery under writes and with readers, who always find a whole
# table; what somebody gave the live table stays; other partitions are announced;
# a copy of the source adopts the mirror; and what is wrong is refused before
# anything is dropped.
use strict;
use warnings;

use ResyncBigQuery;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncBigQuery->new;
$t->src(<<'EOS');
CREATE TABLE w (id int PRIMARY KEY, at date NOT NULL, v int, big text);
INSERT INTO w SELECT i, '2024-01-01'::date + i % 400, 0, repeat('x', 200) FROM generate_series(1, 2000) i;
EOS
$t->create_mirror('m', ['public.w'], { snapshot_num_rows_per_partition => 500 });
$t->wait_status('m', 'running') or $t->describe('m');
$t->src('DELETE FROM w WHERE id <= 10');
$t->sync('m');

# ---- what others gave the table
my $tag = 'projects/p/locations/us/taxonomies/1/policyTags/2';
my $expiry = '' . (time() + 86400) . '000';
my ($status) = $t->rest('PATCH', "/datasets/d/tables/w", { description => 'of sales', labels => { team => 'sales' }, expirationTime => $expiry,
	schema => { fields => [ map { $_->{name} eq 'v' ? { %$_, description => 'the value', policyTags => { names => [$tag] } } : $_ } @{ $t->table('w')->{schema}{fields} } ] } });
is($status, 200, 'description, label, expiry and policy tag are set');
sub has_all
{
	my ($what) = @_;
	my $table = $t->table('w');
	my ($v) = grep { $_->{name} eq 'v' } @{ $table->{schema}{fields} };
	is("$table->{description}, $table->{labels}{team}", 'of sales, sales', "$what: description and label are there");
	is($table->{expirationTime}, $expiry, "$what: the expiry is there");
	is($v->{description}, 'the value', "$what: a column's description is there");
	is_deeply($v->{policyTags}, { names => [$tag] }, "$what: a column's policy tag is there");
	return;
}
has_all('before');

# ---- under writes, with readers
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/q", '{"query": "SELECT COUNT(*) FROM d.w WHERE NOT _peerdb_is_deleted", "useLegacySql": false}');
append_to_file("$dir/auth", "header = \"Authorization: Bearer " . $t->_token . "\"\nheader = \"Content-Type: application/json\"\n");
my $reader = $t->start($t->source, 'bash', '-c',
	"while [ ! -e $dir/stop ]; do curl -sSf -K $dir/auth --data-binary \@$dir/q http://127.0.0.1:$t->{port}/bigquery/v2/projects/$ResyncBigQuery::Project/queries >>$dir/out 2>>$dir/err; echo >>$dir/out; done");
$reader->{dir} = $dir;
my $writer = $t->writer("\\set id random(11, 2000)\nUPDATE w SET v = v + 1 WHERE id = :id;\nINSERT INTO w SELECT max(id) + 1, now(), 0, 'new' FROM w;\nDELETE FROM w WHERE id = (SELECT min(id) FROM w WHERE id > :id AND id % 20 = 0);\n", clients => 1, rate => 20);
foreach my $keep ('false', 'true')
{
	$t->resync('m', { keep_serving => $keep });
	$t->wait_status('m', 'running', "under writes, keep_serving $keep") or $t->describe('m');
}
$t->stop($writer);
$t->sync('m');
$t->same_bq('w');
append_to_file("$dir/stop", '');
$t->stop($reader, signal => 0);
is(slurp_file("$dir/err"), '', 'readers saw no error');
my @counts = slurp_file("$dir/out") =~ /"rows":\s*\[\{"f":\s*\[\{"v":\s*"(\d+)"/g;
cmp_ok(scalar(@counts), '>', 3, 'readers read (' . @counts . ')');
is(scalar(grep { $_ < 1500 } @counts), 0, 'and always found a whole table');
is($t->bq('SELECT COUNT(*) FROM d.w WHERE _peerdb_is_deleted AND id <= 10'), '10', 'deleted rows are carried over');
has_all('after resyncs');

# ---- other partitions
$t->src(q{SELECT peerdb_edit_mirror('m', tables => '[{"from": "public.w", "partition_by": "at MONTH", "cluster_by": ["v", "id"]}]')});
like($t->src("SELECT string_agg(detail, ' ') FROM peerdb_plan_resync('m') WHERE level = 'warning'"), qr/other partitions or clusters/, 'plan_resync announces it');
$t->resync('m');
$t->wait_status('m', 'running', 'other partitions') or $t->describe('m');
$t->src("INSERT INTO w VALUES (90001, '2030-01-01', 1, 'after')");
$t->sync('m');
$t->same_bq('w', 'other partitions: equal');
my $table = $t->table('w');
is("$table->{timePartitioning}{field} $table->{timePartitioning}{type} @{ $table->{clustering}{fields} }", 'at MONTH v id', 'the table has them');
is($t->bq('SELECT COUNT(*) FROM d.w WHERE _peerdb_is_deleted AND id <= 10'), '10', 'other partitions: deleted rows are carried over');
has_all('other partitions');

# ---- bad input: refused with the reason, and the mirror runs on
my $mirrors = $t->src('SELECT count(*) FROM peerdb.mirrors');
sub bad_peer
{
	my ($name, $pattern, %o) = @_;
	my $sql = $t->server_sql('bad', %o);
	$t->src($sql);
	my ($rc, undef, $err) = $t->try("SELECT peerdb_check_peer('bad')");
	isnt($rc, 0, "$name: refused");
	like($err, $pattern, "$name: says why");
	unlike($err, qr{MII[A-Za-z0-9+/]{20}|ya29\.}, "$name: nothing secret");
	$t->src('DROP SERVER bad CASCADE');
	return;
}
bad_peer('an unknown dataset', qr/3F000.*(none|ataset)/s, dataset => 'none');
bad_peer('another project', qr/42501.*Access Denied/s, project => 'other-project');
bad_peer('another location', qr/location.*US/s, location => 'EU');
bad_peer('a key file that is not there', qr/58P01.*nothere/s, key => '/nothere.json');
bad_peer('a key that is none', qr/28000|22023/s, key => $t->key_file('broken', private_key => 'nonsense'));
bad_peer('a key file without account', qr/28000.*client_email/s, key => $t->key_file('empty', client_email => ''));
bad_peer('another account', qr/28000.*invalid_grant/s, key => $t->key_file('other', client_email => 'x@y.z'));
append_to_file("$t->{dir}/no.json", '{"a": ');
bad_peer('a key file that is no JSON', qr/28000.*JSON/s, key => "$t->{dir}/no.json");
system("openssl genrsa -out $t->{dir}/wrong.pem 2048 2>/dev/null");
bad_peer('another\'s key', qr/28000.*Signature/s, key => $t->key_file('wrong', private_key => slurp_file("$t->{dir}/wrong.pem")));
bad_peer('an unreachable service', qr/08\w{3}/s, url => 'http://127.0.0.1:1');

$t->src('CREATE TABLE x (id int PRIMARY KEY, v jsonb); CREATE TABLE nokey (v int)');
$t->rest('POST', '/datasets/d/tables', { tableReference => { projectId => $ResyncBigQuery::Project, datasetId => 'd', tableId => 'x' }, schema => { fields => [ { name => 'id', type => 'INT64' } ] } });
sub run_refused
{
	my ($name, $tables, $pattern) = @_;
	$t->create_mirror('b', $tables);
	$t->until_true("SELECT outcome = 'refused' FROM peerdb.runs WHERE mirror = 'b'", "$name: refused") or $t->describe('b');
	like($t->src("SELECT error FROM peerdb.runs WHERE mirror = 'b'"), $pattern, "$name: says why");
	$t->src("SELECT peerdb_drop_mirror('b')");
	$t->until_true("SELECT count(*) = $mirrors FROM peerdb.mirrors", "$name: dropped");
	return;
}
run_refused('a table in the way', ['public.x'], qr/exists at the destination.*replace_existing/s);
run_refused('partitions by a column that has none', [ { from => 'public.x', to => 'y', partition_by => 'v' } ], qr/cannot be partitioned/);
run_refused('clusters by an unknown column', [ { from => 'public.x', to => 'y', cluster_by => ['none'] } ], qr/none/);
# a row that is too large, in the load and while it streams
$t->src("CREATE TABLE big (id int PRIMARY KEY, v text); ALTER TABLE big ALTER v SET STORAGE EXTERNAL; INSERT INTO big SELECT i, repeat('x', CASE i WHEN 7 THEN 16 * 1024 * 1024 ELSE 10 END) FROM generate_series(1, 9) i");
$t->create_mirror('b', ['public.big']);
$t->until_failed('b', qr/row of table "public.big" is too long.*\d bytes/s, 'a row over the limits');
$t->src('UPDATE big SET v = NULL WHERE id = 7');
$t->resync('b');
$t->wait_status('b', 'running', 'a row over the limits: gone, resync');
$t->src("INSERT INTO big VALUES (10, repeat('x', 16 * 1024 * 1024))");
$t->until_failed('b', qr/row of table "public.big" is too long.*\d bytes/s, 'a row over the limits, while it streams');
is($t->bq('SELECT COUNT(*) FROM d.big'), '9', 'a row over the limits: nothing of it is there');
$t->src("SELECT peerdb_drop_mirror('b', drop_destination => true)");
$t->until_true("SELECT count(*) = $mirrors FROM peerdb.mirrors", 'dropped');
is(join(',', $t->tables(qr/^(y|x_resync|y_resync|_peerdb_resync_check.*)$/)), '', 'nothing of them is left');
is($t->status('m'), 'running', 'the mirror runs on');

# a table in the way is taken over if so wanted
$t->src("INSERT INTO x VALUES (1, '{}')");
$t->bq('INSERT INTO d.x (id) VALUES (1), (2)');
$t->create_mirror('b', ['public.x'], { replace_existing => \1 });
$t->wait_status('b', 'running', 'replace_existing') or $t->describe('b');
is($t->bq('SELECT id, _peerdb_is_deleted FROM d.x ORDER BY id'), "1\tfalse\n2\ttrue", 'replace_existing: rows that the source has not are kept as deleted');
$t->src("SELECT peerdb_drop_mirror('b')");
$t->until_true("SELECT count(*) = $mirrors FROM peerdb.mirrors", 'dropped');

# ---- a copy of the source: refused, then adopted; the original is fenced out
$t->source->backup('b');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($t->source, 'b');
$copy->start;
$t->until_true("SELECT status = 'failed' AND error ~ 'is a copy' FROM peerdb.mirrors", 'the copy does nothing', node => $copy);
$t->src("INSERT INTO w VALUES (90002, '2030-01-01', 1, 'original')");
$t->sync('m', 'the original runs on');
$copy->safe_psql('postgres', "SELECT peerdb_resume_mirror('m', adopt => true)");
$t->until_true("SELECT peerdb_mirror_status('m') = 'running'", 'the copy has taken it over', node => $copy);
$t->src("INSERT INTO w VALUES (90003, '2030-01-01', 1, 'too late')");
$t->until_failed('m', qr/no longer in charge/, 'the original is fenced out');
$copy->safe_psql('postgres', "INSERT INTO w VALUES (90004, '2030-01-01', 1, 'copy'); SELECT peerdb_wait_for_lsn('m')");
is($t->bq('SELECT id FROM d.w WHERE id IN (90003, 90004) AND NOT _peerdb_is_deleted'), '90004', 'only the copy writes');
$copy->safe_psql('postgres', "SELECT peerdb_drop_mirror('m')");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'the copy has dropped it', node => $copy);
$copy->stop;
$t->drop_all;
done_testing();
