# SPDX-License-Identifier: Apache-2.0
"""Which of two findings names the fault where both see it; the only place where that is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from tidegate.model.finding import Finding, Severity

Same = Callable[[Finding, Finding], bool]


class Precedence(NamedTuple):
    """``cause`` explains ``symptom`` where ``same`` holds, for the reason given."""

    cause: str
    symptom: str
    same: Same
    reason: str


def _service(a: Finding, b: Finding) -> bool:
    return not set(a.services).isdisjoint(b.services)


def _endpoint(a: Finding, b: Finding) -> bool:
    return not set(a.endpoints).isdisjoint(b.endpoints)


def _upstream(a: Finding, b: Finding) -> bool:
    return _service(a, b) and _endpoint(a, b)


def _port(a: Finding, b: Finding) -> bool:
    """Compare a listener with what clients of the same node call: addresses of this node are not known here."""
    return not _ports(a).isdisjoint(_ports(b))


def _ports(finding: Finding) -> set[str]:
    return {endpoint.rpartition(":")[2] for endpoint in finding.endpoints}


def _full(a: Finding, b: Finding) -> bool:
    return a.severity is Severity.CRITICAL and _service(a, b)


def _only_late(_: Finding, b: Finding) -> bool:
    return b.evidence.keys() <= {"ticks", "ticks_skipped", "window_seconds"}


PRECEDENCE = (
    Precedence(
        "ports_running_out", "missing_keepalive", _upstream,
        "ports run out because connections aren't kept; the urgent one has the keep-alive lines as first remedy",
    ),
    Precedence(
        "connection_pool", "missing_keepalive", _upstream,
        "connections carry one request because the pool's rule closes them",
    ),
    Precedence(
        "hanging_upstream", "connect_failures", _endpoint,
        "an endpoint that hangs fails in several ways at once",
    ),
    Precedence(
        "hanging_upstream", "retransmits", _endpoint,
        "segments to who doesn't answer are sent again",
    ),
    Precedence(
        "hanging_upstream", "missing_keepalive", _upstream,
        "a connection that is given up carries no second request",
    ),
    Precedence(
        "connect_failures", "retransmits", _endpoint,
        "an endpoint that went away leaves segments unanswered",
    ),
    Precedence(
        "accept_queue_overflow", "hanging_upstream", _port,
        "SYNs that a full queue drops look like a hanging upstream to clients on the same node",
    ),
    Precedence(
        "accept_queue_overflow", "connect_failures", _port,
        "with tcp_abort_on_overflow a full queue resets them",
    ),
    Precedence(
        "conntrack_near_limit", "hanging_upstream", _full,
        "a full table drops the first packet of each new connection",
    ),
    Precedence(
        "cpu_throttled", "accept_queue_overflow", _service,
        "who is stopped accepts too slowly",
    ),
    Precedence(
        "starved_sidecar", "cpu_throttled", _service, "it says the same, and who suffers",
    ),
    Precedence(
        "starved_sidecar", "memory_near_limit", _service, "it says the same, and who suffers",
    ),
    Precedence(
        "starved_sidecar", "oom_killed", _service, "it says the same, and who suffers",
    ),
    Precedence(
        "starved_sidecar", "noisy_neighbour", _service, "it says the same, and who suffers",
    ),
    Precedence(
        "starved_sidecar", "accept_queue_overflow", _service, "who is starved accepts too slowly",
    ),
    Precedence(
        "oom_killed", "memory_near_limit", _service,
        "who has been killed was at the limit",
    ),
    Precedence(
        "cpu_steal", "agent_losses", _only_late,
        "the agent misses ticks when the host takes its CPU",
    ),
)  # fmt: skip


def settle(findings: Iterable[Finding]) -> list[Finding]:
    """Leave out what another finding explains, and have that one say so; a cause may itself be explained."""
    left = list(findings)
    explained: dict[int, list[str]] = {}
    hidden: set[int] = set()
    for cause, symptom, same, _ in PRECEDENCE:
        for i, a in enumerate(left):
            for j, b in enumerate(left):
                if a.id == cause and b.id == symptom and j not in hidden and same(a, b):
                    hidden.add(j)
                    explained.setdefault(i, []).append(b.id)
    return [
        msgspec.structs.replace(f, evidence={**f.evidence, "explains": ", ".join(sorted(set(explained[i])))})
        if i in explained
        else f
        for i, f in enumerate(left)
        if i not in hidden
    ]
