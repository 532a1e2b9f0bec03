# SPDX-License-Identifier: Apache-2.0
"""The breaker of a running agent: what the kernel tells goes into the engine, what that decides to drivers."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from tidegate.audit import Action as Audited
from tidegate.audit import Actor, Audit, agent
from tidegate.breaker.configured import members
from tidegate.breaker.engine import Engine
from tidegate.breaker.evidence import event_of
from tidegate.breaker.recorded import details_of, details_of_update, text_of
from tidegate.breaker.repeats import Repeats
from tidegate.breaker.sight import Ways, evidence_of, vitals_of
from tidegate.config.pools import FailfastDriver, Pool
from tidegate.errors import TidegateError
from tidegate.http.watch import HttpWatch
from tidegate.kernel import endpoints as kernel
from tidegate.model.breaker import Decision, Event, Kind, PoolRow
from tidegate.model.outliers import Freeze, Member
from tidegate.model.snapshot import View
from tidegate.pools.failfast import endpoint_of
from tidegate.pools.keepers import Keepers
from tidegate.pools.updates import Told

log = logging.getLogger("tidegate")

#: Of an outlier that stays nothing is said again for so many seconds.
REPEATED = 60.0
#: Leases are renewed, and requests that wait too long are looked for, after so many seconds.
_RENEWED, _LISTENED = 1.0, 0.1


class Breaker:
    """All pools of this node. Any thread may call; what they do takes turns.

    ``keepers`` makes the drivers, given what is to be told of each update. ``cgroups`` are those that there are,
    with their services.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        freeze: Freeze,
        http: HttpWatch,
        keepers: Callable[[Callable[[Told], None]], Keepers],
        audit: Audit,
        cgroups: Callable[[], Mapping[int, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http, self._audit, self._cgroups = http, audit, cgroups
        self._clock = clock
        self._turn = threading.Lock()
        self._engine = Engine(freeze, now=clock(), seed=time.time_ns())
        self._keepers = keepers(self._told)
        self._out: frozenset[str] = frozenset()  # pools of which drivers keep somebody out
        self._members: dict[str, Member] = {}
        #: The pool and the name of each endpoint, and back.
        self._of: dict[kernel.Endpoint, tuple[str, str]] = {}
        self._at: dict[tuple[str, str], kernel.Endpoint] = {}
        self._counted: dict[kernel.Endpoint, kernel.Seen] = {}
        self._ways, self._repeats = Ways(), Repeats(REPEATED)
        self._heard: Counter[tuple[str, str]] = Counter()  # answers that proxies told of
        self._before: View | None = None
        self._wanted: Mapping[str, Pool] | None = pools
        self._renewed = self._listened = float("-inf")
        with self._turn:
            self._take_config(clock())

    @property
    def fd(self) -> int:
        """Readable when something speaks against an endpoint: then call :meth:`read`."""
        return self._http.endpoints.fd

    def names(self) -> dict[str, str]:
        """Return the pool of each endpoint."""
        return {str(endpoint): pool for endpoint, (pool, _) in self._of.items()}

    # What happens.

    def read(self) -> None:
        """Take what the kernel has told, and do what follows."""
        with self._turn:
            self._follow_up(self._gather(self._clock()))

    def _gather(self, now: float, *, all_successes: bool = False) -> list[Decision]:
        """Take what was told, and with it the successes before each; all of them only where that is asked.

        What is read first is taken last, so that a success that came before a failure is never counted after it,
        and a trial is known before what came of it.
        """
        seen = self._http.endpoints.seen() if all_successes else {}
        evidence = self._http.endpoints.evidence()
        self._begin_trials(now)
        decisions: list[Decision] = []
        for told in evidence:
            try:
                decisions += self._take(told, now)
            except TidegateError as error:
                log.error("breaker: what was seen of %s isn't charged: %s", told.endpoint, error)
        for endpoint, counted in seen.items():
            decisions += self._count(endpoint, counted, now)
        return decisions

    def beat(self) -> None:
        """Do what is due by the clock alone; to be called several times a second."""
        with self._turn:
            now = self._clock()
            if now - self._renewed >= _RENEWED:
                self._keepers.beat()
                self._renewed = now
            if now - self._listened >= _LISTENED and any(
                member.policy.response_timeout for member in self._members.values()
            ):
                self._listened = now
                self._http.find_silence()
            if now >= self._engine.next_sweep:
                self._sweep(now)

    def tick(self, view: View) -> tuple[PoolRow, ...]:
        """Take a view of this node, count successes, and return what there is to show."""
        with self._turn:
            now = self._clock()
            try:
                self._take_config(now)
            except TidegateError as error:
                log.error("pools: the new ones are not taken, the old ones stay: %s", error)
            decisions = [*self._engine.vitals(vitals_of(view, self._before), now)]
            self._before = view
            self._ways.read(view.endpoints, frozenset(str(endpoint) for endpoint in self._of))
            decisions += self._gather(now, all_successes=True)
            self._time()
            self._follow_up(decisions)
            refusals = self._keepers.refusals
            if refusals is not None:
                refusals.follow(self._cgroups())
            rows = self._rows()
        if refusals is not None:
            refusals.end_idle()
        return rows

    def configure(self, pools: Mapping[str, Pool]) -> None:
        """Take the pools of another config at the next tick."""
        self._wanted = pools

    def blind(self) -> frozenset[tuple[str, str]]:
        """Return the (pool, endpoint) whose answers the kernel can't read."""
        return frozenset(self._of[at] for at, seen in list(self._counted.items()) if seen.is_encrypted)

    def hear(self, events: Iterable[Event]) -> int:
        """Take what a proxy says of endpoints, where the kernel can't read their answers; return of how many.

        Of the others the kernel has told already.
        """
        heeded = 0
        with self._turn:
            now, blind = self._clock(), self.blind()
            decisions: list[Decision] = []
            for event in events:
                if (event.pool, event.endpoint) in blind:
                    heeded += event.count
                    self._heard[event.pool, event.endpoint] += event.count
                    decisions += self._engine.observe(event, now)
            if heeded:
                self._follow_up(decisions)
        return heeded

    def _take(self, told: kernel.Evidence, now: float) -> Iterable[Decision]:
        known = self._of.get(told.endpoint)
        if known is None:  # not any more
            return ()
        pool, name = known
        at = min(told.at_ns / 1e9, now)
        before = self._counted.get(told.endpoint)
        refused, encrypted = (before.refused, before.is_encrypted) if before else (0, False)
        seen = kernel.Seen(told.connected, told.answered, refused, encrypted)
        decisions = [*self._count(told.endpoint, seen, at)]
        charge = event_of(evidence_of(told, pool, name), self._members[pool].policy, at)
        if charge.event is not None:
            decisions += self._engine.observe(charge.event, at)
        else:
            self._engine.pool(pool).release(name, began=at - told.age_ns / 1e9)
        return decisions

    def _time(self) -> None:
        """Tell the engine of the answers since the last tick that were slow, where that is asked."""
        asked = {
            (pool, name): self._members[pool].policy.slow_response_threshold for pool, name in self._of.values()
        }
        wanted = {name: seconds for (_, name), seconds in asked.items() if seconds is not None}
        found = self._http.timed(wanted)
        for (pool, name), seconds in asked.items():
            if seconds is not None:
                self._engine.pool(pool).timed(name, *found[name])

    def _count(self, endpoint: kernel.Endpoint, seen: kernel.Seen, now: float) -> Iterable[Decision]:
        """Tell the engine of the successes since the last time."""
        if endpoint not in self._of:
            return ()
        pool, name = self._of[endpoint]
        before = self._counted.get(endpoint, kernel.Seen(0, 0, 0, seen.is_encrypted))
        connected, answered = seen.connected - before.connected, seen.answered - before.answered
        self._counted[endpoint] = seen._replace(
            connected=max(seen.connected, before.connected), answered=max(seen.answered, before.answered)
        )
        decisions: list[Decision] = []
        if connected > 0:
            decisions += self._engine.observe(Event(pool, name, Kind.CONNECT_OK, count=connected), now)
        if answered > 0:
            kind, code = (Kind.ANSWERED, None) if seen.is_encrypted else (Kind.HTTP, 200)
            if seen.is_encrypted and (pool, name) in self._heard:
                # Its proxy tells the status of each: that there was one only ends failures of connections.
                detection = self._members[pool].policy.outlier_detection
                kind, code = Kind.CONNECT_OK, 200 if detection.split_external_local_origin_errors else None
            decisions += self._engine.observe(Event(pool, name, kind, code=code, count=answered), now)
        return decisions

    def _begin_trials(self, now: float) -> None:
        """Tell the engine of the trials that the driver has let through."""
        refusals = self._keepers.refusals
        for endpoint, trials in refusals.begun().items() if refusals else ():
            if endpoint in self._of:
                pool, name = self._of[endpoint]
                for _ in range(trials):
                    self._engine.pool(pool).acquire(name, now)

    def _sweep(self, now: float) -> None:
        decisions = self._gather(now, all_successes=True)
        for pool, member in self._members.items():
            found = self._engine.pool(pool)
            if found.next_sweep <= now:
                found.measure(self._ways.since_last(member.endpoints))
        self._follow_up([*decisions, *self._engine.sweep(now)])

    # What people change.

    def change(self, how: str, pool: str, endpoint: str, *, force: bool, by: Actor) -> str:
        """Open, close or reset the circuit of an endpoint; raises UsageError for what can't be.

        Returns why nothing comes of it, or an empty string.
        """
        with self._turn:
            now, found = self._clock(), self._engine.pool(pool)
            if how == "open":
                decisions = found.open(endpoint, now, force=force)
            else:
                decisions = found.close(endpoint, now) if how == "close" else found.reset(endpoint, now)
            self._follow_up(decisions, by)
            if any(not decision.enforced for decision in decisions):
                return f"the pool's mode is {self._members[pool].policy.mode}"
            if not self._keepers.acts(pool):
                return "no driver keeps callers from it"
            return ""

    def rows(self) -> tuple[PoolRow, ...]:
        """Return what there is to show of all pools."""
        with self._turn:
            return self._rows()

    def _rows(self) -> tuple[PoolRow, ...]:
        """Add to the engine's rows what the kernel alone knows of endpoints, and what became of it all."""
        drivers = self._keepers.rows()
        known = {self._of[endpoint]: seen for endpoint, seen in self._counted.items()}
        return tuple(
            msgspec.structs.replace(
                pool,
                endpoints=tuple(
                    msgspec.structs.replace(
                        row,
                        is_encrypted=seen.is_encrypted,
                        refused=seen.refused,
                        heard=self._heard[pool.pool, row.endpoint],
                    )
                    for row in pool.endpoints
                    if (seen := known[pool.pool, row.endpoint])
                ),
                drivers=drivers.get(pool.pool, ()),
            )
            for pool in self._engine.rows()
        )

    # What follows.

    def _follow_up(self, decisions: Iterable[Decision], by: Actor | None = None) -> None:
        """Have the driver do it, then put it on the record."""
        self._apply()
        for decision in self._repeats.news(decisions):
            log.warning("breaker: %s", text_of(decision))
            self._record(decision, by or agent())

    def _apply(self) -> None:
        now, out = self._clock(), self._engine.out()
        for pool in self._out - out.keys():
            self._keepers.want(pool, {}, {}, now)
        for pool, (refused, taken_out) in out.items():
            self._keepers.want(pool, refused, taken_out, now)
        self._out = frozenset(out)

    def _record(self, decision: Decision, by: Actor) -> None:
        self._audit.record(
            Audited.BREAKER,
            by=by,
            subject=decision.endpoint or None,
            reason=decision.reason,
            details=details_of(decision),
        )

    def _told(self, told: Told) -> None:
        """Put an update of a driver on the record; called in the driver's thread."""
        self._audit.record(Audited.POOL, by=agent(), reason=str(told.result), details=details_of_update(told))

    # What the config changes.

    def _take_config(self, now: float) -> None:
        pools, self._wanted = self._wanted, None
        if pools is None:
            return
        wanted = members(pools)
        of = {
            endpoint_of(address): (name, address)
            for name, member in wanted.items()
            for address in member.endpoints
        }
        # Before all else, as it may be refused.
        self._http.watch(
            {endpoint: wanted[name].policy.response_timeout or 0.0 for endpoint, (name, _) in of.items()}
        )
        decisions: list[Decision] = []
        for name in self._members.keys() - wanted.keys():
            decisions += self._engine.remove_pool(name, now)
        for name, member in wanted.items():
            decisions += self._engine.set_pool(name, member.policy, member.endpoints, now)
        self._members = wanted
        self._of, self._at = of, {key: endpoint for endpoint, key in of.items()}
        self._heard = Counter({key: count for key, count in self._heard.items() if key in self._at})
        seen = self._http.endpoints.seen()
        self._counted = {endpoint: self._counted.get(endpoint, count) for endpoint, count in seen.items()}
        self._keepers.configure(pools, wanted)
        refusals = self._keepers.refusals
        if refusals is not None:
            refusals.choose(
                {self._at[name, address]: patterns for (name, address), patterns in self._services(pools)}
            )
            refusals.follow(self._cgroups())
        self._keepers.beat()
        self._follow_up(decisions)

    def _services(self, pools: Mapping[str, Pool]) -> Iterator[tuple[tuple[str, str], list[str]]]:
        """Yield whose connects are refused, by endpoint of the pools that have the kernel refuse them."""
        for name, pool in pools.items():
            drivers = [driver for driver in pool.drivers if isinstance(driver, FailfastDriver)]
            for address in pool.endpoints if drivers else ():
                yield (name, address), [pattern for driver in drivers for pattern in driver.services]

    def close(self) -> None:
        """Put back what was done to proxies."""
        with self._turn:
            self._keepers.close()
