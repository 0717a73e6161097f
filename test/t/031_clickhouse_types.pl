# Every type at ClickHouse: its type there, and that the row which was loaded,
# the row that came by WAL and the row at the source are the same text.  What
# does not fit is an error, or the nearest value that does.  Rule 1.
use strict;
use warnings;

use ResyncClickHouse;
use Test::More;

my $t = ResyncClickHouse->new;

$t->src(<<'EOS');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy "quoted"');
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE DOMAIN price AS numeric(10,2);
CREATE DOMAIN moods AS mood[];
CREATE TYPE pair AS (a int, b text, m mood, n numeric[]);
CREATE TYPE textrange AS RANGE (subtype = text);
EOS
my %have;
foreach my $extension (qw(hstore citext ltree vector))
{
	$have{$extension} = $t->src("SELECT count(*) FROM pg_available_extensions WHERE name = '$extension'");
	$t->src("CREATE EXTENSION $extension") if $have{$extension};
}

# What the source's value must look like at ClickHouse, as SQL on v.
my $bool = "CASE v WHEN true THEN 'true' WHEN false THEN 'false' END";
my $micros = "to_char(v, 'YYYY-MM-DD HH24:MI:SS.US')";
my $float = "replace(replace(replace(v::text, 'Infinity', 'inf'), 'NaN', 'nan'), 'e+', 'e')";
my $hex = "encode(v, 'hex')";
my $wide = 'round(v, 38)';
# arrays: ClickHouse has no NULL for them
my $list = "coalesce('[' || array_to_string(v, ',', 'NULL') || ']', '[]')";
my $quoted = q{coalesce('[' || array_to_string(ARRAY(SELECT coalesce('''' || e::text || '''', 'NULL') FROM unnest(v) WITH ORDINALITY u(e, i) ORDER BY i), ',') || ']', '[]')};

my $nines = '9' x 38;
# [ type, type at ClickHouse (where nullable), { options }, values (SQL) ]; src: what is expected, as
# SQL on v; ch: what it is compared with.
my @types = (
	[ 'boolean', 'Nullable(Bool)', { src => $bool }, 'true', 'false' ],
	[ '"char"', 'Nullable(FixedString(1))', { src => "CASE v WHEN '' THEN '00' ELSE encode(v::text::bytea, 'hex') END", ch => 'lower(hex(v))' }, q{'a'}, q{''} ],
	[ 'smallint', 'Nullable(Int16)', {}, '-32768', '32767', '0' ],
	[ 'integer', 'Nullable(Int32)', {}, '-2147483648', '2147483647' ],
	[ 'bigint', 'Nullable(Int64)', {}, '-9223372036854775808', '9223372036854775807' ],
	[ 'real', 'Nullable(Float32)', { src => $float }, q{'NaN'}, q{'Infinity'}, q{'-Infinity'}, q{'-0'}, '1e-45', '3.4028235e38', '0.1' ],
	[ 'double precision', 'Nullable(Float64)', { src => $float }, q{'NaN'}, q{'Infinity'}, q{'-Infinity'}, q{'-0'}, '5e-324', '1.7976931348623157e308', '0.1' ],
	[ 'numeric(9,2)', 'Nullable(Decimal(9, 2))', {}, '0', '-9999999.99', '1.5', '0.01', '10000', '10000.01' ],
	[ 'numeric(12,3)', 'Nullable(Decimal(12, 3))', {}, '0', '-999999999.999', '1.5', '100000000' ],
	[ 'numeric(18,18)', 'Nullable(Decimal(18, 18))', {}, '0.999999999999999999', '-0.000000000000000001' ],
	[ 'numeric(19,0)', 'Nullable(Decimal(19, 0))', {}, '9999999999999999999', '-9999999999999999999' ],
	[ 'numeric(38,10)', 'Nullable(Decimal(38, 10))', {}, '9999999999999999999999999999.9999999999', '-0.0000000001' ],
	[ 'numeric(76,38)', 'Nullable(Decimal(76, 38))', {}, "$nines.$nines", "-$nines.$nines", '1e-38', '1e37' ],
	[ 'numeric(77,3)', 'Nullable(String)', {}, '1.5', '9' x 74 . '.125' ],
	[ 'numeric(3,-2)', 'Nullable(Decimal(5, 0))', {}, '12300', '-99900' ],
	[ 'numeric(2,5)', 'Nullable(Decimal(5, 5))', {}, '0.00012' ],
	[ 'numeric', 'Nullable(Decimal(76, 38))', { src => $wide }, '0', '0.00000', '-1.10', '10000', '1e37', '-0.0001', "$nines.$nines", '123456789012345678901234567890.12345678901234567890123456789' ],
	[ 'price', 'Nullable(Decimal(10, 2))', {}, '12.50' ],
	[ 'money', 'Nullable(String)', {}, q{'-92233720368547758.08'}, q{'1234.56'} ],
	[ 'text', 'Nullable(String)', {}, q{''}, q{E'tab\tnewline\nback\\\\slash'}, q{'\\N'}, q{'NULL'}, q{'ä€𝄞'}, q{repeat('long ', 30000)}, map { "repeat('x', $_)" } 126 .. 129, 16383 .. 16385 ],
	[ 'varchar(10)', 'Nullable(String)', {}, q{'abc'}, q{'ends  '} ],
	[ 'char(6)', 'Nullable(String)', { src => 'rpad(v, 6)' }, q{'abc'}, q{''} ],
	[ 'name', 'Nullable(String)', {}, q{'a_name'}, q{repeat('x', 63)} ],
	[ 'bytea', 'Nullable(String)', { src => $hex, ch => 'lower(hex(v))' }, q{''}, q{'\\x00ff5c27'}, q{decode(repeat('00ff', 20000), 'hex')} ],
	[ 'bit(5)', 'Nullable(String)', {}, q{B'10101'} ],
	[ 'bit varying', 'Nullable(String)', {}, q{B''}, q{B'101010101'} ],
	[ 'date', 'Nullable(Date32)', {}, q{'1900-01-01'}, q{'1969-12-31'}, q{'1970-01-01'}, q{'2024-02-29'}, q{'2299-12-31'} ],
	[ 'time', 'Nullable(DateTime64(6))', { src => "to_char('1970-01-01'::timestamp + v::interval, 'YYYY-MM-DD HH24:MI:SS.US')" }, q{'00:00'}, q{'24:00'}, q{'23:59:59.999999'} ],
	[ 'timetz', 'Nullable(String)', {}, q{'00:00+15:59'}, q{'24:00-15:59'} ],
	[ 'timestamp', 'Nullable(DateTime64(6))', { src => $micros }, q{'0001-01-01'}, q{'1899-12-31 23:59:59.999999'}, q{'1969-12-31 23:59:59.999999'}, q{'1999-12-31 23:59:59.000001'}, q{'9999-12-31 23:59:59.999999'} ],
	[ 'timestamptz', 'Nullable(DateTime64(6))', { src => $micros }, q{'2000-01-01 00:00:00.000001+13'}, q{'1900-01-01 00:00+00'}, q{'2300-01-01 00:00+00'} ],
	[ 'interval', 'Nullable(String)', {}, q{'1 year -2 mons +3 days -04:05:06.789'}, q{'0'}, q{'-178000000 years'} ],
	[ 'uuid', 'Nullable(UUID)', {}, q{'00000000-0000-0000-0000-000000000000'}, q{'ffffffff-ffff-ffff-ffff-ffffffffffff'}, q{'01234567-89ab-cdef-0123-456789abcdef'} ],
	[ 'json', 'Nullable(String)', {}, q{'{"a" :  [1, 2.50, null],    "a": "dup"}'}, q{'null'}, q{'"\\u00e4"'}, q{E' [1,\n2]'} ],
	[ 'jsonb', 'Nullable(String)', {}, q{'{"a" :  [1, 2.50, null], "b": {"c": "\\"q"}}'}, q{'[]'}, q{'{}'}, q{'"text"'}, q{'null'}, q{'12345678901234567890.000'}, q{to_jsonb(E'\\x01\\b\\f\\n\\r\\t"\\\\ä' || repeat('y', 16380))}, q{(SELECT jsonb_object_agg('k' || i, i) FROM generate_series(1, 100) i)} ],
	[ 'jsonpath', 'Nullable(String)', {}, q{'$.a[*] ? (@ > 1)'} ],
	[ 'xml', 'Nullable(String)', {}, q{'<a b="1">x &amp; y<!-- c --></a>'} ],
	[ 'inet', 'Nullable(String)', { src => 'to_json(v) #>> $${}$$' }, q{'10.0.0.1'}, q{'10.0.0.0/8'}, q{'2001:db8::/32'} ],
	[ 'cidr', 'Nullable(String)', {}, q{'10.0.0.0/8'}, q{'::/0'} ],
	[ 'macaddr', 'Nullable(String)', {}, q{'08:00:2b:01:02:03'} ],
	[ 'macaddr8', 'Nullable(String)', {}, q{'08:00:2b:01:02:03:04:05'} ],
	[ 'point', 'Nullable(String)', {}, q{'(1.5,-2e300)'}, q{'(NaN,Infinity)'} ],
	[ 'line', 'Nullable(String)', {}, q{'{1,-1,0}'} ],
	[ 'lseg', 'Nullable(String)', {}, q{'[(0,0),(1,1)]'} ],
	[ 'box', 'Nullable(String)', {}, q{'((1,1),(0,0))'} ],
	[ 'path', 'Nullable(String)', {}, q{'[(0,0),(1,1),(2,0)]'} ],
	[ 'polygon', 'Nullable(String)', {}, q{'((0,0),(1,1),(2,0))'} ],
	[ 'circle', 'Nullable(String)', {}, q{'<(1,2),3.5>'} ],
	[ 'tsvector', 'Nullable(String)', {}, q{to_tsvector('english', 'The quick brown foxes jumped')}, q{'a:1A,2B b'}, q{''} ],
	[ 'tsquery', 'Nullable(String)', {}, q{'a & !(b | c:*AB) <2> d'} ],
	[ 'oid', 'Nullable(String)', {}, '0', '4294967295' ],
	[ 'pg_lsn', 'Nullable(String)', {}, q{'FFFFFFFF/FFFFFFFF'} ],
	[ 'xid', 'Nullable(String)', {}, q{'4294967295'} ],
	[ 'txid_snapshot', 'Nullable(String)', {}, q{'10:20:10,14,15'} ],
	[ 'tid', 'Nullable(String)', {}, q{'(1,2)'} ],
	[ 'int2vector', 'Nullable(String)', {}, q{'1 2 3'} ],
	[ 'regclass', 'Nullable(String)', {}, q{'pg_class'} ],
	[ 'int4range', 'Nullable(String)', {}, q{'empty'}, q{'[1,5)'}, q{'(,)'} ],
	[ 'tstzrange', 'Nullable(String)', {}, q{'(-infinity,2020-01-01 00:00+00]'} ],
	[ 'nummultirange', 'Nullable(String)', {}, q{'{(,1),[2.5,3.5]}'} ],
	[ 'textrange', 'Nullable(String)', {}, q{'["a b","c\\"d")'} ],
	[ 'mood', 'LowCardinality(Nullable(String))', {}, q{'sad'}, q{'happy "quoted"'} ],
	[ 'posint', 'Nullable(Int32)', {}, '1' ],
	[ 'pair', 'Nullable(String)', {}, q{ROW(1, 'x,"y)', 'ok', '{1.5,NULL}')}, q{ROW(NULL, NULL, NULL, NULL)} ],
	[ 'integer[]', 'Array(Nullable(Int32))', { src => $list }, q{'{}'}, q{'{1,NULL,-3}'} ],
	[ 'bigint[]', 'Array(Nullable(Int64))', { src => $list }, q{ARRAY(SELECT generate_series(1, 20000))} ],
	[ 'text[]', 'Array(Nullable(String))', { src => $quoted }, q{'{}'}, q~ARRAY['', 'NULL', NULL, 'a,b', repeat('y', 20000)]~ ],
	[ 'moods', 'Array(LowCardinality(Nullable(String)))', { src => $quoted }, q{'{sad,NULL,ok}'} ],
	[ 'numeric(8,2)[]', 'Array(Nullable(Decimal(8, 2)))', { src => $list }, q{'{1.50,NULL,-999999.99}'} ],
	[ 'boolean[]', 'Array(Nullable(Bool))', { src => "replace(replace($list, 't', 'true'), 'f', 'false')" }, q{'{t,f,NULL}'} ],
	[ 'uuid[]', 'Array(Nullable(UUID))', { src => $quoted }, q{'{00000000-0000-0000-0000-000000000001}'} ],
	[ 'date[]', 'Array(Nullable(Date32))', { src => $quoted }, q{'{1900-01-01,NULL,2299-12-31}'} ],
	[ 'jsonb[]', 'Array(Nullable(String))', { src => $quoted }, q{ARRAY['{"a": 1}'::jsonb, 'null', NULL]} ],
	[ 'pair[]', 'Array(Nullable(String))', { src => q{CASE WHEN v IS NULL THEN '[]' ELSE '[''(1,x,ok,{1})'',NULL]' END} }, q{ARRAY[ROW(1, 'x', 'ok', '{1}')::pair, NULL]} ],
	[ 'int4range[]', 'Array(Nullable(String))', { src => $quoted }, q{ARRAY['[1,2)'::int4range, 'empty']} ],
	[ 'bytea[]', 'Array(Nullable(String))', { src => q{CASE WHEN v IS NULL THEN '[]' ELSE '[''00'',''ff'']' END}, ch => 'arrayMap(x -> lower(hex(x)), v)' }, q{ARRAY['\\x00'::bytea, '\\xff']} ],
);
push @types, [ 'hstore', 'Nullable(String)', { src => 'hstore_to_json(v)' }, q{'a=>1, b=>NULL, "c d"=>"e\\"f"'}, q{''} ]
  if $have{hstore};
push @types, [ 'citext', 'Nullable(String)', {}, q{'MiXed'} ] if $have{citext};
push @types, [ 'ltree', 'Nullable(String)', {}, q{'a.b.c'} ] if $have{ltree};
push @types, [ 'vector', 'Array(Float32)', { src => q{coalesce(v::text, '[]')} }, q{'[1,2.5,-3]'} ] if $have{vector};

# One table per type, so that one type's failure shows only there; rows 1..n
# are loaded, rows 1001..1000+n come by WAL.
my ($ddl, $load, $cdc) = ('', '', '');
my @tables;
foreach my $i (0 .. $#types)
{
	my ($type, undef, undef, @values) = @{ $types[$i] };
	my $table = sprintf 'ty_%03d', $i;
	my $n = 0;

	push @tables, $table;
	$ddl .= "CREATE TABLE $table (id int PRIMARY KEY, v $type, fix int);\n";
	foreach my $value ('NULL', @values)
	{
		$load .= "INSERT INTO $table VALUES ($n, ($value)::$type, 1);\n";
		$cdc .= "INSERT INTO $table VALUES (1000 + $n, ($value)::$type, 1);\n";
		$n++;
	}
	$cdc .= "UPDATE $table SET v = (SELECT s.v FROM $table s WHERE s.id = 1) WHERE id = 0;\n";
	$cdc .= "UPDATE $table SET fix = 2 WHERE id = 1;\n";
	$cdc .= "UPDATE $table SET v = NULL WHERE id = 1001;\n";
}
$t->src("BEGIN; $ddl COMMIT;");
$t->src("BEGIN; $load COMMIT;");
$t->create_mirror('types', [ map { "public.$_" } @tables ], { sync_interval => 0.1 });
$t->wait_status('types', 'running') or exit 1;

sub same_types
{
	my ($what) = @_;
	foreach my $i (0 .. $#types)
	{
		my ($type, undef, $o) = @{ $types[$i] };
		$t->same_ch($tables[$i], "$what: $type",
			columns => [ 'id', 'fix', '(' . ($o->{src} // 'v') . ')' ],
			ch_columns => [ 'id', 'fix', $o->{ch} // 'v' ]);
	}
	return;
}
same_types('loaded');
is_deeply(
	[ split /\n/, $t->ch("SELECT table, type FROM system.columns WHERE database = 'd' AND name = 'v' AND table LIKE 'ty\\_%' ORDER BY table FORMAT TSV") ],
	[ map { "$tables[$_]\t$types[$_][1]" } 0 .. $#types ], 'types at ClickHouse');
$t->src("BEGIN; $cdc COMMIT;");
$t->sync('types');
same_types('changes');
is($t->ch(join(' UNION ALL ', map { "SELECT '$types[$_][0]' FROM $tables[$_] a FINAL JOIN $tables[$_] b FINAL ON b.id = a.id + 1000 WHERE a.id > 1 AND hex(toString(a.v)) IS DISTINCT FROM hex(toString(b.v))" } 0 .. $#types)),
	'', 'loaded and changed rows are the same at ClickHouse');
$t->src("SELECT peerdb_drop_mirror('types')");

# ---- NOT NULL at the source is not Nullable there
$t->src(<<'EOS');
CREATE TABLE nn (id bigint PRIMARY KEY, a int NOT NULL, b text NOT NULL, c mood NOT NULL, d timestamptz NOT NULL, e int[] NOT NULL, f text);
INSERT INTO nn VALUES (1, 1, 'b', 'ok', '2024-01-01', '{1}', 'f');
EOS
$t->create_mirror('nn', ['public.nn'], { sync_interval => 0.1 });
$t->wait_status('nn', 'running');
is($t->ch("SELECT groupConcat(', ')(type) FROM (SELECT type FROM system.columns WHERE database = 'd' AND table = 'nn' AND name NOT LIKE '\\_peerdb%' ORDER BY position)"),
	'Int64, Int32, String, LowCardinality(String), DateTime64(6), Array(Nullable(Int32)), Nullable(String)', 'NOT NULL columns are not Nullable');
$t->src("DELETE FROM nn; INSERT INTO nn VALUES (2, 2, '', 'sad', '2024-01-01', '{}', NULL)");
$t->sync('nn');
is($t->ch('SELECT id, a, b, d, e, _peerdb_is_deleted FROM nn WHERE _peerdb_version > 0 ORDER BY id FORMAT TSV'),
	"1\t0\t\t1970-01-01 00:00:00.000000\t[]\t1\n2\t2\t\t2024-01-01 00:00:00.000000\t[]\t0", 'a deleted row has defaults where it has no values');
$t->src('ALTER TABLE nn ALTER a DROP NOT NULL');
$t->src("INSERT INTO nn VALUES (3, NULL, '', 'sad', '2024-01-01', '{}', NULL)");
$t->until_failed('nn', qr/column "a" of table "public.nn" has a NULL/, 'NULL in a column that is not Nullable');
$t->src("SELECT peerdb_drop_mirror('nn')");

# ---- what does not fit: an error that names table and column, not the value
my @unfit = (
	[ 'date', q{'infinity'} ], [ 'date', q{'-infinity'} ], [ 'date', q{'1899-12-31'} ], [ 'date', q{'0044-03-15 BC'} ],
	[ 'timestamp', q{'infinity'} ], [ 'timestamp', q{'0044-03-15 12:00 BC'} ], [ 'timestamptz', q{'10000-01-01 00:00+00'} ],
	[ 'numeric', q{'NaN'} ], [ 'numeric', q{'Infinity'} ], [ 'numeric', '1e38' ], [ 'numeric', '1e-39' ], [ 'numeric(10,2)', q{'NaN'} ],
	[ 'int[]', q{'{{1,2},{3,4}}'} ], [ 'int[]', q{'[0:1]={1,2}'} ], [ 'numeric[]', q{'{1,NaN}'} ],
);
foreach my $i (0 .. $#unfit)
{
	my ($type, $value) = @{ $unfit[$i] };
	my $why = $type =~ /^int/ ? qr/is an array of other dimensions or bounds/ : qr/is out of the range of its type there/;

	# one by the load, one by WAL, in turns
	$t->src("CREATE TABLE unfit_$i (id int PRIMARY KEY, odd $type)");
	$t->src("INSERT INTO unfit_$i VALUES (4711, $value)") if $i % 2 == 0;
	$t->create_mirror("unfit_$i", ["public.unfit_$i"], { sync_interval => 0.1 });
	if ($i % 2)
	{
		$t->wait_status("unfit_$i", 'running');
		$t->src("INSERT INTO unfit_$i VALUES (4711, $value)");
	}
	$t->until_failed("unfit_$i", qr/^(?!.*4711).*a value of column "odd" of table "public\.unfit_$i" $why/s, "$type $value, " . ($i % 2 ? 'change' : 'load'));
	$t->src("SELECT peerdb_drop_mirror('unfit_$i')");
}

# ---- or the nearest value that fits, the same by load and by WAL
my $clamp_values = <<'EOS';
('infinity', 'infinity', 'infinity', 'NaN', 'NaN', 'Infinity', '{{1,NULL},{3,4}}', '{infinity,NULL}'),
('-infinity', '-infinity', '-infinity', '-Infinity', '-99999999.99', '-1e100', '[0:1]={1,2}', '{0001-01-01 BC}'),
('0044-03-15 BC', '0044-03-15 12:00 BC', '294276-12-31 23:59+00', '1e38', '0.5', '5e-39', '{}', '{}'),
('2024-01-01', '2024-01-01 01:02:03.456', '2024-01-01 00:00+00', '1e-39', '1.25', '-5e-39', '{1}', '{2024-01-01}')
EOS
$t->src(<<"EOS");
CREATE TABLE cl (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, d date, ts timestamp, tz timestamptz, n numeric, n2 numeric(10,2), n3 numeric NOT NULL, a int[], da date[]);
CREATE FUNCTION fill() RETURNS void LANGUAGE sql AS \$\$INSERT INTO cl (d, ts, tz, n, n2, n3, a, da) VALUES $clamp_values\$\$;
SELECT fill();
EOS
$t->create_mirror('cl', ['public.cl'], { out_of_range => 'clamp', sync_interval => 0.1 });
$t->wait_status('cl', 'running');
$t->src('SELECT fill()');
$t->sync('cl');
my @clamped = (
	"2299-12-31\t9999-12-31 23:59:59.999999\t9999-12-31 23:59:59.999999\t\\N\t\\N\t$nines.$nines\t[1,NULL,3,4]\t['2299-12-31',NULL]",
	"1900-01-01\t0001-01-01 00:00:00.000000\t0001-01-01 00:00:00.000000\t-$nines.$nines\t-99999999.99\t-$nines.$nines\t[1,2]\t['1900-01-01']",
	"1900-01-01\t0001-01-01 00:00:00.000000\t9999-12-31 23:59:59.999999\t$nines.$nines\t0.50\t0." . '0' x 37 . "1\t[]\t[]",
	"2024-01-01\t2024-01-01 01:02:03.456000\t2024-01-01 00:00:00.000000\t0." . '0' x 38 . "\t1.25\t-0." . '0' x 37 . "1\t[1]\t['2024-01-01']");
is($t->ch('SELECT d, ts, tz, n, n2, n3, a, da FROM cl FINAL ORDER BY id FORMAT TSV'), join("\n", @clamped, @clamped), 'clamped, by the load and by WAL');
$t->src("INSERT INTO cl (n3) VALUES ('NaN'); ALTER TABLE cl ALTER n3 DROP NOT NULL");
$t->src('INSERT INTO cl (n3) VALUES (NULL)');
$t->sync('cl');
is($t->ch('SELECT DISTINCT toString(n3) FROM cl FINAL WHERE id > 8'), '0', 'NaN and NULL where there can be no NULL');
$t->src("SELECT peerdb_drop_mirror('cl')");

# ---- numeric without precision, as text
$t->src(<<'EOS');
CREATE TABLE un (id int PRIMARY KEY, n numeric, a numeric[], p numeric(5,2));
INSERT INTO un VALUES (1, 'NaN', '{NaN,NULL}', 1), (2, '-Infinity', '{}', 2), (3, '1e1000', '{1.50}', 3), (4, 0.00000, NULL, NULL);
EOS
$t->create_mirror('un', ['public.un'], { unbounded_numeric => 'string', sync_interval => 0.1 });
$t->wait_status('un', 'running');
$t->src("INSERT INTO un SELECT id + 10, n, a, p FROM un; INSERT INTO un VALUES (20, '1e-16383', '{-0.10}', 1)");
$t->sync('un');
$t->same_ch('un', 'numeric as String', columns => [ 'id', 'n', "(replace(replace($quoted, '[', '{'), ']', '}'))" =~ s/unnest\(v\)/unnest(a)/r, 'p' ],
	ch_columns => [ 'id', 'n', "replaceAll(replaceAll(toString(a), '[', '{'), ']', '}')", 'p' ]);
is($t->ch("SELECT groupConcat(', ')(type) FROM (SELECT type FROM system.columns WHERE database = 'd' AND table = 'un' AND name IN ('n', 'a', 'p') ORDER BY position)"),
	'Nullable(String), Array(Nullable(String)), Nullable(Decimal(5, 2))', 'only numeric without precision');
$t->src("SELECT peerdb_drop_mirror('un')");

# ---- types chosen in the mapping
my @chosen = (
	# column, source's type, chosen, value, src
	[ 'i64', 'int', 'Int64', '-5' ],
	[ 'u8', 'bigint', 'UInt8', '255' ],
	[ 'i256', 'bigint', 'Int256', '-9223372036854775808' ],
	[ 'idec', 'int', 'Decimal(12, 2)', '7', q{'7.00'} ],
	[ 'nint', 'numeric(20,4)', 'Int64', '1.5', q{'2'} ],
	[ 'u256', 'numeric', 'UInt256', '115792089237316195423570985008687907853269984665640564039457584007913129639935' ],
	[ 'ndec', 'numeric', 'Decimal(9, 2)', '1.005', q{'1.01'} ],
	[ 'nf', 'numeric', 'Float64', '0.1' ],
	[ 'nstr', 'numeric(10,2)', 'String', '1.50' ],
	[ 'f32', 'float8', 'Float32', '0.5' ],
	[ 'ms', 'timestamptz', 'DateTime64(3)', q{'2024-01-01 00:00:00.123456+00'}, q{'2024-01-01 00:00:00.123'} ],
	[ 'neg', 'timestamp', 'DateTime64(0)', q{'1969-12-31 23:59:59.5'}, q{'1969-12-31 23:59:59'} ],
	[ 'ns', 'timestamp', "DateTime64(9, 'UTC')", q{'2024-01-01 00:00:00.123456'}, q{'2024-01-01 00:00:00.123456000'} ],
	[ 'sec', 'timestamptz', "DateTime('UTC')", q{'2024-01-01 00:00:00.9+00'}, q{'2024-01-01 00:00:00'} ],
	[ 'd16', 'date', 'Date', q{'2024-01-01'} ],
	[ 'low', 'text', 'LowCardinality(String)', q{'x'} ],
	[ 'fix', 'text', 'FixedString(3)', q{'abc'} ],
	[ 'en', 'mood', "Enum8('sad' = 1, 'ok' = 2)", q{'ok'} ],
	[ 'js', 'jsonb', 'JSON', q{'{"a": 1}'}, q{'{"a":1}'} ],
	[ 'ip', 'inet', 'IPv4', q{'10.0.0.1'}, q{'10.0.0.1'} ],
	[ 'ip6', 'inet', 'IPv6', q{'2001:db8::1'}, q{'2001:db8::1'} ],
	[ 'nested', 'int[]', 'Array(Array(Nullable(Int32)))', q{'{{1,2},{3,NULL}}'}, q{'[[1,2],[3,NULL]]'} ],
	[ 'atext', 'int[]', 'String', q{'{{1,2},{3,4}}'} ],
	[ 'plain', 'bigint[]', 'Array(Int64)', q{'{1,2}'}, q{'[1,2]'} ],
	[ 'flag', 'boolean', 'UInt8', 'true', q{'1'} ],
	[ 'o', 'oid', 'UInt32', '4294967295' ],
	[ 'anydate', 'date', 'String', q{'infinity'} ],
	[ 'zeros', 'int', undef, 'NULL', q{'0'} ],
);
$t->src('CREATE TABLE ch (id int PRIMARY KEY, ' . join(', ', map { "$_->[0] $_->[1]" } @chosen) . ')');
my $values = join ', ', map { "$_->[3]" } @chosen;
$t->src("INSERT INTO ch VALUES (1, $values)");
my @columns = map { { source => $_->[0], defined $_->[2] ? (type => $_->[2]) : () } } @chosen;
$columns[-1] = { source => 'zeros', destination => 'renamed', nullable => \0 };
$t->create_mirror('ch', [ { from => 'public.ch', columns => \@columns } ], { out_of_range => 'clamp', sync_interval => 0.1 });
$t->wait_status('ch', 'running');
$t->src("INSERT INTO ch VALUES (2, $values)");
$t->src('INSERT INTO ch VALUES (3)');
$t->sync('ch');
my @names = map { $_->[0] eq 'zeros' ? 'renamed' : $_->[0] } @chosen;
$t->same_ch('ch', 'chosen types', where => 'id < 3', soft_delete => '_peerdb_is_deleted = 0 AND id < 3 AND 0',
	# (row 3 is NULL all over, which some types here have no place for)
	columns => [ 'id', map { '(' . ($_->[4] // "$_->[0]::text") . ')' } @chosen ],
	ch_columns => [ 'id', @names ]);
is($t->ch("SELECT groupConcat('; ')(type) FROM (SELECT type FROM system.columns WHERE database = 'd' AND table = 'ch' AND name != 'id' AND name NOT LIKE '\\_peerdb%' ORDER BY position) FORMAT TSVRaw"),
	join('; ', map { my $x = $_->[2] // 'Int32'; $x =~ /^Array|^Nullable/ || $_->[0] eq 'zeros' ? $x : $x =~ /^LowCardinality\((.*)\)$/ ? "LowCardinality(Nullable($1))" : "Nullable($x)" } @chosen),
	'they are the columns\' types');
$t->src("SELECT peerdb_drop_mirror('ch')");

# ---- keys of every kind: back from ClickHouse's bytes to the source's value,
# to look up a row whose large value is not in the change
my @keys = (
	[ 'boolean', 'true' ], [ 'smallint', '-1' ], [ 'integer', '-70000' ], [ 'bigint', '-9223372036854775808' ], [ 'oid', '4294967295' ],
	[ 'numeric', '-12.50' ], [ 'numeric(38,10)', '0.0000000001' ], [ 'numeric(5,2)', '-0.05' ], [ 'real', '0.1' ], [ 'double precision', q{'-Infinity'} ],
	[ 'text', q{'ä''"\\'} ], [ 'varchar(5)', q{'x'} ], [ 'char(5)', q{'x'} ], [ 'name', q{'n'} ], [ '"char"', q{'c'} ], [ 'bytea', q{'\\x00ff27'} ],
	[ 'uuid', q{'01234567-89ab-cdef-0123-456789abcdef'} ], [ 'date', q{'1900-01-01'} ], [ 'time', q{'24:00'} ], [ 'timetz', q{'12:00+05:30'} ],
	[ 'timestamp', q{'0001-01-01 00:00:00.000001'} ], [ 'timestamptz', q{'1969-12-31 23:59:59.999999+00'} ], [ 'interval', q{'1 mon -1 day 00:00:01.5'} ],
	[ 'inet', q{'10.0.0.0/8'} ], [ 'macaddr', q{'08:00:2b:01:02:03'} ], [ 'bit(3)', q{B'101'} ], [ 'money', q{'-12.34'} ], [ 'mood', q{'ok'} ],
	[ 'jsonb', q{'{"a": 1}'} ], [ 'int4range', q{'[1,5)'} ], [ 'integer[]', q{'{{1,2},{3,4}}'} ], [ 'pg_lsn', q{'1/2'} ], [ 'posint', '5' ], [ 'pair', q{ROW(1, 'b', 'ok', NULL)} ],
);
push @keys, [ 'citext', q{'MiXed'} ] if $have{citext};
push @keys, [ 'hstore', q{'a=>1'} ] if $have{hstore};
my @kt;
foreach my $i (0 .. $#keys)
{
	my $table = sprintf 'key_%02d', $i;
	push @kt, $table;
	$t->src("CREATE TABLE $table (k $keys[$i][0] PRIMARY KEY, n int, big text); ALTER TABLE $table ALTER big SET STORAGE EXTERNAL; INSERT INTO $table VALUES (($keys[$i][1])::$keys[$i][0], 1, repeat('large', 2000))");
}
$t->create_mirror('keys', [ map { "public.$_" } @kt ], { sync_interval => 0.1 });
$t->wait_status('keys', 'running') or exit 1;
# what ClickHouse has would be taken if the source did not find the row
$t->ch("ALTER TABLE $_ UPDATE big = 'not this' WHERE 1 SETTINGS mutations_sync = 2") foreach @kt;
$t->src(join '', map { "UPDATE $_ SET n = 2;" } @kt);
$t->sync('keys');
foreach my $i (0 .. $#keys)
{
	is($t->ch("SELECT count(), max(n), max(length(big)), max(_peerdb_version) > 0 FROM $kt[$i] FINAL"), "1\t2\t10000\t1", "key of type $keys[$i][0]");
}
$t->src(join '', map { "DELETE FROM $_;" } @kt);
$t->sync('keys');
is($t->ch(join(' UNION ALL ', map { "SELECT '$keys[$_][0]' FROM $kt[$_] FINAL" } 0 .. $#keys)), '', 'deletes find their rows by it');
$t->src("SELECT peerdb_drop_mirror('keys')");

# ---- choices that make no sense are refused before anything happens
$t->src('CREATE TABLE no (id numeric PRIMARY KEY, i int, tx text, j jsonb, ts timestamptz, a int[])');
my $refused = 0;
foreach my $case (
	[ 'i', 'Foo', '22023', 'is not a ClickHouse type' ],
	[ 'tx', "Enum8('a'); DROP TABLE x", '22023', 'is not a ClickHouse type' ],
	[ 'i', 'Nullable(Array(Int32))', '22023', 'is not a ClickHouse type' ],
	[ 'i', 'LowCardinality(Int32)', '22023', 'is not a ClickHouse type' ],
	[ 'i', 'Decimal(77, 2)', '22023', 'is not a ClickHouse type' ],
	[ 'j', 'Int32', '42804', 'column "j" of type jsonb cannot be written as ClickHouse type Int32' ],
	[ 'tx', 'DateTime64(3)', '42804', 'cannot be written' ],
	[ 'ts', 'Date', '42804', 'cannot be written' ],
	[ 'a', 'Int32', '42804', 'cannot be written' ],
	[ 'id', 'Float64', '42804', 'key column "id" of type numeric cannot be written' ])
{
	my ($column, $type, $sqlstate, $pattern) = @$case;
	my $mapping = ResyncTest::jsonb([ { from => 'public.no', to => "no_" . ($refused + 1), columns => [ { source => $column, type => $type } ] } ]);
	my $mirror = 'no_' . ++$refused;
	$t->src("SELECT peerdb_create_mirror('$mirror', 'ch', $mapping)");
	$t->until_failed($mirror, qr/\Q$pattern\E/, "$column as $type");
	is($t->src("SELECT error_sqlstate FROM peerdb._run WHERE mirror_name = '$mirror' ORDER BY run DESC LIMIT 1"), $sqlstate, "its SQLSTATE");
	$t->src("SELECT peerdb_drop_mirror('$mirror')");
}

$t->no_leftovers;
done_testing();
