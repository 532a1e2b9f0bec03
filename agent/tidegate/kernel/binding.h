/* SPDX-License-Identifier: Apache-2.0 */
/* The C half of the binding: what is awkward to call from Python. Compiled into _libbpf. */
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <sys/mount.h>
#include <unistd.h>
#include <linux/if_link.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* libbpf's own messages since tidegate_log_start(), the verifier's among them; what does not fit
 * pushes out the oldest, because the reason stands at the end. */
static char log_text[256 * 1024];
static size_t log_length;

static int log_line(enum libbpf_print_level level, const char *format, va_list args)
{
	char line[64 * 1024];
	int n;

	if (level == LIBBPF_DEBUG)
		return 0;
	n = vsnprintf(line, sizeof(line), format, args);
	if (n < 0)
		return 0;
	if ((size_t)n >= sizeof(line))
		n = sizeof(line) - 1;
	if (log_length + n >= sizeof(log_text)) {
		size_t drop = log_length + n + 1 - sizeof(log_text);

		memmove(log_text, log_text + drop, log_length - drop);
		log_length -= drop;
	}
	memcpy(log_text + log_length, line, n);
	log_length += n;
	log_text[log_length] = 0;
	return n;
}

static void tidegate_log_start(void)
{
	libbpf_set_print(log_line);
	log_length = 0;
	log_text[0] = 0;
}

static const char *tidegate_log(void)
{
	return log_text;
}

/* Where a global variable of an object that is open stands in its section's initial image. */
static void *tidegate_variable(struct bpf_object *obj, const char *section, const char *name, __u32 *size,
			       __u32 *offset)
{
	const struct btf *btf = bpf_object__btf(obj);
	const struct btf_var_secinfo *info;
	const struct btf_type *datasec;
	struct bpf_map *map = bpf_object__find_map_by_name(obj, section);
	size_t image_size;
	char *image;
	int id, i;

	if (!btf || !map)
		return NULL;
	image = (char *)bpf_map__initial_value(map, &image_size);
	id = btf__find_by_name_kind(btf, section, BTF_KIND_DATASEC);
	if (!image || id < 0)
		return NULL;
	datasec = btf__type_by_id(btf, id);
	info = btf_var_secinfos(datasec);
	for (i = 0; i < btf_vlen(datasec); i++, info++) {
		const struct btf_type *var = btf__type_by_id(btf, info->type);

		if (strcmp(btf__name_by_offset(btf, var->name_off), name))
			continue;
		if (info->offset + info->size > image_size)
			return NULL;
		*size = info->size;
		*offset = info->offset;
		return image + info->offset;
	}
	return NULL;
}

struct tidegate_program_info {
	__u32 id;
	int counts_misses; /* since Linux 5.12; a kernel before leaves that end of the struct out */
	__u64 run_time_ns, run_cnt, recursion_misses;
};

static int tidegate_program_info(int fd, struct tidegate_program_info *info)
{
	struct bpf_prog_info kernel = {};
	__u32 size = sizeof(kernel);

	if (bpf_obj_get_info_by_fd(fd, &kernel, &size))
		return -errno;
	info->id = kernel.id;
	info->run_time_ns = kernel.run_time_ns;
	info->run_cnt = kernel.run_cnt;
	info->recursion_misses = kernel.recursion_misses;
	info->counts_misses = size >= offsetof(struct bpf_prog_info, recursion_misses) + sizeof(__u64);
	return 0;
}

/* The name of any loaded program, in BPF_OBJ_NAME_LEN bytes; takes CAP_SYS_ADMIN. */
static int tidegate_program_name(__u32 id, char *name)
{
	struct bpf_prog_info kernel = {};
	__u32 size = sizeof(kernel);
	int fd = bpf_prog_get_fd_by_id(id), error;

	if (fd < 0)
		return -errno;
	error = bpf_obj_get_info_by_fd(fd, &kernel, &size) ? -errno : 0;
	close(fd);
	memcpy(name, kernel.name, sizeof(kernel.name));
	return error;
}

/* A link of an XDP program, in just the mode that flags say: libbpf's own call picks one and keeps it to
 * itself.
 */
static int tidegate_link_xdp(int program, int ifindex, __u32 flags)
{
	LIBBPF_OPTS(bpf_link_create_opts, opts, .flags = flags);
	int fd = bpf_link_create(program, ifindex, BPF_XDP, &opts);

	return fd < 0 ? -errno : fd;
}

/* Attach in native mode by netlink, which says in words why it fails (and bpf(2) doesn't), and detach at once
 * if it did not.
 */
static int tidegate_try_xdp(int program, int ifindex)
{
	LIBBPF_OPTS(bpf_xdp_attach_opts, opts, .old_prog_fd = program);
	int error = bpf_xdp_attach(ifindex, program, XDP_FLAGS_DRV_MODE | XDP_FLAGS_UPDATE_IF_NOEXIST, NULL);

	if (!error)
		bpf_xdp_detach(ifindex, XDP_FLAGS_DRV_MODE | XDP_FLAGS_REPLACE, &opts);
	return error;
}

struct tidegate_xdp {
	__u32 program, mode; /* one of those that are attached; XDP_ATTACHED_* of linux/if_link.h */
};

static int tidegate_xdp(int ifindex, struct tidegate_xdp *found)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, opts);
	int error = bpf_xdp_query(ifindex, 0, &opts);

	found->program = opts.prog_id ?: opts.drv_prog_id ?: opts.skb_prog_id ?: opts.hw_prog_id;
	found->mode = opts.attach_mode;
	return error;
}

struct tidegate_link_info {
	__u32 type, program, ifindex;
};

static int tidegate_link_info(int fd, struct tidegate_link_info *info)
{
	struct bpf_link_info kernel = {};
	__u32 size = sizeof(kernel);

	if (bpf_obj_get_info_by_fd(fd, &kernel, &size))
		return -errno;
	info->type = kernel.type;
	info->program = kernel.prog_id;
	info->ifindex = kernel.type == BPF_LINK_TYPE_XDP ? kernel.xdp.ifindex : 0;
	return 0;
}

struct tidegate_map_info {
	__u32 id, type, key_size, value_size, max_entries, flags;
};

static int tidegate_map_info(int fd, struct tidegate_map_info *info)
{
	struct bpf_map_info kernel = {};
	__u32 size = sizeof(kernel);

	if (bpf_obj_get_info_by_fd(fd, &kernel, &size))
		return -errno;
	info->id = kernel.id;
	info->type = kernel.type;
	info->key_size = kernel.key_size;
	info->value_size = kernel.value_size;
	info->max_entries = kernel.max_entries;
	info->flags = kernel.map_flags;
	return 0;
}

static int tidegate_mount_bpffs(const char *source, const char *path)
{
	return mount(source, path, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") ? -errno : 0;
}

static int tidegate_unmount(const char *path)
{
	return umount2(path, UMOUNT_NOFOLLOW) ? -errno : 0;
}

static int tidegate_test_run(int fd, const void *in, __u32 in_size, void *out, __u32 *out_size, __u32 repeat,
			     __u32 *retval, __u32 *duration)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = in, .data_size_in = in_size, .data_out = out,
		    .data_size_out = *out_size, .repeat = repeat);
	int error = bpf_prog_test_run_opts(fd, &opts);

	*out_size = opts.data_size_out;
	*retval = opts.retval;
	*duration = opts.duration;
	return error;
}

/* An XDP program whose verdicts come true: what it passes or redirects goes there. */
static int tidegate_live_run(int fd, const void *in, __u32 in_size, __u32 repeat, __u32 batch)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = in, .data_size_in = in_size, .repeat = repeat,
		    .flags = BPF_F_TEST_XDP_LIVE_FRAMES, .batch_size = batch);

	return bpf_prog_test_run_opts(fd, &opts);
}

static int tidegate_kernel_has_btf(void)
{
	struct btf *btf = btf__load_vmlinux_btf();

	if (!btf)
		return 0;
	btf__free(btf);
	return 1;
}

/* An iterator over the elements of a map, or without one (map_fd -1) over what the section names. */
static struct bpf_link *tidegate_attach_iter(const struct bpf_program *prog, int map_fd)
{
	union bpf_iter_link_info info = { .map.map_fd = map_fd };
	LIBBPF_OPTS(bpf_iter_attach_opts, opts);

	if (map_fd >= 0) {
		opts.link_info = &info;
		opts.link_info_len = sizeof(info);
	}
	return bpf_program__attach_iter(prog, &opts);
}

/* What the histograms of values hold, without their empty slots. In each value, histograms of slots[h] u32
 * stand one after the other from offset on. Writes pairs of slot and count, and for each histogram of each
 * value the number of its pairs; returns the number of all. The room must do for every slot.
 */
static __u32 tidegate_sparse(const void *values, __u32 count, __u32 value_size, __u32 offset,
			     const __u32 *slots, __u32 histograms, __u32 *pairs, __u32 *lengths)
{
	__u32 v, h, s, total = 0;

	for (v = 0; v < count; v++) {
		const __u32 *slot = (const void *)((const char *)values + (size_t)v * value_size + offset);

		for (h = 0; h < histograms; h++) {
			__u32 before = total;

			for (s = 0; s < slots[h]; s++, slot++) {
				if (!*slot)
					continue;
				pairs[2 * total] = s;
				pairs[2 * total + 1] = *slot;
				total++;
			}
			*lengths++ = total - before;
		}
	}
	return total;
}
