# SPDX-License-Identifier: Apache-2.0
"""A container that will soon be killed for want of memory."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.advice.containers import more_memory
from tidegate.advice.rows import name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import MemoryNearLimit
from tidegate.model.resources import ResourceRow
from tidegate.model.window import Window

ID = "memory_near_limit"


def find(window: Window, limits: MemoryNearLimit) -> Iterator[Finding]:
    """Find services whose memory, without what the kernel can take back, is near their limit."""
    for row in window.now.resources or ():
        share = used_share(row)
        if share is not None and share >= limits.used:
            yield _finding(row, share)


def used_share(row: ResourceRow) -> float | None:
    """Return which share of its limit a service holds; None without a limit."""
    if row.memory_working_set is None or not row.memory_limit:
        return None
    return row.memory_working_set / row.memory_limit


def stalls(row: ResourceRow) -> dict[str, float | int | str]:
    """Return the share of time in which it waited for memory, as evidence."""
    pressure = (row.pressure or {}).get("memory")
    if pressure is None or pressure.some is None:
        return {}
    return {"memory_pressure_share": round(pressure.some, 3)}


def _finding(row: ResourceRow, share: float) -> Finding:
    service, held, limit = name_of(row), row.memory_working_set or 0, row.memory_limit or 0
    return Finding(
        id=ID,
        severity=Severity.WARNING,
        subject=service,
        summary=f"{service} holds {held >> 20} of {limit >> 20} MiB that it may have ({share:.0%}): at the limit "
        "the kernel kills it, and before that takes away the cache of its files.",
        evidence={"working_set_bytes": held, "limit_bytes": limit, "used_share": round(share, 3), **stalls(row)},
        confidence=Confidence.MEDIUM,
        refuted_by="a heap of fixed size that is meant to fill the limit, or files in tmpfs that are deleted soon",
        remedies=(
            more_memory(row, held * 3 // 2, "Raise the limit to half more than it holds."),
            Remedy(
                what="Or bound what it keeps: caches, buffers, workers (JVM: -XX:MaxRAMPercentage=70; Go: "
                "GOMEMLIMIT; Node: --max-old-space-size).",
            ),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=(service,),
    )
