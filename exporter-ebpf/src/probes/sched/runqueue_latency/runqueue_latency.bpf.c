/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Run-queue latency: from runnable to running, after a wake-up or a preemption; and which of both it was.
 * Hooks: sched_wakeup, sched_wakeup_new, sched_switch. Key: the cgroup of the task that waited.
 * All three run with interrupts off, so per-CPU values need no atomics.
 */
#include "probe.h"
#include "compat.h"
#include "by_cgroup.h"
#include "cgroup.h"
#include "ring.h"
#include "throttled.h"
#include "runqueue_latency.h"

/*
 * Since when a task is runnable, and why: a word for each value of a pid's low bits, holding the time above the
 * origin and the pid's high bits. Array look-ups are inlined and a store is atomic, so this is cheaper than a hash map
 * and works where task storage (5.11) does not. Tasks whose pids share their low bits displace each other, which is
 * counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << RUNNABLE_INDEX_BITS);
	__type(key, __u32);
	__type(value, __u64);
} runnable SEC(".maps");

/*
 * What a CPU quota had held back by then, under the same index. One entry for who wants no events, and nothing in it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << RUNNABLE_INDEX_BITS);
	__type(key, __u32);
	__type(value, struct throttled);
} throttle_before SEC(".maps");

#define ORIGIN_NEW 0
#define ORIGIN_WOKEN 1
#define ORIGIN_PREEMPTED 2
#define ORIGIN_BITS 2
/* What is left for the time wraps every 2.3 years, so that only differences mean something. */
#define TIME_SHIFT (ORIGIN_BITS + RUNNABLE_PID_BITS)

struct wait {
	__u64 ns; /* 0: its beginning was not seen */
	__u32 origin;
};

BY_CGROUP(accounts, struct runqueue_latency_account);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct runqueue_latency_account);
} zero_account SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct runqueue_latency_value);
} losses SEC(".maps");

static __always_inline struct runqueue_latency_value *loss_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&losses, &zero);
}

static __always_inline struct runqueue_latency_account *account_of(__u64 cgroup_id)
{
	struct runqueue_latency_account *account = bpf_map_lookup_elem(&accounts, &cgroup_id);
	__u32 zero = 0;

	if (account)
		return account;
	struct runqueue_latency_account *empty = bpf_map_lookup_elem(&zero_account, &zero);
	if (!empty)
		return NULL;
	account = value_by_cgroup(&accounts, &cgroup_id, empty);
	/* It is that of cgroup 0 by now, which holds what finds no room. */
	struct runqueue_latency_value *loss = cgroup_id ? NULL : loss_counters();
	if (loss)
		loss->table_full++;
	return account;
}

/* What tells apart the tasks that share an index, below the time and the origin. */
static __always_inline __u32 pid_tag(__u32 tid)
{
	return tid >> RUNNABLE_INDEX_BITS & ((1 << RUNNABLE_PID_BITS) - 1);
}

static __always_inline void mark_runnable(__u32 tid, __u32 origin, __u64 now_ns, struct throttled throttled)
{
	__u32 index = tid & ((1 << RUNNABLE_INDEX_BITS) - 1);
	__u64 *since = bpf_map_lookup_elem(&runnable, &index);
	struct throttled *before = want_events ? bpf_map_lookup_elem(&throttle_before, &index) : NULL;

	if (since)
		*since = now_ns << TIME_SHIFT | origin << RUNNABLE_PID_BITS | pid_tag(tid);
	if (before)
		*before = throttled;
}

/* How much of a wait a quota held the task back, which it cannot tell of one that came from another CPU. */
static __always_inline __u64 throttled_since(struct task_struct *task, __u64 waited_ns)
{
	struct throttled now = read_throttled(task);
	__u32 index = BPF_CORE_READ(task, pid) & ((1 << RUNNABLE_INDEX_BITS) - 1);
	struct throttled *before = bpf_map_lookup_elem(&throttle_before, &index);

	if (!before || !now.queue || before->queue != now.queue)
		return UNKNOWN_U64;
	/* The kernel adds when it lets them go, all since it stopped them. */
	__u64 throttled_ns = now.ns - before->ns;
	return throttled_ns < waited_ns ? throttled_ns : waited_ns;
}

static __always_inline struct wait take_runnable(__u32 tid, __u64 now_ns)
{
	__u32 index = tid & ((1 << RUNNABLE_INDEX_BITS) - 1);
	__u64 *since = bpf_map_lookup_elem(&runnable, &index);
	struct wait wait = {};

	if (!since || !*since)
		return wait;
	__u64 word = *since;
	if ((word & ((1 << RUNNABLE_PID_BITS) - 1)) != pid_tag(tid)) {
		struct runqueue_latency_value *loss = loss_counters();
		if (loss)
			loss->displaced++;
		return wait;
	}
	*since = 0;
	__s64 waited_ns = (__s64)((now_ns << TIME_SHIFT) - (word >> TIME_SHIFT << TIME_SHIFT)) >> TIME_SHIFT;
	/* CPUs' clocks may differ by a little: a wait that ends before it began was none. */
	wait.ns = waited_ns > 0 ? waited_ns : 1;
	wait.origin = word >> RUNNABLE_PID_BITS & ((1 << ORIGIN_BITS) - 1);
	return wait;
}

/* `waiter` is `next` again where the verifier knows it for a task, whose stack can be had then. */
static __always_inline void send_event(struct task_struct *prev, struct task_struct *next, struct task_struct *waiter,
				       __u64 cgroup_id, __u64 waited_ns)
{
	struct runqueue_latency_record *record = ring_reserve(sizeof(*record), cgroup_id, THRESHOLD_WAIT, waited_ns);

	if (!record)
		return;
	record->header.tgid = BPF_CORE_READ(next, tgid);
	record->header.tid = BPF_CORE_READ(next, pid);
	bpf_core_read(record->header.comm, COMM_BYTES, &next->comm);
	record->occupant_tgid = BPF_CORE_READ(prev, tgid);
	record->occupant_tid = BPF_CORE_READ(prev, pid);
	bpf_core_read(record->occupant_comm, COMM_BYTES, &prev->comm);
	record->throttled_ns = throttled_since(next, waited_ns);
	/* It does not run yet, so its stack is still the one that it slept on or lost the CPU on. */
	if (waiter)
		record->header.stack_bytes =
			bpf_get_task_stack(waiter, record->header.stack, sizeof(record->header.stack), 0);
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void task_ran(struct task_struct *prev, struct task_struct *next, struct task_struct *waiter,
				     __u64 cgroup_id, struct wait wait)
{
	if (want_metrics) {
		struct runqueue_latency_account *account = account_of(cgroup_id);
		if (account) {
			histogram_add(&account->waits, wait.ns);
			account->voluntary += wait.origin == ORIGIN_WOKEN;
			account->involuntary += wait.origin == ORIGIN_PREEMPTED;
		}
	}
	if (may_tell(THRESHOLD_WAIT, wait.ns))
		send_event(prev, next, waiter, cgroup_id, wait.ns);
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(sched_wakeup, struct task_struct *task)
{
	mark_runnable(task->pid, ORIGIN_WOKEN, scheduler_clock(task), task_throttled(task));
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(sched_wakeup_new, struct task_struct *task)
{
	mark_runnable(task->pid, ORIGIN_NEW, scheduler_clock(task), task_throttled(task));
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	/*
	 * Still runnable, as is one that is preempted on its way to sleep: it waits from here on. The idle task, pid 0,
	 * never waits.
	 */
	bool waits = prev->pid && (preempt || !task_state(prev));
	if (!waits && !next->pid)
		return 0;
	__u64 now_ns = scheduler_clock(next);
	if (waits)
		mark_runnable(prev->pid, ORIGIN_PREEMPTED, now_ns, task_throttled(prev));
	if (!next->pid)
		return 0;
	struct wait wait = take_runnable(next->pid, now_ns);
	if (wait.ns && (want_metrics || may_tell(THRESHOLD_WAIT, wait.ns)))
		task_ran(prev, next, next, task_cgroup_id(next, cpu_cgrp_id), wait);
	return 0;
}

SEC("raw_tp/sched_wakeup")
int sched_wakeup_raw(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *task = (void *)context->args[0];

	mark_runnable(BPF_CORE_READ(task, pid), ORIGIN_WOKEN, read_scheduler_clock(task), read_throttled(task));
	return 0;
}

SEC("raw_tp/sched_wakeup_new")
int sched_wakeup_new_raw(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *task = (void *)context->args[0];

	mark_runnable(BPF_CORE_READ(task, pid), ORIGIN_NEW, read_scheduler_clock(task), read_throttled(task));
	return 0;
}

SEC("raw_tp/sched_switch")
int sched_switch_raw(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *prev = (void *)context->args[1], *next = (void *)context->args[2];
	__u32 prev_tid = BPF_CORE_READ(prev, pid), next_tid = BPF_CORE_READ(next, pid);
	bool preempt = context->args[0], waits = prev_tid && (preempt || !read_task_state(prev));

	if (!waits && !next_tid)
		return 0;
	__u64 now_ns = read_scheduler_clock(next);
	if (waits)
		mark_runnable(prev_tid, ORIGIN_PREEMPTED, now_ns, read_throttled(prev));
	if (!next_tid)
		return 0;
	struct wait wait = take_runnable(next_tid, now_ns);
	if (wait.ns && (want_metrics || may_tell(THRESHOLD_WAIT, wait.ns)))
		task_ran(prev, next, NULL, read_task_cgroup_id(next, cpu_cgrp_id), wait);
	return 0;
}
