//! See Cargo.toml; asan.sh runs the tests of both modules.

#![allow(dead_code, reason = "the program uses the rest")]

#[path = "../../src/engines/aligned.rs"]
pub mod aligned;
#[path = "../../src/engines/kernels/mod.rs"]
pub mod kernels;
