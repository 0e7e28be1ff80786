/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Run-queue latency: from runnable to running, and how the task had lost the CPU before: it slept, or was preempted.
 * Hook: sched_switch. The scheduler keeps the account of each task's waits itself; read is what a wait added to it.
 * Key: the cgroup of the task that waited.
 * Events also want to know what CPU quotas had held back when a wait began: sched_wakeup, sched_wakeup_new.
 * All three run with interrupts off, so per-CPU values need no atomics.
 */
#include "probe.h"
#include "compat.h"
#include "by_cgroup.h"
#include "cgroup.h"
#include "ring.h"
#include "throttled.h"
#include "runqueue_latency.h"

#define PID_INDEXES (1 << PID_INDEX_BITS)
#define PID_TAGS (1 << PID_TAG_BITS)

/*
 * What the kernel's account of a task said when it got the CPU last: a word for each value of a pid's low bits, holding
 * the time that it had waited in all, whether it had been preempted an odd number of times, and the pid's high bits.
 * Array look-ups are inlined and a store is atomic, so this is cheaper than a hash map and works where task storage
 * (5.11) does not. Tasks whose pids share their low bits displace each other, which is counted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PID_INDEXES);
	__type(key, __u32);
	__type(value, __u64);
} waited SEC(".maps");

/*
 * What a CPU quota had held back when a task began to wait, under the same index. One entry for who wants no events,
 * and nothing in it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PID_INDEXES);
	__type(key, __u32);
	__type(value, struct throttled);
} throttle_before SEC(".maps");

#define ODD_BIT PID_TAG_BITS
#define PRESENT (1 << (PID_TAG_BITS + 1)) /* one may have waited for no time at all */
/* What is left for the time wraps every 2.2 years, so that only differences mean something. */
#define TIME_SHIFT (PID_TAG_BITS + 2)

/* What the kernel keeps of a task. */
struct kept {
	__u32 tid;
	__u64 queued_ns; /* since when it waits on this CPU, by the CPU's clock; 0 = it does not */
	__u64 run_delay_ns; /* the waits before, and the part of this one that it spent at other CPUs */
	unsigned long switches; /* that it did itself, by going to sleep */
	unsigned long preemptions;
};

struct wait {
	__u64 ns;
	__u32 voluntary : 1, involuntary : 1; /* none for a new task, and where it is not known */
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

static __always_inline __u32 pid_index(__u32 tid)
{
	return tid & (PID_INDEXES - 1);
}

/* For events: a wait begins. */
static __always_inline void note_throttled(__u32 tid, struct throttled throttled)
{
	__u32 index = pid_index(tid);
	struct throttled *before = want_events ? bpf_map_lookup_elem(&throttle_before, &index) : NULL;

	if (before)
		*before = throttled;
}

/* How much of a wait a quota held the task back, which it cannot tell of one that came from another CPU. */
static __always_inline __u64 throttled_since(struct task_struct *task, __u64 waited_ns)
{
	struct throttled now = read_throttled(task);
	__u32 index = pid_index(BPF_CORE_READ(task, pid));
	struct throttled *before = bpf_map_lookup_elem(&throttle_before, &index);

	if (!before || !now.queue || before->queue != now.queue)
		return UNKNOWN_U64;
	/* The kernel adds when it lets them go, all since it stopped them. */
	__u64 throttled_ns = now.ns - before->ns;
	return throttled_ns < waited_ns ? throttled_ns : waited_ns;
}

/*
 * The wait that ends by `now_ns`. What a task waited at other CPUs before it came to this one is a difference to the
 * word that it left; where another has taken that place, only its time here is known.
 */
static __always_inline struct wait end_wait(const struct kept *kept, __u64 now_ns)
{
	__u32 index = pid_index(kept->tid), tag = kept->tid >> PID_INDEX_BITS & (PID_TAGS - 1);
	__u64 *entry = bpf_map_lookup_elem(&waited, &index);
	struct wait wait = { .ns = now_ns > kept->queued_ns ? now_ns - kept->queued_ns : 0 };

	if (!entry)
		return wait;
	__u64 word = *entry, total_ns = kept->run_delay_ns + wait.ns, is_odd = kept->preemptions & 1;
	*entry = total_ns << TIME_SHIFT | PRESENT | is_odd << ODD_BIT | tag;
	/* A new task has waited for the first time only, whatever one of its pid has left. */
	if (!kept->switches && !kept->preemptions) {
		wait.ns = total_ns;
		return wait;
	}
	/* One that has run since before the probe has left nothing. */
	if (!word)
		return wait;
	if ((word & (PID_TAGS - 1)) != tag) {
		struct runqueue_latency_value *loss = loss_counters();
		if (loss)
			loss->displaced++;
		return wait;
	}
	__s64 all_ns = (__s64)((total_ns << TIME_SHIFT) - (word >> TIME_SHIFT << TIME_SHIFT)) >> TIME_SHIFT;
	if (all_ns > (__s64)wait.ns)
		wait.ns = all_ns;
	wait.involuntary = (word >> ODD_BIT & 1) != is_odd;
	wait.voluntary = !wait.involuntary;
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
			account->voluntary += wait.voluntary;
			account->involuntary += wait.involuntary;
		}
	}
	if (may_tell(THRESHOLD_WAIT, wait.ns))
		send_event(prev, next, waiter, cgroup_id, wait.ns);
}

static __always_inline bool is_of_interest(struct wait wait)
{
	return want_metrics || may_tell(THRESHOLD_WAIT, wait.ns);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	/* Still runnable, as is one that is preempted on its way to sleep: it waits from here on. */
	if (want_events && (preempt || !task_state(prev)))
		note_throttled(prev->pid, task_throttled(prev));
	struct kept kept = {
		.tid = next->pid,
		.queued_ns = next->sched_info.last_queued,
		.run_delay_ns = next->sched_info.run_delay,
		.switches = next->nvcsw,
		.preemptions = next->nivcsw,
	};
	/* The idle task, pid 0, never waits. */
	if (!kept.tid || !kept.queued_ns)
		return 0;
	struct wait wait = end_wait(&kept, scheduler_clock(next));
	if (is_of_interest(wait))
		task_ran(prev, next, next, task_cgroup_id(next, cpu_cgrp_id), wait);
	return 0;
}

SEC("raw_tp/sched_switch")
int sched_switch_raw(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *prev = (void *)context->args[1], *next = (void *)context->args[2];
	bool preempt = context->args[0];

	if (want_events && (preempt || !read_task_state(prev)))
		note_throttled(BPF_CORE_READ(prev, pid), read_throttled(prev));
	struct kept kept = {
		.tid = BPF_CORE_READ(next, pid),
		.queued_ns = BPF_CORE_READ(next, sched_info.last_queued),
		.run_delay_ns = BPF_CORE_READ(next, sched_info.run_delay),
		.switches = BPF_CORE_READ(next, nvcsw),
		.preemptions = BPF_CORE_READ(next, nivcsw),
	};
	if (!kept.tid || !kept.queued_ns)
		return 0;
	struct wait wait = end_wait(&kept, read_scheduler_clock(next));
	if (is_of_interest(wait))
		task_ran(prev, next, NULL, read_task_cgroup_id(next, cpu_cgrp_id), wait);
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(sched_wakeup, struct task_struct *task)
{
	note_throttled(task->pid, task_throttled(task));
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(sched_wakeup_new, struct task_struct *task)
{
	note_throttled(task->pid, task_throttled(task));
	return 0;
}

SEC("raw_tp/sched_wakeup")
int sched_wakeup_raw(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *task = (void *)context->args[0];

	note_throttled(BPF_CORE_READ(task, pid), read_throttled(task));
	return 0;
}

SEC("raw_tp/sched_wakeup_new")
int sched_wakeup_new_raw(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *task = (void *)context->args[0];

	note_throttled(BPF_CORE_READ(task, pid), read_throttled(task));
	return 0;
}
