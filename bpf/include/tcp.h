/* SPDX-License-Identifier: GPL-2.0-only */
/* What the TCP programs and the agent exchange. */
#ifndef TIDEGATE_TCP_H
#define TIDEGATE_TCP_H

#include <linux/types.h>
#include "histogram.h"

enum tcp_role {
	TCP_ROLE_CLIENT = 0,
	TCP_ROLE_SERVER = 1,
	TCP_ROLE_COUNT = 2,
};

/* Why a connect came to nothing. All but RESET are ends of the handshake; RESET is a connection
 * that was established and then reset by the peer before it sent a single byte.
 */
enum tcp_failure {
	TCP_FAILURE_REFUSED = 0,
	TCP_FAILURE_TIMEOUT = 1,
	TCP_FAILURE_UNREACHABLE = 2,
	TCP_FAILURE_PORTS_EXHAUSTED = 3,
	TCP_FAILURE_RESET = 4,
	TCP_FAILURE_ABORTED = 5,
	TCP_FAILURE_DENIED = 6,
	TCP_FAILURE_OTHER = 7,
	TCP_FAILURE_COUNT = 8,
};

/* What the programs had to leave out, by index in tcp_losses. */
enum tcp_loss {
	TCP_LOSS_ROWS_FULL = 0, /* events that went to tcp_other because the table took no new row */
	TCP_LOSS_UNTRACKED = 1, /* connections that found no place in tcp_sockets: in no row */
	TCP_LOSS_LATE = 2,      /* changes of state that no program saw, made up for at the socket's next */
	TCP_LOSS_COUNT = 3,
};

/* The listening side of a connection: the remote address for a client; only the local port for a
 * server (family 0). Family is 4 or 6; IPv4, mapped or not, is in the first word.
 */
struct tcp_key {
	__u64 cgroup;
	__be32 address[4];
	__u16 port; /* host order */
	__u8 role;
	__u8 family;
	__u32 pad;
};

struct tcp_counts {
	__u64 connects;
	__u64 established;
	__u64 closed; /* of the established: shut down both ways by the service, or ended */
	__u64 failures[TCP_FAILURE_COUNT];
	__u64 handshake_ns;               /* sum over the histogram */
	__u32 handshake[HISTOGRAM_SLOTS]; /* client: SYN sent to established */
};

#endif
