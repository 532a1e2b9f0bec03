# SPDX-License-Identifier: Apache-2.0
"""The node's own health: when nobody is ejected, and what becomes of failures then."""

from __future__ import annotations

import msgspec
import pytest

from tidegate.breaker.engine import Engine
from tidegate.breaker.freeze import Gate, Together
from tidegate.model.breaker import Action, Decision, Event, Kind, Vitals, Way
from tidegate.model.outliers import Freeze, OutlierDetection, Policy

pytestmark = pytest.mark.unit
WELL = Vitals(
    steal=0.0,
    cpu_pressure=0.1,
    memory_pressure=0.0,
    io_pressure=0.0,
    lost_events=0,
    ports_exhausted=0,
    retransmits=0.001,
)
LIMITS = Freeze()
POLICY = Policy(
    mode="enforce",
    min_healthy=0,
    outlier_detection=OutlierDetection(
        consecutive_5xx=3, consecutive_local_origin_failure=3, max_ejection_percent=100
    ),
)


@pytest.mark.parametrize("name", WELL.__struct_fields__)
def test_each_value_freezes_at_its_limit(name: str) -> None:
    limit = getattr(LIMITS, name)
    below = limit * 0.999 if isinstance(limit, float) else limit - 1
    gate = Gate(LIMITS)
    assert gate.judge(msgspec.structs.replace(WELL, **{name: below}), 0, 0, 1.0) is None
    verdict = gate.judge(msgspec.structs.replace(WELL, **{name: limit}), 0, 0, 2.0)
    assert verdict == (True, (name,), {name: limit})
    assert gate.frozen
    assert gate.since == 2.0


def test_a_share_with_a_limit_of_all_never_freezes() -> None:
    gate = Gate(msgspec.structs.replace(LIMITS, cpu_pressure=1.0))
    assert gate.judge(msgspec.structs.replace(WELL, cpu_pressure=1.03), 0, 0, 1.0) is None


def test_what_is_not_measured_freezes_nothing() -> None:
    gate = Gate(LIMITS)
    assert gate.judge(Vitals(), 0, 0, 1.0) is None
    assert not gate.frozen


def test_it_thaws_when_all_was_well_for_a_while() -> None:
    gate = Gate(LIMITS)
    gate.judge(msgspec.structs.replace(WELL, steal=0.3), 0, 0, 0.0)
    assert gate.judge(WELL, 0, 0, 5.0) is None
    # Not over the limit any more, but near it: the time begins anew.
    assert gate.judge(msgspec.structs.replace(WELL, steal=0.16), 0, 0, 6.0) is None
    assert gate.judge(WELL, 0, 0, 15.9) is None
    verdict = gate.judge(WELL, 0, 0, 16.0)
    assert verdict == (False, ("steal",), {"frozen_seconds": 16.0})
    assert not gate.frozen


def test_further_reasons_join() -> None:
    gate = Gate(LIMITS)
    gate.judge(msgspec.structs.replace(WELL, steal=0.3), 0, 0, 0.0)
    gate.judge(msgspec.structs.replace(WELL, ports_exhausted=4), 0, 0, 1.0)
    assert gate.reasons == ("steal", "ports_exhausted")


def test_pools_that_fail_together_are_judged_by_their_number_and_share() -> None:
    assert Gate(LIMITS).judge(WELL, 1, 1, 0.0) is None
    assert Gate(LIMITS).judge(WELL, 2, 5, 0.0) is None
    assert Gate(LIMITS).judge(WELL, 2, 4, 0.0) == (True, ("unrelated_pools",), {"unrelated_pools": 2})


def test_a_pool_fails_as_a_whole_with_most_of_its_endpoints() -> None:
    together = Together(10.0)
    assert not together.failed("a", "10.0.0.1:1", 4, 0.0)
    assert not together.failed("a", "10.0.0.1:1", 4, 1.0)
    assert not together.failed("a", "10.0.0.2:1", 4, 1.0)
    assert together.failing(1.0) == 0
    assert together.failed("a", "10.0.0.3:1", 4, 2.0)
    assert not together.failed("a", "10.0.0.4:1", 4, 3.0)  # it fails already
    assert together.failing(3.0) == 1
    assert together.failing(13.1) == 0
    assert not together.failed("a", "10.0.0.1:1", 4, 13.2)
    together.forget("a")
    assert together.failing(3.0) == 0


def test_pools_at_one_address_are_related() -> None:
    together = Together(10.0)
    for pool, endpoint, failing in (("a", "10.0.0.1:1", 1), ("b", "10.0.0.1:2", 1), ("c", "[fd00::1]:2", 2)):
        assert [together.failed(pool, endpoint, 1, 0.0) for _ in range(3)] == [False, True, False]
        assert together.failing(0.0) == failing


def test_one_failure_of_an_only_endpoint_says_nothing() -> None:
    together = Together(10.0)
    assert [together.failed("a", "10.0.0.1:1", 1, 11.0 * n) for n in range(5)] == [False] * 5
    assert together.failing(44.0) == 0


# The engine.


def engine(pools: int = 2, endpoints: int = 2) -> Engine:
    made = Engine()
    for pool in range(pools):
        made.set_pool(f"p{pool}", POLICY, [at(pool, number) for number in range(endpoints)], 0.0)
    return made


def at(pool: int, number: int) -> str:
    return f"10.0.{pool}.{number}:80"


def fail(of: Engine, pool: int, number: int, now: float, kind: Kind = Kind.CONNECT_TIMEOUT) -> list[str]:
    return said(of.observe(Event(f"p{pool}", at(pool, number), kind), now))


def said(decisions: tuple[Decision, ...]) -> list[str]:
    return [f"{d.action} {d.endpoint} {d.reason}".replace("  ", " ") for d in decisions]


def test_while_this_node_is_ill_nobody_is_ejected_and_nothing_is_left_over() -> None:
    of = engine(1)
    assert fail(of, 0, 0, 1.0) == fail(of, 0, 0, 1.1) == []
    assert said(of.vitals(msgspec.structs.replace(WELL, steal=0.5), 2.0)) == ["freeze steal"]
    assert of.frozen == ("steal",)
    for _ in range(100):
        assert fail(of, 0, 0, 3.0) == []
        assert said(of.observe(Event("p0", at(0, 1), Kind.HTTP, code=503), 3.0)) == []
    assert of.vitals(WELL, 10.0) == ()
    assert said(of.vitals(WELL, 13.0)) == ["unfreeze steal"]
    row = of.rows()[0]
    assert (row.uncharged, row.frozen, row.active) == (200, (), 0)
    # Two failures of before and a hundred of during lead to nothing; nor do those that only end now.
    late = Event("p0", at(0, 0), Kind.CONNECT_TIMEOUT, started=12.9)
    assert [of.observe(late, 14.0) for _ in range(5)] == [()] * 5
    assert fail(of, 0, 0, 14.1) == fail(of, 0, 0, 14.2) == []
    assert fail(of, 0, 0, 14.3) == [f"eject {at(0, 0)} consecutive_local_origin_failure"]


def test_intervals_in_which_it_was_ill_are_not_judged() -> None:
    detection = OutlierDetection(
        max_ejection_percent=100, failure_percentage_minimum_hosts=1, enforcing_failure_percentage=100,
        consecutive_5xx=0,
    )  # fmt: skip
    of = Engine()
    of.set_pool("p0", msgspec.structs.replace(POLICY, outlier_detection=detection), [at(0, 0)], 0.0)
    bad = Event("p0", at(0, 0), Kind.HTTP, code=500, count=100)
    of.observe(bad, 1.0)
    of.vitals(msgspec.structs.replace(WELL, lost_events=3), 2.0)
    of.observe(bad, 3.0)
    assert of.sweep(10.0) == ()
    of.observe(bad, 11.0)
    assert said(of.vitals(WELL, 12.0)) == []
    assert said(of.vitals(WELL, 22.0)) == ["unfreeze lost_events"]
    assert of.sweep(30.0) == ()
    of.observe(bad, 31.0)
    assert said(of.sweep(40.0)) == [f"eject {at(0, 0)} failure_percentage"]


def test_who_is_out_comes_back_all_the_same() -> None:
    of = engine(1)
    of.observe(Event("p0", at(0, 0), Kind.HTTP, code=500, count=3), 0.0)
    of.vitals(msgspec.structs.replace(WELL, steal=0.5), 1.0)
    assert of.refused() == {("p0", at(0, 0)): 0}
    assert said(of.sweep(30.0)) == [f"uneject {at(0, 0)} elapsed"]
    assert of.frozen


def test_unrelated_pools_that_fail_together_freeze_before_anybody_is_ejected() -> None:
    of = engine(2, 2)
    found = []
    for round_ in range(3):
        for number in range(2):
            for pool in range(2):
                found += fail(of, pool, number, 1.0 + round_ / 10)
    assert found == ["freeze unrelated_pools"]
    assert [row.active for row in of.rows()] == [0, 0]


def test_what_failures_to_connect_have_led_to_just_before_is_taken_back() -> None:
    of = engine(2, 1)
    assert said(of.observe(Event("p1", at(1, 0), Kind.HTTP, code=500, count=3), 0.9)) == [
        f"eject {at(1, 0)} consecutive_5xx"
    ]
    assert fail(of, 0, 0, 1.0) == fail(of, 0, 0, 1.1) == []
    assert fail(of, 0, 0, 1.2) == [f"eject {at(0, 0)} consecutive_local_origin_failure"]
    # What the second pool had ejected by its answers stays.
    assert fail(of, 1, 0, 2.0) == []
    assert fail(of, 1, 0, 2.0) == ["freeze unrelated_pools", f"uneject {at(0, 0)} frozen"]
    assert of.refused() == {("p1", at(1, 0)): 0}
    assert of.rows()[0].endpoints[0].ejections == 0


def test_what_was_ejected_earlier_or_measured_meanwhile() -> None:
    of = engine(1, 4)
    for _ in range(3):
        fail(of, 0, 0, 1.0)
    assert said(of.vitals(msgspec.structs.replace(WELL, steal=0.5), 11.1)) == ["freeze steal"]
    of.pool("p0").measure({at(0, number): Way(0.5 if number == 1 else 0.001, 1000, 0) for number in range(1, 4)})
    assert of.sweep(20.0) == ()
    assert of.refused() == {("p0", at(0, 0)): 0}


def test_it_goes_on_while_they_fail_and_ends_when_they_do_not() -> None:
    of = engine(2, 1)
    assert [fail(of, pool, 0, 1.0) for pool in (0, 1, 0, 1)] == [[], [], [], ["freeze unrelated_pools"]]
    for now in range(2, 30):
        fail(of, 0, 0, float(now))
        fail(of, 1, 0, float(now))
        assert of.vitals(WELL, float(now)) == ()
    assert of.frozen
    thawed = [decision.t for now in range(30, 80) for decision in of.vitals(WELL, float(now))]
    assert thawed == [49.0]  # the last failure, the window, the hold


def test_a_machine_that_dies_takes_one_endpoint_of_each_pool_and_freezes_nothing() -> None:
    of = engine(5, 3)
    found = [line for _ in range(3) for pool in range(5) for line in fail(of, pool, 0, 1.0)]
    assert found == [f"eject {at(pool, 0)} consecutive_local_origin_failure" for pool in range(5)]


@pytest.mark.parametrize("kind", [Kind.HTTP_TIMEOUT, Kind.LOCAL_FAULT])
def test_waiting_for_answers_together_is_not_this_nodes_illness(kind: Kind) -> None:
    of = engine(2, 1)
    found = [line for _ in range(3) for pool in range(2) for line in fail(of, pool, 0, 1.0, kind)]
    assert found == ([] if kind is Kind.LOCAL_FAULT else [
        f"eject {at(pool, 0)} consecutive_local_origin_failure" for pool in range(2)
    ])  # fmt: skip


def test_pools_that_are_in_use_and_well_speak_against_it() -> None:
    of = engine(6, 1)
    for pool in range(2, 6):
        of.observe(Event(f"p{pool}", at(pool, 0), Kind.HTTP, code=200), 0.5)
    found = [line for _ in range(3) for pool in range(2) for line in fail(of, pool, 0, 1.0)]
    assert [line.split()[0] for line in found] == ["eject", "eject"]
    # Two of six are few; two of two that were in use lately are all.
    later = engine(6, 1)
    assert [line.split()[0] for pool in (0, 1, 0, 1) for line in fail(later, pool, 0, 1.0)] == ["freeze"]


def test_a_pool_that_is_added_while_it_is_ill_is_frozen_too() -> None:
    of = engine(1)
    of.vitals(msgspec.structs.replace(WELL, steal=0.5), 1.0)
    of.set_pool("new", POLICY, ["10.9.9.9:80"], 2.0)
    assert of.observe(Event("new", "10.9.9.9:80", Kind.HTTP, code=500, count=30), 3.0) == ()
    assert of.rows()[1].frozen == ("steal",)
    assert {decision.action for decision in of.vitals(WELL, 20.0)} == {Action.UNFREEZE}
