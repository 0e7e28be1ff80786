/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Commits of a jbd2 journal, phase by phase.
 * Hooks: jbd2_start_commit, jbd2_commit_flushing, jbd2_commit_logging, jbd2_end_commit. Key: device and phase. All run
 * in the journal's own thread, so a key has one writer. jbd2_run_stats tells the same in jiffies: too coarse.
 */
#include "probe.h"
#include "histogram.h"
#include "losses.h"
#include "value_or_new.h"
#include "jbd2.h"

#define JOURNALS 256

struct commit {
	__u64 since_ns;
	__u64 phase;
};

/* Bound: journals with a commit under way. Over it the oldest gives way, and its commit is not measured. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, JOURNALS);
	__type(key, __u32);
	__type(value, struct commit);
} commits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, JOURNALS *PHASES);
	__type(key, struct jbd2_key);
	__type(value, struct histogram);
} phases SEC(".maps");

static __always_inline int begin(__u32 dev)
{
	struct commit commit = { .since_ns = bpf_ktime_get_ns(), .phase = PHASE_LOCKING };

	bpf_map_update_elem(&commits, &dev, &commit, BPF_ANY);
	return 0;
}

static __always_inline void count(__u32 dev, __u32 phase, __u64 ns)
{
	struct jbd2_key key = { .dev = dev, .phase = phase };
	struct histogram nothing = {}, *histogram = value_or_new(&phases, &key, &nothing);

	if (histogram)
		histogram_add(histogram, ns);
	else
		lose(1);
}

/* `phase` ends. A commit whose begin or last phase was not seen is left out. */
static __always_inline int end(__u32 dev, __u32 phase)
{
	struct commit *commit = bpf_map_lookup_elem(&commits, &dev);
	__u64 now_ns = bpf_ktime_get_ns();

	if (!commit || commit->phase != phase)
		return 0;
	count(dev, phase, now_ns - commit->since_ns);
	commit->since_ns = now_ns;
	commit->phase = phase + 1;
	if (phase == PHASE_LOGGING)
		bpf_map_delete_elem(&commits, &dev);
	return 0;
}

SEC("tp_btf/jbd2_start_commit")
int BPF_PROG(jbd2_start_commit, struct journal_s *journal)
{
	return begin(journal->j_fs_dev->bd_dev);
}

SEC("tp_btf/jbd2_commit_flushing")
int BPF_PROG(jbd2_commit_flushing, struct journal_s *journal)
{
	return end(journal->j_fs_dev->bd_dev, PHASE_LOCKING);
}

SEC("tp_btf/jbd2_commit_logging")
int BPF_PROG(jbd2_commit_logging, struct journal_s *journal)
{
	return end(journal->j_fs_dev->bd_dev, PHASE_FLUSHING);
}

SEC("tp_btf/jbd2_end_commit")
int BPF_PROG(jbd2_end_commit, struct journal_s *journal)
{
	return end(journal->j_fs_dev->bd_dev, PHASE_LOGGING);
}

/* Where jbd2 is a module: of every jbd2 tracepoint the first field is the device, since 2.6.31. */
struct jbd2_context {
	__u64 common;
	__u32 dev;
};

SEC("tracepoint/jbd2/jbd2_start_commit")
int jbd2_start_commit_classic(struct jbd2_context *context)
{
	return begin(context->dev);
}

SEC("tracepoint/jbd2/jbd2_commit_flushing")
int jbd2_commit_flushing_classic(struct jbd2_context *context)
{
	return end(context->dev, PHASE_LOCKING);
}

SEC("tracepoint/jbd2/jbd2_commit_logging")
int jbd2_commit_logging_classic(struct jbd2_context *context)
{
	return end(context->dev, PHASE_FLUSHING);
}

SEC("tracepoint/jbd2/jbd2_end_commit")
int jbd2_end_commit_classic(struct jbd2_context *context)
{
	return end(context->dev, PHASE_LOGGING);
}
