# SPDX-License-Identifier: Apache-2.0
"""What is wrong and what to change, from the last seconds of the node: a pure module for each kind of finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from tidegate.advice import (
    accept_queue_overflow,
    agent_losses,
    connect_failures,
    connection_pool,
    conntrack_near_limit,
    cpu_steal,
    cpu_throttled,
    distant_upstream,
    hanging_upstream,
    memory_near_limit,
    missing_keepalive,
    noisy_neighbour,
    oom_killed,
    ports_running_out,
    residency,
    retransmits,
    slow_device,
    starved_sidecar,
)
from tidegate.advice.precedence import settle
from tidegate.model.finding import Finding, Severity
from tidegate.model.limits import Advice, Residency
from tidegate.model.outliers import Member
from tidegate.model.window import Window

__all__ = ["RULES", "Rule", "advise", "conclude", "find"]

_NO_POOLS: Mapping[str, Member] = MappingProxyType({})
_ORDER = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)


class Rule(NamedTuple):
    """One kind of finding: its id, which is also that of its limits and its runbook, and how it is found."""

    id: str
    find: Callable[[Window, Any], Iterable[Finding]]


RULES = (
    Rule(missing_keepalive.ID, missing_keepalive.find),
    Rule(ports_running_out.ID, ports_running_out.find),
    Rule(retransmits.ID, retransmits.find),
    Rule(connect_failures.ID, connect_failures.find),
    Rule(hanging_upstream.ID, hanging_upstream.find),
    Rule(accept_queue_overflow.ID, accept_queue_overflow.find),
    Rule(conntrack_near_limit.ID, conntrack_near_limit.find),
    Rule(starved_sidecar.ID, starved_sidecar.find),
    Rule(slow_device.ID, slow_device.find),
    Rule(noisy_neighbour.ID, noisy_neighbour.find),
    Rule(cpu_steal.ID, cpu_steal.find),
    Rule(cpu_throttled.ID, cpu_throttled.find),
    Rule(memory_near_limit.ID, memory_near_limit.find),
    Rule(oom_killed.ID, oom_killed.find),
    Rule(distant_upstream.ID, distant_upstream.find),
    Rule(residency.ID, residency.find),
    Rule(connection_pool.ID, connection_pool.find),
    Rule(agent_losses.ID, agent_losses.find),
)


def find(
    window: Window, advice: Advice, residency: Residency, pools: Mapping[str, Member] = _NO_POOLS
) -> tuple[Finding, ...]:
    """Return all that is found in a window, also what one fault makes in several places."""
    limits = {**msgspec.structs.asdict(advice), "residency": residency, "connection_pool": pools}
    return tuple(
        finding for rule in RULES if rule.id not in advice.ignore for finding in rule.find(window, limits[rule.id])
    )


def conclude(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return each fault once, by its cause, the most severe first."""
    return tuple(sorted(settle(found), key=lambda f: (_ORDER.index(f.severity), f.id, f.subject)))


def advise(
    window: Window, advice: Advice, residency: Residency, pools: Mapping[str, Member] = _NO_POOLS
) -> tuple[Finding, ...]:
    """Return the findings of a window."""
    return conclude(find(window, advice, residency, pools))
