# SPDX-License-Identifier: Apache-2.0
"""Files written by two services on the guest's disk, where cgroup2 has the io and memory controllers.

What they leave to write-back is written by the kernel's own threads. The agent is held against what the kernel
counts itself: of the disk in /proc/diskstats, of each service in io.stat.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.vm.traffic import move_to
from tidegate.measurement import Bounds, Measurement
from tidegate.model.snapshot import View

DISK = "nvme0n1"
MIB = 1 << 20
#: What each service writes to its file; the second one also removes half of what it has.
WRITTEN = {"shop.service": 6 * MIB, "batch.service": 3 * MIB}
SIZE = 64 * MIB
_CGROUPS, _MOUNTED = Path("/sys/fs/cgroup"), Path("/tmp/disk")
_DEADLINE = 30.0


class DiskReport(msgspec.Struct, frozen=True):
    """Requests and bytes by operation, of the disk and of the services; each as measured and as the kernel has it.

    ``charged`` are the bytes that each service's io.stat says were written. ``timed`` is the count of each
    operation's histogram.
    """

    measured: dict[str, tuple[int, int]]
    counted: dict[str, tuple[int, int]]
    timed: dict[str, int]
    services: dict[str, dict[str, tuple[int, int]]]
    charged: dict[str, int]
    losses: dict[str, int]


def measure_disk() -> DiskReport:
    """Mount the disk, have the services write, and report."""
    for name in ("+io", "+memory"):
        (_CGROUPS / "cgroup.subtree_control").write_text(name, "ascii")
    wait_until(lambda: Path("/dev", DISK).exists())
    mount()
    with begun_on_quiet_disk() as (measurement, before):
        children = [begin(name, size) for name, size in WRITTEN.items()]
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        os.sync()
        view, after = settled(measurement)
        losses = {name: n for name, n in view.health.losses.items() if name.startswith("disk_")}
    assert view.disks is not None
    assert view.service_disks is not None
    rows = [row for row in view.disks if row.device == DISK]
    services: dict[str, dict[str, tuple[int, int]]] = {}
    for row in view.service_disks:
        if row.device == DISK:
            services.setdefault(row.service, {})[row.operation] = (row.requests, row.bytes)
    return DiskReport(
        measured={row.operation: (row.requests, row.bytes) for row in rows},
        counted={
            name: (after[name][0] - before[name][0], after[name][1] - before[name][1])
            for name in after
            if after[name] != before[name]
        },
        timed={row.operation: row.io.count for row in rows},
        services=services,
        charged={name: written_by(_CGROUPS / name) for name in WRITTEN},
        losses=losses,
    )


def begin(name: str, size: int) -> int:
    """Write a file in a process and a cgroup of its own, without waiting for the disk; return the process."""
    if child := os.fork():
        return child
    status = 1
    try:
        move_to(_CGROUPS / name)
        with (_MOUNTED / name).open("wb", buffering=0) as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        status = 0
    finally:
        os._exit(status)


def mount() -> None:
    """Mount the disk; its file system was made on the host."""
    _MOUNTED.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(f"/dev/{DISK}".encode(), str(_MOUNTED).encode(), b"ext4", 0, None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {DISK}: {os.strerror(number)}")


@contextmanager
def begun_on_quiet_disk() -> Iterator[tuple[Measurement, dict[str, tuple[int, int]]]]:
    """Measure from a moment in which the disk does nothing, with its counts of then.

    A file system that was just mounted reads on by itself (ext4: block bitmaps, the inode table).
    """
    end = time.monotonic() + _DEADLINE
    while True:
        before = diskstats()
        with Measurement(Bounds()) as measurement:
            if diskstats() == before and not under_way():
                yield measurement, before
                return
        assert time.monotonic() < end


def settled(measurement: Measurement) -> tuple[View, dict[str, tuple[int, int]]]:
    """Measure until the disk has nothing to do; return what was measured, and the disk's counts of then."""
    view, counted = measurement.measure(), diskstats()

    def quiet() -> bool:
        nonlocal view, counted
        counted = diskstats()
        view = measurement.measure()
        rows = [row for row in view.disks or () if row.device == DISK]
        at_rest = bool(rows) and not any(row.in_flight for row in rows)
        return at_rest and diskstats() == counted and not under_way()

    wait_until(quiet)
    return view, counted


def wait_until(done: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + _DEADLINE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def fields() -> list[str]:
    """Return the disk's line of /proc/diskstats."""
    lines = (line.split() for line in Path("/proc/diskstats").read_text("ascii").splitlines())
    return next(line for line in lines if line[2] == DISK)


def under_way() -> int:
    """Return how many requests the kernel says are under way."""
    return int(fields()[11])


def diskstats() -> dict[str, tuple[int, int]]:
    """Return requests and bytes by operation (Documentation/admin-guide/iostats.rst)."""
    found = [int(field) for field in fields()[3:]]
    return {
        "read": (found[0], found[2] * 512),
        "write": (found[4], found[6] * 512),
        "discard": (found[11], found[13] * 512),
        "flush": (found[15], 0),
    }


def written_by(cgroup: Path) -> int:
    """Return the bytes that a cgroup has written by io.stat, over all devices."""
    words = (cgroup / "io.stat").read_text("ascii").split()
    return sum(int(word.removeprefix("wbytes=")) for word in words if word.startswith("wbytes="))
