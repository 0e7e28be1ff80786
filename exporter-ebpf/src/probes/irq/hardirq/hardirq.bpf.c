/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Hard interrupts: how long each device's handler ran.
 * Hooks: irq_handler_entry, irq_handler_exit. Key: the interrupt's number.
 * Both run with interrupts off and handlers do not nest, so per-CPU values need no atomics.
 */
#include "probe.h"
#include "histogram.h"
#include "value_or_new.h"
#include "hardirq.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct hardirq_running);
} running SEC(".maps");

/* OTHER_IRQ holds what finds no room. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, IRQS_MAX);
	__type(key, __u32);
	__type(value, struct histogram);
} duration SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} zero_histogram SEC(".maps");

static __always_inline struct hardirq_running *running_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&running, &zero);
}

static __always_inline struct histogram *duration_of(__u32 irq)
{
	struct histogram *histogram = bpf_map_lookup_elem(&duration, &irq);
	__u32 zero = 0;

	if (histogram)
		return histogram;
	struct histogram *empty = bpf_map_lookup_elem(&zero_histogram, &zero);
	if (!empty)
		return NULL;
	histogram = value_or_new(&duration, &irq, empty);
	if (histogram)
		return histogram;
	irq = OTHER_IRQ;
	return bpf_map_lookup_elem(&duration, &irq);
}

static __always_inline int entered(__u32 irq)
{
	struct hardirq_running *handler = running_here();

	if (handler) {
		handler->irq = irq;
		handler->entered_ns = bpf_ktime_get_ns();
	}
	return 0;
}

static __always_inline int left(__u32 irq)
{
	struct hardirq_running *handler = running_here();

	if (!handler || !handler->entered_ns || handler->irq != irq)
		return 0;
	__u64 ran_ns = bpf_ktime_get_ns() - handler->entered_ns;
	handler->entered_ns = 0;
	struct histogram *histogram = duration_of(irq);
	if (histogram)
		histogram_add(histogram, ran_ns);
	return 0;
}

SEC("tp_btf/irq_handler_entry")
int BPF_PROG(irq_handler_entry, int irq)
{
	return entered(irq);
}

SEC("tp_btf/irq_handler_exit")
int BPF_PROG(irq_handler_exit, int irq)
{
	return left(irq);
}

SEC("raw_tp/irq_handler_entry")
int irq_handler_entry_raw(struct bpf_raw_tracepoint_args *context)
{
	return entered(context->args[0]);
}

SEC("raw_tp/irq_handler_exit")
int irq_handler_exit_raw(struct bpf_raw_tracepoint_args *context)
{
	return left(context->args[0]);
}
