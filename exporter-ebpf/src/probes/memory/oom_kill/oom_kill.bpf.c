/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Tasks that the OOM killer chose.
 * Hook: mark_victim, whose current task is the one that found no memory. Key: the victim's cgroup, and whether the
 * machine was out of memory (global) or a memory cgroup (memcg), which only the stack tells.
 */
#include "probe.h"
#include "cgroup.h"
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
	count(task_cgroup_id(victim, memory_cgrp_id), kind);
	return 0;
}
