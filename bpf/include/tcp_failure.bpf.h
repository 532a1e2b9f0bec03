/* SPDX-License-Identifier: GPL-2.0-only */
/* Why a connect came to nothing, from what the kernel left in the socket. */
#ifndef TIDEGATE_TCP_FAILURE_BPF_H
#define TIDEGATE_TCP_FAILURE_BPF_H

#include <bpf/bpf_core_read.h>
#include "kernel.bpf.h"
#include "tcp.h"
#include "tcp_sockets.bpf.h"

/* include/uapi/asm-generic/errno.h */
#define EPERM        1
#define EACCES       13
#define EPIPE        32
#define ENETUNREACH  101
#define ECONNABORTED 103
#define ECONNRESET   104
#define ETIMEDOUT    110
#define ECONNREFUSED 111
#define EHOSTUNREACH 113
#define RCV_SHUTDOWN 1

static __u32 failure_of_error(int error)
{
	switch (error) {
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
	case ECONNABORTED: /* ss -K */
		return TCP_FAILURE_ABORTED;
	}
	return TCP_FAILURE_OTHER;
}

/* The ICMP error that waits in the socket's error queue, 0 if there is none. One that arrives while
 * connect() itself holds the socket (as between containers of one node) ends nothing: the
 * application is woken by EPOLLERR, reads the error by SO_ERROR, which clears it, and closes.
 */
static int queued_error(const struct sock *sk)
{
	const struct sock_exterr_skb *queued;

	if (!sk->sk_error_queue.qlen)
		return 0;
	queued = (const void *)sk->sk_error_queue.next->cb;
	return BPF_CORE_READ(queued, ee.ee_errno);
}

/* Why a handshake ended; sk_err is set by the kernel before the state changes. */
static __u32 failure_of(const struct sock *sk, const struct tcp_sock *tp, const struct tcp_socket *socket)
{
	int error = sk->sk_err ?: queued_error(sk);

	if (error)
		return failure_of_error(error);
	/* connect() that finds no free port goes back to CLOSE before it sends: no SYN left, and
	 * the source port is the one of before, which is 0 only on a fresh socket.
	 */
	if (tp->segs_out == socket->segs_out && !(sk->sk_shutdown & RCV_SHUTDOWN) &&
	    ((const struct inet_sock *)tp)->inet_sport == socket->source_port)
		return TCP_FAILURE_PORTS_EXHAUSTED;
	return TCP_FAILURE_ABORTED;
}

/* The same from what is left when the socket is destroyed: the application may have taken sk_err.
 * What no program saw was no call of the application, so it was an answer or the end of the
 * kernel's patience.
 */
static __u32 late_failure_of(const struct sock *sk, const struct tcp_sock *tp)
{
	int error = sk->sk_err ?: queued_error(sk) ?: sk->sk_err_soft;

	if (error)
		return failure_of_error(error);
	if (tp->segs_in)
		return TCP_FAILURE_REFUSED;
	if (((const struct inet_connection_sock *)tp)->icsk_retransmits)
		return TCP_FAILURE_TIMEOUT;
	return TCP_FAILURE_OTHER;
}

#endif
