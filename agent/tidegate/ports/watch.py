# SPDX-License-Identifier: Apache-2.0
"""Reads the ports of all network namespaces: of open connections always, of the rest by visits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tidegate.identity.services import Service
from tidegate.kernel.namespaces import network_namespaces
from tidegate.kernel.objects import Program
from tidegate.model.ports import ListenerRow, NamespaceRow, PortsRow
from tidegate.model.record import Record
from tidegate.model.snapshot import MapHealth
from tidegate.ports.rounds import Directory, Rounds
from tidegate.ports.table import Place, PortsTable
from tidegate.signals import namespace_files
from tidegate.signals.namespace_files import UNREAD, NamespaceFiles
from tidegate.signals.ports import PortsSignal, Settings, Upstream, Visit


class PortsView(NamedTuple):
    """All rows of one moment."""

    ports: tuple[PortsRow, ...]
    listeners: tuple[ListenerRow, ...]
    namespaces: tuple[NamespaceRow, ...]


class PortsWatch:
    """The ports of this node from one tick to the next; ``max_rows`` is how many rows are kept."""

    def __init__(
        self,
        signal: PortsSignal,
        max_rows: int,
        look: Callable[[], Mapping[int, Path]] = network_namespaces,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._signal, self._cpu_clock = signal, cpu_clock
        self._table = PortsTable(max_rows)
        self._rounds = Rounds()
        self._directory = Directory(look)
        self._paths: Mapping[int, Path] = {}
        self._visits: dict[int, Visit] = {}
        #: The reason for each namespace that could not be entered, by inode.
        self.refused: dict[int, str] = {}
        #: Visits of namespaces that were gone.
        self.vanished = 0

    def read(
        self, records: Sequence[Record], service_of: Callable[[int], Service], now: float, interval: float
    ) -> PortsView:
        """Return the rows after the TCP signal was read, which gave ``records``; ``now`` is monotonic seconds."""
        held: dict[tuple[Service, Upstream], int] = {}
        closing: Counter[Place] = Counter()
        for (cgroup, upstream), (sockets, closed) in self._signal.held().items():
            key = service_of(cgroup), upstream
            held[key] = held.get(key, 0) + sockets
            if closed:
                closing[upstream.place] += closed
        self._table.add(records, service_of, now, closing)
        self._visit(self._table.namespaces | {upstream.netns for _, upstream in held}, now)
        settings = self._signal.settings(time.monotonic_ns())
        outside = self._files_from_outside()
        time_wait = {netns: files.time_wait for netns, files in outside.items() if files.time_wait is not None}
        ports = self._table.rows(held, settings, time_wait, now, interval)
        listeners = listener_rows(self._visits, settings, service_of)
        files = outside | {netns: visit.files for netns, visit in self._visits.items()}
        return PortsView(ports, listeners, namespace_rows(self._visits, files, settings, (*ports, *listeners)))

    @property
    def programs(self) -> list[Program]:
        """The programs that visit namespaces."""
        return self._signal.programs

    def maps(self) -> dict[str, MapHealth]:
        """Return how full their maps are."""
        return self._signal.maps()

    def skipped(self) -> dict[str, int]:
        """Return how many namespaces were gone when they were to be visited."""
        return {"namespaces": self.vanished}

    def losses(self) -> dict[str, int]:
        """Return what found no place."""
        return {**self._signal.losses(), "ports_rows_full": self._table.left_out}

    def _files_from_outside(self) -> dict[int, NamespaceFiles]:
        """Read what /proc/PID shows of namespaces that can't be entered; their sysctls it doesn't."""
        return {
            netns: namespace_files.read(self._paths[netns].parents[1] / "net", sysctls=None)
            for netns in self.refused
            if netns in self._paths and self._paths[netns].parts[-2] == "ns"
        }

    def _visit(self, wanted: set[int], now: float) -> None:
        paths = self._paths = self._directory.paths(wanted, now)
        self._visits = {netns: visit for netns, visit in self._visits.items() if netns in paths}
        self.refused = {netns: reason for netns, reason in self.refused.items() if netns in paths}
        for netns in self._rounds.due(paths.keys(), self._table.pressing, wanted, now):
            if not self._rounds.may_go_on():
                return
            began = self._cpu_clock()
            visit, refused = self._signal.visit(netns, paths[netns])
            self._rounds.visited(netns, now, self._cpu_clock() - began)
            if visit is not None:
                self._visits[netns] = visit
                self._table.visited(netns, visit, now)
                self.refused.pop(netns, None)
            elif refused:
                self.refused[netns] = refused
            else:
                self.vanished += 1
                self._visits.pop(netns, None)
                self._directory.forget(netns)


def listener_rows(
    visits: Mapping[int, Visit], settings: Mapping[int, Settings], service_of: Callable[[int], Service]
) -> tuple[ListenerRow, ...]:
    """Build a row for each port that is listened on, in a fixed order."""
    rows = []
    for netns, visit in visits.items():
        somaxconn = settings[netns].somaxconn if netns in settings else None
        for listener in visit.listeners:
            service = service_of(listener.cgroup)
            rows.append(
                ListenerRow(
                    netns=netns,
                    service=service.name,
                    container=service.container,
                    endpoint=listener.endpoint,
                    backlog=listener.backlog,
                    limit=listener.limit,
                    somaxconn=somaxconn,
                    drops=listener.drops,
                )
            )
    return tuple(sorted(rows, key=lambda row: (row.netns, row.service, row.container, row.endpoint)))


def namespace_rows(
    visits: Mapping[int, Visit],
    files: Mapping[int, NamespaceFiles],
    settings: Mapping[int, Settings],
    rows_in: Iterable[PortsRow | ListenerRow],
) -> tuple[NamespaceRow, ...]:
    """Build a row for each namespace; ``rows_in`` say which services are in it."""
    services: dict[int, set[str]] = {}
    for row in rows_in:
        services.setdefault(row.netns, set()).add(row.service)
    rows = []
    for netns in sorted(visits.keys() | settings.keys() | files.keys()):
        visit, found, read = visits.get(netns), settings.get(netns), files.get(netns, UNREAD)
        rows.append(
            NamespaceRow(
                netns=netns,
                services=tuple(sorted(services.get(netns, ()))),
                range_low=found.low if found else None,
                range_high=found.high if found else None,
                reserved=found.reserved if found else None,
                bound=visit.bound if visit else None,
                time_wait=visit.time_wait if visit else read.time_wait,
                tw_reuse=found.tw_reuse if found else read.tw_reuse,
                somaxconn=found.somaxconn if found else read.somaxconn,
                listen_overflows=read.listen_overflows,
                listen_drops=read.listen_drops,
                syn_cookies=read.syn_cookies,
                conntrack_entries=read.conntrack_entries,
                conntrack_limit=read.conntrack_limit,
            )
        )
    return tuple(rows)
