/* SPDX-License-Identifier: GPL-2.0-only */
/* What a network namespace lets connect() choose from, read from the namespace itself. */
#ifndef TIDEGATE_PORTS_BPF_H
#define TIDEGATE_PORTS_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "kernel.bpf.h"
#include "ports.h"

#define PORT_WORDS (65536 / 64)
/* Sysctls change by hand, so they are read again after so long. */
#define NAMESPACE_KEPT_NS 5000000000ULL

struct port_bits {
	__u64 words[PORT_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct port_bits);
} ports_scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct ports_namespace);
} ports_namespaces SEC(".maps");

static const struct ports_namespace no_namespace;

static __always_inline __u32 port_range(const struct net *net)
{
	const struct net___pair *pair = (const void *)net;
	__u32 low, high;

	if (bpf_core_field_exists(net->ipv4.ip_local_ports.range))
		return BPF_CORE_READ(net, ipv4.ip_local_ports.range);
	low = BPF_CORE_READ(pair, ipv4.ip_local_ports.range[0]);
	high = BPF_CORE_READ(pair, ipv4.ip_local_ports.range[1]);
	return high << 16 | low;
}

/* The bits of one word that stand for ports from low to high. Not static, as below: so the verifier goes
 * through it once, and not once for each turn of the loop.
 */
__noinline __u32 count_word(__u64 word, __u32 i, __u32 low, __u32 high)
{
	if (i < low / 64 || i > high / 64)
		return 0;
	if (i == low / 64)
		word &= ~0ULL << (low % 64);
	if (i == high / 64)
		word &= ~0ULL >> (63 - high % 64);
	return __builtin_popcountll(word);
}

/* How many ports from low to high are set aside. */
__noinline __u32 count_reserved(__u64 bitmap, __u32 low, __u32 high)
{
	__u32 zero = 0, count = 0;
	struct port_bits *bits = bpf_map_lookup_elem(&ports_scratch, &zero);

	if (!bits || !bitmap || bpf_probe_read_kernel(bits, sizeof(*bits), (const void *)bitmap))
		return 0;
	for (__u32 i = 0; i < PORT_WORDS; i++)
		count += count_word(bits->words[i], i, low, high);
	return count;
}

/* Read the namespace's settings, unless that was done a short while ago. */
static struct ports_namespace *note_namespace(const struct net *net, __u32 netns)
{
	struct ports_namespace *known = bpf_map_lookup_elem(&ports_namespaces, &netns);
	__u64 now = bpf_ktime_get_ns();
	__u32 range;

	if (known && now - known->read_ns < NAMESPACE_KEPT_NS)
		return known;
	if (!known) {
		bpf_map_update_elem(&ports_namespaces, &netns, &no_namespace, BPF_NOEXIST);
		known = bpf_map_lookup_elem(&ports_namespaces, &netns);
		if (!known)
			return 0;
	}
	range = port_range(net);
	known->low = range;
	known->high = range >> 16;
	known->reserved = count_reserved((__u64)BPF_CORE_READ(net, ipv4.sysctl_local_reserved_ports),
					 known->low, known->high);
	known->tw_reuse = BPF_CORE_READ(net, ipv4.sysctl_tcp_tw_reuse);
	known->tw_reuse_delay_ms = bpf_core_field_exists(net->ipv4.sysctl_tcp_tw_reuse_delay)
				       ? BPF_CORE_READ(net, ipv4.sysctl_tcp_tw_reuse_delay)
				       : 1000;
	known->somaxconn = BPF_CORE_READ(net, core.sysctl_somaxconn);
	known->read_ns = now;
	return known;
}

#endif
