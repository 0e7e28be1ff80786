/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Time of packets from the device to their socket and to the program that reads it, by the kernel's stamps.
 * Hooks: tcp_probe, skb_copy_datagram_iovec, sys_enter. Key: cgroup of the socket or of the reader, and path.
 */
#include "probe.h"
#include "compat.h"
#include "losses.h"
#include "read_flow.h"
#include "receive_queue.h"
#include "by_cgroup.h"
#include "ring.h"
#include "receive.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1536);
	__type(key, struct receive_key);
	__type(value, struct histogram);
} latency SEC(".maps");

static __always_inline void count(__u64 path, __u64 cgroup_id, __u64 age_ns)
{
	struct receive_key key = { .cgroup_id = cgroup_id, .path = path };

	if (age_ns != UNKNOWN_U64)
		time_by_cgroup(&latency, &key, age_ns);
	else
		lose(1);
}

struct arrival {
	struct sk_buff *skb;
	struct sock *sk;
	__u64 path;
	__u64 age_ns;
};

static __always_inline void tell(void *context, struct arrival *arrival, __u32 threshold, __u64 cgroup_id,
				 bool is_current)
{
	struct receive_record *record = ring_reserve(sizeof(*record), cgroup_id, threshold, arrival->age_ns);
	struct packet packet = {};

	if (!record)
		return;
	record->user.stack_bytes = 0;
	if (is_current) {
		header_current_task(&record->header);
		take_user_stack(context, &record->user);
	}
	header_kernel_stack(context, &record->header);
	record->path = arrival->path;
	record->queue_bytes = receive_queue_bytes(arrival->sk);
	read_packet(arrival->skb, &packet);
	flow_of_packet(&record->flow, &packet);
	bpf_ringbuf_submit(record, 0);
}

static __always_inline __u64 reader_cgroup_id(void)
{
	return read_task_cgroup_id((struct task_struct *)bpf_get_current_task(), cpu_cgrp_id);
}

SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_probe, struct sock *sk, struct sk_buff *skb)
{
	struct arrival arrival = { .skb = skb, .sk = sk, .path = TCP_TO_SOCKET, .age_ns = age_of(skb) };

	if (want_metrics)
		count(TCP_TO_SOCKET, socket_cgroup_id(sk), arrival.age_ns);
	if (may_tell(THRESHOLD_SOCKET, arrival.age_ns))
		tell(ctx, &arrival, THRESHOLD_SOCKET, known_cgroup_id(sk), is_used_by_current(sk));
	return 0;
}

static __always_inline bool carries_tcp(struct sk_buff *skb)
{
	__u16 ethertype = __builtin_bswap16(BPF_CORE_READ(skb, protocol));
	unsigned char *header = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header);
	__u8 protocol = 0;

	if (ethertype == ETHERTYPE_IPV4)
		bpf_probe_read_kernel(&protocol, 1, header + 9);
	else if (ethertype == ETHERTYPE_IPV6)
		bpf_probe_read_kernel(&protocol, 1, header + 6);
	return protocol == PROTOCOL_TCP;
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(skb_copy_datagram_iovec, struct sk_buff *skb)
{
	if (!carries_tcp(skb))
		return 0;
	struct sock *sk = BPF_CORE_READ(skb, sk);
	struct arrival arrival = { .skb = skb, .sk = sk, .path = TCP_TO_USER, .age_ns = age_of(skb) };
	__u64 cgroup_id = reader_cgroup_id();
	if (want_metrics)
		count(TCP_TO_USER, cgroup_id, arrival.age_ns);
	if (may_tell(THRESHOLD_USER, arrival.age_ns) && !is_begun(skb, sk))
		tell(ctx, &arrival, THRESHOLD_USER, cgroup_id, true);
	return 0;
}

/* Datagrams in a queue are read through no tracepoint that all kernels have: the oldest is looked at before. */
SEC("tp_btf/sys_enter")
int BPF_PROG(sys_enter, struct pt_regs *registers, long number)
{
	if (!is_receive(number))
		return 0;
	struct sock *sk = current_socket(first_argument(registers));
	if (!sk || BPF_CORE_READ(sk, sk_protocol) != PROTOCOL_UDP)
		return 0;
	struct sk_buff *first = first_to_read(sk, PROTOCOL_UDP);
	if (!first)
		return 0;
	struct arrival arrival = { .skb = first, .sk = sk, .path = UDP_TO_USER, .age_ns = age_of(first) };
	__u64 cgroup_id = reader_cgroup_id();
	if (want_metrics)
		count(UDP_TO_USER, cgroup_id, arrival.age_ns);
	if (may_tell(THRESHOLD_USER, arrival.age_ns))
		tell(ctx, &arrival, THRESHOLD_USER, cgroup_id, true);
	return 0;
}
