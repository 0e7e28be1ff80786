#!/usr/bin/env bash
# Measures what kpulse costs on this machine and prints it beside the targets. Nothing is asserted: figures depend on
# the machine and on what else runs. Root is needed for all that comes from the kernel.
#   ROUNDS=8 SECONDS_BUSY=30 SCRAPES=500   change the length
set -euo pipefail
# shellcheck source=../../packaging/environment.sh
source "$(dirname "$0")/../../packaging/environment.sh"
cd "$ROOT"

rounds=${ROUNDS:-8} seconds_busy=${SECONDS_BUSY:-30} scrapes=${SCRAPES:-500}
release=$TARGET/release
address=127.0.0.1:10890
work=$(mktemp -d)
running=()

stop_all() {
	local pid
	for pid in "${running[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
	for pid in "${running[@]}"; do wait "$pid" 2>/dev/null || true; done
	running=()
}
trap 'stop_all; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# start URL COMMAND...: starts a server and waits until it answers at URL.
start() {
	local url=$1 deadline=$((SECONDS + 30)) pid
	shift
	"$@" >"$work/log" 2>&1 </dev/null &
	pid=$!
	running+=("$pid")
	until curl --silent --fail --max-time 5 --output /dev/null "$url"; do
		if ! kill -0 "$pid" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
			echo "$1 did not answer within 30 s: $(tail -n 1 "$work/log")" | tee -a "$work/log" >&2
			return 1
		fi
		sleep 0.1
	done
	server=$pid
}

# CPU time of a process and its ended threads, in milliseconds.
cpu_ms() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ printf "%.0f\n", ($12 + $13) * 1000 / hz }'; }
resident_mib() { awk '/^VmRSS/ { printf "%.1f\n", $2 / 1024 }' "/proc/$1/status"; }
minimum() { sort -n "$1" | head -n 1; }
median() { sort -n "$1" | awk '{ value[NR] = $1 } END { print (value[int((NR + 1) / 2)] + value[int(NR / 2) + 1]) / 2 }'; }

# row WHAT MEASURED UNIT TARGET: a line of the table; without a target it is there to compare with.
row() {
	local verdict=''
	if [ -n "$4" ]; then verdict=$(awk -v m="$2" -v t="$4" 'BEGIN { print (m <= t) ? "met" : "MISSED" }'); fi
	printf '%-52s %10s %-4s %12s %s\n' "$1" "$2" "$3" "${4:+≤ $4 $3}" "$verdict" >>"$work/table"
}
# failed WHAT: a line that says why there is no figure.
failed() {
	stop_all
	printf '%-52s no figure: %s\n' "$1" "$(tail -n 1 "$work/log")" >>"$work/table"
}

bench_context_switch() {
	local cpu=$(($(nproc) - 1)) round trips=150000
	cc -O2 -Wall -o "$work/pingpong" tests/overhead/pingpong.c 2>"$work/log" || return
	for ((round = 0; round < rounds; round++)); do
		echo "bench: context switches, round $((round + 1)) of $rounds" >&2
		"$work/pingpong" $trips $cpu >>"$work/without" || return
		start "http://$address/-/ready" "$release/kpulse-exporter" serve --web.listen-address "$address" \
			--collector.disable-defaults --collector.runqueue_latency || return
		curl --silent "http://$address/metrics" >"$work/metrics"
		if ! grep -q '^kpulse_runqueue_latency_seconds_bucket' "$work/metrics"; then
			echo "the run-queue metric is not active here" >>"$work/log"
			return 1
		fi
		"$work/pingpong" $trips $cpu >>"$work/with"
		stop_all
		"$work/pingpong" $trips $cpu >>"$work/without"
	done
	row "context switch without kpulse, least" "$(minimum "$work/without")" ns ""
	row "  added by the run-queue metric, by least" "$(added minimum)" ns 180
	row "  added by the run-queue metric, by median" "$(added median)" ns ""
}
added() { awk -v with="$("$1" "$work/with")" -v without="$("$1" "$work/without")" 'BEGIN { printf "%.0f\n", with - without }'; }

# bench_scrape NAME CPU_TARGET RSS_TARGET PATH COMMAND...: scrapes over one connection, as Prometheus does.
bench_scrape() {
	local name=$1 cpu_target=$2 rss_target=$3 before after
	shift 3
	echo "bench: $scrapes scrapes of $name" >&2
	start "http://$address/metrics" "$@" || return
	curl --silent --output /dev/null "http://$address/metrics?[1-20]"
	before=$(cpu_ms "$server")
	curl --silent --output /dev/null "http://$address/metrics?[1-$scrapes]"
	after=$(cpu_ms "$server")
	row "$name, CPU of one scrape" "$(awk -v ms=$((after - before)) -v n="$scrapes" 'BEGIN { printf "%.2f\n", ms / n }')" ms "$cpu_target"
	row "$name, resident memory" "$(resident_mib "$server")" MiB "$rss_target"
	row "  series in one scrape" "$(curl --silent "http://$address/metrics" | grep -vc '^#')" "" ""
	stop_all
}

bench_node_exporter() {
	local tool
	for tool in node_exporter prometheus-node-exporter; do
		if have $tool; then
			bench_scrape "$tool" "" "" $tool --web.listen-address="$address"
			return
		fi
	done
}

bench_sizes() {
	local binary
	for binary in kpulse-exporter kpulse-event-gateway kpulse-profiler; do
		row "$binary, size" "$(stat -c %s "$release/$binary" | awk '{ printf "%.1f\n", $1 / 1e6 }')" MB 20
	done
}

bench_profiler() {
	local before after core
	echo "bench: the profiler for $seconds_busy s with every core busy" >&2
	KPULSE_STATE_DIR=$work/state start "http://$address/-/ready" \
		"$release/kpulse-profiler" serve --web.listen-address "$address" --api.listen-address 127.0.0.1:10891 || return
	for ((core = 0; core < $(nproc); core++)); do
		sh -c 'while :; do :; done' &
		running+=($!)
	done
	sleep 5
	before=$(cpu_ms "$server")
	sleep "$seconds_busy"
	after=$(cpu_ms "$server")
	row "kpulse-profiler at 99 Hz, of a core" \
		"$(awk -v ms=$((after - before)) -v s="$seconds_busy" 'BEGIN { printf "%.2f\n", ms / s / 10 }')" % 2
	row "kpulse-profiler, resident memory" "$(resident_mib "$server")" MiB ""
	stop_all
}

echo "bench: building (release)" >&2
cargo build --quiet --release --workspace --bins
bench_context_switch || failed "added by the run-queue metric"
bench_scrape kpulse-exporter 2 20 "$release/kpulse-exporter" serve --web.listen-address "$address" || failed "kpulse-exporter"
bench_node_exporter || failed "node_exporter"
bench_sizes
bench_profiler || failed "kpulse-profiler"

echo
echo "Linux $(uname -r), $(nproc) CPUs, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), load $(cut -d ' ' -f 1 /proc/loadavg)"
printf '%-52s %10s %-4s %12s\n' "what" "measured" "" "target"
cat "$work/table"
