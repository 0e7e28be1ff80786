/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Block I/O latency: d2c from the driver's start to completion, q2c from the bio's queueing to completion, tag wait
 * and scheduler included.
 * Hooks: block_bio_queue (bio -> who and when), block_rq_complete; block_rq_issue only where the kernel does not
 * note a request's start itself. Keys: device and operation; the I/O's owner and operation.
 */
#include "probe.h"
#include "compat.h"
#include "by_cgroup.h"
#include "cgroup.h"
#include "losses.h"
#include "ring.h"
#include "value_or_new.h"
#include "block_io.h"

/* Bios on their way. Over the bound the oldest gives way, and its request counts as q2c_untimed. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct block_io_queued);
} queued SEC(".maps");

/* Start of requests at the driver, used only while `kernel_keeps_no_start`. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u64);
} issued SEC(".maps");

/* Bound: devices times operations. Requests beyond it are counted in `losses`. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 512);
	__type(key, struct block_io_key);
	__type(value, struct block_io_value);
} latency SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block_io_value);
} zero_value SEC(".maps");

/*
 * Bound: three times the loader's container_max. Key 0 of each operation holds what found no room. One value for all
 * CPUs: a copy for each would take the memory of a hundred devices, for what completes a few times a millisecond.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1536);
	__type(key, struct block_io_owner_key);
	__type(value, struct block_io_owner_value);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block_io_owner_value);
} zero_owner SEC(".maps");

/* Bound: devices times operations times statuses. Errors beyond it are counted in `losses`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 512);
	__type(key, struct block_io_error_key);
	__type(value, __u64);
} errors SEC(".maps");

/*
 * The block layer fills io_start_time_ns only while something asks for statistics, such as writeback throttling.
 * The first completion without it turns on the note at issue.
 */
bool kernel_keeps_no_start = false;

static __always_inline int bio_queued(struct bio *bio)
{
	__u64 key = (__u64)bio, id = bpf_get_current_pid_tgid();
	struct block_io_queued value = {
		.ns = bpf_ktime_get_ns(),
		.tgid = id >> 32,
		.tid = id,
	};

	if (want_events) {
		struct task_struct *task = (void *)bpf_get_current_task();
		value.cgroup_id = read_task_cgroup_id(task, io_cgrp_id);
		bpf_get_current_comm(value.comm, sizeof(value.comm));
	}
	bpf_map_update_elem(&queued, &key, &value, BPF_ANY);
	return 0;
}

/* The note of the request's first bio, or of the bio that it was split from. Merged bios wait less than the first. */
static __always_inline struct block_io_queued *note_of(struct request *request, __u64 *key)
{
	struct bio *bio = BPF_CORE_READ(request, bio);

	if (!bio)
		return NULL;
	*key = (__u64)bio;
	struct block_io_queued *note = bpf_map_lookup_elem(&queued, key);
	if (note)
		return note;
	*key = (__u64)BPF_CORE_READ(bio, bi_private);
	return bpf_map_lookup_elem(&queued, key);
}

static __always_inline __u64 d2c_of(struct request *request, __u64 now_ns)
{
	__u64 started = BPF_CORE_READ(request, io_start_time_ns), key = (__u64)request;

	if (!started) {
		__u64 *issue = bpf_map_lookup_elem(&issued, &key);
		kernel_keeps_no_start = true;
		if (!issue)
			return UNKNOWN_U64;
		started = *issue;
		bpf_map_delete_elem(&issued, &key);
	}
	return now_ns > started ? now_ns - started : 1;
}

static __always_inline struct block_io_value *value_of(struct block_io_key *key)
{
	__u32 zero = 0;
	struct block_io_value *empty = bpf_map_lookup_elem(&zero_value, &zero);

	return empty ? value_or_new(&latency, key, empty) : NULL;
}

static __always_inline void count(struct block_io_key *key, __u64 d2c_ns, __u64 q2c_ns, __u32 bytes)
{
	struct block_io_value *value = value_of(key);

	if (!value) {
		lose(1);
		return;
	}
	if (d2c_ns == UNKNOWN_U64)
		__sync_fetch_and_add(&value->d2c_untimed, 1);
	else
		histogram_add_atomic(&value->d2c, d2c_ns);
	if (q2c_ns == UNKNOWN_U64)
		__sync_fetch_and_add(&value->q2c_untimed, 1);
	else
		histogram_add_atomic(&value->q2c, q2c_ns);
	__sync_fetch_and_add(&value->bytes, bytes);
}

static __always_inline void count_part(struct block_io_key *key, __u32 bytes)
{
	struct block_io_value *value = value_of(key);

	if (value)
		__sync_fetch_and_add(&value->bytes, bytes);
}

static __always_inline void count_error(struct block_io_key *device, int status)
{
	struct block_io_error_key key = { .device = *device, .status = status };
	__u64 one = 1;

	if (!bpf_map_update_elem(&errors, &key, &one, BPF_NOEXIST))
		return;
	__u64 *known = bpf_map_lookup_elem(&errors, &key);
	if (known)
		__sync_fetch_and_add(known, 1);
	else
		lose(1);
}

/* Bios of different owners are never merged, so the first one's is the request's. A flush of its own has none. */
static __always_inline __u64 owner_of(struct request *request)
{
	if (!bpf_core_field_exists(request->bio->bi_blkg))
		return 0;
	return request->bio->bi_blkg->blkcg->css.cgroup->kn->id;
}

static __always_inline struct block_io_owner_value *owner_value_of(struct block_io_owner_key *key)
{
	__u32 zero = 0;
	struct block_io_owner_value *empty = bpf_map_lookup_elem(&zero_owner, &zero);

	return empty ? value_by_cgroup(&owners, key, empty) : NULL;
}

static __always_inline void count_owner(struct request *request, __u32 operation, __u64 d2c_ns, __u64 q2c_ns)
{
	struct block_io_owner_key key = {
		.cgroup_id = owner_of(request),
		.operation = operation <= OPERATION_WRITE ? operation : OPERATION_REST,
	};

	if (!key.cgroup_id)
		return;
	struct block_io_owner_value *value = owner_value_of(&key);
	if (!value)
		return;
	if (d2c_ns != UNKNOWN_U64)
		histogram_add_atomic(&value->d2c, d2c_ns);
	if (q2c_ns != UNKNOWN_U64)
		histogram_add_atomic(&value->q2c, q2c_ns);
}

static __always_inline void send_event(struct request *request, struct block_io_key *key, struct block_io_queued *note,
				       __u64 d2c_ns, __u64 q2c_ns, __u32 bytes, int error)
{
	__u64 cgroup_id = note ? note->cgroup_id : 0, value_ns = d2c_ns, threshold_ns = UNKNOWN_U64;
	struct event_policy *rule = policy_of(cgroup_id);

	if (!rule)
		return;
	/* An error is a fact, however long it took. */
	if (!error) {
		threshold_ns = reached(rule, THRESHOLD_D2C, d2c_ns);
		if (threshold_ns == UNKNOWN_U64) {
			value_ns = q2c_ns;
			threshold_ns = reached(rule, THRESHOLD_Q2C, q2c_ns);
		}
		if (threshold_ns == UNKNOWN_U64)
			return;
	}
	struct block_io_record *record = ring_reserve_by(rule, sizeof(*record), cgroup_id, value_ns, threshold_ns);
	if (!record)
		return;
	if (note) {
		record->header.tgid = note->tgid;
		record->header.tid = note->tid;
		__builtin_memcpy(record->header.comm, note->comm, COMM_BYTES);
	}
	record->d2c_ns = d2c_ns;
	record->q2c_ns = q2c_ns;
	record->sector = BPF_CORE_READ(request, __sector);
	record->bytes = bytes;
	record->error = error;
	record->key = *key;
	bpf_ringbuf_submit(record, 0);
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(block_bio_queue_with_queue, struct request_queue *queue, struct bio *bio)
{
	return bio_queued(bio);
}

/* Since 5.11 (e8a676d61c07). */
SEC("tp_btf/block_bio_queue")
int BPF_PROG(block_bio_queue, struct bio *bio)
{
	return bio_queued(bio);
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(block_rq_issue_with_queue, struct request_queue *queue, struct request *request)
{
	__u64 key = (__u64)request, now_ns = bpf_ktime_get_ns();

	if (kernel_keeps_no_start)
		bpf_map_update_elem(&issued, &key, &now_ns, BPF_ANY);
	return 0;
}

/* Since 5.11 (a54895fa057c). */
SEC("tp_btf/block_rq_issue")
int BPF_PROG(block_rq_issue, struct request *request)
{
	__u64 key = (__u64)request, now_ns = bpf_ktime_get_ns();

	if (kernel_keeps_no_start)
		bpf_map_update_elem(&issued, &key, &now_ns, BPF_ANY);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(block_rq_complete, struct request *request, int error, unsigned int bytes)
{
	__u64 now_ns = bpf_ktime_get_ns(), bio = 0;
	struct gendisk *disk = request_disk(request);
	struct block_io_key key = {
		.major = BPF_CORE_READ(disk, major),
		.minor = BPF_CORE_READ(disk, first_minor),
		.operation = BPF_CORE_READ(request, cmd_flags) & 0xff,
	};

	if (want_metrics && error)
		count_error(&key, error);
	struct block_io_queued *note = note_of(request, &bio);
	__u64 d2c_ns = d2c_of(request, now_ns);
	__u64 q2c_ns = note && now_ns > note->ns ? now_ns - note->ns : UNKNOWN_U64;

	/* A request may complete in parts, each with its own error; the last part says when it ended. */
	if (BPF_CORE_READ(request, __data_len) > bytes) {
		if (want_metrics)
			count_part(&key, bytes);
		if (want_events && error)
			send_event(request, &key, note, d2c_ns, q2c_ns, bytes, error);
		return 0;
	}
	if (want_metrics) {
		count(&key, d2c_ns, q2c_ns, bytes);
		count_owner(request, key.operation, d2c_ns, q2c_ns);
	}
	if (want_events && (error || may_tell(THRESHOLD_D2C, d2c_ns) || may_tell(THRESHOLD_Q2C, q2c_ns)))
		send_event(request, &key, note, d2c_ns, q2c_ns, bytes, error);
	/* The note of a parent serves its other parts too, and leaves by age. */
	if (note && bio == (__u64)BPF_CORE_READ(request, bio))
		bpf_map_delete_elem(&queued, &bio);
	return 0;
}
