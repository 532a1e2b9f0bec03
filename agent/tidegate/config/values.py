# SPDX-License-Identifier: Apache-2.0
"""The types that keys of the config have, each with its notation."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tidegate.config import units
from tidegate.config.units import Listen

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
#: A name that a proxy's config gives to a backend, a cluster.
ProxyName = Annotated[str, Meta(extra={"notation": units.PROXY_NAME})]
#: A name in the DNS.
Domain = Annotated[str, Meta(extra={"notation": units.DOMAIN})]
PowerOfTwo = Annotated[int, Meta(extra={"notation": units.POWER_OF_TWO})]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What every section is."""
