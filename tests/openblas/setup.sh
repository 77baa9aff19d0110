#!/bin/bash
# setup.sh TARGET: OpenBLAS for building and running FAISS, in TARGET/lib, once; a second call only compares a checksum.
#
# Where the system has BLAS and LAPACK to link with (Debian: libopenblas-dev), they are used and TARGET/lib stays empty. Else
# Debian's packages are fetched by name and version and unpacked, not installed: packages.sha256 says what they must be.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; target=$(cd "$1" && pwd)

stamp=$(cd "$here" && cat setup.sh ../debian.sh packages.sha256 | sha256sum)
# Two at once, on a cache that several checkouts share: the second finds the work done.
exec 9>"$target/lock"; flock 9
if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

cmake --version >/dev/null 2>&1 || { echo "faiss: please install cmake (Debian: apt-get install cmake)" >&2; exit 4; }
c++ --version >/dev/null 2>&1 || { echo "faiss: please install a C++ compiler (Debian: apt-get install g++)" >&2; exit 4; }
rm -rf "$target/lib" "$target/stamp" "$target/build"; mkdir -p "$target/lib" "$target/build"
trap 'rm -rf "$target/build"' EXIT
if ! echo 'int main() {}' | cc -x c - -lblas -llapack -o "$target/build/links" 2>/dev/null; then
	echo "unpacking OpenBLAS into $target"
	"$here/../debian.sh" "$here/packages.sha256" "$target/build/root" \
		|| { echo "faiss: please install BLAS and LAPACK to link with (Debian: apt-get install libopenblas-dev)" >&2; exit 4; }
	cd "$target/build"
	mv root/usr/lib/x86_64-linux-gnu/*.so* root/usr/lib/x86_64-linux-gnu/openblas-pthread/*.so* "$target/lib/"
fi
echo "$stamp" > "$target/stamp"
