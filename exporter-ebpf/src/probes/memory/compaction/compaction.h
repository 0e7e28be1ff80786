/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_COMPACTION_H
#define KPULSE_COMPACTION_H

#include "record.h"
#include "histogram.h"

/* What follows longer after the last step of a call does not belong to it. */
#define CALL_GAP_U64 1000000000ULL

/* A task's last call of direct compaction: one attempt for each zone that it tried. */
struct compaction_call {
	__u64 cgroup_id;
	__u64 sum_ns; /* of the attempts that ended */
	__u64 attempt_ns; /* begin of the attempt under way; 0 = none is */
	__u64 last_ns; /* of whatever happened last */
	__s32 order;
	__u32 is_told; /* 1 = it has been an event */
};
_Static_assert(sizeof(struct compaction_call) == 40, "Rust reads this layout");

/* Threshold of the event policy. */
#define THRESHOLD_DURATION 0

struct compaction_record {
	struct record_header header; /* the task that allocates; the value is the time until then */
	struct user_stack user;
	__s32 order;
	__u32 result; /* of the last attempt: compact_result of the kernel */
};
_Static_assert(sizeof(struct compaction_record) == 616, "Rust reads this layout");

#endif
