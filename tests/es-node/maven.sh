# Sourced: downloads by Maven, for the set-up scripts. They set `here` (with pom.xml and artifacts.sha256), `target` and `name`.
mvn --version >/dev/null 2>&1 || { echo "$name: please install Maven (Debian: apt-get install maven)" >&2; exit 4; }

# Everything that pom.xml lists into $target/build/jars, each file what artifacts.sha256 says.
fetch() {
	copy
	check && return
	# Maven keeps what it fetched and would hand it out again; what others keep there is not ours to delete.
	echo "$name: a download is damaged, fetching all of them again" >&2
	copy -Dmaven.repo.local="$target/build/maven"
	check || { echo "$name: the downloads are not what artifacts.sha256 says; nothing was installed" >&2; exit 4; }
}
copy() {
	mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies -Dmdep.overWriteReleases=true -DoutputDirectory="$target/build/jars" \
		"$@" > "$target/build/log" 2>&1 || { cat "$target/build/log" >&2; echo "$name: Maven could not fetch what pom.xml lists" >&2; exit 4; }
}
check() { (cd "$target/build/jars" && sha256sum --check --strict --quiet "$here/artifacts.sha256") >&2; }
