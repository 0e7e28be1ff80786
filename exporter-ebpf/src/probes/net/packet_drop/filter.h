/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does the filter keep this packet? Also compiled for user space, where a test compares it with what filters mean. */
#ifndef KPULSE_PACKET_DROP_FILTER_H
#define KPULSE_PACKET_DROP_FILTER_H

#include "packet_drop.h"

struct filter_end {
	__u32 words[FILTER_WORDS];
	__u32 port;
};

/*
 * 1 where the end fits, else 0. Without a branch on what the packet has: the verifier would follow each of them in each
 * step with what it then knows of the packet.
 */
static inline __u64 end_fits(const struct packet_drop_step *step, const struct filter_end *end)
{
	__u64 differs = (end->port - (__u64)step->first_port) >> 32 | (step->last_port - (__u64)end->port) >> 32;

	for (__u32 i = 0; i < FILTER_WORDS; i++)
		differs |= (end->words[i] & step->mask[i]) ^ step->value[i];
	/* Else the compiler makes a branch of what follows. */
	asm("" : "+r"(differs));
	return ~(differs | -differs) >> 63;
}

/* A function of its own, with registers of its own: old kernels do not follow a loop counter that goes to the stack. */
static __attribute__((noinline)) bool filter_keeps(const struct packet_drop_filter *filter,
						   const struct filter_end *ends)
{
	__u64 next = filter->first;

	for (__u64 i = 0; i < FILTER_STEPS; i++) {
		/* Else compilers check the bound of a copy, and read all ends ahead, with too few registers. */
		asm volatile("" : "+r"(next), "+r"(ends) : : "memory");
		if (next >= FILTER_STEPS)
			break;
		const struct packet_drop_step *step = &filter->steps[next];
		__u64 fits = 0;
		if (step->ends & 1 << FILTER_SOURCE)
			fits = end_fits(step, &ends[FILTER_SOURCE]);
		if (step->ends & 1 << FILTER_DESTINATION)
			fits |= end_fits(step, &ends[FILTER_DESTINATION]);
		if (step->ends & 1 << FILTER_DEVICE)
			fits |= end_fits(step, &ends[FILTER_DEVICE]);
		/* Else compilers leave out a bound that the verifier cannot see. */
		asm volatile("" : "+r"(fits));
		next = step->next[fits & 1];
	}
	return next == FILTER_KEEP;
}

#endif
