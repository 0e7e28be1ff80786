/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_TX_TIMEOUT_H
#define KPULSE_TX_TIMEOUT_H

#include "record.h"

struct tx_timeout_key {
	__u8 device[16]; /* empty for what found no room */
};
_Static_assert(sizeof(struct tx_timeout_key) == 16, "Rust reads this layout");

#define DRIVER_BYTES 32

struct tx_timeout_record {
	struct record_header header; /* of no task: a timer finds it */
	__u32 queue;
	__u32 netns;
	__u8 device[16];
	__u8 driver[DRIVER_BYTES]; /* empty for a device without hardware */
};
_Static_assert(sizeof(struct tx_timeout_record) == 384, "Rust reads this layout");

#endif
