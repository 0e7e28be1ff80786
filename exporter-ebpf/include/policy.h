/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From which values and how often events are told. User space changes all of it while the programs run. */
#ifndef KPULSE_POLICY_H
#define KPULSE_POLICY_H

#include "record.h"

/* The machine's rule, and the least thresholds of all rules. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POLICY_ENTRIES);
	__type(key, __u32);
	__type(value, struct event_policy);
} policy SEC(".maps");

/* Cgroups with a rule of their own. Over the bound user space refuses the rule and says so. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_CGROUPS);
	__type(key, __u64);
	__type(value, struct event_policy);
} cgroup_policy SEC(".maps");

static __always_inline struct event_policy *policy_of(__u64 cgroup_id)
{
	struct event_policy *own = bpf_map_lookup_elem(&cgroup_policy, &cgroup_id);
	__u32 machine = POLICY_MACHINE;

	return own ? own : bpf_map_lookup_elem(&policy, &machine);
}

/* The threshold that a value reached, or UNKNOWN_U64. A value that could not be measured reaches none. */
static __always_inline __u64 reached(struct event_policy *rule, __u32 threshold, __u64 value_ns)
{
	__u64 threshold_ns = rule->threshold_ns[threshold];

	return value_ns != UNKNOWN_U64 && value_ns >= threshold_ns ? threshold_ns : UNKNOWN_U64;
}

/* Whether the value reaches any rule's threshold: spares hot hooks the look-up of a cgroup for all values below. */
static __always_inline bool may_tell(__u32 threshold, __u64 value_ns)
{
	__u32 least = POLICY_LEAST;
	struct event_policy *rule = want_events ? bpf_map_lookup_elem(&policy, &least) : NULL;

	return rule && reached(rule, threshold, value_ns) != UNKNOWN_U64;
}

#endif
