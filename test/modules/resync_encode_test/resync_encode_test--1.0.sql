\echo Use "CREATE EXTENSION resync_encode_test" to load this file. \quit

-- A table as an Avro file, after its columns the extra ones "_op" (string, 'U')
-- and "_n" (long; NULL in every second row).  way: tuple, fields or pieces.
CREATE FUNCTION encode_avro(rel regclass, way text DEFAULT 'tuple', drop_nulls bool DEFAULT false,
	null_unfit bool DEFAULT false, unbounded_string bool DEFAULT false, key text DEFAULT '',
	max_row int DEFAULT 0)
RETURNS bytea STRICT LANGUAGE C AS 'MODULE_PATHNAME';

-- dest_type, wire_info and Avro type of a column of the type
CREATE FUNCTION bq_column(typ regtype, typmod int DEFAULT -1, is_key bool DEFAULT false,
	is_notnull bool DEFAULT false, unbounded_string bool DEFAULT false,
	OUT dest_type text, OUT wire_info text, OUT avro text)
STRICT LANGUAGE C AS 'MODULE_PATHNAME';

-- A value encoded as a key's field, decoded, and as text.
CREATE FUNCTION bq_key(v anyelement) RETURNS text STRICT LANGUAGE C AS 'MODULE_PATHNAME';

CREATE FUNCTION jwt_sign(pem text, passphrase text, header text, claims text)
RETURNS text LANGUAGE C AS 'MODULE_PATHNAME';
CREATE FUNCTION jwt_fingerprint(pem text, passphrase text)
RETURNS text LANGUAGE C AS 'MODULE_PATHNAME';
CREATE FUNCTION jwt_base64url(v bytea) RETURNS text STRICT LANGUAGE C AS 'MODULE_PATHNAME';

-- Why a text is no JSON (NULL: it is), what is at a path of it, and one built.
CREATE FUNCTION json_reason(doc text, depth int DEFAULT 32)
RETURNS text STRICT LANGUAGE C AS 'MODULE_PATHNAME';
CREATE FUNCTION json_at(doc text, path text) RETURNS text STRICT LANGUAGE C AS 'MODULE_PATHNAME';
CREATE FUNCTION json_built(taken text) RETURNS text STRICT LANGUAGE C AS 'MODULE_PATHNAME';
