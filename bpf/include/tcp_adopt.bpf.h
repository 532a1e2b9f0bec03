/* SPDX-License-Identifier: GPL-2.0-only */
/* Connections of whose begin no program knows: those from before, and those that came unseen. */
#ifndef TIDEGATE_TCP_ADOPT_BPF_H
#define TIDEGATE_TCP_ADOPT_BPF_H

#include "kernel.bpf.h"
#include "tcp_progress.bpf.h"
#include "tcp_sockets.bpf.h"

static int has_fin_queued(int state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING ||
	       state == TCP_LAST_ACK;
}

/* Whether this side opened the connection. The SYN of one that did is acknowledged like a byte (tcp_ack() in
 * SYN_SENT), that of one that accepted is not, and all that was sent is either acknowledged or in flight.
 */
static int has_connected(const struct tcp_sock *tp, int state)
{
	__u32 payload = tp->bytes_sent - tp->bytes_retrans;
	__u32 sequence = (__u32)tp->bytes_acked + (tp->snd_nxt - tp->snd_una);

	return (__s32)(sequence - payload) - has_fin_queued(state) > 0;
}

/* Set once all connections that were open at the start are in tcp_sockets. Whatever is open and not there has
 * come since, and no program saw it. Those that a dead process left half closed, in a namespace that nobody
 * enters any more, may still be from before.
 */
__u8 all_are_known;

/* A connection from before: what it did until now is not counted. */
static void begin_here(struct tcp_socket *socket, const struct sock *sk, const struct tcp_sock *tp)
{
	struct progress now;

	read_progress(&now, tp);
	socket->connection.noted = EVENT_ADOPTED;
	socket->sent = now.sent;
	socket->received = now.received;
	socket->segments_sent = now.segments_sent;
	socket->segments_received = now.segments_received;
	if ((sk->sk_shutdown & SHUTDOWN_MASK) == SHUTDOWN_MASK) { /* the service has closed it already */
		socket->connection.closed_ns = socket->began_ns;
		socket->connection.noted |= EVENT_CLOSED;
		socket->counted = EVENT_ADOPTED | EVENT_CLOSED;
	}
}

/* Follow a connection that is open and not known. NULL if there is no place. */
static struct tcp_socket *adopt(const struct sock *sk, const struct tcp_sock *tp)
{
	int state = sk->__sk_common.skc_state, connected = has_connected(tp, state);
	int is_new = all_are_known && !has_fin_queued(state);
	struct tcp_socket *socket = new_socket(sk, BPF_NOEXIST);

	if (!socket)
		return known_socket(sk);
	socket->began_ns = bpf_ktime_get_ns();
	socket->retransmits = tp->total_retrans;
	note_ports(socket, sk);
	socket->connection.key.cgroup = socket_cgroup(sk);
	if (connected)
		remote_endpoint(sk, &socket->connection.key);
	else
		local_endpoint(sk, &socket->connection.key);
	if (is_new) {
		note(socket, connected ? EVENT_CONNECT | EVENT_ESTABLISHED : EVENT_ESTABLISHED);
		lose(TCP_LOSS_LATE, 1);
	} else {
		begin_here(socket, sk, tp);
	}
	show_to_walks(socket, sk);
	count_unless_walked(sk, tp);
	return socket;
}

static int is_connected(int state)
{
	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT || has_fin_queued(state);
}

/* The entry of a connected socket, made now if no event was seen of it. */
static struct tcp_socket *known_or_adopted(const struct sock *sk, const struct tcp_sock *tp)
{
	struct tcp_socket *known = known_socket(sk);

	if (known || !is_connected(sk->__sk_common.skc_state))
		return known;
	return adopt(sk, tp);
}

#endif
