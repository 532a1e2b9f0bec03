# SPDX-License-Identifier: Apache-2.0
"""A container that is stopped again and again by its CPU limit."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.advice.containers import more_cpu
from tidegate.advice.rows import name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import CpuThrottled
from tidegate.model.resources import ResourceRow
from tidegate.model.window import RESOURCES, Window

ID = "cpu_throttled"
_SEVERE = 0.5


def find(window: Window, limits: CpuThrottled) -> Iterator[Finding]:
    """Find services that were stopped for a share of the window."""
    for row in window.now.resources or ():
        stopped = stopped_seconds(window, row)
        if stopped is not None and stopped >= max(limits.seconds, limits.share * window.seconds):
            yield _finding(window, row, stopped)


def stopped_seconds(window: Window, row: ResourceRow) -> float | None:
    """Return how long a service's threads were stopped; of several threads it may be longer than the window."""
    if row.cpu_limit is None:
        return None
    return window.added(RESOURCES, row).throttled_seconds


def wanted(window: Window, row: ResourceRow, stopped: float) -> float:
    """Return how many CPUs it would take unstopped, and some room."""
    used = window.added(RESOURCES, row).cpu_seconds or 0.0
    return 1.25 * max((used + stopped) / window.seconds, row.cpu_limit or 0.0)


def _finding(window: Window, row: ResourceRow, stopped: float) -> Finding:
    service, share = name_of(row), stopped / window.seconds
    evidence: dict[str, float | int | str] = {
        "throttled_seconds": round(stopped, 2),
        "throttled_share": round(share, 3),
        "cpu_limit": round(row.cpu_limit or 0.0, 3),
        "window_seconds": round(window.seconds, 1),
    }
    if row.throttled is not None:
        evidence["throttled_periods_share"] = round(row.throttled, 3)
    if row.cpu is not None:
        evidence["cpus_used"] = round(row.cpu, 3)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL if share >= _SEVERE else Severity.WARNING,
        subject=service,
        summary=f"{service} was stopped for {stopped:.1f} of {window.seconds:.0f} s by its limit of "
        f"{row.cpu_limit:g} CPUs: requests wait until the next period of 100 ms.",
        evidence=evidence,
        confidence=Confidence.HIGH,
        refuted_by="work that nobody waits for (a batch job that the limit is meant for)",
        remedies=(
            more_cpu(row, wanted(window, row, stopped), "Raise the limit to what it would take, and some room."),
            Remedy(
                what="Or run as many threads as the limit has CPUs: a runtime that counts the node's CPUs uses "
                "up a period at once.",
                where="the container's environment; one of these",
                lines=(
                    f"GOMAXPROCS={max(round(row.cpu_limit or 1), 1)}",
                    f"JAVA_TOOL_OPTIONS=-XX:ActiveProcessorCount={max(round(row.cpu_limit or 1), 1)}",
                    f"worker_processes {max(round(row.cpu_limit or 1), 1)};  # nginx.conf",
                ),
            ),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=(service,),
    )
