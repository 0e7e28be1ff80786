/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Waits for the log of XFS: for room in it (grant), for it to reach the disk (force), and the disk's own time (write).
 * Hooks: xfs_log_grant_sleep/wake by task; xlog_iclog_syncing/sync_done by log buffer; xfs_log_force by task, then
 * xlog_iclog_wait_on by task and log buffer, until xlog_iclog_clean of the buffer wakes all who wait for it. Key:
 * device and wait. Each exists as a BTF tracepoint where XFS is built in, and as a classic one where it is a module.
 */
#include "probe.h"
#include "cgroup.h"
#include "histogram.h"
#include "ring.h"
#include "value_or_new.h"
#include "xfs_log.h"

#define DEVICES 128
#define WAITERS 32
#define PF_WQ_WORKER 0x20
/* The end of a longer force was not seen: the log was shut down. */
#define FORCE_NS_MAX 300000000000ULL

/* A log buffer: its address, or its first log sequence number where the address is not told. */
struct buffer {
	__u64 id;
	__u64 dev;
};

/* Tasks that wait for room. Over the bound the oldest gives way, as in the next two. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, __u64);
} grants SEC(".maps");

/* Whose force it is, for its event: the end comes in the log's own context. */
struct force {
	__u64 since_ns;
	__u64 cgroup_id;
	__u32 tgid;
	__u32 waits;
	__u8 comm[COMM_BYTES];
};

/* Tasks that force the log. One whose force has nothing to wait for stays until its next. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct force);
} forces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8 * DEVICES);
	__type(key, struct buffer);
	__type(value, __u64);
} writes SEC(".maps");

/* Forces that wait for a buffer: when they began and whose they are. The kernel's l_icloglock is held at both ends. */
struct waiters {
	__u64 count;
	__u64 since_ns[WAITERS];
	__u32 tid[WAITERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8 * DEVICES);
	__type(key, struct buffer);
	__type(value, struct waiters);
} waiting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DEVICES *WAITS);
	__type(key, struct xfs_log_key);
	__type(value, struct histogram);
} waits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xfs_log_value);
} losses SEC(".maps");

static __always_inline struct xfs_log_value *loss_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&losses, &zero);
}

static __always_inline struct histogram *histogram_of(__u32 dev, __u32 wait)
{
	struct xfs_log_key key = { .dev = dev, .wait = wait };
	struct histogram nothing = {}, *histogram = value_or_new(&waits, &key, &nothing);
	struct xfs_log_value *loss = histogram ? NULL : loss_counters();
	if (loss)
		__sync_fetch_and_add(&loss->devices_full, 1);
	return histogram;
}

static __always_inline void count(__u32 dev, __u32 wait, __u64 ns)
{
	struct histogram *histogram = histogram_of(dev, wait);

	if (histogram)
		histogram_add_atomic(histogram, ns);
}

static __always_inline struct xfs_log_record *reserve(__u32 dev, __u32 wait, __u64 cgroup_id, __u64 ns)
{
	struct xfs_log_record *record = ring_reserve(sizeof(*record), cgroup_id, THRESHOLD_WAIT, ns);

	if (record) {
		record->user.stack_bytes = 0;
		record->dev = dev;
		record->wait = wait;
	}
	return record;
}

static __always_inline __u64 current_cgroup_id(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return read_task_cgroup_id(task, cpu_cgrp_id);
}

static __always_inline int grant_sleeps(void)
{
	__u32 tid = bpf_get_current_pid_tgid();
	__u64 now_ns = bpf_ktime_get_ns();

	bpf_map_update_elem(&grants, &tid, &now_ns, BPF_ANY);
	return 0;
}

static __always_inline int grant_wakes(void *context, __u32 dev)
{
	__u32 tid = bpf_get_current_pid_tgid();
	__u64 *since_ns = bpf_map_lookup_elem(&grants, &tid);

	if (!since_ns)
		return 0;
	__u64 ns = bpf_ktime_get_ns() - *since_ns;
	bpf_map_delete_elem(&grants, &tid);
	if (want_metrics)
		count(dev, WAIT_GRANT, ns);
	struct xfs_log_record *record =
		may_tell(THRESHOLD_WAIT, ns) ? reserve(dev, WAIT_GRANT, current_cgroup_id(), ns) : NULL;
	if (!record)
		return 0;
	header_current_task(&record->header);
	header_kernel_stack(context, &record->header);
	take_user_stack(context, &record->user);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static __always_inline int force_begins(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 tid = bpf_get_current_pid_tgid();
	struct force force = { .since_ns = bpf_ktime_get_ns() };

	/* Workers also wait for a buffer to keep the log's order, which is no force. */
	if (!(BPF_CORE_READ(task, flags) & PF_WQ_WORKER))
		bpf_map_update_elem(&forces, &tid, &force, BPF_ANY);
	return 0;
}

static __always_inline int force_waits(struct buffer buffer, __u32 state)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id;
	struct force *force = bpf_map_lookup_elem(&forces, &tid);

	/* A force that sleeps again has been measured. */
	if (!force || force->waits)
		return 0;
	force->waits = 1;
	/* In these two states there is nothing to wait for. */
	if (state == XLOG_STATE_ACTIVE || state == XLOG_STATE_DIRTY)
		return 0;
	if (want_events) {
		force->cgroup_id = current_cgroup_id();
		force->tgid = id >> 32;
		bpf_get_current_comm(force->comm, sizeof(force->comm));
	}
	struct waiters none = {}, *waiters = value_or_new(&waiting, &buffer, &none);
	if (waiters && waiters->count < WAITERS) {
		__u64 index = waiters->count++ & (WAITERS - 1);
		waiters->since_ns[index] = force->since_ns;
		waiters->tid[index] = tid;
		return 0;
	}
	struct xfs_log_value *loss = loss_counters();
	if (loss)
		__sync_fetch_and_add(&loss->waiters_full, 1);
	return 0;
}

/* The task sleeps since it was noted, unless so many others forced the log that it gave way: then nobody is named. */
static __always_inline void send_force(__u32 dev, __u32 tid, __u64 since_ns, __u64 ns)
{
	struct force *force = bpf_map_lookup_elem(&forces, &tid);

	if (force && force->since_ns != since_ns)
		force = NULL;
	struct xfs_log_record *record = reserve(dev, WAIT_FORCE, force ? force->cgroup_id : 0, ns);
	if (!record)
		return;
	if (force) {
		record->header.tgid = force->tgid;
		record->header.tid = tid;
		__builtin_memcpy(record->header.comm, force->comm, COMM_BYTES);
	}
	bpf_ringbuf_submit(record, 0);
}

static __always_inline int forces_end(struct buffer buffer)
{
	struct waiters *waiters = bpf_map_lookup_elem(&waiting, &buffer);
	__u64 now_ns = bpf_ktime_get_ns();

	if (!waiters)
		return 0;
	struct histogram *histogram = want_metrics ? histogram_of(buffer.dev, WAIT_FORCE) : NULL;
	for (__u32 index = 0; index < WAITERS; index++) {
		if (index >= waiters->count)
			break;
		__u64 since_ns = waiters->since_ns[index], ns = now_ns - since_ns;
		if (ns >= FORCE_NS_MAX)
			continue;
		if (histogram)
			histogram_add_atomic(histogram, ns);
		if (may_tell(THRESHOLD_WAIT, ns))
			send_force(buffer.dev, waiters->tid[index], since_ns, ns);
	}
	bpf_map_delete_elem(&waiting, &buffer);
	return 0;
}

static __always_inline int write_begins(struct buffer buffer)
{
	__u64 now_ns = bpf_ktime_get_ns();

	bpf_map_update_elem(&writes, &buffer, &now_ns, BPF_ANY);
	return 0;
}

static __always_inline int write_ends(struct buffer buffer)
{
	__u64 *since_ns = bpf_map_lookup_elem(&writes, &buffer);

	if (!since_ns)
		return 0;
	count(buffer.dev, WAIT_WRITE, bpf_ktime_get_ns() - *since_ns);
	bpf_map_delete_elem(&writes, &buffer);
	return 0;
}

static __always_inline struct buffer buffer_at(struct xlog_in_core *iclog)
{
	struct buffer buffer = {
		.id = (__u64)iclog,
		.dev = iclog->ic_log->l_mp->m_super->s_dev,
	};

	return buffer;
}

/* The records of classic tracepoints: of every one in XFS the first field is the device. */
struct xfs_context {
	__u64 common;
	__u32 dev;
};

/* Since 5.14 (956f6daa84bf), when these tracepoints came. */
struct iclog_context {
	__u64 common;
	__u32 dev;
	__u32 state;
	__s32 references;
	__u32 offset;
	__u32 flags;
	__u32 _pad;
	__u64 lsn;
};

static __always_inline struct buffer buffer_with(struct iclog_context *context)
{
	struct buffer buffer = { .id = context->lsn, .dev = context->dev };

	return buffer;
}

SEC("tp_btf/xfs_log_grant_sleep")
int BPF_PROG(xfs_log_grant_sleep, struct xlog *log)
{
	return grant_sleeps();
}

SEC("tracepoint/xfs/xfs_log_grant_sleep")
int xfs_log_grant_sleep_classic(struct xfs_context *context)
{
	return grant_sleeps();
}

SEC("tp_btf/xfs_log_grant_wake")
int BPF_PROG(xfs_log_grant_wake, struct xlog *log)
{
	return grant_wakes(ctx, log->l_mp->m_super->s_dev);
}

SEC("tracepoint/xfs/xfs_log_grant_wake")
int xfs_log_grant_wake_classic(struct xfs_context *context)
{
	return grant_wakes(context, context->dev);
}

SEC("tp_btf/xfs_log_force")
int BPF_PROG(xfs_log_force, struct xfs_mount *mount)
{
	return force_begins();
}

SEC("tracepoint/xfs/xfs_log_force")
int xfs_log_force_classic(struct xfs_context *context)
{
	return force_begins();
}

SEC("tp_btf/xlog_iclog_wait_on")
int BPF_PROG(xlog_iclog_wait_on, struct xlog_in_core *iclog)
{
	return force_waits(buffer_at(iclog), iclog->ic_state);
}

SEC("tracepoint/xfs/xlog_iclog_wait_on")
int xlog_iclog_wait_on_classic(struct iclog_context *context)
{
	return force_waits(buffer_with(context), context->state);
}

SEC("tp_btf/xlog_iclog_clean")
int BPF_PROG(xlog_iclog_clean, struct xlog_in_core *iclog)
{
	return forces_end(buffer_at(iclog));
}

SEC("tracepoint/xfs/xlog_iclog_clean")
int xlog_iclog_clean_classic(struct iclog_context *context)
{
	return forces_end(buffer_with(context));
}

SEC("tp_btf/xlog_iclog_syncing")
int BPF_PROG(xlog_iclog_syncing, struct xlog_in_core *iclog)
{
	return write_begins(buffer_at(iclog));
}

SEC("tracepoint/xfs/xlog_iclog_syncing")
int xlog_iclog_syncing_classic(struct iclog_context *context)
{
	return write_begins(buffer_with(context));
}

SEC("tp_btf/xlog_iclog_sync_done")
int BPF_PROG(xlog_iclog_sync_done, struct xlog_in_core *iclog)
{
	return write_ends(buffer_at(iclog));
}

SEC("tracepoint/xfs/xlog_iclog_sync_done")
int xlog_iclog_sync_done_classic(struct iclog_context *context)
{
	return write_ends(buffer_with(context));
}
