# demo_lib.sh: what demo.sh and demo_clickhouse.sh share.  Sourced, not run;
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
