/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_TRANSMIT_H
#define KPULSE_TRANSMIT_H

#include "record.h"
#include "histogram.h"

struct transmit_key {
	__u8 device[16]; /* empty for what found no room */
};
_Static_assert(sizeof(struct transmit_key) == 16, "Rust reads this layout");

#endif
