#!/usr/bin/env bash
# Apache Kafka, one node that is broker and controller. Becomes the server, until it is killed.
#   kafka.sh FOLDER PORT CONTROLLER_PORT [SETTING=VALUE]...
#   kafka.sh install
# FOLDER keeps the data; a second start in it goes on where the first one ended. A setting user=NAME:PASSWORD is a user who
# may log in by SCRAM-SHA-512 where other settings ask for that.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

VERSION=4.3.1
INSTALLED=$SERVICES/kafka-$VERSION
jars "$INSTALLED" "$(dependency org.apache.kafka kafka_2.13 $VERSION)$(dependency org.apache.kafka kafka-tools $VERSION)$(dependency org.slf4j slf4j-simple 1.7.36)"
[ "$1" != install ] || exit 0

mkdir -p "$1"
folder=$(realpath "$1") port=$2 controller=$3
shift 3
cat >"$folder/server.properties" <<-END
	process.roles=broker,controller
	node.id=1
	controller.quorum.voters=1@127.0.0.1:$controller
	listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
	advertised.listeners=PLAINTEXT://127.0.0.1:$port
	controller.listener.names=CONTROLLER
	listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
	inter.broker.listener.name=PLAINTEXT
	log.dirs=$folder/logs
	num.network.threads=2
	num.io.threads=2
	background.threads=2
	offsets.topic.num.partitions=4
	offsets.topic.replication.factor=1
	transaction.state.log.num.partitions=4
	transaction.state.log.replication.factor=1
	transaction.state.log.min.isr=1
	share.coordinator.state.topic.num.partitions=2
	share.coordinator.state.topic.replication.factor=1
	share.coordinator.state.topic.min.isr=1
	group.initial.rebalance.delay.ms=0
	log.segment.bytes=67108864
	log.cleaner.dedupe.buffer.size=16777216
	log.index.size.max.bytes=1048576
	auto.create.topics.enable=false
END
users=()
for setting in "$@"; do
	case $setting in
	user=*)
		user=${setting#user=}
		users+=(--add-scram "SCRAM-SHA-512=[name=${user%%:*},password=${user#*:}]")
		;;
	*) echo "$setting" >>"$folder/server.properties" ;;
	esac
done

if [ ! -f "$folder/logs/meta.properties" ]; then
	java -Xmx64m -XX:TieredStopAtLevel=1 -cp "$INSTALLED/lib/*" -Dorg.slf4j.simpleLogger.defaultLogLevel=error \
		kafka.tools.StorageTool format -t kpulsekpulsekpulsekpuA -c "$folder/server.properties" "${users[@]}" >&2
fi
jvm 256m -Dorg.slf4j.simpleLogger.defaultLogLevel=error -Dorg.slf4j.simpleLogger.log.kafka.server=info \
	-cp "$INSTALLED/lib/*" kafka.Kafka "$folder/server.properties"
