#!/bin/bash
# Installs what `make test`, `make demo` (argument demo), `make test-valgrind`
# (argument valgrind) and the ClickHouse engine (argument npm) need and the
# machine has not, by apt.  Runs as root or by sudo; does nothing, and needs no
# rights, when everything is there.
#
# Neither starts nor changes a cluster: where postgresql-15 is not installed
# yet, postgresql-common is told first not to create the "main" cluster.

set -euo pipefail

PGVER=${PGVER:-15}
build=(
	"postgresql-$PGVER" "postgresql-server-dev-$PGVER" libpq-dev make gcc
	pkg-config libcurl4-openssl-dev libzstd-dev liblz4-dev zlib1g-dev
)
wanted=(
	"${build[@]}" "postgresql-$PGVER-cron" libipc-run-perl perl clang-format
	curl openssl socat
)
case "${1:-}" in
	demo) wanted=("${build[@]}" curl) ;;
	valgrind) wanted+=(valgrind libc6-dbg) ;;
	npm) wanted=(nodejs npm) ;;
esac

# JSON, signatures and Avro; tests: a reader of Avro
wanted+=(libjson-c-dev libssl-dev zlib1g-dev)
[ -n "${1:-}" ] || wanted+=(python3-venv openssl)

missing=()
for package in "${wanted[@]}"; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "not installed: ${missing[*]}; install them, or run this as root" >&2
		exit 1
	fi
	as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

apt() {
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
		-o Dpkg::Options::=--force-confold "$@" >"$log" 2>&1
}

fail() {
	tail -n 30 "$log" >&2
	echo "could not install: ${missing[*]}" >&2
	exit 1
}

echo "installing ${missing[*]}" >&2

# The server package would create and start a cluster otherwise.
common=/etc/postgresql-common/createcluster.conf
if [ "$(dpkg-query -W -f '${db:Status-Status}' "postgresql-$PGVER" 2>/dev/null || true)" != installed ]; then
	if [ ! -e $common ]; then
		apt install --no-install-recommends postgresql-common || {
			apt update || fail
			apt install --no-install-recommends postgresql-common || fail
		}
	fi
	saved=$(mktemp)
	"${as_root[@]}" cat $common >"$saved"
	restore() {
		"${as_root[@]}" cp "$saved" $common
		rm -f "$saved" "$log"
	}
	trap restore EXIT
	printf '\ncreate_main_cluster = false\n' | "${as_root[@]}" tee -a $common >/dev/null
fi

apt install --no-install-recommends "${missing[@]}" || {
	apt update || fail
	apt install --no-install-recommends "${missing[@]}" || fail
}
