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

char LICENSE[] SEC("license") = "GPL";

#define IPPROTO_TCP  6
#define EPERM        1
#define EACCES       13
#define ENETUNREACH  101
#define ECONNRESET   104
#define ETIMEDOUT    110
#define ECONNREFUSED 111
#define EHOSTUNREACH 113
#define RCV_SHUTDOWN 1

enum phase {
	PHASE_CONNECTING = 1,
	PHASE_ESTABLISHED = 2,
	PHASE_CLOSED = 3,
};

/* What is known of a socket between its state changes. */
struct tcp_socket {
	struct tcp_key key;
	__u64 syn_ns;
	__u32 segs_out; /* when the connect began */
	__be16
	    source_port; /* when the connect began: of bind(), or stale from an earlier connect */
	__u8 phase;
	__u8 in_other;
};

struct tcp_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192); /* set by the agent */
	__type(key, struct tcp_key);
	__type(value, struct tcp_counts);
};

struct tcp_table tcp_rows_a SEC(".maps");
struct tcp_table tcp_rows_b SEC(".maps");

/* Which of the two is written. A map in a map, because its update returns only when no running
 * program still uses the old one (kernel: maybe_wait_bpf_programs).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct tcp_table);
} tcp_rows SEC(".maps") = {
    .values = {[0] = &tcp_rows_a},
};

/* The sum of what found no place in the table, by role. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TCP_ROLE_COUNT);
	__type(key, __u32);
	__type(value, struct tcp_counts);
} tcp_other SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TCP_LOSS_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} tcp_losses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tcp_socket);
} tcp_sockets SEC(".maps");

static const struct tcp_counts no_counts;

static __always_inline void add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

static void lose(__u32 reason)
{
	__u64 *count = bpf_map_lookup_elem(&tcp_losses, &reason);

	if (count)
		add(count, 1);
}

static struct tcp_counts *counts_of(struct tcp_socket *socket)
{
	__u32 zero = 0, role = socket->key.role;
	struct tcp_counts *counts;
	void *rows;

	if (!socket->in_other) {
		rows = bpf_map_lookup_elem(&tcp_rows, &zero);
		if (rows) {
			counts = bpf_map_lookup_elem(rows, &socket->key);
			if (counts)
				return counts;
			bpf_map_update_elem(rows, &socket->key, &no_counts, BPF_NOEXIST);
			counts = bpf_map_lookup_elem(rows, &socket->key);
			if (counts)
				return counts;
		}
		socket->in_other = 1;
	}
	lose(TCP_LOSS_ROWS_FULL);
	return bpf_map_lookup_elem(&tcp_other, &role);
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

/* Why a handshake ended; sk_err is set by the kernel before the state changes. */
static __u32 failure_of(const struct sock *sk, const struct tcp_sock *tp,
			const struct tcp_socket *socket)
{
	switch (sk->sk_err) {
	case ECONNREFUSED:
		return TCP_FAILURE_REFUSED;
	case ETIMEDOUT:
		return TCP_FAILURE_TIMEOUT;
	case EHOSTUNREACH:
	case ENETUNREACH:
		return TCP_FAILURE_UNREACHABLE;
	case EACCES:
	case EPERM:
		return TCP_FAILURE_DENIED;
	case ECONNRESET:
		return TCP_FAILURE_RESET;
	case 0:
		break;
	default:
		return TCP_FAILURE_OTHER;
	}
	/* connect() that finds no free port goes back to CLOSE before it sends: no SYN left, and
	 * the source port is the one of before, which is 0 only on a fresh socket.
	 */
	if (tp->segs_out == socket->segs_out && !(sk->sk_shutdown & RCV_SHUTDOWN) &&
	    ((const struct inet_sock *)tp)->inet_sport == socket->source_port)
		return TCP_FAILURE_PORTS_EXHAUSTED;
	return TCP_FAILURE_ABORTED;
}

static int connecting(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_socket *socket;
	struct tcp_counts *counts;

	socket = bpf_sk_storage_get(&tcp_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket || !tp) {
		lose(TCP_LOSS_UNTRACKED);
		return 0;
	}
	socket->key = (struct tcp_key){.cgroup = socket_cgroup(sk), .role = TCP_ROLE_CLIENT};
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

static int established(struct sock *sk, int oldstate)
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
		lose(TCP_LOSS_UNTRACKED);
		return 0;
	}
	socket->key = (struct tcp_key){
	    .cgroup = socket_cgroup(sk), .port = sk->__sk_common.skc_num, .role = TCP_ROLE_SERVER};
	socket->phase = PHASE_ESTABLISHED;
	counts = counts_of(socket);
	if (counts)
		add(&counts->established, 1);
	return 0;
}

static int closed(struct sock *sk)
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
	if (socket->phase == PHASE_CONNECTING) {
		failure = failure_of(sk, tp, socket);
		if (failure < TCP_FAILURE_COUNT)
			add(&counts->failures[failure], 1);
	} else {
		add(&counts->closed, 1);
		if (socket->key.role == TCP_ROLE_CLIENT && sk->sk_err == ECONNRESET &&
		    !tp->bytes_received)
			add(&counts->failures[TCP_FAILURE_RESET], 1);
	}
	socket->phase = PHASE_CLOSED;
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int oldstate, int newstate)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	switch (newstate) {
	case TCP_SYN_SENT:
		return connecting(sk);
	case TCP_ESTABLISHED:
		return established(sk, oldstate);
	case TCP_CLOSE:
		return closed(sk);
	}
	return 0;
}
