#!/bin/bash
# setup.sh TARGET: assembles the test server in TARGET/home, once; a second call only compares a checksum.
#
# OpenSearch publishes its server, its modules and its k-NN plugin as Maven artifacts, but no distribution: this puts them where
# a distribution has them. Two modules come without the descriptor that the server asks for; they are written here. Nothing of it
# is committed: Maven fetches each file by name and version, and artifacts.sha256 says what it must be.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"; target=$(cd "$1" && pwd)
version=2.19.1

stamp=$(cd "$here" && cat setup.sh ../es-node/maven.sh pom.xml artifacts.sha256 src/* | sha256sum)
# Two at once, on a cache that several checkouts share: the second finds the work done.
exec 9>"$target/lock"; flock 9
if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

name=opensearch-node
. "$here/../es-node/jdk.sh"
. "$here/../es-node/maven.sh"
trap 'rm -rf "$target/build"' EXIT
echo "assembling OpenSearch $version for tests in $target"
rm -rf "$target/home" "$target/stamp" "$target/build"; mkdir -p "$target/build/jars"
fetch

home=$target/build/home
jars=$target/build/jars
mkdir -p "$home"/{lib,config,modules/opensearch-knn}

# module NAME CLASS JAR...: a module of the server, with its descriptor.
module() {
	local name=$1 class=$2 folder=$home/modules/$1; shift 2
	mkdir "$folder"
	mv "$@" "$folder/"
	cat > "$folder/plugin-descriptor.properties" <<-END
		name=$name
		description=$name of OpenSearch $version
		version=$version
		opensearch.version=$version
		java.version=11
		classname=$class
	END
}
module transport-netty4 org.opensearch.transport.Netty4Plugin "$jars"/transport-netty4-client-*.jar "$jars"/netty-*.jar
module lang-painless org.opensearch.painless.PainlessPlugin "$jars"/lang-painless-*.jar "$jars"/opensearch-scripting-painless-spi-*.jar \
	"$jars"/antlr4-runtime-*.jar "$jars"/asm-*.jar
(cd "$home/modules/opensearch-knn" && "$JAVA_HOME/bin/jar" xf "$jars"/opensearch-knn-*.zip)
mv "$jars"/*.jar "$home/lib/"
mkdir "$target/build/classes"
"$JAVA_HOME/bin/javac" --release 21 -cp "$home/lib/*" -d "$target/build/classes" "$here/src/Server.java"
"$JAVA_HOME/bin/jar" cf "$home/lib/server.jar" -C "$target/build/classes" .
cp "$here/src/log4j2.properties" "$home/config/"
mv "$home" "$target/home"
echo "$stamp" > "$target/stamp"
