// SPDX-License-Identifier: GPL-2.0-only
/* Whose process the kernel kills for want of memory, also where its cgroup is removed right after.
 *
 * A kill is what memory.events and /proc/vmstat count as oom_kill: __oom_kill_process() sends SIGKILL to
 * the victim and then marks it (mm/oom_kill.c). Processes that are ending anyway are marked as well,
 * but nothing is sent to them. So a victim is noted at the signal, and reported if the same task marks
 * it next; the mark alone would also not do, for it had nothing but the pid at first.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "include/kernel.bpf.h"
#include "include/oom.h"

#define SIGKILL 9

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 128 * 1024); /* 130 kills with the longest paths */
} oom_events SEC(".maps");

struct victim {
	__u64 task;
	__u64 pid;
};

/* By the task that sends the signal. One kill is under way at a time (oom_lock); the rest of the room is
 * for others that send SIGKILL meanwhile.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct victim);
} oom_signalled SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct oom_event);
} oom_scratch SEC(".maps");

__u64 oom_events_lost;

/* The parent of a cgroup's directory; renamed in 6.15 (633488947ef6 "kernfs: Use RCU to access
 * kernfs_node::parent").
 */
static __always_inline struct kernfs_node *parent_of(struct kernfs_node *node)
{
	struct kernfs_node___renamed *renamed = (void *)node;

	if (bpf_core_field_exists(renamed->__parent))
		return BPF_CORE_READ(renamed, __parent);
	return BPF_CORE_READ(node, parent);
}

/* Write the names of the victim's memory cgroup and of those above it; return how many. None where it is
 * cgroup2's, as then it is the cgroup whose id is reported.
 */
static __always_inline __u32 memory_path(struct task_struct *task, char *path)
{
	struct cgroup_subsys_state **states = (void *)BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *state = NULL;
	struct kernfs_node *node, *parent;
	struct cgroup *cgroup;
	__u32 i;

	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		return 0;
	states = (void *)states + bpf_core_field_offset(struct css_set, subsys);
	states += bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	bpf_probe_read_kernel(&state, sizeof(state), states);
	cgroup = BPF_CORE_READ(state, cgroup);
	if (!cgroup || !BPF_CORE_READ(cgroup, root, hierarchy_id))
		return 0;
	node = BPF_CORE_READ(cgroup, kn);
	for (i = 0; i < OOM_DEPTH; i++) {
		parent = parent_of(node);
		if (!parent) /* the root has no name */
			break;
		bpf_probe_read_kernel_str(path + i * OOM_NAME_MAX, OOM_NAME_MAX, BPF_CORE_READ(node, name));
		node = parent;
	}
	return i;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(oom_signal, int sig, void *info, struct task_struct *task)
{
	struct victim victim = { .task = (__u64)task };
	__u32 sender = bpf_get_current_pid_tgid();

	if (sig != SIGKILL)
		return 0;
	victim.pid = task->pid;
	bpf_map_update_elem(&oom_signalled, &sender, &victim, BPF_ANY);
	return 0;
}

/* The argument is the victim's pid, or its task since 72ba14deb40a "mm: update mark_victim tracepoints
 * fields", which stable kernels have too; the event has the victim's name since then.
 */
static __always_inline __u32 marked_pid(unsigned long long *ctx)
{
	if (bpf_core_field_exists(struct trace_event_raw_mark_victim, __data_loc_comm))
		return ((struct task_struct *)ctx[0])->pid;
	return (__u32)ctx[0];
}

SEC("tp_btf/mark_victim")
int oom_marked(unsigned long long *ctx)
{
	__u32 sender = bpf_get_current_pid_tgid(), zero = 0, size;
	struct victim *victim = bpf_map_lookup_elem(&oom_signalled, &sender);
	struct oom_event *event = bpf_map_lookup_elem(&oom_scratch, &zero);
	struct task_struct *task;

	if (!victim || !event || victim->pid != marked_pid(ctx))
		return 0;
	task = (struct task_struct *)victim->task;
	bpf_map_delete_elem(&oom_signalled, &sender);
	event->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	event->pid = BPF_CORE_READ(task, tgid);
	bpf_probe_read_kernel_str(event->comm, sizeof(event->comm), task->comm);
	event->levels = memory_path(task, event->path);
	size = __builtin_offsetof(struct oom_event, path) + event->levels * OOM_NAME_MAX;
	if (size > sizeof(*event))
		size = sizeof(*event);
	if (bpf_ringbuf_output(&oom_events, event, size, 0))
		__sync_fetch_and_add(&oom_events_lost, 1);
	return 0;
}
