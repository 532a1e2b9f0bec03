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

/* Who ended an established connection: sent the first FIN or a reset, or nobody did and the kernel lost
 * patience.
 */
enum tcp_closer {
	TCP_CLOSER_LOCAL = 0,
	TCP_CLOSER_REMOTE = 1,
	TCP_CLOSER_TIMEOUT = 2,
	TCP_CLOSER_COUNT = 3,
};

/* What made the kernel send a segment again: no answer to a SYN or SYN-ACK, acknowledgements that tell of a
 * loss, the retransmission timer, or a tail loss probe.
 */
enum tcp_retransmit {
	TCP_RETRANSMIT_SYN = 0,
	TCP_RETRANSMIT_SYNACK = 1,
	TCP_RETRANSMIT_FAST = 2,
	TCP_RETRANSMIT_TIMEOUT = 3,
	TCP_RETRANSMIT_PROBE = 4,
	TCP_RETRANSMIT_COUNT = 5,
};

enum tcp_reset {
	TCP_RESET_SENT = 0,
	TCP_RESET_RECEIVED = 1,
	TCP_RESET_COUNT = 2,
};

/* What the programs had to leave out, by index in tcp_losses. */
enum tcp_loss {
	TCP_LOSS_ROWS_FULL =
	    0, /* what went to tcp_other, a connection at a time, as the table took no new row */
	TCP_LOSS_UNTRACKED = 1, /* connections that found no place in tcp_sockets: in no row */
	TCP_LOSS_LATE = 2,      /* changes of state that no program saw, made up for later */
	TCP_LOSS_END_UNSEEN =
	    3, /* ends that were not seen at all: what came since the last walk is missing */
	TCP_LOSS_RETRANSMITS_UNSEEN = 4, /* retransmits that no program saw: counted, their kind is a guess */
	TCP_LOSS_PORTS_FULL = 5, /* sockets whose port found no place in tcp_ports, at every walk anew */
	TCP_LOSS_COUNT = 6,
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

/* The cgroup of rows that belong to no service but to the kernel itself; ids of cgroups count up from 1. */
enum tcp_cgroup {
	TCP_CGROUP_KERNEL = 0x7fffffff,
};

struct tcp_counts {
	__u64 connects;
	__u64 established;
	__u64 adopted; /* were open before the programs were attached */
	__u64 closed;  /* of both: shut down both ways by the service, or ended */
	__u64 failures[TCP_FAILURE_COUNT];
	__u64 closes[TCP_CLOSER_COUNT];
	__u64 retransmits[TCP_RETRANSMIT_COUNT]; /* segments */
	__u64 resets[TCP_RESET_COUNT];
	__u64 sent_bytes;     /* payload, each byte once */
	__u64 received_bytes; /* payload, in order */
	__u64 segments_sent;  /* all that the socket sent, retransmits included */
	__u64 segments_received;
	__u64 exchanges; /* requests with their responses, at most: of each connection the smaller of the data
			  * segments sent and received */
	/* sums over the histograms */
	__u64 handshake_ns;
	__u64 duration_ns;
	__u64 rtt_ns;
	/* not counts: */
	__u32 rtt_min_us;                 /* the shortest round trip; 0 where none was measured */
	__u32 netns;                      /* inode of the network namespace of one of the connections */
	__u32 handshake[HANDSHAKE_SLOTS]; /* client: SYN sent to established */
	__u32 duration[DURATION_SLOTS];   /* established to closed */
	__u32 rtt[RTT_SLOTS];             /* smoothed round-trip time, sampled at walks and at the end */
};

#endif
