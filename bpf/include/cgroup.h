/* SPDX-License-Identifier: GPL-2.0-only */
/* Cgroups of the default hierarchy that appear and go, as events. */
#ifndef TIDEGATE_CGROUP_H
#define TIDEGATE_CGROUP_H

#include <linux/types.h>

enum cgroup_change {
	CGROUP_CHANGE_MADE = 0,
	CGROUP_CHANGE_REMOVED = 1,
};

enum cgroup_limit {
	CGROUP_PATH_MAX = 1024, /* TRACE_CGROUP_PATH_LEN of the kernel */
};

struct cgroup_event {
	__u64 id;
	__u32 change;
	__u32 length; /* of the path, with its NUL; the record ends there */
	char path[CGROUP_PATH_MAX];
};

#endif
