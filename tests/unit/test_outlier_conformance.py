# SPDX-License-Identifier: Apache-2.0
"""The engine against Envoy's semantics: numbered scenarios, each a script and the decisions that it leads to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tidegate.breaker.pool import Pool
from tidegate.model.breaker import Decision, Event, Kind, State
from tidegate.model.outliers import OutlierDetection, Policy, Probe

pytestmark = pytest.mark.unit
PLAIN = {"split_external_local_origin_errors": False}
ALONE = {"enforcing_consecutive_5xx": 0, "enforcing_success_rate": 0}
PROBING = {"recovery": "probe", "probe": Probe(permits=2, wait=5.0)}
FIVE = ("a", "b", "c", "d", "e")
BASE_10 = {"base_ejection_time": 10.0}


@dataclasses.dataclass
class Run:
    """A pool that a script has been played to, and what it decided."""

    pool: Pool
    decisions: list[Decision] = dataclasses.field(default_factory=list)
    answers: list[bool] = dataclasses.field(default_factory=list)

    def play(self, script: str) -> Run:
        """Play lines of ``TIME ENDPOINT EVENT[xCOUNT] ...``, ``TIME sweep`` and ``TIME VERB ENDPOINT``."""
        for line in script.strip().splitlines():
            time, what, *words = line.split()
            self.do(float(time), what, words)
        return self

    def do(self, now: float, what: str, words: list[str]) -> None:
        pool = self.pool
        if what == "sweep":
            self.decisions += pool.sweep(now)
        elif what == "mode":
            self.decisions += pool.configure(replaced(pool.policy, mode=words[0]), now)
        elif what == "endpoints":
            self.decisions += pool.set_endpoints(words, now)
        elif what == "acquire":
            self.answers.append(pool.acquire(words[0], now, number(words[1:])))
        elif what == "release":
            pool.release(words[0], number(words[1:]))
        else:
            for word in words:
                text, _, count = word.partition("x")
                for _ in range(int(count or 1)):
                    self.decisions += pool.observe(event(what, text), now)

    @property
    def said(self) -> list[str]:
        return [f"{d.t:g} {d.action} {d.endpoint} {d.reason}" for d in self.decisions]

    @property
    def active(self) -> int:
        return self.pool.row().active

    def state(self, endpoint: str) -> State:
        return next(row.state for row in self.pool.row().endpoints if row.endpoint == endpoint)


def number(words: list[str]) -> int | None:
    return int(words[0]) if words else None


def replaced(policy: Policy, **changes: Any) -> Policy:
    return msgspec.structs.replace(policy, **changes)


#: Short words for what happens, as ``KIND[:CODE][#ATTEMPT]``; a number is an answer with that status.
KINDS = {
    "ok": Kind.CONNECT_OK,
    "refused": Kind.CONNECT_REFUSED,
    "unreachable": Kind.CONNECT_UNREACHABLE,
    "connect_timeout": Kind.CONNECT_TIMEOUT,
    "timeout": Kind.HTTP_TIMEOUT,
    "reset": Kind.RESET,
    "fault": Kind.LOCAL_FAULT,
    "answered": Kind.ANSWERED,
}


def event(endpoint: str, text: str) -> Event:
    text, _, attempt = text.partition("#")
    name, _, code = text.partition(":")
    known = int(attempt) if attempt else None
    if name.isdigit():
        return Event("pool", endpoint, Kind.HTTP, code=int(name), attempt=known)
    return Event("pool", endpoint, KINDS[name], code=int(code) if code else None, attempt=known)


@dataclasses.dataclass
class Scenario:
    number: int
    words: str
    script: str
    decisions: list[str]
    detection: dict[str, Any] = dataclasses.field(default_factory=dict)
    policy: dict[str, Any] = dataclasses.field(default_factory=dict)
    hosts: tuple[str, ...] = ("a",)
    check: Callable[[Run], bool] = lambda _: True

    def run(self) -> Run:
        # Envoy has no min_healthy; its own tests lift the cap.
        detection = OutlierDetection(**({"max_ejection_percent": 100} | self.detection))
        policy = replaced(Policy(mode="enforce", min_healthy=0, outlier_detection=detection), **self.policy)
        return Run(Pool("pool", policy, self.hosts, 0.0)).play(self.script)


def of(run: Run, at: int) -> Decision:
    return run.decisions[at]


def defaults() -> bool:
    d = OutlierDetection()
    return (
        (d.interval, d.base_ejection_time, d.max_ejection_time_jitter, d.max_ejection_percent) == (10, 30, 0, 10)
        and (d.consecutive_5xx, d.consecutive_gateway_failure, d.consecutive_local_origin_failure) == (5, 5, 5)
        and (d.success_rate_minimum_hosts, d.success_rate_request_volume, d.success_rate_stdev_factor)
        == (5, 100, 1900)
        and (d.failure_percentage_threshold, d.failure_percentage_minimum_hosts) == (85, 5)
        and (d.failure_percentage_request_volume, d.always_eject_one_host) == (50, False)
        and (d.enforcing_consecutive_5xx, d.enforcing_consecutive_gateway_failure) == (100, 0)
        and (d.enforcing_consecutive_local_origin_failure, d.enforcing_success_rate) == (100, 100)
        and (d.enforcing_local_origin_success_rate, d.enforcing_failure_percentage) == (100, 0)
        and d.enforcing_failure_percentage_local_origin == 0
    )


def refused(**settings: float) -> bool:
    with pytest.raises(
        ValueError, match=r"max_ejection_time: expected at least base_ejection_time, 10s, found 3s"
    ):
        OutlierDetection(**settings)  # type: ignore[arg-type]
    return True


def rates(run: Run) -> list[float | None]:
    return [row.success_rate for row in run.pool.row().endpoints]


def local_rates(run: Run) -> list[float | None]:
    return [row.local_origin_success_rate for row in run.pool.row().endpoints]


def all_of(script: str) -> str:
    """Play a line with ``*`` for each of five hosts."""
    lines = script.strip().splitlines()
    return "\n".join(line.replace("*", host, 1) for line in lines for host in (FIVE if "*" in line else ("",)))


def backs_off(times: int, **settings: float) -> list[float]:
    """Eject one host again and again, at once after it is back; return how long each ejection lasted."""
    run = Scenario(0, "", "", [], detection=BASE_10 | PLAIN | settings).run()
    now, lasted = 0.0, []
    for _ in range(times):
        began = now
        run.do(now, "a", ["500x5"])
        assert run.state("a") is State.OPEN
        while run.state("a") is State.OPEN:
            now += 10
            run.do(now, "sweep", [])
        lasted.append(now - began)
    return lasted


SCENARIOS = [
    Scenario(1, "defaults when unset", "", [], check=lambda _: defaults()),
    Scenario(2, "max_ejection_time defaults to 300 s", "", [], check=lambda _: OutlierDetection().longest == 300),
    Scenario(
        3, "max < base is refused", "", [], check=lambda _: refused(base_ejection_time=10.0, max_ejection_time=3.0)
    ),
    Scenario(
        4,
        "base 400 s makes max 400 s",
        "",
        [],
        check=lambda _: OutlierDetection(base_ejection_time=400.0).longest == 400,
    ),
    Scenario(
        5,
        "4x500, 200, 4x500: none; the fifth in a row ejects",
        "0 a 500x4 200 500x4\n1 a 500",
        ["1 eject a consecutive_5xx"],
    ),
    Scenario(
        6,
        "a sweep at 9,999 ms keeps, one at 30,001 un-ejects",
        "0 a 500x5\n9.999 sweep\n29.998 sweep\n30.001 sweep",
        ["0 eject a consecutive_5xx", "30.001 uneject a elapsed"],
        check=lambda run: of(run, 0).until == 30,
    ),
    Scenario(
        7,
        "ejected again after it was un-ejected",
        "0 a 500x5\n30.001 sweep\n40 a 500x4\n40 a 500",
        ["0 eject a consecutive_5xx", "30.001 uneject a elapsed", "40 eject a consecutive_5xx"],
        check=lambda run: (of(run, 2).until, of(run, 2).ejections) == (100, 2),
    ),
    Scenario(
        9,
        "connect success + 200 / connect failed, 100 times: none",
        "0 a " + "refused ok 200 " * 100,
        [],
        detection=PLAIN,
    ),
    Scenario(
        10,
        "a bare connect success doesn't break a run without split",
        "0 a refused ok refusedx3\n1 a refused",
        ["1 log_only a consecutive_gateway_failure", "1 eject a consecutive_5xx"],
        detection=PLAIN,
    ),
    Scenario(11, "external success and failure by turns: none", "0 a " + "503 answered " * 100, []),
    Scenario(
        12,
        "five connect failures: 5xx enforced, gateway only logged",
        "0 a refusedx5",
        ["0 log_only a consecutive_gateway_failure", "0 eject a consecutive_5xx"],
        detection=PLAIN,
    ),
    Scenario(
        13,
        "503, 500, 5x503: gateway fires on the last",
        "0 a 503 500 503x4\n1 a 503",
        ["0 log_only a consecutive_5xx", "1 eject a consecutive_gateway_failure"],
        detection={"enforcing_consecutive_gateway_failure": 100, "enforcing_consecutive_5xx": 0},
    ),
    Scenario(14, "a timeout that carries 200 is a success", "0 a 500x4 timeout:200 500x4", [], detection=PLAIN),
    Scenario(
        15,
        "a timeout without a code is a 504",
        "0 a timeoutx5",
        ["0 log_only a consecutive_gateway_failure", "0 eject a consecutive_5xx"],
        detection=PLAIN,
        check=lambda run: of(run, 1).evidence["code"] == 504,
    ),
    Scenario(
        16,
        "timeouts while ejected don't prolong the ejection",
        "0 a timeoutx5\n1 a timeoutx10\n29 a timeoutx10\n30 sweep\n31 a timeoutx4\n32 a timeout",
        [
            "0 eject a consecutive_local_origin_failure",
            "30 uneject a elapsed",
            "32 eject a consecutive_local_origin_failure",
        ],
    ),
    Scenario(
        17,
        "split: local failures eject",
        "0 a refusedx2 unreachable connect_timeout\n1 a reset",
        ["1 eject a consecutive_local_origin_failure"],
    ),
    Scenario(18, "split: a connect success resets", "0 a refusedx4 ok refusedx4 ok connect_timeoutx4", []),
    Scenario(
        19,
        "503 and 500 mixed after an un-ejection: only 5xx fires",
        "0 a 503x5\n30.001 sweep\n40 a 503 500 503 500\n41 a 503",
        [
            "0 eject a consecutive_gateway_failure",
            "30.001 uneject a elapsed",
            "41 eject a consecutive_5xx",
        ],
        detection={"enforcing_consecutive_gateway_failure": 100},
    ),
    Scenario(
        20,
        "success rates {50, 4x100}: the threshold is 52, 50 is ejected",
        all_of("1 * 200x200\n1 e 500x200\n10 sweep"),
        ["1 log_only e consecutive_5xx"] * 40 + ["10 eject e success_rate"],
        detection={"enforcing_consecutive_5xx": 0},
        hosts=FIVE,
        check=lambda run: (
            (of(run, -1).evidence["success_rate"], of(run, -1).evidence["success_rate_average"]) == (50, 90)
            and of(run, -1).evidence["success_rate_threshold"] == pytest.approx(52)
            and run.pool.row().success_rate_threshold == pytest.approx(52)
            and rates(run) == [100, 100, 100, 100, 50]
            and local_rates(run) == [None] * 5
        ),
    ),
    Scenario(
        21,
        "below the volume: computed, nobody ejected",
        all_of("1 * 200x25\n1 e 500x25\n10 sweep"),
        ["1 log_only e consecutive_5xx"] * 5,
        detection={"enforcing_consecutive_5xx": 0, "consecutive_5xx": 5},
        hosts=FIVE,
        check=lambda run: rates(run) == [None] * 4 + [50] and run.pool.row().success_rate_threshold is None,
    ),
    Scenario(
        22,
        "external and local success rates apart",
        all_of("1 * okx200\n1 e refusedx200\n10 sweep"),
        ["1 log_only e consecutive_local_origin_failure"] * 40 + ["10 eject e local_origin_success_rate"],
        detection={"enforcing_consecutive_local_origin_failure": 0},
        hosts=FIVE,
        check=lambda run: (
            local_rates(run) == [100] * 4 + [50]
            and rates(run) == [None] * 5
            and run.pool.row().success_rate_average is None
        ),
    ),
    Scenario(
        23,
        "zero hosts",
        "10 sweep\n20 sweep",
        [],
        detection={"success_rate_minimum_hosts": 0, "failure_percentage_minimum_hosts": 0},
        hosts=(),
    ),
    Scenario(
        24,
        "failure percentage: 83.3 stays, 85.7 is ejected",
        all_of("1 * 200x50\n1 d 503x250\n1 e 503x300\n10 sweep"),
        ["10 eject e failure_percentage"],
        detection=ALONE
        | {"enforcing_failure_percentage": 100, "consecutive_5xx": 0}
        | {"consecutive_gateway_failure": 0},
        hosts=FIVE,
        check=lambda run: of(run, 0).evidence["failure_percentage"] == pytest.approx(100 * 300 / 350),
    ),
    Scenario(
        25,
        "local failure percentage",
        all_of("1 * okx200\n1 e refusedx200\n10 sweep"),
        ["10 log_only e local_origin_success_rate", "10 eject e failure_percentage_local_origin"],
        detection={
            "consecutive_local_origin_failure": 0,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_failure_percentage_local_origin": 100,
            "failure_percentage_threshold": 40,
        },
        hosts=FIVE,
    ),
    Scenario(
        26,
        "removed while ejected: none is active any more",
        "0 a 500x5\n1 endpoints b\n9.999 sweep",
        ["0 eject a consecutive_5xx", "1 uneject a removed"],
        hosts=("a", "b"),
        check=lambda run: run.active == 0,
    ),
    Scenario(
        27,
        "a cap of 60 % of 2: one is ejected, one overflows",
        "0 a 500x5\n1 b 500x5",
        ["0 eject a consecutive_5xx", "1 overflow b consecutive_5xx"],
        detection={"max_ejection_percent": 60},
        hosts=("a", "b"),
        check=lambda run: run.pool.row().overflow == 1 and run.active == 1,
    ),
    Scenario(
        28,
        "a cap of 50 % of 3: one",
        "0 a 500x5\n1 b 500x5\n2 c 500x5",
        ["0 eject a consecutive_5xx", "1 overflow b consecutive_5xx", "2 overflow c consecutive_5xx"],
        detection={"max_ejection_percent": 50},
        hosts=("a", "b", "c"),
    ),
    Scenario(
        29,
        "a cap of 90 % of 1: none",
        "0 a 500x5",
        ["0 overflow a consecutive_5xx"],
        detection={"max_ejection_percent": 90},
        check=lambda run: of(run, 0).evidence["limit"] == "max_ejection_percent",
    ),
    Scenario(
        30,
        "always eject one host",
        "0 a 500x5\n1 b 500x5",
        ["0 eject a consecutive_5xx", "1 overflow b consecutive_5xx"],
        detection={"max_ejection_percent": 0, "always_eject_one_host": True},
        hosts=("a", "b"),
    ),
    Scenario(
        31,
        "not enforced: logged, and the counter begins anew",
        "0 a 500x5\n1 a 500x4\n2 a 500",
        ["0 log_only a consecutive_5xx", "2 log_only a consecutive_5xx"],
        detection={"enforcing_consecutive_5xx": 0},
        check=lambda run: not of(run, 0).enforced and run.state("a") is State.CLOSED,
    ),
    Scenario(
        32,
        "the cap uses the engine's own state",
        "0 a 500x5\n1 b 500x5\n30 sweep\n31 b 500x5\n32 a 500x5",
        [
            "0 eject a consecutive_5xx",
            "1 overflow b consecutive_5xx",
            "30 uneject a elapsed",
            "31 eject b consecutive_5xx",
            "32 overflow a consecutive_5xx",
        ],
        detection={"max_ejection_percent": 50},
        policy={"mode": "monitor"},
        hosts=("a", "b"),
        check=lambda run: not any(decision.enforced for decision in run.decisions) and not run.pool.refused(),
    ),
    Scenario(
        35,
        "a duplicate event: one ejection",
        "0 a refused#1 refused#2 refused#3 refused#4 reset#4 connect_timeout#4\n1 a refused#5 reset#5",
        ["1 eject a consecutive_local_origin_failure"],
        check=lambda run: run.active == 1 and run.pool.duplicates == 2,
    ),
    Scenario(
        36,
        "5xx while ejected is ignored",
        "0 a 500x5\n1 a 200 500x5",
        ["0 eject a consecutive_5xx"],
        check=lambda run: of(run, 0).until == 30 and run.pool.row().endpoints[0].ejected_total == 1,
    ),
    Scenario(
        37,
        "back-off 10, 20, 30; two healthy sweeps: 20; long health: 10",
        "0 a 500x5\n10 sweep\n10 a 500x5\n20 sweep\n30 sweep\n30 a 500x5\n40 sweep\n50 sweep\n60 sweep\n"
        "70 sweep\n80 sweep\n80 a 500x5\n90 sweep\n100 sweep\n"
        + "\n".join(f"{100 + 10 * i} sweep" for i in range(1, 51))
        + "\n610 a 500x5\n620 sweep",
        [
            f"{time} {what}"
            for ejected, back in ((0, 10), (10, 30), (30, 60), (80, 100), (610, 620))
            for time, what in ((ejected, "eject a consecutive_5xx"), (back, "uneject a elapsed"))
        ],
        detection=BASE_10,
    ),
    Scenario(
        38,
        "the cap of 300 s holds",
        "",
        [],
        check=lambda _: backs_off(40) == [min(10 * k, 300) for k in range(1, 41)],
    ),
    Scenario(
        39,
        "a cap of 305 s is 310 with a sweep each 10 s",
        "",
        [],
        check=lambda _: backs_off(40, max_ejection_time=305.0) == [min(10 * k, 310) for k in range(1, 41)],
    ),
    Scenario(
        41,
        "back-off after detection by sweeps too",
        all_of("1 * 200x200\n1 e 500x200\n10 sweep\n20 sweep")
        + "\n"
        + all_of("21 * 200x200\n21 e 500x200\n30 sweep\n40 sweep\n50 sweep"),
        ["10 eject e success_rate", "20 uneject e elapsed", "30 eject e success_rate", "50 uneject e elapsed"],
        detection=BASE_10 | {"consecutive_5xx": 0},
        hosts=FIVE,
        check=lambda run: [decision.ejections for decision in run.decisions] == [1, 1, 2, 2],
    ),
    Scenario(
        42,
        "the fields of a decision",
        "0 a 502x5\n30 sweep\n45 a 502x5",
        ["0 eject a consecutive_5xx", "30 uneject a elapsed", "45 eject a consecutive_5xx"],
        detection={"consecutive_gateway_failure": 0},
        hosts=("a", "b"),
        check=lambda run: (
            of(run, 2)
            == Decision(
                t=45.0,
                pool="pool",
                endpoint="a",
                action=of(run, 2).action,
                reason="consecutive_5xx",
                until=105.0,
                ejections=2,
                enforced=True,
                evidence={
                    "last": "http",
                    "code": 502,
                    "consecutive": 5,
                    "seconds_since_unejection": 15.0,
                    "active": 1,
                    "hosts": 2,
                    "ejected_total": 2,
                },
            )
            and of(run, 1).evidence
            == {"seconds_since_ejection": 30.0, "active": 0, "hosts": 2, "ejected_total": 1}
        ),
    ),
    Scenario(
        44,
        "turning detection off un-ejects all",
        "0 a 500x5\n1 b refusedx5\n2 mode off\n3 a 500x9\n40 sweep",
        [
            "0 eject a consecutive_5xx",
            "1 eject b consecutive_local_origin_failure",
            "2 uneject a off",
            "2 uneject b off",
        ],
        hosts=("a", "b", "c"),
        check=lambda run: run.active == 0 and of(run, 2).enforced,
    ),
    Scenario(
        45,
        "half open: exactly N trials",
        "0 a 500x5\n30 sweep\n30 acquire a 1\n30 acquire a 2\n30 acquire a 3\n"
        "31 a 200#1\n31 acquire a 4\n32 a 200#2",
        ["0 eject a consecutive_5xx", "30 half_open a elapsed", "32 uneject a probed"],
        policy=PROBING,
        check=lambda run: run.answers == [True, True, False, False],
    ),
    Scenario(
        46,
        "an ignored call gives its permit back",
        "0 a 500x5\n30 sweep\n30 acquire a 1\n30 acquire a 2\n31 a fault#1\n31 acquire a 3\n31 acquire a 4",
        ["0 eject a consecutive_5xx", "30 half_open a elapsed"],
        policy=PROBING,
        check=lambda run: run.answers == [True, True, True, False],
    ),
    Scenario(
        47,
        "half open: a trial without an end is over after the wait",
        "0 a 500x5\n30 sweep\n31 acquire a 1\n35 sweep\n36 sweep\n95 sweep\n96 sweep",
        [
            "0 eject a consecutive_5xx",
            "30 half_open a elapsed",
            "36 eject a probe_failed",
            "96 half_open a elapsed",
        ],
        policy=PROBING,
        check=lambda run: of(run, 2).evidence["unanswered"] == 1 and of(run, 2).until == 96,
    ),
    Scenario(
        48,
        "metrics_only never opens",
        "0 a 500x50\n" + all_of("1 * refusedx200\n10 sweep"),
        ["0 log_only a consecutive_5xx"] * 10
        + [f"1 log_only {host} consecutive_local_origin_failure" for host in FIVE for _ in range(40)]
        + [f"10 log_only {host} failure_percentage_local_origin" for host in FIVE],
        policy={"mode": "metrics_only"},
        hosts=FIVE,
        check=lambda run: run.active == 0,
    ),
    Scenario(
        49,
        "stragglers while open are ignored; one permit, one trial",
        "0 a 500x5\n1 a 200#7 500#8\n30 sweep\n30 acquire a 9\n30 acquire a 10\n31 a 500#8\n32 a 200#9",
        ["0 eject a consecutive_5xx", "30 half_open a elapsed", "32 uneject a probed"],
        policy=PROBING | {"probe": Probe(permits=1)},
        check=lambda run: run.answers == [True, False],
    ),
    Scenario(
        50,
        "a cancelled trial doesn't stick",
        "0 a 500x5\n30 sweep\n30 acquire a 1\n31 release a 1\n40 sweep\n41 acquire a 2\n42 a 200#2",
        ["0 eject a consecutive_5xx", "30 half_open a elapsed", "42 uneject a probed"],
        policy=PROBING | {"probe": Probe(permits=1, wait=5.0)},
        check=lambda run: run.answers == [True, True],
    ),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s.number}: {s.words}")
def test_conformance(scenario: Scenario) -> None:
    run = scenario.run()
    assert run.said == scenario.decisions
    assert scenario.check(run)


def test_every_scenario_has_its_number_once() -> None:
    listed = {*range(1, 51)} - {8, 33, 34, 40, 43}
    assert [scenario.number for scenario in SCENARIOS] == sorted(listed)
