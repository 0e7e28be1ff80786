/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flow of a packet, or of a socket. */
#ifndef KPULSE_READ_FLOW_H
#define KPULSE_READ_FLOW_H

#include "socket.h"
#include "flow.h"

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define FAMILY_IPV4 2
#define FAMILY_IPV6 10
#define NO_HEADER 0xffff
#define FRAGMENT_OFFSET 0x1fff

struct packet {
	__u16 ethertype;
	__u8 ip_version; /* 0 for what is not IP */
	__u8 protocol;
	unsigned char *network; /* start of the IP header */
	unsigned char *transport; /* NULL where there is none: the first fragment has it, the others have not */
};

static __always_inline void read_packet(struct sk_buff *skb, struct packet *packet)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	__u16 network = BPF_CORE_READ(skb, network_header), transport = BPF_CORE_READ(skb, transport_header);
	__be16 fragment = 0;
	__u8 first = 0;

	packet->ethertype = __builtin_bswap16(BPF_CORE_READ(skb, protocol));
	packet->network = head + network;
	bpf_probe_read_kernel(&first, 1, packet->network);
	if (packet->ethertype == ETHERTYPE_IPV4 && first >> 4 == 4) {
		packet->ip_version = 4;
		bpf_probe_read_kernel(&packet->protocol, 1, packet->network + 9);
		bpf_probe_read_kernel(&fragment, sizeof(fragment), packet->network + 6);
		/* Before the stack has set it, the transport header follows the IP header. */
		if (!(__builtin_bswap16(fragment) & FRAGMENT_OFFSET))
			packet->transport = packet->network + (first & 0xf) * 4;
	} else if (packet->ethertype == ETHERTYPE_IPV6 && first >> 4 == 6) {
		packet->ip_version = 6;
		bpf_probe_read_kernel(&packet->protocol, 1, packet->network + 6);
		packet->transport =
			transport != NO_HEADER && transport > network ? head + transport : packet->network + 40;
	}
}

static __always_inline void flow_of_packet(struct flow *flow, struct packet *packet)
{
	__be16 ports[2] = {};

	__builtin_memset(flow, 0, sizeof(*flow));
	flow->ip_version = packet->ip_version;
	if (packet->ip_version == 4) {
		bpf_probe_read_kernel(flow->source, 4, packet->network + 12);
		bpf_probe_read_kernel(flow->destination, 4, packet->network + 16);
	} else if (packet->ip_version == 6) {
		bpf_probe_read_kernel(flow->source, 16, packet->network + 8);
		bpf_probe_read_kernel(flow->destination, 16, packet->network + 24);
	}
	flow->has_ports = packet->transport && (packet->protocol == PROTOCOL_TCP || packet->protocol == PROTOCOL_UDP);
	if (flow->has_ports)
		bpf_probe_read_kernel(ports, sizeof(ports), packet->transport);
	flow->source_port = __builtin_bswap16(ports[0]);
	flow->destination_port = __builtin_bswap16(ports[1]);
}

/* The same from its receiver's side, which is the source of an answer. */
static __always_inline void flow_of_answer(struct flow *flow, struct packet *packet)
{
	struct flow received;

	flow_of_packet(&received, packet);
	*flow = received;
	__builtin_memcpy(flow->source, received.destination, sizeof(flow->source));
	__builtin_memcpy(flow->destination, received.source, sizeof(flow->destination));
	flow->source_port = received.destination_port;
	flow->destination_port = received.source_port;
}

/* Sockets of IPv6 also speak IPv4, with addresses of ::ffff:0:0/96. */
static __always_inline void unmap_ipv4(struct flow *flow)
{
	__u32 *peer = flow->destination;

	if (peer[0] || peer[1] || peer[2] != __builtin_bswap32(0xffff))
		return;
	flow->ip_version = 4;
	flow->source[0] = flow->source[3];
	flow->destination[0] = flow->destination[3];
	flow->source[2] = flow->source[3] = 0;
	flow->destination[2] = flow->destination[3] = 0;
}

/* From the side of the socket, of any kind: requests and TIME_WAIT have their addresses in the part that all share. */
static __always_inline void flow_of_socket(struct flow *flow, struct sock *sk)
{
	struct inet_sock *inet = (void *)sk;
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	__builtin_memset(flow, 0, sizeof(*flow));
	flow->has_ports = true;
	/* A socket that is closed has given its number back already, but not this note of it. */
	flow->source_port = is_full_socket(sk) ? __builtin_bswap16(BPF_CORE_READ(inet, inet_sport))
					       : BPF_CORE_READ(sk, __sk_common.skc_num);
	flow->destination_port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (family == FAMILY_IPV4) {
		flow->ip_version = 4;
		bpf_core_read(flow->source, 4, &sk->__sk_common.skc_rcv_saddr);
		bpf_core_read(flow->destination, 4, &sk->__sk_common.skc_daddr);
	} else if (family == FAMILY_IPV6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		flow->ip_version = 6;
		bpf_core_read(flow->source, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(flow->destination, 16, &sk->__sk_common.skc_v6_daddr);
		unmap_ipv4(flow);
	}
}

#endif
