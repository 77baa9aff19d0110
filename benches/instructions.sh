#!/bin/bash
# instructions.sh PROGRAM: the instructions of each case of benches/instructions.rs beside those of benches/instructions.tsv.
#
# Ends with 1 where a case takes over 5 % more; UPDATE=1 writes the file anew. Counts depend on the compiler, which is pinned.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); program=$1
kept=$here/instructions.tsv
build=$(mktemp -d); trap 'rm -rf "$build"' EXIT

mapfile -t cases < <("$program")
for case in "${cases[@]}"; do
	valgrind --tool=callgrind --toggle-collect='*instructions::measured*' --callgrind-out-file="$build/out" "$program" "$case" >/dev/null 2>"$build/log" \
		|| { cat "$build/log" >&2; exit 1; }
	printf '%s\t%s\n' "$case" "$(sed -n 's/^totals: //p' "$build/out")"
done > "$build/now"
if [ -n "${UPDATE:-}" ]; then cp "$build/now" "$kept"; fi

awk -F '\t' '
	NR == FNR { kept[$1] = $2; next }
	FNR == 1 { print "| case | instructions | kept | change |\n|---|---:|---:|---:|" }
	!($1 in kept) { print "| " $1 " | " $2 " | none | |"; bad = bad "\n  " $1 " is not in benches/instructions.tsv"; next }
	{
		change = 100 * ($2 / kept[$1] - 1)
		printf "| %s | %d | %d | %+.1f %% |\n", $1, $2, kept[$1], change
		if (change > 5) bad = bad "\n  " $1 " takes more than 5 % more"
		delete kept[$1]
	}
	END {
		for (name in kept) bad = bad "\n  " name " was not measured"
		if (bad) { print "instructions:" bad "\nwhere that is meant: make bench-instructions UPDATE=1, and commit benches/instructions.tsv" > "/dev/stderr"; exit 1 }
	}' "$kept" "$build/now"
