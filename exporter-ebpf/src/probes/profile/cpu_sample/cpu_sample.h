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
	__u64 user_stack; /* hash of the frames, key in the generation's stacks; 0 = no such stack */
	__u64 kernel_stack;
	__u32 tgid;
	__u32 tid;
	__u8 comm[COMM_BYTES];
};
_Static_assert(sizeof(struct cpu_sample_key) == 48, "Rust reads this layout");

struct cpu_sample_stack {
	__u64 depth; /* frames that are set */
	__u64 frames[SAMPLE_FRAMES]; /* leaf first; of a caller the address that a call returns to */
};
_Static_assert(sizeof(struct cpu_sample_stack) == 1024, "Rust reads this layout");

/* How the walk of a user stack ended. */
#define WALK_ROOT 0 /* at the first function of the thread */
#define WALK_UNPREPARED 1 /* by the kernel along frame pointers: no tables for the process yet */
#define WALK_UNMAPPED 2 /* an address outside of all code */
#define WALK_UNREADABLE 3 /* the stack is not in memory */
#define WALK_UNEXPRESSED 4 /* a rule that a row cannot hold */
#define WALK_ASTRAY 5 /* a frame that does not lie above the one it called */
#define WALK_TOO_DEEP 6
#define WALK_ENDS 7

/* taken = counted + idle + every loss. */
struct cpu_sample_value {
	__u64 taken;
	__u64 idle; /* the idle task ran: no work to show */
	__u64 stacks_full;
	__u64 counts_full;
	__u64 walks[WALK_ENDS]; /* by how they ended, of the counted ones with a user stack */
};
_Static_assert(sizeof(struct cpu_sample_value) == 88, "Rust reads this layout");

/* Steps of the binary searches: a process has fewer than 2^12 mappings with code, a page fewer than 2^14 rows. */
#define MAPPING_STEPS 12
#define ROW_STEPS 14
#define UNWIND_ROWS 1048576
#define UNWIND_PAGES 65536
#define UNWIND_MAPPINGS 32768
#define UNWIND_PROCESSES 4096

/* A process whose mappings are known: entries `first` to `first + count` of `mappings`, in order of address. */
struct unwind_process {
	__u64 start_code; /* together what exec changes */
	__u64 start_stack;
	__u64 used_ns; /* when it was last sampled, CLOCK_MONOTONIC */
	__u32 first;
	__u32 count;
};
_Static_assert(sizeof(struct unwind_process) == 32, "Rust writes this layout");

/* Code in memory. An address belongs to page (address - bias) >> 16 of its file's; without pages there is no table. */
struct unwind_mapping {
	__u64 start;
	__u64 end;
	__u64 bias;
	__u32 first_page;
	__u32 page_count;
};
_Static_assert(sizeof(struct unwind_mapping) == 32, "Rust writes this layout");

/* 64 KiB of code: rows `first` to `first + count`. */
struct unwind_page {
	__u32 first;
	__u32 count;
};
_Static_assert(sizeof(struct unwind_page) == 8, "Rust writes this layout");

/* The caller's frame from `address` on: CFA is what the stack pointer was before the call. */
struct unwind_row {
	__u16 address; /* low 16 bits */
	__u8 cfa; /* CFA_… */
	__u8 rbp; /* RBP_… */
	__u16 cfa_words; /* 8 bytes each; signed where rbp is the base of a read */
	__s16 rbp_words;
};
_Static_assert(sizeof(struct unwind_row) == 8, "Rust writes this layout");

#define CFA_NONE 0 /* no function has this address */
#define CFA_ROOT 1
#define CFA_UNEXPRESSED 2
#define CFA_RSP 3 /* rsp + words */
#define CFA_RBP 4 /* rbp + words */
#define CFA_PLT 5 /* rsp + 1 word, and one more from byte `cfa_words` of the entry on */
#define CFA_SIGNAL 6 /* what the kernel saved of the interrupted code */
#define CFA_AT_RSP 7 /* *(rsp + words) + 1 word */
#define CFA_AT_RBP 8 /* *(rbp + words) */
#define CFA_RAX 9 /* a register of the leaf + words */
#define CFA_R10 10
#define CFA_R11 11
#define CFA_OTHER_STACK 12 /* rbp + words, wherever that is; without rbp nobody called */

#define RBP_KEPT 0
#define RBP_AT_CFA 1 /* *(CFA + words) */
#define RBP_AT_RBP 2 /* *(rbp + words) */
#define RBP_LOST 3

/* The programs of a walk, in the map that leads from each to the next. */
#define PROGRAM_NATIVE 0
#define PROGRAM_JAVA_TOP 1 /* what was about to run, and a caller of code without a frame */
#define PROGRAM_JAVA 2
#define PROGRAMS 3

/* In `first_page` of a mapping: code that a JVM made, which `hotspot` describes. */
#define MAPPING_HOTSPOT 0xffffffffu

/* Frames that are no mere addresses. Compiled code has the number of its compilation, since its place is used again;
 * of an interpreted method it is the method's address. */
#define FRAME_COMPILED (1ULL << 63)
#define FRAME_INTERPRETED (1ULL << 62)
#define FRAME_ADDRESS_BITS 48
#define FRAME_COMPILATION_MASK 0x3fff

#define HOTSPOT_PROCESSES 512
#define HOTSPOT_HEAPS 4

/* Where a JVM puts code: in segments, of which each has a byte that says how far back its block begins. */
struct hotspot_heap {
	__u64 low;
	__u64 high;
	__u64 segment_map;
	__u32 segment_shift;
	__u32 _pad;
};
_Static_assert(sizeof(struct hotspot_heap) == 32, "Rust writes this layout");

/* What the walk needs to know of a JVM; the numbers below the addresses are sizes and offsets in its structures. */
struct hotspot {
	struct hotspot_heap heaps[HOTSPOT_HEAPS];
	__u64 code_low; /* the bounds of all heaps */
	__u64 code_high;
	__u64 interpreter_low;
	__u64 interpreter_high;
	__u64 call_stub_return; /* where Java returns to the C++ that called it */
	__u16 block_header;
	__u16 blob_name;
	__u16 frame_size;
	__u16 frame_complete;
	__u16 code_begin;
	__u16 compile_id;
	__u16 orig_pc_offset;
	__u16 deopt_handlers[2];
	__u16 const_method;
	__u16 code_size;
	__u16 const_method_bytes;
	__u16 bcp_slot; /* below rbp */
	__u8 is_code_relative; /* code_begin is an offset from the blob, of 4 bytes, and no address */
	__u8 is_deopt_relative; /* so are deopt_handlers */
	__u8 is_complete_short; /* frame_complete has 2 bytes */
	__u8 _pad[3];
};
_Static_assert(sizeof(struct hotspot) == 200, "Rust writes this layout");

#endif
