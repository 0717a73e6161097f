# Values at BigQuery, loaded and by WAL, read back through the service and
# compared with the source: a table per type.  What no type there can hold is
# an error that names column and table, or NULL by out_of_range, the same for
# the load and for changes; so with NULL elements of arrays.
#
# The bytes of every type are 040's; here is what the service makes of them.  The
# emulator has no more than 38 digits.
use strict;
use warnings;

use ResyncBigQuery;
use Test::More;

my $t = ResyncBigQuery->new;
$t->src("CREATE TYPE mood AS ENUM ('sad', 'happy ''quoted'''); CREATE DOMAIN money2 AS numeric(12,2); CREATE TYPE pair AS (a int, b text)");

my $text = [ 'v::text', 'CAST(v AS STRING)' ];
my $array = [ q{'[' || coalesce(array_to_string(v, ','), '') || ']'}, 'v' ];
my $json = [ q{replace(v::text, ' ', '')}, q{REPLACE(TO_JSON_STRING(v), ' ', '')} ];
my @types = (
	[ 'boolean', 'BOOL', $text, 'true', 'false' ],
	[ 'smallint', 'INT64', $text, '-32768', '32767' ],
	[ 'bigint', 'INT64', $text, '-9223372036854775808', '9223372036854775807', '0' ],
	[ 'oid', 'STRING', $text, '4294967295' ],
	[ 'double precision', 'FLOAT64', $text, '0.1', '-2.5', '1.7976931348623157e+308' ],
	[ 'numeric(12,2)', 'NUMERIC(12, 2)', $text, '0', '1.5', '-0.01', '9999999999.99' ],
	[ 'numeric(38,9)', 'NUMERIC(38, 9)', $text, '99999999999999999999999999999.999999999', '-0.000000001' ],
	[ 'numeric(20,10)', 'BIGNUMERIC(20, 10)', $text, '9999999999.9999999999' ],
	[ 'numeric(77,38)', 'STRING', $text, '1.5', q{'NaN'} ],
	[ 'money2', 'NUMERIC(12, 2)', $text, '12.34' ],
	[ 'text', 'STRING', [ q{encode(sha256(convert_to(v, 'UTF8')), 'hex')}, 'TO_HEX(SHA256(v))' ],
		q{''}, q{E'tab\tnewline\nback\\\\slash\r'}, q{'NULL'}, q{'ä€𝄞'}, q{repeat('long ', 30000)} ],
	[ 'char(6)', 'STRING', [ q{v::char(6)::bpchar || '|'}, q{CONCAT(RTRIM(v), '|')} ], q{'abc'} ],
	[ 'bytea', 'BYTES', [ q{encode(v, 'hex')}, 'TO_HEX(v)' ], q{''}, q{'\\x00ff5c27'} ],
	[ 'date', 'DATE', $text, q{'0001-01-01'}, q{'9999-12-31'}, q{'1969-12-31'}, q{'2024-02-29'} ],
	[ 'time', 'TIME', $text, q{'23:59:59.999999'}, q{'00:00:00.000001'} ],
	[ 'timestamp', 'DATETIME', $text, q{'9999-12-31 23:59:59.999999'}, q{'1999-12-31 23:59:59.000001'} ],
	[ 'timestamptz', 'TIMESTAMP', [ q{to_char(v AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')}, q{FORMAT_TIMESTAMP('%Y-%m-%d %H:%M:%E6S', v)} ],
		q{'9999-12-31 23:59:59.999999+00'}, q{'2000-01-01 00:00:00.000001+13'} ],
	[ 'interval', 'STRING', $text, q{'1 year -2 days 03:04:05.678901'} ],
	[ 'uuid', 'STRING', $text, q{'00112233-4455-6677-8899-aabbccddeeff'} ],
	[ 'jsonb', 'JSON', $json, q{'{"b": [1, null, {}], "c": ""}'}, q{'[]'}, q{'"x"'} ],
	[ 'mood', 'STRING', $text, q{'sad'}, q{'happy ''quoted'''} ],
	[ 'pair', 'STRING', $text, q{ROW(1, 'x y')} ],
	[ 'inet', 'STRING', $text, q{'10.0.0.1/8'} ],
	[ 'int4range', 'STRING', $text, q{'[1,5)'} ],
	[ 'int[]', 'ARRAY<INT64>', $array, q{'{}'}, q{'{1}'}, q{'{1,-2,3}'} ],
	[ 'text[]', 'ARRAY<STRING>', $array, q{'{}'}, q{ARRAY['', 'a,b', '"']} ],
	[ 'numeric(10,2)[]', 'ARRAY<NUMERIC(10, 2)>', [ q{'[' || coalesce((SELECT string_agg(trim_scale(x)::text, ',' ORDER BY o) FROM unnest(v) WITH ORDINALITY u(x, o)), '') || ']'}, 'v' ], q{'{1.25,3}'} ],
	[ 'date[]', 'ARRAY<DATE>', $array, q{'{2024-02-29,1969-12-31}'} ],
	[ 'mood[]', 'ARRAY<STRING>', $array, q{'{sad}'} ]);

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
$i = 0;
foreach my $type (@types)
{
	my ($name, $wanted, $show) = @$type;
	my $table = sprintf 't%02d', $i++;
	$t->same_bq($table, "$name is $wanted",
		columns => [ 'id::text', "coalesce($show->[0], '" . ($wanted =~ /^ARRAY/ ? '[]' : 'NULL') . "')" ],
		bq_columns => [ 'CAST(id AS STRING)', $show->[1] ]);
	my ($field) = grep { $_->{name} eq 'v' } @{ $t->table($table)->{schema}{fields} };
	# the emulator forgets precision and scale, which 040 looks at
	my $got = ($field->{mode} eq 'REPEATED' ? 'ARRAY<' : '') . $field->{type};
	is($got, $wanted =~ s/[(>].*//r, "$name: the schema");
}
$t->src("SELECT peerdb_drop_mirror('types', drop_destination => true)");

# ---- what cannot be held: an error for load and changes, or NULL for both
my $n = 0;
foreach my $case (
	[ 'numeric(12,2)', q{'NaN'}, 'NULL' ], [ 'date', q{'infinity'}, 'NULL' ], [ 'timestamptz', q{'-infinity'}, 'NULL' ],
	[ 'timestamp', q{'4713-01-01 00:00:00 BC'}, 'NULL' ], [ 'numeric', '1e39', 'NULL' ], [ 'time', q{'24:00'}, 'NULL' ])
{
	my ($type, $value, $shown) = @$case;
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
	is($t->bq("SELECT COUNT(*), COUNT(v) FROM d.$table"), "2\t0", "$type $value: NULL by load and by WAL");
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

# ---- NULL elements of arrays
$t->src("CREATE TABLE arr (id int PRIMARY KEY, v int[]); INSERT INTO arr VALUES (1, '{1,NULL,2}')");
$t->create_mirror('x', ['public.arr']);
$t->until_true("SELECT outcome = 'failed' AND error ~ 'NULL' FROM peerdb.runs WHERE mirror = 'x'", 'a NULL element: an error') or $t->describe('x');
$t->src("SELECT peerdb_drop_mirror('x')");
$t->until_true("SELECT count(*) = 0 FROM peerdb.mirrors WHERE mirror = 'x'", 'dropped');
$t->create_mirror('x', ['public.arr'], { null_array_elements => 'drop' });
$t->wait_status('x', 'running', 'a NULL element: left out if so wanted');
$t->src("INSERT INTO arr VALUES (2, '{NULL,7}')");
$t->sync('x');
is($t->bq('SELECT v FROM d.arr ORDER BY id'), "[1,2]\n[7]", 'by load and by WAL');
$t->drop_all;
done_testing();
