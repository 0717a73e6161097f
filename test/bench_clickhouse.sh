#!/bin/bash
# `make bench-clickhouse`: how fast a table is loaded into ClickHouse, against
# "COPY ... TO STDOUT | curl", as TabSeparated and as CSV, into the same engine
# on the same machine.
#
# ROWS=n (4,000,000), ROUNDS=n (3), COMPRESSION="zstd lz4 none": one after the
# other in each round; PARTITION=n: rows of a partition (1,000,000).  A throw-away server and the engine of the tests
# (test/chdb), on loopback and a Unix-domain socket only.

set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
. "$repo/test/lib.sh"
export LC_ALL=C.UTF-8
umask 022

# ---- outer part: packages, engine, directory, and the step down from root
if [ -z "${RESYNC_BENCH_DIR:-}" ]; then
	bash "$repo/test/install_deps.sh" demo
	find_chdb "$repo"
	if [ -z "$RESYNC_CHDB" ]; then
		echo "no ClickHouse engine: $RESYNC_CHDB_MISSING" >&2
		exit 1
	fi
	run_apart RESYNC_BENCH_DIR bench_clickhouse.sh RESYNC_CHDB="$RESYNC_CHDB" \
		ROWS="${ROWS:-4000000}" ROUNDS="${ROUNDS:-3}" COMPRESSION="${COMPRESSION:-zstd lz4 none}" \
		PARTITION="${PARTITION:-1000000}"
fi

# ---- inner part
work=$RESYNC_BENCH_DIR
unset PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGSERVICE MAKEFLAGS MAKELEVEL MFLAGS
die() {
	echo "$*" >&2
	exit 1
}

echo "building"
make_server "$work/pg"
pg_config=$(private_pg_config "$work/pg")
bin=$("$pg_config" --bindir)
if ! { make -C "$work/src" -s -j"$(nproc)" with_llvm=no PG_CONFIG="$pg_config" &&
	make -C "$work/src" -s with_llvm=no PG_CONFIG="$pg_config" install; } >"$work/build.log" 2>&1; then
	cat "$work/build.log" >&2
	die "the build failed"
fi
bash "$work/src/test/chdb/install.sh" build "$work/chdbd"

"$bin/initdb" -D "$work/source" -A trust -U postgres --encoding=UTF8 --locale=C.UTF-8 >"$work/initdb.log" 2>&1 ||
	die "$(cat "$work/initdb.log")"
mkdir "$work/sock"
cat >>"$work/source/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$work/sock'
port = 5432
fsync = off
max_wal_size = 8GB
checkpoint_timeout = 1h
shared_buffers = 512MB
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
jit = off
autovacuum = off
CONF
"$bin/pg_ctl" -D "$work/source" -l "$work/source.log" -w start >/dev/null || die "$(tail "$work/source.log")"
src() { PGOPTIONS='-c client_min_messages=warning' "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -h "$work/sock" -U postgres -d postgres "$@"; }

postmaster=$(head -n 1 "$work/source/postmaster.pid")

"$work/chdbd" --die-with-parent --path "$work/ch" >"$work/port" 2>"$work/chdbd.err" &
engine=$!
for ((i = 0; i < 600; i++)); do
	[ ! -s "$work/port" ] || break
	sleep 0.1
done
port=$(awk '{ print $2 }' "$work/port")
[ -n "$port" ] || die "the ClickHouse server does not start: $(cat "$work/chdbd.err")"
ch() { curl -sS --fail-with-body --data-binary "$1" "http://127.0.0.1:$port/?database=${2-d}"; }
ch 'CREATE DATABASE d' ''

echo "$ROWS rows, 11 columns"
src <<SQL
CREATE EXTENSION resync;
CREATE TABLE bench (id bigint PRIMARY KEY, n int NOT NULL, name text NOT NULL, price numeric(12,2) NOT NULL,
	ratio double precision NOT NULL, at timestamptz NOT NULL, day date NOT NULL, tag uuid NOT NULL, note text,
	doc jsonb NOT NULL, ok boolean NOT NULL);
INSERT INTO bench SELECT i, i % 1000, 'name ' || md5(i::text), (i % 1000000) / 100.0, i / 7.0,
	'2024-01-01 00:00:00+00'::timestamptz + i * interval '1.1 seconds', '2020-01-01'::date + (i % 2000)::int,
	md5(i::text)::uuid, CASE WHEN i % 3 = 0 THEN NULL ELSE 'a note on row ' || i END,
	jsonb_build_object('id', i, 'kind', 'k' || i % 10, 'list', jsonb_build_array(i % 5, true, NULL)), i % 2 = 0
	FROM generate_series(1, $ROWS) i;
VACUUM (FREEZE, ANALYZE) bench;
CHECKPOINT;
SQL
columns="id, n, name, price, ratio, at, day, tag, note, doc, ok"
say() { printf '%-10s %-22s %8s s  %s\n' "$@"; }
seconds() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f\n", b - a }'; }
median() { sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

# CPU seconds so far of the engine and of PostgreSQL's processes that have ended:
# they say what the time went into, also on a machine that others use.
cpu() {
	local tick
	tick=$(getconf CLK_TCK)
	awk -v t="$tick" '{ printf "%.2f ", ($14 + $15) / t }' "/proc/$engine/stat"
	awk -v t="$tick" '{ printf "%.2f\n", ($16 + $17) / t }' "/proc/$postmaster/stat"
}
# cpu_since "ENGINE POSTGRES"
cpu_since() { awk '{ printf "CPU: engine %.1f s, PostgreSQL %.1f s", $3 - $1, $4 - $2 }' <<<"$1 $(cpu)"; }

# Same rows at both sides: count and a few sums.
check_rows() {
	local here there
	here=$(src -F ' ' -c "SELECT count(*), sum(id), sum(price), sum(n), count(note), sum(length(name)) FROM bench")
	there=$(ch "SELECT count(), sum(id), sum(price), sum(n), count(note), sum(length(name)) FROM $1" | tr '\t' ' ')
	[ "$(awk '{ printf "%d %d %.2f %d %d %d", $1, $2, $3, $4, $5, $6 }' <<<"$here")" = \
		"$(awk '{ printf "%d %d %.2f %d %d %d", $1, $2, $3, $4, $5, $6 }' <<<"$there")" ] ||
		die "$1 differs: $here / $there"
}

# mirror COMPRESSION: appends "whole load" to its file
mirror() {
	local begin end run load before used
	src <<SQL
CREATE SERVER ch_$1 FOREIGN DATA WRAPPER peerdb_clickhouse
	OPTIONS (host '127.0.0.1', port '$port', database 'd', tls 'off', compression '$1');
CREATE USER MAPPING FOR CURRENT_USER SERVER ch_$1;
SQL
	before=$(cpu)
	begin=$EPOCHREALTIME
	run=$(src -c "SELECT peerdb_create_mirror('b', 'ch_$1', '[\"public.bench\"]', '{\"snapshot_num_rows_per_partition\": $PARTITION}')")
	src -c "SELECT peerdb_wait_for_status('b', 'running', '600 s')" >/dev/null
	end=$EPOCHREALTIME
	used=$(cpu_since "$before")
	load=$(src -c "SELECT round(extract(epoch FROM max(finished_at) - min(started_at)), 2) FROM peerdb.partitions WHERE run = $run")
	echo "$(seconds "$begin" "$end") $load" >>"$work/mirror_$1"
	check_rows bench
	say "" "mirror, $1" "$load" "load; $(seconds "$begin" "$end") s from the call to running, $(src -c "SELECT pg_size_pretty(bytes_sent) FROM peerdb.runs WHERE run = $run") sent; $used"
	src -c "SELECT peerdb_drop_mirror('b')" >/dev/null
	for ((i = 0; i < 300; i++)); do
		[ "$(src -c "SELECT count(*) FROM peerdb.mirrors")" -ne 0 ] || break
		sleep 0.1
	done
	src -c "DROP SERVER ch_$1 CASCADE"
	ch "CREATE TABLE IF NOT EXISTS like_bench AS bench"
	ch "DROP TABLE bench SYNC"
}

# pipe NAME COPY-OPTIONS FORMAT
pipe() {
	local begin end query before used
	ch "CREATE TABLE pipe AS like_bench"
	query="INSERT%20INTO%20pipe%20(${columns// /})%20FORMAT%20$3"
	before=$(cpu)
	begin=$EPOCHREALTIME
	src -c "COPY (SELECT $columns FROM bench) TO STDOUT $2" |
		curl -sS --fail-with-body -X POST -H 'Expect:' -T - \
			"http://127.0.0.1:$port/?database=d&async_insert=0&date_time_input_format=best_effort&query=$query" ||
		die "the pipe failed"
	end=$EPOCHREALTIME
	used=$(cpu_since "$before")
	check_rows pipe
	seconds "$begin" "$end" >>"$work/pipe_$1"
	say "" "COPY | curl, $1" "$(tail -n 1 "$work/pipe_$1")" "$used"
	ch "DROP TABLE pipe SYNC"
}

src -c "SELECT count(*) FROM bench" >/dev/null
for ((round = 1; round <= ROUNDS; round++)); do
	say "round $round" "" "" ""
	for compression in $COMPRESSION; do mirror "$compression"; done
	pipe TSV "" TabSeparated
	pipe CSV "(FORMAT csv, NULL '\\N')" CSV
done

tsv=$(median <"$work/pipe_TSV")
csv=$(median <"$work/pipe_CSV")
echo
echo "median of $ROUNDS rounds, $(nproc) cores, engine $(ch 'SELECT version()')"
printf '%-22s %8s s\n' "COPY | curl, TSV" "$tsv" "COPY | curl, CSV" "$csv"
for compression in $COMPRESSION; do
	whole=$(cut -d' ' -f1 "$work/mirror_$compression" | median)
	load=$(cut -d' ' -f2 "$work/mirror_$compression" | median)
	awk -v c="$compression" -v l="$load" -v w="$whole" -v t="$tsv" -v v="$csv" 'BEGIN {
		printf "mirror, %-14s %8s s: %.2f times as fast as TSV, %.2f as CSV (call to running: %s s, %.2f, %.2f)\n",
			c, l, t / l, v / l, w, t / w, v / w }'
done
