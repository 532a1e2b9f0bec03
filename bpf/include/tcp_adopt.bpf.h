/* SPDX-License-Identifier: GPL-2.0-only */
/* Connections of whose begin no program knows: those from before, and those that came unseen. */
#ifndef TIDEGATE_TCP_ADOPT_BPF_H
#define TIDEGATE_TCP_ADOPT_BPF_H

#include "kernel.bpf.h"
#include "tcp_known.bpf.h"
#include "tcp_progress.bpf.h"
#include "tcp_sockets.bpf.h"

/* Whether this side opened the connection. The kernel marks a port that connect() has chosen, since others
 * may not share it (__inet_hash_connect()); accepted connections share their listener's. A client that has
 * bound its port is known by the SYN, which was acknowledged like a byte: there is one more than bytes_sent
 * has without what was sent again. Where this host itself has dropped something, that may be wrong.
 */
static int has_connected(const struct sock *sk, const struct tcp_sock *tp)
{
	const struct inet_connection_sock *connection = (const void *)tp;
	int state = sk->__sk_common.skc_state;

	if (connection->icsk_bind_hash->fastreuse < 0)
		return 1;
	return (__s64)(payload_sent(tp->bytes_acked, tp->snd_nxt - tp->snd_una, tp->snd_nxt == tp->write_seq,
				    state, 0) -
		       (tp->bytes_sent - tp->bytes_retrans)) > 0;
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

	read_progress(&now, tp, is_client(&socket->connection));
	socket->connection.noted = EVENT_ADOPTED;
	socket->sent = now.sent;
	socket->received = now.received;
	socket->segments_sent = now.segments_sent;
	socket->segments_received = now.segments_received;
	socket->exchanges = now.exchanges;
	if ((sk->sk_shutdown & SHUTDOWN_MASK) == SHUTDOWN_MASK) { /* the service has closed it already */
		socket->connection.closed_ns = socket->began_ns;
		socket->connection.noted |= EVENT_CLOSED;
		socket->counted = EVENT_ADOPTED | EVENT_CLOSED;
	}
}

/* Follow a connection that is open and not known. NULL if there is no place. */
static struct tcp_socket *adopt(const struct sock *sk, const struct tcp_sock *tp)
{
	int state = sk->__sk_common.skc_state, connected = has_connected(sk, tp);
	int is_new = all_are_known && !has_fin_queued(state);
	struct tcp_socket *socket = new_socket(sk);

	if (!socket)
		return entry_of(sk);
	socket->began_ns = bpf_ktime_get_ns();
	socket->retransmits = tp->total_retrans;
	note_ports(socket, sk);
	socket->connection.key.cgroup = socket_cgroup(sk);
	socket->connection.netns = netns_of(sk);
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
