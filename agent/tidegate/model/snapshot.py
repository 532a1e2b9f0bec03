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


class EndpointRow(msgspec.Struct, frozen=True, kw_only=True):
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
    open: int
    handshake: Distribution | None


class ServiceRow(msgspec.Struct, frozen=True, kw_only=True):
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
    open: int
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
