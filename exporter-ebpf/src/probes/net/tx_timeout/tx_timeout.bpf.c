/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Network devices that did not send what they had taken, until the kernel's watchdog lost patience.
 * Hook: net_dev_xmit_timeout. Key: device.
 */
#include "probe.h"
#include "by_device.h"
#include "ring.h"
#include "tx_timeout.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 256);
	__type(key, struct tx_timeout_key);
	__type(value, __u64);
} timeouts SEC(".maps");

static __always_inline void tell(struct net_device *device, __u32 queue)
{
	struct tx_timeout_record *record = ring_reserve_fact(sizeof(*record), 0);

	if (!record)
		return;
	record->queue = queue;
	record->netns = BPF_CORE_READ(device, nd_net.net, ns.inum);
	bpf_core_read(record->device, sizeof(record->device), &device->name);
	__builtin_memset(record->driver, 0, sizeof(record->driver));
	bpf_probe_read_kernel_str(record->driver, sizeof(record->driver),
				  BPF_CORE_READ(device, dev.parent, driver, name));
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void count(struct net_device *device)
{
	struct tx_timeout_key key = {};
	__u64 nothing = 0;

	bpf_core_read(key.device, sizeof(key.device), &device->name);
	__u64 *count = value_by_device(&timeouts, &key, sizeof(key), &nothing);
	if (count)
		__sync_fetch_and_add(count, 1);
}

SEC("tp_btf/net_dev_xmit_timeout")
int BPF_PROG(net_dev_xmit_timeout, struct net_device *device, int queue)
{
	if (want_metrics)
		count(device);
	if (want_events)
		tell(device, queue);
	return 0;
}
