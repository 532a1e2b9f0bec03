// SPDX-License-Identifier: GPL-2.0-only
/* Cgroups that appear and go, so that a service keeps its name however short its life was. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "include/cgroup.h"
#include "include/kernel.bpf.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024); /* 1,000 containers of pods made and removed: 480 bytes each */
} cgroup_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cgroup_event);
} cgroup_scratch SEC(".maps");

__u64 cgroup_events_lost;

/* Hierarchies to report, a bit for each number; set by the agent. 0 is the default hierarchy, cgroup2. */
const volatile __u64 hierarchies = 1;

static int report(struct cgroup *cgrp, const char *path, __u32 change)
{
	struct cgroup_event *event;
	__u32 zero = 0, hierarchy;
	long length;

	hierarchy = cgrp->root->hierarchy_id;
	if (hierarchy >= HIERARCHY_MAX || !(hierarchies >> hierarchy & 1))
		return 0;
	event = bpf_map_lookup_elem(&cgroup_scratch, &zero);
	if (!event)
		return 0;
	length = bpf_probe_read_kernel_str(event->path, sizeof(event->path), path);
	if (length < 0 || length > CGROUP_PATH_MAX)
		length = 0;
	event->id = cgrp->kn->id;
	event->change = change;
	event->hierarchy = hierarchy;
	event->length = length;
	if (bpf_ringbuf_output(&cgroup_events, event, __builtin_offsetof(struct cgroup_event, path) + length,
			       0))
		__sync_fetch_and_add(&cgroup_events_lost, 1);
	return 0;
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(cgroup_made, struct cgroup *cgrp, const char *path)
{
	return report(cgrp, path, CGROUP_CHANGE_MADE);
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(cgroup_removed, struct cgroup *cgrp, const char *path)
{
	return report(cgrp, path, CGROUP_CHANGE_REMOVED);
}
