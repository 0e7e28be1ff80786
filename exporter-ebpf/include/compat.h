/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Kernel differences, one inline each. */
#ifndef KPULSE_COMPAT_H
#define KPULSE_COMPAT_H

/* `state` became `__state` in 5.14 (2f064a59a1). For a task that the verifier trusts. */
static __always_inline __u32 task_state(struct task_struct *task)
{
	if (bpf_core_field_exists(task->__state))
		return task->__state;
	return ((struct task_struct___state *)task)->state;
}

/* The same for a task that was read from memory. */
static __always_inline __u32 read_task_state(struct task_struct *task)
{
	if (bpf_core_field_exists(task->__state))
		return BPF_CORE_READ(task, __state);
	return BPF_CORE_READ((struct task_struct___state *)task, state);
}

/* `rq_disk` went away in 5.17 (f3fa33acca9f); the queue has the disk since 5.15 (d152c682f03c). */
static __always_inline struct gendisk *request_disk(struct request *request)
{
	if (bpf_core_field_exists(((struct request___rq_disk *)request)->rq_disk))
		return BPF_CORE_READ((struct request___rq_disk *)request, rq_disk);
	return BPF_CORE_READ(request, q, disk);
}

/* Numbers of system calls are each architecture's own. For registers that the verifier trusts. */
#ifdef __TARGET_ARCH_x86
static __always_inline long system_call(struct pt_regs *registers)
{
	return registers->orig_ax;
}

static __always_inline bool is_accept(long number)
{
	return number == 43 || number == 288;
}

/* read, recvfrom, recvmsg, recvmmsg. */
static __always_inline bool is_receive(long number)
{
	return number == 0 || number == 45 || number == 47 || number == 299;
}

static __always_inline __u64 first_argument(struct pt_regs *registers)
{
	return registers->di;
}
#else
static __always_inline long system_call(struct pt_regs *registers)
{
	return registers->syscallno;
}

static __always_inline bool is_accept(long number)
{
	return number == 202 || number == 242;
}

static __always_inline bool is_receive(long number)
{
	return number == 63 || number == 207 || number == 212 || number == 243;
}

static __always_inline __u64 first_argument(struct pt_regs *registers)
{
	return registers->regs[0];
}
#endif

/* What a descriptor of the current task stands for; what is read of it is nothing where it stands for nothing. */
static __always_inline struct file *current_file(__u32 descriptor)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd), *file = NULL;

	if (descriptor < BPF_CORE_READ(table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), files + descriptor);
	return file;
}

#define MODE_TYPE 0170000
#define MODE_SOCKET 0140000

/* The socket that a descriptor of the current task stands for, or NULL. */
static __always_inline struct sock *current_socket(__u32 descriptor)
{
	struct file *file = current_file(descriptor);

	if ((BPF_CORE_READ(file, f_inode, i_mode) & MODE_TYPE) != MODE_SOCKET)
		return NULL;
	struct socket *socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/* timerqueue_node became timerqueue_linked_node in 7.x. */
static __always_inline __s64 hrtimer_expires(struct hrtimer *timer)
{
	if (bpf_core_type_exists(struct timerqueue_linked_node))
		return BPF_CORE_READ((struct hrtimer___linked *)timer, node.expires);
	return BPF_CORE_READ(timer, node.expires);
}

/* A whole byte, or a bit of one. */
static __always_inline bool hrtimer_is_soft(struct hrtimer *timer)
{
	return BPF_CORE_READ_BITFIELD_PROBED(timer, is_soft);
}

/* `on_cpu` shrank to a byte in 7.x; it is 0 or 1. Without CONFIG_SMP there is none, and only one task can run. */
static __always_inline bool task_on_cpu(struct task_struct *task)
{
	__u8 on_cpu = 1;

	if (bpf_core_field_exists(task->on_cpu))
		bpf_core_read(&on_cpu, sizeof(on_cpu), &task->on_cpu);
	return on_cpu;
}

/* The run queue that a task is on; without CONFIG_FAIR_GROUP_SCHED its cfs_rq is the one inside it. */
static __always_inline struct rq *task_rq(struct task_struct *task)
{
	struct cfs_rq *cfs = BPF_CORE_READ(task, se.cfs_rq);

	if (bpf_core_field_exists(cfs->rq))
		return BPF_CORE_READ(cfs, rq);
	return (void *)cfs - bpf_core_field_offset(struct rq, cfs);
}

/* What the scheduler goes by itself: its clock of a run queue, which it has just read when it switches. */
static __always_inline __u64 scheduler_clock(struct task_struct *task)
{
	struct cfs_rq *cfs = task->se.cfs_rq;

	/* For a task that the verifier trusts: two loads. */
	return bpf_core_field_exists(cfs->rq) ? cfs->rq->clock : BPF_CORE_READ(task_rq(task), clock);
}

/* The same for a task that was read from memory. */
static __always_inline __u64 read_scheduler_clock(struct task_struct *task)
{
	return BPF_CORE_READ(task_rq(task), clock);
}

#endif
