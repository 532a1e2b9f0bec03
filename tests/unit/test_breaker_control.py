# SPDX-License-Identifier: Apache-2.0
"""The breaker beside a kernel and a driver of the test: what is counted in which order, and whose permits are."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tidegate.audit import Actor, Audit
from tidegate.breaker import control
from tidegate.breaker.control import Breaker
from tidegate.config.pools import FailfastDriver, Pool
from tidegate.kernel.endpoints import Endpoint, Evidence, Seen
from tidegate.kernel.layouts import PoolEvidence, TcpFailure
from tidegate.model.breaker import State, Vitals
from tidegate.model.outliers import Freeze, OutlierDetection, Probe
from tidegate.pools.keepers import Keepers
from tidegate.pools.lease import Lease
from tidegate.pools.updates import Told

pytestmark = pytest.mark.unit

NAME = "10.0.0.6:5000"
ENDPOINT = Endpoint(ip_address("10.0.0.6"), 5000)
VIEW = cast(Any, SimpleNamespace(endpoints=()))


class Kernel:
    """What the kernel counts and tells; also what HttpWatch is to the breaker."""

    fd = -1

    def __init__(self) -> None:
        self.connected = self.answered = 0
        self.ring: list[Evidence] = []
        self.times = (0, 0)
        self.endpoints = self

    def seen(self) -> dict[Endpoint, Seen]:
        return {ENDPOINT: Seen(self.connected, self.answered, 0, False)}

    def evidence(self) -> list[Evidence]:
        told, self.ring = self.ring, []
        return told

    def watch(self, wanted: Mapping[Endpoint, float]) -> None:
        assert set(wanted) == {ENDPOINT}

    def find_silence(self) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    def timed(self, thresholds: Mapping[str, float]) -> dict[str, tuple[int, int]]:
        times, self.times = self.times, (0, 0)
        return dict.fromkeys(thresholds, times)


class Driver:
    """Lets as many connects through as it is told, as the kernel does."""

    def __init__(self) -> None:
        self.granted: int | None = None
        self.tried = self.told = 0

    def connect(self) -> bool:
        if self.granted is None:
            return True
        lets_through = self.tried < self.granted
        self.tried += lets_through
        return lets_through

    def apply(self, refused: Mapping[Endpoint, int], among: Iterable[Endpoint]) -> list[Endpoint]:
        assert list(among) == [ENDPOINT]
        wanted = refused.get(ENDPOINT)
        if wanted is None or self.granted is None or wanted != self.granted - self.told:
            self.granted, self.tried, self.told = wanted, 0, 0
        return []

    def refused(self) -> dict[Endpoint, int]:
        return {} if self.granted is None else {ENDPOINT: self.granted}

    def begun(self) -> dict[Endpoint, int]:
        more, self.told = self.tried - self.told, self.tried
        return {ENDPOINT: more} if more else {}

    def renew(self) -> None:
        return

    def choose(self, services: Mapping[Endpoint, Iterable[str]]) -> None:
        assert services == {ENDPOINT: []}

    def follow(self, cgroups: Mapping[int, str]) -> None:
        assert not cgroups

    def end_idle(self) -> None:
        return


class Bench:
    """A breaker of one endpoint, out for two seconds after three failures."""

    def __init__(self, directory: Path, **pool: Any) -> None:
        self.kernel, self.driver, self.now, self.directory = Kernel(), Driver(), 100.0, directory
        audit = Audit(directory / "audit.jsonl", max_size=1 << 20, files=1, retention=1e6)
        detection = OutlierDetection(
            consecutive_5xx=3, consecutive_local_origin_failure=3, interval=0.5, base_ejection_time=2.0,
            max_ejection_percent=100, **pool.pop("detection", {}),
        )  # fmt: skip
        pools = {
            "inventory": Pool(
                endpoints=[NAME], mode="enforce", min_healthy=0, drivers=[FailfastDriver()],
                outlier_detection=detection, **pool,
            )
        }  # fmt: skip
        self.breaker = Breaker(
            pools, Freeze(), cast(Any, self.kernel), self._keepers, audit, dict, clock=lambda: self.now
        )

    def _keepers(self, record: Callable[[Told], None]) -> Keepers:
        lease = Lease(10.0, self.directory, self.directory / "lock")
        return Keepers(self.directory, lease, lambda: cast(Any, self.driver), record, clock=lambda: self.now)

    def tell(self, kind: PoolEvidence, code: int, age: float = 0.0) -> None:
        """Let something speak against the endpoint, now."""
        self.kernel.ring.append(
            Evidence(
                int(self.now * 1e9), int(age * 1e9), 1, self.kernel.connected, self.kernel.answered, ENDPOINT,
                kind, code, 0, 0, 1, b"",
            )
        )  # fmt: skip

    def fail(self) -> None:
        self.tell(PoolEvidence.RESPONSE, 503)

    def tick(self) -> None:
        self.breaker.tick(VIEW)

    def sweep(self, seconds: float = 0.5) -> None:
        """Let time pass and do what is due."""
        self.now += seconds
        self.breaker.beat()

    @property
    def row(self) -> Any:
        (pool,) = self.breaker.rows()
        (row,) = pool.endpoints
        return row

    def half_open(self) -> None:
        """Eject, and wait until trials may begin."""
        for _ in range(3):
            self.fail()
        self.breaker.read()
        assert self.row.state is State.OPEN
        while self.row.state is State.OPEN:
            self.sweep()
        assert self.row.state is State.HALF_OPEN


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's own state plays no part here."""
    monkeypatch.setattr(control, "vitals_of", lambda _view, _before: Vitals())


@pytest.mark.parametrize("first", ["tick", "read", "sweep"])
def test_a_success_between_failures_ends_their_run_whoever_comes_first(tmp_path: Path, first: str) -> None:
    bench = Bench(tmp_path)
    for _ in range(4):
        bench.fail()
        bench.kernel.answered += 1
    {"tick": bench.tick, "read": bench.breaker.read, "sweep": bench.sweep}[first]()
    bench.breaker.read()
    assert bench.row.state is State.CLOSED
    assert bench.row.consecutive_5xx <= 1


def test_an_interval_is_judged_with_its_successes(tmp_path: Path) -> None:
    detection = {"failure_percentage_minimum_hosts": 1, "enforcing_failure_percentage": 100}
    bench = Bench(tmp_path, detection=detection)
    for _ in range(50):
        bench.fail()
        bench.kernel.answered += 1
    bench.kernel.answered += 900
    bench.breaker.read()
    bench.sweep()
    assert bench.row.state is State.CLOSED
    assert bench.row.success_rate == pytest.approx(95.0)


@pytest.mark.parametrize("first", ["tick", "read"])
def test_a_trial_takes_one_permit_and_one_that_succeeds_another(tmp_path: Path, first: str) -> None:
    bench = Bench(tmp_path, recovery="probe", probe=Probe(permits=2, wait=5.0))
    bench.half_open()
    for left in (1, 0):
        assert bench.driver.connect()
        bench.kernel.connected += 1
        bench.kernel.answered += 1  # it was out for its answers, so one of them is the proof
        (bench.tick if first == "tick" else bench.breaker.read)()
        bench.tick()
        if left:
            assert (bench.row.state, bench.row.permits) == (State.HALF_OPEN, left)
            bench.sweep()
            assert bench.row.state is State.HALF_OPEN
    assert bench.row.state is State.CLOSED


def test_answers_of_before_are_no_proof(tmp_path: Path) -> None:
    bench = Bench(tmp_path, recovery="probe", probe=Probe(permits=1, wait=5.0))
    for _ in range(3):
        bench.fail()
    bench.breaker.read()
    bench.kernel.answered += 5  # over a kept connection, while it is out
    bench.now += 2.5
    bench.breaker.beat()
    assert bench.row.state is State.HALF_OPEN
    bench.tick()
    assert bench.row.state is State.HALF_OPEN


def test_what_began_before_gives_no_permit_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path, recovery="probe", probe=Probe(permits=1, wait=60.0))
    bench.half_open()
    let_through = 0
    for _ in range(5):
        let_through += bench.driver.connect()
        bench.tell(PoolEvidence.CONNECT, TcpFailure.ABORTED, age=0.4 + (bench.now - 100.0))  # of before
        bench.breaker.read()
    assert let_through == 1
    bench.now += 0.1
    bench.tell(PoolEvidence.CONNECT, TcpFailure.ABORTED, age=0.05)  # the trial itself, cancelled early
    bench.breaker.read()
    assert bench.driver.connect()


def test_slow_answers_are_of_all_answers(tmp_path: Path) -> None:
    slow = {"slow_response_threshold": 0.2, "slow_response_percent": 90, "slow_response_request_volume": 50}
    bench = Bench(tmp_path, **slow)
    bench.kernel.answered += 60
    bench.fail()
    bench.breaker.read()
    bench.kernel.answered += 40
    bench.kernel.times = (101, 50)
    bench.tick()
    bench.sweep()
    assert bench.row.state is State.CLOSED
    bench.kernel.answered += 100
    bench.kernel.times = (100, 95)
    bench.tick()
    bench.sweep()
    assert (bench.row.state, bench.row.reason) == (State.OPEN, "slow_response")


def test_what_is_asked_by_hand_says_what_comes_of_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    by = Actor(uid=0, pid=1, name="root")
    assert bench.breaker.change("open", "inventory", NAME, force=True, by=by) == ""
    assert not bench.driver.connect()
    bench.breaker.change("close", "inventory", NAME, force=False, by=by)
    assert bench.driver.connect()
