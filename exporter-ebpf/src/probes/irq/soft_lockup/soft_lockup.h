/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_SOFT_LOCKUP_H
#define KPULSE_SOFT_LOCKUP_H

#include "record.h"

/* Samples a second and CPU. */
#define SAMPLE_HZ 10
/* Least samples of a stretch: one long pause of a virtual CPU is none. */
#define LOCKUP_SAMPLES 4

struct soft_lockup_value {
	__u64 lockups;
	/* The stretch that a CPU is in. */
	__u64 since_ns; /* its first sample; 0 = none */
	__u64 samples;
	__u64 switches; /* of the task, until its first sample */
	__u64 tid;
	__u64 is_counted;
};
_Static_assert(sizeof(struct soft_lockup_value) == 48, "Rust reads this layout");

/* Threshold of the event policy, and of the metric too. */
#define THRESHOLD_DURATION 0

struct soft_lockup_record {
	struct record_header header; /* the task that keeps the CPU; the value is the time until then */
	struct user_stack user;
};
_Static_assert(sizeof(struct soft_lockup_record) == 608, "Rust reads this layout");

#endif
