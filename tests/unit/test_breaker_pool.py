# SPDX-License-Identifier: Apache-2.0
"""What Tidegate does beyond Envoy: trials, commands, changes of the config, what began before, slow ways."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tidegate.breaker.pool import Pool
from tidegate.errors import UsageError
from tidegate.model.breaker import Action, Decision, Event, Kind, State, Way
from tidegate.model.outliers import OutlierDetection, Peers, Policy

pytestmark = pytest.mark.unit
A, B, C = "10.0.0.6:5000", "10.0.0.7:5000", "10.0.0.8:5000"


def policy(**changes: Any) -> Policy:
    detection = OutlierDetection(
        consecutive_5xx=3, consecutive_local_origin_failure=3, max_ejection_percent=100, base_ejection_time=10.0
    )
    return msgspec.structs.replace(Policy(mode="enforce", min_healthy=0, outlier_detection=detection), **changes)


def pool(*endpoints: str, **changes: Any) -> Pool:
    return Pool("inventory", policy(**changes), endpoints or (A, B), 0.0)


def happen(of: Pool, endpoint: str, *kinds: Kind | int, now: float = 0.0, **more: Any) -> list[str]:
    """Let things happen to an endpoint; a number is an answer with that status."""
    said = []
    for kind in kinds:
        if isinstance(kind, int):
            event = Event(of.name, endpoint, Kind.HTTP, code=kind, **more)
        else:
            event = Event(of.name, endpoint, kind, **more)
        said += words(of.observe(event, now))
    return said


def words(decisions: tuple[Decision, ...]) -> list[str]:
    return [f"{d.action} {d.endpoint} {d.reason}".replace("  ", " ") for d in decisions]


def state(of: Pool, endpoint: str) -> State:
    return next(row.state for row in of.row().endpoints if row.endpoint == endpoint)


HUNG = (Kind.CONNECT_OK, Kind.HTTP_TIMEOUT)
FALLEN = (Kind.CONNECT_OK, Kind.RESET)


@pytest.mark.parametrize("kinds", [HUNG, FALLEN])
def test_a_connection_says_nothing_of_requests_that_fail_on_it(kinds: tuple[Kind, Kind]) -> None:
    of = pool()
    assert happen(of, A, *kinds, *kinds) == []
    assert happen(of, A, *kinds) == [f"eject {A} consecutive_local_origin_failure"]


@pytest.mark.parametrize("answer", [200, 404, 500, Kind.ANSWERED])
def test_an_answer_ends_a_run_of_requests_without_one(answer: Kind | int) -> None:
    of = pool()
    assert happen(of, A, *HUNG, *HUNG, answer, *HUNG, *HUNG) == []
    assert of.row().endpoints[0].consecutive_local_origin_failure == 2


def test_a_connection_to_what_never_answers_visibly_ends_all_runs() -> None:
    of = pool()
    assert happen(of, A, Kind.RESET, Kind.RESET) == []
    of.observe(Event(of.name, A, Kind.CONNECT_OK, code=200), 0.0)
    assert happen(of, A, Kind.RESET, Kind.RESET) == []


def test_a_connect_success_between_failures_of_http_resets_nothing_of_http() -> None:
    assert happen(pool(), A, 500, Kind.CONNECT_OK, 500, Kind.CONNECT_OK, 500) == [f"eject {A} consecutive_5xx"]


def test_an_own_fault_is_never_charged_and_breaks_no_run() -> None:
    of = pool()
    assert happen(of, A, *[Kind.LOCAL_FAULT] * 50, Kind.CONNECT_REFUSED, Kind.CONNECT_REFUSED) == []
    assert happen(of, A, Kind.LOCAL_FAULT, Kind.CONNECT_REFUSED) == [f"eject {A} consecutive_local_origin_failure"]


def test_what_began_before_the_ejection_ended_is_not_charged_after_it() -> None:
    of = pool()
    happen(of, A, 500, 500, 500)
    assert words(of.sweep(10.0)) == [f"uneject {A} elapsed"]
    assert happen(of, A, *[Kind.CONNECT_TIMEOUT] * 9, now=12.0, started=9.9) == []
    assert happen(of, A, *[Kind.CONNECT_TIMEOUT] * 3, now=13.0, started=12.0) == [
        f"eject {A} consecutive_local_origin_failure"
    ]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (Kind.CONNECT_REFUSED, 503),
        (Kind.CONNECT_UNREACHABLE, 503),
        (Kind.RESET, 503),
        (Kind.CONNECT_TIMEOUT, 504),
        (Kind.HTTP_TIMEOUT, 504),
    ],
)
def test_without_split_failures_stand_for_a_status(kind: Kind, code: int) -> None:
    plain = msgspec.structs.replace(policy().outlier_detection, split_external_local_origin_errors=False)
    of = pool(outlier_detection=plain)
    (decision,) = (decision for _ in range(3) for decision in of.observe(Event(of.name, A, kind), 0.0))
    assert (decision.reason, decision.evidence["code"]) == ("consecutive_5xx", code)


def test_who_is_out_is_no_peer() -> None:
    endpoints = [f"10.0.1.{number}:1" for number in range(1, 8)]
    of = pool(*endpoints)
    for endpoint in endpoints:
        happen(of, endpoint, 200, count=200)
    assert happen(of, endpoints[0], 500, count=200) == [f"eject {endpoints[0]} consecutive_5xx"]
    assert of.sweep(9.0) == ()
    assert (of.row().success_rate_average, of.row().endpoints[0].success_rate) == (100, None)


@pytest.mark.parametrize("kind", [500, Kind.CONNECT_REFUSED])
def test_who_tells_failures_at_once_and_successes_in_sums(kind: Kind | int) -> None:
    of = pool()
    assert happen(of, A, kind, run=1) == happen(of, A, kind, run=2) == []
    assert happen(of, A, kind, run=1) == []  # there was a success in between
    assert happen(of, A, kind, run=2) == []
    assert [line.split()[0] for line in happen(of, A, kind, run=3)] == ["eject"]
    of.sweep(10.0)
    # The sender goes on counting; the endpoint begins anew.
    assert happen(of, A, kind, now=11.0, run=4) == happen(of, A, kind, now=11.0, run=5) == []


def test_a_connection_that_was_well_again_may_fail_again() -> None:
    of = pool()
    for _ in range(2):
        happen(of, A, Kind.HTTP_TIMEOUT, attempt=5)
    assert of.row().endpoints[0].consecutive_local_origin_failure == 1
    happen(of, A, 200, attempt=5)
    happen(of, A, Kind.HTTP_TIMEOUT, attempt=5)
    assert of.row().endpoints[0].consecutive_local_origin_failure == 1
    assert of.duplicates == 1


def test_an_event_may_stand_for_many() -> None:
    of = pool(A, B)
    assert happen(of, A, 500, count=2) == []
    assert happen(of, A, 200, count=7) == []
    assert happen(of, A, 500, count=3) == [f"eject {A} consecutive_5xx"]


# People.


def test_open_holds_until_close() -> None:
    of = pool()
    assert words(of.open(A, 1.0)) == [f"eject {A} manual"]
    assert (of.refused(), of.row().endpoints[0].until) == ({A: 0}, None)
    assert words(of.sweep(1000.0)) == []
    assert words(of.close(A, 1001.0)) == [f"uneject {A} manual"]
    assert words(of.close(A, 1002.0)) == []
    assert of.row().endpoints[0].ejections == 0


def test_open_leaves_min_healthy_unless_forced() -> None:
    of = pool(min_healthy=1)
    of.open(A, 1.0)
    with pytest.raises(UsageError, match=r"expected at least min_healthy, 1, endpoints to be left, found 0"):
        of.open(B, 2.0)
    assert words(of.open(B, 3.0, force=True)) == [f"eject {B} manual"]
    assert of.row().active == 2


def test_open_again_keeps_the_number_of_those_out() -> None:
    of = pool()
    happen(of, A, 500, 500, 500)
    of.open(A, 1.0)
    assert (of.row().active, words(of.sweep(500.0))) == (1, [])


def test_reset_forgets_the_history() -> None:
    of = pool()
    for now in (0.0, 10.0):
        happen(of, A, 500, 500, 500, now=now)
        of.sweep(now + 10)
    assert words(of.reset(A, 25.0)) == [f"uneject {A} reset"]
    row = of.row().endpoints[0]
    assert (row.ejections, row.ejected_total, row.since, row.state) == (0, 0, None, State.CLOSED)


def test_who_is_unknown_is_named() -> None:
    of = pool()
    for command in (of.open, of.close, of.reset):
        with pytest.raises(UsageError, match=r"pool inventory: expected one of its endpoints .*, found 'x'"):
            command("x", 1.0)
    assert of.observe(Event(of.name, "x", Kind.RESET), 1.0) == ()
    assert of.unknown == 1


# The config.


def test_other_parameters_keep_the_state() -> None:
    of = pool()
    happen(of, A, 500, 500)
    happen(of, B, 500, 500, 500)
    stricter = msgspec.structs.replace(of.policy.outlier_detection, base_ejection_time=50.0, consecutive_5xx=4)
    assert of.configure(policy(outlier_detection=stricter), 5.0) == ()
    assert words(of.sweep(10.0)) == []
    assert happen(of, A, 500, now=11.0) == []
    assert happen(of, A, 500, now=11.0) == [f"eject {A} consecutive_5xx"]
    assert words(of.sweep(50.0)) == [f"uneject {B} elapsed"]


def test_another_interval_begins_anew() -> None:
    of = pool()
    assert of.next_sweep == 10.0
    shorter = msgspec.structs.replace(of.policy.outlier_detection, interval=2.0)
    of.configure(policy(outlier_detection=shorter), 5.0)
    assert of.next_sweep == 7.0
    of.sweep(7.0)
    assert of.next_sweep == 9.0
    of.sweep(12.5)  # two beats late: one sweep, and back on the beat
    assert of.next_sweep == 13.0


def test_forced_open_puts_all_out_and_back() -> None:
    of = pool()
    assert words(of.configure(policy(mode="forced_open"), 1.0)) == [
        f"eject {A} forced_open", f"eject {B} forced_open",
    ]  # fmt: skip
    assert of.refused() == {A: 0, B: 0}
    assert words(of.set_endpoints((A, B, C), 2.0)) == [f"eject {C} forced_open"]
    assert (of.sweep(100.0), happen(of, A, 500, 500, 500, now=101.0)) == ((), [])
    assert words(of.configure(policy(), 102.0)) == [f"uneject {at} off" for at in (A, B, C)]
    assert of.refused() == {}


def test_a_pool_may_begin_forced_open() -> None:
    assert pool(mode="forced_open").refused() == {A: 0, B: 0}


@pytest.mark.parametrize("mode", ["off", "disabled"])
def test_a_pool_that_is_off_takes_no_notice(mode: str) -> None:
    of = pool(mode=mode)
    assert (happen(of, A, *[500] * 20), of.sweep(10.0)) == ([], ())
    assert of.configure(policy(), 11.0) == ()
    assert happen(of, A, 500, 500, now=12.0) == []


def test_monitor_decides_all_and_does_nothing() -> None:
    of = pool(mode="monitor")
    (decision,) = (decision for _ in range(3) for decision in of.observe(Event(of.name, A, Kind.HTTP, 500), 0.0))
    assert (decision.action, decision.enforced, of.refused()) == (Action.EJECT, False, {})
    assert of.acquire(A, 0.5)
    of.configure(policy(), 1.0)
    assert of.refused() == {A: 0}


def test_a_new_endpoint_has_no_history_and_a_smaller_pool_keeps_its_minimum() -> None:
    of = pool(A, B, C, min_healthy=1)
    happen(of, A, 500, 500, 500, now=1.0)
    happen(of, B, 500, 500, 500, now=2.0)
    assert words(of.set_endpoints((A, B), 3.0)) == [f"uneject {A} min_healthy"]
    assert words(of.set_endpoints((A,), 4.0)) == [f"uneject {B} removed"]
    of.set_endpoints((A, B), 5.0)
    assert of.row().endpoints[1].ejected_total == 0


def test_below_the_panic_threshold_all_are_used() -> None:
    of = pool(A, B, C, healthy_panic_threshold=50)
    assert happen(of, A, 500, 500, 500) == [f"eject {A} consecutive_5xx"]
    assert happen(of, B, 500, 500, 500) == [f"eject {B} consecutive_5xx", "panic healthy_panic_threshold"]
    assert (of.refused(), of.row().panic, of.acquire(A, 1.0)) == ({}, True, True)
    assert words(of.sweep(10.0)) == [
        f"uneject {A} elapsed", "calm healthy_panic_threshold", f"uneject {B} elapsed",
    ]  # fmt: skip


# What sweeps judge beside Envoy's rates.


def test_slow_answers() -> None:
    of = pool(slow_response_threshold=1.0, slow_response_percent=50, slow_response_request_volume=10)
    happen(of, A, *[200] * 5, seconds=1.0)
    happen(of, A, *[200] * 5, seconds=0.9)
    happen(of, B, *[200] * 4, seconds=5.0)
    happen(of, B, *[200] * 5)
    (decision,) = of.sweep(10.0)
    assert (decision.endpoint, decision.reason, decision.action) == (A, "slow_response", Action.EJECT)
    assert decision.evidence["slow_response_percentage"] == 50


def test_ways_beside_those_of_the_peers() -> None:
    endpoints = (A, B, C, "10.0.0.9:5000")
    near = Way(0.001, 1000, 1)
    of = pool(*endpoints)
    of.measure(dict.fromkeys(endpoints, near) | {A: Way(0.05, 1000, 60)})
    assert words(of.sweep(10.0)) == [f"log_only {A} rtt", f"log_only {A} retransmits"]
    assert of.sweep(20.0) == ()  # what was measured holds for its own interval
    of.configure(policy(peers=Peers(enforcing_rtt=100)), 21.0)
    of.measure(dict.fromkeys(endpoints, near) | {A: Way(0.05, 1000, 0), B: Way(9.0, 499, 400)})
    assert words(of.sweep(30.0)) == [f"eject {A} rtt"]


def test_a_way_is_compared_with_the_others_alone() -> None:
    of = pool(A, B, C)
    of.measure({A: Way(0.02, 1000, 0), B: Way(0.001, 1000, 0), C: Way(0.009, 1000, 0)})
    # The median of 1 and 9 ms is 5; that of 1, 9 and 20 would be 9.
    assert of.sweep(10.0) == ()
    of.measure({A: Way(0.026, 1000, 0), B: Way(0.001, 1000, 0), C: Way(0.009, 1000, 0)})
    (decision,) = of.sweep(20.0)
    assert decision.evidence["rtt_seconds"] == 0.026
    assert decision.evidence["rtt_seconds_of_peers"] == pytest.approx(0.005)


def test_ways_of_too_few_or_all_alike() -> None:
    of = pool(A, B, C)
    of.measure({A: Way(0.5, 1000, 500), B: Way(0.001, 1000, 0)})
    assert of.sweep(10.0) == ()
    of.measure(dict.fromkeys((A, B, C), Way(0.5, 1000, 300)) | {"x": Way(9.0, 10**6, 10**6)})
    assert of.sweep(20.0) == ()
    of.measure({A: Way(None, 1000, 0), B: Way(0.001, 1000, 0), C: Way(0.002, 1000, 0)})
    assert of.sweep(30.0) == ()
