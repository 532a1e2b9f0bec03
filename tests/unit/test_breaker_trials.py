# SPDX-License-Identifier: Apache-2.0
"""Half open: so many trials, what proves an endpoint well, what gives a permit back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_breaker_pool import HUNG, A, B, happen, pool, state, words
from tidegate.breaker.pool import Pool
from tidegate.model.breaker import Action, Event, Kind, State
from tidegate.model.outliers import Probe

pytestmark = pytest.mark.unit

PROBING = {"recovery": "probe", "probe": Probe(permits=2, wait=5.0)}


def half_open(*kinds: Kind | int, **changes: Any) -> Pool:
    of = pool(**(PROBING | changes))
    happen(of, A, *(kinds or (500, 500, 500)))
    assert [decision.action for decision in of.sweep(10.0)] == [Action.HALF_OPEN]
    assert of.refused() == {A: of.policy.probe.permits}
    return of


def test_a_connect_is_no_proof_for_what_was_ejected_by_its_answers() -> None:
    of = half_open()
    assert happen(of, A, Kind.CONNECT_OK, Kind.CONNECT_OK, now=11.0) == []
    assert state(of, A) is State.HALF_OPEN
    assert happen(of, A, 200, 200, now=12.0) == [f"uneject {A} probed"]


def test_a_connect_is_proof_for_what_refused_connects() -> None:
    of = half_open(*[Kind.CONNECT_REFUSED] * 3)
    assert happen(of, A, Kind.CONNECT_OK, Kind.CONNECT_OK, now=11.0) == [f"uneject {A} probed"]


def test_a_connect_is_no_proof_for_what_hung() -> None:
    of = half_open(*HUNG, *HUNG, *HUNG)
    assert happen(of, A, Kind.CONNECT_OK, now=11.0) == []
    assert words(of.sweep(16.0)) == [f"eject {A} probe_failed"]


def test_one_failed_trial_ejects_again_for_longer() -> None:
    of = half_open()
    assert of.acquire(A, 10.0, 1)
    assert of.acquire(A, 10.0, 2)
    assert not of.acquire(A, 10.0, 3)
    happen(of, A, 200, now=11.0, attempt=1)
    (decision,) = of.observe(Event(of.name, A, Kind.CONNECT_REFUSED, attempt=2), 12.0)
    assert (decision.action, decision.reason, decision.ejections) == (Action.EJECT, "probe_failed", 2)
    assert (decision.until, decision.evidence["succeeded"]) == (32.0, 1)
    assert of.refused() == {A: 0}


def test_successes_in_sums_are_trials_too() -> None:
    of = half_open(probe=Probe(permits=3))
    assert happen(of, A, 200, now=11.0, count=2) == []
    assert of.refused() == {A: 1}
    assert happen(of, A, 200, now=11.0, count=50) == [f"uneject {A} probed"]


def test_an_answer_from_who_knows_no_attempts_ends_a_trial_that_has_one() -> None:
    of = half_open(probe=Probe(permits=1))
    assert happen(of, A, Kind.CONNECT_OK, now=11.0, attempt=7, started=10.9) == []
    assert happen(of, A, 500, now=11.1, started=9.0) == []
    assert happen(of, A, 200, now=11.2, started=11.0) == [f"uneject {A} probed"]


def test_what_began_before_is_no_trial() -> None:
    of = half_open()
    assert happen(of, A, 500, now=11.0, started=9.0) == []
    assert of.refused() == {A: 2}


def test_a_healthy_endpoint_needs_no_permit() -> None:
    of = half_open()
    assert of.acquire(B, 11.0)
    assert of.acquire("10.9.9.9:1", 11.0)


def test_a_trial_while_this_node_is_ill_gives_its_permit_back() -> None:
    of = half_open()
    of.acquire(A, 10.5, 1)
    of.freeze(("steal",), 11.0, 0.0)
    assert happen(of, A, Kind.CONNECT_TIMEOUT, now=12.0, attempt=1) == []
    assert (of.refused(), of.uncharged) == ({A: 2}, 1)
    of.acquire(A, 12.0, 2)
    assert words(of.sweep(20.0)) == []
    assert of.refused() == {A: 2}


def test_a_failed_trial_that_this_nodes_illness_may_have_led_to_is_taken_back() -> None:
    of = half_open()
    happen(of, A, Kind.CONNECT_TIMEOUT, now=11.0)
    assert of.refused() == {A: 0}
    assert words(of.freeze(("retransmits",), 12.0, 10.0)) == [f"half_open {A} frozen"]
    assert (of.refused(), of.row().endpoints[0].ejections) == ({A: 2}, 1)
