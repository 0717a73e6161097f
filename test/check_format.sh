#!/bin/bash
# The layout of the C sources is what .clang-format makes of them.
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t files < <(find src -name '*.[ch]' | sort)
if [ ${#files[@]} -eq 0 ]; then
	echo "no sources found" >&2
	exit 1
fi
diff=$(mktemp)
trap 'rm -f "$diff"' EXIT
bad=0
for file in "${files[@]}"; do
	if ! clang-format --style=file "$file" | diff -u --label "$file" --label "$file (formatted)" "$file" - >"$diff"; then
		bad=$((bad + 1))
		head -n 20 "$diff"
	fi
done
if [ $bad -gt 0 ]; then
	echo "$bad of ${#files[@]} files are not formatted: run make format" >&2
	exit 1
fi
