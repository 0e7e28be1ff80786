/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_JBD2_H
#define KPULSE_JBD2_H

#include "record.h"
#include "histogram.h"

/* Phases of a commit, in their order. */
#define PHASE_LOCKING 0
#define PHASE_FLUSHING 1
#define PHASE_LOGGING 2
#define PHASES 3

struct jbd2_key {
	__u32 dev; /* the kernel's own dev_t */
	__u32 phase;
};
_Static_assert(sizeof(struct jbd2_key) == 8, "Rust reads this layout");

#endif
