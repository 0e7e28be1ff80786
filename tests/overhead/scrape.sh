# shellcheck shell=bash disable=SC2154 # measure.sh has what is shared
# What does a scrape cost, by the number of containers, and does it depend on how busy the machine is? Read by run.sh.

# Containers, and the target for the CPU of a scrape of their run-queue histograms in milliseconds; - is none. A histogram
# is 31 series, so 400 are 12,400: what peers are measured with, and nothing but the map, names and text.
CURVE=("1 -" "100 2" "200 -" "400 6")
RSS_TARGET=15

# scrape_ms [CURL_FLAG...]: CPU of one scrape of $server, the median. They come a second apart: sooner, the exporter
# would not look for new containers, which it does once a second at most.
scrape_ms() {
	local before after number
	: >"$work/scrapes"
	before=$(cpu_ms)
	for ((number = 0; number < scrapes; number++)); do
		curl --silent --output /dev/null "$@" "$url"
		sleep 1
		after=$(cpu_ms)
		calculate "$after - $before" >>"$work/scrapes"
		before=$after
	done
	calculate "$(median "$work/scrapes")"
}

# Files of cgroups that the exporter keeps open.
cgroup_files() { find "/proc/$server/fd" -type l -exec readlink {} + | grep -E "^($(hierarchies | paste -sd '|'))/" || true; }

busy() {
	beside "$work/load" switches
	beside "$work/load" tcp
}

# curve NAME URL COMMAND...: one line of figures for the containers that there are, into $work/curve.
curve() {
	local name=$1 quiet packed loaded series memory kernel=-
	shift
	start "$@" || return
	wake_containers
	curl --silent --output /dev/null "$url?[1-5]"
	quiet=$(scrape_ms)
	packed=$(scrape_ms --compressed)
	series=$(curl --silent "$url" | grep -vc '^#')
	memory=$(resident_mib "$server")
	[ "$name" != kpulse-exporter ] || kernel=$(calculate "$(cgroup_files | "$work/reread" "$scrapes") / 1000")
	busy
	loaded=$(scrape_ms)
	stop_all
	printf '%-20s %5s %8s %8s %8s %8s %8s %8s' "$name" "${#containers[@]}" "$series" "$quiet" "$kernel" "$packed" "$loaded" "$memory" >>"$work/curve"
	figure=$quiet resident=$memory
}

# curve_of_exporter NAME FLAG...
curve_of_exporter() {
	local name=$1
	shift
	curve "$name" "http://$address/-/ready" "$release/kpulse-exporter" serve --web.listen-address "$address" "$@"
}

memory_verdict() { echo "  ≤ $RSS_TARGET MiB $(verdict "$resident" $RSS_TARGET)" >>"$work/curve"; }

bench_scrape() {
	local point count target peer=prometheus-node-exporter
	for point in "${CURVE[@]}"; do
		read -r count target <<<"$point"
		make_containers "$count" || return
		echo "bench: scrapes with $count containers" >&2
		curve_of_exporter "run-queue metric" --collector.disable-defaults --collector.runqueue_latency || return
		[ "$target" = - ] || printf '  ≤ %s ms %s,' "$target" "$(verdict "$figure" "$target")" >>"$work/curve"
		memory_verdict
		curve_of_exporter kpulse-exporter || return
		memory_verdict
	done
	have $peer || peer=node_exporter
	if have $peer; then
		curve $peer "$url" $peer --web.listen-address="$address" --log.level=error && echo >>"$work/curve"
	else
		echo "node_exporter is not here to compare with: packaging/setup.sh test unpacks it" >>"$work/curve"
	fi
	drop_containers
}

print_curve() {
	[ -s "$work/curve" ] || return 0
	echo
	echo "CPU of a scrape in ms, a second after the one before: quiet, of which the kernel writes cgroup files; compressed by"
	echo "gzip; and while context switches and loopback TCP keep the machine busy. The run-queue metric alone is one histogram"
	echo "for each container; kpulse-exporter is everything that is on by default, of containers that did run"
	printf '%-20s %5s %8s %8s %8s %8s %8s %8s\n' "" "cont." series quiet kernel gzip busy MiB
	cat "$work/curve"
}
