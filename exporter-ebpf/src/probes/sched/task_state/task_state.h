/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_TASK_STATE_H
#define KPULSE_TASK_STATE_H

#include "record.h"
#include "histogram.h"

#define STATE_RUNNING 0
#define STATE_RUNNABLE 1
#define STATE_INTERRUPTIBLE 2
#define STATE_UNINTERRUPTIBLE 3
#define STATE_STOPPED 4
#define STATE_ZOMBIE 5
#define STATE_IDLE 6
#define STATES 7

struct task_state_key {
	__u64 cgroup_id;
	__u64 state;
};
_Static_assert(sizeof(struct task_state_key) == 16, "Rust reads this layout");

struct task_state_value {
	__u64 hangs; /* reported by the kernel */
	__u64 displaced; /* tasks whose time in D state is not measured, since another's pid has the same low bits */
};
_Static_assert(sizeof(struct task_state_value) == 16, "Rust reads this layout");

/* Where the kernel has what stops tasks over memory.high: the function, and a part that the compiler put elsewhere. */
#define FUNCTIONS 2

struct task_state_range {
	__u64 start;
	__u64 end;
};
_Static_assert(sizeof(struct task_state_range) == 16, "Rust writes this layout");

/* Thresholds of the event policy. */
#define THRESHOLD_STUCK 0
#define THRESHOLD_STALL 1

struct task_state_record {
	struct record_header header; /* the task that slept, and what it slept in */
	__u32 other_tgid; /* who woke it, or found it hung */
	__u32 other_tid;
	__u8 other_comm[COMM_BYTES];
	__u32 is_hung; /* 1 = it sleeps still */
	__u32 is_stall; /* 1 = it was stopped since a cgroup was over its memory.high */
	__u64 limited_cgroup_id; /* that cgroup; 0 = not known */
	__u64 limit_pages; /* UNKNOWN_U64 likewise */
	__u64 usage_pages;
};
_Static_assert(sizeof(struct task_state_record) == 384, "Rust reads this layout");

#endif
