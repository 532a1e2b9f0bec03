# SPDX-License-Identifier: Apache-2.0
"""All pools together: their beats, their coming and going, chance, time."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.test_breaker_pool import A, B, policy, words
from tidegate.breaker.engine import Engine
from tidegate.breaker.repeats import Repeats
from tidegate.errors import UsageError
from tidegate.model.breaker import Action, Event, Kind

pytestmark = pytest.mark.unit


def test_pools_have_their_own_beats() -> None:
    engine = Engine()
    engine.set_pool("a", policy(), (A,), 0.0)
    quick = msgspec.structs.replace(policy().outlier_detection, interval=1.5)
    engine.set_pool("b", policy(outlier_detection=quick), (B,), 1.0)
    assert engine.next_sweep == 2.5
    engine.sweep(2.5)
    assert engine.next_sweep == 4.0
    engine.sweep(10.0)
    assert engine.next_sweep == 11.5
    engine.remove_pool("b", 11.0)
    assert engine.next_sweep == 20.0


def test_a_pool_that_goes_lets_its_endpoints_back() -> None:
    engine = Engine()
    engine.set_pool("a", policy(), (A, B), 0.0)
    for _ in range(3):
        engine.observe(Event("a", A, Kind.CONNECT_REFUSED), 0.0)
    assert engine.refused() == {("a", A): 0}
    assert words(engine.remove_pool("a", 1.0)) == [f"uneject {A} removed"]
    with pytest.raises(UsageError, match=r"expected one of the pools \(none\), found 'a'"):
        engine.pool("a")
    assert engine.observe(Event("a", A, Kind.RESET), 2.0) == ()
    assert (engine.unknown, engine.rows()) == (1, ())


def test_the_latest_time_holds() -> None:
    engine = Engine()
    engine.set_pool("a", policy(), (A,), 0.0)
    engine.sweep(50.0)
    engine.sweep(5.0)
    (decision,) = engine.observe(Event("a", A, Kind.HTTP, 500, count=3), 10.0)
    assert (decision.t, decision.until) == (50.0, 60.0)


def test_jitter_is_within_its_bounds_and_seeded() -> None:
    def untils(seed: int) -> list[float | None]:
        engine = Engine(seed=seed)
        detection = msgspec.structs.replace(policy().outlier_detection, max_ejection_time_jitter=4.0)
        engine.set_pool("a", policy(outlier_detection=detection), [f"10.0.1.{n}:1" for n in range(1, 31)], 0.0)
        events = [Event("a", f"10.0.1.{n}:1", Kind.HTTP, 500, count=3) for n in range(1, 31)]
        return [decision.until for event in events for decision in engine.observe(event, 0.0)]

    first = untils(1)
    assert first == untils(1) != untils(2)
    assert len(set(first)) > 20
    assert all(until is not None and 10.0 <= until <= 14.0 for until in first)


def test_a_percentage_that_is_enforced_is_about_that() -> None:
    engine = Engine(seed=3)
    detection = msgspec.structs.replace(policy().outlier_detection, enforcing_consecutive_5xx=30)
    endpoints = [f"10.0.{n >> 8}.{n & 255}:1" for n in range(1000)]
    engine.set_pool("a", policy(outlier_detection=detection), endpoints, 0.0)
    said = [engine.observe(Event("a", at, Kind.HTTP, 500, count=3), 0.0)[0].action for at in endpoints]
    assert 250 <= said.count(Action.EJECT) <= 350
    assert said.count(Action.EJECT) + said.count(Action.LOG_ONLY) == 1000


def test_a_log_has_each_transition_and_the_first_word_of_the_rest() -> None:
    engine, repeats = Engine(), Repeats(10.0)
    engine.set_pool("a", policy(min_healthy=1), (A, B), 0.0)
    found = [
        d for n in range(300) for at in (A, B) for d in engine.observe(Event("a", at, Kind.HTTP, 500), n / 20)
    ]
    assert len(found) == 101
    assert words(tuple(repeats.news(found))) == [
        f"eject {A} consecutive_5xx", f"overflow {B} consecutive_5xx", f"overflow {B} consecutive_5xx",
    ]  # fmt: skip
    (detections,) = engine.rows()[0].endpoints[1].detections
    assert (detections.action, detections.count) == ("overflow", 100)
    assert words(tuple(repeats.news(engine.sweep(20.0)))) == [f"uneject {A} elapsed"]
