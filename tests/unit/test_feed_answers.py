# SPDX-License-Identifier: Apache-2.0
"""Sums of answers as events: all of them, and no failures in a row but those that are certain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.breaker.pool import Pool
from tidegate.feeds.answers import MOST, Answers, events_of
from tidegate.model.breaker import Action, Event, Kind
from tidegate.model.outliers import OutlierDetection, Policy

pytestmark = pytest.mark.unit

INTERVALS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), max_size=6)


def certain(intervals: list[tuple[int, int]]) -> int:
    """Return how many failures in a row there were at least, whatever the order within each interval was."""
    most = 0
    while not _fits(intervals, most):
        most += 1
    return most


def _fits(intervals: list[tuple[int, int]], most: int) -> bool:
    row = 0
    for successes, failures in intervals:
        if not successes:
            row += failures
        else:  # as many as fit before the first success, between them, and the rest behind the last
            row = max(0, failures - (most - row) - (successes - 1) * most)
        if row > most:
            return False
    return True


def fires(intervals: list[tuple[int, int]], consecutive: int) -> bool:
    detection = OutlierDetection(consecutive_5xx=consecutive, max_ejection_percent=100)
    pool = Pool("p", Policy(mode="enforce", min_healthy=0, outlier_detection=detection), ["e"], 0.0)
    return any(
        decision.action is Action.EJECT
        for successes, failures in intervals
        for event in events_of("p", "e", Answers(successes, failures))
        for decision in pool.observe(event, 1.0)
    )


@given(INTERVALS, st.integers(1, 20))
def test_no_failures_in_a_row_are_invented(intervals: list[tuple[int, int]], consecutive: int) -> None:
    if fires(intervals, consecutive):
        assert certain(intervals) >= consecutive


@pytest.mark.parametrize(
    ("intervals", "row"),
    [
        ([(0, 5)], 5),
        ([(0, 2), (0, 0), (0, 3)], 5),  # failures alone go on
        ([(100, 5)], 1),  # five of 105 that failed, nobody knows when
        ([(0, 4), (1, 1)], 4),
        ([(1, 1), (0, 4)], 4),
        ([(1, 9)], 5),
        ([(3, 0)], 0),
    ],
)
def test_what_is_certain_counts(intervals: list[tuple[int, int]], row: int) -> None:
    assert not fires(intervals, row + 1)
    assert row == 0 or fires(intervals, row)


@given(st.integers(0, 10**5), st.integers(0, 10**5), st.booleans())
def test_every_answer_is_in_the_events_and_they_are_bounded(successes: int, failures: int, is_anew: bool) -> None:
    events = events_of("p", "e", Answers(successes, failures, 7, is_anew))
    assert sum(event.count for event in events if event.code == 500) == failures
    assert sum(event.count for event in events if event.code == 200) == successes
    assert len(events) <= MOST + 1
    assert all(event.count > 0 for event in events)


def test_what_was_before_a_new_begin_is_not_gone_on_from() -> None:
    old, new = Answers(0, 4), Answers(0, 4, is_anew=True)
    assert events_of("p", "e", old) == [Event("p", "e", Kind.HTTP, code=500, count=4)]
    assert events_of("p", "e", new) == [Event("p", "e", Kind.HTTP, code=500, count=4, run=1)]
    assert old.plus(Answers(1, 2, 3)) == Answers(1, 6, 3)
    assert old.plus(new).is_anew
