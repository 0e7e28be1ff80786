/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_RECEIVE_H
#define KPULSE_RECEIVE_H

#include "record.h"
#include "histogram.h"
#include "flow.h"

/* What was measured: the protocol, and how far from the device the packet has come. */
#define TCP_TO_SOCKET 0
#define TCP_TO_USER 1
#define UDP_TO_USER 2
#define PATHS 3

struct receive_key {
	__u64 cgroup_id; /* 0 for what found no room */
	__u64 path;
};
_Static_assert(sizeof(struct receive_key) == 16, "Rust reads this layout");

/* Thresholds of the event policy. */
#define THRESHOLD_USER 0
#define THRESHOLD_SOCKET 1

struct receive_record {
	struct record_header header; /* the task that works on the socket, if one does */
	struct user_stack user;
	__u64 path;
	__u64 queue_bytes; /* in the socket's receive queue; UNKNOWN_U64 where no socket is known */
	struct flow flow; /* of the packet */
};
_Static_assert(sizeof(struct receive_record) == 664, "Rust reads this layout");

#endif
