# SPDX-License-Identifier: Apache-2.0
"""What this host has, as facts; what follows from them is decided in tidegate.features."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
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


#: The v1 controllers that matter here, as options of their mounts.
_V1 = frozenset({"cpu", "cpuacct", "memory", "blkio"})
#: What hypervisors write into the DMI table, as the begin of its vendor or product.
_DMI_GUESTS = (
    "QEMU",
    "KVM",
    "Google Compute Engine",
    "VMware",
    "VirtualBox",
    "Xen",
    "Bochs",
    "Virtual Machine",
    "OpenStack",
    "Parallels",
    "BHYVE",
    "Apple Virtualization",
)


class Hierarchy(msgspec.Struct, frozen=True, kw_only=True):
    """A hierarchy of cgroup v1: the number that the kernel gave it, and where it is mounted."""

    id: int
    mounted: str


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the host.

    ``cgroup2`` is where cgroup2 is mounted, ``hybrid`` that v1 controllers are too: ``controllers`` says where
    each of them is, ``cgroup2_controllers`` are those of cgroup2. ``pressure`` says whether the kernel keeps
    stalls (PSI), ``virtual`` whether the host is a guest of a hypervisor.
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
    controllers: Mapping[str, str] = {}
    cgroup2_controllers: frozenset[str] = frozenset()
    pressure: bool = True
    virtual: bool = False
    block_hierarchy: Hierarchy | None = None
    io_controlled: bool = True


def probe(root: Path = Path("/")) -> Host:
    """Gather the facts; ``root`` stands for / in tests."""
    mounts = _mounts(root / "proc/self/mountinfo")
    cgroup2 = next((point for kind, point, _ in mounts if kind == "cgroup2"), None)
    effective = _effective_capabilities(root / "proc/self/status")
    blocks = hierarchy_of("blkio", root)
    controlled = _read(root / f"{cgroup2 or ''}/cgroup.subtree_control".lstrip("/")) or ""
    return Host(
        kernel=platform.release(),
        euid=os.geteuid(),
        capabilities=frozenset(name for name, bit in CAPABILITIES.items() if effective >> bit & 1),
        btf=(root / "sys/kernel/btf/vmlinux").exists(),
        cgroup2=cgroup2,
        hybrid=any(kind == "cgroup" for kind, _, _ in mounts),
        bpffs=any(kind == "bpf" for kind, _, _ in mounts),
        unprivileged_bpf=_read(root / "proc/sys/kernel/unprivileged_bpf_disabled"),
        controllers={name: point for name, point in _v1(mounts).items() if name in _V1},
        cgroup2_controllers=_cgroup2_controllers(root, cgroup2),
        # Where PSI is compiled in but off (psi=0), the files are there and can't be read.
        pressure=_read(root / "proc/pressure/cpu") is not None,
        virtual=_is_virtual(root),
        block_hierarchy=blocks,
        io_controlled=blocks is not None or "io" in controlled.split(),
    )


def hierarchy_of(controller: str, root: Path = Path("/")) -> Hierarchy | None:
    """Return the v1 hierarchy that has a controller and is mounted, if any."""
    # cgroups(7): /proc/PID/cgroup has ID:CONTROLLERS:PATH, with the ID 0 for cgroup2.
    rows = [line.split(":", 2) for line in (_read(root / "proc/self/cgroup") or "").splitlines()]
    number = next((int(row[0]) for row in rows if len(row) == 3 and controller in row[1].split(",")), None)
    mounted = _v1(_mounts(root / "proc/self/mountinfo")).get(controller)
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


def _mounts(path: Path) -> list[tuple[str, str, list[str]]]:
    """Return the type, the place and the options of the file system of each mount."""
    # proc_pid_mountinfo(5): field 5 is the mount point, octal-escaped; type, source and options follow " - ".
    mounts = []
    for line in (_read(path) or "").splitlines():
        left, _, right = line.partition(" - ")
        point = _unescaped(left.split()[4])
        fields = right.split()
        mounts.append((fields[0], point, fields[-1].split(",")))
    return mounts


def _v1(mounts: list[tuple[str, str, list[str]]]) -> dict[str, str]:
    """Return where each controller of cgroup v1 is mounted; the options of a mount name them."""
    return {name: point for kind, point, names in mounts if kind == "cgroup" for name in names}


def _cgroup2_controllers(root: Path, mounted: str | None) -> frozenset[str]:
    if mounted is None:
        return frozenset()
    return frozenset((_read(root / mounted.lstrip("/") / "cgroup.controllers") or "").split())


def _is_virtual(root: Path) -> bool:
    """Tell a guest from bare metal: by the CPU's flag (x86), the device tree (Arm), Xen's files, the DMI table."""
    if _has_hypervisor_flag(root / "proc/cpuinfo"):
        return True
    if (root / "sys/hypervisor/type").exists() or (root / "proc/device-tree/hypervisor").exists():
        return True
    vendor, product = (_read(root / f"sys/class/dmi/id/{name}") or "" for name in ("sys_vendor", "product_name"))
    if vendor == "Amazon EC2":
        return not product.endswith(".metal")
    return vendor.startswith(_DMI_GUESTS) or product.startswith(_DMI_GUESTS)


def _has_hypervisor_flag(path: Path) -> bool:
    try:
        with path.open("rb") as cpus:
            first = cpus.read(16384)  # the first CPU's part; all of it takes milliseconds where there are many
    except OSError:
        return False
    return any(line.startswith(b"flags") and b"hypervisor" in line.split() for line in first.splitlines())


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
