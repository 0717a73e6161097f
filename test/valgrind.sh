# valgrind.sh: the servers of run.sh under valgrind.  Sourced by run.sh when
# VALGRIND=1 (make test-valgrind).
#
# Debian's server knows nothing of valgrind: what palloc hands out is not
# tracked piece by piece, so that only reads of memory that nobody has written
# since malloc(), and of memory that is not there, are seen.
# RESYNC_SERVER=/some/prefix takes another server, built with -DUSE_VALGRIND, of
# which every palloc'd piece is tracked.  README.md says how to build it.
#
# Reports are judged by their stack: those that have a frame of ours count as
# failures, all others are the server's.

# Everything is some thirty times slower; all of these are upper limits.
valgrind_timeouts() {
	export PGCTLTIMEOUT=600 PG_TEST_TIMEOUT_DEFAULT=1800 RESYNC_TEST_LIMIT=1200
}

# make_valgrind_server PREFIX REPORTS SUPPRESSIONS: as make_server, but the
# server's processes run under valgrind, and write to REPORTS/<pid>.log.
make_valgrind_server() {
	local bin

	make_server "$1"
	bin=$1/lib/postgresql/$PGVER/bin
	mkdir -p "$2"
	mv "$bin/postgres" "$bin/postgres.real"
	# A server is started by -D and its directory; initdb, and whoever asks for a
	# version or a setting, get it as it is, and so does a cluster without our
	# library.  What the postmaster forks is followed without --trace-children.
	cat >"$bin/postgres" <<WRAPPER
#!/bin/sh
case "\${1:-} \$* " in
	*" -C "*) exec "$bin/postgres.real" "\$@" ;;
	"-D "*) ;;
	*) exec "$bin/postgres.real" "\$@" ;;
esac
grep -qs '^shared_preload_libraries.*resync' "\$2/postgresql.conf" ||
	exec "$bin/postgres.real" "\$@"
exec valgrind --quiet --leak-check=no --error-limit=no --fullpath-after= \\
	--num-callers=30 --suppressions="$3" --log-file="$2/%p.log" \\
	"$bin/postgres.real" "\$@" -c jit=off
WRAPPER
	chmod +x "$bin/postgres"
}

# valgrind_errors REPORTS OURS: the different reports with a frame in a source
# file below a directory that begins with OURS, or in resync.so; fails if there
# is one, or if no process ran under valgrind.
valgrind_errors() {
	if [ -z "$(find "$1" -name '*.log' -print -quit)" ]; then
		echo "nothing ran under valgrind"
		return 1
	fi
	find "$1" -name '*.log' -size +0 -exec cat {} + | awk -v ours="$2" '
		# the same stack is the same report, whatever process and addresses
		function flush() {
			if (is_ours && !(key in count)) { order[++n] = key; text[key] = block }
			if (is_ours) count[key]++
			key = block = ""; is_ours = in_origin = 0
		}
		!/^==[0-9]+==/ { next }
		{ sub(/^==[0-9]+== ?/, "") }
		/^$/ { flush(); next }
		{
			block = block $0 "\n"
			if (index($0, ours) || /resync\.so\)/) is_ours = 1
			# where the memory came from tells no reports apart
			if (/^ Address /) in_origin = 1
			gsub(/0x[0-9A-Fa-f]+/, "")
			if (!in_origin) key = key $0 "\n"
		}
		END {
			flush()
			for (i = 1; i <= n; i++) printf "%d times:\n%s\n", count[order[i]], text[order[i]]
			exit n > 0
		}'
}
