/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP connections that were reset, and by whom.
 * Hooks: tcp_send_reset, tcp_receive_reset. Key: cgroup of the socket, direction, and reason where the kernel has one.
 */
#include "probe.h"
#include "read_flow.h"
#include "by_cgroup.h"
#include "ring.h"
#include "value_or_new.h"
#include "tcp_reset.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tcp_reset_key);
	__type(value, __u64);
} resets SEC(".maps");

static __always_inline void count(struct sock *sk, __u32 direction, __u32 reason)
{
	struct tcp_reset_key key = {
		.cgroup_id = sk && is_full_socket(sk) ? socket_cgroup_id(sk) : HOST_CGROUP_ID,
		.direction = direction,
		.reason = reason,
	};

	__u64 nothing = 0;

	/* What finds no room is counted without its reason. */
	if (!value_or_new(&resets, &key, &nothing))
		key.reason = NO_REASON;
	count_by_cgroup(&resets, &key, 1);
}

/* `skb` is the segment that is answered, where there is one. */
static __always_inline void tell(void *context, struct sock *sk, struct sk_buff *skb, __u32 direction, __u32 reason)
{
	struct tcp_reset_record *record = ring_reserve_fact(sizeof(*record), known_cgroup_id(sk));
	struct packet packet = {};

	if (!record)
		return;
	record->user.stack_bytes = 0;
	if (is_used_by_current(sk)) {
		header_current_task(&record->header);
		take_user_stack(context, &record->user);
	}
	header_kernel_stack(context, &record->header);
	record->direction = direction;
	record->reason = reason;
	record->state = sk ? BPF_CORE_READ(sk, __sk_common.skc_state) : 0;
	record->_pad = 0;
	/* A socket that listens has no peer: the segment was for no connection of it. */
	if (sk && record->state != STATE_LISTEN) {
		flow_of_socket(&record->flow, sk);
	} else {
		if (skb)
			read_packet(skb, &packet);
		flow_of_answer(&record->flow, &packet);
	}
	bpf_ringbuf_submit(record, 0);
}

static __always_inline int reset(void *context, struct sock *sk, struct sk_buff *skb, __u32 direction, __u32 reason)
{
	if (want_metrics)
		count(sk, direction, reason);
	if (want_events)
		tell(context, sk, skb, direction, reason);
	return 0;
}

/* Since 6.10 (b533fb9cf4f7). */
SEC("tp_btf/tcp_send_reset")
int BPF_PROG(tcp_send_reset_with_reason, struct sock *sk, struct sk_buff *skb, __u32 reason)
{
	return reset(ctx, sk, skb, DIRECTION_SENT, reason);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(tcp_send_reset, struct sock *sk, struct sk_buff *skb)
{
	return reset(ctx, sk, skb, DIRECTION_SENT, NO_REASON);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_receive_reset, struct sock *sk)
{
	return reset(ctx, sk, NULL, DIRECTION_RECEIVED, NO_REASON);
}
