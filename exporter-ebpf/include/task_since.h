/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Since when a task is in some state: a word for each value of a pid's low bits, holding the time above the pid's high
 * bits. Array look-ups are inlined and a store is atomic, so this costs a third of a hash map. A task displaces
 * another one whose pid has the same low bits.
 */
#ifndef KPULSE_TASK_SINCE_H
#define KPULSE_TASK_SINCE_H

/* The kernel's limit on a pid is 2^22. */
#define SINCE_INDEX_BITS 16
#define SINCE_TAG_BITS 6

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << SINCE_INDEX_BITS);
	__type(key, __u32);
	__type(value, __u64);
} since SEC(".maps");

/* Whether this displaced another task. */
static __always_inline bool since_set(__u32 tid, __u64 now_ns)
{
	__u32 index = tid & ((1 << SINCE_INDEX_BITS) - 1);
	__u64 *word = bpf_map_lookup_elem(&since, &index);

	if (!word)
		return false;
	__u64 before = *word, tag = tid >> SINCE_INDEX_BITS;
	*word = now_ns << SINCE_TAG_BITS | tag;
	return before && (before & ((1 << SINCE_TAG_BITS) - 1)) != tag;
}

/* When the task's state began, in nanoseconds without their high bits; 0 when it is not in the state. */
static __always_inline __u64 since_peek(__u32 tid)
{
	__u32 index = tid & ((1 << SINCE_INDEX_BITS) - 1);
	__u64 *word = bpf_map_lookup_elem(&since, &index);

	if (!word || !*word || (*word & ((1 << SINCE_TAG_BITS) - 1)) != tid >> SINCE_INDEX_BITS)
		return 0;
	return *word >> SINCE_TAG_BITS;
}

/* The same, and ends it. */
static __always_inline __u64 since_take(__u32 tid)
{
	__u32 index = tid & ((1 << SINCE_INDEX_BITS) - 1);
	__u64 *word = bpf_map_lookup_elem(&since, &index);

	if (!word || !*word || (*word & ((1 << SINCE_TAG_BITS) - 1)) != tid >> SINCE_INDEX_BITS)
		return 0;
	__u64 begin_ns = *word >> SINCE_TAG_BITS;
	*word = 0;
	return begin_ns;
}

#endif
