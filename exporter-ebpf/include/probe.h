/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every .bpf.c begins with this: kernel types, helpers, and what the loader tells each program. */
#ifndef KPULSE_PROBE_H
#define KPULSE_PROBE_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* Which half of the probe this process wants; the verifier removes the other one. */
const volatile bool want_metrics = true;
const volatile bool want_events = true;

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#endif
