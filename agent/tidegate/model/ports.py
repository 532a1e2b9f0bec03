# SPDX-License-Identifier: Apache-2.0
"""Ephemeral ports of a network namespace, towards each upstream."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Method(StrEnum):
    """Where the number of ports in TIME_WAIT comes from."""

    SOCKETS = "sockets"  #: counted in the kernel's table
    CLOSES = "closes"  #: those that the service has closed first in the last 60 s; its namespace can't be entered


class PortsRow(msgspec.Struct, frozen=True, kw_only=True):
    """The local ports that one service holds towards one upstream from one source address.

    ``netns`` is the inode of the network namespace, ``endpoint`` the upstream's ``ip:port``. ``used`` counts
    sockets of every state, ``time_wait`` those of them in TIME_WAIT, of which ``reusable`` may be taken by a new
    connection already (tcp_tw_reuse). ``limit`` is what connect() may choose from; ``shared`` how much of it all
    services of the namespace hold towards that upstream. ``exhausted`` counts connects that found no port since
    the start. ``closes`` are those of :class:`tidegate.model.snapshot.Traffic`.

    ``will_exhaust`` says whether connect() will begin to fail at the present rates, ``time_to_exhaustion`` in how
    many seconds: 0 is now, None never. Both are None where that is not known, or not yet.
    """

    netns: int
    service: str
    container: str
    source: str
    endpoint: str
    name: str
    used: int
    shared: int
    time_wait: int
    reusable: int
    limit: int | None
    exhausted: int
    connect_rate: float
    closes: dict[str, int]
    will_exhaust: bool | None
    time_to_exhaustion: float | None
    method: Method

    @property
    def seconds_to_exhaustion(self) -> float | None:
        """``time_to_exhaustion`` with infinity for never."""
        return float("inf") if self.will_exhaust is False else self.time_to_exhaustion


class ListenerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A port on which a service listens.

    ``backlog`` connections wait to be accepted, of at most ``limit``: the smaller of what listen() asked for and
    ``somaxconn``. ``drops`` are SYNs and connections that the socket has dropped since it listens.
    """

    netns: int
    service: str
    container: str
    endpoint: str
    backlog: int
    limit: int
    somaxconn: int | None
    drops: int


class NamespaceRow(msgspec.Struct, frozen=True, kw_only=True):
    """A network namespace: what all services in it share.

    ``range_low`` to ``range_high`` are the ephemeral ports, of which ``reserved`` are set aside and ``bound`` are
    held by sockets that listen or were bound before they connected. ``listen_overflows`` and ``listen_drops`` are
    the kernel's counters since the namespace was made; the second includes the first. Conntrack is None where the
    module isn't loaded. ``services`` are those that have sockets in it.
    """

    netns: int
    services: tuple[str, ...]
    range_low: int | None
    range_high: int | None
    reserved: int | None
    bound: int | None
    time_wait: int | None
    tw_reuse: int | None
    somaxconn: int | None
    listen_overflows: int | None
    listen_drops: int | None
    syn_cookies: int | None
    conntrack_entries: int | None
    conntrack_limit: int | None
