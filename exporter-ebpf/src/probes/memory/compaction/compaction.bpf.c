/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Direct compaction: an allocation of adjoining pages that had to move others out of the way itself.
 * Hooks: mm_compaction_try_to_compact_pages at the begin of a call, mm_compaction_begin/end around each zone. No hook
 * tells the end of a call: the task's next call counts it, or the collector when nothing followed for CALL_GAP_U64.
 * Key: cgroup of the task. kcompactd and compact_memory make no such call, so their attempts are nobody's.
 */
#include "probe.h"
#include "by_cgroup.h"
#include "cgroup.h"
#include "losses.h"
#include "ring.h"
#include "compaction.h"

/* Tasks with a call that is not counted yet. Over the bound a call is not measured, and counted in `losses`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct compaction_call);
} calls SEC(".maps");

BY_CGROUP(duration, struct histogram);

static __always_inline struct compaction_call *call_under_way(__u64 now_ns)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct compaction_call *call = bpf_map_lookup_elem(&calls, &tid);

	return call && now_ns - call->last_ns < CALL_GAP_U64 ? call : NULL;
}

static __always_inline void tell(void *context, struct compaction_call *call, __u32 result)
{
	struct compaction_record *record =
		ring_reserve(sizeof(*record), call->cgroup_id, THRESHOLD_DURATION, call->sum_ns);

	call->is_told = 1;
	if (!record)
		return;
	header_current_task(&record->header);
	header_kernel_stack(context, &record->header);
	take_user_stack(context, &record->user);
	record->order = call->order;
	record->result = result;
	bpf_ringbuf_submit(record, 0);
}

SEC("tp_btf/mm_compaction_try_to_compact_pages")
int BPF_PROG(mm_compaction_try_to_compact_pages, int order)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 tid = bpf_get_current_pid_tgid();
	struct compaction_call call = {
		.cgroup_id = read_task_cgroup_id(task, memory_cgrp_id),
		.last_ns = bpf_ktime_get_ns(),
		.order = order,
	};
	struct compaction_call *previous = bpf_map_lookup_elem(&calls, &tid);

	if (previous && previous->sum_ns) {
		__u64 cgroup_id = previous->cgroup_id;
		time_by_cgroup(&duration, &cgroup_id, previous->sum_ns);
	}
	if (bpf_map_update_elem(&calls, &tid, &call, BPF_ANY))
		lose(1);
	return 0;
}

SEC("tp_btf/mm_compaction_begin")
int BPF_PROG(mm_compaction_begin)
{
	__u64 now_ns = bpf_ktime_get_ns();
	struct compaction_call *call = call_under_way(now_ns);

	if (call)
		call->attempt_ns = call->last_ns = now_ns;
	return 0;
}

static __always_inline int attempt_ends(void *context, __u32 result)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct compaction_call *call = bpf_map_lookup_elem(&calls, &tid);

	if (!call || !call->attempt_ns)
		return 0;
	call->last_ns = bpf_ktime_get_ns();
	call->sum_ns += call->last_ns - call->attempt_ns;
	call->attempt_ns = 0;
	if (!call->is_told && may_tell(THRESHOLD_DURATION, call->sum_ns))
		tell(context, call, result);
	return 0;
}

/* 5.10 tells the zone's place by four numbers, 6.1 by two and the control block. */
SEC("tp_btf/mm_compaction_end")
int BPF_PROG(mm_compaction_end_of_pages, __u64 zone_start, __u64 migrate_pfn, __u64 free_pfn, __u64 zone_end, bool sync,
	     int status)
{
	return attempt_ends(ctx, status);
}

SEC("tp_btf/mm_compaction_end")
int BPF_PROG(mm_compaction_end, void *control, __u64 zone_start, __u64 zone_end, bool sync, int status)
{
	return attempt_ends(ctx, status);
}
