/* SPDX-License-Identifier: GPL-2.0-only */
/* What the programs that watch the endpoints of pools exchange with the agent. */
#ifndef TIDEGATE_POOL_H
#define TIDEGATE_POOL_H

#include <linux/types.h>
#include "histogram.h"

/* What was seen of an endpoint that may speak against it. */
enum pool_evidence {
	POOL_EVIDENCE_CONNECT = 0, /* a connect came to nothing; code: enum tcp_failure */
	POOL_EVIDENCE_RESET =
	    1, /* an established connection was reset, or timed out, while a request waited */
	POOL_EVIDENCE_RESPONSE = 2, /* an HTTP response of 500 or above; code: its status */
	POOL_EVIDENCE_SILENCE = 3,  /* a request got not a byte for the endpoint's response_timeout_ns */
	POOL_EVIDENCE_COUNT = 4,
};

enum pool {
	POOL_HEAD_MAX = 512, /* bytes of a response that an event brings along; a power of two */
};

enum pool_class {
	POOL_CLASS_INFORMATIONAL = 0,
	POOL_CLASS_SUCCESS = 1,
	POOL_CLASS_REDIRECTION = 2,
	POOL_CLASS_CLIENT_ERROR = 3,
	POOL_CLASS_SERVER_ERROR = 4,
	POOL_CLASS_COUNT = 5,
};

enum pool_loss {
	POOL_LOSS_EVENTS = 0,  /* events that found no place in the ring */
	POOL_LOSS_ROWS = 1,    /* responses of rows that found no place in the table */
	POOL_LOSS_SOCKETS = 2, /* connections that the kernel had no memory to follow */
	POOL_LOSS_UNREAD = 3,  /* answers whose first line was split, or lay where no program can read */
	POOL_LOSS_COUNT = 4,
};

/* An endpoint as connections name it: IPv4, mapped or not, is in the first word, family 4 or 6. */
struct pool_key {
	__be32 address[4];
	__u16 port; /* host order */
	__u8 family;
	__u8 pad;
	__u32 pad2;
};

struct pool_endpoint {
	__u64 response_timeout_ns; /* 0: silence is never told */
	__u32 place;               /* of its counts in pool_counts */
	__u32 generation; /* by which they are known to be its own, and not of one that came after it */
};

struct pool_counts {
	__u64 connected;    /* handshakes that were completed */
	__u64 answered;     /* HTTP responses below 500, interim ones left out, or answers in TLS */
	__u64 refused;      /* connects, by failfast */
	__u32 is_encrypted; /* a connection spoke TLS, or at least no HTTP/1 */
	__u32 generation;
};

struct pool_event {
	__u64 at_ns;
	__u64 age_ns; /* since the connect began, or the request */
	__u64 cgroup;
	__u64 connected; /* of the endpoint, when it happened */
	__u64 answered;
	struct pool_key endpoint;
	__u32 evidence;
	__u32 code;
	__u32 retransmits; /* of the SYN */
	__u32 error;       /* errno of the socket */
	__u16 source_port; /* by which two events of one attempt are known */
	__u16 length;      /* of head */
	__u32 pad;
	__u8 head[POOL_HEAD_MAX];
};

/* Of one service to one endpoint. */
struct http_key {
	__u64 cgroup;
	struct pool_key endpoint;
};

struct http_counts {
	__u64 responses[POOL_CLASS_COUNT];
	__u64 response_ns;              /* the sum over the histogram */
	__u32 response[RESPONSE_SLOTS]; /* first byte of the request to first byte of the answer */
};

#endif
