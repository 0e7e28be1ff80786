#!/usr/bin/env bash
# Elasticsearch, one node without security on a loopback address. Becomes the server, until it is killed.
#   elasticsearch.sh FOLDER PORT TRANSPORT_PORT [SETTING=VALUE]...
#   elasticsearch.sh install
# It is the server's own code with the one module it cannot do without; what other modules bring, as index lifecycles,
# is missing. ElasticsearchLauncher.java starts it, also as root; RootPlugin.java answers GET /.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

VERSION=8.19.21
INSTALLED=$SERVICES/elasticsearch-$VERSION

arrange() {
	local module=$INSTALLED/modules/transport-netty4 root=$INSTALLED/modules/root
	mkdir -p "$module" "$root" "$INSTALLED/launcher" "$INSTALLED/classes"
	# What only the module needs goes beside its descriptor, the rest stays on the server's class path.
	mv "$INSTALLED"/lib/{transport-netty4,netty,elasticsearch-ssl-config}-*.jar "$module"
	(cd "$INSTALLED" && jar -xf "$module"/transport-netty4-*.jar META-INF/es-plugins)
	# From the class path it is not a Java module.
	grep -vE '^(#|modulename=|[[:space:]]*$)' "$INSTALLED/META-INF/es-plugins/transport-netty4/plugin-descriptor.properties" \
		>"$module/plugin-descriptor.properties"
	javac --release 17 -nowarn -cp "$INSTALLED/lib/*" -d "$INSTALLED/launcher" "$HERE/ElasticsearchLauncher.java"
	javac --release 17 -nowarn -cp "$INSTALLED/lib/*" -d "$INSTALLED/classes" "$HERE/RootPlugin.java"
	jar --create --file "$root/root.jar" -C "$INSTALLED/classes" .
	printf '%s\n' description=root version=$VERSION name=root java.version=17 elasticsearch.version=$VERSION \
		classname=RootPlugin >"$root/plugin-descriptor.properties"
}

jars "$INSTALLED" "$(dependency org.elasticsearch elasticsearch $VERSION)$(dependency org.elasticsearch.plugin transport-netty4 $VERSION)"
[ "$1" != install ] || exit 0

node elasticsearch "$1" "$2" "$3"
shift 3
ln -sfn "$INSTALLED/modules" "$folder/modules"
jvm 384m -Djava.io.tmpdir="$folder/tmp" -Djava.security.manager=allow -Des.path.home="$folder" -Des.path.conf="$folder/config" \
	-Des.networkaddress.cache.ttl=60 -Dio.netty.noUnsafe=true -Dio.netty.allocator.type=unpooled \
	-Dlog4j.shutdownHookEnabled=false -Dlog4j2.disable.jmx=true --add-opens=java.base/java.io=ALL-UNNAMED \
	-cp "$INSTALLED/launcher:$INSTALLED/lib/*" ElasticsearchLauncher "$folder" "$@"
