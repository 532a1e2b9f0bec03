# SPDX-License-Identifier: Apache-2.0
"""Every key of the config with its type, default and bounds; deploy/tidegate.yaml says what each is for.

A section is added by declaring its struct; :mod:`tidegate.config.shapes` says which types a key may have.
Checks that join several keys go into ``__post_init__``, which raises ValueError: the complaint is at the section.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tidegate.config import units
from tidegate.config.units import Listen
from tidegate.model.limits import Advice, Residency
from tidegate.model.outliers import ConnectionPool, Count, Freeze, Handling, OutlierDetection, Percent

#: Seconds, events a second, bytes.
Duration = Annotated[float, Meta(extra={"notation": units.DURATION})]
Rate = Annotated[float, Meta(extra={"notation": units.RATE})]
Size = Annotated[int, Meta(extra={"notation": units.SIZE})]
ByteRate = Annotated[float, Meta(extra={"notation": units.BYTE_RATE})]
#: An address to listen on; ``off`` is None.
Address = Annotated[Listen | None, Meta(extra={"notation": units.ADDRESS})]
#: A file that must be there when the config is read.
File = Annotated[str, Meta(extra={"notation": units.FILE})]
Directory = Annotated[str, Meta(extra={"notation": units.DIRECTORY})]
#: A file that Tidegate writes.
Output = Annotated[str, Meta(extra={"notation": units.DIRECTORY})]
#: An address or a CIDR.
Network = Annotated[str, Meta(extra={"notation": units.NETWORK})]
SocketPath = Annotated[str, Meta(extra={"notation": units.SOCKET})]
#: Where log lines are received as datagrams; ``off`` is None.
Datagrams = Annotated[str | None, Meta(extra={"notation": units.DATAGRAMS})]
#: Ports like ``80,443`` or ``8000-8010``; :func:`tidegate.config.units.port_ranges` reads them.
Ports = Annotated[str, Meta(extra={"notation": units.PORTS})]
Interface = Annotated[str, Meta(extra={"notation": units.INTERFACE})]
#: ``10.0.0.6:5000``.
Endpoint = Annotated[str, Meta(extra={"notation": units.ENDPOINT})]
Name = Annotated[str, Meta(extra={"notation": units.NAME})]
PowerOfTwo = Annotated[int, Meta(extra={"notation": units.POWER_OF_TWO})]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What every section is."""


class TcpSignal(Section, frozen=True, kw_only=True):
    """The TCP signal."""

    max_rows: Annotated[int, Meta(ge=64, le=1_048_576)] = 8192
    max_sockets: Annotated[int, Meta(ge=64, le=1_048_576)] = 65_536


class PortsSignal(Section, frozen=True, kw_only=True):
    """Local ports."""

    max_rows: Annotated[int, Meta(ge=64, le=1_048_576)] = 4096


class ResourceSignal(Section, frozen=True, kw_only=True):
    """CPU, memory and stalls of node and services."""

    interval: Annotated[Duration, Meta(ge=0.1, le=60)] = 1.0
    cgroups_per_second: Annotated[int, Meta(ge=1, le=100_000)] = 100


class DiskSignal(Section, frozen=True, kw_only=True):
    """The disk signal."""

    enabled: bool = True
    max_rows: Annotated[int, Meta(ge=64, le=1_048_576)] = 2048
    max_requests: Annotated[int, Meta(ge=1024, le=1_048_576)] = 8192


class Signals(Section, frozen=True, kw_only=True):
    """What is measured, and how often."""

    interval: Annotated[Duration, Meta(ge=0.1, le=60)] = 1.0
    program_statistics: bool = False
    tcp: TcpSignal = TcpSignal()
    ports: PortsSignal = PortsSignal()
    resources: ResourceSignal = ResourceSignal()
    disk: DiskSignal = DiskSignal()


class Services(Section, frozen=True, kw_only=True):
    """How many rows are kept, and where the host's files are that name containers."""

    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    max_endpoints: Annotated[int, Meta(ge=1, le=1_000_000)] = 200
    idle: Annotated[Duration, Meta(ge=1)] = 900.0
    host_root: Directory = "/"


class Tls(Section, frozen=True, kw_only=True):
    """Certificates of the metrics server."""

    cert: File
    key: File
    client_ca: File | None = None


class Metrics(Section, frozen=True, kw_only=True):
    """The Prometheus exporter."""

    listen: Address = Listen("127.0.0.1", 19469)
    tls: Tls | None = None


class Control(Section, frozen=True, kw_only=True):
    """The local control socket."""

    socket: SocketPath = "/run/tidegate/control.sock"
    max_clients: Annotated[int, Meta(ge=1, le=1024)] = 32
    queue: Annotated[int, Meta(ge=1, le=1024)] = 8


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


class NginxDriver(Section, frozen=True, kw_only=True, tag="nginx"):
    """Writes the servers of an nginx upstream."""

    include: Output


class FailfastDriver(Section, frozen=True, kw_only=True, tag="failfast"):
    """Has the kernel refuse connections of these services, or of all, to an ejected endpoint."""

    services: list[str] = msgspec.field(default_factory=list)


class DestinationRule(Section, frozen=True, kw_only=True):
    """A part of an Istio DestinationRule."""

    file: File
    host: str | None = None
    subset: str | None = None
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None


class Pool(Handling, frozen=True, kw_only=True):
    """One upstream: where its endpoints are, when one is ejected, and how; None is what the rule or Envoy says."""

    endpoints: Annotated[list[Endpoint], Meta(max_length=100_000)] = msgspec.field(default_factory=list)
    min_healthy: Count | None = None
    healthy_panic_threshold: Percent | None = None
    connect_timeout: Annotated[Duration, Meta(ge=0.001)] | None = None
    outlier_detection: OutlierDetection | None = None
    destination_rule: File | DestinationRule | None = None
    connection_pool: ConnectionPool | None = None
    drivers: Annotated[list[NginxDriver | FailfastDriver], Meta(max_length=16)] = msgspec.field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        if self.destination_rule is not None:
            for name in ("outlier_detection", "connection_pool"):
                if getattr(self, name) is not None:
                    raise ValueError(f"expected {name} or destination_rule, found both")
        twice = [endpoint for endpoint, count in Counter(self.endpoints).items() if count > 1]
        if twice:
            raise ValueError(f"endpoints: expected each once, found {', '.join(twice)} more than once")


class Breaker(Section, frozen=True, kw_only=True):
    """What holds for the breaker of all pools."""

    freeze: Freeze = Freeze()


class Privacy(Section, frozen=True, kw_only=True):
    """How client addresses are shown and written down."""

    client_addresses: Literal["truncate", "hash", "plain"] = "truncate"


class Audit(Section, frozen=True, kw_only=True):
    """Who changed what: bans, modes, thresholds that were crossed."""

    file: Output = "/var/log/tidegate/audit.jsonl"
    max_size: Annotated[Size, Meta(ge=4096, le=1 << 40)] = 16 << 20
    files: Annotated[int, Meta(ge=1, le=1000)] = 8
    retention: Annotated[Duration, Meta(ge=60)] = 90 * 86_400.0


class Logging(Section, frozen=True, kw_only=True):
    """The agent's own log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(Section, frozen=True, kw_only=True):
    """The whole file; all of it is optional."""

    signals: Signals = Signals()
    services: Services = Services()
    metrics: Metrics = Metrics()
    control: Control = Control()
    advice: Advice = Advice()
    locations: dict[Network, Annotated[str, Meta(min_length=1, max_length=64)]] = msgspec.field(
        default_factory=dict
    )
    residency: Residency = Residency()
    rate_limit: RateLimit = RateLimit()
    pools: Annotated[dict[Name, Pool], Meta(max_length=10_000)] = msgspec.field(default_factory=dict)
    breaker: Breaker = Breaker()
    privacy: Privacy = Privacy()
    audit: Audit = Audit()
    logging: Logging = Logging()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.residency.allowed) - set(self.locations.values()))
        if unknown:
            raise ValueError(
                f"residency.allowed: expected names of locations, found {', '.join(map(repr, unknown))}; "
                f"known here: {', '.join(sorted(set(self.locations.values()))) or 'none'}"
            )
        owners: dict[str, str] = {}
        for name, pool in self.pools.items():
            for endpoint in pool.endpoints:
                other = owners.setdefault(endpoint, name)
                if other != name:
                    raise ValueError(
                        f"pools.{name}.endpoints: expected endpoints of one pool each, found {endpoint} in {other}"
                    )
