# SPDX-License-Identifier: Apache-2.0
"""The reference: a real Envoy under the same policy and the same load ejects the same, for as long."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from lab.envoy import Cluster, Envoy
from lab.lab import ROOT, Lab
from tests.lab.remains import wait_until
from tidegate.breaker.pool import Pool
from tidegate.model.breaker import Action, Decision, Event, Kind
from tidegate.model.outliers import OutlierDetection, Policy

pytestmark = pytest.mark.lab
INTERVAL, BASE, LONGEST = 0.5, 1.5, 5.0
#: How much later than it is due a process may run on a busy machine.
LATE = 0.25
COMMON = {
    "interval": "0.5s", "base_ejection_time": "1.5s", "max_ejection_time": "5s", "max_ejection_percent": 50,
}  # fmt: skip


class Ejection(NamedTuple):
    reason: str
    began: float
    lasted: float
    number: int


class Trial(NamedTuple):
    """One pool: its port at the proxy, the ports of its endpoints, what the first does, and its policy.

    ``fails`` are the answers of the first endpoint; None: nobody listens there. After ``ejections`` of it, it is
    well for ``WELL`` seconds and then fails again.
    """

    name: str
    port: int
    endpoints: tuple[int, ...]
    fails: list[int] | None
    gap: float
    ejections: int
    envoy: dict[str, Any]
    ours: OutlierDetection


WELL = 4.0


def ours(**keys: Any) -> OutlierDetection:
    common = {"interval": INTERVAL, "base_ejection_time": BASE, "max_ejection_time": LONGEST}
    return OutlierDetection(
        **({"split_external_local_origin_errors": False, "max_ejection_percent": 50} | common | keys)
    )


RATES = {"consecutive_5xx": 0, "consecutive_gateway_failure": 0, "success_rate_request_volume": 3}
TRIALS = (
    Trial("fives", 9001, (8001, 8002), [503], 0.02, 4, {"consecutive_5xx": 3}, ours(consecutive_5xx=3)),
    Trial(
        "refused",
        9002,
        (8003, 8004),
        None,
        0.02,
        3,
        {"split_external_local_origin_errors": True, "consecutive_local_origin_failure": 3},
        ours(split_external_local_origin_errors=True, consecutive_local_origin_failure=3),
    ),
    Trial("rates", 9003, (8011, 8012, 8013, 8014, 8015), [200, 500], 0.015, 2, RATES, ours(**RATES)),
)
#: All of its endpoints fail; only one may be out.
CAPPED = Trial("capped", 9004, (8021, 8022), [503], 0.02, 0, {"consecutive_5xx": 3}, ours(consecutive_5xx=3))
#: One of its endpoints accepts connections and answers nothing.
HUNG = Cluster(
    "hung",
    9005,
    [("127.0.0.1", 8031), ("127.0.0.1", 8032)],
    COMMON | {"split_external_local_origin_errors": True, "consecutive_local_origin_failure": 3},
    0.2,
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("-envoy") as opened:
        yield opened


@pytest.fixture(scope="module")
def real(lab: Lab) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return what a real Envoy has logged, and its statistics."""
    host = lab.host("gateway", 16)
    answers = {str(port): [200] for trial in TRIALS for port in trial.endpoints[1:]}
    answers |= {str(port): CAPPED.fails or [] for port in CAPPED.endpoints}
    answers |= {str(trial.endpoints[0]): trial.fails for trial in TRIALS if trial.fails is not None}
    answers |= {"8031": [0], "8032": [200]}
    clients = [*((trial.port, trial.gap) for trial in (*TRIALS, CAPPED)), (HUNG.port, 0.02)]
    plan = json.dumps({"answers": answers, "clients": clients})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    asking = host.popen([sys.executable, "-m", "tests.lab.asking", plan], **pipes, start_new_session=True)
    assert asking.stdin is not None
    assert asking.stdout is not None
    for pipe in (asking.stdin, asking.stdout):
        lab.stack.callback(pipe.close)
    assert asking.stdout.readline() == "ready\n"
    envoy = Envoy(host, [*(cluster(trial) for trial in (*TRIALS, CAPPED)), HUNG])

    def tell(what: object) -> None:
        assert asking.stdin is not None
        asking.stdin.write(f"{json.dumps(what)}\n")
        asking.stdin.flush()

    def back(trial: Trial, count: int) -> Callable[[], bool]:
        return lambda: len(ejections(logged(envoy.events(), trial), str(trial.endpoints[0]))) >= count

    def out(trial: Trial, count: int) -> Callable[[], bool]:
        return lambda: any(entry.enforced and entry.number == count for entry in logged(envoy.events(), trial))

    tell("go")
    first = TRIALS[0]
    wait_until(out(first, first.ejections), "ejected four times", 60)
    tell({str(first.endpoints[0]): [200]})  # while nobody asks it
    for trial in TRIALS:
        wait_until(back(trial, trial.ejections), f"{trial.name}: ejected and back", 60)
    time.sleep(WELL)  # how long it is well is part of what is tried
    tell({str(first.endpoints[0]): first.fails})
    wait_until(back(first, first.ejections + 1), "ejected once more", 60)
    return envoy.events(), envoy.statistics()


def cluster(trial: Trial) -> Cluster:
    endpoints = [("127.0.0.1", port) for port in trial.endpoints]
    return Cluster(trial.name, trial.port, endpoints, COMMON | trial.envoy)


class Logged(NamedTuple):
    t: float
    endpoint: str
    action: str
    reason: str
    enforced: bool
    number: int


def logged(events: list[dict[str, Any]], trial: Trial) -> list[Logged]:
    """Return what Envoy has logged of one pool."""
    return [
        Logged(
            t=datetime.datetime.fromisoformat(event["timestamp"]).timestamp(),
            endpoint=event["upstream_url"].rpartition(":")[2],
            action=event["action"].lower(),
            reason=event["type"].lower(),
            enforced=event["enforced"],
            number=event["num_ejections"],
        )
        for event in events
        if event["cluster_name"] == trial.name
    ]


def ejections(log: list[Logged], endpoint: str) -> list[Ejection]:
    """Return the ejections of an endpoint that are over."""
    found: list[Ejection] = []
    out: Logged | None = None
    for entry in (entry for entry in log if entry.endpoint == endpoint):
        if entry.action == "eject" and entry.enforced:
            out = entry
        elif entry.action == "uneject" and out is not None:
            found.append(Ejection(out.reason, out.t, entry.t - out.t, out.number))
            out = None
    return found


def simulated(trial: Trial, until: int, *, all_fail: bool = False) -> tuple[Pool, list[Logged]]:
    """Let the engine live through the same: requests by turns to all that aren't out, until so many ejections."""
    names = [str(port) for port in trial.endpoints]
    pool = Pool(trial.name, Policy(mode="enforce", min_healthy=0, outlier_detection=trial.ours), names, 0.0)
    log: list[Logged] = []
    asked, well_until = dict.fromkeys(names, 0), -1.0

    def note(decisions: tuple[Decision, ...]) -> None:
        for d in decisions:
            row = next(row for row in pool.row().endpoints if row.endpoint == d.endpoint)
            log.append(Logged(d.t, d.endpoint, str(d.action), d.reason, d.action in _DONE, row.ejected_total))

    turn = 0
    for step in range(1, 20_000):
        now = step * trial.gap
        while pool.next_sweep <= now:
            note(pool.sweep(pool.next_sweep))
        over = ejections(log, names[0])
        if len(over) >= until:
            return pool, log
        if len(over) == trial.ejections and well_until < 0:
            well_until = now + WELL
        usable = [name for name in names if name not in pool.refused()]
        name = usable[turn % len(usable)]
        turn += 1
        fails = (all_fail or name == names[0]) and now >= well_until
        if fails and trial.fails is None:
            note(pool.observe(Event(trial.name, name, Kind.CONNECT_REFUSED), now))
            continue
        note(pool.observe(Event(trial.name, name, Kind.CONNECT_OK), now))
        answers = (trial.fails if fails else None) or [200]
        asked[name] += 1
        note(pool.observe(Event(trial.name, name, Kind.HTTP, code=answers[asked[name] % len(answers)]), now))
    raise AssertionError(f"{trial.name}: not {until} ejections in the simulated time")


_DONE = (Action.EJECT, Action.UNEJECT)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_ejections_are_envoys(trial: Trial, real: tuple[list[dict[str, Any]], dict[str, int]]) -> None:
    count = trial.ejections + (trial is TRIALS[0])
    endpoint = str(trial.endpoints[0])
    theirs = ejections(logged(real[0], trial), endpoint)[:count]
    mine = ejections(simulated(trial, count)[1], endpoint)[:count]
    assert [ejection.reason for ejection in theirs] == [ejection.reason for ejection in mine]
    assert [ejection.number for ejection in theirs] == [ejection.number for ejection in mine]
    for envoys, ejection in zip(theirs, mine, strict=True):
        assert abs(envoys.lasted - ejection.lasted) <= INTERVAL + LATE, (theirs, mine)
    # And nobody else is ejected.
    for log in (logged(real[0], trial), simulated(trial, count)[1]):
        assert {entry.endpoint for entry in log if entry.action == "eject" and entry.enforced} == {endpoint}


def test_back_off_and_health_as_configured(real: tuple[list[dict[str, Any]], dict[str, int]]) -> None:
    lasted = [ejection.lasted for ejection in ejections(logged(real[0], TRIALS[0]), "8001")]
    for found, wanted in zip(lasted, [1.5, 3.0, 4.5, 5.0, 1.5], strict=False):
        assert wanted - 0.01 <= found <= wanted + INTERVAL + LATE


def test_the_cap_is_envoys(real: tuple[list[dict[str, Any]], dict[str, int]]) -> None:
    events, statistics = real
    pool, log = simulated(CAPPED, 3, all_fail=True)
    for each in (logged(events, CAPPED), log):
        active, most = 0, 0
        for entry in each:
            active += entry.enforced if entry.action == "eject" else -(entry.action == "uneject")
            most = max(most, active)
        assert most == 1
    assert statistics["cluster.capped.outlier_detection.ejections_overflow"] > 0
    assert pool.row().overflow > 0


def test_envoy_does_not_eject_what_hangs_where_errors_are_split_and_we_do(
    real: tuple[list[dict[str, Any]], dict[str, int]],
) -> None:
    events, statistics = real
    assert statistics["cluster.hung.upstream_rq_timeout"] > 20
    assert [event for event in events if event["cluster_name"] == HUNG.name and event["enforced"]] == []
    detection = ours(split_external_local_origin_errors=True, consecutive_local_origin_failure=3)
    pool = Pool("hung", Policy(mode="enforce", outlier_detection=detection), ["8031", "8032"], 0.0)
    found = [
        decision.reason
        for _ in range(3)
        for kind in (Kind.CONNECT_OK, Kind.HTTP_TIMEOUT)
        for decision in pool.observe(Event("hung", "8031", kind), 0.1)
    ]
    assert found == ["consecutive_local_origin_failure"]
