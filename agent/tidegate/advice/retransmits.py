# SPDX-License-Identifier: Apache-2.0
"""Segments that are sent again to one endpoint, against all others: the endpoint or its path, or this node."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.advice.rows import Called, called
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import Retransmits
from tidegate.model.window import Window

ID = "retransmits"
_SEVERE = 0.05


def find(window: Window, limits: Retransmits) -> Iterator[Finding]:
    """Find endpoints to which a share of the segments is sent again, or the node if all are such.

    Of clients alone: what a server sends again says something of the paths to all of its clients.
    """
    judged = [endpoint for endpoint in called(window) if endpoint.sum("segments_sent") >= limits.segments]
    lossy = [e for e in judged if e.sum("retransmits") >= limits.retransmits and ratio_of([e]) >= limits.ratio]
    healthy = [endpoint for endpoint in judged if endpoint not in lossy]
    if len(lossy) > 1 and not healthy:
        yield _of_the_node(window, lossy)
        return
    for endpoint in lossy:
        rest = ratio_of(healthy) if healthy else None
        if rest is None or ratio_of([endpoint]) >= limits.factor * rest:
            yield _of_an_endpoint(window, endpoint, rest, len(healthy))


def ratio_of(endpoints: list[Called]) -> float:
    """Return the share of retransmits among the segments sent."""
    return sum(e.sum("retransmits") for e in endpoints) / sum(e.sum("segments_sent") for e in endpoints)


def _of_an_endpoint(window: Window, called: Called, rest: float | None, others: int) -> Finding:
    ratio, endpoint = ratio_of([called]), called.endpoint
    against = f"to the {others} other endpoints {rest:.2%}" if rest is not None else "no other to compare with"
    address = endpoint.rpartition(":")[0].strip("[]")
    evidence: dict[str, float | int | str] = {
        "retransmits": called.sum("retransmits"),
        "segments_sent": called.sum("segments_sent"),
        "ratio": round(ratio, 4),
        "endpoints_compared": others,
        "window_seconds": round(window.seconds, 1),
    }
    if rest is not None:
        evidence["ratio_elsewhere"] = round(rest, 5)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL if ratio >= _SEVERE else Severity.WARNING,
        subject=f"{', '.join(called.services)} -> {endpoint}",
        summary=f"{ratio:.1%} of the segments to {endpoint} are sent again, {against}: "
        "the endpoint or the path to it loses packets.",
        evidence=evidence,
        confidence=Confidence.HIGH if rest is not None else Confidence.LOW,
        refuted_by="a path that reorders packets without losing them (TCPDSACKRecv in nstat grows as fast)",
        remedies=(
            Remedy(
                what="Find the hop at which the loss begins, and see whether large packets alone are lost (MTU).",
                where="this node",
                lines=(f"mtr -n -T -P {endpoint.rpartition(':')[2]} -c 100 {address}", f"tracepath -n {address}"),
            ),
            Remedy(
                what="Look for drops at the endpoint's host: full rings, a policer, a CPU that does all softirqs.",
                where=f"the host of {endpoint}",
                lines=("ip -s -s link", "nstat -az TcpExtTCPBacklogDrop TcpExtTCPRcvQDrop IpInDiscards"),
            ),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=called.services,
        endpoints=(endpoint,),
    )


def _of_the_node(window: Window, lossy: list[Called]) -> Finding:
    ratio = ratio_of(lossy)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL if ratio >= _SEVERE else Severity.WARNING,
        subject="node",
        summary=f"{ratio:.1%} of the segments to all {len(lossy)} busy endpoints are sent again: "
        "this node, its interface or its first hop loses packets.",
        evidence={
            "retransmits": sum(e.sum("retransmits") for e in lossy),
            "segments_sent": sum(e.sum("segments_sent") for e in lossy),
            "ratio": round(ratio, 4),
            "endpoints_compared": len(lossy),
            "window_seconds": round(window.seconds, 1),
        },
        confidence=Confidence.MEDIUM,
        refuted_by="endpoints that all lie behind one distant link: then that link loses",
        remedies=(
            Remedy(
                what="Look for errors and drops at this node's interfaces and queues.",
                where="this node",
                lines=("ip -s -s link", "tc -s qdisc", "ethtool -S eth0 | grep -iE 'drop|err|miss'"),
            ),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=tuple(sorted({service for e in lossy for service in e.services})),
        endpoints=tuple(sorted(e.endpoint for e in lossy)),
    )
