/* SPDX-License-Identifier: GPL-2.0-only */
/* Where TCP counts are kept: a row for each (cgroup, role, endpoint), and what could not be counted. */
#ifndef TIDEGATE_TCP_ROWS_BPF_H
#define TIDEGATE_TCP_ROWS_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "tcp.h"

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

static const struct tcp_counts no_counts;

static __always_inline void add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

static void lose(__u32 reason, __u64 n)
{
	__u64 *count = bpf_map_lookup_elem(&tcp_losses, &reason);

	if (count)
		add(count, n);
}

static struct tcp_counts *other_row(__u32 role)
{
	return bpf_map_lookup_elem(&tcp_other, &role);
}

/* The row of a key, a new one if there was none; NULL where the table takes no more. */
static struct tcp_counts *own_row(const struct tcp_key *key)
{
	struct tcp_counts *counts;
	__u32 zero = 0;
	void *rows = bpf_map_lookup_elem(&tcp_rows, &zero);

	if (!rows)
		return 0;
	counts = bpf_map_lookup_elem(rows, key);
	if (counts)
		return counts;
	bpf_map_update_elem(rows, key, &no_counts, BPF_NOEXIST);
	return bpf_map_lookup_elem(rows, key);
}

/* The same, or else the row of what finds no place. */
static struct tcp_counts *any_row(const struct tcp_key *key)
{
	struct tcp_counts *counts = own_row(key);

	if (counts)
		return counts;
	lose(TCP_LOSS_ROWS_FULL, 1);
	return other_row(key->role);
}

#endif
