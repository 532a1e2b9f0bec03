# SPDX-License-Identifier: Apache-2.0
"""What the kernel charges for a map, before there is one; pure.

What a map takes from the start is what ``bpftool map`` shows of it as memlock (``*_mem_usage()`` in kernel/bpf/,
Linux 6.4). What entries that are allocated one by one take when all are there is more than it shows: the allocator
rounds up (kernel/bpf/memalloc.c), a trie has a node wherever two prefixes part, and the memory cgroup keeps a
pointer for each.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import NamedTuple

NO_PREALLOC = 1  # BPF_F_NO_PREALLOC
_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE

# Sizes of the kernel's structs on 64 bits; those of maps differ by a cache line or two between kernels.
_ARRAY, _HASH, _RING = 312, 896, 304
_BUCKET, _ELEMENT, _POINTER = 16, 48, 8
_TRIE_NODE = 24
_RING_META_PAGES = 3
_CLASSES = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)


class MapShape(NamedTuple):
    """What a map is made with; ``type`` is an enum bpf_map_type."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class Charge(NamedTuple):
    """Bytes of a map from the start, and at most."""

    bytes: int
    most: int


def charge(shape: MapShape, cpus: int) -> Charge:
    """Return what a map takes where ``cpus`` are possible; KeyError for a type that Tidegate has none of."""
    return _BY_TYPE[shape.type](shape, cpus)


def _array(shape: MapShape, _: int) -> Charge:
    values = shape.max_entries * _up(shape.value_size, 8)
    if shape.flags & _MMAPABLE:
        return _fixed(_up(_ARRAY, mmap.PAGESIZE) + _up(values, mmap.PAGESIZE))
    return _fixed(_ARRAY + values)


def _array_per_cpu(shape: MapShape, cpus: int) -> Charge:
    return _fixed(_ARRAY + shape.max_entries * (_POINTER + _up(shape.value_size, 8) * cpus))


def _array_of_maps(shape: MapShape, _: int) -> Charge:
    return _fixed(_ARRAY + shape.max_entries * _POINTER)


def _hash(shape: MapShape, cpus: int) -> Charge:
    empty = _HASH + _BUCKET * (1 << (shape.max_entries - 1).bit_length())
    element = _ELEMENT + _up(shape.key_size, 8) + _up(shape.value_size, 8)
    if shape.flags & NO_PREALLOC:
        return Charge(empty, empty + shape.max_entries * _allocated(element))
    return _fixed(empty + (shape.max_entries + cpus) * element + cpus * _POINTER)


def _hash_lru(shape: MapShape, _: int) -> Charge:
    element = _ELEMENT + _up(shape.key_size, 8) + _up(shape.value_size, 8)
    buckets = 1 << (shape.max_entries - 1).bit_length()
    return _fixed(_HASH + _BUCKET * buckets + shape.max_entries * element)


def _trie(shape: MapShape, _: int) -> Charge:
    # The length of a prefix stands in the node.
    leaf = _TRIE_NODE + shape.key_size - 4 + shape.value_size
    return Charge(0, 2 * shape.max_entries * _allocated(leaf))


def _ring(shape: MapShape, _: int) -> Charge:
    pages = shape.max_entries // mmap.PAGESIZE
    meta = _RING_META_PAGES
    return _fixed(_RING + (meta + pages) * mmap.PAGESIZE + (meta + 2 * pages) * _POINTER)


_BY_TYPE: dict[int, Callable[[MapShape, int], Charge]] = {
    1: _hash,
    2: _array,
    6: _array_per_cpu,
    9: _hash_lru,
    11: _trie,
    12: _array_of_maps,
    27: _ring,
}


def _fixed(size: int) -> Charge:
    return Charge(size, size)


def _allocated(size: int) -> int:
    """Return what an entry takes that is allocated by itself."""
    needed = size + _POINTER  # to the next that is free
    found = next((size for size in _CLASSES if size >= needed), _up(needed, mmap.PAGESIZE))
    return found + _POINTER


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
