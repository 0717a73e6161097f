#!/bin/bash
# What the Snowflake service for tests runs on: npm packages @duckdb/node-api,
# s3rver and azurite, in a cache outside of the work tree (fetched once).  Prints
# its directory; where it cannot be had, the reason is the only line on standard
# error, and the exit status is not 0.
set -uo pipefail

version=2 # of this list of packages: changed by hand with it

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
dir=$cache/snowflake-$version
if [ -r "$dir/done" ]; then
	echo "$dir"
	exit 0
fi
[ "$(uname -sm)" = "Linux x86_64" ] || give_up "the Snowflake service for tests is not tried on $(uname -sm)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! command -v npm >/dev/null; then
	bash "$(dirname "$0")/../install_deps.sh" npm >"$log" 2>&1 || give_up "npm cannot be installed: $(tail -n 1 "$log")"
fi
node -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)' || give_up "node $(node --version) is too old for the Snowflake service"
mkdir -p "$cache" 2>/dev/null || give_up "cannot make $cache"
[ "$(id -u)" -ne 0 ] || chmod a+rx "$cache"
rm -rf "$dir"
mkdir "$dir" || give_up "cannot write to $cache"
# azurite asks for node 22 because of its telemetry; that, and the drivers of the
# SQL databases that it can store in, are two thirds of its size and not used here
mkdir "$dir/none"
echo '{ "name": "none", "version": "1.0.0", "main": "index.js" }' >"$dir/none/package.json"
echo >"$dir/none/index.js"
none="\"file:$dir/none\""
cat >"$dir/package.json" <<EOF
{ "private": true,
  "dependencies": { "@duckdb/node-api": "1.5.6-r.1", "s3rver": "3.7.1", "azurite": "3.37.0" },
  "overrides": { "azurite": { "applicationinsights": $none, "sequelize": $none, "mysql2": $none, "tedious": $none } } }
EOF
timeout 900 npm install --prefix "$dir" --cache "$dir/cache" --no-package-lock --no-audit --no-fund \
	--ignore-scripts --loglevel=error --fetch-retries=1 >"$log" 2>&1 ||
	give_up "npm cannot fetch DuckDB, s3rver and azurite: $(grep -v '^$' "$log" | grep -iE 'error|ERR' | head -n 1)"
rm -rf "$dir/cache"
chmod -R a+rX "$dir"
touch "$dir/done"
echo "$dir"
