#!/bin/bash
# setup.sh TARGET: what docs/operations is checked with, in TARGET, once; a second call only compares a checksum.
#
# promtool comes from Debian's package `prometheus`, which is fetched by name and version and unpacked, not installed:
# packages.sha256 says what it must be. The schemas of workflows and CronJobs come as Python packages, by their hashes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; target=$(cd "$1" && pwd)

stamp=$(cd "$here" && cat setup.sh packages.sha256 requirements.txt | sha256sum)
# Two at once, on a cache that several checkouts share: the second finds the work done.
exec 9>"$target/lock"; flock 9
if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

python3 -c 'import venv, ensurepip' 2>/dev/null \
	|| { echo "operations: please install python3's module venv (Debian: apt-get install python3-venv)" >&2; exit 4; }
apt-get --version >/dev/null 2>&1 && [ "$(uname -m)" = x86_64 ] \
	|| { echo "operations: promtool is taken from Debian's package for x86_64, which this machine cannot fetch" >&2; exit 4; }
rm -rf "$target/python" "$target/bin" "$target/stamp" "$target/build"; mkdir -p "$target/bin" "$target/build"
trap 'rm -rf "$target/build"' EXIT
echo "unpacking promtool and two schemas into $target"
cd "$target/build"
mapfile -t packages < <(sed -E 's/^[0-9a-f]+  ([^_]+)_([^_]+)_.*/\1=\2/; s/%3a/:/' "$here/packages.sha256")
apt-get download -qq "${packages[@]}" 2>log || {
	# A machine that never read Debian's lists: they are read here, and only here.
	mkdir -p state/lists/partial cache/archives/partial
	lists=(-o "Dir::State=$target/build/state" -o "Dir::Cache=$target/build/cache")
	{ apt-get "${lists[@]}" update && apt-get "${lists[@]}" download -qq "${packages[@]}"; } > log 2>&1 \
		|| { cat log >&2; echo "operations: Debian's package prometheus cannot be fetched" >&2; exit 4; }
}
sha256sum --check --strict --quiet "$here/packages.sha256" >&2 \
	|| { echo "operations: the download is not what packages.sha256 says; nothing was installed" >&2; exit 4; }
for package in *.deb; do dpkg-deb -x "$package" root; done
mv root/usr/bin/promtool "$target/bin/"
python3 -m venv "$target/python"
PIP_ROOT_USER_ACTION=ignore "$target/python/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
	--only-binary=:all: --require-hashes -r "$here/requirements.txt"
echo "$stamp" > "$target/stamp"
