/* SPDX-License-Identifier: GPL-2.0-only */
/* Local ports that connections hold, summed by upstream and source address at each walk. */
#ifndef TIDEGATE_TCP_PORTS_BPF_H
#define TIDEGATE_TCP_PORTS_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "kernel.bpf.h"
#include "ports.bpf.h"
#include "ports.h"
#include "tcp_rows.bpf.h"
#include "tcp_sockets.bpf.h"

/* Filled by one walk, then read and emptied by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096); /* set by the agent */
	__type(key, struct ports_key);
	__type(value, struct ports_held);
} tcp_ports SEC(".maps");

/* Add the port of a client's socket. Only the walk writes, so there is no other to be minded. */
static void count_port(const struct sock *sk, const struct tcp_socket *known)
{
	const struct tcp_connection *connection = &known->connection;
	const struct tcp_key *row = &connection->key;
	struct ports_key key = {};
	struct ports_held *held, one = { .sockets = 1 };

	if (row->role != TCP_ROLE_CLIENT)
		return;
	key.cgroup = row->cgroup;
	key.netns = connection->netns;
	key.port = row->port;
	key.family = row->family;
	__builtin_memcpy(key.address, row->address, sizeof(key.address));
	if (row->family == 4)
		key.source[0] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	else
		BPF_CORE_READ_INTO(&key.source, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32);
	one.closing = known->counted & EVENT_CLOSER && connection->closer == TCP_CLOSER_LOCAL;
	held = bpf_map_lookup_elem(&tcp_ports, &key);
	if (held) {
		held->sockets++;
		held->closing += one.closing;
		return;
	}
	if (bpf_map_update_elem(&tcp_ports, &key, &one, BPF_NOEXIST))
		lose(TCP_LOSS_PORTS_FULL, 1);
	note_namespace(BPF_CORE_READ(sk, __sk_common.skc_net.net), key.netns);
}

#endif
