# lib.sh: what run.sh and demo.sh share.  Sourced, not run.
#
# PostgreSQL finds its libraries and its share directory relative to the
# directory its binary lies in.  make_server uses that: it makes a private copy
# of the server (binaries copied, everything else symbolic links), into which
# the extension is installed.  The machine's own server stays as it is.

PGVER=${PGVER:-15}
SYSTEM_PG_CONFIG=/usr/lib/postgresql/$PGVER/bin/pg_config

# The user the servers run as: PostgreSQL refuses root.
unprivileged_user() {
	if id -u postgres >/dev/null 2>&1; then
		echo postgres
	else
		echo nobody
	fi
}

# copy_sources FROM TO: the work tree without build products.
copy_sources() {
	mkdir -p "$2"
	tar -C "$1" --exclude=./.git --exclude='*.o' --exclude='*.so' --exclude='*.bc' \
		--exclude=./tmp_check --exclude=./results -cf - . | tar -C "$2" -xf -
}

# find_engine NAME INSTALLER: exports NAME with the directory that the installer
# prints, or NAME_MISSING with the reason why there is none.
find_engine() {
	local reason found

	reason=$(mktemp)
	found=$(bash "$2" 2>"$reason") || printf -v "$1_MISSING" %s "$(tail -n 1 "$reason")"
	rm -f "$reason"
	printf -v "$1" %s "$found"
	export "${1?}" "${1}_MISSING"
}

# Of ClickHouse, BigQuery and Snowflake; REPO is the work tree.
find_chdb() { find_engine RESYNC_CHDB "$1/test/chdb/install.sh"; }
find_bqemulator() { find_engine RESYNC_BQEMULATOR "$1/test/bigquery/install.sh"; }
find_snowflake() { find_engine RESYNC_SNOWFLAKE "$1/test/snowflake/install.sh"; }
find_fakesnow() { find_engine RESYNC_FAKESNOW "$1/test/snowflake/install_fakesnow.sh"; }
find_zetasql() { find_engine RESYNC_ZETASQL "$1/test/bigquery/install_zetasql.sh"; }

# make_server PREFIX: a private server; its pg_config is
# $PREFIX/lib/postgresql/$PGVER/bin/pg_config.  RESYNC_SERVER=/some/prefix copies
# the one installed there (README.md says how to build it) instead of Debian's.
make_server() {
	local prefix=$1
	local lib=$prefix/lib/postgresql/$PGVER

	if [ -n "${RESYNC_SERVER:-}" ]; then
		mkdir -p "$prefix/lib/postgresql"
		cp -a "$RESYNC_SERVER" "$lib"
		return
	fi
	mkdir -p "$lib" "$prefix/share/postgresql"
	cp -a "/usr/lib/postgresql/$PGVER/bin" "$lib/bin"
	cp -rs "/usr/lib/postgresql/$PGVER/lib" "$lib/lib"
	cp -rs "/usr/share/postgresql/$PGVER" "$prefix/share/postgresql/$PGVER"
	ln -s /usr/include "$prefix/include"
	# an own copy of an installed resync would be written through
	rm -f "$lib/lib/resync.so" "$prefix/share/postgresql/$PGVER/extension"/resync[.-]*
	ln -s "$("$SYSTEM_PG_CONFIG" --libdir)" "$prefix/lib/$(basename "$("$SYSTEM_PG_CONFIG" --libdir)")"
}

# private_pg_config PREFIX
private_pg_config() {
	echo "$1/lib/postgresql/$PGVER/bin/pg_config"
}

# stop_clusters DIR: every server whose data directory lies below DIR, and
# nothing else.
stop_clusters() {
	local file pid data waited

	find "$1" -name postmaster.pid -type f 2>/dev/null | while read -r file; do
		pid=$(head -n 1 "$file" 2>/dev/null || true)
		data=$(dirname "$file")
		case $pid in '' | *[!0-9]*) continue ;; esac
		[ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$(readlink -f "$data")" ] || continue
		kill -INT "$pid" 2>/dev/null || continue
		waited=0
		while kill -0 "$pid" 2>/dev/null; do
			sleep 0.1
			waited=$((waited + 1))
			if [ $waited -eq 100 ]; then
				kill -QUIT "$pid" 2>/dev/null || true
			fi
			[ $waited -lt 200 ] || break
		done
	done
}

# kill_started NAME VALUE: every process that has NAME=VALUE in the environment
# it was started with.  VALUE is the temporary directory of this very call.
kill_started() {
	local environ pid
	for environ in /proc/[0-9]*/environ; do
		pid=${environ#/proc/}
		pid=${pid%/environ}
		if grep -qsz "^$1=$2\$" "$environ" 2>/dev/null; then
			kill -TERM "$pid" 2>/dev/null || true
		fi
	done
}

# run_apart NAME SCRIPT [VAR=VALUE ...]: copies the sources into a temporary
# directory and runs SCRIPT (below test/) from there, as a user that is not root,
# with NAME=<the directory> and the variables in its environment.  Afterwards,
# however the end comes, servers, processes and the directory are gone; with
# KEEP=1 they stay.  Does not return.
run_apart() {
	local user run_as=()

	apart_name=$1
	apart_script=$2
	shift 2
	work=$(mktemp -d "/tmp/resync-$(basename "$apart_script" .sh).XXXXXX")
	kept=
	# shellcheck disable=SC2317
	finish() {
		local status=$?
		trap '' INT TERM HUP
		trap - EXIT
		if [ -z "$kept" ]; then
			stop_clusters "$work"
			kill_started "$apart_name" "$work"
			rm -rf "$work"
		fi
		exit $status
	}
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP

	copy_sources "$repo" "$work/src"
	if [ "$(id -u)" -eq 0 ]; then
		user=$(unprivileged_user)
		chown -R "$user" "$work"
		run_as=(runuser -u "$user" --)
	fi
	cd "$work" || exit 1
	"${run_as[@]}" env "$apart_name=$work" HOME="$work" KEEP="${KEEP:-0}" "$@" bash "$work/src/test/$apart_script"
	[ "${KEEP:-0}" != 1 ] || kept=yes
	exit 0
}
