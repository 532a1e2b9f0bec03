/* SPDX-License-Identifier: GPL-2.0-only */
/* What is counted of block devices, and by what it is told apart. */
#ifndef TIDEGATE_DISK_H
#define TIDEGATE_DISK_H

#include <linux/types.h>
#include "histogram.h"

/* As /proc/diskstats groups operations: write includes write-zeroes, secure erase and zone commands. */
enum disk_operation {
	DISK_OPERATION_READ = 0,
	DISK_OPERATION_WRITE = 1,
	DISK_OPERATION_DISCARD = 2,
	DISK_OPERATION_FLUSH = 3,
	DISK_OPERATION_COUNT = 4,
};

/* What the programs had to leave out, by index in disk_losses. */
enum disk_loss {
	DISK_LOSS_ROWS_FULL = 0,  /* requests counted in disk_other, as the table took no new row */
	DISK_LOSS_UNPLACED = 1,   /* requests in no row: disk_other was full too */
	DISK_LOSS_UNTRACKED = 2,  /* requests whose issue was not noted: timed from their making */
	DISK_LOSS_END_UNSEEN = 3, /* ends that no program saw, counted later: their time is a guess */
	DISK_LOSS_UNTIMED = 4,    /* requests that were counted without a time */
	DISK_LOSS_BIOS = 5,       /* bios that found no place in disk_bios: in no row */
	DISK_LOSS_COUNT = 6,
};

/* What stands for a cgroup where there is none. */
enum disk_cgroup {
	DISK_CGROUP_KERNEL = 0,        /* the request carries no data of anybody: a flush */
	DISK_CGROUP_NONE = 0x7ffffffe, /* a kernel without CONFIG_BLK_CGROUP */
};

/* Devices are dev_t as the kernel has it: the major above 20 bits of minor. */
struct disk_key {
	__u64 cgroup;
	__u32 hierarchy; /* of the cgroup; 0 is cgroup2 */
	__u32 disk;
	__u32 device; /* the partition, or the disk itself */
	__u32 operation;
};

struct disk_counts {
	__u64 requests;
	__u64 errors;
	__u64 data_bytes;
	/* sums over the histograms */
	__u64 io_ns;
	__u64 queue_ns;
	__u32 io[DISK_SLOTS];    /* issued to the device until ended */
	__u32 queue[DISK_SLOTS]; /* made until issued */
};

/* A request between its issue and its end. Its address is that of another later on, which takes the entry
 * over. */
struct disk_request {
	__u64 issued_ns; /* 0: it is not with the device */
	__u64 made_ns;   /* 0 where that is not known */
	__u64 ended_ns;  /* the device is done with it, but not the flush that follows; else 0 */
	__u64 unseen_ns; /* issued_ns of the last whose end no program saw, and that is counted by now */
	__u64 last_ns;   /* what the one before took, under the same address */
	struct disk_key key;
	__u32 left; /* bytes that are not done */
	__u32 pad;
};

#endif
