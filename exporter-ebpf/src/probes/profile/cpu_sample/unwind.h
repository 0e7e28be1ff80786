/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a user frame to its caller's, by rows that user space made from .eh_frame and Go's tables; x86-64 only. */
#ifndef KPULSE_UNWIND_H
#define KPULSE_UNWIND_H

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, UNWIND_PROCESSES);
	__type(key, __u32);
	__type(value, struct unwind_process);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, UNWIND_MAPPINGS);
	__type(key, __u32);
	__type(value, struct unwind_mapping);
} mappings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, UNWIND_PAGES);
	__type(key, __u32);
	__type(value, struct unwind_page);
} pages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, UNWIND_ROWS);
	__type(key, __u32);
	__type(value, struct unwind_row);
} rows SEC(".maps");

/* Processes whose mappings user space is to read, by process id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} wanted SEC(".maps");

/* A walk under way. It lives in a map, since its stack is larger than a program's. */
struct walk {
	__u64 pc;
	__u64 sp;
	__u64 bp;
	__u64 leaf_registers[3]; /* rax, r10, r11 */
	__u64 hash;
	__u32 first_mapping;
	__u32 end_mapping;
	__u32 is_exact; /* pc is not behind a call */
	__u32 generation;
	__u64 leaf_rbx;
	__u64 leaf_r13;
	__u64 is_stubbed; /* the frame before had no frame of its own, and was Java's */
	struct cpu_sample_key key;
	struct cpu_sample_stack stack;
};

#define WALK_GOES_ON -1
#define WALK_ENTERS_JAVA -2
#define WALK_LEAVES_JAVA -3

static __always_inline __u64 mix(__u64 hash, __u64 address)
{
	hash = (hash ^ address) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 29;
}

static __always_inline void ask(__u32 tgid)
{
	__u32 yes = 1;

	bpf_map_update_elem(&wanted, &tgid, &yes, BPF_NOEXIST);
}

/* The last mapping that begins at or before the address. */
static __always_inline struct unwind_mapping *find_mapping(__u32 first, __u32 end, __u64 address)
{
	__u32 low = first;

	for (int i = 0; i < MAPPING_STEPS; i++) {
		if (low >= end)
			break;
		__u32 middle = low + (end - low) / 2;
		struct unwind_mapping *mapping = bpf_map_lookup_elem(&mappings, &middle);
		if (!mapping)
			return NULL;
		if (mapping->start <= address)
			low = middle + 1;
		else
			end = middle;
	}
	if (low == first)
		return NULL;
	low--;
	return bpf_map_lookup_elem(&mappings, &low);
}

/* The last row of the page that begins at or before the address. */
static __always_inline struct unwind_row *find_row(struct unwind_page *page, __u16 address)
{
	__u32 first = page->first, low = first, end = first + page->count;

	for (int i = 0; i < ROW_STEPS; i++) {
		if (low >= end)
			break;
		__u32 middle = low + (end - low) / 2;
		struct unwind_row *row = bpf_map_lookup_elem(&rows, &middle);
		if (!row)
			return NULL;
		if (row->address <= address)
			low = middle + 1;
		else
			end = middle;
	}
	if (low == first)
		return NULL;
	low--;
	return bpf_map_lookup_elem(&rows, &low);
}

static __always_inline bool read_word(__u64 *word, __u64 address)
{
	return !bpf_probe_read_user(word, sizeof(*word), (void *)address);
}

/* A frame pointer leads to the caller's, and beside it lies the return address. */
static __always_inline int step_by_frame_pointer(struct walk *walk)
{
	__u64 frame[2];

	if (!walk->bp)
		return WALK_ROOT;
	if (walk->bp < walk->sp)
		return WALK_ASTRAY;
	if (bpf_probe_read_user(frame, sizeof(frame), (void *)walk->bp))
		return WALK_UNREADABLE;
	walk->sp = walk->bp + sizeof(frame);
	walk->bp = frame[0];
	walk->pc = frame[1];
	walk->is_exact = 0;
	return walk->pc ? WALK_GOES_ON : WALK_ROOT;
}

/* The code that a signal interrupted goes on where the kernel saved it: `struct rt_sigframe` above its return address.
 */
static __always_inline int step_by_signal(struct walk *walk)
{
	__u64 sp = walk->sp;

	if (!read_word(&walk->bp, sp + 120) || !read_word(&walk->sp, sp + 160) || !read_word(&walk->pc, sp + 168))
		return WALK_UNREADABLE;
	walk->is_exact = 1;
	return WALK_GOES_ON;
}

static __always_inline int step_by_row(struct walk *walk, struct unwind_row *row)
{
	__u64 cfa, bp = walk->bp, words = (__u64)row->cfa_words * 8;
	__u32 kind = row->cfa, leaf_register = kind - CFA_RAX;

	if (kind == CFA_RSP) {
		cfa = walk->sp + words;
	} else if (kind == CFA_RBP || kind == CFA_OTHER_STACK) {
		cfa = bp + words;
	} else if (kind == CFA_NONE) {
		return step_by_frame_pointer(walk);
	} else if (kind == CFA_ROOT) {
		return WALK_ROOT;
	} else if (kind == CFA_PLT) {
		cfa = walk->sp + ((walk->pc & 15) >= row->cfa_words ? 16 : 8);
	} else if (kind == CFA_SIGNAL) {
		return step_by_signal(walk);
	} else if (kind == CFA_AT_RSP) {
		if (!read_word(&cfa, walk->sp + words))
			return WALK_UNREADABLE;
		cfa += 8;
	} else if (kind == CFA_AT_RBP) {
		if (!read_word(&cfa, bp + (__s64)(__s16)row->cfa_words * 8))
			return WALK_UNREADABLE;
	} else if (leaf_register < 3 && walk->stack.depth == 1) {
		cfa = walk->leaf_registers[leaf_register] + words;
	} else {
		return WALK_UNEXPRESSED;
	}
	if (kind == CFA_OTHER_STACK) {
		if (!bp)
			return WALK_ROOT;
	} else if (cfa <= walk->sp) {
		return WALK_ASTRAY;
	}
	if (!read_word(&walk->pc, cfa - 8))
		return WALK_UNREADABLE;
	if (row->rbp == RBP_AT_CFA) {
		if (!read_word(&walk->bp, cfa + (__s64)row->rbp_words * 8))
			return WALK_UNREADABLE;
	} else if (row->rbp == RBP_AT_RBP) {
		if (!read_word(&walk->bp, bp + (__s64)row->rbp_words * 8))
			return WALK_UNREADABLE;
	} else if (row->rbp == RBP_LOST) {
		walk->bp = 0;
	}
	walk->sp = cfa;
	walk->is_exact = 0;
	return walk->pc ? WALK_GOES_ON : WALK_ROOT;
}

/* Notes the frame and goes to its caller's. */
static __always_inline int step(struct walk *walk)
{
	__u64 address = walk->pc - !walk->is_exact, depth = walk->stack.depth;
	struct unwind_mapping *mapping = find_mapping(walk->first_mapping, walk->end_mapping, address);

	if (!mapping || address >= mapping->end) {
		/* A library that came meanwhile; or the walk went astray, so that only a leaf is sure to be code. */
		ask(walk->key.tgid);
		if (!depth) {
			walk->stack.frames[0] = walk->pc;
			walk->stack.depth = 1;
			walk->hash = mix(walk->hash, walk->pc);
		}
		return WALK_UNMAPPED;
	}
	if (mapping->first_page == MAPPING_HOTSPOT)
		return WALK_ENTERS_JAVA;
	if (depth >= SAMPLE_FRAMES)
		return WALK_TOO_DEEP;
	/* Who reads the stack looks one byte before every address but the leaf's. */
	walk->stack.frames[depth] = depth ? address + 1 : address;
	walk->hash = mix(walk->hash, address);
	walk->stack.depth = depth + 1;

	__u64 offset = address - mapping->bias;
	if (offset >> 16 >= mapping->page_count)
		return step_by_frame_pointer(walk);
	__u32 index = mapping->first_page + (offset >> 16);
	struct unwind_page *page = bpf_map_lookup_elem(&pages, &index);
	if (!page)
		return step_by_frame_pointer(walk);
	struct unwind_row *row = find_row(page, offset);
	if (!row)
		return step_by_frame_pointer(walk);
	/* A handler returns to the first instruction of what ends it. */
	if (row->cfa == CFA_SIGNAL && depth)
		walk->stack.frames[depth]++;
	return step_by_row(walk, row);
}

#endif
