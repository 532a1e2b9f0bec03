# SPDX-License-Identifier: Apache-2.0
"""An upstream that doesn't answer: neither to SYNs, or, once connected, to requests."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.advice.programs import program_of
from tidegate.advice.rows import Called, called
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import HangingUpstream
from tidegate.model.window import Window

ID = "hanging_upstream"
_ALL = 0.5
#: Of the connections that were closed unanswered, so many by the client: it gave up.
_GIVEN_UP = 0.8
_UNANSWERED = 0.2


def find(window: Window, limits: HangingUpstream) -> Iterator[Finding]:
    """Find endpoints at which connects time out, or connections end without an answer after a long wait."""
    for endpoint in called(window):
        silent = endpoint.sum("timeout") + endpoint.sum("aborted")
        connects = endpoint.sum("connects")
        if silent >= limits.failures and connects and silent / connects >= limits.share:
            yield _unconnected(window, endpoint, silent, connects)
        elif _is_unanswered(endpoint, limits):
            yield _unanswered(window, endpoint)


def _is_unanswered(called: Called, limits: HangingUpstream) -> bool:
    ended = called.sum("ended")
    return (
        ended >= limits.failures
        and called.sum("sent_bytes") > 0
        and called.sum("exchanges") <= _UNANSWERED * called.sum("established")
        and called.sum("closed_local") >= _GIVEN_UP * ended
        and called.total("lifetimes") / ended >= limits.patience
    )


def _unconnected(window: Window, called: Called, silent: int, connects: int) -> Finding:
    share = silent / connects
    return _finding(
        called,
        Severity.CRITICAL if share >= _ALL else Severity.WARNING,
        f"{share:.0%} of the connects to {called.endpoint} get no answer: its host is down, a firewall drops "
        "them in silence, or its accept queue is full.",
        {
            "timeout": called.sum("timeout"),
            "aborted": called.sum("aborted"),
            "connects": connects,
            "unanswered_share": round(share, 3),
            "window_seconds": round(window.seconds, 1),
        },
        Confidence.HIGH,
        "clients that give up sooner than a round trip takes, or connect to several addresses and drop the "
        "slower ones (happy eyeballs)",
        _timeouts(window, called),
    )


def _unanswered(window: Window, called: Called) -> Finding:
    ended = called.sum("ended")
    waited = called.total("lifetimes") / ended
    return _finding(
        called,
        Severity.CRITICAL,
        f"{called.endpoint} accepts connections but doesn't answer: clients gave up {ended} after {waited:.1f} s.",
        {
            "ended": ended,
            "closed_first_by_client": called.sum("closed_local"),
            "answered": called.sum("exchanges"),
            "waited_seconds": round(waited, 3),
            "open": sum(row.open for row, _ in called.rows),
            "window_seconds": round(window.seconds, 1),
        },
        Confidence.MEDIUM,
        "a protocol in which the upstream sends nothing (log shipping, metrics)",
        _timeouts(window, called),
    )


def _finding(
    called: Called,
    severity: Severity,
    summary: str,
    evidence: dict[str, float | int | str],
    confidence: Confidence,
    refuted_by: str,
    remedies: tuple[Remedy, ...],
) -> Finding:
    return Finding(
        id=ID,
        severity=severity,
        subject=f"{', '.join(called.services)} -> {called.endpoint}",
        summary=summary,
        evidence=evidence,
        confidence=confidence,
        refuted_by=refuted_by,
        remedies=remedies,
        runbook=f"docs/runbooks/{ID}.md",
        services=called.services,
        endpoints=(called.endpoint,),
    )


_NGINX = Remedy(
    what="Wait less, and try another server.",
    where="nginx: the location",
    lines=(
        "proxy_connect_timeout 2s;",
        "proxy_read_timeout 10s;",
        "proxy_next_upstream error timeout;",
        "proxy_next_upstream_tries 2;",
    ),
)
_HAPROXY = Remedy(
    what="Wait less, check the servers, and try another one.",
    where="haproxy: the backend",
    lines=("timeout connect 2s", "timeout server 10s", "option redispatch", "default-server check"),
)
_ENVOY = Remedy(
    what="Wait less, and eject who fails.",
    where="envoy: the cluster",
    lines=("connect_timeout: 2s", "outlier_detection: {consecutive_local_origin_failure: 3}"),
)
_PROXIES = {"nginx": _NGINX, "haproxy": _HAPROXY, "envoy": _ENVOY}


def _timeouts(window: Window, called: Called) -> tuple[Remedy, ...]:
    """Return how clients stop waiting for one that hangs, and where to look."""
    row = called.rows[0][0]
    program, _ = program_of(window.now, row.service, row.container)
    look = Remedy(
        what="See where it hangs: no line means that nobody listens, a first number above 0 that nobody accepts.",
        where=f"the host of {called.endpoint}",
        lines=(f"ss -ltn 'sport = :{called.endpoint.rpartition(':')[2]}'",),
    )
    limit = _PROXIES.get(program) or Remedy(
        what="Give the client a timeout for the connect and one for the answer, so that one upstream can't hold "
        "all of its workers, and take the endpoint out of the pool.",
    )
    return (limit, look)
