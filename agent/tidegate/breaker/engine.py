# SPDX-License-Identifier: Apache-2.0
"""All pools of this node: (event, monotonic time) to decisions, held back while the node itself is ill."""

from __future__ import annotations

import math
from collections.abc import Collection
from random import Random

from tidegate.breaker.ejections import NONE, TOLERANCE
from tidegate.breaker.freeze import TOGETHER, Gate, Together, Verdict
from tidegate.breaker.pool import Pool
from tidegate.errors import UsageError
from tidegate.model.breaker import Action, Decision, Event, PoolRow, Vitals
from tidegate.model.outliers import Freeze, Policy


class Engine:
    """The breaker. No thread, clock or file of its own: the caller brings events and the time.

    Call :meth:`observe` with each event, :meth:`sweep` from :attr:`next_sweep` on, :meth:`vitals` with each
    reading of the node. What they return is to be written down, and done where ``enforced``; :meth:`refused` says
    the same as a state. Times are CLOCK_MONOTONIC in seconds; one that goes back stands still.
    """

    def __init__(self, freeze: Freeze | None = None, *, now: float = 0.0, seed: int = 0) -> None:
        self._gate = Gate(freeze or Freeze())
        self._together = Together(self._gate.limits.window)
        self._random = Random(seed)
        self._pools: dict[str, Pool] = {}
        self._vitals = Vitals()
        self._now = now
        self.unknown = 0
        self.next_sweep = math.inf

    # Pools.

    def set_pool(self, name: str, policy: Policy, endpoints: Collection[str], now: float) -> tuple[Decision, ...]:
        """Add a pool, or change its policy and endpoints and keep its state."""
        now = self._at(now)
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = Pool(name, policy, endpoints, now, self._random)
            decisions = pool.freeze(self._gate.reasons, now, 0.0) if self._gate.frozen else NONE
        else:
            decisions = pool.configure(policy, now) + pool.set_endpoints(endpoints, now)
        self._schedule()
        return decisions

    def remove_pool(self, name: str, now: float) -> tuple[Decision, ...]:
        """Forget a pool; what was done about its endpoints is undone."""
        decisions = self.pool(name).set_endpoints((), self._at(now))
        del self._pools[name]
        self._together.forget(name)
        self._schedule()
        return decisions

    def pool(self, name: str) -> Pool:
        """Return a pool, for ``open``, ``close``, ``reset``, ``acquire`` and ``release``."""
        pool = self._pools.get(name)
        if pool is None:
            raise UsageError(f"expected one of the pools ({', '.join(self._pools) or 'none'}), found {name!r}")
        return pool

    @property
    def at_rest(self) -> bool:
        """Whether sweeps change nothing until something happens."""
        return not self.frozen and all(pool.at_rest for pool in self._pools.values())

    @property
    def owners(self) -> dict[str, str]:
        """The pool of each endpoint."""
        return {address: name for name, pool in self._pools.items() for address in pool.addresses}

    # What happens.

    def observe(self, event: Event, now: float) -> tuple[Decision, ...]:
        """Count an event and return what follows at once."""
        if now > self._now:
            self._now = now
        else:
            now = self._now
        pool = self._pools.get(event.pool)
        if pool is None:
            self.unknown += 1
            return NONE
        if event.kind in TOGETHER and pool.has(event.endpoint):
            decisions = self._correlate(pool, event, now)
            if decisions:
                return decisions + pool.observe(event, now)
        return pool.observe(event, now)

    def _correlate(self, pool: Pool, event: Event, now: float) -> tuple[Decision, ...]:
        """Before a failure to connect is charged: see whether others fail in the same way."""
        pool.seen = now
        if not self._together.failed(pool.name, event.endpoint, len(pool), now):
            return NONE
        return self._judge(now)

    def vitals(self, vitals: Vitals, now: float) -> tuple[Decision, ...]:
        """Take a reading of this node, and freeze or thaw by it."""
        self._vitals = vitals
        return self._judge(self._at(now))

    def sweep(self, now: float) -> tuple[Decision, ...]:
        """Sweep the pools that are due."""
        now = self._at(now)
        decisions = [*self._judge(now)]
        for pool in self._pools.values():
            if pool.next_sweep <= now + TOLERANCE:
                decisions += pool.sweep(now)
        self._schedule()
        return tuple(decisions)

    def _judge(self, now: float) -> tuple[Decision, ...]:
        failing = self._together.failing(now)
        used = 0
        if failing >= self._gate.limits.pools:
            since = now - self._gate.limits.window
            used = sum(pool.seen >= since for pool in self._pools.values())
        verdict = self._gate.judge(self._vitals, failing, used, now)
        if verdict is None:
            return NONE
        return self._put_in_force(verdict, now)

    def _put_in_force(self, verdict: Verdict, now: float) -> tuple[Decision, ...]:
        action = Action.FREEZE if verdict.frozen else Action.UNFREEZE
        decisions: tuple[Decision, ...] = (
            Decision(
                t=now,
                pool="",
                endpoint="",
                action=action,
                reason=",".join(verdict.reasons),
                evidence=verdict.evidence,
            ),
        )
        for pool in self._pools.values():
            if verdict.frozen:
                decisions += pool.freeze(verdict.reasons, now, self._gate.limits.window)
            else:
                pool.thaw(now)
        return decisions

    # What is shown, and done.

    @property
    def frozen(self) -> tuple[str, ...]:
        """Why nobody is ejected now; empty where that isn't so."""
        return self._gate.reasons

    def refused(self) -> dict[tuple[str, str], int]:
        """Return the (pool, endpoint) that drivers are to refuse, and how many trials may pass to each."""
        return {
            (name, address): permits
            for name, pool in self._pools.items()
            for address, permits in pool.refused().items()
        }

    def out(self) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
        """Return, of each pool that has any, to whom connects are refused, and whom proxies are to take out."""
        return {name: (refused, pool.out()) for name, pool in self._pools.items() if (refused := pool.refused())}

    def rows(self) -> tuple[PoolRow, ...]:
        """Return what is shown of all pools."""
        return tuple(pool.row() for pool in self._pools.values())

    def _at(self, now: float) -> float:
        self._now = max(self._now, now)
        return self._now

    def _schedule(self) -> None:
        self.next_sweep = min((pool.next_sweep for pool in self._pools.values()), default=math.inf)
