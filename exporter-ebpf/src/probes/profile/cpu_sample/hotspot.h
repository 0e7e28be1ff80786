/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a frame of Java to its caller's, by what HotSpot tells debuggers of its own structures; x86-64 only.
 * Compiled code and stubs have frames of a fixed size, interpreted methods have a frame pointer. At the top of a stack
 * the instructions tell whether the frame is there yet.
 */
#ifndef KPULSE_HOTSPOT_H
#define KPULSE_HOTSPOT_H

#include "hotspot_code.h"

#define JAVA_STEPS 5
/* Words that compiled code pushes beyond its frame around a check of types, and stubs below their return address. */
#define CALLER_SHIFTS 4
#define STUB_WORDS 6
/* Farther from the stack pointer than a frame is large. */
#define FRAME_NEAR 65536
#define FRAME_ADDRESS ((1ULL << FRAME_ADDRESS_BITS) - 1)

static __always_inline void note(struct walk *walk, __u64 frame, bool is_exact)
{
	__u64 depth = walk->stack.depth;

	if (depth >= SAMPLE_FRAMES)
		return;
	/* Who reads the stack looks one byte before every address but the leaf's. */
	walk->stack.frames[depth] = depth && is_exact ? frame + 1 : frame;
	walk->hash = mix(walk->hash, frame);
	walk->stack.depth = depth + 1;
}

static __always_inline int go_to(struct walk *walk, __u64 pc, __u64 sp, __u64 bp)
{
	if (sp <= walk->sp)
		return WALK_ASTRAY;
	walk->pc = pc;
	walk->sp = sp;
	walk->bp = bp;
	walk->is_exact = 0;
	return pc ? WALK_GOES_ON : WALK_ROOT;
}

/* By the return address at a place of the stack. */
static __always_inline int return_from(struct walk *walk, __u64 place, __u64 bp)
{
	__u64 pc;

	return read_word(&pc, place) ? go_to(walk, pc, place + 8, bp) : WALK_UNREADABLE;
}

/* Whether an interpreted method at the top of the stack has its whole frame. */
static __always_inline bool has_frame(struct walk *walk, struct hotspot *jvm, __u64 method)
{
	__u64 bcp;

	if (walk->bp < walk->sp || walk->bp - walk->sp >= FRAME_NEAR)
		return false;
	return is_in_method(jvm, method, walk->leaf_r13) ||
	       (read_word(&bcp, walk->bp - jvm->bcp_slot) && is_in_method(jvm, method, bcp));
}

/*
 * An interpreted method that makes its frame: rbx has the method, r13 the caller's stack pointer until that is in the
 * frame, and the return address is on top, or in rax while room is made for variables, or beside rbp.
 */
static __always_inline int entry_step(struct walk *walk, struct hotspot *jvm, __u64 *frame)
{
	__u64 caller = 0, bp = walk->bp, sp = walk->leaf_r13;

	note(walk, FRAME_INTERPRETED | (walk->leaf_rbx & FRAME_ADDRESS), true);
	if (sp <= walk->sp || sp - walk->sp >= FRAME_NEAR)
		sp = walk->sp + 8;
	if (read_word(&caller, walk->sp) && is_java(jvm, caller))
		return go_to(walk, caller, sp, bp);
	if (is_java(jvm, frame[4]) && bp >= walk->sp)
		return go_to(walk, frame[4], bp == walk->sp ? sp : frame[2], frame[3]);
	if (is_java(jvm, walk->leaf_registers[0]))
		return go_to(walk, walk->leaf_registers[0], sp, bp);
	return WALK_ASTRAY;
}

/* Below rbp: the caller's stack pointer, the last one, the method. */
static __always_inline int interpreted_step(struct walk *walk, struct hotspot *jvm, bool is_top)
{
	__u64 frame[5] = {}, bp = walk->bp;

	bool is_read = !bpf_probe_read_user(frame, sizeof(frame), (void *)(bp - 24));
	if (is_top && walk->is_exact && !walk->stack.depth && !has_frame(walk, jvm, frame[0]))
		return entry_step(walk, jvm, frame);
	note(walk, FRAME_INTERPRETED | (frame[0] & FRAME_ADDRESS), true);
	if (!is_read)
		return WALK_UNREADABLE;
	return bp < walk->sp ? WALK_ASTRAY : go_to(walk, frame[4], frame[2], frame[3]);
}

/* Stubs without a frame, of which some push registers or make a frame of their own. */
static __always_inline int frameless_step(struct walk *walk, struct hotspot *jvm, bool is_top)
{
	__u64 caller, sp = walk->sp, bp = walk->bp;

	if (!read_word(&caller, sp))
		return WALK_UNREADABLE;
	if (!walk->is_exact && is_java(jvm, caller))
		return return_from(walk, sp, bp);
	if (is_top && walk->is_exact) {
		walk->is_stubbed = 1;
		for (int i = 0; i <= STUB_WORDS; i++) {
			__u64 place = sp + i * 8;

			if (!read_word(&caller, place))
				break;
			if (!is_return(jvm, caller))
				continue;
			if (i && bp == place - 8 && !read_word(&bp, place - 8))
				return WALK_UNREADABLE;
			return return_from(walk, place, bp);
		}
	}
	return step_by_frame_pointer(walk);
}

static __always_inline int framed_step(struct walk *walk, __u64 cfa)
{
	__u64 saved[2];

	if (READ(saved, cfa - sizeof(saved)))
		return WALK_UNREADABLE;
	return go_to(walk, saved[1], cfa, saved[0]);
}

/* Above the top of the frame, or where the code has pushed more, above that. */
static __always_inline int checked_step(struct walk *walk, struct hotspot *jvm, __u64 cfa)
{
	for (int i = 0; i <= CALLER_SHIFTS; i++) {
		__u64 caller, place = cfa + i * 8;

		if (!read_word(&caller, place - 8))
			break;
		if (is_return(jvm, caller))
			return framed_step(walk, place);
	}
	return framed_step(walk, cfa);
}

/* Of code with a frame, at its very instruction. */
static __always_inline int top_step(struct walk *walk, struct hotspot *jvm, struct java_blob *blob)
{
	__u64 sp = walk->sp, bp = walk->bp, cfa = sp + (__u64)blob->frame_size * 8;
	__u8 code[32] = {};

	if (bpf_probe_read_user(code, CODE_BYTES, (void *)(walk->pc - CODE_BEFORE)))
		return checked_step(walk, jvm, cfa);
	if (is_at_return(code))
		return return_from(walk, sp, bp);
	/* pop rbp */
	if (code[PC] == 0x5d)
		return read_word(&bp, sp) ? return_from(walk, sp + 8, bp) : WALK_UNREADABLE;
	if (is_at_barrier(code) || !is_incomplete(walk, jvm, blob->address))
		return checked_step(walk, jvm, cfa);
	if (!is_method(jvm, blob->address))
		return frameless_step(walk, jvm, true);
	/* Behind push rbp, and of a native method mov rbp, rsp. */
	if (code[PC - 1] == 0x55 || IS(PC - 3, 0x48, 0x8b, 0xec))
		return read_word(&bp, sp) ? return_from(walk, sp + 8, bp) : WALK_UNREADABLE;
	/* mov [rsp + …], rbp */
	if (code[PC] == 0x48 && code[PC + 1] == 0x89 && (code[PC + 2] == 0x6c || code[PC + 2] == 0xac) &&
	    code[PC + 3] == 0x24)
		return return_from(walk, cfa - 8, bp);
	return return_from(walk, sp, bp);
}

/* Where a caller goes on whose return address leads to deoptimization. */
static __always_inline __u64 original_pc(struct walk *walk, struct hotspot *jvm, struct java_blob *blob)
{
	__u64 pc = walk->pc, original;
	bool is_deoptimized = false;
	__s32 offset;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		__u64 handler = 0;
		__u32 relative;

		if (!jvm->deopt_handlers[i])
			continue;
		if (!jvm->is_deopt_relative) {
			if (READ(handler, blob->address + jvm->deopt_handlers[i]))
				continue;
		} else if (!READ(relative, blob->address + jvm->deopt_handlers[i])) {
			handler = blob->address + relative;
		}
		is_deoptimized |= handler == pc;
	}
	if (is_deoptimized && !READ(offset, blob->address + jvm->orig_pc_offset) &&
	    read_word(&original, walk->sp + offset) && is_java(jvm, original))
		return original;
	return pc;
}

/* Notes the frame and goes to its caller's. */
static __always_inline int java_step(struct walk *walk, struct hotspot *jvm, bool is_top)
{
	__u64 pc = walk->pc, address = pc - !walk->is_exact;
	struct java_blob blob;

	if (!is_java(jvm, address))
		return WALK_LEAVES_JAVA;
	if (walk->stack.depth >= SAMPLE_FRAMES)
		return WALK_TOO_DEEP;
	if (address >= jvm->interpreter_low && address < jvm->interpreter_high) {
		walk->is_stubbed = 0;
		return interpreted_step(walk, jvm, is_top);
	}
	if (pc == jvm->call_stub_return) {
		walk->is_stubbed = 0;
		note(walk, FRAME_COMPILED | pc, walk->is_exact);
		return step_by_frame_pointer(walk);
	}
	if (!read_blob(jvm, address, &blob)) {
		note(walk, FRAME_COMPILED | pc, walk->is_exact);
		return WALK_UNMAPPED;
	}
	if (!walk->is_exact)
		pc = original_pc(walk, jvm, &blob);
	note(walk, FRAME_COMPILED | (__u64)(blob.compile_id & FRAME_COMPILATION_MASK) << FRAME_ADDRESS_BITS | pc,
	     walk->is_exact);
	bool is_stubbed = walk->is_stubbed;
	walk->is_stubbed = 0;
	if (blob.frame_size <= 0)
		return frameless_step(walk, jvm, is_top);
	if (is_top && walk->is_exact)
		return top_step(walk, jvm, &blob);
	__u64 cfa = walk->sp + (__u64)blob.frame_size * 8;
	if (is_top && is_stubbed)
		return checked_step(walk, jvm, cfa + pushed_bytes(walk->pc));
	return framed_step(walk, cfa);
}

#endif
