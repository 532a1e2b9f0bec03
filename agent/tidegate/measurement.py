# SPDX-License-Identifier: Apache-2.0
"""The running signals of this node: each measurement reads the kernel once and yields a view."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Self

import msgspec

from tidegate import __version__, rates
from tidegate.features import features, require
from tidegate.identity.cgroups import CgroupWatch, Services, tree, walk
from tidegate.identity.containers import ContainerNames
from tidegate.kernel.objects import Program
from tidegate.kernel.probe import Host, node, probe
from tidegate.model.snapshot import Health, View
from tidegate.signals.tcp import TcpSignal
from tidegate.signals.tcp_fields import FIELDS as TCP_FIELDS
from tidegate.totals import Sample, Totals

FIELDS = TCP_FIELDS


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept: in the kernel rows of one interval and sockets; rows since the start, idle in s."""

    kernel_rows: int = 8192
    sockets: int = 65_536
    rows: int = 2000
    endpoints: int = 200
    idle: float = 900.0


class Measurement:
    """Programs that are attached, names that are known, totals since the start.

    ``host_root`` is where the host's / is seen. A context manager; raises
    :class:`tidegate.errors.UnavailableError` where the host lacks what is needed.
    """

    def __init__(self, bounds: Bounds, host: Host | None = None, host_root: Path = Path("/")) -> None:
        self.bounds = bounds
        host = host or probe()
        require(features(host))
        self._cgroups = CgroupWatch.start()
        try:
            # The programs first, then the walk: a cgroup made in between is seen by one of the two.
            root = tree(host_root, Path(host.cgroup2 or "/"))
            self._services = Services(lambda: walk(root), ContainerNames.below(host_root).name_of)
            self._tcp = TcpSignal.start(bounds.kernel_rows, bounds.sockets)
        except BaseException:
            self._cgroups.close()
            raise
        self._events_lost = 0
        self.totals = Totals(bounds.rows, bounds.endpoints, bounds.idle)
        self._before: Sample = {}
        self._measured_at = time.monotonic()

    def measure(self, late_seconds: float = 0.0) -> View:
        """Read what the kernel counted since the last time and show it with the totals.

        ``late_seconds`` is how late this measurement began, for the agent's own health.
        """
        began = time.monotonic()
        records = self._tcp.read()
        read_at = time.monotonic()
        self._read_cgroups()
        self.totals.add(records, self._services.of, read_at)
        now = self.totals.sample()
        machine = node()
        snapshot = rates.snapshot(
            self._before, now, time=time.time(), interval=read_at - self._measured_at, node=machine
        )
        self._before, self._measured_at = now, read_at
        health = self._health(late_seconds, began)
        return View(**msgspec.structs.asdict(snapshot), health=health)

    @property
    def programs(self) -> list[Program]:
        """The TCP programs, to ask the kernel what they cost."""
        return list(self._tcp.bpf.programs.values())

    def close(self) -> None:
        """Detach and unload everything."""
        self._tcp.close()
        self._cgroups.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_cgroups(self) -> None:
        self._services.apply(self._cgroups.read())
        lost = self._cgroups.losses()["cgroup_events"]
        if lost != self._events_lost:
            self._events_lost = lost
            self._services.rescan()

    def _health(self, late_seconds: float, began: float) -> Health:
        maps = self._tcp.maps() | self._cgroups.maps()
        return Health(
            version=__version__,
            pid=os.getpid(),
            loader="libbpf",
            maps=maps,
            events_lost=self._cgroups.losses(),
            losses=self._tcp.losses() | {"rows_folded": self.totals.folded},
            rows=len(self._before),
            rows_limit=self.bounds.rows,
            late_seconds=late_seconds,
            tick_seconds=time.monotonic() - began,
        )
