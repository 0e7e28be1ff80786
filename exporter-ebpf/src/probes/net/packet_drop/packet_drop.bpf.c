/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets that the kernel dropped, and why.
 * Hook: kfree_skb, with a reason since 5.17; before, the place in the kernel stands for it. Key: reason and protocol.
 */
#include "probe.h"
#include "losses.h"
#include "read_flow.h"
#include "ring.h"
#include "value_or_new.h"
#include "packet_drop.h"
#include "filter.h"

/* Bound: the loader's container_max, times what one container meets. Drops beyond it are counted in `losses`. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct packet_drop_key);
	__type(value, __u64);
} drops SEC(".maps");

/* WORTH_* by reason number; numbers change with every release, so the loader fills it by name. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, REASONS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} worth SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NORMAL_RANGES);
	__type(key, __u32);
	__type(value, struct packet_drop_range);
} normal_ranges SEC(".maps");

/* Which packets make events; nothing in it where all do. A hash replaces its value whole, while programs read it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet_drop_filter);
} filter SEC(".maps");

static __always_inline bool is_normal_place(__u64 location)
{
	for (__u32 i = 0; i < NORMAL_RANGES; i++) {
		__u32 index = i;
		struct packet_drop_range *range = bpf_map_lookup_elem(&normal_ranges, &index);
		if (!range || !range->end)
			return false;
		if (location >= range->start && location < range->end)
			return true;
	}
	return false;
}

static __always_inline bool is_worth_event(struct packet *packet, __u64 location, __u32 reason, bool has_reason)
{
	if (!packet->ip_version)
		return false;
	if (!has_reason)
		return !is_normal_place(location);
	__u32 *value = bpf_map_lookup_elem(&worth, &reason);
	if (!value || *value == WORTH_EVENT)
		return true;
	return *value == WORTH_EVENT_UNLESS_TCP && packet->protocol != PROTOCOL_TCP;
}

static __always_inline void count(struct packet *packet, __u64 cgroup_id, __u64 location, __u32 reason, bool has_reason)
{
	struct packet_drop_key key = {
		.cgroup_id = cgroup_id,
		.location = has_reason ? 0 : location,
		.reason = reason,
		.ethertype = packet->ethertype,
		.protocol = packet->ip_version ? packet->protocol : 0,
	};
	__u64 nothing = 0, *drop_count = value_or_new(&drops, &key, &nothing);

	if (drop_count)
		__sync_fetch_and_add(drop_count, 1);
	else
		lose(1);
}

static __always_inline void fill_tcp(struct packet_drop_record *record, struct packet *packet)
{
	__be32 seq = 0;

	record->tcp_flags = 0;
	if (packet->protocol == PROTOCOL_TCP && packet->transport) {
		bpf_probe_read_kernel(&seq, sizeof(seq), packet->transport + 4);
		bpf_probe_read_kernel(&record->tcp_flags, 1, packet->transport + 13);
	}
	record->tcp_seq = __builtin_bswap32(seq);
}

static __always_inline void fill_device(struct packet_drop_record *record, struct sk_buff *skb)
{
	struct net_device *device = BPF_CORE_READ(skb, dev);

	record->device = 0;
	record->netns = 0;
	__builtin_memset(record->device_name, 0, sizeof(record->device_name));
	record->is_incoming = BPF_CORE_READ(skb, skb_iif) != 0;
	if (!device)
		return;
	record->device = BPF_CORE_READ(device, ifindex);
	record->netns = BPF_CORE_READ(device, nd_net.net, ns.inum);
	bpf_core_read(record->device_name, sizeof(record->device_name), &device->name);
}

static __always_inline bool is_kept(struct sk_buff *skb, struct packet *packet, struct flow *flow)
{
	__u32 zero = 0;
	struct packet_drop_filter *kept = bpf_map_lookup_elem(&filter, &zero);
	struct filter_end ends[FILTER_ENDS] = {};

	if (!kept)
		return true;
	__builtin_memcpy(ends[FILTER_SOURCE].words, flow->source, sizeof(flow->source));
	__builtin_memcpy(ends[FILTER_DESTINATION].words, flow->destination, sizeof(flow->destination));
	ends[FILTER_SOURCE].port = flow->source_port;
	ends[FILTER_DESTINATION].port = flow->destination_port;
	if (kept->reads_device) {
		struct net_device *device = BPF_CORE_READ(skb, dev);
		bpf_core_read(ends[FILTER_DEVICE].words, sizeof(device->name), &device->name);
	}
	__u32 kind = packet->protocol | packet->ip_version << FILTER_VERSION_SHIFT |
		     (flow->has_ports ? FILTER_HAS_PORTS : 0);
	for (__u32 end = 0; end < FILTER_ENDS; end++)
		ends[end].words[FILTER_WORDS - 1] = kind;
	return filter_keeps(kept, ends);
}

/* The container of the socket that the packet came from or was for, where it got as far as that. */
static __always_inline __u64 owner_of(struct sock *sk)
{
	return sk && is_full_socket(sk) ? socket_cgroup_id(sk) : HOST_CGROUP_ID;
}

static __always_inline int dropped(void *context, struct sk_buff *skb, __u64 location, __u32 reason, bool has_reason,
				   struct sock *sk)
{
	struct packet packet = {};

	read_packet(skb, &packet);
	/* Below this a protocol number is a length or a local socket family: no packet. */
	if (packet.ethertype < 0x0600)
		return 0;
	__u64 cgroup_id = owner_of(sk);
	if (want_metrics)
		count(&packet, cgroup_id, location, reason, has_reason);
	if (!want_events || !is_worth_event(&packet, location, reason, has_reason))
		return 0;
	struct flow flow;
	flow_of_packet(&flow, &packet);
	if (!is_kept(skb, &packet, &flow))
		return 0;
	/* Nobody's packet may still have been for a container. */
	struct packet_drop_record *record =
		ring_reserve_fact(sizeof(*record), cgroup_id == HOST_CGROUP_ID ? 0 : cgroup_id);
	if (!record)
		return 0;
	header_current_task(&record->header);
	header_kernel_stack(context, &record->header);
	take_user_stack_below(context, &record->header, &record->user);
	record->location = location;
	record->reason = reason;
	record->has_reason = has_reason;
	record->length = BPF_CORE_READ(skb, len);
	record->ethertype = packet.ethertype;
	record->protocol = packet.protocol;
	fill_device(record, skb);
	record->flow = flow;
	fill_tcp(record, &packet);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* Since 6.11 (c53795d48ee8). */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb_with_socket, struct sk_buff *skb, void *location, __u32 reason, struct sock *rx_sk)
{
	return dropped(ctx, skb, (__u64)location, reason, true, rx_sk ? rx_sk : BPF_CORE_READ(skb, sk));
}

/* Since 5.17 (c504e5c2f964). */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb_with_reason, struct sk_buff *skb, void *location, __u32 reason)
{
	return dropped(ctx, skb, (__u64)location, reason, true, BPF_CORE_READ(skb, sk));
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb, struct sk_buff *skb, void *location)
{
	return dropped(ctx, skb, (__u64)location, 0, false, BPF_CORE_READ(skb, sk));
}
