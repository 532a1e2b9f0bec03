/* SPDX-License-Identifier: GPL-2.0-only */
/* The TCP segment in a packet as a cgroup's programs see it, from its IP header on. */
#ifndef TIDEGATE_HTTP_SEGMENT_BPF_H
#define TIDEGATE_HTTP_SEGMENT_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct segment {
	__u32 seq;
	__u32 ack;
	__u32 at; /* where the payload begins */
	__u32 length;
	__u8 flags;
};

#define TCP_FIN 1
#define TCP_RST 4

struct tcp_header {
	__be16 source;
	__be16 destination;
	__be32 seq;
	__be32 ack;
	__u8 offset; /* in words, in the upper four bits */
	__u8 flags;
	__u8 rest[6];
};

#define IPV6_HEADER 40
#define IPV6_NEXT   6

/* Returns 0 where there is none, or behind extension headers of IPv6. */
static __always_inline int segment_of(struct __sk_buff *skb, struct segment *segment)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct tcp_header *tcp;
	__u8 *ip = data;
	__u32 at;

	if (data + IPV6_HEADER > end)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		at = (ip[0] & 0xf) * 4;
	} else {
		if (ip[IPV6_NEXT] != IPPROTO_TCP)
			return 0;
		at = IPV6_HEADER;
	}
	tcp = data + at;
	if ((void *)(tcp + 1) > end)
		return 0;
	segment->seq = bpf_ntohl(tcp->seq);
	segment->ack = bpf_ntohl(tcp->ack);
	segment->at = at + (tcp->offset >> 4) * 4;
	segment->flags = tcp->flags;
	segment->length = skb->len > segment->at ? skb->len - segment->at : 0;
	return 1;
}

#endif
