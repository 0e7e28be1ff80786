/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_IRQS_OFF_H
#define KPULSE_IRQS_OFF_H

#include "record.h"
#include "histogram.h"

struct irqs_off_value {
	struct histogram late;
	__u64 stolen_ns; /* kept out of `late` */
	__u64 run_queue; /* address of the CPU's own, which never changes; 0 = not asked yet */
	__u64 knows_steal; /* 1 where the kernel tells what the hypervisor took */
	__u64 served_ns; /* when the last timer was served */
	__u64 steal_ns; /* the hypervisor's total then */
	/* A stretch whose stolen part is not known yet. */
	__u64 pending_ns; /* its length; 0 = none */
	__u64 pending_since_ns; /* when it ended */
	__u64 pending_steal_ns; /* the hypervisor's total before it */
};
_Static_assert(sizeof(struct irqs_off_value) == 288, "Rust reads this layout");

/* Threshold of the event policy. */
#define THRESHOLD_DURATION 0

struct irqs_off_record {
	struct record_header header; /* the task that the CPU had, and where it let interrupts in again */
	struct user_stack user;
	__u64 stolen_ns; /* not in the value; UNKNOWN_U64 where the kernel does not tell */
};
_Static_assert(sizeof(struct irqs_off_record) == 616, "Rust reads this layout");

#endif
