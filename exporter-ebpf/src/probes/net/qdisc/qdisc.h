/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_QDISC_H
#define KPULSE_QDISC_H

#include "record.h"
#include "histogram.h"

struct qdisc_key {
	__u8 device[16]; /* empty for what found no room */
	__u8 kind[16];
};
_Static_assert(sizeof(struct qdisc_key) == 32, "Rust reads this layout");

#endif
