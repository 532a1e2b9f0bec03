# SPDX-License-Identifier: Apache-2.0
"""From what the kernel tells of endpoints and of this node to what the engine takes; pure."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from statistics import median

from tidegate.breaker.evidence import Evidence, Saw
from tidegate.kernel import endpoints as kernel
from tidegate.kernel.layouts import PoolEvidence, TcpFailure
from tidegate.model.breaker import Vitals, Way
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, View

#: Segments of an endpoint in an interval, from which on its share of retransmits tells something.
_SEGMENTS = 20
_ERRORS = {
    TcpFailure.REFUSED: errno.ECONNREFUSED,
    TcpFailure.TIMEOUT: errno.ETIMEDOUT,
    TcpFailure.UNREACHABLE: errno.EHOSTUNREACH,
    TcpFailure.PORTS_EXHAUSTED: errno.EADDRNOTAVAIL,
    TcpFailure.RESET: errno.ECONNRESET,
    TcpFailure.ABORTED: 0,
    TcpFailure.DENIED: errno.EPERM,
}
#: Envoy's own answers, with which it says that the endpoint behind it is not to blame.
_OVERLOADED, _NO_UPSTREAM = b"x-envoy-overloaded:", b"no healthy upstream"


def evidence_of(told: kernel.Evidence, pool: str, endpoint: str) -> Evidence:
    """Return what the kernel told of an endpoint as the table of whose failure it is takes it."""
    age = told.age_ns / 1e9
    match told.evidence:
        case PoolEvidence.CONNECT:
            # What has no name is nobody's failure: any errno that the table doesn't have.
            error = _ERRORS.get(TcpFailure(told.code), told.error or errno.EIO)
            return Evidence(
                pool, endpoint, Saw.CONNECT_ENDED, error=error, age=age, syn_retransmits=told.retransmits
            )
        case PoolEvidence.RESPONSE:
            return Evidence(
                pool, endpoint, Saw.ANSWERED, age=age, status=told.code, by_proxy=is_proxys_own(told.head)
            )
        case PoolEvidence.SILENCE:
            return Evidence(pool, endpoint, Saw.WAITING, age=age, unanswered=True)
        case _:
            # A connection that is closed instead of an answer is as good as reset.
            return Evidence(pool, endpoint, Saw.CLOSED, error=told.error or errno.EPIPE, age=age, unanswered=True)


def is_proxys_own(head: bytes) -> bool:
    """Tell whether a response of a proxy between says that the proxy itself made it."""
    text = head.lower()
    return _OVERLOADED in text or _NO_UPSTREAM in text


def vitals_of(view: View, before: View | None) -> Vitals:
    """Return how this node was in the interval that a view is of, ``before`` being the last one."""
    resources = view.node.resources
    pressure = (resources.pressure if resources else None) or {}
    shares = {name: pressure.get(name) for name in ("cpu", "memory", "io")}
    cpu, memory, io = shares["cpu"], shares["memory"], shares["io"]
    return Vitals(
        steal=resources.steal if resources else None,
        cpu_pressure=cpu.some if cpu else None,
        memory_pressure=memory.full if memory else None,
        io_pressure=io.full if io else None,
        lost_events=_lost(view) - _lost(before) if before else None,
        ports_exhausted=_exhausted(view) - _exhausted(before) if before else None,
        retransmits=median_retransmits(view.endpoints),
    )


def median_retransmits(rows: Iterable[EndpointRow]) -> float | None:
    """Return the median share of segments sent again, of endpoints that were sent enough to tell."""
    found = [
        row.retransmit_ratio
        for row in rows
        if row.role is Role.CLIENT and row.retransmit_ratio is not None and row.segments_sent >= _SEGMENTS
    ]
    return median(found) if found else None


def _lost(view: View) -> int:
    return view.health.losses.get("pool_events", 0)


def _exhausted(view: View) -> int:
    return sum(row.failures["ports_exhausted"] for row in view.services)


class Ways:
    """The ways to endpoints since the last sweep of their pool, from the rows of views."""

    def __init__(self) -> None:
        self._segments: dict[str, tuple[int, int]] = {}
        self._now: dict[str, tuple[int, int]] = {}
        self._rtt: dict[str, float | None] = {}

    def read(self, rows: Iterable[EndpointRow], wanted: frozenset[str]) -> None:
        """Take the rows of a view."""
        sums: dict[str, list[int]] = {}
        for row in rows:
            if row.role is Role.CLIENT and row.endpoint in wanted:
                found = sums.setdefault(row.endpoint, [0, 0])
                found[0] += row.segments_sent
                found[1] += sum(count for kind, count in row.retransmits.items() if kind != "synack")
                if row.rtt.p50 is not None:
                    self._rtt[row.endpoint] = row.rtt.p50
        self._now = {endpoint: (sent, again) for endpoint, (sent, again) in sums.items()}

    def since_last(self, endpoints: Iterable[str]) -> dict[str, Way]:
        """Return the ways to these since the last time."""
        found = {}
        for endpoint in endpoints:
            sent, again = self._now.get(endpoint, (0, 0))
            sent_before, again_before = self._segments.get(endpoint, (0, 0))
            self._segments[endpoint] = sent, again
            if sent >= sent_before:
                found[endpoint] = Way(
                    self._rtt.pop(endpoint, None), sent - sent_before, max(again - again_before, 0)
                )
        return found
