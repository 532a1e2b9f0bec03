# SPDX-License-Identifier: Apache-2.0
"""Builds ``tidegate.kernel._libbpf``: the part of libbpf that the agent uses, with the compiler's own signatures."""

from cffi import FFI

CDEF = """
typedef uint32_t __u32;
typedef uint64_t __u64;
struct bpf_object; struct bpf_program; struct bpf_map; struct bpf_link; struct btf; struct ring_buffer;

struct bpf_object *bpf_object__open_file(const char *path, const void *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct btf *bpf_object__btf(const struct bpf_object *obj);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);

const char *bpf_program__name(const struct bpf_program *prog);
const char *bpf_program__section_name(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);
int bpf_program__set_autoload(struct bpf_program *prog, bool autoload);
struct bpf_link *bpf_program__attach(const struct bpf_program *prog);
struct bpf_link *bpf_program__attach_xdp(const struct bpf_program *prog, int ifindex);
struct bpf_link *bpf_program__attach_cgroup(const struct bpf_program *prog, int cgroup_fd);
struct bpf_link *bpf_program__attach_iter(const struct bpf_program *prog, const void *opts);
int bpf_link__fd(const struct bpf_link *link);
int bpf_link__pin(struct bpf_link *link, const char *path);
int bpf_link__update_program(struct bpf_link *link, struct bpf_program *prog);
int bpf_link__destroy(struct bpf_link *link);
struct bpf_link *bpf_link__open(const char *path);

const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
__u32 bpf_map__type(const struct bpf_map *map);
__u32 bpf_map__key_size(const struct bpf_map *map);
__u32 bpf_map__value_size(const struct bpf_map *map);
__u32 bpf_map__max_entries(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
int bpf_map__pin(struct bpf_map *map, const char *path);

int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_lookup_and_delete_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values, __u32 *count,
                         const void *opts);
int bpf_map_lookup_and_delete_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
                                    __u32 *count, const void *opts);
int bpf_iter_create(int link_fd);
int bpf_obj_get(const char *path);
int bpf_enable_stats(int type);
int libbpf_num_possible_cpus(void);

typedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size);
struct ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn sample, void *ctx, const void *opts);
void ring_buffer__free(struct ring_buffer *rb);
int ring_buffer__consume(struct ring_buffer *rb);
int ring_buffer__epoll_fd(const struct ring_buffer *rb);

extern "Python" int tidegate_on_sample(void *ctx, void *data, size_t size);

struct tidegate_program_info { __u32 id; __u64 run_time_ns, run_cnt, recursion_misses; ...; };
void tidegate_log_start(void);
const char *tidegate_log(void);
void *tidegate_variable(struct bpf_object *obj, const char *section, const char *name, __u32 *size,
                        __u32 *offset);
int tidegate_program_info(int fd, struct tidegate_program_info *info);
int tidegate_test_run(int fd, const void *in, __u32 in_size, void *out, __u32 *out_size, __u32 repeat,
                      __u32 *retval, __u32 *duration);
int tidegate_kernel_has_btf(void);
"""

SOURCE = r"""
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* libbpf's own messages since tidegate_log_start(), the verifier's among them; what does not fit pushes
 * out the oldest, because the reason stands at the end. */
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
	return 0;
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

static int tidegate_kernel_has_btf(void)
{
	struct btf *btf = btf__load_vmlinux_btf();

	if (!btf)
		return 0;
	btf__free(btf);
	return 1;
}
"""

builder = FFI()
builder.cdef(CDEF)
builder.set_source("tidegate.kernel._libbpf", SOURCE, libraries=["bpf"])

if __name__ == "__main__":
    builder.compile(verbose=True)
