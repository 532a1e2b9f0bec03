/* SPDX-License-Identifier: GPL-2.0-only */
/* What the limiter's program and the agent exchange: policies, buckets, verdicts. */
#ifndef TIDEGATE_RATELIMIT_H
#define TIDEGATE_RATELIMIT_H

#include <linux/types.h>

enum ratelimit_mode {
	RATELIMIT_MODE_OFF = 0,
	RATELIMIT_MODE_MONITOR = 1, /* judges, and drops nothing */
	RATELIMIT_MODE_ENFORCE = 2,
	RATELIMIT_MODE_COUNT = 3,
};

enum ratelimit_verdict {
	RATELIMIT_VERDICT_PASS = 0,
	RATELIMIT_VERDICT_DROP = 1,
	RATELIMIT_VERDICT_WOULD_DROP = 2, /* in monitor mode, or without a lease */
	RATELIMIT_VERDICT_COUNT = 3,
};

/* Why a packet got its verdict. */
enum ratelimit_reason {
	/* never judged */
	RATELIMIT_REASON_NOT_IP = 0,
	RATELIMIT_REASON_TRUNCATED = 1, /* ends before its headers do */
	RATELIMIT_REASON_MALFORMED = 2, /* a version or length that can't be */
	RATELIMIT_REASON_VLANS = 3,     /* more than two tags */
	RATELIMIT_REASON_PROTOCOL = 4,  /* neither TCP nor UDP */
	RATELIMIT_REASON_PORT = 5,      /* to a port on which this node doesn't listen, or to another node */
	/* judged, and passed */
	RATELIMIT_REASON_ALLOWED = 6,
	RATELIMIT_REASON_WITHIN = 7,
	/* judged, and refused */
	RATELIMIT_REASON_DENIED = 8,
	RATELIMIT_REASON_BANNED = 9,
	RATELIMIT_REASON_SYN = 10,
	RATELIMIT_REASON_PACKETS = 11,
	RATELIMIT_REASON_BYTES = 12,
	RATELIMIT_REASON_SYN_WIDE = 13, /* of all sources of the wider prefix */
	RATELIMIT_REASON_PACKETS_WIDE = 14,
	RATELIMIT_REASON_BYTES_WIDE = 15,
	RATELIMIT_REASON_COUNT = 16,
};

/* What is worth knowing of the tables, by index in ratelimit_notes. */
enum ratelimit_note {
	RATELIMIT_NOTE_GUARDED = 0,    /* packets of new sources judged by the sketch, for want of a place */
	RATELIMIT_NOTE_CONTENDED = 1,  /* packets passed uncounted, as other CPUs took the bucket each time */
	RATELIMIT_NOTE_EXTENSIONS = 2, /* IPv6 packets with more extension headers than are read */
	RATELIMIT_NOTE_FRAGMENTS = 3,  /* fragments that carry no ports */
	RATELIMIT_NOTE_COUNT = 4,
};

enum ratelimit_dimension {
	RATELIMIT_DIMENSION_SYN = 0,
	RATELIMIT_DIMENSION_PACKETS = 1,
	RATELIMIT_DIMENSION_BYTES = 2,
	RATELIMIT_DIMENSION_COUNT = 3,
};

enum ratelimit_width {
	RATELIMIT_WIDTH_NARROW = 0, /* IPv4 /32, IPv6 /64 */
	RATELIMIT_WIDTH_WIDE = 1,   /* IPv4 /24, IPv6 /48 */
	RATELIMIT_WIDTH_COUNT = 2,
};

/* Numbers of policies: there is none for ports on which nobody listens; packets without ports have buckets of
 * their own under the limits of the default.
 */
enum ratelimit_policy_number {
	RATELIMIT_POLICY_NONE = 0,
	RATELIMIT_POLICY_DEFAULT = 1,
	RATELIMIT_POLICY_MAX = 64, /* how many there may be, the two above among them */
	RATELIMIT_POLICY_PORTLESS = 0xffff,
};

enum ratelimit {
	RATELIMIT_BYTE_SHIFT = 16,  /* a byte costs so many ns, times 2 to the power of this */
	RATELIMIT_GUARD_SHIFT = 27, /* see inserts in struct ratelimit_state */
};

/* GCRA: each packet moves the bucket's theoretical arrival time on by its cost; refused is what comes more
 * than the tolerance before that time. No limit: cost 0.
 */
struct ratelimit_limit {
	__u64 cost; /* ns a SYN or a packet; of bytes see above */
	__u64 tolerance_ns;
};

struct ratelimit_policy {
	struct ratelimit_limit limits[RATELIMIT_WIDTH_COUNT * RATELIMIT_DIMENSION_COUNT]; /* width by width */
};

/* The policies of four destination ports, of TCP and then of UDP; port N is in entry N / 4. */
struct ratelimit_ports {
	__u8 tcp[4];
	__u8 udp[4];
};

/* What is in force; the first eight bytes change at once. */
struct ratelimit_state {
	__u8 mode;
	__u8 slot;         /* which of the two sets of policies and ports */
	__u8 generation;   /* of the policies: buckets of another begin anew */
	__u8 divides;      /* whether a list has an IPv6 prefix longer than that of an entry */
	__u32 lists;       /* generation of the allow and deny lists and the bans */
	__u64 lease_ns;    /* enforced until then (CLOCK_MONOTONIC); 0: for ever */
	__u64 seed;        /* of the sketch */
	__u32 inserts;     /* new sources that a CPU lets into a table, in each 2^RATELIMIT_GUARD_SHIFT ns */
	__u32 sketch_mask; /* cells of a row of the sketch, a power of two, less one */
	__u32 own_only;    /* whether this node forwards, so that only what is sent to itself is judged */
	__u32 pad;
};

/* Whose bucket it is. */
struct ratelimit_key {
	__u64 source; /* the prefix as it is on the wire: its 4, 3, 8 or 6 bytes, the rest 0 */
	__u16 policy;
	__u8 family; /* 4 or 6 */
	__u8 width;  /* enum ratelimit_width */
	__u32 pad;
};

/* The buckets of a source. Arrival times have the generation in their highest byte. */
struct ratelimit_source {
	__u64 arrivals[RATELIMIT_DIMENSION_COUNT];
	__u64 listed; /* what the lists say of it: their generation above two bits of enum ratelimit_listed */
	__u64 packets;
	__u64 refused;
};

enum ratelimit_listed {
	RATELIMIT_LISTED_NOT = 0,
	RATELIMIT_LISTED_ALLOWED = 1,
	RATELIMIT_LISTED_DENIED = 2,
	RATELIMIT_LISTED_BANNED = 3,
};

/* A prefix in the allow or deny list; IPv4 as ::ffff:a.b.c.d, so that a length is 96 more. */
struct ratelimit_prefix {
	__u32 length; /* bits */
	__u8 address[16];
};

struct ratelimit_ban {
	__u64 until_ns; /* CLOCK_MONOTONIC; 0: for ever */
	__u64 packets;  /* refused since */
};

struct ratelimit_count {
	__u64 packets;
	__u64 bytes;
};

/* In builds for simulations: the clock goes in, the verdict comes out. */
struct ratelimit_simulation {
	__u64 now_ns;
	__u32 verdict;
	__u32 reason;
};

#endif
