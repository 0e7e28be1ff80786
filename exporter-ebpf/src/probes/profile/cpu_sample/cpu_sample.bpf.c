/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * CPU samples: what each CPU runs, 99 times a second by default, counted by stack in the kernel.
 * Hook: the perf software event cpu_clock on every CPU, which needs no PMU. Key: thread, stacks, cgroup.
 */
#include "probe.h"
#include "cgroup.h"
#include "cpu_sample.h"

#define EFAULT 14
#define EEXIST 17

/* Which set of maps is filled; user space flips it, waits for the CPUs to leave the old one, and reads that. */
__u32 generation = 0;

#define STACKS(name)                                               \
	struct {                                                   \
		__uint(type, BPF_MAP_TYPE_STACK_TRACE);            \
		__uint(max_entries, 8192);                         \
		__uint(key_size, sizeof(__u32));                   \
		__uint(value_size, SAMPLE_FRAMES * sizeof(__u64)); \
	} name SEC(".maps")

#define COUNTS(name)                                \
	struct {                                    \
		__uint(type, BPF_MAP_TYPE_HASH);    \
		__uint(max_entries, 8192);          \
		__type(key, struct cpu_sample_key); \
		__type(value, __u64);               \
	} name SEC(".maps")

STACKS(stacks_0);
STACKS(stacks_1);
COUNTS(counts_0);
COUNTS(counts_1);

/* One entry for each generation. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GENERATIONS);
	__type(key, __u32);
	__type(value, struct cpu_sample_value);
} totals SEC(".maps");

static __always_inline int sample(struct bpf_perf_event_data *context, void *stacks, void *counts,
				  struct cpu_sample_value *total)
{
	__u64 id = bpf_get_current_pid_tgid(), one = 1;
	struct task_struct *task = (void *)bpf_get_current_task();
	struct cpu_sample_key key = {
		.cgroup_id = read_task_cgroup_id(task, cpu_cgrp_id),
		.tgid = id >> 32,
		.tid = id,
	};

	bpf_get_current_comm(key.comm, sizeof(key.comm));
	key.user_stack = bpf_get_stackid(context, stacks, BPF_F_USER_STACK);
	key.kernel_stack = bpf_get_stackid(context, stacks, 0);
	if (key.user_stack == -EEXIST || key.kernel_stack == -EEXIST) {
		__sync_fetch_and_add(&total->stack_collisions, 1);
		return 0;
	}
	__u64 *count = bpf_map_lookup_elem(counts, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else if (bpf_map_update_elem(counts, &key, &one, BPF_NOEXIST)) {
		/* Another CPU may have made it meanwhile. */
		count = bpf_map_lookup_elem(counts, &key);
		if (count)
			__sync_fetch_and_add(count, 1);
		else
			__sync_fetch_and_add(&total->counts_full, 1);
	}
	return 0;
}

SEC("perf_event")
int cpu_clock(struct bpf_perf_event_data *context)
{
	__u32 current = generation & 1;
	struct cpu_sample_value *total = bpf_map_lookup_elem(&totals, &current);

	if (!total)
		return 0;
	__sync_fetch_and_add(&total->taken, 1);
	if (!bpf_get_current_pid_tgid()) {
		__sync_fetch_and_add(&total->idle, 1);
		return 0;
	}
	if (current)
		return sample(context, &stacks_1, &counts_1, total);
	return sample(context, &stacks_0, &counts_0, total);
}
