/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Durations in slots of powers of two seconds: slot i ends at 2^(i - 20) s, inclusive, the last slot is open.
 * These bounds are exact as classic `le` and as native-histogram schema 0.
 */
#ifndef KPULSE_HISTOGRAM_H
#define KPULSE_HISTOGRAM_H

#ifndef __bpf__
#include <linux/types.h>
#endif

#define HISTOGRAM_SLOTS 27

struct histogram {
	__u64 slots[HISTOGRAM_SLOTS];
	__u64 sum_ns;
};
_Static_assert(sizeof(struct histogram) == 224, "Rust reads this layout");

#ifdef __bpf__
/* Index of the highest bit that is set; 0 for 0. */
static __always_inline __u32 highest_bit(__u32 value)
{
	__u32 bit = (value > 0xffff) << 4;
	value >>= bit;
	__u32 shift = (value > 0xff) << 3;
	value >>= shift;
	bit |= shift;
	shift = (value > 0xf) << 2;
	value >>= shift;
	bit |= shift;
	shift = (value > 0x3) << 1;
	value >>= shift;
	return bit | shift | (value >> 1);
}

static __always_inline __u32 histogram_slot(__u64 ns)
{
	/*
	 * A nanosecond is 1.073741824 units of 2^-30 s, in which a bound is a single bit; 9897460 / 2^27 is the
	 * fraction to within 3e-9. Rounded up and minus one, since a bound belongs to the slot that it ends.
	 */
	if (ns > 1ULL << 36)
		return HISTOGRAM_SLOTS - 1;
	__u64 units = ns + ((ns * 9897460 + (1 << 27) - 1) >> 27);
	__u32 above = (units - (units != 0)) >> 10;
	__u32 slot = above ? highest_bit(above) + 1 : 0;
	/* Before 6.10 the verifier knows a bound only of the register that was compared; clang 14 compares a copy. */
	asm volatile("" : "+r"(slot));
	return slot < HISTOGRAM_SLOTS ? slot : HISTOGRAM_SLOTS - 1;
}

/* For a per-CPU histogram of a hook that cannot interrupt itself. */
static __always_inline void histogram_add(struct histogram *histogram, __u64 ns)
{
	__u32 slot = histogram_slot(ns);

	histogram->slots[slot]++;
	histogram->sum_ns += ns;
}

/* For every other hook: an interrupt may count in the same histogram on the same CPU. */
static __always_inline void histogram_add_atomic(struct histogram *histogram, __u64 ns)
{
	__u32 slot = histogram_slot(ns);

	__sync_fetch_and_add(&histogram->slots[slot], 1);
	__sync_fetch_and_add(&histogram->sum_ns, ns);
}
#endif

#endif
