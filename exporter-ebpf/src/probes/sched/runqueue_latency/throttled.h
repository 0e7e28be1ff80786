/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How long CPU quotas have held a task's run queue back, its own cgroup's and those above. For events only. */
#ifndef KPULSE_THROTTLED_H
#define KPULSE_THROTTLED_H

/* Each CPU has a run queue for each cgroup, with a count of its own. */
struct throttled {
	__u64 queue; /* 0 = not known */
	__u64 ns;
};

/*
 * `throttled_clock_self_time` is there since 6.6, the other is its like in the clock of load tracking; neither without
 * CONFIG_CFS_BANDWIDTH. For a task that the verifier trusts.
 */
static __always_inline struct throttled task_throttled(struct task_struct *task)
{
	struct throttled throttled = {};

	if (!want_events)
		return throttled;
	struct cfs_rq *queue = task->se.cfs_rq;
	if (bpf_core_field_exists(queue->throttled_clock_self_time))
		throttled.ns = queue->throttled_clock_self_time;
	else if (bpf_core_field_exists(queue->throttled_clock_pelt_time))
		throttled.ns = queue->throttled_clock_pelt_time;
	else
		return throttled;
	throttled.queue = (__u64)queue;
	return throttled;
}

/* The same for a task that was read from memory. */
static __always_inline struct throttled read_throttled(struct task_struct *task)
{
	struct throttled throttled = {};

	if (!want_events)
		return throttled;
	struct cfs_rq *queue = BPF_CORE_READ(task, se.cfs_rq);
	if (bpf_core_field_exists(queue->throttled_clock_self_time))
		throttled.ns = BPF_CORE_READ(queue, throttled_clock_self_time);
	else if (bpf_core_field_exists(queue->throttled_clock_pelt_time))
		throttled.ns = BPF_CORE_READ(queue, throttled_clock_pelt_time);
	else
		return throttled;
	throttled.queue = (__u64)queue;
	return throttled;
}

#endif
