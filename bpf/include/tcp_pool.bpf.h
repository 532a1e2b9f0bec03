/* SPDX-License-Identifier: GPL-2.0-only */
/* What the connects of this node say of the endpoints of pools. */
#ifndef TIDEGATE_TCP_POOL_BPF_H
#define TIDEGATE_TCP_POOL_BPF_H

#include "kernel.bpf.h"
#include "pool.bpf.h"
#include "tcp.h"
#include "tcp_sockets.bpf.h"

static void pool_key_of(const struct tcp_key *row, struct pool_key *key)
{
	__builtin_memcpy(key->address, row->address, sizeof(key->address));
	key->port = row->port;
	key->family = row->family;
}

/* A handshake was completed. */
static void count_connected(const struct tcp_socket *socket)
{
	struct pool_counts *counts;
	struct pool_key key = {};

	pool_key_of(&socket->connection.key, &key);
	counts = counts_of(&key);
	if (counts)
		__sync_fetch_and_add(&counts->connected, 1);
}

/* A connect came to nothing. */
static void tell_failure(const struct sock *sk, const struct tcp_sock *tp, const struct tcp_socket *socket,
			 __u32 failure)
{
	struct pool_counts *counts;
	struct pool_event *event;
	struct pool_key key = {};

	if (socket->connection.key.role != TCP_ROLE_CLIENT)
		return;
	pool_key_of(&socket->connection.key, &key);
	counts = counts_of(&key);
	event = counts ? pool_event_on(&key, counts) : 0;
	if (!event)
		return;
	event->age_ns = event->at_ns - socket->connection.syn_ns;
	event->cgroup = socket->connection.key.cgroup;
	event->evidence = POOL_EVIDENCE_CONNECT;
	event->code = failure;
	event->error = sk->sk_err;
	if (tp->segs_out - socket->segs_out > 1)
		event->retransmits = tp->segs_out - socket->segs_out - 1;
	event->source_port = bpf_ntohs(((const struct inet_sock *)tp)->inet_sport);
	bpf_ringbuf_submit(event, 0);
}

#endif
