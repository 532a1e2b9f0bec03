// SPDX-License-Identifier: GPL-2.0-only
/* Refuses connects to endpoints that are ejected, before a SYN is sent, so that callers fail in microseconds.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "include/endpoint.bpf.h"
#include "include/failfast.h"
#include "include/http_storage.bpf.h"
#include "include/kernel.bpf.h"
#include "include/pool.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024); /* set by the agent */
	__type(key, struct pool_key);
	__type(value, struct failfast_entry);
} failfast_entries SEC(".maps");

/* Until when entries hold (CLOCK_MONOTONIC): the agent renews it, so that without one nothing is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} failfast_lease SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct failfast_service);
	__type(value, __u8);
} failfast_services SEC(".maps");

#define ALLOW        1
#define REFUSE       0
#define SOCK_STREAM  1
#define MPTCP        262
#define ECONNREFUSED 111

static __always_inline int concerns(const struct failfast_entry *entry, __u64 cgroup)
{
	struct failfast_service service = { .cgroup = cgroup, .scope = entry->scope };

	if (!entry->scope)
		return 1;
	return bpf_map_lookup_elem(&failfast_services, &service) != 0;
}

/* Takes one of the permits of a half-open endpoint. */
static __always_inline int may_try(struct failfast_entry *entry)
{
	return entry->tried < entry->permits && __sync_fetch_and_add(&entry->tried, 1) < entry->permits;
}

static __always_inline int on_connect(struct bpf_sock_addr *ctx, struct pool_key *key)
{
	struct pool_counts *counts;
	struct failfast_entry *entry;
	__u32 zero = 0;
	__u64 *lease;

	key->port = bpf_ntohs(ctx->user_port);
	entry = bpf_map_lookup_elem(&failfast_entries, key);
	if (!entry || ctx->type != SOCK_STREAM || (ctx->protocol != IPPROTO_TCP && ctx->protocol != MPTCP))
		return ALLOW;
	lease = bpf_map_lookup_elem(&failfast_lease, &zero);
	if (!lease || bpf_ktime_get_ns() >= *lease || !concerns(entry, bpf_get_current_cgroup_id()) ||
	    may_try(entry))
		return ALLOW;
	counts = counts_of(key);
	if (counts)
		__sync_fetch_and_add(&counts->refused, 1);
	/* EPERM where the kernel has no such call (before 5.18) */
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval))
		bpf_set_retval(-ECONNREFUSED);
	return REFUSE;
}

SEC("cgroup/connect4")
int failfast_4(struct bpf_sock_addr *ctx)
{
	struct pool_key key = { .family = 4 };

	key.address[0] = ctx->user_ip4;
	return on_connect(ctx, &key);
}

SEC("cgroup/connect6")
int failfast_6(struct bpf_sock_addr *ctx)
{
	struct pool_key key = {};
	__be32 v6[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };

	key.family = address_of(AF_INET6, 0, v6, key.address);
	return on_connect(ctx, &key);
}

extern int bpf_sock_destroy(struct sock_common *sock) __ksym __weak; /* since 6.5 */

/* Ends the idle connections to endpoints that are refused, of the network namespace of the reader: a pool of
 * connections that are kept would go around the refusal. Idle is one on which no request waits, and nothing
 * has come since the reader looked before: an answer that is still on its way is left to arrive.
 */
SEC("iter/tcp")
int failfast_end_idle(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	struct http_socket *known;
	struct failfast_entry *entry;
	struct tcp_sock *tp;
	__u8 mark = 0;

	if (!common || common->skc_state != TCP_ESTABLISHED)
		return 0;
	tp = bpf_skc_to_tcp_sock(common);
	known = tp ? bpf_sk_storage_get(&http_sockets, tp, 0, 0) : 0;
	if (!known)
		return 0;
	entry = bpf_map_lookup_elem(&failfast_entries, &known->key.endpoint);
	if (!entry || entry->permits || !concerns(entry, known->key.cgroup))
		return 0;
	bpf_seq_write(ctx->meta->seq, &mark, sizeof(mark));
	if (known->is_waiting || !known->was_seen || known->received != tp->rcv_nxt) {
		known->was_seen = 1;
		known->received = tp->rcv_nxt;
		return 0;
	}
	known->is_closing = 1;
	bpf_sock_destroy(common);
	return 0;
}
