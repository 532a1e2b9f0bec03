# SPDX-License-Identifier: Apache-2.0
"""Limits of a pool's connections beside what the node really does: exceeded, or the cause of churn themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tidegate.advice.programs import program_of
from tidegate.advice.rows import clients, name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.outliers import ConnectionPool, Member
from tidegate.model.snapshot import EndpointRow
from tidegate.model.window import ENDPOINTS, EndpointCounts, Window

ID = "connection_pool"
#: Fewer connections in the window say nothing, and churn begins at so many a second.
_FEWEST, _CHURN = 20, 10.0
#: A connection that has carried this share of the requests that it may is closed by the limit.
_LIMITED = 0.8


class _Use(NamedTuple):
    """What one service does with one pool."""

    pool: str
    limits: ConnectionPool
    rows: list[tuple[EndpointRow, EndpointCounts]]

    @property
    def service(self) -> str:
        return name_of(self.rows[0][0])

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(sorted(row.endpoint for row, _ in self.rows))

    @property
    def open(self) -> int:
        return sum(row.open for row, _ in self.rows)

    def total(self, count: str) -> float:
        return float(sum(getattr(added, count) for _, added in self.rows))


def find(window: Window, pools: Mapping[str, Member]) -> Iterator[Finding]:
    """Find services that exceed a pool's ``connection_pool``, or that it makes reconnect all the time."""
    limits = {
        endpoint: (name, member.connection_pool)
        for name, member in pools.items()
        if member.connection_pool is not None
        for endpoint in member.endpoints
    }
    if not limits:
        return
    uses: dict[tuple[str, str, str], _Use] = {}
    for row in clients(window.now):
        if row.endpoint in limits:
            pool, limit = limits[row.endpoint]
            use = uses.setdefault((row.service, row.container, pool), _Use(pool, limit, []))
            use.rows.append((row, window.added(ENDPOINTS, row)))
    for use in uses.values():
        yield from _connections(window, use)
        yield from _requests(window, use)


def _connections(window: Window, use: _Use) -> Iterator[Finding]:
    most = use.limits.max_connections
    if most is None or use.open <= most:
        return
    summary = f"{use.service} has {use.open} connections to {use.pool} open; its rule allows {most}."
    remedies = _kept(window, use, f"max_conns={most}", "of each server of the upstream block, divided among them")
    yield _finding(window, use, "max_connections", summary, {"open": use.open, "max_connections": most}, remedies)


def _requests(window: Window, use: _Use) -> Iterator[Finding]:
    most = use.limits.max_requests_per_connection
    established, exchanges = use.total("established"), use.total("exchanges")
    if most is None:
        return
    evidence: dict[str, float | int | str] = {
        "exchanges": int(exchanges),
        "established": int(established),
        "open": use.open,
        "max_requests_per_connection": most,
    }
    # Whatever was open in the window is still open or has ended: together they may have carried so many.
    allowed = most * (use.open + use.total("ended"))
    if exchanges > allowed:
        summary = (
            f"{use.service} sends {use.pool} more than {most} requests a connection, which its rule allows: "
            f"{exchanges:.0f} in {window.seconds:.0f} s, where all connections together may carry {allowed:.0f}."
        )
        remedies = _kept(window, use, f"keepalive_requests {most};", "in the upstream block")
        yield _finding(window, use, "max_requests_per_connection", summary, evidence, remedies)
        return
    rate = established / window.seconds if window.seconds else 0.0
    if established >= _FEWEST and rate >= _CHURN and exchanges >= _LIMITED * most * established:
        summary = (
            f"{use.service} opens {rate:.0f} connections a second to {use.pool} because its rule closes each "
            f"after {most} requests."
        )
        remedies = (
            Remedy(
                what="Raise the limit, or leave it out: without it, connections last as long as they are used.",
                where=f"the DestinationRule of {use.pool}, connectionPool.http",
                lines=("maxRequestsPerConnection: 1000",),
            ),
        )
        evidence["connects_per_second"] = round(rate, 1)
        yield _finding(window, use, "churn", summary, evidence, remedies)


def _kept(window: Window, use: _Use, line: str, where: str) -> tuple[Remedy, ...]:
    """Return how the limit is kept: Tidegate only compares, the proxy has to keep it."""
    row = use.rows[0][0]
    program, _ = program_of(window.now, row.service, row.container)
    whose = Remedy(
        what="Have the proxy keep the limit, or change it: Tidegate compares, and closes no connection."
    )
    if program not in ("nginx", ""):
        return (whose,)
    return (Remedy(what=whose.what, where=f"nginx: {where}", lines=(line,)),)


def _finding(
    window: Window,
    use: _Use,
    what: str,
    summary: str,
    evidence: dict[str, float | int | str],
    remedies: tuple[Remedy, ...],
) -> Finding:
    return Finding(
        id=ID,
        severity=Severity.WARNING,
        subject=f"{use.service} -> {use.pool}: {what}",
        summary=summary,
        evidence=evidence | {"window_seconds": round(window.seconds, 1)},
        confidence=Confidence.HIGH if what == "max_connections" else Confidence.MEDIUM,
        refuted_by="several proxies or workers in one service, each with a limit of its own; requests are told by "
        "the direction of bytes, which HTTP/2 and pipelining mix",
        remedies=remedies,
        runbook=f"docs/runbooks/{ID}.md",
        services=(use.service,),
        endpoints=use.endpoints,
    )
