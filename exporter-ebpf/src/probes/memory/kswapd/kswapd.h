/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_KSWAPD_H
#define KPULSE_KSWAPD_H

#include "record.h"
#include "histogram.h"

struct kswapd_value {
	struct histogram active;
	__u64 wakeups;
	__u64 awake_since_ns; /* 0 while it sleeps */
};
_Static_assert(sizeof(struct kswapd_value) == 240, "Rust reads this layout");

#endif
