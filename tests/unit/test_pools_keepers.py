# SPDX-License-Identifier: Apache-2.0
"""All keepers before drivers that are played: who waits for whom, what can't be made, whom the kernel refuses."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import typer

from tests.unit.test_pools_keeper import ALL, A, B, C, Played, wait
from tidegate.breaker import hearing
from tidegate.breaker.hearing import Hearing
from tidegate.breaker.recorded import details_of_update
from tidegate.cli import pools as command
from tidegate.config.pools import AnyDriver, FailfastDriver, HaproxyDriver, Pool
from tidegate.errors import DriverError, TidegateError
from tidegate.kernel.endpoints import Endpoint
from tidegate.lock import AgentLock
from tidegate.model.driver import DriverRow, Result, Standing, Use
from tidegate.model.outliers import Member, OutlierDetection, Policy
from tidegate.pools import guard, making
from tidegate.pools import journal as journals
from tidegate.pools.driver import Exchange
from tidegate.pools.journal import Journal, Kept
from tidegate.pools.keeper import Keeper, Mode
from tidegate.pools.keepers import Keepers, mode_of
from tidegate.pools.lease import Lease
from tidegate.pools.updates import Told

pytestmark = pytest.mark.unit

HAPROXY = HaproxyDriver(socket="/run/x.sock", backend="inventory")
POLICY = Policy(mode="enforce", min_healthy=1)


class Refusals:
    """What has the kernel refuse connects."""

    def __init__(self) -> None:
        self.now: dict[Endpoint, int] = {}

    def apply(self, refused: Mapping[Endpoint, int], among: Iterable[Endpoint]) -> list[Endpoint]:
        before, self.now = self.now, dict(refused)
        return [endpoint for endpoint in among if before.get(endpoint) != refused.get(endpoint)]

    def refused(self) -> dict[Endpoint, int]:
        return self.now

    def renew(self) -> None:
        return


class Node:
    """Keepers of one pool, and one proxy that all of its drivers write to."""

    def __init__(self, directory: Path) -> None:
        self.uses, self.drivers = dict(ALL), list[Played]()
        self.refusals, self.told = Refusals(), list[Told]()
        self.lease = Lease(600.0, directory, directory / "lock")
        self.keepers = Keepers(directory, self.lease, lambda: cast(Any, self.refusals), self.told.append)

    def make(self, _section: AnyDriver, _endpoints: Iterable[str], journal: Journal) -> Played:
        driver = Played(journal)
        driver.uses = self.uses
        self.drivers.append(driver)
        return driver

    def configure(
        self, *drivers: AnyDriver, endpoints: tuple[str, ...] = (A, B, C), name: str = "inventory"
    ) -> None:
        pools = {name: Pool(endpoints=list(endpoints), drivers=list(drivers))}
        self.keepers.configure(pools, {name: Member(POLICY, endpoints, None)})

    def close(self) -> None:
        """End all; the lease's child would act for what is left."""
        child = self.lease.child
        self.keepers.close()
        if child is not None:
            child.kill()
            child.wait()

    def row(self, name: str = "inventory") -> DriverRow:
        return next(row for row in self.keepers.rows()[name] if row.driver == "haproxy")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(tmp_path)
    monkeypatch.setattr(making, "make", made.make)
    yield made
    made.close()


@pytest.mark.parametrize("changed", [msgspec.structs.replace(HAPROXY, eject="maint"), HAPROXY])
def test_who_writes_to_the_same_proxy_waits_for_the_one_before(node: Node, changed: HaproxyDriver) -> None:
    name = "inventory" if changed != HAPROXY else "renamed"
    node.configure(HAPROXY)
    node.keepers.want("inventory", {}, {A: 0}, 0.0)
    wait(lambda: node.uses[A] is Use.EJECTED)
    (first,) = node.drivers
    first.holding = threading.Event()
    node.configure(changed, name=name)
    node.keepers.want(name, {}, {B: 0}, 0.0)
    assert node.row(name).standing is Standing.STARTING
    first.holding.set()
    wait(lambda: node.row(name).standing is Standing.OK)
    assert first.told[-1] == {}
    assert first.is_closed
    assert (node.drivers[1].told, node.uses) == ([{B: 0}], ALL | {B: Use.EJECTED})


def test_who_waits_still_ends_when_the_agent_does(node: Node) -> None:
    node.configure(HAPROXY)
    node.keepers.want("inventory", {}, {A: 0}, 0.0)
    wait(lambda: node.uses[A] is Use.EJECTED)
    node.drivers[0].is_away = True
    node.configure(msgspec.structs.replace(HAPROXY, eject="maint"))
    node.close()
    assert all(driver.is_closed for driver in node.drivers)


def test_what_cannot_be_made_is_shown_and_tried_again(node: Node, tmp_path: Path) -> None:
    node.configure(HAPROXY)
    wait(lambda: node.row().standing is Standing.OK)
    section = msgspec.structs.replace(HAPROXY, eject="drain")
    kept = Kept(pool="inventory", driver="haproxy", endpoints=(A, B, C), config=msgspec.to_builtins(section))
    broken = tmp_path / journals.file_name(kept)
    broken.write_text("{")
    node.configure(section)
    for _ in range(2):
        node.keepers.beat()
    assert (node.row().standing, "expected what this program writes" in node.row().error) == (
        Standing.BEHIND,
        True,
    )
    node.keepers.want("inventory", {}, {A: 0}, 0.0)
    wait(lambda: node.uses[A] is Use.EJECTED)  # by the one before, which goes on
    broken.unlink()
    node.keepers.beat()
    wait(lambda: node.row().standing is Standing.OK)
    assert len(node.drivers) == 2
    node.configure()
    assert [row.driver for row in node.keepers.rows()["inventory"]] == ["null"]


def test_the_kernel_refuses_nobody_whom_a_proxy_of_the_pool_needs(node: Node) -> None:
    node.uses |= {B: Use.HELD, C: Use.FAILED}
    node.configure(HAPROXY, FailfastDriver())
    wait(lambda: node.row().standing is Standing.OK)
    node.keepers.want("inventory", {A: 0}, {A: 0}, 0.0)
    wait(lambda: node.row().refused == (A,))
    assert (node.refusals.now, node.uses[A]) == ({}, Use.ACTIVE)
    node.uses[B] = Use.ACTIVE
    wait(lambda: node.uses[A] is Use.EJECTED)
    node.keepers.want("inventory", {A: 0}, {A: 0}, 0.0)
    assert [str(endpoint) for endpoint in node.refusals.now] == [A]


@pytest.mark.parametrize(
    ("min_healthy", "percent", "least"), [(1, 100, 1), (3, 10, 3), (0, 100, 0), (0, 99, 1), (0, 10, 1)]
)
def test_a_proxy_is_emptied_only_where_the_policy_says_both(min_healthy: int, percent: int, least: int) -> None:
    detection = OutlierDetection(max_ejection_percent=percent)
    policy = Policy(mode="enforce", min_healthy=min_healthy, outlier_detection=detection)
    assert mode_of(policy) == Mode(reads=True, acts=True, least=least)


def test_what_a_proxy_says_is_one_line_that_a_terminal_does_not_obey() -> None:
    error = DriverError("nginx refuses: \x1b[2J\x9b31m\n\n  line 2\tof\u202e it\r\n; mend that")
    assert str(error) == "nginx refuses: \\x1b[2J\\x9b31m   line 2 of\\u202e it ; mend that"
    long = str(DriverError(f"nginx: {'x' * 1_000_000}; mend that"))
    assert (len(long) < 2_000, long[:7], long[-11:]) == (True, "nginx: ", "; mend that")
    told = Told("p", "nginx", "t", Result.FAILED, {}, [Exchange("nginx -t", "x" * 1_000_000)], 0.1, "")
    assert len(json.dumps(details_of_update(told))) < 10_000


def test_of_many_endpoints_an_error_names_a_few() -> None:
    many = [f"10.0.{number // 256}.{number % 256}:80" for number in range(1000)]
    driver = Played(Journal(None, Kept(pool="p", driver="d", endpoints=tuple(many), config={})))
    driver.uses, driver.is_deaf = dict.fromkeys(many, Use.ACTIVE), True
    keeper = Keeper("p", "d", driver, driver.journal, Mode(reads=True, acts=True, least=1), lambda _: None)
    keeper.want(dict.fromkeys(many[:500], 0), 0.0)
    keeper.turn()
    assert f"{many[0]} active" in keeper.row().error
    assert "and 492 more; it is told again" in keeper.row().error


def test_what_was_sent_for_a_decision_that_is_passed_over_is_on_the_record_of_the_next() -> None:
    driver, told = Played(Journal(None, Kept(pool="p", driver="d", endpoints=(A,), config={}))), list[Told]()
    keeper = Keeper("p", "d", driver, driver.journal, Mode(reads=True, acts=True, least=1), told.append)
    driver.is_deaf = True
    read = driver.read

    def read_and_want() -> dict[str, Use]:
        if driver.told and keeper.wanted:
            keeper.want({}, 0.0)
        return read()

    driver.read = read_and_want  # type: ignore[method-assign]
    keeper.want({A: 0}, 0.0)
    keeper.turn()
    assert told == []
    keeper.turn()
    assert [(each.result, each.exchanges) for each in told] == [(Result.OK, [Exchange(f"{A} ejected", "done")])]


def test_a_proxy_that_is_only_to_be_read_fails_no_update() -> None:
    driver, told = Played(Journal(None, Kept(pool="p", driver="d", endpoints=(A,), config={}))), list[Told]()
    keeper = Keeper("p", "d", driver, driver.journal, Mode(reads=True, acts=True, least=1), told.append)
    driver.is_away = True
    keeper.turn()
    row = keeper.row()
    assert (row.standing, bool(row.error), told) == (Standing.AWAY, True, [])
    assert not any(updates.count for updates in row.updates)
    keeper.want({A: 0}, 0.0)
    keeper.turn()
    assert [each.result for each in told] == [Result.FAILED]


def test_a_fault_while_putting_back_does_not_keep_the_driver_open() -> None:
    driver = Played(Journal(None, Kept(pool="p", driver="d", endpoints=(A,), config={})))

    def restore() -> list[Exchange]:
        raise ValueError("not a thing of the proxy's")

    driver.restore = restore  # type: ignore[method-assign]
    driver.journal.put({A: "active"})
    keeper = Keeper("p", "d", driver, driver.journal, Mode(reads=True, acts=True, least=1), lambda _: None)
    driver.apply = lambda _: []  # type: ignore[method-assign, assignment]
    keeper.start()
    keeper.end(restore=True)
    assert keeper.join(10)
    assert driver.is_closed


def test_a_journal_that_another_holds_for_too_long_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_PATIENCE", 0.05)
    journal = Journal(tmp_path / "a.json", Kept(pool="p", driver="d", endpoints=(A,), config={}))
    with (tmp_path / ".a.json.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DriverError, match="another process"), journal.turn():
            pass
        fcntl.flock(other, fcntl.LOCK_UN)
        with journal.turn():
            pass


def test_a_child_that_reads_nothing_never_stops_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deaf.py").write_text("import time; time.sleep(60)")
    lease = Lease(60.0, tmp_path, tmp_path / "lock")
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "deaf.py"))
    lease.begin()
    assert lease.child is not None
    assert lease.child.stdin is not None
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(lease.child.stdin.fileno(), bytes(65536))
    lease.renew()
    child = lease.child
    lease.end(is_whole=True)
    child.kill()
    child.wait()


def test_statistics_are_of_the_endpoints_that_the_pool_has_now(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def statistics(_key: object, _section: object, endpoints: Iterable[str], _take: object) -> Any:
        asked.append(tuple(endpoints))
        return SimpleNamespace(stop=lambda: None)

    monkeypatch.setattr(hearing, "_statistics", statistics)
    breaker = cast(Any, SimpleNamespace(blind=lambda: {("inventory", A)}, hear=len))
    found = Hearing(breaker, None, {"inventory": Pool(endpoints=[A, B], drivers=[HAPROXY])})
    found.tick()
    found.tick()
    found.configure({"inventory": Pool(endpoints=[A, C], drivers=[HAPROXY])})
    found.tick()
    assert asked == [(A, B), (A, C)]
    found.close()


# What the lease's child becomes.


@pytest.fixture
def stdin() -> Iterator[Callable[[bytes], None]]:
    """The pipe to the child, as its stdin."""
    saved = os.dup(0)
    reads, writes = os.pipe()
    os.dup2(reads, 0)
    yield lambda word: cast(None, os.write(writes, word))
    os.dup2(saved, 0)
    for fd in (saved, reads, writes):
        os.close(fd)


def leave_a_journal(directory: Path) -> None:
    away = msgspec.to_builtins(HaproxyDriver(socket=str(directory / "nowhere"), backend="inventory"))
    kept = Kept(pool="p", driver="haproxy", endpoints=(A,), config=away)
    entry = {"endpoint": A, "admin": 0, "weight": 1, "maxconn": 0, "told": {"state": "drain"}}
    Journal(directory / journals.file_name(kept), kept).put({"s1": entry})


def restore(directory: Path, instead_of: int | None, config: Path | None = None) -> None:
    command.restore(config, directory, directory / "lock", instead_of)


def test_what_is_put_back_needs_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "broken.yaml"
    config.write_text("pools: {")
    restore(tmp_path, None, config)
    assert "nothing to put back" in capsys.readouterr().out


def test_who_puts_back_leaves_the_lock_to_another_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_a_journal(tmp_path)
    tries: list[float] = []

    def sleep(_seconds: float) -> None:
        AgentLock(tmp_path / "lock").close()  # an agent could start now
        tries.append(_seconds)

    monkeypatch.setattr(command, "_PATIENCE", 0.2)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(TidegateError, match="nowhere"):
        restore(tmp_path, 1)
    assert tries


def test_who_puts_back_stops_when_another_agent_runs_or_the_same_goes_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stdin: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_a_journal(tmp_path)
    with AgentLock(tmp_path / "lock"):
        with pytest.raises(typer.Exit):
            restore(tmp_path, os.getpid() + 1)
        assert "another agent runs" in capsys.readouterr().out
        monkeypatch.setattr(time, "sleep", lambda _: stdin(guard.WORD))
        with pytest.raises(typer.Exit):
            restore(tmp_path, os.getpid())
        assert "the agent goes on" in capsys.readouterr().out
        with pytest.raises(TidegateError, match="another agent runs"):
            restore(tmp_path, None)


def test_a_broken_journal_does_not_keep_others_from_being_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def from_journal(path: Path, kept: Kept) -> Any:
        if kept.pool == "a":
            raise KeyError("base")

        def put_back() -> list[Exchange]:
            done.append(kept.pool)
            return []

        return SimpleNamespace(restore=put_back, close=lambda: None), Journal(path, kept)

    monkeypatch.setattr(making, "from_journal", from_journal)
    for pool in "ab":
        kept = Kept(pool=pool, driver="haproxy", endpoints=(A,), config={})
        Journal(tmp_path / journals.file_name(kept), kept).put({"s1": 1})
    (tmp_path / "0.json").write_text("nothing")
    with pytest.raises(TidegateError) as error:
        restore(tmp_path, None)
    assert (done, len(str(error.value).splitlines())) == (["b"], 2)
