/* SPDX-License-Identifier: GPL-2.0-only */
/* From a frame to what the limiter judges: source, destination port, whether it asks for a connection. */
#ifndef TIDEGATE_RATELIMIT_PARSE_BPF_H
#define TIDEGATE_RATELIMIT_PARSE_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "ratelimit_tables.bpf.h"

#define VLAN_TAGS  2
#define EXTENSIONS 6

struct packet {
	__u8 address[16];     /* the source; IPv4 as ::ffff:a.b.c.d */
	__u8 destination[16]; /* so too */
	__u64 source;         /* of a ratelimit_key, the narrow prefix */
	__u16 port;           /* destination, host order */
	__u8 family;
	__u8 protocol; /* of what the ports are; 0: the packet has none */
	__u8 is_syn;
	__u8 pad[3]; /* given to a global function, all of it must be initialized */
};

/* Headers as they lie on the wire, without bit fields. */
struct ethernet {
	__u8 addresses[12];
	__be16 type;
};

struct vlan {
	__be16 tag;
	__be16 type;
};

struct ipv4 {
	__u8 version_length;
	__u8 tos;
	__be16 total;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 check;
	__be32 source;
	__be32 destination;
};

struct ipv6 {
	__be32 version;
	__be16 payload;
	__u8 next;
	__u8 hops;
	__u8 source[16];
	__u8 destination[16];
};

struct ports {
	__be16 source;
	__be16 destination;
};

#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_MORE_FRAGMENTS  0x2000
#define TCP_FLAGS            13
#define TCP_SYN_ACK_RST_FIN  0x17
#define TCP_SYN              0x02
#define TCP_SMALLEST         20

#define NEXT_HOP_BY_HOP  0
#define NEXT_ROUTING     43
#define NEXT_FRAGMENT    44
#define NEXT_AUTH        51
#define NEXT_DESTINATION 60
#define NEXT_MOBILITY    135
#define NEXT_HIP         139
#define NEXT_SHIM6       140

/* What a parser returns where there is a packet to judge; else a reason. */
#define PARSED RATELIMIT_REASON_COUNT

/* ``size``: what the packet says that it has from here on. */
static __always_inline int parse_ports(void *at, void *end, __u8 protocol, __u32 size, struct packet *packet)
{
	struct ports *ports = at;

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return RATELIMIT_REASON_PROTOCOL;
	if ((void *)(ports + 1) > end)
		return RATELIMIT_REASON_TRUNCATED;
	packet->protocol = protocol;
	packet->port = bpf_ntohs(ports->destination);
	if (protocol == IPPROTO_TCP) {
		if (size < TCP_SMALLEST) {
			/* The flags are in a later fragment (RFC 1858, section 3.1): it may well be a SYN. */
			packet->is_syn = 1;
			return PARSED;
		}
		if (at + TCP_SMALLEST > end)
			return RATELIMIT_REASON_TRUNCATED;
		packet->is_syn = (*((__u8 *)at + TCP_FLAGS) & TCP_SYN_ACK_RST_FIN) == TCP_SYN;
	}
	return PARSED;
}

static __always_inline int parse_ipv4(void *at, void *end, struct packet *packet)
{
	struct ipv4 *ip = at;
	__u32 length, size = TCP_SMALLEST;

	if ((void *)(ip + 1) > end)
		return RATELIMIT_REASON_TRUNCATED;
	length = (ip->version_length & 0xf) * 4;
	if (ip->version_length >> 4 != 4 || length < sizeof(*ip) || bpf_ntohs(ip->total) < length)
		return RATELIMIT_REASON_MALFORMED;
	packet->family = 4;
	packet->source = ip->source;
	((__u32 *)packet->address)[2] = bpf_htonl(0xffff);
	((__u32 *)packet->address)[3] = ip->source;
	((__u32 *)packet->destination)[2] = bpf_htonl(0xffff);
	((__u32 *)packet->destination)[3] = ip->destination;
	if (bpf_ntohs(ip->fragment) & IPV4_FRAGMENT_OFFSET) {
		note(RATELIMIT_NOTE_FRAGMENTS);
		return ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP ? PARSED
										  : RATELIMIT_REASON_PROTOCOL;
	}
	if (bpf_ntohs(ip->fragment) & IPV4_MORE_FRAGMENTS)
		size = bpf_ntohs(ip->total) - length;
	return parse_ports(at + length, end, ip->protocol, size, packet);
}

static __always_inline int is_extension(__u8 next)
{
	return next == NEXT_HOP_BY_HOP || next == NEXT_ROUTING || next == NEXT_FRAGMENT ||
	       next == NEXT_AUTH || next == NEXT_DESTINATION || next == NEXT_MOBILITY || next == NEXT_HIP ||
	       next == NEXT_SHIM6;
}

static __always_inline int parse_ipv6(void *at, void *end, struct packet *packet)
{
	struct ipv6 *ip = at;
	__u8 next, *header;
	int i;

	if ((void *)(ip + 1) > end)
		return RATELIMIT_REASON_TRUNCATED;
	if (*(__u8 *)at >> 4 != 6)
		return RATELIMIT_REASON_MALFORMED;
	packet->family = 6;
	__builtin_memcpy(packet->address, ip->source, sizeof(packet->address));
	__builtin_memcpy(packet->destination, ip->destination, sizeof(packet->destination));
	packet->source = *(__u64 *)packet->address;
	next = ip->next;
	at = ip + 1;
	for (i = 0; i < EXTENSIONS; i++) {
		header = at;
		switch (next) {
		case NEXT_HOP_BY_HOP:
		case NEXT_ROUTING:
		case NEXT_DESTINATION:
		case NEXT_MOBILITY:
		case NEXT_HIP:
		case NEXT_SHIM6:
			if (at + 8 > end)
				return RATELIMIT_REASON_TRUNCATED;
			next = header[0];
			at += (header[1] + 1) * 8;
			break;
		case NEXT_AUTH:
			if (at + 8 > end)
				return RATELIMIT_REASON_TRUNCATED;
			next = header[0];
			at += (header[1] + 2) * 4;
			break;
		case NEXT_FRAGMENT:
			if (at + 8 > end)
				return RATELIMIT_REASON_TRUNCATED;
			next = header[0];
			/* offset in the upper 13 bits */
			if (header[2] || header[3] & 0xf8) {
				note(RATELIMIT_NOTE_FRAGMENTS);
				return next == IPPROTO_ICMPV6 ? RATELIMIT_REASON_PROTOCOL : PARSED;
			}
			at += 8;
			break;
		default:
			return parse_ports(at, end, next, TCP_SMALLEST, packet);
		}
	}
	if (!is_extension(next))
		return parse_ports(at, end, next, TCP_SMALLEST, packet);
	note(RATELIMIT_NOTE_EXTENSIONS);
	return PARSED;
}

static __always_inline int parse(struct xdp_md *ctx, struct packet *packet)
{
	void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethernet *ethernet = at;
	struct vlan *vlan;
	__be16 type;
	int i;

	if ((void *)(ethernet + 1) > end)
		return RATELIMIT_REASON_TRUNCATED;
	type = ethernet->type;
	at = ethernet + 1;
	for (i = 0; i < VLAN_TAGS && (type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD));
	     i++) {
		vlan = at;
		if ((void *)(vlan + 1) > end)
			return RATELIMIT_REASON_TRUNCATED;
		type = vlan->type;
		at = vlan + 1;
	}
	if (type == bpf_htons(ETH_P_IP))
		return parse_ipv4(at, end, packet);
	if (type == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(at, end, packet);
	if (type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD))
		return RATELIMIT_REASON_VLANS;
	return RATELIMIT_REASON_NOT_IP;
}

#endif
