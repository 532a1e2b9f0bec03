/* SPDX-License-Identifier: GPL-2.0-only */
/* Counting a value in a histogram; histogram.h has the shape. */
#ifndef TIDEGATE_HISTOGRAM_BPF_H
#define TIDEGATE_HISTOGRAM_BPF_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "histogram.h"

static __always_inline __u32 log2_u64(__u64 v)
{
	__u32 r = 0;

#pragma unroll
	for (int bits = 32; bits; bits >>= 1) {
		if (v >> bits) {
			v >>= bits;
			r += bits;
		}
	}
	return r;
}

/* Not static: so the verifier goes through its branches once, and not once for each path that leads here. */
__noinline __u32 histogram_slot(__u64 value, __u32 shift, __u32 slots)
{
	__u64 v = value >> shift;

	if (v < (1 << HISTOGRAM_SUBSLOT_BITS))
		return v;

	__u32 excess = log2_u64(v) - HISTOGRAM_SUBSLOT_BITS;
	__u32 slot =
	    ((excess + 1) << HISTOGRAM_SUBSLOT_BITS) + ((v >> excess) & ((1 << HISTOGRAM_SUBSLOT_BITS) - 1));

	return slot < slots ? slot : slots - 1;
}

static __always_inline void histogram_add(__u32 *histogram, __u64 value, __u32 shift, __u32 slots)
{
	__u32 slot = histogram_slot(value, shift, slots);

	barrier_var(slot); /* the verifier has to see the comparison on the register that is used */
	if (slot < slots)
		__sync_fetch_and_add(&histogram[slot], 1);
}

#endif
