/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Errors that the hardware reports of itself.
 * Hooks: mce_record (machine checks), mc_event (memory controllers), aer_event (PCI Express), memory_failure_event
 * (pages taken out of use). No key: each is a fact of its own.
 */
#include "probe.h"
#include "cgroup.h"
#include "ring.h"
#include "hardware_error.h"

#define PF_KTHREAD 0x00200000

static __always_inline struct hardware_error_record *reserve(__u64 type, __u64 cgroup_id)
{
	struct hardware_error_record *record = ring_reserve_fact(sizeof(*record), cgroup_id);

	if (record) {
		record->type = type;
		__builtin_memset(&record->mce, 0, sizeof(*record) - __builtin_offsetof(typeof(*record), mce));
	}
	return record;
}

/* The kernel tells of a machine check in a worker, never in the exception itself. */
SEC("tp_btf/mce_record")
int BPF_PROG(mce_record, void *argument)
{
	struct mce *mce = argument;
	struct hardware_error_record *record = reserve(TYPE_MCE, 0);

	if (!record)
		return 0;
	/* Wrapped since 6.13 (750fd23926f1). */
	if (bpf_core_type_exists(struct mce_hw_err))
		mce = &((struct mce_hw_err *)argument)->m;
	record->mce.status = BPF_CORE_READ(mce, status);
	record->mce.address = BPF_CORE_READ(mce, addr);
	record->mce.misc = BPF_CORE_READ(mce, misc);
	record->mce.mcg_status = BPF_CORE_READ(mce, mcgstatus);
	record->mce.synd = BPF_CORE_READ(mce, synd);
	record->mce.ipid = BPF_CORE_READ(mce, ipid);
	record->mce.ip = BPF_CORE_READ(mce, ip);
	record->mce.cpu = BPF_CORE_READ(mce, extcpu);
	record->mce.socket = BPF_CORE_READ(mce, socketid);
	record->mce.microcode = BPF_CORE_READ(mce, microcode);
	record->mce.bank = BPF_CORE_READ(mce, bank);
	record->mce.vendor = BPF_CORE_READ(mce, cpuvendor);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("tp_btf/mc_event")
int BPF_PROG(mc_event, unsigned int severity, const char *message, const char *label, int count, __u8 controller,
	     __s8 top, __s8 middle, __s8 low, unsigned long address, __u8 grain_bits, unsigned long syndrome,
	     const char *detail)
{
	struct hardware_error_record *record = reserve(TYPE_MEMORY, 0);

	if (!record)
		return 0;
	record->memory.address = address;
	record->memory.syndrome = syndrome;
	record->memory.severity = severity;
	record->memory.count = count;
	record->memory.layers[0] = top;
	record->memory.layers[1] = middle;
	record->memory.layers[2] = low;
	record->memory.controller = controller;
	record->memory.grain_bits = grain_bits;
	bpf_probe_read_kernel_str(record->memory.message, sizeof(record->memory.message), message);
	bpf_probe_read_kernel_str(record->memory.label, sizeof(record->memory.label), label);
	bpf_probe_read_kernel_str(record->memory.detail, sizeof(record->memory.detail), detail);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* The type of the last argument has changed twice; each begins with the four words of the header. */
SEC("tp_btf/aer_event")
int BPF_PROG(aer_event, const char *device, __u32 status, __u8 severity, __u8 has_tlp, void *tlp)
{
	struct hardware_error_record *record = reserve(TYPE_PCIE, 0);

	if (!record)
		return 0;
	record->pcie.status = status;
	record->pcie.severity = severity;
	record->pcie.has_tlp = has_tlp;
	bpf_probe_read_kernel_str(record->pcie.device, sizeof(record->pcie.device), device);
	if (has_tlp)
		bpf_probe_read_kernel(record->pcie.tlp, sizeof(record->pcie.tlp), tlp);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("tp_btf/memory_failure_event")
int BPF_PROG(memory_failure_event, unsigned long pfn, int kind, int result)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	/* A worker tells of what nobody has touched. */
	bool is_worker = BPF_CORE_READ(task, flags) & PF_KTHREAD;
	__u64 cgroup_id = is_worker ? 0 : read_task_cgroup_id(task, cpu_cgrp_id);
	struct hardware_error_record *record = reserve(TYPE_PAGE, cgroup_id);

	if (!record)
		return 0;
	if (!is_worker)
		header_current_task(&record->header);
	record->page.pfn = pfn;
	record->page.kind = kind;
	record->page.result = result;
	bpf_ringbuf_submit(record, 0);
	return 0;
}
