# SPDX-License-Identifier: Apache-2.0
"""A client that opens a connection for each request to an upstream."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tidegate.advice.programs import keepalive, program_of
from tidegate.advice.rows import clients, name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import MissingKeepalive
from tidegate.model.snapshot import EndpointRow
from tidegate.model.window import ENDPOINTS, EndpointCounts, Window

ID = "missing_keepalive"
#: Of an endpoint whose share of a pool's traffic is smaller nothing is said.
_FEWEST = 3
#: By fewer exchanges a connection the upstream doesn't answer, which is another fault.
_ANSWERED = 0.8

_Pool = list[tuple[EndpointRow, EndpointCounts]]


def find(window: Window, limits: MissingKeepalive) -> Iterator[Finding]:
    """Find services whose connections to one upstream carry one exchange each.

    Endpoints of one port are one upstream: a pool.
    """
    pools: dict[tuple[str, str, str], _Pool] = {}
    for row in clients(window.now):
        if not row.connect_rate:
            continue
        added = window.added(ENDPOINTS, row)
        if _is_short(added, limits):
            port = row.endpoint.rpartition(":")[2]
            pools.setdefault((row.service, row.container, port), []).append((row, added))
    for pool in pools.values():
        rate = sum(row.connect_rate or 0.0 for row, _ in pool)
        if rate >= limits.connect_rate and sum(added.connects for _, added in pool) >= limits.connects:
            yield _finding(window, pool, rate)


def _is_short(added: EndpointCounts, limits: MissingKeepalive) -> bool:
    """Tell connections that have ended after one exchange from a pool that fills, and from failures."""
    if added.established < _FEWEST:
        return False
    per_connection = added.exchanges / added.established
    return _ANSWERED <= per_connection <= limits.exchanges and added.ended >= _ANSWERED * added.established


def _finding(window: Window, pool: _Pool, rate: float) -> Finding:
    row = pool[0][0]
    service, upstream = name_of(row), ", ".join(sorted(row.endpoint for row, _ in pool))
    established = sum(added.established for _, added in pool)
    exchanges = sum(added.exchanges for _, added in pool)
    ended = sum(added.ended for _, added in pool)
    lifetime = sum(added.lifetimes for _, added in pool) / ended
    remote = sum(added.closed_remote for _, added in pool) / ended
    program, version = program_of(window.now, row.service, row.container)
    remedies = keepalive(program, version, upstream, needed(rate, lifetime))
    if remote > 0.9:
        remedies = _of_the_upstream(program, remedies)
    who = f"{program} {version or ''}".strip()
    return Finding(
        id=ID,
        severity=Severity.WARNING,
        subject=f"{service} -> {upstream}",
        summary=f"{service}{f' ({who})' if who else ''} opens {rate:.0f} connections a second to {upstream}, "
        f"each for {exchanges / established:.1f} requests: keep-alive doesn't work.",
        evidence={
            "connects_per_second": round(rate, 1),
            "connects": int(sum(added.connects for _, added in pool)),
            "exchanges_per_connection": round(exchanges / established, 2),
            "lifetime_seconds": round(lifetime, 6),
            "open": sum(row.open for row, _ in pool),
            "closed_first_by_upstream_share": round(remote, 2),
            "window_seconds": round(window.seconds, 1),
            "program": who or "unknown",
        },
        confidence=Confidence.HIGH if program else Confidence.MEDIUM,
        refuted_by="requests that are rarer than the upstream's idle timeout, or a protocol that ends each "
        "connection by design (health checks, whois, HTTP/1.0)",
        remedies=remedies,
        runbook=f"docs/runbooks/{ID}.md",
        services=(service,),
        endpoints=tuple(sorted(row.endpoint for row, _ in pool)),
    )


def needed(rate: float, lifetime: float) -> int:
    """Return how many idle connections are enough: twice what is in use at a time (Little's law), 16 or more."""
    return int(2 ** math.ceil(math.log2(max(2 * rate * lifetime, 16))))


def _of_the_upstream(program: str, remedies: tuple[Remedy, ...]) -> tuple[Remedy, ...]:
    """Add that the upstream closes first; of nginx that is what it asked for, of others the likely cause."""
    server = Remedy(
        what="The upstream is the first to close: see that its own keep-alive is on (nginx: keepalive_timeout, "
        "Apache: KeepAlive On, gunicorn: --keep-alive with another worker class than sync).",
    )
    return (*remedies, server) if program in ("nginx", "") else (server, *remedies)
