#!/bin/bash
# debian.sh PACKAGES.sha256 INTO: Debian packages, fetched by name and version and unpacked into INTO, not installed.
#
# PACKAGES.sha256 says what they must be: lines of sha256sum with name_version_architecture.deb; a %3a stands for the colon of an epoch.
# Ends with 4, and a sentence, where they cannot be had or are not what they must be; INTO is then not made.
set -euo pipefail
sums=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
apt-get --version >/dev/null 2>&1 && [ "$(uname -m)" = x86_64 ] \
	|| { echo "Debian's packages for x86_64 cannot be fetched on this machine" >&2; exit 4; }
mkdir -p "$(dirname "$2")"; into=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
build=$(mktemp -d "$into.XXXXXX"); trap 'rm -rf "$build"' EXIT
cd "$build"
mapfile -t packages < <(sed -E 's/^[0-9a-f]+  ([^_]+)_([^_]+)_.*/\1=\2/; s/%3a/:/' "$sums")
apt-get download -qq "${packages[@]}" 2>log || {
	# A machine that never read Debian's lists: they are read here, and only here.
	mkdir -p state/lists/partial cache/archives/partial
	lists=(-o "Dir::State=$build/state" -o "Dir::Cache=$build/cache")
	{ apt-get "${lists[@]}" update && apt-get "${lists[@]}" download -qq "${packages[@]}"; } > log 2>&1 \
		|| { cat log >&2; echo "Debian's packages cannot be fetched: ${packages[*]}" >&2; exit 4; }
}
sha256sum --check --strict --quiet "$sums" >&2 \
	|| { echo "the downloads are not what $sums says; nothing was unpacked" >&2; exit 4; }
for package in *.deb; do dpkg-deb -x "$package" root; done
rm -rf "$into"; mv root "$into"
