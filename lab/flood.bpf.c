// SPDX-License-Identifier: GPL-2.0-only
/* Sends frames of ever other source addresses into an interface: run by BPF_PROG_TEST_RUN on a template,
 * which is Ethernet, IPv4 without options, and TCP or UDP.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

#define ADDRESS     26 /* of the source, in a frame */
#define IP_CHECKSUM 24
#define PORT        34 /* of the source */
#define HEADERS     54
#define MOST_PORTS  0x7fff
#define FIRST_PORT  1024

const volatile __u32 interface = 0;
const volatile __u32 first = 0;    /* address, host order */
const volatile __u32 sources = 1;  /* how many of them from the first on */
const volatile __u32 step = 1;     /* from one to the next; with no divisor that sources have */
const volatile __u32 checksum = 0; /* where that of TCP or UDP is in a frame */
/* Of a frame without source address and source port, not folded. */
const volatile __u32 ip_sum = 0, sum = 0;

__u64 sent;
__u32 place, round_;

static __always_inline __u16 folded(__u32 value)
{
	value = (value & 0xffff) + (value >> 16);
	value = (value & 0xffff) + (value >> 16);
	return ~value;
}

/* Everything is set anew, as a frame comes back with what was last in it. */
static __always_inline int write(struct xdp_md *ctx)
{
	void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 address = bpf_htonl(first + place);
	__u16 port = bpf_htons(FIRST_PORT + (round_ & MOST_PORTS));
	__u32 added = (address & 0xffff) + (address >> 16);

	if (at + HEADERS > end || checksum > HEADERS - sizeof(__u16))
		return 0;
	*(__u32 *)(at + ADDRESS) = address;
	*(__u16 *)(at + PORT) = port;
	*(__u16 *)(at + IP_CHECKSUM) = folded(ip_sum + added);
	*(__u16 *)(at + checksum) = folded(sum + added + port);
	sent++;
	place += step;
	if (place >= sources) {
		place -= sources;
		round_ += place == 0;
	}
	return 1;
}

SEC("xdp")
int flood(struct xdp_md *ctx)
{
	return write(ctx) ? bpf_redirect(interface, 0) : XDP_ABORTED;
}

/* Goes nowhere: what the flood itself costs. */
SEC("xdp")
int nowhere(struct xdp_md *ctx)
{
	return write(ctx) ? XDP_DROP : XDP_ABORTED;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

/* To another program, as if the frame had come to it: in test runs, each of which is of one frame. */
SEC("xdp.frags")
int to_program(struct xdp_md *ctx)
{
	if (!write(ctx))
		return XDP_ABORTED;
	bpf_tail_call(ctx, &target, 0);
	return XDP_ABORTED;
}

/* At the other end: what being there costs. */
SEC("xdp.frags")
int dropped(struct xdp_md *ctx)
{
	return XDP_DROP;
}
