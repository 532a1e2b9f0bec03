/* SPDX-License-Identifier: GPL-2.0-only */
/* Addresses of a socket; ::ffff:a.b.c.d is IPv4. */
#ifndef TIDEGATE_ENDPOINT_BPF_H
#define TIDEGATE_ENDPOINT_BPF_H

#include <bpf/bpf_endian.h>
#include "kernel.bpf.h"

/* Writes one address of four words, of which IPv4 takes the first; returns its family, 4 or 6. */
static __u8 address_of(__u16 family, __be32 v4, const __be32 *v6, __be32 *address)
{
	if (family != AF_INET6) {
		address[0] = v4;
		return 4;
	}
	if (!v6[0] && !v6[1] && v6[2] == bpf_htonl(0xffff)) {
		address[0] = v6[3];
		return 4;
	}
	address[0] = v6[0];
	address[1] = v6[1];
	address[2] = v6[2];
	address[3] = v6[3];
	return 6;
}

static __always_inline __u8 remote_address(const struct sock_common *common, __be32 *address)
{
	return address_of(common->skc_family, common->skc_daddr, common->skc_v6_daddr.in6_u.u6_addr32,
			  address);
}

static __always_inline __u8 local_address(const struct sock_common *common, __be32 *address)
{
	return address_of(common->skc_family, common->skc_rcv_saddr, common->skc_v6_rcv_saddr.in6_u.u6_addr32,
			  address);
}

#endif
