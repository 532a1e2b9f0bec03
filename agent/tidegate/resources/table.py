# SPDX-License-Identifier: Apache-2.0
"""CPU, memory and stalls by service: when each cgroup is read, and the rows of what was read."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

from tidegate.identity.services import Service
from tidegate.model.resources import Executable, Pressure, ResourceRow
from tidegate.signals.cgroup_files import PRESSURES, CgroupFiles, Limits, Reading, least

#: Limits are set soon after a cgroup is made and seldom later: they are read with everything else for so many
#: seconds, and then every so many.
LIMITS_AWAITED, LIMITS_KEPT = 10.0, 30.0
#: Where the counters stand that a reading has.
_CPU, _PERIODS, _THROTTLED, _THROTTLED_SECONDS, _STALLS = range(5)
_COUNTERS = _STALLS + 2 * len(PRESSURES)

Counters = list[float | None]


class Look(NamedTuple):
    """One look at a cgroup, at a time in monotonic seconds."""

    at: float
    counters: Counters


class Watched:
    """A service with its topmost cgroups (the files of each hold for all below it) and what they have used.

    ``totals`` go on growing when a cgroup is made anew.
    """

    __slots__ = ("at", "given", "limits", "limits_at", "looks", "own_limit", "paths", "row", "since", "totals")

    def __init__(self) -> None:
        self.given: Sequence[str] = ()
        self.paths: tuple[str, ...] = ()
        self.at = self.limits_at = self.since = -math.inf
        self.looks: dict[str, Look] = {}
        self.totals: Counters = [None] * _COUNTERS
        self.limits = Limits(None, None)
        self.own_limit = False
        self.row: ResourceRow | None = None

    def take(self, paths: Sequence[str]) -> None:
        """Take these for its cgroups."""
        if paths != self.given:
            self.given, self.paths = paths, topmost(paths)
            self.looks = {path: look for path, look in self.looks.items() if path in self.paths}


class Resources:
    """The rows of all services.

    Each service is read every ``interval`` seconds, but at most ``per_second`` of them in a second: where there
    are more, each has its turn later. At most ``most`` are kept.
    """

    def __init__(self, files: CgroupFiles, *, interval: float, per_second: int, most: int) -> None:
        self._files = files
        self._interval, self._per_second, self._most = interval, per_second, most
        self._services: Mapping[Service, Sequence[str]] = {}
        #: Those that wait longest come first.
        self._watched: OrderedDict[Service, Watched] = OrderedDict()
        self._order: list[Service] = []
        self._refused: set[Service] = set()
        self._above: dict[str, tuple[float, Limits]] = {}
        self._read_at: float | None = None
        #: How many may be read, as they are spread evenly.
        self._room = 0.0
        self._gone = self._unplaced = 0

    def read(self, services: Mapping[Service, Sequence[str]], now: float) -> None:
        """Read those whose turn it is; ``services`` are all with their cgroups, ``now`` is monotonic seconds."""
        if services is not self._services:
            self._replace(services)
        if self._read_at is None:  # all of them at the start
            self._room = float(len(self._watched))
        else:
            self._room = min(self._room + (now - self._read_at) * self._per_second, float(self._per_second))
        self._read_at = now
        for key, watched in list(islice(self._watched.items(), int(self._room))):
            if now - watched.at < 0.9 * self._interval:
                break
            self._room -= 1
            self._watched.move_to_end(key)
            self._look(key, watched, now)

    def rows(
        self, kills: Mapping[Service, int] | None, executables: Mapping[Service, tuple[Executable, ...]]
    ) -> tuple[ResourceRow, ...]:
        """Return the rows, with the kills and programs of each service, also of one that has nothing else.

        ``kills`` is None where they are not told by service.
        """
        killed_of: Callable[[Service], int | None] = (
            (lambda _: None) if kills is None else lambda key: kills.get(key, 0)
        )
        found = []
        for key in self._order:
            watched = self._watched[key]
            if watched.row is None:
                continue
            killed, programs = killed_of(key), executables.get(key, ())
            if watched.row.oom_kills != killed or watched.row.executables != programs:
                watched.row = msgspec.structs.replace(watched.row, oom_kills=killed, executables=programs)
            found.append(watched.row)
        have = {(row.service, row.container) for row in found}
        bare = [key for key in {**(kills or {}), **executables} if key not in have]
        found += [_bare(key, killed_of(key), executables.get(key, ())) for key in bare]
        return tuple(found)

    def losses(self) -> dict[str, int]:
        """Return how many services found no place."""
        return {"resources_full": self._unplaced}

    def skipped(self) -> dict[str, int]:
        """Return how many cgroups went before they were read for the first time, or have none of the files."""
        return {"cgroups": self._gone}

    def _replace(self, services: Mapping[Service, Sequence[str]]) -> None:
        self._services = services
        for key in [key for key in self._watched if key not in services]:
            del self._watched[key]
        refused = set()
        for key, paths in services.items():
            if key not in self._watched:
                if len(self._watched) >= self._most:
                    refused.add(key)
                    continue
                self._watched[key] = Watched()
                self._watched.move_to_end(key, last=False)
            self._watched[key].take(paths)
        self._unplaced += len(refused - self._refused)
        self._refused = refused
        self._order = sorted(self._watched)
        self._above = {}

    def _look(self, key: Service, watched: Watched, now: float) -> None:
        """Read all cgroups of a service and make its row."""
        is_first, watched.at = watched.at == -math.inf, now
        if not self._is_populated(key):
            watched.row = None
            return
        if is_first:
            watched.since = now
        is_new = now - watched.since < LIMITS_AWAITED
        if is_new or now - watched.limits_at >= LIMITS_KEPT:
            watched.limits_at = now
            self._read_limits(watched, now)
        readings = []
        rates: Counters = [None] * _COUNTERS
        for path in watched.paths:
            reading = self._files.read(path, limited=watched.own_limit or is_new)
            if reading.is_empty:
                self._gone += is_first
                continue
            readings.append(reading)
            watched.looks[path] = _add(
                watched.totals, rates, watched.looks.get(path), Look(now, _counters(reading))
            )
        watched.row = _row(key, watched, rates, readings) if readings else None

    def _is_populated(self, key: Service) -> bool:
        """Tell whether processes are in a service's cgroups and not only in those of others below them.

        Asked only of what may stand for others: slices, and the cgroup of a whole pod.
        """
        if not key.name.startswith("/") and (key.container or not key.name.startswith("pod/")):
            return True
        return any(self._files.processes(path) for path in self._services[key] if path != "/")

    def _read_limits(self, watched: Watched, now: float) -> None:
        """Read the limits of each cgroup and of all above it: the least of them holds."""
        own = [self._files.limits(path) for path in watched.paths]
        watched.own_limit = any(limits.cpus is not None for limits in own)
        effective = [
            least([limits, *(self._limits_above(above, now) for above in above_of(path))])
            for path, limits in zip(watched.paths, own, strict=True)
        ]
        watched.limits = Limits(
            _sum_if_all(limits.cpus for limits in effective), _sum_if_all(limits.memory for limits in effective)
        )

    def _limits_above(self, path: str, now: float) -> Limits:
        known = self._above.get(path)
        if known is None or now - known[0] >= LIMITS_KEPT:
            known = self._above[path] = now, self._files.limits(path)
        return known[1]


def topmost(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the paths that are below none of the others; the root of all is left out: it is the node."""
    all_ = set(paths)
    return tuple(sorted(path for path in all_ if path != "/" and all_.isdisjoint(above_of(path))))


def above_of(path: str) -> Iterator[str]:
    """Yield the cgroups above one, from the next to the topmost below the root."""
    while path := path.rpartition("/")[0]:
        yield path


def _counters(reading: Reading) -> Counters:
    found: Counters = [reading.cpu_seconds, reading.periods, reading.throttled, reading.throttled_seconds]
    for stalls in reading.stalls:
        found += (None, None) if stalls is None else stalls
    return found


def _add(totals: Counters, rates: Counters, before: Look | None, now: Look) -> Look:
    """Add to ``totals`` what a cgroup has used since the look before, and to ``rates`` the same per second.

    All that it has used, where there was no look before or it was made anew since; that has no rate. Returns the
    look with what was known before of the counters that were not read.
    """
    counters = list(now.counters)
    for i, value in enumerate(now.counters):
        earlier = None if before is None else before.counters[i]
        if value is None:
            counters[i] = earlier
        elif before is None or earlier is None or value < earlier:
            totals[i] = (totals[i] or 0) + value
        else:
            totals[i] = (totals[i] or 0) + value - earlier
            rates[i] = (rates[i] or 0) + (value - earlier) / (now.at - before.at)
    return Look(now.at, counters)


def _row(key: Service, watched: Watched, rates: Counters, readings: list[Reading]) -> ResourceRow:
    totals, limits = watched.totals, watched.limits
    memory = [reading.memory for reading in readings if reading.memory is not None]
    working = [
        max(reading.memory - reading.inactive_file, 0)
        for reading in readings
        if reading.memory is not None and reading.inactive_file is not None
    ]
    return ResourceRow(
        service=key.name,
        container=key.container,
        cgroup=watched.paths[0],
        cpu_seconds=totals[_CPU],
        cpu=rates[_CPU],
        cpu_limit=limits.cpus,
        throttled_seconds=totals[_THROTTLED_SECONDS],
        throttled=_share(rates[_THROTTLED], rates[_PERIODS]) if watched.own_limit else None,
        memory=sum(memory) if memory else None,
        memory_working_set=sum(working) if working else None,
        memory_limit=limits.memory,
        oom_kills=None if watched.row is None else watched.row.oom_kills,
        pressure=_pressure(totals, rates),
        executables=() if watched.row is None else watched.row.executables,
    )


def _share(part: float | None, whole: float | None) -> float | None:
    """Return a share; of no periods none were throttled."""
    if part is None or whole is None:
        return None
    return part / whole if whole else 0.0


def _pressure(totals: Counters, rates: Counters) -> dict[str, Pressure] | None:
    found = {}
    for i, resource in enumerate(PRESSURES):
        some, full = _STALLS + 2 * i, _STALLS + 2 * i + 1
        if (seconds := totals[some]) is not None:
            found[resource] = Pressure(
                some_seconds=seconds, some=rates[some], full_seconds=totals[full], full=rates[full]
            )
    return found or None


def _bare(key: Service, kills: int | None, executables: tuple[Executable, ...]) -> ResourceRow:
    """Return the row of a service without cgroups of its own that are there."""
    return ResourceRow(
        service=key.name,
        container=key.container,
        cgroup="",
        cpu_seconds=None,
        cpu=None,
        cpu_limit=None,
        throttled_seconds=None,
        throttled=None,
        memory=None,
        memory_working_set=None,
        memory_limit=None,
        oom_kills=kills,
        pressure=None,
        executables=executables,
    )


Number = TypeVar("Number", int, float)


def _sum_if_all(values: Iterable[Number | None]) -> Number | None:
    """Return the sum of limits; where one has none, neither has the whole."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if known and len(known) == len(found) else None
