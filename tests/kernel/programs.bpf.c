// SPDX-License-Identifier: GPL-2.0-only
/* One program of each kind that the binding attaches, for its tests. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "include/histogram.bpf.h"
#include "include/kernel.bpf.h"

char LICENSE[] SEC("license") = "GPL";

const volatile __u32 verdict = XDP_PASS;
const volatile __u64 denied_port = 0;
__u64 denials;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10000);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 10000);
	__type(key, __u32);
	__type(value, __u64);
} growing SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

SEC("xdp.frags")
int answer(struct xdp_md *ctx)
{
	return verdict;
}

SEC("xdp.frags")
int drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

/* Without frags, which takes no frame larger than a page. */
SEC("xdp")
int small(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* Reads a u64 and returns its histogram slot. */
SEC("xdp.frags")
int slot(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + 16 > end)
		return -1;
	return histogram_slot(*(__u64 *)data, HANDSHAKE_SHIFT, HANDSHAKE_SLOTS);
}

/* Passes the first eight bytes on to the ring; returns whether that failed. */
SEC("xdp.frags")
int to_ring(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	__u64 record;

	if (data + 16 > end)
		return -1;
	record = *(__u64 *)data;
	return bpf_ringbuf_output(&ring, &record, sizeof(record), 0) != 0;
}

SEC("cgroup/connect4")
int deny(struct bpf_sock_addr *ctx)
{
	if (bpf_ntohs(ctx->user_port) != denied_port)
		return 1;
	__sync_fetch_and_add(&denials, 1);
	return 0;
}

/* Writes the local port of each TCP socket. */
SEC("iter/tcp")
int ports(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	__u16 port;

	if (!sk)
		return 0;
	port = sk->skc_num;
	bpf_seq_write(ctx->meta->seq, &port, sizeof(port));
	return 0;
}
