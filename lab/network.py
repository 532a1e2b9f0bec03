# SPDX-License-Identifier: Apache-2.0
"""Network namespaces on one switch, and cgroups, made and removed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from pyroute2 import NetNS, netns

PREFIX = "tglab"
_IFA_F_NODAD = 0x02
RUN = Path("/run/netns")


def cgroup_root() -> Path:
    """Return where cgroup2 is mounted."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    raise RuntimeError("lab: expected a cgroup2 mount, found none; mount -t cgroup2 none /sys/fs/cgroup/unified")


def enter(namespace: str, argv: Iterable[str]) -> list[str]:
    """Return the command line that runs ``argv`` in a namespace; unlike ``ip netns exec`` it keeps bpffs."""
    return ["nsenter", f"--net={RUN / namespace}", *argv]


def set_sysctls(namespace: str, values: dict[str, str]) -> None:
    """Set sysctls of a namespace; one that this kernel doesn't have per namespace is an error."""
    for name, value in values.items():
        subprocess.run(
            enter(namespace, ["sysctl", "-qw", f"{name}={value}"]), check=True, capture_output=True, text=True
        )


class Switch:
    """A namespace with a bridge, to which hosts are plugged."""

    def __init__(self, name: str) -> None:
        self.name = name
        netns.create(name)
        with NetNS(name) as ns:
            ns.link("add", ifname="br0", kind="bridge")
            ns.link("set", index=ns.link_lookup(ifname="br0")[0], state="up")

    def plug(self, namespace: str, port: str, addresses: Iterable[str]) -> None:
        """Connect a namespace by a veth pair; its side is eth0 with ``addresses`` (with prefix length)."""
        with NetNS(self.name) as ns:
            ns.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": namespace})
            index = ns.link_lookup(ifname=port)[0]
            ns.link("set", index=index, master=ns.link_lookup(ifname="br0")[0], state="up")
        add_addresses(namespace, "lo", [])
        add_addresses(namespace, "eth0", addresses)


def add_addresses(namespace: str, device: str, addresses: Iterable[str]) -> None:
    """Give a device addresses (with prefix length) and set it up; IPv6 is usable at once."""
    with NetNS(namespace) as ns:
        index = ns.link_lookup(ifname=device)[0]
        for address in addresses:
            ip, _, length = address.partition("/")
            flags = {"flags": _IFA_F_NODAD} if ":" in ip else {}
            ns.addr("add", index=index, address=ip, prefixlen=int(length), **flags)
        ns.link("set", index=index, state="up")


def remove_namespaces(prefix: str) -> None:
    """Remove every namespace whose name begins so; the processes in it must have ended."""
    for name in netns.listnetns():
        if name.startswith(prefix):
            with contextlib.suppress(FileNotFoundError):
                netns.remove(name)


def remove_cgroup(top: Path) -> None:
    """Kill what still runs in a cgroup made by the lab, then remove it with all below it."""
    if not top.exists():
        return
    for directory in sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True):
        _empty(directory)
        directory.rmdir()
    _empty(top)
    top.rmdir()


def _empty(cgroup: Path, deadline: float = 5.0) -> None:
    end = time.monotonic() + deadline
    while pids := (cgroup / "cgroup.procs").read_text(encoding="ascii").split():
        if time.monotonic() > end:
            raise TimeoutError(f"lab: processes {', '.join(pids)} in {cgroup} don't end")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        os.sched_yield()


def sweep() -> None:
    """Remove what labs left whose process is dead."""
    root = cgroup_root()
    dead = {_pid_of(path.name) for path in root.glob(f"{PREFIX}-*")}
    dead |= {_pid_of(name) for name in netns.listnetns() if name.startswith(f"{PREFIX}-")}
    for pid in dead:
        if not Path(f"/proc/{pid}").exists():
            for cgroup in root.glob(f"{PREFIX}-{pid}-*"):
                remove_cgroup(cgroup)
            remove_namespaces(f"{PREFIX}-{pid}-")


def _pid_of(name: str) -> int:
    return int(name.split("-")[1])
