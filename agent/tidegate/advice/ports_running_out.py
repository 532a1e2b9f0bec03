# SPDX-License-Identifier: Apache-2.0
"""Ephemeral ports towards one upstream that are used up, or soon will be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidegate.advice.programs import keepalive, program_of
from tidegate.advice.rows import clients, name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import PortsRunningOut
from tidegate.model.ports import NamespaceRow, PortsRow
from tidegate.model.snapshot import EndpointRow
from tidegate.model.window import ENDPOINTS, PORTS, Window

ID = "ports_running_out"
_URGENT = 120.0
_CONNECTIONS = 64
_WIDE = (1024, 65535)
#: By so much of what is used, ports wait rather than work.
_WAITING = 0.5


class _State(NamedTuple):
    """How ports stand: ``failed`` connects in the window, ``left`` seconds (0 is now, None not known)."""

    row: PortsRow
    failed: int
    left: float | None


def find(window: Window, limits: PortsRunningOut) -> Iterator[Finding]:
    """Find upstreams to which a service has no more local ports, now or within a time.

    One for each upstream of a network namespace, at who holds the most of its ports.
    """
    failing = {
        (row.service, row.container, row.endpoint): int(n)
        for row in clients(window.now)
        if row.failure_rate is not None and (n := window.added(ENDPOINTS, row).ports_exhausted)
    }
    groups: dict[tuple[int, str], list[PortsRow]] = {}
    for row in window.now.ports or ():
        groups.setdefault((row.netns, row.endpoint), []).append(row)
    seen: set[tuple[str, str, str]] = set()
    for rows in groups.values():
        seen |= {(row.service, row.container, row.endpoint) for row in rows}
        failed = sum(failing.get(key, 0) for key in {(r.service, r.container, r.endpoint) for r in rows})
        failed = max(failed, int(sum(window.added(PORTS, row).exhausted for row in rows)))
        row = max(rows, key=lambda row: row.used)
        state = _State(row, failed, 0.0 if failed else _left(rows, limits))
        if state.left is not None and state.left <= limits.time_left:
            yield _finding(window, state, rows)
    for endpoint in clients(window.now):
        key = (endpoint.service, endpoint.container, endpoint.endpoint)
        if key in failing and key not in seen:
            yield _only_failures(window, endpoint, failing[key])


def _left(rows: list[PortsRow], limits: PortsRunningOut) -> float | None:
    """Return the least time left.

    A forecast goes by the present rate, which exhaustion itself keeps down: what is nearly full is so now.
    """
    for row in rows:
        is_full = row.limit and max(row.used, row.shared) - row.reusable >= limits.used * row.limit
        if is_full and row.will_exhaust is not False:
            return 0.0
    times = [row.time_to_exhaustion for row in rows if row.will_exhaust and row.time_to_exhaustion is not None]
    return min(times, default=None)


def _finding(window: Window, state: _State, rows: list[PortsRow]) -> Finding:
    row, left = state.row, state.left or 0.0
    service = name_of(row)
    when = "now" if left == 0 else f"in {left / 60:.0f} min" if left >= 120 else f"in {left:.0f} s"
    limit = "?" if row.limit is None else str(row.limit)
    evidence: dict[str, float | int | str] = {
        "time_left_seconds": round(left, 1),
        "failed_connects": state.failed,
        "used": row.used,
        "limit": limit if row.limit is None else row.limit,
        "time_wait": row.time_wait,
        "reusable": row.reusable,
        "connects_per_second": round(row.connect_rate, 1),
        "source": row.source,
        "window_seconds": round(window.seconds, 1),
    }
    others = sorted({name_of(r) for r in rows} - {service})
    if others:
        evidence["shared_with"] = ", ".join(others)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL if left <= _URGENT else Severity.WARNING,
        subject=f"{service} -> {row.endpoint}",
        summary=f"{service} runs out of local ports to {row.endpoint} {when}: {row.used} of {limit} are used, "
        f"{row.time_wait} of them in TIME_WAIT"
        + (f"; {state.failed} connects found none." if state.failed else "."),
        evidence=evidence,
        confidence=Confidence.HIGH if state.failed else Confidence.MEDIUM,
        refuted_by="a burst that has ended: connects_per_second falls, and with it what is used",
        remedies=_remedies(window, row),
        runbook=f"docs/runbooks/{ID}.md",
        services=tuple(sorted({name_of(r) for r in rows})),
        endpoints=(row.endpoint,),
    )


def _only_failures(window: Window, row: EndpointRow, failed: int) -> Finding:
    """Say it by the failures alone, where ports are not counted."""
    service = name_of(row)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL,
        subject=f"{service} -> {row.endpoint}",
        summary=f"{service} has no local port left to {row.endpoint}: {failed} connects found none.",
        evidence={
            "failed_connects": failed,
            "connects": int(window.added(ENDPOINTS, row).connects),
            "window_seconds": round(window.seconds, 1),
        },
        confidence=Confidence.HIGH,
        refuted_by="sockets that were bound to one port by the application itself",
        remedies=(_keep(window, row.service, row.container, row.endpoint), _reuse(), _widen(None)),
        runbook=f"docs/runbooks/{ID}.md",
        services=(service,),
        endpoints=(row.endpoint,),
    )


def _remedies(window: Window, row: PortsRow) -> tuple[Remedy, ...]:
    """Return three, in order of worth: fewer connections, the same port sooner, more ports."""
    namespace = next((n for n in window.now.namespaces or () if n.netns == row.netns), None)
    if row.time_wait >= _WAITING * row.used:
        first = _keep(window, row.service, row.container, row.endpoint)
    else:
        first = Remedy(
            what="Most ports belong to connections that are open: bound the client's pool, and see that "
            "connections are closed when they are done (ss -tnp shows whose they are).",
        )
    reuses = namespace is not None and namespace.tw_reuse == 1
    return (first, _more_addresses(row) if reuses else _reuse(), _widen(namespace))


def _keep(window: Window, service: str, container: str, endpoint: str) -> Remedy:
    program, version = program_of(window.now, service, container)
    best = keepalive(program, version, endpoint, _CONNECTIONS)
    if not program:
        best = best[1:]
    return Remedy(
        what=f"Keep connections open instead of one for each request. {best[0].what}",
        where=best[0].where,
        lines=best[0].lines,
    )


def _reuse() -> Remedy:
    return Remedy(
        what="Let a new connection take a port that has waited a second, not 60 (needs TCP timestamps, which are "
        "on by default; for clients only).",
        where="the network namespace of the client, and /etc/sysctl.d/60-tidegate.conf",
        lines=("net.ipv4.tcp_tw_reuse = 1",),
    )


def _widen(namespace: NamespaceRow | None) -> Remedy:
    low, high = _WIDE
    known = namespace is not None and namespace.range_low is not None and namespace.range_high is not None
    if known and namespace is not None and (namespace.range_low or 0) <= low:
        return Remedy(
            what="The range is as wide as it gets: give the upstream a second address or port; each has ports "
            "of its own.",
        )
    return Remedy(
        what="Widen the range; set ports aside on which services listen.",
        where="the network namespace of the client, and /etc/sysctl.d/60-tidegate.conf",
        lines=(
            f"net.ipv4.ip_local_port_range = {low} {high}",
            "net.ipv4.ip_local_reserved_ports = 8080,9090  # the ports that listen there",
        ),
    )


def _more_addresses(row: PortsRow) -> Remedy:
    return Remedy(
        what="Connect from a second source address as well; each has ports of its own.",
        where=f"nginx: the location with proxy_pass to {row.endpoint}, and split_clients in http",
        lines=("proxy_bind $source_address;",),
    )
