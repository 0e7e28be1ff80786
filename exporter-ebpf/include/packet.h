/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets on their way out. All arguments must be pointers that the verifier trusts: each step is a plain load. */
#ifndef KPULSE_PACKET_H
#define KPULSE_PACKET_H

#include "socket.h"

/* Without a queue, as loopback and virtual pairs are by default, there is nothing to wait for. */
static __always_inline bool has_queue(struct net_device *device)
{
	struct netdev_queue *queue = device ? device->_tx : NULL;
	struct Qdisc *qdisc = queue ? queue->qdisc : NULL;

	return qdisc && qdisc->enqueue;
}

/*
 * When TCP sent it, on the clock of bpf_ktime_get_ns(); 0 for every other packet. Survives segmentation, in which the
 * packet gets another address. A paced packet has the time at which it may leave, which can lie ahead.
 */
static __always_inline __u64 tcp_sent_ns(struct sk_buff *skb)
{
	struct sock *sk = skb->sk;

	if (!sk)
		return 0;
	__u8 state = sk->__sk_common.skc_state;
	/* Requests and sockets in TIME_WAIT end behind what all sockets share. */
	if (state == STATE_TIME_WAIT || state == STATE_NEW_SYN_RECV || sk->sk_protocol != PROTOCOL_TCP)
		return 0;
	return skb->skb_mstamp_ns;
}

#endif
