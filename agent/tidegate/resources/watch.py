# SPDX-License-Identifier: Apache-2.0
"""The resources of node and services, and kills for want of memory, read together once a tick."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tidegate.errors import KernelError
from tidegate.identity.cgroups import Services, text_of, tree, walk
from tidegate.identity.executables import Executables
from tidegate.identity.services import OTHER, UNKNOWN, Service
from tidegate.kernel.objects import Program
from tidegate.kernel.probe import Host
from tidegate.model.resources import NodeResources, ResourceRow
from tidegate.model.snapshot import MapHealth
from tidegate.resources.table import Resources
from tidegate.signals.cgroup_files import CgroupFiles
from tidegate.signals.node import node_resources, sample
from tidegate.signals.oom import OomKill, OomSignal

log = logging.getLogger("tidegate")

#: Cgroups that only v1 hierarchies have are looked for every so many seconds.
WALKED_EVERY = 30.0
_ROOT = Service("/")


class Pace(NamedTuple):
    """How often a service is read: every ``interval`` s, ``per_second`` of them at most; ``most`` are kept."""

    interval: float = 1.0
    per_second: int = 100
    most: int = 2000


class ResourceMeasurement:
    """Reads the files at their pace, and the kills at each tick; ``stack`` closes what is opened.

    ``host_root`` is where the host's / is seen.
    """

    def __init__(
        self, host: Host, host_root: Path, services: Services, pace: Pace, stack: contextlib.ExitStack
    ) -> None:
        unified = None if host.cgroup2 is None else tree(host_root, Path(host.cgroup2))
        v1 = {
            name: tree(host_root, Path(host.controllers[name]))
            for name in ("memory", "cpu", "cpuacct")
            if name in host.controllers
        }
        self._host, self._pace = host, pace
        self._cgroups = AllCgroups(services, list(dict.fromkeys(v1.values())))
        files = CgroupFiles(unified, v1, pressure=host.pressure)
        self._executables = Executables(files.processes)
        self._resources = Resources(
            files,
            interval=pace.interval,
            per_second=pace.per_second,
            most=pace.most,
        )
        self._oom = _start_oom(stack)
        # A first look, so that the first rows have rates.
        now = time.monotonic()
        self._sample = sample(now, pressure=host.pressure)
        self._kills = Kills(services, self._sample.oom_kills, pace.most)
        self._resources.read(self._cgroups.at(now), now)
        self.node: NodeResources | None = None

    def read(self, now: float, connected: Collection[Service]) -> tuple[ResourceRow, ...]:
        """Read what is due and return the rows; ``node`` is the node's then. ``now`` is monotonic seconds.

        Of services that are ``connected`` the programs are told too.
        """
        self._kills.count([] if self._oom is None else self._oom.read(), self._sample.oom_kills)
        if self.node is None or now - self._sample.at >= 0.9 * self._pace.interval:
            before, self._sample = self._sample, sample(now, pressure=self._host.pressure)
            self.node = node_resources(
                before,
                self._sample,
                virtual=self._host.virtual,
                oom_kills=self._kills.of_node(self._sample.oom_kills),
            )
        cgroups = self._cgroups.at(now)
        self._resources.read(cgroups, now)
        self._executables.look(cgroups, connected, now)
        kills = None if self._oom is None else self._kills.by_service
        return self._resources.rows(kills, self._executables.by_service)

    @property
    def programs(self) -> list[Program]:
        """The programs that watch for kills."""
        return [] if self._oom is None else list(self._oom.bpf.programs.values())

    def maps(self) -> dict[str, MapHealth]:
        """Return how full their maps are."""
        return {} if self._oom is None else self._oom.maps()

    def events_lost(self) -> dict[str, int]:
        """Return how many kills found no place in the ring."""
        return {} if self._oom is None else self._oom.losses()

    def losses(self) -> dict[str, int]:
        """Return what found no place, and the kills of which nobody knows whose they were."""
        return {**self._resources.losses(), "oom_unattributed": self._kills.unattributed}

    def skipped(self) -> dict[str, int]:
        """Return what went away while it was read, or can't be read."""
        return self._resources.skipped() | self._executables.skipped()


class Kills:
    """Counts kills by service, and against the kernel's own count, which is ``at_start`` (None: not kept)."""

    def __init__(self, services: Services, at_start: int | None, most: int) -> None:
        self._services, self._at_start, self._most = services, at_start, most
        self._seen = 0
        self.by_service: dict[Service, int] = {}
        self.unattributed = 0

    def count(self, kills: Sequence[OomKill], counted: int | None) -> None:
        """Add the kills since the last time; ``counted`` is the kernel's count from before they were read."""
        for kill in kills:
            service = service_of(kill, self._services)
            log.warning(
                "out of memory: the kernel killed %s (pid %d) of %s", text_of(kill.comm), kill.pid, service.name
            )
            if service not in self.by_service and len(self.by_service) >= self._most:
                service = OTHER
            self.by_service[service] = self.by_service.get(service, 0) + 1
        self._seen += len(kills)
        if counted is not None and self._at_start is not None:
            self.unattributed = max(self.unattributed, counted - self._at_start - self._seen)

    def of_node(self, counted: int | None) -> int:
        """Return the kills of the node since the start."""
        return max(self._seen, 0 if counted is None or self._at_start is None else counted - self._at_start)


def service_of(kill: OomKill, services: Services) -> Service:
    """Name the victim's service by its cgroup2, or by its v1 memory cgroup where it is in none of cgroup2."""
    found = services.of(kill.cgroup)
    if kill.path is not None and found in (_ROOT, UNKNOWN):
        return services.at(text_of(kill.path))
    return found


class AllCgroups:
    """The cgroups of each service: those of cgroup2, and those that only the hierarchies below ``v1`` have."""

    def __init__(self, services: Services, v1: Sequence[Path]) -> None:
        self._services, self._v1 = services, v1
        self._walked_at = -math.inf
        self._paths: set[str] = set()
        self._of_cgroup2: Mapping[Service, Sequence[str]] = {}
        self._all: Mapping[Service, Sequence[str]] = {}

    def at(self, now: float) -> Mapping[Service, Sequence[str]]:
        """Return the paths by service; the same object while nothing changes."""
        of_cgroup2 = self._services.cgroups()
        is_due = bool(self._v1) and now - self._walked_at >= WALKED_EVERY
        if of_cgroup2 is self._of_cgroup2 and not is_due:
            return self._all
        self._of_cgroup2 = of_cgroup2
        known = {path for paths in of_cgroup2.values() for path in paths}
        if is_due:
            self._walked_at = now
            self._paths = {path for root in self._v1 for _, path in walk(root)} - known
        found = {service: list(paths) for service, paths in of_cgroup2.items()}
        for path in sorted(self._paths - known):
            found.setdefault(self._services.at(path), []).append(path)
        self._all = found
        return found


def _start_oom(stack: contextlib.ExitStack) -> OomSignal | None:
    try:
        signal = OomSignal.start()
    except KernelError as error:
        log.warning("kills for want of memory are not told by service: %s", error)
        return None
    stack.callback(signal.close)
    return signal
