/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP segments that were sent again, and why.
 * Hooks: tcp_retransmit_skb, tcp_retransmit_synack; for events kfree_skb, which tells of segments that were lost here.
 * Keys: cgroup of the socket, and reason; flow and sequence number.
 */
#include "probe.h"
#include "read_flow.h"
#include "by_cgroup.h"
#include "ring.h"
#include "tcp_retransmit.h"

/* TCP_CA_*: part of the kernel's user ABI. */
#define CA_RECOVERY 3
#define CA_LOSS 4

#define TCP_FIN_OR_SYN 0x03

/* Bound: the loader's container_max for each reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 2560);
	__type(key, struct tcp_retransmit_key);
	__type(value, __u64);
} retransmits SEC(".maps");

struct segment_drop {
	struct flow flow;
	__u32 seq;
	__u32 reason;
	__u64 ns;
	__u64 location;
};

/*
 * Segments that this kernel dropped, on any of its devices and in any of its namespaces: a place for each flow and
 * number, which the next one that falls on it takes. Two CPUs may write the same place at once (racy on purpose: a
 * flood of drops must stay cheap), and a later match then names the reason of the other.
 */
#define DROPS_BITS 10
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << DROPS_BITS);
	__type(key, __u32);
	__type(value, struct segment_drop);
} segment_drops SEC(".maps");

static __always_inline struct segment_drop *place_of_drop(struct flow *flow, __u32 seq)
{
	__u32 ports = (__u32)flow->source_port << 16 | flow->destination_port;
	/* Multipliers of MurmurHash3, whose upper bits depend on all bits. */
	__u32 place = (seq * 0xcc9e2d51 ^ (ports ^ flow->destination[0]) * 0x1b873593) >> (32 - DROPS_BITS);

	return bpf_map_lookup_elem(&segment_drops, &place);
}

static __always_inline bool is_same_flow(struct flow *one, struct flow *other)
{
	__u32 *left = (void *)one, *right = (void *)other, difference = 0;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < sizeof(*one) / sizeof(__u32); i++)
		difference |= left[i] ^ right[i];
	return !difference;
}

static __always_inline __u64 reason_of(struct sock *sk)
{
	struct inet_connection_sock *connection = (void *)sk;
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (state == STATE_SYN_SENT)
		return REASON_SYN;
	if (state == STATE_SYN_RECV)
		return REASON_SYNACK;
	__u8 phase = BPF_CORE_READ_BITFIELD_PROBED(connection, icsk_ca_state);
	if (phase == CA_LOSS)
		return REASON_RTO;
	/* Outside of both, only a loss probe sends again what was sent. */
	return phase == CA_RECOVERY ? REASON_FAST : REASON_TLP;
}

/* One buffer may hold several segments, as TcpRetransSegs counts them. */
static __always_inline __u64 segments_of(struct sk_buff *skb)
{
	struct tcp_skb_cb *control = (void *)skb + bpf_core_field_offset(skb->cb);
	__u16 segments = BPF_CORE_READ(control, tcp_gso_segs);

	return segments ? segments : 1;
}

static __always_inline void fill_drop(struct tcp_retransmit_record *record)
{
	struct segment_drop *drop = place_of_drop(&record->flow, record->seq);

	record->drop_age_ns = UNKNOWN_U64;
	record->drop_location = 0;
	record->drop_reason = 0;
	if (!drop || drop->seq != record->seq || !is_same_flow(&drop->flow, &record->flow))
		return;
	record->drop_age_ns = bpf_ktime_get_ns() - drop->ns;
	record->drop_location = drop->location;
	record->drop_reason = drop->reason;
}

static __always_inline void fill_connection(struct tcp_retransmit_record *record, struct tcp_sock *tcp)
{
	__u32 srtt_us = BPF_CORE_READ(tcp, srtt_us) >> 3;

	record->rtt_ns = srtt_us ? srtt_us * 1000ULL : UNKNOWN_U64;
	record->in_flight = BPF_CORE_READ(tcp, packets_out) - BPF_CORE_READ(tcp, sacked_out) -
			    BPF_CORE_READ(tcp, lost_out) + BPF_CORE_READ(tcp, retrans_out);
}

static __always_inline void tell(void *context, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_skb_cb *control = (void *)skb + bpf_core_field_offset(skb->cb);
	struct tcp_retransmit_record *record = ring_reserve_fact(sizeof(*record), known_cgroup_id(sk));

	if (!record)
		return;
	record->user.stack_bytes = 0;
	if (is_used_by_current(sk)) {
		header_current_task(&record->header);
		take_user_stack(context, &record->user);
	}
	header_kernel_stack(context, &record->header);
	record->reason = reason_of(sk);
	record->state = BPF_CORE_READ(sk, __sk_common.skc_state);
	record->seq = BPF_CORE_READ(control, seq);
	record->segments = segments_of(skb);
	fill_connection(record, (struct tcp_sock *)sk);
	flow_of_socket(&record->flow, sk);
	fill_drop(record);
	bpf_ringbuf_submit(record, 0);
}

static __always_inline int retransmitted(void *context, struct sock *sk, struct sk_buff *skb)
{
	if (want_metrics) {
		struct tcp_retransmit_key key = { .cgroup_id = socket_cgroup_id(sk), .reason = reason_of(sk) };
		count_by_cgroup(&retransmits, &key, segments_of(skb));
	}
	if (want_events)
		tell(context, sk, skb);
	return 0;
}

/* A request knows neither the sequence number of its answer's buffer nor a round trip: it has no buffer to ask. */
static __always_inline void tell_synack(void *context, struct sock *listener, struct request_sock *request)
{
	struct tcp_retransmit_record *record = ring_reserve_fact(sizeof(*record), known_cgroup_id(listener));

	if (!record)
		return;
	record->user.stack_bytes = 0;
	header_kernel_stack(context, &record->header);
	record->reason = REASON_SYNACK;
	record->state = STATE_NEW_SYN_RECV;
	record->seq = BPF_CORE_READ((struct tcp_request_sock *)request, snt_isn);
	record->segments = 1;
	record->in_flight = 0;
	record->rtt_ns = UNKNOWN_U64;
	flow_of_socket(&record->flow, (struct sock *)request);
	fill_drop(record);
	bpf_ringbuf_submit(record, 0);
}

/* Since 6.18, where a segment that could not be sent comes here too. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb_with_error, struct sock *sk, struct sk_buff *skb, int error)
{
	return error ? 0 : retransmitted(ctx, sk, skb);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb, struct sock *sk, struct sk_buff *skb)
{
	return retransmitted(ctx, sk, skb);
}

/* The connection is a mere request yet; the socket is the one that listens. */
SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(tcp_retransmit_synack, struct sock *sk, struct request_sock *request)
{
	if (want_metrics) {
		struct tcp_retransmit_key key = { .cgroup_id = socket_cgroup_id(sk), .reason = REASON_SYNACK };
		count_by_cgroup(&retransmits, &key, 1);
	}
	if (want_events)
		tell_synack(ctx, sk, request);
	return 0;
}

/* The first part of a TCP header. */
struct tcp_header {
	__be16 ports[2];
	__be32 seq;
	__be32 ack_seq;
	__u8 data_offset; /* in words, upper half */
	__u8 flags;
};

/* An acknowledgement has the number of the segment that comes next; it is none itself. */
static __always_inline bool has_number(struct sk_buff *skb, struct packet *packet, struct tcp_header *header)
{
	unsigned char *end = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, tail);
	__s32 bytes = end - packet->transport + BPF_CORE_READ(skb, data_len);

	return header->flags & TCP_FIN_OR_SYN || bytes > (header->data_offset >> 4) * 4;
}

/* Some drivers free so what they have sent. */
static __always_inline bool is_unspecified(__u32 reason)
{
	if (!bpf_core_enum_value_exists(enum skb_drop_reason, SKB_DROP_REASON_NOT_SPECIFIED))
		return false;
	return reason == bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_NOT_SPECIFIED);
}

/* With a reason since 5.17 (c504e5c2f964): without one, no drop can be told from the end of what was delivered. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb_with_reason, struct sk_buff *skb, void *location, __u32 reason)
{
	struct tcp_header header = {};
	struct packet packet = {};
	struct flow flow;

	if (is_unspecified(reason))
		return 0;
	read_packet(skb, &packet);
	if (!packet.transport || packet.protocol != PROTOCOL_TCP)
		return 0;
	bpf_probe_read_kernel(&header, sizeof(header), packet.transport);
	if (!has_number(skb, &packet, &header))
		return 0;
	flow_of_packet(&flow, &packet);
	struct segment_drop *drop = place_of_drop(&flow, __builtin_bswap32(header.seq));
	if (!drop)
		return 0;
	drop->flow = flow;
	drop->seq = __builtin_bswap32(header.seq);
	drop->reason = reason;
	drop->ns = bpf_ktime_get_ns();
	drop->location = (__u64)location;
	return 0;
}
