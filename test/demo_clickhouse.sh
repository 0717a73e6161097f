#!/bin/bash
# `make demo-clickhouse`: a mirror at ClickHouse, changes, and a new ORDER BY
# while the source is written to and the destination is read: no query fails, no
# query sees less than the whole table, and at the end both sides are equal.
#
# A throw-away server and the engine of the tests (test/chdb: libchdb from npm
# behind a small HTTP server), on loopback and a Unix-domain socket only.
# KEEP=1 leaves both up and says how to reach them.  ROWS=n (1,000,000).

set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
. "$repo/test/lib.sh"
export LC_ALL=C.UTF-8
umask 022

# ---- outer part: packages, engine, directory, and the step down from root
if [ -z "${RESYNC_DEMO_DIR:-}" ]; then
	bash "$repo/test/install_deps.sh" demo
	find_chdb "$repo"
	if [ -z "$RESYNC_CHDB" ]; then
		echo "no ClickHouse engine: $RESYNC_CHDB_MISSING" >&2
		exit 1
	fi
	run_apart RESYNC_DEMO_DIR demo_clickhouse.sh RESYNC_CHDB="$RESYNC_CHDB" ROWS="${ROWS:-1000000}"
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

step "building the extension, a throw-away server and a ClickHouse server in $work"
build_extension
bash "$work/src/test/chdb/install.sh" build "$work/chdbd" || die "chdbd does not build"
start_server source || die "the source does not start"
"$work/chdbd" --path "$work/ch" --password secret >"$work/port" 2>"$work/chdbd.err" &
engine=$!
[ "${KEEP:-0}" = 1 ] || background+=("$engine")
for ((i = 0; i < 600; i++)); do
	[ ! -s "$work/port" ] || break
	sleep 0.1
done
port=$(awk '{ print $2 }' "$work/port")
[ -n "$port" ] || die "the ClickHouse server does not start: $(cat "$work/chdbd.err")"
ch() {
	curl -sS --fail-with-body -H 'X-ClickHouse-Key: secret' --data-binary "$1" \
		"http://127.0.0.1:$port/?database=${2-shop}&output_format_decimal_trailing_zeros=1"
}
ch 'CREATE DATABASE shop' ''
say "$(src -c 'SELECT version()')"
say "ClickHouse $(ch 'SELECT version()'), at 127.0.0.1:$port"

step "source: $ROWS orders of 1000 tenants"
src <<SQL
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant int NOT NULL,
	at timestamptz NOT NULL DEFAULT now(), amount numeric(12,2), note text, doc jsonb);
INSERT INTO orders (tenant, at, amount, note, doc)
	SELECT i % 1000, '2025-01-01'::timestamptz + i * interval '20 seconds', i % 100000 / 100.0,
		CASE WHEN i % 4 > 0 THEN 'order ' || i END, jsonb_build_object('n', i, 'kind', 'k' || i % 7)
	FROM generate_series(1, $ROWS) i;
CREATE TABLE tenants (id int PRIMARY KEY, name text);
INSERT INTO tenants SELECT i, 'tenant ' || i FROM generate_series(0, 999) i;
VACUUM ANALYZE;
SQL

step "the mirror"
mirror_sql=$(cat <<SQL
CREATE EXTENSION resync;
CREATE SERVER ch FOREIGN DATA WRAPPER peerdb_clickhouse OPTIONS (host '127.0.0.1', port '$port', database 'shop', tls 'off');
CREATE USER MAPPING FOR CURRENT_USER SERVER ch OPTIONS (user 'default', password 'secret');
SELECT peerdb_create_mirror('m', 'ch', '["public.orders", "public.tenants"]');
SQL
)
while read -r line; do sql_line "$line"; done <<<"$mirror_sql"
run=$(src <<<"$mirror_sql" | tail -n 1)
watch_run "$run"
say "$(ch "SELECT name || ': ' || engine || ', ORDER BY ' || sorting_key || ', ' || formatReadableQuantity(total_rows) || ' rows' FROM system.tables WHERE database = 'shop' AND name IN ('orders', 'tenants')" | tr '\n' ';')"

step "orders are written from now on; a reader counts at ClickHouse all the time"
cat >"$work/write.sql" <<'SQL'
\set tenant random(0, 999)
\set id random(1, 900000)
INSERT INTO orders (tenant, amount, note) VALUES (:tenant, 1.25, 'new');
UPDATE orders SET amount = amount + 1, note = 'changed' WHERE id = :id;
DELETE FROM orders WHERE id = (SELECT min(id) FROM orders WHERE id > :id AND id % 50 = 0);
SQL
"$bin/pgbench" -n -c 2 -R 100 -T 600 -f "$work/write.sql" -h "$work/source.sock" -U postgres postgres >"$work/writer.log" 2>&1 &
writer=$!
background+=("$writer")
least=$((ROWS - ROWS / 10))
(while [ ! -e "$work/stop" ]; do
	ch "SELECT count() >= $least FROM orders FINAL" >>"$work/reads" 2>>"$work/read.errors" || echo >>"$work/read.errors"
	ch "SELECT count() = 1000 FROM tenants FINAL" >>"$work/reads" 2>>"$work/read.errors" || echo >>"$work/read.errors"
done) &
reader=$!
background+=("$reader")
src -c "SELECT peerdb_wait_for_lsn('m')" >/dev/null

query="SELECT count(), sum(amount) FROM orders FINAL WHERE tenant = 42"
granules() {
	ch "EXPLAIN indexes = 1 $query" | sed -nE 's/^ *Granules: (.*)/\1/p' | tail -n 1
}
step "queries go by tenant, the table is sorted by id"
sql_line "$query"
say "granules read: $(granules)"

step "a new ORDER BY, while orders are written"
edit="SELECT peerdb_edit_mirror('m', tables => '[{\"from\": \"public.orders\", \"order_by\": [\"tenant\", \"id\", \"at\"], \"partition_by\": \"toYear(at)\"}]');"
sql_line "ALTER TABLE orders REPLICA IDENTITY FULL;"
sql_line "$edit"
sql_line "SELECT peerdb_resync('m');"
src -c "ALTER TABLE orders REPLICA IDENTITY FULL" -c "$edit" >/dev/null
resync_started=$SECONDS
run=$(src -c "SELECT peerdb_resync('m')")
watch_run "$run"
say "took $((SECONDS - resync_started)) s"
say "$(ch "SELECT name || ': ORDER BY ' || sorting_key || ' PARTITION BY ' || partition_key FROM system.tables WHERE database = 'shop' AND name = 'orders'")"
say "granules read: $(granules)"
sleep 1

step "both sides, row by row"
kill "$writer" 2>/dev/null || true
wait "$writer" 2>/dev/null || true
touch "$work/stop"
wait "$reader" 2>/dev/null || true
src -c "SELECT peerdb_wait_for_lsn('m')" >/dev/null
total=0
# compare TABLE COLUMNS-HERE COLUMNS-THERE
compare() {
	src -c "COPY (SELECT $2 FROM $1 ORDER BY id) TO STDOUT" >"$work/here"
	ch "SELECT $3 FROM $1 FINAL WHERE _peerdb_is_deleted = 0 ORDER BY id" >"$work/there"
	if ! cmp -s "$work/here" "$work/there"; then
		diff "$work/here" "$work/there" | head -n 10 >&2 || true
		die "$1 differs"
	fi
	total=$((total + $(wc -l <"$work/here")))
	say "$(printf '%-18s %9d rows  %sequal%s' "$1" "$(wc -l <"$work/here")" "$green" "$plain")"
}
compare orders "id, tenant, (extract(epoch FROM at) * 1000000)::bigint, amount, note, doc" \
	"id, tenant, toUnixTimestamp64Micro(at), amount, note, doc"
compare tenants "id, name" "id, name"
[ "$total" -gt 0 ] || die "nothing was compared"
deleted=$(ch "SELECT uniqExact(id) FROM orders WHERE _peerdb_is_deleted")
reads=$(wc -l <"$work/reads")
[ ! -s "$work/read.errors" ] || die "the reader saw an error: $(head -n 3 "$work/read.errors")"
[ "$(grep -vc '^1$' "$work/reads" || true)" -eq 0 ] || die "the reader saw an incomplete table"
[ "$reads" -gt 0 ] || die "the reader never read"

if [ "${KEEP:-0}" = 1 ]; then
	step "both servers stay up (KEEP=1)"
	say "source:      $bin/psql -h $work/source.sock -U postgres postgres"
	say "ClickHouse:  curl -H 'X-ClickHouse-Key: secret' 'http://127.0.0.1:$port/?database=shop' -d 'SELECT ...'"
	say "stop them:   $bin/pg_ctl -D $work/source stop; kill $engine; rm -rf $work   (as user $(id -un))"
	background=()
else
	step "dropping the mirror, stopping both servers"
	src -c "SELECT peerdb_drop_mirror('m')" >/dev/null
	for ((i = 0; i < 300; i++)); do
		left=$(src -c "SELECT (SELECT count(*) FROM peerdb.mirrors) + (SELECT count(*) FROM pg_replication_slots)")
		[ "$left" -ne 0 ] || break
		sleep 0.1
	done
	[ "$left" -eq 0 ] || die "something of the mirror is left at the source"
	[ "$(ch "SELECT count() FROM system.tables WHERE database = 'shop' AND name LIKE 'orders\\_%'")" -eq 0 ] || die "a _resync table is left"
	"$bin/pg_ctl" -D "$work/source" -m fast -w stop >/dev/null
	say "no slot, no _resync table is left"
fi

step "shown in $((SECONDS - started)) s"
say "$total rows are equal on both sides after a new ORDER BY under writes; $deleted deleted rows were kept;"
say "$reads reads of ClickHouse meanwhile saw no error and never less than the whole table."
