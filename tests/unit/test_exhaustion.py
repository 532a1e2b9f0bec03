# SPDX-License-Identifier: Apache-2.0
"""Forecasts against a simulation that hands out ports one by one."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.ports.exhaustion import HORIZON, Holding, time_to_exhaustion

pytestmark = pytest.mark.unit


def holding(
    open: int = 0,  # noqa: A002
    waiting: int = 0,
    limit: int = 400,
    closes: float = 0.0,
    growth: float = 0.0,
    hold: float = 60.0,
) -> Holding:
    return Holding(open, waiting, limit, closes, growth, hold)


@pytest.mark.parametrize(
    ("case", "seconds"),
    [
        (holding(), None),
        (holding(open=400), 0.0),
        (holding(open=100, waiting=300), 0.0),
        (holding(limit=0), 0.0),
        (holding(closes=20), 20.0),
        (holding(closes=200), 2.0),
        # 6.6 a second hold 396 ports, 6.7 hold 402.
        (holding(closes=6.6), None),
        (holding(closes=6.7), 400 / 6.7),
        # What connects holds its port for a second, as with tcp_tw_reuse.
        (holding(closes=399, hold=1.0), None),
        (holding(closes=800, hold=1.0), 0.5),
        # A steady load: as many end as are left behind.
        (holding(waiting=300, closes=5.0), None),
        # The load has doubled.
        (holding(waiting=300, closes=10.0), 20.0),
        # Connections that are never closed.
        (holding(open=100, growth=2.0), 150.0),
        (holding(open=100, growth=0.01), None),
        (holding(open=399, growth=-1.0), None),
    ],
)
def test_cases(case: Holding, seconds: float | None) -> None:
    told = time_to_exhaustion(case, lambda: [case.waiting / 60] * 60)
    assert told == (None if seconds is None else pytest.approx(seconds, rel=0.01))


def simulated(rate: int, limit: int, already: int) -> float | None:
    """Connect and close ``rate`` times a second, after ``already`` ports were left behind just now."""
    waiting = deque([60.0] * already)
    for n in range(rate * 130):
        now = n / rate
        while waiting and waiting[0] <= now:
            waiting.popleft()
        if len(waiting) >= limit:
            return now
        waiting.append(now + 60.0)
    return None


@given(rate=st.integers(1, 60), limit=st.integers(1, 600), already=st.integers(0, 600))
def test_a_steady_load_is_foretold(rate: int, limit: int, already: int) -> None:
    truth = simulated(rate, limit, already)
    expiries = [0.0] * 59 + [float(already)]
    told = time_to_exhaustion(holding(waiting=already, limit=limit, closes=rate), lambda: expiries)
    if truth is None or told is None:
        # At the very edge the two may differ: one port.
        assert truth == told or abs(rate * 60 - limit) <= rate
    else:
        assert told == pytest.approx(truth, abs=1.0)


@given(
    st.builds(
        Holding,
        open=st.integers(0, 70_000),
        waiting=st.integers(0, 70_000),
        limit=st.integers(0, 65_536),
        closes=st.floats(0, 1e6),
        growth=st.floats(-1e6, 1e6),
        hold=st.floats(0, 60),
    ),
    st.lists(st.floats(0, 70_000), min_size=1, max_size=60),
)
def test_it_is_never_negative_and_within_the_horizon(case: Holding, expiries: list[float]) -> None:
    told = time_to_exhaustion(case, lambda: expiries)
    assert told is None or 0 <= told <= HORIZON


@given(limit=st.integers(1, 60_000), closes=st.floats(0.1, 5000))
def test_more_ports_last_longer(limit: int, closes: float) -> None:
    short, long = (time_to_exhaustion(holding(limit=n, closes=closes), list) for n in (limit, limit + 100))
    assert long is None or (short is not None and short < long)
