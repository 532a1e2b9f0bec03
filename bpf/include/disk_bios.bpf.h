/* SPDX-License-Identifier: GPL-2.0-only */
/* Devices whose drivers take bios as they are and make no requests of them: device mapper, md, zram, the
 * heads of NVMe multipath. What they make of a bio goes on to other devices and is counted there as well.
 */
#ifndef TIDEGATE_DISK_BIOS_BPF_H
#define TIDEGATE_DISK_BIOS_BPF_H

#include "disk_key.bpf.h"
#include "disk_rows.bpf.h"

/* By the bio's address, from its start until its end: the driver may send the same bio on to another device.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192); /* set by the agent */
	__type(key, __u64);
	__type(value, struct disk_request);
} disk_bios SEC(".maps");

static __always_inline const struct gendisk *disk_of_bio(const struct bio *bio)
{
	const struct bio___disk *before = (const void *)bio;

	if (bpf_core_field_exists(before->bi_disk))
		return before->bi_disk;
	return bio->bi_bdev->bd_disk;
}

static __always_inline void key_of_bio(const struct bio *bio, const struct gendisk *disk,
				       struct disk_key *key)
{
	key->operation = operation_of(bio->bi_opf & REQ_OP_MASK);
	key->disk = disk_number(disk);
	key->device = key->disk;
	if (bpf_core_field_exists(bio->bi_bdev) && bpf_core_field_exists(bio->bi_bdev->bd_dev))
		key->device = bio->bi_bdev->bd_dev;
	cgroup_of(bio, key);
}

static int on_bio(const struct bio *bio)
{
	const struct gendisk *disk = disk_of_bio(bio);
	struct disk_request begun = {};
	__u64 address = (__u64)bio;

	if (disk->queue->mq_ops)
		return 0;
	key_of_bio(bio, disk, &begun.key);
	begun.left = bio->bi_iter.bi_size;
	begun.issued_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&disk_bios, &address, &begun, BPF_ANY))
		lose(DISK_LOSS_BIOS);
	return 0;
}

static int on_bio_end(const struct bio *bio)
{
	__u64 address = (__u64)bio;
	struct disk_request *begun = bpf_map_lookup_elem(&disk_bios, &address);
	struct disk_counts *counts;

	if (!begun)
		return 0;
	counts = row_of(&begun->key);
	if (counts) {
		add(&counts->requests, 1);
		add(&counts->data_bytes, begun->left);
		if (bio->bi_status)
			add(&counts->errors, 1);
		count_io(counts, bpf_ktime_get_ns() - begun->issued_ns);
	}
	bpf_map_delete_elem(&disk_bios, &address);
	return 0;
}

#endif
