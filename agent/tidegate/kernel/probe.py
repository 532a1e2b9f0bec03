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


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the host; ``cgroup2`` is where cgroup2 is mounted, ``hybrid`` that v1 controllers are too."""

    kernel: str
    euid: int
    capabilities: frozenset[str]
    btf: bool
    cgroup2: str | None
    hybrid: bool
    bpffs: bool
    unprivileged_bpf: str | None


def probe(root: Path = Path("/")) -> Host:
    """Gather the facts; ``root`` stands for / in tests."""
    mounts = _mounts(root / "proc/self/mountinfo")
    effective = _effective_capabilities(root / "proc/self/status")
    return Host(
        kernel=platform.release(),
        euid=os.geteuid(),
        capabilities=frozenset(name for name, bit in CAPABILITIES.items() if effective >> bit & 1),
        btf=(root / "sys/kernel/btf/vmlinux").exists(),
        cgroup2=next((point for kind, point in mounts if kind == "cgroup2"), None),
        hybrid=any(kind == "cgroup" for kind, _ in mounts),
        bpffs=any(kind == "bpf" for kind, _ in mounts),
        unprivileged_bpf=_read(root / "proc/sys/kernel/unprivileged_bpf_disabled"),
    )


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
        point = left.split()[4].encode().decode("unicode_escape")
        mounts.append((right.split()[0], point))
    return mounts


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
