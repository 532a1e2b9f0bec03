# SPDX-License-Identifier: Apache-2.0
"""What is told and counted of the updates of a driver."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from tidegate.model.driver import UPDATE_BOUNDS, Result, Updates
from tidegate.model.histogram import Distribution


class Told(NamedTuple):
    """What an update did, for the record: ``changed`` are those whose use it was meant to change."""

    pool: str
    driver: str
    target: str
    result: Result
    changed: dict[str, str]
    exchanges: Sequence[tuple[str, str]]
    seconds: float
    error: str


class Updating:
    """The updates of one driver: counts each by how it ended, and tells ``record`` of each, of a failure once."""

    def __init__(
        self, pool: str, driver: str, target: str, record: Callable[[Told], None], clock: Callable[[], float]
    ) -> None:
        self._pool, self._driver, self._target = pool, driver, target
        self._record, self._clock = record, clock
        self._counts = {result: _Count() for result in Result}
        self._failure = ""

    def tell(
        self,
        result: Result,
        began: float,
        changed: dict[str, str],
        exchanges: Sequence[tuple[str, str]],
        error: str = "",
    ) -> None:
        """Take an update that was decided at ``began`` and has ended now."""
        seconds = max(self._clock() - began, 0.0)
        self._counts[result].add(seconds)
        if not error or error != self._failure:
            self._failure = error
            self._record(Told(self._pool, self._driver, self._target, result, changed, exchanges, seconds, error))

    def is_well(self) -> None:
        """Tell of the next failure in any case."""
        self._failure = ""

    def rows(self) -> tuple[Updates, ...]:
        """Return what there is to show, of each result."""
        return tuple(count.row(self._pool, self._driver, result) for result, count in self._counts.items())


class _Count:
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
