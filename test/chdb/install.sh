#!/bin/bash
# The ClickHouse engine for tests: libchdb from npm, in a cache outside of the
# work tree (566 MB, fetched once).
#
#     install.sh              prints the directory libchdb.so lies in
#     install.sh build FILE   compiles chdbd to FILE, against $RESYNC_CHDB
#
# Where it cannot be had, the reason is the only line on standard error, and the
# exit status is not 0.
set -uo pipefail

version=26.7.3-stable.1
package=@chdb/lib-linux-x64-gnu
here=$(cd "$(dirname "$0")" && pwd)

give_up() {
	echo "$*" >&2
	exit 1
}

if [ "${1:-}" = build ]; then
	${CC:-gcc} -O2 -Wall -Wextra -Werror "$here"/*.c -o "$2" -L"$RESYNC_CHDB" -lchdb \
		-lzstd -llz4 -lz -lpthread -Wl,-rpath,"$RESYNC_CHDB" || exit 1
	exit 0
fi

if [ -n "${RESYNC_CACHE:-}" ]; then
	cache=$RESYNC_CACHE
elif [ "$(id -u)" -eq 0 ]; then
	# the tests step down to another user, who cannot look into /root
	cache=/var/cache/resync
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/resync
fi
dir=$cache/chdb-$version
if [ -r "$dir/libchdb.so" ]; then
	echo "$dir"
	exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] || give_up "there is no ClickHouse engine on npm for $(uname -sm)"
log=$(mktemp)
tmp=
trap 'rm -rf "$log" "$tmp"' EXIT
if ! command -v npm >/dev/null; then
	bash "$here/../install_deps.sh" npm >"$log" 2>&1 || give_up "npm cannot be installed: $(tail -n 1 "$log")"
fi
mkdir -p "$cache" 2>/dev/null || give_up "cannot make $cache"
tmp=$(mktemp -d "$cache/tmp.XXXXXX") || give_up "cannot write to $cache"
echo "fetching $package@$version" >"$log"
# npm compares the package with the checksum the registry gives for it
timeout 900 npm install --prefix "$tmp" --cache "$tmp/cache" --no-save --no-audit --no-fund \
	--ignore-scripts --loglevel=error --fetch-retries=1 "$package@$version" >>"$log" 2>&1 ||
	give_up "npm cannot fetch $package: $(grep -v '^$' "$log" | grep -iE 'error|ERR' | head -n 1)"
mv "$tmp/node_modules/$package" "$tmp/chdb"
rm -f "$tmp/chdb"/*.node
chmod -R a+rX "$tmp/chdb"
[ "$(id -u)" -ne 0 ] || chmod a+rx "$cache"
# somebody else may have been faster
mv -T "$tmp/chdb" "$dir" 2>/dev/null || [ -r "$dir/libchdb.so" ] || give_up "cannot write $dir"
echo "$dir"
