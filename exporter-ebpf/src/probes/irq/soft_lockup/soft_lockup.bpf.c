/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Soft lockups: a CPU stays in the kernel without switching tasks, while another task waits for it.
 * Hook: the perf software event cpu_clock on every CPU, ten times a second. Key: none.
 * Samples of one CPU do not nest, so per-CPU values need no atomics.
 */
#include "probe.h"
#include "compat.h"
#include "soft_lockup.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct soft_lockup_value);
} stretches SEC(".maps");

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
	if (!stretch->is_counted && stretch->samples >= LOCKUP_SAMPLES && now_ns - stretch->since_ns >= LOCKUP_NS) {
		stretch->is_counted = 1;
		stretch->lockups++;
	}
	return 0;
}
