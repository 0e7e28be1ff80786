/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef KPULSE_HARDWARE_ERROR_H
#define KPULSE_HARDWARE_ERROR_H

#include "record.h"

#define TYPE_MCE 0
#define TYPE_MEMORY 1
#define TYPE_PCIE 2
#define TYPE_PAGE 3

/* Registers of a machine check; 0 where the CPU has no such register. */
struct hardware_error_mce {
	__u64 status;
	__u64 address; /* means something if `status` says so, like the next */
	__u64 misc;
	__u64 mcg_status;
	__u64 synd;
	__u64 ipid;
	__u64 ip;
	__u32 cpu;
	__u32 socket;
	__u32 microcode;
	__u8 bank;
	__u8 vendor;
	__u8 _pad[2];
};
_Static_assert(sizeof(struct hardware_error_mce) == 72, "Rust reads this layout");

/* An error that the driver of a memory controller tells of, or the firmware. */
struct hardware_error_memory {
	__u64 address; /* 0 where it is not known */
	__u64 syndrome;
	__u32 severity; /* by hw_event_mc_err_type of the kernel */
	__u32 count;
	__s32 layers[3]; /* negative where it is not known */
	__u8 controller;
	__u8 grain_bits;
	__u8 _pad[2];
	__u8 message[64];
	__u8 label[128];
	__u8 detail[192];
};
_Static_assert(sizeof(struct hardware_error_memory) == 424, "Rust reads this layout");

#define PCIE_UNCORRECTED 0
#define PCIE_FATAL 1
#define PCIE_CORRECTED 2

struct hardware_error_pcie {
	__u8 device[32];
	__u32 status;
	__u8 severity;
	__u8 has_tlp;
	__u8 _pad[2];
	__u32 tlp[4]; /* header of the transaction layer packet */
};
_Static_assert(sizeof(struct hardware_error_pcie) == 56, "Rust reads this layout");

/* What became of a page of memory that is broken. */
struct hardware_error_page {
	__u64 pfn;
	__u32 kind; /* by mf_action_page_type of the kernel */
	__u32 result; /* by mf_result of the kernel */
};
_Static_assert(sizeof(struct hardware_error_page) == 16, "Rust reads this layout");

struct hardware_error_record {
	struct record_header header; /* of a task only where it met a broken page */
	__u64 type; /* which of these it is; the others are 0 */
	struct hardware_error_mce mce;
	struct hardware_error_memory memory;
	struct hardware_error_pcie pcie;
	struct hardware_error_page page;
};
_Static_assert(sizeof(struct hardware_error_record) == 904, "Rust reads this layout");

#endif
