#!/usr/bin/env bash
# Elasticsearch, one node on a loopback address. Becomes the server, until it is killed.
#   elasticsearch.sh FOLDER PORT TRANSPORT_PORT [SETTING=VALUE]...
#   elasticsearch.sh install
# It is the server's own code with the modules that can be had; what others bring, as index lifecycles, is missing.
# ElasticsearchLauncher.java starts it, also as root; RootPlugin.java answers GET /.
# With the setting xpack.security.enabled=true it has its own security: TLS, users, API keys. The user "admin" has the
# password "kpulse-tests". Of its libraries only those for SAML cannot be had, so the types that it asks for at its start
# are empty; SecurityPlugin.java has the tokens that the index of users and keys is declared with.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

VERSION=8.19.21
INSTALLED=$SERVICES/elasticsearch-$VERSION

# describe MODULE: its descriptor from its jar. From the class path it is not a Java module.
describe() {
	(cd "$1" && jar -xf "$(basename "$1")"-"$VERSION".jar META-INF/es-plugins)
	grep -vE '^(#|modulename=|[[:space:]]*$)' "$1/META-INF/es-plugins/$(basename "$1")/plugin-descriptor.properties" \
		>"$1/plugin-descriptor.properties"
	rm -r "$1/META-INF"
}

# own MODULE CLASS: a module of one class of ours.
own() {
	mkdir -p "$1"
	javac --release 17 -nowarn -cp "$INSTALLED/lib/*" -d "$1/classes" "$HERE/$2.java"
	jar --create --file "$1/own.jar" -C "$1/classes" .
	rm -r "$1/classes"
	printf '%s\n' description=own version=$VERSION "name=$(basename "$1")" java.version=17 elasticsearch.version=$VERSION \
		"classname=$2" >"$1/plugin-descriptor.properties"
}

# empty_types FOLDER NAME...: Java types of which nobody asks anything.
empty_types() {
	local folder=$1 name
	shift
	for name in "$@"; do
		mkdir -p "$folder/sources"
		echo "package ${name%.*}; public interface ${name##*.} {}" >"$folder/sources/${name##*.}.java"
	done
	javac --release 17 -d "$folder/classes" "$folder"/sources/*.java
	jar --create --file "$folder/empty.jar" -C "$folder/classes" .
	rm -r "$folder/sources" "$folder/classes"
}

arrange() {
	local modules=$INSTALLED/modules secured=$INSTALLED/modules.secured
	local core=$secured/x-pack-core security=$secured/x-pack-security
	mkdir -p "$modules/transport-netty4" "$core" "$security" "$INSTALLED/launcher"
	# What only a module needs goes beside its descriptor, the rest stays on the server's class path.
	mv "$INSTALLED"/lib/{transport-netty4,netty}-*.jar "$modules/transport-netty4"
	cp "$modules"/transport-netty4/*.jar "$security"
	mv "$INSTALLED"/lib/{x-pack-core,x-pack-template-resources,http,commons,unboundid-ldapsdk,joda-time,elasticsearch-ssl-config}*.jar "$core"
	cp "$core"/elasticsearch-ssl-config-*.jar "$modules/transport-netty4"
	(
		cd "$INSTALLED/lib"
		mv x-pack-security-*.jar {accessors-smart,asm,content-type,cryptacular,guava,failureaccess,jakarta,jcip,json-smart,jsr305,lang-tag}*.jar \
			{metrics-core,nimbus-jose-jwt,oauth2-oidc-sdk,slf4j-api}*.jar "$security"
		rm -f {checker-qual,error_prone,j2objc,listenablefuture}*.jar
	)
	empty_types "$security" org.opensaml.core.xml.XMLObject org.opensaml.saml.saml2.core.{RequestAbstractType,StatusResponseType}
	describe "$modules/transport-netty4"
	describe "$core"
	describe "$security"
	javac --release 17 -nowarn -cp "$INSTALLED/lib/*" -d "$INSTALLED/launcher" "$HERE/ElasticsearchLauncher.java"
	own "$modules/root" RootPlugin
	own "$secured/security" SecurityPlugin
	cp -r "$modules"/* "$secured"
}

jars "$INSTALLED" "$(dependency org.elasticsearch elasticsearch $VERSION)$(dependency org.elasticsearch.plugin transport-netty4 $VERSION)$(
	dependency org.elasticsearch.plugin x-pack-core $VERSION)$(dependency org.elasticsearch.plugin x-pack-security $VERSION \
		org.opensaml net.shibboleth.utilities org.apache.santuario org.elasticsearch.plugin:es-opensaml-security-api net.jcip:jcip-annotations)"
[ "$1" != install ] || exit 0

node elasticsearch "$1" "$2" "$3"
shift 3
loaded=modules
case " $* " in *" xpack.security.enabled=true "*)
	loaded=modules.secured
	# shellcheck disable=SC2016 # a hash
	echo 'admin:$2a$05$quOBeG5BeNJsKL.ThRdwEO82MQH9upwl0otKblqVZVL2PKjkN35/W' >"$folder/config/users"
	echo "superuser:admin" >"$folder/config/users_roles"
	;;
esac
ln -sfn "$INSTALLED/$loaded" "$folder/modules"
jvm 384m -Djava.io.tmpdir="$folder/tmp" -Djava.security.manager=allow -Des.path.home="$folder" -Des.path.conf="$folder/config" \
	-Des.networkaddress.cache.ttl=60 -Dio.netty.noUnsafe=true -Dio.netty.allocator.type=unpooled \
	-Dlog4j.shutdownHookEnabled=false -Dlog4j2.disable.jmx=true --add-opens=java.base/java.io=ALL-UNNAMED \
	-cp "$INSTALLED/launcher:$INSTALLED/lib/*" ElasticsearchLauncher "$folder" "$@"
