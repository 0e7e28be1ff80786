/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Values that a map has from the first time on that their key is met. */
#ifndef KPULSE_VALUE_OR_NEW_H
#define KPULSE_VALUE_OR_NEW_H

/*
 * The value of `key`, made from `empty` when it is new; NULL when there is no room. Another CPU may make it at the same
 * time: that it is there counts, not who made it.
 */
static __always_inline void *value_or_new(void *map, const void *key, const void *empty)
{
	void *value = bpf_map_lookup_elem(map, key);

	if (value)
		return value;
	bpf_map_update_elem(map, key, empty, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

#endif
