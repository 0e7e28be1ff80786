/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Softirqs: from the first raise to the handler's entry, and from its entry to its exit.
 * Hooks: softirq_raise, softirq_entry, softirq_exit. Key: the vector.
 * A vector's handler never runs twice at a time on one CPU, so per-CPU values need no atomics.
 */
#include "probe.h"
#include "softirq.h"

/* User space adds up the CPUs' values, which makes sense of the histograms only. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VECTORS);
	__type(key, __u32);
	__type(value, struct softirq_value);
} vectors SEC(".maps");

static __always_inline int raised(__u32 number)
{
	struct softirq_value *vector = bpf_map_lookup_elem(&vectors, &number);

	/* Every raise of a pending vector is traced; it waits since the first. */
	if (vector && !vector->raised_ns)
		vector->raised_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int entered(__u32 number)
{
	struct softirq_value *vector = bpf_map_lookup_elem(&vectors, &number);

	if (!vector)
		return 0;
	/* An interrupt may raise the vector between these two lines; the wait that this hides was a few instructions.
	 */
	__u64 raised_ns = vector->raised_ns;
	vector->raised_ns = 0;
	__u64 now_ns = bpf_ktime_get_ns();
	if (raised_ns)
		histogram_add(&vector->latency, now_ns - raised_ns);
	vector->entered_ns = now_ns;
	return 0;
}

static __always_inline int left(__u32 number)
{
	struct softirq_value *vector = bpf_map_lookup_elem(&vectors, &number);

	if (!vector || !vector->entered_ns)
		return 0;
	histogram_add(&vector->duration, bpf_ktime_get_ns() - vector->entered_ns);
	vector->entered_ns = 0;
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
	return entered(number);
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
	return entered(context->args[0]);
}

SEC("raw_tp/softirq_exit")
int softirq_exit_raw(struct bpf_raw_tracepoint_args *context)
{
	return left(context->args[0]);
}
