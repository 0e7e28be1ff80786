/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_DIRECT_RECLAIM_H
#define KPULSE_DIRECT_RECLAIM_H

#include "record.h"

#define KIND_GLOBAL 0
#define KIND_MEMCG 1
#define KINDS 2

struct direct_reclaim_key {
	__u64 cgroup_id;
	__u64 kind;
};
_Static_assert(sizeof(struct direct_reclaim_key) == 16, "Rust reads this layout");

struct direct_reclaim_start {
	__u64 ns;
	__u64 target_cgroup_id; /* the memcg over its limit, since 7.x; else 0 */
	__u64 scanned_pages; /* by now; for events only */
	__s32 order;
	__u32 _pad;
};
_Static_assert(sizeof(struct direct_reclaim_start) == 32, "Rust reads this layout");

/* Threshold of the event policy. */
#define THRESHOLD_DURATION 0

struct direct_reclaim_record {
	struct record_header header; /* the task that reclaimed */
	struct user_stack user;
	__u64 reclaimed_pages;
	__u64 scanned_pages;
	__u64 target_cgroup_id;
	__s32 order;
	__u32 kind;
};
_Static_assert(sizeof(struct direct_reclaim_record) == 640, "Rust reads this layout");

#endif
