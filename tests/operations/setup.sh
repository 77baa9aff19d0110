#!/bin/bash
# setup.sh TARGET: what docs/operations is checked with, in TARGET, once; a second call only compares a checksum.
#
# promtool comes from Debian's package `prometheus`, which is fetched by name and version and unpacked, not installed:
# packages.sha256 says what it must be. The schemas of workflows and CronJobs come as Python packages, by their hashes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; target=$(cd "$1" && pwd)

stamp=$(cd "$here" && cat setup.sh ../debian.sh packages.sha256 requirements.txt | sha256sum)
# Two at once, on a cache that several checkouts share: the second finds the work done.
exec 9>"$target/lock"; flock 9
if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

python3 -c 'import venv, ensurepip' 2>/dev/null \
	|| { echo "operations: please install python3's module venv (Debian: apt-get install python3-venv)" >&2; exit 4; }
rm -rf "$target/python" "$target/bin" "$target/stamp" "$target/build"; mkdir -p "$target/bin" "$target/build"
trap 'rm -rf "$target/build"' EXIT
echo "unpacking promtool and two schemas into $target"
"$here/../debian.sh" "$here/packages.sha256" "$target/build/root" \
	|| { echo "operations: promtool, of Debian's package prometheus, is needed to check docs/operations" >&2; exit 4; }
mv "$target/build/root/usr/bin/promtool" "$target/bin/"
python3 -m venv "$target/python"
PIP_ROOT_USER_ACTION=ignore "$target/python/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
	--only-binary=:all: --require-hashes -r "$here/requirements.txt"
echo "$stamp" > "$target/stamp"
