# shellcheck shell=bash disable=SC2034 # variables are for the scripts that are read beside this one
# What the parts of the bench share: servers that are started and ended, their cost, and the table. Read by run.sh.

work=$(mktemp -d)
address=127.0.0.1:10890
url=http://$address/metrics
release=$TARGET/release
running=()

stop_all() {
	local pid
	for pid in "${running[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
	for pid in "${running[@]}"; do wait "$pid" 2>/dev/null || true; done
	running=()
}

# clean_up: leaves nothing behind.
clean_up() {
	stop_all
	[ -z "$meter" ] || rmdir "$meter" 2>/dev/null || true
	rm -rf "$work"
}

# beside COMMAND...: runs it in the background until stop_all.
beside() {
	"$@" >/dev/null 2>>"$work/log" </dev/null &
	running+=($!)
}

# start URL COMMAND...: starts a server and waits until it answers at URL. Its pid is in $server.
start() {
	local answers=$1 deadline=$((SECONDS + 30))
	shift
	: >"$work/log"
	"$@" >"$work/log" 2>&1 </dev/null &
	server=$!
	running+=("$server")
	if [ -d "$meter" ]; then echo "$server" >"$meter/cgroup.procs"; fi
	until curl --silent --fail --max-time 5 --output /dev/null "$answers"; do
		if ! kill -0 "$server" 2>/dev/null || [ $SECONDS -ge $deadline ]; then
			echo "$1 did not answer within 30 s: $(tail -n 1 "$work/log")" | tee -a "$work/log" >&2
			return 1
		fi
		sleep 0.1
	done
}

# exporter FLAG...: starts kpulse-exporter and waits until its probes are loaded.
# Without a budget: loads that do nothing else than provoke events exceed it.
export KPULSE_EXPORTER__GOVERNOR__BUDGET=0 KPULSE_GATEWAY__GOVERNOR__BUDGET=0
exporter() {
	start "http://$address/-/ready" "$release/kpulse-exporter" serve --web.listen-address "$address" "$@"
}

# A cgroup of v2 for the server, since it tells CPU time to the microsecond, and /proc to a hundredth of a second.
meter=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)/kpulse-bench
mkdir "$meter" 2>/dev/null || meter=''

# CPU time of the server and its ended threads, in milliseconds.
cpu_ms() {
	if [ -n "$meter" ]; then awk '$1 == "usage_usec" { print $2 / 1000 }' "$meter/cpu.stat" && return; fi
	sed 's/.*) //' "/proc/$server/stat" | awk -v hz="$(getconf CLK_TCK)" '{ print ($12 + $13) * 1000 / hz }'
}
resident_mib() { awk '/^VmRSS/ { printf "%.1f\n", $2 / 1024 }' "/proc/$1/status"; }
# quantile Q FILE: of one number a line.
quantile() { sort -n "$2" | awk -v q="$1" '{ value[NR] = $1 } END { print value[int(q * (NR - 1) + 1.5)] }'; }
median() { quantile 0.5 "$1"; }
lower_quartile() { quantile 0.25 "$1"; }
upper_quartile() { quantile 0.75 "$1"; }
calculate() { awk "BEGIN { printf \"%.2f\\n\", $1 }"; }

# verdict MEASURED TARGET
verdict() { awk -v m="$1" -v t="$2" 'BEGIN { print (m <= t) ? "met" : "MISSED" }'; }

# row WHAT MEASURED UNIT TARGET: a line of the table; without a target it is there to compare with.
row() {
	printf '%-52s %10s %-4s %12s %s\n' "$1" "$2" "$3" "${4:+≤ $4 $3}" "${4:+$(verdict "$2" "$4")}" >>"$work/table"
}
# failed WHAT: a line that says why there is no figure.
failed() {
	stop_all
	printf '%-52s no figure: %s\n' "$1" "$(tail -n 1 "$work/log")" >>"$work/table"
}
