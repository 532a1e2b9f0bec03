# SPDX-License-Identifier: Apache-2.0
"""What works on a host and what would mend the rest, decided from its facts; pure."""

from __future__ import annotations

from tidegate.errors import UnavailableError
from tidegate.kernel.probe import Host
from tidegate.model.feature import Feature, State

_PRIVILEGE = ("CAP_BPF", "CAP_PERFMON")


def features(host: Host) -> list[Feature]:
    """Judge every feature of this version."""
    return [privilege(host), btf(host), identity(host)]


def privilege(host: Host) -> Feature:
    """Loading tracing programs takes CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN."""
    missing = [name for name in _PRIVILEGE if name not in host.capabilities]
    if not missing or "CAP_SYS_ADMIN" in host.capabilities:
        return Feature(name="privilege", state=State.OK)
    return Feature(
        name="privilege",
        state=State.UNAVAILABLE,
        reason=f"needs {' and '.join(_PRIVILEGE)}, missing {' and '.join(missing)} (uid {host.euid})",
        remedy="run as root, or grant the capabilities: AmbientCapabilities=CAP_BPF CAP_PERFMON",
    )


def btf(host: Host) -> Feature:
    """CO-RE programs need the kernel's own type information."""
    if host.btf:
        return Feature(name="btf", state=State.OK)
    return Feature(
        name="btf",
        state=State.UNAVAILABLE,
        reason=f"kernel {host.kernel} has no /sys/kernel/btf/vmlinux, so no program can be fitted to it",
        remedy="boot a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian 11 and later have it), mount sysfs on /sys",
    )


def identity(host: Host) -> Feature:
    """Services are named by the cgroup2 path of their sockets."""
    if host.cgroup2 is not None:
        return Feature(name="cgroup2", state=State.OK)
    return Feature(
        name="cgroup2",
        state=State.UNAVAILABLE,
        reason="cgroup2 is not mounted, so no connection can be attributed to a service",
        remedy="mount -t cgroup2 none /sys/fs/cgroup/unified (or boot with systemd.unified_cgroup_hierarchy=1)",
    )


def require(found: list[Feature]) -> None:
    """Raise :class:`UnavailableError` with every reason and remedy where a feature is unavailable."""
    missing = [f for f in found if f.state is State.UNAVAILABLE]
    if missing:
        raise UnavailableError("; ".join(f"{f.name}: {f.reason}; to mend it: {f.remedy}" for f in missing))


def unseen_failures() -> Feature:
    """Connects that end before a SYN change no socket state, so no state-change tracepoint sees them."""
    return Feature(
        name="connects:no-syn",
        state=State.DEGRADED,
        reason="connects refused before a SYN is sent (no route, a cgroup program's denial) change no socket "
        "state and are not counted",
        remedy="none in this version; 'ip route get ADDRESS' shows a missing route",
    )
