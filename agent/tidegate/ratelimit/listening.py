# SPDX-License-Identifier: Apache-2.0
"""What this node listens on, and who is allowed without being asked: its gateways, resolvers and API server."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tidegate.errors import UnavailableError
from tidegate.ratelimit.admission import addresses_in
from tidegate.ratelimit.keys import Address

_LISTEN, _UNCONNECTED = 10, 7  # enum tcp_state: TCP_LISTEN, TCP_CLOSE
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Listening(NamedTuple):
    """Ports on which packets from elsewhere find a socket, and the addresses at which they do.

    ``own`` is None on a node that doesn't forward, which gets nothing for others.
    """

    tcp: frozenset[int]
    udp: frozenset[int]
    own: frozenset[Address] | None = None


def listening() -> Listening:
    """Ask the kernel (sock_diag) for the sockets of this network namespace.

    A UDP socket in the range of ephemeral ports is a client's, and what comes to it are replies. Raises
    UnavailableError where the kernel doesn't answer.
    """
    from pyroute2 import DiagSocket, NetlinkError  # noqa: PLC0415 - take 20 MB, for nodes that limit alone

    families = socket.AF_INET, socket.AF_INET6
    try:
        with DiagSocket() as diag:
            diag.bind()
            tcp = [row for family in families for row in diag.get_sock_stats(family, 1 << _LISTEN)]
            udp = [
                row
                for family in families
                for row in diag.get_sock_stats(family, 1 << _UNCONNECTED, socket.IPPROTO_UDP)
            ]
        low, high = map(int, _RANGE.read_text("ascii").split())
        own = own_addresses(psutil.net_if_addrs()) if forwards() else None
    except (OSError, ValueError, NetlinkError) as error:
        raise UnavailableError(f"listening sockets: expected them from sock_diag, found: {error}") from error
    return Listening(reachable(tcp), frozenset(port for port in reachable(udp) if not low <= port <= high), own)


def forwards(root: Path = Path("/proc/sys/net")) -> bool:
    """Tell whether this network namespace forwards packets between any of its interfaces."""
    for file in (*root.glob("ipv4/conf/*/forwarding"), *root.glob("ipv6/conf/*/forwarding")):
        with contextlib.suppress(OSError):  # an interface that is gone
            if file.read_text("ascii").strip() != "0":
                return True
    return False


def own_addresses(interfaces: Mapping[str, Iterable[Any]]) -> frozenset[Address]:
    """Return the addresses of all interfaces and those by which all hosts of their networks are meant.

    ``interfaces`` as psutil.net_if_addrs() gives them.
    """
    found = set[Address]()
    for row in chain.from_iterable(interfaces.values()):
        if row.family in (socket.AF_INET, socket.AF_INET6):
            found |= {ip_address(text.partition("%")[0]) for text in (row.address, row.broadcast) if text}
    return frozenset(found)


def reachable(sockets: Iterable[Mapping[str, Any]]) -> frozenset[int]:
    """Return the ports of those that aren't bound to loopback; ``sockets`` are rows of sock_diag."""
    return frozenset(int(row["idiag_sport"]) for row in sockets if not ip_address(row["idiag_src"]).is_loopback)


def gateways() -> list[str]:
    """Return the gateways of the default routes, of all tables."""
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415

    found = []
    try:
        with IPRoute() as route:
            for family in (socket.AF_INET, socket.AF_INET6):
                for message in route.get_default_routes(family):
                    hops = [message, *(message.get_attr("RTA_MULTIPATH") or ())]
                    found += [hop.get_attr("RTA_GATEWAY") for hop in hops]
    except (OSError, NetlinkError) as error:
        raise UnavailableError(f"default routes: expected them from rtnetlink, found: {error}") from error
    return sorted({address for address in found if address})


def resolvers(file: Path = Path("/etc/resolv.conf")) -> list[str]:
    """Return the name servers of this node; none where there is no such file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return addresses_in(lines)


def api_server(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the Kubernetes API server's address, as every pod is told it."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    return [host] if host else []
