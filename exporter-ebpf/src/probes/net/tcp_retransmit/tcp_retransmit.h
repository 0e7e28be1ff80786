/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_TCP_RETRANSMIT_H
#define KPULSE_TCP_RETRANSMIT_H

#include "record.h"

/* Why a segment was sent again. */
#define REASON_RTO 0
#define REASON_FAST 1
#define REASON_TLP 2
#define REASON_SYN 3
#define REASON_SYNACK 4
#define REASONS 5

struct tcp_retransmit_key {
	__u64 cgroup_id; /* of the socket; 0 for what found no room */
	__u64 reason;
};
_Static_assert(sizeof(struct tcp_retransmit_key) == 16, "Rust reads this layout");

#endif
