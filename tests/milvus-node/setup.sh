#!/bin/bash
# setup.sh TARGET: Milvus for tests in TARGET/home, once; a second call only compares a checksum.
#
# Milvus' makers packed its standalone server as a Python package, with the programs compressed in it. pip fetches it by name,
# version and sha256; nothing of it is installed into the system or committed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; target=$(cd "$1" && pwd)

stamp=$(cd "$here" && cat setup.sh requirements.txt | sha256sum)
# Two at once, on a cache that several checkouts share: the second finds the work done.
exec 9>"$target/lock"; flock 9
if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

if [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
	echo "milvus: its package is for Linux on x86_64; on this machine engine milvus cannot be tested" >&2; exit 4
fi
python3 -m pip --version >/dev/null 2>&1 || { echo "milvus: please install pip (Debian: apt-get install python3-pip)" >&2; exit 4; }
echo "unpacking Milvus for tests in $target"
rm -rf "$target/home" "$target/stamp" "$target/build"; mkdir -p "$target/build"
trap 'rm -rf "$target/build"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --only-binary=:all: --no-deps --require-hashes \
	--dest "$target/build" -r "$here/requirements.txt"
python3 - "$target/build" <<-'END'
	import lzma, os, pathlib, sys, zipfile
	build = pathlib.Path(sys.argv[1])
	wheel, = build.glob("*.whl")
	zipfile.ZipFile(wheel).extractall(build / "home")
	programs = build / "home/bin"
	programs.mkdir()
	for packed in (build / "home/milvus/data/bin").glob("*.lzma"):
	    program = programs / packed.stem
	    program.write_bytes(lzma.decompress(packed.read_bytes()))
	    program.chmod(0o755)
	    packed.unlink()
END
mv "$target/build/home" "$target/home"
echo "$stamp" > "$target/stamp"
