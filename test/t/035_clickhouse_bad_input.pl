# Bad input of every kind, at ClickHouse: a clear error before anything is
# dropped.
use strict;
use warnings;

use ResyncClickHouse;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;

my $t = ResyncClickHouse->new;

sub try_check
{
	my ($server, $sqlstate, $pattern, $name, %o) = @_;
	$t->src($t->server_sql($server, %o));
	my $message = $t->refused("SELECT peerdb_check_peer('$server')", $sqlstate, $pattern, $name);
	unlike($message, qr/hunter2|wrong secret/, "$name: no secret in the message");
	$t->src("DROP SERVER $server CASCADE");
	return;
}

# ---- the server
my $nobody = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', Proto => 'tcp');
my $free = $nobody->sockport;
close $nobody;
try_check('c1', '080\d\d', 'could not connect.*127\.0\.0\.1.*refused|Couldn.t connect', 'nobody listens', port => $free);
try_check('c2', '080\d\d', 'no-such-host\.invalid', 'unknown host', host => 'no-such-host.invalid');
try_check('c3', '28P01', 'uthentication', 'wrong password', password => 'wrong secret');
try_check('c4', '28P01', 'uthentication', 'unknown user', user => 'nobody');
try_check('c5', '3D000', 'nosuchdb', 'database missing', database => 'nosuchdb');
try_check('c6', '080\d\d', '127\.0\.0\.1', 'TLS asked of a server that has none', tls => 'on');
$t->admin('version', v => '22.8.5.29');
try_check('c7', '\w{5}', '22\.8.*(is_deleted|23\.2)', 'server too old');
$t->admin('version', v => '');

# a server that accepts and is silent; one that speaks something else
{
	my $silent = IO::Socket::INET->new(Listen => 5, LocalAddr => '127.0.0.1', Proto => 'tcp');
	$t->src($t->server_sql('c8', port => $silent->sockport));
	my ($status, $out, $err) = $t->try("SET statement_timeout = '1s'; SELECT peerdb_check_peer('c8')");
	like($err, qr/57014/, 'a silent server: the call can be cancelled');
	$t->src('DROP SERVER c8 CASCADE');
}

# ---- TLS
{
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $make = "cd $dir && openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=testca"
	  . ' && openssl req -newkey rsa:2048 -nodes -keyout s.key -out s.csr -subj /CN=localhost'
	  . ' && echo subjectAltName=DNS:localhost >ext && openssl x509 -req -in s.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out s.pem -extfile ext'
	  . ' && cat s.key s.pem >both.pem';
	is(system("{ $make; } >$dir/log 2>&1"), 0, 'certificates');
	my $probe = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', Proto => 'tcp');
	my $port = $probe->sockport;
	close $probe;
	my $proxy = $t->start($t->source, 'socat', "OPENSSL-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork,cert=$dir/both.pem,verify=0", "TCP:127.0.0.1:$t->{port}");
	ok($t->poll(sub { my $s = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port"); defined $s }), 'TLS server');

	try_check('t1', '28000', 'certificate.*ca_file', 'certificate of nobody known', host => 'localhost', port => $port, tls => 'on');
	try_check('t2', '28000', 'certificate', 'certificate of another host', host => '127.0.0.1', port => $port, tls => 'on', ca_file => "$dir/ca.pem");
	try_check('t3', '28000', 'nosuch\.pem', 'ca_file missing', host => 'localhost', port => $port, tls => 'on', ca_file => "$dir/nosuch.pem");
	$t->src($t->server_sql('t4', host => 'localhost', port => $port, tls => 'on', ca_file => "$dir/ca.pem"));
	like($t->src("SELECT peerdb_check_peer('t4')"), qr/^2\d\./, 'TLS with its certificate');
	$t->src('CREATE TABLE tls (id int PRIMARY KEY, v text); INSERT INTO tls SELECT i, md5(i::text) FROM generate_series(1, 20000) i');
	$t->src(q{SELECT peerdb_create_mirror('tls', 't4', '["public.tls"]', '{"sync_interval": 0.2}')});
	$t->wait_status('tls', 'running', 'a mirror over TLS');
	$t->src('UPDATE tls SET v = 1 WHERE id < 100');
	$t->sync('tls');
	$t->same_ch('tls');
	$t->src("SELECT peerdb_drop_mirror('tls')");
	$t->no_leftovers;
	$t->stop($proxy);
}

# ---- the mapping: refused at once or by the run, and nothing is dropped
$t->src(<<'EOS');
CREATE TABLE t (id int PRIMARY KEY, tenant int, v text, n numeric(10,2), x xml);
INSERT INTO t VALUES (1, 1, 'a', 1, NULL);
EOS
$t->ch('CREATE TABLE t (id Int32, mine String) ENGINE = MergeTree ORDER BY id');
$t->ch("INSERT INTO t VALUES (1, 'precious')");

sub refused_mirror
{
	my ($pattern, $name, $mapping, $options) = @_;
	my $sql = sprintf("SELECT peerdb_create_mirror('r', 'ch', %s, %s)", ResyncTest::jsonb([$mapping]), ResyncTest::jsonb($options // {}));
	my ($status, $out, $err) = $t->try($sql);
	if ($status == 0)
	{
		$t->until_true("SELECT count(*) > 0 FROM peerdb.runs WHERE mirror = 'r' AND outcome IN ('refused', 'failed')", "$name: the run is refused")
		  or $t->describe('r');
		$err = $t->src("SELECT coalesce(error, '') FROM peerdb.runs WHERE mirror = 'r' ORDER BY run DESC LIMIT 1")
		  . $t->src("SELECT string_agg(message || ' ' || coalesce(detail, ''), ' ') FROM peerdb.logs WHERE mirror = 'r'");
		$t->src("SELECT peerdb_drop_mirror('r')");
		$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'r'");
	}
	like($err, $pattern, $name);
	is($t->ch('SELECT mine FROM t'), 'precious', "$name: nothing is touched");
	return;
}

refused_mirror(qr/\bt\b/, 'table in the way', 'public.t');
refused_mirror(qr/NoSuchTree/, 'unknown engine', { from => 'public.t', to => 't2', engine => 'NoSuchTree' });
refused_mirror(qr/nosuch/, 'unknown column in order_by', { from => 'public.t', to => 't2', order_by => ['nosuch'] });
refused_mirror(qr/key|\bid\b/, 'order_by without the key', { from => 'public.t', to => 't2', order_by => ['tenant'] });
refused_mirror(qr/tenant|identity|FULL/i, 'order_by with more than the key', { from => 'public.t', to => 't2', order_by => [ 'tenant', 'id' ] });
refused_mirror(qr/nosuch/, 'unknown column in columns', { from => 'public.t', to => 't2', columns => [ { source => 'nosuch', destination => 'a', type => 'String' } ] });
refused_mirror(qr/\bv\b.*(UUID|text)|(UUID|text).*\bv\b/s, 'a type that the column cannot be', { from => 'public.t', to => 't2', columns => [ { source => 'v', destination => 'v', type => 'UUID' } ] });
refused_mirror(qr/NoSuchType/, 'a type that is none', { from => 'public.t', to => 't2', columns => [ { source => 'v', destination => 'v', type => 'NoSuchType' } ] });
refused_mirror(qr/nosuch/, 'partition_by of no column', { from => 'public.t', to => 't2', partition_by => 'nosuch' });
refused_mirror(qr/partition|yntax/i, 'partition_by that is no expression', { from => 'public.t', to => 't2', partition_by => 'id)) (' });
refused_mirror(qr/partition_by.*not in the key/, 'partition_by with more than the key', { from => 'public.t', to => 't2', partition_by => 'ifNull(tenant, 0) % 3' });
refused_mirror(qr/same|twice|\bv\b/, 'two columns of one name', { from => 'public.t', to => 't2', columns => [ { source => 'v', destination => 'tenant' } ] });
is($t->ch("SELECT count() FROM system.tables WHERE database = 'd' AND name LIKE 't2%'"), '0', 'nothing is left of all these');

# ---- a resync that is refused leaves the mirror as it was
$t->src("CREATE TABLE g (id int PRIMARY KEY, v int); INSERT INTO g SELECT i, i FROM generate_series(1, 100) i");
$t->create_mirror('g', ['public.g'], { sync_interval => 0.2 });
$t->wait_status('g', 'running');
$t->src("ALTER USER MAPPING FOR CURRENT_USER SERVER ch OPTIONS (SET password 'wrong secret')");
my ($status, $out, $err) = $t->try("SELECT peerdb_resync('g')");
if ($status == 0)
{
	$t->until_true("SELECT outcome IN ('refused', 'failed') FROM peerdb.runs WHERE mirror = 'g' ORDER BY run DESC LIMIT 1", 'a resync with a wrong password is refused');
	$err = $t->src("SELECT error FROM peerdb.runs WHERE mirror = 'g' ORDER BY run DESC LIMIT 1");
}
like($err, qr/uthentication/, 'the reason is told');
is($t->ch('SELECT count() FROM g FINAL'), '100', 'the live table is untouched');
$t->src("ALTER USER MAPPING FOR CURRENT_USER SERVER ch OPTIONS (SET password '$ResyncClickHouse::Password')");
$t->resync('g');
$t->wait_status('g', 'running', 'with the right password it works');

# values that the destination cannot hold: the column is named, the value is not
$t->src("CREATE TABLE o (id int PRIMARY KEY, d date); INSERT INTO o VALUES (1, '0044-03-15 BC')");
$t->create_mirror('o', ['public.o'], { sync_interval => 0.2 });
$t->until_true("SELECT outcome IN ('refused', 'failed') FROM peerdb.runs WHERE mirror = 'o'", 'out of range: the run fails') or $t->describe('o');
like($t->src("SELECT error FROM peerdb.runs WHERE mirror = 'o'"), qr/\bd\b/, 'out of range: the column is named');
unlike($t->src("SELECT string_agg(message || coalesce(detail, ''), '') FROM peerdb.logs WHERE mirror = 'o'"), qr/0044|-44/, 'out of range: the value is not');

$t->drop_all;
done_testing();
