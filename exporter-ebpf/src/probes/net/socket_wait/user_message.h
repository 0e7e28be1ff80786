/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a system call was given and has moved, where only the memory of its task tells. The layouts are user ABI. */
#ifndef KPULSE_USER_MESSAGE_H
#define KPULSE_USER_MESSAGE_H

#include "socket_wait.h"

/* Parts of a vector, or messages, that are looked at. */
#define PARTS 64

struct user_part {
	__u64 base;
	__u64 bytes;
};

struct user_message {
	__u64 name;
	__u64 name_bytes;
	__u64 parts;
	__u64 count;
	__u64 control[3];
};

struct user_messages {
	struct user_message message;
	__u32 bytes;
	__u32 _pad;
};

static __always_inline __u64 vector_bytes(__u64 parts, __u64 count)
{
	struct user_part part;
	__u64 bytes = 0;

	if (count > PARTS)
		return UNKNOWN_U64;
	for (__u32 index = 0; index < PARTS; index++) {
		if (index >= count)
			break;
		if (bpf_probe_read_user(&part, sizeof(part), (void *)(parts + index * sizeof(part))))
			return UNKNOWN_U64;
		bytes += part.bytes;
	}
	return bytes;
}

static __always_inline __u64 asked_bytes(__u32 call, __u64 data, __u64 count)
{
	struct user_message message = {};

	switch (call) {
	case CALL_WRITE:
	case CALL_SENDTO:
	case CALL_READ:
	case CALL_RECVFROM:
		return count;
	case CALL_SENDMSG:
	case CALL_RECVMSG:
		if (bpf_probe_read_user(&message, sizeof(message), (void *)data))
			return UNKNOWN_U64;
		data = message.parts;
		count = message.count;
		/* fall through: a message has its bytes in a vector */
	case CALL_WRITEV:
	case CALL_READV:
		return vector_bytes(data, count);
	default:
		return UNKNOWN_U64;
	}
}

/* What the messages say that a call has moved, which returns their number. */
static __always_inline __u64 messages_bytes(__u64 messages, __u64 count)
{
	struct user_messages *message = (void *)messages;
	__u64 bytes = 0;
	__u32 part;

	if (count > PARTS)
		return UNKNOWN_U64;
	for (__u32 index = 0; index < PARTS; index++) {
		if (index >= count)
			break;
		if (bpf_probe_read_user(&part, sizeof(part), &message[index].bytes))
			return UNKNOWN_U64;
		bytes += part;
	}
	return bytes;
}

#endif
