# SPDX-License-Identifier: Apache-2.0
"""Who limits each source at a host's interface: Tidegate's program, nftables, iptables, or nobody."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from pyroute2 import netns

from lab.lab import Host
from lab.network import enter
from tidegate.config.limits import Bucket, Limits, RateLimit
from tidegate.kernel.layouts import RatelimitMode
from tidegate.kernel.limiter import LimiterMaps
from tidegate.kernel.objects import BpfObject, Program, possible_cpus
from tidegate.ratelimit.policy import compiled, sizes

_T = TypeVar("_T")
#: As many sources as Tidegate keeps by default in a table.
_PLACES = 131_072
_NFT = """\
table {family} bench {{
  set sources {{ type ipv4_addr; size {places}; flags dynamic; }}
  chain limited {{
    type filter hook {hook}
    add @sources {{ ip saddr limit rate over {rate}/{unit} burst {burst} packets }} drop
  }}
}}
"""
#: The earliest that there is, and the earliest for a host's whole traffic.
HOOKS = {
    "nftables at ingress": ("netdev", "ingress device eth0 priority 0;"),
    "nftables in prerouting (raw)": ("ip", "prerouting priority raw;"),
}
_IPTABLES = (
    "PREROUTING -m hashlimit --hashlimit-name bench --hashlimit-mode srcip --hashlimit-above {rate}/{unit} "
    "--hashlimit-burst {burst} --hashlimit-htable-size {places} --hashlimit-htable-max {places} "
    "--hashlimit-htable-expire 600000 -j DROP"
)


class Limit(NamedTuple):
    """SYNs of one source: ``rate`` in each ``unit``, second or minute, and ``burst`` at once."""

    rate: int
    unit: str
    burst: int

    @property
    def limits(self) -> Limits:
        """As Tidegate takes it, to whom a burst is what comes above the first."""
        seconds = 60 if self.unit == "minute" else 1
        return Limits(syn=Bucket(rate=self.rate / seconds, burst=self.burst - 1))

    def text(self, form: str, **more: object) -> str:
        """Fill it into a rule."""
        return form.format(**self._asdict(), places=_PLACES, **more)


class Limiter:
    """Tidegate's program with the maps that it keeps while it is not attached; a context manager."""

    def __init__(self, config: RateLimit, port: int) -> None:
        made = compiled(config, {port}, ())
        self.bpf = BpfObject.named("ratelimit")
        self.bpf.resize(sizes(config))
        self.bpf.load()
        self.maps = LimiterMaps(self.bpf, possible_cpus())
        self.maps.put_in_force(made.policies, made.ports, anew=True)
        self.maps.set_mode(RatelimitMode.ENFORCE, 0)

    @property
    def program(self) -> Program:
        """The program."""
        return self.bpf.programs["ratelimit"]

    def __enter__(self) -> Limiter:
        return self

    def __exit__(self, *_: object) -> None:
        self.bpf.close()


def inside(namespace: str, work: Callable[[], _T]) -> _T:
    """Do some work in a thread that has entered a network namespace."""
    with ThreadPoolExecutor(1, initializer=netns.setns, initargs=(namespace,)) as pool:
        return pool.submit(work).result()


@contextlib.contextmanager
def nobody(_: Host) -> Iterator[None]:
    """Limit nothing."""
    yield


@contextlib.contextmanager
def program(host: Host, attached: Program) -> Iterator[None]:
    """Have an XDP program at the host's interface."""
    index = interface(host)
    link = inside(host.namespace, lambda: attached.attach_xdp(index))
    try:
        yield
    finally:
        link.close()


@contextlib.contextmanager
def nftables(host: Host, name: str, limit: Limit) -> Iterator[None]:
    """Limit by a set of sources that are added as they come."""
    family, hook = HOOKS[name]
    run(host, ["nft", "-f", "-"], limit.text(_NFT, family=family, hook=hook))
    try:
        yield
    finally:
        run(host, ["nft", "delete", "table", family, "bench"])


@contextlib.contextmanager
def iptables(host: Host, limit: Limit) -> Iterator[None]:
    """Limit by hashlimit in the raw table."""
    rule = limit.text(_IPTABLES).replace("minute", "min").replace("second", "sec").split()
    run(host, ["iptables", "-t", "raw", "-A", *rule])
    try:
        yield
    finally:
        run(host, ["iptables", "-t", "raw", "-D", *rule])


def interface(host: Host) -> int:
    """Return the index of a host's interface there."""
    return int(run(host, ["cat", "/proc/net/dev_snmp6/eth0"]).split()[1])


def run(host: Host, command: list[str], text: str | None = None) -> str:
    """Run a command in a host's namespace."""
    done = subprocess.run(enter(host.namespace, command), input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bench: {' '.join(command)} said: {done.stderr.strip()}")
    return done.stdout
