/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_BLOCK_IO_H
#define KPULSE_BLOCK_IO_H

#include "record.h"
#include "histogram.h"

struct block_io_key {
	__u32 major;
	__u32 minor;
	__u32 operation; /* REQ_OP_* */
	__u32 _pad;
};
_Static_assert(sizeof(struct block_io_key) == 16, "Rust reads this layout");

struct block_io_value {
	struct histogram d2c;
	struct histogram q2c;
	__u64 bytes;
	__u64 d2c_untimed; /* completed requests whose start at the driver is not known */
	__u64 q2c_untimed; /* completed requests whose bio was not seen when it was queued */
};
_Static_assert(sizeof(struct block_io_value) == 472, "Rust reads this layout");

/* Operations by container: of the rest there is one count. */
#define OWNER_OPERATIONS 3
#define OPERATION_READ 0
#define OPERATION_WRITE 1
#define OPERATION_REST 0xff

struct block_io_owner_key {
	__u64 cgroup_id; /* of the I/O's owner; 0 for owners that found no room */
	__u64 operation; /* OPERATION_* */
};
_Static_assert(sizeof(struct block_io_owner_key) == 16, "Rust reads this layout");

struct block_io_owner_value {
	struct histogram d2c;
	struct histogram q2c;
};
_Static_assert(sizeof(struct block_io_owner_value) == 448, "Rust reads this layout");

struct block_io_error_key {
	struct block_io_key device;
	__s64 status; /* a negative errno, or since 5.16 a BLK_STS_* */
};
_Static_assert(sizeof(struct block_io_error_key) == 24, "Rust reads this layout");

/* Who queued a bio, and when. */
struct block_io_queued {
	__u64 ns;
	__u64 cgroup_id;
	__u32 tgid;
	__u32 tid;
	__u8 comm[COMM_BYTES];
};
_Static_assert(sizeof(struct block_io_queued) == 40, "Rust reads this layout");

/* Thresholds of the event policy. */
#define THRESHOLD_D2C 0
#define THRESHOLD_Q2C 1

struct block_io_record {
	struct record_header header; /* the task that queued the I/O */
	__u64 d2c_ns;
	__u64 q2c_ns;
	__u64 sector;
	__u32 bytes;
	__s32 error;
	struct block_io_key key;
};
_Static_assert(sizeof(struct block_io_record) == 376, "Rust reads this layout");

#endif
