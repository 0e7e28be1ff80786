# shellcheck shell=bash disable=SC2154 # measure.sh has what is shared
# Cgroups as docker makes them, in each hierarchy that is mounted, with a sleeping process in each tenth. Read by run.sh.

# A container's id, 64 digits that look like chance, as they are in life.
container_id() { printf 'kpulse bench %s' "$1" | sha256sum | cut -d ' ' -f 1; }

# Mount points of the hierarchies that a runtime puts a container in.
hierarchies() {
	awk '$3 == "cgroup2" { print $2 } $3 == "cgroup" && $4 ~ /(^|,)(cpu|cpuacct|memory)(,|$)/ { print $2 }' /proc/mounts | sort -u
}

containers=()
sleepers=()

# make_containers COUNT: adds containers until there are so many.
make_containers() {
	local mount parent controller id number
	if ! is_root; then
		echo "only root can make cgroups" >>"$work/log"
		return 1
	fi
	for mount in $(hierarchies); do
		mkdir -p "$mount/docker" 2>>"$work/log" || return 1
		# Of cgroup v2 alone; a controller that is on v1 cannot be switched on here.
		for controller in cpu memory io; do
			for parent in "$mount" "$mount/docker"; do
				(echo "+$controller" >"$parent/cgroup.subtree_control") 2>/dev/null || true
			done
		done
	done
	for ((number = ${#containers[@]}; number < $1; number++)); do
		id=$(container_id "$number")
		containers+=("$id")
		for mount in $(hierarchies); do mkdir -p "$mount/docker/$id"; done
		if ((number % 10 == 0)); then
			(
				for mount in $(hierarchies); do echo 0 >"$mount/docker/$id/cgroup.procs"; done
				exec sleep infinity
			) &
			sleepers+=($!)
		fi
	done
}

# wake_containers: a short-lived process in each, so that probes have something to count for all of them.
wake_containers() {
	local mount id
	for id in "${containers[@]}"; do
		(
			for mount in $(hierarchies); do echo 0 >"$mount/docker/$id/cgroup.procs"; done
			sleep 0.001
			exec true
		)
	done
}

drop_containers() {
	local mount id pid
	for pid in "${sleepers[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${sleepers[@]}"; do wait "$pid" 2>/dev/null || true; done
	for mount in $(hierarchies); do
		for id in "${containers[@]}"; do rmdir "$mount/docker/$id" 2>/dev/null || true; done
		# What was there before stays: it is not empty, or a runtime makes it again.
		rmdir "$mount/docker" 2>/dev/null || true
	done
	containers=() sleepers=()
}
