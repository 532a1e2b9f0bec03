// SPDX-License-Identifier: GPL-2.0-only
/* TCP connections per (cgroup, role, endpoint), from the socket's own state changes.
 *
 * Counts go to one of two tables: the agent swaps them at each read and empties the one that no
 * program uses any more, so that reading loses nothing and the table is empty at the start of every
 * interval.
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "include/cgroup.bpf.h"
#include "include/histogram.bpf.h"
#include "include/kernel.bpf.h"
#include "include/tcp.h"
#include "include/tcp_failure.bpf.h"
#include "include/tcp_rows.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define IPPROTO_TCP   6
#define SHUTDOWN_MASK 3

/* The kernel leaves out a program that is already running on the CPU: a softirq that changes a socket's
 * state while the program works for a process would go uncounted (05b24ff9b2cf "bpf: Prevent bpf program
 * recursion for raw tracepoint probes"). So the program is attached twice, and each event is done by the
 * first pass that runs: while one of the two is interrupted, the other is free, and there is no third level.
 * That all is done tells the CPU's last event, or else the socket's entry, which changes under its lock.
 */
enum pass {
	PASS_FIRST = 1,
	PASS_SECOND = 2,
};

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

static void remote_endpoint(const struct sock *sk, struct tcp_key *key)
{
	const struct sock_common *common = &sk->__sk_common;
	const __be32 *v6 = common->skc_v6_daddr.in6_u.u6_addr32;

	key->port = bpf_ntohs(common->skc_dport);
	key->family = 4;
	if (common->skc_family != AF_INET6) {
		key->address[0] = common->skc_daddr;
	} else if (!v6[0] && !v6[1] && v6[2] == bpf_htonl(0xffff)) { /* ::ffff:a.b.c.d */
		key->address[0] = v6[3];
	} else {
		key->address[0] = v6[0];
		key->address[1] = v6[1];
		key->address[2] = v6[2];
		key->address[3] = v6[3];
		key->family = 6;
	}
}

/* Count a new connection and remember it; 1 if there is no place, so that the second pass tries again. Only
 * the failure of the second pass is a loss: it comes last. */
static int begin(__u64 sk, struct tcp_socket *socket, enum pass pass)
{
	struct tcp_counts *counts = counts_of(socket);

	if (bpf_map_update_elem(&tcp_sockets, &sk, socket, BPF_ANY)) {
		if (pass == PASS_SECOND)
			lose(TCP_LOSS_UNTRACKED);
		return 1;
	}
	if (counts)
		add(socket->phase == PHASE_CONNECTING ? &counts->connects : &counts->established, 1);
	return 0;
}

static int connecting(struct sock *sk, enum pass pass)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_socket *known, socket = {
		.key = { .role = TCP_ROLE_CLIENT },
		.phase = PHASE_CONNECTING,
	};
	__u64 key = (__u64)sk;

	if (!tp)
		return 0;
	if (pass == PASS_SECOND) {
		known = bpf_map_lookup_elem(&tcp_sockets, &key);
		if (known && known->phase == PHASE_CONNECTING)
			return 0;
	}
	socket.key.cgroup = socket_cgroup(sk);
	remote_endpoint(sk, &socket.key);
	socket.segs_out = tp->segs_out;
	socket.source_port = ((struct inet_sock *)tp)->inet_sport;
	socket.syn_ns = bpf_ktime_get_ns();
	return begin(key, &socket, pass);
}

static int established(struct sock *sk, int oldstate, enum pass pass)
{
	__u64 ns, key = (__u64)sk;
	struct tcp_socket *known = bpf_map_lookup_elem(&tcp_sockets, &key);
	struct tcp_counts *counts;

	if (known && known->phase == PHASE_CONNECTING) {
		known->phase = PHASE_ESTABLISHED;
		counts = counts_of(known);
		if (!counts)
			return 0;
		ns = bpf_ktime_get_ns() - known->syn_ns;
		add(&counts->established, 1);
		add(&counts->handshake_ns, ns);
		histogram_add(counts->handshake, ns, HANDSHAKE_SHIFT);
		return 0;
	}
	/* Any other was counted by the first pass, or its connect began before the programs were attached. */
	if (known || oldstate != TCP_SYN_RECV)
		return 0;

	struct tcp_socket socket = {
		.key = { .cgroup = socket_cgroup(sk),
			 .port = sk->__sk_common.skc_num,
			 .role = TCP_ROLE_SERVER },
		.phase = PHASE_ESTABLISHED,
	};
	return begin(key, &socket, pass);
}

static int closed(struct sock *sk, int oldstate, int is_late)
{
	__u64 key = (__u64)sk;
	struct tcp_socket *known = bpf_map_lookup_elem(&tcp_sockets, &key);
	struct tcp_sock *tp;
	struct tcp_counts *counts;
	__u32 failure;

	if (!known)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	counts = counts_of(known);
	if (!counts || !tp)
		return 0;
	if (is_late)
		lose(TCP_LOSS_LATE);
	if (known->phase == PHASE_CONNECTING && (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV)) {
		failure = is_late ? late_failure_of(sk, tp) : failure_of(sk, tp, known);
		if (failure < TCP_FAILURE_COUNT)
			add(&counts->failures[failure], 1);
	} else {
		if (known->phase == PHASE_CONNECTING) { /* no program saw it established */
			add(&counts->established, 1);
			lose(TCP_LOSS_LATE);
		}
		add(&counts->closed, 1);
		if (known->key.role == TCP_ROLE_CLIENT && sk->sk_err == ECONNRESET && !tp->bytes_received)
			add(&counts->failures[TCP_FAILURE_RESET], 1);
	}
	bpf_map_delete_elem(&tcp_sockets, &key);
	return 0;
}

/* A child of a listener has its address from a socket of before, of which nothing must be left. */
static int accepting(struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (bpf_map_lookup_elem(&tcp_sockets, &key))
		bpf_map_delete_elem(&tcp_sockets, &key);
	return 0;
}

/* Returns 1 where the event is still to be done. */
static __always_inline int on_state(struct sock *sk, int oldstate, int newstate, enum pass pass)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	switch (newstate) {
	case TCP_SYN_SENT:
		return connecting(sk, pass);
	case TCP_SYN_RECV:
		return oldstate == TCP_LISTEN ? accepting(sk) : 0;
	case TCP_ESTABLISHED:
		return established(sk, oldstate, pass);
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		/* Shut down both ways: for the service it is closed, whatever the kernel has still to
		 * exchange.
		 */
		if ((sk->sk_shutdown & SHUTDOWN_MASK) != SHUTDOWN_MASK)
			return 0;
		return closed(sk, oldstate, 0);
	case TCP_CLOSE:
		return closed(sk, oldstate, 0);
	}
	return 0;
}

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

/* The last that is heard of a socket. A kernel may leave tracing programs out for a reason of its own (some
 * hosts run none while their supervisor is the current task), so a close can pass unseen by both.
 */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroyed, struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct tcp_socket *known = bpf_map_lookup_elem(&tcp_sockets, &key);

	if (!known)
		return 0;
	return closed(sk, known->phase == PHASE_CONNECTING ? TCP_SYN_SENT : TCP_ESTABLISHED, 1);
}
