/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP segments that were sent again, and why.
 * Hooks: tcp_retransmit_skb, tcp_retransmit_synack. Key: cgroup of the socket, and reason.
 */
#include "probe.h"
#include "socket.h"
#include "by_cgroup.h"
#include "tcp_retransmit.h"

/* TCP_CA_*: part of the kernel's user ABI. */
#define CA_RECOVERY 3
#define CA_LOSS 4

/* Bound: the loader's container_max for each reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 2560);
	__type(key, struct tcp_retransmit_key);
	__type(value, __u64);
} retransmits SEC(".maps");

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

static __always_inline int retransmitted(struct sock *sk, struct sk_buff *skb)
{
	struct tcp_retransmit_key key = { .cgroup_id = socket_cgroup_id(sk), .reason = reason_of(sk) };

	count_by_cgroup(&retransmits, &key, segments_of(skb));
	return 0;
}

/* Since 6.18, where a segment that could not be sent comes here too. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb_with_error, struct sock *sk, struct sk_buff *skb, int error)
{
	return error ? 0 : retransmitted(sk, skb);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb, struct sock *sk, struct sk_buff *skb)
{
	return retransmitted(sk, skb);
}

/* The connection is a mere request yet; the socket is the one that listens. */
SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(tcp_retransmit_synack, struct sock *sk)
{
	struct tcp_retransmit_key key = { .cgroup_id = socket_cgroup_id(sk), .reason = REASON_SYNACK };

	count_by_cgroup(&retransmits, &key, 1);
	return 0;
}
