/* SPDX-License-Identifier: GPL-2.0-only */
/* Walks: over the entries of all network namespaces, and over the sockets of one. */
#ifndef TIDEGATE_TCP_WALK_BPF_H
#define TIDEGATE_TCP_WALK_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "kernel.bpf.h"
#include "tcp_adopt.bpf.h"
#include "tcp_ports.bpf.h"
#include "tcp_progress.bpf.h"
#include "tcp_state.bpf.h"

#define LEFT_BEHIND_NS 1000000000ULL

enum place {
	PLACE_SAME,   /* the socket is where it was, so its counters are its own */
	PLACE_CLOSED, /* it is about to end, or has just done so unseen */
	PLACE_ENDED,  /* it is closed and kept by a process; its counters were taken at its end */
	PLACE_OTHER,  /* it was destroyed: the memory may hold anything */
};

static enum place place_of(const struct sock *sk, const struct tcp_socket *known)
{
	int state = BPF_CORE_READ(sk, __sk_common.skc_state);
	__u16 local_port = BPF_CORE_READ(sk, __sk_common.skc_num);

	if (has(known, EVENT_ENDED))
		return state == TCP_CLOSE && !(BPF_CORE_READ(sk, __sk_common.skc_flags) & 1 << SOCK_DEAD)
			   ? PLACE_ENDED
			   : PLACE_OTHER;
	if (BPF_CORE_READ(sk, __sk_common.skc_dport) != known->remote_port)
		return PLACE_OTHER;
	if (state == TCP_CLOSE)
		return PLACE_CLOSED;
	return !known->local_port || local_port == known->local_port ? PLACE_SAME : PLACE_OTHER;
}

/* Whether a socket was destroyed a while ago and no program saw it (some hosts run no tracing program while
 * their supervisor is the current task). One that is destroyed as the walk comes by has a second for it.
 */
static int is_left_behind(struct tcp_socket *known)
{
	__u64 now = bpf_ktime_get_ns();

	if (!known->missed_ns)
		known->missed_ns = now;
	return now - known->missed_ns > LEFT_BEHIND_NS;
}

/* The socket may be destroyed, and its memory used for another, while its fields are read; that the entry is
 * still there afterwards tells that it wasn't (take()).
 */
static int on_entry(struct bpf_iter__bpf_map_elem *ctx)
{
	const __u64 *address = ctx->key;
	struct tcp_socket *known;
	const struct sock *sk;
	struct progress now;
	__u64 key, began_ns;
	__u8 mark = 0;
	int is_held = 0;

	if (!address)
		return 0;
	key = *address;
	known = bpf_map_lookup_elem(&tcp_sockets, &key);
	if (!known)
		return 0;
	bpf_seq_write(ctx->meta->seq, &mark, sizeof(mark));
	sk = (const struct sock *)key;
	began_ns = known->began_ns;
	now = known->last;
	switch (place_of(sk, known)) {
	case PLACE_SAME:
		probe_progress(&now, (const struct tcp_sock *)sk, is_client(&known->connection));
		if (known->missed_ns)
			known->missed_ns = 0;
		is_held = 1;
		break;
	case PLACE_CLOSED:
		probe_progress(&now, (const struct tcp_sock *)sk, is_client(&known->connection));
		count_progress(known, key, began_ns, &now, 0);
		/* fall through */
	case PLACE_OTHER:
		if (!is_left_behind(known))
			break;
		forget_unseen(known);
		return 0;
	case PLACE_ENDED:
		break;
	}
	/* What is counted as closed from here on must not be held too. */
	if (count_progress(known, key, began_ns, &now, 0) && is_held)
		count_port(sk, known);
	return 0;
}

/* Counts ports alone, where nothing walks. */
static int on_port(struct bpf_iter__bpf_map_elem *ctx)
{
	const __u64 *address = ctx->key;
	struct tcp_socket *known;
	const struct sock *sk;
	__u64 key;

	if (!address)
		return 0;
	key = *address;
	known = bpf_map_lookup_elem(&tcp_sockets, &key);
	sk = (const struct sock *)key;
	if (known && place_of(sk, known) == PLACE_SAME)
		count_port(sk, known);
	return 0;
}

/* Writes the row of a connection that counts as open. */
static int on_open(struct bpf_iter__bpf_map_elem *ctx)
{
	const __u64 *address = ctx->key;
	struct tcp_socket *known;
	struct tcp_key row;
	__u64 key;

	if (!address)
		return 0;
	key = *address;
	known = bpf_map_lookup_elem(&tcp_sockets, &key);
	if (!known || !(known->counted & (EVENT_ESTABLISHED | EVENT_ADOPTED)) ||
	    known->counted & EVENT_CLOSED)
		return 0;
	row = known->connection.key;
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

static int on_socket(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	const struct sock *sk;
	struct tcp_sock *tp;
	__u8 mark = 0;

	if (!common)
		return 0;
	tp = bpf_skc_to_tcp_sock(common);
	sk = (const struct sock *)tp;
	if (tp && is_connected(sk->__sk_common.skc_state) && known_or_adopted(sk, tp))
		bpf_seq_write(ctx->meta->seq, &mark, sizeof(mark));
	return 0;
}

#endif
