#!/bin/bash
# Every test of the kernels and of aligned memory under AddressSanitizer: each set of instructions that this machine has. The
# sanitizer's runtime is part of stable Rust; RUSTC_BOOTSTRAP lets it be asked for.
set -euo pipefail
cd "$(dirname "$0")"
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address -Cdebug-assertions=yes" CARGO_TARGET_DIR=../../target/asan
cargo test --locked --quiet --target x86_64-unknown-linux-gnu "$@"
