/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_TX_TIMEOUT_H
#define KPULSE_TX_TIMEOUT_H

#include "record.h"

struct tx_timeout_key {
	__u8 device[16]; /* empty for what found no room */
};
_Static_assert(sizeof(struct tx_timeout_key) == 16, "Rust reads this layout");

#endif
