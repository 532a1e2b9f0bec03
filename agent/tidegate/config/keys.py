# SPDX-License-Identifier: Apache-2.0
"""Every key of the config with its type, default and bounds; deploy/tidegate.yaml says what each is for.

A key's type is one of: a nested struct, ``bool``, ``int``, ``str``, an enumeration by Literal, ``Duration``
(seconds), ``Address``. ``None`` as a default means that the key may be left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tidegate.config.units import Listen

#: Markers by which the reader knows the notation of a scalar.
DURATION, ADDRESS = "duration", "address"

Address = Annotated[Listen | None, Meta(extra={"notation": ADDRESS})]


class _Section(msgspec.Struct, frozen=True, kw_only=True):
    pass


class TcpSignal(_Section, frozen=True, kw_only=True):
    """The TCP signal."""

    max_rows: Annotated[int, Meta(ge=64, le=1_048_576)] = 8192


class Signals(_Section, frozen=True, kw_only=True):
    """What is measured, and how often."""

    interval: Annotated[float, Meta(ge=0.1, le=60, extra={"notation": DURATION})] = 1.0
    tcp: TcpSignal = TcpSignal()


class Services(_Section, frozen=True, kw_only=True):
    """How many rows are kept."""

    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 2000
    max_endpoints: Annotated[int, Meta(ge=1, le=1_000_000)] = 200
    idle: Annotated[float, Meta(ge=1, extra={"notation": DURATION})] = 900.0


class Tls(_Section, frozen=True, kw_only=True):
    """Certificates of the metrics server."""

    cert: Annotated[str, Meta(min_length=1)]
    key: Annotated[str, Meta(min_length=1)]
    client_ca: str | None = None


class Metrics(_Section, frozen=True, kw_only=True):
    """The Prometheus exporter."""

    listen: Address = Listen("127.0.0.1", 19469)
    tls: Tls | None = None


class Control(_Section, frozen=True, kw_only=True):
    """The local control socket."""

    socket: Annotated[str, Meta(min_length=1, pattern="^/")] = "/run/tidegate/control.sock"
    max_clients: Annotated[int, Meta(ge=1, le=1024)] = 32
    queue: Annotated[int, Meta(ge=1, le=1024)] = 8


class Logging(_Section, frozen=True, kw_only=True):
    """The agent's own log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(_Section, frozen=True, kw_only=True):
    """The whole file; all of it is optional."""

    signals: Signals = Signals()
    services: Services = Services()
    metrics: Metrics = Metrics()
    control: Control = Control()
    logging: Logging = Logging()
