/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel fields that Tidegate depends on, and nothing else; offsets are relocated at load
 * (CO-RE). */
#ifndef TIDEGATE_KERNEL_BPF_H
#define TIDEGATE_KERNEL_BPF_H

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	__u64 id;
};

struct cgroup_root {
	int hierarchy_id;
};

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
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

struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	__u16 skc_num;
	__u16 skc_family;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	struct in6_addr skc_v6_daddr;
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
	struct sk_buff_head sk_error_queue;
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct inet_bind_bucket {
	signed char fastreuse;
};

struct inet_connection_sock {
	struct inet_bind_bucket *icsk_bind_hash;
	__u8 icsk_ca_state : 5;
	__u8 icsk_retransmits;
	__u8 icsk_pending;
};

struct tcp_sock {
	__u32 segs_in;
	__u32 segs_out;
	__u64 bytes_received;
	__u64 bytes_acked;
	__u64 bytes_sent; /* retransmits included, and what never left */
	__u64 bytes_retrans;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 srtt_us; /* eight times the smoothed round-trip time */
	__u32 total_retrans;
	__u64 tcp_clock_cache; /* CLOCK_MONOTONIC in ns when the segment at hand came in */
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

#pragma clang attribute pop

#define AF_INET  2
#define AF_INET6 10

/* include/net/tcp_states.h */
enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
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
