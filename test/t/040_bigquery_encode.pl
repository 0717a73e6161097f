# What lies under the BigQuery destination, without BigQuery: Avro files read
# back by an implementation that is not ours (fastavro from PyPI) and compared
# with PostgreSQL's values; tokens verified by openssl; JSON.  The modules are
# called through an extension that is built here (modules/resync_encode_test).
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $src = $ENV{RESYNC_SRC} // abs_path(dirname(__FILE__) . '/../..');
my $module = "$src/test/modules/resync_encode_test";
my $dir = PostgreSQL::Test::Utils::tempdir();

# ---------------------------------------------------------------- building
mkdir "$dir/build";
system("cp $module/* $dir/build/") == 0 or die 'cannot copy the module';
my $log = "$dir/build.log";
my $built = system("make -s -C $dir/build with_llvm=no RESYNC_SRC=$src all install"
	  . " </dev/null >$log 2>&1");
is($built, 0, 'the test extension is built against the sources')
  or BAIL_OUT(slurp_file($log));

my $node = PostgreSQL::Test::Cluster->new('encode');
$node->init(extra => [ '--locale=C.UTF-8', '--encoding=UTF8' ]);
$node->append_conf('postgresql.conf', "fsync = off\ntimezone = 'Asia/Kathmandu'\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION resync_encode_test');

sub sql { return $node->safe_psql($_[1] // 'postgres', $_[0]); }

# the error of a statement that must fail, with SQLSTATE, detail and hint
sub error_of
{
	my ($statement, $db) = @_;
	my ($status, $out, $err) = $node->psql($db // 'postgres', "\\set VERBOSITY verbose\n$statement");
	$err =~ s/^psql:.*?(ERROR)/$1/mg;
	return $err;
}

# ---------------------------------------------------------------- types
sql(<<'EOS');
CREATE TYPE mood AS ENUM ('sad', 'happy ''quoted''');
CREATE DOMAIN money2 AS numeric(12,2);
CREATE DOMAIN ints AS int[];
CREATE TYPE pair AS (a int, b text);
EOS
my %have;
foreach my $extension (qw(hstore citext))
{
	$have{$extension} = sql("SELECT count(*) FROM pg_available_extensions WHERE name = '$extension'");
	sql("CREATE EXTENSION $extension") if $have{$extension};
}

# What read_avro.py prints for a value of each type, as SQL on "v".
my %shown = (
	BOOL => q{left(v::text, 1)},
	INT64 => 'v::text',
	FLOAT64 => q{encode(float8send(v::float8), 'hex')},
	NUMERIC => 'trim_scale(v::numeric)::text',
	STRING => q{CASE WHEN v IS NOT NULL THEN encode(convert_to(format('%s', v), 'UTF8'), 'hex') END},
	BYTES => q{encode(v, 'hex')},
	JSON => q{encode(convert_to(v::text, 'UTF8'), 'hex')},
	DATE => q{to_char(v, 'YYYY-MM-DD')},
	DATETIME => q{to_char(v, 'YYYY-MM-DD HH24:MI:SS.US')},
	TIME => q{to_char(v, 'HH24:MI:SS.US')},
	TIMESTAMP => q{to_char(v AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"+00"')},
);
$shown{BIGNUMERIC} = $shown{NUMERIC};

# 2^255 - 1 and -2^255, times 10^-38
my $biggest = '578960446186580977117854925043439539266.34992332820282019728792003956564819967';
my $smallest = '-578960446186580977117854925043439539266.34992332820282019728792003956564819968';

# [ source type, type at BigQuery, values ]
my @types = (
	[ 'boolean', 'BOOL', 'true', 'false' ],
	[ 'smallint', 'INT64', '-32768', '32767', '0', '-1', '63', '64', '-64', '-65' ],
	[ 'integer', 'INT64', '-2147483648', '2147483647' ],
	[ 'bigint', 'INT64', '-9223372036854775808', '9223372036854775807' ],
	[ 'oid', 'STRING', '4294967295' ],
	[ 'real', 'FLOAT64', q{'NaN'}, q{'Infinity'}, q{'-Infinity'}, q{'-0'}, '1e-45', '3.4028235e38', '0.1' ],
	[ 'double precision', 'FLOAT64', q{'NaN'}, q{'-Infinity'}, q{'-0'}, q{'5e-324'}, '1.7976931348623157e308', '0.1' ],
	[ 'numeric(12,2)', 'NUMERIC(12, 2)', '0', '1.5', '-0.01', '9999999999.99', '-9999999999.99',
		'1.27', '1.28', '-1.28', '-1.29', '327.67', '327.68', '-327.68' ],
	[ 'numeric(18,0)', 'NUMERIC(18, 0)', '999999999999999999', '-999999999999999999' ],
	[ 'numeric(38,9)', 'NUMERIC(38, 9)', '99999999999999999999999999999.999999999',
		'-99999999999999999999999999999.999999999', '0.000000001', '-18446744073.709551616', '18446744073.709551615' ],
	[ 'numeric(3,-2)', 'NUMERIC(5, 0)', '12300', '-99900' ],
	[ 'numeric(2,5)', 'NUMERIC(5, 5)', '0.00012' ],
	[ 'numeric(30,0)', 'BIGNUMERIC(30, 0)', '999999999999999999999999999999' ],
	[ 'numeric(20,10)', 'BIGNUMERIC(20, 10)', '9999999999.9999999999', '-0.0000000001' ],
	[ 'numeric(76,38)', 'BIGNUMERIC(76, 38)', ('9' x 38) . '.' . ('9' x 38), '-' . ('9' x 38) . '.' . ('9' x 38) ],
	[ 'numeric(77,38)', 'STRING', '1.5', q{'NaN'} ],
	[ 'numeric(50,0)', 'STRING', '9' x 50 ],
	[ 'numeric(10,39)', 'STRING', '1e-39' ],
	[ 'numeric', 'BIGNUMERIC', '0', '0.00', '1.10', '1e-38', '-1e-38', '1e38', $biggest, $smallest, '123456789.000001' ],
	[ 'money2', 'NUMERIC(12, 2)', '12.34' ],
	[ 'money', 'STRING', q{'-92233720368547758.08'} ],
	[ 'text', 'STRING', q{''}, q{E'tab\tnewline\nback\\\\slash\r'}, q{'NULL'}, q{'ä€𝄞'}, q{repeat('x', 63)}, q{repeat('x', 64)},
		q{repeat('long ', 30000)}, q{(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 40000) i)} ],
	[ 'varchar(10)', 'STRING', q{'ends  '} ],
	[ 'char(6)', 'STRING', q{'abc'}, q{''} ],
	[ 'name', 'STRING', q{repeat('x', 63)} ],
	[ '"char"', 'STRING', q{'a'}, q{'\\200'} ],
	[ 'bytea', 'BYTES', q{''}, q{'\\x00ff5c27'}, q{decode(repeat('00ff', 20000), 'hex')} ],
	[ 'bit(5)', 'STRING', q{B'10101'} ],
	[ 'date', 'DATE', q{'0001-01-01'}, q{'9999-12-31'}, q{'1969-12-31'}, q{'1970-01-01'}, q{'2024-02-29'} ],
	[ 'time', 'TIME', q{'00:00'}, q{'23:59:59.999999'}, q{'00:00:00.000001'} ],
	[ 'timetz', 'STRING', q{'24:00-15:59'}, q{'12:34:56.789+05:30'} ],
	[ 'timestamp', 'DATETIME', q{'0001-01-01 00:00:00'}, q{'9999-12-31 23:59:59.999999'}, q{'1999-12-31 23:59:59.000001'},
		q{'1969-12-31 23:59:59.999999'} ],
	[ 'timestamptz', 'TIMESTAMP', q{'0001-01-01 00:00:00+00'}, q{'9999-12-31 23:59:59.999999+00'}, q{'2000-01-01 00:00:00.000001+13'} ],
	[ 'interval', 'STRING', q{'1 year -2 days 03:04:05.678901'} ],
	[ 'uuid', 'STRING', q{'00112233-4455-6677-8899-aabbccddeeff'}, q{'ffffffff-ffff-ffff-ffff-ffffffffffff'} ],
	[ 'json', 'JSON', q{'{"b": 1e400,  "a":[1, null],"a":2}'}, q{'null'} ],
	[ 'jsonb', 'JSON', q{'{"b": 12345678901234567890.10, "a": [1, null, "ä\\n", {}], "c": ""}'}, q{'[]'}, q{'null'}, q{'"x"'},
		q{jsonb_build_object('k', repeat('0123456789', 20000))} ],
	[ 'xml', 'STRING', q{'<a>b</a>'} ],
	[ 'mood', 'STRING', q{'sad'}, q{'happy ''quoted'''} ],
	[ 'pair', 'STRING', q{ROW(1, 'x y')} ],
	[ 'inet', 'STRING', q{'10.0.0.1/8'}, q{'::1'} ],
	[ 'macaddr', 'STRING', q{'08:00:2b:01:02:03'} ],
	[ 'int4range', 'STRING', q{'[1,5)'} ],
	[ 'point', 'STRING', q{'(1.5,-2)'} ],
	[ 'tsvector', 'STRING', q{'a:1 b:2'} ],
	[ 'pg_lsn', 'STRING', q{'16/B374D848'} ],
	[ 'int[]', 'ARRAY<INT64>', q{'{}'}, q{'{1}'}, q{'{1,-2,3}'}, q{array(SELECT generate_series(1, 3000))} ],
	[ 'text[]', 'ARRAY<STRING>', q{'{}'}, q{ARRAY['', 'a,b', '"']} ],
	[ 'bool[]', 'ARRAY<BOOL>', q{'{t,f}'} ],
	[ 'float4[]', 'ARRAY<FLOAT64>', q{'{1.5,NaN}'} ],
	[ 'numeric(10,2)[]', 'ARRAY<NUMERIC(10, 2)>', q{'{1.25,-3}'} ],
	[ 'numeric[]', 'ARRAY<BIGNUMERIC>', q{'{1.25,1e30}'} ],
	[ 'date[]', 'ARRAY<DATE>', q{'{2024-02-29,1969-12-31}'} ],
	[ 'timestamptz[]', 'ARRAY<TIMESTAMP>', q{'{2024-02-29 00:00+00}'} ],
	[ 'uuid[]', 'ARRAY<STRING>', q{'{00112233-4455-6677-8899-aabbccddeeff}'} ],
	[ 'jsonb[]', 'ARRAY<JSON>', q{ARRAY['{"a":1}', '2']::jsonb[]} ],
	[ 'bytea[]', 'ARRAY<BYTES>', q{ARRAY['\x00', '']::bytea[]} ],
	[ 'mood[]', 'ARRAY<STRING>', q{'{sad}'} ],
	[ 'ints', 'ARRAY<INT64>', q{'{1,2}'} ],
	[ 'ints[]', 'ARRAY<STRING>', q{ARRAY['{1,2}', '{}']::ints[]} ],
	[ 'int4range[]', 'ARRAY<STRING>', q{ARRAY['[1,5)', 'empty']::int4range[]} ],
);
push @types, [ 'hstore', 'JSON', q{'a=>1, b=>NULL'} ], [ 'hstore[]', 'ARRAY<STRING>', q{ARRAY['a=>1']::hstore[]} ]
  if $have{hstore};
push @types, [ 'citext', 'STRING', q{'MiXed'} ], [ 'citext[]', 'ARRAY<STRING>', q{'{MiXed}'} ] if $have{citext};

my ($setup, $i, @expect) = ('', 0);
foreach my $type (@types)
{
	my ($name, $dest, @values) = @$type;
	my $table = sprintf('t%03d', $i++);
	$setup .= "CREATE TABLE $table (n int, v $name);\n";
	my $n = 0;
	$setup .= "INSERT INTO $table VALUES (" . ++$n . ", $_);\n" foreach @values, 'NULL';
	# short headers, and values as they come from TOAST
	$setup .= "ALTER TABLE $table ALTER v SET STORAGE EXTERNAL;\n" if $name =~ /^(text|bytea|jsonb?)$/;
	$setup .= "INSERT INTO $table SELECT n + 100, v FROM $table;\n";
	my ($array, $kind) = $dest =~ /^(ARRAY<)?(\w+)/;
	my $show = $shown{$kind};
	$show = q{encode(convert_to((v::json)::text, 'UTF8'), 'hex')} if $name eq 'hstore';
	$show = "CASE WHEN v IS NULL THEN '[]' ELSE '[' || array_to_string(ARRAY(SELECT $show FROM unnest(v) WITH ORDINALITY u(v, o) ORDER BY o), ',') || ']' END"
	  if $array;
	push @expect, "SELECT '$table', n, coalesce($show, 'NULL') FROM (SELECT row_number() OVER () AS n, v FROM $table) x ORDER BY n";
}
sql($setup);

my $wrong = '';
$i = 0;
foreach my $type (@types)
{
	my $table = sprintf('t%03d', $i++);
	my $got = sql("SELECT dest_type || '|' || wire_info FROM pg_attribute, bq_column(atttypid, atttypmod) WHERE attrelid = '$table'::regclass AND attname = 'v'");
	my $cast = $type->[0] eq 'hstore' ? 'x' : '';
	$wrong .= "$type->[0]: $got\n" if $got ne "$type->[1]|$cast:$type->[1]";
}
is($wrong, '', 'every type has the type it should have at BigQuery');
is(sql(q{SELECT string_agg(avro, ' ' ORDER BY o) FROM unnest('{date,timestamp,timestamptz,time,jsonb,numeric,bigint[]}'::regtype[]) WITH ORDINALITY u(t, o), bq_column(t)}),
	'{"type":"int","logicalType":"date"} {"type":"long","logicalType":"local-timestamp-micros"}'
	  . ' {"type":"long","logicalType":"timestamp-micros"} {"type":"long","logicalType":"time-micros"}'
	  . ' {"type":"string","sqlType":"JSON"} {"type":"bytes","logicalType":"decimal","precision":77,"scale":38}'
	  . ' {"type":"array","items":"long"}',
	'logical types');
is(sql(q{SELECT string_agg(wire_info, ' ' ORDER BY o) FROM unnest('{int,jsonb,int[],numeric}'::regtype[]) WITH ORDINALITY u(t, o), bq_column(t, -1, true, true, true)}),
	'r:INT64 r:STRING r:STRING r:STRING', 'types of key columns, required');

# ---------------------------------------------------------------- files
mkdir "$dir/avro";

# The file of a table, made from tuples; its markers replaced, so that files of
# equal content are equal.
sub avro_file
{
	my ($args, $db) = @_;
	my $file = pack('H*', sql("SELECT encode(encode_avro($args), 'hex')", $db));
	return $file;
}

sub without_marker
{
	my ($file) = @_;
	my $marker = substr($file, -16);
	$file =~ s/\Q$marker\E/<marker>/g;
	return $file;
}

sub keep_file
{
	my ($name, $file) = @_;
	open my $fh, '>:raw', "$dir/avro/$name.avro" or die;
	print $fh $file;
	close $fh;
	return;
}

my @differ;
foreach my $n (0 .. $#types)
{
	my $table = sprintf('t%03d', $n);
	my $file = avro_file("'$table'");
	keep_file($table, $file);
	push @differ, "$types[$n][0] (fields)"
	  if without_marker($file) ne without_marker(avro_file("'$table', 'fields'"));
	push @differ, "$types[$n][0] (pieces)"
	  if without_marker($file) ne without_marker(avro_file("'$table', 'pieces'"));
}
is("@differ", '', 'tuples, fields and pieces make the same bytes');

# many blocks; one row that is longer than a block
sql(<<'EOS');
CREATE TABLE big (n int PRIMARY KEY, v text, d numeric(12,2), j jsonb);
INSERT INTO big SELECT i, CASE WHEN i = 7000 THEN repeat(md5(i::text), 60000) ELSE md5(i::text) || i END,
	i / 7.0, jsonb_build_object('i', i) FROM generate_series(1, 40000) i;
CREATE TABLE gone (n int, x int, v int);
ALTER TABLE gone DROP COLUMN x;
INSERT INTO gone VALUES (1, 10), (2, NULL);
CREATE TABLE nothing (n int, v text);
EOS
my $big = avro_file("'big', 'tuple', key => 'n'");
my $gone = avro_file("'gone'");
my $nothing = avro_file("'nothing'");
keep_file('big', $big);
keep_file('gone', $gone);
keep_file('nothing', $nothing);
my $marker = substr($big, -16);
isnt($marker, substr(avro_file("'big', 'tuple', key => 'n'"), -16), 'every file has a marker of its own');
like($nothing, qr/^Obj\x01\x04\x16avro\.schema.*\x14avro\.codec\x0edeflate\x00.{16}$/s, 'a file without rows is its header');
like($big, qr/\{"name":"n","type":"long"\},\{"name":"v","type":\["null","string"\],"default":null\}/,
	'the key is required, other columns are optional');

# ---------------------------------------------------------------- read by another implementation
# a virtual environment of our own, wherever PyPI can be reached
my $venv = "$dir/venv";
my $missing = '';
$missing = 'no fastavro: ' . ((grep { /\S/ } split /\n/, slurp_file("$dir/pip.log"))[-1] // 'no message')
  if system("(python3 -m venv $venv && timeout 300 $venv/bin/pip install -q --retries 1 fastavro==1.13.1)"
	  . " </dev/null >$dir/pip.log 2>&1") != 0;
diag("not read back by another implementation: $missing") if $missing;

SKIP:
{
	skip $missing, 3 if $missing;
	my ($out, $err);
	ok( IPC::Run::run([ "$venv/bin/python", "$module/read_avro.py", "$dir/avro" ], '>', \$out, '2>', \$err),
		'fastavro reads every file')
	  or diag($err);
	my @got = split /\n/, $out;
	my %blocks = map { /^(\w+)\tblocks\t(\d+)$/ ? ($1, $2) : () } @got;
	push @expect, map { "SELECT '$_', n, coalesce(v::text, 'NULL') FROM $_ ORDER BY n" } 'gone';
	push @expect, q{SELECT 'big', n, encode(v::bytea, 'hex') FROM big ORDER BY n};
	my @want = split /\n/, sql(join(";\n", @expect));
	foreach my $line (@want)
	{
		my ($table, $n, $value) = split /\|/, $line, 3;
		$line = "$table\tU/" . ($n % 2 ? $n : 'None') . "\t$value";
	}
	my %want = map { $_ => 1 } @want;
	my @rows = sort grep { !/^\w+\tblocks\t/ } @got;
	@want = sort @want;
	my @bad;
	while (@rows || @want)
	{
		my $cmp = !@rows ? 1 : !@want ? -1 : $rows[0] cmp $want[0];
		if ($cmp == 0) { shift @rows; shift @want; next; }
		push @bad, $cmp < 0 ? 'read:     ' . shift @rows : 'expected: ' . shift @want;
	}
	is(scalar(@bad), 0, 'and finds PostgreSQL\'s values');
	foreach my $bad (splice @bad, 0, 20)
	{
		my ($n) = $bad =~ /t(\d\d\d)\t/;
		diag(substr($bad, 0, 200) . (defined $n ? " ($types[$n][0])" : ''));
	}
	ok($blocks{big} >= 4 && $blocks{nothing} == 0 && $blocks{gone} == 1, 'in blocks of about 1 MB')
	  or diag(join(' ', map { "$_ $blocks{$_}" } qw(big nothing gone)));
}

# ---------------------------------------------------------------- values that do not fit
my @unfit = (
	[ 'numeric(12,2)', q{'NaN'} ],
	[ 'numeric', q{'NaN'} ],
	[ 'numeric', q{'Infinity'} ],
	[ 'numeric', '1e39' ],
	[ 'numeric', '1e-39' ],
	[ 'numeric', "$biggest\::numeric + 1e-38" ],
	[ 'numeric', "$smallest\::numeric - 1e-38" ],
	[ 'numeric', '1e1000' ],
	[ 'date', q{'infinity'} ],
	[ 'date', q{'-infinity'} ],
	[ 'date', q{'0001-12-31 BC'} ],
	[ 'date', q{'10000-01-01'} ],
	[ 'timestamp', q{'infinity'} ],
	[ 'timestamp', q{'0001-12-31 23:59:59.999999 BC'} ],
	[ 'timestamptz', q{'-infinity'} ],
	[ 'timestamptz', q{'10000-01-01 00:00:00+00'} ],
	[ 'time', q{'24:00'} ],
);
my @nulls;
my @accepted;
my @told;
$i = 0;
foreach my $unfit (@unfit)
{
	my $table = sprintf('u%03d', $i++);
	sql("CREATE TABLE $table (n int, v $unfit->[0]); INSERT INTO $table VALUES (1, $unfit->[1])");
	my $err = error_of("SELECT encode_avro('$table')");
	push @accepted, "@$unfit" unless $err =~ /22003: +a value of column "v" of table "public\.$table" is out of the range/
	  && $err =~ /HINT:  Set the mirror option out_of_range to 'null'/;
	# never the value
	push @told, $err if $err =~ /10000|infin|NaN|BC/i;
	# as NULL: the row has 1, (1, NULL), U, 1
	my $null = sql("CREATE TABLE n$table (n int, v $unfit->[0]); INSERT INTO n$table VALUES (1, NULL);"
		  . "SELECT encode(encode_avro('n$table'), 'hex')");
	push @nulls, "@$unfit" if without_marker(avro_file("'$table', null_unfit => true")) ne without_marker(pack('H*', $null));
}
is("@accepted", '', 'a value that BigQuery cannot hold is an error');
is("@told", '', 'which does not tell the value');
is("@nulls", '', 'or NULL, with out_of_range = null');
like(error_of(q{SELECT encode_avro('u000', null_unfit => true, key => 'v')}), qr/22003/, 'a key never becomes NULL');
like(error_of(q{SELECT bq_key('1e39'::numeric)}), qr/HINT:  Set the mirror option unbounded_numeric to 'string'/,
	'a key has a hint of its own');
is(sql(q{SELECT bq_key('x'::text)}), 'x', 'a key as text');

sql(<<'EOS');
CREATE TABLE with_null (n int, v int[]); INSERT INTO with_null VALUES (1, '{1,NULL,3}');
CREATE TABLE without_null (n int, v int[]); INSERT INTO without_null VALUES (1, '{1,3}');
CREATE TABLE only_null (n int, v int[]); INSERT INTO only_null VALUES (1, '{NULL}');
CREATE TABLE no_element (n int, v int[]); INSERT INTO no_element VALUES (1, '{}');
CREATE TABLE long_null (n int, v int[]); INSERT INTO long_null SELECT 1, array_agg(nullif(i % 2, 0)) FROM generate_series(1, 200) i;
CREATE TABLE short_null (n int, v int[]); INSERT INTO short_null SELECT 1, array_agg(1) FROM generate_series(1, 100) i;
CREATE TABLE two_dims (n int, v int[]); INSERT INTO two_dims VALUES (1, '{{1,2},{3,4}}');
CREATE TABLE other_bounds (n int, v int[]); INSERT INTO other_bounds VALUES (1, '[0:1]={1,2}');
CREATE TABLE bad_element (n int, v date[]); INSERT INTO bad_element VALUES (1, '{2024-01-01,infinity}');
CREATE TABLE good_element (n int, v date[]); INSERT INTO good_element VALUES (1, '{2024-01-01}');
CREATE TABLE required (n int, v int); INSERT INTO required VALUES (1, 1);
CREATE TABLE "weird" (n int, "v-w" int);
EOS
like(error_of(q{SELECT encode_avro('with_null')}), qr/22004: .*has a NULL element.*null_array_elements to 'drop'/s, 'a NULL element is an error');
foreach my $pair ([ 'with_null', 'without_null' ], [ 'only_null', 'no_element' ], [ 'long_null', 'short_null' ])
{
	is(unpack('H*', without_marker(avro_file("'$pair->[0]', drop_nulls => true"))),
		unpack('H*', without_marker(avro_file("'$pair->[1]'"))), "$pair->[0]: or left out, with null_array_elements = drop");
}
like(error_of(q{SELECT encode_avro('two_dims')}), qr/2202E/, 'arrays of two dimensions are an error');
like(error_of(q{SELECT encode_avro('other_bounds')}), qr/2202E/, 'other bounds too');
is(without_marker(avro_file(q{'two_dims', null_unfit => true})), without_marker(avro_file(q{'no_element'})), 'or no elements, with out_of_range = null');
like(error_of(q{SELECT encode_avro('bad_element')}), qr/22003/, 'an element that does not fit is an error');
like(error_of(q{SELECT encode_avro('bad_element', null_unfit => true)}), qr/22004/, 'or a NULL element, an error as well');
is(without_marker(avro_file(q{'bad_element', null_unfit => true, drop_nulls => true})), without_marker(avro_file(q{'good_element'})), 'or left out');
like(error_of(q{SELECT encode_avro('big', max_row => 1000)}), qr/54000: .*a row of table "public\.big" is too long.*the limit is 1000/s, 'a row that is too long');
like(error_of(q{SELECT encode_avro('weird')}), qr/42602: .*"v-w" cannot be the name of a column/s, 'a name that Avro does not know');
sql('ALTER TABLE required ALTER n SET NOT NULL');
is(without_marker(avro_file(q{'required', key => 'n'})), without_marker(avro_file(q{'required', 'fields', key => 'n'})), 'a required column from fields');

# ---------------------------------------------------------------- keys back
my @keys = (
	'true', q{'-32768'::int2}, q{'-9223372036854775808'::int8}, '0::int8', '1.5::float4', '0.1::float4', '0.1::float8', q{'NaN'::float8},
	q{'-Infinity'::float4}, '0::numeric', '-1.5::numeric', "$biggest\::numeric", "$smallest\::numeric", '1e-38::numeric',
	q{'äö'::text}, q{''::text}, q{'ab  '::bpchar}, q{'\x00ff'::bytea}, q{''::bytea}, q{'0001-01-01'::date}, q{'1969-12-31'::date},
	q{'0001-01-01'::timestamp}, q{'9999-12-31 23:59:59.999999'::timestamp}, q{'2024-03-31 00:30:00.000001+00'::timestamptz},
	q{'23:59:59.999999'::time}, q{'24:00+02'::timetz}, q{'00112233-4455-6677-8899-aabbccddeeff'::uuid}, q{'{"a": [1.10]}'::jsonb},
	q{'{"a":  1}'::json}, q{'happy ''quoted'''::mood}, q{'{1,NULL,3}'::int[]}, q{'{{1},{2}}'::int[]}, q{'[1,5)'::int4range},
	q{ROW(1, 'x y')::pair}, q{'4294967295'::oid}, q{'\\200'::"char"}, q{'10.0.0.1/8'::inet}, q{'1 year -2 days'::interval},
	q{'name'::name},
);
my @changed = grep { !/::numeric$/ && sql("SELECT bq_key(v) IS DISTINCT FROM format('%s', v) FROM (SELECT $_) x(v)") eq 't' } @keys;
is("@changed", '', 'every key comes back, as the same text');
is(join(' ', map { sql("SELECT bq_key($_)::numeric = $_") } grep { /::numeric$/ } @keys), 't t t t t', 'numerics as the same number');

# ---------------------------------------------------------------- other encodings
foreach my $encoding ([ 'LATIN1', q{E'\xe4'}, 'c3a4' ], [ 'SQL_ASCII', q{E'\xc3\xa4'}, 'c3a4' ])
{
	my ($name, $literal, $hex) = @$encoding;
	my $db = lc "e_$name";
	sql("CREATE DATABASE $db ENCODING '$name' LOCALE 'C' TEMPLATE template0");
	sql(qq{CREATE EXTENSION resync_encode_test; SET client_encoding = '$name';
		CREATE TABLE t (n int, v text, w name, j jsonb); INSERT INTO t VALUES (1, $literal, $literal, to_jsonb($literal\::text))}, $db);
	my $file = avro_file(q{'t'}, $db);
	my $raw = inflate_block($file);
	is($raw, '0202' . "0204$hex" . "0204$hex" . "020822$hex" . '22' . '0255' . '0202', "$name: texts become UTF-8");
}
sql(q{SET client_encoding = 'SQL_ASCII'; CREATE TABLE bad (n int, v text); INSERT INTO bad VALUES (1, E'\xff')}, 'e_sql_ascii');
like(error_of(q{SELECT encode_avro('bad')}, 'e_sql_ascii'), qr/22021: +a value of column "v" of table "public\.bad" is not a text in UTF-8/, 'SQL_ASCII: what is not UTF-8 is an error');
like(inflate_block(avro_file(q{'bad', null_unfit => true}, 'e_sql_ascii')), qr/^0202000255/, 'or NULL');

# The first block's rows, in hex.
sub inflate_block
{
	my ($file) = @_;
	require Compress::Raw::Zlib;
	my $at = index($file, substr($file, -16)) + 16;
	foreach (1, 2)
	{
		$at++ while ord(substr($file, $at, 1)) & 0x80;
		$at++;
	}
	my ($z) = Compress::Raw::Zlib::Inflate->new(-WindowBits => -15);
	my $data = substr($file, $at);
	my $out;
	$z->inflate($data, $out);
	return unpack('H*', $out);
}

# ---------------------------------------------------------------- tokens
sub run_ok
{
	my ($name, @cmd) = @_;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run(\@cmd, '<', \undef, '>', \$out, '2>', \$err);
	$ok or diag("@cmd: $err");
	ok($ok, $name) if $name;
	return $out;
}

sub quoted { my ($text) = @_; return 'NULL' unless defined $text; $text =~ s/'/''/g; return "'$text'"; }

run_ok(undef, 'openssl', 'genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:2048', '-out', "$dir/key.pem");
run_ok(undef, 'openssl', 'rsa', '-in', "$dir/key.pem", '-pubout', '-out', "$dir/pub.pem");
run_ok(undef, 'openssl', 'rsa', '-in', "$dir/key.pem", '-traditional', '-out', "$dir/pkcs1.pem");
run_ok(undef, 'openssl', 'pkcs8', '-topk8', '-v2', 'aes-256-cbc', '-in', "$dir/key.pem", '-passout', 'pass:open sesame', '-out', "$dir/encrypted.pem");
run_ok(undef, 'openssl', 'genpkey', '-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:1024', '-out', "$dir/short.pem");
run_ok(undef, 'openssl', 'genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', "$dir/ec.pem");
my $header = '{"alg":"RS256","typ":"JWT","kid":"abc"}';
my $claims = '{"iss":"robot@project.iam.example","aud":"https://token.example/","iat":1700000000,"exp":1700003600}';

sub sign
{
	my ($file, $passphrase) = @_;
	return 'jwt_sign(' . quoted(slurp_file("$dir/$file")) . ', ' . quoted($passphrase) . ", '$header', '$claims')";
}

sub from_base64url
{
	require MIME::Base64;
	my ($text) = @_;
	$text =~ tr{-_}{+/};
	return MIME::Base64::decode_base64($text);
}

foreach my $case ([ 'key.pem', undef ], [ 'pkcs1.pem', undef ], [ 'encrypted.pem', 'open sesame' ], [ 'key.pem', 'not needed' ])
{
	my $token = sql('SELECT ' . sign(@$case));
	my ($h, $c, $s, $more) = split /\./, $token, -1;
	my $what = "$case->[0]" . (defined $case->[1] ? ' with a passphrase' : '');
	is(from_base64url($h) . from_base64url($c), $header . $claims, "$what: header and claims");
	unlike($token, qr{[^A-Za-z0-9_.-]}, "$what: base64url without padding");
	append_to_file("$dir/$_->[0]", $_->[1]) foreach [ "signed.$what", "$h.$c" ], [ "sig.$what", from_base64url($s) ];
	like(run_ok(undef, 'openssl', 'dgst', '-sha256', '-verify', "$dir/pub.pem", '-signature', "$dir/sig.$what", "$dir/signed.$what"),
		qr/Verified OK/, "$what: openssl verifies the signature");
}
is(sql(q{SELECT jwt_base64url('') || '|' || jwt_base64url('\xff') || '|' || jwt_base64url('\xfbff') || '|' || jwt_base64url('\x000000')}),
	'|_w|-_8|AAAA', 'base64url of 0 to 3 bytes');
run_ok(undef, 'openssl', 'pkey', '-pubin', '-in', "$dir/pub.pem", '-outform', 'DER', '-out', "$dir/pub.der");
run_ok(undef, 'openssl', 'dgst', '-sha256', '-binary', '-out', "$dir/digest", "$dir/pub.der");
chomp(my $digest = run_ok(undef, 'openssl', 'base64', '-in', "$dir/digest"));
is(sql('SELECT jwt_fingerprint(' . quoted(slurp_file("$dir/encrypted.pem")) . ", 'open sesame')"), "SHA256:$digest", 'fingerprint of the public key');

my $secret = (split /\n/, slurp_file("$dir/key.pem"))[3];
append_to_file("$dir/broken.pem", join("\n", "-----BEGIN PRIVATE KEY-----\nMIIB", $secret, "-----END PRIVATE KEY-----\n"));
append_to_file("$dir/garbage.pem", "no key $secret\n");
append_to_file("$dir/empty.pem", '');
foreach my $case (
	[ 'encrypted.pem', undef, qr/28P01: .*the test's key is encrypted, and there is no passphrase/s ],
	[ 'encrypted.pem', 'wrong', qr/28P01: .*could not be decrypted with the passphrase/s ],
	[ 'encrypted.pem', 'x' x 5000, qr/28P01: .*could not be decrypted with the passphrase/s ],
	[ 'pub.pem', undef, qr/28000: .*the test's key could not be read.*BEGIN PRIVATE KEY/s ],
	[ 'broken.pem', undef, qr/28000: .*could not be read/s ],
	[ 'garbage.pem', undef, qr/28000: .*could not be read/s ],
	[ 'empty.pem', undef, qr/28000: .*is empty/s ],
	[ 'short.pem', undef, qr/28000: .*has 1024 bits, which is too short/s ],
	[ 'ec.pem', undef, qr/28000: .*is not an RSA key/s ])
{
	my $err = error_of('SELECT ' . sign($case->[0], $case->[1]));
	$err =~ s/^(STATEMENT|LINE \d+): .*//msg;
	like($err, $case->[2], "$case->[0]: refused");
	unlike($err, qr/\Q$secret\E|wrong|xxxx/, "$case->[0]: nothing of the key or passphrase in the message");
}

# ---------------------------------------------------------------- JSON
is(sql(q{SELECT string_agg(coalesce(json_reason(d), '-'), '|' ORDER BY o) FROM unnest(ARRAY['{}', ' [1, "x"] ', '12', '"a"', 'true']) WITH ORDINALITY u(d, o)}),
	'-|-|-|-|-', 'JSON values are read');
foreach my $bad ('', '{', '{"a":1', '{} x', '{} {}', '{"a":tru}', 'null', '[1,]', '"a', 'secret')
{
	my $reason = sql('SELECT coalesce(json_reason(' . quoted($bad) . "), '-')");
	ok($reason ne '-' && $reason !~ /secret|tru$/, "no JSON: $bad: $reason");
}
is(sql(q{SELECT json_reason(repeat('[', 33) || repeat(']', 33)) IS NOT NULL, json_reason(repeat('[', 20) || repeat(']', 20)) IS NULL}), 't|t', 'levels are limited');
my $doc = q{{"error":{"errors":[{"reason":"notFound"},{"reason":"other"}],"code":404,"big":"12345678901234","ok":true,"a.b":1,
	"huge":18446744073709551615,"low":-9223372036854775808,"text":"1x","float":1.5,"nul":"a\u0000b","none":null}}};
foreach my $case (
	[ 'error.errors.0.reason', 'string notFound ' ],
	[ 'error.errors.1.reason', 'string other ' ],
	[ 'error.errors.2.reason', '' ],
	[ 'error.errors.x', '' ],
	[ 'error.errors', 'length 2 ' ],
	[ 'error.errors.0', 'length 1 name reason ' ],
	[ 'error.code', 'int 404 ' ],
	[ 'error.code.x', '' ],
	[ 'error.big', 'string 12345678901234 int 12345678901234 ' ],
	[ 'error.huge', '' ],
	[ 'error.low', 'int -9223372036854775808 ' ],
	[ 'error.text', 'string 1x ' ],
	[ 'error.float', '' ],
	[ 'error.nul', '' ],
	[ 'error.none', '' ],
	[ 'error.ok', 'bool 1 ' ],
	[ 'error.a.b', '' ])
{
	is(sql('SELECT json_at(' . quoted($doc) . ", '$case->[0]')"), $case->[1], "at $case->[0]");
}
like(sql('SELECT json_at(' . quoted($doc) . ", 'error')"), qr/^length 11 name errors .*has a\.b$/, 'a name with a dot');
is(sql(q{SELECT json_built('{"x":{"y":[1.10,12345678901234567]}}')}),
	'{"configuration":{"load":{"sourceFormat":"AVRO","useAvroLogicalTypes":true,"big":-9223372036854775808,'
	  . '"schema":{"fields":["a \"quoted\"/\u0001 text",{"name":"id"}]}}},"description":null,"labels":{"a.b":"c"},'
	  . '"taken":{"y":[1.10,12345678901234567]}}',
	'JSON is built');

$node->stop;
done_testing();
