/* SPDX-License-Identifier: GPL-2.0-only */
/* Requests from their making to their end.
 *
 * An end is shown once for each part of a request that is done, and again for a request that a flush comes
 * before or after: once with its data, and without data at its very end. Counted is what /proc/diskstats
 * counts, where it counts it: bytes with each part, the request at its very end.
 */
#ifndef TIDEGATE_DISK_REQUESTS_BPF_H
#define TIDEGATE_DISK_REQUESTS_BPF_H

#include "disk_key.bpf.h"
#include "disk_rows.bpf.h"

/* By the request's address. Drivers have a fixed set of requests, used again and again, so an entry stays;
 * where there are too many, that which was used longest ago makes room.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192); /* set by the agent */
	__type(key, __u64);
	__type(value, struct disk_request);
} disk_requests SEC(".maps");

/* The state follows the event of the issue; a task may be interrupted in between. */
#define STATE_SETTLES_NS 1000000000ULL

static const struct disk_request no_request;

/* When all programs were attached; set by the agent. */
__u64 attached_ns;

static __always_inline struct disk_request *known_request(const struct request *rq)
{
	__u64 address = (__u64)rq;

	return bpf_map_lookup_elem(&disk_requests, &address);
}

static __always_inline struct disk_request *any_request(const struct request *rq)
{
	struct disk_request *request = known_request(rq);
	__u64 address = (__u64)rq;

	if (request)
		return request;
	bpf_map_update_elem(&disk_requests, &address, &no_request, BPF_NOEXIST);
	return bpf_map_lookup_elem(&disk_requests, &address);
}

static __always_inline int is_passthrough(__u32 op)
{
	return op >= REQ_OP_PASSTHROUGH;
}

static __always_inline int in_flush_sequence(const struct request *rq)
{
	__u32 bit = RQF_FLUSH_SEQ_BEFORE_ENUM;

	if (bpf_core_enum_value_exists(enum rqf_flags, __RQF_FLUSH_SEQ))
		bit = bpf_core_enum_value(enum rqf_flags, __RQF_FLUSH_SEQ);
	return rq->rq_flags >> bit & 1;
}

/* When the kernel noted that a request was made; 0 where nothing has it do so. */
static __always_inline __u64 noted_ns(const struct request *rq, __u32 op)
{
	__u32 bit = RQF_IO_STAT_BEFORE_ENUM;

	if (bpf_core_enum_value_exists(enum rqf_flags, __RQF_IO_STAT))
		bit = bpf_core_enum_value(enum rqf_flags, __RQF_IO_STAT);
	return op == REQ_OP_FLUSH || rq->rq_flags >> bit & 1 ? rq->start_time_ns : 0;
}

/* Whether the kernel will note it; the flag comes only after the event since 6.13 (e3569ecae4e0). */
static __always_inline int will_be_noted(const struct request *rq, __u32 op)
{
	if (bpf_core_field_exists(rq->q->limits.features))
		return rq->q->limits.features >> BLK_FEAT_IO_STAT & 1;
	return noted_ns(rq, op) != 0;
}

static int on_made(const struct request *rq)
{
	__u32 op = rq->cmd_flags & REQ_OP_MASK;
	struct disk_request *request;

	if (is_passthrough(op) || will_be_noted(rq, op))
		return 0;
	request = any_request(rq);
	if (request && !request->issued_ns)
		request->made_ns = bpf_ktime_get_ns();
	return 0;
}

/* Merged into another that will be counted, or given back to the queue, from which it will be issued again.
 */
static int on_gone(const struct request *rq)
{
	struct disk_request *request = known_request(rq);

	if (request) {
		request->issued_ns = 0;
		request->made_ns = 0;
	}
	return 0;
}

/* Ends that no program saw, as they are counted: by the next issue of the same address or by a walk, which
 * may meet. Whoever makes the entry counts. (An exchange would do, but programs have none before 5.12.)
 */
struct disk_claim {
	__u64 address;
	__u64 issued_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, struct disk_claim);
	__type(value, __u8);
} disk_claims SEC(".maps");

static __always_inline int is_with_device(const struct disk_request *request)
{
	return request->issued_ns && request->issued_ns != request->unseen_ns;
}

/* Its time is taken to be the mean of its row, or what the one before took. */
static void count_unseen_end(__u64 address, struct disk_request *request)
{
	struct disk_claim claim = { .address = address, .issued_ns = request->issued_ns };
	struct disk_counts *counts;
	__u8 mark = 0;

	if (bpf_map_update_elem(&disk_claims, &claim, &mark, BPF_NOEXIST))
		return;
	request->unseen_ns = claim.issued_ns;
	lose(DISK_LOSS_END_UNSEEN);
	counts = row_of(&request->key);
	if (!counts)
		return;
	if (counts->requests)
		count_io(counts, counts->io_ns / counts->requests);
	else if (request->last_ns)
		count_io(counts, request->last_ns);
	else
		lose(DISK_LOSS_UNTIMED);
	add(&counts->requests, 1);
	add(&counts->data_bytes, request->left);
}

static int on_issue(const struct request *rq)
{
	__u32 op = rq->cmd_flags & REQ_OP_MASK;
	struct disk_request *request;
	__u64 made;

	if (is_passthrough(op))
		return 0;
	request = any_request(rq);
	if (!request)
		return 0;
	made = noted_ns(rq, op);
	/* The one before has ended, unless it is the same one again. */
	if (is_with_device(request) && (!made || made != request->made_ns))
		count_unseen_end((__u64)rq, request);
	if (made)
		request->made_ns = made;
	request->ended_ns = 0;
	request->left = rq->__data_len;
	key_of_request(rq, op, &request->key);
	request->issued_ns = bpf_ktime_get_ns();
	return 0;
}

/* Of a request whose issue no program saw: it was issued before the start, or it is a write that only
 * flushes, which no device ever gets.
 */
static int on_end_of_unknown(const struct request *rq, __u32 op, struct disk_request *request, int error,
			     __u32 bytes, int is_last)
{
	__u64 began = noted_ns(rq, op);
	struct disk_key key = {};
	struct disk_counts *counts;

	key_of_request(rq, op, &key);
	counts = row_of(&key);
	if (!counts)
		return 0;
	add(&counts->data_bytes, bytes);
	if (!is_last)
		return 0;
	add(&counts->requests, 1);
	if (error)
		add(&counts->errors, 1);
	if (attached_ns && began > attached_ns && (rq->__data_len || op == REQ_OP_FLUSH))
		lose(DISK_LOSS_UNTRACKED);
	if (!began && request)
		began = request->made_ns;
	if (began)
		count_io(counts, bpf_ktime_get_ns() - began);
	else
		lose(DISK_LOSS_UNTIMED);
	return 0;
}

static __always_inline int on_end(const struct request *rq, int error, __u32 bytes)
{
	__u32 left, op = rq->cmd_flags & REQ_OP_MASK;
	struct disk_request *request;
	struct disk_counts *counts;
	__u64 ended;
	int is_last;

	if (is_passthrough(op))
		return 0;
	request = known_request(rq);
	left = rq->__data_len > bytes ? rq->__data_len - bytes : 0;
	is_last = !left && (op == REQ_OP_FLUSH || !in_flush_sequence(rq));
	if (!request || !is_with_device(request))
		return on_end_of_unknown(rq, op, request, error, bytes, is_last);
	request->left = left;
	counts = row_of(&request->key);
	if (counts)
		add(&counts->data_bytes, bytes);
	if (!is_last) {
		if (!left)
			request->ended_ns = bpf_ktime_get_ns();
		return 0;
	}
	ended = request->ended_ns ?: bpf_ktime_get_ns();
	request->last_ns = ended - request->issued_ns;
	if (counts) {
		add(&counts->requests, 1);
		if (error)
			add(&counts->errors, 1);
		count_io(counts, request->last_ns);
		if (request->made_ns && request->made_ns <= request->issued_ns)
			count_queue(counts, request->issued_ns - request->made_ns);
	}
	request->made_ns = 0;
	request->issued_ns = 0;
	return 0;
}

/* Whether a request is with its device, as the request itself has it. What lies at the address may be
 * anything. */
static __always_inline int has_ended(__u64 address, const struct disk_request *request)
{
	const struct request *rq = (const void *)address;

	if (bpf_ktime_get_ns() - request->issued_ns < STATE_SETTLES_NS)
		return 0;
	return BPF_CORE_READ(rq, state) == MQ_RQ_IDLE;
}

/* Writes the key of each request that is with its device, and counts those that are not any more. */
static int on_entry(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct disk_request *request = ctx->value;
	const __u64 *address = ctx->key;
	struct disk_request *unseen;
	struct disk_key key;
	__u64 at;

	if (!address || !request || !is_with_device(request) || request->ended_ns)
		return 0;
	at = *address;
	if (!has_ended(at, request)) {
		key = request->key;
		bpf_seq_write(ctx->meta->seq, &key, sizeof(key));
		return 0;
	}
	unseen = bpf_map_lookup_elem(&disk_requests, &at);
	if (unseen && is_with_device(unseen) && !unseen->ended_ns && has_ended(at, unseen))
		count_unseen_end(at, unseen);
	return 0;
}

#endif
