/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_RUNQUEUE_LATENCY_H
#define KPULSE_RUNQUEUE_LATENCY_H

#include "histogram.h"
#include "record.h"

/* Low bits of a pid that index `waited`, and how many bits a pid has above them (the kernel's limit is 2^22). */
#define PID_INDEX_BITS 16
#define PID_TAG_BITS 6

/* Waits of one cgroup, and how its tasks had lost the CPU before; a new task had none. */
struct runqueue_latency_account {
	struct histogram waits;
	__u64 voluntary; /* it slept, and was woken up */
	__u64 involuntary; /* another task took its place */
};
_Static_assert(sizeof(struct runqueue_latency_account) == 240, "Rust reads this layout");

/* What the scheduler did that could not be measured in full, one counter each. */
struct runqueue_latency_value {
	__u64 displaced; /* another task's pid shares the index and had taken the entry */
	__u64 table_full; /* counted in cgroup 0, since the map has no room */
};
_Static_assert(sizeof(struct runqueue_latency_value) == 16, "Rust reads this layout");

/* Threshold of the event policy. */
#define THRESHOLD_WAIT 0

struct runqueue_latency_record {
	struct record_header header; /* the task that waited */
	__u32 occupant_tgid; /* the task that left the CPU just before */
	__u32 occupant_tid;
	__u8 occupant_comm[COMM_BYTES];
	__u64 throttled_ns; /* of the wait; UNKNOWN_U64 when it is not known */
};
_Static_assert(sizeof(struct runqueue_latency_record) == 360, "Rust reads this layout");

#endif
