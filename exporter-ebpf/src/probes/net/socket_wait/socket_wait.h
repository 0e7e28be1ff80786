/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_SOCKET_WAIT_H
#define KPULSE_SOCKET_WAIT_H

#include "record.h"
#include "flow.h"

/* Thresholds of the event policy. */
#define THRESHOLD_SEND 0
#define THRESHOLD_RECEIVE 1

/* The system call. */
#define CALL_WRITE 0
#define CALL_WRITEV 1
#define CALL_SENDTO 2
#define CALL_SENDMSG 3
#define CALL_SENDMMSG 4
#define CALL_READ 5
#define CALL_READV 6
#define CALL_RECVFROM 7
#define CALL_RECVMSG 8
#define CALL_RECVMMSG 9

struct socket_wait_record {
	struct record_header header; /* the task whose call it is */
	struct user_stack user;
	__u64 call_ns; /* time from its beginning to its end */
	__u64 asked_bytes; /* UNKNOWN_U64 for several messages, or where the task's memory cannot be read */
	__u64 moved_bytes; /* UNKNOWN_U64 when the call failed */
	__u64 rwnd_limited_ns; /* of call_ns; UNKNOWN_U64 but for a sender of TCP */
	__u64 sndbuf_limited_ns;
	__u64 receive_queue_bytes; /* before a receiving call, behind a sending one */
	__u64 send_queue_bytes; /* behind the call; UNKNOWN_U64 when the socket was closed meanwhile */
	__u32 receive_buffer_bytes;
	__u32 send_buffer_bytes;
	__u32 call;
	__u32 error; /* errno; 0 = none */
	__u32 messages; /* of calls that move several; 0 for others */
	__u32 is_tcp;
	struct flow flow; /* in the direction of the data */
};
_Static_assert(sizeof(struct socket_wait_record) == 728, "Rust reads this layout");

#endif
