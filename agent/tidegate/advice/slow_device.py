# SPDX-License-Identifier: Apache-2.0
"""A block device that takes long for each request although little is asked of it."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.model.disk import DiskRow
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import SlowDevice
from tidegate.model.window import DISKS, DiskCounts, Window

ID = "slow_device"
_SEVERE = 5

_Operations = list[tuple[DiskRow, DiskCounts]]


def find(window: Window, limits: SlowDevice) -> Iterator[Finding]:
    """Find devices that are slow by themselves; of those that stand on each other, the one at the bottom."""
    slow: dict[str, _Operations] = {}
    for row in window.now.disks or ():
        added = window.added(DISKS, row)
        if _is_slow(row, added, window.seconds, limits):
            slow.setdefault(row.device, []).append((row, added))
    for device, operations in slow.items():
        if operations[0][0].parent not in slow:
            yield _finding(window, device, operations, limits)


def limit_of(row: DiskRow, limits: SlowDevice) -> float:
    """Return from how many seconds on a request is slow; a device that doesn't say is taken for one that turns."""
    return limits.flash if row.rotational is False else limits.rotational


def _is_slow(row: DiskRow, added: DiskCounts, seconds: float, limits: SlowDevice) -> bool:
    """Tell a device that is slow by itself from one that is busy: that one gets much done meanwhile."""
    if added.ended < limits.requests or added.io is None or added.io < limit_of(row, limits):
        return False
    healthy = limits.healthy_flash if row.rotational is False else limits.healthy_rotational
    return added.ended / seconds < healthy and added.bytes / seconds < limits.healthy_bytes


def _finding(window: Window, device: str, operations: _Operations, limits: SlowDevice) -> Finding:
    row, worst = max(operations, key=lambda found: found[1].io or 0)
    io = worst.io or 0.0
    evidence: dict[str, float | int | str] = {
        f"{r.operation}_seconds": round(added.io or 0, 5) for r, added in operations
    }
    evidence |= {
        "requests": int(sum(added.ended for _, added in operations)),
        "requests_per_second": round(sum(added.ended for _, added in operations) / window.seconds, 1),
        "bytes_per_second": int(sum(added.bytes for _, added in operations) / window.seconds),
        "errors": sum(r.errors for r, _ in operations),
        "window_seconds": round(window.seconds, 1),
    }
    waiting = sorted(
        {
            f"{r.service}/{r.container}" if r.container else r.service
            for r in window.now.service_disks or ()
            if r.device == device
        }
    )
    if waiting:
        evidence["services"] = ", ".join(waiting)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL if io >= _SEVERE * limit_of(row, limits) else Severity.WARNING,
        subject=device,
        summary=f"{device} takes {io * 1e3:.0f} ms for a {row.operation} although it does only "
        f"{evidence['requests_per_second']} requests a second: the device is slow, not its users.",
        evidence=evidence,
        confidence=Confidence.HIGH if row.rotational is not None else Confidence.MEDIUM,
        refuted_by="a limit on purpose (io.max, IOPS of a cloud volume), or a host whose CPU is stolen "
        "meanwhile (cpu_steal)",
        remedies=(
            Remedy(
                what="See whether the device reports errors or wear, and whether a cloud volume is at its limit "
                "of IOPS or throughput.",
                where="this node",
                lines=(
                    f"smartctl -a /dev/{device}",
                    f"journalctl -k -g '{device}'",
                    "iostat -x 1 5",
                ),
            ),
            Remedy(what="Move what must answer fast (logs of a proxy, a database's log) to another device."),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=tuple(waiting),
    )
