/* SPDX-License-Identifier: GPL-2.0-only */
/* Walks: over the entries of all network namespaces, and over the sockets of one. */
#ifndef TIDEGATE_TCP_WALK_BPF_H
#define TIDEGATE_TCP_WALK_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "kernel.bpf.h"
#include "tcp_adopt.bpf.h"
#include "tcp_progress.bpf.h"

#define LEFT_BEHIND_NS 1000000000ULL

/* Whether a socket is closed and in no process's hands. It is destroyed within the same call of the kernel,
 * so an entry that stays has missed that (some hosts run no tracing program while their supervisor is the
 * current task).
 */
static int is_left_behind(const struct sock *sk, struct tcp_socket *known)
{
	__u64 now;

	if (BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_CLOSE ||
	    !(BPF_CORE_READ(sk, __sk_common.skc_flags) & 1 << SOCK_DEAD))
		return 0;
	now = bpf_ktime_get_ns();
	if (!known->closed_ns) {
		known->closed_ns = now;
		if (has(known, EVENT_ESTABLISHED | EVENT_ADOPTED))
			note(known, EVENT_CLOSED);
		else
			fail(known, TCP_FAILURE_OTHER);
	}
	return now - known->closed_ns > LEFT_BEHIND_NS;
}

/* The socket may be destroyed, and its memory used for another, while its fields are read; that the entry is
 * still there afterwards tells that it wasn't (take()).
 */
static int on_entry(struct bpf_iter__bpf_map_elem *ctx)
{
	const __u64 *address = ctx->key;
	struct tcp_socket *known;
	const struct tcp_sock *tp;
	struct progress now;
	__u64 key, began_ns;
	__u8 mark = 0;

	if (!address)
		return 0;
	key = *address;
	known = bpf_map_lookup_elem(&tcp_sockets, &key);
	if (!known)
		return 0;
	bpf_seq_write(ctx->meta->seq, &mark, sizeof(mark));
	began_ns = known->began_ns;
	tp = (const struct tcp_sock *)key;
	probe_progress(&now, tp);
	if (!is_left_behind((const struct sock *)tp, known)) {
		count_progress(known, began_ns, &now, 0);
	} else if (count_progress(known, began_ns, &now, 1)) {
		lose(TCP_LOSS_LATE, 1);
		bpf_map_delete_elem(&tcp_sockets, &key);
	}
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
