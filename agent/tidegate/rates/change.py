# SPDX-License-Identifier: Apache-2.0
"""What became of a row between two samples."""

from __future__ import annotations

from typing import ClassVar

from tidegate.model import histogram
from tidegate.model.histogram import Distribution
from tidegate.signals.counts import Histogram
from tidegate.totals import Row


class RowChange:
    """A row at the begin and at the end of an interval, in seconds; ``declared`` are its histograms in order."""

    declared: ClassVar[tuple[Histogram, ...]]

    def __init__(self, before: Row, now: Row, interval: float) -> None:
        self.before, self.now, self.interval = before, now, interval

    def count(self, counter: int) -> int:
        """Return a total."""
        return self.now.counters[counter]

    def counts(self, first: int, names: tuple[str, ...]) -> dict[str, int]:
        """Return the totals that stand one after the other, by their names."""
        return dict(zip(names, self.now.counters[first : first + len(names)], strict=True))

    def added(self, first: int, length: int = 1) -> int:
        """Return what was added to some counters that stand one after the other."""
        now, before = self.now.counters, self.before.counters
        return sum(now[first : first + length]) - sum(before[first : first + length])

    def rate(self, first: int, length: int = 1) -> float:
        """Return the same per second."""
        return self.added(first, length) / self.interval if self.interval > 0 else 0.0

    def distribution(self, of: Histogram) -> Distribution:
        """Return a histogram in seconds."""
        place = self.declared.index(of)
        slots, earlier = self.now.histograms[place], self.before.histograms[place]
        latest = {} if slots is earlier else histogram.subtract(slots, earlier)
        buckets = histogram.cumulative(slots, of.shift, of.bounds)
        p50, p90, p99 = (
            None if value is None else value / 1e9
            for value in histogram.percentiles(latest, of.shift, (0.5, 0.9, 0.99))
        )
        return Distribution(
            p50=p50, p90=p90, p99=p99, count=buckets[-1], sum=self.count(of.total) / 1e9, buckets=buckets
        )
