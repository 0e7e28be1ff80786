/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What waits in a socket for its reader, and since when: the kernel stamps each packet while somebody holds a socket
 * that asks for it, as Stamps of stamps.rs does. No table is needed.
 */
#ifndef KPULSE_RECEIVE_QUEUE_H
#define KPULSE_RECEIVE_QUEUE_H

#include "socket.h"
#include "record.h"

/* A stamp older than this is of another clock, or the clock was set. */
#define AGE_MAX_NS 3600000000000ULL

/* CLOCK_REALTIME, which stamps are of, minus CLOCK_MONOTONIC. User space keeps it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} real_offset SEC(".maps");

/* How long ago a packet came from its device; UNKNOWN_U64 without a usable stamp. */
static __always_inline __u64 age_of(struct sk_buff *skb)
{
	__u64 stamp = BPF_CORE_READ(skb, tstamp);
	__u32 zero = 0;
	__u64 *offset = bpf_map_lookup_elem(&real_offset, &zero);
	__u64 age_ns = offset ? bpf_ktime_get_ns() + *offset - stamp : 0;

	return age_ns && age_ns < AGE_MAX_NS ? age_ns : UNKNOWN_U64;
}

/* As Recv-Q of `ss`: bytes that TCP has for the reader, memory that datagrams take. */
static __always_inline __u64 receive_queue_bytes(struct sock *sk)
{
	if (!sk || !is_full_socket(sk))
		return UNKNOWN_U64;
	if (is_tcp(sk)) {
		struct tcp_sock *tcp = (void *)sk;
		return (__u32)(BPF_CORE_READ(tcp, rcv_nxt) - BPF_CORE_READ(tcp, copied_seq));
	}
	struct udp_sock *udp = (void *)sk;
	__s32 bytes = BPF_CORE_READ(sk, sk_backlog.rmem_alloc.counter) - BPF_CORE_READ(udp, forward_deficit);
	return bytes > 0 ? bytes : 0;
}

/* Copies after the first begin behind the segment's own number: what is read piecemeal waited once. */
static __always_inline bool is_begun(struct sk_buff *skb, struct sock *sk)
{
	struct tcp_skb_cb *control = (void *)skb + bpf_core_field_offset(skb->cb);
	struct tcp_sock *tcp = (void *)sk;

	if (!sk || !is_tcp(sk))
		return false;
	return (__s32)(BPF_CORE_READ(tcp, copied_seq) - BPF_CORE_READ(control, seq)) > 0;
}

/* The first of a queue; NULL when it is empty and its head points to itself. */
static __always_inline struct sk_buff *first_of(struct sk_buff_head *queue)
{
	struct sk_buff *first = BPF_CORE_READ(queue, next);

	return (void *)first == (void *)queue ? NULL : first;
}

/* What the next reader of a socket of TCP or UDP gets first; NULL when it has to wait. */
static __always_inline struct sk_buff *first_to_read(struct sock *sk, __u16 protocol)
{
	struct sk_buff *first = NULL;

	if (protocol == PROTOCOL_UDP)
		first = first_of((void *)sk + bpf_core_field_offset(struct udp_sock, reader_queue));
	return first ? first : first_of((void *)sk + bpf_core_field_offset(struct sock, sk_receive_queue));
}

#endif
