# SPDX-License-Identifier: Apache-2.0
"""Connects to one endpoint that fail, by reason."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.advice.rows import Called, called
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import ConnectFailures
from tidegate.model.window import Window

ID = "connect_failures"
#: Those that the endpoint or the path answers with; silence is a hanging upstream, a lack of ports is this node's.
_REASONS = ("refused", "unreachable", "denied", "reset", "other")
_ALL = 0.5


def find(window: Window, limits: ConnectFailures) -> Iterator[Finding]:
    """Find endpoints to which a share of the connects of all services fails."""
    for endpoint in called(window):
        failed = {reason: n for reason in _REASONS if (n := endpoint.sum(reason))}
        total, connects = sum(failed.values()), endpoint.sum("connects")
        if total >= limits.failures and connects and total / connects >= limits.share:
            yield _finding(window, endpoint, failed, total / connects)


def _finding(window: Window, called: Called, failed: dict[str, int], share: float) -> Finding:
    endpoint = called.endpoint
    worst = max(failed, key=lambda reason: failed[reason])
    meaning, remedy = _of(worst, endpoint)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL if share >= _ALL else Severity.WARNING,
        subject=f"{', '.join(called.services)} -> {endpoint}",
        summary=f"{share:.0%} of the connects to {endpoint} fail, most of them {worst}: {meaning}.",
        evidence={
            **failed,
            "connects": called.sum("connects"),
            "failed_share": round(share, 3),
            "window_seconds": round(window.seconds, 1),
        },
        confidence=Confidence.HIGH,
        refuted_by="an endpoint that is probed on purpose while it is down (health checks of a standby)",
        remedies=(
            remedy,
            Remedy(what="Meanwhile take the endpoint out of the pools of its clients."),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=called.services,
        endpoints=(endpoint,),
    )


def _of(reason: str, endpoint: str) -> tuple[str, Remedy]:
    """Return what a reason means and what to do about it."""
    address, _, port = endpoint.rpartition(":")
    address = address.strip("[]")
    match reason:
        case "refused":
            return "the host answers, but nobody listens on the port", Remedy(
                what="See whether the server runs and listens on this address and port; start or mend it.",
                where=f"the host of {endpoint}",
                lines=(f"ss -ltnp 'sport = :{port}'",),
            )
        case "unreachable":
            return "a router, or a firewall's reject, says that the host can't be reached", Remedy(
                what="Follow the path to the hop that answers, and see whether the host is up.",
                where="this node",
                lines=(f"ip route get {address}", f"tracepath -n {address}"),
            )
        case "denied":
            return "a firewall or a policy forbids it", Remedy(
                what="Allow this client in the firewall on the path, or in the NetworkPolicy of the upstream.",
                where="this node, then the upstream's host",
                lines=("nft list ruleset",),
            )
        case "reset":
            return "the server accepts, then resets before it has sent a byte", Remedy(
                what="Read the server's log: it crashes, is at its limit of connections, or expects another "
                "protocol (TLS) on this port.",
                where=f"the host of {endpoint}",
                lines=(f"ss -tn 'sport = :{port}' | wc -l",),
            )
    return "for a reason that has no name here", Remedy(
        what="See what errno the client's connect() returns.",
        where="this node",
        lines=("strace -f -e trace=connect -p PID",),
    )
