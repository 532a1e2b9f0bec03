/* SPDX-License-Identifier: GPL-2.0-only */
/* The connections to endpoints of pools: which request waits for its answer, and what the answers were. */
#ifndef TIDEGATE_HTTP_SOCKETS_BPF_H
#define TIDEGATE_HTTP_SOCKETS_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "cgroup.bpf.h"
#include "endpoint.bpf.h"
#include "histogram.bpf.h"
#include "kernel.bpf.h"
#include "http_storage.bpf.h"
#include "pool.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096); /* set by the agent */
	__type(key, struct http_key);
	__type(value, struct http_counts);
} http_rows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pool_event);
} http_scratch SEC(".maps");

static const struct http_counts no_counts;

static struct http_counts *row_of(const struct http_key *key)
{
	struct http_counts *counts = bpf_map_lookup_elem(&http_rows, key);

	if (counts)
		return counts;
	bpf_map_update_elem(&http_rows, key, &no_counts, BPF_NOEXIST);
	counts = bpf_map_lookup_elem(&http_rows, key);
	if (!counts)
		pool_lose(POOL_LOSS_ROWS);
	return counts;
}

/* A connection begins: follow it if it goes to an endpoint. */
static __always_inline void follow(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct http_socket fresh = { .began_ns = bpf_ktime_get_ns() }, *socket;
	struct pool_endpoint *endpoint;
	__be32 v6[4] = { sk->dst_ip6[0], sk->dst_ip6[1], sk->dst_ip6[2], sk->dst_ip6[3] };

	fresh.key.endpoint.family = address_of(sk->family, sk->dst_ip4, v6, fresh.key.endpoint.address);
	fresh.key.endpoint.port = bpf_ntohs(sk->dst_port);
	endpoint = bpf_map_lookup_elem(&pool_endpoints, &fresh.key.endpoint);
	if (!endpoint)
		return;
	fresh.timeout_ns = endpoint->response_timeout_ns;
	fresh.place = endpoint->place;
	fresh.generation = endpoint->generation;
	fresh.key.cgroup = bpf_skb_cgroup_id(skb);
	socket = bpf_sk_storage_get(&http_sockets, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
	if (!socket)
		pool_lose(POOL_LOSS_SOCKETS);
}

static __always_inline int adopt(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	struct http_socket fresh = { .has_received = 1 };
	struct pool_endpoint *endpoint;
	const struct sock *sk;
	struct tcp_sock *tp;
	__u8 mark = 0;

	if (!common)
		return 0;
	tp = bpf_skc_to_tcp_sock(common);
	sk = (const struct sock *)tp;
	if (!tp || sk->__sk_common.skc_state == TCP_LISTEN)
		return 0;
	fresh.key.endpoint.family = remote_address(&sk->__sk_common, fresh.key.endpoint.address);
	fresh.key.endpoint.port = bpf_ntohs(sk->__sk_common.skc_dport);
	endpoint = bpf_map_lookup_elem(&pool_endpoints, &fresh.key.endpoint);
	if (!endpoint)
		return 0;
	fresh.timeout_ns = endpoint->response_timeout_ns;
	fresh.place = endpoint->place;
	fresh.generation = endpoint->generation;
	fresh.key.cgroup = socket_cgroup(sk);
	if (bpf_sk_storage_get(&http_sockets, tp, &fresh, BPF_SK_STORAGE_GET_F_CREATE))
		bpf_seq_write(ctx->meta->seq, &mark, sizeof(mark));
	else
		pool_lose(POOL_LOSS_SOCKETS);
	return 0;
}

/* The beginning of "HTTP/1.1 200 OK" */
struct status_line {
	char version[9];
	char status[3];
};

static __always_inline int is_http(const struct status_line *line)
{
	return line->version[0] == 'H' && line->version[1] == 'T' && line->version[2] == 'T' &&
	       line->version[3] == 'P' && line->version[4] == '/' && line->version[5] == '1' &&
	       line->version[6] == '.' && line->version[8] == ' ';
}

/* "HTTP/1.1 100 Continue" and an empty line, as nearly all servers send it. */
#define CONTINUE  25
#define SWITCHING 101

static __always_inline struct pool_counts *own_counts(const struct http_socket *socket)
{
	return counts_at(socket->place, socket->generation);
}

/* An event on a connection, without its head. */
static __always_inline struct pool_event *event_of(struct __sk_buff *skb, const struct http_socket *socket,
						   const struct pool_counts *counts)
{
	__u32 zero = 0;
	struct pool_event *event = bpf_map_lookup_elem(&http_scratch, &zero);

	if (!event)
		return 0;
	__builtin_memset(event, 0, __builtin_offsetof(struct pool_event, head));
	event->at_ns = bpf_ktime_get_ns();
	event->age_ns = event->at_ns - socket->began_ns;
	event->cgroup = socket->key.cgroup;
	event->endpoint = socket->key.endpoint;
	event->connected = counts->connected;
	event->answered = counts->answered;
	event->source_port = skb->local_port;
	return event;
}

static __always_inline void tell_status(struct __sk_buff *skb, const struct http_socket *socket,
					const struct pool_counts *counts, __u32 status, __u32 at,
					__u32 length)
{
	struct pool_event *event = event_of(skb, socket, counts);

	if (!event)
		return;
	event->evidence = POOL_EVIDENCE_RESPONSE;
	event->code = status;
	if (length > POOL_HEAD_MAX)
		length = POOL_HEAD_MAX;
	/* In a form that verifiers before 6.4 understand: at least one byte, at most as many as there is room
	 * for. */
	length = (length - 1) & (POOL_HEAD_MAX - 1);
	barrier_var(length);
	length = bpf_skb_load_bytes(skb, at, event->head, length + 1) ? 0 : length + 1;
	event->length = length;
	pool_tell(event);
}

/* The endpoint ended a connection while a request waited, or before it sent a byte. */
static __always_inline void tell_end(struct __sk_buff *skb, struct http_socket *socket, __u32 error)
{
	struct pool_counts *counts = own_counts(socket);
	struct pool_event *event = counts ? event_of(skb, socket, counts) : 0;

	if (!event)
		return;
	event->evidence = POOL_EVIDENCE_RESET;
	event->error = error;
	pool_tell(event);
}

static __always_inline int is_silent(const struct http_socket *socket)
{
	return socket->is_waiting && socket->timeout_ns && !socket->is_told && !socket->is_closing &&
	       bpf_ktime_get_ns() - socket->began_ns >= socket->timeout_ns;
}

/* An event on a request that waits. Not by the scratch: a packet may come between. */
static __always_inline void tell_waiting(struct http_socket *socket, __u16 source_port, __u32 evidence,
					 __u32 error)
{
	/* On the stack: before 5.15 an iterator's own memory is no key. */
	struct pool_key key = socket->key.endpoint;
	struct pool_counts *counts = own_counts(socket);
	struct pool_event *event = counts ? pool_event_on(&key, counts) : 0;

	socket->is_told = 1;
	if (!event)
		return;
	event->age_ns = event->at_ns - socket->began_ns;
	event->cgroup = socket->key.cgroup;
	event->evidence = evidence;
	event->error = error;
	event->source_port = source_port;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void tell_silence(struct http_socket *socket, __u16 source_port)
{
	tell_waiting(socket, source_port, POOL_EVIDENCE_SILENCE, 0);
}

static __always_inline void tell_lost(struct http_socket *socket, __u16 source_port, __u32 error)
{
	tell_waiting(socket, source_port, POOL_EVIDENCE_RESET, error);
}

static __always_inline int on_waiting(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct http_socket *socket = ctx->value;
	const struct sock *sk = ctx->sk;
	__u8 mark = 0;

	if (!socket || !sk)
		return 0;
	if (is_silent(socket))
		tell_silence(socket, sk->__sk_common.skc_num);
	bpf_seq_write(ctx->meta->seq, &mark, sizeof(mark));
	return 0;
}

static __always_inline void count_status(struct __sk_buff *skb, struct http_socket *socket, __u32 status,
					 __u32 at, __u32 length)
{
	struct pool_counts *counts = own_counts(socket);
	struct http_counts *row;
	__u64 took;
	__u32 class = status / 100 - 1;

	if (!counts) /* it is not watched any more */
		return;
	row = row_of(&socket->key);
	barrier_var(class);
	if (row && class < POOL_CLASS_COUNT) {
		__sync_fetch_and_add(&row->responses[class], 1);
		if (class != POOL_CLASS_INFORMATIONAL) {
			took = bpf_ktime_get_ns() - socket->began_ns;
			__sync_fetch_and_add(&row->response_ns, took);
			histogram_add(row->response, took, RESPONSE_SHIFT, RESPONSE_SLOTS);
		}
	}
	/* A request fails once: one whose silence was told has failed already. */
	if (class == POOL_CLASS_SERVER_ERROR && !socket->is_told)
		tell_status(skb, socket, counts, status, at, length);
	else if (class != POOL_CLASS_INFORMATIONAL && class != POOL_CLASS_SERVER_ERROR)
		__sync_fetch_and_add(&counts->answered, 1);
}

/* It speaks another protocol: how long a request waits is all that is looked at. */
static __always_inline void leave(struct http_socket *socket)
{
	struct pool_counts *counts = own_counts(socket);

	socket->is_off = 1;
	if (counts)
		counts->is_encrypted = 1;
}

/* Whether what is there of an answer may be the beginning of one of HTTP/1. */
static __always_inline int may_be_http(struct __sk_buff *skb, __u32 at)
{
	char first;

	return !bpf_skb_load_bytes(skb, at, &first, sizeof(first)) && first == 'H';
}

/* What came is no answer of HTTP/1. A connection that has spoken it before may do again. */
static __always_inline void not_http(struct http_socket *socket)
{
	struct pool_counts *counts;

	socket->is_waiting = 0;
	if (socket->is_http) {
		pool_lose(POOL_LOSS_UNREAD);
		return;
	}
	leave(socket);
	counts = own_counts(socket);
	if (counts)
		__sync_fetch_and_add(&counts->answered, 1);
}

/* An answer that nobody can read. */
static __always_inline void on_unread_answer(struct http_socket *socket)
{
	struct pool_counts *counts = own_counts(socket);

	socket->is_waiting = 0;
	if (counts)
		__sync_fetch_and_add(&counts->answered, 1);
}

/* The answer to the request that waits begins at this place of the packet. */
static __always_inline void on_answer(struct __sk_buff *skb, struct http_socket *socket, __u32 at,
				      __u32 length)
{
	struct status_line line;
	__u32 status;
	int tries;

	for (tries = 0; tries < 2; tries++) {
		if (!tries && length < sizeof(line) && !socket->is_http && !may_be_http(skb, at)) {
			not_http(socket);
			return;
		}
		if (length < sizeof(line) || bpf_skb_load_bytes(skb, at, &line, sizeof(line))) {
			pool_lose(POOL_LOSS_UNREAD);
			socket->is_waiting = 0;
			return;
		}
		if (!is_http(&line)) {
			if (!tries)
				not_http(socket);
			return;
		}
		status = (line.status[0] - '0') * 100 + (line.status[1] - '0') * 10 + (line.status[2] - '0');
		if (status < 100 || status > 599) {
			pool_lose(POOL_LOSS_UNREAD);
			socket->is_waiting = 0;
			return;
		}
		socket->is_http = 1;
		count_status(skb, socket, status, at, length);
		if (status >= 200 || status == SWITCHING) {
			socket->is_waiting = 0;
			if (status == SWITCHING) /* to another protocol, in which nobody owes an answer */
				socket->is_off = 1, socket->timeout_ns = 0;
			return;
		}
		/* An interim answer: the real one comes behind it. */
		socket->expected += length;
		if (length <= CONTINUE)
			return;
		at += CONTINUE;
		length -= CONTINUE;
	}
}

#endif
