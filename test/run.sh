#!/bin/bash
# All tests, from a clean checkout, as root or as an ordinary user (with sudo
# where packages are missing).  Called by `make test`.
#
# Order: packages, private servers, builds (one as a user makes it, one with
# debug points), layers, format, pg_regress, isolation specs, TAP tests.
# Everything happens in one temporary directory, which is removed at the end,
# with whatever still runs in it, however the end comes.
#
# The last line is "N passed, N failed"; the exit status is 0 only if something
# passed and nothing failed.
#
# TESTS="001_basic ..."  only these TAP tests, and neither pg_regress nor
#                        isolation specs (name "regress", "isolation" to have them)
# KEEP=1                 leave the directory behind, print its name
# JOBS=n                 TAP tests at a time (2)
# VALGRIND=1             the servers run under valgrind (valgrind.sh)

set -uo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
. "$repo/test/lib.sh"
export LC_ALL=C.UTF-8
umask 022

# ---------------------------------------------------------------- outer part:
# packages, directory, and the step down from root
if [ -z "${RESYNC_TEST_DIR:-}" ]; then
	bash "$repo/test/install_deps.sh" ${VALGRIND:+valgrind} || {
		echo "0 passed, 1 failed"
		exit 1
	}

	case ${TESTS:-clickhouse} in *clickhouse*) find_chdb "$repo" ;; esac
	case ${TESTS:-bigquery} in *bigquery*) find_bqemulator "$repo" ;; esac
	case ${TESTS:-snowflake} in *snowflake*) find_snowflake "$repo" ;; esac
	case ${TESTS:-snowflake_fakesnow} in *snowflake_fakesnow*) find_fakesnow "$repo" ;; esac
	case ${TESTS:-bigquery_sql} in *bigquery_sql*) find_zetasql "$repo" ;; esac

	work=$(mktemp -d /tmp/resync-test.XXXXXX)
	child=
	# shellcheck disable=SC2317
	finish() {
		local status=$?
		trap '' INT TERM HUP
		trap - EXIT
		[ -z "$child" ] || kill -TERM "$child" 2>/dev/null
		if [ "${KEEP:-0}" = 1 ]; then
			echo "left behind: $work" >&2
		else
			stop_clusters "$work"
			kill_started RESYNC_TEST_DIR "$work"
			rm -rf "$work"
		fi
		exit $status
	}
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP

	copy_sources "$repo" "$work/src"
	run_as=()
	if [ "$(id -u)" -eq 0 ]; then
		user=$(unprivileged_user)
		chown -R "$user" "$work"
		run_as=(runuser -u "$user" --)
	fi
	cd "$work" || exit 1
	"${run_as[@]}" env RESYNC_TEST_DIR="$work" HOME="$work" \
		TESTS="${TESTS:-}" JOBS="${JOBS:-2}" RESYNC_CHDB="${RESYNC_CHDB:-}" \
		RESYNC_CHDB_MISSING="${RESYNC_CHDB_MISSING:-}" \
		RESYNC_BQEMULATOR="${RESYNC_BQEMULATOR:-}" \
		RESYNC_ZETASQL="${RESYNC_ZETASQL:-}" RESYNC_ZETASQL_MISSING="${RESYNC_ZETASQL_MISSING:-}" \
		RESYNC_BQEMULATOR_MISSING="${RESYNC_BQEMULATOR_MISSING:-}" \
		RESYNC_SNOWFLAKE="${RESYNC_SNOWFLAKE:-}" RESYNC_SNOWFLAKE_MISSING="${RESYNC_SNOWFLAKE_MISSING:-}" \
		RESYNC_FAKESNOW="${RESYNC_FAKESNOW:-}" RESYNC_FAKESNOW_MISSING="${RESYNC_FAKESNOW_MISSING:-}" \
		bash "$work/src/test/run.sh" </dev/null &
	child=$!
	wait $child
	status=$?
	child=
	# the inner part prints the sum; it has not, if it was killed
	[ $status -le 1 ] || echo "0 passed, 1 failed"
	exit $status
fi

# ---------------------------------------------------------------- inner part
work=$RESYNC_TEST_DIR
src=$work/src
passed=0
failed=0
mkdir -p "$work/tmp"
export TMPDIR=$work/tmp
unset PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGSERVICE PGPASSFILE MAKEFLAGS MAKELEVEL MFLAGS

finish() {
	stop_clusters "$work"
	echo "$passed passed, $failed failed"
	[ $failed -eq 0 ] && [ $passed -gt 0 ]
	exit $?
}
trap 'exit 143' INT TERM HUP
trap 'stop_clusters "$work"' EXIT

# check NAME COMMAND...: one test that is one command
check() {
	local name=$1
	shift
	if "$@" >"$work/check.log" 2>&1; then
		echo "ok      $name"
		passed=$((passed + 1))
		return 0
	fi
	echo "FAILED  $name"
	sed 's/^/        /' "$work/check.log" | tail -n 60
	failed=$((failed + 1))
	return 1
}

wants() {
	[ -z "${TESTS:-}" ] && return 0
	case " $TESTS " in *" $1 "*) return 0 ;; esac
	return 1
}

if [ -n "${VALGRIND:-}" ]; then
	. "$src/test/valgrind.sh"
	valgrind_timeouts
	make_valgrind_server "$work/pg" "$work/valgrind" "$src/test/valgrind.supp"
	make_valgrind_server "$work/pgdebug" "$work/valgrind" "$src/test/valgrind.supp"
else
	make_server "$work/pg"
	make_server "$work/pgdebug"
fi
pg_config=$(private_pg_config "$work/pg")
debug_pg_config=$(private_pg_config "$work/pgdebug")
bindir=$("$pg_config" --bindir)
pgxs=$(dirname "$(dirname "$(dirname "$("$pg_config" --pgxs)")")")
jobs=$(nproc)

build() {
	copy_sources "$src" "$1"
	shift
	make -C "$build_dir" -s -j"$jobs" "$@" && make -C "$build_dir" -s "$@" install
}

if [ -z "${TESTS:-}" ]; then
	check "layers" bash "$src/test/check_layers.sh"
	check "format" bash "$src/test/check_format.sh"
fi

if wants regress || wants isolation; then
	build_dir=$work/build
	if check "build" build "$build_dir" PG_CONFIG="$pg_config"; then
		[ -n "${TESTS:-}" ] ||
			check "exported symbols" bash "$src/test/check_layers.sh" "$work/build/resync.so"
	else
		finish
	fi
fi

build_dir=$work/build-debug
check "build with debug points" build "$build_dir" PG_CONFIG="$debug_pg_config" \
	RESYNC_DEBUG=1 with_llvm=no || finish

# ---- pg_regress and isolation specs, on servers of their own
cat >"$work/regress.conf" <<CONF
shared_preload_libraries = 'resync'
wal_level = logical
max_worker_processes = 32
max_replication_slots = 20
max_prepared_transactions = 5
fsync = off
timezone = 'UTC'
CONF

# count_regress NAME OUTPUT STATUS DIFFS: lines of pg_regress
count_regress() {
	local ok bad
	# from 16 on it speaks TAP
	ok=$(grep -cE '^((test|     ) .* \.\.\. ok|ok [0-9])' "$2")
	bad=$(grep -cE '^((test|     ) .* \.\.\. FAILED|not ok [0-9])' "$2")
	[ "$3" -eq 0 ] || [ "$bad" -gt 0 ] || bad=1
	passed=$((passed + ok))
	failed=$((failed + bad))
	if [ "$bad" -gt 0 ]; then
		echo "FAILED  $1 ($ok passed, $bad failed)"
		grep -E 'FAILED|^not ok|^pg_regress|could not|failed' "$2" | sed 's/^/        /' | head -n 30
		[ ! -e "$4" ] || head -n 150 "$4" | sed 's/^/        /'
	else
		echo "ok      $1 ($ok)"
	fi
}

if wants regress; then
	tests=$(cd "$work/build/sql" && ls ./*.sql 2>/dev/null | sed 's,^\./,,;s,\.sql$,,' | grep -v '^resync--')
	if [ -n "$tests" ]; then
		# shellcheck disable=SC2086
		"$pgxs/src/test/regress/pg_regress" --bindir="$bindir" --inputdir="$work/build" \
			--outputdir="$work/regress" --temp-instance="$work/regress/instance" \
			--temp-config="$work/regress.conf" --no-locale --encoding=UTF8 \
			--dbname=contrib_regression $tests >"$work/regress.out" 2>&1
		count_regress "pg_regress" "$work/regress.out" $? "$work/regress/regression.diffs"
	fi
fi
if wants isolation; then
	specs=$(cd "$work/build/test" && ls specs/*.spec 2>/dev/null | sed 's,^specs/,,;s,\.spec$,,')
	if [ -n "$specs" ]; then
		# shellcheck disable=SC2086
		"$pgxs/src/test/isolation/pg_isolation_regress" --bindir="$bindir" \
			--inputdir="$work/build/test" --outputdir="$work/isolation" \
			--temp-instance="$work/isolation/instance" --temp-config="$work/regress.conf" \
			--no-locale --encoding=UTF8 --load-extension=resync \
			--dbname=isolation_regression $specs >"$work/isolation.out" 2>&1
		count_regress "isolation specs" "$work/isolation.out" $? "$work/isolation/regression.diffs"
	fi
fi

# ---- the ClickHouse engine, with a server around it
if [ -n "${RESYNC_CHDB:-}" ]; then
	export RESYNC_CHDBD=$work/chdbd
	check "ClickHouse server for tests" bash "$src/test/chdb/install.sh" build "$RESYNC_CHDBD" || finish
fi

# ---- TAP tests, on the build with debug points
files=()
for file in "$src"/test/t/*.pl; do
	name=$(basename "$file" .pl)
	if wants "$name"; then
		files+=("$file")
	fi
done
if [ ${#files[@]} -gt 0 ]; then
	counts=$work/tap.counts
	PATH=$("$debug_pg_config" --bindir):$PATH \
		PG_REGRESS=$pgxs/src/test/regress/pg_regress TESTDIR=$work \
		TESTDATADIR=$work/tmp_check TESTLOGDIR=$work/tmp_check/log \
		PG_TEST_PORT_DIR=$work/portlock RESYNC_SRC=$src \
		PERL5LIB=$pgxs/src/test/perl:$src/test/perl \
		perl "$src/test/run_tap.pl" "$counts" "${JOBS:-2}" "${files[@]}"
	if [ -s "$counts" ]; then
		read -r tap_passed tap_failed <"$counts"
		passed=$((passed + tap_passed))
		failed=$((failed + tap_failed))
	else
		echo "FAILED  TAP tests: no result"
		failed=$((failed + 1))
	fi
fi

if [ -n "${VALGRIND:-}" ]; then
	stop_clusters "$work"
	check "no error of ours under valgrind" valgrind_errors "$work/valgrind" "$work/build"
fi

finish
