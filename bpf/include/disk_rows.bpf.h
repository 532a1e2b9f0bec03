/* SPDX-License-Identifier: GPL-2.0-only */
/* Where disk counts are kept: a row for each (cgroup, device, operation), and what could not be counted. */
#ifndef TIDEGATE_DISK_ROWS_BPF_H
#define TIDEGATE_DISK_ROWS_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "disk.h"
#include "histogram.bpf.h"

struct disk_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096); /* set by the agent */
	__type(key, struct disk_key);
	__type(value, struct disk_counts);
};

struct disk_table disk_rows_a SEC(".maps");
struct disk_table disk_rows_b SEC(".maps");

/* Which of the two is written; tcp_rows.bpf.h says why it is a map in a map. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct disk_table);
} disk_rows SEC(".maps") = {
	.values = { [0] = &disk_rows_a },
};

/* What found no place in the table, by device and operation, so that a device's sums stay whole. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct disk_key);
	__type(value, struct disk_counts);
} disk_other SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DISK_LOSS_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} disk_losses SEC(".maps");

static const struct disk_counts no_counts;

static __always_inline void add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

static void lose(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(&disk_losses, &reason);

	if (count)
		add(count, 1);
}

static __always_inline struct disk_counts *row_in(void *rows, const struct disk_key *key)
{
	struct disk_counts *counts = bpf_map_lookup_elem(rows, key);

	if (counts)
		return counts;
	bpf_map_update_elem(rows, key, &no_counts, BPF_NOEXIST);
	return bpf_map_lookup_elem(rows, key);
}

/* The row of a key, a new one if there was none; that of its device where the table takes no more. */
static struct disk_counts *row_of(const struct disk_key *key)
{
	struct disk_key other = *key;
	struct disk_counts *counts;
	__u32 zero = 0;
	void *rows = bpf_map_lookup_elem(&disk_rows, &zero);

	counts = rows ? row_in(rows, key) : 0;
	if (counts)
		return counts;
	lose(DISK_LOSS_ROWS_FULL);
	other.cgroup = 0;
	other.hierarchy = 0;
	counts = row_in(&disk_other, &other);
	if (!counts)
		lose(DISK_LOSS_UNPLACED);
	return counts;
}

static __always_inline void count_io(struct disk_counts *counts, __u64 ns)
{
	add(&counts->io_ns, ns);
	histogram_add(counts->io, ns, DISK_SHIFT, DISK_SLOTS);
}

static __always_inline void count_queue(struct disk_counts *counts, __u64 ns)
{
	add(&counts->queue_ns, ns);
	histogram_add(counts->queue, ns, DISK_SHIFT, DISK_SLOTS);
}

#endif
