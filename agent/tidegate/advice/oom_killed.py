# SPDX-License-Identifier: Apache-2.0
"""A service of which the kernel has killed processes for want of memory."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.advice.containers import more_memory
from tidegate.advice.memory_near_limit import stalls
from tidegate.advice.rows import name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import OomKilled
from tidegate.model.resources import ResourceRow
from tidegate.model.window import KILLS, Window

ID = "oom_killed"


def find(window: Window, limits: OomKilled) -> Iterator[Finding]:
    """Find services of which so many processes were killed in the window."""
    for row in window.now.resources or ():
        kills = int(window.added(KILLS, row).oom_kills)
        if kills >= limits.kills:
            yield _finding(window, row, kills)


def _finding(window: Window, row: ResourceRow, kills: int) -> Finding:
    service = name_of(row)
    evidence: dict[str, float | int | str] = {
        "kills": kills,
        "kills_since_start": row.oom_kills or kills,
        "window_seconds": round(window.seconds, 1),
        **stalls(row),
    }
    if row.memory_limit is None:
        remedies: tuple[Remedy, ...] = (
            Remedy(
                what="It has no limit of its own: the node, or a cgroup above, ran out of memory. See who took "
                "it, and give that one a limit.",
                where="this node",
                lines=("journalctl -k -g 'Out of memory|oom-kill'", "systemd-cgtop -m"),
            ),
        )
    else:
        evidence["limit_bytes"] = row.memory_limit
        remedies = (
            more_memory(row, 2 * row.memory_limit, "Double the limit, then set it by what it really holds."),
            Remedy(
                what="Or bound what it keeps: caches, buffers, workers (JVM: -XX:MaxRAMPercentage=70; Go: "
                "GOMEMLIMIT; Node: --max-old-space-size).",
            ),
        )
    return Finding(
        id=ID,
        severity=Severity.CRITICAL,
        subject=service,
        summary=f"The kernel has killed {kills} of the processes of {service}: it wanted more memory than "
        + (f"its {row.memory_limit >> 20} MiB." if row.memory_limit is not None else "there was."),
        evidence=evidence,
        confidence=Confidence.HIGH,
        refuted_by="a process that was meant to be killed (a worker that is replaced when it has grown)",
        remedies=remedies,
        runbook=f"docs/runbooks/{ID}.md",
        services=(service,),
    )
