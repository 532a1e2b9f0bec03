# SPDX-License-Identifier: Apache-2.0
"""The disk programs for the tests: what they counted of one device, and what the kernel itself says of it."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from tests.lab.remains import wait_until
from tidegate.identity.devices import number_text
from tidegate.model import histogram
from tidegate.model.record import DiskRecord
from tidegate.signals.disk import DiskSignal
from tidegate.signals.disk_fields import OPERATIONS, Counter

BLOCK = 4096
#: Where requests and sectors of each operation stand in /proc/diskstats (Documentation/admin-guide/iostats.rst).
_COLUMNS = {"read": (3, 5), "write": (7, 9), "discard": (14, 16), "flush": (18, None)}
_UNDER_WAY = 11
_BLKDISCARD = 0x1277


class Counted(NamedTuple):
    """What was counted of one operation."""

    requests: int
    data_bytes: int


def number(device: Path) -> str:
    """Return a device's number as ``7:0``."""
    return number_text_of(os.stat(device).st_rdev)


def number_text_of(dev: int) -> str:
    """Return the number that stat() gives as the kernel has it."""
    return number_text(os.major(dev) << 20 | os.minor(dev))


def diskstats(device: Path) -> tuple[dict[str, Counted], int]:
    """Return the kernel's own counts of a device by operation, and how many requests are under way."""
    for line in Path("/proc/diskstats").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if fields[2] == device.name:
            counts = {
                operation: Counted(int(fields[requests]), 0 if sectors is None else int(fields[sectors]) * 512)
                for operation, (requests, sectors) in _COLUMNS.items()
            }
            return counts, int(fields[_UNDER_WAY])
    raise AssertionError(f"{device} is not in /proc/diskstats")


def difference(now: dict[str, Counted], before: dict[str, Counted]) -> dict[str, Counted]:
    """Return what was added, operations without requests left out."""
    found = {name: Counted(*(a - b for a, b in zip(now[name], before[name], strict=True))) for name in now}
    return {name: counted for name, counted in found.items() if counted.requests}


class Rows:
    """What a signal has counted of one device or partition, summed over its reads."""

    def __init__(self, signal: DiskSignal, device: Path) -> None:
        self.signal, self.device, self._number = signal, device, number(device)
        self.io: dict[str, dict[int, int]] = {}
        self.queue: dict[str, dict[int, int]] = {}
        self._counters: dict[str, list[int]] = {}

    def add(self, records: Iterable[DiskRecord]) -> None:
        """Add what was counted since the last read."""
        for record in records:
            if self._number not in (number_text(record.disk), number_text(record.device)):
                continue
            operation = record.operation
            sums = self._counters.setdefault(operation, [0] * len(record.counters))
            for place, count in enumerate(record.counters):
                sums[place] += count
            for histograms, slots in zip((self.io, self.queue), record.histograms, strict=True):
                histograms[operation] = histogram.add(histograms.get(operation, {}), slots)

    def read(self) -> None:
        """Read the signal."""
        self.add(self.signal.read())

    def in_flight(self) -> int:
        """Return how many requests the device has."""
        found = self.signal.in_flight()
        return sum(n for (*numbers, _), n in found.items() if self._number in map(number_text, numbers))

    def sums(self) -> dict[str, Counted]:
        """Return all by operation, operations without requests left out."""
        return {
            operation: Counted(sums[Counter.REQUESTS], sums[Counter.BYTES])
            for operation, sums in self._counters.items()
            if sums[Counter.REQUESTS]
        }

    def counted(self) -> dict[str, Counted]:
        """Return the same, once nothing is under way any more."""
        wait_until(lambda: not diskstats(self.device)[1] and not self.in_flight(), "quiet")
        self.read()
        return self.sums()

    def counter(self, operation: str, counter: Counter) -> int:
        """Return one sum."""
        return self._counters[operation][counter]


@contextmanager
def measured(*, rows: int = 2048, requests: int = 8192) -> Iterator[DiskSignal]:
    """Run the disk signal."""
    signal = DiskSignal.start(rows, requests)
    try:
        yield signal
    finally:
        signal.close()


class Direct:
    """A device past the page cache; a context manager. A read or write is a request, at most 256 KiB."""

    def __init__(self, device: Path) -> None:
        self._fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        self._memory = memoryview(mmap.mmap(-1, 64 * BLOCK))  # aligned as direct I/O needs it

    def read(self, offset: int, size: int = BLOCK) -> None:
        """Read once."""
        assert os.preadv(self._fd, [self._memory[:size]], offset) == size

    def write(self, offset: int, size: int = BLOCK, flags: int = 0) -> None:
        """Write once; ``flags`` as pwritev2(2) has them."""
        assert os.pwritev(self._fd, [self._memory[:size]], offset, flags) == size

    def flush(self) -> None:
        """Have the device write what it holds back."""
        os.fsync(self._fd)

    def discard(self, offset: int, size: int) -> None:
        """Discard once; not by blkdiscard, which reads the device first."""
        fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("=QQ", offset, size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def operations(found: dict[str, Counted]) -> list[str]:
    """Return which operations were counted, in the order in which they are declared."""
    return [operation for operation in OPERATIONS if operation in found]
