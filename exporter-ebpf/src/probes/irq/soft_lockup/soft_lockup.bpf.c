/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Soft lockups: a CPU stays in the kernel without switching tasks, while another task waits for it.
 * Hook: the perf software event cpu_clock on every CPU, ten times a second. Key: none.
 * Samples of one CPU do not nest, so per-CPU values need no atomics.
 */
#include "probe.h"
#include "compat.h"
#include "cgroup.h"
#include "ring.h"
#include "soft_lockup.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct soft_lockup_value);
} stretches SEC(".maps");

static __always_inline void tell(struct bpf_perf_event_data *context, __u64 cgroup_id, __u64 duration_ns)
{
	struct soft_lockup_record *record = ring_reserve(sizeof(*record), cgroup_id, THRESHOLD_DURATION, duration_ns);

	if (!record)
		return;
	header_current_task(&record->header);
	header_kernel_stack(context, &record->header);
	take_user_stack_below(context, &record->header, &record->user);
	bpf_ringbuf_submit(record, 0);
}

SEC("perf_event")
int cpu_clock(struct bpf_perf_event_data *context)
{
	__u32 zero = 0;
	struct soft_lockup_value *stretch = bpf_map_lookup_elem(&stretches, &zero);

	if (!stretch)
		return 0;
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 tid = (__u32)bpf_get_current_pid_tgid();
	/* Addresses of the kernel have the highest bit set. A task that nobody waits for may run for as long as it
	 * likes. */
	if (!tid || !(context->ip >> 63) || BPF_CORE_READ(task_rq(task), nr_running) < 2) {
		stretch->since_ns = 0;
		return 0;
	}
	__u64 switches = BPF_CORE_READ(task, nvcsw) + BPF_CORE_READ(task, nivcsw);
	__u64 now_ns = bpf_ktime_get_ns();
	if (!stretch->since_ns || stretch->tid != tid || stretch->switches != switches) {
		stretch->since_ns = now_ns;
		stretch->samples = 1;
		stretch->switches = switches;
		stretch->tid = tid;
		stretch->is_counted = 0;
		return 0;
	}
	stretch->samples++;
	if (stretch->is_counted || stretch->samples < LOCKUP_SAMPLES)
		return 0;
	__u64 cgroup_id = read_task_cgroup_id(task, cpu_cgrp_id), duration_ns = now_ns - stretch->since_ns;
	struct event_policy *rule = policy_of(cgroup_id);
	if (!rule || reached(rule, THRESHOLD_DURATION, duration_ns) == UNKNOWN_U64)
		return 0;
	stretch->is_counted = 1;
	stretch->lockups++;
	if (want_events)
		tell(context, cgroup_id, duration_ns);
	return 0;
}
