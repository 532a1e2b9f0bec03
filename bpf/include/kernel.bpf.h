/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel fields that Tidegate depends on, and nothing else; offsets are relocated at load
 * (CO-RE). */
#ifndef TIDEGATE_KERNEL_BPF_H
#define TIDEGATE_KERNEL_BPF_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	__u64 id;
	struct kernfs_node *parent;
	const char *name;
};

struct kernfs_node___renamed { /* since 6.15 */
	struct kernfs_node *__parent;
};

struct cgroup_root {
	int hierarchy_id;
};

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1]; /* as many as the kernel has controllers */
	struct cgroup *dfl_cgrp;
};

struct task_struct {
	int pid;
	int tgid;
	char comm[16];
	struct css_set *cgroups;
};

struct trace_event_raw_mark_victim {
	__u32 __data_loc_comm;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/* Before 5.15 (8520e224f547 "bpf, cgroups: Fix cgroup v2 fallback on v1/v2 mixed mode") the pointer
 * shared a word with net_cls data, told apart by the lowest bit.
 */
struct sock_cgroup_data___shared {
	__u64 val;
};

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct ns_common {
	__u32 inum;
};

struct local_ports {
	__u32 range; /* high << 16 | low */
};

/* Before 6.8 (41db7626b732 "inet: returns a bool from inet_sk_get_local_port_range()" and its series) */
struct local_ports___pair {
	int range[2];
};

struct netns_ipv4 {
	struct local_ports ip_local_ports;
	unsigned long *sysctl_local_reserved_ports; /* a bit for each port */
	__u8 sysctl_tcp_tw_reuse;
	__u32 sysctl_tcp_tw_reuse_delay; /* ms, since 6.14 */
};

struct netns_ipv4___pair {
	struct local_ports___pair ip_local_ports;
};

struct netns_core {
	int sysctl_somaxconn;
};

struct net {
	struct ns_common ns;
	struct netns_core core;
	struct netns_ipv4 ipv4;
};

struct net___pair {
	struct netns_ipv4___pair ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	__u16 skc_family;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	possible_net_t skc_net;
};

struct sk_buff {
	char cb[48];
};

struct sk_buff_head {
	struct sk_buff *next;
	__u32 qlen;
};

struct sock_extended_err {
	__u32 ee_errno;
};

struct sock_exterr_skb { /* in sk_buff.cb of an error queue */
	struct sock_extended_err ee;
};

struct qspinlock {
	union {
		struct {
			int counter;
		} val;
	};
};

struct raw_spinlock {
	struct qspinlock raw_lock;
};

struct spinlock { /* not of a kernel with PREEMPT_RT */
	union {
		struct raw_spinlock rlock;
	};
};

typedef struct {
	struct spinlock slock;
	int owned;
} socket_lock_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	__u16 sk_protocol;
	__u8 sk_shutdown;
	int sk_err;
	int sk_err_soft;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	struct {
		int counter;
	} sk_drops;
	struct sk_buff_head sk_error_queue;
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct inet_bind_bucket {
	signed char fastreuse;
	signed char fastreuseport;
};

struct inet_connection_sock {
	struct inet_bind_bucket *icsk_bind_hash;
	__u8 icsk_ca_state : 5;
	__u8 icsk_retransmits;
	__u8 icsk_pending;
};

struct minmax_sample {
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_sock {
	__u32 segs_in;
	__u32 segs_out;
	__u32 data_segs_in;
	__u32 data_segs_out;
	__u64 bytes_received;
	__u64 bytes_acked;
	__u64 bytes_sent; /* retransmits included, and what never left */
	__u64 bytes_retrans;
	__u32 rcv_nxt;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 srtt_us;         /* eight times the smoothed round-trip time */
	struct minmax rtt_min; /* us; ~0 where none was measured */
	__u32 total_retrans;
	__u64 tcp_clock_cache; /* CLOCK_MONOTONIC in ns when the segment at hand came in */
};

struct inet_timewait_sock {
	struct sock_common __tw_common;
	__u32 tw_entry_stamp; /* ms, since 6.14 (ca6a6f93867a "tcp: add TCP_RFC7323_TW_PAWS drop reason" and
				 its series) */
	struct inet_bind_bucket *tw_tb;
};

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
	int tw_ts_recent_stamp; /* s; 0 where the connection had no timestamps */
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	void *key;
	void *value;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct sock *sk;
	void *value;
};

#pragma clang attribute pop

/* include/linux/cgroup_subsys.h: values differ by configuration */
enum cgroup_subsys_id {
	memory_cgrp_id,
};

#define AF_INET  2
#define AF_INET6 10

/* include/net/tcp_states.h */
enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
};

/* include/net/sock.h, enum sock_flags: bits of skc_flags */
enum sock_flag {
	SOCK_DEAD = 0, /* no process has the socket any more */
	SOCK_DONE = 1, /* the peer's FIN has come */
};

/* include/net/tcp.h and include/net/inet_connection_sock.h */
enum {
	TCP_CA_RECOVERY = 3,
	TCP_CA_LOSS = 4,
	ICSK_TIME_LOSS_PROBE = 5,
};

#endif
