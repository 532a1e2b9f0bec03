/* SPDX-License-Identifier: GPL-2.0-only */
/* What the programs that count local ports and the agent exchange. */
#ifndef TIDEGATE_PORTS_H
#define TIDEGATE_PORTS_H

#include <linux/types.h>

/* The upstream and the source address between which a local port is taken. IPv4, mapped or not, is in the
 * first words. The cgroup is 0 for what the kernel attributes to none, as in TIME_WAIT.
 */
struct ports_key {
	__u64 cgroup;
	__be32 source[4];
	__be32 address[4];
	__u32 netns; /* inode of the network namespace */
	__u16 port;  /* host order */
	__u8 family; /* 4 or 6 */
	__u8 pad;
};

/* Sockets of connections, each of which holds a local port. */
struct ports_held {
	__u32 sockets;
	__u32 closing; /* of these, that were closed here first, are counted as such, and will wait in
			  TIME_WAIT */
};

/* Sockets in TIME_WAIT, each of which holds a local port. */
struct ports_waiting {
	__u32 sockets;
	__u32 timestamped; /* of these, with which tcp_tw_reuse may work */
	__u32 reusable;    /* of these, whose port connect() takes already */
	__u32 pad;
};

/* What one network namespace lets connect() choose from. */
struct ports_namespace {
	__u64 read_ns; /* CLOCK_MONOTONIC */
	__u16 low;     /* ip_local_port_range */
	__u16 high;
	__u32 reserved; /* of these, in ip_local_reserved_ports */
	__u32 tw_reuse; /* 0 off, 1 on, 2 on for loopback */
	__u32 tw_reuse_delay_ms;
	__u32 somaxconn;
	__u32 time_wait; /* sockets in TIME_WAIT of either side; only of a namespace that was entered */
};

struct ports_listener_key {
	__u64 cgroup;
	__be32 address[4];
	__u16 port; /* host order */
	__u8 family;
	__u8 pad[5];
};

/* Sums over the sockets that share the port (SO_REUSEPORT). */
struct ports_listener {
	__u32 backlog; /* connections that wait to be accepted */
	__u32 limit;
	__u64 drops;
};

#endif
