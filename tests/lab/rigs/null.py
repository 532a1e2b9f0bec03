# SPDX-License-Identifier: Apache-2.0
"""The null driver, which is its own proxy."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.lab.rigs.rig import ENDPOINTS
from tidegate.model.driver import Use
from tidegate.pools.driver import Driver
from tidegate.pools.journal import Journal
from tidegate.pools.null import NullDriver


class NullRig:
    """Nothing but the driver."""

    name = "null"
    has_operator = False
    can_be_away = False

    def __init__(self) -> None:
        self._uses = dict.fromkeys(ENDPOINTS, Use.ACTIVE)

    def driver(self, journal: Journal) -> Driver:
        driver = NullDriver(ENDPOINTS, journal)
        driver.uses = self._uses  # what another one has remembered
        return driver

    def state(self) -> Any:
        return dict(self._uses)

    def reached(self, requests: int) -> Counter[str]:
        active = [endpoint for endpoint, use in self._uses.items() if use is not Use.EJECTED]
        return Counter(active[number % len(active)] for number in range(requests))

    def hold(self, endpoint: str) -> None:
        raise NotImplementedError

    release = hold

    def restart(self) -> None:
        self._uses.update(dict.fromkeys(ENDPOINTS, Use.ACTIVE))

    stop = start = restart
