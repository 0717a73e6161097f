# A stage of the user's own: its place is looked up, files are put there with the
# user's own key and gone when they are loaded; and what is wrong with it is said.
use strict;
use warnings;

use ResyncSnowflake;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncSnowflake->new(src_conf => "resync.copier_buffer = '64kB'\n");
my $dir = $t->{dir};
my $key = JSON::PP::decode_json($t->admin('own_key', location => 'sfc-fake-customer-stage/mine/'));
append_to_file("$dir/secret", "$key->{secret}\n");
append_to_file("$dir/wrong", "nonsense\n");
append_to_file("$dir/empty", "\n");
$t->sf(q{CREATE STAGE "DB"."PUBLIC"."My ""Stage" URL = 's3://sfc-fake-customer-stage/mine/'});
$t->sf(q{CREATE STAGE "DB"."PUBLIC"."FILES" URL = 's3://sfc-fake-customer-stage/mine/deeper'});
sub own
{
	my ($name, $stage, %o) = @_;
	$t->src($t->server_sql($name, stage => $stage, stage_endpoint => $key->{endPoint},
			mapping => { stage_key_id => $key->{id}, stage_secret_file => "$dir/secret", %o }));
	return;
}
own('quoted', 'public."My ""Stage"');
own('folded', 'Public.files');

$t->src(<<'EOS');
CREATE TABLE k (id int PRIMARY KEY, v text);
INSERT INTO k SELECT i, (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 10) j) FROM generate_series(1, 3000) i;
EOS
foreach my $server (qw(quoted folded))
{
	$t->src("SELECT peerdb_create_mirror('$server', '$server', '[\"public.k\"]', '{\"sync_interval\": 0.1}')");
	$t->wait_status($server, 'running') or $t->describe($server);
	$t->src("UPDATE k SET v = v || '$server' WHERE id % 7 = 0");
	$t->sync($server);
	$t->same_sf('k', "$server: equal");
	is(scalar(grep { ($_->{sql} // '') =~ /^PUT / } $t->requests), 0, "$server: Snowflake was not asked for credentials");
	cmp_ok(scalar(grep { $_->{upload} } $t->requests), '>', 3, "$server: files were put");
	is($t->sf('LIST @"DB"."PUBLIC"."My ""Stage"'), '', "$server: they are gone");
	$t->src("SELECT peerdb_drop_mirror('$server', drop_destination => true)");
	$t->until_true('SELECT count(*) = 0 FROM peerdb.mirrors', "$server: dropped");
}

# ---- what is wrong with it
sub bad_stage
{
	my ($name, $stage, $pattern, %o) = @_;
	own('bad', $stage, %o);
	$t->src(q{SELECT peerdb_create_mirror('b', 'bad', '["public.k"]', '{"sync_interval": 0.1}')});
	$t->until_true("SELECT outcome IN ('failed', 'refused') FROM peerdb.runs WHERE mirror = 'b'", "$name: the run fails") or $t->describe('b');
	my $error = $t->src("SELECT error FROM peerdb.runs WHERE mirror = 'b'");
	like($error, $pattern, "$name: says why");
	unlike($error, qr/\Q$key->{secret}\E|nonsense/, "$name: no secret");
	$t->src("SELECT peerdb_drop_mirror('b')");
	$t->until_true('SELECT count(*) = 0 FROM peerdb.mirrors', 'dropped');
	$t->src('DROP SERVER bad CASCADE');
	return;
}
bad_stage('a stage that is not there', 'public.none', qr/no external stage "DB"."PUBLIC"."NONE".*MIRROR_ROLE/s);
bad_stage('no name of a stage', 'a.b.c.d', qr/not the name of a stage/);
bad_stage('a wrong secret', 'public.files', qr/does not take a file.*403.*SignatureDoesNotMatch/s, stage_secret_file => "$dir/wrong");
bad_stage('an unknown key', 'public.files', qr/does not take a file.*403.*InvalidAccessKeyId/s, stage_key_id => 'AKIANOBODY');
bad_stage('an empty secret', 'public.files', qr/empty|does not take a file/, stage_secret_file => "$dir/empty");
bad_stage('a secret that is not there', 'public.files', qr/nothere/, stage_secret_file => '/nothere');
unlike(slurp_file($t->source->logfile), qr/\Q$key->{secret}\E|terminated by signal/, 'no secret in the log, and no crash');
$t->drop_all;
done_testing();
