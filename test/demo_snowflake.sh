#!/bin/bash
# `make demo-snowflake`: a mirror at Snowflake, changes, a column that changes its
# type, and a resync while the source is written to: deleted rows come over, and
# at the end both sides are equal.
#
# A throw-away server, and in place of Snowflake the service of the tests
# (test/snowflake: its protocol by us, tables in DuckDB, files in s3rver), on
# loopback and a Unix-domain socket only.  ROWS=n (20,000).

set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
. "$repo/test/lib.sh"
export LC_ALL=C.UTF-8
umask 022

# ---- outer part: packages, engine, directory, and the step down from root
if [ -z "${RESYNC_DEMO_DIR:-}" ]; then
	bash "$repo/test/install_deps.sh" demo
	find_snowflake "$repo"
	if [ -z "$RESYNC_SNOWFLAKE" ]; then
		echo "no Snowflake service: $RESYNC_SNOWFLAKE_MISSING" >&2
		exit 1
	fi
	run_apart RESYNC_DEMO_DIR demo_snowflake.sh RESYNC_SNOWFLAKE="$RESYNC_SNOWFLAKE" ROWS="${ROWS:-20000}"
fi

# ---- inner part
work=$RESYNC_DEMO_DIR
started=$SECONDS
unset PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGSERVICE MAKEFLAGS MAKELEVEL MFLAGS
background=()
# shellcheck disable=SC2317
end() {
	local pid
	for pid in "${background[@]}"; do kill "$pid" 2>/dev/null || true; done
}
trap end EXIT
. "$work/src/test/demo_lib.sh"

step "building the extension, a throw-away server and a Snowflake service in $work"
build_extension
start_server source || die "the source does not start"
openssl genrsa -out "$work/key.pem" 2048 2>/dev/null
openssl rsa -in "$work/key.pem" -pubout -out "$work/public.pem" 2>/dev/null
openssl pkcs8 -topk8 -in "$work/key.pem" -out "$work/rsa_key.p8" -v2 aes-256-cbc -passout pass:demo 2>/dev/null
echo demo >"$work/passphrase"
chmod 600 "$work/rsa_key.p8" "$work/passphrase"
# the service ends with whoever started it
NODE_PATH=$RESYNC_SNOWFLAKE/node_modules node "$work/src/test/snowflake/service.js" --key "$work/public.pem" \
	--account demo-org --user MIRROR --database SHOP --warehouse LOADING --role RESYNC --schemas PUBLIC \
	--log "$work/requests" >"$work/port" 2>"$work/service.err" &
background+=("$!")
wait_for_port "the Snowflake service" "$work/service.err"
say "$(src -c 'SELECT version()')"
say "Snowflake's protocol on 127.0.0.1:$port"

# sf SQL: rows, as COPY would show them, asked for as the account's administrator.
sf() {
	node - "$port" "$1" <<'JS'
const [port, sql] = process.argv.slice(2);
fetch(`http://127.0.0.1:${port}/admin/sql`, { method: 'POST', body: JSON.stringify({ sql }) }).then((answer) => answer.json()).then((answer) => {
  if (answer.error) throw new Error(answer.error);
  for (const row of answer.rows) console.log(row.map((value) => value ?? '\\N').join('\t'));
});
JS
}

mirror_sql=$(cat <<SQL
CREATE EXTENSION resync;
CREATE SERVER sf FOREIGN DATA WRAPPER peerdb_snowflake OPTIONS (account 'demo-org', database 'shop', warehouse 'loading', role 'resync', url 'http://127.0.0.1:$port');
CREATE USER MAPPING FOR CURRENT_USER SERVER sf OPTIONS (user 'mirror', private_key_file '$work/rsa_key.p8', private_key_passphrase_file '$work/passphrase');
SELECT peerdb_create_mirror('m', 'sf', '[{"from": "public.orders", "cluster_by": ["placed"]}]', '{"sync_interval": 1}');
SQL
)

# shellcheck disable=SC2317
before_resync() {
	sf 'GRANT SELECT ON TABLE SHOP.PUBLIC.ORDERS TO ROLE ANALYST' >/dev/null
	say "role ANALYST may read the table"
}
# shellcheck disable=SC2317
after_resync() {
	sf 'SHOW GRANTS ON TABLE SHOP.PUBLIC.ORDERS' | grep -q ANALYST || die "the grant is lost"
	say "role ANALYST may still read the table"
}
orders_demo sf SHOP.PUBLIC.ORDERS Snowflake
