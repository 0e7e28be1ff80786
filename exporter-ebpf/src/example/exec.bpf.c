/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The example of CONTRIBUTING.md: programs that were started.
 * Hook: sched_process_exec. Key: the task's cgroup.
 */
#include "probe.h"
#include "cgroup.h"
#include "by_cgroup.h"

BY_CGROUP(execs, __u64);

SEC("tp_btf/sched_process_exec")
int BPF_PROG(sched_process_exec, struct task_struct *task)
{
	__u64 cgroup_id = task_cgroup_id(task, cpu_cgrp_id);

	count_by_cgroup(&execs, &cgroup_id, 1);
	return 0;
}
