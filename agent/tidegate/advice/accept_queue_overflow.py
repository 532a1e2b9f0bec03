# SPDX-License-Identifier: Apache-2.0
"""A service that accepts connections more slowly than they come: its queue is full, and SYNs are dropped."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.advice.rows import name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import AcceptQueueOverflow
from tidegate.model.ports import ListenerRow
from tidegate.model.window import LISTENERS, NAMESPACES, Window

ID = "accept_queue_overflow"
_AMPLE = 4096


def find(window: Window, limits: AcceptQueueOverflow) -> Iterator[Finding]:
    """Find listening sockets that drop while their namespace counts queues that overflow."""
    overflows = {row.netns: window.added(NAMESPACES, row).listen_overflows for row in window.now.namespaces or ()}
    for row in window.now.listeners or ():
        drops = int(window.added(LISTENERS, row).drops)
        overflowed = overflows.get(row.netns)
        # A socket also drops SYNs for other reasons, as while its namespace is short of memory.
        is_full = row.backlog >= row.limit or (overflowed is not None and overflowed > 0)
        if drops >= limits.drops and is_full:
            yield _finding(window, row, drops, overflowed)


def _finding(window: Window, row: ListenerRow, drops: int, overflowed: float | None) -> Finding:
    service = name_of(row)
    evidence: dict[str, float | int | str] = {
        "drops": drops,
        "backlog": row.backlog,
        "limit": row.limit,
        "window_seconds": round(window.seconds, 1),
    }
    if row.somaxconn is not None:
        evidence["somaxconn"] = row.somaxconn
    if overflowed is not None:
        evidence["listen_overflows_in_namespace"] = int(overflowed)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL,
        subject=f"{service} {row.endpoint}",
        summary=f"{service} accepts too slowly at {row.endpoint}: {row.backlog} connections wait of at most "
        f"{row.limit}, and {drops} were dropped; clients see a second more, or time out.",
        evidence=evidence,
        confidence=Confidence.HIGH,
        refuted_by="a flood of SYNs from outside (SyncookiesSent in nstat grows, while accepts don't)",
        remedies=_remedies(row),
        runbook=f"docs/runbooks/{ID}.md",
        services=(service,),
        endpoints=(row.endpoint,),
    )


def _remedies(row: ListenerRow) -> tuple[Remedy, ...]:
    accept = Remedy(
        what="Find out why it doesn't accept: a process that is stopped, stuck or throttled, or too few workers. "
        "A longer queue helps against bursts alone.",
        where="this node",
        lines=(f"ss -ltnp 'sport = {row.endpoint}'",),
    )
    by_kernel = row.somaxconn is not None and row.limit >= row.somaxconn
    asked = Remedy(
        what=f"Ask for a longer queue than {row.limit} when listening.",
        where="the service's config; one of these",
        lines=(
            f"listen 80 backlog={_AMPLE};           # nginx",
            f"backlog {_AMPLE}                      # haproxy, in the frontend",
            f"tcp_backlog_size: {_AMPLE}            # envoy, in the listener",
            f"server.listen({{port, backlog: {_AMPLE}}})  // node",
        ),
    )
    allowed = Remedy(
        what=f"Allow longer queues than {row.somaxconn} in its network namespace; the service takes it when it "
        "listens anew.",
        where="the network namespace of the service, and /etc/sysctl.d/60-tidegate.conf",
        lines=(f"net.core.somaxconn = {_AMPLE}",),
    )
    return (accept, allowed, asked) if by_kernel else (accept, asked)
