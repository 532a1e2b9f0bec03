# SPDX-License-Identifier: Apache-2.0
"""Data that leaves the places where it must stay."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.advice.rows import clients, name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import Residency
from tidegate.model.snapshot import EndpointRow
from tidegate.model.window import ENDPOINTS, Window

ID = "residency"
_LISTED = 5
_HERE = ("127.", "[::1]")


def find(window: Window, limits: Residency) -> Iterator[Finding]:
    """Find services that send payload to endpoints outside of the allowed locations.

    Nothing where none are configured; what stays on the node has left no place.
    """
    if not limits.allowed:
        return
    outside: dict[tuple[str, str], list[tuple[EndpointRow, float]]] = {}
    for row in clients(window.now):
        if row.location in limits.allowed or row.endpoint.startswith(_HERE):
            continue
        added = window.added(ENDPOINTS, row)
        if added.sent_bytes:
            outside.setdefault((name_of(row), row.location), []).append((row, added.sent_bytes))
    for (service, location), rows in outside.items():
        yield _finding(window, service, location, rows, limits)


def _finding(
    window: Window, service: str, location: str, rows: list[tuple[EndpointRow, float]], limits: Residency
) -> Finding:
    rows.sort(key=lambda found: -found[1])
    endpoints = tuple(row.endpoint for row, _ in rows)
    named = ", ".join(endpoints[:_LISTED]) + (f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else "")
    where = location or "no configured location"
    remedies = [Remedy(what="Find out why it is called, and stop it or call an endpoint of an allowed location.")]
    if location:
        line = f"residency: {{allowed: [{', '.join((*limits.allowed, location))}]}}"
        remedies.append(Remedy(what="If it may be, allow it.", where="/etc/tidegate/tidegate.yaml", lines=(line,)))
    else:
        remedies.append(
            Remedy(
                what="If it is where it may be, say where these addresses are.",
                where="/etc/tidegate/tidegate.yaml, below locations",
                lines=tuple(f"{row.endpoint.rpartition(':')[0].strip('[]')}: NAME" for row, _ in rows[:_LISTED]),
            )
        )
    return Finding(
        id=ID,
        severity=Severity.CRITICAL if location else Severity.WARNING,
        subject=f"{service} -> {where}",
        summary=f"{service} sends data to {where} ({named}); allowed is {', '.join(limits.allowed)}.",
        evidence={
            "sent_bytes": int(sum(sent for _, sent in rows)),
            "endpoints": len(rows),
            "connects": int(sum(window.added(ENDPOINTS, row).connects for row, _ in rows)),
            "window_seconds": round(window.seconds, 1),
        },
        confidence=Confidence.HIGH if location else Confidence.LOW,
        refuted_by="a proxy or address translation on the way: the place is that of the address which is called",
        remedies=tuple(remedies),
        runbook=f"docs/runbooks/{ID}.md",
        services=(service,),
        endpoints=endpoints,
    )
