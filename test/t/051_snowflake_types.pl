# Values at Snowflake, loaded and by WAL, read back through the service and
# compared with the source: a table per type.  What no type there can hold is an
# error that names column and table, or NULL by out_of_range, the same for the load
# and for changes.  An empty text and NULL are two things; a value that is too long
# is an error that names row key and column.
use strict;
use warnings;

use ResyncSnowflake;
use Test::More;

my $t = ResyncSnowflake->new;
$t->src("CREATE TYPE mood AS ENUM ('sad', 'happy ''quoted'''); CREATE DOMAIN money2 AS numeric(12,2); CREATE TYPE pair AS (a int, b text)");
my $hstore = $t->src("SELECT count(*) FROM pg_available_extensions WHERE name = 'hstore'");
$t->src('CREATE EXTENSION hstore') if $hstore;

my $text = [ 'v::text', 'TO_VARCHAR(V)' ];
my $number = [ 'trim_scale(v::numeric)::text', 'TO_VARCHAR(V)' ];
my $json = [ q{replace(v::text, ' ', '')}, q{TO_JSON(V)} ];
my $array = [ q{array_to_json(v)::text}, 'TO_JSON(V)' ];
my @types = (
	[ 'boolean', 'BOOLEAN', $text, 'true', 'false' ],
	[ 'smallint', 'NUMBER(38,0)', $text, '-32768', '32767' ],
	[ 'int', 'NUMBER(38,0)', $text, '-2147483648', '0' ],
	[ 'bigint', 'NUMBER(38,0)', $text, '-9223372036854775808', '9223372036854775807', '0' ],
	[ 'oid', 'VARCHAR', $text, '4294967295' ],
	[ 'real', 'FLOAT', [ 'v::text', 'TO_VARCHAR(V::FLOAT)' ], '0.5', '-2.25' ],
	[ 'double precision', 'FLOAT', [ q{encode(float8send(v), 'hex')}, q{V} ], '0.1', '-2.5', '1.7976931348623157e+308', q{'NaN'}, q{'-Infinity'}, '5e-324' ],
	[ 'numeric(12,2)', 'NUMBER(12,2)', $number, '0', '1.5', '-0.01', '9999999999.99' ],
	[ 'numeric(38,9)', 'NUMBER(38,9)', $number, '99999999999999999999999999999.999999999', '-0.000000001' ],
	[ 'numeric(20,-3)', 'NUMBER(23,0)', $number, '12345000', '-99999999999999999999000' ],
	[ 'numeric', 'NUMBER(38,20)', $number, '1.5', '-123456789012345678.00000000000000000001' ],
	[ 'numeric(60,30)', 'VARCHAR', $text, '1.5', q{'NaN'}, '123456789012345678901234567890.123456789012345678901234567890' ],
	[ 'money2', 'NUMBER(12,2)', $number, '12.34' ],
	[ 'text', 'VARCHAR', [ q{encode(convert_to(v, 'UTF8'), 'hex')}, 'LOWER(HEX_ENCODE(V))' ],
		q{''}, q{E'tab\tnewline\nback\\\\slash\r'}, q{'NULL'}, q{'"quo""ted",'}, q{'ä€𝄞'}, q{repeat('long"', 30000)}, q{'\N'}, q{' '} ],
	[ 'char(6)', 'VARCHAR', [ q{rtrim(v::char(6)::text) || '|'}, q{RTRIM(V) || '|'} ], q{'abc'} ],
	[ 'varchar(5)', 'VARCHAR', $text, q{''}, q{'abc'} ],
	[ 'bytea', 'BINARY', [ q{upper(encode(v, 'hex'))}, q{TO_VARCHAR(V, 'HEX')} ], q{''}, q{'\\x00ff5c27'} ],
	[ 'date', 'DATE', [ 'v::text', q{TO_VARCHAR(V, 'YYYY-MM-DD')} ], q{'0001-01-01'}, q{'9999-12-31'}, q{'1969-12-31'}, q{'2024-02-29'} ],
	[ 'time', 'TIME', [ q{to_char(v, 'HH24:MI:SS.US')}, q{TO_VARCHAR(V, 'HH24:MI:SS.FF6')} ], q{'23:59:59.999999'}, q{'00:00:00.000001'} ],
	[ 'timetz', 'VARCHAR', $text, q{'23:59:59.999999+05:45'} ],
	[ 'timestamp', 'TIMESTAMP_NTZ', [ q{to_char(v, 'YYYY-MM-DD HH24:MI:SS.US')}, q{TO_VARCHAR(V, 'YYYY-MM-DD HH24:MI:SS.FF6')} ],
		q{'9999-12-31 23:59:59.999999'}, q{'1999-12-31 23:59:59.000001'}, q{'0001-01-01'}, q{'1969-12-31 23:59:59.999999'} ],
	[ 'timestamptz', 'TIMESTAMP_TZ', [ q{to_char(v AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')}, q{TO_VARCHAR(V, 'YYYY-MM-DD HH24:MI:SS.FF6')} ],
		q{'9999-12-31 23:59:59.999999+00'}, q{'2000-01-01 00:00:00.000001+13'}, q{'0001-01-02 00:00:00+00'} ],
	[ 'interval', 'VARCHAR', $text, q{'1 year -2 days 03:04:05.678901'} ],
	[ 'uuid', 'VARCHAR', $text, q{'00112233-4455-6677-8899-aabbccddeeff'} ],
	[ 'jsonb', 'VARIANT', $json, q{'{"b": [1, null, {}], "c": ""}'}, q{'[]'}, q{'"x"'}, q{'null'}, q{'12345678901234567890123456789012345678'}, q{'{"a": 1.15}'} ],
	[ 'json', 'VARIANT', [ q{replace(v::jsonb::text, ' ', '')}, q{TO_JSON(V)} ], q{'{"c":"\u00e4"}'}, q{'{"a":1,"a":2}'} ],
	[ 'mood', 'VARCHAR', $text, q{'sad'}, q{'happy ''quoted'''} ],
	[ 'pair', 'VARCHAR', $text, q{ROW(1, 'x y')} ],
	[ 'inet', 'VARCHAR', $text, q{'10.0.0.1/8'} ],
	[ 'int4range', 'VARCHAR', $text, q{'[1,5)'} ],
	[ 'tsvector', 'VARCHAR', $text, q{'a fat cat'} ],
	[ 'money', 'VARCHAR', $text, q{'12.34'} ],
	[ 'bit(4)', 'VARCHAR', $text, q{B'1010'} ],
	[ 'point', 'GEOMETRY', [ q{'POINT(' || v[0] || ' ' || v[1] || ')'}, 'TO_VARCHAR(V)' ], q{'(1.5,-2)'} ],
	[ 'box', 'VARCHAR', $text, q{'(1,2),(0,0)'} ],
	[ 'int[]', 'VARIANT', $array, q{'{}'}, q{'{1}'}, q{'{1,-2,NULL,3}'}, q{'{{1,2},{3,4}}'} ],
	[ 'bool[]', 'VARIANT', $array, q{'{t,f}'} ],
	[ 'text[]', 'VARIANT', $array, q{'{}'}, q{ARRAY['', 'a,b', '"', E'\\n\\\\', NULL, 'NULL', 'ä']} ],
	[ 'numeric(10,2)[]', 'VARIANT', $array, q{'{1.25,3}'} ],
	[ 'float8[]', 'VARIANT', [ q{replace(array_to_json(v)::text, 'Infinity', 'inf')}, 'TO_JSON(V)' ], q{'{0.5,NaN,-Infinity}'} ],
	[ 'date[]', 'VARIANT', $array, q{'{2024-02-29,1969-12-31}'} ],
	[ 'timestamp[]', 'VARIANT', [ q{'["' || v[1] || '"]'}, 'TO_JSON(V)' ], q{'{2024-02-29 01:02:03.5}'} ],
	[ 'jsonb[]', 'VARIANT', [ q{replace(array_to_json(v)::text, ' ', '')}, 'TO_JSON(V)' ], q{ARRAY['{"a": 1}'::jsonb, '"x"']} ],
	[ 'mood[]', 'VARIANT', $array, q{'{sad}'} ],
	[ 'pair[]', 'VARIANT', [ q{'["' || v[1]::text || '"]'}, 'TO_JSON(V)' ], q{ARRAY[ROW(1, 'x')::pair]} ],
	($hstore ? [ 'hstore', 'VARIANT', [ q{replace(hstore_to_json(v)::text, ' ', '')}, 'TO_JSON(V)' ], q{'a=>1, b=>NULL'} ] : ()));

my $i = 0;
my @tables;
foreach my $type (@types)
{
	my ($name, undef, undef, @values) = @$type;
	my $table = sprintf 't%02d', $i++;
	push @tables, "public.$table";
	$t->src("CREATE TABLE $table (id int PRIMARY KEY, v $name); INSERT INTO $table VALUES (0, NULL)"
		  . join('', map { ", (" . ($_ + 1) . ", $values[$_])" } 0 .. $#values));
}
$t->create_mirror('types', \@tables);
$t->wait_status('types', 'running') or $t->describe('types');
$t->src("INSERT INTO $_ SELECT id + 100, v FROM $_") foreach @tables;
$t->sync('types');

# A double as the service shows it, by its bits.
sub bits { my ($v) = @_; return $v eq 'NULL' ? $v : unpack('H*', pack('d>', $v =~ /nan/i ? 'nan' : $v =~ /^(-?)inf/i ? "$1inf" : $v)); }

$i = 0;
foreach my $type (@types)
{
	my ($name, $wanted, $show) = @$type;
	my $table = sprintf 't%02d', $i++;
	if ($name eq 'double precision')
	{
		my $ours = $t->src("SELECT id, coalesce($show->[0], 'NULL') FROM $table ORDER BY id") =~ tr/|/\t/r;
		my $there = join("\n", map { my ($id, $v) = split /\t/; "$id\t" . bits($v) } split /\n/, $t->sf('SELECT ID, V FROM ' . $t->name_of(uc $table) . ' ORDER BY ID'));
		is($there =~ s/\b7ff8000000000000\b|\bfff8000000000000\b/nan/gr, $ours =~ s/\b7ff8000000000000\b/nan/gr, "$name is $wanted");
	}
	else
	{
		$t->same_sf($table, "$name is $wanted", columns => [ 'id::text', "coalesce($show->[0], 'NULL')" ], sf_columns => [ 'TO_VARCHAR(ID)', $show->[1] ]);
	}
	my ($type_there) = map { (split /\t/)[1] } grep { /^V\t/ } split /\n/, $t->sf('DESCRIBE TABLE ' . $t->name_of(uc $table));
	is($wanted =~ /^NUMBER/ ? $type_there : $type_there =~ s/\(.*//r, $wanted, "$name: the column");
}
is($t->sf('SELECT COUNT(*) FROM ' . $t->name_of('T' . sprintf('%02d', (grep { $types[$_][0] eq 'text' } 0 .. $#types)[0])) . " WHERE V = ''"), '2', 'an empty text is there, and is not NULL');
$t->src("SELECT peerdb_drop_mirror('types', drop_destination => true)");

# ---- what cannot be held: an error for load and changes, or NULL for both
my $n = 0;
foreach my $case (
	[ 'numeric(12,2)', q{'NaN'} ], [ 'date', q{'infinity'} ], [ 'timestamptz', q{'-infinity'} ],
	[ 'timestamp', q{'4713-01-01 00:00:00 BC'} ], [ 'numeric', '1e39' ], [ 'numeric', '1e-21' ], [ 'time', q{'24:00'} ],
	[ 'int[]', q{'[0:1]={1,2}'} ], [ 'point', q{'(NaN,1)'} ])
{
	my ($type, $value) = @$case;
	my $table = 'x' . $n++;
	$t->src("CREATE TABLE $table (id int PRIMARY KEY, v $type); INSERT INTO $table VALUES (1, $value)");
	$t->create_mirror('x', ["public.$table"]);
	$t->until_true("SELECT outcome = 'failed' FROM peerdb.runs WHERE mirror = 'x'", "$type $value: the load fails") or $t->describe('x');
	like($t->src("SELECT error FROM peerdb.runs WHERE mirror = 'x'"), qr/column "v".*\Q$table\E/s, "$type $value: column and table are named");
	$t->src("SELECT peerdb_drop_mirror('x')");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'x'", 'dropped');

	$t->create_mirror('x', ["public.$table"], { out_of_range => 'null' });
	$t->wait_status('x', 'running', "$type $value: NULL if so wanted") or $t->describe('x');
	$t->src("INSERT INTO $table VALUES (2, $value)");
	$t->sync('x');
	is($t->sf("SELECT COUNT(*), COUNT(V) FROM " . $t->name_of(uc $table)), "2\t0", "$type $value: NULL by load and by WAL");
	$t->src("SELECT peerdb_drop_mirror('x', drop_destination => true)");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'x'", 'dropped');

	$t->src("DELETE FROM $table");
	$t->create_mirror('x', ["public.$table"]);
	$t->wait_status('x', 'running');
	$t->src("INSERT INTO $table VALUES (3, $value)");
	$t->until_failed('x', qr/column "v".*\Q$table\E/s, "$type $value: a change");
	$t->src("SELECT peerdb_drop_mirror('x', drop_destination => true)");
	$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'x'", 'dropped');
}

# ---- digits without an end, as text if so wanted
$t->src("CREATE TABLE digits (id numeric PRIMARY KEY, v numeric); INSERT INTO digits VALUES (1, 1e60), (2, 'NaN')");
$t->create_mirror('x', ['public.digits'], { unbounded_numeric => 'string' });
$t->wait_status('x', 'running', 'unbounded_numeric string') or $t->describe('x');
$t->src("INSERT INTO digits VALUES (3, 1.10); UPDATE digits SET v = 2.50 WHERE id = 2");
$t->sync('x');
is($t->sf('SELECT V FROM ' . $t->name_of('DIGITS') . ' ORDER BY ID'), '1' . '0' x 60 . "\n2.50\n1.10", 'unbounded_numeric string: digits as they are');
$t->src("SELECT peerdb_drop_mirror('x', drop_destination => true)");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'x'", 'dropped');

# ---- values over 16 MB: an error with row key and column, never blanked
$t->src("CREATE TABLE big (id int, k text, v text, b bytea, PRIMARY KEY (k, id)); ALTER TABLE big ALTER v SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;"
	  . " INSERT INTO big SELECT i, 'k' || i, repeat('x', CASE i WHEN 7 THEN 16777217 WHEN 8 THEN 16777216 ELSE 10 END) FROM generate_series(1, 9) i");
my $too_long = qr/column "v" of table "public.big" is too long.*16777217 bytes.*\(k, id\)=\(k7, 7\)/s;
$t->create_mirror('x', ['public.big']);
$t->until_failed('x', $too_long, 'a value over the limit');
$t->src("UPDATE big SET v = NULL WHERE id = 7");
$t->resync('x');
$t->wait_status('x', 'running', 'a value over the limit: gone, resync');
is($t->sf('SELECT MAX(LENGTH(V)), COUNT(*) FROM ' . $t->name_of('BIG')), "16777216\t9", 'a value as long as the limit is there');
$t->src("INSERT INTO big VALUES (7, 'k7a', repeat('x', 16777217), NULL)");
$t->until_failed('x', qr/column "v".*is too long.*\(k, id\)=\(k7a, 7\)/s, 'a value over the limit, while it streams');
$t->src("DELETE FROM big WHERE k = 'k7a'; INSERT INTO big VALUES (10, 'b', NULL, decode(repeat('00', 8388609), 'hex'))");
$t->resync('x');
$t->until_failed('x', qr/column "b".*is too long.*\(k, id\)=\(b, 10\)/s, 'a bytea over the limit');
is($t->sf('SELECT COUNT(*) FROM ' . $t->name_of('BIG')), '9', 'nothing of them is there, and the table still is');
$t->drop_all;
done_testing();
