/* SPDX-License-Identifier: GPL-2.0-only */
/* Cgroups that appear and go, as events. */
#ifndef TIDEGATE_CGROUP_H
#define TIDEGATE_CGROUP_H

#include <linux/types.h>

enum cgroup_change {
	CGROUP_CHANGE_MADE = 0,
	CGROUP_CHANGE_REMOVED = 1,
};

enum cgroup_limit {
	CGROUP_PATH_MAX = 1024, /* TRACE_CGROUP_PATH_LEN of the kernel */
	HIERARCHY_MAX = 64,     /* of those that can be followed: a bit of a word for each */
};

struct cgroup_event {
	__u64 id;
	__u16 change;
	__u16 hierarchy; /* 0 is the default one, cgroup2 */
	__u32 length;    /* of the path, with its NUL; the record ends there */
	char path[CGROUP_PATH_MAX];
};

#endif
