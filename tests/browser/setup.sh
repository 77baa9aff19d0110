#!/bin/bash
# setup.sh TARGET: installs a headless Chromium and its driver into TARGET, once; a second call only compares a checksum.
#
# Everything comes from npm, by version and hash (package-lock.json): Chromium, the libraries it needs where the system
# lacks them, and a font, so that screenshots look the same everywhere. No root, nothing outside TARGET.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; target=$(cd "$1" && pwd)

stamp=$(cd "$here" && cat setup.sh unpack.mjs package.json package-lock.json | sha256sum)
# Two at once, on a cache that several checkouts share: the second finds the work done.
exec 9>"$target/lock"; flock 9
if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

npm --version >/dev/null 2>&1 || { echo "browser tests: please install Node 20 or later with npm (Debian: apt-get install npm)" >&2; exit 4; }
echo "installing a headless Chromium for tests in $target"
rm -rf "$target/stamp" "$target/node_modules" "$target/unpacked"
cp "$here/package.json" "$here/package-lock.json" "$here/.npmrc" "$target/"
npm ci --prefix "$target" --ignore-scripts --no-audit --no-fund --loglevel=error
node "$here/unpack.mjs" "$target"
# What was unpacked is 200 MB; the archives are not needed again.
rm -rf "$target/node_modules/@sparticuz/chromium/bin"
echo "$stamp" > "$target/stamp"
