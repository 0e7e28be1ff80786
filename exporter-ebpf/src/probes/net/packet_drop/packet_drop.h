/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_PACKET_DROP_H
#define KPULSE_PACKET_DROP_H

#include "record.h"
#include "flow.h"

/* Reasons of the kernel's core have numbers below this; larger ones belong to a subsystem. */
#define REASONS_MAX 512
/* Series of one container: a margin, since it meets few of the reasons. */
#define SERIES_OF_ONE 8
/* Functions whose drops are normal life, for kernels that give no reason. */
#define NORMAL_RANGES 16

/* What a drop for a reason is worth; the loader fills the table by name. */
#define WORTH_EVENT 0
#define WORTH_COUNT 1
#define WORTH_EVENT_UNLESS_TCP 2

struct packet_drop_key {
	__u64 cgroup_id; /* of the socket; 0 for what found no room */
	__u64 location; /* 0 where the kernel gives a reason */
	__u32 reason;
	__u16 ethertype;
	__u8 protocol; /* IPPROTO_*, of IPv4 and IPv6 */
	__u8 _pad;
};
_Static_assert(sizeof(struct packet_drop_key) == 24, "Rust reads this layout");

/* A kernel function, [start, end). */
struct packet_drop_range {
	__u64 start;
	__u64 end;
};
_Static_assert(sizeof(struct packet_drop_range) == 16, "Rust reads this layout");

/* Tests in one filter. */
#define FILTER_STEPS 64
/* In place of the next step: the packet makes an event, or none. */
#define FILTER_KEEP 254
#define FILTER_SKIP 255
/* What a step compares: which ends of a packet's way, of which any may fit, or the device. */
#define FILTER_SOURCE 0
#define FILTER_DESTINATION 1
#define FILTER_DEVICE 2
#define FILTER_ENDS 3
/* The word behind an address or a name: the protocol, and further up the version of IP and whether there are ports. */
#define FILTER_WORDS 5
#define FILTER_VERSION_SHIFT 8
#define FILTER_HAS_PORTS 0x10000

/* One test, and the step that follows it. */
struct packet_drop_step {
	__u32 mask[FILTER_WORDS];
	__u32 value[FILTER_WORDS]; /* what the mask leaves; addresses are as in struct flow */
	__u16 first_port;
	__u16 last_port;
	__u8 ends; /* a bit for each */
	__u8 _pad;
	__u8 next[2]; /* where it does not fit, and where it does */
};
_Static_assert(sizeof(struct packet_drop_step) == 48, "Rust writes this layout");

struct packet_drop_filter {
	struct packet_drop_step steps[FILTER_STEPS];
	__u32 first;
	__u32 reads_device;
};
_Static_assert(sizeof(struct packet_drop_filter) == 3080, "Rust writes this layout");

struct packet_drop_record {
	struct record_header header; /* the task on the CPU, which need not be the packet's */
	struct user_stack user;
	__u64 location;
	__u32 reason;
	__u32 has_reason;
	__u32 length;
	__u32 device;
	__u32 netns;
	__u32 tcp_seq;
	__u32 is_incoming;
	__u16 ethertype;
	__u8 protocol;
	__u8 tcp_flags;
	struct flow flow;
	__u8 device_name[16];
};
_Static_assert(sizeof(struct packet_drop_record) == 704, "Rust reads this layout");

#endif
