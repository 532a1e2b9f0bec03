# SPDX-License-Identifier: Apache-2.0
"""What is told and counted of the updates of a driver."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
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


class Counts:
    """How many updates of a driver there were, by how they ended, and after how long."""

    def __init__(self) -> None:
        self._of = {result: _Count() for result in Result}

    def add(self, result: Result, seconds: float) -> None:
        """Count one that took so long from the decision."""
        self._of[result].add(seconds)

    def rows(self, pool: str, driver: str) -> tuple[Updates, ...]:
        """Return what there is to show, of each result."""
        return tuple(count.row(pool, driver, result) for result, count in self._of.items())


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
