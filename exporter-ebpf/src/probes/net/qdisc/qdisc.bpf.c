/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Time of packets in queueing disciplines, from enqueue to dequeue.
 * Hooks: qdisc_enqueue, net_dev_queue where that does not exist; qdisc_dequeue. Key: device and kind of the root qdisc.
 */
#include "probe.h"
#include "losses.h"
#include "packet.h"
#include "by_device.h"
#include "qdisc.h"

/* A driver may take several packets at once. */
#define BULK_MAX 16

/* Packets in queues. The oldest gives way, and counts as unmeasured unless TCP knows when it was sent. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} queued SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 256);
	__type(key, struct qdisc_key);
	__type(value, struct histogram);
} latency SEC(".maps");

static __always_inline void enqueued(struct sk_buff *skb)
{
	__u64 packet = (__u64)skb, now_ns = bpf_ktime_get_ns();

	bpf_map_update_elem(&queued, &packet, &now_ns, BPF_ANY);
}

/* 0 where nobody knows. What was cut into segments behind the hook was sent by TCP hardly earlier. */
static __always_inline __u64 take_enqueued_ns(struct sk_buff *skb)
{
	__u64 packet = (__u64)skb, *since = bpf_map_lookup_elem(&queued, &packet), ns;

	if (!since)
		return tcp_sent_ns(skb);
	ns = *since;
	bpf_map_delete_elem(&queued, &packet);
	return ns;
}

SEC("tp_btf/qdisc_enqueue")
int BPF_PROG(qdisc_enqueue, struct Qdisc *qdisc, struct netdev_queue *queue, struct sk_buff *skb)
{
	enqueued(skb);
	return 0;
}

/* Before 5.15 (70713dddf3d2). */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	if (has_queue(skb->dev))
		enqueued(skb);
	return 0;
}

SEC("tp_btf/qdisc_dequeue")
int BPF_PROG(qdisc_dequeue, struct Qdisc *qdisc, struct netdev_queue *queue, int packets, struct sk_buff *skb)
{
	struct qdisc_key key = {};
	__u64 now_ns = bpf_ktime_get_ns();

	/* It is also called when nothing may leave yet. */
	if (!skb)
		return 0;
	struct net_device *device = queue->dev;
	const struct Qdisc_ops *ops = qdisc->ops;
	bpf_core_read(key.device, sizeof(key.device), &device->name);
	bpf_core_read(key.kind, sizeof(key.kind), &ops->id);
	struct histogram nothing = {}, *histogram = value_by_device(&latency, &key, sizeof(key), &nothing);
	for (int i = 0; i < BULK_MAX && i < packets && skb; i++) {
		__u64 since_ns = take_enqueued_ns(skb);
		if (!since_ns || since_ns > now_ns)
			lose(1);
		else if (histogram)
			histogram_add_atomic(histogram, now_ns - since_ns);
		skb = skb->next;
	}
	if (packets > BULK_MAX)
		lose(packets - BULK_MAX);
	return 0;
}
