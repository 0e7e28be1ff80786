/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_HARDIRQ_H
#define KPULSE_HARDIRQ_H

#include "histogram.h"

/* Interrupts that are told apart; a machine with more counts the rest in the key OTHER_IRQ. */
#define IRQS_MAX 256
#define OTHER_IRQ 0xffffffff

/* The handler that runs on a CPU. */
struct hardirq_running {
	__u64 entered_ns; /* 0 = none */
	__u64 irq;
};
_Static_assert(sizeof(struct hardirq_running) == 16, "Rust reads this layout");

#endif
