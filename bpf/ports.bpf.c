// SPDX-License-Identifier: GPL-2.0-only
/* What holds local ports in one network namespace beside its connections: sockets in TIME_WAIT, listeners,
 * and ports that were bound. All of it is read by one iterator in a thread that has entered the namespace.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "include/cgroup.bpf.h"
#include "include/endpoint.bpf.h"
#include "include/kernel.bpf.h"
#include "include/ports.bpf.h"
#include "include/ports.h"

char LICENSE[] SEC("license") = "GPL";

#define LOOPBACK_NET 127
#define NS_PER_MS    1000000ULL
#define NS_PER_S     1000000000ULL

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096); /* set by the agent */
	__type(key, struct ports_key);
	__type(value, struct ports_waiting);
} ports_waiting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096); /* set by the agent */
	__type(key, struct ports_listener_key);
	__type(value, struct ports_listener);
} ports_listeners SEC(".maps");

/* Ports on which somebody listens: what waits there is the server's side. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u16);
	__type(value, __u8);
} ports_listening SEC(".maps");

/* Ports of the range that connect() passes over, since they are bound. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u16);
	__type(value, __u8);
} ports_bound SEC(".maps");

__u64 ports_full; /* what found no place in a map */

static const struct ports_waiting nothing_waiting;
static const struct ports_listener no_listener;
static const __u8 mark = 1;

/* Whether a port was given to its socket by bind(), of this or of the listener, and not by connect(). */
static int is_bound(const struct inet_bind_bucket *bucket)
{
	return bucket->fastreuse >= 0 || bucket->fastreuseport >= 0;
}

static void note_bound(const struct ports_namespace *namespace, __u16 port)
{
	if (port >= namespace->low && port <= namespace->high &&
	    bpf_map_update_elem(&ports_bound, &port, &mark, BPF_ANY))
		ports_full++;
}

static void count_listener(const struct sock *sk)
{
	struct ports_listener_key key = { .cgroup = socket_cgroup(sk) };
	struct ports_listener *listener;
	__u16 port = sk->__sk_common.skc_num;

	key.family = local_address(&sk->__sk_common, key.address);
	key.port = port;
	bpf_map_update_elem(&ports_listening, &port, &mark, BPF_ANY);
	listener = bpf_map_lookup_elem(&ports_listeners, &key);
	if (!listener) {
		bpf_map_update_elem(&ports_listeners, &key, &no_listener, BPF_NOEXIST);
		listener = bpf_map_lookup_elem(&ports_listeners, &key);
	}
	if (!listener) {
		ports_full++;
		return;
	}
	listener->backlog += sk->sk_ack_backlog;
	listener->limit += sk->sk_max_ack_backlog;
	listener->drops += sk->sk_drops.counter;
}

static int is_loopback(__u8 family, const __be32 *address)
{
	if (family == 4)
		return bpf_ntohl(address[0]) >> 24 == LOOPBACK_NET;
	return !address[0] && !address[1] && !address[2] && address[3] == bpf_htonl(1);
}

/* As tcp_twsk_unique() decides whether a connect to the same upstream may have the port. */
static int is_reusable(const struct tcp_timewait_sock *waiting, const struct ports_namespace *namespace,
		       const struct ports_key *key)
{
	const struct inet_timewait_sock *tw = &waiting->tw_sk;
	__u64 now = bpf_ktime_get_ns();

	if (!namespace->tw_reuse)
		return 0;
	if (namespace->tw_reuse == 2 && !is_loopback(key->family, key->source) &&
	    !is_loopback(key->family, key->address))
		return 0;
	if (bpf_core_field_exists(tw->tw_entry_stamp))
		return (__u32)(now / NS_PER_MS - tw->tw_entry_stamp) > namespace->tw_reuse_delay_ms;
	return (__s32)(now / NS_PER_S - waiting->tw_ts_recent_stamp) > 0;
}

static void count_waiting(const struct tcp_timewait_sock *waiting, struct ports_namespace *namespace)
{
	const struct sock_common *common = &waiting->tw_sk.__tw_common;
	struct ports_key key = {};
	struct ports_waiting *row;
	__u16 port = common->skc_num;

	namespace->time_wait++;
	if (is_bound(waiting->tw_sk.tw_tb)) {
		note_bound(namespace, port);
		if (bpf_map_lookup_elem(&ports_listening, &port))
			return;
	}
	key.netns = common->skc_net.net->ns.inum;
	key.port = bpf_ntohs(common->skc_dport);
	key.family = remote_address(common, key.address);
	local_address(common, key.source);
	row = bpf_map_lookup_elem(&ports_waiting, &key);
	if (!row) {
		bpf_map_update_elem(&ports_waiting, &key, &nothing_waiting, BPF_NOEXIST);
		row = bpf_map_lookup_elem(&ports_waiting, &key);
	}
	if (!row) {
		ports_full++;
		return;
	}
	row->sockets++;
	if (!waiting->tw_ts_recent_stamp)
		return;
	row->timestamped++;
	row->reusable += is_reusable(waiting, namespace, &key);
}

/* Reads one socket; writes a byte for each, so that the reader knows that there were any. */
SEC("iter/tcp")
int ports_visit(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	const struct inet_connection_sock *connection;
	const struct tcp_timewait_sock *waiting;
	struct ports_namespace *namespace;
	const struct sock *sk;
	__u8 byte = 0;

	if (!common)
		return 0;
	namespace = note_namespace(common->skc_net.net, common->skc_net.net->ns.inum);
	if (!namespace)
		return 0;
	bpf_seq_write(ctx->meta->seq, &byte, sizeof(byte));
	if (common->skc_state == TCP_TIME_WAIT) {
		waiting = bpf_skc_to_tcp_timewait_sock(common);
		if (waiting)
			count_waiting(waiting, namespace);
		return 0;
	}
	sk = (const struct sock *)bpf_skc_to_tcp_sock(common);
	if (!sk)
		return 0;
	connection = (const void *)sk;
	if (sk->__sk_common.skc_num && is_bound(connection->icsk_bind_hash))
		note_bound(namespace, sk->__sk_common.skc_num);
	if (sk->__sk_common.skc_state == TCP_LISTEN)
		count_listener(sk);
	return 0;
}
