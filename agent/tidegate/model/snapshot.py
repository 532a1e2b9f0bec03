# SPDX-License-Identifier: Apache-2.0
"""What the outputs show: one immutable picture of the node, in the shape of its JSON.

Counts are totals since the agent started, rates are per second over the last interval, times are seconds.
A value that was not measured is None, never 0.
"""

from __future__ import annotations

import msgspec

from tidegate.model.fields import Role


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram: percentiles of the last interval (None without samples), the rest since the start.

    ``buckets`` are cumulative counts at the bounds that the field declares, the last at +Inf: ``count``.
    """

    p50: float | None
    p90: float | None
    p99: float | None
    count: int
    sum: float
    buckets: tuple[int, ...]


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What the connections of a row did, whichever side opened them.

    ``closes`` counts by who was first, ``retransmits`` segments by what caused them. ``retransmit_ratio`` is the
    share of the segments sent in the interval that were retransmits, SYN-ACKs left out, which no connection
    sends; None if nothing was sent.
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
    """What one service does to one endpoint (client) or at one port of its own (server)."""

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


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that was measured."""

    name: str
    kernel: str
    cpus: int
    uptime: float


class MapHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How full a BPF map is: entries at the last read, its limit, and bytes charged by the kernel."""

    entries: int | None
    limit: int | None
    bytes: int | None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent says of itself; counts since the start.

    ``events_lost`` counts by ring buffer what found no place in it; ``losses`` by kind what could not be told
    apart or tracked; ``late_seconds`` is how late the last tick began, ``tick_seconds`` how long it took.
    """

    version: str
    pid: int
    loader: str
    maps: dict[str, MapHealth]
    events_lost: dict[str, int]
    losses: dict[str, int]
    rows: int
    rows_limit: int
    late_seconds: float
    tick_seconds: float


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured between two samples; the parts that are None were not measured."""

    time: float
    interval: float
    node: Node
    services: tuple[ServiceRow, ...]
    endpoints: tuple[EndpointRow, ...]
    ports: None = None
    disks: None = None


class View(Snapshot, frozen=True, kw_only=True):
    """The snapshot with what the agent concluded from it: all that an output may show."""

    sources: None = None
    pools: None = None
    findings: None = None
    health: Health
