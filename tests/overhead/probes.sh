# shellcheck shell=bash disable=SC2154 # measure.sh has what is shared
# What does each probe cost while its events happen? The programs' own counters tell, which the kernel fills for one
# second in thirty, by its clock: a run costs some tens of nanoseconds less when nobody counts. Read by run.sh.

# Most seconds from one window of counting to the end of the next.
WINDOW_MAX=40

# probe_page FILE: waits until the counters move, and keeps the page.
probe_page() {
	local before deadline=$((SECONDS + WINDOW_MAX))
	before=$(curl --silent "$url" | grep '^kpulse_probe_runs_total' || true)
	while [ $SECONDS -lt $deadline ]; do
		curl --silent "$url" >"$1"
		[ "$(grep '^kpulse_probe_runs_total' "$1" || true)" = "$before" ] || return 0
		sleep 0.25
	done
	echo "the kernel does not count the runs of BPF programs here" >>"$work/log"
	return 1
}

# probe_costs WHAT: a line for each probe, and the sum, from one window to the next.
probe_costs() {
	local begin
	probe_page "$work/before" || return
	begin=$EPOCHREALTIME
	probe_page "$work/after" || return
	{
		echo
		echo "Probes, $1: runs a second, nanoseconds a run, percent of the machine's $(nproc) CPUs"
		awk -v seconds="$(calculate "$EPOCHREALTIME - $begin")" -v cpus="$(nproc)" '
			!/^kpulse_probe_run(s|_seconds)_total/ { next }
			{ split($1, part, "\""); sign = FILENAME ~ /before$/ ? -1 : 1 }
			/^kpulse_probe_runs/ { runs[part[2]] += sign * $2; next }
			{ time[part[2]] += sign * $2 }
			END {
				for (probe in runs) {
					if (runs[probe] < 1) continue
					share = time[probe] / seconds / cpus * 100
					sum += share
					printf "  %-20s %12.0f %8.0f %8.3f\n", probe, runs[probe] / seconds, time[probe] / runs[probe] * 1e9, share | "sort -k 4 -rn"
				}
				close("sort -k 4 -rn")
				printf "%.3f\n", sum >"'"$work/sum"'"
			}' "$work/before" "$work/after"
	} >>"$work/probes"
	row "all probes, $1" "$(cat "$work/sum")" % "$2"
}

load_probes() {
	beside "$work/load" switches
	beside "$work/load" tcp
	beside "$work/load" files "$work/file"
}

# used_ratio: what the governor found in its last window.
used_ratio() { curl --silent "$url" | awk '$1 == "kpulse_governor_used_ratio" { print $2 }'; }

# away: how many probes it has detached.
away() { curl --silent "$url" | grep -c '^kpulse_probe_degraded.*"over_budget"'; }

# Seconds that the governor gets to find what fits after it has let the first probes go.
SETTLED=45

# governed_costs WHAT: the sum once the governor has let go what does not fit its budget, 1 %.
governed_costs() {
	local deadline=$((SECONDS + 2 * WINDOW_MAX)) gone=0 used before
	while [ "$gone" -eq 0 ] && [ $SECONDS -lt $deadline ]; do
		sleep 0.25
		gone=$(away)
	done
	sleep $SETTLED
	before=$(used_ratio)
	deadline=$((SECONDS + WINDOW_MAX)) used=$before
	while [ "$used" = "$before" ] && [ $SECONDS -lt $deadline ]; do
		sleep 0.25
		used=$(used_ratio)
	done
	if [ -z "$used" ]; then
		echo "the kernel does not count the runs of BPF programs here" >>"$work/log"
		return 1
	fi
	row "  $1, $(away) of them away" "$(awk -v used="$used" 'BEGIN { printf "%.3f\n", used * 100 }')" % 1
}

bench_probes() {
	echo "bench: what each probe costs, twice half a minute, and two minutes with the governor" >&2
	exporter || return
	probe_costs "as the machine is" 1 || return
	load_probes
	probe_costs "with a load that does nothing else than provoke events" "" || return
	stop_all
	KPULSE_EXPORTER__GOVERNOR__BUDGET=0.01 exporter || return
	load_probes
	governed_costs "with that load, held by the governor" || return
	stop_all
}

# Everything that has a threshold reaches it.
TELL_ALL='runqueue_latency: {min_wait: 1ns}, block_io: {min_d2c: 1ns, min_q2c: 1ns}, softirq: {min_delay: 1ns},
  task_state: {min_stuck: 1ns}, tcp_connect: {min_handshake: 1ns}, direct_reclaim: {min_duration: 1ns}'

# events_costs WHAT THRESHOLDS [TARGET]: the costs of the gateway and its probes under load.
events_costs() {
	local begin cpu
	echo "thresholds: {$2}" >"$work/gateway.yaml"
	KPULSE_STATE_DIR=$work/state start "http://$address/-/ready" "$release/kpulse-event-gateway" run \
		--config.file "$work/gateway.yaml" --web.listen-address "$address" --api.listen-address 127.0.0.1:10891 || return
	load_probes
	begin=$EPOCHREALTIME cpu=$(cpu_ms)
	probe_costs "$1" "" || return
	row "  the gateway itself meanwhile, of a core" "$(calculate "($(cpu_ms) - $cpu) / ($EPOCHREALTIME - $begin) / 10")" % "${3:-}"
	stop_all
}

# The same load three times: below every threshold; above, with hardly an event let through; and with many. Then each probe
# by itself, with loads that reach what it looks for.
bench_events() {
	echo "bench: what events cost, three times half a minute" >&2
	events_costs "events, below every threshold" "" || return
	events_costs "events, above every threshold, kept back by the rate limit" \
		"$TELL_ALL, rate_limit: {events_per_second: 1, burst: 1}" 5 || return
	events_costs "events, above every threshold, 2,000 a second let through" \
		"$TELL_ALL, rate_limit: {events_per_second: 2000, burst: 2000}" || return
	echo "bench: what a run, a hit and an event of each probe cost, some minutes" >&2
	{
		echo
		echo "Nanoseconds of a run that tells nothing, of one whose hit the rate limit keeps back, and of one that makes an event"
		"$release/examples/event_costs"
	} >>"$work/probes"
}
