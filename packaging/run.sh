#!/usr/bin/env bash
# Builds and runs the three binaries on this machine with their defaults, and prints live numbers until Ctrl-C.
#   KPULSE_PROFILE=dev   builds faster and runs slower
#   KPULSE_RUN_SECONDS=N stops by itself after N seconds
# The binaries' logs are in target/run.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
cd "$ROOT"

profile=${KPULSE_PROFILE:-release}
folder=$TARGET/$([ "$profile" = dev ] && echo debug || echo "$profile")
logs=$TARGET/run
interval=5
exporter=http://127.0.0.1:10840 gateway=http://127.0.0.1:10841 profiler=http://127.0.0.1:10842
profiles=http://127.0.0.1:10852

names=() pids=() sleeper=''

build() {
	[ -z "${KPULSE_BUILT:-}" ] || return 0
	echo "kpulse: building ($profile profile); a first build takes some minutes"
	cargo build --quiet --workspace --bins --profile "$profile"
}

# Kernel programs need root: takes it where it can be had without asking, and else says what will be missing.
become_root() {
	is_root && return
	if can_sudo; then
		exec sudo -n env KPULSE_BUILT=1 KPULSE_PROFILE="$profile" KPULSE_RUN_SECONDS="${KPULSE_RUN_SECONDS:-}" \
			CARGO_TARGET_DIR="$TARGET" "$ROOT/packaging/run.sh"
	fi
	echo "kpulse: not root, and sudo would ask for a password: kernel latencies, events and profiles will be missing;"
	echo "        'sudo make run' has them. What each binary could not do is at its /probes."
}

# mount_missing TYPE FOLDER: what a distribution mounts by itself, but a container or chroot lacks.
mount_missing() {
	is_root || return 0
	awk -v type="$1" '$3 == type { found = 1 } END { exit !found }' /proc/mounts && return
	if mount -t "$1" "$1" "$2" 2>/dev/null; then
		echo "kpulse: mounted $1 at $2, which was missing"
	else
		echo "kpulse: $1 is not mounted at $2 and could not be; what needs it will be missing"
	fi
}

start() {
	local name=$1
	shift
	"$folder/$name" "$@" >"$logs/$name.log" 2>&1 </dev/null &
	names+=("$name")
	pids+=($!)
}

stop() {
	local index pid deadline=$((SECONDS + 15))
	trap '' INT TERM
	[ -z "$sleeper" ] || kill "$sleeper" 2>/dev/null || true
	for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
	for index in "${!pids[@]}"; do
		pid=${pids[$index]}
		while kill -0 "$pid" 2>/dev/null; do
			if [ $SECONDS -ge $deadline ]; then
				echo "kpulse: ${names[$index]} did not stop within 15 s and is killed" >&2
				kill -KILL "$pid"
				break
			fi
			sleep 0.1
		done
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$scratch"
}

# Ends the run when one of the three has ended: says which, and the last thing it said.
check_alive() {
	local index code=0
	for index in "${!pids[@]}"; do
		kill -0 "${pids[$index]}" 2>/dev/null && continue
		wait "${pids[$index]}" || code=$?
		echo "kpulse: ${names[$index]} ended with code $code: $(tail -n 1 "$logs/${names[$index]}.log")" >&2
		exit 1
	done
}

get() { curl --silent --fail --max-time 10 "$@"; }

wait_ready() {
	local deadline=$((SECONDS + 60)) address
	for address in "$exporter" "$gateway" "$profiler"; do
		until get "$address/-/ready" >/dev/null; do
			check_alive
			if [ $SECONDS -ge $deadline ]; then
				echo "kpulse: $address/-/ready does not say yes after 60 s: $(curl --silent --max-time 5 "$address/-/ready")" >&2
				exit 1
			fi
			sleep 0.2
		done
	done
}

# runqueue_p99 BEFORE AFTER: the bound under which 99 % of the waits between two scrapes fell, over all containers.
runqueue_p99() {
	awk '
		/^kpulse_runqueue_latency_seconds_bucket/ && match($0, /[{,]le="[^"]*"/) {
			bound = substr($0, RSTART + 5, RLENGTH - 6)
			count[bound] += (FNR == NR ? -1 : 1) * $NF
			bounds[bound] = bound == "+Inf" ? 1e300 : bound + 0
		}
		END {
			total = count["+Inf"]
			if (total <= 0) { print "-"; exit }
			best = 1e300
			for (bound in count) if (count[bound] >= 0.99 * total && bounds[bound] < best) best = bounds[bound]
			if (best == 1e300) print "above all bounds"
			else if (best < 0.001) printf "%.0f µs\n", best * 1e6
			else if (best < 1) printf "%.1f ms\n", best * 1e3
			else printf "%.1f s\n", best
		}' "$1" "$2"
}

# How many events the gateway has stored since it started.
stored_events() { get "$gateway/metrics" | awk '/^kpulse_events_stored_total[{ ]/ { sum += $NF } END { printf "%.0f\n", sum }'; }

# The function with a name in which most samples of the last seconds were taken, and its share of all samples.
hottest_function() {
	get "$profiles/api/v1/profile?scope=host&seconds=10&format=folded" | awk '
		{
			count = $NF
			sub(/ [0-9]+$/, "")
			sub(/.*;/, "")
			samples[$0] += count
			total += count
		}
		END {
			for (name in samples) if (name !~ /^\[/ && samples[name] > samples[hottest]) hottest = name
			if (samples[hottest] > 0) printf "%s (%.0f %%)\n", substr(hottest, 1, 60), 100 * samples[hottest] / total
			else print "-"
		}' | tr -cd '[:print:]\n'
}

live() {
	local end=$((SECONDS + ${KPULSE_RUN_SECONDS:-1000000000})) events ten_ago five_ago hottest
	get "$exporter/metrics" >"$scratch/before"
	five_ago=$(stored_events)
	ten_ago=$five_ago
	while [ $SECONDS -lt $end ]; do
		# In the background, since bash handles Ctrl-C only between commands, and `wait` returns at once.
		sleep $interval &
		sleeper=$!
		wait "$sleeper"
		check_alive
		get "$exporter/metrics" >"$scratch/after" || continue
		events=$(stored_events) || continue
		hottest=$(hottest_function) || hottest='-'
		printf '%s  run-queue p99 ≤ %-8s  events in the last 10 s: %-5d  hottest: %s\n' "$(date +%T)" \
			"$(runqueue_p99 "$scratch/before" "$scratch/after")" $((events - ten_ago)) "$hottest"
		mv "$scratch/after" "$scratch/before"
		ten_ago=$five_ago five_ago=$events
	done
}

build
become_root
mkdir -p "$logs"
scratch=$(mktemp -d)
trap stop EXIT
trap 'echo; echo "kpulse: stopping"; exit 0' INT TERM

mount_missing tracefs /sys/kernel/tracing
mount_missing bpf /sys/fs/bpf
start kpulse-exporter serve
start kpulse-event-gateway run
start kpulse-profiler serve
wait_ready
cat <<-TEXT
	kpulse is running; Ctrl-C stops it
	  metrics   $exporter/metrics
	  events    ${folder#"$ROOT"/}/kpulse-event-gateway events --since 5m
	  profiles  $profiles/
TEXT
live
