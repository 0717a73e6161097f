# Every type that PostgreSQL has: the row that was loaded, the row that came by
# WAL and the row at the source are the same text.  Rule 1.
use strict;
use warnings;

use ResyncTest;
use Test::More;

my $t = ResyncTest->new;

foreach my $node ($t->source, $t->dest)
{
	# user-defined types exist on both sides, with other OIDs there
	$node->safe_psql('postgres', 'CREATE TYPE filler AS (x int); CREATE TYPE filler2 AS ENUM (\'q\')')
	  if $node == $t->dest;
	$node->safe_psql('postgres', <<'EOS');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy ''quoted''');
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE DOMAIN moods AS mood[];
CREATE TYPE pair AS (a int, b text, m mood, n numeric[]);
CREATE TYPE nested AS (p pair, ps pair[], r int4range);
CREATE TYPE textrange AS RANGE (subtype = text);
CREATE TYPE moodrange AS RANGE (subtype = mood);
EOS
}
my %have;
foreach my $extension (qw(hstore citext ltree))
{
	$have{$extension} = $t->src("SELECT count(*) FROM pg_available_extensions WHERE name = '$extension'");
	next unless $have{$extension};
	$_->safe_psql('postgres', "CREATE EXTENSION $extension") foreach ($t->dest, $t->source);
}

# type => values (SQL expressions)
my @types = (
	[ 'boolean', 'true', 'false' ],
	[ '"char"', q{'a'}, q{''}, q{'\\200'} ],
	[ 'smallint', '-32768', '32767', '0' ],
	[ 'integer', '-2147483648', '2147483647' ],
	[ 'bigint', '-9223372036854775808', '9223372036854775807' ],
	[ 'numeric', q{'NaN'}, q{'Infinity'}, q{'-Infinity'}, '0', '0.00000', '-1.10', '1e131071', '1e-16383',
		'123456789012345678901234567890.123456789012345678901234567890', '10000', '1e4', '-0.0001' ],
	[ 'numeric(12,3)', '0', '-999999999.999', '1.5' ],
	[ 'numeric(3,-2)', '12300', '-99900' ],
	[ 'real', q{'NaN'}, q{'Infinity'}, q{'-Infinity'}, q{'-0'}, '1e-45', '3.4028235e38', '0.1' ],
	[ 'double precision', q{'NaN'}, q{'-Infinity'}, q{'-0'}, q{'5e-324'}, '1.7976931348623157e308', '0.1' ],
	[ 'money', q{'-92233720368547758.08'}, q{'1234.56'} ],
	[ 'text', q{''}, q{E'tab\tnewline\nback\\\\slash\r'}, q{'\\N'}, q{'NULL'}, q{'ä€𝄞'}, q{repeat('long ', 30000)} ],
	[ 'varchar(10)', q{'abc'}, q{'ends  '} ],
	[ 'char(6)', q{'abc'}, q{''} ],
	[ 'name', q{'a_name'}, q{repeat('x', 63)} ],
	[ 'bytea', q{''}, q{'\\x00ff5c27'}, q{decode(repeat('00ff', 20000), 'hex')} ],
	[ 'bit(5)', q{B'10101'} ],
	[ 'bit varying', q{B''}, q{B'1'}, q{B'101010101'} ],
	[ 'date', q{'infinity'}, q{'-infinity'}, q{'0001-01-01 BC'}, q{'4713-01-01 BC'}, q{'5874897-12-31'}, q{'2024-02-29'} ],
	[ 'time', q{'00:00'}, q{'24:00'}, q{'23:59:59.999999'} ],
	[ 'time(2)', q{'12:34:56.78'} ],
	[ 'timetz', q{'00:00+15:59'}, q{'24:00-15:59'}, q{'12:34:56.789+05:30'} ],
	[ 'timestamp', q{'infinity'}, q{'-infinity'}, q{'4713-01-01 00:00:00 BC'}, q{'294276-12-31 23:59:59.999999'}, q{'1999-12-31 23:59:59.000001'} ],
	[ 'timestamptz', q{'infinity'}, q{'-infinity'}, q{'2000-01-01 00:00:00.000001+13'}, q{'294276-12-31 23:59:59.999999+00'} ],
	[ 'timestamptz(3)', q{'2024-06-30 12:00:00.123+02'} ],
	[ 'interval', q{'1 year -2 mons +3 days -04:05:06.789'}, q{'0'}, q{'-178000000 years'}, q{'1.000001 s'} ],
	[ 'uuid', q{'00000000-0000-0000-0000-000000000000'}, q{'ffffffff-ffff-ffff-ffff-ffffffffffff'} ],
	[ 'json', q{'{"a" :  [1, 2.50, null], "a": "dup"}'}, q{'null'}, q{'"\\u00e4"'} ],
	[ 'jsonb', q{'{"a" :  [1, 2.50, null], "b": {"c": "\\"q"}}'}, q{'[]'}, q{'"text"'}, q{'12345678901234567890.000'} ],
	[ 'jsonpath', q{'$.a[*] ? (@ > 1)'} ],
	[ 'xml', q{'<a b="1">x &amp; y<!-- c --></a>'}, q{'just text'} ],
	[ 'inet', q{'10.0.0.1'}, q{'10.0.0.0/8'}, q{'::1'}, q{'2001:db8::/32'} ],
	[ 'cidr', q{'10.0.0.0/8'}, q{'::/0'} ],
	[ 'macaddr', q{'08:00:2b:01:02:03'} ],
	[ 'macaddr8', q{'08:00:2b:01:02:03:04:05'} ],
	[ 'point', q{'(1.5,-2e300)'}, q{'(NaN,Infinity)'} ],
	[ 'line', q{'{1,-1,0}'} ],
	[ 'lseg', q{'[(0,0),(1,1)]'} ],
	[ 'box', q{'((1,1),(0,0))'} ],
	[ 'path', q{'[(0,0),(1,1),(2,0)]'}, q{'((0,0),(1,1))'} ],
	[ 'polygon', q{'((0,0),(1,1),(2,0))'} ],
	[ 'circle', q{'<(1,2),3.5>'} ],
	[ 'tsvector', q{to_tsvector('english', 'The quick brown foxes jumped')}, q{'a:1A,2B b'}, q{''} ],
	[ 'tsquery', q{'a & !(b | c:*AB) <2> d'}, q{''} ],
	[ 'pg_lsn', q{'0/0'}, q{'FFFFFFFF/FFFFFFFF'} ],
	[ 'oid', '0', '4294967295' ],
	[ 'xid', q{'4294967295'} ],
	[ 'xid8', q{'18446744073709551615'} ],
	[ 'cid', q{'7'} ],
	[ 'tid', q{'(1,2)'} ],
	[ 'pg_snapshot', q{'10:20:10,14,15'} ],
	[ 'txid_snapshot', q{'10:20:10,14,15'} ],
	[ 'oidvector', q{'1 2 3'} ],
	[ 'int2vector', q{'1 2 3'} ],
	[ 'refcursor', q{'cur'} ],
	[ 'regclass', q{'pg_class'} ],
	[ 'regtype', q{'integer'}, q{'numeric[]'} ],
	[ 'regproc', q{'pg_backend_pid'} ],
	[ 'regprocedure', q{'abs(integer)'} ],
	[ 'regoper', q{'||/'} ],
	[ 'regoperator', q{'+(integer,integer)'} ],
	[ 'regrole', q{'pg_monitor'} ],
	[ 'regnamespace', q{'pg_catalog'} ],
	[ 'regconfig', q{'english'} ],
	[ 'regdictionary', q{'simple'} ],
	[ 'regcollation', q{'"C"'} ],
	[ 'aclitem', q{'=r/pg_monitor'} ],
	[ 'int4range', q{'empty'}, q{'[1,5)'}, q{'(,)'}, q{'[3,)'} ],
	[ 'int8range', q{'[1,9223372036854775806]'} ],
	[ 'numrange', q{'(1.50,2.0]'} ],
	[ 'tsrange', q{'[2020-01-01,infinity)'} ],
	[ 'tstzrange', q{'(-infinity,2020-01-01 00:00+00]'} ],
	[ 'daterange', q{'[2020-01-01,2020-02-01)'} ],
	[ 'int4multirange', q{'{}'}, q{'{[1,3),[5,7)}'} ],
	[ 'nummultirange', q{'{(,1),[2.5,3.5]}'} ],
	[ 'tstzmultirange', q{'{[2020-01-01 00:00+00,2020-01-02 00:00+00)}'} ],
	[ 'datemultirange', q{'{[2020-01-01,2020-02-01)}'} ],
	[ 'textrange', q{'["a b","c\\"d")'} ],
	[ 'moodrange', q{'[sad,ok]'} ],
	[ 'textmultirange', q{'{[a,b),[c,d)}'} ],
	[ 'mood', q{'sad'}, q{'happy ''quoted'''} ],
	[ 'posint', '1' ],
	[ 'moods', q{'{sad,NULL,ok}'} ],
	[ 'pair', q{ROW(1, 'x,"y)', 'ok', '{1.5,NULL}')}, q{ROW(NULL, NULL, NULL, NULL)}, q{ROW(1, '', 'sad', '{}')} ],
	[ 'nested', q{ROW(ROW(1, 'b', 'ok', NULL), ARRAY[ROW(2, 'c', 'sad', '{1}')::pair, NULL], '[1,2)')} ],
	[ 'integer[]', q{'{}'}, q{'{1,NULL,-3}'}, q{'[2:3][-1:0]={{1,2},{3,4}}'}, q{array_fill(7, ARRAY[2,3,4])} ],
	[ 'text[]', q{'{}'}, q~ARRAY['', 'NULL', NULL, 'a,b', '{"', E'\\\\']~ ],
	[ 'bytea[]', q{ARRAY['\\x00'::bytea, '\\xff']} ],
	[ 'numeric(8,2)[]', q{'{1.50,NaN,-999999.99}'} ],
	[ 'boolean[]', q{'{t,f,NULL}'} ],
	[ 'timestamptz[]', q{ARRAY['infinity'::timestamptz, '2020-01-01 00:00+00']} ],
	[ 'uuid[]', q{ARRAY['00000000-0000-0000-0000-000000000001'::uuid]} ],
	[ 'jsonb[]', q{ARRAY['{"a": 1}'::jsonb, 'null', NULL]} ],
	[ 'inet[]', q{ARRAY['10.0.0.1/24'::inet, '::1']} ],
	[ 'box[]', q{'{(1,1),(0,0);(2,2),(1,1)}'} ],
	[ 'interval[]', q{ARRAY['1 day'::interval, NULL]} ],
	[ 'mood[]', q{'{sad,NULL,"happy ''quoted''"}'} ],
	[ 'posint[]', q{'{1,2}'} ],
	[ 'pair[]', q{ARRAY[ROW(1, 'x', 'ok', '{1}')::pair, NULL]} ],
	[ 'int4range[]', q{ARRAY['[1,2)'::int4range, 'empty']} ],
	[ 'regclass[]', q{ARRAY['pg_class'::regclass]} ],
	[ 'varchar(5)[]', q{'{abc,NULL}'} ],
	[ 'char(4)[]', q{'{abc,d}'} ],
	[ 'textrange[]', q{ARRAY['[a,b)'::textrange]} ],
);
push @types, [ 'hstore', q{'a=>1, b=>NULL, "c d"=>"e\\"f"'}, q{''} ], [ 'hstore[]', q{ARRAY['a=>1'::hstore]} ]
  if $have{hstore};
push @types, [ 'citext', q{'MiXed'} ], [ 'citext[]', q{ARRAY['MiXed'::citext]} ] if $have{citext};
push @types, [ 'ltree', q{'a.b.c'} ] if $have{ltree};

# One table per type, so that one type's failure shows only there; rows 1..n
# are loaded, rows 1001..1000+n come by WAL.
my (@tables, $ddl, $load, $cdc);
$ddl = $load = $cdc = '';
foreach my $i (0 .. $#types)
{
	my ($type, @values) = @{ $types[$i] };
	my $table = sprintf 'ty_%03d', $i;
	push @tables, [ $table, $type, scalar @values ];
	$ddl .= "CREATE TABLE $table (id int PRIMARY KEY, v $type, fix int);\n";
	my $n = 0;
	foreach my $value ('NULL', @values)
	{
		$load .= sprintf "INSERT INTO %s VALUES (%d, (%s)::%s, 1);\n", $table, $n, $value, $type;
		$cdc .= sprintf "INSERT INTO %s VALUES (%d, (%s)::%s, 1);\n", $table, 1000 + $n, $value, $type;
		$n++;
	}
	$cdc .= "UPDATE $table SET v = (SELECT s.v FROM $table s WHERE s.id = 1) WHERE id = 0;\n";
	$cdc .= "UPDATE $table SET fix = 2 WHERE id = 1;\n";
	$cdc .= "UPDATE $table SET v = NULL WHERE id = 1001;\n";
}
$t->src('BEGIN;' . $ddl . 'COMMIT;');
$t->src('BEGIN;' . $load . 'COMMIT;');

# every type of pg_catalog is either in the list or of a kind that no table has
my $listed = join ',', map { "'" . $_->[0] . "'::regtype" } grep { $_->[0] !~ /\(/ } @types;
my $missing = $t->src(<<"EOS");
SELECT string_agg(t.oid::regtype::text, ', ' ORDER BY t.oid) FROM pg_type t
WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'r', 'm') AND t.typcategory NOT IN ('A', 'P', 'Z')
	AND t.typname NOT IN ('bpchar', 'varchar', 'bit')
	AND t.typname NOT IN ('int2vector', 'oidvector', 'gtsvector', 'pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list', 'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary', 'unknown', 'cstring')
	AND t.typrelid = 0 AND t.oid NOT IN ($listed)
EOS
is($missing, 'tsmultirange, int8multirange', 'built-in types that the list leaves to their siblings');

$t->create_mirror('types', [ map { "public.$_->[0]" } @tables ]);
$t->wait_status('types', 'running') or exit 1;
foreach my $x (@tables)
{
	$t->same($x->[0], "loaded: $x->[1]");
}
$t->src('BEGIN;' . $cdc . 'COMMIT;');
$t->sync('types');
foreach my $x (@tables)
{
	my ($table, $type, $n) = @$x;
	$t->same($table, "changes: $type");
}

# rule 1: a row loaded and a row that came by WAL are stored alike
my $checks = join ' UNION ALL ',
  map { "SELECT '$_->[1]' FROM $_->[0] a JOIN $_->[0] b ON b.id = a.id + 1000 WHERE a.id > 1 AND a.v::text IS DISTINCT FROM b.v::text" } @tables;
is($t->dst($checks), '', 'loaded and changed rows are the same text at the destination');
my $types = join ' UNION ALL ',
  map { "SELECT '$_->[0]', (SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = '$_->[0]'::regclass AND attname = 'v')" } @tables;
my @source_types = split /\n/, $t->src($types);
my @dest_types = split /\n/, $t->dst($types);
# what a reg* value names need not be there: these are kept as text; a domain becomes its base type
my %base = split /\n/, $t->src(<<'EOS');
SELECT t.oid::regtype || E'\n' || coalesce(format_type((SELECT typarray FROM pg_type b WHERE b.oid = e.typbasetype), NULL), format_type(t.typbasetype, t.typtypmod))
FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typtype = 'd'
WHERE (t.typtype = 'd' OR e.typtype = 'd') AND t.typnamespace = 'public'::regnamespace
EOS
sub based { my ($n, $type) = split /\|/, $_[0], 2; return "$n|" . ($base{$type} // $type); }
is(join("\n", map { $dest_types[$_] } grep { $dest_types[$_] ne based($source_types[$_]) && !($source_types[$_] =~ /\|reg/ && $dest_types[$_] =~ /\|text/) } 0 .. $#source_types), '',
	'the columns have the same types');

# every type as a key
my @keyed = grep { $_->[1] !~ /^(json|xml|point|line|lseg|box|path|polygon|circle|jsonpath|aclitem|refcursor|xid|cid|pg_snapshot|txid_snapshot|box\[\])$/ } @tables;
my @keys;
foreach my $x (@keyed)
{
	my ($status) = $t->try("CREATE TABLE key_$x->[0] (v $x->[1] PRIMARY KEY, n int); INSERT INTO key_$x->[0] SELECT v, min(id) FROM $x->[0] WHERE v IS NOT NULL AND length(v::text) < 1000 GROUP BY v");
	if ($status == 0) { push @keys, $x; }
	else { $t->try("DROP TABLE IF EXISTS key_$x->[0]"); }
}
cmp_ok(scalar(@keys), '>', 60, 'most types can be a key');
$t->create_mirror('keys', [ map { "public.key_$_->[0]" } @keys ], { soft_delete => 'false' });
$t->wait_status('keys', 'running');
$t->src(join '', 'BEGIN;', (map { "UPDATE key_$_->[0] SET n = n + 1; DELETE FROM key_$_->[0] WHERE n = (SELECT min(n) FROM key_$_->[0]);" } @keys), 'COMMIT;');
$t->sync('keys');
$t->same("key_$_->[0]", "as key: $_->[1]", soft_delete => undef) foreach @keys;

# stored generated columns, dropped columns, defaults, identity, collations
$t->src(<<'EOS');
CREATE TABLE wide (gone1 int, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, gone2 text,
	a int DEFAULT 5, g int GENERATED ALWAYS AS (a * 2) STORED, c text COLLATE "C" NOT NULL DEFAULT 'x');
ALTER TABLE wide DROP COLUMN gone1, DROP COLUMN gone2;
INSERT INTO wide (a) SELECT i FROM generate_series(1, 100) i;
ALTER TABLE wide ADD COLUMN added int DEFAULT 42;
EOS
$t->create_mirror('wide', ['public.wide']);
$t->wait_status('wide', 'running');
$t->src('UPDATE wide SET a = a + 1 WHERE id < 50; INSERT INTO wide (a) VALUES (1000)');
$t->sync('wide');
$t->same('wide', 'generated, dropped and fast-default columns');

# what has no input function is refused before anything happens
$t->src('CREATE TABLE noinput (id int PRIMARY KEY, v pg_node_tree)');
my ($status, $out, $err) = $t->try("SELECT peerdb_create_mirror('noinput', 'dest', '[\"public.noinput\"]')");
if ($status == 0)
{
	$t->until_true("SELECT outcome IN ('refused', 'failed') FROM peerdb.runs WHERE mirror = 'noinput'", 'a type without input is refused');
}
else
{
	like($err, qr/pg_node_tree/, 'a type without input is refused');
}

$t->drop_all;
done_testing();
