# SPDX-License-Identifier: Apache-2.0
"""Samples the limiter's sources as often as that is cheap, and tells which begin to be over their limits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from tidegate.errors import TidegateError
from tidegate.kernel.layouts import RatelimitKey
from tidegate.ratelimit.heaviest import Entry, Heavy, Sample, sample

log = logging.getLogger("tidegate")

#: A sample may take this share of one CPU.
SHARE = 0.01
#: What takes so many seconds is not done while somebody waits, nor are rates told of less.
LONG = 0.5
#: A source is told of again when nothing of it was refused for so many seconds.
QUIET = 60.0


class SourceWatch:
    """The last sample of the tables' sources, made in a thread of its own, as a million of them takes seconds.

    ``sources`` and ``requesting`` read the two tables. ``latest`` is None before the first sample is whole.
    """

    def __init__(
        self,
        sources: Callable[[], Iterable[Entry]],
        requesting: Callable[[], Iterable[Entry]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources, self._requesting, self._clock = sources, requesting, clock
        self._worker = ThreadPoolExecutor(1, "tidegate-sources")
        self._under_way: Future[Sample] | None = None
        self._due = float("-inf")
        self._over: dict[RatelimitKey, float] = {}
        self.latest: Sample | None = None
        self._earlier: Sample | None = None

    def now(self) -> Sample:
        """Return a sample of now, or the latest where it would take long."""
        latest, begun = self.latest, self._clock()
        if latest is not None and self._due - latest.time > LONG / SHARE:
            return latest
        is_older = latest is None or begun - latest.time >= LONG
        return sample(begun, self._sources(), self._requesting(), latest if is_older else self._earlier)

    def tick(self) -> list[Heavy]:
        """Begin a sample where one is due; return who has begun to be over, as one that has ended says."""
        crossed: list[Heavy] = []
        if self._under_way is not None and self._under_way.done():
            try:
                found = self._under_way.result()
            except TidegateError as error:
                log.error("rate limit: the sources can't be read: %s", error)
            else:
                crossed = [] if self.latest is None else self._crossed(found)
                self._earlier, self.latest = self.latest, found
            self._under_way = None
        if self._under_way is None and self._clock() >= self._due:
            self._under_way = self._worker.submit(self._sample)
        return crossed

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown()

    def _sample(self) -> Sample:
        begun = self._clock()
        try:
            return sample(begun, self._sources(), self._requesting(), self.latest)
        finally:
            self._due = begun + (self._clock() - begun) / SHARE

    def _crossed(self, found: Sample) -> list[Heavy]:
        crossed = []
        for heavy in found.heavy:
            if not (heavy.refused if heavy.refused_rate is None else heavy.refused_rate):
                continue
            if found.time - self._over.get(heavy.key, float("-inf")) > QUIET:
                crossed.append(heavy)
            self._over[heavy.key] = found.time
        self._over = {key: last for key, last in self._over.items() if found.time - last <= QUIET}
        return crossed
