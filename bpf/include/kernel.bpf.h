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

struct sock {
	struct sock_common __sk_common;
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

struct inet_connection_sock {
	__u8 icsk_retransmits;
};

struct tcp_sock {
	__u32 segs_in;
	__u32 segs_out;
	__u64 bytes_received;
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
	TCP_CLOSE = 7,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
};

#endif
