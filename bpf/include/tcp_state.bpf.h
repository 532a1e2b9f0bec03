/* SPDX-License-Identifier: GPL-2.0-only */
/* What each change of a socket's state says of its connection. */
#ifndef TIDEGATE_TCP_STATE_BPF_H
#define TIDEGATE_TCP_STATE_BPF_H

#include "kernel.bpf.h"
#include "tcp_adopt.bpf.h"
#include "tcp_failure.bpf.h"
#include "tcp_known.bpf.h"
#include "tcp_pool.bpf.h"
#include "tcp_progress.bpf.h"
#include "tcp_retransmit.bpf.h"
#include "tcp_sockets.bpf.h"

/* The kernel leaves out a program that is already running on the CPU: a softirq that changes a socket's
 * state while the program works for a process would go uncounted (05b24ff9b2cf "bpf: Prevent bpf program
 * recursion for raw tracepoint probes"). So the programs are attached twice, and each event is done by the
 * first pass that runs: while one of the two is interrupted, the other is free, and there is no third level.
 * That all is done tells the CPU's last event, or else the socket's entry, which changes under its lock.
 */
enum pass {
	PASS_FIRST = 1,
	PASS_SECOND = 2,
};

static void close_by(struct tcp_socket *socket, enum tcp_closer closer)
{
	if (has(socket, EVENT_CLOSER))
		return;
	socket->connection.closer = closer;
	note(socket, EVENT_CLOSER);
}

static enum tcp_closer closer_of(const struct sock *sk)
{
	switch (sk->sk_err) {
	case 0:
	case ECONNABORTED: /* ss -K */
		return TCP_CLOSER_LOCAL;
	case ECONNRESET:
	case EPIPE:
		return TCP_CLOSER_REMOTE;
	}
	return TCP_CLOSER_TIMEOUT;
}

/* The handshake was completed and no program saw it, so how long it took is not known. */
static void establish_late(struct tcp_socket *socket)
{
	count_connected(socket);
	socket->connection.established_ns = socket->connection.syn_ns;
	note(socket, EVENT_ESTABLISHED);
	lose(TCP_LOSS_LATE, 1);
}

/* The end of a connection that was established. */
static void end_established(const struct sock *sk, const struct tcp_sock *tp, struct tcp_socket *known)
{
	close_by(known, closer_of(sk));
	if (has(known, EVENT_CLOSED))
		return;
	close(known);
	if (has(known, EVENT_CONNECT) && sk->sk_err == ECONNRESET && !tp->bytes_received)
		fail(known, TCP_FAILURE_RESET);
}

static void count_at_event(const struct tcp_sock *tp, struct tcp_socket *known, int is_last)
{
	__u64 key = known->sk;
	struct progress now;

	read_progress(&now, tp, is_client(&known->connection));
	count_progress(known, key, known->began_ns, &now, is_last);
	if (is_last)
		bpf_map_delete_elem(&tcp_sockets, &key);
}

/* Forget a socket that has ended. Its counters are no more those of the connection: connect(AF_UNSPEC) and a
 * close that resets set them to 0.
 */
static void forget(struct tcp_socket *known)
{
	struct progress last = known->last;
	__u64 key = known->sk;

	count_progress(known, known->sk, known->began_ns, &last, 1);
	bpf_map_delete_elem(&tcp_sockets, &key);
}

/* The connection is over: note how, and count all of it but what the socket does on its way out. */
static void end(const struct sock *sk, const struct tcp_sock *tp, struct tcp_socket *known, int oldstate,
		int is_late)
{
	__u32 failure;

	if (is_late)
		lose(TCP_LOSS_LATE, 1);
	if (!is_connecting(known)) {
		end_established(sk, tp, known);
	} else if ((oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV) && !tp->bytes_acked) {
		failure = is_late ? late_failure_of(sk, tp) : failure_of(sk, tp, known);
		fail(known, failure);
		tell_failure(sk, tp, known, failure);
	} else {
		establish_late(known);
		end_established(sk, tp, known);
	}
	note(known, EVENT_ENDED);
	count_unseen_retransmits(sk, tp, known);
	/* A socket that a process still has may yet send a reset, or be connected again. */
	count_at_event(tp, known, sk->__sk_common.skc_flags >> SOCK_DEAD & 1);
}

/* Returns 1 where there is no place, so that the second pass tries again. Only the failure of the second pass
 * is a loss: it comes last.
 */
static int no_place(enum pass pass)
{
	if (pass == PASS_SECOND)
		lose(TCP_LOSS_UNTRACKED, 1);
	return 1;
}

static int connecting(struct sock *sk, enum pass pass)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_socket *socket = new_socket(sk);

	if (!tp)
		return 0;
	if (!socket) {
		socket = entry_of(sk);
		if (!socket)
			return no_place(pass);
		if (pass == PASS_SECOND && is_connecting(socket))
			return 0;
		if (has(socket, EVENT_ENDED)) /* the connect before, of the same socket */
			forget(socket);
		else
			forget_unseen(socket);
		socket = new_socket(sk);
		if (!socket)
			return no_place(pass);
	}
	socket->connection.syn_ns = socket->began_ns = bpf_ktime_get_ns();
	socket->connection.key.cgroup = socket_cgroup(sk);
	socket->connection.netns = netns_of(sk);
	remote_endpoint(sk, &socket->connection.key);
	/* Of the connects before, where the socket is used again. */
	socket->segments_sent = socket->segs_out = tp->segs_out;
	socket->segments_received = tp->segs_in;
	socket->exchanges = exchanges_of(tp->data_segs_out, tp->data_segs_in);
	socket->retransmits = tp->total_retrans;
	socket->remote_port = sk->__sk_common.skc_dport;
	socket->source_port = ((struct inet_sock *)tp)->inet_sport;
	note(socket, EVENT_CONNECT);
	show_to_walks(socket, sk);
	count_unless_walked(sk, tp);
	return 0;
}

static int established(struct sock *sk, int oldstate, enum pass pass)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_socket *socket = entry_of(sk);
	__u64 now;

	if (!tp)
		return 0;
	now = tp->tcp_clock_cache; /* of the segment that completed the handshake */
	if (socket && is_connecting(socket) && is_of(socket, sk)) {
		socket->connection.established_ns =
		    now > socket->connection.syn_ns ? now : bpf_ktime_get_ns();
		note(socket, EVENT_ESTABLISHED);
		note_ports(socket, sk);
		count_connected(socket);
		count_unseen_retransmits(sk, tp, socket); /* of the SYN */
		count_unless_walked(sk, tp);
		return 0;
	}
	if (oldstate != TCP_SYN_RECV) { /* its connect began before the programs were attached, or unseen */
		if (!known_socket(sk))
			adopt(sk, tp);
		return 0;
	}
	if (socket) {
		if (socket->began_ns == now) /* the first pass did it */
			return 0;
		forget_unseen(socket); /* of before, with the same address */
	}
	socket = new_socket(sk);
	if (!socket)
		return no_place(pass);
	socket->connection.established_ns = socket->began_ns = now;
	note_ports(socket, sk);
	socket->connection.key.cgroup = socket_cgroup(sk);
	socket->connection.netns = netns_of(sk);
	local_endpoint(sk, &socket->connection.key);
	socket->retransmits = tp->total_retrans; /* those of the SYN-ACK */
	inherit_synacks(&socket->connection.key, socket->retransmits);
	note(socket, EVENT_ESTABLISHED);
	show_to_walks(socket, sk);
	count_unless_walked(sk, tp);
	return 0;
}

/* One side has ended its direction by a FIN, the first or the second. */
static int finishing(struct sock *sk, enum tcp_closer closer)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_socket *known;

	if (!tp)
		return 0;
	known = known_or_adopted(sk, tp);
	if (!known)
		return 0;
	if (is_connecting(known))
		establish_late(known);
	close_by(known, closer);
	/* Shut down both ways: for the service it is closed, whatever the kernel has still to exchange. */
	if ((sk->sk_shutdown & SHUTDOWN_MASK) == SHUTDOWN_MASK)
		close(known);
	read_progress(&known->last, tp, is_client(&known->connection));
	count_unless_walked(sk, tp);
	return 0;
}

/* All that this side has sent is acknowledged, its FIN too; or it has closed the other direction now. */
static int acknowledged(struct sock *sk)
{
	struct tcp_socket *known = known_socket(sk);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!known || !tp)
		return 0;
	if ((sk->sk_shutdown & SHUTDOWN_MASK) == SHUTDOWN_MASK)
		close(known);
	read_progress(&known->last, tp, is_client(&known->connection));
	return 0;
}

static int ended(struct sock *sk, int oldstate)
{
	struct tcp_socket *known = known_socket(sk);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (known && tp && !has(known, EVENT_ENDED))
		end(sk, tp, known, oldstate, 0);
	return 0;
}

static int on_destroy(struct sock *sk)
{
	struct tcp_socket *known = known_socket(sk);
	struct tcp_sock *tp;

	if (!known)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	if (has(known, EVENT_ENDED))
		forget(known);
	else
		end(sk, tp, known, TCP_SYN_SENT, 1);
	return 0;
}

/* Returns 1 where the event is still to be done. */
static __always_inline int on_state(struct sock *sk, int oldstate, int newstate, enum pass pass)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	switch (newstate) {
	case TCP_SYN_SENT:
		return connecting(sk, pass);
	case TCP_ESTABLISHED:
		return established(sk, oldstate, pass);
	case TCP_FIN_WAIT1:
		return finishing(sk, TCP_CLOSER_LOCAL);
	case TCP_FIN_WAIT2:
		return acknowledged(sk);
	case TCP_CLOSE_WAIT:
	case TCP_LAST_ACK:
		return finishing(sk, TCP_CLOSER_REMOTE);
	case TCP_CLOSE:
		return ended(sk, oldstate);
	}
	return 0;
}

#endif
