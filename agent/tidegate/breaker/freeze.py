# SPDX-License-Identifier: Apache-2.0
"""Whether this node is in a state to judge others: its own shortages, and pools that fail together."""

from __future__ import annotations

import math
from typing import NamedTuple

from tidegate.model.breaker import Kind, Number, Vitals
from tidegate.model.outliers import Freeze

#: Frozen stays frozen down to this part of what led to it.
_RELEASE = 0.75
#: What shows the state of this node if it happens to many at a time. Requests without an answer don't: what all
#: endpoints wait for may be one database.
TOGETHER = frozenset((Kind.CONNECT_REFUSED, Kind.CONNECT_TIMEOUT, Kind.CONNECT_UNREACHABLE, Kind.RESET))
#: The name of the reason that is no reading of the node.
UNRELATED_POOLS = "unrelated_pools"
#: So many failures of a pool say something.
_FEWEST = 2
_SHARES = ("steal", "cpu_pressure", "memory_pressure", "io_pressure", "retransmits")
_COUNTS = ("lost_events", "ports_exhausted")


class Verdict(NamedTuple):
    """A change: frozen or not any more, why, and the numbers."""

    frozen: bool
    reasons: tuple[str, ...]
    evidence: dict[str, Number]


class _Mark(NamedTuple):
    """When an endpoint has failed last, and how often in a window."""

    last: float
    failures: int


class Together:
    """Which pools fail to connect as a whole: most of their endpoints, whoever is behind them.

    A machine that dies takes some endpoints of each pool with it. What takes most of the endpoints of most pools
    at a time is on this node. Pools that fail at one and the same address are related, and count as one. A single
    failure says nothing, also where it is of a pool's only endpoint.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._marks: dict[str, dict[str, _Mark]] = {}
        self._looked: dict[str, float] = {}
        self._failing: dict[str, float] = {}

    def failed(self, pool: str, endpoint: str, hosts: int, now: float) -> bool:
        """Note a failure to connect; tell whether its pool of ``hosts`` endpoints begins to fail as a whole."""
        marks = self._marks.setdefault(pool, {})
        known = marks.get(endpoint)
        failures = 1 if known is None or now - known.last > self._window else known.failures + 1
        marks[endpoint] = _Mark(now, failures)
        # All endpoints are looked at where one is new among the failing, else once in a while.
        if failures > _FEWEST and now - self._looked.get(pool, -math.inf) < self._window / 10:
            return False
        self._looked[pool] = now
        recent = {at: mark for at, mark in marks.items() if now - mark.last <= self._window}
        self._marks[pool] = recent
        if 2 * len(recent) <= hosts or sum(mark.failures for mark in recent.values()) < _FEWEST:
            return False
        began = now - self._failing.get(pool, -math.inf) > self._window
        self._failing[pool] = now
        return began

    def failing(self, now: float) -> int:
        """Count the unrelated pools that fail as a whole."""
        self._failing = {pool: time for pool, time in self._failing.items() if now - time <= self._window}
        seen: set[str] = set()
        count = 0
        for pool in self._failing:
            hosts = {endpoint.rpartition(":")[0] for endpoint in self._marks[pool]}
            count += seen.isdisjoint(hosts)
            seen |= hosts
        return count

    def forget(self, pool: str) -> None:
        """Forget a pool that is no more."""
        for known in (self._marks, self._looked, self._failing):
            known.pop(pool, None)


class Gate:
    """Frozen from the first reading that is over a limit, until all are well below for ``hold`` seconds.

    A value that isn't measured (None) freezes nothing, and keeps nothing frozen.
    """

    def __init__(self, limits: Freeze) -> None:
        self.limits = limits
        self.reasons: tuple[str, ...] = ()
        self.since: float | None = None
        self._ill_at = -math.inf

    @property
    def frozen(self) -> bool:
        """Whether nobody is to be ejected now."""
        return bool(self.reasons)

    def judge(self, vitals: Vitals, failing: int, pools: int, now: float) -> Verdict | None:
        """Judge a reading, and how many of the pools in use fail as a whole; None where nothing changes."""
        over = self._over(vitals, failing, pools, 1.0)
        if not self.frozen:
            if not over:
                return None
            self.reasons, self.since, self._ill_at = tuple(over), now, now
            return Verdict(True, self.reasons, over)
        if self._over(vitals, failing, pools, _RELEASE):
            self._ill_at = now
            self.reasons = tuple(dict.fromkeys((*self.reasons, *over)))
            return None
        if now - self._ill_at < self.limits.hold:
            return None
        reasons, lasted = self.reasons, now - (now if self.since is None else self.since)
        self.reasons, self.since = (), None
        return Verdict(False, reasons, {"frozen_seconds": lasted})

    def _over(self, vitals: Vitals, failing: int, pools: int, part: float) -> dict[str, Number]:
        """Return what is at or over its limit, or that part of it; a share's limit of 1 is none."""
        over: dict[str, Number] = {}
        for name in _SHARES:
            share: float | None = getattr(vitals, name)
            limit: float = getattr(self.limits, name)
            # A reading that is late makes a share of a little more than all.
            if share is not None and limit < 1 and share >= limit * part:
                over[name] = share
        for name in _COUNTS:
            count: int | None = getattr(vitals, name)
            if count is not None and count >= getattr(self.limits, name):
                over[name] = count
        if failing >= self.limits.pools and failing >= self.limits.pools_share * pools:
            over[UNRELATED_POOLS] = failing
        return over
