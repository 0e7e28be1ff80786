/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The cgroup of a task in the hierarchy that its containers live in. */
#ifndef KPULSE_CGROUP_H
#define KPULSE_CGROUP_H

/* Set by the loader: the probe's controller is mounted as cgroup v1 here, so the v2 tree has no containers. */
const volatile bool cgroup_v1 = false;

static __always_inline __u64 cgroup_id_v1(struct task_struct *task, __u32 subsys)
{
	struct cgroup_subsys_state *css = NULL;
	struct css_set *set = BPF_CORE_READ(task, cgroups);

	bpf_probe_read_kernel(&css, sizeof(css), &set->subsys[subsys & 15]);
	return BPF_CORE_READ(css, cgroup, kn, id);
}

/*
 * `task` must be a pointer that the verifier trusts, as a tp_btf argument is: then each step is a plain load, a
 * fraction of the cost of a read through a helper. 0 where it cannot be known.
 */
#define task_cgroup_id(task, controller)                                                    \
	({                                                                                  \
		__u64 __id = 0;                                                             \
		if (!cgroup_v1)                                                             \
			__id = (task)->cgroups->dfl_cgrp->kn->id;                           \
		else if (bpf_core_enum_value_exists(enum cgroup_subsys_id, controller)) {   \
			void *__set = (task)->cgroups;                                      \
			struct cgroup_subsys_state **__css =                                \
				__set + bpf_core_field_offset(struct css_set, subsys) +     \
				bpf_core_enum_value(enum cgroup_subsys_id, controller) * 8; \
			__id = (*__css)->cgroup->kn->id;                                    \
		}                                                                           \
		__id;                                                                       \
	})

/* The same for a task that was read from memory: raw tracepoint arguments, bpf_get_current_task(). */
#define read_task_cgroup_id(task, controller)                                                              \
	({                                                                                                 \
		__u64 __id = 0;                                                                            \
		if (!cgroup_v1)                                                                            \
			__id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);                             \
		else if (bpf_core_enum_value_exists(enum cgroup_subsys_id, controller))                    \
			__id = cgroup_id_v1(task, bpf_core_enum_value(enum cgroup_subsys_id, controller)); \
		__id;                                                                                      \
	})

#endif
