# SPDX-License-Identifier: Apache-2.0
"""When connect() will find no local port, from what holds ports now and what takes more of them; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: How long a socket stays in TIME_WAIT, in s: TCP_TIMEWAIT_LEN of include/net/tcp.h.
TIME_WAIT = 60
#: Growth is not believed to go on for longer, in s: what is further away is never.
HORIZON = 3600.0


class Holding(NamedTuple):
    """What holds the ports towards one upstream.

    ``open`` connections, and ``waiting`` sockets in TIME_WAIT whose port connect() can't take; at most ``limit``.
    ``expiries`` are how many of those will end in the first, second ... second from now. ``closes`` a second leave
    a port behind for ``hold`` seconds each, and there are ``growth`` connections more each second.
    """

    open: int
    waiting: int
    limit: int
    closes: float
    growth: float
    expiries: Sequence[float]
    hold: float


def time_to_exhaustion(holding: Holding) -> float | None:
    """Return in how many seconds all ports will be held at the present rates, 0 if they are; None for never."""
    held = float(holding.open + holding.waiting)
    if held >= holding.limit:
        return 0.0
    step = 1.0
    for second in range(max(TIME_WAIT, len(holding.expiries))):
        begun = min(max(holding.hold - second, 0.0), step)
        expiring = holding.expiries[second] if second < len(holding.expiries) else 0.0
        # New ones come faster than old ones go in a part of the second; what waits can't be less than nothing.
        change = holding.closes * begun + holding.growth * step - expiring
        if held + change >= holding.limit:
            return second + (holding.limit - held) / change
        held = max(held + change, 0.0)
    if holding.growth <= 0:
        return None
    left = TIME_WAIT + (holding.limit - held) / holding.growth
    return left if left <= HORIZON else None
