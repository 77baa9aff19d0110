#!/usr/bin/env bash
# Where the time of `extract` and `evaluate` goes: flame graphs, and the shares of libraries.
#
#     profile.sh PROGRAM TOOLS PYTHON OUT
#
# Linux's perf takes the stacks (a sample each 5 ms of processor time, unwound by the tables that C++ and Rust need for exceptions
# anyway); inferno, in TOOLS/bin, draws them into OUT. `extract` embeds the sample pictures as `make index` does, into an empty table;
# `evaluate` is that of `make bench-evaluate`, 1,000 queries in 20,000 pictures (PYTHON has what draws them).
set -euo pipefail
program=$(realpath "$1") tools=$2 python=$3 out=$4
cd "$(dirname "$0")/.."
perf --version >/dev/null 2>&1 || { echo "please install perf (Debian: apt-get install linux-perf)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# The name of the graph; perf's file.
draw() {
    # What OpenVINO compiles at run time has no names. How threads begin and share work out is the same for all, and tells nothing.
    perf script --no-inline -i "$2" 2>/dev/null | "$tools/bin/inferno-collapse-perf" 2>/dev/null \
        | sed -E 's/\[perf-[0-9]+\.map\]/kernels that OpenVINO compiled/g
                  s/;clone3;start_thread;(<std::sys::thread[^;]*;)?(core::ops::[^;]*;)?(std::sys::backtrace[^;]*;)?/;/
                  s/;<?rayon(_core)?::[^;]*//g' > "$work/stacks"
    "$tools/bin/inferno-flamegraph" --title "imagedex $1" --deterministic --minwidth 0.4 --countname ns "$work/stacks" > "$out/flame-$1.svg"
    echo "$out/flame-$1.svg"
    perf report -i "$2" --no-children --sort dso --call-graph none --percent-limit 1 --stdio 2>/dev/null | sed -n '/^ *[0-9]/p' \
        | sed -E 's/\[JIT\] tid [0-9]+/kernels that OpenVINO compiled/'
}

record=(perf record --quiet --freq 199 --call-graph "dwarf,16384")
"${record[@]}" -o "$work/extract" "$program" extract pipelines/quickstart.toml --set work="$work/run" --set features.table="$work/run/features" >&2
draw extract "$work/extract"

"$program" features export "$work/features.parquet" pipelines/quickstart.toml --set work="$work/run" --set features.table="$work/run/features" >&2
cat > "$work/imagedex" <<END
#!/bin/sh
[ "\$1" = evaluate ] && [ ! -e "$work/evaluate" ] || exec "$program" "\$@"
exec ${record[@]} -o "$work/evaluate" "$program" "\$@"
END
chmod +x "$work/imagedex"
"$python" benches/peers/evaluate.py "$work/features.parquet" --imagedex "$work/imagedex" --gallery 20000 --queries 1000 --peer-queries 10 \
    --trec-queries 2 >&2
draw evaluate "$work/evaluate"
