-- The SQL surface: what exists, who may use it.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS resync CASCADE;
CREATE EXTENSION resync;
RESET client_min_messages;

SELECT peerdb_version() = extversion AS version_is_extversion FROM pg_extension WHERE extname = 'resync';

-- functions
SELECT n.nspname AS schema, p.proname AS name, pg_get_function_arguments(p.oid) AS arguments,
	pg_get_function_result(p.oid) AS result
FROM pg_depend d
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'resync'
JOIN pg_proc p ON p.oid = d.objid
JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	AND p.proname NOT LIKE '\_%'
ORDER BY p.proname COLLATE "C";

-- what PUBLIC may execute: only what the views need
SELECT p.oid::regprocedure AS function
FROM pg_depend d
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'resync'
JOIN pg_proc p ON p.oid = d.objid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
	AND has_function_privilege('public', p.oid, 'EXECUTE')
ORDER BY p.proname COLLATE "C";

-- wrappers, and that nobody has USAGE by default
SELECT w.fdwname, has_foreign_data_wrapper_privilege('public', w.oid, 'USAGE') AS public_usage
FROM pg_foreign_data_wrapper w WHERE w.fdwname LIKE 'peerdb\_%' ORDER BY 1;

-- views
SELECT c.relname AS view, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'peerdb'::regnamespace AND c.relkind = 'v' AND c.relname NOT LIKE '\_%'
GROUP BY c.relname ORDER BY c.relname COLLATE "C";

-- what PUBLIC may read in schema peerdb, and that this is all of the views
SELECT c.relname, c.relkind, c.reloptions
FROM pg_class c
WHERE c.relnamespace = 'peerdb'::regnamespace AND c.relkind IN ('r', 'v', 'S')
	AND has_table_privilege('public', c.oid, 'SELECT')
ORDER BY c.relname COLLATE "C";
SELECT count(*) AS writable_by_public
FROM pg_class c
WHERE c.relnamespace = 'peerdb'::regnamespace AND c.relkind IN ('r', 'v')
	AND has_table_privilege('public', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE');

-- every object has a comment
SELECT pg_describe_object(d.classid, d.objid, 0) AS without_comment
FROM pg_depend d
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'resync'
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	AND d.classid <> 'pg_type'::regclass
	AND NOT (d.classid = 'pg_class'::regclass AND d.objid IN (SELECT oid FROM pg_class WHERE relkind IN ('S', 'i')))
	AND obj_description(d.objid, d.classid::regclass::name) IS NULL;

-- what a dump carries
SELECT unnest(extconfig)::regclass AS dumped FROM pg_extension WHERE extname = 'resync' ORDER BY 1;

-- nothing there: the views are empty and readable
SELECT count(*) FROM peerdb.mirrors;
SELECT count(*) FROM peerdb.mirror_tables;
SELECT count(*) FROM peerdb.runs;
SELECT count(*) FROM peerdb.partitions;
SELECT count(*) FROM peerdb.batches;

-- NULL arguments are named
SELECT peerdb_create_mirror(NULL, 'p', '[]');
SELECT peerdb_create_mirror('m', NULL, '[]');
SELECT peerdb_create_mirror('m', 'p', NULL);
SELECT peerdb_create_mirror('m', 'p', '[]', NULL);
SELECT peerdb_resync(NULL);
SELECT peerdb_resync('m', NULL);
SELECT peerdb_cancel_resync(NULL);
SELECT peerdb_pause_mirror(NULL);
SELECT peerdb_resume_mirror(NULL);
SELECT peerdb_resume_mirror('m', NULL);
SELECT peerdb_drop_mirror(NULL);
SELECT peerdb_drop_mirror('m', NULL);
SELECT peerdb_drop_mirror('m', true, NULL);
SELECT peerdb_edit_mirror(NULL);
SELECT peerdb_edit_mirror('m', NULL);
SELECT peerdb_add_tables('m', NULL);
SELECT peerdb_remove_tables('m', NULL);
SELECT peerdb_mirror_status(NULL);
SELECT peerdb_wait_for_status(NULL);
SELECT peerdb_wait_for_status('m', NULL);
SELECT peerdb_wait_for_status('m', 'running', NULL);
SELECT peerdb_wait_for_lsn(NULL);
SELECT peerdb_wait_for_lsn('m', NULL, NULL);
SELECT * FROM peerdb_plan_resync(NULL);
SELECT * FROM peerdb_plan_resync('m', NULL);
SELECT * FROM peerdb_compare(NULL);
SELECT peerdb_check_peer(NULL);
\set VERBOSITY sqlstate
SELECT peerdb_resync(NULL);
-- unknown mirror, unknown peer
SELECT peerdb_resync('nobody');
SELECT peerdb_mirror_status('nobody');
SELECT peerdb_wait_for_status('nobody');
SELECT peerdb_wait_for_lsn('nobody');
SELECT peerdb_drop_mirror('nobody');
SELECT peerdb_check_peer('nobody');
-- not yet
SELECT peerdb_add_tables('m', '[]');
SELECT peerdb_remove_tables('m', '{}');
SELECT peerdb_resume_mirror('nobody', adopt => true);
\set VERBOSITY default
SELECT peerdb_drop_mirror('nobody', if_exists => true);
DROP EXTENSION resync;
