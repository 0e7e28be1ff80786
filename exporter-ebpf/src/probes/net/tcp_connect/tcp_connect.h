/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_TCP_CONNECT_H
#define KPULSE_TCP_CONNECT_H

#include "record.h"
#include "histogram.h"
#include "flow.h"

/* Which side of a connection a socket is. */
#define ROLE_UNKNOWN 0
#define ROLE_CLIENT 1
#define ROLE_SERVER 2
#define ROLES 3

struct tcp_connect_key {
	__u64 cgroup_id; /* 0 for what found no room */
	__u64 role;
};
_Static_assert(sizeof(struct tcp_connect_key) == 16, "Rust reads this layout");

/* A connection that was seen to begin. */
struct tcp_connect_start {
	__u64 ns; /* client: of the SYN; server: of the end of the handshake */
	__u64 cgroup_id;
	__u32 role;
	__u32 tgid; /* client: of the task that connects */
	__u32 tid;
	__u8 comm[COMM_BYTES];
	__u32 _pad;
};
_Static_assert(sizeof(struct tcp_connect_start) == 48, "Rust reads this layout");

/* What could not be measured, one counter each. */
struct tcp_connect_value {
	__u64 handshakes;
	__u64 accepts;
};
_Static_assert(sizeof(struct tcp_connect_value) == 16, "Rust reads this layout");

/* Threshold of the event policy. */
#define THRESHOLD_HANDSHAKE 0

/* How a handshake ended. */
#define OUTCOME_ESTABLISHED 0
#define OUTCOME_FAILED 1
#define OUTCOME_ABANDONED 2

struct tcp_connect_record {
	struct record_header header; /* the task that connects; none for a server */
	__u32 role;
	__u32 outcome;
	__u32 error; /* errno; 0 = none */
	__u32 retransmits; /* of the SYN */
	struct flow flow;
};
_Static_assert(sizeof(struct tcp_connect_record) == 384, "Rust reads this layout");

#endif
