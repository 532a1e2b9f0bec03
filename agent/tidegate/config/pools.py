# SPDX-License-Identifier: Apache-2.0
"""Keys of pools: where their endpoints are, when one is ejected, and which drivers make that real."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tidegate.config import units
from tidegate.config.units import Listen
from tidegate.config.values import (
    Datagrams,
    Directory,
    Domain,
    Duration,
    Endpoint,
    File,
    Output,
    ProxyName,
    Section,
    SocketPath,
)
from tidegate.model.outliers import ConnectionPool, Count, Freeze, Handling, OutlierDetection, Percent


class NginxDriver(Section, frozen=True, kw_only=True, tag="nginx"):
    """Writes the servers of an nginx upstream into a file that its config includes, and reloads nginx."""

    include: Output
    config: Output = "/etc/nginx/nginx.conf"
    prefix: Directory | None = None
    program: Output = "/usr/sbin/nginx"


class DnsDriver(Section, frozen=True, kw_only=True, tag="dns"):
    """Answers nginx's own questions for the addresses of a name, ``server NAME resolve``."""

    name: Domain
    listen: Annotated[Listen, Meta(extra={"notation": units.ADDRESS})] = Listen("127.0.0.1", 5300)
    ttl: Annotated[Duration, Meta(ge=0, le=60)] = 0.0


class HaproxyDriver(Section, frozen=True, kw_only=True, tag="haproxy"):
    """Sets the state of the servers of an HAProxy backend."""

    socket: SocketPath = "/run/haproxy/admin.sock"
    backend: ProxyName
    eject: Literal["auto", "drain", "maint"] = "auto"
    statistics: bool = True


class EnvoyDriver(Section, frozen=True, kw_only=True, tag="envoy"):
    """Writes the health status of the endpoints of an Envoy cluster into its EDS file."""

    eds: Output
    cluster: ProxyName | None = None
    admin: Datagrams = None
    eject: Literal["unhealthy", "draining"] = "unhealthy"
    watched_directory: Directory | None = None
    statistics: bool = True


class FailfastDriver(Section, frozen=True, kw_only=True, tag="failfast"):
    """Has the kernel refuse connections of these services, or of all, to an ejected endpoint."""

    services: list[str] = msgspec.field(default_factory=list)


AnyDriver = NginxDriver | DnsDriver | HaproxyDriver | EnvoyDriver | FailfastDriver


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
    drivers: Annotated[list[AnyDriver], Meta(max_length=16)] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.destination_rule is not None:
            for name in ("outlier_detection", "connection_pool"):
                if getattr(self, name) is not None:
                    raise ValueError(f"expected {name} or destination_rule, found both")
        twice = [endpoint for endpoint, count in Counter(self.endpoints).items() if count > 1]
        if twice:
            raise ValueError(f"endpoints: expected each once, found {', '.join(twice)} more than once")
        places = Counter(map(_place, self.drivers))
        if again := [" ".join(place) for place, count in places.items() if count > 1]:
            # Each would take what the other does for an operator's doing.
            raise ValueError(f"drivers: expected each proxy once, found {', '.join(again)} more than once")


def _place(driver: AnyDriver) -> tuple[str, ...]:
    """Return what a driver writes to."""
    match driver:
        case NginxDriver():
            return "nginx", driver.include
        case DnsDriver():
            return "dns", str(driver.listen), driver.name
        case HaproxyDriver():
            return "haproxy", driver.socket, driver.backend
        case EnvoyDriver():
            return "envoy", driver.eds, *filter(None, [driver.cluster])
        case FailfastDriver():
            return ("failfast", *driver.services)


def written_whole(driver: AnyDriver) -> str | None:
    """Return what a driver writes for its pool alone; None where each endpoint has a place of its own."""
    match driver:
        case NginxDriver():
            return driver.include
        case DnsDriver():
            return f"{driver.listen} {driver.name}"
        case EnvoyDriver():
            return driver.eds
        case _:
            return None


class UpstreamFeed(Section, frozen=True, kw_only=True):
    """What nginx says of its upstreams, from its log lines."""

    listen: Datagrams = None


class Breaker(Section, frozen=True, kw_only=True):
    """What holds for the breaker of all pools."""

    freeze: Freeze = Freeze()
    journal: Output = "/var/lib/tidegate/pools"
    lease: Annotated[Duration, Meta(ge=1, le=3600)] = 10.0
    feed: UpstreamFeed = UpstreamFeed()
