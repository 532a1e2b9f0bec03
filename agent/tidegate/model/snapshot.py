# SPDX-License-Identifier: Apache-2.0
"""What the outputs show: one immutable picture of the node, in the shape of its JSON.

Counts are totals since the agent started, rates are per second over the last interval, times are seconds.
A value that was not measured is None, never 0.
"""

from __future__ import annotations

import msgspec

from tidegate.model.breaker import Circuit, PoolRow, circuits
from tidegate.model.disk import DiskRow, ServiceDiskRow
from tidegate.model.driver import DriverRow, Updates, updates
from tidegate.model.fields import Role
from tidegate.model.finding import Finding
from tidegate.model.histogram import Distribution
from tidegate.model.limiter import Limiter, SourceRow
from tidegate.model.ports import ListenerRow, NamespaceRow, PortsRow
from tidegate.model.resources import NodeResources, ResourceRow


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What the connections of a row did, whichever side opened them.

    ``exchanges`` are requests with their responses, at most: in each connection the smaller of the data segments
    sent and received. ``closes`` counts by who was first, ``retransmits`` segments by what caused them.
    ``retransmit_ratio`` is the share of the segments sent in the interval that were retransmits, SYN-ACKs left
    out, which no connection sends; None if nothing was sent.
    """

    open: int
    closes: dict[str, int]
    duration: Distribution
    rtt: Distribution
    sent_bytes: int
    sent_rate: float
    received_bytes: int
    received_rate: float
    segments_sent: int
    segments_received: int
    exchanges: int
    exchange_rate: float
    retransmits: dict[str, int]
    retransmit_rate: float
    retransmit_ratio: float | None
    resets_sent: int
    resets_received: int

    @property
    def resets(self) -> dict[str, int]:
        """Resets by direction."""
        return {"sent": self.resets_sent, "received": self.resets_received}


class EndpointRow(Traffic, frozen=True, kw_only=True):
    """What one service does to one endpoint (client) or at one port of its own (server).

    ``rtt_min`` is the shortest round-trip time of the last five minutes, ``location`` the
    configured place of a client's endpoint, else empty. ``responses`` by the class of their status, ``response``
    the time to their first byte: of endpoints of pools alone, where they speak HTTP/1 in the clear.
    """

    service: str
    container: str
    role: Role
    endpoint: str
    name: str
    connects: int | None
    connect_rate: float | None
    established: int
    accepts: int | None
    accept_rate: float | None
    failures: dict[str, int] | None
    failure_rate: float | None
    handshake: Distribution | None
    rtt_min: float | None
    location: str
    responses: dict[str, int] | None = None
    response: Distribution | None = None
    requests_per_connection: float | None = None


class ServiceRow(Traffic, frozen=True, kw_only=True):
    """The sum of a service's endpoint rows."""

    service: str
    container: str
    endpoints: int
    connects: int
    connect_rate: float
    accepts: int
    accept_rate: float
    failures: dict[str, int]
    failure_rate: float
    handshake: Distribution


class LocationRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one service does to all endpoints in one configured place.

    ``rtt_min`` is the mean of their shortest round trips by exchanges, ``waiting`` how many callers at a time wait
    for round trips: exchanges a second times that. Counts are those of the endpoints that have a row.
    """

    service: str
    container: str
    location: str
    endpoints: int
    exchanges: int
    exchange_rate: float
    rtt_min: float | None
    waiting: float | None
    sent_bytes: int
    sent_rate: float
    received_bytes: int
    received_rate: float


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that was measured."""

    name: str
    kernel: str
    cpus: int
    uptime: float
    resources: NodeResources | None = None


class MapHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How full a BPF map is: entries at the last read, its limit, and bytes charged by the kernel."""

    entries: int | None
    limit: int | None
    bytes: int | None


class ProgramHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel says of a BPF program: runs and their time, where it counts them, and calls left out.

    ``misses`` are calls that the kernel left out because the program was running on that CPU already.
    """

    runs: int | None
    seconds: float | None
    misses: int | None


class Ticks(msgspec.Struct, frozen=True, kw_only=True):
    """How the agent keeps its interval: ticks that began, that began late, that were left out, since the start.

    ``late_seconds`` is how late the last tick began.
    """

    taken: int = 0
    late: int = 0
    skipped: int = 0
    late_seconds: float = 0.0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent says of itself; counts since the start.

    ``events_lost`` counts by ring buffer what found no place in it; ``losses`` by kind what could not be told
    apart or tracked; ``skipped`` by kind what went away while it was read, or can't be read.
    ``statistics_refused`` is why the kernel does not time the programs although the config asks for it.
    ``late_seconds`` is how late the last tick began, ``tick_seconds`` how long its measurement took.
    ``cpu`` is the share of one CPU that the agent's process took in the last interval, ``cpu_seconds`` what it
    took in all; ``program_cpu`` is the share that its programs took in the kernel.
    """

    version: str
    pid: int
    loader: str
    maps: dict[str, MapHealth]
    programs: dict[str, ProgramHealth]
    statistics_refused: str | None
    events_lost: dict[str, int]
    losses: dict[str, int]
    skipped: dict[str, int] = {}
    rows: int
    rows_limit: int
    ticks: int
    ticks_late: int
    ticks_skipped: int
    late_seconds: float
    tick_seconds: float
    cpu: float | None
    cpu_seconds: float
    program_cpu: float | None
    rss_bytes: int | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured between two samples; the parts that are None were not measured."""

    time: float
    interval: float
    node: Node
    services: tuple[ServiceRow, ...]
    endpoints: tuple[EndpointRow, ...]
    resources: tuple[ResourceRow, ...] | None = None
    locations: tuple[LocationRow, ...] | None = None
    ports: tuple[PortsRow, ...] | None = None
    listeners: tuple[ListenerRow, ...] | None = None
    namespaces: tuple[NamespaceRow, ...] | None = None
    disks: tuple[DiskRow, ...] | None = None
    service_disks: tuple[ServiceDiskRow, ...] | None = None


class View(Snapshot, frozen=True, kw_only=True):
    """The snapshot with what the agent concluded from it: all that an output may show."""

    limiter: Limiter | None = None
    sources: tuple[SourceRow, ...] | None = None
    pools: tuple[PoolRow, ...] | None = None
    findings: tuple[Finding, ...] | None = None
    health: Health

    @property
    def circuits(self) -> tuple[Circuit, ...]:
        """The endpoints of all pools."""
        return circuits(self.pools or ())

    @property
    def drivers(self) -> tuple[DriverRow, ...]:
        """The drivers of all pools."""
        return tuple(driver for pool in self.pools or () for driver in pool.drivers)

    @property
    def pool_updates(self) -> tuple[Updates, ...]:
        """Their updates."""
        return updates(self.drivers)
