/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Values of a map whose key has a network device's name. The key of zeros is there from the start and holds the rest.
 */
#ifndef KPULSE_BY_DEVICE_H
#define KPULSE_BY_DEVICE_H

#include "histogram.h"
#include "value_or_new.h"

/* The value of `key`, made from `empty` when it is new; that of the key of zeros when there is no room. */
static __always_inline void *value_by_device(void *map, void *key, __u32 key_bytes, const void *empty)
{
	void *value = value_or_new(map, key, empty);

	if (value)
		return value;
	__builtin_memset(key, 0, key_bytes);
	return bpf_map_lookup_elem(map, key);
}

static __always_inline void time_by_device(void *map, void *key, __u32 key_bytes, __u64 ns)
{
	struct histogram nothing = {}, *histogram = value_by_device(map, key, key_bytes, &nothing);

	if (histogram)
		histogram_add_atomic(histogram, ns);
}

#endif
