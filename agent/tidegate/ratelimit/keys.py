# SPDX-License-Identifier: Apache-2.0
"""Sources as the kernel's tables have them, and as people write them; pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from tidegate.errors import UsageError
from tidegate.kernel.layouts import RATELIMIT_KEY, RatelimitKey, RatelimitWidth

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED = bytes(10) + b"\xff\xff"

#: Bits of the prefix by (family, width).
BITS = {
    (4, RatelimitWidth.NARROW): 32,
    (4, RatelimitWidth.WIDE): 24,
    (6, RatelimitWidth.NARROW): 64,
    (6, RatelimitWidth.WIDE): 48,
}


def network_of(key: RatelimitKey) -> Network:
    """Return the prefix that a key is for."""
    packed = key.source.to_bytes(8, "little")
    if key.family == 4:
        return IPv4Network((packed[:4], BITS[4, RatelimitWidth(key.width)]))
    return IPv6Network((packed.ljust(16, b"\0"), BITS[6, RatelimitWidth(key.width)]))


def ban_key(address: Address) -> bytes:
    """Return the key of an address among the bans: its /32 or /64, whatever the policy."""
    packed = address.packed if address.version == 4 else address.packed[:8]
    source = int.from_bytes(packed.ljust(8, b"\0"), "little")
    return RATELIMIT_KEY.pack(source, 0, address.version, RatelimitWidth.NARROW, 0)


def mapped(address: Address) -> bytes:
    """Return an address as the lists have it: 16 bytes, IPv4 as ::ffff:a.b.c.d."""
    return address.packed if address.version == 6 else _MAPPED + address.packed


def address_of(text: str) -> Address:
    """Read an address; one that stands for an IPv4 address is that."""
    try:
        found = ip_address(text)
    except ValueError:
        raise UsageError(
            f"expected an address as 192.0.2.7 or 2001:db8::7, or a handle of 'ratelimit top', found {text!r}"
        ) from None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found
