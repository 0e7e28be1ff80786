/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_PROCESS_LIFE_H
#define KPULSE_PROCESS_LIFE_H

#include "record.h"

/* Most bytes of the executable's path, and most of the arguments. */
#define FILE_BYTES 256
#define ARGUMENT_BYTES 256
/* Longest name of a cgroup directory with its end, and most of them in a path: kubernetes has four, in docker six. */
#define CGROUP_NAME_BYTES 96
#define CGROUP_LEVELS 8

#define LIFE_EXEC 1
#define LIFE_EXIT 2
#define LIFE_CGROUP 3

/* What every record of this ring begins with. */
struct process_life_head {
	__u32 kind;
	__u32 tgid;
	__u64 boot_ns;
	__u64 start_ns; /* of the process, CLOCK_BOOTTIME: tells two processes with one pid apart */
	__u64 cgroup_id; /* in the hierarchy of the probe's controller; 0 = not known */
	__u8 comm[COMM_BYTES];
};
_Static_assert(sizeof(struct process_life_head) == 48, "Rust reads this layout");

/* Behind it comes the text: the executable, then the arguments, each of which ends with a zero byte. */
struct process_life_exec {
	struct process_life_head head;
	__u32 file_bytes;
	__u32 argument_bytes;
};
_Static_assert(sizeof(struct process_life_exec) == 56, "Rust reads this layout");

struct process_life_exit {
	struct process_life_head head;
	__u64 parent_start_ns;
	__u32 parent_tgid; /* whose program it still ran; 0 when it ran one of its own, or when that cannot be told */
	__u32 _pad;
};
_Static_assert(sizeof(struct process_life_exit) == 64, "Rust reads this layout");

/* A cgroup that no record told of lately: it may be gone before anyone can look for its path. */
struct process_life_cgroup {
	struct process_life_head head;
	__u8 names[CGROUP_LEVELS][CGROUP_NAME_BYTES]; /* innermost first; the root has an empty name */
};
_Static_assert(sizeof(struct process_life_cgroup) == 816, "Rust reads this layout");

/* Records that found no room in the ring. */
struct process_life_value {
	__u64 ring_full;
};
_Static_assert(sizeof(struct process_life_value) == 8, "Rust reads this layout");

#endif
