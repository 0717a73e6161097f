# A resync at Snowflake under writes and with readers, who always find a whole
# table; what somebody gave the live table stays; deleted rows come over; a copy of
# the source adopts the mirror; and what is wrong is refused, with the reason, before
# anything is dropped.
use strict;
use warnings;

use ResyncSnowflake;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncSnowflake->new(service => [ '--schemas', 'PUBLIC,OTHER' ]);
$t->src(<<'EOS');
CREATE TABLE w (id int PRIMARY KEY, at date NOT NULL, v int, big text);
INSERT INTO w SELECT i, '2024-01-01'::date + i % 400, 0, repeat('x', 200) FROM generate_series(1, 2000) i;
EOS
my $W = $t->name_of('W');
$t->create_mirror('m', [ { from => 'public.w', cluster_by => ['at'] } ], { snapshot_num_rows_per_partition => 500 });
$t->wait_status('m', 'running') or $t->describe('m');
$t->src('DELETE FROM w WHERE id <= 10');
$t->sync('m');

# ---- what others gave the table
$t->admin('set', roles => [ 'READER', 'AUDITOR' ]);
$t->sf($_) foreach (
	"GRANT SELECT ON TABLE $W TO ROLE READER", "GRANT SELECT, REFERENCES ON TABLE $W TO ROLE AUDITOR WITH GRANT OPTION",
	"ALTER TABLE $W SET DATA_RETENTION_TIME_IN_DAYS = 7", "ALTER TABLE $W SET CHANGE_TRACKING = TRUE", "ALTER TABLE $W SET TAG TEAM = 'sales'",
	"ALTER TABLE $W MODIFY COLUMN V COMMENT 'the value'");
my ($comment) = map { (split /\t/, $_)[5] } grep { (split /\t/)[1] eq 'W' } split /\n(?=\d{4}-)/, $t->sf('SHOW TABLES LIKE \'W\' IN SCHEMA "DB"."PUBLIC"');
$t->sf("COMMENT ON TABLE $W IS 'of ''sales''\\nsecond line\\n" . $comment =~ s/'/''/gr . "'");

sub object
{
	my ($name) = @_;
	my ($o) = grep { $_->{name} eq $name } @{ JSON::PP::decode_json($t->admin('objects'))->{objects} };
	return $o;
}
sub has_all
{
	my ($what, %o) = @_;
	my $w = object('W');
	like($w->{comment}, qr/^of 'sales'\nsecond line\n\{"resync":\{.*"role":"live"/, "$what: the comment is there, and the mark");
	is(join(',', sort map { "$_->{grantee} $_->{privilege} " . ($_->{option} ? 'option' : '') } grep { $_->{privilege} ne 'OWNERSHIP' } @{ $w->{grants} }),
		'AUDITOR REFERENCES option,AUDITOR SELECT option,READER SELECT ' . ($o{more} // ''), "$what: grants are there");
	is("$w->{retention} " . ($w->{changeTracking} ? 'ON' : 'OFF'), '7 ON', "$what: retention and change tracking are there");
	is_deeply($w->{tags}, { TEAM => 'sales' }, "$what: the tag is there");
	is((map { $_->{comment} // '' } grep { $_->{name} eq 'V' } @{ $w->{columns} })[0], 'the value', "$what: a column's comment is there");
	like($w->{clusterBy}, $o{cluster} // qr/AT/, "$what: the clustering key is there");
	return;
}
has_all('before');

# ---- under writes, with readers
my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/q", JSON::PP::encode_json({ sql => "SELECT COUNT(*) FROM $W WHERE NOT _PEERDB_IS_DELETED", role => 'READER' }));
my $reader = $t->start($t->source, 'bash', '-c',
	"while [ ! -e $dir/stop ]; do curl -sSf --data-binary \@$dir/q http://127.0.0.1:$t->{port}/admin/sql >>$dir/out 2>>$dir/err; echo >>$dir/out; done");
$reader->{dir} = $dir;
my $writer = $t->writer("\\set id random(11, 2000)\nUPDATE w SET v = v + 1 WHERE id = :id;\nINSERT INTO w SELECT max(id) + 1, now(), 0, 'new' FROM w;\nDELETE FROM w WHERE id = (SELECT min(id) FROM w WHERE id > :id AND id % 20 = 0);\n", clients => 1, rate => 20);
foreach my $keep ('false', 'true')
{
	$t->resync('m', { keep_serving => $keep });
	$t->wait_status('m', 'running', "under writes, keep_serving $keep") or $t->describe('m');
}
$t->stop($writer);
$t->sync('m');
$t->same_sf('w');
append_to_file("$dir/stop", '');
$t->stop($reader, signal => 0);
is(slurp_file("$dir/err"), '', 'readers saw no error');
my $out = slurp_file("$dir/out");
unlike($out, qr/"error"/, 'nor one of SQL');
my @counts = $out =~ /"rows":\[\["?(\d+)"?\]\]/g;
cmp_ok(scalar(@counts), '>', 20, 'readers read (' . @counts . ')');
is(scalar(grep { $_ < 1500 } @counts), 0, 'and always found a whole table');
is($t->sf("SELECT COUNT(*) FROM $W WHERE _PEERDB_IS_DELETED AND ID <= 10"), '10', 'deleted rows are carried over');
has_all('after resyncs');

# ---- columns that change; what the table was given while it was loaded
$t->src('UPDATE w SET v = 7 WHERE id IN (21, 22)');
$t->sync('m');
$t->src("ALTER TABLE w ALTER v TYPE text, DROP COLUMN big, ADD COLUMN n numeric(10,2) DEFAULT 1.5; DELETE FROM w WHERE id IN (21, 22)");
$t->sf("ALTER TABLE $W DROP CLUSTERING KEY");
$t->src(q{SELECT peerdb_edit_mirror('m', tables => '[{"from": "public.w", "cluster_by": ["id", "at"]}]')});
my $hold = $t->fault('hold', '^POST /queries.*SWAP WITH');
$t->resync('m');
$t->until_fault($hold, 'it is about to swap');
$t->admin('release');
$t->wait_status('m', 'running', 'other columns') or $t->describe('m');
$t->src("INSERT INTO w VALUES (90001, '2030-01-01', 'x', 2)");
$t->sync('m');
$t->same_sf('w', 'other columns: equal');
my ($names) = join ',', map { (split /\t/)[0] } split /\n/, $t->sf("DESCRIBE TABLE $W");
is($names, 'ID,AT,_PEERDB_IS_DELETED,_PEERDB_SYNCED_AT,V,N', 'other columns: those of the plan');
is($t->sf("SELECT COUNT(*) FROM $W WHERE _PEERDB_IS_DELETED AND ID IN (21, 22) AND V = '7'"), '2', 'other columns: deleted rows are carried over, with their values');
{
	my $w = object('W');
	like($w->{clusterBy}, qr/ID.*AT/, 'another clustering key');
	like($w->{comment}, qr/^of 'sales'\nsecond line/, 'other columns: the comment is there');
	is(scalar(grep { $_->{grantee} eq 'READER' } @{ $w->{grants} }), 1, 'other columns: grants are there');
}

# ---- a swap that nobody waits for any more, and that comes when the next try has done it
my $late = $t->fault('hold_at', '^POST /queries', at => '^ALTER TABLE .* SWAP WITH');
$t->resync('m', { keep_serving => 'true' });
$t->until_held('a swap is under way');
$t->source->stop('immediate');
$hold = $t->fault('hold', '^POST /queries.*SET swapped');
$t->source->start;
$t->until_fault($hold, 'another try has swapped');
is($t->admin('held'), '2', 'and the first one is still under way');
$t->admin('release');
$t->wait_status('m', 'running', 'a late swap') or $t->describe('m');
ok($t->poll(sub { $t->admin('running') == 0 }), 'a late swap: it is over');
$t->src("INSERT INTO w VALUES (90005, '2030-01-02', 'after a late swap', 3)");
$t->sync('m');
$t->same_sf('w', 'a late swap: equal');
is(join(',', $t->tables(qr/^PUBLIC\./)), 'PUBLIC.W', 'a late swap: nothing is left');

# ---- a cancel that comes when the table is swapped, and the journal does not say so yet
$hold = $t->fault('hold', '^POST /queries.*SET swapped');
$t->resync('m', { keep_serving => 'true' });
$t->until_fault($hold, 'swapped, not declared');
$t->src("SELECT peerdb_cancel_resync('m')");
$t->wait_status('m', 'running', 'a late cancel') or $t->describe('m');
is($t->src("SELECT outcome FROM peerdb.runs WHERE mirror = 'm' ORDER BY run DESC LIMIT 1"), 'done', 'a late cancel: too late');
$t->src("INSERT INTO w VALUES (90006, '2030-01-03', 'after a late cancel', 4)");
$t->sync('m');
$t->same_sf('w', 'a late cancel: equal');

# ---- grants that are given during the load
$hold = $t->fault('hold', '^POST /queries.*COPY INTO');
$t->resync('m', { keep_serving => 'true' });
$t->until_fault($hold, 'it loads');
$t->admin('release');
$t->sf("GRANT INSERT ON TABLE $W TO ROLE READER");
$t->wait_status('m', 'running', 'a grant during the load') or $t->describe('m');
is(scalar(grep { $_->{grantee} eq 'READER' && $_->{privilege} eq 'INSERT' } @{ object('W')->{grants} }), 1, 'a grant during the load is there');

# ---- tombstones survive keys that are NULL there
$t->src("SELECT peerdb_drop_mirror('m')");
$t->until_true('SELECT count(*) = 0 FROM peerdb.mirrors', 'dropped, the table stays');
$t->src("CREATE TABLE n (a int, b int, v text, PRIMARY KEY (a, b)); INSERT INTO n VALUES (1, 1, 'one')");
$t->sf('CREATE TABLE ' . $t->name_of('N') . ' (A NUMBER(38,0), B NUMBER(38,0), V VARCHAR, GONE VARCHAR, _PEERDB_IS_DELETED BOOLEAN, _PEERDB_SYNCED_AT TIMESTAMP_NTZ)');
$t->sf('INSERT INTO ' . $t->name_of('N') . " SELECT 1, NULL, 'half', 'x', TRUE, '2020-01-02 03:04:05.123456'::TIMESTAMP_NTZ UNION ALL SELECT 2, 2, 'two', 'x', TRUE, '2020-01-02 03:04:05.123456'::TIMESTAMP_NTZ UNION ALL SELECT 3, 3, 'three', 'x', FALSE, '2020-01-02 03:04:05'::TIMESTAMP_NTZ");
$t->sf('GRANT SELECT ON TABLE ' . $t->name_of('N') . ' TO ROLE READER');
$t->create_mirror('n', ['public.n'], { replace_existing => \1 });
$t->wait_status('n', 'running', 'replace_existing') or $t->describe('n');
is($t->sf('SELECT A, B, V, _PEERDB_IS_DELETED::VARCHAR FROM ' . $t->name_of('N') . ' ORDER BY A, B'), "1\t1\tone\tfalse\n1\tNULL\thalf\ttrue\n2\t2\ttwo\ttrue\n3\t3\tthree\ttrue", 'what the source has not is kept as deleted, also with NULL in the key');
is($t->sf("SELECT COUNT(*) FROM " . $t->name_of('N') . " WHERE _PEERDB_SYNCED_AT = '2020-01-02 03:04:05.123456'::TIMESTAMP_NTZ"), '2', 'what was deleted before keeps its time');
is(scalar(grep { $_->{grantee} eq 'READER' } @{ object('N')->{grants} }), 1, 'replace_existing: grants are there');
$t->resync('n');
$t->wait_status('n', 'running', 'once more') or $t->describe('n');
is($t->sf('SELECT COUNT(*) FROM ' . $t->name_of('N') . ' WHERE _PEERDB_IS_DELETED'), '3', 'and once more');

# ---- bad input: refused with the reason, and the mirror runs on
my $mirrors = $t->src('SELECT count(*) FROM peerdb.mirrors');
sub bad_peer
{
	my ($name, $pattern, %o) = @_;
	$t->src($t->server_sql('bad', %o));
	my ($rc, undef, $err) = $t->try("SELECT peerdb_check_peer('bad')");
	isnt($rc, 0, "$name: refused");
	like($err, $pattern, "$name: says why");
	unlike($err, qr{MII[A-Za-z0-9+/]{20}|secretphrase|wrongphrase}, "$name: nothing secret");
	$t->src('DROP SERVER bad CASCADE');
	return;
}
bad_peer('another account', qr/28000.*404.*account/s, account => 'otherorg-acct');
bad_peer('an unknown user', qr/28000.*NOBODY.*390100/s, mapping => { user => 'NOBODY' });
bad_peer('another\'s key', qr/28000.*JWT.*390144.*SHA256:.*RSA_PUBLIC_KEY_FP/s, mapping => { private_key_file => "$t->{dir}/other.pem" });
bad_peer('a key file that is not there', qr/58P01.*nothere/s, mapping => { private_key_file => '/nothere.pem' });
bad_peer('a key file that is none', qr/28000.*PEM/s, mapping => { private_key_file => "$t->{dir}/public.pem" });
bad_peer('an encrypted key without passphrase', qr/28P01.*no passphrase/s, mapping => { private_key_file => "$t->{dir}/encrypted.pem" });
bad_peer('a wrong passphrase', qr/28P01.*passphrase/s, mapping => { private_key_file => "$t->{dir}/encrypted.pem", private_key_passphrase_file => "$t->{dir}/wrong_passphrase" });
bad_peer('an unknown role', qr/28000.*NOROLE.*390189/s, role => 'NOROLE');
bad_peer('an unknown database', qr/HV024.*no database "nodb".*USAGE/s, database => 'nodb');
bad_peer('an unknown warehouse', qr/HV024.*no warehouse "nowh".*USAGE/s, warehouse => 'nowh');
bad_peer('an unreachable service', qr/08\w{3}/s, url => 'http://127.0.0.1:1');
bad_peer('no account', qr/HV00J.*"account"/s, account => undef);
$t->src($t->server_sql('enc', mapping => { private_key_file => "$t->{dir}/encrypted.pem", private_key_passphrase_file => "$t->{dir}/passphrase" }));
like($t->src("SELECT peerdb_check_peer('enc')"), qr/database DB/, 'an encrypted key with its passphrase');
$t->src($t->server_sql('bare', role => undef, account => 'MYORG-ACCT.eu-west-1', mapping => { user => 'mirror_user' }));
like($t->src("SELECT peerdb_check_peer('bare')"), qr/database DB/, 'names in another case, an account with its region');

$t->src('CREATE TABLE x (id int PRIMARY KEY, v jsonb); CREATE TABLE nokey (v int)');
sub run_refused
{
	my ($name, $tables, $pattern, %o) = @_;
	$t->create_mirror('b', $tables);
	$t->until_true("SELECT outcome = 'refused' FROM peerdb.runs WHERE mirror = 'b'", "$name: refused") or $t->describe('b');
	like($t->src("SELECT error FROM peerdb.runs WHERE mirror = 'b'"), $pattern, "$name: says why");
	$t->src("SELECT peerdb_drop_mirror('b')");
	$t->until_true("SELECT count(*) = $mirrors FROM peerdb.mirrors", "$name: dropped");
	return;
}
$t->sf('CREATE TABLE ' . $t->name_of('X') . ' (ID NUMBER(38,0))');
run_refused('a table in the way', ['public.x'], qr/exists at the destination.*replace_existing/s);
$t->sf('CREATE TABLE ' . $t->name_of('Y_resync') . ' (ID NUMBER(38,0))');
run_refused('a table in the way of the build', [ { from => 'public.x', to => 'public.y' } ], qr/Y_resync.*exists at the destination/s);
$t->sf('DROP TABLE ' . $t->name_of('Y_resync'));
$t->sf('CREATE VIEW ' . $t->name_of('VW') . ' AS SELECT 1 AS A');
run_refused('a view in the way', [ { from => 'public.x', to => 'public.vw' } ], qr/VW.*is not a table/s);
run_refused('an unknown schema', [ { from => 'public.x', to => 'nosuch.x' } ], qr/no schema "NOSUCH".*USAGE/s);
$t->refused(q{SELECT peerdb_create_mirror('b', 'sf', '["public.nokey"]')}, '55000', 'append', 'a table without key');
run_refused('clusters by an unknown column', [ { from => 'public.x', to => 'public.z', cluster_by => ['none'] } ], qr/none/);
run_refused('a name of ours', [ { from => 'public.x', to => 'public."_PEERDB_RESYNC_Q"' } ], qr/own tables/);
$t->admin('set', can_create_table => JSON::PP::false());
run_refused('a role that may not create tables', [ { from => 'public.x', to => 'public.z' } ], qr/Insufficient privileges.*CREATE TABLE.*MIRROR_ROLE/s);
$t->admin('set', can_create_table => JSON::PP::true(), resume_privilege => JSON::PP::false());
run_refused('a warehouse that may not be resumed', [ { from => 'public.x', to => 'public.z' } ], qr/Insufficient privileges to operate on warehouse.*003001.*OPERATE.*MIRROR_ROLE/s);
$t->admin('set', resume_privilege => JSON::PP::true(), owner_of => { 'DB.PUBLIC.X' => 'SOMEBODY' });
$t->create_mirror('b', ['public.x'], { replace_existing => \1 });
$t->until_true("SELECT outcome = 'refused' AND error ~ 'Insufficient privileges.*OWNERSHIP' FROM peerdb.runs WHERE mirror = 'b'", 'another\'s table cannot be replaced') or $t->describe('b');
$t->src("SELECT peerdb_drop_mirror('b')");
$t->until_true("SELECT count(*) = $mirrors FROM peerdb.mirrors", 'dropped');
is(join(',', $t->tables(qr/^PUBLIC\.(Y|Z|X_resync|VW_resync|_PEERDB_RESYNC.*)$/)), '', 'nothing of them is left');
is($t->status('n'), 'running', 'the mirror runs on');

# another schema, and metadata of its own
$t->src($t->server_sql('meta', metadata_schema => 'other'));
$t->src(q{SELECT peerdb_create_mirror('b', 'meta', '[{"from": "public.x", "to": "other.x"}]', '{"sync_interval": 0.1, "soft_delete": false}')});
$t->wait_status('b', 'running', 'another schema') or $t->describe('b');
$t->src(q{INSERT INTO x VALUES (1, '{"a": 1}'), (2, 'null'), (3, NULL); DELETE FROM x WHERE id = 1});
$t->sync('b');
is($t->sf('SELECT ID, TO_JSON(V) FROM ' . $t->name_of('X', 'OTHER') . ' ORDER BY ID'), "2\tnull\n3\tNULL", 'without soft delete: the row is gone');
is(join(',', $t->tables(qr/RUNS/)), 'OTHER._PEERDB_RESYNC_RUNS,_PEERDB_INTERNAL._PEERDB_RESYNC_RUNS', 'metadata are where they were wanted');
$t->src("SELECT peerdb_drop_mirror('b', drop_destination => true)");
$t->until_true("SELECT count(*) = $mirrors FROM peerdb.mirrors", 'dropped');

# a table dropped there while it streams
$t->sf('ALTER TABLE ' . $t->name_of('N') . ' RENAME TO ' . $t->name_of('N_AWAY'));
$t->src("INSERT INTO n VALUES (7, 7, 'late')");
$t->until_failed('n', qr/is not the one this run made/, 'a table that was renamed there');
$t->sf('ALTER TABLE ' . $t->name_of('N_AWAY') . ' RENAME TO ' . $t->name_of('N'));
$t->src("SELECT peerdb_resume_mirror('n')");
$t->sync('n', 'renamed back: it goes on');

# a clone has the comment, and is not ours
$t->sf('CREATE TABLE ' . $t->name_of('N2') . ' CLONE ' . $t->name_of('N'));

# ---- a copy of the source: refused, then adopted; the original is fenced out
$t->source->backup('b');
my $copy = PostgreSQL::Test::Cluster->new('copy');
$copy->init_from_backup($t->source, 'b');
$copy->start;
$t->until_true("SELECT status = 'failed' AND error ~ 'is a copy' FROM peerdb.mirrors", 'the copy does nothing', node => $copy);
$t->src("INSERT INTO n VALUES (90002, 1, 'original')");
$t->sync('n', 'the original runs on');
$copy->safe_psql('postgres', "SELECT peerdb_resume_mirror('n', adopt => true)");
$t->until_true("SELECT peerdb_mirror_status('n') = 'running'", 'the copy has taken it over', node => $copy);
$t->src("INSERT INTO n VALUES (90003, 1, 'too late')");
$t->until_failed('n', qr/no longer in charge/, 'the original is fenced out');
$copy->safe_psql('postgres', "INSERT INTO n VALUES (90004, 1, 'copy'); SELECT peerdb_wait_for_lsn('n')");
is($t->sf('SELECT A FROM ' . $t->name_of('N') . ' WHERE A IN (90003, 90004) AND NOT _PEERDB_IS_DELETED'), '90004', 'only the copy writes');
$copy->safe_psql('postgres', "SELECT peerdb_drop_mirror('n', drop_destination => true)");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'the copy has dropped it', node => $copy);
is(join(',', $t->tables(qr/^PUBLIC\.N/)), 'PUBLIC.N2', 'its table is gone, the clone is not');
$copy->stop;
$t->drop_all;
done_testing();
