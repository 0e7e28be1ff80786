/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Between whom a packet or a connection is: one struct for all records that tell it. */
#ifndef KPULSE_FLOW_H
#define KPULSE_FLOW_H

#ifndef __bpf__
#include <linux/types.h>
#endif

struct flow {
	__u32 source[4]; /* as on the wire; IPv4 has the first word only */
	__u32 destination[4];
	__u16 source_port;
	__u16 destination_port;
	__u8 ip_version; /* 4, 6, or 0 where there are no addresses to tell */
	__u8 has_ports;
	__u8 _pad[2];
};
_Static_assert(sizeof(struct flow) == 40, "Rust reads this layout");

#endif
