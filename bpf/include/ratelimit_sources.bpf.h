/* SPDX-License-Identifier: GPL-2.0-only */
/* The entries of sources: found, let in while there is room for new ones, else left to the sketch. */
#ifndef TIDEGATE_RATELIMIT_SOURCES_BPF_H
#define TIDEGATE_RATELIMIT_SOURCES_BPF_H

#include "ratelimit_buckets.bpf.h"

/* How long what the sketch knows is asked for, once it has been in use. */
#define SKETCH_LASTS_NS 60000000000LL
/* So seldom that the CPUs do not fight for the word. */
#define PRESSED_STEP_NS 1000000000LL

/* Whether this CPU may let one more source into a table. A flood of sources that nobody has seen before must
 * not push out those that are known: with so few at a time, who is idle for seconds goes first.
 */
static __always_inline int may_insert(__u32 table, const struct ratelimit_state *state, __u64 now,
				      int *was_pressed)
{
	struct ratelimit_guard *guard = bpf_map_lookup_elem(&ratelimit_guards, &table);
	__u32 zero = 0;
	__u64 *pressed_ns = bpf_map_lookup_elem(&ratelimit_pressed, &zero);

	if (!guard || !pressed_ns)
		return 0;
	if (guard->window != now >> RATELIMIT_GUARD_SHIFT) {
		guard->window = now >> RATELIMIT_GUARD_SHIFT;
		guard->inserts = 0;
	}
	if (guard->inserts >= state->inserts) {
		if ((__s64)(now - *pressed_ns) >= PRESSED_STEP_NS)
			*pressed_ns = now;
		note(RATELIMIT_NOTE_GUARDED);
		return 0;
	}
	guard->inserts++;
	*was_pressed = *pressed_ns && (__s64)(now - *pressed_ns) < SKETCH_LASTS_NS;
	return 1;
}

/* The entry of a source, a new one if there was none; NULL where it has to be left to the sketch. What that
 * knows of it goes into the entry.
 */
static __always_inline struct ratelimit_source *source_of(void *table, __u32 number,
							  const struct ratelimit_key *key,
							  const struct ratelimit_policy *policy,
							  const struct ratelimit_state *state, __u64 now)
{
	struct ratelimit_source *entry = bpf_map_lookup_elem(table, key), fresh = {};
	struct bucket bucket = { .key = key };
	int was_pressed = 0;
	__u32 at;

	if (entry || !may_insert(number, state, now, &was_pressed))
		return entry;
	for (bucket.dimension = 0; was_pressed && bucket.dimension < RATELIMIT_DIMENSION_COUNT;
	     bucket.dimension++) {
		at = (key->width == RATELIMIT_WIDTH_WIDE) * RATELIMIT_DIMENSION_COUNT + bucket.dimension;
		bucket.limit = &policy->limits[at];
		if (bucket.limit->cost)
			fresh.arrivals[bucket.dimension] =
			    word_of(state->generation, now + sketch(&bucket, state, now, 0));
	}
	bpf_map_update_elem(table, key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(table, key);
}

static __always_inline int refuses(const struct bucket *bucket, const struct ratelimit_state *state,
				   __u64 now)
{
	if (!bucket->limit->cost)
		return 0;
	if (bucket->entry)
		return is_over(bucket->entry->arrivals[bucket->dimension], bucket->limit, bucket->dimension,
			       state->generation, now);
	return sketch(bucket, state, now, 0) > bucket->limit->tolerance_ns;
}

static __always_inline int takes(const struct bucket *bucket, const struct ratelimit_state *state, __u64 now,
				 __u64 bytes)
{
	if (!bucket->limit->cost)
		return 1;
	if (bucket->entry)
		return take(&bucket->entry->arrivals[bucket->dimension], bucket->limit, bucket->dimension,
			    state->generation, now, bytes);
	sketch(bucket, state, now, cost_of(bucket->limit, bucket->dimension, bytes));
	return 1;
}

#endif
