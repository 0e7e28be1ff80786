/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A token bucket for each cgroup, kept as the time at which the bucket will be full again: one word, no refill.
 * Two CPUs may take the same token (racy on purpose: 5.10 has no compare-and-swap), so a burst can exceed its bound
 * by the number of CPUs. What is suppressed is counted with an atomic add and exact.
 */
#ifndef KPULSE_RATE_LIMIT_H
#define KPULSE_RATE_LIMIT_H

#include "policy.h"
#include "value_or_new.h"

struct bucket {
	__u64 full_at_ns;
	__u64 suppressed_total;
};

/* Cgroups with recent events; the least recent one gives way and begins anew with a full bucket. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct bucket);
} rate_buckets SEC(".maps");

static __always_inline struct bucket *rate_bucket(__u64 cgroup_id)
{
	struct bucket fresh = {};

	return value_or_new(&rate_buckets, &cgroup_id, &fresh);
}

static __always_inline bool rate_limit_take(struct bucket *bucket, struct event_policy *rule, __u64 now_ns)
{
	__u64 full_at = bucket->full_at_ns > now_ns ? bucket->full_at_ns : now_ns;

	if (full_at + rule->rate_interval_ns > now_ns + rule->rate_burst_ns) {
		__sync_fetch_and_add(&bucket->suppressed_total, 1);
		return false;
	}
	bucket->full_at_ns = full_at + rule->rate_interval_ns;
	return true;
}

#endif
