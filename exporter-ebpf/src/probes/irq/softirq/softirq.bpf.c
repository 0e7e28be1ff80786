/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Softirqs: from the first raise to the handler's entry, and from its entry to its exit.
 * Hooks: softirq_raise, softirq_entry, softirq_exit. Key: the vector.
 * A vector's handler never runs twice at a time on one CPU, so per-CPU values need no atomics.
 */
#include "probe.h"
#include "compat.h"
#include "cgroup.h"
#include "ring.h"
#include "softirq.h"

/* User space adds up the CPUs' values, which makes sense of the histograms only. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VECTORS);
	__type(key, __u32);
	__type(value, struct softirq_value);
} vectors SEC(".maps");

/* The handler that ended last on a CPU: a suspect when another one begins late. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct softirq_run);
} last_run SEC(".maps");

static __always_inline void tell(void *context, __u32 number, __u64 delay_ns)
{
	__u32 zero = 0;
	struct softirq_run *run = bpf_map_lookup_elem(&last_run, &zero);
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 cgroup_id = read_task_cgroup_id(task, cpu_cgrp_id);
	struct softirq_record *record = ring_reserve(sizeof(*record), cgroup_id, THRESHOLD_DELAY, delay_ns);

	if (!record)
		return;
	header_current_task(&record->header);
	header_kernel_stack(context, &record->header);
	record->vector = number;
	record->_pad = 0;
	record->last = (struct softirq_run){};
	if (run)
		record->last = *run;
	bpf_ringbuf_submit(record, 0);
}

static __always_inline int raised(__u32 number)
{
	struct softirq_value *vector = bpf_map_lookup_elem(&vectors, &number);

	/* Every raise of a pending vector is traced; it waits since the first. */
	if (vector && !vector->raised_ns)
		vector->raised_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int entered(void *context, __u32 number)
{
	struct softirq_value *vector = bpf_map_lookup_elem(&vectors, &number);

	if (!vector)
		return 0;
	/* An interrupt may raise the vector between these two lines; the wait that this hides was a few instructions.
	 */
	__u64 raised_ns = vector->raised_ns;
	vector->raised_ns = 0;
	__u64 now_ns = bpf_ktime_get_ns();
	vector->entered_ns = now_ns;
	if (!raised_ns)
		return 0;
	histogram_add(&vector->latency, now_ns - raised_ns);
	if (may_tell(THRESHOLD_DELAY, now_ns - raised_ns))
		tell(context, number, now_ns - raised_ns);
	return 0;
}

static __always_inline void remember(__u32 number, __u64 duration_ns)
{
	__u32 zero = 0;
	struct softirq_run *run = bpf_map_lookup_elem(&last_run, &zero);

	if (run)
		*run = (struct softirq_run){ .vector = number, .is_known = 1, .duration_ns = duration_ns };
}

static __always_inline int left(__u32 number)
{
	struct softirq_value *vector = bpf_map_lookup_elem(&vectors, &number);

	if (!vector || !vector->entered_ns)
		return 0;
	__u64 duration_ns = bpf_ktime_get_ns() - vector->entered_ns;
	histogram_add(&vector->duration, duration_ns);
	vector->entered_ns = 0;
	if (want_events)
		remember(number, duration_ns);
	return 0;
}

SEC("tp_btf/softirq_raise")
int BPF_PROG(softirq_raise, unsigned int number)
{
	return raised(number);
}

SEC("tp_btf/softirq_entry")
int BPF_PROG(softirq_entry, unsigned int number)
{
	return entered(ctx, number);
}

SEC("tp_btf/softirq_exit")
int BPF_PROG(softirq_exit, unsigned int number)
{
	return left(number);
}

SEC("raw_tp/softirq_raise")
int softirq_raise_raw(struct bpf_raw_tracepoint_args *context)
{
	return raised(context->args[0]);
}

SEC("raw_tp/softirq_entry")
int softirq_entry_raw(struct bpf_raw_tracepoint_args *context)
{
	return entered(context, context->args[0]);
}

SEC("raw_tp/softirq_exit")
int softirq_exit_raw(struct bpf_raw_tracepoint_args *context)
{
	return left(context->args[0]);
}
