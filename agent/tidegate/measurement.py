# SPDX-License-Identifier: Apache-2.0
"""The running signals of this node: each measurement reads the kernel once and yields a view."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec

from tidegate import __version__
from tidegate.errors import KernelError
from tidegate.features import features, require
from tidegate.health import program_share, read_programs, share, usage
from tidegate.identity.cgroups import CgroupWatch, Services, tree, walk
from tidegate.identity.containers import ContainerNames
from tidegate.identity.locations import Locations
from tidegate.kernel.objects import Program, statistics_on
from tidegate.kernel.probe import Host, node, probe, statistics_enabled
from tidegate.model.snapshot import Health, ProgramHealth, Ticks, View
from tidegate.ports.watch import PortsWatch
from tidegate.rates import Rates
from tidegate.signals import ports_fields, tcp_fields
from tidegate.signals.ports import PortsSignal
from tidegate.signals.tcp import TcpSignal
from tidegate.totals import RowKey, Totals

log = logging.getLogger("tidegate")

#: What is measured, a table for each part of the view.
TABLES = (tcp_fields.TABLE, *ports_fields.TABLES)


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept: in the kernel rows of one interval and sockets; rows since the start, idle in s.

    Where rows are too many, open connections are counted anew every ``recount`` seconds.
    """

    kernel_rows: int = 8192
    sockets: int = 65_536
    ports: int = 4096
    rows: int = 2000
    endpoints: int = 200
    idle: float = 900.0
    recount: float = 10.0


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
        require(features(host))
        with contextlib.ExitStack() as stack:
            self._statistics_refused = _switch_on_statistics(stack) if statistics else None
            self._statistics = statistics and self._statistics_refused is None
            self._cgroups = stack.enter_context(contextlib.closing(CgroupWatch.start()))
            # The programs first, then the walk: a cgroup made in between is seen by one of the two.
            root = tree(host_root, Path(host.cgroup2 or "/"))
            self._services = Services(lambda: walk(root), ContainerNames.below(host_root).name_of)
            self._tcp = TcpSignal.start(bounds.kernel_rows, bounds.sockets, bounds.ports)
            stack.callback(self._tcp.close)
            if self._tcp.unadopted:
                log.warning(
                    "network namespaces not entered: %d (%s ...); connections that are open there are seen from "
                    "their next event on; 'tidegate doctor' says what is missing",
                    len(self._tcp.unadopted),
                    self._tcp.unadopted[0],
                )
            self._ports_signal = PortsSignal.start(bounds.ports, self._tcp)
            stack.callback(self._ports_signal.close)
            self._ports = PortsWatch(self._ports_signal, bounds.rows)
            self._open = stack.pop_all()
        self._events_lost = 0
        self.totals = Totals(bounds.rows, bounds.endpoints, bounds.idle)
        self._rates = Rates(Locations(locations or {}).of)
        self._recounted_at = 0.0
        self._measured_at = time.monotonic()
        self._usage = usage()
        self._programs: dict[str, ProgramHealth] = self._read_programs()

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
        interval = read_at - self._measured_at
        ports = self._ports.read(records, self._services.of, read_at, interval)
        now = self.totals.sample()
        snapshot = self._rates.snapshot(now, time=time.time(), interval=interval, node=node())
        self._measured_at = read_at
        health = self._health(ticks or Ticks(), began, len(now))
        return View(**msgspec.structs.asdict(snapshot) | ports._asdict(), health=health)

    @property
    def programs(self) -> list[Program]:
        """The TCP programs, to ask the kernel what they cost."""
        return [program for program in self._tcp.bpf.programs.values() if program.is_loaded]

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
        parts = (self._tcp.bpf, self._cgroups.bpf, self._ports_signal.bpf)
        programs = [program for part in parts for program in part.programs.values()]
        return read_programs(programs, self._statistics or statistics_enabled())

    def _health(self, ticks: Ticks, began: float, rows: int) -> Health:
        before, self._usage = self._usage, usage()
        programs_before, self._programs = self._programs, self._read_programs()
        return Health(
            version=__version__,
            pid=os.getpid(),
            loader="libbpf",
            maps=self._tcp.maps() | self._cgroups.maps() | self._ports_signal.maps(),
            programs=self._programs,
            statistics_refused=self._statistics_refused,
            events_lost=self._cgroups.losses(),
            losses={**self._tcp.losses(), **self._ports.losses(), "rows_folded": self.totals.folded},
            skipped={"namespaces": self._ports.vanished},
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


def _switch_on_statistics(stack: contextlib.ExitStack) -> str | None:
    """Have the kernel time BPF programs until ``stack`` is closed; return why not, where it refuses."""
    try:
        stack.enter_context(statistics_on())
    except KernelError as error:
        log.warning("signals.program_statistics: %s; going on without run times", error)
        return str(error)
    return None
