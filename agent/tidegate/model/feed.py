# SPDX-License-Identifier: Apache-2.0
"""What a proxy's log says of a client that it refused."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

Address = IPv4Address | IPv6Address


class Kind(StrEnum):
    """Why the proxy refused it."""

    LIMITED = "limited"  # by limit_req or limit_conn
    TOO_MANY = "too_many"  # an answer with 429
    UNAUTHORIZED = "unauthorized"  # an answer with 401 or 403


class Event(NamedTuple):
    """One refusal, at monotonic seconds."""

    time: float
    address: Address
    kind: Kind
