# SPDX-License-Identifier: Apache-2.0
"""The last seconds of the node: the view at their end, and what was counted since their beginning."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from tidegate.model.disk import DiskRow, ServiceDiskRow
from tidegate.model.ports import ListenerRow, NamespaceRow, PortsRow
from tidegate.model.resources import ResourceRow
from tidegate.model.snapshot import EndpointRow, Node, View

R = TypeVar("R")
T = TypeVar("T")
C = TypeVar("C", bound=tuple[Any, ...])
Key = tuple[str | int, ...]
#: The counts of one row, packed: 8 bytes each.
Packed = bytes

#: Why connects fail, as the TCP signal says it.
REASONS = ("refused", "timeout", "unreachable", "ports_exhausted", "reset", "aborted", "denied", "other")


class EndpointCounts(NamedTuple):
    """What is counted of an endpoint; failures by their reasons, ``retransmits`` without SYNs and SYN-ACKs."""

    connects: float
    established: float
    exchanges: float
    closed_local: float
    closed_remote: float
    sent_bytes: float
    received_bytes: float
    segments_sent: float
    retransmits: float
    ended: float
    lifetimes: float
    rtts: float
    rtt_seconds: float
    refused: float
    timeout: float
    unreachable: float
    ports_exhausted: float
    reset: float
    aborted: float
    denied: float
    other: float

    @property
    def lifetime(self) -> float | None:
        """Mean seconds from established to closed."""
        return self.lifetimes / self.ended if self.ended else None

    @property
    def rtt(self) -> float | None:
        """Mean of the smoothed round-trip times."""
        return self.rtt_seconds / self.rtts if self.rtts else None


class ResourceCounts(NamedTuple):
    """What is counted of a service's CPU and memory."""

    throttled_seconds: float | None
    cpu_seconds: float | None


class KillCounts(NamedTuple):
    """Processes of a service that were killed for want of memory."""

    oom_kills: float


class ListenerCounts(NamedTuple):
    """What a listening socket has dropped."""

    drops: float


class NamespaceCounts(NamedTuple):
    """What a network namespace has dropped because queues of its listeners were full."""

    listen_overflows: float | None


class PortsCounts(NamedTuple):
    """Connects that found no port."""

    exhausted: float


class DiskCounts(NamedTuple):
    """Requests of a device, or of a service to a device, and the seconds that they took there."""

    requests: float
    bytes: float
    ended: float
    io_seconds: float

    @property
    def io(self) -> float | None:
        """Mean seconds of a request."""
        return self.io_seconds / self.ended if self.ended else None


class NodeCounts(NamedTuple):
    """What is counted of the whole node."""

    steal_seconds: float | None


class AgentCounts(NamedTuple):
    """The agent's own ticks, and those that were left out."""

    ticks: float
    ticks_skipped: float


class Counted(Generic[R, C]):
    """How the counts of a table's rows are kept.

    ``since_start`` says that they begin at 0 when the agent starts; else the first sight of a row is its
    beginning, since what the kernel counted before is nobody's concern.
    """

    def __init__(
        self,
        name: str,
        rows: Callable[[View], Iterable[R] | None],
        key: Callable[[R], Key],
        counts: Callable[[R], C],
        *,
        since_start: bool,
    ) -> None:
        self.name, self.rows, self.key, self.counts, self.since_start = name, rows, key, counts, since_start

    def pack(self, row: R) -> Packed:
        """Return a row's counts in little memory; what is not measured becomes NaN."""
        numbers = [math.nan if n is None else n for n in self.counts(row)]
        return struct.pack(f"{len(numbers)}d", *numbers)


def _endpoint(row: EndpointRow) -> EndpointCounts:
    failures = row.failures or {}
    again = row.retransmits
    return EndpointCounts(
        row.connects or 0,
        row.established,
        row.exchanges,
        row.closes.get("local", 0),
        row.closes.get("remote", 0),
        row.sent_bytes,
        row.received_bytes,
        row.segments_sent,
        again.get("fast", 0) + again.get("timeout", 0) + again.get("probe", 0),
        row.duration.count,
        row.duration.sum,
        row.rtt.count,
        row.rtt.sum,
        *[failures.get(reason, 0) for reason in REASONS],
    )


def _disk(row: DiskRow | ServiceDiskRow) -> DiskCounts:
    return DiskCounts(row.requests, row.bytes, row.io.count, row.io.sum)


def _steal(node: Node) -> NodeCounts:
    return NodeCounts(None if node.resources is None else node.resources.steal_seconds)


ENDPOINTS: Counted[EndpointRow, EndpointCounts] = Counted(
    "endpoints",
    lambda view: view.endpoints,
    lambda row: (row.service, row.container, row.role, row.endpoint),
    _endpoint,
    since_start=True,
)
RESOURCES: Counted[ResourceRow, ResourceCounts] = Counted(
    "resources",
    lambda view: view.resources,
    lambda row: (row.service, row.container),
    lambda row: ResourceCounts(row.throttled_seconds, row.cpu_seconds),
    since_start=False,
)
KILLS: Counted[ResourceRow, KillCounts] = Counted(
    "kills",
    lambda view: view.resources,
    lambda row: (row.service, row.container),
    lambda row: KillCounts(row.oom_kills or 0),
    since_start=True,
)
LISTENERS: Counted[ListenerRow, ListenerCounts] = Counted(
    "listeners",
    lambda view: view.listeners,
    lambda row: (row.netns, row.service, row.container, row.endpoint),
    lambda row: ListenerCounts(row.drops),
    since_start=False,
)
NAMESPACES: Counted[NamespaceRow, NamespaceCounts] = Counted(
    "namespaces",
    lambda view: view.namespaces,
    lambda row: (row.netns,),
    lambda row: NamespaceCounts(row.listen_overflows),
    since_start=False,
)
PORTS: Counted[PortsRow, PortsCounts] = Counted(
    "ports",
    lambda view: view.ports,
    lambda row: (row.netns, row.service, row.container, row.source, row.endpoint),
    lambda row: PortsCounts(row.exhausted),
    since_start=True,
)
DISKS: Counted[DiskRow, DiskCounts] = Counted(
    "disks",
    lambda view: view.disks,
    lambda row: (row.device, row.operation),
    _disk,
    since_start=True,
)
SERVICE_DISKS: Counted[ServiceDiskRow, DiskCounts] = Counted(
    "service_disks",
    lambda view: view.service_disks,
    lambda row: (row.service, row.container, row.device, row.operation),
    _disk,
    since_start=True,
)
NODE: Counted[Node, NodeCounts] = Counted(
    "node", lambda view: (view.node,), lambda _: (), _steal, since_start=False
)
AGENT: Counted[View, AgentCounts] = Counted(
    "agent",
    lambda view: (view,),
    lambda _: (),
    lambda view: AgentCounts(view.health.ticks, view.health.ticks_skipped),
    since_start=True,
)
TABLES: tuple[Counted[Any, Any], ...] = (
    ENDPOINTS, RESOURCES, KILLS, LISTENERS, NAMESPACES, PORTS, DISKS, SERVICE_DISKS, NODE, AGENT,
)  # fmt: skip


class Point(NamedTuple):
    """The counts of all rows at one moment: by table, then by row; the agent's losses by kind."""

    tables: dict[str, dict[Key, Packed]]
    losses: dict[str, int]


class Window:
    """``seconds`` of the node that end with the view ``now``; ``begin`` are the counts at their beginning."""

    def __init__(self, now: View, begin: Point, seconds: float) -> None:
        self.now, self.seconds = now, seconds
        self._begin = begin
        self._added: dict[tuple[str, Key], Any] = {}
        self._made: dict[str, Any] = {}

    def added(self, table: Counted[R, C], row: R) -> C:
        """Return what was added to the counts of a row of ``now``; None for what was not measured."""
        key = table.key(row)
        place = (table.name, key)
        found = self._added.get(place)
        if found is None:
            found = self._added[place] = self._growth(table, key, row)
        result: C = found
        return result

    def once(self, name: str, make: Callable[[Window], T]) -> T:
        """Return what ``make`` makes of this window, made once however many ask for it."""
        if name not in self._made:
            self._made[name] = make(self)
        result: T = self._made[name]
        return result

    def lost(self) -> dict[str, int]:
        """Return what the agent has lost meanwhile, by kind; only what it has."""
        now = self.now.health.losses | self.now.health.events_lost
        grown = {kind: n - self._begin.losses.get(kind, 0) for kind, n in now.items()}
        return {kind: n for kind, n in grown.items() if n > 0}

    def _growth(self, table: Counted[R, C], key: Key, row: R) -> C:
        counts = table.counts(row)
        packed = self._begin.tables.get(table.name, {}).get(key)
        if packed is None:
            if table.since_start:
                return counts
            packed = table.pack(row)
        before = struct.unpack(f"{len(counts)}d", packed)
        if table.since_start:  # all of them are measured; this is done for each of 1,000 rows a second
            grown: list[float] = list(map(operator.sub, counts, before))
            # A row that went and came again has begun anew.
            return counts if min(grown) < 0 else made(counts, grown)
        values = [None if n is None or math.isnan(b) else n - b for n, b in zip(counts, before, strict=True)]
        restarted = any(value is not None and value < 0 for value in values)
        return counts if restarted else made(counts, values)


def made(like: C, values: Iterable[float | None]) -> C:
    """Return counts of the same kind."""
    result: C = type(like)._make(values)  # type: ignore[attr-defined]
    return result
