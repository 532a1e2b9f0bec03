/* SPDX-License-Identifier: GPL-2.0-only */
/* Segments that were sent again. The kernel counts them in the socket as it counts them for the node
 * (RetransSegs); the tracepoint comes once for each packet, of any number of segments, and says why.
 */
#ifndef TIDEGATE_TCP_RETRANSMIT_BPF_H
#define TIDEGATE_TCP_RETRANSMIT_BPF_H

#include <bpf/bpf_core_read.h>
#include "kernel.bpf.h"
#include "tcp_adopt.bpf.h"
#include "tcp_rows.bpf.h"
#include "tcp_sockets.bpf.h"

static enum tcp_retransmit retransmit_of(const struct sock *sk, const struct tcp_sock *tp)
{
	const struct inet_connection_sock *connection = (const void *)tp;
	int state = sk->__sk_common.skc_state;

	if (state == TCP_SYN_SENT || state == TCP_SYN_RECV)
		return TCP_RETRANSMIT_SYN;
	switch (BPF_CORE_READ_BITFIELD(connection, icsk_ca_state)) {
	case TCP_CA_LOSS:
		return TCP_RETRANSMIT_TIMEOUT;
	case TCP_CA_RECOVERY:
		return TCP_RETRANSMIT_FAST;
	}
	return connection->icsk_pending == ICSK_TIME_LOSS_PROBE ? TCP_RETRANSMIT_PROBE : TCP_RETRANSMIT_FAST;
}

/* Count what the socket has retransmitted since the last time, and return how much that was. */
static __u32 count_retransmits(const struct sock *sk, const struct tcp_sock *tp, struct tcp_socket *known)
{
	__u32 kind, segments = tp->total_retrans - known->retransmits;
	struct tcp_counts *counts;

	if (!segments || (__s32)segments < 0)
		return 0;
	known->retransmits = tp->total_retrans;
	counts = row_of(&known->connection);
	kind = retransmit_of(sk, tp);
	if (counts && kind < TCP_RETRANSMIT_COUNT)
		add(&counts->retransmits[kind], segments);
	return segments;
}

/* The rest at the end of a connection: retransmits of which no program heard, so their kind is a guess. */
static void count_unseen_retransmits(const struct sock *sk, const struct tcp_sock *tp,
				     struct tcp_socket *known)
{
	__u32 segments = count_retransmits(sk, tp, known);

	if (segments)
		lose(TCP_LOSS_RETRANSMITS_UNSEEN, segments);
}

static int on_retransmit(const struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock((void *)sk);
	struct tcp_socket *known;

	if (!tp)
		return 0;
	known = known_or_adopted(sk, tp);
	if (known)
		count_retransmits(sk, tp, known);
	count_unless_walked(sk, tp);
	return 0;
}

/* SYN-ACKs that were sent again for a listener, and of these what the connections say that came of it. Some
 * handshakes come to nothing, so there are never more of the latter, unless the event of one passed unseen.
 */
struct tcp_synacks {
	__u64 seen;
	__u64 inherited;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024); /* for listeners past these nothing is made up */
	__type(key, struct tcp_key);
	__type(value, struct tcp_synacks);
} tcp_synacks SEC(".maps");

static struct tcp_synacks *synacks_of(const struct tcp_key *key)
{
	struct tcp_synacks none = {}, *found = bpf_map_lookup_elem(&tcp_synacks, key);

	if (found)
		return found;
	bpf_map_update_elem(&tcp_synacks, key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tcp_synacks, key);
}

static void count_synacks(const struct tcp_key *key, __u64 segments)
{
	struct tcp_counts *counts = any_row(key);

	if (counts)
		add(&counts->retransmits[TCP_RETRANSMIT_SYNACK], segments);
}

/* A handshake that nobody has answered yet belongs to the listener. */
static int on_synack_retransmit(const struct sock *sk)
{
	struct tcp_key key = { .cgroup = socket_cgroup(sk) };
	struct tcp_synacks *synacks;

	local_endpoint(sk, &key);
	count_synacks(&key, 1);
	synacks = synacks_of(&key);
	if (synacks)
		add(&synacks->seen, 1);
	return 0;
}

/* A connection of a listener has come about after so many SYN-ACKs were sent again. */
static void inherit_synacks(const struct tcp_key *key, __u32 segments)
{
	struct tcp_synacks *synacks = segments ? synacks_of(key) : 0;
	__u64 unseen;

	if (!synacks)
		return;
	add(&synacks->inherited, segments);
	if (synacks->inherited <= synacks->seen)
		return;
	unseen = synacks->inherited - synacks->seen;
	synacks->seen = synacks->inherited;
	count_synacks(key, unseen);
	lose(TCP_LOSS_RETRANSMITS_UNSEEN, unseen);
}

#endif
