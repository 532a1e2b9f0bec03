# SPDX-License-Identifier: Apache-2.0
"""Builds ``tidegate.kernel._libbpf``: the part of libbpf that the agent uses, by the compiler's signatures."""

from pathlib import Path

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
__u32 bpf_map__map_flags(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int bpf_map__pin(struct bpf_map *map, const char *path);
int bpf_map__set_pin_path(struct bpf_map *map, const char *path);
bool bpf_map__is_pinned(const struct bpf_map *map);

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
int bpf_obj_pin(int fd, const char *path);
int bpf_link_update(int link_fd, int new_prog_fd, const void *opts);
int bpf_link_detach(int link_fd);
int bpf_enable_stats(int type);
int libbpf_num_possible_cpus(void);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);

typedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size);
struct ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn sample, void *ctx, const void *opts);
void ring_buffer__free(struct ring_buffer *rb);
int ring_buffer__consume(struct ring_buffer *rb);
int ring_buffer__epoll_fd(const struct ring_buffer *rb);

extern "Python" int tidegate_on_sample(void *ctx, void *data, size_t size);

struct tidegate_program_info { __u32 id; int counts_misses; __u64 run_time_ns, run_cnt, recursion_misses; ...; };
struct tidegate_xdp { __u32 program, mode; ...; };
struct tidegate_link_info { __u32 type, program, ifindex; ...; };
struct tidegate_map_info { __u32 id, type, key_size, value_size, max_entries, flags; ...; };
void tidegate_log_start(void);
const char *tidegate_log(void);
void *tidegate_variable(struct bpf_object *obj, const char *section, const char *name, __u32 *size,
                        __u32 *offset);
int tidegate_program_info(int fd, struct tidegate_program_info *info);
int tidegate_test_run(int fd, const void *in, __u32 in_size, void *out, __u32 *out_size, __u32 repeat,
                      __u32 *retval, __u32 *duration);
int tidegate_live_run(int fd, const void *in, __u32 in_size, __u32 repeat, __u32 batch);
int tidegate_program_name(__u32 id, char *name);
int tidegate_link_xdp(int program, int ifindex, __u32 flags);
int tidegate_try_xdp(int program, int ifindex);
int tidegate_xdp(int ifindex, struct tidegate_xdp *found);
int tidegate_link_info(int fd, struct tidegate_link_info *info);
int tidegate_map_info(int fd, struct tidegate_map_info *info);
int tidegate_mount_bpffs(const char *source, const char *path);
int tidegate_unmount(const char *path);
int tidegate_kernel_has_btf(void);
struct bpf_link *tidegate_attach_iter(const struct bpf_program *prog, int map_fd);
__u32 tidegate_sparse(const void *values, __u32 count, __u32 value_size, __u32 offset, const __u32 *slots,
                      __u32 histograms, __u32 *pairs, __u32 *lengths);
"""

builder = FFI()
builder.cdef(CDEF)
builder.set_source(
    "tidegate.kernel._libbpf", (Path(__file__).parent / "binding.h").read_text("utf-8"), libraries=["bpf"]
)

if __name__ == "__main__":
    builder.compile(verbose=True)
