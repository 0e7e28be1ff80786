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

#endif
