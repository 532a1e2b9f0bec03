# SPDX-License-Identifier: Apache-2.0
"""Local ports that connections hold towards each upstream, and what a network namespace has of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop
from typing import NamedTuple, Self

from tidegate.kernel import layouts
from tidegate.kernel.maps import Map
from tidegate.kernel.namespaces import run_in
from tidegate.kernel.objects import BpfObject, Program, map_health
from tidegate.model.snapshot import MapHealth
from tidegate.signals import namespace_files
from tidegate.signals.namespace_files import UNREAD, NamespaceFiles
from tidegate.signals.tcp import TcpSignal, endpoint_text

#: Settings of a namespace in which nothing was seen for so long are forgotten, in ns.
_SETTINGS_KEPT_NS = 60_000_000_000


class Upstream(NamedTuple):
    """What shares the local ports of a range: connections from one address to one ``ip:port``."""

    netns: int
    source: str
    endpoint: str

    @property
    def place(self) -> tuple[int, str]:
        """The upstream of whichever source."""
        return self.netns, self.endpoint


class Held(NamedTuple):
    """Sockets of connections; those of them that were closed here first, which is counted by now."""

    sockets: int
    closing: int


class Waiting(NamedTuple):
    """Sockets in TIME_WAIT; those with timestamps, and those of them whose port connect() may take already."""

    sockets: int
    timestamped: int
    reusable: int


class Settings(NamedTuple):
    """What a namespace lets connect() choose from; ``reuse_delay`` is in seconds."""

    low: int
    high: int
    reserved: int
    tw_reuse: int
    reuse_delay: float
    somaxconn: int


class Listener(NamedTuple):
    """A port that a cgroup listens on; sums over the sockets that share it."""

    cgroup: int
    endpoint: str
    backlog: int
    limit: int
    drops: int


class Visit(NamedTuple):
    """What was found in one namespace; ``bound`` are ports of its range that connect() passes over."""

    waiting: Mapping[Upstream, Waiting]
    time_wait: int
    listeners: tuple[Listener, ...]
    bound: int
    files: NamespaceFiles = UNREAD


@lru_cache(maxsize=4096)
def address_text(family: int, address: bytes) -> str:
    """Return an address as people write it."""
    return inet_ntop(AF_INET, address[:4]) if family == 4 else inet_ntop(AF_INET6, address)


def upstream_of(key: layouts.PortsKey) -> Upstream:
    """Return what a ``struct ports_key`` is about, its cgroup aside."""
    endpoint = endpoint_text(layouts.TcpRole.CLIENT, key.family, key.address, key.port)
    return Upstream(key.netns, address_text(key.family, key.source), endpoint)


def settings_of(found: layouts.PortsNamespace) -> Settings:
    """Return the settings in a ``struct ports_namespace``."""
    return Settings(
        low=found.low,
        high=found.high,
        reserved=found.reserved,
        tw_reuse=found.tw_reuse,
        reuse_delay=found.tw_reuse_delay_ms / 1e3,
        somaxconn=found.somaxconn,
    )


def sizes(max_rows: int) -> dict[str, int]:
    """Return how many entries the maps have that are sized by the config."""
    return dict.fromkeys(("ports_waiting", "ports_listeners"), max_rows)


class PortsSignal:
    """The program that visits a namespace; ports of connections come from the TCP signal's walk."""

    def __init__(self, bpf: BpfObject, tcp: TcpSignal) -> None:
        self.bpf, self._tcp = bpf, tcp
        self._iterator = bpf.programs["ports_visit"].attach_iterator()
        bpf.links.append(self._iterator)

    @classmethod
    def start(cls, max_rows: int, tcp: TcpSignal) -> Self:
        """Load; ``max_rows`` is how many upstreams or listeners one namespace may have."""
        bpf = BpfObject.named("ports")
        try:
            bpf.resize(sizes(max_rows))
            bpf.load(
                {
                    "ports_waiting": (layouts.PORTS_KEY.size, layouts.PORTS_WAITING.size),
                    "ports_listeners": (layouts.PORTS_LISTENER_KEY.size, layouts.PORTS_LISTENER.size),
                    "ports_namespaces": (4, layouts.PORTS_NAMESPACE.size),
                }
            )
            return cls(bpf, tcp)
        except BaseException:
            bpf.close()
            raise

    def held(self) -> dict[tuple[int, Upstream], Held]:
        """Return the ports that connections held at the TCP signal's last walk, by cgroup; empties that."""
        found: dict[tuple[int, Upstream], Held] = {}
        for _, keys, values in self._tcp.bpf.maps["tcp_ports"].batches(delete=True):
            of_keys = map(layouts.PortsKey._make, layouts.PORTS_KEY.iter_unpack(keys))
            for key, held in zip(of_keys, layouts.PORTS_HELD.iter_unpack(values), strict=True):
                found[key.cgroup, upstream_of(key)] = Held._make(held)
        return found

    def settings(self, now_ns: int) -> dict[int, Settings]:
        """Return the settings of each namespace in which clients were seen; ``now_ns`` is CLOCK_MONOTONIC."""
        found: dict[int, Settings] = {}
        for settings in (self._tcp.bpf.maps["ports_namespaces"], self.bpf.maps["ports_namespaces"]):
            for netns, value in _entries(settings):
                namespace = layouts.PortsNamespace._make(layouts.PORTS_NAMESPACE.unpack(value))
                if now_ns - namespace.read_ns > _SETTINGS_KEPT_NS:
                    del settings[netns]
                else:
                    found[int.from_bytes(netns, "little")] = settings_of(namespace)
        return found

    def visit(self, netns: int, path: Path) -> tuple[Visit | None, str]:
        """Look at all sockets of a namespace; the second value is the reason where it can't be entered.

        Nothing and no reason where it is gone. Raises what the kernel refuses.
        """
        for name in ("ports_waiting", "ports_listeners", "ports_listening", "ports_bound"):
            _empty(self.bpf.maps[name])
        key = netns.to_bytes(4, "little")
        with contextlib.suppress(KeyError):
            del self.bpf.maps["ports_namespaces"][key]
        files: list[NamespaceFiles] = []

        def look() -> None:
            self._iterator.read()
            files.append(namespace_files.read())

        refused = run_in([path], look)
        if not files:
            return None, refused[0] if refused else ""
        return self._found(key)._replace(files=files[0]), ""

    def losses(self) -> dict[str, int]:
        """Return what found no place in the maps of a visit."""
        return {"ports_full": self.bpf.variable("ports_full")}

    @property
    def programs(self) -> list[Program]:
        """Its programs."""
        return list(self.bpf.programs.values())

    def maps(self) -> dict[str, MapHealth]:
        """Return how full the maps are."""
        return map_health(self.bpf)

    def close(self) -> None:
        """Unload."""
        self.bpf.close()

    def _found(self, key: bytes) -> Visit:
        maps = self.bpf.maps
        waiting = {
            upstream_of(layouts.PortsKey._make(layouts.PORTS_KEY.unpack(k))): Waiting(
                *layouts.PORTS_WAITING.unpack(v)[:3]
            )
            for k, v in _entries(maps["ports_waiting"])
        }
        try:
            namespace = layouts.PortsNamespace._make(layouts.PORTS_NAMESPACE.unpack(maps["ports_namespaces"][key]))
        except KeyError:  # no socket was there
            return Visit({}, 0, (), 0)
        return Visit(
            waiting=waiting,
            time_wait=namespace.time_wait,
            listeners=tuple(listener_of(k, v) for k, v in _entries(maps["ports_listeners"])),
            bound=sum(count for count, _, _ in maps["ports_bound"].batches()),
        )


def listener_of(key: bytes, value: bytes) -> Listener:
    """Decode one ``struct ports_listener`` with its key; an address that is any is left out."""
    at = layouts.PortsListenerKey._make(layouts.PORTS_LISTENER_KEY.unpack(key))
    found = layouts.PortsListener._make(layouts.PORTS_LISTENER.unpack(value))
    endpoint = f":{at.port}"
    if any(at.address):
        endpoint = endpoint_text(layouts.TcpRole.CLIENT, at.family, at.address, at.port)
    return Listener(at.cgroup, endpoint, found.backlog, found.limit, found.drops)


def _entries(table: Map) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a map; copies, so that entries may be deleted meanwhile."""
    for count, keys, values in [(n, bytes(k), bytes(v)) for n, k, v in table.batches()]:
        for i in range(count):
            yield (
                keys[i * table.key_size : (i + 1) * table.key_size],
                values[i * table.value_size : (i + 1) * table.value_size],
            )


def _empty(table: Map) -> None:
    for _ in table.batches(delete=True):
        pass
