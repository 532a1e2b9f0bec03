# SPDX-License-Identifier: Apache-2.0
"""A proxy's statistics, asked for again and again, as events."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tidegate.errors import TidegateError
from tidegate.model.breaker import Event

log = logging.getLogger("tidegate")

S = TypeVar("S")
#: What happened in an interval that is longer, in periods, is too old to be charged.
LONGEST = 10


class Statistics(Generic[S]):
    """Calls ``fetch`` every ``period`` seconds in a thread and gives ``take`` the events between two samples.

    ``fetch`` must end by itself, and raises TidegateError where there is no sample: that is counted, and logged
    when the error changes. The next sample then tells of the whole time, unless that was too long. ``name`` is
    what is asked, for the log. Events are given in the thread. End it with :meth:`stop`.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[], S],
        difference: Callable[[S, S], Sequence[Event]],
        take: Callable[[Sequence[Event]], object],
        *,
        period: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._fetch, self._difference, self._take = name, fetch, difference, take
        self._period, self._clock = period, clock
        self._last: tuple[float, S] | None = None
        self._counts = {"samples": 0, "failed": 0, "too_late": 0, "events": 0}
        self.error = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tidegate-statistics", daemon=True)
        self._thread.start()

    @property
    def last(self) -> S | None:
        """The last sample, None where there is none yet."""
        last = self._last
        return None if last is None else last[1]

    def counts(self) -> dict[str, int]:
        """Return how many samples there were, how many failed or came too late to be compared, and the events."""
        return dict(self._counts)

    def stop(self) -> None:
        """Ask no more; returns when the thread has ended."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        self._turn()
        while not self._stopping.wait(self._period):
            self._turn()

    def _turn(self) -> None:
        try:
            sample = self._fetch()
        except TidegateError as error:
            self._counts["failed"] += 1
            if str(error) != self.error:
                self.error = str(error)
                log.warning("breaker: no statistics of %s: %s", self._name, error)
            return
        if self.error:
            log.info("breaker: statistics of %s again", self._name)
            self.error = ""
        before, now = self._last, self._clock()
        self._last = now, sample
        self._counts["samples"] += 1
        if before is None:
            return
        if now - before[0] > LONGEST * self._period:
            self._counts["too_late"] += 1
            return
        events = self._difference(before[1], sample)
        if events:
            self._counts["events"] += len(events)
            self._take(events)
