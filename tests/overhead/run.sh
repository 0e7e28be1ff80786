#!/usr/bin/env bash
# Measures what kpulse costs on this machine and prints it beside the targets. Nothing is asserted: figures depend on
# the machine and on what else runs. Root is needed for all that comes from the kernel.
#   run.sh [switches | scrape | probes | events | sizes | profiler | stacks | pipeline]...    only these parts
# events ends with a table of every program of every probe, each provoked by a load of its own; what this machine cannot
# provoke is there with the reason. Of some probes alone: target/release/examples/event_costs PROBE...
#   TRIALS=100 ROUNDS=3 SECONDS_BUSY=30 SCRAPES=10 PIPELINE_EVENTS=100000   change the length
set -euo pipefail
# shellcheck source=../../packaging/environment.sh
source "$(dirname "$0")/../../packaging/environment.sh"
cd "$ROOT"
source tests/overhead/measure.sh
source tests/overhead/containers.sh
source tests/overhead/scrape.sh
source tests/overhead/probes.sh

trials=${TRIALS:-100} rounds=${ROUNDS:-3} seconds_busy=${SECONDS_BUSY:-30} scrapes=${SCRAPES:-10}
trap 'drop_containers; clean_up' EXIT
trap 'exit 130' INT TERM

# Starts bpftrace's run-queue histogram, which knows no containers, and waits until it measures. Its script needs a
# header for one constant, which does not compile everywhere; itself it needs debugfs, which gets no place outside of it.
start_peer() {
	local script deadline=$((SECONDS + 30))
	script=$(command -v runqlat.bt) || return
	: >"$work/peer.log"
	# shellcheck disable=SC2016 # for the shell in the namespace
	unshare --mount sh -c 'mount -t debugfs none /sys/kernel/debug && exec "$@"' sh timeout --kill-after=10 300 \
		bpftrace -B line -e "$(sed '/^#/d; s/TASK_RUNNING/0/' "$script")" >"$work/peer.log" 2>&1 </dev/null &
	running+=($!)
	until grep --quiet Tracing "$work/peer.log"; do
		kill -0 "${running[-1]}" 2>/dev/null && [ $SECONDS -lt $deadline ] || return
		sleep 0.1
	done
}

# switch_ns: CPU time of one context switch, in nanoseconds.
switch_ns() { "$work/pingpong" 150000 $(($(nproc) - 1)); }

bench_switches() {
	local round before with after
	echo "bench: context switches, $trials rounds of half a second" >&2
	"$release/examples/switch_costs" "$work/pingpong" "$trials" >"$work/trials" 2>>"$work/log" || return
	cut -d ' ' -f 1 "$work/trials" >"$work/without"
	cut -d ' ' -f 2 "$work/trials" >"$work/added"
	cut -d ' ' -f 3 "$work/trials" >"$work/added-by-none"
	row "context switch without kpulse, median" "$(rounded median without)" ns ""
	row "  added by the run-queue metric, median" "$(rounded median added)" ns 150
	row "    a quarter of $trials rounds found at most" "$(rounded lower_quartile added)" ns ""
	row "    a quarter at least" "$(rounded upper_quartile added)" ns ""
	row "  added by a program that does nothing, median" "$(rounded median added-by-none)" ns ""
	after=$(switch_ns)
	for ((round = 0; round < rounds; round++)); do
		echo "bench: context switches beside bpftrace, round $((round + 1)) of $rounds" >&2
		if start_peer; then
			with=$(switch_ns)
			stop_all
			before=$after after=$(switch_ns)
			calculate "$with - ($before + $after) / 2" >>"$work/added-by-peer"
		fi
		stop_all
	done
	if [ -s "$work/added-by-peer" ]; then
		row "  added by bpftrace's runqlat.bt, median" "$(rounded median added-by-peer)" ns ""
	else
		echo "bench: bpftrace does not run here, so the run-queue metric stands alone" >&2
	fi
}
# rounded median|lower_quartile|upper_quartile FILE
rounded() { "$1" "$work/$2" | awk '{ printf "%.0f\n", $1 }'; }

bench_sizes() {
	local binary
	for binary in kpulse-exporter kpulse-event-gateway kpulse-profiler; do
		row "$binary, size" "$(stat -c %s "$release/$binary" | awk '{ printf "%.1f\n", $1 / 1e6 }')" MB 15
	done
}

bench_profiler() {
	local began
	echo "bench: the profiler for $seconds_busy s with every core busy" >&2
	began=$(date +%s%N)
	KPULSE_STATE_DIR=$work/state start "http://$address/-/ready" \
		"$release/kpulse-profiler" serve --web.listen-address "$address" --api.listen-address 127.0.0.1:10891 || return
	row "kpulse-profiler, from its start until it samples" $((($(date +%s%N) - began) / 1000000)) ms 1000
	sampled_beside_load "kpulse-profiler at 99 Hz" 1 60
	if ! command -v perf >/dev/null; then
		echo "bench: perf is not here, so the profiler stands alone" >&2
		return
	fi
	perf_beside_load "perf record -g at 99 Hz" -g
	perf_beside_load "perf record --call-graph dwarf at 99 Hz" --call-graph dwarf
}
# sampled_beside_load WHAT [CPU-TARGET MEMORY-TARGET]: what the server costs while every core is busy; then all of it ends.
sampled_beside_load() {
	local before core used
	for ((core = 0; core < $(nproc); core++)); do beside sh -c 'while :; do :; done'; done
	sleep 5
	before=$(cpu_ms)
	sleep "$seconds_busy"
	used=$(calculate "($(cpu_ms) - $before) / $seconds_busy / 10")
	row "$1, of a core" "$used" % "${2:-}"
	row "  resident memory, with mapped files" "$(resident_mib "$server")" MiB "${3:-}"
	[ $# -eq 1 ] || row "  maps in the kernel" "$(map_mib "$server")" MiB 32
	stop_all
}
# perf_beside_load WHAT FLAG...: the same of perf, which writes its samples as they are, without names.
perf_beside_load() {
	echo "bench: $1 for $seconds_busy s with every core busy" >&2
	perf record -F 99 -a "${@:2}" -o "$work/perf.data" >/dev/null 2>>"$work/log" </dev/null &
	server=$!
	running+=("$server")
	if [ -d "$meter" ]; then echo "$server" >"$meter/cgroup.procs"; fi
	sampled_beside_load "$1"
	row "  written to disk" "$(stat -c %s "$work/perf.data" | awk '{ printf "%.1f\n", $1 / 1e6 }')" MB ""
	rm -f "$work/perf.data"
}
# map_mib PID: what the BPF maps that a process holds take, each once.
map_mib() {
	awk '$1 == "memlock:" { bytes = $2 } $1 == "map_id:" { maps[$2] = bytes }
		END { for (map in maps) sum += maps[map]; printf "%.1f\n", sum / 1048576 }' /proc/"$1"/fdinfo/*
}

bench_stacks() {
	"$release/examples/stack_quality" >"$work/stacks" 2> >(tee -a "$work/log" >&2)
}

bench_pipeline() {
	"$release/examples/pipeline_costs" >"$work/pipeline" 2> >(tee -a "$work/log" >&2) || return
	awk -F '\t' -v OFS='\t' '
		NF < 4 { printf "%-52s no figure: %s\n", $1, $2; next }
		{ split($4, target, " "); verdict = "" }
		target[1] == "≤" { verdict = ($2 + 0 <= target[2] + 0) ? "met" : "MISSED" }
		target[1] == "≥" { verdict = ($2 + 0 >= target[2] + 0) ? "met" : "MISSED" }
		{ printf "%-52s %10s %-4s %12s %s\n", $1, $2, $3, $4, verdict }' "$work/pipeline" >>"$work/table"
}

[ $# -gt 0 ] || set -- switches scrape probes events sizes profiler stacks pipeline
for part in "$@"; do
	case $part in
	switches | scrape | probes | events | sizes | profiler | stacks | pipeline) ;;
	*) echo "bench: there is no part $part" >&2 && exit 2 ;;
	esac
done
echo "bench: building (release)" >&2
cargo build --quiet --release --workspace --bins --example switch_costs --example event_costs --example pipeline_costs --example stack_quality
for program in pingpong load reread; do cc -O2 -Wall -o "$work/$program" "tests/overhead/$program.c"; done
for part in "$@"; do "bench_$part" || failed "$part"; done

echo
echo "Linux $(uname -r), $(nproc) CPUs, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), load $(cut -d ' ' -f 1 /proc/loadavg)"
if [ -s "$work/table" ]; then
	printf '%-52s %10s %-4s %12s\n' "what" "measured" "" "target"
	cat "$work/table"
fi
print_curve
[ ! -s "$work/probes" ] || cat "$work/probes"
if [ -s "$work/stacks" ]; then
	echo
	echo "Whole stacks, % of so many samples: from the thread's or goroutine's start over every call to the hot one, all named"
	cat "$work/stacks"
fi
