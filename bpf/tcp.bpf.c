// SPDX-License-Identifier: GPL-2.0-only
/* TCP connections per (cgroup, role, endpoint), from the sockets' own events and from a walk over them.
 *
 * Counts go to one of two tables: the agent swaps them at each read and empties the one that no
 * program uses any more, so that reading loses nothing and the table is empty at the start of every
 * interval.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "include/kernel.bpf.h"
#include "include/tcp.h"
#include "include/tcp_adopt.bpf.h"
#include "include/tcp_reset.bpf.h"
#include "include/tcp_retransmit.bpf.h"
#include "include/tcp_state.bpf.h"
#include "include/tcp_walk.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* The event that the first pass has done last on this CPU. It is cleared when the pass begins, so that what a
 * second pass finds in the middle of a first one is never an event of before.
 */
struct tcp_event {
	__u64 sk;
	__u64 state;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tcp_event);
} tcp_done SEC(".maps");

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int oldstate, int newstate)
{
	__u32 zero = 0;
	struct tcp_event *done = bpf_map_lookup_elem(&tcp_done, &zero);

	if (!done)
		return 0;
	done->sk = 0;
	if (on_state(sk, oldstate, newstate, PASS_FIRST))
		return 0;
	done->state = newstate;
	done->sk = (__u64)sk;
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state_again, struct sock *sk, int oldstate, int newstate)
{
	__u32 zero = 0;
	struct tcp_event *done = bpf_map_lookup_elem(&tcp_done, &zero);

	if (done && done->sk == (__u64)sk && done->state == (__u64)newstate)
		return 0;
	on_state(sk, oldstate, newstate, PASS_SECOND);
	return 0;
}

/* The last that is heard of a socket. Once is enough: the walk finds those that were missed. */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroyed, struct sock *sk)
{
	return on_destroy(sk);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmitted, const struct sock *sk)
{
	return on_retransmit(sk);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmitted_again, const struct sock *sk)
{
	return on_retransmit(sk);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(tcp_synack_retransmitted, const struct sock *sk)
{
	return on_synack_retransmit(sk);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_reset_received, struct sock *sk)
{
	return on_reset_received(sk);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_reset_received_again, struct sock *sk)
{
	return on_reset_received(sk);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(tcp_reset_sent, const struct sock *sk, const struct sk_buff *skb)
{
	return on_reset_sent(sk, skb);
}

/* Counts what open connections have done since the last walk; writes a byte for each entry. */
SEC("iter/bpf_map_elem")
int tcp_walk(struct bpf_iter__bpf_map_elem *ctx)
{
	return on_entry(ctx);
}

/* Counts the ports of open connections, where the kernel refuses the walk. */
SEC("iter/bpf_map_elem")
int tcp_ports_walk(struct bpf_iter__bpf_map_elem *ctx)
{
	return on_port(ctx);
}

/* Lists what is open, a struct tcp_key for each connection. */
SEC("iter/bpf_map_elem")
int tcp_open(struct bpf_iter__bpf_map_elem *ctx)
{
	return on_open(ctx);
}

/* Takes in what is open in the network namespace of the reader; writes a byte for each connection. */
SEC("iter/tcp")
int tcp_adopt(struct bpf_iter__tcp *ctx)
{
	return on_socket(ctx);
}
