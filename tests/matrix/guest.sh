#!/bin/sh
# What a guest of the kernel matrix runs; busybox provides its commands.
status=0

# Tests of what no kernel changes: they run on this machine's own, and take long in an emulated one.
left_out="--skip policy:: --skip retry:: --skip ring:: --skip map_pressure:: --skip process_life::a_full_ring_is_counted"
left_out="$left_out --skip packet_drop::a_fragment --skip packet_drop::what_the_filter_keeps_out"
left_out="$left_out --skip socket_wait::each_late_reader_is_told_of_ipv6 --skip socket_wait::it_is_off"

# run_tests PROGRAM ARGUMENT...
run_tests() {
	"$@" --test-threads=1 --show-output --color never
}

# run_program PROGRAM ARGUMENT...: with a second chance, as on the host: an emulated machine is slow at times.
run_program() {
	if { run_tests "$@"; echo $? >/tmp/code; } | tee /tmp/first && [ "$(cat /tmp/code)" = 0 ]; then return; fi
	failed=$(awk '/^failures:$/ { list = "" } /^    [A-Za-z0-9_:]+$/ { list = list " " $1 } END { print list }' /tmp/first)
	# shellcheck disable=SC2086 # one argument for each test
	if [ -n "$failed" ] && run_tests "$1" --exact $failed; then
		echo "GUEST-AGAIN $(echo $failed | wc -w) passed at the second try:$failed"
	else
		status=1
	fi
}

if kpulse-exporter check; then
	echo "GUEST-CHECK ok: kpulse-exporter check"
else
	echo "GUEST-CHECK failed: kpulse-exporter check exited with $?"
	status=1
fi

is_v2() { [ -e /sys/fs/cgroup/cgroup.controllers ]; }

if [ -x /bin/kernel ] && is_v2; then
	echo "GUEST-LEAVES-OUT $(echo "$left_out" | sed 's/--skip //g'): no kernel changes what they test; they run on this machine's own"
	# shellcheck disable=SC2086 # one argument for each word
	run_program kernel $left_out
fi

# What comes from files depends on the version of cgroups more than on the kernel: one guest for each. What the hardware
# tells depends on the drivers that there are.
if [ -x /bin/host ]; then
	case $(uname -r) in
	6.12.*) run_program host ;;
	*-cloud-*) is_v2 || run_program host ;;
	*) run_program host hardware:: ;;
	esac
fi

exit $status
