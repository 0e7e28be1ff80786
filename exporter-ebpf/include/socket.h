/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose a socket is, and whether it is TCP's. */
#ifndef KPULSE_SOCKET_H
#define KPULSE_SOCKET_H

#include "cgroup.h"

#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
/* The root of every hierarchy has this id: what belongs to no container is the host's. */
#define HOST_CGROUP_ID 1

/* TCP_*: part of the kernel's user ABI. */
#define STATE_ESTABLISHED 1
#define STATE_SYN_SENT 2
#define STATE_SYN_RECV 3
#define STATE_TIME_WAIT 6
#define STATE_CLOSE 7
#define STATE_LISTEN 10
#define STATE_NEW_SYN_RECV 12

/* A socket knows its cgroup of v2, as a bare pointer since 5.15 (8520e224f547), with flags in its low bits before. */
static __always_inline __u64 socket_cgroup_id_v2(struct sock *sk)
{
	struct sock___val *old = (void *)sk;
	struct cgroup *cgroup = NULL;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	} else if (bpf_core_field_exists(old->sk_cgrp_data.val)) {
		__u64 value = BPF_CORE_READ(old, sk_cgrp_data.val);
		cgroup = value & 3 ? NULL : (void *)value;
	}
	__u64 id = cgroup ? BPF_CORE_READ(cgroup, kn, id) : 0;
	return id ? id : HOST_CGROUP_ID;
}

/* Requests and sockets in TIME_WAIT have only the part that all sockets share. */
static __always_inline bool is_full_socket(struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	return state != STATE_TIME_WAIT && state != STATE_NEW_SYN_RECV;
}

/* Whether the current task works on the socket: while one holds the socket's lock, nobody else does. */
static __always_inline bool is_used_by_current(struct sock *sk)
{
	return sk && is_full_socket(sk) && BPF_CORE_READ(sk, sk_lock.owned);
}

/* The container of a full socket. On cgroup v1 only a task that uses it tells; without one it counts as the host's. */
static __always_inline __u64 socket_cgroup_id(struct sock *sk)
{
	if (!sk)
		return HOST_CGROUP_ID;
	if (!cgroup_v1)
		return socket_cgroup_id_v2(sk);
	if (!is_used_by_current(sk))
		return HOST_CGROUP_ID;
	return read_task_cgroup_id((struct task_struct *)bpf_get_current_task(), cpu_cgrp_id);
}

/* The same of any socket, or none, for an event: 0 where nobody can tell, and it may still be a container's. */
static __always_inline __u64 known_cgroup_id(struct sock *sk)
{
	bool is_known = sk && is_full_socket(sk) && (!cgroup_v1 || is_used_by_current(sk));

	return is_known ? socket_cgroup_id(sk) : 0;
}

static __always_inline bool is_tcp(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_protocol) == PROTOCOL_TCP;
}

#endif
