/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every record of every ring begins with. This is the only place that says so: Rust is generated from it. */
#ifndef KPULSE_RECORD_H
#define KPULSE_RECORD_H

#ifndef __bpf__
#include <linux/types.h>
#endif

#define COMM_BYTES 16
#define STACK_FRAMES 32
/* A value that could not be measured. */
#define UNKNOWN_U64 0xffffffffffffffffULL

struct record_header {
	__u64 boot_ns; /* end of what is told, CLOCK_BOOTTIME */
	__u64 value_ns; /* UNKNOWN_U64 where the event is a fact, not a duration */
	__u64 threshold_ns; /* UNKNOWN_U64 likewise */
	__u64 cgroup_id; /* in the hierarchy of the probe's controller; 0 = not known */
	__u64 suppressed_total; /* by the rate limit, for this cgroup, since its bucket was made */
	__u32 tgid; /* 0 = no task to name */
	__u32 tid;
	__u32 cpu;
	__s32 stack_bytes; /* negative = errno */
	__u8 comm[COMM_BYTES];
	__u64 stack[STACK_FRAMES]; /* kernel, innermost first */
};
_Static_assert(sizeof(struct record_header) == 328, "Rust reads this layout");

/*
 * Where a task was in its own code, in records of kinds that find it as the current task. Frames follow frame pointers:
 * of code without them only the first is sure.
 */
#define USER_FRAMES 32
struct user_stack {
	__u64 code; /* with `stack`, which address space it was: /proc/PID/stat has the same two */
	__u64 stack;
	__u32 tgid; /* whose it is, which need not be the header's */
	__s32 stack_bytes; /* 0 = not taken; negative = errno */
	__u64 frames[USER_FRAMES]; /* innermost first */
};
_Static_assert(sizeof(struct user_stack) == 280, "Rust reads this layout");

/* Where the records of a ring went: produced = sent + suppressed + ring_full. */
struct ring_counts {
	__u64 produced;
	__u64 suppressed;
	__u64 ring_full;
};
_Static_assert(sizeof(struct ring_counts) == 24, "Rust reads this layout");

/* From which values a probe tells events, and how many: a bucket of burst/interval tokens, one more each interval. */
#define POLICY_THRESHOLDS 2
struct event_policy {
	__u64 threshold_ns[POLICY_THRESHOLDS];
	__u64 rate_interval_ns;
	__u64 rate_burst_ns;
};
_Static_assert(sizeof(struct event_policy) == 32, "Rust writes this layout");

/* Entries of the map `policy`, and how many cgroups may have their own. */
#define POLICY_MACHINE 0
#define POLICY_LEAST 1
#define POLICY_ENTRIES 2
#define POLICY_CGROUPS 1024

#endif
