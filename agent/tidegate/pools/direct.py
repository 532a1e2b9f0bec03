# SPDX-License-Identifier: Apache-2.0
"""Keeps the kernel in step with the breaker: at once, in the breaker's own turn."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from tidegate.errors import TidegateError
from tidegate.model.driver import DriverRow, Result, Standing, Use
from tidegate.pools.driver import Wanted
from tidegate.pools.failfast import FailfastDriver, Refusals, endpoint_of
from tidegate.pools.updates import Told, Updating

log = logging.getLogger("tidegate")


class Direct:
    """Fail-fast for one pool: quick and sure enough to need neither a thread nor a second look.

    ``refusals`` is None where the kernel can't, which has been said.
    """

    name = "failfast"

    def __init__(
        self,
        pool: str,
        refusals: Refusals | None,
        endpoints: tuple[str, ...],
        record: Callable[[Told], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool, self.endpoints = pool, endpoints
        by_name = {name: endpoint_of(name) for name in endpoints}
        self._driver = FailfastDriver(refusals, by_name) if refusals else None
        self._discovery = self._driver.discover() if self._driver else None
        self._updating = Updating(pool, self.name, FailfastDriver.target, record, clock)
        self._error = "" if self._driver else "the kernel can't refuse connects here, see the agent's log"

    @property
    def works(self) -> bool:
        """Whether there is a driver."""
        return self._driver is not None

    def want(self, wanted: Wanted, decided: float) -> None:
        """Have connects to these be refused, all but so many to each, and to no others."""
        if self._driver is None:
            return
        try:
            exchanges = self._driver.apply(wanted)
        except TidegateError as error:
            self._updating.tell(Result.FAILED, decided, {}, [], str(error))
            if str(error) != self._error:
                log.error("pools: %s: %s: %s", self.pool, self.name, error)
            self._error = str(error)
            return
        self._error = ""
        self._updating.is_well()
        if exchanges:
            changed = {exchange.command.split(" ", 1)[0]: exchange.command for exchange in exchanges}
            self._updating.tell(Result.OK, decided, changed, exchanges)

    def row(self) -> DriverRow:
        """Return what there is to show."""
        uses: Mapping[str, Use] = {}
        if self._driver is not None:
            try:
                uses = self._driver.read()
            except TidegateError as error:
                self._error = str(error)
        return DriverRow(
            pool=self.pool,
            driver=self.name,
            target=FailfastDriver.target,
            version=self._discovery.version if self._discovery else "",
            standing=Standing.BEHIND if self._error else Standing.OK,
            uses=dict(uses),
            error=self._error,
            warnings=self._discovery.warnings if self._discovery else (),
            updates=self._updating.rows(),
        )
