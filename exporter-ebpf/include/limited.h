/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* For how long something kept a TCP connection from sending. */
#ifndef KPULSE_LIMITED_H
#define KPULSE_LIMITED_H

/* enum tcp_chrono, which counts from 1. */
#define CHRONO_RWND_LIMITED 2
#define CHRONO_SNDBUF_LIMITED 3

/* Length of a jiffy. */
const volatile __u64 tick_ns = 4000000;

/* Since the connection began, with what goes on at the moment. */
static __always_inline __u64 limited_ns(struct tcp_sock *tcp, __u32 chrono)
{
	__u32 ticks = BPF_CORE_READ(tcp, chrono_stat[chrono - 1]);

	if (BPF_CORE_READ_BITFIELD_PROBED(tcp, chrono_type) == chrono)
		ticks += (__u32)bpf_jiffies64() - BPF_CORE_READ(tcp, chrono_start);
	return ticks * tick_ns;
}

#endif
