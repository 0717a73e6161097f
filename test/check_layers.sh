#!/bin/bash
# The layers under src/: who may include whom, and what the library exports.
#
#     check_layers.sh               the include rules
#     check_layers.sh LIBRARY.so    the exported symbols
#
# encode, net, catalog include nothing of ours; snapshot and decode may use
# encode; destination may use encode and net; worker may use catalog, snapshot,
# decode and destination, and, since types travel through these, encode and
# net/retry.h; api may use catalog and worker.  resync.h and compat.h are
# everybody's, and files directly under src/ may include anything.
set -euo pipefail
cd "$(dirname "$0")/.."

allowed() {
	case $1 in
		encode | net | catalog) echo "" ;;
		snapshot | decode) echo "encode/*" ;;
		destination) echo "encode/* net/*" ;;
		worker) echo "catalog/* snapshot/* decode/* destination/* encode/* net/retry.h" ;;
		api) echo "catalog/* worker/*" ;;
		*) return 1 ;;
	esac
}

bad=0
seen=0
complain() {
	echo "$1"
	bad=$((bad + 1))
}

library=${1:-}
if [ -z "$library" ]; then
	while read -r file; do
		layer=${file#src/}
		case $layer in */*) layer=${layer%%/*} ;; *) continue ;; esac
		seen=$((seen + 1))
		if ! patterns=$(allowed "$layer"); then
			complain "$file: src/$layer is not a layer"
			continue
		fi
		while IFS=: read -r line header; do
			# ours, as seen from src/ or from the file's own folder?
			if [ -e "src/$header" ]; then
				target=$header
			elif [ -e "src/$layer/$header" ]; then
				target=$layer/$header
			else
				continue
			fi
			case $target in resync.h | compat.h | "$layer"/*) continue ;; esac
			ok=false
			for pattern in $patterns; do
				# shellcheck disable=SC2254
				case $target in $pattern) ok=true ;; esac
			done
			$ok || complain "$file:$line: layer $layer must not include $target"
		done < <(sed -nE '/^[ \t]*#[ \t]*include[ \t]*"/{=;s/^[^"]*"([^"]*)".*/\1/p}' "$file" | paste -d: - -)
	done < <(find src -name '*.[ch]' | sort)

	if [ "$seen" -eq 0 ]; then
		echo "no sources found below src/" >&2
		exit 1
	fi
fi

if [ -n "$library" ]; then
	while read -r symbol; do
		case $symbol in
			resync_* | ResyncShmem | peerdb_* | pg_finfo_peerdb_* | pg_finfo_resync_*) ;;
			_PG_init | Pg_magic_func) ;;
			*) complain "$library: exported symbol $symbol does not begin with resync_" ;;
		esac
	done < <(nm -D --defined-only "$library" | awk '$2 ~ /[TBDRVW]/ { print $3 }' | sort)
fi

if [ $bad -gt 0 ]; then
	echo "$bad violations" >&2
	exit 1
fi
