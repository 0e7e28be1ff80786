/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Values of a map whose key begins with a cgroup id. Keys with the id 0 are there from the start and hold the rest. */
#ifndef KPULSE_BY_CGROUP_H
#define KPULSE_BY_CGROUP_H

#include "histogram.h"
#include "value_or_new.h"

/* A map from cgroup id to value. Bound: the loader's container_max. Key 0 holds what found no room. */
#define BY_CGROUP(name, value_type)                     \
	struct {                                        \
		__uint(type, BPF_MAP_TYPE_PERCPU_HASH); \
		__uint(max_entries, 512);               \
		__type(key, __u64);                     \
		__type(value, value_type);              \
	} name SEC(".maps")

/* The value of `key`, made from `empty` when it is new; that of cgroup 0 when there is no room. */
static __always_inline void *value_by_cgroup(void *map, void *key, const void *empty)
{
	void *value = value_or_new(map, key, empty);

	if (value)
		return value;
	*(__u64 *)key = 0;
	return bpf_map_lookup_elem(map, key);
}

static __always_inline void count_by_cgroup(void *map, void *key, __u64 amount)
{
	__u64 nothing = 0, *count = value_by_cgroup(map, key, &nothing);

	if (count)
		__sync_fetch_and_add(count, amount);
}

static __always_inline void time_by_cgroup(void *map, void *key, __u64 ns)
{
	struct histogram nothing = {}, *histogram = value_by_cgroup(map, key, &nothing);

	if (histogram)
		histogram_add_atomic(histogram, ns);
}

#endif
