# SPDX-License-Identifier: Apache-2.0
"""Statistics that are asked for again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from tidegate.errors import DriverError
from tidegate.feeds.polled import LONGEST, Statistics
from tidegate.model.breaker import Event, Kind

pytestmark = pytest.mark.unit

EVENT = Event("inventory", "10.0.0.6:5000", Kind.HTTP, code=500)


class Proxy:
    """Gives what it was told to, one after the other, then nothing any more."""

    def __init__(self, *answers: int | str | float) -> None:
        self.now = 0.0
        self._answers, self._done = list(answers), threading.Event()

    def fetch(self) -> int:
        while self._answers:
            answer = self._answers.pop(0)
            if isinstance(answer, float):
                self.now += answer
            elif isinstance(answer, str):
                raise DriverError(answer, away=True)
            else:
                return answer
        self._done.set()
        raise DriverError("no more", away=True)

    def polled(self, take: Callable[[Event], object]) -> Statistics[int]:
        """Return the statistics, when all answers are taken."""
        statistics = Statistics(
            "proxy",
            self.fetch,
            lambda before, after: [EVENT] * (after - before),
            lambda events: [take(event) for event in events],
            period=0.001,
            clock=lambda: self.now,
        )
        assert self._done.wait(10)
        statistics.stop()
        return statistics


def test_events_are_the_differences_of_samples() -> None:
    found: list[Event] = []
    statistics = Proxy(5, 7, 7, 10).polled(found.append)
    assert found == [EVENT] * 5
    assert statistics.last == 10
    counts = statistics.counts()
    assert (counts["samples"], counts["events"], counts["too_late"]) == (4, 5, 0)


def test_errors_are_counted_and_told_when_they_change(caplog: pytest.LogCaptureFixture) -> None:
    found: list[Event] = []
    with caplog.at_level(logging.INFO, "tidegate"):
        statistics = Proxy("away", "away", 1, "refused", "away", 4).polled(found.append)
    assert found == [EVENT] * 3  # of the time in which there was no sample too
    assert [record.message.removeprefix("breaker: ") for record in caplog.records] == [
        "no statistics of proxy: away",
        "statistics of proxy again",
        "no statistics of proxy: refused",
        "no statistics of proxy: away",
        "statistics of proxy again",
        "no statistics of proxy: no more",
    ]
    assert statistics.error == "no more"
    assert statistics.counts()["failed"] >= 5


def test_what_happened_long_ago_is_not_charged() -> None:
    found: list[Event] = []
    statistics = Proxy(1, "away", 0.001 * LONGEST + 0.001, 9, 11).polled(found.append)
    assert found == [EVENT] * 2
    assert statistics.counts()["too_late"] == 1
