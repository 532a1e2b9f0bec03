# SPDX-License-Identifier: Apache-2.0
"""The running signals of this node: each measurement reads the kernel once and yields a view."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

from tidegate import __version__
from tidegate.disks.watch import Disks
from tidegate.errors import KernelError, TidegateError
from tidegate.features import features, require
from tidegate.health import program_share, read_programs, share, usage
from tidegate.http.watch import HttpWatch
from tidegate.identity.cgroups import CgroupWatch, Services, tree, walk
from tidegate.identity.containers import ContainerNames
from tidegate.identity.locations import Locations
from tidegate.kernel.objects import Program, statistics_on
from tidegate.kernel.probe import Host, node, probe, statistics_enabled
from tidegate.model.snapshot import Health, ProgramHealth, Ticks, View
from tidegate.pools.failfast import Refusals
from tidegate.ports.watch import PortsWatch
from tidegate.rates import Rates
from tidegate.rates.locations import location_rows
from tidegate.resources.watch import Pace, ResourceMeasurement
from tidegate.signals import disk_fields, ports_fields, resource_fields, tcp_fields
from tidegate.signals.ports import PortsSignal
from tidegate.signals.tcp import TcpSignal
from tidegate.totals import RowKey, Totals

log = logging.getLogger("tidegate")

#: What is measured, a table for each part of the view.
TABLES = (
    tcp_fields.TABLE,
    tcp_fields.LOCATIONS,
    *ports_fields.TABLES,
    resource_fields.TABLE,
    resource_fields.NODE_TABLE,
    disk_fields.TABLE,
    disk_fields.SERVICE_TABLE,
)


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept: in the kernel rows of one interval and sockets; rows since the start, idle in s.

    Where rows are too many, open connections are counted anew every ``recount`` seconds. The resources of a
    service are read every ``resource_interval`` seconds, of at most ``cgroups_per_second`` services in a second.
    ``watched`` is how many endpoints of pools there may be.
    Without ``disk_rows`` no disk is measured; ``disk_requests`` is how many requests are followed.
    """

    kernel_rows: int = 8192
    sockets: int = 65_536
    ports: int = 4096
    rows: int = 2000
    endpoints: int = 200
    idle: float = 900.0
    recount: float = 10.0
    resource_interval: float = 1.0
    cgroups_per_second: int = 100
    watched: int = 1024
    disk_rows: int | None = 2048
    disk_requests: int = 8192


class Measurement:
    """Programs that are attached, names that are known, totals since the start.

    ``host_root`` is where the host's / is seen. With ``statistics`` the kernel times all BPF programs meanwhile,
    where it lets the agent ask for that. ``locations`` are names of places by their networks. A context manager;
    raises :class:`tidegate.errors.UnavailableError` where the host lacks what is needed.
    """

    def __init__(
        self,
        bounds: Bounds,
        host: Host | None = None,
        host_root: Path = Path("/"),
        *,
        statistics: bool = False,
        locations: Mapping[str, str] | None = None,
    ) -> None:
        self.bounds = bounds
        host = host or probe()
        self._cgroup2 = Path(host.cgroup2 or "/")
        self._refusals: list[Refusals] = []
        require(features(host))
        with contextlib.ExitStack() as stack:
            self._statistics_refused = _switch_on_statistics(stack) if statistics else None
            self._statistics = statistics and self._statistics_refused is None
            self._services = self._follow_cgroups(host, host_root, stack)
            self._tcp = TcpSignal.start(bounds.kernel_rows, bounds.sockets, bounds.ports, bounds.watched)
            stack.callback(self._tcp.close)
            if self._tcp.unadopted:
                log.warning(
                    "network namespaces not entered: %d (%s ...); connections that are open there are seen from "
                    "their next event on; 'tidegate doctor' says what is missing",
                    len(self._tcp.unadopted),
                    self._tcp.unadopted[0],
                )
            ports = PortsSignal.start(bounds.ports, self._tcp)
            stack.callback(ports.close)
            self._ports = PortsWatch(ports, bounds.rows)
            self._resources = ResourceMeasurement(
                host,
                host_root,
                self._services,
                Pace(bounds.resource_interval, bounds.cgroups_per_second, bounds.rows),
                stack,
            )
            self._disks = _start_disks(bounds, stack)
            self.http = HttpWatch(self._tcp.bpf.maps, self._cgroup2, bounds.rows)
            stack.callback(self.http.close)
            self._open = stack.pop_all()
        self._events_lost = 0
        self.totals = Totals(bounds.rows, bounds.endpoints, bounds.idle)
        self._rates = Rates(Locations(locations or {}).of)
        self._recounted_at = 0.0
        self._measured_at = time.monotonic()
        self._usage = usage()
        self._programs: dict[str, ProgramHealth] = self._read_programs()

    def _follow_cgroups(self, host: Host, host_root: Path, stack: contextlib.ExitStack) -> Services:
        blocks = [host.block_hierarchy] if host.block_hierarchy is not None else []
        watch = CgroupWatch.start(hierarchy.id for hierarchy in blocks)
        self._cgroups = stack.enter_context(contextlib.closing(watch))
        # The programs first, then the walk: a cgroup made in between is seen by one of the two.
        root = tree(host_root, Path(host.cgroup2 or "/"))
        others = {h.id: partial(walk, tree(host_root, Path(h.mounted))) for h in blocks}
        return Services(partial(walk, root), ContainerNames.below(host_root).name_of, others=others)

    def measure(self, ticks: Ticks | None = None) -> View:
        """Read what the kernel counted since the last time and show it with the totals.

        ``ticks`` is how the caller keeps its interval, for the agent's own health.
        """
        began = time.monotonic()
        records = self._tcp.read()
        read_at = time.monotonic()
        self._read_cgroups()
        if self.totals.make_room(read_at):
            self._rates.begin_at(self.totals.sample())
        self.totals.add(records, self._services.of, read_at)
        self._recount_open(read_at)
        interval, self._measured_at = read_at - self._measured_at, read_at
        ports = self._ports.read(records, self._services.of, read_at, interval)
        now = self.totals.sample()
        resources = self._resources.read(read_at, {key.service for key in now})
        here = msgspec.structs.replace(node(), resources=self._resources.node)
        snapshot = self._rates.snapshot(now, time=time.time(), interval=interval, node=here)
        self.http.read(self._services.of, read_at)
        parts: dict[str, Any] = {
            "resources": resources,
            "endpoints": self.http.rows(snapshot.endpoints, interval),
            "locations": location_rows(snapshot.endpoints),
            **ports._asdict(),
        }
        if self._disks is not None:
            parts["disks"], parts["service_disks"] = self._disks.measure(self._services.of, read_at, interval)
        health = self._health(ticks or Ticks(), began, len(now))
        return View(**msgspec.structs.asdict(snapshot) | parts, health=health)

    def name(self, names: Mapping[str, str]) -> None:
        """Show endpoints with these names from now on."""
        self._rates.name(names)

    def cgroups(self) -> dict[int, str]:
        """Return the name of the service of each cgroup2 id that is there."""
        return self._services.names()

    def failfast(self) -> Refusals:
        """Make what refuses connects; raises KernelError where the kernel doesn't let it."""
        refusals = Refusals.start({**self._tcp.bpf.maps, **self.http.connections}, self._cgroup2)
        self._open.callback(refusals.close)
        self._refusals.append(refusals)
        return refusals

    @property
    def programs(self) -> list[Program]:
        """The TCP programs, to ask the kernel what they cost."""
        return [program for program in self._tcp.programs if program.is_loaded]

    def limit(self, rows: int, endpoints: int, idle: float) -> None:
        """Set other bounds of what is kept; rows that are there already stay."""
        self.totals.limit(rows, endpoints, idle)
        if self._disks is not None:
            self._disks.totals.limit(rows, idle)

    def close(self) -> None:
        """Detach and unload everything."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recount_open(self, now: float) -> None:
        """Put right what is open in each row, now and then, once rows were too many in the kernel or here."""
        is_short = self.totals.is_short or self._tcp.losses()["tcp_rows_full"] > 0
        if not is_short or now - self._recounted_at < self.bounds.recount:
            return
        self._recounted_at = now
        found: dict[RowKey, int] = {}
        for (cgroup, role, endpoint), count in self._tcp.open_connections().items():
            key = RowKey(self._services.of(cgroup), role, endpoint)
            found[key] = found.get(key, 0) + count
        self.totals.recount(found)

    def _read_cgroups(self) -> None:
        self._services.apply(self._cgroups.read())
        lost = self._cgroups.losses()["cgroup_events"]
        if lost != self._events_lost:
            self._events_lost = lost
            self._services.rescan()

    def _read_programs(self) -> dict[str, ProgramHealth]:
        programs = (
            *self._tcp.programs,
            *self._cgroups.programs,
            *self._ports.programs,
            *self._resources.programs,
            *(self._disks.programs if self._disks else ()),
            *self.http.programs,
            *(program for driver in self._refusals for program in driver.programs),
        )
        return read_programs(programs, self._statistics or statistics_enabled())

    def _health(self, ticks: Ticks, began: float, rows: int) -> Health:
        before, self._usage = self._usage, usage()
        programs_before, self._programs = self._programs, self._read_programs()
        return Health(
            version=__version__,
            pid=os.getpid(),
            loader="libbpf",
            maps={
                **self._tcp.maps(),
                **self._cgroups.maps(),
                **self._ports.maps(),
                **self._resources.maps(),
                **(self._disks.maps() if self._disks else {}),
                **self.http.maps(),
            },
            programs=self._programs,
            statistics_refused=self._statistics_refused,
            events_lost=self._cgroups.losses() | self._resources.events_lost(),
            losses={
                **self._tcp.losses(),
                **self._ports.losses(),
                **self._resources.losses(),
                **(self._disks.losses() if self._disks else {}),
                **self.http.endpoints.losses(),
                "rows_folded": self.totals.folded,
            },
            skipped=self._ports.skipped() | self._resources.skipped(),
            rows=rows,
            rows_limit=self.bounds.rows,
            ticks=ticks.taken,
            ticks_late=ticks.late,
            ticks_skipped=ticks.skipped,
            late_seconds=ticks.late_seconds,
            tick_seconds=time.monotonic() - began,
            cpu=share(before, self._usage),
            cpu_seconds=self._usage.cpu_seconds,
            program_cpu=program_share(programs_before, self._programs, self._usage.at - before.at),
            rss_bytes=self._usage.rss_bytes,
        )


def _start_disks(bounds: Bounds, stack: contextlib.ExitStack) -> Disks | None:
    """Measure disks until ``stack`` is closed; None where that is not wanted, or where the host refuses it."""
    if bounds.disk_rows is None:
        return None
    try:
        disks = Disks.start(bounds.disk_rows, bounds.disk_requests, bounds.rows, bounds.idle)
    except TidegateError as error:
        log.warning("signals.disk: %s; going on without disks; 'tidegate doctor' says what is missing", error)
        return None
    stack.callback(disks.close)
    return disks


def _switch_on_statistics(stack: contextlib.ExitStack) -> str | None:
    """Have the kernel time BPF programs until ``stack`` is closed; return why not, where it refuses."""
    try:
        stack.enter_context(statistics_on())
    except KernelError as error:
        log.warning("signals.program_statistics: %s; going on without run times", error)
        return str(error)
    return None
