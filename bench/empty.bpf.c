// SPDX-License-Identifier: GPL-2.0-only
/* Programs that do nothing at a disk's events: what of a run time is the kernel's own measuring. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("tp_btf/block_rq_issue")
int empty_issued(unsigned long long *ctx)
{
	return 0;
}

SEC("tp_btf/block_rq_complete")
int empty_ended(unsigned long long *ctx)
{
	return 0;
}
