# SPDX-License-Identifier: Apache-2.0
"""CPU, memory and stalls of one cgroup, from the kernel's files of cgroup2 or of the v1 controllers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

#: What PSI is kept of, in the order of ``Reading.stalls``.
PRESSURES = ("cpu", "memory", "io")
#: A v1 limit from here on is none: it is as much as the kernel's counter of pages can hold.
_NO_LIMIT = 1 << 62
#: A page: the most that the kernel gives at a time, but of a file that is one record.
_SIZE = 4096


class Stalls(NamedTuple):
    """Seconds in which some tasks, and all of them at once, waited for one resource."""

    some: float
    full: float | None


class Reading(NamedTuple):
    """One look at a cgroup with all below it; what the host doesn't count is None.

    Times are in seconds since the cgroup was made; ``periods`` are those of its CPU limit, ``throttled`` those in
    which it was stopped. ``inactive_file`` is memory that the kernel can take back at once. ``stalls`` is in the
    order of ``PRESSURES``.
    """

    cpu_seconds: float | None
    periods: int | None
    throttled: int | None
    throttled_seconds: float | None
    memory: int | None
    inactive_file: int | None
    stalls: tuple[Stalls | None, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no file could be read: the cgroup is gone, or out of reach."""
        return self == _NOTHING


_NOTHING = Reading(None, None, None, None, None, None, (None,) * len(PRESSURES))


class Limits(NamedTuple):
    """Limits of a cgroup: CPUs, bytes; None is no limit."""

    cpus: float | None
    memory: int | None


def least(several: Iterable[Limits]) -> Limits:
    """Return what holds where all of these apply: a cgroup's own limits and those of the ones above it."""
    all_ = list(several)
    return Limits(
        min((limits.cpus for limits in all_ if limits.cpus is not None), default=None),
        min((limits.memory for limits in all_ if limits.memory is not None), default=None),
    )


class CgroupFiles:
    """Reads cgroups by their path below the root of their hierarchy.

    ``unified`` is where cgroup2 is mounted, ``controllers`` where each v1 controller is. Where a controller is
    v1's its files are read there; the paths are the same. A file that isn't there is no error: a cgroup may go
    while it is read, and not every cgroup has every controller.
    """

    def __init__(self, unified: Path | None, controllers: Mapping[str, Path], *, pressure: bool = True) -> None:
        self._unified = None if unified is None else str(unified)
        self._v1 = {name: str(point) for name, point in controllers.items()}
        self._pressure = pressure and unified is not None
        #: One directory of each hierarchy that this host has.
        self.roots = list(dict.fromkeys([*([] if unified is None else [str(unified)]), *self._v1.values()]))

    def read(self, path: str, *, limited: bool = True) -> Reading:
        """Read what changes all the time.

        Of a cgroup that isn't ``limited`` v1's throttling is left out, which is a file of its own.
        """
        cpu, periods, throttled, throttled_seconds = self._cpu(path, limited)
        memory, inactive = self._memory(path)
        stalls: tuple[Stalls | None, ...] = _NOTHING.stalls
        if self._pressure:
            stalls = tuple(read_stalls(f"{self._unified}{path}/{resource}.pressure") for resource in PRESSURES)
        return Reading(cpu, periods, throttled, throttled_seconds, memory, inactive, stalls)

    def limits(self, path: str) -> Limits:
        """Read what this cgroup itself is limited to."""
        return Limits(self._cpu_limit(path), self._memory_limit(path))

    def processes(self, path: str) -> list[int]:
        """Return the processes that are in the cgroup itself, in any hierarchy; none where it is gone."""
        for root in self.roots:
            if found := read(f"{root}{path}/cgroup.procs", whole=True):
                return [int(pid) for pid in found.split()]
        return []

    def _cpu(self, path: str, limited: bool) -> tuple[float | None, int | None, int | None, float | None]:
        used = None
        if "cpuacct" in self._v1 and (usage := read(f"{self._v1['cpuacct']}{path}/cpuacct.usage")):
            used = int(usage) / 1e9
        stat, stopped, unit = None, b"throttled_usec", 1e6
        # cgroup2 counts CPU time also where the controller is v1's; a unit may be in cgroup2 alone.
        if self._unified and (used is None or "cpu" not in self._v1):
            stat = read(f"{self._unified}{path}/cpu.stat")
            if used is None and stat is not None and (usec := value(stat, b"usage_usec")) is not None:
                used = usec / 1e6
        if "cpu" in self._v1:
            stat = read(f"{self._v1['cpu']}{path}/cpu.stat") if limited else None
            stopped, unit = b"throttled_time", 1e9
        if stat is None or (periods := value(stat, b"nr_periods")) is None:
            return used, None, None, None
        return used, periods, value(stat, b"nr_throttled"), (value(stat, stopped) or 0) / unit

    def _memory(self, path: str) -> tuple[int | None, int | None]:
        if "memory" in self._v1:
            top, usage, key = self._v1["memory"], "memory.usage_in_bytes", b"total_inactive_file"
        elif self._unified:
            top, usage, key = self._unified, "memory.current", b"inactive_file"
        else:
            return None, None
        used = read(f"{top}{path}/{usage}")
        stat = None if used is None else read(f"{top}{path}/memory.stat")
        if used is None or stat is None:
            return None, None
        return int(used), value(stat, key)

    def _cpu_limit(self, path: str) -> float | None:
        if "cpu" in self._v1:
            quota = read(f"{self._v1['cpu']}{path}/cpu.cfs_quota_us")
            period = read(f"{self._v1['cpu']}{path}/cpu.cfs_period_us")
            if not quota or not period or int(quota) < 0:
                return None
            return int(quota) / int(period)
        found = read(f"{self._unified}{path}/cpu.max") if self._unified else None
        if not found or found.startswith(b"max"):
            return None
        maximum, per = found.split()
        return int(maximum) / int(per)

    def _memory_limit(self, path: str) -> int | None:
        if "memory" in self._v1:
            found = read(f"{self._v1['memory']}{path}/memory.limit_in_bytes")
        else:
            found = read(f"{self._unified}{path}/memory.max") if self._unified else None
        if not found or found.startswith(b"max"):
            return None
        limit = int(found)
        return None if limit >= _NO_LIMIT else limit


def read(path: str, *, whole: bool = False) -> bytes | None:
    """Return the content of a file of the kernel; None where it can't be read.

    Lists may be longer than one read gives: those need ``whole``. By hand: opening, reading and closing take 6 us
    so, through a file object of Python three times that.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(descriptor, _SIZE)
        while whole and (more := os.read(descriptor, _SIZE)):
            text += more
        return text
    except OSError:  # the cgroup has gone since, or PSI is compiled in but off
        return None
    finally:
        os.close(descriptor)


def value(text: bytes, key: bytes) -> int | None:
    """Return the number that stands after a key at the begin of a line."""
    begin = text.find(b"\n" + key + b" ") + 1
    if begin == 0 and not text.startswith(key + b" "):
        return None
    return int(text[begin + len(key) :].split(b"\n", 1)[0])


def read_stalls(path: str) -> Stalls | None:
    """Read a file of PSI; None where the kernel keeps none. ``full`` of the CPU is there since Linux 5.13."""
    text = read(path)
    if not text:
        return None
    _, *totals = text.split(b"total=")
    some, *full = (int(total.split(b"\n", 1)[0]) / 1e6 for total in totals)
    return Stalls(some, full[0] if full else None)
