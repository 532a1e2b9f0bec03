/* SPDX-License-Identifier: GPL-2.0-only */
/* The shape of every histogram: log-linear slots, eight to a power of two.
 *
 * A value v is shifted right by the histogram's own shift; below 8 the slot is v itself, above it
 * is 8 * (log2(v) - 2) + the three bits that follow the leading one. A slot is at most 1/8 of its
 * lower edge wide, so the middle of a slot is within 6.25 % of every value in it. The last slot
 * also takes everything above the range.
 */
#ifndef TIDEGATE_HISTOGRAM_H
#define TIDEGATE_HISTOGRAM_H

enum histogram {
	HISTOGRAM_SUBSLOT_BITS = 3,
	/* each in ns: the shift, and eight slots for each power of two above it */
	HANDSHAKE_SHIFT = 10, /* 1 us to 137 s */
	HANDSHAKE_SLOTS = 200,
	DURATION_SHIFT = 16, /* 66 us to 78 hours */
	DURATION_SLOTS = 240,
	RTT_SHIFT = 10, /* 1 us to 34 s */
	RTT_SLOTS = 184,
	DISK_SHIFT = 10, /* 1 us to 137 s */
	DISK_SLOTS = 200,
	RESPONSE_SHIFT = 10, /* 1 us to 34 s */
	RESPONSE_SLOTS = 184,
};

#endif
