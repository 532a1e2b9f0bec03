# SPDX-License-Identifier: Apache-2.0
"""An upstream far away that is called many times for one request: the round trips add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidegate.advice.rows import clients, name_of
from tidegate.model.fields import Role
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import DistantUpstream
from tidegate.model.snapshot import EndpointRow
from tidegate.model.window import ENDPOINTS, EndpointCounts, Window

ID = "distant_upstream"


class _Far(NamedTuple):
    """The distant endpoints of one service in one place, and the requests that the service served meanwhile."""

    rows: list[tuple[EndpointRow, EndpointCounts]]
    served: float

    @property
    def calls(self) -> float:
        return sum(added.exchanges for _, added in self.rows)

    @property
    def waited(self) -> float:
        """The seconds that round trips alone take, at the shortest ever seen."""
        return sum(added.exchanges * (row.rtt_min or 0) for row, added in self.rows)


def find(window: Window, limits: DistantUpstream) -> Iterator[Finding]:
    """Find services that spend much of a request, or of all time, on round trips to one place or endpoint."""
    far: dict[tuple[str, str, str], list[tuple[EndpointRow, EndpointCounts]]] = {}
    for row in clients(window.now):
        if row.rtt_min is not None and row.rtt_min >= limits.rtt:
            key = (row.service, row.container, row.location or row.endpoint)
            far.setdefault(key, []).append((row, window.added(ENDPOINTS, row)))
    for (service, container, place), rows in far.items():
        found = _Far(rows, _served(window, service, container))
        if found.served:
            is_much = found.waited / found.served >= limits.added
        else:
            is_much = found.waited / window.seconds >= limits.waiting
        if is_much and found.calls >= limits.exchanges:
            yield _finding(window, place, found)


def _served(window: Window, service: str, container: str) -> float:
    rows = (
        row
        for row in window.now.endpoints
        if row.role is Role.SERVER and (row.service, row.container) == (service, container)
    )
    return sum(window.added(ENDPOINTS, row).exchanges for row in rows)


def _finding(window: Window, place: str, far: _Far) -> Finding:
    service = name_of(far.rows[0][0])
    endpoints = tuple(sorted(row.endpoint for row, _ in far.rows))
    rtt = far.waited / far.calls
    smoothed = [added.rtt for _, added in far.rows if added.rtt is not None]
    evidence: dict[str, float | int | str] = {
        "calls": int(far.calls),
        "rtt_min_seconds": round(min(row.rtt_min or 0 for row, _ in far.rows), 4),
        "waited_seconds": round(far.waited, 2),
        "waited_share": round(far.waited / window.seconds, 2),
        "window_seconds": round(window.seconds, 1),
    }
    if smoothed:
        evidence["rtt_smoothed_seconds"] = round(sum(smoothed) / len(smoothed), 4)
    if far.served:
        calls = far.calls / far.served
        said = f"{calls:.0f} calls for each request at {rtt * 1e3:.0f} ms each: {calls * rtt * 1e3:.0f} ms"
        evidence |= {
            "requests_served": int(far.served),
            "calls_per_request": round(calls, 1),
            "added_seconds_per_request": round(calls * rtt, 3),
        }
    else:
        said = f"{far.calls / window.seconds:.0f} calls a second at {rtt * 1e3:.0f} ms each"
    return Finding(
        id=ID,
        severity=Severity.WARNING,
        subject=f"{service} -> {place}",
        summary=f"{service} calls {place} {said} of round trips alone, without the upstream's own work.",
        evidence=evidence,
        confidence=Confidence.MEDIUM,
        refuted_by="calls that run side by side, not one after the other; or a protocol whose messages aren't "
        "requests with answers",
        remedies=(
            Remedy(what="Ask once for many things: a batch call, or a join on the far side."),
            Remedy(what="Make calls that don't need each other's answer side by side."),
            Remedy(what="Keep answers that change rarely in a cache on this side."),
            Remedy(what="Move one of the two to where the other is."),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=(service,),
        endpoints=endpoints,
    )
