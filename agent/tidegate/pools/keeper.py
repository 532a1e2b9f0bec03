# SPDX-License-Identifier: Apache-2.0
"""Keeps one proxy in step with the breaker: reads it, writes the difference, reads again, and so on."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from tidegate.errors import DriverError
from tidegate.model.driver import UPDATE_BOUNDS, DriverRow, Result, Standing, Updates, Use
from tidegate.model.histogram import Distribution
from tidegate.pools.driver import Discovery, Driver, Wanted
from tidegate.pools.journal import Journal
from tidegate.pools.plan import Plan, is_done, plan

log = logging.getLogger("tidegate")

#: A proxy that is away or refuses is tried again after so many seconds, and then after twice that, up to the last.
_AGAIN, _AT_MOST = 0.1, 1.0
#: What a proxy says right after it was told may be of before: it is asked again until so many seconds have passed.
_SETTLES, _GLANCE = 0.5, 0.002


class Told(NamedTuple):
    """What an update did, for the record: ``changed`` are those whose use it was meant to change."""

    driver: str
    target: str
    result: Result
    changed: dict[str, str]
    exchanges: Sequence[tuple[str, str]]
    seconds: float
    error: str


class Keeper:
    """One driver of one pool, in a thread of its own, which ``start`` begins.

    ``name`` is the driver's within the pool; ``least`` how many endpoints are left at least, by the policy.
    ``acts`` is whether the pool's mode lets it write. ``record`` is told of each update, in the keeper's thread.
    """

    def __init__(
        self,
        pool: str,
        name: str,
        driver: Driver,
        journal: Journal,
        *,
        least: int,
        acts: bool,
        record: Callable[[Told], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool, self.name, self.driver, self._journal = pool, name, driver, journal
        self._record, self._clock = record, clock
        self._woken = threading.Condition()
        self._wanted: dict[str, int] = {}
        self._decided: float | None = None
        self._least, self._acts, self._ended, self._restores = least, acts, False, False
        self._discovery: Discovery | None = None
        self._uses: dict[str, Use] = {}
        self._standing, self._error = Standing.STARTING, ""
        self._refused: tuple[str, ...] = ()
        self._delay = 0.0
        self._replays = 0
        self._done: Wanted = {}
        self._counts = {result: _Counts() for result in Result}
        self._thread = threading.Thread(target=self._run, name=f"{pool} {name}", daemon=True)

    # What others call.

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def want(self, wanted: Wanted, decided: float) -> None:
        """Have these be out from now on, and no others; what was wanted before and isn't done yet is passed over.

        ``decided`` is when, by the clock.
        """
        with self._woken:
            if wanted != self._wanted:
                self._wanted = dict(wanted)
                if self._decided is None:
                    self._decided = decided
                self._woken.notify()

    def configure(self, *, least: int, acts: bool) -> None:
        """Take another policy."""
        with self._woken:
            if (least, acts) != (self._least, self._acts):
                self._least, self._acts = least, acts
                self._woken.notify()

    def end(self, *, restore: bool) -> None:
        """Have the thread end after what it does now; with ``restore`` it puts back first what was found."""
        with self._woken:
            self._ended, self._restores = True, restore
            self._woken.notify()

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end; tell whether it came."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def row(self) -> DriverRow:
        """Return what there is to show."""
        found = self._discovery
        return DriverRow(
            pool=self.pool,
            driver=self.name,
            target=self.driver.target,
            version=found.version if found else "",
            standing=self._standing,
            uses=self._uses,
            refused=self._refused,
            error=self._error,
            warnings=(*found.refusals, *found.warnings) if found else (),
            replays=self._replays,
            updates=tuple(counts.row(self.pool, self.name, result) for result, counts in self._counts.items()),
        )

    # What its thread does.

    def _run(self) -> None:
        while self._wait():
            self.turn()
        if self._restores:
            self._restore()
        self.driver.close()

    def _wait(self) -> bool:
        """Wait until there is something to do, or it is time to read again; False at the end."""
        with self._woken:
            has_to_act = self._decided is not None or self._standing is Standing.STARTING
            if not self._ended and (self._delay or not has_to_act):
                self._woken.wait(self._delay or self.driver.period)
            return not self._ended

    def turn(self) -> None:
        """Read, write the difference and read again, once."""
        with self._woken:
            wanted, decided, acts = dict(self._wanted), self._decided, self._acts
            least = self._least
            self._decided = None
        began = self._clock() if decided is None else decided
        try:
            if self._discovery is None:
                self._discovery = self.driver.discover()
            self._uses = self.driver.read()
            if acts or self._journal.entries:
                self._reconcile(plan(wanted if acts else {}, self._uses, least), began)
            else:
                self._refused = ()
                self._settle(Standing.OK, "")
        except DriverError as error:
            self._fail(error, began, again=decided)

    def _reconcile(self, planned: Plan, began: float) -> None:
        self._refused = planned.refused
        changed = self._difference(planned.out)
        if not changed and not self._is_behind(planned.out):
            self._settle_by(planned, began, {}, [])
            return
        if self._done == planned.out and self._standing is Standing.OK:
            self._replays += 1
        with self._journal.turn():
            exchanges = self.driver.apply(planned.out)
        self._uses = self.driver.read()
        deadline = self._clock() + _SETTLES
        while not is_done(planned.out, self._uses) and self._clock() < deadline:
            time.sleep(_GLANCE)
            self._uses = self.driver.read()
        self._settle_by(planned, began, changed, exchanges)

    def _settle_by(
        self, planned: Plan, began: float, changed: dict[str, str], exchanges: Sequence[tuple[str, str]]
    ) -> None:
        if not is_done(planned.out, self._uses):
            others = ", ".join(f"{name} {use}" for name, use in self._uses.items())
            message = f"{self.driver.target}: it was told, but says: {others}; it is told again"
            self._tell(Result.UNVERIFIED, began, changed, exchanges, message)
            self._settle(Standing.BEHIND, message)
            return
        self._done = planned.out
        if changed or exchanges:
            self._tell(Result.OK, began, changed, exchanges, "")
        if planned.refused:
            message = (
                f"{self.driver.target}: {', '.join(planned.refused)} can't be taken out: too few endpoints that "
                "it uses would be left; min_healthy of the pool is the bound"
            )
            if self._error != message:
                self._tell(Result.REFUSED, began, dict.fromkeys(planned.refused, "refused"), (), message)
            self._settle(Standing.BEHIND, message)
            self._delay = 0.0
        else:
            self._settle(Standing.OK, "")

    def _difference(self, out: Wanted) -> dict[str, str]:
        """Return whose use has to change, and to what."""
        changed = {}
        for endpoint, use in self._uses.items():
            permits = out.get(endpoint)
            if permits is None and use in (Use.EJECTED, Use.TRIAL):
                changed[endpoint] = str(Use.ACTIVE)
            elif permits == 0 and use in (Use.ACTIVE, Use.TRIAL, Use.FAILED):
                changed[endpoint] = str(Use.EJECTED)
            elif permits and use is Use.EJECTED:
                changed[endpoint] = str(Use.TRIAL)
        return changed

    def _is_behind(self, out: Wanted) -> bool:
        """Tell whether there is something to write although each use is right, as leftovers of a journal."""
        return bool(self._journal.entries) and (self._done != out or not out)

    def _restore(self) -> None:
        began = self._clock()
        try:
            if self._journal.entries:
                with self._journal.turn():
                    exchanges = self.driver.restore()
                self._tell(Result.OK, began, {}, exchanges, "")
        except DriverError as error:
            self._fail(error, began, again=None)

    def _fail(self, error: DriverError, began: float, again: float | None) -> None:
        self._tell(Result.FAILED, began, {}, error.exchanges, str(error))
        if error.away:
            self._uses = {}
            self._discovery = None  # another version may come back
        self._settle(Standing.AWAY if error.away else Standing.BEHIND, str(error))
        with self._woken:
            if self._decided is None:
                self._decided = again

    def _settle(self, standing: Standing, error: str) -> None:
        if error:
            self._delay = min(max(2 * self._delay, _AGAIN), _AT_MOST)
        else:
            self._delay = 0.0
        if error != self._error:
            if error:
                log.error("pools: %s: %s: %s", self.pool, self.name, error)
            else:
                log.info("pools: %s: %s: in step again with %s", self.pool, self.name, self.driver.target)
        self._standing, self._error = standing, error

    def _tell(
        self,
        result: Result,
        began: float,
        changed: dict[str, str],
        exchanges: Sequence[tuple[str, str]],
        error: str,
    ) -> None:
        seconds = max(self._clock() - began, 0.0)
        self._counts[result].add(seconds)
        if not error or error != self._error:  # each failure once
            self._record(Told(self.name, self.driver.target, result, changed, exchanges, seconds, error))


class _Counts:
    """How many updates ended in one way, and after how long."""

    def __init__(self) -> None:
        self._buckets = [0] * (len(UPDATE_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._buckets[bisect_left(UPDATE_BOUNDS, seconds)] += 1
        self._sum += seconds

    def row(self, pool: str, driver: str, result: Result) -> Updates:
        buckets = tuple(accumulate(self._buckets))
        none = None  # of an interval there is nothing to tell: updates are rare
        distribution = Distribution(
            p50=none, p90=none, p99=none, count=buckets[-1], sum=self._sum, buckets=buckets
        )
        return Updates(pool=pool, driver=driver, result=result, count=buckets[-1], seconds=distribution)
