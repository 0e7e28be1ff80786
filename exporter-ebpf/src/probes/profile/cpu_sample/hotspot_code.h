/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What there is at an address of a JVM's code, by its headers and by its instructions; x86-64 only. */
#ifndef KPULSE_HOTSPOT_CODE_H
#define KPULSE_HOTSPOT_CODE_H
/* Blocks are found in one step as a rule, and in three at most in 300,000 that were looked up. */
#define SEGMENT_HOPS 12
#define SEGMENT_FREE 0xff
/* sub rsp, …; mov [rsp + …], rbp: of stubs that do not say when their frame is complete. */
#define STUB_ENTRY_BYTES 11
#define CODE_BEFORE 11
#define CODE_BYTES 27

/* "nmethod" and the first eight letters of "native nmethod". */
#define NAME_NMETHOD 0x00646f6874656d6eULL
#define NAME_NATIVE 0x6e2065766974616eULL

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, HOTSPOT_PROCESSES);
	__type(key, __u32);
	__type(value, struct hotspot);
} hotspots SEC(".maps");

/* Code that lies in a heap, with what its header says. */
struct java_blob {
	__u64 address;
	__s32 frame_size; /* words, with the return address; none if not positive */
	__u32 compile_id;
};

#define READ(to, from) bpf_probe_read_user(&(to), sizeof(to), (void *)(from))

static __always_inline bool is_java(struct hotspot *jvm, __u64 address)
{
	return address >= jvm->code_low && address < jvm->code_high;
}

/* The blob around an address, or 0. */
static __always_inline __u64 find_blob(struct hotspot *jvm, __u64 address)
{
	__u64 low = 0, segments = 0, segment;
	__u32 shift = 0;

#pragma unroll
	for (int i = 0; i < HOTSPOT_HEAPS; i++) {
		if (address >= jvm->heaps[i].low && address < jvm->heaps[i].high) {
			low = jvm->heaps[i].low;
			segments = jvm->heaps[i].segment_map;
			shift = jvm->heaps[i].segment_shift & 31;
		}
	}
	if (!low)
		return 0;
	segment = (address - low) >> shift;
	for (int i = 0; i < SEGMENT_HOPS; i++) {
		__u8 back;

		if (READ(back, segments + segment) || back == SEGMENT_FREE)
			return 0;
		if (!back)
			return low + (segment << shift) + jvm->block_header;
		segment -= back;
	}
	return 0;
}

static __always_inline bool read_blob(struct hotspot *jvm, __u64 address, struct java_blob *blob)
{
	blob->address = find_blob(jvm, address);
	return blob->address && !READ(blob->frame_size, blob->address + jvm->frame_size) &&
	       !READ(blob->compile_id, blob->address + jvm->compile_id);
}

/* Whether code of the JVM is called there. */
static __always_inline bool is_return(struct hotspot *jvm, __u64 address)
{
	__u8 code[8] = {};

	if (!is_java(jvm, address) || bpf_probe_read_user(code, 5, (void *)(address - 5)))
		return false;
	return code[0] == 0xe8 || (code[3] == 0xff && (code[4] & 0xf8) == 0xd0) ||
	       (code[2] == 0xff && (code[3] & 0xf8) == 0x50) || (code[2] == 0x41 && code[3] == 0xff);
}

/* Whether a bytecode pointer is one of the method's; a native method has none. */
static __always_inline bool is_in_method(struct hotspot *jvm, __u64 method, __u64 bcp)
{
	__u64 description;
	__u16 bytes;

	return !READ(description, method + jvm->const_method) && !READ(bytes, description + jvm->code_size) &&
	       (!bytes || bcp - (description + jvm->const_method_bytes) < bytes);
}

#define IS(at, a, b, c) (code[at] == (a) && code[(at) + 1] == (b) && code[(at) + 2] == (c))
#define PC CODE_BEFORE

/* An instruction that ends a function, or asks for a safepoint before the last one: the frame is gone. */
static __always_inline bool is_at_return(__u8 *code)
{
	bool is_jump = code[PC] == 0x0f && code[PC + 1] == 0x87 && code[PC + 6] == 0xc3;

	return code[PC] == 0xc3 || code[PC] == 0xc2 ||
	       /* cmp rsp, [r15 + …]; ja …; ret */
	       (IS(PC, 0x49, 0x3b, 0xa7) && code[PC + 7] == 0x0f && code[PC + 8] == 0x87 && code[PC + 13] == 0xc3) ||
	       (IS(PC, 0x49, 0x3b, 0x67) && code[PC + 4] == 0x0f && code[PC + 5] == 0x87 && code[PC + 10] == 0xc3) ||
	       (is_jump && (IS(PC - 7, 0x49, 0x3b, 0xa7) || IS(PC - 4, 0x49, 0x3b, 0x67))) ||
	       /* JDK 11: mov r10, [r15 + …]; test eax, [r10]; ret */
	       (IS(PC, 0x4d, 0x8b, 0x97) && IS(PC + 7, 0x41, 0x85, 0x02) && code[PC + 10] == 0xc3) ||
	       (IS(PC, 0x41, 0x85, 0x02) && code[PC + 3] == 0xc3) ||
	       /* JDK 8: test eax, [rip + …]; ret */
	       (code[PC] == 0x85 && code[PC + 1] == 0x05 && code[PC + 6] == 0xc3);
}

/* The check at the entry of a compiled method, which comes when the frame is already there. */
static __always_inline bool is_at_barrier(__u8 *code)
{
	return IS(PC, 0x41, 0x81, 0x7f) || IS(PC, 0x41, 0x81, 0xbf) ||
	       (code[PC] == 0x0f && code[PC + 1] == 0x85 &&
		(IS(PC - 8, 0x41, 0x81, 0x7f) || IS(PC - 11, 0x41, 0x81, 0xbf)));
}

/* Whether the code has not made its whole frame yet. */
static __always_inline bool is_incomplete(struct walk *walk, struct hotspot *jvm, __u64 blob)
{
	__u64 begin = 0;
	__s32 complete = 0;
	__s16 complete_short;

	if (jvm->is_code_relative) {
		__u32 offset;

		if (READ(offset, blob + jvm->code_begin))
			return false;
		begin = blob + offset;
	} else if (READ(begin, blob + jvm->code_begin)) {
		return false;
	}
	if (jvm->is_complete_short) {
		if (READ(complete_short, blob + jvm->frame_complete))
			return false;
		complete = complete_short;
	} else if (READ(complete, blob + jvm->frame_complete)) {
		return false;
	}
	return walk->pc < begin + (complete < 0 ? STUB_ENTRY_BYTES : complete);
}

static __always_inline bool is_method(struct hotspot *jvm, __u64 blob)
{
	__u64 address, name;

	return !READ(address, blob + jvm->blob_name) && !READ(name, address) &&
	       (name == NAME_NMETHOD || name == NAME_NATIVE);
}

/* What C1 pushed for a stub, by the instructions that take it from the stack when the stub has returned. */
static __always_inline __u64 pushed_bytes(__u64 pc)
{
	__u8 code[8] = {};
	__u64 bytes = 0;

	if (bpf_probe_read_user(code, 4, (void *)pc))
		return 0;
	for (int i = 0; i < 4; i++) {
		if (code[i] == 0x41)
			continue;
		if ((code[i] & 0xf8) != 0x58)
			break;
		bytes += 8;
	}
	return bytes;
}

#endif
