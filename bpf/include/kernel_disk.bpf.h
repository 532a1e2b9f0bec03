/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's block layer as far as the disk programs depend on it; offsets are relocated at load (CO-RE).
 */
#ifndef TIDEGATE_KERNEL_DISK_BPF_H
#define TIDEGATE_KERNEL_DISK_BPF_H

#include <linux/types.h>
#include "kernel.bpf.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct blkcg {
	struct cgroup_subsys_state css;
};

struct blkcg_gq {
	struct blkcg *blkcg;
};

struct blk_mq_ops;
struct gendisk;

struct queue_limits {
	__u32 features; /* since 6.11 */
};

struct request_queue {
	const struct blk_mq_ops *mq_ops; /* NULL: the driver takes bios as they are */
	struct gendisk *disk;
	struct queue_limits limits;
};

struct gendisk {
	int major;
	int first_minor;
	struct request_queue *queue;
};

struct block_device {
	__u32 bd_dev;
	struct gendisk *bd_disk;
};

struct bvec_iter {
	__u32 bi_size;
};

struct bio {
	struct block_device *bi_bdev;
	__u32 bi_opf;
	__u8 bi_status;
	struct bvec_iter bi_iter;
	struct blkcg_gq *bi_blkg;
};

/* Before 5.12 (309dca309fc3 "block: store a block_device pointer in struct bio") */
struct bio___disk {
	struct gendisk *bi_disk;
};

enum mq_rq_state {
	MQ_RQ_IDLE = 0,
	MQ_RQ_IN_FLIGHT = 1,
};

struct request {
	struct request_queue *q;
	__u32 cmd_flags;
	__u32 rq_flags;
	__u32 __data_len;
	struct bio *bio;
	struct block_device *part; /* only where io accounting is on */
	__u64 start_time_ns;       /* likewise; else it may be of an earlier request */
	enum mq_rq_state state;
};

/* Before 5.17 (f3fa33acca9f "block: remove the ->rq_disk field in struct request") */
struct request___disk {
	struct gendisk *rq_disk;
};

/* Before 5.11 (0d02129e76ed "block: merge struct block_device and struct hd_struct") */
struct device___number {
	__u32 devt;
};

struct hd_struct {
	struct device___number __dev;
};

struct request___hd {
	struct hd_struct *part;
};

/* Since 6.11 (5f89154e8e9e "block: Use enum to define RQF_x bit indexes"); constants before */
enum rqf_flags {
	__RQF_FLUSH_SEQ = 1,
	__RQF_IO_STAT = 8,
};

#pragma clang attribute pop

#define RQF_FLUSH_SEQ_BEFORE_ENUM 4
#define RQF_IO_STAT_BEFORE_ENUM   13
#define BLK_FEAT_IO_STAT          4

/* include/linux/blk_types.h */
#define REQ_OP_MASK 0xff
enum {
	REQ_OP_READ = 0,
	REQ_OP_WRITE = 1, /* every odd number writes */
	REQ_OP_FLUSH = 2,
	REQ_OP_DISCARD = 3,
	REQ_OP_PASSTHROUGH = 32, /* and all above: commands of a driver, in no count of the kernel's */
};

#endif
