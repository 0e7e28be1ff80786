/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a probe saw and could not measure: one count, which its collector tells. */
#ifndef KPULSE_LOSSES_H
#define KPULSE_LOSSES_H

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

static __always_inline void lose(__u64 count)
{
	__u32 zero = 0;
	__u64 *lost = bpf_map_lookup_elem(&losses, &zero);

	if (lost)
		__sync_fetch_and_add(lost, count);
}

#endif
