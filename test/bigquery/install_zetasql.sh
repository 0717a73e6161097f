#!/bin/bash
# Google's SQL analyzer for tests: npm package @fivetrandevelopers/zetasql, in a
# cache outside of the work tree (360 MB, fetched once).  Prints its directory;
# where it cannot be had, the reason is the only line on standard error, and the
# exit status is not 0.
set -uo pipefail

version=1.13.0

give_up() {
	echo "$*" >&2
	exit 1
}

if [ -n "${RESYNC_CACHE:-}" ]; then
	cache=$RESYNC_CACHE
elif [ "$(id -u)" -eq 0 ]; then
	cache=/var/cache/resync
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/resync
fi
dir=$cache/zetasql-$version
if [ -r "$dir/done" ]; then
	echo "$dir"
	exit 0
fi
[ "$(uname -sm)" = "Linux x86_64" ] || give_up "there is no ZetaSQL on npm for $(uname -sm)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! command -v npm >/dev/null; then
	bash "$(dirname "$0")/../install_deps.sh" npm >"$log" 2>&1 || give_up "npm cannot be installed: $(tail -n 1 "$log")"
fi
mkdir -p "$cache" 2>/dev/null || give_up "cannot make $cache"
[ "$(id -u)" -ne 0 ] || chmod a+rx "$cache"
rm -rf "$dir"
mkdir "$dir" || give_up "cannot write to $cache"
timeout 900 npm install --prefix "$dir" --cache "$dir/cache" --no-save --no-audit --no-fund \
	--ignore-scripts --loglevel=error --fetch-retries=1 "@fivetrandevelopers/zetasql@$version" \
	@grpc/grpc-js@1.14.7 @grpc/proto-loader@0.7.6 >"$log" 2>&1 ||
	give_up "npm cannot fetch ZetaSQL: $(grep -v '^$' "$log" | grep -iE 'error|ERR' | head -n 1)"
rm -rf "$dir/cache" "$dir"/node_modules/@fivetrandevelopers/zetasql/lib/zetasql/remote_server{,_arm,_arm.so}
chmod -R a+rX "$dir"
chmod a+x "$dir"/node_modules/@fivetrandevelopers/zetasql/lib/zetasql/remote_server.so
touch "$dir/done"
echo "$dir"
