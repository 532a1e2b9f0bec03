/* SPDX-License-Identifier: GPL-2.0-only */
/* What is known of a connection to an endpoint of a pool, kept with its socket. */
#ifndef TIDEGATE_HTTP_STORAGE_BPF_H
#define TIDEGATE_HTTP_STORAGE_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "pool.h"

struct http_socket {
	struct http_key key;
	__u32 place; /* of the endpoint's counts */
	__u32 generation;
	__u64 began_ns;   /* the request that waits, or the connection */
	__u64 timeout_ns; /* of the endpoint's response_timeout_ns; 0: silence is not told */
	__u32 expected;   /* the sequence number with which its answer begins */
	__u32 sent_to;    /* up to which payload was sent once */
	__u8 has_sent;
	__u8 has_received;
	__u8 is_waiting;
	__u8 is_told;    /* the silence after this request */
	__u8 is_http;    /* an answer was read */
	__u8 is_off;     /* it does not speak HTTP/1 */
	__u8 is_closing; /* one of the two sides has ended it */
	__u8 was_seen;   /* by failfast_end_idle, when this was received: */
	__u32 received;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct http_socket);
} http_sockets SEC(".maps");

#endif
