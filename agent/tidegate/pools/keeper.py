# SPDX-License-Identifier: Apache-2.0
"""Keeps one proxy in step with the breaker: reads it, writes the difference, reads again, and so on."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tidegate.errors import DriverError, shown
from tidegate.model.driver import DriverRow, Result, Standing, Use
from tidegate.pools.driver import Discovery, Driver, Wanted
from tidegate.pools.journal import Journal
from tidegate.pools.plan import Plan, plan, undone
from tidegate.pools.updates import Told, Updating

log = logging.getLogger("tidegate")

#: A proxy that is away or refuses is tried again after so many seconds, and then after twice that, up to the last.
_AGAIN, _AT_MOST = 0.1, 1.0
#: What a proxy says right after it was told may be of before: it is asked again until so many seconds have passed.
_SETTLES, _GLANCE = 0.5, 0.002
#: So many endpoints stand in an error.
_LISTED = 8
#: How often the proxy itself is looked at anew.
_LOOKED = 30.0
#: While nothing is out, a proxy has nothing to forget, and is read after so many periods.
_CALM = 4
#: Keepers that began together must not ask one proxy together for ever: a wait differs by up to this share.
_SPREAD = 0.1
#: Others of the same proxy are waited for so long: they may never be able to put back what they did.
_PREDECESSORS = 10.0


class Mode(NamedTuple):
    """What a keeper may do by its pool's policy: read the proxy, write to it, but leave so many endpoints."""

    reads: bool
    acts: bool
    least: int


class Keeper:
    """One driver of one pool, in a thread of its own, which ``start`` begins.

    ``name`` is the driver's within the pool. ``record`` is told of each update, in the keeper's thread. With
    ``once`` the thread ends by itself when all is put back that the journal tells.
    """

    def __init__(
        self,
        pool: str,
        name: str,
        driver: Driver,
        journal: Journal,
        mode: Mode,
        record: Callable[[Told], None],
        *,
        once: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool, self.name, self.driver, self._journal = pool, name, driver, journal
        self._once, self._clock = once, clock
        self._settles = getattr(driver, "settles", _SETTLES)
        self._woken = threading.Condition()
        self._wanted: dict[str, int] = {}
        self._decided: float | None = None
        self._mode, self._ended, self._restores = mode, False, False
        self._after: tuple[Keeper, ...] = ()
        self._discovery: Discovery | None = None
        self._discovered = float("-inf")
        self._uses: dict[str, Use] = {}
        self._standing, self._error = Standing.STARTING, ""
        self._refused: tuple[str, ...] = ()
        self._delay = 0.0
        self._replays = 0
        self._done: Wanted = {}
        self._was: dict[str, Use] = {}
        self._sent: list[tuple[str, str]] = []
        self._updating = Updating(pool, name, driver.target, record, clock)
        self._thread = threading.Thread(target=self._run, name=f"{pool} {name}", daemon=True)

    # What others call.

    def start(self, after: Iterable[Keeper] = ()) -> None:
        """Begin, where there are others of the same proxy, after their end."""
        self._after = tuple(after)
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

    @property
    def wanted(self) -> Wanted:
        """Who is to be out."""
        with self._woken:
            return dict(self._wanted)

    def refusable(self, wanted: Wanted) -> tuple[str, ...]:
        """Return who of these would stay, by what the proxy last said, as too few would be left."""
        with self._woken:
            mode = self._mode
        return plan(wanted, self._uses, mode.least).refused if mode.acts else ()

    def configure(self, mode: Mode) -> None:
        """Take another mode."""
        with self._woken:
            if mode != self._mode:
                self._mode = mode
                self._woken.notify()

    def leave(self) -> None:
        """Have the thread end once all is put back, however long the proxy is away."""
        with self._woken:
            self._mode, self._once = Mode(reads=True, acts=False, least=0), True
            self._woken.notify()

    def end(self, *, restore: bool) -> None:
        """Have the thread end after what it does now; with ``restore`` it puts back first what was found."""
        with self._woken:
            self._ended, self._restores = True, restore
            self._woken.notify()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread's end; tell whether it came."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def row(self) -> DriverRow:
        """Return what there is to show."""
        found = self._discovery
        old = (found.old_workers if found else None) or (None, None)
        return DriverRow(
            pool=self.pool,
            driver=self.name,
            target=self.driver.target,
            version=shown(found.version) if found else "",
            standing=self._standing,
            uses=self._uses,
            refused=self._refused,
            error=self._error,
            warnings=tuple(map(shown, (*found.refusals, *found.warnings))) if found else (),
            replays=self._replays,
            old_workers=old[0],
            old_worker_bytes=old[1],
            updates=self._updating.rows(),
        )

    # What its thread does.

    def _run(self) -> None:
        self._follow()
        while self._wait():
            self.turn()
            if self._once and not self._journal.entries:
                break
        if self._restores:
            self._restore()
        self.driver.close()

    def _follow(self) -> None:
        """Wait for the end of those before."""
        end = self._clock() + _PREDECESSORS
        while self._after and not self._ended and self._clock() < end:
            if self._after[0].join(_AGAIN):
                self._after = self._after[1:]
        self._after = ()

    def _wait(self) -> bool:
        """Wait until there is something to do, or it is time to read again; False at the end."""
        with self._woken:
            has_to_act = self._decided is not None or self._standing is Standing.STARTING
            if not self._ended and (self._delay or not has_to_act):
                period = self.driver.period * (1 if self._journal.entries else _CALM)
                self._woken.wait((self._delay or period) * random.uniform(1 - _SPREAD, 1))
            return not self._ended

    def turn(self) -> None:
        """Read, write the difference and read again, once."""
        with self._woken:
            wanted, decided, mode = dict(self._wanted), self._decided, self._mode
            self._decided = None
        began = self._clock() if decided is None else decided
        try:
            self._journal.refresh()
            if not mode.reads and not self._journal.entries:
                self._uses, self._discovery, self._refused = {}, None, ()
                self._settle(Standing.OFF, "")
                return
            if self._discovery is None or self._clock() - self._discovered > _LOOKED:
                self._discovery, self._discovered = self.driver.discover(), self._clock()
            self._uses = self.driver.read()
            if mode.acts and self._discovery.refusals:
                found, self._discovery = self._discovery, None
                raise DriverError(f"{self.driver.target}: {'; '.join(found.refusals)}")
            if mode.acts or self._journal.entries:
                self._reconcile(plan(wanted if mode.acts else {}, self._uses, mode.least), began)
            else:
                self._refused = ()
                self._settle(Standing.OK, "")
        except DriverError as error:
            self._fail(error, began, again=decided)
        except Exception as error:
            # A fault of a driver must not end the keeper, or what is out would stay out for ever.
            fault = DriverError(f"a fault of this program: {error!r}")
            if str(fault) != self._error:
                log.exception("pools: %s: %s: a fault of this program; it is tried again", self.pool, self.name)
            self._fail(fault, began, again=decided)

    def _reconcile(self, planned: Plan, began: float) -> None:
        self._refused = planned.refused
        changed = self._difference(planned.out)
        if not changed and not self._is_behind(planned.out):
            self._settle_by(planned, began, {}, self._take_sent())
            return
        if self._done == planned.out and self._standing is Standing.OK:
            self._replays += 1
            self._discovery = None  # it may be another version by now
        with self._journal.turn():
            self._sent += self.driver.apply(planned.out)
        self._uses = self.driver.read()
        deadline = self._clock() + self._settles
        while undone(planned.out, self._uses) and self._clock() < deadline:
            if self._decided is not None or self._ended:
                return
            time.sleep(_GLANCE)
            self._uses = self.driver.read()
        self._settle_by(planned, began, changed, self._take_sent())

    def _take_sent(self) -> list[tuple[str, str]]:
        """Return what was sent since the last record: a decision may have been passed over."""
        sent, self._sent = self._sent, []
        return sent

    def _settle_by(
        self, planned: Plan, began: float, changed: dict[str, str], exchanges: Sequence[tuple[str, str]]
    ) -> None:
        if says := undone(planned.out, self._uses):
            others = ", ".join(f"{name} {self._uses[name]}" for name in says[:_LISTED])
            others += f" and {len(says) - _LISTED} more" if len(says) > _LISTED else ""
            message = f"{self.driver.target}: it was told, but says: {others}; it is told again"
            self._updating.tell(Result.UNVERIFIED, began, changed, exchanges, message)
            self._settle(Standing.BEHIND, message)
            self._come_back_to(began)
            return
        self._done, self._was = planned.out, self._uses
        if changed or exchanges:
            self._updating.tell(Result.OK, began, changed, exchanges, "")
        if planned.refused:
            message = (
                f"{self.driver.target}: {shown(', '.join(planned.refused))} can't be taken out: too few endpoints "
                "that it uses would be left; min_healthy of the pool is the bound"
            )
            if self._error != message:
                self._updating.tell(Result.REFUSED, began, dict.fromkeys(planned.refused, "refused"), (), message)
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
        """Tell whether there is something to write although each use is right.

        That are leftovers of a journal, and a limit of trials that the proxy has forgotten.
        """
        if self._journal.entries and (self._done != out or not out):
            return True
        return any(
            permits and self._was.get(name) is Use.TRIAL is not self._uses[name] for name, permits in out.items()
        )

    def _restore(self) -> None:
        began = self._clock()
        try:
            if self._journal.entries:
                with self._journal.turn():
                    exchanges = self.driver.restore()
                self._updating.tell(Result.OK, began, {}, [*self._take_sent(), *exchanges], "")
        except DriverError as error:
            self._fail(error, began, again=None)
        except Exception:
            log.exception("pools: %s: %s: a fault of this program; it isn't put back", self.pool, self.name)

    def _fail(self, error: DriverError, began: float, again: float | None) -> None:
        if again is not None or self._restores or self._wanted or self._journal.entries:
            # Else it was only to be read.
            self._updating.tell(Result.FAILED, began, {}, [*self._take_sent(), *error.exchanges], str(error))
        if error.away:
            self._uses = {}
            self._discovery = None  # another version may come back
        self._settle(Standing.AWAY if error.away else Standing.BEHIND, str(error))
        self._come_back_to(again)

    def _come_back_to(self, decided: float | None) -> None:
        """Try a decision again, after the delay."""
        with self._woken:
            if self._decided is None:
                self._decided = decided

    def _settle(self, standing: Standing, error: str) -> None:
        if error:
            self._delay = min(max(2 * self._delay, _AGAIN), _AT_MOST)
        else:
            self._delay = 0.0
            self._updating.is_well()
        if error != self._error:
            if error:
                log.error("pools: %s: %s: %s", self.pool, self.name, error)
            else:
                log.info("pools: %s: %s: in step again with %s", self.pool, self.name, self.driver.target)
        self._standing, self._error = standing, error
