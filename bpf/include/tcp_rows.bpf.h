/* SPDX-License-Identifier: GPL-2.0-only */
/* Where TCP counts are kept: what is known of each socket, and the counts per (cgroup, role, endpoint). */
#ifndef TIDEGATE_TCP_ROWS_BPF_H
#define TIDEGATE_TCP_ROWS_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "tcp.h"

enum phase {
	PHASE_CONNECTING = 1,
	PHASE_ESTABLISHED = 2,
};

/* What is known of a socket between its state changes. */
struct tcp_socket {
	struct tcp_key key;
	__u64 syn_ns;
	/* When the connect began; the port is of bind(), or stale from an earlier connect. */
	__u32 segs_out;
	__be16 source_port;
	__u8 phase;
	__u8 in_other;
};

struct tcp_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192); /* set by the agent */
	__type(key, struct tcp_key);
	__type(value, struct tcp_counts);
};

struct tcp_table tcp_rows_a SEC(".maps");
struct tcp_table tcp_rows_b SEC(".maps");

/* Which of the two is written. A map in a map, because its update returns only when no running
 * program still uses the old one (kernel: maybe_wait_bpf_programs).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct tcp_table);
} tcp_rows SEC(".maps") = {
	.values = { [0] = &tcp_rows_a },
};

/* The sum of what found no place in the table, by role. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TCP_ROLE_COUNT);
	__type(key, __u32);
	__type(value, struct tcp_counts);
} tcp_other SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TCP_LOSS_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} tcp_losses SEC(".maps");

/* Sockets that connect or are connected, by their address in the kernel. An entry goes with its connection,
 * at the latest when the socket is destroyed. Socket storage would be at hand without a key, but costs 1.2 us
 * to make and free, a hash 0.3 us (docs/architecture.md).
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536); /* set by the agent */
	__type(key, __u64);
	__type(value, struct tcp_socket);
} tcp_sockets SEC(".maps");

static const struct tcp_counts no_counts;

static __always_inline void add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

static void lose(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(&tcp_losses, &reason);

	if (count)
		add(count, 1);
}

static struct tcp_counts *counts_of(struct tcp_socket *socket)
{
	__u32 zero = 0, role = socket->key.role;
	struct tcp_counts *counts;
	void *rows;

	if (!socket->in_other) {
		rows = bpf_map_lookup_elem(&tcp_rows, &zero);
		if (rows) {
			counts = bpf_map_lookup_elem(rows, &socket->key);
			if (counts)
				return counts;
			bpf_map_update_elem(rows, &socket->key, &no_counts, BPF_NOEXIST);
			counts = bpf_map_lookup_elem(rows, &socket->key);
			if (counts)
				return counts;
		}
		socket->in_other = 1;
	}
	lose(TCP_LOSS_ROWS_FULL);
	return bpf_map_lookup_elem(&tcp_other, &role);
}

#endif
