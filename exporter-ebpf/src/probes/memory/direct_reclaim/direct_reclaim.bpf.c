/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Direct reclaim: an allocation that had to free memory itself, for the machine (global) or under a memory cgroup's
 * limit (memcg).
 * Hooks: mm_vmscan_direct_reclaim_begin/end, mm_vmscan_memcg_reclaim_begin/end. Key: cgroup of the task, and kind.
 * The memcg hooks also fire when user space asks for reclaim (memory.reclaim, force_empty).
 */
#include "probe.h"
#include "by_cgroup.h"
#include "cgroup.h"
#include "losses.h"
#include "ring.h"
#include "direct_reclaim.h"

struct start_key {
	__u32 tid;
	__u32 kind;
};

/* Tasks in reclaim now. Over the bound a call is not measured, and counted in `losses`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct start_key);
	__type(value, struct direct_reclaim_start);
} start SEC(".maps");

/* Bound: twice the loader's container_max. Key 0 of each kind holds what found no room. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct direct_reclaim_key);
	__type(value, struct histogram);
} duration SEC(".maps");

static __always_inline int begin(__u32 kind, __s32 order, __u64 target_cgroup_id)
{
	struct start_key key = { .tid = bpf_get_current_pid_tgid(), .kind = kind };
	struct direct_reclaim_start value = {
		.ns = bpf_ktime_get_ns(),
		.target_cgroup_id = target_cgroup_id,
		.order = order,
	};

	if (bpf_map_update_elem(&start, &key, &value, BPF_ANY))
		lose(1);
	return 0;
}

static __always_inline int end(void *context, __u32 kind, __u64 reclaimed_pages)
{
	struct start_key key = { .tid = bpf_get_current_pid_tgid(), .kind = kind };
	struct direct_reclaim_start *begun = bpf_map_lookup_elem(&start, &key);

	if (!begun)
		return 0;
	struct direct_reclaim_start call = *begun;
	bpf_map_delete_elem(&start, &key);
	__u64 now_ns = bpf_ktime_get_ns();
	__u64 duration_ns = now_ns > call.ns ? now_ns - call.ns : 1;
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 cgroup_id = read_task_cgroup_id(task, memory_cgrp_id);

	if (want_metrics) {
		struct direct_reclaim_key owner = { .cgroup_id = cgroup_id, .kind = kind };
		time_by_cgroup(&duration, &owner, duration_ns);
	}
	if (!may_tell(THRESHOLD_DURATION, duration_ns))
		return 0;
	struct direct_reclaim_record *record =
		ring_reserve(sizeof(*record), cgroup_id, THRESHOLD_DURATION, duration_ns);
	if (!record)
		return 0;
	header_current_task(&record->header);
	header_kernel_stack(context, &record->header);
	take_user_stack(context, &record->user);
	record->reclaimed_pages = reclaimed_pages;
	record->scanned_pages = call.scanned_pages;
	record->target_cgroup_id = call.target_cgroup_id;
	record->order = call.order;
	record->kind = kind;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static __always_inline bool add_scanned(__u32 kind, __u64 pages)
{
	struct start_key key = { .tid = bpf_get_current_pid_tgid(), .kind = kind };
	struct direct_reclaim_start *begun = bpf_map_lookup_elem(&start, &key);

	if (begun)
		begun->scanned_pages += pages;
	return begun;
}

/* Once for some pages that were looked at together. A task is in one kind of call at a time. */
SEC("tp_btf/mm_vmscan_lru_shrink_inactive")
int BPF_PROG(lru_shrink_inactive, int node, unsigned long scanned)
{
	if (!add_scanned(KIND_MEMCG, scanned))
		add_scanned(KIND_GLOBAL, scanned);
	return 0;
}

/* (order, gfp) became (gfp, order, memcg) in 7.x, in the same places: only the third argument tells them apart. */
SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int BPF_PROG(direct_reclaim_begin_with_memcg, __u32 gfp, int order, struct mem_cgroup *memcg)
{
	return begin(KIND_GLOBAL, order, BPF_CORE_READ(memcg, css.cgroup, kn, id));
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int BPF_PROG(direct_reclaim_begin, int order)
{
	return begin(KIND_GLOBAL, order, 0);
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int BPF_PROG(direct_reclaim_end, unsigned long reclaimed)
{
	return end(ctx, KIND_GLOBAL, reclaimed);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(memcg_reclaim_begin_with_memcg, __u32 gfp, int order, struct mem_cgroup *memcg)
{
	return begin(KIND_MEMCG, order, BPF_CORE_READ(memcg, css.cgroup, kn, id));
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int BPF_PROG(memcg_reclaim_begin, int order)
{
	return begin(KIND_MEMCG, order, 0);
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int BPF_PROG(memcg_reclaim_end, unsigned long reclaimed)
{
	return end(ctx, KIND_MEMCG, reclaimed);
}
