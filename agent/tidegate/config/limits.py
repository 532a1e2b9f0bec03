# SPDX-License-Identifier: Apache-2.0
"""Keys of the limiter: who may send how much, and who is banned for what the proxy refused."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tidegate.config import units
from tidegate.config.values import (
    ByteRate,
    Datagrams,
    Duration,
    File,
    Interface,
    Network,
    Ports,
    PowerOfTwo,
    Rate,
    Section,
    Size,
)

#: The limiter counts arrival times in ns, of which it compares 55 bits.
FURTHEST_NS = 1 << 55
#: A packet of the largest size must find room in a burst of bytes.
LARGEST_PACKET = 64 << 10
#: Besides the default, and the number that stands for no policy at all.
MOST_PORT_POLICIES = 62


class Bucket(Section, frozen=True, kw_only=True):
    """So many in a time, and so many at once above that; ``rate=10r/s burst=20 nodelay`` to nginx."""

    rate: Annotated[Rate, Meta(gt=0, le=1e9)]
    burst: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0

    def __post_init__(self) -> None:
        _check_reach(self.burst + 1, self.rate)


class ByteBucket(Section, frozen=True, kw_only=True):
    """The same in bytes."""

    rate: Annotated[ByteRate, Meta(ge=1, le=1e12)]
    burst: Annotated[Size, Meta(ge=LARGEST_PACKET, le=1 << 50)]

    def __post_init__(self) -> None:
        _check_reach(self.burst + LARGEST_PACKET, self.rate)


def _check_reach(most: int, rate: float) -> None:
    """Raise ValueError where a full bucket would need longer to empty than the limiter can count."""
    if most * 10**9 >= FURTHEST_NS * Fraction(rate):
        longest = units.duration_text(FURTHEST_NS // 10**9)
        raise ValueError(f"expected a burst that is earned anew in less than {longest} at this rate, found more")


class Buckets(Section, frozen=True, kw_only=True):
    """What a source may send; of what is left out, as much as it likes."""

    syn: Bucket | None = None
    packets: Bucket | None = None
    bytes: ByteBucket | None = None


class Limits(Buckets, frozen=True, kw_only=True):
    """The same, and what all sources of the wider prefix (/24, /48) may send together."""

    wide: Buckets = Buckets()


class Storm(Section, frozen=True, kw_only=True):
    """So many of a kind of log line from one source within so long lead to a ban."""

    count: Annotated[int, Meta(ge=1, le=100_000)] = 20
    within: Annotated[Duration, Meta(ge=0.1, le=3600)] = 10.0


class UnauthorizedStorm(Storm, frozen=True, kw_only=True):
    """People mistype their passwords, but not so often."""

    within: Annotated[Duration, Meta(ge=0.1, le=3600)] = 60.0


class Ban(Section, frozen=True, kw_only=True):
    """How long the bans are that the feed leads to, and how many there may be."""

    duration: Annotated[Duration, Meta(ge=1, le=31_536_000)] = 60.0
    escalation: Annotated[float, Meta(ge=1, le=100)] = 2.0
    longest: Annotated[Duration, Meta(ge=1, le=31_536_000)] = 3600.0
    at_most: Annotated[int, Meta(ge=1, le=16_777_216)] = 10_000

    def __post_init__(self) -> None:
        if self.longest < self.duration:
            least, found = units.duration_text(self.duration), units.duration_text(self.longest)
            raise ValueError(f"longest: expected at least the duration, {least}, found {found}")


class Feed(Section, frozen=True, kw_only=True):
    """What the proxy refuses, from its log lines."""

    listen: Datagrams = None
    limited: Storm = Storm()
    unauthorized: UnauthorizedStorm = UnauthorizedStorm()
    too_many: Storm = Storm()
    ban: Ban = Ban()


class RateLimit(Section, frozen=True, kw_only=True):
    """Limits per source address at the network card."""

    interfaces: Annotated[list[Interface], Meta(max_length=256)] = msgspec.field(default_factory=list)
    mode: Literal["off", "monitor", "enforce"] = "monitor"
    generic: Literal["refuse", "allow"] = "refuse"
    persist: bool = False
    default: Limits = Limits()
    ports: dict[Ports, Limits] = msgspec.field(default_factory=dict)
    udp: dict[Ports, Limits] = msgspec.field(default_factory=dict)
    listen: Literal["auto"] | list[Ports] = "auto"
    destinations: Literal["own", "any"] = "own"
    allow: list[Network] = msgspec.field(default_factory=list)
    deny: list[Network] = msgspec.field(default_factory=list)
    allow_files: Annotated[list[File], Meta(max_length=64)] = msgspec.field(default_factory=list)
    deny_files: Annotated[list[File], Meta(max_length=64)] = msgspec.field(default_factory=list)
    management: list[Network] = msgspec.field(default_factory=list)
    max_prefixes: Annotated[int, Meta(ge=256, le=1_048_576)] = 131_072
    max_sources: Annotated[int, Meta(ge=1024, le=16_777_216)] = 131_072
    sketch_cells: Annotated[PowerOfTwo, Meta(ge=1024, le=16_777_216)] = 262_144
    max_bans: Annotated[int, Meta(ge=64, le=16_777_216)] = 65_536
    feed: Feed = Feed()

    def __post_init__(self) -> None:
        number = len(self.ports) + len(self.udp)
        if number > MOST_PORT_POLICIES:
            raise ValueError(
                f"ports, udp: expected at most {MOST_PORT_POLICIES} policies together, found {number}"
            )
        _check_apart("ports", self.ports)
        _check_apart("udp", self.udp)
        for ports, limits in self.udp.items():
            if limits.syn or limits.wide.syn:
                raise ValueError(f"udp.{ports}.syn: expected limits of packets or bytes, as UDP has no SYN")
        for name, networks in {"allow": [*self.allow, *self.management], "deny": self.deny}.items():
            if len(networks) > self.max_prefixes:
                raise ValueError(
                    f"{name}: expected at most max_prefixes, {self.max_prefixes}, entries, found {len(networks)}"
                )
        if self.feed.ban.at_most > self.max_bans:
            raise ValueError(
                f"feed.ban.at_most: expected at most max_bans, {self.max_bans}, found {self.feed.ban.at_most}"
            )


def _check_apart(name: str, keys: Iterable[str]) -> None:
    """Raise ValueError where two keys of a mapping have a port in common."""
    found = sorted((ports.start, ports.stop, key) for key in keys for ports in units.port_ranges(key))
    for (_, stop, key), (start, _, other) in pairwise(found):
        if start < stop:
            raise ValueError(f"{name}: expected ports in one entry each, found {start} in {key!r} and {other!r}")
