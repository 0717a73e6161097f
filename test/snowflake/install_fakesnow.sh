#!/bin/bash
# fakesnow (PyPI) in a virtual environment, in a cache outside of the work tree:
# what crosscheck.py does our statements again with.
#
#     install_fakesnow.sh		prints the directory of the environment
#
# Where it cannot be had, the reason is the only line on standard error, and the
# exit status is not 0.
set -uo pipefail

version=0.12.1
here=$(cd "$(dirname "$0")" && pwd)

give_up() {
	echo "$*" >&2
	exit 1
}

if [ -n "${RESYNC_CACHE:-}" ]; then
	cache=$RESYNC_CACHE
elif [ "$(id -u)" -eq 0 ]; then
	# the tests step down to another user, who cannot look into /root
	cache=/var/cache/resync
else
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/resync
fi
dir=$cache/fakesnow-$version
if [ -r "$dir/done" ]; then
	echo "$dir"
	exit 0
fi

# Debian's: one of root's own may be where nobody else can look
python=/usr/bin/python3
[ -x $python ] || python=$(command -v python3) || give_up "there is no python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || give_up "fakesnow needs Python 3.11"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
mkdir -p "$cache" 2>/dev/null || give_up "cannot make $cache"
[ "$(id -u)" -ne 0 ] || chmod a+rx "$cache"
rm -rf "$dir"
# a virtual environment does not move
"$python" -m venv "$dir" >"$log" 2>&1 || give_up "no virtual environment: $(tail -n 1 "$log")"
timeout 900 "$dir/bin/pip" install --quiet --disable-pip-version-check --retries 1 \
	-r "$here/requirements.txt" >"$log" 2>&1 ||
	give_up "pip cannot install fakesnow: $(grep -v '^$' "$log" | tail -n 1)"
"$dir/bin/python" -c 'import fakesnow' 2>"$log" || give_up "fakesnow does not start: $(tail -n 1 "$log")"
chmod -R a+rX "$dir"
touch "$dir/done"
echo "$dir"
