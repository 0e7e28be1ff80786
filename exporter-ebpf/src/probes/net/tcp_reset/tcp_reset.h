/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_TCP_RESET_H
#define KPULSE_TCP_RESET_H

#include "record.h"
#include "flow.h"

#define DIRECTION_RECEIVED 0
#define DIRECTION_SENT 1
/* The kernel gives no reason: none for what is received, and before 6.10 none at all. */
#define NO_REASON 0xffffffff
/* Series that one container may have: a margin, since it meets few of the reasons. */
#define SERIES_OF_ONE 8

struct tcp_reset_key {
	__u64 cgroup_id; /* of the socket; 0 for what found no room */
	__u32 direction;
	__u32 reason;
};
_Static_assert(sizeof(struct tcp_reset_key) == 16, "Rust reads this layout");

struct tcp_reset_record {
	struct record_header header; /* the task that used the socket, if one did */
	struct user_stack user;
	__u32 direction;
	__u32 reason;
	__u32 state; /* 0 = no socket */
	struct flow flow; /* of the connection, this side first */
	__u32 _pad;
};
_Static_assert(sizeof(struct tcp_reset_record) == 664, "Rust reads this layout");

#endif
