/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_CPU_SAMPLE_H
#define KPULSE_CPU_SAMPLE_H

#include "record.h"

/* Frames of one stack; the kernel's own limit (kernel.perf_event_max_stack) is the same by default. */
#define SAMPLE_FRAMES 127
/* Stacks and counts live in two sets of maps: one is filled while the other is read. */
#define GENERATIONS 2

struct cpu_sample_key {
	__u64 cgroup_id;
	__u32 tgid;
	__u32 tid;
	__s32 user_stack; /* id in the generation's stacks, or -EFAULT: no user stack */
	__s32 kernel_stack;
	__u8 comm[COMM_BYTES];
};
_Static_assert(sizeof(struct cpu_sample_key) == 40, "Rust reads this layout");

/* taken = counted + every loss. */
struct cpu_sample_value {
	__u64 taken;
	__u64 idle; /* the idle task ran: no work to show */
	__u64 stack_collisions; /* another stack holds the hash slot */
	__u64 counts_full;
};
_Static_assert(sizeof(struct cpu_sample_value) == 32, "Rust reads this layout");

#endif
