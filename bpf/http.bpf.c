// SPDX-License-Identifier: GPL-2.0-only
/* HTTP/1 responses of the endpoints of pools: status and time to the first byte, from the packets of
 * connections to them.
 *
 * A status line is taken for one only where the answer to a request must begin: at the sequence number that
 * this side expected when it sent the request. All else that looks like one is payload.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "include/http_segment.bpf.h"
#include "include/http_sockets.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PASS 1

/* include/uapi/asm-generic/errno.h */
#define ENETUNREACH  101
#define ECONNRESET   104
#define ETIMEDOUT    110
#define EHOSTUNREACH 113

#define METHOD 3

enum start {
	START_OTHER,   /* as more of a body whose answer has come early */
	START_REQUEST, /* a method of HTTP/1 */
	START_HTTP2,   /* PRI, of HTTP/2 (RFC 9113, section 3.4) */
};

static __always_inline enum start start_of(struct __sk_buff *skb, __u32 at)
{
	__u8 start[METHOD];
	int i;

	if (bpf_skb_load_bytes(skb, at, start, METHOD))
		return START_OTHER;
	if (start[0] == 'P' && start[1] == 'R' && start[2] == 'I')
		return START_HTTP2;
	for (i = 0; i < METHOD; i++)
		if (start[i] < 'A' || start[i] > 'Z')
			return START_OTHER;
	return START_REQUEST;
}

/* A request goes out: from where on its answer is expected. Bytes that were sent before are sent again. */
static __always_inline void on_sent(struct __sk_buff *skb, struct http_socket *socket,
				    const struct segment *segment)
{
	__u32 end = segment->seq + segment->length, again = 0;

	if (!socket->has_sent && start_of(skb, segment->at) == START_HTTP2) {
		leave(socket);
		socket->timeout_ns = 0; /* not all that is sent is a request */
	} else if (socket->has_sent) {
		if ((__s32)(end - socket->sent_to) <= 0)
			return;
		again = socket->sent_to - segment->seq;
		if (again > segment->length)
			again = 0;
	}
	socket->sent_to = end;
	socket->has_sent = 1;
	/* More of the same request, unless something came back meanwhile. */
	if (socket->is_waiting && socket->expected == segment->ack)
		return;
	if (socket->is_http && !socket->is_off && start_of(skb, segment->at + again) != START_REQUEST)
		return;
	socket->expected = segment->ack;
	socket->began_ns = bpf_ktime_get_ns();
	socket->is_waiting = 1;
	socket->is_told = 0;
}

/* Nobody waits any more, or at least has more to send: what ends the connection now is no failure. */
static __always_inline void on_given_up(struct __sk_buff *skb, struct http_socket *socket)
{
	if (is_silent(socket))
		tell_silence(socket, skb->local_port);
	socket->is_closing = 1;
}

SEC("cgroup_skb/egress")
int http_out(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk ? bpf_sk_fullsock(skb->sk) : 0;
	struct http_socket *socket;
	struct segment segment;

	if (!sk)
		return PASS;
	socket = bpf_sk_storage_get(&http_sockets, sk, 0, 0);
	if (sk->state == BPF_TCP_SYN_SENT && sk->protocol == IPPROTO_TCP) {
		/* A connection begins; or its SYN is sent again. The socket may have had another one before.
		 */
		if (socket)
			bpf_sk_storage_delete(&http_sockets, sk);
		follow(skb, sk);
		return PASS;
	}
	if (!socket)
		return PASS;
	if (!segment_of(skb, &segment))
		return PASS;
	if (segment.length)
		on_sent(skb, socket, &segment);
	if (segment.flags & (TCP_FIN | TCP_RST))
		on_given_up(skb, socket);
	return PASS;
}

/* The endpoint ends the connection. A FIN that overtakes the answer says nothing; one of an endpoint that has
 * not seen the request yet ends an idle connection, and no request fails by that: a proxy sends it again
 * elsewhere.
 */
static __always_inline void on_end(struct __sk_buff *skb, struct http_socket *socket,
				   const struct segment *segment)
{
	int is_reset = segment->flags & TCP_RST;

	if (!is_reset && segment->seq + segment->length != socket->expected && socket->is_waiting)
		return;
	if (!socket->is_closing && !socket->is_told &&
	    (is_reset ? socket->is_waiting || !socket->has_received
		      : socket->is_waiting && segment->ack == socket->sent_to))
		tell_end(skb, socket, is_reset ? ECONNRESET : 0);
	socket->is_closing = 1;
}

SEC("cgroup_skb/ingress")
int http_in(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk ? bpf_sk_fullsock(skb->sk) : 0;
	struct http_socket *socket;
	struct segment segment;
	__u32 before;

	if (!sk)
		return PASS;
	socket = bpf_sk_storage_get(&http_sockets, sk, 0, 0);
	if (!socket || !segment_of(skb, &segment))
		return PASS;
	/* A segment that is sent again may begin earlier than the answer. */
	before = socket->expected - segment.seq;
	if (socket->is_waiting && before < segment.length) {
		socket->has_received = 1;
		if (socket->is_off)
			on_unread_answer(socket);
		else
			on_answer(skb, socket, segment.at + before, segment.length - before);
	}
	if (segment.flags & (TCP_FIN | TCP_RST) && sk->state != BPF_TCP_SYN_SENT)
		on_end(skb, socket, &segment);
	return PASS;
}

/* Tells of the requests that have waited too long, each once. */
SEC("iter/bpf_sk_storage_map")
int http_silence(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	return on_waiting(ctx);
}

/* The kernel gives a connection up on which a request waits. Resets are seen as they arrive. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(http_ended, struct sock *sk, int oldstate, int newstate)
{
	struct http_socket *socket;
	struct tcp_sock *tp;

	if (newstate != TCP_CLOSE || oldstate == TCP_SYN_SENT || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (sk->sk_err != ETIMEDOUT && sk->sk_err != EHOSTUNREACH && sk->sk_err != ENETUNREACH)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	socket = tp ? bpf_sk_storage_get(&http_sockets, tp, 0, 0) : 0;
	if (socket && socket->is_waiting && !socket->is_told && !socket->is_closing)
		tell_lost(socket, sk->__sk_common.skc_num, sk->sk_err);
	return 0;
}

/* Takes in the connections to endpoints that are open in the network namespace of the reader. */
SEC("iter/tcp")
int http_adopt(struct bpf_iter__tcp *ctx)
{
	return adopt(ctx);
}
