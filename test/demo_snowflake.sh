#!/bin/bash
# `make demo-snowflake`: a mirror at Snowflake, changes, a column that changes its
# type, and a resync while the source is written to: deleted rows come over, and
# at the end both sides are equal.
#
# A throw-away server, and in place of Snowflake the service of the tests
# (test/snowflake: its protocol by us, tables in DuckDB, files in s3rver), on
# loopback and a Unix-domain socket only.  ROWS=n (20,000).

set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
. "$repo/test/lib.sh"
export LC_ALL=C.UTF-8
umask 022

# ---- outer part: packages, engine, directory, and the step down from root
if [ -z "${RESYNC_DEMO_DIR:-}" ]; then
	bash "$repo/test/install_deps.sh" demo
	find_snowflake "$repo"
	if [ -z "$RESYNC_SNOWFLAKE" ]; then
		echo "no Snowflake service: $RESYNC_SNOWFLAKE_MISSING" >&2
		exit 1
	fi
	run_apart RESYNC_DEMO_DIR demo_snowflake.sh RESYNC_SNOWFLAKE="$RESYNC_SNOWFLAKE" ROWS="${ROWS:-20000}"
fi

# ---- inner part
work=$RESYNC_DEMO_DIR
started=$SECONDS
unset PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGSERVICE MAKEFLAGS MAKELEVEL MFLAGS
background=()
# shellcheck disable=SC2317
end() {
	local pid
	for pid in "${background[@]}"; do kill "$pid" 2>/dev/null || true; done
}
trap end EXIT
. "$work/src/test/demo_lib.sh"

step "building the extension, a throw-away server and a Snowflake service in $work"
build_extension
start_server source || die "the source does not start"
openssl genrsa -out "$work/key.pem" 2048 2>/dev/null
openssl rsa -in "$work/key.pem" -pubout -out "$work/public.pem" 2>/dev/null
openssl pkcs8 -topk8 -in "$work/key.pem" -out "$work/rsa_key.p8" -v2 aes-256-cbc -passout pass:demo 2>/dev/null
echo demo >"$work/passphrase"
chmod 600 "$work/rsa_key.p8" "$work/passphrase"
# the service ends with whoever started it
NODE_PATH=$RESYNC_SNOWFLAKE/node_modules node "$work/src/test/snowflake/service.js" --key "$work/public.pem" \
	--account demo-org --user MIRROR --database SHOP --warehouse LOADING --role RESYNC --schemas PUBLIC \
	--log "$work/requests" >"$work/port" 2>"$work/service.err" &
background+=("$!")
for ((i = 0; i < 1200; i++)); do
	[ ! -s "$work/port" ] || break
	sleep 0.1
done
port=$(awk '{ print $2 }' "$work/port")
[ -n "$port" ] || die "the Snowflake service does not start: $(cat "$work/service.err")"
say "$(src -c 'SELECT version()')"
say "Snowflake's protocol on 127.0.0.1:$port"

# sf SQL: rows, as COPY would show them, asked for as the account's administrator.
sf() {
	node - "$port" "$1" <<'JS'
const [port, sql] = process.argv.slice(2);
fetch(`http://127.0.0.1:${port}/admin/sql`, { method: 'POST', body: JSON.stringify({ sql }) }).then((answer) => answer.json()).then((answer) => {
  if (answer.error) throw new Error(answer.error);
  for (const row of answer.rows) console.log(row.map((value) => value ?? '\\N').join('\t'));
});
JS
}

step "source: $ROWS orders"
src <<SQL
CREATE TABLE orders (id int PRIMARY KEY, tenant int NOT NULL, placed date NOT NULL, amount int, note text);
INSERT INTO orders SELECT i, i % 100, '2025-01-01'::date + i % 365, i % 1000, CASE WHEN i % 4 > 0 THEN 'order ' || i END
	FROM generate_series(1, $ROWS) i;
VACUUM ANALYZE;
SQL

step "the mirror"
mirror_sql=$(cat <<SQL
CREATE EXTENSION resync;
CREATE SERVER sf FOREIGN DATA WRAPPER peerdb_snowflake OPTIONS (account 'demo-org', database 'shop', warehouse 'loading', role 'resync', url 'http://127.0.0.1:$port');
CREATE USER MAPPING FOR CURRENT_USER SERVER sf OPTIONS (user 'mirror', private_key_file '$work/rsa_key.p8', private_key_passphrase_file '$work/passphrase');
SELECT peerdb_create_mirror('m', 'sf', '[{"from": "public.orders", "cluster_by": ["placed"]}]', '{"sync_interval": 1}');
SQL
)
while read -r line; do sql_line "$line"; done <<<"$mirror_sql"
run=$(src <<<"$mirror_sql" | tail -n 1)
watch_run "$run"
say "$(sf 'SELECT COUNT(*) FROM SHOP.PUBLIC.ORDERS') rows at Snowflake"

step "changes; then a column changes its type while orders are written"
src -c "DELETE FROM orders WHERE id % 100 = 50; UPDATE orders SET note = 'changed' WHERE id % 10 = 1" -c "SELECT peerdb_wait_for_lsn('m')" >/dev/null
say "$(sf 'SELECT COUNT(*) FROM SHOP.PUBLIC.ORDERS WHERE _peerdb_is_deleted') rows are kept there as deleted"
sf 'GRANT SELECT ON TABLE SHOP.PUBLIC.ORDERS TO ROLE ANALYST' >/dev/null
say "role ANALYST may read the table"
cat >"$work/write.sql" <<'SQL'
\set id random(1, 15000)
UPDATE orders SET amount = amount + 1 WHERE id = :id;
INSERT INTO orders SELECT max(id) + 1, 1, now(), 1, 'new' FROM orders;
SQL
"$bin/pgbench" -n -c 1 -R 20 -T 600 -f "$work/write.sql" -h "$work/source.sock" -U postgres postgres >"$work/writer.log" 2>&1 &
writer=$!
background+=("$writer")
sql_line "ALTER TABLE orders ALTER amount TYPE bigint, ADD COLUMN channel text DEFAULT 'shop';"
sql_line "SELECT peerdb_resync('m');"
src -c "ALTER TABLE orders ALTER amount TYPE bigint, ADD COLUMN channel text DEFAULT 'shop'" >/dev/null
watch_run "$(src -c "SELECT peerdb_resync('m')")"

step "both sides, row by row"
kill "$writer" 2>/dev/null || true
wait "$writer" 2>/dev/null || true
src -c "SELECT peerdb_wait_for_lsn('m')" >/dev/null
src -c 'COPY (SELECT id, tenant, placed, amount, note, channel FROM orders ORDER BY id) TO STDOUT' >"$work/here"
sf 'SELECT id, tenant, placed, amount, note, channel FROM SHOP.PUBLIC.ORDERS WHERE NOT _peerdb_is_deleted ORDER BY id' >"$work/there"
if ! cmp -s "$work/here" "$work/there"; then
	diff "$work/here" "$work/there" | head -n 10 >&2 || true
	die "orders differs"
fi
total=$(wc -l <"$work/here")
[ "$total" -gt 0 ] || die "nothing was compared"
deleted=$(sf 'SELECT COUNT(*) FROM SHOP.PUBLIC.ORDERS WHERE _peerdb_is_deleted')
[ "$deleted" -eq $((ROWS / 100)) ] || die "$deleted rows are kept as deleted"
sf 'SHOW GRANTS ON TABLE SHOP.PUBLIC.ORDERS' | grep -q ANALYST || die "the grant is lost"
say "role ANALYST may still read the table"
say "$(printf '%-18s %9d rows  %sequal%s' orders "$total" "$green" "$plain")"

step "dropping the mirror, stopping both servers"
src -c "SELECT peerdb_drop_mirror('m')" >/dev/null
for ((i = 0; i < 300; i++)); do
	left=$(src -c "SELECT (SELECT count(*) FROM peerdb.mirrors) + (SELECT count(*) FROM pg_replication_slots)")
	[ "$left" -ne 0 ] || break
	sleep 0.1
done
[ "$left" -eq 0 ] || die "something of the mirror is left at the source"
"$bin/pg_ctl" -D "$work/source" -m fast -w stop >/dev/null

step "shown in $((SECONDS - started)) s"
say "$total rows are equal on both sides after a resync under writes; $deleted deleted rows were kept."
