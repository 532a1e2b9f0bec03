# SPDX-License-Identifier: Apache-2.0
"""CPU time that the hypervisor gives to others: nothing on this node can mend that."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import CpuSteal
from tidegate.model.window import NODE, Window

ID = "cpu_steal"
_SEVERE = 0.3


def find(window: Window, limits: CpuSteal) -> Iterator[Finding]:
    """Find a share of the node's CPU time that was stolen, over the whole window."""
    stolen = window.added(NODE, window.now.node).steal_seconds
    if stolen is None or window.seconds < limits.observed:
        return
    cpus = window.now.node.cpus
    share = stolen / (window.seconds * cpus)
    resources = window.now.node.resources
    if share < limits.share or resources is None:
        return
    evidence: dict[str, float | int | str] = {
        "steal_share": round(share, 3),
        "steal_seconds": round(stolen, 2),
        "cpus": cpus,
        "window_seconds": round(window.seconds, 1),
    }
    if resources.cpu is not None:
        evidence["cpus_used"] = round(resources.cpu, 2)
    yield Finding(
        id=ID,
        severity=Severity.CRITICAL if share >= _SEVERE else Severity.WARNING,
        subject="node",
        summary=f"The hypervisor gives {share:.0%} of this node's CPU time to others: everything on it takes "
        "longer, and no application is to blame. Ask the host, not the app.",
        evidence=evidence,
        confidence=Confidence.HIGH,
        refuted_by="a guest that is limited on purpose (burstable instance types out of credits): then it is its "
        "size, not a neighbour",
        remedies=(
            Remedy(
                what="Ask who runs the host for less overcommitment or a dedicated CPU, with these numbers.",
                where="this node, to show it",
                lines=("vmstat 1 10   # column st", "mpstat -P ALL 1 10   # column %steal"),
            ),
            Remedy(
                what="On a burstable instance: look at its CPU credits, and take a type without them.",
            ),
            Remedy(
                what="Meanwhile move what is sensitive to delay to another node.",
            ),
        ),
        runbook=f"docs/runbooks/{ID}.md",
    )
