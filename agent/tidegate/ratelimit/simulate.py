# SPDX-License-Identifier: Apache-2.0
"""What a policy would do with a capture: each packet through the very program, at the capture's own time."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

import msgspec

from tidegate.config.limits import RateLimit
from tidegate.errors import TidegateError
from tidegate.kernel.layouts import (
    RATELIMIT_SIMULATION,
    RatelimitMode,
    RatelimitReason,
    RatelimitSimulation,
    RatelimitVerdict,
)
from tidegate.kernel.limiter import LimiterMaps
from tidegate.kernel.objects import BpfObject
from tidegate.ratelimit.captures import Captured
from tidegate.ratelimit.lists import allow_list, deny_list, divides
from tidegate.ratelimit.policy import compiled, sizes

_ZERO = bytes(4)
#: Below that the kernel runs nothing on a frame.
_SMALLEST = 14
#: With so many bytes all headers are there, however many.
_HEADERS, _LARGEST = 200, 60_000
_TCP, _UDP = 6, 17
#: What is read of both.
_TRANSPORT = 14
#: When the simulation begins, in ns: long enough after the clock's zero for packets that go back in time.
_BEGIN, _END = 1 << 50, (1 << 64) - 1
_ALL = range(65536)
_VLANS = (b"\x81\x00", b"\x88\xa8")


class Verdict(msgspec.Struct, frozen=True):
    """What happens to one packet; ``t`` in seconds since the first one, ``source`` null where it has none."""

    packet: int
    t: float
    source: str | None
    verdict: str
    reason: str


def simulate(
    config: RateLimit, captured: Iterable[Captured], listen: Collection[int] | None = None
) -> Iterator[Verdict]:
    """Yield what ``enforce`` would do with each packet, whatever the config's mode.

    Every port listens unless ``listen`` names some. Stays on one CPU. Raises UnavailableError and KernelError
    where the program can't be loaded, TidegateError where a list isn't whole.
    """
    ports = _ALL if listen is None else listen
    with BpfObject.named("ratelimit_simulation") as bpf:
        bpf.resize(sizes(config))
        bpf.load()
        maps = LimiterMaps(bpf, 1)
        _put_in_force(config, maps, ports)
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})
        try:
            first: int | None = None
            for packet in captured:
                first = packet.ns if first is None else first
                verdict, reason = _judged(bpf, packet, packet.ns - first)
                yield Verdict(packet.number, (packet.ns - first) / 1e9, source_of(packet.frame), verdict, reason)
        finally:
            os.sched_setaffinity(0, cpus)


def _put_in_force(config: RateLimit, maps: LimiterMaps, ports: Collection[int]) -> None:
    allow, deny = allow_list(config), deny_list(config)
    for found in (allow, deny):
        found.refresh()
        if found.complaints:
            raise TidegateError("\n".join(found.complaints))
    maps.set_lists(allow.prefixes, deny.prefixes, divides=divides(allow.prefixes | deny.prefixes))
    made = compiled(config, ports, ports)
    maps.put_in_force(made.policies, made.ports, anew=True)
    maps.set_mode(RatelimitMode.ENFORCE, 0)


def _judged(bpf: BpfObject, packet: Captured, since: int) -> tuple[str, str]:
    if len(packet.frame) < _SMALLEST:
        return "pass", "truncated"
    frame = packet.frame
    if len(frame) >= headers_of(frame):  # what the capture has cut off counts for the limits of bytes
        frame = frame[:_LARGEST].ljust(min(packet.wire, _LARGEST), b"\0")
    table = bpf.maps["ratelimit_simulation"]
    table[_ZERO] = RATELIMIT_SIMULATION.pack(min(max(_BEGIN + since, 0), _END), 0, 0)
    bpf.programs["ratelimit"].test_run(frame)
    found = RatelimitSimulation._make(RATELIMIT_SIMULATION.unpack(table[_ZERO]))
    return RatelimitVerdict(found.verdict).name.lower(), RatelimitReason(found.reason).name.lower()


def headers_of(frame: bytes) -> int:
    """Return how many bytes of a frame have to be there to know all that is judged by."""
    kind, ip = _ip_of(frame)
    start = len(frame) - len(ip)
    if kind == b"\x08\x00" and ip:
        return start + (ip[0] & 0x0F) * 4 + _TRANSPORT
    if kind == b"\x86\xdd" and len(ip) > 6 and ip[6] in (_TCP, _UDP):
        return start + 40 + _TRANSPORT
    return _HEADERS


def _ip_of(frame: bytes) -> tuple[bytes, bytes]:
    """Return the Ethernet type and what follows it, behind up to two VLAN tags."""
    at = 12
    while frame[at : at + 2] in _VLANS and at < 20:
        at += 4
    return frame[at : at + 2], frame[at + 2 :]


def source_of(frame: bytes) -> str | None:
    """Return the source address of an IP packet, behind up to two VLAN tags."""
    kind, ip = _ip_of(frame)
    if kind == b"\x08\x00" and len(ip) >= 16:
        return str(IPv4Address(ip[12:16]))
    if kind == b"\x86\xdd" and len(ip) >= 24:
        return str(IPv6Address(ip[8:24]))
    return None
