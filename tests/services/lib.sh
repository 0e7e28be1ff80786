# shellcheck shell=bash disable=SC2034 # the variables are for the scripts that read this
# What the start scripts of the services share; read with `source`.

# shellcheck source=../../packaging/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../packaging/environment.sh"
HERE=$(dirname "${BASH_SOURCE[0]}")
SERVICES=$CACHE/services

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# dependency GROUP ARTIFACT VERSION [GROUP[:ARTIFACT]]...: as a pom has it, without what it needs of the groups behind.
dependency() {
	printf '<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version><exclusions>' "${@:1:3}"
	local without
	for without in "${@:4}"; do
		case $without in *:*) ;; *) without=$without:'*' ;; esac
		printf '<exclusion><groupId>%s</groupId><artifactId>%s</artifactId></exclusion>' "${without%:*}" "${without#*:}"
	done
	printf '</exclusions></dependency>'
}

# jars FOLDER DEPENDENCIES: FOLDER/lib gets the jars of these dependencies, once, whoever asks first.
jars() {
	local folder=$1 dependencies=$2
	for tool in mvn java javac jar; do have "$tool" || die "$tool is missing"; done
	mkdir -p "$folder"
	exec 9>"$folder.lock"
	flock 9
	[ "$(cat "$folder/installed" 2>/dev/null)" != "$dependencies" ] || return 0
	rm -rf "${folder:?}"/*
	cat >"$folder/pom.xml" <<-POM
		<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
		<groupId>tests</groupId><artifactId>services</artifactId><version>1</version><packaging>pom</packaging>
		<dependencies>$dependencies</dependencies></project>
	POM
	mvn -B -q -f "$folder/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$folder/lib" >&2
	arrange
	printf %s "$dependencies" >"$folder/installed"
}

# arrange: what a service does with its jars once they are there.
arrange() { :; }

# jvm HEAP ARGUMENT...: becomes a small Java process; everything it says goes to stderr.
jvm() {
	local heap=$1
	shift
	exec java -Xms64m "-Xmx$heap" -XX:MaxDirectMemorySize=128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData \
		-Xshare:auto "$@" 9>&- >&2
}

# node NAME FOLDER PORT TRANSPORT_PORT: arranges one node in FOLDER, whose whole path is in $folder then, with its settings
# in config/NAME.yml.
node() {
	local name=$1
	shift
	mkdir -p "$1"
	folder=$(realpath "$1")
	mkdir -p "$folder"/{config,data,logs,tmp,plugins,lib}
	cp "$HERE/log4j2.properties" "$folder/config/"
	export TMPDIR=$folder/tmp
	cat >"$folder/config/$name.yml" <<-END
		cluster.name: tests
		node.name: tests
		discovery.type: single-node
		network.host: 127.0.0.1
		http.port: $2
		transport.port: $3
		path.data: $folder/data
		path.logs: $folder/logs
		node.processors: 2
		cluster.routing.allocation.disk.threshold_enabled: false
		indices.memory.index_buffer_size: 32mb
	END
}
