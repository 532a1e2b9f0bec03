# SPDX-License-Identifier: Apache-2.0
"""All drivers of all pools: made, changed and ended as the config says, and told what the breaker wants."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tidegate.config.pools import AnyDriver, FailfastDriver, Pool
from tidegate.errors import DriverError
from tidegate.model.driver import DriverRow, Standing
from tidegate.model.outliers import Member, Policy
from tidegate.pools import making
from tidegate.pools.direct import Direct
from tidegate.pools.driver import Wanted
from tidegate.pools.failfast import Refusals
from tidegate.pools.keeper import Keeper, Mode
from tidegate.pools.lease import Lease
from tidegate.pools.updates import Told

log = logging.getLogger("tidegate")

#: How long the agent's end waits for proxies to take back what was put to them.
_PATIENCE = 6.0
_ACTING = ("enforce", "forced_open")
_OFF = ("off", "disabled")


_Key = tuple[str, str]  # of a pool and the driver's name in it


class _Wanted(NamedTuple):
    """What the config asks for."""

    section: AnyDriver | None
    endpoints: tuple[str, ...]
    mode: Mode


class _Unmade(NamedTuple):
    """What could not be made of what the config asks for, and why."""

    asked: _Wanted
    error: str


class _Made(NamedTuple):
    """What a keeper was made of."""

    section: AnyDriver | None
    endpoints: tuple[str, ...]
    keeper: Keeper


class Keepers:
    """All drivers; one thread at a time calls.

    ``refusals`` gives what has the kernel refuse connects, when the first pool asks for it; None where it can't.
    ``journal`` is the directory of the journals, ``lease`` what puts them back when the agent dies.
    """

    def __init__(
        self,
        journal: Path,
        lease: Lease,
        refusals: Callable[[], Refusals | None],
        record: Callable[[Told], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal, self._lease, self._make_refusals = journal, lease, refusals
        self._record, self._clock = record, clock
        self.refusals: Refusals | None = None
        self._made: dict[_Key, _Made] = {}
        self._unmade: dict[_Key, _Unmade] = {}
        self._direct: dict[str, Direct] = {}
        self._leaving: list[Keeper] = []
        self._is_first = True

    # What the config changes.

    def configure(self, pools: Mapping[str, Pool], members: Mapping[str, Member]) -> None:
        """Take the pools of a config; what was done about those that it lacks is put back."""
        wanted: dict[_Key, _Wanted] = {}
        direct: dict[str, tuple[str, ...]] = {}
        for pool, member in members.items():
            mode = mode_of(member.policy)
            if not pools[pool].drivers:
                wanted[pool, "null"] = _Wanted(None, member.endpoints, mode)
            for name, section in making.names(pools[pool].drivers):
                if isinstance(section, FailfastDriver):
                    direct[pool] = member.endpoints
                else:
                    wanted[pool, name] = _Wanted(section, member.endpoints, mode)
        if self._is_first:
            self._is_first = False
            self._put_back_leftovers({key: asked.section for key, asked in wanted.items()})
        self._leaving = [keeper for keeper in self._leaving if not keeper.join(0)]
        for key in self._made.keys() - wanted.keys():
            self._leave(key)
        for key in self._unmade.keys() - wanted.keys():
            del self._unmade[key]
        for key, asked in wanted.items():
            self._make(key, asked)
        self._configure_direct(direct)
        if any(asked.mode.acts and asked.section is not None for asked in wanted.values()):
            self._lease.begin()

    def _make(self, key: _Key, asked: _Wanted) -> None:
        """Have a keeper as the config asks for it: go on with the one that there is, or begin another.

        Where that can't be made, the one that there is goes on until it can.
        """
        made = self._made.get(key)
        if made is not None and (made.section, made.endpoints) == (asked.section, asked.endpoints):
            made.keeper.configure(asked.mode)
            self._unmade.pop(key, None)
            return
        try:
            journal = making.journal_of(self._journal, *key, asked.section, asked.endpoints)
            driver = making.make(asked.section, asked.endpoints, journal)
        except DriverError as error:
            if key not in self._unmade or self._unmade[key].error != str(error):
                log.error("pools: %s: %s: %s", *key, error)
            self._unmade[key] = _Unmade(asked, str(error))
            return
        self._unmade.pop(key, None)
        keeper = Keeper(*key, driver, journal, asked.mode, self._record, clock=self._clock)
        after: list[Keeper] = []
        if made is not None and made.section == asked.section:
            before = self._made.pop(key).keeper  # what is out of the same proxy stays so
            before.end(restore=False)
            keeper.want(
                {name: left for name, left in before.wanted.items() if name in asked.endpoints}, self._clock()
            )
            after.append(before)
        elif made is not None:
            self._leave(key)
        # What others did to the same proxy would look like an operator's doing, or as what was there before.
        after += [leaving for leaving in self._leaving if leaving.driver.target == driver.target]
        keeper.start(after)
        self._made[key] = _Made(asked.section, asked.endpoints, keeper)

    def _leave(self, key: _Key) -> None:
        keeper = self._made.pop(key).keeper
        keeper.leave()
        self._leaving.append(keeper)

    def _put_back_leftovers(self, wanted: Mapping[_Key, AnyDriver | None]) -> None:
        """Put back what an earlier agent has left behind of drivers that aren't there any more, or are others."""
        found, complaints = making.kept_in(self._journal)
        for complaint in complaints:
            log.error("pools: %s", complaint)
        for path, kept in found:
            key = kept.pool, kept.driver
            try:
                if key in wanted and wanted[key] == making.section_of(path, kept):
                    continue
                driver, journal = making.from_journal(path, kept)
            except DriverError as error:
                log.error("pools: %s", error)
                continue
            log.warning("pools: %s: %s: what an earlier agent left is put back", *key)
            mode = Mode(reads=True, acts=False, least=0)
            keeper = Keeper(*key, driver, journal, mode, self._record, once=True, clock=self._clock)
            keeper.start()
            self._leaving.append(keeper)

    def _configure_direct(self, wanted: Mapping[str, tuple[str, ...]]) -> None:
        if wanted and self.refusals is None:
            self.refusals = self._make_refusals()
        for pool, direct in list(self._direct.items()):
            if direct.endpoints != wanted.get(pool):
                self._direct.pop(pool).want({}, self._clock())
        for pool, endpoints in wanted.items():
            if pool not in self._direct:
                self._direct[pool] = Direct(pool, self.refusals, endpoints, self._record, self._clock)

    # What the breaker wants.

    def want(self, pool: str, refused: Wanted, out: Wanted, decided: float) -> None:
        """Tell the drivers of a pool; ``refused`` is for the kernel, with the permits that are left.

        The kernel refuses nobody whom a proxy of the pool can't do without; what proxies say of that changes, so
        this is to be called now and then while somebody is out.
        """
        keepers = [made.keeper for (of, _), made in self._made.items() if of == pool]
        direct = self._direct.get(pool)
        if direct is not None:
            needed = {endpoint for keeper in keepers for endpoint in keeper.refusable(out)}
            direct.want({name: left for name, left in refused.items() if name not in needed}, decided)
        for keeper in keepers:
            keeper.want(out, decided)

    def acts(self, pool: str) -> bool:
        """Tell whether a pool has a driver that keeps anybody from an endpoint."""
        return any(of == pool and made.section is not None for (of, _), made in self._made.items()) or (
            pool in self._direct and self._direct[pool].works
        )

    def beat(self) -> None:
        """Have what is out stay out for another while, and make what could not be made."""
        if self.refusals is not None:
            self.refusals.renew()
        self._lease.renew()
        for key, unmade in list(self._unmade.items()):
            self._make(key, unmade.asked)

    def rows(self) -> dict[str, tuple[DriverRow, ...]]:
        """Return what there is to show, by pool."""
        found: dict[str, list[DriverRow]] = {}
        for pool, direct in self._direct.items():
            found.setdefault(pool, []).append(direct.row())
        for (pool, name), made in self._made.items():
            if (pool, name) not in self._unmade:
                found.setdefault(pool, []).append(made.keeper.row())
        for (pool, name), unmade in self._unmade.items():
            found.setdefault(pool, []).append(_row(pool, name, unmade))
        return {pool: tuple(rows) for pool, rows in found.items()}

    def close(self) -> None:
        """Put back all that was done, and wait for it; what can't be put back now is the lease's."""
        keepers = [*self._leaving, *(made.keeper for made in self._made.values())]
        for keeper in keepers:
            keeper.end(restore=True)
        end = self._clock() + _PATIENCE
        late = [keeper for keeper in keepers if not keeper.join(max(end - self._clock(), 0.0))]
        for keeper in late:
            log.error("pools: %s: %s: could not be put back in time", keeper.pool, keeper.name)
        self._lease.end(is_whole=not late and not _any_left(self._journal))


def mode_of(policy: Policy) -> Mode:
    """Return what drivers may do by a policy; a proxy is left without any endpoint only where that says so."""
    empties = policy.outlier_detection.max_ejection_percent >= 100
    least = policy.min_healthy or (0 if empties else 1)
    return Mode(reads=policy.mode not in _OFF, acts=policy.mode in _ACTING, least=least)


def _row(pool: str, name: str, unmade: _Unmade) -> DriverRow:
    section = unmade.asked.section
    target = name if section is None else making.name_of(section)
    return DriverRow(
        pool=pool, driver=name, target=target, version="", standing=Standing.BEHIND, uses={}, error=unmade.error
    )


def _any_left(journal: Path) -> bool:
    try:
        return any(journal.glob("*.json"))
    except OSError:
        return False
