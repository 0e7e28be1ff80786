/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP connections that were reset, and by whom.
 * Hooks: tcp_send_reset, tcp_receive_reset. Key: cgroup of the socket, direction, and reason where the kernel has one.
 */
#include "probe.h"
#include "socket.h"
#include "by_cgroup.h"
#include "tcp_reset.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tcp_reset_key);
	__type(value, __u64);
} resets SEC(".maps");

static __always_inline int count(struct sock *sk, __u32 direction, __u32 reason)
{
	struct tcp_reset_key key = {
		.cgroup_id = sk && is_full_socket(sk) ? socket_cgroup_id(sk) : HOST_CGROUP_ID,
		.direction = direction,
		.reason = reason,
	};

	/* What finds no room is counted without its reason. */
	if (!bpf_map_lookup_elem(&resets, &key)) {
		__u64 nothing = 0;
		if (bpf_map_update_elem(&resets, &key, &nothing, BPF_NOEXIST) && !bpf_map_lookup_elem(&resets, &key))
			key.reason = NO_REASON;
	}
	count_by_cgroup(&resets, &key, 1);
	return 0;
}

/* Since 6.10 (b533fb9cf4f7). */
SEC("tp_btf/tcp_send_reset")
int BPF_PROG(tcp_send_reset_with_reason, struct sock *sk, struct sk_buff *skb, __u32 reason)
{
	return count(sk, DIRECTION_SENT, reason);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(tcp_send_reset, struct sock *sk)
{
	return count(sk, DIRECTION_SENT, NO_REASON);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_receive_reset, struct sock *sk)
{
	return count(sk, DIRECTION_RECEIVED, NO_REASON);
}
