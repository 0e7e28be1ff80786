#!/usr/bin/env bash
# OpenSearch, one node without security on a loopback address. Becomes the server, until it is killed.
#   opensearch.sh FOLDER PORT TRANSPORT_PORT [SETTING=VALUE]...
#   opensearch.sh install
# It is the server's own code without plugins; OpenSearchLauncher.java starts it, also as root.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

VERSION=2.19.6
INSTALLED=$SERVICES/opensearch-$VERSION

arrange() {
	mkdir -p "$INSTALLED/launcher"
	javac --release 17 -nowarn -cp "$INSTALLED/lib/*" -d "$INSTALLED/launcher" "$HERE/OpenSearchLauncher.java"
}

jars "$INSTALLED" "$(dependency org.opensearch opensearch $VERSION)$(dependency org.opensearch.plugin transport-netty4-client $VERSION)$(dependency org.apache.logging.log4j log4j-core 2.25.5)"
[ "$1" != install ] || exit 0

node opensearch "$1" "$2" "$3"
shift 3
mkdir -p "$folder/modules"
jvm 384m -Djava.io.tmpdir="$folder/tmp" -Djava.security.manager=allow -Dopensearch.path.home="$folder" \
	-Dopensearch.path.conf="$folder/config" -Dopensearch.networkaddress.cache.ttl=60 -Dio.netty.noUnsafe=true \
	-Dio.netty.allocator.type=unpooled -Dlog4j.shutdownHookEnabled=false -Dlog4j2.disable.jmx=true \
	--add-opens=java.base/java.io=ALL-UNNAMED -cp "$INSTALLED/launcher:$INSTALLED/lib/*" OpenSearchLauncher "$folder" "$@"
