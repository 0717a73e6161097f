-- Values that a mirror carries are the same at the destination, whether they
-- were loaded or came by WAL.  The destination is another schema of this
-- database.
SET client_min_messages = warning;
CREATE EXTENSION resync;
DO $$
BEGIN
	EXECUTE format('CREATE SERVER here FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host %L, port %L, dbname %L)',
		split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'), current_database());
	EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER here OPTIONS (user %L)', current_user);
END $$;

CREATE TYPE color AS ENUM ('red', 'green', 'blue');
CREATE TYPE point3 AS (x int, y numeric, c color[]);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE encoded (
	id int PRIMARY KEY,
	a_bool bool, a_int2 int2, a_int4 int4, a_int8 int8, a_float4 float4, a_float8 float8,
	a_numeric numeric, a_scaled numeric(20, 5), a_money money,
	a_text text, a_varchar varchar(20), a_char char(5), a_name name, a_byte "char", a_bytea bytea,
	a_date date, a_time time, a_timetz timetz, a_ts timestamp, a_tstz timestamptz, a_interval interval,
	a_uuid uuid, a_json json, a_jsonb jsonb, a_xml xml, a_inet inet, a_cidr cidr, a_mac macaddr,
	a_bit bit(5), a_varbit varbit, a_point point, a_box box, a_tsv tsvector, a_circle circle, a_lsn pg_lsn,
	a_oid oid, a_range int4range, a_multi nummultirange, a_ints int[], a_texts text[], a_nested int[][],
	a_color color, a_colors color[], a_point3 point3, a_points point3[], a_positive positive,
	a_class regclass
);
CREATE FUNCTION fill(base int) RETURNS void LANGUAGE sql AS $$
	INSERT INTO encoded (id) VALUES (base);		-- all NULL
	INSERT INTO encoded VALUES (base + 1, true, -32768, -2147483648, -9223372036854775808, '-Infinity', 'NaN',
		'NaN', 123456789012345.12345, '-12.34', '', '', '', '', '', '',
		'-infinity', '00:00', '00:00+15:59', '-infinity', 'infinity', '-178000000 years',
		'00000000-0000-0000-0000-000000000000', '{"a" : 1, "a": 2}', '{}', '<a/>', '0.0.0.0/0', '::/0', '00:00:00:00:00:00',
		B'00000', B'', '(0,0)', '(1,1),(0,0)', '', '<(0,0),0>', '0/0',
		0, 'empty', '{}', '{}', '{}', '{}', 'red', '{}', ROW(NULL, NULL, NULL), '{}', 1, 'pg_class');
	INSERT INTO encoded VALUES (base + 2, false, 32767, 2147483647, 9223372036854775807, '1e-37', '1.7976931348623157e308',
		'1e-300', -0.00001, '92233720368547758.07', repeat('long ', 10000), 'twenty characters ok', 'ab', 'name', 'x', '\x00ff00',
		'294276-12-31', '24:00', '23:59:59.999999-15:59', '294276-12-31 23:59:59.999999', '4713-01-01 BC', '1 mon -1 day 00:00:00.000001',
		'ffffffff-ffff-ffff-ffff-ffffffffffff', 'null', '[1e1000, "\u00e9\t\"\\"]', '<?xml version="1.0"?><b>é</b>', '2001:db8::1', '10.0.0.0/8', 'ff:ff:ff:ff:ff:ff',
		B'10101', B'1', '(1e300,-1e-300)', '(2,2),(-1,-1)', 'a:1A b:2', '<(1.5,-2),3>', 'FFFFFFFF/FFFFFFFF',
		4294967295, '[1,5)', '{[1.5,2.5),[3,)}', '{1,NULL,3}', '{"",NULL,"a,b","\"q\""}', '{{1,2},{3,4}}',
		'blue', '{red,NULL,blue}', ROW(1, 2.50, '{red}'), ARRAY[ROW(1, 0.0, NULL)::point3, NULL], 2147483647, 'encoded');
	INSERT INTO encoded (id, a_numeric) SELECT base + 2 + i, v::numeric FROM unnest(ARRAY['0', '0.000', '-0.0', '1', '10000', '0.0001',
		'Infinity', '-Infinity', '1e1000', '-9999.9999', '123456789.987654321', '1e-1000']) WITH ORDINALITY u(v, i);
$$;
SELECT fill(100);
SELECT peerdb_create_mirror('encode', 'here', '["public.encoded:mirrored.encoded"]') > 0;
SELECT peerdb_wait_for_status('encode', 'running', '60 s');
SELECT fill(200);
UPDATE encoded SET a_int4 = coalesce(a_int4, 0) + 0 WHERE id < 200;		-- the long text stays where it is
SELECT peerdb_wait_for_lsn('encode') IS NOT NULL;

-- the same text on both sides, but for the soft-delete columns
SELECT e.id, k AS "column", v AS source, d ->> k AS destination
FROM encoded e JOIN mirrored.encoded m USING (id), to_jsonb(m) d, jsonb_each_text(to_jsonb(e)) j(k, v)
WHERE v IS DISTINCT FROM d ->> k
ORDER BY 1, 2;
SELECT count(*) AS rows, count(m.id) AS found, bool_or(m._peerdb_is_deleted) AS deleted FROM encoded e LEFT JOIN mirrored.encoded m USING (id);
SELECT attname, atttypid::regtype FROM pg_attribute WHERE attrelid = 'mirrored.encoded'::regclass AND attnum > 0
EXCEPT SELECT attname, atttypid::regtype FROM pg_attribute WHERE attrelid = 'encoded'::regclass AND attnum > 0 ORDER BY 1;

SELECT peerdb_drop_mirror('encode', drop_destination => true);
DO $$ BEGIN WHILE EXISTS (SELECT FROM peerdb.mirrors) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$;
SELECT count(*) FROM pg_replication_slots;
SELECT to_regclass('mirrored.encoded');
DROP EXTENSION resync CASCADE;
DROP TABLE encoded;
DROP FUNCTION fill;
DROP TYPE point3, color CASCADE;
DROP DOMAIN positive;
DROP SCHEMA mirrored CASCADE;
DROP SCHEMA _peerdb_internal CASCADE;
