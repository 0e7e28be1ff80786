/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Network devices that did not send what they had taken, until the kernel's watchdog lost patience.
 * Hook: net_dev_xmit_timeout. Key: device.
 */
#include "probe.h"
#include "by_device.h"
#include "tx_timeout.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 256);
	__type(key, struct tx_timeout_key);
	__type(value, __u64);
} timeouts SEC(".maps");

SEC("tp_btf/net_dev_xmit_timeout")
int BPF_PROG(net_dev_xmit_timeout, struct net_device *device)
{
	struct tx_timeout_key key = {};
	__u64 nothing = 0;

	bpf_core_read(key.device, sizeof(key.device), &device->name);
	__u64 *count = value_by_device(&timeouts, &key, sizeof(key), &nothing);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}
