# SPDX-License-Identifier: Apache-2.0
"""One service that keeps a healthy device busy while the requests of others wait behind its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidegate.advice.rows import name_of
from tidegate.advice.slow_device import ID as SLOW_DEVICE
from tidegate.model.disk import ServiceDiskRow
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import NoisyNeighbour
from tidegate.model.window import DISKS, SERVICE_DISKS, DiskCounts, Window

ID = "noisy_neighbour"
_NOBODY = ("unknown", "other")


class _Load(NamedTuple):
    """What one service asked of one device in the window, and how long its requests took before and in it."""

    service: str
    requests: float
    bytes: float
    io: float
    io_before: float | None


def find(window: Window, limits: NoisyNeighbour) -> Iterator[Finding]:
    """Find devices that one service has to itself while others wait longer than they used to."""
    for device in dict.fromkeys(row.device for row in window.now.disks or ()):
        loads = _loads(window, device)
        total = sum(load.requests for load in loads)
        depth = sum(load.requests * load.io for load in loads) / window.seconds
        if not total or depth < limits.depth:
            continue
        # Who has most of the requests, or of the bytes: few large ones take as long as many small ones.
        noisy = max(loads, key=lambda load: max(load.requests / total, _share(load, loads)))
        share = max(noisy.requests / total, _share(noisy, loads))
        victims = [load for load in loads if load is not noisy and _waits(load, limits)]
        if share >= limits.share and victims and noisy.service not in _NOBODY:
            yield _finding(window, device, noisy, share, depth, victims)


def _share(load: _Load, loads: list[_Load]) -> float:
    total = sum(other.bytes for other in loads)
    return load.bytes / total if total else 0.0


def _waits(load: _Load, limits: NoisyNeighbour) -> bool:
    if load.requests < limits.requests or load.io < limits.io or load.service in _NOBODY:
        return False
    return load.io_before is None or load.io >= limits.slower * load.io_before


def _loads(window: Window, device: str) -> list[_Load]:
    found: dict[str, list[tuple[ServiceDiskRow, DiskCounts]]] = {}
    for row in window.now.service_disks or ():
        if row.device == device:
            found.setdefault(name_of(row), []).append((row, window.added(SERVICE_DISKS, row)))
    loads = []
    for service, rows in found.items():
        ended = sum(added.ended for _, added in rows)
        seconds = sum(added.io_seconds for _, added in rows)
        ended_before = sum(row.io.count for row, _ in rows) - ended
        before = sum(row.io.sum for row, _ in rows) - seconds
        if ended:
            loads.append(
                _Load(
                    service,
                    ended,
                    sum(added.bytes for _, added in rows),
                    seconds / ended,
                    before / ended_before if ended_before else None,
                )
            )
    return loads


def _finding(
    window: Window, device: str, noisy: _Load, share: float, depth: float, victims: list[_Load]
) -> Finding:
    worst = max(victims, key=lambda load: load.io)
    done = sum(window.added(DISKS, row).ended for row in window.now.disks or () if row.device == device)
    bound = max(int(noisy.bytes / window.seconds / 2), 1)
    evidence: dict[str, float | int | str] = {
        "share": round(share, 2),
        "requests_per_second": round(noisy.requests / window.seconds, 1),
        "bytes_per_second": int(noisy.bytes / window.seconds),
        "device_requests_per_second": round(done / window.seconds, 1),
        "mean_depth": round(depth, 1),
        "waiting": worst.service,
        "waiting_seconds": round(worst.io, 5),
        "window_seconds": round(window.seconds, 1),
    }
    if worst.io_before is not None:
        evidence["waiting_seconds_before"] = round(worst.io_before, 5)
    return Finding(
        id=ID,
        severity=Severity.WARNING,
        subject=f"{noisy.service} on {device}",
        summary=f"{noisy.service} makes {share:.0%} of the load on {device}; a request of {worst.service} takes "
        f"{worst.io * 1e3:.0f} ms behind it. The device is healthy.",
        evidence=evidence,
        confidence=Confidence.HIGH if worst.io_before is not None else Confidence.MEDIUM,
        refuted_by=f"the same time for {worst.service} when {noisy.service} is stopped: then it is the device "
        f"({SLOW_DEVICE})",
        remedies=(
            Remedy(
                what="Bound what it writes and reads to half of what it takes now.",
                where="this node, for a systemd unit; a container's engine has the same limit by another name",
                lines=(f"systemctl set-property {noisy.service} IOWriteBandwidthMax='/dev/{device} {bound}'",),
            ),
            Remedy(
                what="Give the one that waits a larger share (needs the scheduler bfq or blk-iocost).",
                where="this node",
                lines=(f"systemctl set-property {worst.service} IOWeight=1000",),
            ),
            Remedy(what="Or move one of the two to another device."),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=(noisy.service, *sorted(load.service for load in victims)),
    )
