#!/bin/sh
# What a guest of the kernel matrix runs; busybox provides its commands.
status=0

if kpulse-exporter check; then
	echo "GUEST-CHECK ok: kpulse-exporter check"
else
	echo "GUEST-CHECK failed: kpulse-exporter check exited with $?"
	status=1
fi

if [ -x /bin/kernel ]; then
	kernel --test-threads=1 --show-output --color never || status=1
fi

exit $status
