/* SPDX-License-Identifier: GPL-2.0-only */
/* Endpoints to which connects are refused at once; shared by the program and the agent. */
#ifndef TIDEGATE_FAILFAST_H
#define TIDEGATE_FAILFAST_H

#include <linux/types.h>
#include "pool.h"

/* By struct pool_key. */
struct failfast_entry {
	__u32 permits; /* how many connects may try the endpoint all the same */
	__u32 tried;   /* how many have, or came too late at the same moment */
	__u32 scope;   /* 0: for all services; else for those in failfast_services with this number */
	__u32 pad;
};

struct failfast_service {
	__u64 cgroup;
	__u32 scope;
	__u32 pad;
};

#endif
