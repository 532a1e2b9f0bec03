# SPDX-License-Identifier: Apache-2.0
"""When connect() will find no local port, from what holds ports now and what takes more of them; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

#: How long a socket stays in TIME_WAIT, in s: TCP_TIMEWAIT_LEN of include/net/tcp.h.
TIME_WAIT = 60
#: Growth is not believed to go on for longer, in s: what is further away is never.
HORIZON = 3600.0


class Holding(NamedTuple):
    """What holds the ports towards one upstream.

    ``open`` connections, and ``waiting`` sockets in TIME_WAIT whose port connect() can't take; at most ``limit``.
    ``closes`` a second leave a port behind for ``hold`` seconds each, and each second there are ``growth``
    connections more.
    """

    open: int
    waiting: int
    limit: int
    closes: float
    growth: float
    hold: float


def time_to_exhaustion(holding: Holding, expiries: Callable[[], Sequence[float]]) -> float | None:
    """Return in how many seconds all ports will be held at the present rates, 0 if they are; None for never.

    ``expiries`` gives how many of those that wait will end in the first, second ... second of the next minute.
    """
    held = float(holding.open + holding.waiting)
    if held >= holding.limit:
        return 0.0
    grown = max(holding.growth, 0.0) * TIME_WAIT
    if held + holding.closes * holding.hold + grown >= holding.limit:
        left = _within_a_minute(holding, expiries())
        if left is not None:
            return left
    if holding.growth <= 0:
        return None
    # All that waits now is over then, and what is left behind meanwhile waits.
    missing = holding.limit - holding.open - grown - holding.closes * holding.hold
    left = TIME_WAIT + max(missing, 0.0) / holding.growth
    return left if left <= HORIZON else None


def _within_a_minute(holding: Holding, expiries: Sequence[float]) -> float | None:
    held = float(holding.open + holding.waiting)
    for second, expiring in zip_longest(range(TIME_WAIT), expiries, fillvalue=0.0):
        begun = min(max(holding.hold - second, 0.0), 1.0)
        change = holding.closes * begun + holding.growth - expiring
        if held + change >= holding.limit:
            return second + (holding.limit - held) / change
        held = max(held + change, 0.0)
    return None
