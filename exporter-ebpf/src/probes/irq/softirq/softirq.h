/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_SOFTIRQ_H
#define KPULSE_SOFTIRQ_H

#include "record.h"
#include "histogram.h"

/* HI_SOFTIRQ … RCU_SOFTIRQ; the kernel's order is user ABI by /proc/softirqs. */
#define VECTORS 10

struct softirq_value {
	__u64 raised_ns; /* first raise that was not served yet; 0 = none */
	__u64 entered_ns; /* 0 = not running */
	struct histogram latency;
	struct histogram duration;
};
_Static_assert(sizeof(struct softirq_value) == 464, "Rust reads this layout");

/* A run of a handler. */
struct softirq_run {
	__u32 vector;
	__u32 is_known; /* 0 = no handler has ended on this CPU yet */
	__u64 duration_ns;
};
_Static_assert(sizeof(struct softirq_run) == 16, "Rust reads this layout");

/* Threshold of the event policy. */
#define THRESHOLD_DELAY 0

struct softirq_record {
	struct record_header header; /* the task that the CPU had meanwhile */
	__u32 vector;
	__u32 _pad;
	struct softirq_run last; /* the handler that ended on this CPU just before */
};
_Static_assert(sizeof(struct softirq_record) == 352, "Rust reads this layout");

#endif
