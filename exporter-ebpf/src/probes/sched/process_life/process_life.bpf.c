/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which program each process runs, for events of processes that are gone before anyone can ask.
 * Hooks: sched_process_exec; sched_process_exit of a process' first thread. A fork costs nothing: a process that ends
 * without exec names the parent whose program it ran.
 * Nobody is woken: the reader looks before it names an event, and ten times a second.
 */
#include "probe.h"
#include "cgroup.h"
#include "process_life.h"

/* include/linux/sched.h; numbers are the kernel's own and older than 5.10. */
#define PF_FORKNOEXEC 0x00000040
#define PF_KTHREAD 0x00200000

/* Room for a tenth of a second at 40,000 starts a second with lines of 100 bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} lives SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct process_life_value);
} losses SEC(".maps");

/* Cgroups whose path was told. The least recent gives way and is told again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u8);
} told SEC(".maps");

struct exec_with_text {
	struct process_life_exec exec;
	/* Some more than is ever used, so that the verifier need not know where the first part ends. */
	__u8 text[FILE_BYTES + FILE_BYTES + ARGUMENT_BYTES];
};

/* A record of variable length is put together here; the program does not run twice at once on a CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exec_with_text);
} scratch SEC(".maps");

static __always_inline void count_ring_full(void)
{
	__u32 zero = 0;
	struct process_life_value *loss = bpf_map_lookup_elem(&losses, &zero);

	if (loss)
		__sync_fetch_and_add(&loss->ring_full, 1);
}

/* The directory of a task's cgroup. */
static __always_inline struct kernfs_node *task_kernfs(struct task_struct *task)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *css = NULL;

	if (!cgroup_v1)
		return BPF_CORE_READ(set, dfl_cgrp, kn);
	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, cpu_cgrp_id))
		return NULL;
	bpf_probe_read_kernel(&css, sizeof(css),
			      &set->subsys[bpf_core_enum_value(enum cgroup_subsys_id, cpu_cgrp_id) & 15]);
	return BPF_CORE_READ(css, cgroup, kn);
}

/* `parent` became `__parent` in 6.15 (633488947ef6). */
static __always_inline struct kernfs_node *kernfs_parent(struct kernfs_node *node)
{
	struct kernfs_node___parent *old = (void *)node;

	if (bpf_core_field_exists(old->parent))
		return BPF_CORE_READ(old, parent);
	return BPF_CORE_READ(node, __parent);
}

static __always_inline void tell_cgroup(struct task_struct *task, struct process_life_head *of)
{
	__u64 cgroup_id = of->cgroup_id;
	__u8 yes = 1;

	if (!cgroup_id || bpf_map_lookup_elem(&told, &cgroup_id))
		return;
	struct process_life_cgroup *record = bpf_ringbuf_reserve(&lives, sizeof(*record), 0);
	if (!record) {
		count_ring_full();
		return;
	}
	record->head = *of;
	record->head.kind = LIFE_CGROUP;
	struct kernfs_node *node = task_kernfs(task);
#pragma unroll
	for (int level = 0; level < CGROUP_LEVELS; level++) {
		const char *name = node ? BPF_CORE_READ(node, name) : NULL;
		record->names[level][0] = 0;
		if (name)
			bpf_probe_read_kernel_str(record->names[level], CGROUP_NAME_BYTES, name);
		node = node ? kernfs_parent(node) : NULL;
	}
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	bpf_map_update_elem(&told, &cgroup_id, &yes, BPF_ANY);
}

static __always_inline void fill_head(struct process_life_head *head, struct task_struct *task, __u32 kind)
{
	head->kind = kind;
	head->tgid = task->tgid;
	head->boot_ns = bpf_ktime_get_boot_ns();
	head->start_ns = task->group_leader->start_boottime;
	head->cgroup_id = task_cgroup_id(task, cpu_cgrp_id);
	bpf_probe_read_kernel(head->comm, sizeof(head->comm), task->comm);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task, int old_pid, struct linux_binprm *binary)
{
	__u32 zero = 0;
	struct exec_with_text *record = bpf_map_lookup_elem(&scratch, &zero);

	if (!record)
		return 0;
	fill_head(&record->exec.head, task, LIFE_EXEC);
	/* What really runs: for a script, its interpreter. */
	long file_bytes = bpf_probe_read_kernel_str(record->text, FILE_BYTES, binary->interp);
	if (file_bytes < 0 || file_bytes > FILE_BYTES)
		file_bytes = 0;
	struct mm_struct *memory = task->mm;
	__u64 start = memory->arg_start, argument_bytes = memory->arg_end - start;
	if (argument_bytes > ARGUMENT_BYTES)
		argument_bytes = ARGUMENT_BYTES;
	/* The pages were written a moment ago. */
	file_bytes &= 2 * FILE_BYTES - 1;
	if (bpf_probe_read_user(record->text + file_bytes, argument_bytes, (void *)start))
		argument_bytes = 0;
	record->exec.file_bytes = file_bytes;
	record->exec.argument_bytes = argument_bytes;
	__u64 bytes = sizeof(record->exec) + file_bytes + argument_bytes;
	if (bytes > sizeof(*record))
		return 0;
	tell_cgroup(task, &record->exec.head);
	if (bpf_ringbuf_output(&lives, record, bytes, BPF_RB_NO_WAKEUP))
		count_ring_full();
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(sched_process_exit, struct task_struct *task)
{
	if (task->pid != task->tgid || task->flags & PF_KTHREAD)
		return 0;
	struct process_life_exit *record = bpf_ringbuf_reserve(&lives, sizeof(*record), 0);
	if (!record) {
		count_ring_full();
		return 0;
	}
	fill_head(&record->head, task, LIFE_EXIT);
	record->parent_tgid = 0;
	record->parent_start_ns = 0;
	record->_pad = 0;
	struct task_struct *parent = task->real_parent;
	/*
	 * An orphan's parent is an ancestor that took it over. That ancestor runs the program that the orphan ran only
	 * if neither it nor anyone between them has called exec since, and each exec counts one up.
	 */
	if (task->flags & PF_FORKNOEXEC && task->parent_exec_id == parent->self_exec_id) {
		record->parent_tgid = parent->tgid;
		record->parent_start_ns = parent->group_leader->start_boottime;
	}
	struct process_life_head head = record->head;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	tell_cgroup(task, &head);
	return 0;
}
