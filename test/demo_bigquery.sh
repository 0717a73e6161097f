#!/bin/bash
# `make demo-bigquery`: a mirror at BigQuery, changes, a column that changes its
# type, and a resync while the source is written to: deleted rows come over, and
# at the end both sides are equal.
#
# A throw-away server, and in place of BigQuery the service of the tests
# (test/bigquery: bqemulator from PyPI behind a front of our own), on loopback
# and a Unix-domain socket only.  ROWS=n (20,000).

set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
. "$repo/test/lib.sh"
export LC_ALL=C.UTF-8
umask 022

# ---- outer part: packages, engine, directory, and the step down from root
if [ -z "${RESYNC_DEMO_DIR:-}" ]; then
	bash "$repo/test/install_deps.sh" demo
	find_bqemulator "$repo"
	if [ -z "$RESYNC_BQEMULATOR" ]; then
		echo "no BigQuery engine: $RESYNC_BQEMULATOR_MISSING" >&2
		exit 1
	fi
	run_apart RESYNC_DEMO_DIR demo_bigquery.sh RESYNC_BQEMULATOR="$RESYNC_BQEMULATOR" ROWS="${ROWS:-20000}"
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

step "building the extension, a throw-away server and a BigQuery service in $work"
build_extension
start_server source || die "the source does not start"
openssl genrsa -out "$work/key.pem" 2048 2>/dev/null
openssl rsa -in "$work/key.pem" -pubout -out "$work/public.pem" 2>/dev/null
account=mirror@demo.iam.gserviceaccount.com
# the service ends with whoever started it
"$RESYNC_BQEMULATOR/bin/python" "$work/src/test/bigquery/front.py" --key "$work/public.pem" --email "$account" \
	--project demo --dataset shop --log "$work/requests" >"$work/port" 2>"$work/front.err" &
background+=("$!")
wait_for_port "the BigQuery service" "$work/front.err"
"$RESYNC_BQEMULATOR/bin/python" - "$work/key.pem" "$account" "$port" >"$work/account.json" <<'PY'
import json, sys
key, account, port = sys.argv[1:]
print(json.dumps({"type": "service_account", "project_id": "demo", "private_key": open(key).read(),
                  "client_email": account, "token_uri": "http://127.0.0.1:%s/token" % port}))
PY
say "$(src -c 'SELECT version()')"
say "bqemulator behind 127.0.0.1:$port"

# bq SQL: rows, as COPY would show them, asked for with a token of its own.
bq() {
	"$RESYNC_BQEMULATOR/bin/python" - "$work/key.pem" "$account" "$port" "$1" <<'PY'
import json, sys, time, urllib.parse, urllib.request
import jwt
key, account, port, sql = sys.argv[1:]
base = "http://127.0.0.1:" + port
now = int(time.time())
claim = jwt.encode({"iss": account, "aud": base + "/token", "iat": now, "exp": now + 600,
                    "scope": "https://www.googleapis.com/auth/bigquery"}, open(key).read(), "RS256")
form = urllib.parse.urlencode({"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": claim})
token = json.load(urllib.request.urlopen(base + "/token", form.encode()))["access_token"]
request = urllib.request.Request(base + "/bigquery/v2/projects/demo/queries",
                                 json.dumps({"query": sql, "useLegacySql": False, "maxResults": 1000000}).encode(),
                                 {"Authorization": "Bearer " + token, "Content-Type": "application/json"})
for row in json.load(urllib.request.urlopen(request)).get("rows", []):
    print("\t".join("\\N" if f["v"] is None else str(f["v"]) for f in row["f"]))
PY
}

mirror_sql=$(cat <<SQL
CREATE EXTENSION resync;
CREATE SERVER bq FOREIGN DATA WRAPPER peerdb_bigquery OPTIONS (project 'demo', dataset 'shop', url 'http://127.0.0.1:$port');
CREATE USER MAPPING FOR CURRENT_USER SERVER bq OPTIONS (service_account_file '$work/account.json');
SELECT peerdb_create_mirror('m', 'bq', '[{"from": "public.orders", "partition_by": "placed MONTH"}]', '{"sync_interval": 1}');
SQL
)
orders_demo bq shop.orders BigQuery
