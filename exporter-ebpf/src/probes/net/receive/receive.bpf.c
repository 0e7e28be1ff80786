/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Time of packets from the device to their socket and to the program that reads it. The kernel stamps each packet
 * while somebody holds a socket that asks for it, as the loader of this probe does: no table is needed.
 * Hooks: tcp_probe, skb_copy_datagram_iovec, sys_enter. Key: cgroup of the socket or of the reader, and path.
 */
#include "probe.h"
#include "compat.h"
#include "losses.h"
#include "read_flow.h"
#include "by_cgroup.h"
#include "ring.h"
#include "receive.h"

#define MODE_TYPE 0170000
#define MODE_SOCKET 0140000
/* A stamp older than this is of another clock, or the clock was set. */
#define AGE_MAX_NS 3600000000000ULL

/* CLOCK_REALTIME, which stamps are of, minus CLOCK_MONOTONIC. User space keeps it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} real_offset SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1536);
	__type(key, struct receive_key);
	__type(value, struct histogram);
} latency SEC(".maps");

/* How long ago a packet came from its device; UNKNOWN_U64 without a usable stamp. */
static __always_inline __u64 age_of(struct sk_buff *skb)
{
	__u64 stamp = BPF_CORE_READ(skb, tstamp);
	__u32 zero = 0;
	__u64 *offset = bpf_map_lookup_elem(&real_offset, &zero);
	__u64 age_ns = offset ? bpf_ktime_get_ns() + *offset - stamp : 0;

	return age_ns && age_ns < AGE_MAX_NS ? age_ns : UNKNOWN_U64;
}

static __always_inline void count(__u64 path, __u64 cgroup_id, __u64 age_ns)
{
	struct receive_key key = { .cgroup_id = cgroup_id, .path = path };

	if (age_ns != UNKNOWN_U64)
		time_by_cgroup(&latency, &key, age_ns);
	else
		lose(1);
}

/* As Recv-Q of `ss`: bytes that TCP has for the reader, memory that datagrams take. */
static __always_inline __u64 queue_bytes(struct sock *sk)
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
	record->queue_bytes = queue_bytes(arrival->sk);
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

/* Copies after the first begin behind the segment's own number: what is read piecemeal waited once. */
static __always_inline bool is_begun(struct sk_buff *skb, struct sock *sk)
{
	struct tcp_skb_cb *control = (void *)skb + bpf_core_field_offset(skb->cb);
	struct tcp_sock *tcp = (void *)sk;

	if (!sk || !is_tcp(sk))
		return false;
	return (__s32)(BPF_CORE_READ(tcp, copied_seq) - BPF_CORE_READ(control, seq)) > 0;
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

/* The first of a queue; NULL when it is empty and its head points to itself. */
static __always_inline struct sk_buff *first_of(struct sk_buff_head *queue)
{
	struct sk_buff *first = BPF_CORE_READ(queue, next);

	return (void *)first == (void *)queue ? NULL : first;
}

/* Datagrams in a queue are read through no tracepoint that all kernels have: the oldest is looked at before. */
SEC("tp_btf/sys_enter")
int BPF_PROG(sys_enter, struct pt_regs *registers, long number)
{
	if (!is_receive(number))
		return 0;
	struct file *file = current_file(first_argument(registers));
	if ((BPF_CORE_READ(file, f_inode, i_mode) & MODE_TYPE) != MODE_SOCKET)
		return 0;
	struct socket *socket = BPF_CORE_READ(file, private_data);
	struct sock *sk = BPF_CORE_READ(socket, sk);
	if (BPF_CORE_READ(sk, sk_protocol) != PROTOCOL_UDP)
		return 0;
	struct sk_buff *first = first_of((void *)sk + bpf_core_field_offset(struct udp_sock, reader_queue));
	if (!first)
		first = first_of((void *)sk + bpf_core_field_offset(struct sock, sk_receive_queue));
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
