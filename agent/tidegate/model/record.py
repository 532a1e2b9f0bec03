# SPDX-License-Identifier: Apache-2.0
"""What a signal hands on after one read of the kernel: the counts that were added since the read before."""

from __future__ import annotations

import msgspec

from tidegate.model.fields import Role


class Record(msgspec.Struct, frozen=True, gc=False):
    """Counts of one (cgroup, role, endpoint) since the last read.

    ``cgroup`` is the cgroup2 id, None for what the kernel could not attribute (its table was full).
    ``counters`` and ``histograms`` are in the order in which the signal declares them; a histogram maps a slot
    to its count. ``rtt_min_us`` is the shortest round trip, 0 where none was measured; ``netns`` the inode of the
    network namespace of one of the connections, 0 where there was none. No part of it refers back to it, so the
    garbage collector need not look at it.
    """

    cgroup: int | None
    role: Role
    endpoint: str
    counters: tuple[int, ...]
    histograms: tuple[dict[int, int], ...]
    rtt_min_us: int = 0
    netns: int = 0


class DiskRecord(msgspec.Struct, frozen=True, gc=False):
    """Counts of one (cgroup, device, operation) since the last read; the rest as in :class:`Record`.

    ``hierarchy`` is the one that the cgroup's id belongs to, 0 for cgroup2. ``device`` is a partition or the same
    as ``disk``, both numbers as the kernel has them.
    """

    cgroup: int | None
    hierarchy: int
    disk: int
    device: int
    operation: str
    counters: tuple[int, ...]
    histograms: tuple[dict[int, int], ...]
