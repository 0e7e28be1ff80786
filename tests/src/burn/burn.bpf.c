/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Burns CPU time where a fault in the kernel would: for tests only, since it takes no more than the right to load.
 * Every burn is counted with its length, which is the oracle of what a probe makes of it.
 */
#include "probe.h"

const volatile __u64 burn_ns = 10000000;
const volatile __u64 gap_ns = 100000000;
const volatile __u64 burns_max = 1;

/* BPF refuses a longer loop at once. */
#define LOOP_MAX (1 << 22)
/* Without bpf_loop (before 5.17) the verifier allows few steps, so each has to be slow. */
#define COPIES_MAX 3000
#define COPY_BYTES 2097152

__u64 last_ns = 0;

struct burnt {
	__u64 burns;
	__u64 ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct burnt);
} burnt SEC(".maps");

struct block {
	char bytes[COPY_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct block);
} blocks SEC(".maps");

struct burning {
	__u64 end_ns;
};

static long is_over(__u32 index, void *context)
{
	struct burning *burning = context;

	return bpf_ktime_get_ns() >= burning->end_ns;
}

static long burn_some(__u32 index, void *context)
{
	bpf_loop(LOOP_MAX, is_over, context, 0);
	return is_over(index, context);
}

static __always_inline void loop_until(__u64 end_ns)
{
	struct burning burning = { .end_ns = end_ns };

	bpf_loop(LOOP_MAX, burn_some, &burning, 0);
}

static __always_inline void copy_until(__u64 end_ns)
{
	__u32 first = 0, second = 1;
	struct block *to = bpf_map_lookup_elem(&blocks, &first), *from = bpf_map_lookup_elem(&blocks, &second);

	if (!to || !from)
		return;
	for (int copies = 0; copies < COPIES_MAX; copies++) {
		if (bpf_ktime_get_ns() >= end_ns)
			break;
		bpf_probe_read_kernel(to, sizeof(*to), from);
	}
}

static __always_inline struct burnt *burn_due(__u64 now_ns)
{
	__u32 zero = 0;
	struct burnt *total = bpf_map_lookup_elem(&burnt, &zero);

	if (!total || total->burns >= burns_max || (last_ns && now_ns - last_ns < gap_ns))
		return NULL;
	last_ns = now_ns;
	return total;
}

#define BURN(until)                                                 \
	({                                                          \
		__u64 __now_ns = bpf_ktime_get_ns();                \
		struct burnt *__total = burn_due(__now_ns);         \
		if (__total) {                                      \
			__sync_fetch_and_add(&__total->burns, 1);   \
			until(__now_ns + burn_ns);                  \
			__u64 __ns = bpf_ktime_get_ns() - __now_ns; \
			__sync_fetch_and_add(&__total->ns, __ns);   \
		}                                                   \
		0;                                                  \
	})

/* Whose thread is named burn-… and the letter. */
static __always_inline bool is_named(struct task_struct *task, char letter)
{
	char comm[16];

	bpf_core_read(comm, sizeof(comm), &task->comm);
	return comm[0] == 'b' && comm[1] == 'u' && comm[2] == 'r' && comm[3] == 'n' && comm[4] == '-' &&
	       comm[5] == letter;
}

/* No burn: what a context switch takes longer for any program at all. */
SEC("tp_btf/sched_switch")
int BPF_PROG(nothing)
{
	return 0;
}

/* Interrupts are off here, when a thread burn-i… leaves a CPU. */
SEC("tp_btf/sched_switch")
int BPF_PROG(irqs_off_loop, bool preempt, struct task_struct *prev)
{
	return is_named(prev, 'i') ? BURN(loop_until) : 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(irqs_off_copy, bool preempt, struct task_struct *prev)
{
	return is_named(prev, 'i') ? BURN(copy_until) : 0;
}

#define TIMER_SOFTIRQ 1

SEC("tp_btf/softirq_entry")
int BPF_PROG(softirq_loop, unsigned int vector)
{
	return vector == TIMER_SOFTIRQ ? BURN(loop_until) : 0;
}

SEC("tp_btf/softirq_entry")
int BPF_PROG(softirq_copy, unsigned int vector)
{
	return vector == TIMER_SOFTIRQ ? BURN(copy_until) : 0;
}

/* Interrupts are on, and no other task can run: in a softirq that interrupts a thread burn-k…. */
SEC("tp_btf/softirq_entry")
int BPF_PROG(kernel_loop, unsigned int vector)
{
	return is_named((void *)bpf_get_current_task(), 'k') ? BURN(loop_until) : 0;
}

SEC("tp_btf/softirq_entry")
int BPF_PROG(kernel_copy, unsigned int vector)
{
	return is_named((void *)bpf_get_current_task(), 'k') ? BURN(copy_until) : 0;
}

SEC("tp_btf/irq_handler_entry")
int BPF_PROG(hardirq_loop)
{
	return BURN(loop_until);
}

SEC("tp_btf/irq_handler_entry")
int BPF_PROG(hardirq_copy)
{
	return BURN(copy_until);
}
