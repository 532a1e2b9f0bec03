/* SPDX-License-Identifier: GPL-2.0-only */
/* Whose a request is, on which device, and what it does. */
#ifndef TIDEGATE_DISK_KEY_BPF_H
#define TIDEGATE_DISK_KEY_BPF_H

#include <bpf/bpf_core_read.h>
#include "disk.h"
#include "kernel_disk.bpf.h"

#define MINOR_BITS 20

/* As op_stat_group() of the kernel, with flushes apart. */
static __always_inline __u32 operation_of(__u32 op)
{
	switch (op) {
	case REQ_OP_FLUSH:
		return DISK_OPERATION_FLUSH;
	case REQ_OP_DISCARD:
		return DISK_OPERATION_DISCARD;
	}
	return op & REQ_OP_WRITE ? DISK_OPERATION_WRITE : DISK_OPERATION_READ;
}

static __always_inline __u32 disk_number(const struct gendisk *disk)
{
	return (__u32)disk->major << MINOR_BITS | (__u32)disk->first_minor;
}

/* The cgroup that a bio is charged to: of whoever dirtied the page, not of the kworker that writes it. */
static __always_inline void cgroup_of(const struct bio *bio, struct disk_key *key)
{
	const struct cgroup *cgroup;

	key->cgroup = DISK_CGROUP_KERNEL;
	if (!bio)
		return;
	key->cgroup = DISK_CGROUP_NONE;
	if (!bpf_core_field_exists(bio->bi_blkg) || !bio->bi_blkg)
		return;
	cgroup = bio->bi_blkg->blkcg->css.cgroup;
	key->cgroup = cgroup->kn->id;
	key->hierarchy = cgroup->root->hierarchy_id;
}

static __always_inline const struct gendisk *disk_of(const struct request *rq)
{
	const struct request___disk *before = (const void *)rq;

	if (bpf_core_field_exists(before->rq_disk))
		return before->rq_disk;
	return rq->q->disk;
}

/* The partition to which the kernel charges a request; 0 where that is not told. */
static __always_inline __u32 partition_of(const struct request *rq)
{
	const struct request___hd *before = (const void *)rq;

	if (bpf_core_type_exists(struct hd_struct))
		return before->part->__dev.devt;
	if (rq->part)
		return rq->part->bd_dev;
	if (bpf_core_field_exists(rq->bio->bi_bdev) && rq->bio)
		return rq->bio->bi_bdev->bd_dev;
	return 0;
}

static __always_inline void key_of_request(const struct request *rq, __u32 op, struct disk_key *key)
{
	__u32 partition = 0;

	key->operation = operation_of(op);
	key->disk = disk_number(disk_of(rq));
	if (op != REQ_OP_FLUSH) /* which the kernel charges to the whole disk */
		partition = partition_of(rq);
	key->device = partition ?: key->disk;
	cgroup_of(rq->bio, key);
}

#endif
