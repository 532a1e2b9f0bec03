/* SPDX-License-Identifier: GPL-2.0-only */
/* From a socket to its row: how far the connection has come, and what of that is not yet counted. */
#ifndef TIDEGATE_TCP_PROGRESS_BPF_H
#define TIDEGATE_TCP_PROGRESS_BPF_H

#include <bpf/bpf_core_read.h>
#include "histogram.bpf.h"
#include "kernel.bpf.h"
#include "tcp_rows.bpf.h"
#include "tcp_sockets.bpf.h"

#define NS_PER_US 1000

static __always_inline int has_fin_queued(int state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING ||
	       state == TCP_LAST_ACK;
}

/* Payload that has left, from sequence numbers: bytes_sent counts what this host itself has dropped each
 * time. Of a client the SYN is acknowledged like a byte (tcp_ack() in SYN_SENT). A FIN takes a number too,
 * the last; a socket in CLOSE may have sent one.
 */
static __always_inline __u64 payload_sent(__u64 acked, __u32 in_flight, int is_all_sent, int state,
					  int is_client)
{
	__u64 sent = acked + (__s32)in_flight - is_client;

	return is_all_sent && (has_fin_queued(state) || state == TCP_CLOSE) ? sent - 1 : sent;
}

static __always_inline int is_client(const struct tcp_connection *connection)
{
	return connection->key.role == TCP_ROLE_CLIENT;
}

/* A request or a response takes a data segment at least, so there were no more of either than of the fewer.
 */
static __always_inline __u32 exchanges_of(__u32 data_segments_sent, __u32 data_segments_received)
{
	return data_segments_sent < data_segments_received ? data_segments_sent : data_segments_received;
}

/* Of a socket that holds still, as in its own events. The peer's FIN counts as a byte in bytes_received
 * (tcp_rcv_nxt_update()).
 */
static __always_inline void read_progress(struct progress *now, const struct tcp_sock *tp, int client)
{
	const struct sock_common *common = (const void *)tp;

	now->sent = payload_sent(tp->bytes_acked, tp->snd_nxt - tp->snd_una, tp->snd_nxt == tp->write_seq,
				 common->skc_state, client);
	now->received = tp->bytes_received - (common->skc_flags >> SOCK_DONE & 1);
	now->segments_sent = tp->segs_out;
	now->segments_received = tp->segs_in;
	now->exchanges = exchanges_of(tp->data_segs_out, tp->data_segs_in);
	now->srtt_us = tp->srtt_us >> 3;
	now->rtt_min_us = tp->rtt_min.s[0].v;
	now->retransmits = tp->total_retrans;
}

/* Whether a process or a softirq works on the socket at this moment; 1 where that can't be told. */
static __always_inline int is_busy(const struct sock *sk)
{
	if (!bpf_core_field_exists(sk->sk_lock.slock.rlock.raw_lock.val))
		return 1;
	return BPF_CORE_READ(sk, sk_lock.owned) ||
	       BPF_CORE_READ(sk, sk_lock.slock.rlock.raw_lock.val.counter);
}

/* Of a socket that works meanwhile, never too many bytes:
 * - what is acknowledged is read before what may be in flight, and that from its end;
 * - a FIN is queued, and then sent, after the state has changed, so the state is read later;
 * - the peer's FIN is in bytes_received an instant before SOCK_DONE says so, both while the socket is locked.
 * If it is free after bytes_received was read, the flag that is read then is of the same moment or later.
 * Else one byte is left for the next walk.
 */
static __always_inline void probe_progress(struct progress *now, const struct tcp_sock *tp, int client)
{
	const struct sock *sk = (const void *)tp;
	__u64 acked = BPF_CORE_READ(tp, bytes_acked);
	__u32 next = BPF_CORE_READ(tp, snd_nxt), unacknowledged = BPF_CORE_READ(tp, snd_una);
	int may_be_fin, state = BPF_CORE_READ(sk, __sk_common.skc_state);

	now->sent =
	    payload_sent(acked, next - unacknowledged, next == BPF_CORE_READ(tp, write_seq), state, client);
	now->received = BPF_CORE_READ(tp, bytes_received);
	may_be_fin = is_busy(sk);
	may_be_fin |= BPF_CORE_READ(sk, __sk_common.skc_flags) >> SOCK_DONE & 1;
	now->received -= may_be_fin;
	now->segments_sent = BPF_CORE_READ(tp, segs_out);
	now->segments_received = BPF_CORE_READ(tp, segs_in);
	now->exchanges = exchanges_of(BPF_CORE_READ(tp, data_segs_out), BPF_CORE_READ(tp, data_segs_in));
	now->srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3;
	now->rtt_min_us = BPF_CORE_READ(tp, rtt_min.s[0].v);
	now->retransmits = BPF_CORE_READ(tp, total_retrans);
}

/* What is to be added to the row, with a copy of what else is known: once the lock is free, an entry that a
 * walk holds may go and be used for another connection.
 */
struct difference {
	struct tcp_connection connection;
	__u64 sent;
	__u64 received;
	__u32 segments_sent;
	__u32 segments_received;
	__u32 exchanges;
	__u32 events; /* enum event */
};

/* Never back: a walk may read a little less than was there, and what an event has seen is never less. */
#define ADVANCE(field, to, type)                                                                             \
	do {                                                                                                 \
		if ((type)((to) - socket->field) > 0) {                                                      \
			news->field = (to) - socket->field;                                                  \
			socket->field = (to);                                                                \
		}                                                                                            \
	} while (0)

/* What of a socket is not yet in its row; from now on it is taken for counted. No helper may be called under
 * the lock. A walk may hold an entry that has gone and was used again, which sk and began_ns tell.
 */
static __always_inline int take(struct tcp_socket *socket, __u64 sk, __u64 began_ns,
				const struct progress *now, int is_last, struct difference *news)
{
	int is_here;

	if (walks)
		bpf_spin_lock(&socket->lock);
	is_here = !socket->gone && socket->sk == sk && socket->began_ns == began_ns;
	if (is_here) {
		if (is_last)
			socket->gone = 1;
		ADVANCE(sent, now->sent, __s64);
		ADVANCE(received, now->received, __s64);
		ADVANCE(segments_sent, now->segments_sent, __s32);
		ADVANCE(segments_received, now->segments_received, __s32);
		ADVANCE(exchanges, now->exchanges, __s32);
		news->connection = socket->connection;
		socket->last = *now;
		news->events = news->connection.noted & ~socket->counted & ~EVENT_ENDED;
		socket->counted |= news->events;
	}
	if (walks)
		bpf_spin_unlock(&socket->lock);
	return is_here;
}

static void count_events(struct tcp_counts *counts, const struct tcp_connection *connection, __u32 events)
{
	__u64 ns;

	if (events & EVENT_CONNECT)
		add(&counts->connects, 1);
	if (events & EVENT_ESTABLISHED) {
		add(&counts->established, 1);
		if (connection->established_ns > connection->syn_ns && connection->syn_ns) {
			ns = connection->established_ns - connection->syn_ns;
			add(&counts->handshake_ns, ns);
			histogram_add(counts->handshake, ns, HANDSHAKE_SHIFT, HANDSHAKE_SLOTS);
		}
	}
	if (events & EVENT_ADOPTED)
		add(&counts->adopted, 1);
	if (events & EVENT_CLOSED) {
		add(&counts->closed, 1);
		if (connection->established_ns && connection->closed_ns > connection->established_ns) {
			ns = connection->closed_ns - connection->established_ns;
			add(&counts->duration_ns, ns);
			histogram_add(counts->duration, ns, DURATION_SHIFT, DURATION_SLOTS);
		}
	}
	if (events & EVENT_CLOSER && connection->closer < TCP_CLOSER_COUNT)
		add(&counts->closes[connection->closer], 1);
	if (events & EVENT_FAILED && connection->failure < TCP_FAILURE_COUNT)
		add(&counts->failures[connection->failure], 1);
	if (events & EVENT_RESET_SENT)
		add(&counts->resets[TCP_RESET_SENT], 1);
	if (events & EVENT_RESET_RECEIVED)
		add(&counts->resets[TCP_RESET_RECEIVED], 1);
}

/* Add what is new of a socket to its row; 0 if the entry has gone. */
static __always_inline int count_progress(struct tcp_socket *socket, __u64 sk, __u64 began_ns,
					  const struct progress *now, int is_last)
{
	struct difference news = {};
	struct tcp_counts *counts;
	__u64 ns;

	if (!take(socket, sk, began_ns, now, is_last, &news))
		return 0;
	if (!news.events && !news.sent && !news.received && !news.segments_sent && !news.segments_received)
		return 1;
	counts = row_of(&news.connection);
	if (news.connection.in_other)
		socket->connection.in_other = 1;
	if (!counts)
		return 1;
	counts->netns = news.connection.netns;
	if (news.events)
		count_events(counts, &news.connection, news.events);
	if (news.sent)
		add(&counts->sent_bytes, news.sent);
	if (news.received)
		add(&counts->received_bytes, news.received);
	if (news.segments_sent)
		add(&counts->segments_sent, news.segments_sent);
	if (news.exchanges)
		add(&counts->exchanges, news.exchanges);
	if (news.segments_received) {
		add(&counts->segments_received, news.segments_received);
		if (now->srtt_us) {
			/* Two at once may leave the longer of their times: until the next walk. */
			if (!counts->rtt_min_us || now->rtt_min_us < counts->rtt_min_us)
				counts->rtt_min_us = now->rtt_min_us;
			ns = (__u64)now->srtt_us * NS_PER_US;
			add(&counts->rtt_ns, ns);
			histogram_add(counts->rtt, ns, RTT_SHIFT, RTT_SLOTS);
		}
	}
	return 1;
}

/* After an event that is not the last. */
static void count_unless_walked(const struct sock *sk, const struct tcp_sock *tp)
{
	struct tcp_socket *socket;
	struct progress now;

	if (walks)
		return;
	socket = entry_of(sk);
	if (!socket)
		return;
	read_progress(&now, tp, is_client(&socket->connection));
	count_progress(socket, socket->sk, socket->began_ns, &now, 0);
}

#endif
