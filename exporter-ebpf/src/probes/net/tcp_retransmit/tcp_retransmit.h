/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_TCP_RETRANSMIT_H
#define KPULSE_TCP_RETRANSMIT_H

#include "record.h"
#include "flow.h"

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

struct tcp_retransmit_record {
	struct record_header header; /* the task that used the socket, if one did */
	struct user_stack user;
	__u64 rtt_ns; /* smoothed; UNKNOWN_U64 while there is no sample */
	__u64 drop_age_ns; /* since this kernel dropped the same segment; UNKNOWN_U64 when it was not seen to */
	__u64 drop_location;
	__u32 drop_reason;
	__u32 reason; /* REASON_* */
	__u32 state;
	__u32 seq;
	__u32 segments;
	__u32 in_flight; /* segments on their way, this one not yet */
	struct flow flow;
};
_Static_assert(sizeof(struct tcp_retransmit_record) == 696, "Rust reads this layout");

#endif
