/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * CPU samples: what each CPU runs, 99 times a second by default, counted by stack in the kernel.
 * Hook: the perf software event cpu_clock on every CPU, which needs no PMU. Key: thread, stacks, cgroup.
 */
#include "probe.h"
#include "cgroup.h"
#include "cpu_sample.h"
#include "unwind.h"
#include "hotspot.h"

#define PF_KTHREAD 0x200000

/* Which set of maps is filled; user space flips it, waits for the CPUs to leave the old one, and reads that. */
__u32 generation = 0;

#define COUNTED(name, key_type, value_type)      \
	struct {                                 \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, 8192);       \
		__type(key, key_type);           \
		__type(value, value_type);       \
	} name SEC(".maps")

COUNTED(stacks_0, __u64, struct cpu_sample_stack);
COUNTED(stacks_1, __u64, struct cpu_sample_stack);
COUNTED(counts_0, struct cpu_sample_key, __u64);
COUNTED(counts_1, struct cpu_sample_key, __u64);

/* One entry for each generation. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GENERATIONS);
	__type(key, __u32);
	__type(value, struct cpu_sample_value);
} totals SEC(".maps");

/* The sample that a CPU is at; the clock does not interrupt itself. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

/* PROGRAM_…, which call themselves and each other through this: a program alone may not walk a whole stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PROGRAMS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} programs SEC(".maps");

/* Frames of one program; 33 programs may follow one another, so 165 frames are more than a stack holds. */
#define STEPS 5

/* Keeps the walk's stack; its key, or 0 without a stack. */
static __always_inline bool store(struct walk *walk, void *stacks, __u64 *key)
{
	*key = walk->stack.depth ? walk->hash : 0;
	return !*key || bpf_map_lookup_elem(stacks, key) || !bpf_map_update_elem(stacks, key, &walk->stack, BPF_ANY);
}

static __always_inline void count(struct walk *walk, void *stacks, void *counts, struct cpu_sample_value *total,
				  int end)
{
	__u64 one = 1;

	if (!store(walk, stacks, &walk->key.user_stack)) {
		__sync_fetch_and_add(&total->stacks_full, 1);
		return;
	}
	__u64 *count = bpf_map_lookup_elem(counts, &walk->key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else if (bpf_map_update_elem(counts, &walk->key, &one, BPF_NOEXIST)) {
		/* Another CPU may have made it meanwhile. */
		count = bpf_map_lookup_elem(counts, &walk->key);
		if (!count) {
			__sync_fetch_and_add(&total->counts_full, 1);
			return;
		}
		__sync_fetch_and_add(count, 1);
	}
	if (walk->stack.depth && end >= 0 && end < WALK_ENDS)
		__sync_fetch_and_add(&total->walks[end], 1);
}

static __always_inline void finish(struct walk *walk, int end)
{
	__u32 current = walk->generation;
	struct cpu_sample_value *total = bpf_map_lookup_elem(&totals, &current);

	if (!total)
		return;
	if (current)
		count(walk, &stacks_1, &counts_1, total, end);
	else
		count(walk, &stacks_0, &counts_0, total, end);
}

/* The kernel's own stack, or the user's along frame pointers. */
static __always_inline void walk_by_kernel(struct bpf_perf_event_data *context, struct walk *walk, __u64 flags)
{
	long bytes = bpf_get_stack(context, walk->stack.frames, sizeof(walk->stack.frames), flags);
	__u64 depth = bytes > 0 ? bytes / sizeof(__u64) : 0;

	walk->hash = 1;
	for (int i = 0; i < SAMPLE_FRAMES; i++) {
		if (i >= depth)
			break;
		walk->hash = mix(walk->hash, walk->stack.frames[i]);
	}
	walk->stack.depth = depth;
}

#ifdef __TARGET_ARCH_x86
/* Code of a 64-bit program; the others' frames have other sizes. */
#define USER_CS 0x33
/* Where a kernel without the helper has the registers of user space: at the end of the kernel stack. */
#define KERNEL_STACK_BYTES 16384

/* The registers of user space, which an interrupted kernel has saved. */
static __always_inline bool read_registers(struct bpf_perf_event_data *context, struct task_struct *task,
					   struct bpf_perf_event_data *saved)
{
	if (context->cs & 3) {
		saved->ip = context->ip;
		saved->sp = context->sp;
		saved->cs = context->cs;
		saved->registers[2] = context->registers[2];
		saved->registers[4] = context->registers[4];
		saved->registers[5] = context->registers[5];
		saved->registers[6] = context->registers[6];
		saved->registers[7] = context->registers[7];
		saved->registers[10] = context->registers[10];
		return true;
	}
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return !bpf_probe_read_kernel(saved, sizeof(*saved),
					      (void *)bpf_task_pt_regs(bpf_get_current_task_btf()));
	void *end = BPF_CORE_READ(task, stack) + KERNEL_STACK_BYTES;
	return !bpf_probe_read_kernel(saved, sizeof(*saved), end - sizeof(*saved));
}

/* Whether the walk can go by tables. */
static __always_inline bool prepare(struct bpf_perf_event_data *context, struct task_struct *task, struct walk *walk)
{
	struct bpf_perf_event_data saved = {};
	struct mm_struct *memory = BPF_CORE_READ(task, mm);
	struct unwind_process *process = bpf_map_lookup_elem(&processes, &walk->key.tgid);

	if (!memory || BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return false;
	if (!process || process->start_code != BPF_CORE_READ(memory, start_code) ||
	    process->start_stack != BPF_CORE_READ(memory, start_stack)) {
		ask(walk->key.tgid);
		return false;
	}
	if (!read_registers(context, task, &saved) || (saved.cs & 0xffff) != USER_CS)
		return false;
	process->used_ns = bpf_ktime_get_ns();
	walk->first_mapping = process->first;
	walk->end_mapping = process->first + process->count;
	walk->pc = saved.ip;
	walk->sp = saved.sp;
	walk->bp = saved.registers[4];
	walk->leaf_registers[0] = saved.registers[10];
	walk->leaf_registers[1] = saved.registers[7];
	walk->leaf_registers[2] = saved.registers[6];
	walk->leaf_r13 = saved.registers[2];
	walk->leaf_rbx = saved.registers[5];
	walk->is_stubbed = 0;
	walk->is_exact = 1;
	return true;
}
#else
static __always_inline bool prepare(struct bpf_perf_event_data *context, struct task_struct *task, struct walk *walk)
{
	return false;
}
#endif

SEC("perf_event")
int cpu_clock(struct bpf_perf_event_data *context)
{
	__u32 current = generation & 1, zero = 0;
	__u64 id = bpf_get_current_pid_tgid();
	struct task_struct *task = (void *)bpf_get_current_task();
	struct cpu_sample_value *total = bpf_map_lookup_elem(&totals, &current);
	struct walk *walk = bpf_map_lookup_elem(&walks, &zero);

	if (!total || !walk)
		return 0;
	__sync_fetch_and_add(&total->taken, 1);
	if (!id) {
		__sync_fetch_and_add(&total->idle, 1);
		return 0;
	}
	walk->generation = current;
	walk->key.tgid = id >> 32;
	walk->key.tid = id;
	walk->key.cgroup_id = read_task_cgroup_id(task, cpu_cgrp_id);
	bpf_get_current_comm(walk->key.comm, sizeof(walk->key.comm));
	walk_by_kernel(context, walk, 0);
	if (!(current ? store(walk, &stacks_1, &walk->key.kernel_stack)
		      : store(walk, &stacks_0, &walk->key.kernel_stack))) {
		__sync_fetch_and_add(&total->stacks_full, 1);
		return 0;
	}
	walk->stack.depth = 0;
	walk->hash = 1;
	if (prepare(context, task, walk))
		bpf_tail_call(context, &programs, PROGRAM_NATIVE);
	walk_by_kernel(context, walk, BPF_F_USER_STACK);
	finish(walk, WALK_UNPREPARED);
	return 0;
}

#ifdef __TARGET_ARCH_x86
/* Goes on with another program; at the kernel's limit of these the stack ends. */
static __always_inline void go_on(struct bpf_perf_event_data *context, struct walk *walk, __u32 program)
{
	bpf_tail_call(context, &programs, program);
	finish(walk, WALK_TOO_DEEP);
}

SEC("perf_event")
int user_stack(struct bpf_perf_event_data *context)
{
	__u32 zero = 0;
	struct walk *walk = bpf_map_lookup_elem(&walks, &zero);
	int end = WALK_GOES_ON;

	if (!walk)
		return 0;
	for (int i = 0; i < STEPS; i++) {
		end = step(walk);
		if (end != WALK_GOES_ON)
			break;
	}
	if (end == WALK_GOES_ON)
		go_on(context, walk, PROGRAM_NATIVE);
	else if (end == WALK_ENTERS_JAVA)
		go_on(context, walk, walk->is_exact ? PROGRAM_JAVA_TOP : PROGRAM_JAVA);
	else
		finish(walk, end);
	return 0;
}

SEC("perf_event")
int java_top(struct bpf_perf_event_data *context)
{
	__u32 zero = 0;
	struct walk *walk = bpf_map_lookup_elem(&walks, &zero);

	if (!walk)
		return 0;
	struct hotspot *jvm = bpf_map_lookup_elem(&hotspots, &walk->key.tgid);
	int end = jvm ? java_step(walk, jvm, true) : WALK_UNMAPPED;
	if (end == WALK_GOES_ON)
		go_on(context, walk, walk->is_stubbed ? PROGRAM_JAVA_TOP : PROGRAM_JAVA);
	else if (end == WALK_LEAVES_JAVA)
		go_on(context, walk, PROGRAM_NATIVE);
	else
		finish(walk, end);
	return 0;
}

SEC("perf_event")
int java_stack(struct bpf_perf_event_data *context)
{
	__u32 zero = 0;
	struct walk *walk = bpf_map_lookup_elem(&walks, &zero);
	int end = WALK_GOES_ON;

	if (!walk)
		return 0;
	struct hotspot *jvm = bpf_map_lookup_elem(&hotspots, &walk->key.tgid);
	if (!jvm)
		end = WALK_UNMAPPED;
	for (int i = 0; i < JAVA_STEPS; i++) {
		if (end != WALK_GOES_ON)
			break;
		end = java_step(walk, jvm, false);
	}
	if (end == WALK_GOES_ON)
		go_on(context, walk, PROGRAM_JAVA);
	else if (end == WALK_LEAVES_JAVA)
		go_on(context, walk, PROGRAM_NATIVE);
	else
		finish(walk, end);
	return 0;
}
#endif
