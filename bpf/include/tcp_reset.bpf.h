/* SPDX-License-Identifier: GPL-2.0-only */
/* Resets, sent and received. */
#ifndef TIDEGATE_TCP_RESET_BPF_H
#define TIDEGATE_TCP_RESET_BPF_H

#include "kernel.bpf.h"
#include "tcp_adopt.bpf.h"
#include "tcp_rows.bpf.h"
#include "tcp_state.bpf.h"

/* A reset ends the connection, so there is one. */
static int on_reset_received(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_socket *known;

	if (!tp)
		return 0;
	known = known_or_adopted(sk, tp);
	if (!known)
		return 0;
	note(known, EVENT_RESET_RECEIVED);
	if (has(known, EVENT_ESTABLISHED | EVENT_ADOPTED))
		close_by(known, TCP_CLOSER_REMOTE);
	return 0;
}

/* The row of what answers a segment by a reset. Where there is no socket, nobody listens on the port, or the
 * connection is in TIME_WAIT: then it is no service that answers but the kernel.
 */
static struct tcp_counts *answering_row(const struct sock *sk)
{
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock((void *)sk) : 0;
	struct tcp_key kernel = { .cgroup = TCP_CGROUP_KERNEL, .role = TCP_ROLE_SERVER };
	struct tcp_socket *known;

	if (!tp)
		return any_row(&kernel);
	if (((const struct sock *)tp)->__sk_common.skc_state == TCP_LISTEN)
		return listener_row((const struct sock *)tp);
	known = known_or_adopted((const struct sock *)tp, tp);
	return known ? row_of(&known->connection) : any_row(&kernel);
}

static int on_reset_sent(const struct sock *sk, const struct sk_buff *skb)
{
	struct tcp_counts *counts;
	struct tcp_socket *known;

	if (!skb && sk) { /* of the socket's own accord, so it is the last that it does */
		known = known_socket(sk);
		if (known) {
			note(known, EVENT_RESET_SENT);
			if (has(known, EVENT_ESTABLISHED | EVENT_ADOPTED))
				close_by(known, TCP_CLOSER_LOCAL);
			return 0;
		}
	}
	counts = answering_row(sk);
	if (counts)
		add(&counts->resets[TCP_RESET_SENT], 1);
	return 0;
}

#endif
