# SPDX-License-Identifier: Apache-2.0
"""BPF maps: single elements, batches, the swap of two tables, and ring buffers."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from tidegate.errors import KernelError
from tidegate.kernel.libbpf import check, check_pointer, ffi, lib, start_log

BATCH = 4096
ANY, NOEXIST, EXIST = 0, 1, 2
# enum bpf_map_type: hash, per-CPU hash, LRU hash, per-CPU LRU hash, trie
_KEYED = (1, 5, 9, 10, 11)
#: Makes buffers of megabytes without writing zeros into pages that a small read never touches.
_unset = ffi.new_allocator(should_clear_after_alloc=False)
_NO_PREALLOC = 1  # BPF_F_NO_PREALLOC
_MEMLOCK = re.compile(rb"memlock:\s+(\d+)")
#: Where entries can only be counted one by one, they are counted again after so many seconds.
_COUNT_KEPT = 10.0


class Map:
    """A map of a loaded object; keys and values are bytes of its fixed sizes."""

    def __init__(self, pointer: Any) -> None:
        self.name = ffi.string(lib.bpf_map__name(pointer)).decode()
        self.fd: int = lib.bpf_map__fd(pointer)
        self.key_size: int = lib.bpf_map__key_size(pointer)
        self.value_size: int = lib.bpf_map__value_size(pointer)
        self.max_entries: int = lib.bpf_map__max_entries(pointer)
        self.is_keyed: bool = lib.bpf_map__type(pointer) in _KEYED
        self._pointer = pointer
        self._grows = self.is_keyed and bool(lib.bpf_map__map_flags(pointer) & _NO_PREALLOC)
        self._fdinfo: int | None = None
        self._memory: int | None = None
        self._empty: int | None = None
        self._entry: int | None = None
        self._counted: tuple[float, int] | None = None

    def __getitem__(self, key: bytes) -> bytes:
        value = ffi.new("char[]", self.value_size)
        result = lib.bpf_map_lookup_elem(self.fd, self._sized(key), value)
        if result < 0 and ffi.errno == errno.ENOENT:
            raise KeyError(key)
        check(result, f"map {self.name}: look-up")
        return bytes(ffi.buffer(value, self.value_size))

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.update(key, value, ANY)

    def __delitem__(self, key: bytes) -> None:
        result = lib.bpf_map_delete_elem(self.fd, self._sized(key))
        if result < 0 and ffi.errno == errno.ENOENT:
            raise KeyError(key)
        check(result, f"map {self.name}: delete")

    def update(self, key: bytes, value: bytes, flags: int) -> None:
        """Write one element; ``flags`` is ANY, NOEXIST or EXIST."""
        if len(value) != self.value_size:
            raise ValueError(f"map {self.name}: a value has {self.value_size} bytes, this one {len(value)}")
        check(lib.bpf_map_update_elem(self.fd, self._sized(key), value, flags), f"map {self.name}: update")

    def take(self, key: bytes) -> bytes:
        """Read and delete one element as one operation (hash maps: Linux 5.14); KeyError if there is none."""
        value = ffi.new("char[]", self.value_size)
        result = lib.bpf_map_lookup_and_delete_elem(self.fd, self._sized(key), value)
        if result < 0 and ffi.errno == errno.ENOENT:
            raise KeyError(key)
        check(result, f"map {self.name}: look-up and delete")
        return bytes(ffi.buffer(value, self.value_size))

    def per_cpu(self, key: bytes) -> list[bytes]:
        """Read one element of a per-CPU map: the value of each possible CPU."""
        # linux/bpf.h: each CPU's value is rounded up to 8 bytes.
        cpus, room = check(lib.libbpf_num_possible_cpus(), "possible CPUs"), (self.value_size + 7) // 8 * 8
        values = ffi.new("char[]", cpus * room)
        result = lib.bpf_map_lookup_elem(self.fd, self._sized(key), values)
        if result < 0 and ffi.errno == errno.ENOENT:
            raise KeyError(key)
        check(result, f"map {self.name}: look-up")
        return [bytes(ffi.buffer(values + cpu * room, self.value_size)) for cpu in range(cpus)]

    def keys(self) -> Iterator[bytes]:
        """Yield the keys one by one, for maps that have no batches, as tries; none may be deleted meanwhile."""
        key, following = ffi.NULL, ffi.new("char[]", self.key_size)
        while (result := lib.bpf_map_get_next_key(self.fd, key, following)) == 0:
            yield bytes(ffi.buffer(following, self.key_size))
            key, following = following, ffi.new("char[]", self.key_size)
        if ffi.errno != errno.ENOENT:
            check(result, f"map {self.name}: next key")

    def batches(self, batch: int = BATCH, *, delete: bool = False) -> Iterator[tuple[int, Any, Any]]:
        """Read the whole map in batches, with ``delete`` emptying it.

        Yields (count, keys, values); the two are buffers that hold ``count`` keys and values one after the
        other and are valid until the next batch. A hash map needs Linux 5.6.
        """
        call = lib.bpf_map_lookup_and_delete_batch if delete else lib.bpf_map_lookup_batch
        size = min(batch, self.max_entries)
        keys = _unset("char[]", size * self.key_size)
        values = _unset("char[]", size * self.value_size)
        position = ffi.new("char[]", max(self.key_size, 4))
        count = ffi.new("__u32 *")
        first = True
        while True:
            count[0] = size
            result = call(self.fd, ffi.NULL if first else position, position, keys, values, count, ffi.NULL)
            reason = ffi.errno if result < 0 else 0
            if reason == errno.ENOSPC and count[0] == 0:  # one hash bucket alone holds more than a batch
                size *= 2
                keys = _unset("char[]", size * self.key_size)
                values = _unset("char[]", size * self.value_size)
                continue
            if reason not in (0, errno.ENOENT):
                raise KernelError(f"map {self.name}: batch read", reason)
            first = False
            if count[0]:
                n = count[0]
                yield n, ffi.buffer(keys, n * self.key_size), ffi.buffer(values, n * self.value_size)
            if reason == errno.ENOENT:
                return

    def pin(self, path: str) -> None:
        """Keep the map alive under ``path`` in bpffs."""
        start_log()
        check(lib.bpf_map__pin(self._pointer, os.fsencode(path)), f"map {self.name}: pin at {path}")

    def memory(self) -> int | None:
        """Return the bytes that the kernel charges for the map, None where it doesn't say.

        Asked for once where they can't change, else from a descriptor that stays open: 2 us instead of 11.
        """
        if self._memory is not None and not self._grows:
            return self._memory
        try:
            if self._fdinfo is None:
                self._fdinfo = os.open(f"/proc/self/fdinfo/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
            found = _MEMLOCK.search(os.pread(self._fdinfo, 4096, 0))
        except OSError:
            return None
        finally:
            if not self._grows:
                self.close()
        self._memory = int(found[1]) if found else None
        return self._memory

    def weigh_entry(self) -> None:
        """Learn what the kernel charges for an entry; to be called before any program can use the map.

        Makes :meth:`entries` a division. Only of a hash or trie whose entries are allocated one by one, since
        Linux 6.4 (304849a27b34 "bpf: hashtab memory usage"); before that the charge is a guess from
        ``max_entries``.
        """
        if not self._grows or lib.bpf_map__is_pinned(self._pointer):
            return
        empty, key = self.memory(), bytes(self.key_size)
        self.update(key, bytes(self.value_size), NOEXIST)
        one = self.memory()
        del self[key]
        if empty is not None and one is not None and one > empty:
            self._empty, self._entry = empty, one - empty

    def entries(self) -> int | None:
        """Return how many entries a hash or trie has that allocates them one by one; None for every other map.

        From the bytes charged, which the kernel computes from its own exact count. Where it doesn't, entries are
        counted one by one (15 ms for 60,000), and again only after 10 s.
        """
        if not self._grows:
            return None
        if self._entry is not None and self._empty is not None:
            memory = self.memory()
            return None if memory is None else (memory - self._empty) // self._entry
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] >= _COUNT_KEPT:
            self._counted = now, sum(count for count, _, _ in self.batches())
        return self._counted[1]

    def close(self) -> None:
        """Close what :meth:`memory` keeps open; twice is harmless. The map itself is its object's."""
        if self._fdinfo is not None:
            os.close(self._fdinfo)
            self._fdinfo = None

    def _sized(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise ValueError(f"map {self.name}: a key has {self.key_size} bytes, this one {len(key)}")
        return key


class SparseHistograms:
    """Reads histograms of u32 slots that stand one after the other in the values of a map.

    ``offset`` is where the first stands, ``slots`` how many each has; ``most`` how many values there are at a
    time. In C, since of some hundred slots in a row only a few hold something.
    """

    def __init__(self, offset: int, slots: Sequence[int], most: int) -> None:
        self._offset, self._most = offset, most
        self._slots = ffi.new("__u32[]", list(slots))
        self._pairs = ffi.new("__u32[]", 2 * most * sum(slots))
        self._lengths = ffi.new("__u32[]", most * len(slots))

    def read(self, values: Any, count: int) -> list[tuple[dict[int, int], ...]]:
        """Return for each of ``count`` values its histograms, each from slot to count."""
        if count > self._most:
            raise ValueError(f"histograms: expected at most {self._most} values, found {count}")
        histograms, size = len(self._slots), len(values) // max(count, 1)
        total = lib.tidegate_sparse(
            ffi.from_buffer(values),
            count,
            size,
            self._offset,
            self._slots,
            histograms,
            self._pairs,
            self._lengths,
        )
        flat = iter(ffi.unpack(self._pairs, 2 * total) if total else ())
        found = [
            dict(islice(zip(flat, flat, strict=False), length))
            if length > 1
            else {next(flat): next(flat)}
            if length
            else {}
            for length in (ffi.unpack(self._lengths, count * histograms) if count else ())
        ]
        return list(zip(*[iter(found)] * histograms, strict=True))


class SwappedTables:
    """Two tables behind an array of maps: the programs write one while the other is read and emptied.

    ``selector`` is the array of maps (one entry) through which the programs find the table to write; ``batch``
    is how many elements are read at a time.
    """

    def __init__(self, selector: Map, tables: Sequence[Map], batch: int = BATCH) -> None:
        self.selector, self.tables, self._batch = selector, tables, batch
        self._written = 0
        self._zero = bytes(4)

    def drain(self) -> Iterator[tuple[int, Any, Any]]:
        """Let the programs write the other table, then read and empty this one, in batches.

        Exact: the kernel returns from the update of a map in a map only when every program that could
        still use the old one has ended (maybe_wait_bpf_programs() in kernel/bpf/syscall.c).
        """
        full = self.tables[self._written]
        self._written ^= 1
        self.selector[self._zero] = self.tables[self._written].fd.to_bytes(4, "little")
        yield from full.batches(self._batch, delete=True)


class RingBuffer:
    """The reading side of a ring buffer map; ``fd`` becomes readable when there are records."""

    def __init__(self, ring: Map) -> None:
        self._records: list[bytes] = []
        self._handle = ffi.new_handle(self._records)
        self._pointer = check_pointer(
            lib.ring_buffer__new(ring.fd, lib.tidegate_on_sample, self._handle, ffi.NULL),
            f"ring buffer {ring.name}",
        )
        self.fd: int = lib.ring_buffer__epoll_fd(self._pointer)

    def consume(self) -> list[bytes]:
        """Return all records that are there, oldest first, and free their place."""
        check(lib.ring_buffer__consume(self._pointer), "ring buffer: consume")
        records = self._records[:]
        self._records.clear()
        return records

    def close(self) -> None:
        """Unmap the ring; twice is harmless."""
        if self._pointer is not None:
            lib.ring_buffer__free(self._pointer)
            self._pointer = None


@ffi.def_extern()  # type: ignore[untyped-decorator]
def tidegate_on_sample(ctx: Any, data: Any, size: int) -> int:
    """Keep one record of a ring buffer (called by libbpf)."""
    ffi.from_handle(ctx).append(bytes(ffi.buffer(data, size)))
    return 0
