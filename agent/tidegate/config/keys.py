# SPDX-License-Identifier: Apache-2.0
"""Every key of the config with its type, default and bounds; deploy/tidegate.yaml says what each is for.

A section is added by declaring its struct; :mod:`tidegate.config.shapes` says which types a key may have.
Checks that join several keys go into ``__post_init__``, which raises ValueError: the complaint is at the section.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tidegate.config import units
from tidegate.config.units import Listen
from tidegate.model.limits import Advice, Residency

#: Seconds, events a second, bytes.
Duration = Annotated[float, Meta(extra={"notation": units.DURATION})]
Rate = Annotated[float, Meta(extra={"notation": units.RATE})]
Size = Annotated[int, Meta(extra={"notation": units.SIZE})]
#: An address to listen on; ``off`` is None.
Address = Annotated[Listen | None, Meta(extra={"notation": units.ADDRESS})]
#: A file that must be there when the config is read.
File = Annotated[str, Meta(extra={"notation": units.FILE})]
Directory = Annotated[str, Meta(extra={"notation": units.DIRECTORY})]
#: Addresses of a place, as the key of a mapping.
Network = Annotated[str, Meta(extra={"notation": units.NETWORK})]
SocketPath = Annotated[str, Meta(extra={"notation": units.SOCKET})]


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
    logging: Logging = Logging()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.residency.allowed) - set(self.locations.values()))
        if unknown:
            raise ValueError(
                f"residency.allowed: expected names of locations, found {', '.join(map(repr, unknown))}; "
                f"known here: {', '.join(sorted(set(self.locations.values()))) or 'none'}"
            )
