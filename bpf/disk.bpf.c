// SPDX-License-Identifier: GPL-2.0-only
/* Requests of block devices per (cgroup, device, operation), from the block layer's own events. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "include/disk_bios.bpf.h"
#include "include/disk_requests.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* Before 5.11 the queue came first in events of bios (e8a676d61c07 "block: simplify and extend the
 * block_bio_merge tracepoint class") and of requests (a54895fa057c), which some releases of 5.10 have
 * without; set by the agent, which tries.
 */
const volatile __u8 queue_before_bio;
const volatile __u8 queue_before_request;

/* In assembler, as the compiler makes one load at a computed place of the two, which the verifier refuses. */
static __always_inline void *subject(unsigned long long *ctx, __u8 queue_comes_first)
{
	void *found;

	if (queue_comes_first)
		asm volatile("%0 = *(u64 *)(%1 + 8)" : "=r"(found) : "r"(ctx));
	else
		asm volatile("%0 = *(u64 *)(%1 + 0)" : "=r"(found) : "r"(ctx));
	return found;
}

/* Since 6.5 (5a80bd075f3b "block: introduce block_io_start/block_io_done tracepoints"), else left out */
SEC("tp_btf/block_io_start")
int BPF_PROG(disk_made, struct request *rq)
{
	return on_made(rq);
}

/* Since 5.11; needed only with the one above */
SEC("tp_btf/block_rq_merge")
int BPF_PROG(disk_merged, struct request *rq)
{
	return on_gone(rq);
}

SEC("tp_btf/block_rq_issue")
int disk_issued(unsigned long long *ctx)
{
	return on_issue(subject(ctx, queue_before_request));
}

SEC("tp_btf/block_rq_requeue")
int disk_requeued(unsigned long long *ctx)
{
	return on_gone(subject(ctx, queue_before_request));
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(disk_ended, struct request *rq, int error, unsigned int bytes)
{
	return on_end(rq, error & 0xff, bytes);
}

/* These two come for every bio, and are attached only while there is a device that takes bios as they are. */
SEC("tp_btf/block_bio_queue")
int disk_bio_begun(unsigned long long *ctx)
{
	return on_bio(subject(ctx, queue_before_bio));
}

SEC("tp_btf/block_bio_complete")
int BPF_PROG(disk_bio_ended, struct request_queue *queue, struct bio *bio)
{
	return on_bio_end(bio);
}

/* Lists what is with a device, a struct disk_key for each request. */
SEC("iter/bpf_map_elem")
int disk_walk(struct bpf_iter__bpf_map_elem *ctx)
{
	return on_entry(ctx);
}
