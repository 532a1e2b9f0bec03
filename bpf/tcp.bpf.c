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

/* The kernel leaves out a program that is already running on the CPU: a softirq that changes a
 * socket's state while the program works for a process would go uncounted (05b24ff9b2cf "bpf:
 * Prevent bpf program recursion for raw tracepoint probes"). So the program is attached twice, and
 * each event is done by the first pass that runs: while one of the two is interrupted, the other is
 * free, and there is no third level. The phase in the socket's storage, written under the socket's
 * lock, tells that it is done.
 */
enum pass {
	PASS_FIRST = 1,
	PASS_SECOND = 2,
};

/* The second pass tries again what the first could not do, so only its failure is one. */
static __always_inline void lose_at(enum pass pass, __u32 reason)
{
	if (pass == PASS_SECOND)
		lose(reason);
}

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

static int connecting(struct sock *sk, enum pass pass)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_socket *socket;
	struct tcp_counts *counts;

	socket = bpf_sk_storage_get(&tcp_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket || !tp) {
		lose_at(pass, TCP_LOSS_UNTRACKED);
		return 0;
	}
	if (socket->phase == PHASE_CONNECTING)
		return 0;
	socket->key = (struct tcp_key){ .cgroup = socket_cgroup(sk), .role = TCP_ROLE_CLIENT };
	remote_endpoint(sk, &socket->key);
	socket->syn_ns = bpf_ktime_get_ns();
	socket->segs_out = tp->segs_out;
	socket->source_port = ((struct inet_sock *)tp)->inet_sport;
	socket->phase = PHASE_CONNECTING;
	socket->in_other = 0;

	counts = counts_of(socket);
	if (counts)
		add(&counts->connects, 1);
	return 0;
}

static int established(struct sock *sk, int oldstate, enum pass pass)
{
	struct tcp_socket *socket = bpf_sk_storage_get(&tcp_sockets, sk, 0, 0);
	struct tcp_counts *counts;
	__u64 ns;

	if (socket && socket->phase == PHASE_CONNECTING) {
		socket->phase = PHASE_ESTABLISHED;
		counts = counts_of(socket);
		if (!counts)
			return 0;
		ns = bpf_ktime_get_ns() - socket->syn_ns;
		add(&counts->established, 1);
		add(&counts->handshake_ns, ns);
		histogram_add(counts->handshake, ns, HANDSHAKE_SHIFT);
		return 0;
	}
	if (oldstate != TCP_SYN_RECV) /* its connect began before the programs were attached */
		return 0;

	socket = bpf_sk_storage_get(&tcp_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket) {
		lose_at(pass, TCP_LOSS_UNTRACKED);
		return 0;
	}
	if (socket->phase == PHASE_ESTABLISHED)
		return 0;
	socket->key = (struct tcp_key){ .cgroup = socket_cgroup(sk),
					.port = sk->__sk_common.skc_num,
					.role = TCP_ROLE_SERVER };
	socket->phase = PHASE_ESTABLISHED;
	counts = counts_of(socket);
	if (counts)
		add(&counts->established, 1);
	return 0;
}

static int closed(struct sock *sk, int oldstate, int is_late)
{
	struct tcp_socket *socket = bpf_sk_storage_get(&tcp_sockets, sk, 0, 0);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_counts *counts;
	__u32 failure;

	if (!socket || !tp || socket->phase == PHASE_CLOSED)
		return 0;
	counts = counts_of(socket);
	if (!counts)
		return 0;
	if (is_late)
		lose(TCP_LOSS_LATE);
	if (socket->phase == PHASE_CONNECTING &&
	    (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV)) {
		failure = is_late ? late_failure_of(sk, tp) : failure_of(sk, tp, socket);
		if (failure < TCP_FAILURE_COUNT)
			add(&counts->failures[failure], 1);
	} else {
		if (socket->phase == PHASE_CONNECTING) { /* no program saw it established */
			add(&counts->established, 1);
			lose(TCP_LOSS_LATE);
		}
		add(&counts->closed, 1);
		if (socket->key.role == TCP_ROLE_CLIENT && sk->sk_err == ECONNRESET &&
		    !tp->bytes_received)
			add(&counts->failures[TCP_FAILURE_RESET], 1);
	}
	socket->phase = PHASE_CLOSED;
	return 0;
}

static __always_inline int on_state(struct sock *sk, int oldstate, int newstate, enum pass pass)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	switch (newstate) {
	case TCP_SYN_SENT:
		return connecting(sk, pass);
	case TCP_ESTABLISHED:
		return established(sk, oldstate, pass);
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		/* Shut down both ways: for the service it is closed, whatever the kernel has still
		 * to exchange.
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
	return on_state(sk, oldstate, newstate, PASS_FIRST);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state_again, struct sock *sk, int oldstate, int newstate)
{
	return on_state(sk, oldstate, newstate, PASS_SECOND);
}

/* The last that is heard of a socket. A kernel may leave tracing programs out for a reason of its
 * own (some hosts run none while their supervisor is the current task), so a close can pass unseen
 * by both.
 */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroyed, struct sock *sk)
{
	struct tcp_socket *socket = bpf_sk_storage_get(&tcp_sockets, sk, 0, 0);

	if (!socket || socket->phase == PHASE_CLOSED)
		return 0;
	return closed(sk, socket->phase == PHASE_CONNECTING ? TCP_SYN_SENT : TCP_ESTABLISHED, 1);
}
