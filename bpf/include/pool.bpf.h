/* SPDX-License-Identifier: GPL-2.0-only */
/* The endpoints of pools, and the ring in which what speaks against one is told at once. */
#ifndef TIDEGATE_POOL_BPF_H
#define TIDEGATE_POOL_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "pool.h"

/* One map for all objects that have it; made and filled by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024); /* set by the agent */
	__type(key, struct pool_key);
	__type(value, struct pool_endpoint);
} pool_endpoints SEC(".maps");

/* In an array, as they are looked for at each answer: a hash takes 40 ns more. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024); /* set by the agent */
	__type(key, __u32);
	__type(value, struct pool_counts);
} pool_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} pool_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POOL_LOSS_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} pool_losses SEC(".maps");

static __always_inline void pool_lose(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(&pool_losses, &reason);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* The counts of an endpoint; NULL where it is not watched any more. */
static __always_inline struct pool_counts *counts_at(__u32 place, __u32 generation)
{
	struct pool_counts *counts = bpf_map_lookup_elem(&pool_counts, &place);

	return counts && counts->generation == generation ? counts : 0;
}

static __always_inline struct pool_counts *counts_of(const struct pool_key *key)
{
	struct pool_endpoint *endpoint = bpf_map_lookup_elem(&pool_endpoints, key);

	return endpoint ? counts_at(endpoint->place, endpoint->generation) : 0;
}

/* An event without a head, to be filled in and submitted; NULL where the ring is full. */
static __always_inline struct pool_event *pool_event_on(const struct pool_key *key,
							const struct pool_counts *counts)
{
	struct pool_event *event;

	event = bpf_ringbuf_reserve(&pool_events, __builtin_offsetof(struct pool_event, head), 0);
	if (!event) {
		pool_lose(POOL_LOSS_EVENTS);
		return 0;
	}
	__builtin_memset(event, 0, __builtin_offsetof(struct pool_event, head));
	event->endpoint = *key;
	event->at_ns = bpf_ktime_get_ns();
	event->connected = counts->connected;
	event->answered = counts->answered;
	return event;
}

/* Tell an event, with as much of its head as it has. */
static __always_inline void pool_tell(struct pool_event *event)
{
	__u32 length = event->length;

	barrier_var(length);
	if (length > POOL_HEAD_MAX)
		return;
	if (bpf_ringbuf_output(&pool_events, event, __builtin_offsetof(struct pool_event, head) + length, 0))
		pool_lose(POOL_LOSS_EVENTS);
}

#endif
