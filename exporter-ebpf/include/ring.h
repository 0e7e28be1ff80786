/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The ring of a probe: reserve behind the rate limit, fill, submit; every record is sent or counted as lost. */
#ifndef KPULSE_RING_H
#define KPULSE_RING_H

#include "policy.h"
#include "rate_limit.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ring_counts);
} event_counts SEC(".maps");

/* A record of `bytes` for `cgroup_id`, its header's time, value and limits filled in; NULL when it may not be sent. */
static __always_inline void *ring_reserve_by(struct event_policy *rule, __u64 bytes, __u64 cgroup_id, __u64 value_ns,
					     __u64 threshold_ns)
{
	__u32 zero = 0;
	__u64 now_ns = bpf_ktime_get_boot_ns();
	struct ring_counts *counts = bpf_map_lookup_elem(&event_counts, &zero);

	if (!counts)
		return NULL;
	__sync_fetch_and_add(&counts->produced, 1);
	struct bucket *bucket = rate_bucket(cgroup_id);
	if (bucket && !rate_limit_take(bucket, rule, now_ns)) {
		__sync_fetch_and_add(&counts->suppressed, 1);
		return NULL;
	}
	struct record_header *header = bpf_ringbuf_reserve(&events, bytes, 0);
	if (!header) {
		__sync_fetch_and_add(&counts->ring_full, 1);
		return NULL;
	}
	header->boot_ns = now_ns;
	header->value_ns = value_ns;
	header->threshold_ns = threshold_ns;
	header->cgroup_id = cgroup_id;
	header->suppressed_total = bucket ? bucket->suppressed_total : 0;
	header->cpu = bpf_get_smp_processor_id();
	header->tgid = 0;
	header->tid = 0;
	header->stack_bytes = 0;
	__builtin_memset(header->comm, 0, sizeof(header->comm));
	return header;
}

/* The same for a value with one threshold: NULL also when the cgroup's rule has a higher one. */
static __always_inline void *ring_reserve(__u64 bytes, __u64 cgroup_id, __u32 threshold, __u64 value_ns)
{
	struct event_policy *rule = policy_of(cgroup_id);
	__u64 threshold_ns = rule ? reached(rule, threshold, value_ns) : UNKNOWN_U64;

	return threshold_ns != UNKNOWN_U64 ? ring_reserve_by(rule, bytes, cgroup_id, value_ns, threshold_ns) : NULL;
}

/* The same for a fact that has no value. */
static __always_inline void *ring_reserve_fact(__u64 bytes, __u64 cgroup_id)
{
	struct event_policy *rule = policy_of(cgroup_id);

	return rule ? ring_reserve_by(rule, bytes, cgroup_id, UNKNOWN_U64, UNKNOWN_U64) : NULL;
}

static __always_inline void header_current_task(struct record_header *header)
{
	__u64 id = bpf_get_current_pid_tgid();

	header->tgid = id >> 32;
	header->tid = id;
	bpf_get_current_comm(header->comm, sizeof(header->comm));
}

#define header_kernel_stack(context, header) \
	((header)->stack_bytes = bpf_get_stack(context, (header)->stack, sizeof((header)->stack), 0))

/* Where the current task is in its own code; a kernel thread has none. For what runs in the task's own context. */
static __always_inline void take_user_stack(void *context, struct user_stack *user)
{
	struct mm_struct *memory = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), mm);

	user->stack_bytes = 0;
	if (!memory)
		return;
	user->code = BPF_CORE_READ(memory, start_code);
	user->stack = BPF_CORE_READ(memory, start_stack);
	user->tgid = bpf_get_current_pid_tgid() >> 32;
	user->stack_bytes = bpf_get_stack(context, user->frames, sizeof(user->frames), BPF_F_USER_STACK);
}

/* The same for what may be a softirq on top of the task: user space sees by the whole kernel stack whether it was. */
static __always_inline void take_user_stack_below(void *context, struct record_header *header, struct user_stack *user)
{
	user->stack_bytes = 0;
	if (header->stack_bytes > 0 && header->stack_bytes < (__s32)sizeof(header->stack))
		take_user_stack(context, user);
}

#endif
