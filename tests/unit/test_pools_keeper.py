# SPDX-License-Identifier: Apache-2.0
"""A keeper before a driver whose proxy is played here: what is told when, what comes back, what is recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import DriverError
from tidegate.model.driver import USABLE, Result, Standing, Use
from tidegate.pools.driver import Discovery, Exchange, Wanted
from tidegate.pools.journal import Journal, Kept
from tidegate.pools.keeper import Keeper, Mode
from tidegate.pools.plan import is_done, plan
from tidegate.pools.updates import Told

pytestmark = pytest.mark.unit

A, B, C = "10.0.0.6:5000", "10.0.0.7:5000", "10.0.0.8:5000"
ALL = dict.fromkeys((A, B, C), Use.ACTIVE)
KEPT = Kept(pool="inventory", driver="played", endpoints=(A, B, C), config={})
ENFORCE = Mode(reads=True, acts=True, least=1)
MONITOR = ENFORCE._replace(acts=False)


class Played:
    """A driver of a proxy that can be away, forget, and not do what it was told."""

    target, sticks, period, settles = "the proxy", True, 0.02, 0.05

    def __init__(self, journal: Journal) -> None:
        self.uses, self.journal = dict(ALL), journal
        self.is_away = self.is_deaf = self.is_closed = False
        self.told: list[dict[str, int]] = []
        self.holding: threading.Event | None = None
        self.refusals: tuple[str, ...] = ()

    def discover(self) -> Discovery:
        return Discovery("1.0", ("mind the gap",), self.refusals)

    def read(self) -> dict[str, Use]:
        if self.is_away:
            raise DriverError("the proxy: nobody answers", away=True)
        return dict(self.uses)

    def apply(self, out: Wanted) -> list[Exchange]:
        if self.holding is not None:
            assert self.holding.wait(5)
        if self.is_away:
            raise DriverError("the proxy: nobody answers", away=True, exchanges=[("out", "")])
        self.told.append(dict(out))
        found = {name for name, use in self.uses.items() if use in (Use.EJECTED, Use.TRIAL)}
        self.journal.put(dict.fromkeys(out.keys() - found, "active"))
        exchanges = []
        for name, use in self.uses.items():
            wanted = Use.ACTIVE if name not in out else Use.TRIAL if out[name] else Use.EJECTED
            if use in USABLE and use is not wanted:
                exchanges.append(Exchange(f"{name} {wanted}", "done"))
                if not self.is_deaf:
                    self.uses[name] = wanted
        self.journal.drop(*(self.journal.entries.keys() - out.keys()))
        return exchanges

    def restore(self) -> list[Exchange]:
        exchanges = self.apply({})
        self.journal.clear()
        return exchanges

    def close(self) -> None:
        self.is_closed = True


class Bench:
    """A keeper, in turns that the test takes."""

    def __init__(self, mode: Mode = ENFORCE, path: Path | None = None) -> None:
        self.journal = Journal(path, KEPT)
        self.driver, self.told = Played(self.journal), list[Told]()
        self.now = 100.0
        self.keeper = Keeper(
            "inventory", "played", self.driver, self.journal, mode, self.told.append, clock=self.clock
        )

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    def want(self, **out: int) -> None:
        self.keeper.want({{"a": A, "b": B, "c": C}[name]: permits for name, permits in out.items()}, self.now)
        self.keeper.turn()

    @property
    def counts(self) -> dict[str, int]:
        return {row.result: row.count for row in self.keeper.row().updates if row.count}


def test_it_tells_once_and_sees_that_it_is_so() -> None:
    bench = Bench()
    bench.want(a=0)
    row = bench.keeper.row()
    assert (row.standing, row.uses, row.version) == (Standing.OK, ALL | {A: Use.EJECTED}, "1.0")
    assert row.warnings == ("mind the gap",)
    bench.keeper.turn()
    assert (bench.driver.told, bench.counts) == ([{A: 0}], {"ok": 1})
    (told,) = bench.told
    assert (told.result, told.changed, told.exchanges) == (Result.OK, {A: "ejected"}, [(f"{A} ejected", "done")])
    bench.want()
    assert bench.keeper.row().uses == ALL
    assert (bench.counts, not bench.journal.entries) == ({"ok": 2}, True)
    assert sum(row.seconds.count for row in bench.keeper.row().updates) == 2


def test_in_monitor_mode_it_only_reads() -> None:
    bench = Bench(MONITOR)
    bench.want(a=0)
    assert (bench.driver.told, bench.keeper.row().uses) == ([], ALL)
    bench.keeper.configure(ENFORCE)
    bench.keeper.turn()
    assert bench.driver.told == [{A: 0}]
    bench.keeper.configure(MONITOR)  # what was done is put back
    bench.keeper.turn()
    assert (bench.driver.told[-1], bench.driver.uses) == ({}, ALL)


def test_a_driver_that_could_not_write_is_not_asked_to() -> None:
    bench = Bench()
    bench.driver.refusals = ("the file is read-only; let the agent write it",)
    bench.want(a=0)
    assert (bench.driver.told, bench.keeper.row().standing) == ([], Standing.BEHIND)
    assert bench.keeper.row().error == "the proxy: the file is read-only; let the agent write it"
    bench.driver.refusals = ()
    bench.keeper.turn()
    assert bench.driver.told == [{A: 0}]


def test_off_it_does_not_even_read() -> None:
    bench = Bench(Mode(reads=False, acts=False, least=1))
    bench.driver.is_away = True
    bench.keeper.turn()
    assert (bench.keeper.row().standing, bench.keeper.row().error) == (Standing.OFF, "")


def test_off_it_still_puts_back_what_was_done() -> None:
    bench = Bench()
    bench.want(a=0)
    bench.keeper.configure(Mode(reads=False, acts=False, least=1))
    bench.keeper.turn()
    assert bench.driver.uses == ALL


def test_a_proxy_that_forgets_is_told_again() -> None:
    bench = Bench()
    bench.want(a=0)
    bench.driver.uses = dict(ALL)
    bench.keeper.turn()
    assert (bench.driver.uses[A], bench.keeper.row().replays) == (Use.EJECTED, 1)


def test_a_limit_of_trials_that_is_forgotten_is_told_again() -> None:
    bench = Bench()
    bench.want(a=0)
    bench.want(a=2)
    assert bench.driver.uses[A] is Use.TRIAL
    bench.driver.uses = dict(ALL)
    bench.keeper.turn()
    assert bench.driver.uses[A] is Use.TRIAL
    told = len(bench.driver.told)
    bench.keeper.turn()
    assert len(bench.driver.told) == told


def test_a_proxy_that_is_away_is_told_when_it_is_back_and_said_once() -> None:
    bench = Bench()
    bench.driver.is_away = True
    bench.want(a=0)
    for _ in range(3):
        bench.keeper.turn()
    row = bench.keeper.row()
    assert (row.standing, row.error, row.uses) == (Standing.AWAY, "the proxy: nobody answers", {})
    assert (len(bench.told), bench.counts) == (1, {"failed": 4})
    bench.driver.is_away = False
    began = bench.now
    bench.keeper.turn()
    assert (bench.driver.uses[A], bench.keeper.row().error) == (Use.EJECTED, "")
    assert bench.told[-1].seconds > bench.now - began, "measured from the decision, not from the last try"


def test_a_proxy_that_does_not_do_it_is_said_and_told_again() -> None:
    bench = Bench()
    bench.driver.is_deaf = True
    bench.want(a=0)
    assert bench.counts == {"unverified": 1}
    assert bench.keeper.row().standing is Standing.BEHIND
    assert f"{A} active" in bench.keeper.row().error
    bench.driver.is_deaf = False
    bench.keeper.turn()
    assert (bench.driver.uses[A], bench.counts) == (Use.EJECTED, {"unverified": 1, "ok": 1})


def test_it_never_takes_out_the_last_one_that_the_proxy_really_uses() -> None:
    bench = Bench()
    bench.driver.uses |= {B: Use.HELD, C: Use.FAILED}
    bench.want(a=0)
    row = bench.keeper.row()
    assert (bench.driver.uses[A], row.refused, row.standing) == (Use.ACTIVE, (A,), Standing.BEHIND)
    assert "min_healthy" in row.error
    bench.keeper.turn()
    assert bench.counts == {"refused": 1}
    bench.driver.uses[B] = Use.ACTIVE
    bench.keeper.turn()
    assert (bench.driver.uses[A], bench.keeper.row().refused) == (Use.EJECTED, ())


def test_a_breaker_that_leaves_nobody_means_it() -> None:
    bench = Bench(ENFORCE._replace(least=0))
    bench.want(a=0, b=0, c=0)
    assert set(bench.driver.uses.values()) == {Use.EJECTED}


def test_a_fault_of_a_driver_does_not_end_the_keeper(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    def fail() -> dict[str, Use]:
        raise ZeroDivisionError

    read, bench.driver.read = bench.driver.read, fail  # type: ignore[method-assign]
    bench.want(a=0)
    assert (bench.keeper.row().standing, bench.counts) == (Standing.BEHIND, {"failed": 1})
    assert "ZeroDivisionError" in bench.keeper.row().error
    assert "a fault of this program" in caplog.text
    bench.driver.read = read  # type: ignore[method-assign]
    bench.keeper.turn()
    assert bench.driver.uses[A] is Use.EJECTED


def wait(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_latest_word_wins_while_the_proxy_is_slow() -> None:
    bench = Bench()
    bench.driver.holding = threading.Event()
    bench.keeper.start()
    bench.keeper.want({A: 0}, bench.now)
    wait(lambda: bench.driver.told == [] and bench.keeper.row().version == "1.0")
    for out in ({B: 0}, {A: 0, B: 0}, {}, {C: 0}):
        bench.keeper.want(out, bench.now)
    bench.driver.holding.set()
    wait(lambda: bench.driver.uses == ALL | {C: Use.EJECTED})
    assert bench.driver.told[-1] == {C: 0}
    assert len(bench.driver.told) <= 2, "what was passed over is never told"
    bench.keeper.end(restore=True)
    assert bench.keeper.join(10)
    assert (bench.driver.uses, bench.driver.is_closed) == (ALL, True)


def test_leaving_it_goes_on_until_all_is_put_back(tmp_path: Path) -> None:
    bench = Bench(path=tmp_path / "journal.json")
    bench.want(a=0)
    bench.driver.is_away = True
    bench.keeper.leave()
    bench.keeper.start()
    wait(lambda: bench.keeper.row().standing is Standing.AWAY)
    assert not bench.keeper.join(0.05)
    bench.driver.is_away = False
    assert bench.keeper.join(10)
    assert (bench.driver.uses, bench.driver.is_closed, list(tmp_path.glob("*.json"))) == (ALL, True, [])


def test_one_after_another_of_the_same_proxy(tmp_path: Path) -> None:
    first = Bench(path=tmp_path / "journal.json")
    first.want(a=0)
    first.driver.holding = threading.Event()
    first.keeper.start()
    second = Bench(path=tmp_path / "journal.json")
    second.driver.uses = first.driver.uses
    first.keeper.end(restore=False)
    second.keeper.want({A: 0}, 100.0)
    second.keeper.start(after=[first.keeper])
    first.driver.holding.set()
    wait(lambda: second.keeper.row().standing is Standing.OK)
    assert second.driver.uses[A] is Use.EJECTED
    second.keeper.end(restore=True)
    assert second.keeper.join(10)
    assert second.driver.uses == ALL


USES = st.dictionaries(st.sampled_from((A, B, C, "10.0.0.9:5000")), st.sampled_from(Use), min_size=1)
WANTED = st.dictionaries(st.sampled_from((A, B, C, "10.0.0.9:5000")), st.integers(0, 3))


@given(USES, WANTED, st.integers(0, 4))
def test_a_plan_leaves_enough_or_what_the_breaker_itself_leaves(
    uses: dict[str, Use], wanted: dict[str, int], least: int
) -> None:
    planned = plan(wanted, uses, least)
    assert set(planned.out) | set(planned.refused) == wanted.keys() & uses.keys()
    assert not set(planned.out) & set(planned.refused)
    assert all(planned.out[name] == wanted[name] for name in planned.out)
    usable = {name for name, use in uses.items() if use in USABLE}
    left = {name for name in usable if planned.out.get(name) != 0}
    by_breaker = sum(wanted.get(name, 1) > 0 for name in uses)
    assert len(left) >= min(least, by_breaker, len(usable))
    if planned.refused:
        assert len(left) <= min(least, by_breaker), "nobody stays who could go"


@given(USES, WANTED)
def test_a_proxy_that_does_as_it_is_told_is_done(uses: dict[str, Use], wanted: dict[str, int]) -> None:
    after = {
        name: use
        if use not in USABLE
        else Use.ACTIVE
        if name not in wanted
        else Use.TRIAL
        if wanted[name]
        else Use.EJECTED
        for name, use in uses.items()
    }
    assert is_done(wanted, after)
    for name, use in after.items():
        if use in USABLE:
            other = Use.ACTIVE if use is Use.EJECTED else Use.EJECTED
            assert not is_done(wanted, after | {name: other})
