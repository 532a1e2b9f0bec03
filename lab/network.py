# SPDX-License-Identifier: Apache-2.0
"""Network namespaces on one switch, and cgroups, made and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyroute2 import NetNS, netns

PREFIX = "tglab"
_IFA_F_NODAD = 0x02
_OWNER = re.compile(rf"{PREFIX}-(\d+)-(\d+)-")
RUN = Path("/run/netns")
#: What every host has: addresses usable at once, and an ICMP error for every refused connect. icmp_ratelimit alone
#: leaves the limit over all hosts (icmp_msgs_per_sec); only types outside the mask are free of it. IPv6 wants a
#: mask that isn't empty, and sends no error of type 127.
DEFAULTS = {
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv4.icmp_ratemask": "0",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv6.icmp.ratemask": "127",
}


def cgroup_root() -> Path:
    """Return where cgroup2 is mounted."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    raise RuntimeError("lab: expected a cgroup2 mount, found none; mount -t cgroup2 none /sys/fs/cgroup/unified")


def enter(namespace: str, argv: Iterable[str], cgroup: Path | None = None) -> list[str]:
    """Return the command line that runs ``argv`` in a namespace; unlike ``ip netns exec`` it keeps bpffs.

    With ``cgroup`` (its directory) the process joins it first, so that every socket it makes belongs there.
    """
    join = [] if cgroup is None else ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(cgroup / "cgroup.procs")]
    return [*join, "nsenter", f"--net={RUN / namespace}", *argv]


def set_sysctls(namespace: str, values: dict[str, str]) -> None:
    """Set sysctls of a namespace; one that this kernel doesn't have per namespace is an error."""
    settings = [f"{name}={value}" for name, value in values.items()]
    done = subprocess.run(
        enter(namespace, ["sysctl", "-qw", *settings]), check=False, capture_output=True, text=True
    )
    if done.returncode or done.stderr:
        raise RuntimeError(
            f"lab: expected {namespace} to take {' '.join(settings)}, sysctl said: {done.stderr.strip()}; "
            "leave out what this kernel has only once for all namespaces"
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


def send_single_segments(namespace: str, device: str) -> None:
    """Have TCP hand the device single segments, so that a packet on the wire is one segment."""
    with NetNS(namespace) as ns:
        ns.link("set", index=ns.link_lookup(ifname=device)[0], gso_max_segs=1)


def keep_order(namespace: str, device: str) -> None:
    """Have one CPU handle what arrives of a connection at a device, chosen by its hash (receive packet steering).

    A veth leaves packets to the CPU that sent them, be it the process's or the one that took the last ACK; one
    overtakes the other, and TCP sends again what isn't lost.
    """
    cpus = f"{(1 << min(os.cpu_count() or 1, 32)) - 1:x}"
    # sysfs shows the devices of the namespace in which it is mounted.
    script = f"mount -t sysfs sysfs /sys && echo {cpus} >/sys/class/net/{device}/queues/rx-0/rps_cpus"
    argv = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(enter(namespace, argv), check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"lab: expected {device} of {namespace} to take rps_cpus {cpus}: {done.stderr.strip()}")


def remove_namespaces(lab: str) -> None:
    """Remove every namespace of the lab with this name; the processes in them must have ended."""
    for name in netns.listnetns():
        if name.startswith(f"{lab}-"):
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
    while _is_populated(cgroup):
        pids = (cgroup / "cgroup.procs").read_text(encoding="ascii").split()
        if time.monotonic() > end:
            raise TimeoutError(f"lab: processes {', '.join(pids)} in {cgroup} don't end")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        os.sched_yield()


def _is_populated(cgroup: Path) -> bool:
    """Tell whether there is a thread: of a process whose first one has ended ``cgroup.procs`` says nothing."""
    events = cgroup / "cgroup.events"
    if events.exists():
        return "populated 1" in events.read_text(encoding="ascii")
    return bool((cgroup / "tasks").read_text(encoding="ascii"))  # cgroup v1


def lab_name(number: int) -> str:
    """Return the name of this process's lab of that number; it tells who made it, also once the pid is reused."""
    return f"{PREFIX}-{os.getpid()}-{started(os.getpid())}-{number}"


def sweep() -> None:
    """Remove what labs left whose process is dead; labs that sweep at the same time take turns."""
    root = cgroup_root()
    with _turn():
        names = [*netns.listnetns(), *(path.name for path in root.glob(f"{PREFIX}-*"))]
        for pid, since in {match.groups() for match in map(_OWNER.match, names) if match}:
            if started(int(pid)) != int(since):
                owner = f"{PREFIX}-{pid}-{since}"
                for cgroup in root.glob(f"{owner}-*"):
                    remove_cgroup(cgroup)
                remove_namespaces(owner)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Hold the lock that iproute2 takes too when it makes or removes namespaces."""
    RUN.mkdir(exist_ok=True)
    directory = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def started(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot (proc(5), stat 22); None if there is none."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(after_name.split()[19])
