# demo_lib.sh: what the demos share.  Sourced, not run;
# $work is the demo's directory.

tty=false
bold='' dim='' green='' red='' plain=''
if [ -t 1 ]; then
	tty=true
	bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi
step() { printf '\n%s==> %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '    %s\n' "$*"; }
sql_line() { printf '    %s%s%s\n' "$dim" "$*" "$plain"; }
die() {
	printf '%s%s%s\n' "$red" "$*" "$plain" >&2
	exit 1
}

# The extension, into a private server.  Sets pg_config and bin.
build_extension() {
	make_server "$work/pg"
	pg_config=$(private_pg_config "$work/pg")
	bin=$("$pg_config" --bindir)
	if ! { make -C "$work/src" -s -j"$(nproc)" with_llvm=no PG_CONFIG="$pg_config" &&
		make -C "$work/src" -s with_llvm=no PG_CONFIG="$pg_config" install; } >"$work/build.log" 2>&1; then
		cat "$work/build.log" >&2
		die "the build failed"
	fi
}

# start_server NAME: "source" has the extension.
start_server() {
	local name=$1
	"$bin/initdb" -D "$work/$name" -A trust -U postgres --encoding=UTF8 --locale=C.UTF-8 >"$work/$name.initdb" 2>&1 ||
		{ cat "$work/$name.initdb" >&2; return 1; }
	mkdir "$work/$name.sock"
	cat >>"$work/$name/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$work/$name.sock'
port = 5432
fsync = off
max_wal_size = 2GB
shared_buffers = 128MB
CONF
	if [ "$name" = source ]; then
		cat >>"$work/$name/postgresql.conf" <<CONF
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
CONF
	fi
	"$bin/pg_ctl" -D "$work/$name" -l "$work/$name.log" -w start >/dev/null ||
		{ tail -n 20 "$work/$name.log" >&2; return 1; }
}

src() { PGOPTIONS='-c client_min_messages=warning' "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -h "$work/source.sock" -U postgres -d postgres "$@"; }

# progress_bar FRACTION WIDTH
progress_bar() {
	awk -v p="$1" -v w="$2" 'BEGIN { n = int(p * w + 0.5); s = ""; for (i = 0; i < w; i++) s = s (i < n ? "#" : "."); printf "%s", s }'
}

# watch_run RUN: shows the phases of a run and its progress until it is over.
watch_run() {
	local run=$1 last='' status phase progress rows eta outcome shown line begin=$SECONDS error
	shown=-1
	while :; do
		line=$(src -F '|' -c "
			SELECT m.status, r.phase, coalesce(round(m.progress::numeric, 3), 0), coalesce(m.rows_loaded, 0),
				coalesce(date_trunc('second', m.eta)::text, '?'), coalesce(r.outcome, ''), coalesce(r.error, '')
			FROM peerdb.runs r JOIN peerdb.mirrors m USING (mirror) WHERE r.run = $run")
		IFS='|' read -r status phase progress rows eta outcome error <<<"$line"
		if [ "$phase" != "$last" ]; then
			! $tty || printf '\r\e[K'
			printf '    %s%-9s%s %s\n' "$bold" "$status" "$plain" "$phase"
			last=$phase
		fi
		if [ "$phase" = load ]; then
			if $tty; then
				printf '\r\e[K    %s[%s]%s %3d %%  %s rows  eta %s' "$green" "$(progress_bar "$progress" 40)" "$plain" \
					"$(awk -v p="$progress" 'BEGIN { print int(p * 100) }')" "$rows" "$eta"
			else
				local tenth
				tenth=$(awk -v p="$progress" 'BEGIN { print int(p * 5) }')
				if [ "$tenth" != "$shown" ]; then
					shown=$tenth
					printf '    [%s] %s rows\n' "$(progress_bar "$progress" 40)" "$rows"
				fi
			fi
		fi
		case $outcome in
			done) break ;;
			refused | failed | cancelled) die "run $run is $outcome: $error" ;;
		esac
		[ $((SECONDS - begin)) -lt 100 ] || die "run $run is still in phase $phase"
		sleep 0.15
	done
	! $tty || printf '\r\e[K'
}

# wait_for_port WHAT ERRORS: port, which the service has written to $work/port.
wait_for_port() {
	for ((i = 0; i < 1200; i++)); do
		[ ! -s "$work/port" ] || break
		sleep 0.1
	done
	port=$(awk '{ print $2 }' "$work/port")
	[ -n "$port" ] || die "$1 does not start: $(cat "$2")"
}

# orders_demo QUERY TABLE WHERE: a mirror of ROWS orders made by $mirror_sql, changes,
# a column that changes its type, a resync under writes, the proof.  QUERY: command
# that asks the destination; TABLE: the mirrored one there.  before_resync and
# after_resync may be functions.
orders_demo() {
	local ask=$1 table=$2 where=$3 run writer total deleted left

	step "source: $ROWS orders"
	src <<SQL
CREATE TABLE orders (id int PRIMARY KEY, tenant int NOT NULL, placed date NOT NULL, amount int, note text);
INSERT INTO orders SELECT i, i % 100, '2025-01-01'::date + i % 365, i % 1000, CASE WHEN i % 4 > 0 THEN 'order ' || i END
	FROM generate_series(1, $ROWS) i;
VACUUM ANALYZE;
SQL

	step "the mirror"
	while read -r line; do sql_line "$line"; done <<<"$mirror_sql"
	run=$(src <<<"$mirror_sql" | tail -n 1)
	watch_run "$run"
	say "$("$ask" "SELECT COUNT(*) FROM $table") rows at $where"

	step "changes; then a column changes its type while orders are written"
	src -c "DELETE FROM orders WHERE id % 100 = 50; UPDATE orders SET note = 'changed' WHERE id % 10 = 1" -c "SELECT peerdb_wait_for_lsn('m')" >/dev/null
	say "$("$ask" "SELECT COUNT(*) FROM $table WHERE _peerdb_is_deleted") rows are kept there as deleted"
	! declare -F before_resync >/dev/null || before_resync
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
	"$ask" "SELECT id, tenant, placed, amount, note, channel FROM $table WHERE NOT _peerdb_is_deleted ORDER BY id" >"$work/there"
	if ! cmp -s "$work/here" "$work/there"; then
		diff "$work/here" "$work/there" | head -n 10 >&2 || true
		die "orders differs"
	fi
	total=$(wc -l <"$work/here")
	[ "$total" -gt 0 ] || die "nothing was compared"
	deleted=$("$ask" "SELECT COUNT(*) FROM $table WHERE _peerdb_is_deleted")
	[ "$deleted" -eq $((ROWS / 100)) ] || die "$deleted rows are kept as deleted"
	! declare -F after_resync >/dev/null || after_resync
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
}
