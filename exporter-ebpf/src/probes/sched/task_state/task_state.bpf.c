/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Task states: how long tasks slept uninterruptibly (D), how many tasks are in which state, and which ones the kernel
 * itself finds hung, or stops since their cgroup is over its memory.high.
 * Hooks: sched_switch, sched_wakeup, sched_process_hang, and the iterator over tasks. Key: the task's cgroup.
 */
#include "probe.h"
#include "compat.h"
#include "cgroup.h"
#include "by_cgroup.h"
#include "ring.h"
#include "task_since.h"
#include "task_state.h"

/* The function over memory.high is among the innermost frames, behind those of the scheduler. */
#define STALL_FRAMES 8
/* How far up from the task's cgroup a limit is looked for. */
#define LEVELS 16
/* More than any machine has: the kernel's number for no limit is larger. */
#define NO_LIMIT_PAGES (1ULL << 46)

/* Numbers of include/linux/sched.h that are the same since 4.14. */
#define TASK_INTERRUPTIBLE 0x1
#define TASK_UNINTERRUPTIBLE 0x2
#define TASK_STOPPED_OR_TRACED 0xc
#define TASK_PARKED 0x40
#define TASK_NOLOAD 0x400
/* A task in one of these cannot be woken by a signal either: TASK_RTLOCK_WAIT (5.15) and TASK_FROZEN (6.1). */
#define TASK_LIKE_UNINTERRUPTIBLE 0x9000

BY_CGROUP(slept, struct histogram);

/* Filled by one run of the iterator, and emptied behind it. Bound: STATES times the loader's container_max. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 3584);
	__type(key, struct task_state_key);
	__type(value, __u64);
} tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct task_state_value);
} totals SEC(".maps");

/* Set by the loader from kallsyms. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FUNCTIONS);
	__type(key, __u32);
	__type(value, struct task_state_range);
} functions SEC(".maps");

/* Frames found are counted here and not in a variable, whose values the verifier would follow through the loop. */
struct task_stack {
	__u64 addresses[STALL_FRAMES];
	__u64 frames;
};

/* Tasks are woken with interrupts off. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct task_stack);
} stacks SEC(".maps");

static __always_inline struct task_state_value *totals_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&totals, &zero);
}

/* A task that is preempted on its way to sleep has the state already and is runnable all the same. */
static __always_inline void switched(bool preempt, __u32 state, __u32 tid)
{
	if (preempt || !(state & TASK_UNINTERRUPTIBLE) || state & TASK_NOLOAD)
		return;
	if (since_set(tid, bpf_ktime_get_ns())) {
		struct task_state_value *total = totals_here();
		if (total)
			__sync_fetch_and_add(&total->displaced, 1);
	}
}

/* How long the task slept by now. CPUs' clocks may differ by a little: a sleep that ends before it began was none. */
static __always_inline __u64 slept_since(__u64 begin_ns)
{
	__s64 slept_ns = bpf_ktime_get_ns() - begin_ns;

	return slept_ns > 0 ? slept_ns : 1;
}

/* A record of a task that is not the current one; the current one wakes it, or has found it hung. */
static __always_inline struct task_state_record *reserve(struct task_struct *task, __u64 cgroup_id, __u32 threshold,
							 __u64 slept_ns)
{
	struct task_state_record *record = ring_reserve(sizeof(*record), cgroup_id, threshold, slept_ns);

	if (!record)
		return NULL;
	header_current_task(&record->header);
	record->other_tgid = record->header.tgid;
	record->other_tid = record->header.tid;
	__builtin_memcpy(record->other_comm, record->header.comm, COMM_BYTES);
	record->header.tgid = BPF_CORE_READ(task, tgid);
	record->header.tid = BPF_CORE_READ(task, pid);
	bpf_core_read(record->header.comm, COMM_BYTES, &task->comm);
	record->is_hung = 0;
	record->is_stall = 0;
	record->limited_cgroup_id = 0;
	record->limit_pages = record->usage_pages = UNKNOWN_U64;
	return record;
}

/* Whether the kernel stopped the task since a cgroup was over its memory.high: only the stack tells. */
static __always_inline bool is_stall(struct task_struct *task)
{
	__u32 body_index = 0, cold_index = 1, zero = 0;
	struct task_state_range *body = bpf_map_lookup_elem(&functions, &body_index);
	struct task_state_range *cold = bpf_map_lookup_elem(&functions, &cold_index);
	struct task_stack *stack = bpf_map_lookup_elem(&stacks, &zero);

	if (!body || !cold || !stack || !body->start)
		return false;
	stack->frames = 0;
	long bytes = bpf_get_task_stack(task, stack->addresses, sizeof(stack->addresses), 0);
	for (__u32 frame = 0; frame < STALL_FRAMES; frame++) {
		if ((long)(frame * sizeof(__u64)) >= bytes)
			break;
		__u64 address = stack->addresses[frame];
		if ((address >= body->start && address < body->end) || (address >= cold->start && address < cold->end))
			stack->frames++;
	}
	return stack->frames;
}

/* The nearest cgroup over its limit; where others gave memory back meanwhile, the nearest with one. */
static __always_inline void find_limit(struct task_state_record *record, struct task_struct *task)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *css = NULL;

	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		bpf_probe_read_kernel(&css, sizeof(css),
				      &set->subsys[bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id) & 15]);
	for (__u32 level = 0; css && level < LEVELS; level++) {
		/* The part that all controllers share is the first of the memory controller's own. */
		struct mem_cgroup *group = (void *)css;
		__u64 usage = BPF_CORE_READ(group, memory.usage.counter), limit = BPF_CORE_READ(group, memory.high);
		if (limit < NO_LIMIT_PAGES && (usage > limit || !record->limited_cgroup_id)) {
			record->limited_cgroup_id = BPF_CORE_READ(css, cgroup, kn, id);
			record->limit_pages = limit;
			record->usage_pages = usage;
			if (usage > limit)
				break;
		}
		css = BPF_CORE_READ(css, parent);
	}
}

static __always_inline struct task_state_record *reserve_woken(struct task_struct *task, __u64 cgroup_id,
							       __u64 slept_ns)
{
	if (may_tell(THRESHOLD_STALL, slept_ns) && is_stall(task)) {
		struct task_state_record *record = reserve(task, cgroup_id, THRESHOLD_STALL, slept_ns);
		if (record) {
			record->is_stall = 1;
			find_limit(record, task);
		}
		return record;
	}
	return may_tell(THRESHOLD_STUCK, slept_ns) ? reserve(task, cgroup_id, THRESHOLD_STUCK, slept_ns) : NULL;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev)
{
	switched(preempt, task_state(prev), prev->pid);
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(sched_wakeup, struct task_struct *task)
{
	__u64 begin_ns = since_take(task->pid);

	if (!begin_ns)
		return 0;
	__u64 slept_ns = slept_since(begin_ns), cgroup_id = task_cgroup_id(task, cpu_cgrp_id);
	if (want_metrics)
		time_by_cgroup(&slept, &cgroup_id, slept_ns);
	struct task_state_record *record = reserve_woken(task, cgroup_id, slept_ns);
	if (!record)
		return 0;
	/* It has not run yet, so its stack is still the one that it slept on. */
	record->header.stack_bytes = bpf_get_task_stack(task, record->header.stack, sizeof(record->header.stack), 0);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("raw_tp/sched_switch")
int sched_switch_raw(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *prev = (void *)context->args[1];

	switched(context->args[0] & 1, read_task_state(prev), BPF_CORE_READ(prev, pid));
	return 0;
}

SEC("raw_tp/sched_wakeup")
int sched_wakeup_raw(struct bpf_raw_tracepoint_args *context)
{
	struct task_struct *task = (void *)context->args[0];
	__u64 begin_ns = since_take(BPF_CORE_READ(task, pid));

	if (!begin_ns)
		return 0;
	__u64 slept_ns = slept_since(begin_ns), cgroup_id = read_task_cgroup_id(task, cpu_cgrp_id);
	if (want_metrics)
		time_by_cgroup(&slept, &cgroup_id, slept_ns);
	/* Without the task's stack, which a bare pointer is not enough for. */
	struct task_state_record *record =
		may_tell(THRESHOLD_STUCK, slept_ns) ? reserve(task, cgroup_id, THRESHOLD_STUCK, slept_ns) : NULL;
	if (record)
		bpf_ringbuf_submit(record, 0);
	return 0;
}

static __always_inline int hung(void)
{
	struct task_state_value *total = totals_here();

	if (total)
		__sync_fetch_and_add(&total->hangs, 1);
	return 0;
}

/* It is told again when it wakes, with how long it slept in the end. */
SEC("tp_btf/sched_process_hang")
int BPF_PROG(sched_process_hang, struct task_struct *task)
{
	__u64 begin_ns = since_peek(task->pid);
	struct task_state_record *record = NULL;

	if (want_events && begin_ns)
		record = reserve(task, task_cgroup_id(task, cpu_cgrp_id), THRESHOLD_STUCK, slept_since(begin_ns));
	if (record) {
		record->is_hung = 1;
		record->header.stack_bytes =
			bpf_get_task_stack(task, record->header.stack, sizeof(record->header.stack), 0);
		bpf_ringbuf_submit(record, 0);
	}
	return hung();
}

SEC("raw_tp/sched_process_hang")
int sched_process_hang_raw(struct bpf_raw_tracepoint_args *context)
{
	return hung();
}

/* In the order in which /proc decides. */
static __always_inline __u64 state_of(struct task_struct *task)
{
	__u32 state = task_state(task);

	if (task->exit_state)
		return STATE_ZOMBIE;
	if (state & TASK_PARKED || (state & TASK_UNINTERRUPTIBLE && state & TASK_NOLOAD))
		return STATE_IDLE;
	if (state & TASK_INTERRUPTIBLE)
		return STATE_INTERRUPTIBLE;
	if (state & (TASK_UNINTERRUPTIBLE | TASK_LIKE_UNINTERRUPTIBLE))
		return STATE_UNINTERRUPTIBLE;
	if (state & TASK_STOPPED_OR_TRACED)
		return STATE_STOPPED;
	return task_on_cpu(task) ? STATE_RUNNING : STATE_RUNNABLE;
}

SEC("iter/task")
int count_task(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;

	if (!task)
		return 0;
	struct task_state_key key = { .cgroup_id = task_cgroup_id(task, cpu_cgrp_id), .state = state_of(task) };
	count_by_cgroup(&tasks, &key, 1);
	return 0;
}
