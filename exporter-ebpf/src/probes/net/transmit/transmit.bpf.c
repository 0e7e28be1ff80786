/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Time of outgoing packets until the driver gets them: from TCP's own note for what TCP sends here, for all else from
 * when the packet is queued for the device.
 * Hooks: net_dev_queue, net_dev_start_xmit. Key: device.
 */
#include "probe.h"
#include "losses.h"
#include "packet.h"
#include "by_device.h"
#include "transmit.h"

/* Packets on their way to a driver. The oldest gives way, and counts as unmeasured. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} queued SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 256);
	__type(key, struct transmit_key);
	__type(value, struct histogram);
} latency SEC(".maps");

SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	__u64 packet = (__u64)skb;

	if (!has_queue(skb->dev) || tcp_sent_ns(skb))
		return 0;
	__u64 now_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&queued, &packet, &now_ns, BPF_ANY);
	return 0;
}

static __always_inline __u64 take_queued_ns(struct sk_buff *skb)
{
	__u64 packet = (__u64)skb, ns = tcp_sent_ns(skb);

	if (ns)
		return ns;
	__u64 *since = bpf_map_lookup_elem(&queued, &packet);
	if (!since)
		return 0;
	ns = *since;
	bpf_map_delete_elem(&queued, &packet);
	return ns;
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(net_dev_start_xmit, struct sk_buff *skb, struct net_device *device)
{
	struct transmit_key key = {};

	if (!has_queue(device))
		return 0;
	__u64 since_ns = take_queued_ns(skb), now_ns = bpf_ktime_get_ns();
	if (!since_ns || since_ns > now_ns) {
		lose(1);
		return 0;
	}
	bpf_core_read(key.device, sizeof(key.device), &device->name);
	time_by_device(&latency, &key, sizeof(key), now_ns - since_ns);
	return 0;
}
