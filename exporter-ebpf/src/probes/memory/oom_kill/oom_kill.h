/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_OOM_KILL_H
#define KPULSE_OOM_KILL_H

#include "record.h"

#define KIND_GLOBAL 0
#define KIND_MEMCG 1
#define KIND_UNKNOWN 2
#define KINDS 3

/* Kernel functions that tell in a stack what a victim died of, each with the part that compilers split off. */
#define FUNCTION_MEMCG 0
#define FUNCTION_MEMCG_COLD 1
#define FUNCTION_KILL 2
#define FUNCTION_KILL_COLD 3
#define FUNCTIONS 4

struct oom_kill_key {
	__u64 cgroup_id; /* of the victim; 0 for victims that found no room */
	__u64 kind;
};
_Static_assert(sizeof(struct oom_kill_key) == 16, "Rust reads this layout");

/* Addresses of a function; both 0 when they are not known. */
struct oom_kill_range {
	__u64 start;
	__u64 end;
};
_Static_assert(sizeof(struct oom_kill_range) == 16, "Rust reads this layout");

/* Pages, each UNKNOWN_U64 where the victim has given back its memory, or no memory controller is there. */
struct oom_kill_record {
	struct record_header header; /* the victim, with the stack of who found no memory */
	struct user_stack user; /* of who found no memory */
	__u64 kind;
	__u64 file_pages;
	__u64 anon_pages;
	__u64 shmem_pages;
	__u64 virtual_pages;
	__u64 usage_pages; /* of the victim's memory cgroup */
	__u64 limit_pages; /* of the same; at least PAGE_COUNTER_MAX without a limit */
	__u32 trigger_tgid; /* who found no memory */
	__u32 trigger_tid;
	__u8 trigger_comm[COMM_BYTES];
	__s32 score_adjustment;
	__u32 _pad;
};
_Static_assert(sizeof(struct oom_kill_record) == 696, "Rust reads this layout");

#endif
