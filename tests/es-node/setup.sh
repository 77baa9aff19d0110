#!/bin/bash
# setup.sh TARGET: assembles the test server in TARGET/home, once; a second call only compares a checksum.
#
# It is the vendor's own distribution for integration tests (Elasticsearch 9.5.3: server, mapper, bulk, security), which lacks
# the scripting language. A plugin (src/) compiles score scripts with OpenSearch's Painless onto Elasticsearch's own score
# functions, and answers `GET /`. Nothing of it is committed: Maven fetches each file by name and version, and
# artifacts.sha256 says what it must be.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; target=$(cd "$1" && pwd)
version=9.5.3

stamp=$(cd "$here" && cat setup.sh maven.sh pom.xml artifacts.sha256 src/*.* src/*/* | sha256sum)
# Two at once, on a cache that several checkouts share: the second finds the work done.
exec 9>"$target/lock"; flock 9
if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

name=es-node
. "$here/jdk.sh"
. "$here/maven.sh"
openssl version >/dev/null 2>&1 || { echo "es-node: please install openssl (Debian: apt-get install openssl)" >&2; exit 4; }
trap 'rm -rf "$target/build"' EXIT
echo "assembling Elasticsearch $version for tests in $target"
rm -rf "$target/home" "$target/stamp" "$target/build"; mkdir -p "$target/build/jars"

fetch

(cd "$target/build" && "$JAVA_HOME/bin/jar" xf "jars/elasticsearch-$version.zip")
home=$target/build/elasticsearch-$version
chmod +x "$home"/bin/*
bridge=$home/modules/painless-bridge
mkdir -p "$bridge" "$target/build/classes/vecscript"
cp "$target"/build/jars/*.jar "$here"/src/plugin-descriptor.properties "$here"/src/entitlement-policy.yaml "$bridge/"
"$JAVA_HOME/bin/javac" --release 21 -cp "$home/lib/*:$bridge/*" -d "$target/build/classes" "$here"/src/vecscript/*.java
cp "$here"/src/vecscript/*.txt "$target/build/classes/vecscript/"
"$JAVA_HOME/bin/jar" cf "$bridge/painless-bridge.jar" -C "$target/build/classes" .
# The server refuses to run as root; as root it is run as `nobody`, who must be able to read it.
chmod -R a+rX "$home"
mv "$home" "$target/home"
echo "$stamp" > "$target/stamp"
