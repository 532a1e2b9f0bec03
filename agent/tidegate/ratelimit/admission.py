# SPDX-License-Identifier: Apache-2.0
"""Whether it is safe to begin to enforce: for whoever asks, and for crowds behind one source; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from tidegate.errors import TidegateError

#: Of fewer connection requests than this no share is worth a refusal.
_REQUESTS = 20
_MOST = 0.5

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def check_session(session: str | None, is_allowed: Callable[[Address], bool]) -> None:
    """Refuse where the address of the session that asks is not allowed; ``session`` is None on a console."""
    if session is None:
        return
    try:
        address = ip_address(session.partition("%")[0])
    except ValueError:
        raise TidegateError(
            f"ratelimit mode enforce: expected the address of this session, found {session!r}; --yes enforces "
            "nevertheless"
        ) from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback or is_allowed(address):
        return
    raise TidegateError(
        f"ratelimit mode enforce: this session comes from {address}, which isn't allowed, so that a wrong policy "
        f"could lock it out; 'tidegate ratelimit allow {address}' first, or --yes"
    )


def check_front(requests: Mapping[Network, int], shown: Callable[[Network], str] = str) -> None:
    """Refuse where one source makes more than half of all connection requests: a load balancer, for whole crowds.

    ``requests`` are SYNs by source, ``shown`` says how one may be named.
    """
    total = sum(requests.values())
    if total < _REQUESTS:
        return
    source, most = max(requests.items(), key=lambda item: item[1])
    if most <= total * _MOST:
        return
    raise TidegateError(
        f"ratelimit mode enforce: {shown(source)} makes {most} of {total} connection requests, as a load balancer "
        "in front would: limits would hit all its clients as one; allow it and limit there or in the proxy "
        "(docs/rate-limit.md), or --yes"
    )


def addresses_in(lines: Iterable[str]) -> list[str]:
    """Return the name servers of a resolv.conf, without their zones."""
    words = (line.split() for line in lines)
    return [word[1].partition("%")[0] for word in words if len(word) > 1 and word[0] == "nameserver"]
