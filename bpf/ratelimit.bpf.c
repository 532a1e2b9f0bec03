// SPDX-License-Identifier: GPL-2.0-only
/* Judges each packet by its source address, before the kernel's stack sees it: lists, bans, and rates of
 * connection requests, packets and bytes to the ports on which this node listens.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "include/ratelimit_parse.bpf.h"
#include "include/ratelimit_sources.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define LISTED_BITS 2

/* A judgment under way. */
struct judgment {
	const struct ratelimit_policy *policy;
	const struct ratelimit_state *state;
	__u64 now;
	__u64 bytes;
	__u32 first; /* dimension */
	struct ratelimit_key narrow;
	struct ratelimit_key wide;
	/* entries of both, in the table of connection requests and in that of the rest */
	struct ratelimit_source *asking;
	struct ratelimit_source *asking_wide;
	struct ratelimit_source *known;
	struct ratelimit_source *known_wide;
	__u8 is_known; /* whether packets and bytes are judged */
};

/* Whether a packet is for this node itself, as any is that all hosts of a network get. */
static __always_inline int is_own(const struct packet *packet)
{
	__u8 first = packet->family == 4 ? packet->destination[12] : packet->destination[0];

	if (bpf_map_lookup_elem(&ratelimit_own, packet->destination))
		return 1;
	return packet->family == 4 ? first >> 4 == 0xe || *(__u32 *)&packet->destination[12] == ~0U
				   : first == 0xff;
}

static __always_inline __u32 policy_of(const struct packet *packet, __u32 slot)
{
	struct ratelimit_ports *ports;
	__u32 place = packet->port / 4;
	void *table;

	if (!packet->protocol)
		return RATELIMIT_POLICY_DEFAULT;
	table = bpf_map_lookup_elem(&ratelimit_ports, &slot);
	ports = table ? bpf_map_lookup_elem(table, &place) : 0;
	if (!ports)
		return RATELIMIT_POLICY_NONE;
	return packet->protocol == IPPROTO_TCP ? ports->tcp[packet->port & 3] : ports->udp[packet->port & 3];
}

static __always_inline void key_of(const struct packet *packet, __u32 policy, struct ratelimit_key *narrow,
				   struct ratelimit_key *wide)
{
	narrow->source = packet->source;
	narrow->policy = packet->protocol ? policy : RATELIMIT_POLICY_PORTLESS;
	narrow->family = packet->family;
	*wide = *narrow;
	wide->width = RATELIMIT_WIDTH_WIDE;
	if (packet->family == 4)
		wide->source &= bpf_htonl(0xffffff00);
	else
		wide->source &= bpf_be64_to_cpu(0xffffffffffff0000ULL);
}

/* What the lists say of a source. Global, as all that is not inline here, so that the verifier goes through
 * its paths once and not after each way to it.
 */
__noinline __u32 look_up(const struct packet *packet, __u64 now)
{
	struct ratelimit_prefix prefix = { .length = 128 };
	struct ratelimit_key key = {};
	struct ratelimit_ban *ban;

	if (!packet)
		return RATELIMIT_LISTED_NOT;
	__builtin_memcpy(prefix.address, packet->address, sizeof(prefix.address));
	if (bpf_map_lookup_elem(&ratelimit_allowed, &prefix))
		return RATELIMIT_LISTED_ALLOWED;
	if (bpf_map_lookup_elem(&ratelimit_denied, &prefix))
		return RATELIMIT_LISTED_DENIED;
	key.source = packet->source;
	key.family = packet->family;
	ban = bpf_map_lookup_elem(&ratelimit_bans, &key);
	if (!ban || (ban->until_ns && ban->until_ns <= now))
		return RATELIMIT_LISTED_NOT;
	__sync_fetch_and_add(&ban->packets, 1);
	return RATELIMIT_LISTED_BANNED;
}

/* The same, remembered in the entry: the tries cost more than all the rest. Not a ban, which ends; and not
 * where the lists say different things of the addresses of one entry.
 */
static __always_inline __u32 listed(const struct packet *packet, struct ratelimit_source *entry,
				    const struct ratelimit_state *state, __u64 now)
{
	__u32 found;

	if (entry && entry->listed >> LISTED_BITS == state->lists)
		return entry->listed & ((1 << LISTED_BITS) - 1);
	found = look_up(packet, now);
	if (entry && found != RATELIMIT_LISTED_BANNED && (packet->family == 4 || !state->divides))
		entry->listed = (__u64)state->lists << LISTED_BITS | found;
	return found;
}

static __always_inline void bucket_of(const struct judgment *of, __u32 is_wide, __u32 dimension,
				      struct bucket *bucket)
{
	bucket->dimension = dimension;
	bucket->limit = &of->policy->limits[is_wide * RATELIMIT_DIMENSION_COUNT + dimension];
	bucket->key = is_wide ? &of->wide : &of->narrow;
	if (dimension == RATELIMIT_DIMENSION_SYN)
		bucket->entry = is_wide ? of->asking_wide : of->asking;
	else
		bucket->entry = is_wide ? of->known_wide : of->known;
}

/* Judge by all buckets that apply, of which none changes unless all agree. */
static __always_inline __u32 judge(const struct judgment *of, __u32 widths)
{
	struct bucket bucket;
	__u32 is_wide, dimension, last;

	last = of->is_known ? RATELIMIT_DIMENSION_BYTES : RATELIMIT_DIMENSION_SYN;
	for (is_wide = 0; is_wide < widths; is_wide++)
		for (dimension = of->first; dimension <= last; dimension++) {
			bucket_of(of, is_wide, dimension, &bucket);
			if (refuses(&bucket, of->state, of->now))
				return RATELIMIT_REASON_SYN + is_wide * RATELIMIT_DIMENSION_COUNT + dimension;
		}
	for (is_wide = 0; is_wide < widths; is_wide++)
		for (dimension = of->first; dimension <= last; dimension++) {
			bucket_of(of, is_wide, dimension, &bucket);
			if (!takes(&bucket, of->state, of->now, of->bytes))
				return RATELIMIT_REASON_SYN + is_wide * RATELIMIT_DIMENSION_COUNT + dimension;
		}
	return RATELIMIT_REASON_WITHIN;
}

static __always_inline int is_limited(const struct ratelimit_policy *policy, __u32 is_wide, __u32 dimension)
{
	return policy->limits[is_wide * RATELIMIT_DIMENSION_COUNT + dimension].cost != 0;
}

/* Find the entries of a packet's source. A SYN of a source that has sent nothing else yet leaves no entry
 * among the rest, which a flood of them would fill, and is no packet to those limits: unless SYNs have none
 * of their own.
 */
static __always_inline __u32 find(struct judgment *of, __u32 is_syn)
{
	const struct ratelimit_policy *policy = of->policy;
	__u32 syns_are_limited =
	    is_limited(policy, 0, RATELIMIT_DIMENSION_SYN) | is_limited(policy, 1, RATELIMIT_DIMENSION_SYN);
	__u32 has_wide = is_limited(policy, 1, RATELIMIT_DIMENSION_SYN) |
			 is_limited(policy, 1, RATELIMIT_DIMENSION_PACKETS) |
			 is_limited(policy, 1, RATELIMIT_DIMENSION_BYTES);

	of->first = RATELIMIT_DIMENSION_PACKETS;
	if (is_syn && syns_are_limited) {
		of->first = RATELIMIT_DIMENSION_SYN;
		of->asking = source_of(&ratelimit_syns, 0, &of->narrow, policy, of->state, of->now);
		return has_wide;
	}
	of->is_known = 1;
	of->known = source_of(&ratelimit_sources, 1, &of->narrow, policy, of->state, of->now);
	if (has_wide)
		of->known_wide = source_of(&ratelimit_sources, 1, &of->wide, policy, of->state, of->now);
	return has_wide;
}

/* The rest of a SYN's entries, once its own bucket lets it pass: in a flood most end before. */
static __always_inline void find_rest(struct judgment *of, __u32 has_wide)
{
	of->known = bpf_map_lookup_elem(&ratelimit_sources, &of->narrow);
	of->is_known = of->known != 0;
	if (!has_wide)
		return;
	of->asking_wide = source_of(&ratelimit_syns, 0, &of->wide, of->policy, of->state, of->now);
	of->known_wide = bpf_map_lookup_elem(&ratelimit_sources, &of->wide);
}

/* Judge a packet that is on no list. */
static __always_inline __u32 judge_source(struct judgment *of, __u32 has_wide)
{
	struct bucket bucket;

	if (of->first == RATELIMIT_DIMENSION_SYN) {
		bucket_of(of, 0, RATELIMIT_DIMENSION_SYN, &bucket);
		if (refuses(&bucket, of->state, of->now))
			return RATELIMIT_REASON_SYN;
		find_rest(of, has_wide);
	}
	return judge(of, 1 + has_wide);
}

static __always_inline __u32 reason_of(struct xdp_md *ctx, const struct ratelimit_state *state, __u64 now,
				       __u64 bytes)
{
	struct judgment of = { .state = state, .now = now, .bytes = bytes };
	struct ratelimit_source *entry;
	struct packet packet = {};
	__u32 policy, reason, has_wide, slot = state->slot & 1, place;
	int parsed = parse(ctx, &packet);

	if (parsed != PARSED)
		return parsed;
	policy = policy_of(&packet, slot);
	if (!policy || (state->own_only && !is_own(&packet)))
		return RATELIMIT_REASON_PORT;
	place = slot * RATELIMIT_POLICY_MAX + policy;
	of.policy = bpf_map_lookup_elem(&ratelimit_policies, &place);
	if (!of.policy)
		return RATELIMIT_REASON_PORT;
	key_of(&packet, policy, &of.narrow, &of.wide);
	has_wide = find(&of, packet.is_syn);
	entry = of.first == RATELIMIT_DIMENSION_SYN ? of.asking : of.known;
	switch (listed(&packet, entry, state, now)) {
	case RATELIMIT_LISTED_ALLOWED:
		return RATELIMIT_REASON_ALLOWED;
	case RATELIMIT_LISTED_DENIED:
		return RATELIMIT_REASON_DENIED;
	case RATELIMIT_LISTED_BANNED:
		return RATELIMIT_REASON_BANNED;
	}
	reason = judge_source(&of, has_wide);
	if (entry) {
		__sync_fetch_and_add(&entry->packets, 1);
		if (reason != RATELIMIT_REASON_WITHIN)
			__sync_fetch_and_add(&entry->refused, 1);
	}
	return reason;
}

static __always_inline int is_enforced(const struct ratelimit_state *state, __u64 now)
{
	return state->mode == RATELIMIT_MODE_ENFORCE && (!state->lease_ns || now < state->lease_ns);
}

static __always_inline __u64 length_of(struct xdp_md *ctx)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_xdp_get_buff_len))
		return bpf_xdp_get_buff_len(ctx);
	return ctx->data_end - ctx->data;
}

SEC("xdp.frags")
int ratelimit(struct xdp_md *ctx)
{
	__u32 zero = 0, reason, verdict = RATELIMIT_VERDICT_PASS;
	struct ratelimit_state *state = bpf_map_lookup_elem(&ratelimit_state, &zero);
	__u64 now, bytes;

	if (!state || state->mode == RATELIMIT_MODE_OFF)
		return XDP_PASS;
	now = clock_ns();
	bytes = length_of(ctx);
	reason = reason_of(ctx, state, now, bytes);
	if (reason >= RATELIMIT_REASON_DENIED)
		verdict = is_enforced(state, now) ? RATELIMIT_VERDICT_DROP : RATELIMIT_VERDICT_WOULD_DROP;
	count(verdict, reason, bytes);
	return verdict == RATELIMIT_VERDICT_DROP ? XDP_DROP : XDP_PASS;
}
