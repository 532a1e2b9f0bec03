/* SPDX-License-Identifier: GPL-2.0-only */
/* Processes that the kernel killed for want of memory, as events. */
#ifndef TIDEGATE_OOM_H
#define TIDEGATE_OOM_H

#include <linux/types.h>

enum oom_limit {
	OOM_DEPTH = 10,    /* of the path of a v1 memory cgroup, counted from the victim's own */
	OOM_NAME_MAX = 96, /* of each directory; cri-containerd-ID.scope has 85 characters */
};

struct oom_event {
	__u64 cgroup; /* of cgroup2 */
	__u32 pid;
	__u32 levels; /* of the memory cgroup's path where that is v1's, else 0 */
	char comm[16];
	char path[OOM_DEPTH *
		  OOM_NAME_MAX]; /* names from the victim's own cgroup upwards; the record ends there */
};

#endif
