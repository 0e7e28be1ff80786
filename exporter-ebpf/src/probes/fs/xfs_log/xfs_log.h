/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_XFS_LOG_H
#define KPULSE_XFS_LOG_H

#include "record.h"
#include "histogram.h"

/* What is waited for. */
#define WAIT_GRANT 0
#define WAIT_FORCE 1
#define WAIT_WRITE 2
#define WAITS 3

struct xfs_log_key {
	__u32 dev; /* the kernel's own dev_t */
	__u32 wait;
};
_Static_assert(sizeof(struct xfs_log_key) == 8, "Rust reads this layout");

struct xfs_log_value {
	__u64 devices_full; /* waits of devices that found no room */
	__u64 waiters_full; /* forces that waited for a buffer with too many others */
};
_Static_assert(sizeof(struct xfs_log_value) == 16, "Rust reads this layout");

/* Threshold of the event policy. */
#define THRESHOLD_WAIT 0

struct xfs_log_record {
	struct record_header header; /* the task that waited */
	struct user_stack user; /* of a wait for room only */
	__u32 dev; /* the kernel's own dev_t */
	__u32 wait; /* WAIT_GRANT or WAIT_FORCE */
};
_Static_assert(sizeof(struct xfs_log_record) == 616, "Rust reads this layout");

#endif
