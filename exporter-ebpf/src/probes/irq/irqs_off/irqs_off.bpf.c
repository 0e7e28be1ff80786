/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Interrupts kept off: how late the CPU served its high-resolution timers.
 * Hook: hrtimer_expire_entry. Key: none. It runs with interrupts off, so per-CPU values need no atomics.
 * A timer that expired before the last one was served waited in the same stretch, which is counted once: as the
 * lateness of its first timer.
 */
#include "probe.h"
#include "compat.h"
#include "cgroup.h"
#include "ring.h"
#include "irqs_off.h"

#define CLOCK_MONOTONIC 1
/* A hypervisor's time slices are milliseconds: a shorter stretch is counted at once, and never an event. */
#define STOLEN_MIN_NS 500000
/* By then the kernel has taken over the hypervisor's account: it does so at each tick and each switch of tasks. */
#define SETTLED_AFTER_NS 20000000

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct irqs_off_value);
} late SEC(".maps");

/* The stretch whose stolen part is not known yet, as its event will tell it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct irqs_off_record);
} pending SEC(".maps");

/* Who keeps interrupts off is known only while the first timer after the stretch is served. */
static __always_inline void note(void *context, __u64 late_ns)
{
	__u32 zero = 0;
	struct irqs_off_record *noted = bpf_map_lookup_elem(&pending, &zero);

	if (!noted)
		return;
	noted->header.cgroup_id = 0;
	if (!may_tell(THRESHOLD_DURATION, late_ns))
		return;
	struct task_struct *task = (void *)bpf_get_current_task();
	noted->header.cgroup_id = read_task_cgroup_id(task, cpu_cgrp_id);
	noted->header.boot_ns = bpf_ktime_get_boot_ns();
	header_current_task(&noted->header);
	header_kernel_stack(context, &noted->header);
	take_user_stack_below(context, &noted->header, &noted->user);
}

static __always_inline void tell(__u64 late_ns, __u64 stolen_ns, bool knows_steal)
{
	__u32 zero = 0;
	struct irqs_off_record *noted = want_events ? bpf_map_lookup_elem(&pending, &zero) : NULL;

	if (!noted || !noted->header.cgroup_id)
		return;
	__u64 cgroup_id = noted->header.cgroup_id;
	struct irqs_off_record *record =
		ring_reserve(sizeof(*record), cgroup_id, THRESHOLD_DURATION, late_ns - stolen_ns);
	if (!record)
		return;
	record->header.boot_ns = noted->header.boot_ns;
	record->header.tgid = noted->header.tgid;
	record->header.tid = noted->header.tid;
	record->header.stack_bytes = noted->header.stack_bytes;
	__builtin_memcpy(record->header.comm, noted->header.comm, COMM_BYTES);
	__builtin_memcpy(record->header.stack, noted->header.stack, sizeof(noted->header.stack));
	__builtin_memcpy(&record->user, &noted->user, sizeof(noted->user));
	record->stolen_ns = knows_steal ? stolen_ns : UNKNOWN_U64;
	bpf_ringbuf_submit(record, 0);
}

/* What the hypervisor took from this CPU, as the run queue's clock leaves it out. */
static __always_inline __u64 steal_time(struct irqs_off_value *value)
{
	if (!value->run_queue)
		value->run_queue = (__u64)task_rq((void *)bpf_get_current_task());
	struct rq *rq = (void *)value->run_queue;

	if (!bpf_core_field_exists(rq->prev_steal_time_rq))
		return 0;
	value->knows_steal = 1;
	return BPF_CORE_READ(rq, prev_steal_time_rq);
}

static __always_inline void settle(struct irqs_off_value *value, __u64 steal_ns)
{
	__u64 late_ns = value->pending_ns, stolen_ns = steal_ns - value->pending_steal_ns;

	value->pending_ns = 0;
	if (stolen_ns > late_ns)
		stolen_ns = late_ns;
	value->stolen_ns += stolen_ns;
	histogram_add(&value->late, late_ns - stolen_ns);
	tell(late_ns, stolen_ns, value->knows_steal);
}

static __always_inline int expired(void *context, struct hrtimer *timer)
{
	__u32 zero = 0;
	struct irqs_off_value *value = bpf_map_lookup_elem(&late, &zero);

	/* Soft timers run in a softirq, and those of other clocks expire by a time that is not this one's. */
	if (!value || hrtimer_is_soft(timer) || BPF_CORE_READ(timer, base, clockid) != CLOCK_MONOTONIC)
		return 0;
	__u64 expires_ns = hrtimer_expires(timer), now_ns = bpf_ktime_get_ns();
	__u64 steal_ns = steal_time(value), steal_before_ns = value->steal_ns, served_ns = value->served_ns;
	value->steal_ns = steal_ns;
	value->served_ns = now_ns;
	bool is_told = steal_ns != steal_before_ns || now_ns - value->pending_since_ns > SETTLED_AFTER_NS;
	bool is_late = served_ns && expires_ns > served_ns && now_ns > expires_ns;
	__u64 late_ns = now_ns - expires_ns;
	if (value->pending_ns && (is_told || (is_late && late_ns >= STOLEN_MIN_NS)))
		settle(value, steal_ns);
	if (!is_late)
		return 0;
	if (late_ns < STOLEN_MIN_NS) {
		histogram_add(&value->late, late_ns);
		return 0;
	}
	note(context, late_ns);
	value->pending_ns = late_ns;
	value->pending_since_ns = now_ns;
	value->pending_steal_ns = steal_before_ns;
	return 0;
}

SEC("tp_btf/hrtimer_expire_entry")
int BPF_PROG(hrtimer_expire_entry, struct hrtimer *timer)
{
	return expired(ctx, timer);
}

SEC("raw_tp/hrtimer_expire_entry")
int hrtimer_expire_entry_raw(struct bpf_raw_tracepoint_args *context)
{
	return expired(context, (void *)context->args[0]);
}
