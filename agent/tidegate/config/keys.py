# SPDX-License-Identifier: Apache-2.0
"""Every key of the config with its type, default and bounds; deploy/tidegate.yaml says what each is for.

A section is added by declaring its struct; :mod:`tidegate.config.shapes` says which types a key may have.
Checks that join several keys go into ``__post_init__``, which raises ValueError: the complaint is at the section.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tidegate.config.limits import RateLimit
from tidegate.config.pools import Breaker, Pool, written_whole
from tidegate.config.units import Listen
from tidegate.config.values import (
    Address,
    Directory,
    Duration,
    File,
    Name,
    Network,
    Output,
    Section,
    Size,
    SocketPath,
)
from tidegate.model.limits import Advice, Residency


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
            for file in filter(None, map(written_whole, pool.drivers)):
                other = owners.setdefault(file, name)
                if other != name:
                    raise ValueError(
                        f"pools.{name}.drivers: expected a file or name of one pool each, found {file} in {other}"
                    )
