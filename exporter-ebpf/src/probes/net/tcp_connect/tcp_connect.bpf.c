/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How TCP connections begin and what they were like: handshake, wait for accept(), and at their end round-trip time
 * and time limited by the peer's window.
 * Hooks: inet_sock_set_state; for accept() the kernel function, sys_exit where that cannot be hooked. Of the events
 * only the first.
 * Key: cgroup of the socket, and which side it is.
 */
#include "probe.h"
#include "compat.h"
#include "read_flow.h"
#include "by_cgroup.h"
#include "limited.h"
#include "ring.h"
#include "tcp_connect.h"

/* Connections by socket. The least recently used gives way: its accept and its role are not known then. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct tcp_connect_start);
} connections SEC(".maps");

/* Bound of these: the loader's container_max, for each role. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1536);
	__type(key, struct tcp_connect_key);
	__type(value, struct histogram);
} handshake SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1536);
	__type(key, struct tcp_connect_key);
	__type(value, struct histogram);
} rtt SEC(".maps");

BY_CGROUP(accept_wait, struct histogram);

BY_CGROUP(rwnd_limited, __u64);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_connect_value);
} losses SEC(".maps");

static __always_inline void lose_handshake(void)
{
	__u32 zero = 0;
	struct tcp_connect_value *value = bpf_map_lookup_elem(&losses, &zero);

	if (value)
		__sync_fetch_and_add(&value->handshakes, 1);
}

static __always_inline void lose_accept(void)
{
	__u32 zero = 0;
	struct tcp_connect_value *value = bpf_map_lookup_elem(&losses, &zero);

	if (value)
		__sync_fetch_and_add(&value->accepts, 1);
}

static __always_inline void begin(struct sock *sk, __u32 role)
{
	__u64 socket = (__u64)sk;
	struct tcp_connect_start start = {
		.ns = bpf_ktime_get_ns(),
		.cgroup_id = socket_cgroup_id(sk),
		.role = role,
	};

	if (want_events) {
		__u64 id = bpf_get_current_pid_tgid();
		start.tgid = id >> 32;
		start.tid = id;
		bpf_get_current_comm(start.comm, sizeof(start.comm));
	}
	bpf_map_update_elem(&connections, &socket, &start, BPF_ANY);
}

static __always_inline void fill_event(struct tcp_connect_record *record, struct sock *sk, __u32 role, __u32 outcome)
{
	record->role = role;
	record->outcome = outcome;
	record->error = BPF_CORE_READ(sk, sk_err);
	record->retransmits = BPF_CORE_READ((struct tcp_sock *)sk, total_retrans);
	flow_of_socket(&record->flow, sk);
}

static __always_inline void tell_client(struct sock *sk, struct tcp_connect_start *start, __u64 took_ns, __u32 outcome)
{
	struct event_policy *rule = policy_of(start->cgroup_id);
	__u64 threshold_ns = rule ? reached(rule, THRESHOLD_HANDSHAKE, took_ns) : UNKNOWN_U64;

	/* A failure is a fact, however soon it came. */
	if (!rule || (threshold_ns == UNKNOWN_U64 && outcome != OUTCOME_FAILED))
		return;
	struct tcp_connect_record *record =
		ring_reserve_by(rule, sizeof(*record), start->cgroup_id, took_ns, threshold_ns);
	if (!record)
		return;
	record->header.tgid = start->tgid;
	record->header.tid = start->tid;
	__builtin_memcpy(record->header.comm, start->comm, COMM_BYTES);
	fill_event(record, sk, ROLE_CLIENT, outcome);
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void tell_server(struct sock *sk, __u64 took_ns)
{
	struct tcp_connect_record *record =
		ring_reserve(sizeof(*record), known_cgroup_id(sk), THRESHOLD_HANDSHAKE, took_ns);

	if (!record)
		return;
	fill_event(record, sk, ROLE_SERVER, OUTCOME_ESTABLISHED);
	bpf_ringbuf_submit(record, 0);
}

static __always_inline void client_connected(struct sock *sk)
{
	__u64 socket = (__u64)sk, now_ns = bpf_ktime_get_ns();
	struct tcp_connect_start *start = bpf_map_lookup_elem(&connections, &socket);

	if (!start) {
		if (want_metrics)
			lose_handshake();
		return;
	}
	__u64 took_ns = now_ns > start->ns ? now_ns - start->ns : 1;
	if (want_metrics) {
		struct tcp_connect_key key = { .cgroup_id = start->cgroup_id, .role = ROLE_CLIENT };
		time_by_cgroup(&handshake, &key, took_ns);
	}
	if (may_tell(THRESHOLD_HANDSHAKE, took_ns))
		tell_client(sk, start, took_ns, OUTCOME_ESTABLISHED);
}

/* Closed without an error, it is the program that gave up: news only if it was patient. */
static __always_inline void client_failed(struct sock *sk, struct tcp_connect_start *start)
{
	__u64 now_ns = bpf_ktime_get_ns(), took_ns = now_ns > start->ns ? now_ns - start->ns : 1;

	tell_client(sk, start, took_ns, BPF_CORE_READ(sk, sk_err) ? OUTCOME_FAILED : OUTCOME_ABANDONED);
}

static __always_inline void server_connected(struct sock *sk)
{
	struct tcp_sock *tcp = (void *)sk;
	/* Of the SYN-ACK, the only sample yet; none when that was sent again or the request was a cookie. */
	__u64 round_trip_us = BPF_CORE_READ(tcp, srtt_us) >> 3;

	if (may_tell(THRESHOLD_HANDSHAKE, round_trip_us * 1000))
		tell_server(sk, round_trip_us * 1000);
	if (!want_metrics)
		return;
	struct tcp_connect_key key = { .cgroup_id = socket_cgroup_id(sk), .role = ROLE_SERVER };
	begin(sk, ROLE_SERVER);
	if (round_trip_us)
		time_by_cgroup(&handshake, &key, round_trip_us * 1000);
	else
		lose_handshake();
}

static __always_inline void ended(struct sock *sk, struct tcp_connect_start *start)
{
	struct tcp_sock *tcp = (void *)sk;
	__u64 round_trip_us = BPF_CORE_READ(tcp, srtt_us) >> 3, closed_ns = limited_ns(tcp, CHRONO_RWND_LIMITED);
	struct tcp_connect_key key = {
		.cgroup_id = start ? start->cgroup_id : socket_cgroup_id(sk),
		.role = start ? start->role : ROLE_UNKNOWN,
	};
	__u64 cgroup_id = key.cgroup_id;

	if (round_trip_us)
		time_by_cgroup(&rtt, &key, round_trip_us * 1000);
	if (closed_ns)
		count_by_cgroup(&rwnd_limited, &cgroup_id, closed_ns);
}

static __always_inline void closed(struct sock *sk, int old)
{
	__u64 socket = (__u64)sk;
	struct tcp_connect_start *start = bpf_map_lookup_elem(&connections, &socket);

	if (want_metrics && old != STATE_SYN_SENT && old != STATE_SYN_RECV && old != STATE_LISTEN && old != STATE_CLOSE)
		ended(sk, start);
	if (want_events && start && old == STATE_SYN_SENT)
		client_failed(sk, start);
	bpf_map_delete_elem(&connections, &socket);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, struct sock *sk, int old, int new)
{
	if (!is_tcp(sk))
		return 0;
	if (new == STATE_SYN_SENT) {
		begin(sk, ROLE_CLIENT);
	} else if (new == STATE_ESTABLISHED && old == STATE_SYN_SENT) {
		client_connected(sk);
	} else if (new == STATE_ESTABLISHED && old == STATE_SYN_RECV) {
		server_connected(sk);
	} else if (new == STATE_CLOSE) {
		closed(sk, old);
	}
	return 0;
}

static __always_inline int accepted(struct sock *sk)
{
	__u64 socket = (__u64)sk, now_ns = bpf_ktime_get_ns();

	if (!sk || !is_tcp(sk))
		return 0;
	struct tcp_connect_start *start = bpf_map_lookup_elem(&connections, &socket);
	if (!start) {
		lose_accept();
		return 0;
	}
	/* On cgroup v1 nobody could tell until here whose the connection is. */
	if (cgroup_v1)
		start->cgroup_id = read_task_cgroup_id((struct task_struct *)bpf_get_current_task(), cpu_cgrp_id);
	__u64 cgroup_id = start->cgroup_id;
	time_by_cgroup(&accept_wait, &cgroup_id, now_ns > start->ns ? now_ns - start->ns : 1);
	return 0;
}

SEC("fexit/inet_csk_accept")
int BPF_PROG(inet_csk_accept_with_error, struct sock *listener, int flags, int *error, bool is_kernel, struct sock *sk)
{
	return accepted(sk);
}

/* Since 6.10 (92ef0fd55ac8). */
SEC("fexit/inet_csk_accept")
int BPF_PROG(inet_csk_accept, struct sock *listener, void *arguments, struct sock *sk)
{
	return accepted(sk);
}

/* Runs at the end of every system call of the machine. */
SEC("tp_btf/sys_exit")
int BPF_PROG(sys_exit, struct pt_regs *registers, long result)
{
	if (!is_accept(system_call(registers)) || result < 0)
		return 0;
	struct socket *socket = BPF_CORE_READ(current_file(result), private_data);
	return accepted(BPF_CORE_READ(socket, sk));
}
