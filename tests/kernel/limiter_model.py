# SPDX-License-Identifier: Apache-2.0
"""The limiter once more, in plain Python and from its description: what the program has to say of a packet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

TCP, UDP, ICMPV6 = 6, 17, 58
_TAGS = (b"\x81\x00", b"\x88\xa8")
_OPTIONS, _FRAGMENT, _AUTH = {0, 43, 60, 135, 139, 140}, 44, 51
MOST_TAGS, MOST_EXTENSIONS = 2, 6
_CLOCK = 1 << 56
#: By how much the clocks of two packets may be out of order.
_SKEW = 1 << 30
DIMENSIONS = ("syn", "packets", "bytes")


class Limit(NamedTuple):
    """A cost in ns: of a SYN or a packet; of 65,536 bytes."""

    cost: int
    tolerance: int


@dataclass(frozen=True)
class Policy:
    """Limits by dimension; what is missing is unlimited."""

    narrow: Mapping[str, Limit] = field(default_factory=dict)
    wide: Mapping[str, Limit] = field(default_factory=dict)


class Packet(NamedTuple):
    """A packet that can be judged; ``port`` is None where it has none."""

    source: Address
    protocol: int | None = None
    port: int | None = None
    is_syn: bool = False


class Truncated(Exception):  # noqa: N818
    """The frame ends before its headers do."""


def _part(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise Truncated
    return data[at : at + size]


def parse(frame: bytes) -> Packet | str:
    """Return what there is to judge, else why there is nothing."""
    try:
        return _parse(frame)
    except Truncated:
        return "truncated"


def _parse(frame: bytes) -> Packet | str:
    _part(frame, 0, 14)
    at, tags = 12, 0
    while (kind := frame[at : at + 2]) in _TAGS:
        if tags == MOST_TAGS:
            return "vlans"
        _part(frame, at + 2, 4)
        at, tags = at + 4, tags + 1
    if kind == b"\x08\x00":
        return _ipv4(frame[at + 2 :])
    if kind == b"\x86\xdd":
        return _ipv6(frame[at + 2 :])
    return "not_ip"


def _ipv4(ip: bytes) -> Packet | str:
    _part(ip, 0, 20)
    version, length = ip[0] >> 4, ip[0] % 16 * 4
    total = int.from_bytes(ip[2:4], "big")
    if version != 4 or length < 20 or total < length:
        return "malformed"
    source, protocol = IPv4Address(ip[12:16]), ip[9]
    fragment = int.from_bytes(ip[6:8], "big")
    if fragment % 0x2000:
        return Packet(source) if protocol in (TCP, UDP) else "protocol"
    if fragment & 0x2000 and protocol == TCP and total - length < 20:
        # A first fragment without the flags, which a later one has: it may be a SYN.
        ports = _part(ip, length, 4)
        return Packet(source, TCP, int.from_bytes(ports[2:4], "big"), is_syn=True)
    return _ports(source, protocol, ip[length:])


def _ipv6(ip: bytes) -> Packet | str:
    _part(ip, 0, 40)
    if ip[0] >> 4 != 6:
        return "malformed"
    source, following, at = IPv6Address(ip[8:24]), ip[6], 40
    for _ in range(MOST_EXTENSIONS):
        if following not in {*_OPTIONS, _FRAGMENT, _AUTH}:
            break
        header = _part(ip, at, 8)
        if following == _FRAGMENT:
            if int.from_bytes(header[2:4], "big") >> 3:
                return "protocol" if header[0] == ICMPV6 else Packet(source)
            at += 8
        else:
            at += (header[1] + 2) * 4 if following == _AUTH else (header[1] + 1) * 8
        following = header[0]
    if following in {*_OPTIONS, _FRAGMENT, _AUTH}:
        return Packet(source)  # more headers than are read
    return _ports(source, following, ip[at:])


def _ports(source: Address, protocol: int, rest: bytes) -> Packet | str:
    if protocol not in (TCP, UDP):
        return "protocol"
    _part(rest, 0, 20 if protocol == TCP else 4)
    port = int.from_bytes(rest[2:4], "big")
    # SYN, and neither FIN nor RST nor ACK
    return Packet(source, protocol, port, protocol == TCP and rest[13] & 0b10111 == 0b10)


class _Key(NamedTuple):
    network: Network
    policy: object


class Model:
    """All buckets, without tables that get full; times in ns."""

    def __init__(self) -> None:
        self.mode = "enforce"
        self.lease_ns = 0
        self.policies: dict[int, Policy] = {}
        self.ports: dict[tuple[int, int], int] = {}
        self.allowed: list[Network] = []
        self.denied: list[Network] = []
        self.bans: dict[Network, int] = {}
        #: The clock by which each known source's buckets are free again, SYNs apart from the rest.
        self._syns: dict[_Key, dict[str, int]] = {}
        self._rest: dict[_Key, dict[str, int]] = {}

    def begin_anew(self) -> None:
        """Forget what the buckets hold, but not who is known: as another generation does."""
        for entry in [*self._syns.values(), *self._rest.values()]:
            entry.clear()

    def judge(self, frame: bytes, now: int, size: int | None = None) -> tuple[str, str]:
        """Return verdict and reason of a frame."""
        reason = self._reason(parse(frame), now, len(frame) if size is None else size)
        if reason in ("not_ip", "truncated", "malformed", "vlans", "protocol", "port", "allowed", "within"):
            return "pass", reason
        enforced = self.mode == "enforce" and (not self.lease_ns or now < self.lease_ns)
        return "drop" if enforced else "would_drop", reason

    def _reason(self, packet: Packet | str, now: int, size: int) -> str:
        if isinstance(packet, str):
            return packet
        number: int | None = 1
        if packet.port is not None and packet.protocol is not None:
            number = self.ports.get((packet.protocol, packet.port))
        if number is None:
            return "port"
        policy = self.policies[number]
        bits = (32, 24) if packet.source.version == 4 else (64, 48)
        of = number if packet.port is not None else "portless"
        narrow, wide = (_Key(_prefix(packet.source, length), of) for length in bits)
        applying = self._applying(packet, policy, narrow, wide)
        listed = self._listed(packet.source, narrow.network, now)
        if listed:
            return listed
        for name, dimension, limit, bucket in applying:
            if _ahead(bucket, dimension, limit, now) > limit.tolerance:
                return name
        for _, dimension, limit, bucket in applying:
            cost = limit.cost * size >> 16 if dimension == "bytes" else limit.cost
            bucket[dimension] = now + _ahead(bucket, dimension, limit, now) + cost
        return "within"

    def _applying(
        self, packet: Packet, policy: Policy, narrow: _Key, wide: _Key
    ) -> list[tuple[str, str, Limit, dict[str, int]]]:
        """Return the limits that apply to a packet with their buckets, and know its source from now on."""
        judged: dict[str, dict[_Key, dict[str, int]]]
        if packet.is_syn and ("syn" in policy.narrow or "syn" in policy.wide):
            judged = {"syn": self._syns}
            if narrow in self._rest:
                judged |= {"packets": self._rest, "bytes": self._rest}
        else:
            judged = {"packets": self._rest, "bytes": self._rest}
        first = next(iter(judged.values()))
        first.setdefault(narrow, {})
        if policy.wide:
            first.setdefault(wide, {})
        return [
            (dimension + suffix, dimension, limits[dimension], table.setdefault(key, {}))
            for suffix, limits, key in (("", policy.narrow, narrow), ("_wide", policy.wide, wide))
            for dimension, table in judged.items()
            if dimension in limits
        ]

    def _listed(self, source: Address, entry: Network, now: int) -> str | None:
        if any(source in network for network in self.allowed):
            return "allowed"
        if any(source in network for network in self.denied):
            return "denied"
        until = self.bans.get(entry)
        return "banned" if until is not None and (not until or now < until) else None


def _prefix(address: Address, bits: int) -> Network:
    if address.version == 4:
        return IPv4Network((address.packed, bits), strict=False)
    return IPv6Network((address.packed, bits), strict=False)


def _ahead(bucket: Mapping[str, int], dimension: str, limit: Limit, now: int) -> int:
    """Return how long from now a bucket is free again: on a clock of 56 bits, and never longer than can be."""
    if dimension not in bucket:
        return 0
    difference = (bucket[dimension] - now + _CLOCK // 2) % _CLOCK - _CLOCK // 2
    # The dearest packet there is: one of 65,536 bytes.
    return difference if 0 < difference <= limit.tolerance + limit.cost + _SKEW else 0
