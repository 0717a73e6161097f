#!/bin/bash
# `make demo`: a mirror, a schema change that no replication survives, a resync
# under writes, and the proof that both sides are equal.
#
# Two throw-away servers in a temporary directory, on Unix-domain sockets only;
# no cluster of the machine's is touched, nothing is installed into its
# PostgreSQL.  KEEP=1 leaves both servers up and says how to reach them.
# SCALE=n is pgbench's scale (10: one million accounts).

set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
. "$repo/test/lib.sh"
export LC_ALL=C.UTF-8
umask 022

# ---- outer part: packages, directory, and the step down from root
if [ -z "${RESYNC_DEMO_DIR:-}" ]; then
	bash "$repo/test/install_deps.sh" demo
	run_apart RESYNC_DEMO_DIR demo.sh SCALE="${SCALE:-10}"
fi

# ---- inner part
work=$RESYNC_DEMO_DIR
started=$SECONDS
unset PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGSERVICE MAKEFLAGS MAKELEVEL MFLAGS
writer=
reader=
background=()
# shellcheck disable=SC2317
end() {
	local pid
	for pid in "${background[@]}"; do kill "$pid" 2>/dev/null || true; done
}
trap end EXIT

. "$work/src/test/demo_lib.sh"

step "building the extension and two throw-away servers in $work"
build_extension
start_server source || die "the source does not start"
start_server dest || die "the destination does not start"
dst() { "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -h "$work/dest.sock" -U postgres -d postgres "$@"; }
say "$(src -c 'SELECT version()')"

step "source: pgbench -i, $SCALE times 100,000 accounts"
"$bin/pgbench" -i -q -s "$SCALE" -h "$work/source.sock" -U postgres postgres >"$work/pgbench.log" 2>&1 ||
	{ cat "$work/pgbench.log" >&2; die "pgbench failed"; }
src -c "ALTER TABLE pgbench_history ADD COLUMN hid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
user=$(src -c 'SELECT current_user')

step "the mirror"
mirror_sql=$(cat <<SQL
CREATE EXTENSION resync;
CREATE SERVER dest FOREIGN DATA WRAPPER peerdb_postgres OPTIONS (host '$work/dest.sock', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER dest OPTIONS (user '$user');
SELECT peerdb_create_mirror('m', 'dest', '["public.pgbench_accounts", "public.pgbench_branches", "public.pgbench_tellers", "public.pgbench_history"]');
SQL
)
while read -r line; do sql_line "$line"; done <<<"$mirror_sql"
run=$(src <<<"$mirror_sql" | tail -n 1)
watch_run "$run"

step "pgbench writes from now on; a reader counts the destination's rows all the time"
"$bin/pgbench" -n -c 2 -R 200 -T 600 -h "$work/source.sock" -U postgres postgres >"$work/writer.log" 2>&1 &
writer=$!
background+=("$writer")
queries='SELECT count(*) FROM pgbench_branches;
SELECT count(*) FROM pgbench_tellers;
SELECT count(*) FROM pgbench_accounts WHERE aid <= 100;'
(while [ ! -e "$work/stop" ]; do echo "$queries"; done | dst -f - >"$work/reads" 2>"$work/read.errors") &
reader=$!
background+=("$reader")

src -c "DELETE FROM pgbench_accounts WHERE aid % 100000 = 99999"
say "$(src -c "SELECT count(*) || ' rows deleted at the source' FROM generate_series(1, $SCALE)")"
src -c "SELECT peerdb_wait_for_lsn('m')" >/dev/null

step "the source's schema changes beyond what a replication can follow"
ddl="ALTER TABLE pgbench_accounts ALTER COLUMN abalance TYPE numeric(14,2), ALTER COLUMN filler TYPE text, DROP COLUMN bid;
ALTER TABLE pgbench_accounts RENAME COLUMN filler TO note;"
# pgbench's own transactions name aid and abalance only
while read -r line; do sql_line "$line"; done <<<"$ddl"
src -c "$ddl"
for ((i = 0; i < 300; i++)); do
	[ "$(src -c "SELECT peerdb_mirror_status('m')")" != failed ] || break
	sleep 0.1
done
say "status: $(src -c "SELECT peerdb_mirror_status('m')")"
say "error:  $(src -c "SELECT error FROM peerdb.mirrors" | head -n 3)"

step "resync, while pgbench goes on writing"
sql_line "SELECT peerdb_resync('m');"
resync_started=$SECONDS
transactions_before=$(src -c "SELECT count(*) FROM pgbench_history")
run=$(src -c "SELECT peerdb_resync('m')")
watch_run "$run"
say "took $((SECONDS - resync_started)) s, $(($(src -c "SELECT count(*) FROM pgbench_history") - transactions_before)) transactions of pgbench meanwhile"
sleep 1

step "both sides, row by row"
kill "$writer" 2>/dev/null || true
wait "$writer" 2>/dev/null || true
touch "$work/stop"
wait "$reader" 2>/dev/null || true
background=()
src -c "SELECT peerdb_wait_for_lsn('m')" >/dev/null
total=0
for table in pgbench_accounts pgbench_branches pgbench_tellers pgbench_history; do
	columns=$(src -c "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '$table'::regclass AND attnum > 0 AND NOT attisdropped")
	key=$(src -c "SELECT quote_ident(attname) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] WHERE indrelid = '$table'::regclass AND indisprimary")
	if ! cmp -s <(src -c "COPY (SELECT $columns FROM $table ORDER BY $key) TO STDOUT") \
		<(dst -c "COPY (SELECT $columns FROM $table WHERE NOT _peerdb_is_deleted ORDER BY $key) TO STDOUT"); then
		diff <(src -c "COPY (SELECT $columns FROM $table ORDER BY $key) TO STDOUT") \
			<(dst -c "COPY (SELECT $columns FROM $table WHERE NOT _peerdb_is_deleted ORDER BY $key) TO STDOUT") | head -n 10 >&2 || true
		die "$table differs"
	fi
	rows=$(src -c "SELECT count(*) FROM $table")
	total=$((total + rows))
	say "$(printf '%-18s %9d rows  %sequal%s' "$table" "$rows" "$green" "$plain")"
done
[ "$total" -gt 0 ] || die "nothing was compared"
kept_rows=$(dst -c "SELECT count(*) FROM pgbench_accounts WHERE _peerdb_is_deleted")
[ "$kept_rows" -eq "$SCALE" ] || die "$kept_rows of $SCALE soft-deleted rows were carried over"
reads=$(wc -l <"$work/reads")
empty=$(grep -vc '^[1-9]' "$work/reads" || true)
[ ! -s "$work/read.errors" ] || die "the reader saw an error: $(head -n 3 "$work/read.errors")"
[ "$empty" -eq 0 ] || die "the reader saw an empty table $empty times"
[ "$reads" -gt 0 ] || die "the reader never read"

if [ "${KEEP:-0}" = 1 ]; then
	step "both servers stay up (KEEP=1)"
	say "source:      $bin/psql -h $work/source.sock -U postgres postgres"
	say "destination: $bin/psql -h $work/dest.sock -U postgres postgres"
	say "stop them:   for c in source dest; do $bin/pg_ctl -D $work/\$c stop; done; rm -rf $work   (as user $(id -un))"
else
	step "dropping the mirror, stopping both servers"
	src -c "SELECT peerdb_drop_mirror('m')" >/dev/null
	for ((i = 0; i < 300; i++)); do
		left=$(src -c "SELECT (SELECT count(*) FROM peerdb.mirrors) + (SELECT count(*) FROM pg_replication_slots)")
		[ "$left" -ne 0 ] || break
		sleep 0.1
	done
	[ "$left" -eq 0 ] || die "something of the mirror is left at the source"
	[ "$(dst -c "SELECT count(*) FROM pg_class WHERE relname ~ '_resync'")" -eq 0 ] || die "a _resync table is left"
	"$bin/pg_ctl" -D "$work/source" -m fast -w stop >/dev/null
	"$bin/pg_ctl" -D "$work/dest" -m fast -w stop >/dev/null
	say "no slot, no _resync table, no process is left"
fi

step "shown in $((SECONDS - started)) s"
say "$total rows are equal on both sides after DDL that stops every replication and a resync under writes;"
say "$kept_rows soft-deleted rows were carried over; $reads reads of the destination meanwhile saw no error and no empty table."
