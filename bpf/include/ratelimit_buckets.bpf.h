/* SPDX-License-Identifier: GPL-2.0-only */
/* GCRA on one word: a theoretical arrival time, with the generation of its limit in the highest byte.
 *
 * Times are 56 bits and compared by their difference, so that neither their wrap (after 2.2 years) nor a step
 * of the clock locks anybody out.
 */
#ifndef TIDEGATE_RATELIMIT_BUCKETS_BPF_H
#define TIDEGATE_RATELIMIT_BUCKETS_BPF_H

#include "ratelimit_tables.bpf.h"

#define TIME_BITS 56
#define TIME_MASK ((1ULL << TIME_BITS) - 1)
#define TRIES     8
/* By how much CPUs may differ in what they take for now: the time from a packet's clock to its judgment too,
 * in which another CPU, or the host, can come between. Without it, a bucket that another CPU has just filled
 * to the brim at a later time would look as if the clock had been set back, and begin anew.
 */
#define SKEW_NS (1ULL << 30)
/* Of the largest packet there is, in bytes, so that what is further ahead comes from a clock that was set
 * back. */
#define LARGEST 65536

static __always_inline __u64 cost_of(const struct ratelimit_limit *limit, __u32 dimension, __u64 bytes)
{
	if (dimension == RATELIMIT_DIMENSION_BYTES)
		return limit->cost * bytes >> RATELIMIT_BYTE_SHIFT;
	return limit->cost;
}

/* How far the arrival time of a bucket is ahead of now; 0 where it has passed, or is of another generation.
 */
static __always_inline __u64 ahead(__u64 word, __u8 generation, __u64 now, __u64 most)
{
	__s64 difference;

	if (word >> TIME_BITS != generation)
		return 0;
	difference = (__s64)((word - now) << (64 - TIME_BITS)) >> (64 - TIME_BITS);
	return difference > 0 && (__u64)difference <= most ? difference : 0;
}

/* The furthest that a bucket can be ahead. */
static __always_inline __u64 most_ahead(const struct ratelimit_limit *limit, __u32 dimension)
{
	return limit->tolerance_ns + cost_of(limit, dimension, LARGEST) + SKEW_NS;
}

static __always_inline __u64 word_of(__u8 generation, __u64 ns)
{
	return (__u64)generation << TIME_BITS | (ns & TIME_MASK);
}

static __always_inline int is_over(__u64 word, const struct ratelimit_limit *limit, __u32 dimension,
				   __u8 generation, __u64 now)
{
	return limit->cost &&
	       ahead(word, generation, now, most_ahead(limit, dimension)) > limit->tolerance_ns;
}

/* Take the cost from a bucket; 0 if it refuses, in which case nothing has changed. ``stamp`` is the present
 * time as a word. A global function, so that the verifier goes through its paths once.
 */
__noinline int take_from(__u64 *word, __u64 stamp, __u64 tolerance, __u64 most, __u64 cost)
{
	__u8 generation = stamp >> TIME_BITS;
	__u64 was, at;
	int i;

	if (!word)
		return 1;
	for (i = 0; i < TRIES; i++) {
		was = *(volatile __u64 *)word;
		at = ahead(was, generation, stamp, most);
		if (at > tolerance)
			return 0;
		if (__sync_val_compare_and_swap(word, was, word_of(generation, stamp + at + cost)) == was)
			return 1;
	}
	note(RATELIMIT_NOTE_CONTENDED);
	return 1;
}

static __always_inline int take(__u64 *word, const struct ratelimit_limit *limit, __u32 dimension,
				__u8 generation, __u64 now, __u64 bytes)
{
	if (!limit->cost)
		return 1;
	return take_from(word, word_of(generation, now), limit->tolerance_ns, most_ahead(limit, dimension),
			 cost_of(limit, dimension, bytes));
}

/* A bucket: in an entry, or where there is none in the sketch. */
struct bucket {
	const struct ratelimit_key *key;
	struct ratelimit_source *entry;
	const struct ratelimit_limit *limit;
	__u32 dimension;
};

/* The furthest that a cell can be ahead, 13 days: it may be of a source with another limit than who asks. */
#define SKETCH_AHEAD_NS (1ULL << 50)

/* Where a key has its cells. */
struct cells {
	__u32 first, step;
};

static __always_inline struct cells cells_of(const struct bucket *bucket, __u64 seed)
{
	const struct ratelimit_key *key = bucket->key;
	__u64 mixed = (__u64)key->policy << 32 | (__u64)key->family << 24 | (__u64)key->width << 16;
	struct cells cells;

	mixed = key->source ^ seed ^ (mixed | bucket->dimension) * 0x9e3779b97f4a7c15ULL;
	mixed = (mixed ^ mixed >> 33) * 0xff51afd7ed558ccdULL;
	mixed = (mixed ^ mixed >> 33) * 0xc4ceb9fe1a85ec53ULL;
	mixed ^= mixed >> 33;
	cells.first = mixed;
	cells.step = mixed >> 32 | 1;
	return cells;
}

static __always_inline __u64 *cell(const struct cells *cells, __u32 row, __u32 mask)
{
	__u32 place = row * (mask + 1) + ((cells->first + row * cells->step) & mask);

	return bpf_map_lookup_elem(&ratelimit_sketch, &place);
}

/* A global function, so that the verifier goes through its paths once. */
__noinline __u64 sketch_at(const struct cells *cells, const struct ratelimit_state *state, __u64 now,
			   __u64 most, __u64 cost)
{
	__u64 least = ~0ULL, found, was, *at;
	__u32 row;

	if (!cells || !state)
		return 0;
	for (row = 0; row < SKETCH_ROWS; row++) {
		at = cell(cells, row, state->sketch_mask);
		if (!at)
			return 0;
		found = ahead(*at, state->generation, now, most);
		if (found < least)
			least = found;
	}
	for (row = 0; cost && row < SKETCH_ROWS; row++) {
		at = cell(cells, row, state->sketch_mask);
		if (!at)
			return 0;
		was = *at;
		if (ahead(was, state->generation, now, most) < least + cost)
			__sync_val_compare_and_swap(at, was, word_of(state->generation, now + least + cost));
	}
	return least;
}

/* Return by how much a source without an entry is ahead, as its cells tell no less; with a cost, let it be
 * that much more from now on.
 */
static __always_inline __u64 sketch(const struct bucket *bucket, const struct ratelimit_state *state,
				    __u64 now, __u64 cost)
{
	struct cells cells = cells_of(bucket, state->seed);

	return sketch_at(&cells, state, now, SKETCH_AHEAD_NS, cost);
}

#endif
