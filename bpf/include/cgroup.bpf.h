/* SPDX-License-Identifier: GPL-2.0-only */
/* From kernel objects to cgroup ids. */
#ifndef TIDEGATE_CGROUP_BPF_H
#define TIDEGATE_CGROUP_BPF_H

#include <bpf/bpf_core_read.h>
#include "kernel.bpf.h"

/* The cgroup2 id of a socket's creator, also in softirq and for accepted sockets; 0 if it has none.
 */
static __always_inline __u64 socket_cgroup(const struct sock *sk)
{
	if (bpf_core_field_exists(struct sock_cgroup_data, cgroup))
		return sk->sk_cgrp_data.cgroup->kn->id;

	const struct sock_cgroup_data___shared *shared = (const void *)&sk->sk_cgrp_data;
	__u64 value = BPF_CORE_READ(shared, val);

	if (!value || value & 1)
		return 0;
	return BPF_CORE_READ((struct cgroup *)value, kn, id);
}

#endif
