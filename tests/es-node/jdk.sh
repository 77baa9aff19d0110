# Sourced: sets JAVA_HOME to a JDK of 21 or later: $ES_JAVA_HOME, $JAVA_HOME, else the newest of the system's.
jdk_major() { "$1/bin/java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p;q'; }
found=
for candidate in "${ES_JAVA_HOME:-}" "${JAVA_HOME:-}" $(ls -d /usr/lib/jvm/*/ /opt/*jdk*/ 2>/dev/null | sort -Vr); do
	[ -x "$candidate/bin/javac" ] || continue
	major=$(jdk_major "$candidate")
	if [ "${major:-0}" -ge 21 ]; then found=${candidate%/}; break; fi
done
if [ -z "$found" ]; then
	echo "es-node: no JDK of 21 or later was found; install one (Debian 13: apt-get install openjdk-21-jdk-headless;" \
		"Debian 12: Temurin 21 or later) or name it in ES_JAVA_HOME" >&2
	exit 4
fi
export JAVA_HOME=$found
