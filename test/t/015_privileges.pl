# Who may do what: credentials, other people's mirrors, tables one may not read,
# the attacks of design/decisions.md B9, a hostile search_path, rights that are
# lost under a running mirror, DROP and RENAME under it, secrets.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my @secrets = qw(Geh3im_Owner Geh3im_Changed Geh3im_File Geh3im_Wrong);
my $t = ResyncTest->new(src_conf => "log_min_messages = debug1\n");
my ($host, $port) = ($t->dest->host, $t->dest->port);

# ---- the destination asks one role for a password, and no other
$t->dst(<<"EOS");
SET password_encryption = 'scram-sha-256';
CREATE ROLE loader LOGIN PASSWORD '$secrets[0]';
CREATE ROLE other_loader LOGIN PASSWORD '$secrets[2]';
GRANT CREATE, TEMPORARY ON DATABASE postgres TO loader, other_loader;
GRANT CREATE, USAGE ON SCHEMA public TO loader, other_loader;
CREATE ROLE trusted LOGIN SUPERUSER;
EOS
my $hba = $t->dest->data_dir . '/pg_hba.conf';
my $rules = PostgreSQL::Test::Utils::slurp_file($hba);
unlink $hba;
PostgreSQL::Test::Utils::append_to_file($hba,
	"local all loader scram-sha-256\nlocal all other_loader scram-sha-256\n$rules");
$t->dest->reload;

# ---- the source
$t->src(<<"EOS");
CREATE ROLE owner LOGIN REPLICATION;
CREATE ROLE stranger LOGIN REPLICATION;
CREATE ROLE watcher LOGIN IN ROLE pg_read_all_stats;
CREATE ROLE nobody LOGIN;
CREATE SCHEMA app;
GRANT USAGE ON SCHEMA app TO owner, stranger;
GRANT USAGE ON FOREIGN SERVER dest TO owner, stranger;
CREATE USER MAPPING FOR owner SERVER dest OPTIONS (user 'loader', password '$secrets[0]');
CREATE TABLE app.t (id int PRIMARY KEY, v text);
CREATE TABLE app.part (id int PRIMARY KEY, v text, secret text);
CREATE TABLE app.col (id int PRIMARY KEY, v text);
CREATE TABLE app.rls (id int PRIMARY KEY, v text);
CREATE TABLE app.keeps (id int PRIMARY KEY, v text);
GRANT SELECT ON app.t, app.col, app.rls, app.keeps TO owner;
GRANT SELECT (id, v) ON app.part TO owner;
INSERT INTO app.t SELECT i, 'v' || i FROM generate_series(1, 100) i;
INSERT INTO app.part SELECT i, 'v' || i, 'hidden value' FROM generate_series(1, 100) i;
INSERT INTO app.col SELECT id, v FROM app.t;
INSERT INTO app.rls SELECT id, v FROM app.t;
INSERT INTO app.keeps SELECT id, v FROM app.t;
DO \$\$ DECLARE f regprocedure; BEGIN
	FOR f IN SELECT oid FROM pg_proc WHERE proname LIKE 'peerdb\\_%' AND pronamespace = 'public'::regnamespace LOOP
		EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO owner, stranger, watcher', f);
	END LOOP;
END \$\$;
EOS

# SQL as another role, whose search_path is hostile; (status, stdout, stderr)
sub as
{
	my ($user, $sql) = @_;
	local $ENV{PGOPTIONS} = '-c search_path=evil,pg_catalog,public';
	return $t->try($sql, user => $user);
}
sub denied
{
	my ($user, $sql, $sqlstate, $pattern, $name) = @_;
	my ($status, $out, $err) = as($user, $sql);
	isnt($status, 0, "$name: refused") or return '';
	like($err, qr/ERROR:  $sqlstate: .*$pattern/s, $name);
	return $err;
}
sub run_refused
{
	my ($m, $pattern, $name) = @_;
	$t->until_true("SELECT outcome IN ('refused', 'failed') FROM peerdb.runs WHERE mirror = '$m' ORDER BY run DESC LIMIT 1", "$name: the run is refused");
	like($t->src("SELECT error FROM peerdb.runs WHERE mirror = '$m' ORDER BY run DESC LIMIT 1"), $pattern, "$name: says why");
	$t->src("SELECT peerdb_drop_mirror('$m')");
	return;
}

# ---- a hostile search_path: whatever is called in it tells on itself
foreach my $node ($t->source, $t->dest)
{
	$node->safe_psql('postgres', <<'EOS');
CREATE SCHEMA evil;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE TABLE public.called (who text, what text);
GRANT INSERT ON public.called TO PUBLIC;
CREATE FUNCTION evil.note(what text) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO public.called VALUES (session_user::text, $1)';
CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.note(''=''); SELECT true';
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq);
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq);
CREATE FUNCTION evil.eq8(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT evil.note(''=8''); SELECT true';
CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.eq8);
CREATE FUNCTION evil.cat(text, text) RETURNS text LANGUAGE sql AS 'SELECT evil.note(''||''); SELECT $1';
CREATE OPERATOR evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.cat);
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT evil.note(''now''); SELECT pg_catalog.now()';
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT evil.note(''clock''); SELECT pg_catalog.now()';
CREATE FUNCTION evil.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS 'SELECT evil.note(''format''); SELECT ''''::text';
CREATE FUNCTION evil.pg_has_role(oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.note(''role''); SELECT true';
CREATE FUNCTION evil.quote_ident(name) RETURNS text LANGUAGE sql AS 'SELECT evil.note(''quote''); SELECT $1::text';
CREATE FUNCTION evil.to_regclass(text) RETURNS regclass LANGUAGE sql AS 'SELECT evil.note(''regclass''); SELECT NULL::regclass';
CREATE TABLE evil._mirror (id bigint);
CREATE TABLE evil.pg_class (oid oid);
CREATE TABLE evil.pg_namespace (oid oid);
CREATE TABLE evil.resync_run (token uuid, run bigint);
GRANT SELECT ON ALL TABLES IN SCHEMA evil TO PUBLIC;
EOS
}
# what this test asks itself is not meant
$ENV{PGOPTIONS} = '-c search_path=public';
$t->src("ALTER ROLE owner SET search_path = evil, pg_catalog, public; ALTER DATABASE postgres SET search_path = evil, pg_catalog, public");
$t->dst("ALTER ROLE loader SET search_path = evil, pg_catalog, public; ALTER DATABASE postgres SET search_path = evil, pg_catalog, public");

# ---- who may not even call
denied('nobody', q{SELECT peerdb_create_mirror('x', 'dest', '["app.t"]')}, '42501', 'peerdb_create_mirror', 'without EXECUTE');
denied('stranger', q{SELECT peerdb_create_mirror('x', 'dest', '["app.t"]')}, '42501', 'SELECT privilege', 'a table one may not read');
denied('owner', q{SELECT peerdb_create_mirror('x', 'dest', '["app.part"]')}, '42501', 'secret', 'a column one may not read');
denied('owner', q{SELECT peerdb_create_mirror('x', 'dest', '["pg_catalog.pg_authid"]')}, '42809', 'pg_authid', 'a system table');
denied('owner', q{SELECT peerdb_create_mirror('x', 'dest', '["peerdb._mirror"]')}, '42809', '_mirror', 'our own tables');

# ---- a password mapping of an ordinary user works from end to end
my ($status, $out, $err) = as('owner', q{
SELECT peerdb_create_mirror('mine', 'dest', '["app.t"]');
SELECT peerdb_create_mirror('part', 'dest', '[{"from": "app.part", "exclude": ["secret"]}]');
SELECT peerdb_create_mirror('col', 'dest', '["app.col"]');
SELECT peerdb_create_mirror('rls', 'dest', '["app.rls"]');
SELECT peerdb_create_mirror('keeps', 'dest', '["app.keeps"]')});
is($status, 0, 'an ordinary user makes mirrors') or diag($err);
my @mirrors = qw(mine part col rls keeps);
foreach my $m (@mirrors) { $t->wait_status($m, 'running'); }
$t->src("UPDATE app.t SET v = v || '!' WHERE id < 10; DELETE FROM app.t WHERE id = 50; INSERT INTO app.part VALUES (200, 'x', 'hidden value')");
($status, $out, $err) = as('owner', q{SELECT peerdb_wait_for_lsn('mine'), peerdb_wait_for_lsn('part')});
is($status, 0, 'its owner waits for it') or diag($err);
$t->same('app.t', 'an ordinary user: follows');
$t->same('app.part', 'an ordinary user: the columns that one may read', columns => [ 'id', 'v' ]);
is($t->dst("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'app.t'::regclass"), 'loader', 'the tables belong to the mapping\'s role');
is($t->dst("SELECT count(*) FROM information_schema.columns WHERE column_name = 'secret'"), '0', 'what one may not read is not there');
as('owner', q{SELECT peerdb_resync('mine')});
$t->wait_status('mine', 'running', 'its owner resyncs it');
is($t->src("SELECT count(*) FROM peerdb.mirrors"), '5', 'the superuser sees all');
foreach my $node ($t->source, $t->dest)
{
	is($node->safe_psql('postgres', 'SELECT string_agg(DISTINCT who || \' \' || what, \',\') FROM public.called'), '', 'nothing of a hostile search_path was called on ' . $node->name);
}

# ---- others: no credentials, no sight, no steering
denied('stranger', 'SELECT * FROM pg_catalog.pg_user_mapping', '42501', 'pg_user_mapping', 'the mappings\' table');
(undef, $out) = as('stranger', 'SELECT umoptions FROM pg_catalog.pg_user_mappings; SELECT option_value FROM information_schema.user_mapping_options');
unlike($out, qr/Geh3im|loader/, 'the mappings\' view hides the options');
foreach my $table (qw(_mirror _table _run _run_table _partition _batch _log _cleanup _visible _visible_run))
{
	denied('stranger', "SELECT * FROM peerdb.$table", '42501', $table, "peerdb.$table");
}
foreach my $view (qw(mirrors mirror_tables runs partitions batches logs))
{
	(undef, $out) = as('stranger', "SELECT count(*) FROM peerdb.$view");
	is($out, '0', "peerdb.$view: a stranger sees nothing");
	(undef, $out) = as('watcher', "SELECT count(*) >= 0 FROM peerdb.$view");
	is($out, 't', "peerdb.$view: pg_read_all_stats may look");
}
foreach my $call (q{peerdb_resync('mine')}, q{peerdb_cancel_resync('mine')}, q{peerdb_pause_mirror('mine')},
	q{peerdb_resume_mirror('mine')}, q{peerdb_resume_mirror('mine', true)}, q{peerdb_drop_mirror('mine')}, q{peerdb_drop_mirror('mine', true, true)},
	q{peerdb_edit_mirror('mine', '{"max_batch_size": 1}')}, q{peerdb_mirror_status('mine')},
	q{peerdb_wait_for_status('mine')}, q{peerdb_wait_for_lsn('mine')}, q{peerdb_plan_resync('mine')}, q{peerdb_compare('mine')})
{
	denied('stranger', "SELECT $call", '42501', 'mine', "a stranger's $call");
}
denied('watcher', q{SELECT peerdb_drop_mirror('mine')}, '42501', 'mine', 'who may look may not steer');
unlike(denied('stranger', q{SELECT peerdb_create_mirror('mine2', 'dest', '["app.t:app.col"]')}, '42501', 'SELECT privilege', 'into another\'s table'),
	qr/another mirror|app\.col/, 'into another\'s table: nothing is told of his mirror');
# the note of DDL that streamers follow cannot be forged without the mirror's token
as('stranger', qq{SELECT pg_logical_emit_message(true, 'resync', pg_catalog.concat('00000000-0000-0000-0000-000000000000 ', 'app.keeps'::regclass::oid, ' It was dropped.'))});
$t->src("INSERT INTO app.keeps VALUES (1000, 'after a forged note')");
$t->sync('keeps');
is($t->status('keeps'), 'running', 'a forged note of DDL changes nothing');

# ---- B9: the server's own identity and files
denied('stranger', q{CREATE USER MAPPING FOR stranger SERVER dest OPTIONS (user 'trusted', password_required 'false')}, '42501', 'password_required', 'password_required by an ordinary user');
foreach my $option (qw(password_file sslkey sslcert))
{
	denied('stranger', "CREATE USER MAPPING FOR stranger SERVER dest OPTIONS (user 'trusted', $option '/etc/passwd')", '42501', $option, "$option by an ordinary user");
}
foreach my $option (qw(host passfile service dbname))
{
	denied('stranger', "CREATE USER MAPPING FOR stranger SERVER dest OPTIONS (user 'trusted', $option '/etc/passwd')", 'HV00D', $option, "$option is no option of a mapping");
}
$t->src('GRANT USAGE ON FOREIGN DATA WRAPPER peerdb_postgres TO stranger; GRANT SELECT ON app.keeps TO stranger');
foreach my $option (qw(service passfile sslrootcert sslcrl sslcert sslkey sslcrldir))
{
	denied('stranger', "CREATE SERVER s_$option FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '$host', $option '/etc/passwd')", '42501', $option, "$option of a server by an ordinary user");
}
# without a password, with an empty one, with one that the destination does not ask for
as('stranger', q{CREATE USER MAPPING FOR stranger SERVER dest OPTIONS (user 'trusted')});
denied('stranger', q{SELECT peerdb_check_peer('dest')}, '2F003', 'password', 'check_peer as the server\'s operating system user');
as('stranger', q{SELECT peerdb_create_mirror('thief', 'dest', '["app.keeps:app.stolen"]')});
run_refused('thief', qr/password/, 'a mapping without password');
as('stranger', q{ALTER USER MAPPING FOR stranger SERVER dest OPTIONS (ADD password '')});
denied('stranger', q{SELECT peerdb_check_peer('dest')}, '2F003', 'password', 'an empty password');
as('stranger', q{ALTER USER MAPPING FOR stranger SERVER dest OPTIONS (SET password 'unasked')});
denied('stranger', q{SELECT peerdb_check_peer('dest')}, '2F003', 'password', 'a password that nobody asked for');
as('stranger', q{SELECT peerdb_create_mirror('thief', 'dest', '["app.keeps:app.stolen"]')});
run_refused('thief', qr/password/, 'a password that nobody asked for');
# a connection string for a database's name
as('stranger', "CREATE SERVER own FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '$host', port '$port', dbname 'user=trusted passfile=/etc/passwd service=x dbname=postgres');"
	. "CREATE USER MAPPING FOR stranger SERVER own OPTIONS (user 'other_loader', password '$secrets[2]')");
denied('stranger', q{SELECT peerdb_check_peer('own')}, '3D000', 'does not exist', 'a connection string is a name');
# PUBLIC's mapping is for all; a stranger's server is not one's own
denied('owner', q{SELECT peerdb_check_peer('own')}, '42501', 'own', 'a server without USAGE');
is($t->dst("SELECT to_regclass('app.stolen') IS NULL"), 't', 'nothing came of it');
# a table of another's at the destination, even there where the role could
as('stranger', "ALTER SERVER own OPTIONS (SET dbname 'postgres')");
as('stranger', q{SELECT peerdb_create_mirror('thief', 'own', '["app.keeps:app.col"]', '{"replace_existing": true}')});
run_refused('thief', qr/role "loader"|may not create/, 'another\'s table at the destination');

# ---- password_file: of a superuser's, or of a role that may read files
my $file = PostgreSQL::Test::Utils::tempdir() . '/password';
PostgreSQL::Test::Utils::append_to_file($file, "$secrets[2]\n");
$t->src("CREATE SERVER by_file FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '$host', port '$port', dbname 'postgres', metadata_schema 'by_file');"
	. "CREATE USER MAPPING FOR stranger SERVER by_file OPTIONS (user 'other_loader', password_file '$file'); GRANT USAGE ON FOREIGN SERVER by_file TO stranger");
($status, $out, $err) = as('stranger', q{SELECT peerdb_check_peer('by_file')});
is($status, 0, 'a password file that a superuser named') or diag($err);
as('stranger', q{SELECT peerdb_create_mirror('byfile', 'by_file', '["app.keeps:by_file_schema.keeps"]')});
$t->wait_status('byfile', 'running', 'a mirror with a password file');
unlink $file;
denied('stranger', q{SELECT peerdb_check_peer('by_file')}, '\w{5}', 'password file', 'the password file is gone');
$t->src("SELECT peerdb_drop_mirror('byfile')");

# ---- rights that are lost count within seconds, and not for others
$t->src(<<'EOS');
REVOKE SELECT ON app.t FROM owner;
REVOKE SELECT (v) ON app.part FROM owner;
REVOKE SELECT ON app.col FROM owner; GRANT SELECT (id) ON app.col TO owner;
ALTER TABLE app.rls ENABLE ROW LEVEL SECURITY;
EOS
$t->until_failed('mine', qr/SELECT privilege.*app\.t/s, 'SELECT revoked');
$t->until_failed('part', qr/"v".*app\.part/s, 'SELECT on a column revoked');
$t->until_failed('col', qr/"v".*app\.col/s, 'SELECT narrowed to columns');
$t->until_failed('rls', qr/row security.*app\.rls/s, 'row security switched on');
is($t->status('keeps'), 'running', 'the others go on');
$t->src("INSERT INTO app.t VALUES (777, 'after the REVOKE')");
is($t->dst('SELECT count(*) FROM app.t WHERE id = 777'), '0', 'nothing is copied any more');
denied('owner', q{SELECT peerdb_resync('mine')}, '42501', 'SELECT', 'a resync without the right');
$t->src('GRANT SELECT ON app.t, app.col TO owner; GRANT SELECT (v) ON app.part TO owner; ALTER TABLE app.rls DISABLE ROW LEVEL SECURITY');
foreach my $m (qw(mine part col rls)) { as('owner', "SELECT peerdb_resume_mirror('$m')"); $t->until_status($m, 'running', "$m: goes on with the right back"); $t->sync($m); }
$t->same("app.$_", "$_: nothing is missing") foreach qw(t col rls);

# ---- server and mapping: followed, or a clear failure
$t->dst("ALTER ROLE loader PASSWORD '$secrets[1]'");
$t->src("ALTER USER MAPPING FOR owner SERVER dest OPTIONS (SET password '$secrets[1]')");
$t->src('ALTER SERVER dest RENAME TO renamed; ALTER ROLE owner RENAME TO new_owner');
is($t->src("SELECT DISTINCT peer, owner FROM peerdb.mirrors"), 'renamed|new_owner', 'RENAME is followed');
$t->src("INSERT INTO app.t VALUES (778, 'renamed')");
$t->sync('mine', 'RENAME of server and role, a changed password');
$t->same('app.t', 'RENAME of server and role, a changed password: followed');
$t->src("ALTER USER MAPPING FOR new_owner SERVER renamed OPTIONS (SET password '$secrets[3]')");
$t->until_failed('mine', qr/password authentication failed/, 'a wrong password');
$t->src("ALTER USER MAPPING FOR new_owner SERVER renamed OPTIONS (DROP password)");
$t->until_failed('part', qr/password/, 'no password any more');
$t->until_status($_, 'failed', "$_: failed with its mapping") foreach @mirrors;
$t->src("ALTER USER MAPPING FOR new_owner SERVER renamed OPTIONS (ADD password '$secrets[1]')");
as('new_owner', "SELECT peerdb_resume_mirror('$_')") foreach @mirrors;
foreach my $m (@mirrors) { $t->until_status($m, 'running', "$m: goes on with the password back"); $t->sync($m); }

# what a role needs to own a mirror
$t->src('ALTER ROLE new_owner NOREPLICATION');
$t->until_failed('col', qr/own a mirror.*REPLICATION/s, 'REPLICATION lost under a running mirror');
$t->until_status($_, 'failed', "$_: failed without REPLICATION") foreach @mirrors;
denied('new_owner', q{SELECT peerdb_resync('col')}, '42501', 'own a mirror', 'a resync without REPLICATION');
$t->src('ALTER ROLE new_owner REPLICATION');
as('new_owner', "SELECT peerdb_resume_mirror('$_')") foreach @mirrors;
foreach my $m (@mirrors) { $t->until_status($m, 'running', "$m: goes on with REPLICATION back"); $t->sync($m); }
$t->src('ALTER ROLE new_owner NOLOGIN');
$t->until_failed('col', qr/own a mirror.*LOGIN/s, 'LOGIN lost under a running mirror');
$t->until_status($_, 'failed', "$_: failed without LOGIN") foreach @mirrors;
$t->refused(q{SELECT peerdb_resync('col')}, '42501', 'own a mirror', 'a resync of an owner without LOGIN');
$t->src('ALTER ROLE new_owner LOGIN');
as('new_owner', "SELECT peerdb_resume_mirror('$_')") foreach @mirrors;
foreach my $m (@mirrors) { $t->until_status($m, 'running', "$m: goes on with LOGIN back"); $t->sync($m); }

# USAGE
$t->src('REVOKE USAGE ON FOREIGN SERVER renamed FROM new_owner');
$t->until_failed('rls', qr/USAGE.*renamed/s, 'USAGE on the server revoked');
denied('new_owner', q{SELECT peerdb_resync('rls')}, '42501', 'renamed', 'a resync without USAGE');
$t->until_status($_, 'failed', "$_: failed without USAGE") foreach @mirrors;
$t->src('GRANT USAGE ON FOREIGN SERVER renamed TO new_owner');
as('new_owner', "SELECT peerdb_resume_mirror('$_')") foreach @mirrors;
foreach my $m (@mirrors) { $t->until_status($m, 'running', "$m: goes on with USAGE back"); }

# DROP
$t->src('DROP USER MAPPING FOR new_owner SERVER renamed');
$t->until_failed('col', qr/password/, 'DROP USER MAPPING');
$t->src('DROP SERVER renamed CASCADE');
$t->until_status($_, 'failed', "DROP SERVER: $_ has failed") foreach @mirrors;
denied('new_owner', q{SELECT peerdb_resync('rls')}, '42704', 'server', 'DROP SERVER: a resync');
like($t->src("SELECT string_agg(DISTINCT peer, ',') FROM peerdb.mirrors"), qr/dest|renamed/, 'DROP SERVER: the view still names it');
$t->src('REASSIGN OWNED BY new_owner TO CURRENT_USER; DROP OWNED BY new_owner; DROP ROLE new_owner');
like($t->src("SELECT string_agg(DISTINCT owner, ',') FROM peerdb.mirrors"), qr/owner/, 'DROP ROLE: the view still names it');
$t->refused(q{SELECT peerdb_resync('rls')}, '42704', '', 'DROP ROLE: a resync');
is($t->src("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'resync%'"), '5', 'failed mirrors keep their slots');
$t->src("SELECT peerdb_drop_mirror('$_')") foreach @mirrors;
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'mirrors without server and owner can be dropped');
$t->until_true("SELECT count(*) = 0 FROM pg_replication_slots", 'and their slots go');

# the same with the owner gone under a running mirror
$t->install('postgres', server => 'dest2');
$t->src("CREATE ROLE leaves SUPERUSER LOGIN; CREATE USER MAPPING FOR leaves SERVER dest2 OPTIONS (user '" . $t->dst('SELECT current_user') . "')");
as('leaves', q{SELECT public.peerdb_create_mirror('leaves', 'dest2', '["app.keeps:app.leaves"]')});
$t->wait_status('leaves', 'running');
$t->src('DROP OWNED BY leaves; DROP ROLE leaves');
$t->until_failed('leaves', qr/owner.*exist|role/s, 'DROP ROLE under a running mirror');
$t->src("SELECT peerdb_drop_mirror('leaves')");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'DROP ROLE: dropped');

# ---- code of users never runs as a superuser.  A: a schema of our name in a
# database that has not the extension.
$t->src("CREATE ROLE attacker LOGIN REPLICATION; CREATE DATABASE elsewhere; GRANT CREATE ON DATABASE elsewhere TO attacker");
{
	my ($s, $o, $e) = $t->try(<<'EOS', db => 'elsewhere', user => 'attacker');
SELECT 'resync_' || oid || '_1' AS slot FROM pg_database WHERE datname = current_database() \gset
SELECT pg_create_logical_replication_slot(:'slot', 'pgoutput');
CREATE SCHEMA peerdb;
CREATE FUNCTION peerdb.f() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'somebody ran it: %', current_user; RETURN 'x'; END $$;
CREATE VIEW peerdb._mirror AS SELECT peerdb.f() AS token;
CREATE TABLE peerdb.t (a int);
ALTER TABLE peerdb.t ADD COLUMN b int;
DROP TABLE peerdb.t;
SELECT pg_drop_replication_slot(:'slot');
EOS
	is($s, 0, 'a schema of our name: its owner did what he wanted') or diag($e);
	unlike(PostgreSQL::Test::Utils::slurp_file($t->source->logfile), qr/LOG:  somebody ran it/, 'a schema of our name: nothing of it was run for him');
}

# B: a domain's CHECK, run when a row is fetched by its key
$t->src("CREATE ROLE domains LOGIN REPLICATION; CREATE SCHEMA dom AUTHORIZATION domains; GRANT USAGE ON FOREIGN SERVER dest2 TO domains;"
	  . " CREATE USER MAPPING FOR domains SERVER dest2 OPTIONS (user '" . $t->dst('SELECT current_user') . "', password_required 'false'); GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO domains");
as('domains', q{
CREATE FUNCTION dom.f(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
IF current_setting('application_name') LIKE 'resync%' THEN
	RAISE LOG 'checked as %', current_user;
	BEGIN RESET ROLE; EXCEPTION WHEN OTHERS THEN NULL; END;
	BEGIN RESET SESSION AUTHORIZATION; EXCEPTION WHEN OTHERS THEN NULL; END;
	RAISE LOG 'then as %', current_user;
END IF; RETURN true; END $$;
CREATE DOMAIN dom.d AS int CHECK (dom.f(VALUE));
CREATE TABLE dom.k (id dom.d PRIMARY KEY, big text, n int);
ALTER TABLE dom.k ALTER big SET STORAGE EXTERNAL;
INSERT INTO dom.k VALUES (1, repeat('x', 20000), 1);
SELECT public.peerdb_create_mirror('domains', 'dest2', '["dom.k"]')});
$t->wait_status('domains', 'running', 'a domain with a CHECK');
$t->dst('DELETE FROM dom.k');
as('domains', 'UPDATE dom.k SET n = 2');
$t->sync('domains', 'a domain with a CHECK: a row was fetched');
$t->same('dom.k', 'a domain with a CHECK: equal');
{
	my $log = PostgreSQL::Test::Utils::slurp_file($t->source->logfile);
	like($log, qr/LOG:  checked as domains/, 'a domain with a CHECK: it was run');
	is(join(',', grep { $_ ne 'domains' } $log =~ /LOG:  (?:checked|then) as (\S+)/g), '', 'a domain with a CHECK: as nobody else');
}
$t->src("SELECT peerdb_drop_mirror('domains')");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'a domain with a CHECK: dropped');

# the mirror is a superuser's, the table and its domain are not
$t->src('ALTER TABLE dom.k ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY');
$t->create_mirror('super', ['dom.k'], { replace_existing => 'true' }, peer => 'dest2');
$t->wait_status('super', 'running', 'a domain with a CHECK, in a mirror of a superuser');
$t->dst('DELETE FROM dom.k');
{
	my $before = length PostgreSQL::Test::Utils::slurp_file($t->source->logfile);
	$t->src('UPDATE dom.k SET n = 3');
	$t->sync('super', 'a mirror of a superuser: a row was fetched');
	$t->same('dom.k', 'a mirror of a superuser: equal');
	my $log = substr(PostgreSQL::Test::Utils::slurp_file($t->source->logfile), $before);
	like($log, qr/LOG:  checked as/, 'a mirror of a superuser: the CHECK was run');
	is(join(',', grep { $_ ne 'domains' } $log =~ /LOG:  (?:checked|then) as (\S+)/g), '', 'a mirror of a superuser: as nobody but the owner of the table');
}
$t->src("SELECT peerdb_drop_mirror('super')");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors", 'a mirror of a superuser: dropped');

# ---- secrets: in no log, view, activity
my $seen = '';
foreach my $node ($t->source, $t->dest) { $seen .= PostgreSQL::Test::Utils::slurp_file($node->logfile) . $node->safe_psql('postgres', 'SELECT a::text FROM pg_stat_activity a'); }
$seen .= $t->src("SELECT l::text FROM peerdb.logs l UNION ALL SELECT r::text FROM peerdb.runs r UNION ALL SELECT m::text FROM peerdb.mirrors m");
foreach my $secret (@secrets) { ok(index($seen, $secret) < 0, "$secret is nowhere to be read"); }
unlike($seen, qr/hidden value/, 'neither is a row');
foreach my $node ($t->source, $t->dest)
{
	is($node->safe_psql('postgres', 'SELECT string_agg(DISTINCT who || \' \' || what, \',\') FROM public.called'), '', 'nothing of a hostile search_path was called on ' . $node->name . ', in the end');
}
done_testing();
