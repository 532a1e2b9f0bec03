# SPDX-License-Identifier: Apache-2.0
"""What this host has, as facts; what follows from them is decided in tidegate.features."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import msgspec

from tidegate.model.snapshot import Node

#: Bits in CapEff, from include/uapi/linux/capability.h.
CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


class Hierarchy(msgspec.Struct, frozen=True, kw_only=True):
    """A hierarchy of cgroup v1: the number that the kernel gave it, and where it is mounted."""

    id: int
    mounted: str


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the host; ``cgroup2`` is where cgroup2 is mounted, ``hybrid`` that v1 controllers are too.

    ``block_hierarchy`` is the v1 hierarchy that block requests are charged to, None where that is cgroup2;
    ``io_controlled`` says whether services are charged and not only the root.
    """

    kernel: str
    euid: int
    capabilities: frozenset[str]
    btf: bool
    cgroup2: str | None
    hybrid: bool
    bpffs: bool
    unprivileged_bpf: str | None
    block_hierarchy: Hierarchy | None = None
    io_controlled: bool = True


def probe(root: Path = Path("/")) -> Host:
    """Gather the facts; ``root`` stands for / in tests."""
    mounts = _mounts(root / "proc/self/mountinfo")
    effective = _effective_capabilities(root / "proc/self/status")
    cgroup2 = next((point for kind, point in mounts if kind == "cgroup2"), None)
    blocks = hierarchy_of("blkio", root)
    controllers = _read(root / f"{cgroup2 or ''}/cgroup.subtree_control".lstrip("/")) or ""
    return Host(
        kernel=platform.release(),
        euid=os.geteuid(),
        capabilities=frozenset(name for name, bit in CAPABILITIES.items() if effective >> bit & 1),
        btf=(root / "sys/kernel/btf/vmlinux").exists(),
        cgroup2=cgroup2,
        hybrid=any(kind == "cgroup" for kind, _ in mounts),
        bpffs=any(kind == "bpf" for kind, _ in mounts),
        unprivileged_bpf=_read(root / "proc/sys/kernel/unprivileged_bpf_disabled"),
        block_hierarchy=blocks,
        io_controlled=blocks is not None or "io" in controllers.split(),
    )


def hierarchy_of(controller: str, root: Path = Path("/")) -> Hierarchy | None:
    """Return the v1 hierarchy that has a controller and is mounted, if any."""
    # cgroups(7): /proc/PID/cgroup has ID:CONTROLLERS:PATH, with the ID 0 for cgroup2.
    rows = [line.split(":", 2) for line in (_read(root / "proc/self/cgroup") or "").splitlines()]
    number = next((int(row[0]) for row in rows if len(row) == 3 and controller in row[1].split(",")), None)
    mounted = _mount_of(controller, root / "proc/self/mountinfo")
    return None if number is None or mounted is None else Hierarchy(id=number, mounted=mounted)


def node(root: Path = Path("/")) -> Node:
    """Describe the machine; uptime in seconds."""
    uptime = _read(root / "proc/uptime")
    return Node(
        name=socket.gethostname(),
        kernel=platform.release(),
        cpus=os.cpu_count() or 1,
        uptime=float(uptime.split()[0]) if uptime else 0.0,
    )


def statistics_enabled(root: Path = Path("/")) -> bool:
    """Say whether the administrator has the kernel time all BPF programs."""
    return _read(root / "proc/sys/kernel/bpf_stats_enabled") == "1"


def _mounts(path: Path) -> list[tuple[str, str]]:
    # proc_pid_mountinfo(5): field 5 is the mount point, octal-escaped; the type follows " - ".
    mounts = []
    for line in (_read(path) or "").splitlines():
        left, _, right = line.partition(" - ")
        mounts.append((right.split()[0], _unescaped(left.split()[4])))
    return mounts


def _mount_of(controller: str, path: Path) -> str | None:
    # The options of the super block, at the end of a line, name a v1 hierarchy's controllers.
    for line in (_read(path) or "").splitlines():
        left, _, right = line.partition(" - ")
        kind, *_, options = right.split()
        if kind == "cgroup" and controller in options.split(","):
            return _unescaped(left.split()[4])
    return None


def _unescaped(point: str) -> str:
    return point.encode().decode("unicode_escape")


def _effective_capabilities(path: Path) -> int:
    for line in (_read(path) or "").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace").strip()
    except OSError:
        return None
