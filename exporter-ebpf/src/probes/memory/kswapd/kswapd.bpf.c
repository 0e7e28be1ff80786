/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Background reclaim: how often and how long each node's kswapd was up.
 * Hooks: mm_vmscan_kswapd_wake at every pass, mm_vmscan_kswapd_sleep when it lies down for good. Key: the node. Both
 * run in the node's own kswapd, so a value has one writer.
 */
#include "probe.h"
#include "histogram.h"
#include "value_or_new.h"
#include "kswapd.h"

#define NODES_MAX 1024 /* MAX_NUMNODES of every distribution: no node finds no room */
#define BPF_F_NO_PREALLOC 1

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NODES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct kswapd_value);
} nodes SEC(".maps");

static __always_inline struct kswapd_value *value_of(__u32 node)
{
	struct kswapd_value fresh = {};

	return value_or_new(&nodes, &node, &fresh);
}

SEC("tp_btf/mm_vmscan_kswapd_wake")
int BPF_PROG(mm_vmscan_kswapd_wake, int node)
{
	struct kswapd_value *value = value_of(node);

	if (!value)
		return 0;
	value->wakeups++;
	if (!value->awake_since_ns)
		value->awake_since_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/mm_vmscan_kswapd_sleep")
int BPF_PROG(mm_vmscan_kswapd_sleep, int node)
{
	struct kswapd_value *value = value_of(node);

	/* The first sleep after the probe came may end an episode whose begin was not seen. */
	if (!value || !value->awake_since_ns)
		return 0;
	histogram_add(&value->active, bpf_ktime_get_ns() - value->awake_since_ns);
	value->awake_since_ns = 0;
	return 0;
}
