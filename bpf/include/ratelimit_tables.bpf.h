/* SPDX-License-Identifier: GPL-2.0-only */
/* The limiter's maps: what is in force, the buckets of sources, the lists, and counts of verdicts. */
#ifndef TIDEGATE_RATELIMIT_TABLES_BPF_H
#define TIDEGATE_RATELIMIT_TABLES_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "ratelimit.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ratelimit_state);
} ratelimit_state SEC(".maps");

/* Two sets, of which state.slot is in force. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * RATELIMIT_POLICY_MAX);
	__type(key, __u32);
	__type(value, struct ratelimit_policy);
} ratelimit_policies SEC(".maps");

struct ratelimit_port_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536 / 4);
	__type(key, __u32);
	__type(value, struct ratelimit_ports);
};

struct ratelimit_port_table ratelimit_ports_a SEC(".maps");
struct ratelimit_port_table ratelimit_ports_b SEC(".maps");

/* The ports of each set. A map in a map, because its update returns only when no running program still uses
 * the old one (kernel: maybe_wait_bpf_programs): after it, a set that is not in force any more may be
 * written.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct ratelimit_port_table);
} ratelimit_ports SEC(".maps") = {
	.values = { [0] = &ratelimit_ports_a, [1] = &ratelimit_ports_b },
};

/* This node's own addresses, IPv4 as ::ffff:a.b.c.d; only looked at where state.own_only says so. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u8[16]);
	__type(value, __u64);
} ratelimit_own SEC(".maps");

/* A table by itself for those that ask for connections: it is the one that spoofed sources fill. */
struct ratelimit_source_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536); /* set by the agent */
	__type(key, struct ratelimit_key);
	__type(value, struct ratelimit_source);
};

struct ratelimit_source_table ratelimit_syns SEC(".maps");
struct ratelimit_source_table ratelimit_sources SEC(".maps");

/* Arrival times of sources that find no place in a table: four rows, in each of which a source has a cell
 * that it shares with others. The earliest of its four is nearest to its own.
 */
#define SKETCH_ROWS 4
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SKETCH_ROWS * 65536); /* set by the agent */
	__type(key, __u32);
	__type(value, __u64);
} ratelimit_sketch SEC(".maps");

/* How many new sources this CPU has let into a table lately. */
struct ratelimit_guard {
	__u64 window; /* number of the present one */
	__u64 inserts;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct ratelimit_guard);
} ratelimit_guards SEC(".maps");

/* When a CPU last let none in any more, to within PRESSED_STEP_NS. For all CPUs, as one lets in whom another
 * has left to the sketch.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} ratelimit_pressed SEC(".maps");

struct ratelimit_prefix_table {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072); /* set by the agent */
	__type(key, struct ratelimit_prefix);
	__type(value, __u64);
};

struct ratelimit_prefix_table ratelimit_allowed SEC(".maps");
struct ratelimit_prefix_table ratelimit_denied SEC(".maps");

/* By the narrow prefix, whatever the policy: that is 0 in its keys. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536); /* set by the agent */
	__type(key, struct ratelimit_key);
	__type(value, struct ratelimit_ban);
} ratelimit_bans SEC(".maps");

/* By verdict and reason, of one interface. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RATELIMIT_VERDICT_COUNT *RATELIMIT_REASON_COUNT);
	__type(key, __u32);
	__type(value, struct ratelimit_count);
} ratelimit_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RATELIMIT_NOTE_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} ratelimit_notes SEC(".maps");

static __always_inline void note(__u32 which)
{
	__u64 *count = bpf_map_lookup_elem(&ratelimit_notes, &which);

	if (count)
		*count += 1;
}

#ifdef TIDEGATE_SIMULATION
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ratelimit_simulation);
} ratelimit_simulation SEC(".maps");
#endif

static __always_inline __u64 clock_ns(void)
{
#ifdef TIDEGATE_SIMULATION
	__u32 zero = 0;
	struct ratelimit_simulation *simulation = bpf_map_lookup_elem(&ratelimit_simulation, &zero);

	return simulation ? simulation->now_ns : 0;
#else
	return bpf_ktime_get_ns();
#endif
}

static __always_inline void count(__u32 verdict, __u32 reason, __u64 bytes)
{
	__u32 place = verdict * RATELIMIT_REASON_COUNT + reason;
	struct ratelimit_count *counted = bpf_map_lookup_elem(&ratelimit_counts, &place);
#ifdef TIDEGATE_SIMULATION
	__u32 zero = 0;
	struct ratelimit_simulation *simulation = bpf_map_lookup_elem(&ratelimit_simulation, &zero);

	if (simulation) {
		simulation->verdict = verdict;
		simulation->reason = reason;
	}
#endif
	if (counted) {
		counted->packets++;
		counted->bytes += bytes;
	}
}

#endif
