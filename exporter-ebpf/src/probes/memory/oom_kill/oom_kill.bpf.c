/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Tasks that the OOM killer chose.
 * Hook: mark_victim, whose current task is the one that found no memory. Key: the victim's cgroup, and whether the
 * machine was out of memory (global) or a memory cgroup (memcg), which only the stack tells.
 */
#include "probe.h"
#include "cgroup.h"
#include "ring.h"
#include "oom_kill.h"

/* Bound: three times the loader's container_max. Key 0 of each kind holds what found no room. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1536);
	__type(key, struct oom_kill_key);
	__type(value, __u64);
} kills SEC(".maps");

/* Set by the loader from kallsyms. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FUNCTIONS);
	__type(key, __u32);
	__type(value, struct oom_kill_range);
} functions SEC(".maps");

/*
 * Frames found are counted here and not in variables: the verifier follows each value of a variable through the rest of
 * the loop, which is more than it can.
 */
struct oom_stack {
	__u64 addresses[STACK_FRAMES];
	__u64 memcg_frames;
	__u64 kill_frames;
};

/* The kernel kills one task at a time, under oom_lock. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct oom_stack);
} stacks SEC(".maps");

/* Addresses of a function, in both of its parts. */
struct oom_function {
	struct oom_kill_range *body;
	struct oom_kill_range *cold;
};

static __always_inline struct oom_function function(__u32 body, __u32 cold)
{
	struct oom_function function = {
		.body = bpf_map_lookup_elem(&functions, &body),
		.cold = bpf_map_lookup_elem(&functions, &cold),
	};

	return function;
}

static __always_inline bool is_in(struct oom_kill_range *range, __u64 address)
{
	return address >= range->start && address < range->end;
}

static __always_inline void count(__u64 cgroup_id, __u64 kind)
{
	struct oom_kill_key key = { .cgroup_id = cgroup_id, .kind = kind };
	__u64 one = 1;

	if (!bpf_map_update_elem(&kills, &key, &one, BPF_NOEXIST))
		return;
	__u64 *known = bpf_map_lookup_elem(&kills, &key);
	if (!known) {
		key.cgroup_id = 0;
		known = bpf_map_lookup_elem(&kills, &key);
	}
	if (known)
		__sync_fetch_and_add(known, 1);
}

#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SHMEMPAGES 3

static __always_inline __u64 pages_of(struct mm_struct *mm, __u32 kind)
{
	void *counter = mm;
	__s64 pages = 0;

	if (bpf_core_type_exists(struct mm_rss_stat))
		counter += bpf_core_field_offset(struct mm_struct___rss, rss_stat) + kind * sizeof(pages);
	else
		counter += bpf_core_field_offset(struct mm_struct, rss_stat) +
			   kind * bpf_core_type_size(struct percpu_counter) +
			   bpf_core_field_offset(struct percpu_counter, count);
	bpf_probe_read_kernel(&pages, sizeof(pages), counter);
	return pages > 0 ? pages : 0;
}

static __always_inline void tell(void *context, struct task_struct *victim, __u64 cgroup_id, __u64 kind)
{
	struct oom_kill_record *record = ring_reserve_fact(sizeof(*record), cgroup_id);

	if (!record)
		return;
	header_current_task(&record->header);
	header_kernel_stack(context, &record->header);
	take_user_stack(context, &record->user);
	/* The current task found no memory; the event is the victim's. */
	record->trigger_tgid = record->header.tgid;
	record->trigger_tid = record->header.tid;
	__builtin_memcpy(record->trigger_comm, record->header.comm, COMM_BYTES);
	record->header.tgid = BPF_CORE_READ(victim, tgid);
	record->header.tid = BPF_CORE_READ(victim, pid);
	bpf_core_read(record->header.comm, COMM_BYTES, &victim->comm);
	record->kind = kind;
	struct mm_struct *mm = BPF_CORE_READ(victim, mm);
	record->file_pages = mm ? pages_of(mm, MM_FILEPAGES) : UNKNOWN_U64;
	record->anon_pages = mm ? pages_of(mm, MM_ANONPAGES) : UNKNOWN_U64;
	record->shmem_pages = mm ? pages_of(mm, MM_SHMEMPAGES) : UNKNOWN_U64;
	record->virtual_pages = mm ? BPF_CORE_READ(mm, total_vm) : UNKNOWN_U64;
	record->score_adjustment = BPF_CORE_READ(victim, signal, oom_score_adj);
	record->_pad = 0;
	struct css_set *set = BPF_CORE_READ(victim, cgroups);
	struct cgroup_subsys_state *css = NULL;
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		bpf_probe_read_kernel(&css, sizeof(css),
				      &set->subsys[bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id) & 15]);
	/* The part that all controllers share is the first of the memory controller's own. */
	struct mem_cgroup *group = (void *)css;
	record->usage_pages = group ? BPF_CORE_READ(group, memory.usage.counter) : UNKNOWN_U64;
	record->limit_pages = group ? BPF_CORE_READ(group, memory.max) : UNKNOWN_U64;
	bpf_ringbuf_submit(record, 0);
}

/* The task since 6.8 (72ba14deb40a), and in stable releases of older series; before, only its pid. */
SEC("tp_btf/mark_victim")
int BPF_PROG(mark_victim, struct task_struct *victim)
{
	struct oom_function memcg = function(FUNCTION_MEMCG, FUNCTION_MEMCG_COLD);
	struct oom_function kill = function(FUNCTION_KILL, FUNCTION_KILL_COLD);
	__u32 zero = 0;
	struct oom_stack *stack = bpf_map_lookup_elem(&stacks, &zero);

	if (!memcg.body || !memcg.cold || !kill.body || !kill.cold || !stack)
		return 0;
	stack->memcg_frames = stack->kill_frames = 0;
	long bytes = bpf_get_stack(ctx, stack->addresses, sizeof(stack->addresses), 0);
	for (__u32 frame = 0; frame < STACK_FRAMES; frame++) {
		if ((long)(frame * sizeof(__u64)) >= bytes)
			break;
		__u64 address = stack->addresses[frame];
		if (is_in(memcg.body, address) || is_in(memcg.cold, address))
			stack->memcg_frames++;
		if (is_in(kill.body, address) || is_in(kill.cold, address))
			stack->kill_frames++;
	}
	/* A task that is leaving anyway is only marked, so that it may use reserves. */
	if (bytes > 0 && kill.body->start && !stack->kill_frames)
		return 0;
	__u64 kind = stack->memcg_frames ? KIND_MEMCG : KIND_GLOBAL;
	if (bytes <= 0 || !memcg.body->start)
		kind = KIND_UNKNOWN;
	__u64 cgroup_id = task_cgroup_id(victim, memory_cgrp_id);
	if (want_metrics)
		count(cgroup_id, kind);
	if (want_events)
		tell(ctx, victim, cgroup_id, kind);
	return 0;
}
