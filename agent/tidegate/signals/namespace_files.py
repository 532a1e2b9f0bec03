# SPDX-License-Identifier: Apache-2.0
"""The counters and limits of one network namespace, from the kernel's files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tidegate.signals.cgroup_files import read as read_file


class NamespaceFiles(NamedTuple):
    """What a network namespace says of itself; None is what can't be read, or what its kernel doesn't have.

    ``listen_overflows``, ``listen_drops`` and ``syn_cookies`` count since the namespace was made; drops include
    overflows. ``time_wait`` are its sockets in TIME_WAIT. Conntrack is None where the module isn't loaded.
    """

    listen_overflows: int | None
    listen_drops: int | None
    syn_cookies: int | None
    time_wait: int | None
    somaxconn: int | None
    tw_reuse: int | None
    tcp_timestamps: int | None
    conntrack_entries: int | None
    conntrack_limit: int | None


#: Of a namespace that was not looked at.
UNREAD = NamespaceFiles(*(None,) * len(NamespaceFiles._fields))


def read(
    net: Path = Path("/proc/thread-self/net"), sysctls: Path | None = Path("/proc/sys/net")
) -> NamespaceFiles:
    """Read one namespace, of this thread unless other places are given.

    /proc/PID/net shows the namespace of that process, but sysctls are those of the reading thread's: from outside
    give None for ``sysctls``. What has gone reads as None.
    """
    extended = _table(net / "netstat", b"TcpExt:")

    def sysctl(name: str) -> int | None:
        text = None if sysctls is None else read_file(f"{sysctls}/{name}")
        return int(text) if text and text.strip() else None

    return NamespaceFiles(
        listen_overflows=extended.get(b"ListenOverflows"),
        listen_drops=extended.get(b"ListenDrops"),
        syn_cookies=extended.get(b"SyncookiesSent"),
        time_wait=_pairs(net / "sockstat", b"TCP:").get(b"tw"),
        somaxconn=sysctl("core/somaxconn"),
        tw_reuse=sysctl("ipv4/tcp_tw_reuse"),
        tcp_timestamps=sysctl("ipv4/tcp_timestamps"),
        conntrack_entries=sysctl("netfilter/nf_conntrack_count"),
        conntrack_limit=sysctl("netfilter/nf_conntrack_max"),
    )


def _table(path: Path, prefix: bytes) -> dict[bytes, int]:
    """Read a table whose names stand in one line and the numbers in the next (netstat, snmp)."""
    lines = [
        line.split() for line in (read_file(str(path), whole=True) or b"").splitlines() if line.startswith(prefix)
    ]
    if len(lines) != 2:
        return {}
    names, numbers = lines
    return {name: int(number) for name, number in zip(names[1:], numbers[1:], strict=False)}


def _pairs(path: Path, prefix: bytes) -> dict[bytes, int]:
    """Read a line of names, each with its number after it (sockstat)."""
    for line in (read_file(str(path)) or b"").splitlines():
        if line.startswith(prefix):
            fields = line.split()[1:]
            return {name: int(number) for name, number in zip(fields[::2], fields[1::2], strict=False)}
    return {}
