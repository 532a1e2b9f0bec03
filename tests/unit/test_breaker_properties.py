# SPDX-License-Identifier: Apache-2.0
"""What holds of the engine whatever happens."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.breaker.engine import Engine
from tidegate.breaker.permits import Permits
from tidegate.model.breaker import Action, Decision, Event, Kind, State, Vitals
from tidegate.model.outliers import Freeze, OutlierDetection, Policy, Probe

pytestmark = pytest.mark.unit
HOSTS = [f"10.0.0.{number}:80" for number in range(1, 6)]

detections = st.builds(
    OutlierDetection,
    consecutive_5xx=st.integers(0, 3),
    consecutive_gateway_failure=st.integers(0, 3),
    consecutive_local_origin_failure=st.integers(0, 3),
    split_external_local_origin_errors=st.booleans(),
    interval=st.sampled_from([1.0, 2.5]),
    base_ejection_time=st.sampled_from([1.0, 3.0]),
    max_ejection_time=st.sampled_from([None, 3.0, 7.0]),
    max_ejection_time_jitter=st.sampled_from([0.0, 2.0]),
    max_ejection_percent=st.sampled_from([0, 20, 50, 80, 100]),
    success_rate_minimum_hosts=st.just(2),
    success_rate_request_volume=st.integers(0, 4),
    failure_percentage_minimum_hosts=st.just(1),
    failure_percentage_request_volume=st.integers(0, 4),
    enforcing_consecutive_gateway_failure=st.sampled_from([0, 50, 100]),
    enforcing_failure_percentage=st.sampled_from([0, 100]),
    enforcing_failure_percentage_local_origin=st.sampled_from([0, 100]),
)
policies = st.builds(
    Policy,
    outlier_detection=detections,
    mode=st.just("enforce"),
    min_healthy=st.integers(0, 2),
    healthy_panic_threshold=st.sampled_from([0, 50]),
    recovery=st.sampled_from(["time", "probe"]),
    probe=st.builds(Probe, permits=st.integers(1, 3), wait=st.just(2.0)),
)
KINDS = [kind for kind in Kind if kind is not Kind.TICK] + 4 * [Kind.HTTP]
Happening = Event | Vitals | list[str]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[float, Happening]]:
    """Return what happens, each at some time after what was before: mostly failures, now and then of this node."""
    random, number = Random(draw(st.integers(0, 2**32))), draw(st.integers(0, 120))
    return [(random.choice((0.0, 0.0, 0.1, 0.7, 3.0)), happening(random)) for _ in range(number)]


def happening(random: Random) -> Happening:
    dice = random.random()
    if dice < 0.02:
        return Vitals(steal=0.5)
    if dice < 0.08:
        return Vitals(steal=0.0)
    if dice < 0.12:
        return random.sample(HOSTS, random.randint(1, 5))
    return Event(
        pool="p",
        endpoint=random.choice(HOSTS[:3] + HOSTS),
        kind=random.choice(KINDS),
        code=random.choice((None, 200, 500, 503, 503)),
        attempt=random.choice((None, random.randrange(50))),
        count=random.choice((1, 1, 1, 4)),
    )


def play(
    policy: Policy, given_steps: list[tuple[float, Happening]], seed: int = 0
) -> tuple[Engine, list[Decision]]:
    """Play steps; after each, what must always hold is looked at."""
    engine = Engine(Freeze(hold=1.0), seed=seed)
    engine.set_pool("p", policy, HOSTS, 0.0)
    decisions: list[Decision] = []
    now = 0.0
    for wait, step in given_steps:
        now += wait
        while engine.next_sweep <= now:
            decisions += kept(engine, engine.sweep(engine.next_sweep))
        if isinstance(step, Event):
            decisions += kept(engine, engine.observe(step, now))
        elif isinstance(step, Vitals):
            decisions += kept(engine, engine.vitals(step, now))
        else:
            decisions += kept(engine, engine.set_pool("p", policy, step, now))
    return engine, decisions


def kept(engine: Engine, decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
    pool = engine.pool("p")
    policy, row = pool.policy, pool.row()
    detection, hosts = policy.outlier_detection, len(row.endpoints)
    out = [endpoint for endpoint in row.endpoints if endpoint.state is not State.CLOSED]
    assert row.active == len(out)
    assert hosts - len(out) >= min(policy.min_healthy, hosts)
    for decision in decisions:
        if decision.action is Action.EJECT and decision.reason != "probe_failed":
            # The cap holds where somebody is ejected; who leaves the pool may leave more behind than it allows.
            active, of = decision.evidence["active"], decision.evidence["hosts"]
            assert isinstance(active, int)
            assert isinstance(of, int)
            assert 100 * active <= detection.max_ejection_percent * of
            assert of - active >= policy.min_healthy
            assert engine.frozen == ()
    most = math.ceil((detection.longest + detection.base_ejection_time) / detection.base_ejection_time)
    for endpoint in row.endpoints:
        assert 0 <= endpoint.ejections <= most
        assert 0 <= endpoint.permits <= policy.probe.permits
        if endpoint.until is not None and endpoint.since is not None:
            lasts = endpoint.until - endpoint.since
            assert lasts <= detection.longest + detection.max_ejection_time_jitter + 1e-9
    return decisions


@settings(max_examples=60)
@given(policies, steps())
def test_limits_hold_whatever_happens(policy: Policy, given_steps: list[tuple[float, Happening]]) -> None:
    engine, _ = play(policy, given_steps)
    assert set(engine.refused()) <= {("p", endpoint.endpoint) for endpoint in engine.rows()[0].endpoints}


@settings(max_examples=30)
@given(policies, steps(), st.integers(0, 3))
def test_a_replay_decides_the_same(policy: Policy, given_steps: list[tuple[float, Happening]], seed: int) -> None:
    (first, said), (second, said_again) = (play(policy, given_steps, seed) for _ in range(2))
    assert said == said_again
    assert first.rows() == second.rows()


trials = st.lists(
    st.tuples(
        st.sampled_from(["take", "success", "release", "all"]),
        st.one_of(st.none(), st.integers(0, 4)),
    ),
    max_size=40,
)


@settings(max_examples=80)
@given(st.integers(1, 4), trials)
def test_no_permit_is_lost(permits: int, given_trials: list[tuple[str, int | None]]) -> None:
    held = Permits(Probe(permits=permits, wait=10.0), 0.0)
    out: list[int | None] = []
    succeeded = 0
    for number, (what, attempt) in enumerate(given_trials):
        if what == "take":
            known = attempt is not None and attempt in out
            taken = held.take(attempt, float(number))
            assert taken == (known or len(out) + succeeded < permits)
            if taken and not known:
                out.append(attempt)
        elif what == "all":
            held.return_all()
            out.clear()
        else:
            assert held.holds(attempt) == (attempt in out or None in out or (attempt is None and bool(out)))
            if held.holds(attempt):
                mine = attempt if attempt in out else None
                out.remove(mine if mine in out else out[0])
                succeeded += what == "success"
            held.settle(attempt, success=what == "success")
        assert (held.out, held.succeeded) == (len(out), succeeded)
        assert held.left == permits - succeeded - len(out) >= 0
    assert held.overdue(1000.0) == len(out)
    held.return_all()
    assert held.left == permits - succeeded


@settings(max_examples=40)
@given(st.lists(st.floats(-5, 50), max_size=30))
def test_time_that_goes_back_stands_still(times: list[float]) -> None:
    engine = Engine()
    detection = OutlierDetection(max_ejection_percent=100, consecutive_5xx=1)
    engine.set_pool("p", Policy(mode="enforce", min_healthy=0, outlier_detection=detection), HOSTS[:1], 0.0)
    engine.observe(Event("p", HOSTS[0], Kind.HTTP, code=500), 0.0)
    latest = 0.0
    for time in times:
        latest = max(latest, time)
        engine.sweep(time)
        assert (engine.refused() == {}) == (latest >= 30)
        if latest >= 30:
            break
