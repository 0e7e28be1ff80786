/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * System calls that wait to send, and data that waits for the system call that receives it.
 * Hooks: beginning and end of each call, as tracepoints of their own: other system calls run no program. Key: task.
 */
#include "probe.h"
#include "compat.h"
#include "read_flow.h"
#include "receive_queue.h"
#include "limited.h"
#include "ring.h"
#include "socket_wait.h"
#include "user_message.h"

/* Of the user ABI. */
#define TYPE_STREAM 1
#define TYPE_DATAGRAM 2
#define MSG_OOB 0x1
#define MSG_PEEK 0x2
#define MSG_ERRQUEUE 0x2000
#define ERRNO_EINTR 4
/* Numbers of the kernel's own from here on: a signal came, and the call begins again or fails with EINTR. */
#define ERRNO_RESTART 512

/* Tasks in a call that sends. Over the bound, a call is not told. */
struct send {
	__u64 begin_ns;
	__u64 sk;
	__u64 data; /* the bytes, or the vector or the message that has them */
	__u64 count; /* of bytes, of parts, or of messages */
	__u64 name; /* of the receiver, where sendto has one */
	__u64 rwnd_limited_ns; /* before the call */
	__u64 sndbuf_limited_ns;
	__u32 call;
	__u32 is_tcp;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct send);
} sends SEC(".maps");

/* Tasks in a call that receives what has waited for too long. */
struct receive {
	__u64 begin_ns;
	__u64 waited_ns;
	__u64 sk;
	__u64 data;
	__u64 count;
	__u64 queue_bytes;
	__u32 call;
	__u32 is_tcp;
	struct flow flow;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct receive);
} receives SEC(".maps");

/* What tracepoints of system calls tell: user ABI. */
struct call_begins {
	__u64 common;
	__s32 number;
	__u32 _pad;
	__u64 arguments[6];
};

struct call_ends {
	__u64 common;
	__s32 number;
	__u32 _pad;
	__s64 result;
};

/* A socket of TCP or UDP over IP, and not a raw one. */
static __always_inline bool is_ours(struct sock *sk, bool *is_tcp)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family), type = BPF_CORE_READ(sk, sk_type);
	__u16 protocol = BPF_CORE_READ(sk, sk_protocol);

	*is_tcp = protocol == PROTOCOL_TCP;
	return (family == FAMILY_IPV4 || family == FAMILY_IPV6) &&
	       ((type == TYPE_STREAM && *is_tcp) || (type == TYPE_DATAGRAM && protocol == PROTOCOL_UDP));
}

/* As Send-Q of `ss`: bytes that the peer of TCP has not confirmed, memory that datagrams take until the device has
 * them. */
static __always_inline __u64 send_queue_bytes(struct sock *sk, bool is_tcp)
{
	struct tcp_sock *tcp = (void *)sk;

	if (is_tcp)
		return (__u32)(BPF_CORE_READ(tcp, write_seq) - BPF_CORE_READ(tcp, snd_una));
	/* One more than it is, for the socket itself while it is open. */
	return (__s64)BPF_CORE_READ(sk, sk_wmem_alloc.refs.counter) - 1;
}

static __always_inline __u64 current_cgroup_id(void)
{
	return read_task_cgroup_id((struct task_struct *)bpf_get_current_task(), cpu_cgrp_id);
}

static __always_inline void fill(void *context, struct socket_wait_record *record, struct sock *sk, __u32 call,
				 bool is_tcp)
{
	header_current_task(&record->header);
	take_user_stack(context, &record->user);
	record->call = call;
	record->is_tcp = is_tcp;
	record->send_queue_bytes = send_queue_bytes(sk, is_tcp);
	record->send_buffer_bytes = BPF_CORE_READ(sk, sk_sndbuf);
	record->receive_buffer_bytes = BPF_CORE_READ(sk, sk_rcvbuf);
}

static __always_inline void fill_result(struct socket_wait_record *record, __u64 data, __s64 result)
{
	bool has_messages = record->call == CALL_SENDMMSG || record->call == CALL_RECVMMSG;

	record->error = record->messages = 0;
	record->moved_bytes = UNKNOWN_U64;
	if (result < 0) {
		record->error = -result < ERRNO_RESTART ? -result : ERRNO_EINTR;
	} else if (has_messages) {
		record->messages = result;
		record->moved_bytes = messages_bytes(data, result);
	} else {
		record->moved_bytes = result;
	}
}

/* A socket of datagrams need have no peer: each message names its own. */
static __always_inline void fill_peer(struct flow *flow, struct send *send)
{
	struct {
		__u16 family;
		__be16 port;
		__u32 ipv4; /* of IPv6 the flow label */
		__u32 ipv6[4];
	} name = {};
	__u64 from = send->name;

	if (send->call == CALL_SENDMSG || send->call == CALL_SENDMMSG)
		bpf_probe_read_user(&from, sizeof(from), (void *)send->data);
	if (!from || flow->destination_port)
		return;
	/* A name of IPv4 may end where the memory does. */
	bpf_probe_read_user(&name, 8, (void *)from);
	flow->destination_port = __builtin_bswap16(name.port);
	if (name.family == FAMILY_IPV4) {
		flow->ip_version = 4;
		flow->destination[0] = name.ipv4;
	} else if (name.family == FAMILY_IPV6) {
		bpf_probe_read_user(flow->destination, sizeof(flow->destination), (void *)from + 8);
		unmap_ipv4(flow);
	}
}

static __always_inline void tell_send(struct call_ends *context, struct send *send, __u64 call_ns)
{
	struct socket_wait_record *record = ring_reserve(sizeof(*record), current_cgroup_id(), THRESHOLD_SEND, call_ns);
	struct sock *sk = (void *)send->sk;
	struct tcp_sock *tcp = (void *)sk;

	if (!record)
		return;
	fill(context, record, sk, send->call, send->is_tcp);
	record->call_ns = call_ns;
	record->asked_bytes = asked_bytes(send->call, send->data, send->count);
	fill_result(record, send->data, context->result);
	record->receive_queue_bytes = receive_queue_bytes(sk);
	record->rwnd_limited_ns = record->sndbuf_limited_ns = UNKNOWN_U64;
	flow_of_socket(&record->flow, sk);
	if (send->is_tcp) {
		record->rwnd_limited_ns = limited_ns(tcp, CHRONO_RWND_LIMITED) - send->rwnd_limited_ns;
		record->sndbuf_limited_ns = limited_ns(tcp, CHRONO_SNDBUF_LIMITED) - send->sndbuf_limited_ns;
	} else {
		fill_peer(&record->flow, send);
	}
	bpf_ringbuf_submit(record, 0);
}

static __always_inline int send_begins(struct call_begins *context, __u32 call, __u64 name)
{
	struct sock *sk = current_socket(context->arguments[0]);
	__u32 tid = bpf_get_current_pid_tgid();
	bool is_tcp;

	if (!sk || !is_ours(sk, &is_tcp))
		return 0;
	struct tcp_sock *tcp = (void *)sk;
	struct send send = {
		.begin_ns = bpf_ktime_get_ns(),
		.sk = (__u64)sk,
		.data = context->arguments[1],
		.count = context->arguments[2],
		.name = name,
		.call = call,
		.is_tcp = is_tcp,
	};
	if (is_tcp) {
		send.rwnd_limited_ns = limited_ns(tcp, CHRONO_RWND_LIMITED);
		send.sndbuf_limited_ns = limited_ns(tcp, CHRONO_SNDBUF_LIMITED);
	}
	bpf_map_update_elem(&sends, &tid, &send, BPF_ANY);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_write")
int write_begins(struct call_begins *context)
{
	return send_begins(context, CALL_WRITE, 0);
}

SEC("tracepoint/syscalls/sys_enter_writev")
int writev_begins(struct call_begins *context)
{
	return send_begins(context, CALL_WRITEV, 0);
}

SEC("tracepoint/syscalls/sys_enter_sendto")
int sendto_begins(struct call_begins *context)
{
	return send_begins(context, CALL_SENDTO, context->arguments[4]);
}

SEC("tracepoint/syscalls/sys_enter_sendmsg")
int sendmsg_begins(struct call_begins *context)
{
	return send_begins(context, CALL_SENDMSG, 0);
}

SEC("tracepoint/syscalls/sys_enter_sendmmsg")
int sendmmsg_begins(struct call_begins *context)
{
	return send_begins(context, CALL_SENDMMSG, 0);
}

SEC("tracepoint/syscalls/sys_exit_sendto")
int send_ends(struct call_ends *context)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct send *send = bpf_map_lookup_elem(&sends, &tid);

	if (!send)
		return 0;
	__u64 call_ns = bpf_ktime_get_ns() - send->begin_ns;
	if (may_tell(THRESHOLD_SEND, call_ns))
		tell_send(context, send, call_ns);
	bpf_map_delete_elem(&sends, &tid);
	return 0;
}

static __always_inline int receive_begins(struct call_begins *context, __u32 call, __u64 flags)
{
	struct sock *sk = flags & (MSG_OOB | MSG_PEEK | MSG_ERRQUEUE) ? NULL : current_socket(context->arguments[0]);
	struct packet packet = {};
	bool is_tcp;

	if (!sk || !is_ours(sk, &is_tcp))
		return 0;
	struct sk_buff *first = first_to_read(sk, is_tcp ? PROTOCOL_TCP : PROTOCOL_UDP);
	if (!first)
		return 0;
	__u64 waited_ns = age_of(first);
	if (!may_tell(THRESHOLD_RECEIVE, waited_ns) || is_begun(first, sk))
		return 0;
	struct receive receive = {
		.begin_ns = bpf_ktime_get_ns(),
		.waited_ns = waited_ns,
		.sk = (__u64)sk,
		.data = context->arguments[1],
		.count = context->arguments[2],
		.queue_bytes = receive_queue_bytes(sk),
		.call = call,
		.is_tcp = is_tcp,
	};
	read_packet(first, &packet);
	flow_of_packet(&receive.flow, &packet);
	__u32 tid = bpf_get_current_pid_tgid();
	bpf_map_update_elem(&receives, &tid, &receive, BPF_ANY);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_read")
int read_begins(struct call_begins *context)
{
	return receive_begins(context, CALL_READ, 0);
}

SEC("tracepoint/syscalls/sys_enter_readv")
int readv_begins(struct call_begins *context)
{
	return receive_begins(context, CALL_READV, 0);
}

SEC("tracepoint/syscalls/sys_enter_recvfrom")
int recvfrom_begins(struct call_begins *context)
{
	return receive_begins(context, CALL_RECVFROM, context->arguments[3]);
}

SEC("tracepoint/syscalls/sys_enter_recvmsg")
int recvmsg_begins(struct call_begins *context)
{
	return receive_begins(context, CALL_RECVMSG, context->arguments[2]);
}

SEC("tracepoint/syscalls/sys_enter_recvmmsg")
int recvmmsg_begins(struct call_begins *context)
{
	return receive_begins(context, CALL_RECVMMSG, context->arguments[3]);
}

static __always_inline void tell_receive(struct call_ends *context, struct receive *receive)
{
	struct socket_wait_record *record =
		ring_reserve(sizeof(*record), current_cgroup_id(), THRESHOLD_RECEIVE, receive->waited_ns);

	if (!record)
		return;
	fill(context, record, (struct sock *)receive->sk, receive->call, receive->is_tcp);
	record->call_ns = bpf_ktime_get_ns() - receive->begin_ns;
	record->asked_bytes = asked_bytes(receive->call, receive->data, receive->count);
	fill_result(record, receive->data, context->result);
	record->receive_queue_bytes = receive->queue_bytes;
	record->rwnd_limited_ns = record->sndbuf_limited_ns = UNKNOWN_U64;
	record->flow = receive->flow;
	bpf_ringbuf_submit(record, 0);
}

SEC("tracepoint/syscalls/sys_exit_recvfrom")
int receive_ends(struct call_ends *context)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct receive *receive = bpf_map_lookup_elem(&receives, &tid);

	if (!receive)
		return 0;
	/* Of a stream, nothing is its end; a datagram may be empty. */
	if (context->result > 0 || (!context->result && !receive->is_tcp))
		tell_receive(context, receive);
	bpf_map_delete_elem(&receives, &tid);
	return 0;
}
