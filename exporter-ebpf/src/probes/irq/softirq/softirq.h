/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_SOFTIRQ_H
#define KPULSE_SOFTIRQ_H

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

#endif
