#!/bin/busybox sh
# shellcheck shell=dash
# First and only process of a matrix guest: mounts what kpulse reads, runs /command, tells its exit code, powers off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=dumb

mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
if grep -q systemd.unified_cgroup_hierarchy=0 /proc/cmdline; then
	mount -t tmpfs cgroup /sys/fs/cgroup
	for controllers in cpu,cpuacct memory blkio pids; do
		mkdir "/sys/fs/cgroup/$controllers"
		mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$controllers"
	done
else
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	for controller in cpu memory io pids; do
		echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
	done
fi

while read -r module; do
	insmod "/modules/$module.ko" || echo "GUEST-NOTE insmod $module failed"
done </modules/order
ip link set lo up

echo "GUEST-BOOT release=$(uname -r) boot=$(cut -d ' ' -f 1 /proc/uptime)s free=$(awk '/MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)MiB"
sh /command
code=$?
dmesg | grep -E 'BUG:|Oops|WARNING:|Call Trace|Out of memory' | head -n 5 | sed 's/^/GUEST-NOTE /'
echo "GUEST-EXIT $code"
sync
poweroff -f
