#!/bin/bash
# cargo's RUSTC_WRAPPER: counters for libFuzzer in our own crate and in those that read what comes from outside; every other crate is
# compiled as always, and so shared with ordinary builds. These are the flags of cargo-fuzz, on stable Rust.
rustc=$1; shift
name=; previous=
for argument; do
	[ "$previous" = --crate-name ] && name=$argument
	previous=$argument
done
flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=yes --cfg fuzzing)
case $name in
	# The program is linked with the library, so it needs the runtime's symbols, too.
	imagedex) flags+=("-Clink-arg=$LIBFUZZER" -Clink-arg=-lstdc++) ;;
	image | png | gif | tiff | image_webp | zune_jpeg | fdeflate | weezl | hdf5_pure | mozjpeg) ;;
	fuzz) flags+=("-Clink-arg=$LIBFUZZER" -Clink-arg=-lstdc++) ;;
	*) flags=() ;;
esac
exec "$rustc" "$@" "${flags[@]}"
