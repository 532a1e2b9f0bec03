/* SPDX-License-Identifier: GPL-2.0-only */
/* The sockets that are followed: what is known of each between its events, and what of it is counted. */
#ifndef TIDEGATE_TCP_SOCKETS_BPF_H
#define TIDEGATE_TCP_SOCKETS_BPF_H

#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include "cgroup.bpf.h"
#include "endpoint.bpf.h"
#include "kernel.bpf.h"
#include "tcp.h"
#include "tcp_rows.bpf.h"

#define IPPROTO_TCP   6
#define SHUTDOWN_MASK 3

/* Whether a walk counts what open connections do. It needs a lock that the kernel may not offer to programs
 * of this kind (5.10 doesn't). Without it each event counts at once, and nobody meets anybody in an entry.
 */
const volatile __u8 walks = 1;

/* Whether the CPU shows stores to others in their order, as x86 does. */
const volatile __u8 stores_in_order = 1;

/* What can become of a connection, each once. */
enum event {
	EVENT_CONNECT = 1 << 0, /* began to open it */
	EVENT_ESTABLISHED = 1 << 1,
	EVENT_ADOPTED = 1 << 2, /* was open before the programs were attached */
	EVENT_CLOSED = 1 << 3,  /* established or adopted, and closed by the service or ended */
	EVENT_CLOSER = 1 << 4,  /* who began to close is known */
	EVENT_FAILED = 1 << 5,
	EVENT_RESET_SENT = 1 << 6,
	EVENT_RESET_RECEIVED = 1 << 7,
	EVENT_ENDED = 1 << 8, /* is in the state CLOSE */
};

/* What its events have noted of a connection. */
struct tcp_connection {
	struct tcp_key key;
	__u64 syn_ns; /* client: the connect began; 0 if that was not seen */
	__u64 established_ns;
	__u64 closed_ns;
	__u32 netns;  /* inode of the network namespace */
	__u16 noted;  /* enum event */
	__u8 closer;  /* enum tcp_closer */
	__u8 failure; /* enum tcp_failure */
	__u8 in_other;
	__u8 pad[7];
};

/* How far it has come. */
struct progress {
	__u64 sent;
	__u64 received;
	__u32 segments_sent;
	__u32 segments_received;
	__u32 srtt_us;
	__u32 rtt_min_us;
	__u32 exchanges;
	__u32 retransmits;
};

/* An entry is made when a connection begins and goes when its socket is destroyed. The events of a socket
 * come one after the other, under its lock, and only note what happened. The row is written by the walk, and
 * at the end for the rest. Those two may meet, so what is counted already changes under the entry's own lock.
 */
struct tcp_socket {
	__u64 sk;
	__u64 began_ns; /* never the same for two connections of one socket */
	struct tcp_connection connection;
	__u64 missed_ns;    /* the first walk that did not find the socket where it should be */
	__u32 retransmits;  /* counted so far; changed by the socket's own events alone */
	__u32 segs_out;     /* when the connect began */
	__be16 source_port; /* then: of bind(), or stale from an earlier connect */
	__be16 remote_port;
	__u16 local_port; /* 0 until established */
	__u16 pad;
	struct progress last; /* at the last event or walk: all that is left where the end passes unseen */
	/* counted so far, under the lock */
	struct bpf_spin_lock lock;
	__u16 counted; /* enum event */
	__u16 gone;
	__u32 segments_sent;
	__u32 segments_received;
	__u32 exchanges;
	__u32 pad2;
	__u64 sent;
	__u64 received;
};

/* By the socket's address. Socket storage would be at hand without a key, but costs 1.2 us to make and free,
 * a hash 0.3 us (docs/architecture.md).
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536); /* set by the agent */
	__type(key, __u64);
	__type(value, struct tcp_socket);
} tcp_sockets SEC(".maps");

static const struct tcp_socket no_socket;

static struct tcp_socket *entry_of(const struct sock *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(&tcp_sockets, &key);
}

static int has(const struct tcp_socket *socket, enum event event)
{
	return socket->connection.noted & event;
}

/* A new entry, to be filled in and then told to walks by its address; NULL if there is no place, or an entry
 * already. Not built on the stack, of which there are 512 bytes.
 */
static struct tcp_socket *new_socket(const struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (bpf_map_update_elem(&tcp_sockets, &key, &no_socket, BPF_NOEXIST))
		return 0;
	return bpf_map_lookup_elem(&tcp_sockets, &key);
}

static __always_inline void show_to_walks(struct tcp_socket *socket, const struct sock *sk)
{
	barrier();
	if (stores_in_order || !walks) {
		socket->sk = (__u64)sk;
		return;
	}
	bpf_spin_lock(&socket->lock);
	socket->sk = (__u64)sk;
	bpf_spin_unlock(&socket->lock);
}

static __u32 netns_of(const struct sock *sk)
{
	return sk->__sk_common.skc_net.net->ns.inum;
}

/* By its ports the walk tells whether the socket is still there. */
static void note_ports(struct tcp_socket *socket, const struct sock *sk)
{
	socket->remote_port = sk->__sk_common.skc_dport;
	socket->local_port = sk->__sk_common.skc_num;
}

/* After what belongs to the event was written: a walk that sees the event must see that too. */
static __always_inline void note(struct tcp_socket *socket, enum event event)
{
	barrier();
	if (stores_in_order || !walks) {
		socket->connection.noted |= event;
		return;
	}
	bpf_spin_lock(&socket->lock); /* which the walk takes as well */
	socket->connection.noted |= event;
	bpf_spin_unlock(&socket->lock);
}

/* The row of a connection. One that once found no place stays in other, so that its open and its close meet.
 */
static struct tcp_counts *row_of(struct tcp_connection *connection)
{
	struct tcp_counts *counts;

	if (!connection->in_other) {
		counts = own_row(&connection->key);
		if (counts)
			return counts;
		connection->in_other = 1;
		lose(TCP_LOSS_ROWS_FULL, 1);
	}
	return other_row(connection->key.role);
}

static void remote_endpoint(const struct sock *sk, struct tcp_key *key)
{
	key->role = TCP_ROLE_CLIENT;
	key->port = bpf_ntohs(sk->__sk_common.skc_dport);
	key->family = remote_address(&sk->__sk_common, key->address);
}

static void local_endpoint(const struct sock *sk, struct tcp_key *key)
{
	key->role = TCP_ROLE_SERVER;
	key->port = sk->__sk_common.skc_num;
}

/* The row of a port on which a service listens. */
static struct tcp_counts *listener_row(const struct sock *sk)
{
	struct tcp_key key = { .cgroup = socket_cgroup(sk) };

	local_endpoint(sk, &key);
	return any_row(&key);
}

#endif
