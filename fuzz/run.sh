#!/bin/bash
# run.sh [TARGET…]: fuzzes each target (all, without arguments) for FUZZ_SECONDS (60). What it finds lies in target/fuzz-corpus; a
# crash ends the run, and its input is named. The first time compiles the decoders and imagedex with counters.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/target/fuzzing
targets=("$@")
[ $# -gt 0 ] || targets=(decode manifest archive coco features pipeline report bulk_request bulk_answer)

# libFuzzer, without its main: cargo fetches the source that fuzz/runtime pins.
cargo fetch --quiet --locked --manifest-path fuzz/runtime/Cargo.toml
source=$(cargo metadata --format-version 1 --locked --offline --manifest-path fuzz/runtime/Cargo.toml \
	| python3 -c 'import json, os, sys
print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "libfuzzer-sys"))')
mkdir -p "$work/libfuzzer"
if [ ! -e "$work/libfuzzer.a" ]; then
	echo "compiling libFuzzer"
	(cd "$work/libfuzzer" && c++ -std=c++17 -O2 -fno-omit-frame-pointer -w -c $(ls "$source"/libfuzzer/*.cpp | grep -v FuzzerMain) && ar rc ../libfuzzer.a ./*.o)
fi
export LIBFUZZER=$work/libfuzzer.a

program=$(RUSTC_WRAPPER=$PWD/fuzz/rustc.sh CARGO_TARGET_DIR=$work cargo test --release --features fuzz --test fuzz --no-run \
	--message-format=json-render-diagnostics | python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("target", {}).get("name") == "fuzz" and message.get("executable"): print(message["executable"])')
for target in "${targets[@]}"; do
	corpus=$PWD/target/fuzz-corpus/$target
	mkdir -p "$corpus"
	"$program" --seeds "$target" "$corpus"
	echo "== $target"
	"$program" "$target" "$corpus" -max_total_time="${FUZZ_SECONDS:-60}" -timeout=20 -rss_limit_mb=3000 -malloc_limit_mb=2000 -max_len=65536 \
		-artifact_prefix="$corpus-" -print_final_stats=1 -verbosity=0
done
