/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types that the probes read, and of each only the fields read. Offsets here mean nothing: the loader
 * takes them from the running kernel's BTF (CO-RE). A type with a ___suffix is the same type on other kernels.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef __u16 __sum16;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum {
	BPF_F_USER_STACK = 256,
};

enum {
	BPF_RB_NO_WAKEUP = 1,
};

/* Numbers differ by kernel configuration: only their names count, for CO-RE. */
enum cgroup_subsys_id {
	cpu_cgrp_id,
	memory_cgrp_id,
	io_cgrp_id,
};

/* Of the helpers those that not every kernel has. */
enum bpf_func_id {
	BPF_FUNC_task_pt_regs = 175,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	__u64 id;
	struct kernfs_node *__parent;
	const char *name;
};

/* Before 6.15 (633488947ef6). */
struct kernfs_node___parent {
	struct kernfs_node *parent;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct css_set {
	struct cgroup_subsys_state *subsys[16];
	struct cgroup *dfl_cgrp;
};

struct cfs_rq {
	struct rq *rq;
	__u64 throttled_clock_self_time;
	__u64 throttled_clock_pelt_time;
};

struct rq {
	__u64 clock;
	unsigned int nr_running;
	struct cfs_rq cfs;
	__u64 prev_steal_time_rq;
};

struct sched_entity {
	struct cfs_rq *cfs_rq;
};

struct socket {
	struct sock *sk;
};

struct inode {
	__u16 i_mode;
};

struct file {
	struct inode *f_inode;
	void *private_data;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct percpu_counter {
	__s64 count;
};

struct mm_struct {
	unsigned long start_code;
	unsigned long start_stack;
	unsigned long arg_start;
	unsigned long arg_end;
	unsigned long total_vm;
	struct percpu_counter rss_stat[4];
};

/* Before 6.2 (f1a7941243c1). */
struct mm_rss_stat {
	__s64 count[4];
};

struct mm_struct___rss {
	struct mm_rss_stat rss_stat;
};

struct signal_struct {
	short oom_score_adj;
};

struct linux_binprm {
	const char *interp;
};

/* With CONFIG_SCHED_INFO. */
struct sched_info {
	unsigned long long run_delay;
	unsigned long long last_queued;
};

struct task_struct {
	void *stack;
	unsigned int flags;
	struct mm_struct *mm;
	struct files_struct *files;
	struct signal_struct *signal;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	__u64 start_boottime;
	__u64 parent_exec_id;
	__u64 self_exec_id;
	unsigned int __state;
	int exit_state;
	int on_cpu;
	unsigned long nvcsw;
	unsigned long nivcsw;
	struct sched_entity se;
	struct sched_info sched_info;
	struct css_set *cgroups;
	char comm[16];
};

/* Before 5.14 (2f064a59a1). */
struct task_struct___state {
	volatile long state;
};

struct timerqueue_node {
	__s64 expires;
};

struct hrtimer_clock_base {
	int clockid;
};

struct hrtimer {
	struct timerqueue_node node;
	struct hrtimer_clock_base *base;
	__u8 is_soft;
};

/* Since 7.x. */
struct timerqueue_linked_node {
	__s64 expires;
};

struct hrtimer___linked {
	struct timerqueue_linked_node node;
};

struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk;
};

struct blkcg {
	struct cgroup_subsys_state css;
};

struct blkcg_gq {
	struct blkcg *blkcg;
};

struct bio {
	void *bi_private;
	struct blkcg_gq *bi_blkg;
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	unsigned long long __sector;
	struct bio *bio;
	__u64 io_start_time_ns;
};

/* Before 5.17 (f3fa33acca9f). */
struct request___rq_disk {
	struct gendisk *rq_disk;
};

struct block_device {
	__u32 bd_dev;
};

/* journal_t of jbd2, which is a module on some kernels: then no BTF that we read has it. */
struct journal_s {
	struct block_device *j_fs_dev;
};

struct super_block {
	__u32 s_dev;
};

/* Of XFS, which is a module on most kernels. */
struct xfs_mount {
	struct super_block *m_super;
};

struct xlog {
	struct xfs_mount *l_mp;
};

enum xlog_iclog_state {
	XLOG_STATE_ACTIVE,
	XLOG_STATE_DIRTY = 5,
};

struct xlog_in_core {
	struct xlog *ic_log;
	enum xlog_iclog_state ic_state;
};

struct page_counter {
	struct {
		__s64 counter;
	} usage;
	unsigned long high;
	unsigned long max;
};

struct mem_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter memory;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct device_driver {
	const char *name;
};

struct device {
	struct device *parent;
	struct device_driver *driver;
};

struct net_device {
	char name[16];
	int ifindex;
	possible_net_t nd_net;
	struct netdev_queue *_tx;
	struct device dev;
};

struct in6_addr {
	__u8 bytes[16];
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct sock_common {
	volatile unsigned char skc_state;
	unsigned short skc_family;
	__u16 skc_num;
	__be16 skc_dport;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

typedef struct {
	int owned;
} socket_lock_t;

struct sk_buff_head {
	struct sk_buff *next;
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	atomic_t refs;
} refcount_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	refcount_t sk_wmem_alloc;
	int sk_sndbuf;
	struct sk_buff_head sk_receive_queue;
	__u16 sk_type;
	__u16 sk_protocol;
	int sk_err;
	struct sock_cgroup_data sk_cgrp_data;
};

/* Before 5.15 (8520e224f547). */
struct sock_cgroup_data___val {
	__u64 val;
};

struct sock___val {
	struct sock_cgroup_data___val sk_cgrp_data;
};

struct inet_sock {
	__be16 inet_sport;
};

/* Numbers differ by kernel release. */
enum skb_drop_reason {
	SKB_DROP_REASON_NOT_SPECIFIED,
};

struct request_sock;

struct tcp_request_sock {
	__u32 snt_isn;
};

struct udp_sock {
	int forward_deficit;
	struct sk_buff_head reader_queue;
};

struct inet_connection_sock {
	__u8 icsk_ca_state : 5;
};

struct tcp_sock {
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_una;
	__u32 write_seq;
	__u32 srtt_us;
	__u32 packets_out;
	__u32 sacked_out;
	__u32 lost_out;
	__u32 retrans_out;
	__u32 total_retrans;
	__u32 chrono_start;
	__u32 chrono_stat[3];
	__u8 chrono_type : 2;
};

struct tcp_skb_cb {
	__u32 seq;
	__u16 tcp_gso_segs;
};

struct Qdisc_ops {
	char id[16];
};

struct Qdisc {
	void *enqueue;
	const struct Qdisc_ops *ops;
};

struct netdev_queue {
	struct net_device *dev;
	struct Qdisc *qdisc;
};

struct sk_buff {
	struct sk_buff *next;
	struct net_device *dev;
	struct sock *sk;
	unsigned int len;
	unsigned int data_len;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	unsigned char *head;
	unsigned int tail;
	int skb_iif;
	__u64 skb_mstamp_ns;
	__s64 tstamp;
	char cb[48];
};

struct mce {
	__u64 status;
	__u64 misc;
	__u64 addr;
	__u64 mcgstatus;
	__u64 ip;
	__u8 cpuvendor;
	__u8 bank;
	__u32 extcpu;
	__u32 socketid;
	__u64 synd;
	__u64 ipid;
	__u32 microcode;
};

struct mce_hw_err {
	struct mce m;
};

#ifdef __TARGET_ARCH_x86
struct pt_regs {
	unsigned long di;
	unsigned long orig_ax;
};
#else
struct pt_regs {
	__u64 regs[31];
	__s32 syscallno;
};
#endif

#pragma clang attribute pop

/* Contexts of programs are user ABI: their layout is fixed. */
struct bpf_raw_tracepoint_args {
	__u64 args[0];
};

struct bpf_iter__task {
	void *meta;
	struct task_struct *task; /* NULL after the last one */
};

#if defined(__TARGET_ARCH_x86)
#define REGISTERS_BEFORE_IP 16
#elif defined(__TARGET_ARCH_arm64)
#define REGISTERS_BEFORE_IP 32
#endif
struct bpf_perf_event_data {
	__u64 registers[REGISTERS_BEFORE_IP];
	__u64 ip;
#ifdef __TARGET_ARCH_x86
	__u64 cs;
	__u64 flags;
	__u64 sp;
	__u64 ss;
#endif
};

#endif
