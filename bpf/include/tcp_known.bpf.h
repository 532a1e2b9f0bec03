/* SPDX-License-Identifier: GPL-2.0-only */
/* Finding the entry of a socket, and leaving one whose socket was destroyed unseen. */
#ifndef TIDEGATE_TCP_KNOWN_BPF_H
#define TIDEGATE_TCP_KNOWN_BPF_H

#include "kernel.bpf.h"
#include "tcp_progress.bpf.h"
#include "tcp_rows.bpf.h"
#include "tcp_sockets.bpf.h"

static int is_connecting(const struct tcp_socket *socket)
{
	return (socket->connection.noted & (EVENT_CONNECT | EVENT_ESTABLISHED | EVENT_ENDED)) ==
	       EVENT_CONNECT;
}

static void fail(struct tcp_socket *socket, enum tcp_failure failure)
{
	socket->connection.failure = failure;
	note(socket, EVENT_FAILED);
}

/* For the service the connection is closed. */
static void close(struct tcp_socket *socket)
{
	if (has(socket, EVENT_CLOSED))
		return;
	socket->connection.closed_ns = bpf_ktime_get_ns();
	note(socket, EVENT_CLOSED);
}

/* Forget a socket that was destroyed unseen, with what was known of it last. */
static void forget_unseen(struct tcp_socket *known)
{
	__u32 segments = known->last.retransmits - known->retransmits;
	struct progress last = known->last;
	struct tcp_counts *counts;
	__u64 key = known->sk;

	if (!has(known, EVENT_ENDED)) {
		lose(TCP_LOSS_END_UNSEEN, 1);
		if (is_connecting(known))
			fail(known, TCP_FAILURE_OTHER);
		else
			close(known);
		counts = row_of(&known->connection);
		if (counts && (__s32)segments > 0) {
			add(&counts->retransmits[TCP_RETRANSMIT_TIMEOUT], segments);
			lose(TCP_LOSS_RETRANSMITS_UNSEEN, segments);
		}
	}
	count_progress(known, key, known->began_ns, &last, 1);
	bpf_map_delete_elem(&tcp_sockets, &key);
}

/* The port of a closed socket is given back before the event. */
static int is_of(const struct tcp_socket *socket, const struct sock *sk)
{
	__u16 local_port = sk->__sk_common.skc_num;

	return socket->remote_port == sk->__sk_common.skc_dport &&
	       (!socket->local_port || !local_port || socket->local_port == local_port);
}

/* The entry of a connection. One of a socket of before with the same address is forgotten: neither its end
 * nor the begin of this one was seen.
 */
static struct tcp_socket *known_socket(const struct sock *sk)
{
	struct tcp_socket *socket = entry_of(sk);

	if (!socket || is_of(socket, sk))
		return socket;
	forget_unseen(socket);
	return 0;
}

#endif
