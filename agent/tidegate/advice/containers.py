# SPDX-License-Identifier: Apache-2.0
"""How the limits of a service are raised, by who set them: Kubernetes, Docker, systemd, or the cgroup itself."""

from __future__ import annotations

import re

from tidegate.model.finding import Remedy
from tidegate.model.resources import ResourceRow

_MEBIBYTE = 1 << 20


def more_cpu(row: ResourceRow, cpus: float, what: str) -> Remedy:
    """Return how a service may take ``cpus``."""
    milli = max(round(cpus * 1000, -1), 10)
    where, lines = _place(
        row,
        kubernetes=(f"limits: {{cpu: {milli:.0f}m}}",),
        docker=f"--cpus {milli / 1000:g}",
        systemd=f"CPUQuota={milli / 10:g}%",
        cgroup=f'echo "{milli * 100:.0f} 100000" > cpu.max',
    )
    return Remedy(what=what, where=where, lines=lines)


def more_memory(row: ResourceRow, bytes_: int, what: str) -> Remedy:
    """Return how a service may have so much memory."""
    mebibytes = -(-bytes_ // _MEBIBYTE)
    where, lines = _place(
        row,
        kubernetes=(f"limits: {{memory: {mebibytes}Mi}}", f"requests: {{memory: {mebibytes}Mi}}"),
        docker=f"--memory {mebibytes}m --memory-swap {mebibytes}m",
        systemd=f"MemoryMax={mebibytes}M",
        cgroup=f"echo {mebibytes * _MEBIBYTE} > memory.max",
    )
    return Remedy(what=what, where=where, lines=lines)


def _place(
    row: ResourceRow, *, kubernetes: tuple[str, ...], docker: str, systemd: str, cgroup: str
) -> tuple[str, tuple[str, ...]]:
    if "kubepods" in row.cgroup:
        where = f"the pod template: containers[name: {row.container or '...'}].resources"
        return where, kubernetes
    if re.search(r"/docker[-/]", row.cgroup):
        return "this node, and what starts the container", (f"docker update {docker} {row.service}",)
    unit = row.cgroup.rpartition("/")[2]
    if unit.endswith((".service", ".scope", ".slice")):
        return "this node", (f"systemctl set-property {unit} {systemd}",)
    return f"the directory of cgroup {row.cgroup}", (cgroup,)
