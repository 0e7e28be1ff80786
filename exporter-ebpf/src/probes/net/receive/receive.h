/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_RECEIVE_H
#define KPULSE_RECEIVE_H

#include "record.h"
#include "histogram.h"

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

#endif
