# SPDX-License-Identifier: Apache-2.0
"""Scenarios for the engine: a pool, a script that is played to it, and the decisions that it is to lead to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tidegate.breaker.pool import Pool
from tidegate.model.breaker import Decision, Event, Kind, State
from tidegate.model.outliers import OutlierDetection, Policy, Probe

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
