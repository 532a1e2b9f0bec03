// SPDX-License-Identifier: GPL-2.0-only
/* A program that the verifier refuses: it reads the packet unchecked. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("xdp.frags")
int unchecked(struct xdp_md *ctx)
{
	return *(int *)(long)ctx->data;
}
